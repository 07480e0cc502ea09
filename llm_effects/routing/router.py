"""The model router: a pure ranking of the configured models for a request.

It excludes the models that cannot take the request, then orders the others by the strategy. Nothing here does I/O: the
same inputs give the same decision, which ``explain`` shows and ``generate`` follows.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, chain, repeat
from typing import Final, TypeAlias, final, overload

from attrs import define, evolve, field
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
from llm_effects.routing.prices import KeptRates, PriceList, saving_of_reading
from llm_effects.routing.statistics import confidence_at, expected_error_rate
from llm_effects.values.errors import LLMError
from llm_effects.values.messages import Document, Image
from llm_effects.values.records import Statistics
from llm_effects.values.requests import LLMRequest, TaskType
from llm_effects.values.responses import Cost, Usage
from llm_effects.values.validation import frozen_in_types, short_repr
from llm_effects.values.value import Value

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

SUBSETS: Final = 256
"""How many sets of the models that requests leave are kept."""

_NO_STATISTICS: Final = Statistics()
_NONE: Final = frozenset[str]()


@final
@frozen_in_types(eq=False, repr=False)
class Ranked(Value):
    """A model with its rank; its other numbers are computed on demand, since most calls never need them.

    An ``unavailable`` model is cooled down, or its circuit breaker is open.
    """

    target: Target
    position: int
    ranking: "Ranking" = field(repr=False)

    @property
    def score(self) -> float:
        """The number that decides its place."""
        return self.ranking.scores[self.position]

    @property
    def unavailable(self) -> bool:
        """Whether it is asked after all others for now."""
        return self.target.name in self.ranking.unavailable

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
        return estimated_cost(self.ranking.request, self.target, self.ranking.context)

    def to_candidate(self) -> Candidate:
        """Return the candidate with every number."""
        request, context = self.ranking.request, self.ranking.context
        source = context.prices.source(self.model, context.at)
        measured = measured_candidate(self.target, context)
        caching = describe_caching(self.target, request, context.tokens)
        kept = context.tokens if caching.startswith("yes") else 0
        saving = saving_of_reading(context.prices, self.model, kept, context.at)
        known = evolve(measured, score=self.score, estimated_cost=self.estimated_cost, price_source=source)
        return evolve(known, prompt_cache=caching, cache_saving_usd=saving)


@final
@define(eq=False)
class Ranking(Sequence[Ranked]):
    """Candidates in order, each made when it is asked for: making 100 of them takes 80 microseconds.

    ``positions`` are those of ``targets`` and ``scores``, in the order of the candidates. Nothing changes one; freezing
    it would take another microsecond of every call.
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
        return Ranked(self.targets[position], position, self)


def available(candidates: Sequence[Ranked]) -> Sequence[Ranked]:
    """Return the candidates that are neither cooled down nor behind an open circuit breaker: usually all of them."""
    if isinstance(candidates, Ranking) and not candidates.unavailable:
        return candidates
    return [each for each in candidates if not each.unavailable]


def first_of(candidates: Sequence[Ranked]) -> str:
    """Return the name of the first candidate, without making that: a microsecond less for each call."""
    if isinstance(candidates, Ranking):
        return candidates.targets[candidates.positions[0]].name
    return candidates[0].model


def order(request: LLMRequest, config: LLMConfig, context: RoutingContext) -> Result[Ranking, LLMError]:
    """Return the candidates of a request in order, computing only what decides it."""
    known = _models_of(config) if request.model is None else _named(_models_of(config), request.model)
    if _fits_everywhere(request, known, context.tokens):
        return Success(rank(request, known, config.routing, context))
    return _filter(request, config, context).map(
        lambda filtered: rank(request, _among(_models_of(config), filtered.candidates), config.routing, context)
    )


# What is the same for every call of a configuration. With 100 models it saves up to 400 microseconds a call.


_Scored: TypeAlias = tuple[Sequence[float], Sequence[int]]
"""The scores of models by their position, and the positions in their order."""


@final
@define(eq=False, repr=False)
class _Models:
    """Models that answer, and what every call would derive from them again.

    ``window`` is the smallest of their windows, and ``use_tools`` is false if one of them cannot. ``grouped`` are their
    positions with equal models side by side, ``equals`` the places in it of those that have an equal. ``answers`` are
    their tokens of an answer without ``max_tokens``. ``places`` has their positions in a table of names and families,
    ``settled`` scores and order by a table, while no load decides, and ``subsets`` the models that a request leaves.
    """

    targets: tuple[Target, ...]
    names: tuple[str, ...]
    window: float
    use_tools: bool
    grouped: tuple[int, ...]
    equals: tuple[slice, ...]
    last_resorts: frozenset[str]
    answers: tuple[int, ...]
    places: dict[tuple[str, ...], Sequence[float]] = field(factory=dict[tuple[str, ...], Sequence[float]])
    settled: dict[tuple[str, ...], _Scored] = field(factory=dict[tuple[str, ...], _Scored])
    subsets: "dict[str | tuple[Target, ...], _Models]" = field(factory=dict["str | tuple[Target, ...]", "_Models"])
    rates: KeptRates | None = None


