"""What a call costs as a configuration or a prompt grows: ``python -m tests.benchmarks.growth``.

The server is left out: models answer at once, and prompts are encoded for a transport that has an answer already.
Figures are the second lowest processor time of some rounds, in microseconds a call.
"""

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Final, cast, final, get_args

import anyio
from attrs import evolve

from llm_effects import Image, LLMConfig, LLMEnv, LLMRequest, Message, ModelConfig, Text, generate, open_env, run
from llm_effects.clients.client import LiveClients
from llm_effects.clients.transport.transport import Transport
from llm_effects.config import CacheConfig, Price, RoutingConfig
from llm_effects.config.routing import Strategy
from llm_effects.effects.tasks import OnSent
from llm_effects.policies.cache import cache_key
from llm_effects.providers.wire import Timeouts, WireRequest, WireResponse
from llm_effects.testing.scripted import answer
from llm_effects.values.serialization import Entry, dump_entry
from tests.benchmarks.inside import Instant
from tests.benchmarks.stub import COMPLETION

WIDE: Final = 10**7
"""Tokens of a window that holds every prompt here."""

PICTURE: Final = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (1000).to_bytes(4, "big") * 2 + bytes(2**20)


def talk(turns: int) -> LLMRequest:
    roles = ("user", "assistant")
    return LLMRequest(messages=tuple(Message(roles[turn % 2], f"message {turn} " * 10) for turn in range(turns)))  # type: ignore[arg-type]


PROMPTS: Final[Mapping[str, Callable[[], LLMRequest]]] = {
    "a question": lambda: LLMRequest(prompt="why?"),
    "1 MB of ASCII": lambda: LLMRequest(prompt="word " * 209_715),
    "1 MB of Latin": lambda: LLMRequest(prompt="w\u00f6rd " * 174_762),
    "1 MB of Chinese": lambda: LLMRequest(prompt="\u4e2d" * 349_525),
    "an image of 1 MB": lambda: LLMRequest(messages=(Message("user", (Text("what?"), Image(PICTURE))),)),
    "201 messages": lambda: talk(201),
    "2001 messages": lambda: talk(2001),
}


@final
class Answered:
    """A transport that has the answer to every request."""

    async def exchange(self, wire: WireRequest, limits: Timeouts, admitted: OnSent) -> WireResponse:
        admitted()
        return WireResponse(status=200, body=json.dumps(COMPLETION).encode(), received=datetime.now(UTC))


async def call_us(call: Callable[[], Awaitable[object]], times: int, rounds: int = 9) -> float:
    taken = list[float]()
    for _ in range(rounds):
        started = time.process_time()
        for _ in range(times):
            await call()
        taken.append((time.process_time() - started) / times * 1e6)
    return sorted(taken)[1]


def many(count: int, strategy: Strategy, *, priced: bool) -> LLMConfig:
    models = {
        f"model-{number}": ModelConfig(
            provider="openai-compatible",
            model=f"model-{number}",
            endpoint="http://127.0.0.1:1/v1",
            price=Price(input=1 + number, output=2) if priced else None,
        )
        for number in range(count)
    }
    return LLMConfig(models=models, routing=RoutingConfig(strategy=strategy), cache=CacheConfig(enabled=False))


async def models() -> None:
    """Measure the layers with 1, 10 and 100 models, after each has been measured."""
    for strategy in get_args(Strategy):
        for priced in (False, True):
            taken = list[float]()
            for count in (1, 10, 100):
                async with open_env(many(count, strategy, priced=priced)) as live:
                    env = evolve(live, clients=Instant())

                    async def call(env: LLMEnv = env) -> None:
                        (await run(generate(LLMRequest(prompt="Why is the sky blue?")), env)).unwrap()

                    await call_us(call, 3 * count, 2)
                    taken.append(await call_us(call, 50))
            print(
                f"{strategy:>12}, prices {'known' if priced else 'unknown':8}", *(f"{each:7.0f} us" for each in taken)
            )


async def prompts() -> None:
    """Measure the layers and the codec, without a cache, and a hit with its request made before."""
    model = ModelConfig(provider="lm-studio", model="stub", context_length=WIDE)
    async with open_env(LLMConfig(models={"stub": model})) as cached:
        cold = evolve(cached, config=evolve(cached.config, cache=CacheConfig(enabled=False)))
        transport = cast("Transport", Answered())
        for name, make in PROMPTS.items():
            request, times = make(), 5 if name != "a question" else 50
            env = evolve(cold, clients=LiveClients(config=cold.config, transport=transport))
            hits = evolve(cached, clients=Instant())

            async def call(env: LLMEnv = env, request: LLMRequest = request) -> None:
                (await run(generate(request), env)).unwrap()

            async def hit(env: LLMEnv = hits, make: Callable[[], LLMRequest] = make) -> None:
                (await run(generate(make()), env)).unwrap()

            async def made(make: Callable[[], LLMRequest] = make) -> None:
                make()

            await hits.cache.put(cache_key(request, hits.config), dump_entry(Entry(response=answer("x"))), None)
            asked, making, known = [await call_us(each, times) for each in (call, made, hit)]
            print(f"{name:>17}: a call {asked:7.0f} us; making its request {making:7.0f} us, and a hit {known:7.0f} us")


async def main() -> None:
    print("a call through the layers, with 1, 10 and 100 models")
    await models()
    print("a call and its codec, by prompt")
    await prompts()


if __name__ == "__main__":
    anyio.run(main)
