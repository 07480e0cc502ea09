"""The environment: every service that an effect may use, supplied from outside.

Swapping one is ``attrs.evolve(env, cache=...)``.
"""

from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Protocol, TypeAlias, final, runtime_checkable

from attrs import field, frozen
from returns.future import FutureResult

from llm_effects.config import LLMConfig
from llm_effects.config.models import ModelConfig
from llm_effects.config.routing import BreakerConfig, RetryBudgetConfig
from llm_effects.effects.call import Call
from llm_effects.limits.budgets import Hold
from llm_effects.limits.circuit_breaker import BreakerPermit
from llm_effects.limits.quotas import ActualUsage, Demand, Permit, Quota
from llm_effects.values.conversations import (
    Conversation,
    History,
    JournalEntry,
    StoredMessage,
    Summary,
    Turn,
    TurnState,
)
from llm_effects.values.errors import LLMError
from llm_effects.values.records import Attributes, CacheStats, LedgerRow, Measure, ModelHealth, Statistics
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import Attempt, Cost, LLMResponse, Usage, Vectors

# The services that keep load and trouble small: limits and breakers, budgets of retries and of hedges.


class Hedges(Protocol):
    """How many second attempts may be made: a budget that every call earns a share of."""

    def earn(self, share: float) -> None:
        """Put in a call's share (0 to 1) of a hedge."""
        ...

    def spend(self) -> bool:
        """Take one hedge out, if there is a whole one."""
        ...


class Retries(Protocol):
    """How often all calls together may ask again: a budget for each server and key."""

    def afford(self, server: Hashable, budget: RetryBudgetConfig, cost: int) -> bool:
        """Take the cost of a retry, if there is as much."""
        ...

    def repay(self, server: Hashable, budget: RetryBudgetConfig, amount: int) -> None:
        """Put some back, after a success."""
        ...


class Limits(Protocol):
    """How much may be asked of each model, and whether at all. No cancellation cuts ``release`` or ``record`` short.

    Most calls wait for nobody: what is known at once is given as it is, and only the rest as a future.
    """

    @property
    def retries(self) -> Retries:
        """The budgets of retries, of this process."""
        ...

    @property
    def hedges(self) -> Hedges:
        """The budget of second attempts, of this process."""
        ...

    def acquire(
        self, model: str, quota: Quota, need: Demand, timeout: float, deadline: float
    ) -> Permit | FutureResult[Permit, LLMError]:
        """Take a permit, or wait for one, first come first served, for at most ``timeout`` seconds.

        A turn that cannot come in time is a ``RateLimitExceeded`` at once. Nobody waits past the call's ``deadline``,
        on the clock of ``anyio.current_time()``; a place that was not given back by then is free again soon.
        """
        ...

    def release(self, ticket: Permit, bill: ActualUsage) -> Awaitable[None]:
        """Give a place back, put right what was reserved, and learn what the server said."""
        ...

    def admit(
        self, model: str, deadline: float, *, force: bool
    ) -> BreakerPermit | FutureResult[BreakerPermit, LLMError]:
        """Ask the model's breaker to be let through; one that is open is a ``ModelUnavailable``, unless ``force``.

        A probe that nobody records is given up soon after its call's ``deadline``.
        """
        ...

    def record(
        self, model: str, config: BreakerConfig, passage: BreakerPermit, *, failed: bool | None
    ) -> Awaitable[None]:
        """Tell the model's breaker what became of one: ``None`` says nothing of the model."""
        ...

    def opened(self) -> Mapping[str, float]:
        """Give the models that are left alone, as far as is known here, and until when.

        Times are on the clock of ``anyio.current_time()``.
        """
        ...

    def aclose(self) -> Awaitable[None]:
        """Let go of connections and threads; a second time does nothing."""
        ...


# The service that knows what was spent, and how much more may be.


