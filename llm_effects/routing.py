"""Which model is asked: a pure ranking of the configured ones.

First a filter by what a model can do, then the order of the strategy. Nothing here does I/O: the same inputs
give the same decision, which ``explain`` shows and ``generate`` follows.
"""

from collections.abc import Iterable, Mapping
from typing import Final, final

from attrs import evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config import LLMConfig, RoutingConfig, Strategy
from llm_effects.decisions import Fallback, fallback_for
from llm_effects.env import Prices, Statistics
from llm_effects.errors import LLMError
from llm_effects.fleet import targets_of
from llm_effects.providers.targets import Target
from llm_effects.requests import Allow, LLMRequest, TaskType
from llm_effects.responses import Cost, Usage
from llm_effects.suitability import LeftOut, nobody, unsuited

TASK_ORDER: Final[Mapping[TaskType, tuple[str, ...]]] = {
    TaskType.ANALYSIS: ("claude", "gpt", "local"),
    TaskType.UI_GENERATION: ("gpt", "claude", "local"),
    TaskType.CONFIG_MANAGEMENT: ("local", "gpt", "claude"),
    TaskType.GENERAL: ("local", "gpt", "claude"),
}
"""Families in the order of the balanced strategy; a task of the user's own goes as ``general``."""

EXPLORING: Final = 0.05
"""Share of the calls in which ``performance`` asks the model with the fewest attempts first, to see how it does now."""

EXPECTED_ANSWER: Final = 512
"""Tokens of an answer when nobody says, for comparing costs."""


@final
@frozen(kw_only=True)
class Candidate:
    """A model that may answer, with what its place was decided by. A lower ``score`` is asked earlier.

    Times are milliseconds, the cost is this request's estimate, ``context_length`` is tokens.
    """

    model: str
    provider: str
    family: str
    score: float = 0.0
    estimated_tokens: int = 0
    estimated_cost: Cost = Cost.UNKNOWN
    expected_latency_ms: float | None = None
    error_rate: float = 0.0
    attempts: int = 0
    context_length: int | None = None
    parked: bool = False
    last_resort: bool = field(default=False, repr=False)


@final
@frozen(kw_only=True)
class RoutingDecision:
    """The candidates in the order in which they are asked, and the models left out."""

    task_type: TaskType
    strategy: Strategy
    candidates: tuple[Candidate, ...]
    left_out: tuple[LeftOut, ...] = ()
    drawn: float = 0.0


@final
@frozen(kw_only=True)
class Facts:
    """What a decision is made of besides the request and the configuration.

    ``tokens`` is the estimate of the prompt, ``last_model`` the one a conversation used last, ``drawn`` a number from
    0 up to 1 that decides about exploring, ``now`` a time on the clock that ``Statistics.parked_until`` is on.
    """

    statistics: Mapping[str, Statistics]
    prices: Prices
    tokens: int = 0
    last_model: str | None = None
    drawn: float = 0.0
    now: float = 0.0


def route(request: LLMRequest, config: LLMConfig, facts: Facts) -> Result[RoutingDecision, LLMError]:
    """Decide which models may answer a request, and in which order."""
    targets = targets_of(config)
    if not is_successful(targets):
        return Failure(targets.failure())
    return _decide(request, targets.unwrap(), config.routing, facts)


def _decide(
    request: LLMRequest, targets: tuple[Target, ...], routing: RoutingConfig, facts: Facts
) -> Result[RoutingDecision, LLMError]:
    reasons = {target.name: unsuited(request, target, facts.tokens) for target in targets}
    left_out = tuple(LeftOut(name, reason) for name, reason in reasons.items() if reason)
    suited = [target for target in targets if not reasons[target.name]]
    if not suited:
        return Failure(nobody(request, targets, facts.tokens, left_out))
    return Success(
        RoutingDecision(
            task_type=request.task_type,
            strategy=routing.strategy,
            candidates=_ordered([_candidate(request, target, facts) for target in suited], request, routing, facts),
            left_out=left_out,
            drawn=facts.drawn,
        )
    )


