"""Every way a call can fail, as frozen values: one closed union and two decisions about it.

===================== ============================================== ================== ===============
tag                   when                                           same model again   next model
===================== ============================================== ================== ===============
ModelUnavailable      overloaded, loading, unknown, breaker open     the first two      any
RateLimitExceeded     asked to slow down, or out of quota            not out of quota   any
InvalidRequest        the request itself is wrong                    no                 none
AuthenticationFailed  the key is refused                             no                 any
TimeoutError          a phase of the call took too long              once               any
ContextTooLarge       the prompt outgrows the window                 no                 larger window
ConfigurationError    the set-up is wrong                            no                 none
NetworkError          refused, reset, no such host                   yes                any
MalformedResponse     an undecodable 2xx, a stream cut short         once               any
ContentRefused        a content filter or a refusal                  no                 if allowed
BudgetExceeded        no money left                                  no                 cheaper
StorageFailed         a store did not answer                         once, if transient none
ConversationConflict  somebody else wrote first                      no                 none
SchemaMismatch        the answer does not fit the type               no                 any
RequestFailed         all candidates are spent                       no                 none
===================== ============================================== ================== ===============
"""

from collections.abc import Callable
from enum import Enum, unique
from typing import ClassVar, Final, Literal, ParamSpec, TypeAlias, TypeVar, assert_never, final

from attrs import field, frozen
from returns.result import Failure, Result, Success

from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import Attempt, Cost, Usage, total_cost
from llm_effects.values.secrets import scrub
from llm_effects.values.validation import InvalidValue

UnavailableReason: TypeAlias = Literal["overloaded", "loading", "unknown_model", "breaker_open"]
TimeoutPhase: TypeAlias = Literal[
    "queue", "connect", "send", "first_content", "between_content", "attempt", "total", "server", "sink"
]
NetworkPhase: TypeAlias = Literal["dns", "connect", "refused", "reset", "protocol", "intermediary", "local"]


@final
@frozen
class Cause:
    """What lay beneath an error: the class of an exception and its scrubbed message."""

    type: str
    message: str


@frozen(kw_only=True)
class _Base:
    """Common to all errors, each where known; diagnostics do not count in comparisons.

    ``retry_after`` is in seconds. ``partial`` is the text delivered before a stream broke; ``usage`` is what the
    provider billed all the same; ``earlier`` are the errors of the attempts that came before in the same call;
    ``should_retry`` is what the provider said of asking again.
    """

    tag: ClassVar[str]

    model: str | None = None
    retry_after: float | None = None
    partial: str = ""
    provider: str | None = field(default=None, eq=False)
    status: int | None = field(default=None, eq=False)
    code: str | None = field(default=None, eq=False)
    request_id: str | None = field(default=None, eq=False)
    should_retry: bool | None = field(default=None, eq=False)
    usage: Usage | None = field(default=None, eq=False, repr=False)
    attempts: tuple[Attempt, ...] = field(default=(), eq=False, repr=False)
    earlier: "tuple[LLMError, ...]" = field(default=(), eq=False, repr=False)
    cause: Cause | None = field(default=None, eq=False)

    @property
    def cost(self) -> Cost:
        """What all attempts cost together."""
        return total_cost(attempt.cost for attempt in self.attempts)


@final
@frozen(kw_only=True)
class ModelUnavailable(_Base):
    """The model cannot answer now, or is not there at all (``unknown_model``)."""

    tag: ClassVar[str] = "ModelUnavailable"
    message: str = ""
    reason: UnavailableReason = "overloaded"


@final
@frozen(kw_only=True)
class RateLimitExceeded(_Base):
    """Too many requests or tokens. With ``quota`` the money or the plan is spent and waiting is no use."""

    tag: ClassVar[str] = "RateLimitExceeded"
    message: str = ""
    quota: bool = False


@final
@frozen(kw_only=True)
class InvalidRequest(_Base):
    """The request is wrong in itself; the message names the field and the remedy."""

    tag: ClassVar[str] = "InvalidRequest"
    message: str
    request: LLMRequest | None = field(default=None, repr=False)


@final
@frozen(kw_only=True)
class AuthenticationFailed(_Base):
    """The provider refuses the key, or what the key may do."""

    tag: ClassVar[str] = "AuthenticationFailed"
    message: str = ""


@final
@frozen(kw_only=True)
class RequestTimeout(_Base):
    """A phase took longer than its ``timeout_ms`` (milliseconds)."""

    tag: ClassVar[str] = "TimeoutError"
    timeout_ms: float | None = None
    phase: TimeoutPhase = "attempt"


@final
@frozen(kw_only=True)
class ContextTooLarge(_Base):
    """The prompt and the wanted answer do not fit: ``token_count`` tokens where ``limit`` is the window."""

    tag: ClassVar[str] = "ContextTooLarge"
    message: str = ""
    token_count: int | None = None
    limit: int | None = None


@final
@frozen(kw_only=True)
class ConfigurationError(_Base):
    """The set-up is wrong; the message says where and what to do."""

    tag: ClassVar[str] = "ConfigurationError"
    message: str


