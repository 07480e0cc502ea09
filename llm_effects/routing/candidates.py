"""Routing decisions as values, the filter of models that cannot take a request, and what is left after a failure."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, Protocol, TypeVar, final

from attrs import evolve, field, frozen
from returns.result import Failure, Result, Success

from llm_effects.config.routing import Strategy
from llm_effects.effects.env import Prices
from llm_effects.providers.capabilities import unsupported_media
from llm_effects.providers.registry import must_stay, why_it_leaves
from llm_effects.providers.target import Target
from llm_effects.values.display import escaped, milliseconds, names, table
from llm_effects.values.errors import ContextTooLarge, Fallback, InvalidRequest, LLMError, fallback_for
from llm_effects.values.messages import Document, Image
from llm_effects.values.records import Statistics
from llm_effects.values.requests import Allow, LLMRequest, TaskType
from llm_effects.values.responses import Cost
from llm_effects.values.validation import frozen_in_types
from llm_effects.values.value import Value

EXPECTED_ANSWER_TOKENS: Final = 512
"""Tokens of an answer without ``max_tokens``, for cost estimates."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@final
@frozen_in_types(kw_only=True, eq=False, repr=False)
class RoutingContext(Value):
    """The inputs of a decision besides the request and the configuration.

    ``tokens`` is the estimate of the prompt, ``last_model`` the model that its conversation used last, ``calls`` the
    number of calls routed before, and ``drawn`` a number from 0 up to 1 that decides about exploring. ``open_until``
    is until when circuit breakers are open; like ``Statistics.cooldown_until`` it is on the clock of ``now``. ``at``
    is the date, for prices and for the decay of statistics. ``in_flight`` counts the calls under way by model, and
    ``proxied`` is whether requests go through a proxy on another machine.
    """

    statistics: Mapping[str, Statistics]
    prices: Prices
    tokens: int = 0
    last_model: str | None = None
    calls: int = 0
    drawn: float = 0.0
    now: float = 0.0
    at: datetime = EPOCH
    streamed: bool = False
    open_until: Mapping[str, float] = field(factory=dict[str, float])
    in_flight: Mapping[str, int] = field(factory=dict[str, int])
    proxied: bool = False


@final
@frozen(kw_only=True, eq=False, repr=False)
class Candidate(Value):
    """A model that may answer, with the numbers that decided its rank; a lower ``score`` is asked earlier.

    Times are expected milliseconds of a whole answer, of the first content of a stream, and of a failed attempt;
    ``None`` if unknown. ``error_rate`` and ``confidence`` (from 0 to 1) come from ``attempts`` attempts and decay with
    time; ``calls_since`` counts the calls routed since then, to any model, and ``in_flight`` those under way here.
    ``estimated_cost`` is for this request, at the price of ``price_source`` without a prompt cache; ``prompt_cache``
    says whether the provider would cache the beginning of the prompt, and why not, and ``cache_saving_usd`` what each
    later request that begins with it then saves; 0 if the price is unknown. ``context_length`` is tokens.
    A ``cooled_down`` model asked for a pause that lasts ``cooldown_s`` more seconds; the circuit breaker of an ``open``
    model stays open for ``open_s`` more seconds.
    """

    model: str
    provider: str
    family: str
    score: float = 0.0
    estimated_tokens: int = 0
    estimated_cost: Cost = Cost.UNKNOWN
    price_source: str = ""
    expected_latency_ms: float | None = None
    expected_first_content_ms: float | None = None
    expected_failure_ms: float | None = None
    error_rate: float = 0.0
    confidence: float = 0.0
    attempts: int = 0
    calls_since: int = 0
    in_flight: int = 0
    context_length: int | None = None
    cooldown_s: float = 0.0
    open_s: float = 0.0
    last_resort: bool = field(default=False, repr=False)
    prompt_cache: str = field(default="", repr=False)
    cache_saving_usd: Decimal = field(default=Decimal(0), repr=False)

    @property
    def cooled_down(self) -> bool:
        """Whether the model asked for a pause that is not over."""
        return self.cooldown_s > 0

    @property
    def open(self) -> bool:
        """Whether the circuit breaker of the model is open."""
        return self.open_s > 0


