"""Calls cancelled at random moments while they crowd for few places: ``python -m tests.benchmarks.cancels [cancels]``.

They go through every layer, to a model with a limit of its own, over a transport with as many places; whole and
streamed in turn. At the end every place must be had at once, and no connection, task or descriptor be left.
"""

import os
import random
import sys
import time
from typing import Final, final

import anyio
from attrs import define

from llm_effects import CachePolicy, LLMEnv, LLMRequest, Preferences, StreamEvent, generate, open_env, run, stream
from llm_effects.clients.transport.transport import Transport
from tests.fixtures.chaos import Chaos, chaos_server, good
from tests.fixtures.faults import config_of, model
from tests.fixtures.servers import Peer

PLACES: Final = 10
CROWD: Final = 100
ASK: Final = LLMRequest(prompt="why?", cache=CachePolicy.BYPASS, preferences=Preferences(timeout_ms=60_000))


@final
@define
class Tally:
    """How many calls were cancelled, and how many came through."""

    wanted: int
    cancelled: int = 0
    done: int = 0


async def ignored(_: StreamEvent) -> None:
    """Hear nothing."""


async def one(env: LLMEnv, draw: random.Random, tally: Tally, longest: float) -> None:
    """Make a call and cancel it, if it is not done by then; now and then the clean-up is cancelled as well."""
    effect = generate(ASK) if draw.random() < 0.5 else stream(ASK, ignored)
    with anyio.move_on_after(draw.random() * longest) as outer, anyio.move_on_after(draw.random() * longest) as inner:
        await run(effect, env)
        tally.done += 1
    tally.cancelled += outer.cancelled_caught or inner.cancelled_caught


async def crowd(env: LLMEnv, tally: Tally, longest: float) -> None:
    """Keep many calls crowding until as many as wanted were cancelled."""

    async def worker(seed: int) -> None:
        draw = random.Random(seed)
        while tally.cancelled < tally.wanted:
            await one(env, draw, tally, longest)

    async with anyio.create_task_group() as tasks:
        for seed in range(CROWD):
            tasks.start_soon(worker, seed)


@final
@define
class Model:
    """Answers well, after a pause, and knows how many it answered at once."""

    pause: float = 0.0
    inside: int = 0
    most: int = 0

    async def __call__(self, peer: Peer, request: bytes) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await anyio.sleep(self.pause)
            await good(peer, request)
        finally:
            self.inside -= 1


async def all_at_once(env: LLMEnv, served: Model) -> int:
    """Take every place at the same time, and give how many there were."""
    served.pause, served.most = 0.5, 0
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for _ in range(PLACES):
                tasks.start_soon(run, generate(ASK), env)
    return served.most


async def cancels(wanted: int, chaos: Chaos) -> Tally:
    """Cancel so many calls, and check that nothing is left of them."""
    served = Model()
    models = {"m": model(chaos, served, concurrency=PLACES)}
    few = open_env(config_of(models), transport=lambda: Transport(max_connections=PLACES, pool_size=5))
    descriptors, tasks, tally = len(os.listdir("/proc/self/fd")), len(anyio.get_running_tasks()), Tally(wanted)  # noqa: PTH208
    async with few as env:
        await crowd(env, tally, longest=1.0)
        places = await all_at_once(env, served)
    assert tally.done, "all were cancelled before they got anywhere"
    assert places == PLACES, f"only {places} of {PLACES} places could be had"
    assert chaos.server.settled() == 0, f"{chaos.server.open} connections are open"
    assert len(anyio.get_running_tasks()) == tasks
    assert abs(len(os.listdir("/proc/self/fd")) - descriptors) <= 1  # noqa: PTH208
    return tally


def main(wanted: int = 20_000) -> None:
    for backend in ("asyncio", "trio"):
        began = time.monotonic()
        with chaos_server() as chaos:
            tally = anyio.run(cancels, wanted, chaos, backend=backend)
        took = time.monotonic() - began
        print(f"{backend}: {tally.cancelled} cancelled, {tally.done} done in {took:.1f} s; nothing is left")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
