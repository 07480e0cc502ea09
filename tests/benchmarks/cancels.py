"""Calls cancelled at random moments while many wait for few permits: ``python -m tests.benchmarks.cancels [N [WIRE]]``.

They go through every layer, to a model with a concurrency limit, over a transport with as many connections; whole and
streamed at random; over one wire, or over each in turn. At the end all permits must be available, and no connection,
task or file descriptor be left.
"""

import gc
import os
import random
import sys
import time
from typing import Final, final

import anyio
from attrs import define

from llm_effects import CachePolicy, LLMEnv, LLMRequest, Preferences, StreamEvent, generate, open_env, run, stream
from tests.fixtures.chaos import Chaos, chaos_server, good
from tests.fixtures.faults import config_of, model
from tests.fixtures.servers import Peer
from tests.fixtures.wires import WIRES, Wire

PERMITS: Final = 10
WORKERS: Final = 100
ASK: Final = LLMRequest(prompt="why?", cache=CachePolicy.BYPASS, preferences=Preferences(timeout_ms=60_000))


@final
@define
class Counts:
    """Counts of cancelled and of completed calls."""

    target: int
    cancelled: int = 0
    done: int = 0


async def ignore(_: StreamEvent) -> None:
    """Ignore an event."""


async def cancelled_call(env: LLMEnv, draw: random.Random, counts: Counts, longest: float) -> None:
    """Make a call, and cancel it after a random time; sometimes its clean-up is cancelled too."""
    effect = generate(ASK) if draw.random() < 0.5 else stream(ASK, ignore)
    with anyio.move_on_after(draw.random() * longest) as outer, anyio.move_on_after(draw.random() * longest) as inner:
        await run(effect, env)
        counts.done += 1
    counts.cancelled += outer.cancelled_caught or inner.cancelled_caught


async def keep_busy(env: LLMEnv, counts: Counts, longest: float) -> None:
    """Keep many calls in flight until the target of cancelled ones is reached."""

    async def worker(seed: int) -> None:
        draw = random.Random(seed)
        while counts.cancelled < counts.target:
            await cancelled_call(env, draw, counts, longest)

    async with anyio.create_task_group() as tasks:
        for seed in range(WORKERS):
            tasks.start_soon(worker, seed)


@final
@define
class Model:
    """Answers correctly after a pause, and records how many requests were in progress at once."""

    pause: float = 0.0
    in_progress: int = 0
    peak: int = 0

    async def __call__(self, peer: Peer, request: bytes) -> None:
        self.in_progress += 1
        self.peak = max(self.peak, self.in_progress)
        try:
            await anyio.sleep(self.pause)
            await good(peer, request)
        finally:
            self.in_progress -= 1


async def use_every_permit(env: LLMEnv, served: Model) -> int:
    """Make as many calls at once as there are permits, and return how many ran at the same time."""
    with anyio.fail_after(30):
        while served.in_progress:  # noqa: ASYNC110 - requests whose end the server has not noticed
            await anyio.sleep(0.01)
    served.pause, served.peak = 0.5, 0
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(PERMITS):
                tasks.start_soon(run, generate(ASK), env)
    return served.peak


def open_descriptors() -> int:
    """Return how many descriptors are open, without those of what nothing refers to any more."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


async def cancels(target: int, chaos: Chaos, wire: Wire) -> Counts:
    """Cancel this many calls, and check that they leave nothing behind."""
    served = Model()
    models = {"m": model(chaos, served, concurrency=PERMITS)}
    opened = open_env(config_of(models), transport=wire.transport(max_connections=PERMITS, pool_size=5))
    descriptors, tasks, counts = open_descriptors(), len(anyio.get_running_tasks()), Counts(target)
    async with opened as env:
        await keep_busy(env, counts, longest=1.0)
        permits = await use_every_permit(env, served)
    assert counts.done, "every call was cancelled before it was answered"
    assert permits == PERMITS, f"only {permits} of {PERMITS} permits are available"
    assert chaos.server.settled() == 0, f"{chaos.server.open} connections are open"
    assert len(anyio.get_running_tasks()) == tasks
    left = open_descriptors() - descriptors
    assert left <= 1, f"{left} descriptors are open"
    return counts


def main(target: int = 20_000, only: str = "") -> None:
    for wire in (wire for wire in WIRES if only in {"", str(wire)}):
        started = time.monotonic()
        with chaos_server() as chaos:
            counts = anyio.run(cancels, target, chaos, wire, backend=wire.loop)
        took = time.monotonic() - started
        print(f"{wire}: {counts.cancelled} cancelled, {counts.done} done in {took:.1f} s; nothing is left")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
