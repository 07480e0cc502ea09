"""The order of the candidates: by a table of the task, by cost, or by what was measured."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from llm_effects.config import RoutingConfig
from llm_effects.providers.targets import Target
from llm_effects.requests import LLMRequest, TaskType
from llm_effects.responses import Cost
from llm_effects.routing.candidates import Candidate, Facts
from llm_effects.routing.places import Ranked, estimated_cost, is_away, known_of

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


def ranked(request: LLMRequest, targets: Sequence[Target], routing: RoutingConfig, facts: Facts) -> tuple[Ranked, ...]:
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


def _standing(target: Target, facts: Facts) -> tuple[bool, bool]:
    return target.config.last_resort, is_away(target.name, facts)


def _scores(request: LLMRequest, targets: Sequence[Target], routing: RoutingConfig, facts: Facts) -> list[float]:
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
