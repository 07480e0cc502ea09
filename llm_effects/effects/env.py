"""The environment: every service that an effect may use, supplied from outside.

Swapping one is ``attrs.evolve(env, cache=...)``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, unique
from functools import partial
from typing import Final, Protocol, TypeAlias, final, runtime_checkable

from attrs import Attribute, field, frozen
from returns.future import FutureResult
from returns.result import Result

from llm_effects.config import LLMConfig
from llm_effects.config.models import ModelConfig
from llm_effects.config.routing import BreakerConfig, RetryBudgetConfig
from llm_effects.effects.call import Call, ResponseValidator, Sink
from llm_effects.effects.call import new_id as new_id  # noqa: PLC0414 - for those who build environments
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
from llm_effects.values.records import (
    Attributes,
    BatchJob,
    BatchLine,
    CacheStats,
    LedgerRow,
    Measure,
    ModelHealth,
    Statistics,
)
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import Attempt, Cost, LLMResponse, Usage, Vectors
from llm_effects.values.value import Value

# Load: limits and circuit breakers, budgets of retries and of hedges.


class Hedges(Protocol):
    """The budget of second attempts, to which every call adds a share."""

    def earn(self, share: float) -> None:
        """Add a call's share (0 to 1) of a hedge."""
        ...

    def spend(self) -> bool:
        """Spend one hedge and return whether there was a whole one."""
        ...


class Retries(Protocol):
    """The retry budgets of all calls together, one for each server and key."""

    def afford(self, server: Hashable, budget: RetryBudgetConfig, cost: int) -> bool:
        """Spend the cost of a retry and return whether the budget covered it."""
        ...

    def repay(self, server: Hashable, budget: RetryBudgetConfig, amount: int) -> None:
        """Refund some after a success."""
        ...


class Limits(Protocol):
    """Limits and circuit breakers of each model. Cancellation never interrupts ``release`` or ``record``.

    Most calls need not wait: a result that is known at once is returned as it is, and only others as a future.
    """

    @property
    def retries(self) -> Retries:
        """The retry budgets of this process."""
        ...

    @property
    def hedges(self) -> Hedges:
        """The budget of hedges of this process."""
        ...

    def acquire(
        self, model: str, quota: Quota, demand: Demand, timeout: float, deadline: float
    ) -> Permit | FutureResult[Permit, LLMError]:
        """Return a permit, or wait for one, first come first served, for at most ``timeout`` seconds.

        A permit that cannot come in time is a ``RateLimitExceeded`` at once. No call waits past its ``deadline``, on
        the clock of ``anyio.current_time()``; a permit not released by then expires soon after it.
        """
        ...

    def release(self, permit: Permit, usage: ActualUsage) -> Awaitable[None]:
        """Release a permit, replace its reservation by the actual usage, and apply the limits the server reported."""
        ...

    def admit(
        self, model: str, deadline: float, *, force: bool
    ) -> BreakerPermit | FutureResult[BreakerPermit, LLMError]:
        """Ask the model's circuit breaker for admission; an open one is a ``ModelUnavailable``, unless ``force``.

        A probe that is never recorded expires soon after its call's ``deadline``.
        """
        ...

    def record(
        self, model: str, config: BreakerConfig, permit: BreakerPermit, *, failed: bool | None
    ) -> Awaitable[None]:
        """Record an outcome with the model's circuit breaker; ``None`` says nothing about the model."""
        ...

    def opened(self) -> Mapping[str, float]:
        """Return the models with an open breaker, as far as this process knows, and until when.

        Times are on the clock of ``anyio.current_time()``.
        """
        ...

    def aclose(self) -> Awaitable[None]:
        """Close connections and threads; closing twice is fine."""
        ...


# Spending.


class Ledger(Protocol):
    """The record of spending, one row for each attempt, and what is left of the budgets.

    A ledger that also has a method ``usage``, as ``SqlLedger`` has, adds up its rows for reports itself; of others,
    reports read the ``rows``.
    """

    def record(self, row: LedgerRow) -> None:
        """Record a row without waiting. No two rows share both time and ``id``."""
        ...

    def rows(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        before: LedgerRow | None = None,
        newest: int | None = None,
    ) -> FutureResult[Sequence[LedgerRow], LLMError]:
        """Return the rows between two times, oldest first: all of them, or the ``newest``.

        To read page by page, pass the first row of a page as ``before`` of the next.
        """
        ...

    def reserve(self, hold: Hold) -> FutureResult[Hold, LLMError]:
        """Reserve an amount in all accounts or in none, atomically across processes.

        An account that cannot cover it makes a ``BudgetExceeded``. A cancelled reservation reserves nothing.
        """
        ...

    def commit(self, hold: Hold, cost: Decimal) -> Awaitable[None]:
        """Replace a hold by the actual cost (USD), once, and wait until it is stored, also if cancelled."""
        ...

    def aclose(self) -> Awaitable[None]:
        """Write pending rows and close connections and threads; closing twice is fine."""
        ...


