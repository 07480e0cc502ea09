"""The transport against bare httpx, in one run: ``python -m tests.benchmarks.transport``.

Calls alternate, so that both run under the same load; the figures are medians and their ratio.
"""

import json
import statistics
import time
from collections.abc import Awaitable, Callable

import anyio
import httpx

from llm_effects.clients.transport.transport import Transport
from llm_effects.providers.wire import Timeouts, WireRequest
from llm_effects.values.secrets import Secret
from tests.benchmarks.stub import stub

QUESTION = {"model": "stub", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
HEADERS = (("authorization", Secret("Bearer sk-benchmark")), ("content-type", "application/json"))
PLAIN = {"authorization": "Bearer sk-benchmark"}


async def timed(call: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await call()
    return (time.perf_counter() - started) * 1e6


async def alternating(rounds: int, *calls: Callable[[], Awaitable[object]]) -> list[float]:
    """Run each call in turn, and return the median of each, in microseconds."""
    taken: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 20):
        for call, times in zip(calls, taken, strict=True):
            took = await timed(call)
            if number >= 20:
                times.append(took)
    return [statistics.median(times) for times in taken]


async def one_call(rounds: int = 1000) -> None:
    with stub() as base:
        url = f"{base}/chat/completions"
        transport, limits = Transport(), Timeouts()
        async with httpx.AsyncClient() as client, transport.scope():

            async def bare() -> object:
                return (await client.post(url, json=QUESTION, headers=PLAIN)).json()

            async def ours() -> object:
                request = WireRequest(url=url, headers=HEADERS, body=json.dumps(QUESTION).encode())
                return json.loads((await transport.exchange(request, limits)).body)

            report("one call", await alternating(rounds, bare, ours))


async def one_stream(rounds: int = 200) -> None:
    with stub(count=200) as base:
        url = f"{base}/chat/completions"
        transport, limits, question = Transport(), Timeouts(), {**QUESTION, "stream": True}
        async with httpx.AsyncClient() as client, transport.scope():

            async def bare() -> None:
                async with client.stream("POST", url, json=question, headers=PLAIN) as answer:
                    async for line in answer.aiter_lines():
                        if line.startswith("data: {"):
                            json.loads(line[6:])

            async def ours() -> None:
                request = WireRequest(url=url, headers=HEADERS, body=json.dumps(question).encode())
                async with transport.stream(request, limits) as answer:
                    async for _ in answer.chunks():
                        pass

            report("a stream of 200 events, ours unparsed", await alternating(rounds, bare, ours))


async def many_calls(calls: int = 1000, delay_ms: float = 200) -> None:
    """Measure only our transport: bare httpx takes 20 s for this."""
    with stub(delay_ms) as base:
        url = f"{base}/chat/completions"
        transport, limits = Transport(), Timeouts()
        request = WireRequest(url=url, headers=HEADERS, body=json.dumps(QUESTION).encode())
        started = time.perf_counter()
        async with transport.scope(), anyio.create_task_group() as tasks:
            for _ in range(calls):
                tasks.start_soon(transport.exchange, request, limits)
        print(f"{calls} calls in flight, {delay_ms:g} ms each: {time.perf_counter() - started:.2f} s")


def report(name: str, medians: list[float]) -> None:
    bare, ours = medians
    print(f"{name}: bare httpx {bare:.0f} us, transport {ours:.0f} us, ratio {ours / bare:.3f}")


async def main() -> None:
    await one_call()
    await one_stream()
    await many_calls()


if __name__ == "__main__":
    for backend in ("asyncio", "trio"):
        print(backend)
        anyio.run(main, backend=backend)
