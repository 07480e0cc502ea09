"""The model router: a pure ranking of the configured models for a request.

It excludes the models that cannot take the request, then orders the others by the strategy. Nothing here does I/O: the
same inputs give the same decision, which ``explain`` shows and ``generate`` follows.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import Final, Protocol, TypeAlias, TypeVar, final, overload

from attrs import evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config import LLMConfig
from llm_effects.config.routing import RoutingConfig
from llm_effects.providers.prompt_caching import describe_caching
from llm_effects.providers.registry import cached_per_config, targets_of
from llm_effects.providers.target import Target
from llm_effects.routing.candidates import (
    EXPECTED_ANSWER_TOKENS,
    Candidate,
    Filtered,
    RoutingContext,
    RoutingDecision,
    filter_candidates,
)
from llm_effects.routing.statistics import confidence_at, expected_error_rate
from llm_effects.values.display import shown
from llm_effects.values.errors import Fallback, LLMError, fallback_for
from llm_effects.values.messages import Document, Image
from llm_effects.values.records import Statistics
from llm_effects.values.requests import Allow, LLMRequest, TaskType
from llm_effects.values.responses import Cost, Usage
from llm_effects.values.validation import short_repr

TASK_ORDER: Final[Mapping[TaskType, tuple[str, ...]]] = {
    TaskType.ANALYSIS: ("claude", "gpt", "local"),
    TaskType.UI_GENERATION: ("gpt", "claude", "local"),
    TaskType.CONFIG_MANAGEMENT: ("local", "gpt", "claude"),
    TaskType.GENERAL: ("local", "gpt", "claude"),
}
"""Families in the order of the balanced strategy; a user's own task is routed as ``general``."""

EXPLORATION_RATE: Final = 0.03
"""Share of the calls in which ``performance`` explores; no more are spent on it."""

DOUBT: Final = 0.1
"""Confidence at which an exploring call expects a model to be twice as fast as it was."""

HALF_LIFE_CALLS: Final = 20
"""Calls to other models after which an exploring call halves its confidence, however short the time."""

ASSUMED_MS: Final = 1_000.0
"""Assumed time of an answer until one is measured."""

EXPLORERS: Final = 3
"""Calls in flight at a model without measurements, above which ``performance`` asks others first."""

_NO_STATISTICS: Final = Statistics()
_NONE: Final = frozenset[str]()


@final
@frozen
class Ranked:
    """A model with its rank; its other numbers are computed on demand, since most calls never need them.

    An ``unavailable`` model is cooled down, or its circuit breaker is open.
    """

    __repr__ = shown

    target: Target
    score: float
    request: LLMRequest = field(repr=False)
    context: RoutingContext = field(repr=False)
    unavailable: bool = False

    @property
    def model(self) -> str:
        """The configured name of the model."""
        return self.target.name

    @property
    def context_length(self) -> int | None:
        """Tokens of the model's window, if known."""
        return self.target.capabilities.context_length

    @property
    def estimated_cost(self) -> Cost:
        """The estimated cost of the request at this model."""
        return estimated_cost(self.request, self.target, self.context)

    def to_candidate(self) -> Candidate:
        """Return the candidate with every number."""
        source = self.context.prices.source(self.model, self.context.at)
        measured = measured_candidate(self.target, self.context)
        caching = describe_caching(self.target, self.request, self.context.tokens)
        known = evolve(measured, score=self.score, estimated_cost=self.estimated_cost, price_source=source)
        return evolve(known, prompt_cache=caching)


@final
@frozen(eq=False)
class Ranking(Sequence[Ranked]):
    """Candidates in order, each made when it is asked for: making 100 of them takes 80 microseconds.

    ``positions`` are those of ``targets`` and ``scores``, in the order of the candidates.
    """

    request: LLMRequest
    context: RoutingContext
    targets: tuple[Target, ...]
    scores: Sequence[float]
    positions: Sequence[int]
    unavailable: frozenset[str] = _NONE

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> Ranked: ...
    @overload
    def __getitem__(self, index: slice) -> "Ranking": ...
    def __getitem__(self, index: int | slice) -> "Ranked | Ranking":
        if isinstance(index, slice):
            left = self.positions[index]
            return Ranking(self.request, self.context, self.targets, self.scores, left, self.unavailable)
        position = self.positions[index]
        target = self.targets[position]
        unavailable = target.name in self.unavailable
        return Ranked(target, self.scores[position], self.request, self.context, unavailable)