# Models, stores and statistics.


class Clients(Protocol):
    """The clients of the models.

    Clients that also have an async method ``answer``, which returns the plain ``Result`` of ``complete``, are asked by
    it: without a future in between.
    """

    def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
        """Ask ``call.model`` once; events go to ``call.sink`` where there is one."""
        ...

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        """Check a model's health without asking it anything."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """Clients that can embed texts; others need not implement it."""

    def embed(self, call: Call, texts: tuple[str, ...], dimensions: int | None) -> FutureResult[Vectors, LLMError]:
        """Ask ``call.model`` once for a vector of each text, of ``dimensions`` numbers if given."""
        ...


@runtime_checkable
class BatchJobs(Protocol):
    """Batches at providers. Clients that can submit them have one as ``batches``; the live clients have their own.

    ``model`` is a name from the configuration.
    """

    def submit(self, model: str, lines: Sequence[BatchLine], submission: str) -> FutureResult[BatchJob, LLMError]:
        """Submit a batch under the id ``submission``; each ``custom_id`` begins with that id and ``-``."""
        ...

    def find(
        self, model: str, submission: str, requests: int, since: datetime
    ) -> FutureResult[BatchJob | None, LLMError]:
        """Return the batch of so many ``requests`` that was submitted under an id at the time ``since``, if it was.

        An error that may pass means that this is not known yet.
        """
        ...

    def status(self, model: str, job_id: str) -> FutureResult[BatchJob, LLMError]:
        """Return the batch as it is now."""
        ...

    def cancel(self, model: str, job_id: str) -> FutureResult[BatchJob, LLMError]:
        """Cancel what has not begun, and return the batch; one that has ended stays as it is."""
        ...

    def results(
        self, job: BatchJob, requests: Mapping[str, LLMRequest], take: TakeResult
    ) -> FutureResult[None, LLMError]:
        """Pass each result of a batch that has ended to ``take``, in any order; the requests are by ``custom_id``.

        A line that is unreadable or belongs to no request is skipped; one may come twice, or be missing.
        """
        ...


TakeResult: TypeAlias = Callable[[str, Result[LLMResponse, LLMError]], Awaitable[None]]
"""Receives a ``custom_id`` and the result of its request."""


class Cache(Protocol):
    """Whole answers by key. A failure is a ``StorageFailed``; an entry is opaque bytes.

    A cache that never waits may set ``waits = False``: its calls then run without a time limit, which is cheaper. It
    may also have plain methods, which take no future: ``hit`` returns an entry and counts a hit, or returns ``None``,
    and calls are answered from it at once; ``find`` counts a miss as well; ``keep`` takes a key, an ``Entry`` of
    ``values.serialization`` and its time to live, and stores it without encoding it. ``hit`` and ``find`` may return it
    so.

    One that waits may have ``get_within``, an async function of a key and seconds that returns the result of ``get``
    within that time: it needs no other time limit, and calls begin with it, before they prepare to ask a model. One
    that processes share may have ``leases``.
    """

    def get(self, key: str) -> FutureResult[bytes | None, LLMError]:
        """Return the entry, or ``None`` if there is none or it has expired."""
        ...

    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> FutureResult[None, LLMError]:
        """Store an entry for ``ttl_seconds``; ``None`` is for ever, 0 stores nothing and deletes an old entry."""
        ...

    def delete(self, key: str) -> FutureResult[bool, LLMError]:
        """Delete an entry; the value is whether a live one was there."""
        ...

    def clear(self) -> FutureResult[int | None, LLMError]:
        """Delete all entries; the value is their number, where the store knows it."""
        ...

    def stats(self) -> FutureResult[CacheStats, LLMError]:
        """Return what the store holds and how it was used."""
        ...

    def aclose(self) -> Awaitable[None]:
        """Close files, connections and threads; closing twice is fine."""
        ...


@final
@unique
class Lease(Enum):
    """The state of an entry that was missed: stored since, or under the lease of this call, another call or none."""

    STORED = "stored"
    OURS = "ours"
    THEIRS = "theirs"
    UNSHARED = "unshared"


class Leases(Protocol):
    """The right to ask for a missing entry, which one call of all processes has at a time. A failure shares nothing."""

    async def take(self, key: str, holder: str, seconds: float) -> Result[Lease, LLMError]:
        """Acquire the lease of an entry for some seconds; the value is what there was."""
        ...

    async def renew(self, key: str, holder: str, seconds: float) -> Result[bool, LLMError]:
        """Prolong a lease to ``seconds`` from now; the value is whether it is still there."""
        ...

    def end(self, key: str, holder: str, *, answered: bool) -> None:
        """End a lease, without waiting: without an entry all that wait ask at once if ``answered``, else one does."""
        ...


class Conversations(Protocol):
    """Stored conversations, append-only. Every operation names an owner and sees only that owner's data.

    A conversation of another owner does not exist; ``None`` is an owner of its own. An operation on a missing
    conversation, or with an invalid id, is an ``InvalidRequest``. A failure of the store is a ``StorageFailed``. Each
    turn that begins or ends, and each ``append``, adds one to the version.
    """

    def start(self, conversation: Conversation) -> FutureResult[Conversation, LLMError]:
        """Store a new conversation at version 0; an id that the owner already uses is a ``ConversationConflict``."""
        ...

    def start_copy(self, history: History) -> FutureResult[Conversation, LLMError]:
        """Store a new conversation with its turns and its summary in one step: all of it, or nothing.

        The turns are numbered from 1. An id that the owner already uses is a ``ConversationConflict``.
        """
        ...

    def load(
        self, conversation_id: str, owner: str | None, newest: int | None = None
    ) -> FutureResult[History | None, LLMError]:
        """Read a conversation at one moment: its ``newest`` turns, or all; ``None`` if there is none."""
        ...

    def page(
        self, owner: str | None, limit: int, after: str | None = None
    ) -> FutureResult[tuple[Conversation, ...], LLMError]:
        """Return an owner's conversations in the order of their ids: at most ``limit``, from ``after`` an id on."""
        ...

    def begin_turn(
        self, conversation_id: str, owner: str | None, expected_version: int, turn: Turn
    ) -> FutureResult[Turn, LLMError]:
        """Store the question before a model is asked: the only place of conflict.

        A conversation that is past ``expected_version`` is a ``ConversationConflict``. A turn whose id exists is
        returned unchanged, and nothing is stored. Only a turn that failed, was interrupted before any content, or whose
        lease has expired at ``turn.begun_at`` is resumed: it keeps its messages and gets the new ``writer`` and lease.
        A pending turn with your ``writer`` is yours.
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
        """Store the end of a turn. It needs no version.

        A turn that already ended with an answer, or part of one, is returned unchanged. A failed turn keeps only its
        question, and accepts an answer that arrives later.
        """
        ...

    def append(
        self, conversation_id: str, owner: str | None, expected_version: int, turns: tuple[Turn, ...]
    ) -> FutureResult[Conversation, LLMError]:
        """Store whole turns, all or none; turns whose ids exist stay as they are."""
        ...

    def summarise(self, conversation_id: str, owner: str | None, summary: Summary) -> FutureResult[None, LLMError]:
        """Store a summary, unless a stored one reaches further."""
        ...

    def delete(self, conversation_id: str, owner: str | None) -> FutureResult[bool, LLMError]:
        """Delete a conversation with its contents; the value is whether there was one."""
        ...

    def intend(self, run_id: str, owner: str | None, key: str, intent: bytes) -> FutureResult[JournalEntry, LLMError]:
        """Record what a run is about to do; an existing entry is returned unchanged, and not ``fresh``."""
        ...

    def conclude(self, run_id: str, owner: str | None, key: str, result: bytes) -> FutureResult[None, LLMError]:
        """Record the result of a step; the first result stays."""
        ...

    def journal(self, run_id: str, owner: str | None) -> FutureResult[tuple[JournalEntry, ...], LLMError]:
        """Return the entries of a run, in order."""
        ...

    def aclose(self) -> Awaitable[None]:
        """Close files, connections and threads; closing twice is fine."""
        ...


class Health(Protocol):
    """The statistics and cooldowns of each model, for routing and retries."""

    def observe(self, attempt: Attempt, at: datetime) -> None:
        """Learn from an attempt that ended ``at`` a time of ``env.now``."""
        ...

    def cool_down(self, model: str, until: float) -> None:
        """Skip a model until a time on the clock of ``anyio.current_time()``."""
        ...

    def statistics(self) -> Mapping[str, Statistics]:
        """Return the statistics by model name."""
        ...

    def begin_call(self) -> None:
        """Count a routed call."""
        ...

    def add_in_flight(self, model: str, change: int) -> None:
        """Add 1 or -1 to the calls in flight at a model, waiting ones included."""
        ...

    def in_flight(self) -> Mapping[str, int]:
        """Return the calls in flight by model; routing prefers the least busy of equal models.

        Leave models without any out: an empty mapping saves routing the comparison.
        """
        ...

    def calls(self) -> int:
        """Return how many calls were routed; exploration depends on it."""
        ...

    def latency(self, model: str, share: float, *, first_content: bool) -> float | None:
        """Return the latency quantile ``share`` (0 to 1) of the newest answers in milliseconds.

        ``first_content`` selects the time to the first content of streams, else whole answers count; ``None`` where
        too few are known.
        """
        ...


class Prices(Protocol):
    """The prices of tokens."""

    def cost(self, model: str, usage: Usage, at: datetime) -> Cost:
        """Return the cost of a model's usage ``at`` a time of ``env.now``; unknown if the price or the usage is."""
        ...

    def source(self, model: str, at: datetime) -> str:
        """Return where the price of a model comes from; empty if there is none."""
        ...


