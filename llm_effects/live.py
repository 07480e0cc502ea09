"""The live environment: made from a configuration, closed when it is left."""

import random
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import uuid4

import anyio
from anyio import to_thread
from returns.pipeline import is_successful

from llm_effects.clients import LiveClients
from llm_effects.config import LLMConfig
from llm_effects.effects import result_of
from llm_effects.engines import Engine
from llm_effects.env import LLMEnv
from llm_effects.fleet import price_list, ready_targets
from llm_effects.guards import Limits
from llm_effects.prices import PriceList, not_listed
from llm_effects.services import Cache, Telemetry
from llm_effects.stores.absent import NoLimits, NoTelemetry, UnusableCache
from llm_effects.stores.caches import open_cache
from llm_effects.stores.conversations_memory import MemoryConversations
from llm_effects.stores.ledger_memory import MemoryLedger
from llm_effects.stores.limits import open_limits
from llm_effects.stores.limits_memory import MemoryLimits
from llm_effects.stores.memory import MemoryHealth
from llm_effects.stores.storages import Storage, open_storage, usable
from llm_effects.tokens import EstimatedTokens
from llm_effects.transports import Transport

WARMING_S: Final = 1.0
"""How long opening an environment waits for what its ledger teaches, in seconds."""

RECENT: Final = timedelta(hours=3)
"""How old what it teaches may be: of older attempts hardly any weight is left."""

TELLING: Final = 500
"""How many rows of it are read."""


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
        await warm(env)
        async with transport.scope():
            yield env
    finally:
        with anyio.CancelScope(shield=True):
            await clients.aclose()
            await env.cache.aclose()
            await env.ledger.aclose()
            await env.conversations.aclose()
            await env.limits.aclose()


def live_clients(config: LLMConfig, transport: Transport) -> LiveClients:
    """Make the edge to all configured models; nothing is connected or loaded before it is used."""
    targets = ready_targets(config)
    engines = {name: Engine(target) for name, target in targets.items() if target.preset.wire == "llama"}
    return LiveClients(config=config, transport=transport, engines=engines)


async def warm(env: LLMEnv) -> None:
    """Let routing begin with what the newest rows of a ledger in a database teach, or without them if it is slow.

    A list of prices is imported now, in a thread, and not by the first call.
    """
    if isinstance(env.prices, PriceList) and env.prices.listed is not not_listed:
        await to_thread.run_sync(env.prices.load)
    if env.health.statistics():
        return
    with anyio.move_on_after(WARMING_S):
        rows = await result_of(env.ledger.rows(env.now() - RECENT, newest=TELLING))
        for row in rows.value_or(()):
            env.health.observe(row.attempt, row.at)


def wall_clock() -> datetime:
    """The time of day, in UTC."""
    return datetime.now(UTC)


def _cache(config: LLMConfig) -> Cache:
    opened = open_cache(config.cache, wall_clock)
    return opened.unwrap() if is_successful(opened) else UnusableCache(opened.failure())


def new_memory() -> Storage:
    """Make an empty storage in this process."""
    return Storage(MemoryConversations(), MemoryLedger())


def _limits(config: LLMConfig, memory: MemoryLimits) -> Limits:
    opened = open_limits(config, memory)
    return opened.unwrap() if is_successful(opened) else NoLimits(opened.failure())


def _telemetry(config: LLMConfig) -> Telemetry:
    if not config.telemetry.enabled:
        return NoTelemetry()
    try:
        from llm_effects.telemetry.otel import open_telemetry
    except ModuleNotFoundError:  # the extra [otel] is not installed
        return NoTelemetry()
    return open_telemetry()


def live_env(
    config: LLMConfig, clients: LiveClients, memory: Storage | None = None, counted: MemoryLimits | None = None
) -> LLMEnv:
    """Make an environment around live clients, with everything else as it is configured.

    ``memory`` has the conversations and the ledger of before, where they are kept in memory; ``counted`` what was
    counted before against limits and budgets.
    """
    storage = usable(open_storage(config.storage, memory or new_memory()))
    return LLMEnv(
        config=config,
        clients=clients,
        cache=_cache(config),
        conversations=storage.conversations,
        ledger=storage.ledger,
        health=MemoryHealth(),
        limits=_limits(config, counted or MemoryLimits()),
        prices=price_list(config),
        tokens=EstimatedTokens(),
        telemetry=_telemetry(config),
        now=wall_clock,
        draw=random.random,
        new_id=lambda: uuid4().hex,
    )
