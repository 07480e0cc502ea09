"""Services that are switched off: a cache that never has anything, limits that never stop anyone."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Never, final

from attrs import field, frozen
from returns.future import FutureResult

from llm_effects.config.routing import BreakerConfig
from llm_effects.effects.env import Conversations, Hedges, Retries, Span
from llm_effects.limits.budgets import Hold
from llm_effects.limits.circuit_breaker import BreakerPermit
from llm_effects.limits.quotas import ActualUsage, Demand, Permit, Quota
from llm_effects.stores.limits.memory import MemoryHedges, MemoryRetries
from llm_effects.values.errors import ConfigurationError, LLMError
from llm_effects.values.records import Attributes, CacheStats, LedgerRow, Measure


@final
@frozen
class NoCache:
    """Every look-up is a miss and nothing is kept."""

    def get(self, key: str) -> FutureResult[bytes | None, LLMError]:  # noqa: ARG002
        """Give ``None``."""
        return FutureResult.from_value(None)

    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> FutureResult[None, LLMError]:  # noqa: ARG002
        """Keep nothing."""
        return FutureResult.from_value(None)

    def delete(self, key: str) -> FutureResult[bool, LLMError]:  # noqa: ARG002
        """Find nothing."""
        return FutureResult.from_value(False)

    def clear(self) -> FutureResult[int | None, LLMError]:
        """Drop nothing."""
        return FutureResult.from_value(0)

    def stats(self) -> FutureResult[CacheStats, LLMError]:
        """Tell that nothing is there."""
        return FutureResult.from_value(CacheStats(entries=0, bytes=0))

    async def aclose(self) -> None:
        """Let go of nothing."""


@final
@frozen
class UnusableCache:
    """A cache that is wrongly configured: every use tells so."""

    problem: ConfigurationError

    def get(self, key: str) -> FutureResult[bytes | None, LLMError]:  # noqa: ARG002
        """Tell the problem."""
        return FutureResult.from_failure(self.problem)

    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> FutureResult[None, LLMError]:  # noqa: ARG002
        """Tell the problem."""
        return FutureResult.from_failure(self.problem)

    def delete(self, key: str) -> FutureResult[bool, LLMError]:  # noqa: ARG002
        """Tell the problem."""
        return FutureResult.from_failure(self.problem)

    def clear(self) -> FutureResult[int | None, LLMError]:
        """Tell the problem."""
        return FutureResult.from_failure(self.problem)

    def stats(self) -> FutureResult[CacheStats, LLMError]:
        """Tell the problem."""
        return FutureResult.from_failure(self.problem)

    async def aclose(self) -> None:
        """Let go of nothing."""


@final
@frozen
class _Unusable:
    problem: ConfigurationError

    def _tell(self, *_: object, **__: object) -> FutureResult[Never, LLMError]:
        return FutureResult.from_failure(self.problem)

    start = load = page = begin_turn = finish_turn = append = summarise = delete = _tell
    intend = conclude = journal = _tell

    async def aclose(self) -> None:
        """Let go of nothing."""


def unusable_conversations(problem: ConfigurationError) -> Conversations:
    """Make a storage that is wrongly configured: every use tells so."""
    return _Unusable(problem)


@final
@frozen
class UnusableLedger:
    """A ledger whose storage is wrongly configured: reading it and spending tell so."""

    problem: ConfigurationError

    def record(self, row: LedgerRow) -> None:
        """Keep nothing."""

    def rows(
        self,
        since: datetime | None = None,  # noqa: ARG002
        until: datetime | None = None,  # noqa: ARG002
        *,
        before: LedgerRow | None = None,  # noqa: ARG002
        newest: int | None = None,  # noqa: ARG002
    ) -> FutureResult[Sequence[LedgerRow], LLMError]:
        """Tell the problem."""
        return FutureResult.from_failure(self.problem)

    def reserve(self, hold: Hold) -> FutureResult[Hold, LLMError]:  # noqa: ARG002
        """Tell the problem: nothing is spent that nobody counts."""
        return FutureResult.from_failure(self.problem)

    async def commit(self, hold: Hold, cost: Decimal) -> None:
        """Take no notice."""

    async def aclose(self) -> None:
        """Let go of nothing."""


@final
@frozen
class NoLimits:
    """Everybody may go on at once, and no breaker ever opens. ``problem`` is told to all who ask, if there is one.

    Retries and hedges keep their budgets, which are routing's.
    """

    problem: ConfigurationError | None = None
    retries: Retries = field(factory=MemoryRetries, init=False, repr=False, eq=False)
    hedges: Hedges = field(factory=MemoryHedges, init=False, repr=False, eq=False)

    def acquire(
        self,
        model: str,
        quota: Quota,
        need: Demand,
        timeout: float,  # noqa: ARG002
        deadline: float,  # noqa: ARG002
    ) -> Permit | FutureResult[Permit, LLMError]:
        """Let everybody in."""
        if self.problem is not None:
            return FutureResult.from_failure(self.problem)
        return Permit(model=model, quota=quota, demand=need)

    async def release(self, ticket: Permit, bill: ActualUsage) -> None:
        """Take no notice."""

    def admit(
        self,
        model: str,  # noqa: ARG002
        deadline: float,  # noqa: ARG002
        *,
        force: bool,  # noqa: ARG002
    ) -> BreakerPermit | FutureResult[BreakerPermit, LLMError]:
        """Let everybody through."""
        return BreakerPermit() if self.problem is None else FutureResult.from_failure(self.problem)

    async def record(self, model: str, config: BreakerConfig, passage: BreakerPermit, *, failed: bool | None) -> None:
        """Take no notice."""

    def opened(self) -> Mapping[str, float]:
        """Leave no model alone."""
        return {}

    async def aclose(self) -> None:
        """Let go of nothing."""


@final
@frozen
class NoTelemetry:
    """Nobody listens."""

    active: bool = field(default=False, init=False)

    def begin(self, name: str, attributes: Attributes, *, client: bool = False) -> Span:  # noqa: ARG002
        """Follow nothing."""
        return self

    def end(self, attributes: Attributes, error: str | None = None) -> None:
        """Take no notice."""

    def record(self, measures: Sequence[Measure]) -> None:
        """Take no figure."""
