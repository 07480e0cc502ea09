"""What a routing decision is made of, and the decision: values that show every number."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, final

from attrs import evolve, field, frozen
from returns.result import Failure, Result, Success

from llm_effects.config.routing import Strategy
from llm_effects.effects.env import Prices
from llm_effects.providers.capabilities import unsupported_media
from llm_effects.providers.json_schema import schema_problem
from llm_effects.providers.target import Target
from llm_effects.values.errors import ContextTooLarge, InvalidRequest, LLMError
from llm_effects.values.messages import Document, Image
from llm_effects.values.records import Statistics
from llm_effects.values.requests import LLMRequest, TaskType
from llm_effects.values.responses import Cost

# Which models can take a request at all: what is not known of a model passes.


@final
@frozen
class Excluded:
    """A configured model that may not answer, and why."""

    model: str
    reason: str


@final
@frozen
class Filtered:
    """Who may answer a request, in the order of the configuration, and who may not."""

    suited: tuple[Target, ...]
    excluded: tuple[Excluded, ...]


@final
@frozen
class Needs:
    """What a request asks of a model: its prompt of so many tokens, and what is ``shown`` beside text."""

    request: LLMRequest
    tokens: int
    shown: tuple[Image | Document, ...]


def needs_of(request: LLMRequest, tokens: int) -> Needs:
    """Look a request through once, for however many models there are."""
    parts = (part for message in request.messages for part in message.parts)  # a mere prompt shows nothing
    return Needs(request, tokens, tuple(part for part in parts if isinstance(part, Image | Document)))


def filter_candidates(request: LLMRequest, targets: tuple[Target, ...], tokens: int) -> Result[Filtered, LLMError]:
    """Tell the models that can take a request of so many tokens from the others; an error where there is none."""
    needs = needs_of(request, tokens)
    reasons = [(target, unsuited(needs, target)) for target in targets]
    suited = tuple(target for target, reason in reasons if not reason)
    excluded = tuple(Excluded(target.name, reason) for target, reason in reasons if reason)
    return Success(Filtered(suited, excluded)) if suited else Failure(nobody(needs, targets, excluded))


def unsuited(needs: Needs, target: Target) -> str:
    """Say why a model cannot take a request, or nothing; what is not known of it passes."""
    request, can = needs.request, target.capabilities
    if request.model is not None and request.model not in {target.name, target.wire_model}:
        return f"the request is pinned to {request.model!r}"
    if can.embeddings:
        return "it gives embeddings, not answers"
    needed = needs.tokens + (request.preferences.max_tokens or 0)
    if can.context_length is not None and needed > can.context_length:
        return f"about {needed} tokens do not fit its window of {can.context_length}"
    if request.tools and can.tools is False:
        return "it does not take tools"
    hidden = next(filter(None, (unsupported_media(target, part) for part in needs.shown)), "") if needs.shown else ""
    if hidden or request.response_schema is None:
        return hidden
    if can.schema is False:
        return "it does not take a response schema"
    return schema_problem(target, request.response_schema)


def nobody(needs: Needs, targets: tuple[Target, ...], excluded: tuple[Excluded, ...]) -> LLMError:
    """Say why nobody can take a request: no such model, a window too small for all, or else each reason."""
    request = needs.request
    names = [target.name for target in targets]
    asked = [target for target in targets if request.model in {None, target.name, target.wire_model}]
    if not asked:
        remedy = f"model: {request.model!r} is not configured; configured are {', '.join(names)}"
        return InvalidRequest(message=remedy, request=request)
    reasons = "; ".join(
        f"{each.model}: {each.reason}" for each in excluded if each.model in {one.name for one in asked}
    )
    roomier = [target for target in asked if not unsuited(needs, _with_any_window(target))]
    if roomier:
        limit = max(target.capabilities.context_length or 0 for target in roomier)
        return ContextTooLarge(token_count=needs.tokens, limit=limit, message=reasons)
    return InvalidRequest(message=f"no configured model can take this request: {reasons}", request=request)


def _with_any_window(target: Target) -> Target:
    return evolve(target, capabilities=evolve(target.capabilities, context_length=None))


EXPECTED_ANSWER: Final = 512
"""Tokens of an answer when nobody says, for comparing costs."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@final
@frozen(kw_only=True)
class Candidate:
    """A model that may answer, with what its place was decided by. A lower ``score`` is asked earlier.

    Times are milliseconds: expected of a whole answer, of the first content of a stream, and of an attempt that fails;
    ``None`` where none is known. ``error_rate`` and ``confidence`` (from 0 to 1) are of what ``attempts`` attempts
    told, faded by the time since; ``calls_since`` counts the calls that were routed since, to whatever model. The cost
    is this request's estimate, by the price of ``price_source``. ``context_length`` is tokens. A model that is
    ``cooled_down`` asked for a pause of ``parked_s`` seconds more; one that is ``open`` is left alone by its breaker, for
    ``open_s`` seconds more.
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
    context_length: int | None = None
    parked_s: float = 0.0
    open_s: float = 0.0
    last_resort: bool = field(default=False, repr=False)

    @property
    def cooled_down(self) -> bool:
        """Whether the model asked for a pause that is not over."""
        return self.parked_s > 0

    @property
    def open(self) -> bool:
        """Whether its breaker leaves the model alone."""
        return self.open_s > 0


@final
@frozen(kw_only=True)
class RoutingDecision:
    """The candidates in the order in which they are asked, and the models left out.

    ``drawn`` is the number that decided whether this call is ``exploring``: whether it asks first who may have become
    better since it was last heard of.
    """

    task_type: TaskType
    strategy: Strategy
    candidates: tuple[Candidate, ...]
    excluded: tuple[Excluded, ...] = ()
    drawn: float = 0.0
    exploring: bool = False
    streamed: bool = False


@final
@frozen(kw_only=True)
class RoutingContext:
    """What a decision is made of besides the request and the configuration.

    ``tokens`` is the estimate of the prompt, ``last_model`` the one a conversation used last, ``calls`` how many were
    routed before, ``drawn`` a number from 0 up to 1 that decides about exploring. ``opened`` tells until when breakers
    leave models alone: like ``Statistics.cooldown_until`` a time on the clock of ``now``. ``at`` is the date, for prices
    and for fading.
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
    opened: Mapping[str, float] = field(factory=dict[str, float])
