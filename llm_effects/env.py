"""The environment: every service that an effect may use, each behind a small Protocol.

Swapping one is ``attrs.evolve(env, cache=...)``.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol, TypeAlias, final

from attrs import field, frozen
from returns.future import FutureResult

from llm_effects.calls import Call
from llm_effects.config import LLMConfig, ModelConfig
from llm_effects.errors import LLMError
from llm_effects.requests import LLMRequest, TaskType
from llm_effects.responses import Attempt, Cost, LLMResponse, Usage
from llm_effects.secrets import without_password


@final
@frozen(kw_only=True)
class ModelHealth:
    """How a model is: ``reachable`` says that its server answers, ``ready`` that it would answer a request now.

    ``loaded`` names what the server has in memory; ``context_length`` is tokens, ``latency_ms`` the time
    of the probe in milliseconds; ``message`` says what is missing and what to do.
    """

    model: str
    provider: str
    endpoint: str | None = field(default=None, repr=without_password)
    reachable: bool = False
    ready: bool = False
    loaded: tuple[str, ...] = ()
    context_length: int | None = None
    latency_ms: float = 0.0
    message: str = ""


@final
@frozen(kw_only=True)
class Statistics:
    """What is known of a model: its attempts, and moving averages of its error rate and latency (milliseconds).

    ``parked_until`` is on the clock of ``anyio.current_time()``: until then the model asked for a pause.
    """

    attempts: int = 0
    error_rate: float = 0.0
    latency_ms: float | None = None
    parked_until: float = -math.inf


@final
@frozen(kw_only=True)
class LedgerRow:
    """One attempt, as it is booked."""

    at: datetime
    call_id: str
    task_type: TaskType
    attempt: Attempt
    owner: str | None = None
    tags: tuple[str, ...] = ()


class Clients(Protocol):
    """The edge to the models."""

    def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
        """Ask ``call.model`` once; events go to ``call.sink`` where there is one."""
        ...

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        """See how a model is without asking it anything."""
        ...


@final
@frozen(kw_only=True)
class CacheStats:
    """What a cache holds and did: ``None`` where the store cannot tell cheaply.

    ``entries`` and ``bytes`` are all that the store holds, whoever put it there. ``hits``, ``misses`` and
    ``evictions`` (entries that had to make room before their time) are counted since this store was opened here, and so
    are ``failures``: what the store could not do, each of which was a miss or an answer not kept.
    """

    entries: int | None = None
    bytes: int | None = None
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    failures: int = 0


class Cache(Protocol):
    """Whole answers by key. What goes wrong is a ``StorageFailed``; an entry is opaque bytes."""

    def get(self, key: str) -> FutureResult[bytes | None, LLMError]:
        """Give the entry, or ``None`` where there is none or it is too old."""
        ...

    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> FutureResult[None, LLMError]:
        """Keep an entry for ``ttl_seconds``; ``None`` is for ever, 0 keeps nothing, also not what was there."""
        ...

    def delete(self, key: str) -> FutureResult[bool, LLMError]:
        """Drop an entry; says whether there was one that could have been given."""
        ...

    def clear(self) -> FutureResult[int | None, LLMError]:
        """Drop all entries and give how many they were, where the store can tell."""
        ...

    def stats(self) -> FutureResult[CacheStats, LLMError]:
        """Tell what the store holds and did."""
        ...

    def aclose(self) -> Awaitable[None]:
        """Let go of files, connections and threads; a second time does nothing."""
        ...


class Conversations(Protocol):
    """Stored conversations, by owner and opaque id."""

    def load(self, conversation_id: str, owner: str | None) -> FutureResult[bytes | None, LLMError]:
        """Give the stored log, or ``None`` where there is none."""
        ...


class Ledger(Protocol):
    """What was spent: one row an attempt."""

    def record(self, row: LedgerRow) -> None:
        """Book a row without waiting."""
        ...

    def rows(self) -> FutureResult[Sequence[LedgerRow], LLMError]:
        """Give the rows, oldest first."""
        ...


class Health(Protocol):
    """What routing and retries know of each model."""

    def observe(self, attempt: Attempt) -> None:
        """Learn from an attempt."""
        ...

    def park(self, model: str, until: float) -> None:
        """Leave a model alone until a time on the clock of ``anyio.current_time()``."""
        ...

    def statistics(self) -> Mapping[str, Statistics]:
        """Give what is known, by model name."""
        ...


class Limits(Protocol):
    """How much may be under way at once."""

    def slot(self, model: str) -> AbstractAsyncContextManager[None]:
        """Hold one place while an attempt at ``model`` runs."""
        ...


class Prices(Protocol):
    """What tokens cost."""

    def cost(self, model: str, usage: Usage) -> Cost:
        """Price the usage of a configured model; unknown where the price or the usage is."""
        ...


class Tokens(Protocol):
    """How long a text is for a model."""

    def estimate(self, request: LLMRequest) -> int:
        """Estimate the tokens of the prompt: messages, system, tools and schema."""
        ...


class Telemetry(Protocol):
    """Traces and metrics."""

    def span(self, name: str, attributes: Mapping[str, str | int | float]) -> AbstractAsyncContextManager[None]:
        """Follow one piece of work."""
        ...


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
