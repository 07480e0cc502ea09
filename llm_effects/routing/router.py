"""Which model is asked: a pure ranking of the configured ones.

First a filter by what a model can do, then the order of the strategy. Nothing here does I/O: the same inputs
give the same decision, which ``explain`` shows and ``generate`` follows.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol, TypeVar, final

from attrs import evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.config import LLMConfig
from llm_effects.config.routing import RoutingConfig
from llm_effects.providers.target import Target
from llm_effects.routing.candidates import (
    EXPECTED_ANSWER,
    Candidate,
    Filtered,
    RoutingContext,
    RoutingDecision,
    filter_candidates,
)
from llm_effects.routing.model_registry import targets_of
from llm_effects.routing.statistics import faded, kept
from llm_effects.values.errors import Fallback, LLMError, fallback_for
from llm_effects.values.records import Statistics
from llm_effects.values.requests import Allow, LLMRequest, TaskType
from llm_effects.values.responses import Cost, Usage

# A model in the order of a decision, and what is worked out of the facts about it.


_NOTHING: Final = Statistics()


@final
@frozen
class Ranked:
    """A model in its place. Its other numbers are worked out where somebody asks for them: most calls never do."""

    target: Target
    score: float
    request: LLMRequest = field(repr=False)
    facts: RoutingContext = field(repr=False)

    @property
    def model(self) -> str:
        """The model's configured name."""
        return self.target.name

    @property
    def context_length(self) -> int | None:
        """Tokens of its window, where they are known."""
        return self.target.capabilities.context_length

    @property
    def estimated_cost(self) -> Cost:
        """What this request would cost there."""
        return estimated_cost(self.request, self.target, self.facts)

    def told(self) -> Candidate:
        """Show every number."""
        source = self.facts.prices.source(self.model, self.facts.at)
        known = known_of(self.target, self.facts)
        return evolve(known, score=self.score, estimated_cost=self.estimated_cost, price_source=source)


def estimated_cost(request: LLMRequest, target: Target, facts: RoutingContext) -> Cost:
    """Estimate what a request costs at a model: its prompt, and the longest answer that it permits."""
    answer = request.preferences.max_tokens or target.config.max_tokens or EXPECTED_ANSWER
    return facts.prices.cost(target.name, Usage(input_tokens=facts.tokens, output_tokens=answer), facts.at)


def is_away(model: str, facts: RoutingContext) -> bool:
    """Whether a model asked for a pause that is not over, or is left alone by its breaker."""
    known = facts.statistics.get(model)
    cooled_down = known is not None and known.cooldown_until > facts.now
    return cooled_down or facts.opened.get(model, facts.now) > facts.now


def known_of(target: Target, facts: RoutingContext) -> Candidate:
    """Put together what is known of a model: all but its score and what a request costs there."""
    name = target.name
    known = facts.statistics.get(name, _NOTHING)
    confidence = kept(known, facts.at)
    return Candidate(
        model=name,
        provider=target.preset.name,
        family=target.preset.family,
        estimated_tokens=facts.tokens,
        expected_latency_ms=known.latency_ms,
        expected_first_content_ms=known.first_content_ms,
        expected_failure_ms=known.failure_ms,
        error_rate=faded(known.error_rate, confidence),
        confidence=confidence,
        attempts=known.attempts,
        calls_since=facts.calls - known.calls if known.attempts else 0,
        context_length=target.capabilities.context_length,
        parked_s=max(0.0, known.cooldown_until - facts.now),
        open_s=max(0.0, facts.opened.get(name, facts.now) - facts.now),
        last_resort=target.config.last_resort,
    )


# The order of the candidates: by a table of the task, by cost, or by what was measured.


TASK_ORDER: Final[Mapping[TaskType, tuple[str, ...]]] = {
    TaskType.ANALYSIS: ("claude", "gpt", "local"),
    TaskType.UI_GENERATION: ("gpt", "claude", "local"),
    TaskType.CONFIG_MANAGEMENT: ("local", "gpt", "claude"),
    TaskType.GENERAL: ("local", "gpt", "claude"),
}
"""Families in the order of the balanced strategy; a task of the user's own goes as ``general``."""

EXPLORING: Final = 0.03
"""Share of the calls in which ``performance`` gives the benefit of the doubt: more are never spent on finding out."""

DOUBT: Final = 0.1
"""Confidence at which an exploring call thinks a model twice as fast as it was."""

HALF_LIFE_CALLS: Final = 20
"""Calls to other models in which confidence halves for an exploring call, however short the time."""


def is_exploring(routing: RoutingConfig, drawn: float) -> bool:
    """Whether a call asks first who may have become better since it was last heard of."""
    return routing.strategy == "performance" and drawn >= 1 - EXPLORING


def ranked(
    request: LLMRequest, targets: Sequence[Target], routing: RoutingConfig, facts: RoutingContext
) -> tuple[Ranked, ...]:
    """Give the models in the order in which they are asked, each with its score."""
    scores = _scores(request, targets, routing, facts)
    known = [
        (_standing(each, facts), Ranked(each, score, request, facts))
        for each, score in zip(targets, scores, strict=True)
    ]
    # Sorting is stable: equals stay in the order of the configuration.
    known.sort(key=lambda each: (each[0], each[1].model != facts.last_model, each[1].score))
    if not routing.fallback_order:
        return tuple(place for _, place in known)
    (_, first), *rest = known
    place_of = _places_in(routing.fallback_order)
    rest.sort(key=lambda each: (each[0], place_of(each[1].target)))
    return (first, *(place for _, place in rest))


