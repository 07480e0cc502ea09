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

from typing import ClassVar, Literal, TypeAlias, final

from attrs import field, frozen

from llm_effects.requests import LLMRequest
from llm_effects.responses import Attempt, Cost, Usage, total_cost

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
