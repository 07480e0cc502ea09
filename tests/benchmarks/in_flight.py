"""Many calls and many streams in flight, over httpx and over aiohttp: ``python -m tests.benchmarks.in_flight [calls]``.

It prints the memory of a call that waits for the server, in kB, as Python counts it (``tracemalloc``), beside that of
bare httpx: on a connection that was kept, and with a new one. Then the elapsed and the processor time, in seconds, of
so many calls at once to a server that takes 200 ms, and of as many streams of 23 events, 50 ms apart.
"""

import gc
import sys
import time
import tracemalloc
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import anyio
import httpx

from llm_effects import LLMEnv, LLMRequest, generate, run
from tests.benchmarks.stub import stub
from tests.benchmarks.transport import PLAIN, QUESTION
from tests.benchmarks.transports import Call, asking, at_once, bare_call, open_library, streaming

CALLS: Final = 1000

DESCRIPTORS: Final = Path("/proc/self/fd")

PROMPT: Final = "Wait forever"


async def over_each(base: str, stack: AsyncExitStack) -> dict[str, LLMEnv]:
    """Open an environment over each transport."""
    return {
        "over httpx": await open_library(base, "httpx", stack),
        "over aiohttp": await open_library(base, "fast", stack),
    }


# Memory.


def waiting(env: LLMEnv) -> Call:
    """Return a call that is never answered."""

    async def call() -> object:
        return await run(generate(LLMRequest(prompt=PROMPT)), env)

    return call


def waiting_bare(client: httpx.AsyncClient, url: str) -> Call:
    async def call() -> object:
        question = {**QUESTION, "messages": [{"role": "user", "content": PROMPT}]}
        return (await client.post(url, json=question, headers=PLAIN)).json()

    return call


async def waiting_bytes(call: Call, calls: int, new: int) -> float:
    """Return the memory of one of so many calls, in bytes, once all of them wait, on so many new connections."""
    gc.collect()
    sockets = len(list(DESCRIPTORS.iterdir()))
    tracemalloc.start()
    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(calls):
                tasks.start_soon(call)
            while len(list(DESCRIPTORS.iterdir())) < sockets + new:  # noqa: ASYNC110 - nothing reports a new one
                await anyio.sleep(0.1)
            taken = await settled()
            tasks.cancel_scope.cancel()
    finally:
        tracemalloc.stop()
    return taken / calls


async def settled() -> int:
    """Return the memory in use once it does not grow any more, in bytes."""
    used, last = tracemalloc.get_traced_memory()[0], 0
    while used > last * 1.01:
        await anyio.sleep(1)
        gc.collect()
        used, last = tracemalloc.get_traced_memory()[0], used
    return used


async def kept_and_new(answered: Call, waiting: Call, calls: int) -> tuple[float, float]:
    """Measure a call on a connection that was kept, and one with a new connection."""
    await answered()
    new = await waiting_bytes(waiting, calls, calls - 1)
    await at_once(answered, calls)()
    return await waiting_bytes(waiting, calls, 0), new


async def memory(calls: int = CALLS) -> dict[str, tuple[float, float]]:
    """Measure the memory of a call in flight, in bytes; of bare httpx with fewer, whose pool is slow with many."""
    with stub(delay_ms=3000) as base:  # longer than it takes to send all calls, so that each has a connection
        async with AsyncExitStack() as stack:
            url = f"{base}/chat/completions"
            limits = httpx.Limits(max_connections=calls, max_keepalive_connections=calls, keepalive_expiry=60)
            client = await stack.enter_async_context(httpx.AsyncClient(limits=limits, timeout=600))
            few = min(calls, 200)
            sizes = {"bare httpx": await kept_and_new(bare_call(client, url), waiting_bare(client, url), few)}
            for name, env in (await over_each(base, stack)).items():
                sizes[name] = await kept_and_new(asking(env), waiting(env), calls)
            return sizes


# Time.


async def elapsed(whole: Mapping[str, Call], calls: int) -> dict[str, tuple[float, float]]:
    """Return the elapsed and the processor time of so many calls at once, in seconds, on connections that were kept."""
    taken: dict[str, tuple[float, float]] = {}
    for name, call in whole.items():
        await at_once(call, calls)()
        began, used = time.perf_counter(), time.process_time()
        await at_once(call, calls)()
        taken[name] = time.perf_counter() - began, time.process_time() - used
    return taken


async def slow_calls(calls: int = CALLS) -> dict[str, tuple[float, float]]:
    """Measure calls to a server that takes 200 ms."""
    with stub(delay_ms=200) as base:
        async with AsyncExitStack() as stack:
            envs = await over_each(base, stack)
            return await elapsed({name: asking(env) for name, env in envs.items()}, calls)


async def slow_streams(calls: int = CALLS) -> dict[str, tuple[float, float]]:
    """Measure streams of 23 events, 50 ms apart."""
    with stub(count=23, gap_ms=50) as base:
        async with AsyncExitStack() as stack:
            envs = await over_each(base, stack)
            return await elapsed({name: streaming(env) for name, env in envs.items()}, calls)


async def main(calls: int = CALLS) -> None:
    """Print all figures."""
    for name, (kept, new) in (await memory(calls)).items():
        print(f"memory of a call in flight {name:>12}: {kept / 1000:5.1f} kB, {new / 1000:5.1f} with a new connection")
    cases = {"calls to a server that takes 200 ms": slow_calls, "streams of 23 events, 50 ms apart": slow_streams}
    for case, measure in cases.items():
        for name, (took, used) in (await measure(calls)).items():
            print(f"{calls} {case} {name:>12}: {took:5.2f} s, {used:5.2f} s of the processor")


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else CALLS)
