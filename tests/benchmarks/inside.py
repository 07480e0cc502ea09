"""What is measured of this library: whole calls over a transport, and what only its own process can measure.

A run that returns a float measures itself; its figure is in the unit of its case in ``bars.py``. Such a run alternates
between two kinds of call, in processor time, which other processes on the machine disturb less.
"""

import gc
import json
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import ClassVar, Final, final

from attrs import evolve
from returns.future import FutureResult
from returns.result import Success

from llm_effects import (
    LLMConfig,
    LLMEnv,
    LLMError,
    LLMRequest,
    LLMResponse,
    ModelConfig,
    StreamEvent,
    generate,
    open_env,
    run,
    stream,
)
from llm_effects.clients.transport.transport import Transport
from llm_effects.config import BreakerConfig, CacheConfig, RoutingConfig, TransportKind
from llm_effects.effects.call import AttemptContext, Call
from llm_effects.effects.effect import Answer, Policy, innermost, layered
from llm_effects.policies.budget import with_budget
from llm_effects.policies.cache import with_cache
from llm_effects.policies.circuit_breaker import with_circuit_breaker
from llm_effects.policies.coalescing import with_coalescing
from llm_effects.policies.hedging import with_hedging
from llm_effects.policies.tracing import with_tracing
from llm_effects.providers.wire import Timeouts, WireRequest
from llm_effects.testing import answer, scripted_env
from llm_effects.values.messages import Text
from llm_effects.values.records import ModelHealth
from llm_effects.values.responses import Usage
from llm_effects.values.secrets import Secret
from llm_effects.values.serialization import Entry, dump_entry
from tests.benchmarks.clients import BODY, KEY, LONG, QUESTION, Run, Urls, at_once
from tests.benchmarks.turns import in_turn

NUMBERS: Final = count()
FEW, MANY = 100, 100_000
OFF: Final[tuple[Policy, ...]] = (
    with_tracing,
    with_coalescing,
    with_cache,
    with_hedging,
    with_circuit_breaker,
    with_budget,
)
TIMES_OFF: Final = 4
"""How often each layer of ``OFF`` stands in the pipeline, so that their cost exceeds the noise."""


def config_of(transport: TransportKind, url: str, cache: str | None = None) -> LLMConfig:
    """Configure one model, with time-outs that a thousand calls at once on a busy machine do not reach."""
    patient = {"connect_ms": 60_000, "timeout_ms": 120_000}
    model = ModelConfig(provider="openai-compatible", model="stub", endpoint=url, api_key=KEY, **patient)
    cached = CacheConfig(enabled=False) if cache is None else CacheConfig(url=cache, max_size=2 * MANY)
    return LLMConfig(models={"stub": model}, cache=cached, transport=transport)


def new_question() -> LLMRequest:
    """Build a request that no other equals."""
    return LLMRequest(prompt=f"{QUESTION} ({next(NUMBERS)})")


async def ignore(_: StreamEvent) -> None:
    """Drop an event."""


async def ask(env: LLMEnv) -> object:
    return (await run(generate(new_question()), env)).unwrap()


async def ask_streamed(env: LLMEnv) -> object:
    return (await run(stream(new_question(), ignore), env)).unwrap()


async def ask_again(env: LLMEnv) -> object:
    return (await run(generate(LLMRequest(prompt=QUESTION)), env)).unwrap()


def cold(config: LLMConfig, call: Callable[[LLMEnv], Awaitable[object]], calls: int) -> Run:
    """Open an environment and make so many calls at once, each of which opens its connection."""

    async def burst() -> None:
        async with open_env(config) as env:
            await at_once(partial(call, env), calls)()

    return burst


async def runs(transport: TransportKind, urls: Urls, stack: AsyncExitStack) -> dict[str, Run]:
    """Return every case that this library has, over one transport."""
    folder = Path(stack.enter_context(TemporaryDirectory()))
    config = partial(config_of, transport, urls["fast"])
    files = {name: f"sqlite:///{folder / name}.db" for name in ("few", "many")}
    caches = {"none": None, "memory": "memory://", "many": "memory://", "file": files["few"], "files": files["many"]}
    envs = {name: await stack.enter_async_context(open_env(config(cache))) for name, cache in caches.items()}
    instant = {name: evolve(env, clients=Instant()) for name, env in envs.items()}
    without = envs["none"]
    return {
        "call": partial(ask, without),
        "miss": partial(ask, envs["memory"]),
        "hit": partial(ask_again, envs["memory"]),
        "hit-sqlite": partial(ask_again, envs["file"]),
        "stream": partial(ask_streamed, without),
        "100": at_once(partial(ask, without), 100),
        "1000": cold(config_of(transport, urls["slow"]), ask, 1000),
        "streams": cold(config_of(transport, urls["gaps"]), ask_streamed, 1000),
        "transport": await exchanging(transport, urls["fast"], stack),
        "layers": partial(ask_again, instant["none"]),
        "off": layer_off,
        "models": models,
        "entries": among_many(envs["memory"], envs["many"]),
        "entries-sqlite": among_many(envs["file"], envs["files"]),
        "prompt": long_prompt(without),
        "memory": partial(memory, config_of(transport, urls["held"])),
    }


