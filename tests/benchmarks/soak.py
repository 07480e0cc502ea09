"""Many calls at once while a fifth of all answers is wrong: ``python -m tests.benchmarks.soak [calls [at_once [s]]]``.

The chaos server runs in a process of its own and takes up to ``s`` seconds (20) for a good answer, as models do: with
much less, the machine is tested and not the library. Calls go through every layer, whole, streamed and pulled, with
deadlines of all kinds, some to a server that is not there, some cancelled by their caller. At the end of each round
nothing may be left of it; what came of the calls is printed, and what must hold is asserted.
"""

import gc
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, final

import anyio
from attrs import define, evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects import (
    Completed,
    Failed,
    LLMConfig,
    LLMEnv,
    LLMError,
    LLMRequest,
    LLMResponse,
    ModelConfig,
    Preferences,
    Restarted,
    StreamEvent,
    TaskType,
    TextDelta,
    generate,
    open_env,
    open_stream,
    run,
    stream,
)
from llm_effects.config import CacheConfig, RoutingConfig
from llm_effects.stores.ledger.memory import MemoryLedger

SHARE: Final = 0.2
LATEST_S: Final = 0.25
"""How long after its deadline a call may end."""

TURNS: Final = 5
"""So many turns of the event loop a call takes to leave: where the machine is too busy for them, that is no fault."""

TICK_S: Final = 0.01
GIVEN_UP_S: Final = 60.0

GROWTH: Final = 1.02
"""How much more objects there may be after the last round than after the first."""

GROWTH_OF_MEMORY: Final = 1.2
"""The same of memory, whose allocator keeps more or less of what was freed."""

ROUNDS: Final = 2
"""How often all is closed and looked at."""

LEFT_ALONE: Final = TaskType("left-alone")


@final
@frozen(kw_only=True)
class Left:
    """What is there between two rounds."""

    tasks: int
    descriptors: int
    objects: int
    rss_mb: float


@final
@define
class Report:
    """What came of the calls: how they ended, how late, and what was left after each round."""

    ends: Counter[str] = field(factory=Counter[str])
    late: list[float] = field(factory=list[float])
    lag: float = 0.0
    left: list[Left] = field(factory=list[Left])
    began: float = field(factory=time.monotonic)

    def show(self) -> None:
        calls, took = self.ends.total(), time.monotonic() - self.began
        print(f"{calls} calls in {took:.1f} s, {calls / took:.0f} a second")
        late, lag = max(self.late) * 1000, self.lag * 1000
        print(f"  the last to end did so {late:+.0f} ms after its deadline; the event loop was up to {lag:.0f} ms late")
        print("  " + ", ".join(f"{name} {count}" for name, count in self.ends.most_common()))
        for each in self.left:
            print(f"  {each.tasks} tasks, {each.descriptors} descriptors, {each.objects} objects, {each.rss_mb:.0f} MB")

    def check(self) -> None:
        """All that must hold."""
        assert max(self.late) < LATEST_S + TURNS * self.lag, f"a call ended {max(self.late):.3f} s after its deadline"
        assert not self.ends["cut"], "an answer was cut without being told"
        assert not self.ends["never ended"]
        warm, last = self.left[1], self.left[-1]
        assert (last.tasks, last.descriptors) == (self.left[0].tasks, self.left[0].descriptors)
        assert last.objects <= warm.objects * GROWTH, "objects pile up"
        assert last.rss_mb <= warm.rss_mb * GROWTH_OF_MEMORY, "memory piles up"


