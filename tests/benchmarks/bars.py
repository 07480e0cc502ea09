"""The cases and the bar of each: one table, and the pure functions over it.

A bar is the most that a case may take. Most are ratios to bare httpx in the same run, by processor time, which other
processes on the machine disturb less than elapsed time; those in seconds are elapsed time, but for ``--quick``, which
runs on machines that are busy. ``--quick`` fails above ``MARGIN`` times the bar.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Final, Literal, NamedTuple, TypeAlias, final

from attrs import frozen

MARGIN: Final = 1.5
"""How many times its bar a figure may be before ``--quick`` fails."""

BARE_CALL_S: Final = 540e-6
"""The processor time of a call by bare httpx on the idle machine of the bars, in seconds.

In ``--quick``, absolute figures are divided by how much slower the machine is now.
"""

OVER: Final = ("httpx", "aiohttp")
ALL_PEERS: Final = ("openai", "anthropic", "litellm", "pydantic-ai", "langchain", "any-llm")
EVERYONE: Final = ("bare", *OVER, *ALL_PEERS)

Unit: TypeAlias = Literal["x", "s", "ms", "us", "kB", ""]
Clock: TypeAlias = Literal["processor", "elapsed"]


@final
class Sample(NamedTuple):
    """What one call took in one round, in seconds; and the figure of a case that measures itself."""

    processor: float
    elapsed: float
    figure: float = 0.0


Figures: TypeAlias = dict[str, Mapping[str, Sequence[Sample]]]
"""The samples of each case by client, one a round."""


@final
@frozen(kw_only=True)
class Case:
    """Something that is measured, how often, and its bars over httpx and over aiohttp.

    ``unit`` is ``x`` for a ratio to bare httpx in the case ``against``. A case of which ``itself`` is true measures
    itself, in its unit. ``times`` runs make a sample, of ``each`` calls. A ``long`` case has no round to warm up, is
    measured only once of other clients than ours, and is no part of ``--quick``.
    """

    key: str
    title: str
    unit: Unit = "x"
    bars: tuple[float | None, float | None]
    peers: Mapping[str, float] = {}
    clients: Sequence[str] = ("bare", *OVER)
    against: str = ""
    itself: bool = False
    first: bool = False
    times: int = 1
    each: int = 1
    rounds: int = 31
    long: bool = False

    def bar(self, over: str) -> float | None:
        return self.bars[OVER.index(over)]

    def bound(self, over: str) -> float | None:
        """Return the most that ``--quick`` accepts.

        >>> Case(key="", title="", bars=(1.0, None)).bound("httpx")
        1.5
        """
        bar = self.bar(over)
        return None if bar is None else MARGIN * bar


CASES: Final = (
    Case(
        key="call",
        title="one call, every layer on",
        bars=(1.1, 0.6),
        peers={"openai": 3, "litellm": 12},
        clients=EVERYONE,
        times=40,
    ),
    Case(
        key="miss",
        title="one call, cache miss and store",
        bars=(1.3, 0.75),
        against="call",
        times=40,
    ),
    Case(
        key="hit",
        title="a cache hit in memory",
        bars=(1 / 40, 1 / 40),
        against="call",
        times=200,
        clients=("bare", *OVER, "litellm", "langchain"),
    ),
    Case(
        key="hit-sqlite",
        title="a cache hit in SQLite",
        bars=(1 / 5, 1 / 5),
        against="call",
        times=40,
    ),
    Case(
        key="transport",
        title="the transport alone",
        bars=(None, None),
        against="call",
        times=40,
    ),
    Case(
        key="layers",
        title="the layers alone",
        bars=(0.12, None),
        against="call",
        times=200,
        clients=("bare", "httpx"),
    ),
    Case(
        key="stream",
        title="a stream of 200 events",
        bars=(1.0, 0.45),
        peers={"openai": 12, "litellm": 35},
        clients=EVERYONE,
        times=5,
    ),
    Case(
        key="100",
        title="100 calls in flight, each",
        bars=(0.9, 0.45),
        peers={"openai": 3, "litellm": 7},
        clients=EVERYONE,
        each=100,
        rounds=9,
    ),
    Case(
        key="1000",
        title="1,000 calls at once to a server that takes 200 ms",
        unit="s",
        bars=(1.6, 1.0),
        peers={"litellm": 5},
        clients=("bare", *OVER, "openai", "litellm"),
        rounds=3,
        long=True,
    ),
    Case(
        key="streams",
        title="1,000 streams at once of 23 events, 50 ms apart",
        unit="s",
        bars=(2.5, 1.8),
        clients=("bare", *OVER, "openai", "litellm"),
        rounds=3,
        long=True,
    ),
    Case(
        key="first",
        title="import to first answer",
        unit="s",
        bars=(0.25, None),
        peers={"litellm": 8},
        clients=EVERYONE,
        first=True,
        rounds=5,
    ),
    Case(
        key="off", title="a layer that is off", unit="us", bars=(0.3, None), itself=True, clients=("httpx",), rounds=3
    ),
    Case(
        key="models",
        title="100 models instead of 1, the layers alone",
        unit="",
        bars=(1.1, None),
        itself=True,
        clients=("httpx",),
        rounds=3,
    ),
    Case(
        key="entries",
        title="a hit among 100,000 entries instead of 100, in memory",
        unit="",
        bars=(1.1, None),
        itself=True,
        clients=("httpx",),
        rounds=3,
        long=True,
    ),
    Case(
        key="entries-sqlite",
        title="the same in SQLite",
        unit="",
        bars=(1.1, None),
        itself=True,
        clients=("httpx",),
        rounds=3,
        long=True,
    ),
    Case(key="prompt", title="a call with a prompt of 1 MB", unit="ms", bars=(5, 5), clients=("bare", *OVER), rounds=9),
    Case(
        key="memory",
        title="memory of a call in flight, of 1,000",
        unit="kB",
        bars=(30, 30),
        itself=True,
        clients=OVER,
        rounds=1,
        long=True,
    ),
)


def figure(case: Case, client: str, taken: Mapping[str, Sequence[Sample]], clock: Clock = "elapsed") -> float | None:
    """Return the figure of a client in the unit of its case, or ``None`` if it was not measured.

    A ratio is the median of the ratios of each round, whose samples were taken one after the other.

    >>> call = CASES[0]
    >>> bare, ours = [Sample(100e-6, 1.0), Sample(200e-6, 1.0)], [Sample(110e-6, 1.0), Sample(230e-6, 1.0)]
    >>> round(figure(call, "httpx", {"bare": bare, "httpx": ours}), 3)
    1.125
    """
    samples = taken.get(client, ())
    if not samples:
        return None
    if case.itself:
        return median(sample.figure for sample in samples)
    if case.unit == "x":
        pairs = zip(samples, taken["bare"], strict=False)
        return median(sample.processor / bare.processor for sample, bare in pairs)
    return seconds(samples, clock if case.unit == "s" else "processor") * (1e3 if case.unit == "ms" else 1)


def seconds(samples: Iterable[Sample], clock: Clock) -> float:
    """Return the median of one clock."""
    return median(getattr(sample, clock) for sample in samples)


def multiple(case: Case, peer: str, taken: Mapping[str, Sequence[Sample]]) -> float | None:
    """Return how many times as much a peer takes as this library over aiohttp, round by round."""
    clock: Clock = "elapsed" if case.unit == "s" else "processor"
    pairs = list(zip(taken.get(peer, ()), taken.get("aiohttp", ()), strict=False))
    return median(getattr(theirs, clock) / getattr(ours, clock) for theirs, ours in pairs) if pairs else None


def slowness(figures: Figures) -> float:
    """Return how much slower the machine is now than the one of the bars, and 1 if it is faster.

    >>> slowness({"call": {"bare": [Sample(processor=1080e-6, elapsed=1.0)]}})
    2.0
    """
    bare = figures.get("call", {}).get("bare", ())
    return max(1.0, seconds(bare, "processor") / BARE_CALL_S) if bare else 1.0


def too_slow(figures: Figures, cases: Iterable[Case] = CASES) -> dict[str, str]:
    """Return a message for each case whose figure is above its bound, by the key of the case."""
    slow = slowness(figures)
    return {
        case.key: "; ".join(messages)
        for case in cases
        if (messages := list(_messages(case, figures.get(case.key, {}), slow)))
    }


def _messages(case: Case, taken: Mapping[str, Sequence[Sample]], slow: float) -> Iterator[str]:
    for over in OVER:
        found, bound = figure(case, over, taken, "processor"), case.bound(over)
        if found is None or bound is None:
            continue
        if found / (slow if case.unit in {"s", "ms", "us"} else 1) > bound:
            shown, bar = text_of(found, case.unit), text_of(case.bar(over), case.unit)
            yield f"{case.title}, over {over}: {shown}; its bar is {bar}, and CI accepts {text_of(bound, case.unit)}"


def text_of(value: float | None, unit: Unit) -> str:
    """Return a figure with two or three significant digits and its unit; a ratio has none.

    >>> [text_of(value, "x") for value in (0.0214, 0.346, 1.234, 17.36)]
    ['0.021', '0.35', '1.23', '17.4']
    >>> text_of(0.247, "s"), text_of(12.3, "kB"), text_of(None, "x")
    ('0.25 s', '12.3 kB', '')
    """
    if value is None:
        return ""
    digits = 3 if value < 0.1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}" + (f" {unit}".replace("us", "µs") if unit not in {"x", ""} else "")