@final
@frozen(eq=False, repr=False)
class Excluded(Value):
    """A configured model that cannot take a request, and the reason."""

    model: str
    reason: str


@final
@frozen(kw_only=True, eq=False, repr=False)
class RoutingDecision(Value):
    """The candidates in the order in which they are asked, and the excluded models.

    ``drawn`` is the number that decided whether this call is ``exploring``: whether it first asks a model that may have
    improved since its last attempt. ``warnings`` name what is probably a mistake.
    """

    task_type: TaskType
    strategy: Strategy
    candidates: tuple[Candidate, ...] = field(repr=names)
    excluded: tuple[Excluded, ...] = field(default=(), repr=names)
    drawn: float = 0.0
    exploring: bool = False
    streamed: bool = False
    warnings: tuple[str, ...] = ()

    def _repr_markdown_(self) -> str:
        heading = f"*{escaped(self.task_type)}, by {escaped(self.strategy)}*"
        candidates = table(
            ("model", "score", "tokens", "cost", "latency", "errors", "notes"), map(_candidate_row, self.candidates)
        )
        excluded = [f"- {escaped(each.model)}: {escaped(each.reason)}" for each in self.excluded]
        warnings = [f"- {escaped(each)}" for each in self.warnings]
        return "\n\n".join(filter(None, [heading, candidates, "\n".join(excluded), "\n".join(warnings)]))


def _candidate_row(each: Candidate) -> tuple[object, ...]:
    saving = f", which saves ${each.cache_saving_usd:f} of each later request" if each.cache_saving_usd else ""
    notes = (
        f"cooled down for {each.cooldown_s:.0f} s" if each.cooled_down else "",
        f"circuit breaker open for {each.open_s:.0f} s" if each.open else "",
        "last resort" if each.last_resort else "",
        f"prompt cache: {each.prompt_cache}{saving}" if each.prompt_cache.startswith("yes") else "",
    )
    numbers = (f"{each.score:.4g}", each.estimated_tokens, each.estimated_cost, milliseconds(each.expected_latency_ms))
    return (each.model, *numbers, f"{each.error_rate:.0%}" if each.attempts else None, "; ".join(filter(None, notes)))


# The filter: an unknown capability passes.


@final
@frozen(eq=False, repr=False)
class Filtered(Value):
    """The models that can take a request, in the order of the configuration, and the excluded ones."""

    candidates: tuple[Target, ...]
    excluded: tuple[Excluded, ...]


@final
@frozen(eq=False, repr=False)
class _Requirements(Value):
    """The requirements of a request: a window for ``tokens``, support for its ``attachments``, and where it stays."""

    request: LLMRequest
    tokens: int
    attachments: tuple[Image | Document, ...]
    proxied: bool


def _requirements_of(request: LLMRequest, tokens: int, proxied: bool) -> _Requirements:
    parts = (part for message in request.messages for part in message.parts)  # a bare prompt has no attachments
    return _Requirements(request, tokens, tuple(part for part in parts if isinstance(part, Image | Document)), proxied)


def filter_candidates(
    request: LLMRequest, targets: tuple[Target, ...], tokens: int, *, proxied: bool = False
) -> Result[Filtered, LLMError]:
    """Separate the models that can take a request of ``tokens`` tokens from the others; fail if there is none."""
    requirements = _requirements_of(request, tokens, proxied)
    reasons = [(target, _exclusion_reason(requirements, target)) for target in targets]
    candidates = tuple(target for target, reason in reasons if not reason)
    excluded = tuple(Excluded(target.name, reason) for target, reason in reasons if reason)
    return Success(Filtered(candidates, excluded)) if candidates else Failure(_no_candidate(requirements, reasons))


