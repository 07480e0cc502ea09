"""Two decisions about an error, each one exhaustive match, and its one-line description."""

from enum import Enum, unique
from typing import Final, assert_never, final

from llm_effects.errors import (
    AuthenticationFailed,
    BudgetExceeded,
    ConfigurationError,
    ContentRefused,
    ContextTooLarge,
    ConversationConflict,
    InvalidRequest,
    LLMError,
    MalformedResponse,
    ModelUnavailable,
    NetworkError,
    RateLimitExceeded,
    RequestFailed,
    RequestTimeout,
    SchemaMismatch,
    StorageFailed,
)


@final
@unique
class Fallback(Enum):
    """Which other models may be tried after an error."""

    NEVER = "never"
    ANY = "any"
    LARGER_WINDOW = "larger_window"
    CHEAPER = "cheaper"
    IF_ALLOWED = "if_allowed"


ALWAYS: Final = 1_000_000
"""As many retries as the schedule has."""


def retries_worth(error: LLMError) -> int:
    """How often the same model may be asked again after this error: 0, 1, or ``ALWAYS``.

    A server that says whether to ask again (``x-should-retry``) knows best: at least once, or never.

    >>> retries_worth(RequestTimeout()), retries_worth(InvalidRequest(message="prompt: blank"))
    (1, 0)
    >>> retries_worth(RequestTimeout(should_retry=False)), retries_worth(ContextTooLarge(should_retry=True))
    (0, 1)
    """
    worth = _by_kind(error)
    if error.should_retry is None:
        return worth
    return max(worth, 1) if error.should_retry else 0


def _by_kind(error: LLMError) -> int:
    match error:
        case ModelUnavailable():
            return ALWAYS if error.reason in {"overloaded", "loading"} else 0
        case RateLimitExceeded():
            return 0 if error.quota else ALWAYS
        case NetworkError():
            return {"dns": 1, "intermediary": 0}.get(error.phase, ALWAYS)
        case RequestTimeout():
            return 0 if error.phase in {"total", "queue", "sink"} else 1
        case MalformedResponse():
            return 1
        case StorageFailed():
            return 1 if error.transient else 0
        case InvalidRequest() | AuthenticationFailed() | ContextTooLarge() | ConfigurationError() | ContentRefused():
            return 0
        case BudgetExceeded() | ConversationConflict() | SchemaMismatch() | RequestFailed():
            return 0
        case _:
            assert_never(error)


def is_retryable(error: LLMError) -> bool:
    """Whether asking the same model again may help.

    >>> is_retryable(RateLimitExceeded(retry_after=2.0)), is_retryable(RateLimitExceeded(quota=True))
    (True, False)
    """
    return retries_worth(error) > 0


def fallback_for(error: LLMError) -> Fallback:
    """Which of the other candidates may be tried.

    >>> fallback_for(ContextTooLarge()), fallback_for(InvalidRequest(message="prompt: blank"))
    (<Fallback.LARGER_WINDOW: 'larger_window'>, <Fallback.NEVER: 'never'>)
    """
    match error:
        case ModelUnavailable() | RateLimitExceeded() | AuthenticationFailed() | NetworkError() | MalformedResponse():
            return Fallback.ANY
        case RequestTimeout():
            return Fallback.NEVER if error.phase in {"total", "sink"} else Fallback.ANY
        case SchemaMismatch():
            return Fallback.ANY
        case ContextTooLarge():
            return Fallback.LARGER_WINDOW
        case ContentRefused():
            return Fallback.IF_ALLOWED
        case BudgetExceeded():
            return Fallback.CHEAPER
        case InvalidRequest() | ConfigurationError() | StorageFailed() | ConversationConflict() | RequestFailed():
            return Fallback.NEVER
        case _:
            assert_never(error)


def describe(error: LLMError) -> str:
    """One line for people: the tag, the model and what happened.

    >>> describe(NetworkError(model="lm-studio", message="connection refused", phase="refused"))
    'NetworkError (lm-studio): connection refused'
    """
    where = f" ({error.model})" if error.model else ""
    says = "; ".join(_says(error).splitlines())
    return f"{error.tag}{where}: {says}" if says else f"{error.tag}{where}"


def _says(error: LLMError) -> str:
    match error:
        case RequestTimeout():
            limit = "" if error.timeout_ms is None else f" after {error.timeout_ms:g} ms"
            return f"{error.phase} timed out{limit}"
        case BudgetExceeded():
            asked = "" if error.estimate is None else f", and this takes about {error.estimate}"
            return f"{error.budget}: {error.spent} of {error.limit} spent{asked}"
        case ConversationConflict():
            return f"conversation {error.conversation_id!r} was changed by another writer"
        case SchemaMismatch():
            return "; ".join(error.problems)
        case RequestFailed():
            return "; ".join(describe(each) for each in error.errors)
        case StorageFailed():
            return f"{error.operation}: {error.message}"
        case ModelUnavailable():
            return error.message or error.reason.replace("_", " ")
        case ContentRefused():
            return error.message or error.category or ""
        case RateLimitExceeded():
            return error.message or ("the quota is spent" if error.quota else "too many requests")
        case _:
            return error.message
