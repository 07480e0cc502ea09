"""Errors as frozen values: the closed union ``LLMError``, and what to do after each of its members.

===================== ============================================= ================================ =================
tag                   when                                          retried on the same model        next model
===================== ============================================= ================================ =================
ModelUnavailable      overloaded, loading, unknown, breaker open    if overloaded or loading         any
RateLimitExceeded     too many requests or tokens, or out of quota  unless out of quota              any
InvalidRequest        the request itself is wrong                   no                               none
AuthenticationFailed  the provider rejects the key                  no                               any
TimeoutError          a phase took too long (``RequestTimeout``)    once; not queue, sink or total   any; none for
                                                                                                     sink and total
ContextTooLarge       the prompt does not fit the window            no                               larger window
ConfigurationError    the configuration is wrong                    no                               none
NetworkError          refused, reset, no such host                  yes; dns once, intermediary no,  any
                                                                    refused if no other is left
MalformedResponse     an unreadable answer, a stream cut short      once                             any
ContentRefused        a content filter or the model refused         no                               if allowed
BudgetExceeded        a budget has too little left                  no                               cheaper
StorageFailed         a store failed                                once if transient                none
ConversationConflict  another writer changed the conversation       no                               none
SchemaMismatch        the answer does not match the schema          no                               any
RequestFailed         every candidate failed                        no                               none
===================== ============================================= ================================ =================

A server's own word (``x-should-retry``) overrides the third column.
"""

from collections.abc import Callable
from enum import Enum, unique
from typing import ClassVar, Final, Literal, ParamSpec, TypeAlias, TypeVar, assert_never, cast, final

from attrs import field, frozen
from returns.primitives.exceptions import UnwrapFailedError
from returns.result import Failure, Result, Success

from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import Attempt, Cost, Usage, total_cost
from llm_effects.values.secrets import Secret, scrub
from llm_effects.values.validation import InvalidValue, is_a, printable
from llm_effects.values.value import Value

UnavailableReason: TypeAlias = Literal[
    "overloaded",  # the server is there but cannot answer now
    "loading",  # the server is still loading the model
    "unknown_model",  # the server has no such model, or not for this key
    "unsupported",  # the model lacks a feature that this request needs
    "breaker_open",  # its circuit breaker rejects calls after too many failures
]
"""Why a model is unavailable."""

TimeoutPhase: TypeAlias = Literal[
    "queue",  # before the request is sent: waiting for a free connection or slot
    "connect",  # connecting to the server
    "send",  # sending the request
    "first_content",  # until the first piece of the answer
    "between_content",  # between two pieces of the answer
    "attempt",  # one whole attempt
    "total",  # the whole call, with retries and fallbacks
    "server",  # a time-out that the server reports
    "sink",  # the consumer of a stream
]
"""The phase of a call that took too long."""

NetworkPhase: TypeAlias = Literal[
    "dns",  # the host name does not resolve
    "connect",  # the host cannot be reached
    "refused",  # the host refused the connection
    "reset",  # the connection broke before the answer was complete
    "protocol",  # the answer is not valid HTTP, TLS or compressed data
    "intermediary",  # a proxy, or another program, answered instead of the provider
    "local",  # this machine has no descriptor, port or memory left
]
"""Where the network failed."""


@final
@frozen(eq=False, repr=False)
class Cause(Value):
    """The exception behind an error: the name of its class, and its message without secrets."""

    type: str
    message: str