class Tokens(Protocol):
    """Token estimates, calibrated for each model."""

    def estimate(self, request: LLMRequest) -> int:
        """Estimate the tokens of the prompt: messages, system, tools and schema."""
        ...

    def ratio(self, model: str) -> float:
        """Return how many tokens a configured model counts for each estimated one."""
        ...

    def learn(self, model: str, estimated: int, counted: int) -> None:
        """Calibrate by a prompt that was estimated and then counted by its provider."""
        ...


class Span(Protocol):
    """A span of traced work."""

    def end(self, attributes: Attributes, error: str | None = None) -> None:
        """End the span; ``error`` is the tag of an error, or the class of a defect."""
        ...


class Telemetry(Protocol):
    """Traces and metrics. An exception it raises is logged and never reaches the traced call."""

    @property
    def active(self) -> bool:
        """Whether anything is recorded; if not, nothing is collected."""
        ...

    def begin(self, name: str, attributes: Attributes, *, client: bool = False) -> Span:
        """Open a span; spans opened before it ends, in the same task or a child task, are its children.

        It ends in the task that opened it. ``client`` marks work that another process does.
        """
        ...

    def record(self, measures: Sequence[Measure]) -> None:
        """Record measures within the current span."""
        ...


class Background(Protocol):
    """Work that belongs to no call, in the scope of an environment: it is cancelled and awaited when that closes."""

    def start(self, key: Hashable, work: Callable[[], Awaitable[object]]) -> bool:
        """Start some work, unless that of the same key is under way; return whether the scope is open here.

        It is not in another event loop than that of the scope, nor once the scope is being closed.
        """
        ...


