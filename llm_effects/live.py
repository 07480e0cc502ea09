"""The live environment: made from a configuration, closed when it is left."""

import random
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from uuid import uuid4

import anyio
from returns.pipeline import is_successful

from llm_effects.clients import LiveClients
from llm_effects.config import LLMConfig
from llm_effects.engines import Engine
from llm_effects.env import Cache, LLMEnv
from llm_effects.fleet import prices_of, ready_targets
from llm_effects.prices import PriceList
from llm_effects.stores.absent import NoConversations, NoLimits, NoTelemetry, UnusableCache
from llm_effects.stores.caches import open_cache
from llm_effects.stores.memory import MemoryHealth, MemoryLedger
from llm_effects.tokens import EstimatedTokens
from llm_effects.transports import Transport


def open_env(
    config: LLMConfig, *, transport: Callable[[], Transport] = Transport
) -> AbstractAsyncContextManager[LLMEnv]:
    """Make the live environment of a configuration; leaving it closes every connection and frees every model.

    ``transport`` makes the HTTP edge, for another pool or other bounds. A model that is wrongly configured is told by
    the first operation, as a ``ConfigurationError`` that names all such problems.

    >>> import anyio
    >>> from llm_effects import LLMRequest, ModelConfig, generate, settle
    >>> async def main() -> str:
    ...     async with open_env(LLMConfig(models={"gpt": ModelConfig(provider="openai-chat", model="m")})) as env:
    ...         return (await settle(generate(LLMRequest(prompt="why?")), env)).failure().message
    >>> anyio.run(main).splitlines()[0]
    'models.gpt.api_key: is missing: openai-chat answers only with a key'
    """
    return _open(config, transport())


@asynccontextmanager
async def _open(config: LLMConfig, transport: Transport) -> AsyncGenerator[LLMEnv]:
    clients = live_clients(config, transport)
    env = live_env(config, clients)
    try:
        async with transport.scope():
            yield env
    finally:
        with anyio.CancelScope(shield=True):
            await clients.aclose()
            await env.cache.aclose()


def live_clients(config: LLMConfig, transport: Transport) -> LiveClients:
    """Make the edge to all configured models; nothing is connected or loaded before it is used."""
    targets = ready_targets(config)
    engines = {name: Engine(target) for name, target in targets.items() if target.preset.wire == "llama"}
    return LiveClients(config=config, transport=transport, engines=engines)


def _now() -> datetime:
    return datetime.now(UTC)


def _cache(config: LLMConfig) -> Cache:
    opened = open_cache(config.cache, _now)
    return opened.unwrap() if is_successful(opened) else UnusableCache(opened.failure())


def live_env(config: LLMConfig, clients: LiveClients) -> LLMEnv:
    """Make an environment around live clients, with everything else in memory."""
    return LLMEnv(
        config=config,
        clients=clients,
        cache=_cache(config),
        conversations=NoConversations(),
        ledger=MemoryLedger(),
        health=MemoryHealth(),
        limits=NoLimits(),
        prices=PriceList(prices_of(config)),
        tokens=EstimatedTokens(),
        telemetry=NoTelemetry(),
        now=_now,
        draw=random.random,
        new_id=lambda: uuid4().hex,
    )