@frozen(kw_only=True, eq=False, repr=False)
class _CommonFields(Value):
    """Fields of every error, each set if known; comparisons ignore those for diagnosis.

    ``retry_after`` is seconds. ``partial`` is the text delivered before a stream broke. ``usage`` is what the provider
    billed nevertheless. ``earlier`` holds the errors of previous attempts in the same call. ``should_retry`` is the
    provider's own advice.
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
        """The total cost of all attempts."""
        return total_cost(attempt.cost for attempt in self.attempts)


@final
@frozen(kw_only=True, eq=False, repr=False)
class ModelUnavailable(_CommonFields):
    """The model cannot answer now or this request (``unsupported``), or does not exist (``unknown_model``)."""

    tag: ClassVar[str] = "ModelUnavailable"
    message: str = ""
    reason: UnavailableReason = "overloaded"


@final
@frozen(kw_only=True, eq=False, repr=False)
class RateLimitExceeded(_CommonFields):
    """Too many requests or tokens. ``quota`` means that the credit or plan is used up, so waiting does not help."""

    tag: ClassVar[str] = "RateLimitExceeded"
    message: str = ""
    quota: bool = False


@final
@frozen(kw_only=True, eq=False, repr=False)
class InvalidRequest(_CommonFields):
    """The request itself is wrong; the message names the field and the remedy."""

    tag: ClassVar[str] = "InvalidRequest"
    message: str
    request: LLMRequest | None = field(default=None, repr=False)


@final
@frozen(kw_only=True, eq=False, repr=False)
class AuthenticationFailed(_CommonFields):
    """The provider rejects the key, or the key lacks a permission."""

    tag: ClassVar[str] = "AuthenticationFailed"
    message: str = ""


@final
@frozen(kw_only=True, eq=False, repr=False)
class RequestTimeout(_CommonFields):
    """A phase of the call took longer than its ``timeout_ms`` (milliseconds); ``message`` says where the time went."""

    tag: ClassVar[str] = "TimeoutError"
    message: str = field(default="", eq=False)
    timeout_ms: float | None = None
    phase: TimeoutPhase = "attempt"


@final
@frozen(kw_only=True, eq=False, repr=False)
class ContextTooLarge(_CommonFields):
    """The prompt and the expected answer do not fit: ``token_count`` tokens for a window of ``limit``."""

    tag: ClassVar[str] = "ContextTooLarge"
    message: str = ""
    token_count: int | None = None
    limit: int | None = None


@final
@frozen(kw_only=True, eq=False, repr=False)
class ConfigurationError(_CommonFields):
    """The configuration is wrong; the message names the place and the remedy."""

    tag: ClassVar[str] = "ConfigurationError"
    message: str


@final
@frozen(kw_only=True, eq=False, repr=False)
class NetworkError(_CommonFields):
    """The request or its answer did not get through the network."""

    tag: ClassVar[str] = "NetworkError"
    message: str = ""
    phase: NetworkPhase = "reset"


@final
@frozen(kw_only=True, eq=False, repr=False)
class MalformedResponse(_CommonFields):
    """A successful answer that cannot be parsed, or a stream cut before its protocol's end marker."""

    tag: ClassVar[str] = "MalformedResponse"
    message: str = ""


@final
@frozen(kw_only=True, eq=False, repr=False)
class ContentRefused(_CommonFields):
    """A content filter or the model itself refused; ``category`` is the provider's name for the reason."""

    tag: ClassVar[str] = "ContentRefused"
    message: str = ""
    category: str | None = None


@final
@frozen(kw_only=True, eq=False, repr=False)
class BudgetExceeded(_CommonFields):
    """An attempt of about ``estimate`` would exceed ``limit`` (US dollars); ``spent`` includes what is reserved."""

    tag: ClassVar[str] = "BudgetExceeded"
    budget: str
    spent: Cost
    limit: Cost
    estimate: Cost | None = field(default=None, eq=False)


@final
@frozen(kw_only=True, eq=False, repr=False)
class StorageFailed(_CommonFields):
    """A store failed in ``operation``; ``transient`` means that a retry may succeed."""

    tag: ClassVar[str] = "StorageFailed"
    operation: str
    message: str = ""
    transient: bool = False


@final
@frozen(kw_only=True, eq=False, repr=False)
class ConversationConflict(_CommonFields):
    """Another writer changed the conversation first."""

    tag: ClassVar[str] = "ConversationConflict"
    conversation_id: str


@final
@frozen(kw_only=True, eq=False, repr=False)
class SchemaMismatch(_CommonFields):
    """The answer does not match the expected type: each problem with its path, and the raw text."""

    tag: ClassVar[str] = "SchemaMismatch"
    problems: tuple[str, ...]
    raw: str = field(default="", repr=False)