def _exclusion_reason(requirements: _Requirements, target: Target) -> str:
    """Return why a model cannot take a request, or an empty string."""
    request, can = requirements.request, target.capabilities
    if request.model is not None and request.model not in target.names:
        return f"the request is pinned to {request.model!r}"
    if can.embeddings:
        return "it returns embeddings, not answers"
    if request.stays is not None and (why := why_it_leaves(target, proxied=requirements.proxied)):
        return f"{why}, and this request stays on this machine"
    needed = requirements.tokens + (request.preferences.max_tokens or 0)
    if can.context_length is not None and needed > can.context_length:
        return f"about {needed} tokens do not fit its window of {can.context_length}"
    if request.tools and can.tools is False:
        return "it does not support tools"
    attachments = requirements.attachments
    unsupported = (
        next(filter(None, (unsupported_media(target, each) for each in attachments)), "") if attachments else ""
    )
    if unsupported or request.response_schema is None:
        return unsupported
    return _schema_problem(target, request.response_schema)


def _schema_problem(target: Target, schema: Mapping[str, object]) -> str:
    if target.capabilities.schema is False:
        return "it does not support a response schema"
    from llm_effects.providers.json_schema import schema_problem  # 3 ms, for requests of typed answers alone

    return schema_problem(target, schema)


def _no_candidate(requirements: _Requirements, reasons: list[tuple[Target, str]]) -> LLMError:
    """Return the error of a request without candidates: unknown model, window too small, or every reason."""
    request = requirements.request
    matching = [(each, reason) for each, reason in reasons if request.model is None or request.model in each.names]
    if not matching:
        names = ", ".join(target.name for target, _ in reasons)
        message = f"model: {request.model!r} is not configured; configured are {names}"
        return InvalidRequest(message=message, request=request)
    if request.stays is not None:
        answering = [each for each, _ in matching if not each.capabilities.embeddings]
        leaving = {each.name: why_it_leaves(each, proxied=requirements.proxied) for each in answering}
        if leaving and all(leaving.values()):
            return must_stay(leaving)
    explanation = "; ".join(f"{target.name}: {reason}" for target, reason in matching)
    too_small = [each for each, _ in matching if not _exclusion_reason(requirements, _without_window(each))]
    if too_small:
        limit = max(target.capabilities.context_length or 0 for target in too_small)
        return ContextTooLarge(token_count=requirements.tokens, limit=limit, message=explanation)
    return InvalidRequest(message=f"no configured model can take this request: {explanation}", request=request)


def _without_window(target: Target) -> Target:
    return evolve(target, capabilities=evolve(target.capabilities, context_length=None))


# Fallback: the candidates that remain after a failure.


class FallbackCandidate(Protocol):
    """The properties of a candidate that decide whether it may be tried after another one failed."""

    @property
    def context_length(self) -> int | None:
        """Tokens of the model's window, if known."""
        ...

    @property
    def estimated_cost(self) -> Cost:
        """The estimated cost of the request at this model."""
        ...


_Candidate = TypeVar("_Candidate", bound=FallbackCandidate)


def fallbacks_after(
    error: LLMError, failed: _Candidate, rest: Iterable[_Candidate], allow: frozenset[Allow]
) -> tuple[_Candidate, ...]:
    """Return the candidates of ``rest`` that may be tried after ``failed``, as ``fallback_for`` decides."""
    match fallback_for(error):
        case Fallback.ANY:
            return tuple(rest)
        case Fallback.NEVER:
            return ()
        case Fallback.IF_ALLOWED:
            return tuple(rest) if Allow.FALLBACK_ON_REFUSAL in allow else ()
        case Fallback.LARGER_WINDOW:
            return tuple(each for each in rest if _is_larger(each, failed))
        case Fallback.CHEAPER:
            return tuple(each for each in rest if _is_cheaper(each, failed)) if Allow.CHEAPER_MODEL in allow else ()


def _is_larger(other: FallbackCandidate, failed: FallbackCandidate) -> bool:
    if other.context_length is None or failed.context_length is None:
        return True
    return other.context_length > failed.context_length


def _is_cheaper(other: FallbackCandidate, failed: FallbackCandidate) -> bool:
    failed_usd, other_usd = failed.estimated_cost.usd, other.estimated_cost.usd
    return other_usd is not None and (failed_usd is None or other_usd < failed_usd)
