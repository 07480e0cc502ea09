"""Cooldowns: how long a model is skipped after an error. Routing asks a model that cools down after all others."""

from __future__ import annotations

from typing import Final

from llm_effects.values import caps
from llm_effects.values.errors import (
    AuthenticationFailed,
    LLMError,
    ModelUnavailable,
    NetworkError,
    RateLimitExceeded,
    RequestFailed,
)

MISCONFIGURED_S: Final = 300.0
"""After a rejected key, an exhausted quota or an unknown model, in seconds: the next call would meet the same."""

REFUSED_S: Final = 30.0
"""After a refused connection, in seconds: no server listens there."""


def cooldown_after(error: LLMError) -> float:
    """Return for how many seconds to skip a model after its last error; 0 for not at all.

    >>> cooldown_after(RateLimitExceeded(retry_after=60.0, status=429)), cooldown_after(AuthenticationFailed())
    (60.0, 300.0)
    >>> cooldown_after(NetworkError(phase="reset")), cooldown_after(NetworkError(phase="refused"))
    (0.0, 30.0)
    """
    requested = 0.0 if _is_our_own(error) else error.retry_after or 0.0
    return min(caps.PAUSE_S, max(requested, _lasting(error)))


def _lasting(error: LLMError) -> float:
    match error:
        case AuthenticationFailed():
            return MISCONFIGURED_S
        case RateLimitExceeded():
            return MISCONFIGURED_S if error.quota else 0.0
        case ModelUnavailable():
            return MISCONFIGURED_S if error.reason == "unknown_model" else 0.0
        case NetworkError():
            return REFUSED_S if error.phase == "refused" else 0.0
        case _:
            return 0.0


def _is_our_own(error: LLMError) -> bool:
    """Return whether the pause is our own: of an open breaker, or of limits that a smaller call may still pass."""
    match error:
        case ModelUnavailable():
            return error.reason == "breaker_open"
        case RateLimitExceeded():
            return error.status is None and error.should_retry is False
        case _:
            return isinstance(error, RequestFailed)
