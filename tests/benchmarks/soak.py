"""Many calls at once while a fifth of responses is faulty: ``python -m tests.benchmarks.soak [calls [at_once [s]]]``.

The chaos server runs in another process and takes up to ``s`` seconds (20) for a good answer, as models do: much less
would test the machine instead of the library. Calls go through every layer, whole, streamed and pulled, with various
deadlines, some to a server that does not exist, some cancelled by their caller. Each round must leave nothing behind;
the outcomes are printed, and the invariants asserted.
"""

import gc
import os
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
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
from tests.benchmarks.stub import child_server
from tests.fixtures.chaos import CANARY

SHARE: Final = 0.2
LATEST_S: Final = 0.25
"""How long after its deadline a call may end, in seconds."""

TURNS: Final = 5
"""How many turns of the event loop a call may take to end: a busy machine is not a fault."""

TICK_S: Final = 0.01
GIVEN_UP_S: Final = 60.0

GROWTH: Final = 1.02
"""The allowed ratio of objects after the last round to those after the first."""

NOISE: Final = 3_000
"""Objects allowed on top, which the interpreter and the libraries keep: 15 for each call of the shortest run."""

GROWTH_OF_MEMORY: Final = 1.2
"""The same for memory: its allocator keeps some of what was freed."""

ROUNDS: Final = 2
"""How many times everything is closed and counted."""

UNREACHABLE_FIRST: Final = TaskType("unreachable-first")


@final
@frozen(kw_only=True)
class Resources:
    """The resources in use between two rounds."""

    tasks: int
    descriptors: int
    objects: int
    rss_mb: float


@final
@define
class Report:
    """The outcomes of the calls, how late they ended, and the resources in use after each round."""

    ends: Counter[str] = field(factory=Counter[str])
    late: list[float] = field(factory=list[float])
    lag: float = 0.0
    resources: list[Resources] = field(factory=list[Resources])
    started: float = field(factory=time.monotonic)

    def show(self) -> None:
        calls, took = self.ends.total(), time.monotonic() - self.started
        print(f"{calls} calls in {took:.1f} s, {calls / took:.0f} a second")
        late, lag = max(self.late) * 1000, self.lag * 1000
        print(f"  the latest call ended {late:+.0f} ms after its deadline; the event loop was up to {lag:.0f} ms late")
        print("  " + ", ".join(f"{name} {count}" for name, count in self.ends.most_common()))
        for each in self.resources:
            print(f"  {each.tasks} tasks, {each.descriptors} descriptors, {each.objects} objects, {each.rss_mb:.0f} MB")

    def check(self) -> None:
        """Assert every invariant."""
        assert max(self.late) < LATEST_S + TURNS * self.lag, f"a call ended {max(self.late):.3f} s after its deadline"
        assert not self.ends["cut"], "an answer was cut without an error"
        assert not self.ends["never ended"]
        warm, last = self.resources[1], self.resources[-1]
        assert (last.tasks, last.descriptors) == (self.resources[0].tasks, self.resources[0].descriptors)
        assert last.objects <= warm.objects * GROWTH + NOISE, f"objects leak: {warm.objects}, then {last.objects}"
        assert last.rss_mb <= warm.rss_mb * GROWTH_OF_MEMORY, "memory leaks"


def config_of(base: str, longest_s: float) -> LLMConfig:
    """Configure two faulty models, and one that does not exist."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        shut = f"http://127.0.0.1:{one.getsockname()[1]}/v1"
    model = ModelConfig(
        provider="openai-compatible",
        model="m",
        api_key=CANARY,  # which the server repeats
        timeout_ms=2_000 * longest_s,
        first_content_ms=1_500 * longest_s,
        between_content_ms=500 * longest_s,
    )
    models = {"a": evolve(model, endpoint=f"{base}/a/v1"), "b": evolve(model, endpoint=f"{base}/b/v1")}
    order = {"general": ("a", "b"), UNREACHABLE_FIRST: ("shut", "b", "a")}
    return LLMConfig(
        models={**models, "shut": evolve(model, endpoint=shut)},
        routing=RoutingConfig(tasks=order),
        cache=CacheConfig(max_size=100),
    )


async def call_once(env: LLMEnv, number: int, draw: random.Random, report: Report, longest_s: float) -> None:
    """Make one call, and record its outcome and how long after its deadline it ended (negative: before it)."""
    limit_s = longest_s * draw.choice((0.3, 0.8, 1.5, 2.0))
    task = UNREACHABLE_FIRST if draw.random() < 0.05 else TaskType.GENERAL
    request = LLMRequest(prompt=f"why? {number}", task_type=task, preferences=Preferences(timeout_ms=limit_s * 1000))
    started, cancels = anyio.current_time(), draw.random() < 0.02
    with anyio.move_on_after(draw.random() * longest_s if cancels else limit_s + GIVEN_UP_S):
        make_call = (plain, pushed, pulled)[number % 3]
        report.ends[await make_call(request, env)] += 1
        report.late.append(anyio.current_time() - started - limit_s)
        return
    report.ends["cancelled" if cancels else "never ended"] += 1


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
    """Name the outcome of a call; the answer, and the text of its events, must be whole."""
    text = None if events is None else "".join(event.text for event in events if isinstance(event, TextDelta))
    if not is_successful(result):
        error = result.failure()
        return error.tag if text is None or error.partial == text else "cut"
    whole = result.unwrap().content == "because" and text in {None, "because"}
    return "success" if whole and not any(isinstance(event, Restarted) for event in events or ()) else "cut"


async def run_round(env: LLMEnv, numbers: Iterator[int], in_flight: int, report: Report, longest_s: float) -> None:
    """Keep this many calls in flight until the numbers are used up; they start at random times."""

    async def worker(seed: int) -> None:
        draw = random.Random(seed)
        await anyio.sleep(draw.random() * longest_s)
        for number in numbers:
            await call_once(env, number, draw, report, longest_s)

    async with anyio.create_task_group() as watch:
        watch.start_soon(measure_lag, report)
        async with anyio.create_task_group() as tasks:
            for seed in range(in_flight):
                tasks.start_soon(worker, seed)
        watch.cancel_scope.cancel()


async def measure_lag(report: Report) -> None:
    """Record the greatest lag of the event loop."""
    while True:
        due = anyio.current_time() + TICK_S
        await anyio.sleep_until(due)
        report.lag = max(report.lag, anyio.current_time() - due)


def resources() -> Resources:
    """Count the resources in use while no call is in flight."""
    gc.collect()
    return Resources(
        tasks=len(anyio.get_running_tasks()),
        descriptors=len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - only their number
        objects=len(gc.get_objects()),
        rss_mb=int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20,
    )


async def soak(calls: int, in_flight: int, rounds: int = ROUNDS, longest_s: float = 20.0) -> Report:
    """Run the calls in rounds, each in its own environment."""
    with child_server("-m", "tests.fixtures.chaos", "7", str(SHARE), str(longest_s)) as base:
        report, config = Report(), config_of(base, longest_s)
        report.resources.append(resources())
        for number in range(rounds):
            numbers = iter(range(calls * number // rounds, calls * (number + 1) // rounds))
            async with open_env(config) as env:
                await run_round(evolve(env, ledger=MemoryLedger()), numbers, in_flight, report, longest_s)
                del env
            report.resources.append(resources())
        return report


def main(calls: int = 10_000, in_flight: int = 1_000, longest_s: int = 20) -> None:
    for backend in ("asyncio", "trio"):
        print(f"{backend}: ", end="")
        report = anyio.run(soak, calls, in_flight, ROUNDS, longest_s, backend=backend)
        report.show()
        report.check()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