@final
@frozen(kw_only=True)
class NetworkError(_Base):
    """The bytes did not get through."""

    tag: ClassVar[str] = "NetworkError"
    message: str = ""
    phase: NetworkPhase = "reset"


@final
@frozen(kw_only=True)
class MalformedResponse(_Base):
    """A success that cannot be read, or a stream cut before its protocol's own end."""

    tag: ClassVar[str] = "MalformedResponse"
    message: str = ""


@final
@frozen(kw_only=True)
class ContentRefused(_Base):
    """A content filter or the model itself declined; ``category`` is the provider's word for why."""

    tag: ClassVar[str] = "ContentRefused"
    message: str = ""
    category: str | None = None


@final
@frozen(kw_only=True)
class BudgetExceeded(_Base):
    """An attempt of about ``estimate`` would spend more than ``limit`` (US dollars); what is reserved is ``spent``."""

    tag: ClassVar[str] = "BudgetExceeded"
    budget: str
    spent: Cost
    limit: Cost
    estimate: Cost | None = field(default=None, eq=False)


@final
@frozen(kw_only=True)
class StorageFailed(_Base):
    """A store could not do ``operation``; ``transient`` says that it may the next time."""

    tag: ClassVar[str] = "StorageFailed"
    operation: str
    message: str = ""
    transient: bool = False


@final
@frozen(kw_only=True)
class ConversationConflict(_Base):
    """Another writer took the turn first."""

    tag: ClassVar[str] = "ConversationConflict"
    conversation_id: str


@final
@frozen(kw_only=True)
class SchemaMismatch(_Base):
    """The answer does not fit the wanted type: each problem with its path, and the raw text."""

    tag: ClassVar[str] = "SchemaMismatch"
    problems: tuple[str, ...]
    raw: str = field(default="", repr=False)


@final
@frozen(kw_only=True)
class RequestFailed(_Base):
    """All candidates are spent: every attempt's error, in order."""

    tag: ClassVar[str] = "RequestFailed"
    errors: "tuple[LLMError, ...]"


LLMError: TypeAlias = (
    ModelUnavailable
    | RateLimitExceeded
    | InvalidRequest
    | AuthenticationFailed
    | RequestTimeout
    | ContextTooLarge
    | ConfigurationError
    | NetworkError
    | MalformedResponse
    | ContentRefused
    | BudgetExceeded
    | StorageFailed
    | ConversationConflict
    | SchemaMismatch
    | RequestFailed
)
"""The closed union of all errors; ``match`` on it is exhaustive."""


# Two decisions about an error, each one exhaustive match, and its one-line description.


@final
@unique
class Fallback(Enum):
    """Which other models may be tried after an error."""

    NEVER = "never"
    ANY = "any"
    LARGER_WINDOW = "larger_window"
    CHEAPER = "cheaper"
    IF_ALLOWED = "if_allowed"


UNLIMITED: Final = 1_000_000
"""As many retries as the schedule has."""


def retry_limit(error: LLMError) -> int:
    """How often the same model may be asked again after this error: 0, 1, or ``UNLIMITED``.

    A server that says whether to ask again (``x-should-retry``) knows best: at least once, or never.

    >>> retry_limit(RequestTimeout()), retry_limit(InvalidRequest(message="prompt: blank"))
    (1, 0)
    >>> retry_limit(RequestTimeout(should_retry=False)), retry_limit(ContextTooLarge(should_retry=True))
    (0, 1)
    """
    worth = _by_kind(error)
    if error.should_retry is None:
        return worth
    return max(worth, 1) if error.should_retry else 0


def _by_kind(error: LLMError) -> int:
    match error:
        case ModelUnavailable():
            return UNLIMITED if error.reason in {"overloaded", "loading"} else 0
        case RateLimitExceeded():
            return 0 if error.quota else UNLIMITED
        case NetworkError():
            return {"dns": 1, "intermediary": 0}.get(error.phase, UNLIMITED)
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
    return retry_limit(error) > 0


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


# Where exceptions become values.


def cause_of(exception: BaseException, *secrets: str) -> Cause:
    """Keep what an exception says and drop the exception, whose attributes may hold keys."""
    return Cause(type(exception).__name__, scrub(str(exception), *secrets)[:500])


_Made = TypeVar("_Made")
_Given = ParamSpec("_Given")


def checked(make: Callable[_Given, _Made], *args: _Given.args, **kwargs: _Given.kwargs) -> Result[_Made, LLMError]:
    """Make a value from data of outside: a broken rule is an ``InvalidRequest``, not an exception.

    >>> from llm_effects import LLMRequest
    >>> checked(LLMRequest, prompt="why?").map(lambda request: request.prompt)
    <Success: why?>
    >>> checked(LLMRequest, prompt=" ").failure().message
    'prompt: must not be blank: give some text, or leave it out'
    """
    try:
        return Success(make(*args, **kwargs))
    except InvalidValue as problem:
        return Failure(InvalidRequest(message=str(problem)))
