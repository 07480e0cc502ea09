"""What `docs/reliability.md` states in figures: ``python -m tests.benchmarks.reliability``.

Many calls and many streams at once, streams of a server that mishandles three of five, compression bombs, and streams
that never end. Each figure is of one run; the load of the machine changes the times, not the counts.
"""

import random
import time
import zlib
from collections import Counter
from resource import RUSAGE_SELF, getrusage
from typing import Final

import anyio
from returns.pipeline import is_successful

from llm_effects import LLMConfig, LLMRequest, ModelConfig, Preferences, StreamEvent, generate, open_env, run, stream
from llm_effects.config import BreakerConfig, RetryBudgetConfig, RoutingConfig
from tests.benchmarks.stub import stub
from tests.fixtures.chaos import HEAD, Chaos, Step, chaos_server, chunk, closes, drips, good, piece, problem, says
from tests.fixtures.servers import Peer, chunked, reply

CALLS: Final = 1_000
STREAMS: Final = 1_000
CHAOTIC: Final = 100


async def ignore(_: StreamEvent) -> None:
    """Drop an event."""


def server(endpoint: str, **settings: float) -> ModelConfig:
    """Configure a model at a server."""
    return ModelConfig(provider="openai-compatible", model="m", endpoint=endpoint, **settings)  # type: ignore[arg-type]


def ask(number: int, **preferences: float) -> LLMRequest:
    """Build a request that no other equals."""
    settings = Preferences(**preferences)  # type: ignore[arg-type]
    return LLMRequest(prompt=f"why? {number}", cache="bypass", preferences=settings)


async def many_calls(calls: int = CALLS) -> None:
    """Make calls at once to a server that takes 200 ms."""
    with stub(200) as base:
        async with open_env(LLMConfig(models={"m": server(base)})) as env:
            ends = Counter[str]()
            started, cpu = time.perf_counter(), time.process_time()

            async def one(number: int) -> None:
                ends["whole" if is_successful(await run(generate(ask(number)), env)) else "error"] += 1

            async with anyio.create_task_group() as tasks:
                for number in range(calls):
                    tasks.start_soon(one, number)
    print(f"{calls} calls at once, 200 ms each: {spent(started, cpu)}, {dict(ends)}")


def spent(started: float, cpu: float) -> str:
    """Return the time since then, and how long the processor was used by this process."""
    return f"{time.perf_counter() - started:.2f} s, of which {time.process_time() - cpu:.2f} s on the processor"


async def many_streams(streams: int = STREAMS) -> None:
    """Read streams of 23 events, 50 ms apart, all at once: 1.15 s if nothing is in the way."""
    with stub(count=23, gap_ms=50) as base:
        async with open_env(LLMConfig(models={"m": server(base)})) as env:
            ends = Counter[str]()
            started, cpu = time.perf_counter(), time.process_time()

            async def one(number: int) -> None:
                result = await run(stream(ask(number), ignore), env)
                whole = is_successful(result) and len(result.unwrap().content.split()) == 21
                ends["whole" if whole else "not whole"] += 1

            async with anyio.create_task_group() as tasks:
                for number in range(streams):
                    tasks.start_soon(one, number)
    print(f"{streams} streams of 23 events at once: {spent(started, cpu)}, {dict(ends)}")


def mishandle(draw: random.Random) -> Step:
    """Return a step that rejects, cuts or disconnects a fifth of all requests each, and answers the others."""
    steps = (says(problem(503)), says(chunked(piece("be"))), closes(HEAD + chunk(piece("be"))), good, good)

    async def step(peer: Peer, request: bytes) -> None:
        await steps[min(int(draw.random() * 5), 4)](peer, request)

    return step


async def chaotic_streams(chaos: Chaos, count: int, streams: int = CHAOTIC) -> None:
    """Stream from some servers that mishandle three of five requests, with a ``recovery`` that begins again."""
    models = {str(name): server(chaos.endpoint(chaos.plan(mishandle(random.Random(name))))) for name in range(count)}
    budget = RetryBudgetConfig(tokens=10**6)
    routing = RoutingConfig(max_attempts=20, breaker=BreakerConfig(enabled=False), retry_budget=budget)
    ends = Counter[str]()
    async with open_env(LLMConfig(models=models, routing=routing)) as env:
        for number in range(streams):
            request = LLMRequest(prompt=f"why? {number}", cache="bypass", recovery="restart")  # type: ignore[arg-type]
            result = await run(stream(request, ignore), env)
            silent = is_successful(result) and result.unwrap().content != "because"
            ends["silently cut" if silent else "whole" if is_successful(result) else "error"] += 1
    print(f"{streams} streams from {count} servers, a fifth rejected, cut and disconnected each: {dict(ends)}")


def compressed(megabytes: int) -> bytes:
    """Compress zeros without holding them in memory."""
    packer = zlib.compressobj(wbits=31)
    return b"".join([*(packer.compress(bytes(2**20)) for _ in range(megabytes)), packer.flush()])


def peak_mb() -> float:
    """Return the most memory that was in use so far."""
    return getrusage(RUSAGE_SELF).ru_maxrss / 1024


async def bomb(chaos: Chaos) -> None:
    """Read an answer of 300 kB that decompresses to 300 MB."""
    body = reply(compressed(300), "200 OK", "content-encoding: gzip")
    models = {"m": server(chaos.endpoint(chaos.plan(closes(body))))}
    async with open_env(LLMConfig(models=models)) as env:
        before = peak_mb()
        tags = {attempt.outcome for attempt in (await run(generate(ask(0)), env)).failure().attempts}
        print(f"a bomb of 300 MB in {len(body) // 1000} kB: {', '.join(tags)}, {peak_mb() - before:+.0f} MB at most")


async def endless(chaos: Chaos) -> None:
    """Read a stream of comments without content, with a deadline of two seconds."""
    models = {"m": server(chaos.endpoint(chaos.plan(drips(HEAD, chunk(b": ping\n\n"), 0.1))))}
    async with open_env(LLMConfig(models=models)) as env:
        started = time.perf_counter()
        error = (await run(stream(ask(0, timeout_ms=2_000), ignore), env)).failure()
        late = time.perf_counter() - started - 2
        print(f"a stream of nothing but comments: {error.tag}, {late * 1000:+.0f} ms after its deadline")


async def main() -> None:
    """Print every figure; the peak of memory comes first."""
    with chaos_server() as chaos:
        await bomb(chaos)
    await many_calls()
    await many_streams()
    with chaos_server() as chaos:
        await chaotic_streams(chaos, 2)
        await chaotic_streams(chaos, 6)
        await endless(chaos)


if __name__ == "__main__":
    anyio.run(main)