@contextmanager
def chaos(seed: int, longest_s: float) -> Iterator[str]:
    """Run the chaos server as a child process, which takes up to so long for an answer, and give its base URL."""
    command = [sys.executable, "-m", "tests.fixtures.chaos", str(seed), str(SHARE), str(longest_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield f"http://127.0.0.1:{child.stdout.readline().strip()}"
        finally:
            child.kill()


def config_of(base: str, longest_s: float) -> LLMConfig:
    """Two models that do wrong things, and one that is not there."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        shut = f"http://127.0.0.1:{one.getsockname()[1]}/v1"
    model = ModelConfig(
        provider="openai-compatible",
        model="m",
        timeout_ms=2_000 * longest_s,
        first_content_ms=1_500 * longest_s,
        between_content_ms=500 * longest_s,
    )
    models = {"a": evolve(model, endpoint=f"{base}/a/v1"), "b": evolve(model, endpoint=f"{base}/b/v1")}
    order = {"general": ("a", "b"), LEFT_ALONE: ("shut", "b", "a")}
    return LLMConfig(
        models={**models, "shut": evolve(model, endpoint=shut)},
        routing=RoutingConfig(tasks=order),
        cache=CacheConfig(max_size=100),
    )


async def one(env: LLMEnv, number: int, draw: random.Random, report: Report, longest_s: float) -> None:
    """Make one call and note how it ended, and how long after its deadline (less than nothing: before it)."""
    limit_s = longest_s * draw.choice((0.3, 0.8, 1.5, 2.0))
    task = LEFT_ALONE if draw.random() < 0.05 else TaskType.GENERAL
    request = LLMRequest(prompt=f"why? {number}", task_type=task, preferences=Preferences(timeout_ms=limit_s * 1000))
    began, impatient = anyio.current_time(), draw.random() < 0.02
    with anyio.move_on_after(draw.random() * longest_s if impatient else limit_s + GIVEN_UP_S):
        how = (plain, pushed, pulled)[number % 3]
        report.ends[await how(request, env)] += 1
        report.late.append(anyio.current_time() - began - limit_s)
        return
    report.ends["cancelled" if impatient else "never ended"] += 1


async def plain(request: LLMRequest, env: LLMEnv) -> str:
    return end_of(await run(generate(request), env), None)


async def pushed(request: LLMRequest, env: LLMEnv) -> str:
    events: list[StreamEvent] = []

    async def sink(event: StreamEvent) -> None:
        events.append(event)

    return end_of(await run(stream(request, sink), env), events)


async def pulled(request: LLMRequest, env: LLMEnv) -> str:
    async with open_stream(request)(env) as opened:
        events = [event async for event in opened]
    match events[-1]:
        case Completed(response):
            return end_of(Success(response), events)
        case Failed(error):
            return end_of(Failure(error), events)
        case other:
            return f"ended by {type(other).__name__}"


def end_of(result: Result[LLMResponse, LLMError], events: list[StreamEvent] | None) -> str:
    """Name the end of a call; an answer is whole, and whoever listened has heard just that."""
    told = None if events is None else "".join(event.text for event in events if isinstance(event, TextDelta))
    if not is_successful(result):
        error = result.failure()
        return error.tag if told is None or error.partial == told else "cut"
    whole = result.unwrap().content == "because" and told in {None, "because"}
    return "success" if whole and not any(isinstance(event, Restarted) for event in events or ()) else "cut"


async def a_round(env: LLMEnv, numbers: Iterator[int], in_flight: int, report: Report, longest_s: float) -> None:
    """Keep so many calls in flight until the numbers are used up; they do not all begin at once."""

    async def worker(seed: int) -> None:
        draw = random.Random(seed)
        await anyio.sleep(draw.random() * longest_s)
        for number in numbers:
            await one(env, number, draw, report, longest_s)

    async with anyio.create_task_group() as watch:
        watch.start_soon(watched, report)
        async with anyio.create_task_group() as tasks:
            for seed in range(in_flight):
                tasks.start_soon(worker, seed)
        watch.cancel_scope.cancel()


async def watched(report: Report) -> None:
    """Note how late the event loop itself is at the worst."""
    while True:
        due = anyio.current_time() + TICK_S
        await anyio.sleep_until(due)
        report.lag = max(report.lag, anyio.current_time() - due)


def left() -> Left:
    """Look at what is there when nothing is under way."""
    gc.collect()
    return Left(
        tasks=len(anyio.get_running_tasks()),
        descriptors=len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - only their number
        objects=len(gc.get_objects()),
        rss_mb=int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20,
    )


async def soak(calls: int, in_flight: int, rounds: int = ROUNDS, longest_s: float = 20.0) -> Report:
    """Run the calls in rounds, each in an environment of its own that is closed after it."""
    with chaos(7, longest_s) as base:
        report, config = Report(), config_of(base, longest_s)
        report.left.append(left())
        for number in range(rounds):
            numbers = iter(range(calls * number // rounds, calls * (number + 1) // rounds))
            async with open_env(config) as env:
                await a_round(evolve(env, ledger=MemoryLedger()), numbers, in_flight, report, longest_s)
                del env
            report.left.append(left())
        return report


def main(calls: int = 10_000, in_flight: int = 1_000, longest_s: int = 20) -> None:
    for backend in ("asyncio", "trio"):
        print(f"{backend}: ", end="")
        report = anyio.run(soak, calls, in_flight, ROUNDS, longest_s, backend=backend)
        report.show()
        report.check()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