@final
@frozen(eq=False, repr=False)
class Asked(Value):
    """A question as a redactor passes it on: with the sink of its answer, and the conditions on that.

    ``hide`` redacts a text that the sink has received, before it is stored.
    """

    request: LLMRequest
    sink: Sink | None = field(default=None, repr=False)
    validator: ResponseValidator | None = field(default=None, repr=False)
    hide: Callable[[str], str] = field(default=str, repr=False)


AskedAnswer: TypeAlias = "Callable[[Asked, LLMEnv], Awaitable[Result[LLMResponse, LLMError]]]"
"""Answers a question in an environment."""


class Redact(Protocol):
    """Rewrites the texts of requests before anything else sees them, and restores them in answers: a ``Redaction``."""

    def answer(
        self, asked: Asked, env: LLMEnv, ask: AskedAnswer, conversation: str | None = None
    ) -> Awaitable[Result[LLMResponse, LLMError]]:
        """Answer a question, or a turn of a conversation, by ``ask``, which receives it rewritten."""
        ...

    def texts(
        self, texts: Sequence[str], owner: str | None, env: LLMEnv
    ) -> Awaitable[Result[tuple[str, ...], LLMError]]:
        """Rewrite texts that no answer returns, such as those to embed."""
        ...


def _valid_redact(_: object, __: Attribute[Redact | None], redact: Redact | None) -> None:
    if redact is not None and not hasattr(redact, "answer"):
        msg = f"redact must be a Redaction of llm_effects.policies.redaction, not {type(redact).__name__}"
        raise TypeError(msg)


Now: TypeAlias = Callable[[], datetime]
"""Wall time with its zone, for TTLs, the ledger and dates only."""

Draw: TypeAlias = Callable[[], float]
"""A random number from 0 up to 1."""

NewId: TypeAlias = Callable[[], str]
"""A fresh opaque id."""

wall_clock: Final[Now] = partial(datetime.now, UTC)
"""The wall clock of this machine, in UTC."""


@final
@frozen(kw_only=True, eq=False, repr=False)
class LLMEnv(Value):
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
    background: Background | None = field(default=None, repr=False)
    redact: Redact | None = field(default=None, repr=False, validator=_valid_redact)
