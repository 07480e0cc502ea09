"""The whole library over httpx and over aiohttp, against bare httpx: ``python -m tests.benchmarks.transports [scale]``.

Calls alternate in one run, so that all are under the same load. A figure is the median of the processor time of this
process, in microseconds for each call, with its ratio to bare httpx; the elapsed time follows. The server is another
process.
"""

import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from itertools import count
from typing import Final, TypeAlias

import anyio
import httpx

from llm_effects import LLMConfig, LLMEnv, LLMRequest, ModelConfig, StreamEvent, generate, open_env, run, stream
from llm_effects.config import CacheConfig, TransportKind
from tests.benchmarks.stub import stub
from tests.benchmarks.transport import PLAIN, QUESTION

Call: TypeAlias = Callable[[], Awaitable[object]]

NUMBERS: Final = count()


async def open_library(base: str, kind: TransportKind, stack: AsyncExitStack) -> LLMEnv:
    """Open an environment without a cache, so that every call is sent."""
    patient = {"connect_ms": 60_000, "timeout_ms": 120_000}
    model = ModelConfig(provider="openai-compatible", model="stub", endpoint=base, api_key="sk-benchmark", **patient)
    config = LLMConfig(models={"stub": model}, cache=CacheConfig(enabled=False), transport=kind)
    return await stack.enter_async_context(open_env(config))


def asking(env: LLMEnv) -> Call:
    async def call() -> object:
        return (await run(generate(LLMRequest(prompt=f"Why is the sky blue? ({next(NUMBERS)})")), env)).unwrap()

    return call


def streaming(env: LLMEnv) -> Call:
    async def sink(_: StreamEvent) -> None:
        pass

    async def call() -> object:
        return (await run(stream(LLMRequest(prompt=f"Why is the sky blue? ({next(NUMBERS)})"), sink), env)).unwrap()

    return call


def bare_call(client: httpx.AsyncClient, url: str) -> Call:
    async def call() -> object:
        return (await client.post(url, json=QUESTION, headers=PLAIN)).json()

    return call


def bare_stream(client: httpx.AsyncClient, url: str) -> Call:
    async def call() -> None:
        async with client.stream("POST", url, json={**QUESTION, "stream": True}, headers=PLAIN) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    json.loads(line[6:])

    return call


def at_once(call: Call, calls: int) -> Call:
    """Make so many calls at once."""

    async def burst() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(calls):
                tasks.start_soon(call)

    return burst


async def measure(calls: Mapping[str, Call], rounds: int, each: int) -> dict[str, tuple[float, float]]:
    """Run each in turn, and return the medians of processor and elapsed time of one call, in microseconds."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(rounds + max(1, rounds // 10)):
        for name, call in calls.items():
            began, used = time.perf_counter(), time.process_time()
            await call()
            took = (time.process_time() - used, time.perf_counter() - began)
            if number >= max(1, rounds // 10):
                taken[name].append((took[0] * 1e6 / each, took[1] * 1e6 / each))
    return {
        name: (statistics.median(used for used, _ in times), statistics.median(took for _, took in times))
        for name, times in taken.items()
    }


def report(case: str, medians: Mapping[str, tuple[float, float]]) -> None:
    used_bare, took_bare = medians["bare httpx"]
    for name, (used, took) in medians.items():
        print(f"{case:>16} {name:>12}: {used:7.0f} us {used / used_bare:5.2f}   {took:7.0f} us {took / took_bare:5.2f}")


async def compare(scale: float) -> None:
    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=1000)
    with stub(count=200) as base:
        async with AsyncExitStack() as stack:
            url = f"{base}/chat/completions"
            client = await stack.enter_async_context(httpx.AsyncClient(limits=limits, timeout=60))
            over = {
                "over httpx": await open_library(base, "httpx", stack),
                "over aiohttp": await open_library(base, "fast", stack),
            }
            whole = {"bare httpx": bare_call(client, url), **{name: asking(env) for name, env in over.items()}}
            streams = {"bare httpx": bare_stream(client, url), **{name: streaming(env) for name, env in over.items()}}
            report("one call", await measure(whole, round(1000 * scale), 1))
            report("200-event stream", await measure(streams, round(200 * scale), 1))
            for calls, rounds in ((100, 30), (1000, 3)):
                bursts = {name: at_once(call, calls) for name, call in whole.items()}
                report(f"{calls} in flight", await measure(bursts, max(1, round(rounds * scale)), calls))


if __name__ == "__main__":
    anyio.run(compare, float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
