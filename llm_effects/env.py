"""The environment: every service that an effect may use, supplied from outside.

Swapping one is ``attrs.evolve(env, cache=...)``.
"""

from collections.abc import Callable
from datetime import datetime
from typing import TypeAlias, final

from attrs import field, frozen

from llm_effects.config import LLMConfig
from llm_effects.guards import Limits
from llm_effects.ledgers import Ledger
from llm_effects.services import Cache, Clients, Conversations, Health, Prices, Telemetry, Tokens

Now: TypeAlias = Callable[[], datetime]
"""Wall time, with its zone: for TTLs, the ledger and dates only."""

Draw: TypeAlias = Callable[[], float]
"""A random number from 0 up to 1."""

NewId: TypeAlias = Callable[[], str]
"""A fresh opaque id."""


@final
@frozen(kw_only=True)
class LLMEnv:
    """All services of the library, supplied to every ``Effect``."""

    config: LLMConfig
    clients: Clients = field(repr=False)
    cache: Cache = field(repr=False)
    conversations: Conversations = field(repr=False)
    ledger: Ledger = field(repr=False)
    health: Health = field(repr=False)
    limits: Limits = field(repr=False)
    prices: Prices = field(repr=False)
    tokens: Tokens = field(repr=False)
    telemetry: Telemetry = field(repr=False)
    now: Now = field(repr=False)
    draw: Draw = field(repr=False)
    new_id: NewId = field(repr=False)