def _standing(target: Target, facts: RoutingContext) -> tuple[bool, bool]:
    return target.config.last_resort, is_away(target.name, facts)


def _scores(
    request: LLMRequest, targets: Sequence[Target], routing: RoutingConfig, facts: RoutingContext
) -> list[float]:
    match routing.strategy:
        case "balanced":
            task = request.task_type
            table = routing.tasks.get(task) or TASK_ORDER.get(task, TASK_ORDER[TaskType.GENERAL])
            return [*map(_places_in(table), targets)]
        case "cost":
            return [_dollars(estimated_cost(request, each, facts)) for each in targets]
        case "performance":
            known = [known_of(each, facts) for each in targets]
            trusted = trust if is_exploring(routing, facts.drawn) else _full
            waits = expected_waits(known, streamed=facts.streamed)
            return [wait * trusted(each) for each, wait in zip(known, waits, strict=True)]


def trust(candidate: Candidate) -> float:
    """What share of its expected wait a model that nobody heard of for long is still thought to take (0 to 1)."""
    confidence = candidate.confidence * math.exp2(-candidate.calls_since / HALF_LIFE_CALLS)
    return confidence / (confidence + DOUBT)


def _full(_: Candidate) -> float:
    return 1.0


def _dollars(cost: Cost) -> float:
    return math.inf if cost.usd is None else float(cost.usd)


def _places_in(table: tuple[str, ...]) -> Callable[[Target], float]:
    """Read a table of names and families: the first place that a model has in it, or after all."""
    places = {name: float(place) for place, name in reversed([*enumerate(table)])}
    last = float(len(table))
    return lambda target: min(places.get(target.name, last), places.get(target.preset.family, last))


def expected_waits(candidates: Sequence[Candidate], *, streamed: bool) -> list[float]:
    """Milliseconds until each candidate answers, if it is asked again after each failure.

    To ask in the order of the time of an attempt by its chance of success is the least expected time in all; the
    rule is known from tests that are done until one decides (Mitten, 1960). A failure counts at least as much as an
    answer: one that comes at once still costs a pause and a try. A model without a record has 0, so it is tried; one
    that only failed is thought as slow as the slowest that is known.
    """
    times = _times(candidates, streamed=streamed)
    slowest = max((time for time in times if time is not None), default=ASSUMED_MS)
    return [_wait(each, time, slowest) for each, time in zip(candidates, times, strict=True)]


ASSUMED_MS: Final = 1_000.0
"""Time of an answer while nobody has given one."""


def _times(candidates: Sequence[Candidate], *, streamed: bool) -> list[float | None]:
    """The times that matter: of streams the first content. The other ones stand in while there are none of these."""
    whole = [each.expected_latency_ms for each in candidates]
    first = [each.expected_first_content_ms for each in candidates]
    wanted, other = (first, whole) if streamed else (whole, first)
    return other if all(time is None for time in wanted) else wanted


def _wait(candidate: Candidate, time: float | None, slowest: float) -> float:
    if time is None and not candidate.error_rate:
        return 0.0
    answer = slowest if time is None else time
    failures = candidate.error_rate / max(1 - candidate.error_rate, 1e-9)
    return answer + failures * max(candidate.expected_failure_ms or 0.0, answer)


def order(request: LLMRequest, config: LLMConfig, facts: RoutingContext) -> Result[tuple[Ranked, ...], LLMError]:
    """Give the models that may answer a request in their order; nothing is worked out that does not decide it."""
    return _sieved(request, config, facts).map(lambda found: ranked(request, found.suited, config.routing, facts))


def route(request: LLMRequest, config: LLMConfig, facts: RoutingContext) -> Result[RoutingDecision, LLMError]:
    """Decide as ``order`` does, and show every number."""
    return _sieved(request, config, facts).map(lambda found: _decision(request, found, config.routing, facts))


def _sieved(request: LLMRequest, config: LLMConfig, facts: RoutingContext) -> Result[Filtered, LLMError]:
    targets = targets_of(config)
    if not is_successful(targets):
        return Failure(targets.failure())
    return filter_candidates(request, targets.unwrap(), facts.tokens)


def _decision(request: LLMRequest, found: Filtered, routing: RoutingConfig, facts: RoutingContext) -> RoutingDecision:
    return RoutingDecision(
        task_type=request.task_type,
        strategy=routing.strategy,
        candidates=tuple(each.told() for each in ranked(request, found.suited, routing, facts)),
        excluded=found.excluded,
        drawn=facts.drawn,
        exploring=is_exploring(routing, facts.drawn),
        streamed=facts.streamed,
    )


class Known(Protocol):
    """What decides who may still be tried."""

    @property
    def context_length(self) -> int | None:
        """Tokens of its window, where they are known."""
        ...

    @property
    def estimated_cost(self) -> Cost:
        """What the request would cost there."""
        ...


_Known = TypeVar("_Known", bound=Known)


def left_after(error: LLMError, failed: _Known, rest: Iterable[_Known], allow: frozenset[Allow]) -> tuple[_Known, ...]:
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


def _larger(other: Known, failed: Known) -> bool:
    if other.context_length is None or failed.context_length is None:
        return True
    return other.context_length > failed.context_length


def _cheaper(other: Known, failed: Known) -> bool:
    mine, theirs = failed.estimated_cost.usd, other.estimated_cost.usd
    return theirs is not None and (mine is None or theirs < mine)
