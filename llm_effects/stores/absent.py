"""Services that are switched off: a cache that never has anything, limits that never stop anyone."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import final

from attrs import frozen
from returns.future import FutureResult

from llm_effects.errors import LLMError


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