@final
@frozen(kw_only=True, eq=False, repr=False)
class RequestFailed(_CommonFields):
    """Every candidate failed: the error of each attempt, in order."""

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
"""The closed union of all errors; ``match`` on it is exhaustive.

Besides its own fields, each takes the common ones, set if known: ``model``, ``provider``, ``status``, ``code``,
``request_id``; ``retry_after`` (seconds); ``partial``, the text delivered before a stream broke; ``usage``, which the
provider billed nevertheless; ``attempts`` and ``earlier``, what was sent and what failed before in the same call;
``should_retry``, the provider's own advice; ``cause``, the exception behind it.
"""

# Retry, fall back, describe: each one exhaustive match.


@final
@unique
class Fallback(Enum):
    """Which other models a call may try after an error."""

    NEVER = "never"
    ANY = "any"
    LARGER_WINDOW = "larger_window"
    CHEAPER = "cheaper"
    IF_ALLOWED = "if_allowed"


UNLIMITED: Final = 1_000_000
"""As many retries as the schedule allows."""


def retry_limit(error: LLMError) -> int:
    """Return how many retries on the same model may help after this error: 0, 1, or ``UNLIMITED``.

    The server's own advice (``x-should-retry``) takes precedence: at least one retry, or none.

    >>> retry_limit(RequestTimeout()), retry_limit(InvalidRequest(message="prompt: blank"))
    (1, 0)
    >>> retry_limit(RequestTimeout(should_retry=False)), retry_limit(ContextTooLarge(should_retry=True))
    (0, 1)
    """
    limit = _retry_limit_by_kind(error)
    if error.should_retry is None:
        return limit
    return max(limit, 1) if error.should_retry else 0


def _retry_limit_by_kind(error: LLMError) -> int:
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
    """Return whether a retry on the same model may help.

    >>> is_retryable(RateLimitExceeded(retry_after=2.0)), is_retryable(RateLimitExceeded(quota=True))
    (True, False)
    """
    return retry_limit(error) > 0


def fallback_for(error: LLMError) -> Fallback:
    """Return which of the other candidates the call may try.

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


@final
@unique
class Blame(Enum):
    """The culprit that an error points to."""

    SERVER = "server"
    """The server or the network does not work. Circuit breakers and statistics count it."""
    MODEL = "model"
    """The server works, but this model did not answer: its limits, its key, its output. Statistics count it."""
    REQUEST = "request"
    """The request. Another one may be answered, so it says nothing about the model."""
    OURSELVES = "ourselves"
    """This process: its limits, its deadline, its configuration, its stores. It says nothing about the model."""


def blame_for(error: LLMError) -> Blame:
    """Return the culprit that an error points to. Circuit breakers, statistics and cooldowns judge by it.

    >>> errors = (NetworkError(phase="reset"), NetworkError(phase="local"), ModelUnavailable(status=503))
    >>> [blame_for(error).value for error in errors]
    ['server', 'ourselves', 'server']
    >>> blame_for(RateLimitExceeded(status=429)).value, blame_for(RequestTimeout(phase="queue")).value
    ('model', 'ourselves')
    """
    match error:
        case NetworkError():
            return Blame.OURSELVES if error.phase == "local" else Blame.SERVER
        case RequestTimeout():
            return Blame.OURSELVES if error.phase in {"queue", "sink", "total"} else Blame.SERVER
        case ModelUnavailable():
            return _blame_for_absence(error)
        case RateLimitExceeded():
            return Blame.OURSELVES if error.status is None and error.should_retry is False else Blame.MODEL
        case AuthenticationFailed() | MalformedResponse() | SchemaMismatch():
            return Blame.MODEL
        case InvalidRequest() | ContextTooLarge() | ContentRefused():
            return Blame.REQUEST
        case ConfigurationError() | BudgetExceeded() | StorageFailed() | ConversationConflict() | RequestFailed():
            return Blame.OURSELVES
        case _:
            assert_never(error)


def _blame_for_absence(error: ModelUnavailable) -> Blame:
    if error.reason == "breaker_open":
        return Blame.OURSELVES
    if error.reason == "unsupported":
        return Blame.REQUEST
    return Blame.SERVER if error.reason == "overloaded" and (error.status or 0) >= 500 else Blame.MODEL


def was_sent(error: LLMError) -> bool:
    """Return whether the request may have reached the server, which may then have counted it.

    >>> was_sent(NetworkError(phase="reset")), was_sent(NetworkError(phase="refused"))
    (True, False)
    """
    match error:
        case NetworkError():
            return error.phase not in {"dns", "connect", "refused", "local"}
        case RequestTimeout():
            return error.phase not in {"queue", "connect"}
        case InvalidRequest() | ConfigurationError():
            return error.status is not None
        case BudgetExceeded() | StorageFailed():  # a layer refused it
            return False
        case _:
            return True


def describe(error: LLMError) -> str:
    r"""Return one line for people: the tag, the model and what happened.

    >>> describe(NetworkError(model="lm-studio", message="connection refused", phase="refused"))
    'NetworkError (lm-studio): connection refused'
    >>> describe(ConfigurationError(message="The environment has 1 problem:\nmodels.a: is missing"))
    'ConfigurationError: The environment has 1 problem: models.a: is missing'
    """
    where = f" ({error.model})" if error.model else ""
    message = _one_line(_message(error))
    return f"{error.tag}{where}: {message}" if message else f"{error.tag}{where}"


def _one_line(text: str) -> str:
    """Return lines as one: a heading goes on with what follows it, other lines are parts of a list."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines).replace(":; ", ": ")