def available(candidates: Sequence[Ranked]) -> Sequence[Ranked]:
    """Return the candidates that are neither cooled down nor behind an open circuit breaker: usually all of them."""
    if isinstance(candidates, Ranking) and not candidates.unavailable:
        return candidates
    return [each for each in candidates if not each.unavailable]


def order(request: LLMRequest, config: LLMConfig, context: RoutingContext) -> Result[Ranking, LLMError]:
    """Return the candidates of a request in order, computing only what decides it."""
    known = _models_of(config)
    if _fits_everywhere(request, known, context.tokens):
        return Success(_rank_known(request, known.answering, config, context))
    return _filter(request, config, context).map(
        lambda filtered: _rank_known(request, filtered.candidates, config, context)
    )


def _rank_known(
    request: LLMRequest, targets: tuple[Target, ...], config: LLMConfig, context: RoutingContext
) -> Ranking:
    if len(targets) == 1:  # nothing to compare it with
        name = targets[0].name
        unavailable = frozenset({name}) if is_unavailable(name, context) else _NONE
        return Ranking(request, context, targets, (0.0,), (0,), unavailable)
    known, routing = _models_of(config), config.routing
    settled = routing.strategy == "balanced" and known.distinct and targets is known.answering
    if not settled or context.last_model is not None or _unavailable(context):
        return rank(request, targets, routing, context, distinct=known.distinct)
    table = _table(request.task_type, routing)
    settled_order = known.balanced.get(table)
    if settled_order is None:
        ranked = rank(request, targets, routing, context, distinct=True)
        settled_order = known.balanced[table] = (ranked.scores, ranked.positions)
    return Ranking(request, context, targets, *settled_order)


# What is the same for every call of a configuration. With 100 models it saves 120 of 250 microseconds.


@final
@frozen(eq=False)
class _Models:
    """The models of a configuration that answer, the smallest of their windows, and whether no two are equal.

    There are none where one of them is misconfigured: every call then fails with the whole list of problems.
    ``balanced`` has scores and positions by the table of a task, for while all models are available.
    """

    __repr__ = shown

    answering: tuple[Target, ...]
    window: float
    distinct: bool
    balanced: dict[tuple[str, ...], tuple[Sequence[float], Sequence[int]]]


@cached_per_config
def _models_of(config: LLMConfig) -> _Models:
    answering = tuple(each for each in targets_of(config).value_or(()) if not each.capabilities.embeddings)
    windows = (each.capabilities.context_length for each in answering)
    return _Models(
        answering=answering,
        window=min((window for window in windows if window is not None), default=math.inf),
        distinct=len({*map(_identity, answering)}) == len(answering),
        balanced={},
    )


def _fits_everywhere(request: LLMRequest, known: _Models, tokens: int) -> bool:
    """Return whether every model takes a request, because it asks for nothing that one of them may lack."""
    confined = request.model is not None or request.stays is not None
    special = confined or request.tools or request.response_schema is not None
    if special or not known.answering or tokens + (request.preferences.max_tokens or 0) > known.window:
        return False
    parts = (part for message in request.messages for part in message.parts)
    return not any(isinstance(part, Image | Document) for part in parts)


def route(request: LLMRequest, config: LLMConfig, context: RoutingContext) -> Result[RoutingDecision, LLMError]:
    """Return the decision of ``order`` with every number."""
    return _filter(request, config, context).map(lambda filtered: _decision(request, filtered, config.routing, context))


