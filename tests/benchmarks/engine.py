"""The in-process model through the whole library against its engine called directly.

``python -m tests.benchmarks.engine [rounds]`` sends the same requests in turn to the engine's own API, in threads of
this process, and through the library, which runs the engine in a process of its own: 1, 4 and 8 at once, each in a
slot. Processor time counts both processes. Before that it watches the event loop while a model loads, answers and
closes, and while there is nothing to do. ``python -m tests.benchmarks.engine turns`` measures what a slot that keeps
its prefix saves of the second turn of a conversation.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Final, TypeAlias

import anyio
from attrs import define, evolve, field, frozen

from llm_effects import (
    LLMConfig,
    LLMRequest,
    ModelConfig,
    Preferences,
    StreamEvent,
    TextDelta,
    converse,
    open_env,
    run,
    start_conversation,
    stream,
)
from llm_effects.clients.engine_process import LoadedEngine
from llm_effects.clients.local_engine import Settings, parameters
from llm_effects.config.services import CacheConfig
from llm_effects.effects.env import LLMEnv
from llm_effects.providers.llama import LLAMA
from llm_effects.providers.registry import target_of
from tests.fixtures.llama_server import missing, model_file

AT_ONCE: Final = (1, 4, 8)
SLOTS: Final = 8
TOKENS: Final = 24
MODEL: Final = ModelConfig(
    provider="llama", model_path=str(model_file()), slots=SLOTS, threads=1, context_length=512, timeout_ms=600_000
)
CONFIG: Final = LLMConfig(models={"tiny": MODEL}, cache=CacheConfig(enabled=False))

Figures: TypeAlias = tuple[float, float, float, float]


def request_of(number: int) -> LLMRequest:
    """Return a request with a prompt of its own, so that no two share what the engine has cached."""
    prompt = f"{number} times: tell me a long story about a ship, a storm and an island."
    return LLMRequest(prompt=prompt, preferences=Preferences(max_tokens=TOKENS, temperature=0, timeout_ms=600_000))


@define
class Round:
    """Some calls at once: when each had its first content, and how many chunks of content came in all."""

    clock: Callable[[], float] = time.process_time
    began: float = field(factory=time.perf_counter)
    used: float = field(init=False)
    used_here: float = field(factory=time.process_time)
    first_content: list[float] = field(factory=list)
    contents: int = 0

    def __attrs_post_init__(self) -> None:
        self.used = self.clock()

    def note(self, first: bool) -> None:
        self.contents += 1
        if first:
            self.first_content.append(time.perf_counter() - self.began)

    def figures(self) -> Figures:
        """Return tokens a second, ms to the first content, processor ms a token, and this process's percent of them."""
        per_second = self.contents / (time.perf_counter() - self.began)
        used, here = self.clock() - self.used, time.process_time() - self.used_here
        return per_second, median(self.first_content) * 1000, used / self.contents * 1000, here / used * 100


def clock_of(env: LLMEnv) -> Callable[[], float]:
    """Return the clock of the processor time of this process and of the engine's, on Linux."""
    pid = env.clients.engines["tiny"]._model.server._process.pid  # type: ignore[attr-defined]
    clock = (~pid << 3) | 2  # as clock_getcpuclockid(3)
    return lambda: time.process_time() + time.clock_gettime(clock)


class Receiver:
    """The receiver of one answer of the engine."""

    left = False
    when_left: Callable[[], object] | None = None

    def __init__(self, noted: Round) -> None:
        self.noted, self.first = noted, True

    def put(self, chunk: str) -> bool:
        if any(choice["delta"].get("content") for choice in json.loads(chunk)["choices"]):
            self.noted.note(self.first)
            self.first = False
        return False