def _candidate(request: LLMRequest, target: Target, facts: Facts) -> Candidate:
    known = facts.statistics.get(target.name, Statistics())
    answer = request.preferences.max_tokens or target.config.max_tokens or EXPECTED_ANSWER
    return Candidate(
        model=target.name,
        provider=target.preset.name,
        family=target.preset.family,
        estimated_tokens=facts.tokens,
        estimated_cost=facts.prices.cost(target.name, Usage(input_tokens=facts.tokens, output_tokens=answer)),
        expected_latency_ms=known.latency_ms,
        error_rate=known.error_rate,
        attempts=known.attempts,
        context_length=target.capabilities.context_length,
        parked=known.parked_until > facts.now,
        last_resort=target.config.last_resort,
    )


def _ordered(
    candidates: list[Candidate], request: LLMRequest, routing: RoutingConfig, facts: Facts
) -> tuple[Candidate, ...]:
    table = routing.tasks.get(request.task_type) or TASK_ORDER.get(request.task_type, TASK_ORDER[TaskType.GENERAL])
    exploring = facts.drawn >= 1 - EXPLORING
    scored = [evolve(each, score=_score(each, routing.strategy, table, exploring=exploring)) for each in candidates]
    # Sorting is stable: equals stay in the order of the configuration.
    first, *rest = sorted(scored, key=lambda each: (*_standing(each), each.model != facts.last_model, each.score))
    return (first, *sorted(rest, key=lambda each: (*_standing(each), _place(each, routing.fallback_order))))


def _standing(candidate: Candidate) -> tuple[bool, bool]:
    return candidate.last_resort, candidate.parked


def _score(candidate: Candidate, strategy: Strategy, table: tuple[str, ...], *, exploring: bool) -> float:
    match strategy:
        case "balanced":
            return _place(candidate, table)
        case "cost":
            return float("inf") if candidate.estimated_cost.usd is None else float(candidate.estimated_cost.usd)
        case "performance":
            return float(candidate.attempts) if exploring else _expected_wait(candidate)


def _place(candidate: Candidate, table: tuple[str, ...]) -> float:
    places = (place for place, name in enumerate(table) if name in {candidate.model, candidate.family})
    return float(next(places, len(table)))


def _expected_wait(candidate: Candidate) -> float:
    """Milliseconds until an answer if one asks again after each failure; a model without a record is tried first."""
    if candidate.expected_latency_ms is None:
        return 0.0 if candidate.error_rate == 0 else float("inf")
    return candidate.expected_latency_ms / max(1 - candidate.error_rate, 1e-9)


def left_after(
    error: LLMError, failed: Candidate, rest: Iterable[Candidate], allow: frozenset[Allow]
) -> tuple[Candidate, ...]:
    """Give the candidates that may still be tried after one failed: what ``fallback_for`` leaves of the rest."""
    match fallback_for(error):
        case Fallback.ANY:
            return tuple(rest)
        case Fallback.NEVER:
            return ()
        case Fallback.IF_ALLOWED:
            return tuple(rest) if Allow.FALLBACK_ON_REFUSAL in allow else ()
        case Fallback.LARGER_WINDOW:
            return tuple(each for each in rest if _larger(each, failed))
        case Fallback.CHEAPER:
            return tuple(each for each in rest if _cheaper(each, failed)) if Allow.CHEAPER_MODEL in allow else ()


def _larger(other: Candidate, failed: Candidate) -> bool:
    if other.context_length is None or failed.context_length is None:
        return True
    return other.context_length > failed.context_length


def _cheaper(other: Candidate, failed: Candidate) -> bool:
    mine, theirs = failed.estimated_cost.usd, other.estimated_cost.usd
    return theirs is not None and (mine is None or theirs < mine)