def _filter(request: LLMRequest, config: LLMConfig, context: RoutingContext) -> Result[Filtered, LLMError]:
    targets = targets_of(config)
    if not is_successful(targets):
        return Failure(targets.failure())
    return filter_candidates(request, targets.unwrap(), context.tokens, proxied=context.proxied)


def _decision(
    request: LLMRequest, filtered: Filtered, routing: RoutingConfig, context: RoutingContext
) -> RoutingDecision:
    return RoutingDecision(
        task_type=request.task_type,
        strategy=routing.strategy,
        candidates=tuple(each.to_candidate() for each in rank(request, filtered.candidates, routing, context)),
        excluded=filtered.excluded,
        drawn=context.drawn,
        exploring=is_exploring(routing, context.drawn),
        streamed=context.streamed,
        warnings=task_warnings(request.task_type, routing),
    )


def task_warnings(task: TaskType, routing: RoutingConfig) -> tuple[str, ...]:
    """Return a warning if a task has neither an order of its own nor a known name, but nearly has one.

    >>> task_warnings(TaskType("anlysis"), RoutingConfig())
    ("task_type: 'anlysis' is no known task: did you mean analysis?",)
    >>> task_warnings(TaskType("triage"), RoutingConfig())
    ()
    """
    if task in TASK_ORDER or task in routing.tasks:
        return ()
    return _nearly_known(task, (*routing.tasks, *TASK_ORDER))


@lru_cache(maxsize=1024)
def _nearly_known(task: str, known: tuple[str, ...]) -> tuple[str, ...]:
    near = get_close_matches(task.lower(), known, n=1, cutoff=0.8)
    return tuple(f"task_type: {short_repr(str(task))} is no known task: did you mean {name}?" for name in near)


def rank(
    request: LLMRequest,
    targets: tuple[Target, ...],
    routing: RoutingConfig,
    context: RoutingContext,
    *,
    distinct: bool = False,
) -> Ranking:
    """Return the models in the order in which they are asked, each with its score.

    ``distinct`` models are known to have no equal, between which load would decide.
    """
    scores, unavailable = _scores(request, targets, routing, context, distinct=distinct), _unavailable(context)
    positions = [*range(len(targets))]
    first_of = {} if distinct else _first_of_equals(targets)

    def availability(at: int) -> tuple[bool, bool]:
        return targets[at].config.last_resort, targets[at].name in unavailable

    # Sorting is stable: models that tie keep the order of the configuration. So each key sorts within the one after it.
    if len(first_of) < len(targets) and first_of:
        positions.sort(key=lambda at: (first_of[_identity(targets[at])], _load(targets[at], context)))
    positions.sort(key=scores.__getitem__)
    if context.last_model is not None:
        positions.sort(key=lambda at: targets[at].name != context.last_model)
    if unavailable or any(each.config.last_resort for each in targets):
        positions.sort(key=availability)
    if routing.fallback_order:
        fallback = _positions_in(routing.fallback_order)
        positions[1:] = sorted(positions[1:], key=lambda at: (availability(at), fallback(targets[at])))
    return Ranking(request, context, targets, scores, positions, unavailable)


def _first_of_equals(targets: Sequence[Target]) -> dict[Hashable, int]:
    """Return the position of the first of each kind of equal models: the least busy of them is asked first."""
    first_of = dict[Hashable, int]()
    for position, target in enumerate(targets):
        first_of.setdefault(_identity(target), position)
    return first_of


def _identity(target: Target) -> Hashable:
    """Return what equal models have in common: provider, model and price."""
    return target.preset.name, target.wire_model, target.config.price


def _load(target: Target, context: RoutingContext) -> float:
    return context.in_flight.get(target.name, 0) / target.config.weight


def _unavailable(context: RoutingContext) -> frozenset[str]:
    """Return the models that are cooled down or whose circuit breaker is open: usually none."""
    known, now = context.statistics, context.now
    cooled_down = (name for name, each in known.items() if each.cooldown_until > now)
    return frozenset((*cooled_down, *(name for name, until in context.open_until.items() if until > now)))


