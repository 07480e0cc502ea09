"""One call through every layer against bare httpx, in one run: ``python -m tests.benchmarks.layers``.

Calls alternate, so that both run under the same load; the figures are medians and their ratio. The layers alone, over a
model that answers at once, and hits of the cache in memory are measured in processor time, which other processes on the
machine disturb less.
"""

import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from statistics import median
from typing import ClassVar, final

import anyio
import httpx
from attrs import evolve
from returns.future import FutureResult
from returns.result import Success

from llm_effects import LLMConfig, LLMError, LLMRequest, LLMResponse, ModelConfig, Preferences, generate, open_env, run
from llm_effects.config import CacheConfig
from llm_effects.effects.call import Call
from llm_effects.effects.effect import Answer
from llm_effects.values.messages import Text
from llm_effects.values.records import ModelHealth
from llm_effects.values.responses import Usage
from tests.benchmarks.stub import stub
from tests.benchmarks.transport import PLAIN, QUESTION, alternating


def questions() -> Iterator[LLMRequest]:
    """Generate distinct questions, so that the cache is read and written but never hit."""
    preferences = Preferences(max_tokens=100, temperature=0.2)
    return (LLMRequest(prompt=f"Why is the sky blue? ({number})", preferences=preferences) for number in count())


async def one_call(rounds: int = 1000) -> None:
    with stub() as base:
        model = ModelConfig(provider="openai-compatible", model="stub", endpoint=base, api_key="sk-benchmark")
        async with httpx.AsyncClient() as client, open_env(LLMConfig(models={"stub": model})) as env:

            async def bare() -> object:
                return (await client.post(f"{base}/chat/completions", json=QUESTION, headers=PLAIN)).json()

            requests = questions()

            async def ours() -> object:
                return (await run(generate(next(requests)), env)).unwrap()

            httpx_us, ours_us = await alternating(rounds, bare, ours)
            ratio = ours_us / httpx_us
            print(f"one call, every layer: bare httpx {httpx_us:.0f} us, ours {ours_us:.0f} us, ratio {ratio:.3f}")


@final
class Instant:
    """Clients whose models answer at once."""

    keeps_time: ClassVar[bool] = True

    async def answer(self, call: Call) -> Answer:
        parts, usage = (Text("Light is scattered."),), Usage(input_tokens=12, output_tokens=9)
        return Success(
            LLMResponse(content="Light is scattered.", parts=parts, model=call.model, provider="stub", usage=usage)
        )

    def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
        return FutureResult(self.answer(call))

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        return FutureResult.from_value(ModelHealth(model=name, provider=model.provider))


async def processor_us(call: Callable[[], Awaitable[object]], times: int = 100) -> float:
    started = time.process_time()
    for _ in range(times):
        await call()
    return (time.process_time() - started) / times * 1e6


async def layers_alone(rounds: int = 30) -> None:
    with stub() as base:
        model = ModelConfig(provider="openai-compatible", model="stub", endpoint=base, api_key="sk-benchmark")
        cached = LLMConfig(models={"stub": model})
        uncached = evolve(cached, cache=CacheConfig(enabled=False))
        async with httpx.AsyncClient() as client, open_env(cached) as with_cache, open_env(uncached) as without:
            hitting, asking = evolve(with_cache, clients=Instant()), evolve(without, clients=Instant())
            request = next(questions())
            calls: dict[str, Callable[[], Awaitable[object]]] = {
                "bare httpx": lambda: client.post(f"{base}/chat/completions", json=QUESTION, headers=PLAIN),
                "the layers without cache": lambda: run(generate(request), asking),
                "a hit": lambda: run(generate(request), hitting),
                "a hit, its request made": lambda: run(generate(next(questions())), hitting),
            }
            taken = {name: [await processor_us(call)] for name, call in calls.items()}
            for _ in range(rounds):
                for name, call in calls.items():
                    taken[name].append(await processor_us(call))
            bare_us = median(taken["bare httpx"])
            for name, times in taken.items():
                print(f"processor time, {name}: {median(times):.1f} us, {median(times) / bare_us:.3f} of bare httpx")


if __name__ == "__main__":
    for backend in ("asyncio", "trio"):
        print(backend, end=": ")
        anyio.run(one_call, backend=backend)
    anyio.run(layers_alone)