async def exchanging(kind: TransportKind, url: str, stack: AsyncExitStack) -> Run:
    """Send a question, ready as bytes, without any layer, and parse the JSON of its answer."""
    transport = Transport(kind=kind)
    await stack.enter_async_context(transport.scope())
    headers = (("authorization", Secret(f"Bearer {KEY}")), ("content-type", "application/json"))
    request = WireRequest(url=f"{url}/chat/completions", headers=headers, body=json.dumps(BODY).encode())

    async def call() -> object:
        return json.loads((await transport.exchange(request, Timeouts())).body)

    return call


@final
class Instant:
    """Clients whose models answer at once."""

    keeps_time: ClassVar[bool] = True
    keeps_share: ClassVar[bool] = True

    async def answer(self, call: Call) -> Answer:
        parts, usage = (Text("Light is scattered."),), Usage(input_tokens=12, output_tokens=9)
        return Success(
            LLMResponse(content="Light is scattered.", parts=parts, model=call.model, provider="stub", usage=usage)
        )

    def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
        return FutureResult(self.answer(call))

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        return FutureResult.from_value(ModelHealth(model=name, provider=model.provider))


async def layer_off() -> float:
    """Return what a layer costs that the configuration leaves off, in microseconds."""
    routing = RoutingConfig(breaker=BreakerConfig(enabled=False))
    model = ModelConfig(provider="lm-studio", model="m")
    env = scripted_env(config=LLMConfig(models={"m": model}, routing=routing, cache=CacheConfig(enabled=False)))
    call = Call(id="1", request=LLMRequest(prompt=QUESTION), attempt=AttemptContext(model="m"))
    known = Success(answer("ok"))

    @innermost
    async def asked(call: Call, env: LLMEnv) -> Answer:
        return known

    layers = OFF * TIMES_OFF
    pipelines = layered(*layers, asked), asked
    taken = await in_turn((partial(run, pipeline(call), env) for pipeline in pipelines), 300)
    return median((all_off - none) / len(layers) for all_off, none in taken) * 1e6


async def models() -> float:
    """Return how many times as long the layers take with 100 models as with 1."""
    envs = [env_with(size) for size in (100, 1)]
    taken = await in_turn((partial(ask_again, env) for env in envs), 30)
    return median(many / one for many, one in taken)


def env_with(size: int) -> LLMEnv:
    """Return an environment with so many models, of which each answers at once."""
    model = ModelConfig(provider="openai-compatible", model="stub", endpoint="http://127.0.0.1:9/v1", api_key=KEY)
    config = LLMConfig(models={f"model{number}": model for number in range(size)}, cache=CacheConfig(enabled=False))
    return scripted_env(config=config, clients=Instant())


def among_many(few: LLMEnv, many: LLMEnv) -> Run:
    """Measure how many times as long a hit takes among 100,000 entries as among 100."""
    empty = [(few, FEW), (many, MANY)]

    async def compare() -> float:
        while empty:
            await fill(*empty.pop())
        taken = await in_turn((partial(ask_again, env) for env in (many, few)), 100)
        return median(full / short for full, short in taken)

    return compare


async def fill(env: LLMEnv, size: int) -> None:
    """Store entries, and the answer that is asked for."""
    for number in range(size):
        await env.cache.put(f"{number:064x}", dump_entry(Entry(response=answer("x"))), None)
    await ask_again(env)


def long_prompt(env: LLMEnv) -> Run:
    """Send a prompt of 1 MB."""

    async def call() -> object:
        return (await run(generate(LLMRequest(prompt=f"{LONG}{next(NUMBERS)}")), env)).unwrap()

    return call


async def memory(config: LLMConfig, calls: int = 1000) -> float:
    """Return the kilobytes of Python's memory that a call in flight has, of a thousand."""
    async with open_env(config) as env:
        await ask(env)
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            await at_once(partial(ask, env), calls)()
            return (tracemalloc.get_traced_memory()[1] - before) / calls / 1000
        finally:
            tracemalloc.stop()