class Ledger(Protocol):
    """What was spent: one row an attempt, and what is left of the budgets."""

    def record(self, row: LedgerRow) -> None:
        """Book a row without waiting. No two rows have the same time and ``id``."""
        ...

    def rows(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        before: LedgerRow | None = None,
        newest: int | None = None,
    ) -> FutureResult[Sequence[LedgerRow], LLMError]:
        """Give the rows from a time up to another, oldest first: all of them, or the ``newest``.

        For page after page, each has the rows that come ``before`` the first one of the page before it.
        """
        ...

    def reserve(self, hold: Hold) -> FutureResult[Hold, LLMError]:
        """Reserve an amount in all accounts or in none, whoever else does at the same time.

        What is too much for one of them is a ``BudgetExceeded``. Who is cancelled meanwhile has reserved nothing.
        """
        ...

    def commit(self, hold: Hold, cost: Decimal) -> Awaitable[None]:
        """Spend what it came to (US dollars) and give the hold back, once. No cancellation cuts it short."""
        ...

    def aclose(self) -> Awaitable[None]:
        """Write what is not written yet, and let go of connections and threads; a second time does nothing."""
        ...


# Every service that an effect may use, each behind a small Protocol.


class Clients(Protocol):
    """The edge to the models."""

    def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
        """Ask ``call.model`` once; events go to ``call.sink`` where there is one."""
        ...

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        """See how a model is without asking it anything."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """What clients may be besides; those that are not embed no texts."""

    def embed(self, call: Call, texts: tuple[str, ...], dimensions: int | None) -> FutureResult[Vectors, LLMError]:
        """Ask ``call.model`` once for a vector of each text, of so many numbers where that is said."""
        ...


class Cache(Protocol):
    """Whole answers by key. What goes wrong is a ``StorageFailed``; an entry is opaque bytes.

    One that never waits may say so (``waits = False``): no time is set for it then, which saves much of what it costs.
    """

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
    """Stored conversations, append-only. Every operation names an owner and sees that owner's only.

    A conversation of another owner is one that is not there; ``None`` is an owner of its own. What is asked of one that
    is not there, or with an id that no store can keep, is an ``InvalidRequest``. What goes wrong with the store is a
    ``StorageFailed``. Each turn that begins or ends, and each ``append``, is one more version.
    """

    def start(self, conversation: Conversation) -> FutureResult[Conversation, LLMError]:
        """Keep a new conversation, at version 0; an id that the owner has already is a ``ConversationConflict``."""
        ...

    def load(
        self, conversation_id: str, owner: str | None, newest: int | None = None
    ) -> FutureResult[History | None, LLMError]:
        """Read a conversation at once: its ``newest`` turns, or all; ``None`` where there is none."""
        ...

    def page(
        self, owner: str | None, limit: int, after: str | None = None
    ) -> FutureResult[tuple[Conversation, ...], LLMError]:
        """Give an owner's conversations by their ids, at most ``limit`` of those that come ``after`` an id."""
        ...

    def begin_turn(
        self, conversation_id: str, owner: str | None, expected_version: int, turn: Turn
    ) -> FutureResult[Turn, LLMError]:
        """Store what is asked, before it is: the only place of conflict.

        A conversation that has moved on from ``expected_version`` is a ``ConversationConflict``. A turn whose id is
        there already is given as it stands, and nothing is stored. Only one that failed, was interrupted before
        anything came of it, or whose lease is over at ``turn.begun_at``, is taken up again: its messages stay, the
        ``writer`` and the lease are the new ones. Who is given its own ``writer`` back, pending, has the turn.
        """
        ...

    def finish_turn(
        self,
        conversation_id: str,
        owner: str | None,
        turn_id: str,
        state: TurnState,
        messages: tuple[StoredMessage, ...],
        *,
        error: str | None = None,
    ) -> FutureResult[Turn, LLMError]:
        """Store what came of a turn. It needs no version.

        A turn that ended with an answer, or a part of one, stays as it is and is given. One that failed keeps only what
        was asked, and takes an answer that arrives later.
        """
        ...

    def append(
        self, conversation_id: str, owner: str | None, expected_version: int, turns: tuple[Turn, ...]
    ) -> FutureResult[Conversation, LLMError]:
        """Store whole turns at once, all or none; those whose ids are there already are left as they are."""
        ...

    def summarise(self, conversation_id: str, owner: str | None, summary: Summary) -> FutureResult[None, LLMError]:
        """Keep a summary, unless there is one that reaches further."""
        ...

    def delete(self, conversation_id: str, owner: str | None) -> FutureResult[bool, LLMError]:
        """Drop a conversation with all that it holds; says whether there was one."""
        ...

    def intend(self, run_id: str, owner: str | None, key: str, intent: bytes) -> FutureResult[JournalEntry, LLMError]:
        """Note what a run is about to do; an entry that is there already is given as it stands, ``fresh`` no more."""
        ...

    def conclude(self, run_id: str, owner: str | None, key: str, result: bytes) -> FutureResult[None, LLMError]:
        """Note what came of a step; the first result stays."""
        ...

    def journal(self, run_id: str, owner: str | None) -> FutureResult[tuple[JournalEntry, ...], LLMError]:
        """Give all that a run noted, in order."""
        ...

    def aclose(self) -> Awaitable[None]:
        """Let go of files, connections and threads; a second time does nothing."""
        ...