def is_unavailable(model: str, context: RoutingContext) -> bool:
    """Return whether a model is cooled down or its circuit breaker is open."""
    statistics = context.statistics.get(model)
    cooled_down = statistics is not None and statistics.cooldown_until > context.now
    return cooled_down or context.open_until.get(model, context.now) > context.now


def is_exploring(routing: RoutingConfig, drawn: float) -> bool:
    """Return whether a call first asks a model that may have improved since its last attempt."""
    return routing.strategy == "performance" and drawn >= 1 - EXPLORATION_RATE


# The score of each strategy: the position in a table, the estimated cost, or the expected wait.


def _scores(
    request: LLMRequest,
    targets: Sequence[Target],
    routing: RoutingConfig,
    context: RoutingContext,
    *,
    distinct: bool,
) -> list[float]:
    match routing.strategy:
        case "balanced":
            return [*map(_positions_in(_table(request.task_type, routing)), targets)]
        case "cost":
            return _costs(request, targets, context)
        case "performance":
            waits = _known_times(targets, context) or _waits(
                [_measures_of(each.name, context) for each in targets], streamed=context.streamed
            )
            if is_exploring(routing, context.drawn):
                trusts = (trust(measured_candidate(each, context)) for each in targets)
                waits = [wait * share for wait, share in zip(waits, trusts, strict=True)]
            return waits if distinct else _shared_scores(targets, waits)


def _table(task: TaskType, routing: RoutingConfig) -> tuple[str, ...]:
    """Return the names and families in the order of the balanced strategy for a task."""
    return routing.tasks.get(task) or TASK_ORDER.get(task, TASK_ORDER[TaskType.GENERAL])


def _shared_scores(targets: Sequence[Target], scores: Sequence[float]) -> list[float]:
    """Return the scores with equal models at the best among them, so that load decides which is asked."""
    best = dict[Hashable, float]()
    for target, score in zip(targets, scores, strict=True):
        best[_identity(target)] = min(score, best.get(_identity(target), math.inf))
    return [best[_identity(target)] for target in targets]


def _positions_in(table: tuple[str, ...]) -> Callable[[Target], float]:
    """Return a function to a model's first position in a table of names and families; absent models come last."""
    position, last = _positions(table).get, float(len(table))
    return lambda target: min(
        position(target.name, last), position(target.entry, last), position(target.preset.family, last)
    )


@lru_cache(maxsize=1024)
def _positions(table: tuple[str, ...]) -> Mapping[str, float]:
    return {name: float(position) for position, name in reversed([*enumerate(table)])}


def estimated_cost(request: LLMRequest, target: Target, context: RoutingContext) -> Cost:
    """Estimate the cost of a request at a model, from its prompt and the longest answer that it permits."""
    usage = Usage(input_tokens=context.tokens, output_tokens=_longest_answer(request, target))
    return context.prices.cost(target.name, usage, context.at)


def _longest_answer(request: LLMRequest, target: Target) -> int:
    return request.preferences.max_tokens or target.config.max_tokens or EXPECTED_ANSWER_TOKENS


def _costs(request: LLMRequest, targets: Sequence[Target], context: RoutingContext) -> list[float]:
    """Return the estimated cost of a request at each model, infinite if unknown; equal usages are made once."""
    price, at, usages = context.prices.cost, context.at, dict[int, Usage]()
    costs = list[float]()
    for target in targets:
        answer = _longest_answer(request, target)
        if answer not in usages:
            usages[answer] = Usage(input_tokens=context.tokens, output_tokens=answer)
        usd = price(target.name, usages[answer], at).usd
        costs.append(math.inf if usd is None else float(usd))
    return costs


