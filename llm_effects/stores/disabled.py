"""Services that are switched off, and stores that fail because their configuration is wrong."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Never, final

from attrs import field, frozen
from returns.future import FutureResult

from llm_effects.config.routing import BreakerConfig
from llm_effects.effects.env import Cache, Conversations, Hedges, Ledger, Limits, Retries, Span
from llm_effects.limits.budgets import Hold
from llm_effects.limits.circuit_breaker import BreakerPermit
from llm_effects.limits.quotas import ActualUsage, Permit
from llm_effects.stores.limits.memory import MemoryHedges, MemoryRetries
from llm_effects.values.errors import ConfigurationError, LLMError
from llm_effects.values.records import Attributes, CacheStats, LedgerRow, Measure
from llm_effects.values.value import Value


@final
@frozen(eq=False, repr=False)
class NoCache(Value):
    """A cache that stores nothing: every look-up is a miss."""

    def get(self, key: str) -> FutureResult[bytes | None, LLMError]:  # noqa: ARG002
        """Return ``None``."""
        return FutureResult.from_value(None)

    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> FutureResult[None, LLMError]:  # noqa: ARG002
        """Store nothing."""
        return FutureResult.from_value(None)

    def delete(self, key: str) -> FutureResult[bool, LLMError]:  # noqa: ARG002
        """Return ``False``: there was no entry."""
        return FutureResult.from_value(False)

    def clear(self) -> FutureResult[int | None, LLMError]:
        """Return 0: there were no entries."""
        return FutureResult.from_value(0)

    def delete_all(self, prefix: str) -> FutureResult[int, LLMError]:  # noqa: ARG002
        """Return 0: there were no entries."""
        return FutureResult.from_value(0)

    def stats(self) -> FutureResult[CacheStats, LLMError]:
        """Return the statistics of an empty cache."""
        return FutureResult.from_value(CacheStats(entries=0, bytes=0))

    async def aclose(self) -> None:
        """No-op."""


@final
@frozen(eq=False, repr=False)
class NoTelemetry(Value):
    """Telemetry that records nothing."""

    active: bool = field(default=False, init=False)

    def begin(self, name: str, attributes: Attributes, *, client: bool = False) -> Span:  # noqa: ARG002
        """Return a span that records nothing."""
        return self

    def end(self, attributes: Attributes, error: str | None = None) -> None:
        """No-op."""

    def record(self, measures: Sequence[Measure]) -> None:
        """No-op."""


@final
@frozen(eq=False, repr=False)
class _UnusableStore(Value):
    """A cache, conversations or a ledger whose configuration is wrong: every operation fails with ``problem``.

    Ledger rows are dropped: they have no result that could fail.
    """

    problem: ConfigurationError

    def _fail(self, *_: object, **__: object) -> FutureResult[Never, LLMError]:
        return FutureResult.from_failure(self.problem)

    get = put = delete = delete_all = clear = stats = _fail  # of a cache
    page_by_metadata = search = _fail
    start = start_copy = load = page = begin_turn = finish_turn = append = summarise = _fail  # of conversations
    intend = conclude = journal = _fail  # of journals
    erase_conversations = erase_journals = erase_rows = _fail
    rows = reserve = _fail  # of a ledger

    def record(self, row: LedgerRow) -> None:
        """No-op."""

    async def commit(self, hold: Hold, cost: Decimal) -> None:
        """No-op."""

    async def aclose(self) -> None:
        """No-op."""


def unusable_cache(problem: ConfigurationError) -> Cache:
    """Return a cache that fails every operation with ``problem``."""
    return _UnusableStore(problem)


def unusable_conversations(problem: ConfigurationError) -> Conversations:
    """Return a store of conversations that fails every operation with ``problem``."""
    return _UnusableStore(problem)


def unusable_ledger(problem: ConfigurationError) -> Ledger:
    """Return a ledger that fails every operation with ``problem``."""
    return _UnusableStore(problem)


@final
@frozen(eq=False, repr=False)
class _UnusableLimits(Value):
    """Limits whose configuration is wrong: no call is permitted, and each fails with ``problem``."""

    problem: ConfigurationError
    retries: Retries = field(factory=MemoryRetries, init=False, repr=False, eq=False)
    hedges: Hedges = field(factory=MemoryHedges, init=False, repr=False, eq=False)

    def _fail(self, *_: object, **__: object) -> FutureResult[Never, LLMError]:
        return FutureResult.from_failure(self.problem)

    acquire = admit = _fail

    async def release(self, permit: Permit, usage: ActualUsage) -> None:
        """No-op."""

    async def record(self, model: str, config: BreakerConfig, permit: BreakerPermit, *, failed: bool | None) -> None:
        """No-op."""

    def opened(self) -> Mapping[str, float]:
        """Return no models: no breaker ever opens."""
        return {}

    async def aclose(self) -> None:
        """No-op."""


def unusable_limits(problem: ConfigurationError) -> Limits:
    """Return limits that permit no call and fail each with ``problem``."""
    return _UnusableLimits(problem)
