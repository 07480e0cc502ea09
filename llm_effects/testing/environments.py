"""An environment with everything in memory and nothing left to chance."""

from datetime import UTC, datetime
from itertools import count
from typing import Final

from llm_effects.config import LLMConfig, ModelConfig
from llm_effects.env import LLMEnv, NewId
from llm_effects.fleet import prices_of
from llm_effects.prices import PriceList
from llm_effects.services import Clients
from llm_effects.stores.absent import NoCache, NoTelemetry
from llm_effects.stores.conversations_memory import MemoryConversations
from llm_effects.stores.ledger_memory import MemoryLedger
from llm_effects.stores.limits_memory import MemoryLimits
from llm_effects.stores.memory import MemoryHealth
from llm_effects.testing.scripts import Reply, scripted
from llm_effects.tokens import EstimatedTokens

ONE_MODEL: Final = LLMConfig(models={"scripted": ModelConfig(provider="lm-studio", model="scripted")})

EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)


def scripted_env(*replies: Reply, config: LLMConfig = ONE_MODEL, clients: Clients | None = None) -> LLMEnv:
    """Make an environment whose models follow a script: fixed ids, fixed randomness, a fixed clock.

    Swap any other service with ``attrs.evolve``.

    >>> import anyio
    >>> from llm_effects import LLMRequest, generate, settle
    >>> env = scripted_env("first", "second")
    >>> [anyio.run(settle, generate(LLMRequest(prompt="?")), env).unwrap().content for _ in range(2)]
    ['first', 'second']
    """
    return LLMEnv(
        config=config,
        clients=clients or scripted(*replies),
        cache=NoCache(),
        conversations=MemoryConversations(),
        ledger=MemoryLedger(),
        health=MemoryHealth(),
        limits=MemoryLimits(),
        prices=PriceList(prices_of(config)),
        tokens=EstimatedTokens(),
        telemetry=NoTelemetry(),
        now=lambda: EPOCH,
        draw=lambda: 0.5,
        new_id=_ids(),
    )


def _ids() -> NewId:
    numbers = count(1)
    return lambda: f"id-{next(numbers)}"