@cached_per_config
def _models_of(config: LLMConfig) -> _Models:
    """Return the models that answer; none where one of them is misconfigured: every call fails with the problems."""
    return _models(tuple(each for each in targets_of(config).value_or(()) if not each.capabilities.embeddings))


def _models(targets: tuple[Target, ...]) -> _Models:
    windows = (each.capabilities.context_length for each in targets)
    groups = _groups(targets)
    starts = accumulate(map(len, groups), initial=0)
    return _Models(
        targets=targets,
        names=tuple(each.name for each in targets),
        window=min((window for window in windows if window is not None), default=math.inf),
        use_tools=all(each.capabilities.tools is not False for each in targets),
        grouped=tuple(chain(*groups)),
        equals=tuple(slice(at, at + len(each)) for at, each in zip(starts, groups, strict=False) if len(each) > 1),
        last_resorts=frozenset(each.name for each in targets if each.config.last_resort),
        answers=tuple(each.config.max_tokens or EXPECTED_ANSWER_TOKENS for each in targets),
    )


def _groups(targets: Sequence[Target]) -> Sequence[Sequence[int]]:
    """Return the positions of equal models together: the same provider, model and price."""
    groups = dict[Hashable, list[int]]()
    for position, target in enumerate(targets):
        groups.setdefault((target.preset.name, target.wire_model, target.config.price), []).append(position)
    return tuple(groups.values())


def _named(known: _Models, name: str) -> _Models:
    """Return the models to which a request may be pinned by a name."""
    if name in known.subsets:
        return known.subsets[name]
    named = _among(known, tuple(each for each in known.targets if name in each.names))
    if named.targets:  # a name without models may be any text: it is not kept
        known.subsets[name] = named
    return named


def _among(known: _Models, targets: tuple[Target, ...]) -> _Models:
    """Return some of the models; kept, since most requests leave the same ones."""
    if len(targets) == len(known.targets):
        return known
    if targets not in known.subsets:
        if len(known.subsets) >= SUBSETS:
            known.subsets.clear()
        known.subsets[targets] = _models(targets)
    return known.subsets[targets]


def _fits_everywhere(request: LLMRequest, known: _Models, tokens: int) -> bool:
    """Return whether every model takes a request, because it asks for nothing that one of them may lack."""
    lacking = request.tools and not known.use_tools
    special = lacking or request.stays is not None or request.response_schema is not None
    if special or not known.targets or tokens + (request.preferences.max_tokens or 0) > known.window:
        return False
    if not request.messages:
        return True
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
        candidates=tuple(each.to_candidate() for each in rank(request, _models(filtered.candidates), routing, context)),
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
    from difflib import get_close_matches

    near = get_close_matches(task.lower(), known, n=1, cutoff=0.8)
    return tuple(f"task_type: {short_repr(str(task))} is no known task: did you mean {name}?" for name in near)


def rank(request: LLMRequest, models: _Models, routing: RoutingConfig, context: RoutingContext) -> Ranking:
    """Return the models in the order in which they are asked, each with its score."""
    if len(models.targets) == 1:  # nothing to compare it with
        unavailable = frozenset(models.names) if is_unavailable(models.names[0], context) else _NONE
        return Ranking(request, context, models.targets, _scores(request, models, routing, context), (0,), unavailable)
    (scores, positions), unavailable = _by_score(request, models, routing, context), _unavailable(context)
    if context.last_model is not None or unavailable or models.last_resorts or routing.fallback_order:
        positions = _adjusted([*positions], models, routing, context.last_model, unavailable)
    return Ranking(request, context, models.targets, scores, positions, unavailable)


def _adjusted(
    positions: list[int],
    models: _Models,
    routing: RoutingConfig,
    last_model: str | None,
    unavailable: frozenset[str],
) -> Sequence[int]:
    """Return positions by score with the conversation's model first, and last resorts and unavailable ones last."""
    # Sorting is stable: models that tie keep the order of the configuration. So each key sorts within the one after it.
    if last_model in models.names:
        last = models.names.index(last_model)
        positions.remove(last)
        positions.insert(0, last)
    late = [2 * (name in models.last_resorts) + (name in unavailable) for name in models.names]
    positions.sort(key=late.__getitem__)
    if routing.fallback_order:
        fallback = _places(models, routing.fallback_order)
        positions[1:] = sorted(positions[1:], key=lambda at: (late[at], fallback[at]))
    return positions