def measured_candidate(target: Target, context: RoutingContext) -> Candidate:
    """Return the candidate with all that is known of the model, but without its score and cost."""
    name = target.name
    statistics = context.statistics.get(name, _NO_STATISTICS)
    confidence = confidence_at(statistics, context.at)
    return Candidate(
        model=name,
        provider=target.preset.name,
        family=target.preset.family,
        estimated_tokens=context.tokens,
        expected_latency_ms=statistics.latency_ms,
        expected_first_content_ms=statistics.first_content_ms,
        expected_failure_ms=statistics.failure_ms,
        error_rate=expected_error_rate(statistics.error_rate, confidence),
        confidence=confidence,
        attempts=statistics.attempts,
        calls_since=context.calls - statistics.calls if statistics.attempts else 0,
        in_flight=context.in_flight.get(name, 0),
        context_length=target.capabilities.context_length,
        cooldown_s=max(0.0, statistics.cooldown_until - context.now),
        open_s=max(0.0, context.open_until.get(name, context.now) - context.now),
        last_resort=target.config.last_resort,
    )


def trust(candidate: Candidate) -> float:
    """Return the share (0 to 1) of its expected wait that an exploring call assumes of a model.

    It shrinks as the measurements of the model age, in time and in calls to other models.
    """
    confidence = candidate.confidence * math.exp2(-candidate.calls_since / HALF_LIFE_CALLS)
    return confidence / (confidence + DOUBT)


def expected_waits(candidates: Sequence[Candidate], *, streamed: bool) -> list[float]:
    """Return the milliseconds until each candidate answers, if it is asked again after each failure.

    Asking in the order of an attempt's time divided by its chance of success minimises the expected total time; the
    rule is known from tests that run until one decides (Mitten, 1960). A failure counts at least as much as an
    answer: even an immediate one costs a pause and a try. A model without measurements has 0, so it is tried; one
    that only failed is assumed to be as slow as the slowest known.
    """
    return _waits([_measures(each) for each in candidates], streamed=streamed)


_Measures: TypeAlias = tuple[float | None, float | None, float | None, float, int]
"""What is expected of a model: the times (ms) of an answer, a first content and a failure; errors; calls in flight."""


def _measures(each: Candidate) -> _Measures:
    times = each.expected_latency_ms, each.expected_first_content_ms, each.expected_failure_ms
    return (*times, each.error_rate, each.in_flight)


def _measures_of(name: str, context: RoutingContext) -> _Measures:
    """Return the measures of ``measured_candidate`` without making one: 0.5 microseconds instead of 5."""
    known = context.statistics.get(name, _NO_STATISTICS)
    errors = known.error_rate and expected_error_rate(known.error_rate, confidence_at(known, context.at))
    times = known.latency_ms, known.first_content_ms, known.failure_ms
    return (*times, errors, context.in_flight.get(name, 0))


def _known_times(targets: Sequence[Target], context: RoutingContext) -> list[float]:
    """Return the waits of models that have all been measured and never failed, in a third of the time: their times."""
    known = [context.statistics.get(target.name, _NO_STATISTICS) for target in targets]
    times = [each.first_content_ms if context.streamed else each.latency_ms for each in known if not each.error_rate]
    waits = [time for time in times if time is not None]
    return waits if len(waits) == len(targets) else []


def _waits(models: Sequence[_Measures], *, streamed: bool) -> list[float]:
    times = _expected_times(models, streamed=streamed)
    slowest = max((time for time in times if time is not None), default=ASSUMED_MS)
    return [_expected_wait(each, time, slowest) for each, time in zip(models, times, strict=True)]


def _expected_times(models: Sequence[_Measures], *, streamed: bool) -> list[float | None]:
    """Return the times that matter: of the first content for streams, else of whole answers.

    If none of that kind is known, the times of the other kind are used.
    """
    whole, first = [each[0] for each in models], [each[1] for each in models]
    preferred, other = (first, whole) if streamed else (whole, first)
    return other if all(time is None for time in preferred) else preferred


def _expected_wait(model: _Measures, time: float | None, slowest: float) -> float:
    _, _, failure, errors, in_flight = model
    if time is None and not errors:
        # Calls in flight are evidence too: only a few at once try a model without measurements.
        return 0.0 if in_flight < EXPLORERS else slowest * (1 + in_flight)
    answer = slowest if time is None else time
    return answer + errors / max(1 - errors, 1e-9) * max(failure or 0.0, answer)


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