def directly(engine: LoadedEngine, numbers: range) -> Figures:
    target = target_of("tiny", MODEL).unwrap()
    bodies = [LLAMA.encode(target, request_of(number), True).unwrap().body.decode() for number in numbers]
    noted = Round()
    threads = [threading.Thread(target=engine.complete, args=(body, Receiver(noted))) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return noted.figures()


async def by_library(env: LLMEnv, numbers: range, clock: Callable[[], float] = time.process_time) -> Figures:
    requests, noted = [request_of(number) for number in numbers], Round(clock)

    async def call(request: LLMRequest) -> None:
        first = True

        async def sink(event: StreamEvent) -> None:
            nonlocal first
            if isinstance(event, TextDelta):
                noted.note(first)
                first = False

        (await run(stream(request, sink), env)).unwrap()

    async with anyio.create_task_group() as group:
        for request in requests:
            group.start_soon(call, request)
    return noted.figures()


async def compare(rounds: int) -> None:
    """Print the medians of both, and the median of the ratios of each pair, library over engine."""
    engine = LoadedEngine()
    engine.load(json.dumps(parameters(Settings(MODEL.model_path or "", 512, SLOTS, 1, LoadedEngine), "127.0.0.1")))
    names = ("tokens a second", "first content, ms", "processor time, ms")
    print(f"\n{'engine, library, ratio':<23}" + "".join(f"{name:>27}" for name in names) + "  library's own, %")
    async with open_env(CONFIG) as env:
        await by_library(env, range(SLOTS))
        directly(engine, range(SLOTS))
        clock, number = clock_of(env), 100
        for at_once in AT_ONCE:
            pairs = list[tuple[Figures, Figures]]()
            for turn in range(rounds):
                numbers = range(number, number := number + at_once)
                library = await by_library(env, numbers, clock) if turn % 2 else None
                direct = directly(engine, numbers)
                pairs.append((direct, library or await by_library(env, numbers, clock)))
            own = median(library[3] for _, library in pairs)
            columns = "".join(column(pairs, place) for place in range(3))
            print(f"{at_once:>2} at once{'':<13}{columns} {own:>16.1f}", flush=True)
    engine.close()


def column(pairs: list[tuple[Figures, Figures]], place: int) -> str:
    engine, library = ([pair[side][place] for pair in pairs] for side in (0, 1))
    ratio = median(ours / theirs for theirs, ours in zip(engine, library, strict=True))
    return f"{median(engine):>11.1f} {median(library):>8.1f} {ratio:>6.3f}"


# The gaps of the event loop.


@define
class Gaps:
    """The longest time between two steps of the loop that should be 1 ms apart, by three clocks, in ms.

    What other programs take from this one is in ``elapsed`` only; what a thread does that holds the interpreter's lock
    is in ``process`` too, and what the loop itself does, in ``thread``.
    """

    elapsed: float = 0.0
    process: float = 0.0
    thread: float = 0.0

    async def watch(self) -> None:
        last = now()
        while True:
            await anyio.sleep(0.001)
            here = now()
            elapsed, process, thread = (1000 * (after - before) for before, after in zip(last, here, strict=True))
            self.elapsed, self.process = max(self.elapsed, elapsed - 1), max(self.process, process)
            self.thread, last = max(self.thread, thread), here


def now() -> tuple[float, float, float]:
    return time.perf_counter(), time.process_time(), time.thread_time()


async def watched(seen: dict[str, list[Gaps]], name: str, work: Callable[[], Any]) -> None:
    gaps = Gaps()
    async with anyio.create_task_group() as group:
        group.start_soon(gaps.watch)
        await anyio.sleep(0.01)
        await work()
        await anyio.sleep(0.01)
        group.cancel_scope.cancel()
    seen.setdefault(name, []).append(gaps)


async def gaps(rounds: int) -> None:
    """Print the gaps of the loop: the median of the longest of each round, and the longest of all."""
    seen: dict[str, list[Gaps]] = {}
    for number in range(rounds):
        async with open_env(CONFIG) as env:
            await watched(seen, "nothing (for 2 s)", lambda: anyio.sleep(2))
            await watched(seen, "load, and a first answer", lambda: by_library(env, range(1)))
            await watched(seen, "8 streams", lambda number=number: by_library(env, range(number * 10, number * 10 + 8)))
            await watched(seen, "close", env.clients.aclose)
    print(f"\n{'gaps of the loop, ms: median, longest':<38} {'elapsed':>16} {'processor time':>16} {'of the loop':>16}")
    for name, each in seen.items():
        columns = [[getattr(gaps, clock) for gaps in each] for clock in ("elapsed", "process", "thread")]
        print(f"{name:<38} " + " ".join(f"{median(column):>8.1f} {max(column):>7.1f}" for column in columns))


# The prefix that a slot keeps.


@frozen
class Turns:
    """The first two turns of a conversation: seconds to their first content, and the tokens of the second one."""

    first_s: float
    second_s: float
    kept: int
    fresh: int


async def two_turns(env: LLMEnv, name: str, repeats: int) -> Turns:
    """Begin a conversation with a long system text, which differs by its name."""
    system = (
        f"Incident {name}. " + "The disks of db-1 are full on Fridays, and the checkout waits for a lock. " * repeats
    )
    (await run(start_conversation(name, system=system), env)).unwrap()
    seconds = list[float]()
    for question in ("Why is it slow?", "Since when?"):
        asked = LLMRequest(prompt=question, preferences=Preferences(max_tokens=2, temperature=0, timeout_ms=600_000))
        began, contents = time.perf_counter(), list[float]()

        async def sink(event: StreamEvent, contents: list[float] = contents) -> None:
            contents.extend([time.perf_counter()] if isinstance(event, TextDelta) else [])

        usage = (await run(converse(name, asked, sink=sink), env)).unwrap().usage
        seconds.append(contents[0] - began)
    return Turns(*seconds, kept=usage.cache_read_tokens, fresh=usage.input_tokens or 0)


async def turns(conversations: int = 3, repeats: int = 40) -> None:
    """Print the time to the first content of both turns."""
    model = evolve(MODEL, slots=2, context_length=4096)
    async with open_env(evolve(CONFIG, models={"tiny": model})) as env:
        for number in range(conversations):
            each = await two_turns(env, f"{number}", repeats)
            share = f"{each.second_s / each.first_s:.1%}: {each.kept} tokens kept, {each.fresh} read anew"
            print(f"first turn {each.first_s:.2f} s, second {each.second_s:.2f} s, {share}", flush=True)


async def main(rounds: str) -> None:
    if (problem := missing()) is not None:
        print(problem)
        return
    if rounds == "turns":
        await turns()
        return
    await measure(int(rounds))


async def measure(rounds: int) -> None:
    await gaps(max(1, rounds // 3))
    await compare(rounds)


if __name__ == "__main__":
    anyio.run(main, (sys.argv[1:] or ["9"])[0])