def _message(error: LLMError) -> str:
    match error:
        case RequestTimeout():
            limit = "" if error.timeout_ms is None else f" after {error.timeout_ms:g} ms"
            return f"{error.phase} timed out{limit}" + (f": {error.message}" if error.message else "")
        case BudgetExceeded():
            needed = "" if error.estimate is None else f", and this takes about {error.estimate}"
            return f"{error.budget}: {error.spent} of {error.limit} spent{needed}"
        case ConversationConflict():
            return f"conversation {error.conversation_id!r} was changed by another writer"
        case SchemaMismatch():
            return "; ".join(map(printable, error.problems))
        case RequestFailed():
            return "; ".join(dict.fromkeys(describe(each) for each in error.errors))  # each sentence once
        case StorageFailed():
            return f"{error.operation}: {error.message}" if error.message else f"{error.operation} failed"
        case ModelUnavailable():
            return error.message or error.reason.replace("_", " ")
        case ContentRefused():
            return error.message or error.category or ""
        case RateLimitExceeded():
            return error.message or ("the quota is used up" if error.quota else "too many requests")
        case _:
            return error.message


def _unwrap_message(failed: UnwrapFailedError) -> str:
    container = cast("object", failed.halted_container)  # pyright: ignore[reportUnknownMemberType]
    error = cast("Failure[object]", container).failure() if isinstance(container, Failure) else None
    return describe(cast("LLMError", error)) if isinstance(error, _CommonFields) else Exception.__str__(failed)


# ``returns`` raises this exception without a message when ``unwrap`` meets a failure. An error value is no exception,
# so it cannot be the cause; the exception that holds the error says its sentence instead. Others stay as they are.
UnwrapFailedError.__str__ = _unwrap_message  # type: ignore[method-assign,assignment]


# Exceptions to values.


def cause_of(exception: BaseException, *secrets: str | Secret) -> Cause:
    """Return the class and message of an exception without secrets; its attributes, which may hold keys, are lost."""
    return Cause(type(exception).__name__, scrub(printable(str(exception)), *secrets)[:500])


_Value = TypeVar("_Value")
_Params = ParamSpec("_Params")


def checked(make: Callable[_Params, _Value], *args: _Params.args, **kwargs: _Params.kwargs) -> Result[_Value, LLMError]:
    """Create a value from external data; an invalid value is an ``InvalidRequest``, not an exception.

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


def request_of(request: str | LLMRequest) -> Result[LLMRequest, LLMError]:
    """Return a request as it is, and a text as the prompt of one.

    >>> request_of("why?").map(lambda request: request.prompt)
    <Success: why?>
    >>> request_of(" ").failure().message
    'prompt: must not be blank: give some text, or leave it out'
    """
    if isinstance(request, LLMRequest):
        return Success(request)
    if is_a(request, str):
        return checked(LLMRequest, prompt=request)
    remedy = f"request: must be a text or an LLMRequest, not {type(request).__name__}: write LLMRequest(prompt=...)"
    return Failure(InvalidRequest(message=remedy))
