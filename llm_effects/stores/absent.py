"""Services that are switched off: a cache that never has anything, limits that never stop anyone."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import final

from attrs import frozen
from returns.future import FutureResult

from llm_effects.env import CacheStats
from llm_effects.errors import ConfigurationError, LLMError


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
class NoConversations:
    """No conversation is stored."""

    def load(self, conversation_id: str, owner: str | None) -> FutureResult[bytes | None, LLMError]:  # noqa: ARG002
        """Give ``None``."""
        return FutureResult.from_value(None)


@final
@frozen
class NoLimits:
    """Everybody may go on at once."""

    def slot(self, model: str) -> AbstractAsyncContextManager[None]:  # noqa: ARG002
        """Hold a place that is always free."""
        return nullcontext()


@final
@frozen
class NoTelemetry:
    """Nothing is traced."""

    def span(
        self,
        name: str,  # noqa: ARG002
        attributes: Mapping[str, str | int | float],  # noqa: ARG002
    ) -> AbstractAsyncContextManager[None]:
        """Follow nothing."""
        return nullcontext()