class Health(Protocol):
    """What routing and retries know of each model."""

    def observe(self, attempt: Attempt, at: datetime) -> None:
        """Learn from an attempt that ended ``at`` a time of ``env.now``."""
        ...

    def cool_down(self, model: str, until: float) -> None:
        """Leave a model alone until a time on the clock of ``anyio.current_time()``."""
        ...

    def statistics(self) -> Mapping[str, Statistics]:
        """Give what is known, by model name."""
        ...

    def begin_call(self) -> None:
        """Count a call that is routed now."""
        ...

    def calls(self) -> int:
        """Tell how many calls were routed: the draws that decide about exploring go by it."""
        ...

    def latency(self, model: str, share: float, *, first_content: bool) -> float | None:
        """Give the milliseconds within which that share (0 to 1) of the newest answers came, or ``None``.

        Of streams the time of their ``first_content``, else that of whole answers; ``None`` where too few are known.
        """
        ...


class Prices(Protocol):
    """What tokens cost."""

    def cost(self, model: str, usage: Usage, at: datetime) -> Cost:
        """Price some usage of a model ``at`` a time of ``env.now``; unknown where the price or the usage is."""
        ...

    def source(self, model: str, at: datetime) -> str:
        """Say where the price of a model comes from; nothing where there is none."""
        ...


class Tokens(Protocol):
    """How long a text is for a model."""

    def estimate(self, request: LLMRequest) -> int:
        """Estimate the tokens of the prompt: messages, system, tools and schema."""
        ...

    def ratio(self, model: str) -> float:
        """Give the tokens that a configured model counts for each one estimated."""
        ...

    def learn(self, model: str, estimated: int, told: int) -> None:
        """Learn from a prompt that was estimated and then counted by its provider."""
        ...


class Span(Protocol):
    """A piece of work that is being followed."""

    def end(self, attributes: Attributes, error: str | None = None) -> None:
        """Tell what came of it; ``error`` is the tag of an error, or the class of a defect."""
        ...


class Telemetry(Protocol):
    """Traces and metrics. What it raises is logged, and never reaches the call that it follows."""

    @property
    def active(self) -> bool:
        """Whether anybody listens: where nobody does, nothing is gathered."""
        ...

    def begin(self, name: str, attributes: Attributes, *, client: bool = False) -> Span:
        """Follow a piece of work; what begins before it ends, in the same task or one below, is a part of it.

        It ends in the task in which it began. ``client`` says that another process does the work.
        """
        ...

    def record(self, measures: Sequence[Measure]) -> None:
        """Take the figures of what is current."""
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