def _by_score(request: LLMRequest, models: _Models, routing: RoutingConfig, context: RoutingContext) -> _Scored:
    """Return the scores, and the positions by them; of equal models the least busy comes first."""
    busy = models.equals and context.in_flight
    table = _table(request.task_type, routing) if routing.strategy == "balanced" and not busy else None
    settled = None if table is None else models.settled.get(table)
    if settled is not None:
        return settled
    scores = _scores(request, models, routing, context)
    positions = _by_load(models, context.in_flight) if busy else [*models.grouped]
    positions.sort(key=scores.__getitem__)
    if table is not None:
        models.settled[table] = scores, positions
    return scores, positions


def _by_load(models: _Models, in_flight: Mapping[str, int]) -> list[int]:
    """Return the positions with equal models side by side, the least busy of them first."""
    positions = [*models.grouped]
    loads = [in_flight.get(each.name, 0) / each.config.weight for each in models.targets]
    for equal in models.equals:
        positions[equal] = sorted(positions[equal], key=loads.__getitem__)
    return positions


def _unavailable(context: RoutingContext) -> frozenset[str]:
    """Return the models that are cooled down or whose circuit breaker is open: usually none."""
    now = context.now
    cooled_down = [name for name, each in context.statistics.items() if each.cooldown_until > now]
    if not cooled_down and not context.open_until:
        return _NONE
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


def _scores(request: LLMRequest, models: _Models, routing: RoutingConfig, context: RoutingContext) -> Sequence[float]:
    match routing.strategy:
        case "balanced":
            return _places(models, _table(request.task_type, routing))
        case "cost":
            return _costs(request, models, context)
        case "performance":
            waits = _known_times(models, context) or _waits(
                [_measures_of(name, context) for name in models.names], streamed=context.streamed
            )
            if is_exploring(routing, context.drawn):
                waits = [wait * _trust_of(name, context) for wait, name in zip(waits, models.names, strict=True)]
            return _shared_scores(models, waits)


def _table(task: TaskType, routing: RoutingConfig) -> tuple[str, ...]:
    """Return the names and families in the order of the balanced strategy for a task."""
    return routing.tasks.get(task) or TASK_ORDER.get(task, TASK_ORDER[TaskType.GENERAL])


def _places(models: _Models, table: tuple[str, ...]) -> Sequence[float]:
    """Return the first position of each model in a table of names and families; absent models come last."""
    if table not in models.places:
        position, last = {name: float(at) for at, name in reversed([*enumerate(table)])}.get, float(len(table))
        models.places[table] = [
            min(position(each.name, last), position(each.entry, last), position(each.preset.family, last))
            for each in models.targets
        ]
    return models.places[table]


def _shared_scores(models: _Models, scores: list[float]) -> list[float]:
    """Return the scores with equal models at the best among them, so that load decides which is asked."""
    for equal in models.equals:
        positions = models.grouped[equal]
        best = min(scores[at] for at in positions)
        for at in positions:
            scores[at] = best
    return scores


def estimated_cost(request: LLMRequest, target: Target, context: RoutingContext) -> Cost:
    """Estimate the cost of a request at a model, from its prompt and the longest answer that it permits."""
    usage = Usage(input_tokens=context.tokens, output_tokens=_longest_answer(request, target))
    return context.prices.cost(target.name, usage, context.at)


def _longest_answer(request: LLMRequest, target: Target) -> int:
    return request.preferences.max_tokens or target.config.max_tokens or EXPECTED_ANSWER_TOKENS


def _costs(request: LLMRequest, models: _Models, context: RoutingContext) -> list[float]:
    """Return the estimated cost of a request at each model, infinite if unknown."""
    prices, longest = context.prices, request.preferences.max_tokens
    if isinstance(prices, PriceList):
        if models.rates is None or not models.rates.hold(prices, context.at):
            models.rates = prices.rates(models.names, context.at)
        if context.tokens <= models.rates.most_tokens:
            return models.rates.usd(context.tokens, models.answers if longest is None else repeat(longest))
    costs = (estimated_cost(request, each, context).usd for each in models.targets)
    return [math.inf if usd is None else float(usd) for usd in costs]


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


def trust(confidence: float, calls_since: int) -> float:
    """Return the share (0 to 1) of its expected wait that an exploring call assumes of a model.

    It shrinks as the measurements of the model age, in time and in calls to other models.
    """
    left = confidence * math.exp2(-calls_since / HALF_LIFE_CALLS)
    return left / (left + DOUBT)


def _trust_of(name: str, context: RoutingContext) -> float:
    known = context.statistics.get(name, _NO_STATISTICS)
    return trust(confidence_at(known, context.at), context.calls - known.calls if known.attempts else 0)


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


def _known_times(models: _Models, context: RoutingContext) -> list[float]:
    """Return the waits of models that have all been measured and never failed, in a fifth of the time: their times."""
    statistics, streamed, waits = context.statistics, context.streamed, list[float]()
    for name in models.names:
        known = statistics.get(name, _NO_STATISTICS)
        time = known.first_content_ms if streamed else known.latency_ms
        if time is None or known.error_rate:
            return []
        waits.append(time)
    return waits


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
