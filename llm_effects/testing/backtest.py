"""Backtests: the calls of a ledger, replayed in virtual time under another configuration, and old against new."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from importlib.util import find_spec
from itertools import count, groupby
from random import Random
from typing import ClassVar, Final, TypeAlias, final

import anyio
import anyio.to_thread
from attrs import define, evolve, field, frozen
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config import LLMConfig
from llm_effects.config.models import ModelConfig
from llm_effects.effects.call import Call, Timers, opening_of
from llm_effects.effects.effect import Answer, Effect, effect, result_of, run
from llm_effects.effects.env import Ledger, LLMEnv
from llm_effects.effects.tasks import task_group
from llm_effects.pipeline import run_call, standard_pipeline
from llm_effects.providers.registry import targets_of
from llm_effects.reports.backtests import Backtest, Estimate, Figures
from llm_effects.reports.usage import PAGE
from llm_effects.routing.prices import price_list
from llm_effects.testing.simulation.runs import memory_env
from llm_effects.testing.simulation.world import drawn
from llm_effects.testing.virtual_time import run_seeded
from llm_effects.values.errors import (
    AuthenticationFailed,
    BudgetExceeded,
    ConfigurationError,
    ContentRefused,
    ContextTooLarge,
    InvalidRequest,
    LLMError,
    MalformedResponse,
    ModelUnavailable,
    NetworkError,
    RateLimitExceeded,
    RequestFailed,
    RequestTimeout,
)
from llm_effects.values.events import StreamEvent, TextDelta
from llm_effects.values.messages import Text
from llm_effects.values.records import LedgerRow, ModelHealth
from llm_effects.values.requests import CachePolicy, LLMRequest
from llm_effects.values.responses import CANCELLED, SUCCESS, Attempt, LLMResponse, Usage
from llm_effects.values.tokens import estimate_tokens

NEAREST: Final = 5
"""How many attempts at a model are candidates for the outcome of a new one: those nearest in time."""

AROUND: Final = 20
"""How many of the nearest attempts may show how long one that was cut off would have taken."""

RESAMPLES: Final = 1_000
"""How many resamples the confidence intervals come from; of more than two thousand calls there are fewer."""

FEWEST_RESAMPLES: Final = 200
"""The fewest resamples: those of ten thousand calls take about three seconds."""

RESAMPLED: Final = 2_000_000
"""How many calls all resamples have together, above the fewest."""

BLOCK: Final = 20
"""How many consecutive calls are resampled together, as neighbours share what went wrong; fewer of less than 400."""

CONFIDENCE: Final = 0.95
"""The share of the resamples within an interval."""


def backtest(
    config: LLMConfig,
    since: datetime | None = None,
    *,
    until: datetime | None = None,
    ledger: Ledger | None = None,
    seed: int = 0,
) -> Effect[Backtest]:
    """Replay the calls of a ledger under another configuration, through the whole pipeline in virtual time.

    ``ledger`` is the environment's, if none is given. Each call comes at its time, with its tokens, task, owner and
    tags. An attempt at a model ends as the same call's attempt there did, or else as one of the five at that model that
    are nearest in time. Nothing is predicted for models of which the ledger has no attempt; they are matched by name.
    Intervals hold 95 % of 1,000 resamples of the calls (200, if there are many), with replacement, in blocks of up to
    20 consecutive calls. Attempts whose cost is unknown count for nothing: ``unpriced`` names their models.

    A ledger without a call in the period is an ``InvalidRequest``, and so are times without a time zone; a model that
    is not configured completely, and a missing trio, are a ``ConfigurationError``.

    >>> import anyio
    >>> from llm_effects import LLMConfig, ModelConfig, generate, run, scripted_env, then
    >>> env = scripted_env("because")
    >>> tested = then(generate("why?"), lambda _: backtest(env.config))
    >>> result = anyio.run(run, tested, env).unwrap()
    >>> result.calls, result.new.answered.value, result.untried
    (1, 1.0, ())
    """

    async def tested(env: LLMEnv) -> Result[Backtest, LLMError]:
        problem = _problem(config, since, until)
        rows = Failure(problem) if problem is not None else await _rows(ledger or env.ledger, since, until)
        if not is_successful(rows):
            return Failure(rows.failure())
        calls = past_calls(rows.unwrap())
        if not calls:
            return Failure(InvalidRequest(message="since: the ledger has no call in this period"))
        return Success(await anyio.to_thread.run_sync(partial(_tested, config, calls, seed)))

    return effect(tested)


def _problem(config: LLMConfig, since: datetime | None, until: datetime | None) -> LLMError | None:
    for name, time in (("since", since), ("until", until)):
        if time is not None and time.tzinfo is None:
            return InvalidRequest(message=f"{name}: must have a time zone, such as datetime.now(UTC)")
    if find_spec("trio") is None:  # virtual time is its
        return ConfigurationError(message="backtests need trio: pip install trio")
    targets = targets_of(config)
    return None if is_successful(targets) else targets.failure()


async def _rows(ledger: Ledger, since: datetime | None, until: datetime | None) -> Result[list[LedgerRow], LLMError]:
    rows, first = list[LedgerRow](), None
    while True:
        page = await result_of(ledger.rows(since, until, before=first, newest=PAGE))
        if not is_successful(page):
            return Failure(page.failure())
        rows[:0] = page.unwrap()
        if len(page.unwrap()) < PAGE:
            return Success(rows)
        first = rows[0]


# The past: calls, and the attempts at each model in the order of time.


@final
@frozen(kw_only=True)
class PastCall:
    """A call as the ledger knows it: its attempts in order, and when it came."""

    number: int
    came: datetime
    rows: tuple[LedgerRow, ...]

    @property
    def prompt_tokens(self) -> int | None:
        """The tokens of its prompt, if a provider counted them."""
        counted = (row.attempt.usage.prompt_tokens for row in self.rows)
        return next((tokens for tokens in counted if tokens), None)

    @property
    def streamed(self) -> bool:
        """Whether it was a stream, as far as an attempt shows."""
        return any(row.attempt.first_content_ms is not None for row in self.rows)


def past_calls(rows: Iterable[LedgerRow]) -> tuple[PastCall, ...]:
    """Return the calls behind some rows, in the order in which they came."""
    by_call = groupby(sorted(rows, key=lambda row: (row.call_id, row.at)), key=lambda row: row.call_id)
    groups = sorted((tuple(each) for _, each in by_call), key=lambda group: began(group[0]))
    return tuple(
        PastCall(number=number, came=began(group[0]) - _waited(group[0]), rows=group)
        for number, group in enumerate(groups)
    )


def began(row: LedgerRow) -> datetime:
    """Return when an attempt was sent."""
    return row.at - timedelta(milliseconds=row.attempt.latency_ms)


def _waited(row: LedgerRow) -> timedelta:
    return timedelta(milliseconds=row.attempt.wait_ms)


@final
@frozen
class Past:
    """The attempts at one model, in the order of time."""

    times: tuple[datetime, ...]
    attempts: tuple[Attempt, ...]

    @classmethod
    def of(cls, rows: Iterable[LedgerRow]) -> Past:
        """Collect the attempts of some rows."""
        ordered = sorted(rows, key=began)
        return cls(tuple(map(began, ordered)), tuple(row.attempt for row in ordered))

    def near(self, at: datetime, draw: Random) -> Attempt:
        """Return one of the attempts that are nearest to a time."""
        return draw.choice(self._nearest(at, NEAREST))

    def longer(self, ms: float, at: datetime, draw: Random) -> Attempt | None:
        """Return one of the successes near a time that took longer than an attempt that was cut off, if any did."""
        longer = [each for each in self._nearest(at, AROUND) if each.succeeded and each.latency_ms >= ms]
        return draw.choice(longer) if longer else None

    def _nearest(self, at: datetime, size: int) -> list[Attempt]:
        place = bisect_left(self.times, at)
        around = range(max(0, place - size), min(len(self.times), place + size))
        nearest = sorted(around, key=lambda each: abs(self.times[each] - at))[:size]
        return [self.attempts[each] for each in nearest]


def pasts_of(calls: Iterable[PastCall]) -> Mapping[str, Past]:
    """Return the attempts at each model."""
    rows = sorted((row for call in calls for row in call.rows), key=lambda row: row.attempt.model)
    return {model: Past.of(each) for model, each in groupby(rows, key=lambda row: row.attempt.model)}


# The models of a backtest: each ends as the ledger says.

_UNTRIED: Final = ConfigurationError(message="the ledger has no attempt at this model")

_ERRORS: Final[Mapping[str, LLMError]] = {
    ModelUnavailable.tag: ModelUnavailable(reason="overloaded", status=503),
    RateLimitExceeded.tag: RateLimitExceeded(status=429),
    AuthenticationFailed.tag: AuthenticationFailed(status=401),
    NetworkError.tag: NetworkError(phase="reset"),
    MalformedResponse.tag: MalformedResponse(),
    ContentRefused.tag: ContentRefused(),
    ContextTooLarge.tag: ContextTooLarge(),
}
"""An error for each outcome; the rest counts as a broken answer."""

_PIECE_S: Final = 0.25
"""How often a replayed stream delivers a piece, in seconds; the ledger does not know its pieces."""


@final
@define(eq=False)
class PastModels:
    """Clients whose attempts end as those of the past, and which note what the past does not show."""

    keeps_time: ClassVar[bool] = True

    config: LLMConfig
    calls: Sequence[PastCall]
    pasts: Mapping[str, Past]
    seed: int
    left_out: set[int] = field(factory=set[int])
    untried: set[str] = field(factory=set[str])
    cut_off: int = 0
    _used: dict[tuple[int, str], int] = field(factory=dict[tuple[int, str], int])

    def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
        """Answer or fail as in the past."""
        return FutureResult(self.answer(call))

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        """Report a healthy model."""
        return FutureResult.from_value(ModelHealth(model=name, provider=model.provider, reachable=True, ready=True))

    async def answer(self, call: Call) -> Answer:
        """Answer or fail as in the past, without a future."""
        past = self.calls[int(call.request.metadata[_NUMBER])]
        if call.model not in self.pasts:
            self.left_out.add(past.number)
            self.untried.add(call.model)
            return Failure(evolve(_UNTRIED, model=call.model))
        attempt = self._attempt(past, call.model)
        timers = Timers(self.config.models[call.model], call.attempt.record, call.sink is not None)
        with timers.scope:
            timers.start()
            return await _replay(attempt, call, timers)
        return Failure(evolve(timers.expired(), model=call.model))

    def _attempt(self, past: PastCall, model: str) -> Attempt | None:
        """Return how an attempt ends: as the call's own there, or one near; ``None`` if it never does."""
        number = self._used[past.number, model] = self._used.get((past.number, model), -1) + 1
        own = [row.attempt for row in past.rows if row.attempt.model == model]
        draw, at = drawn(self.seed, past.number, model, number), self.calls[0].came + _clock()
        attempt = own[number] if number < len(own) else self.pasts[model].near(at, draw)
        if attempt.outcome not in {CANCELLED, RequestTimeout.tag}:
            return attempt
        self.cut_off += 1
        return self.pasts[model].longer(attempt.latency_ms, at, draw)


def _clock() -> timedelta:
    return timedelta(seconds=anyio.current_time())


async def _replay(attempt: Attempt | None, call: Call, timers: Timers) -> Answer:
    if attempt is None:
        await anyio.sleep(math.inf)
    elif attempt.outcome == SUCCESS and call.sink is not None:
        await _stream(attempt, call, timers)
    else:
        await anyio.sleep(attempt.latency_ms / 1000)
    if attempt is None or attempt.outcome != SUCCESS:
        outcome = "" if attempt is None else attempt.outcome
        return Failure(evolve(_ERRORS.get(outcome, MalformedResponse()), model=call.model))
    usage = evolve(attempt.usage, input_tokens=_input_tokens(attempt.usage, call.request))
    return Success(
        LLMResponse(content="x", parts=(Text("x"),), model=call.model, provider=attempt.provider, usage=usage)
    )


def _input_tokens(usage: Usage, request: LLMRequest) -> int | None:
    """Return the fresh tokens of a prompt: the call's own, in another call's shares of the provider's cache."""
    tokens = request.metadata.get(_TOKENS)
    if tokens is None or usage.input_tokens is None:
        return usage.input_tokens
    return max(0, int(tokens) - usage.cache_read_tokens - usage.cache_write_tokens)


async def _stream(attempt: Attempt, call: Call, timers: Timers) -> None:
    """Deliver a stream: its opening and first content at their time, and pieces until its end."""
    ends, first_ms = anyio.current_time() + attempt.latency_ms / 1000, attempt.first_content_ms
    await anyio.sleep((attempt.latency_ms if first_ms is None else first_ms) / 1000)
    call.attempt.record.content_at = anyio.current_time()
    opening = opening_of(call)
    for event in (TextDelta("x"),) if opening is None else (opening, TextDelta("x")):
        if call.sink is not None:
            await call.sink(event)
    while anyio.current_time() < ends:
        timers.wait_for_consumer()
        timers.wait_for_model()
        await anyio.sleep(min(_PIECE_S, ends - anyio.current_time()))


# The replay.

_NUMBER: Final = "backtest_call"
_TOKENS: Final = "backtest_tokens"


@final
@define
class PastTokens:
    """The tokens of prompts as their providers counted them; others are estimated."""

    def estimate(self, request: LLMRequest) -> int:
        """Return the counted tokens of a prompt."""
        counted = request.metadata.get(_TOKENS)
        return estimate_tokens(request) if counted is None else int(counted)

    def ratio(self, model: str) -> float:  # noqa: ARG002
        """Return 1: the counts are the providers' own."""
        return 1.0

    def learn(self, model: str, estimated: int, counted: int) -> None:
        """Learn nothing."""


@final
@frozen(kw_only=True)
class Fate:
    """The end of a call: whether it was answered, in how many milliseconds, at what known cost (USD)."""

    answered: bool
    ms: float
    usd: float
    refused: bool = False
    unpriced: frozenset[str] = frozenset()


def _tested(config: LLMConfig, calls: Sequence[PastCall], seed: int) -> Backtest:
    models = PastModels(config, calls, pasts_of(calls), seed)
    replayed = run_seeded(seed, partial(_replayed, config, models))
    kept = [call for call in calls if call.number not in models.left_out]
    old, new = [_fate(call) for call in kept], [replayed[call.number] for call in kept]
    figures = [*_figures(old, new, seed)] if kept else [_NONE, _NONE, _NONE]
    return Backtest(
        since=calls[0].came,
        until=max(call.rows[-1].at for call in calls),
        calls=len(kept),
        left_out=len(models.left_out),
        untried=tuple(sorted(models.untried)),
        cut_off=models.cut_off,
        unpriced=tuple(sorted(frozenset[str]().union(*(each.unpriced for each in (*old, *new))))),
        old=figures[0],
        new=figures[1],
        change=figures[2],
    )


async def _replayed(config: LLMConfig, models: PastModels) -> Mapping[int, Fate]:
    numbers, draw = count(1), drawn(models.seed, "draws")
    env = evolve(
        memory_env(config),
        clients=models,
        tokens=PastTokens(),
        prices=price_list(config),
        now=lambda: models.calls[0].came + _clock(),
        draw=draw.random,
        new_id=lambda: f"backtest-{next(numbers)}",
    )
    fates = dict[int, Fate]()

    async def ask(call: PastCall) -> None:
        fates[call.number] = await _asked(call, env)

    async with task_group() as group:
        for call in models.calls:
            await anyio.sleep_until((call.came - models.calls[0].came).total_seconds())
            group.start_soon(ask, call)
    return fates


async def _asked(past: PastCall, env: LLMEnv) -> Fate:
    first, tokens = past.rows[0], past.prompt_tokens
    request = LLMRequest(
        prompt="x",
        task_type=first.task_type,
        owner=first.owner,
        tags=first.tags,
        cache=CachePolicy.BYPASS,
        metadata={_NUMBER: f"{past.number}"} | ({} if tokens is None else {_TOKENS: f"{tokens}"}),
    )
    began = anyio.current_time()
    answer = await run(run_call(standard_pipeline, request, _ignore if past.streamed else None), env)
    error = None if is_successful(answer) else answer.failure()
    attempts = answer.unwrap().attempts if error is None else error.attempts
    return Fate(
        answered=error is None,
        ms=(anyio.current_time() - began) * 1000,
        usd=_usd(attempts),
        refused=error is not None and _is_refused(error),
        unpriced=_unpriced(attempts),
    )


async def _ignore(_: StreamEvent) -> None:
    """Drop an event."""


def _is_refused(error: LLMError) -> bool:
    errors = error.errors if isinstance(error, RequestFailed) else (error,)
    return any(isinstance(each, BudgetExceeded) for each in errors)


def _usd(attempts: Iterable[Attempt]) -> float:
    return float(sum((each.cost.usd or Decimal(0) for each in attempts), Decimal(0)))


def _unpriced(attempts: Iterable[Attempt]) -> frozenset[str]:
    """Return the models that answered at a cost that is unknown."""
    return frozenset(each.model for each in attempts if each.succeeded and each.cost.usd is None)


def _fate(call: PastCall) -> Fate:
    """Return how a call ended at that time."""
    attempts, answers = [row.attempt for row in call.rows], [row for row in call.rows if row.attempt.succeeded]
    ended = answers[0].at if answers else call.rows[-1].at
    return Fate(
        answered=bool(answers),
        ms=(ended - call.came) / timedelta(milliseconds=1),
        usd=_usd(attempts),
        unpriced=_unpriced(attempts),
    )


# The figures: of all calls, and the bounds of those of many resamples.

_Numbers: TypeAlias = tuple[float, ...]

_NONE: Final = Figures(answered=Estimate(0.0, 0.0, 0.0), cost_usd=Estimate(0.0, 0.0, 0.0))

_SHARES: Final = (0.50, 0.95, 0.99)


def _numbers(fates: Sequence[Fate]) -> _Numbers:
    """Return the share of answers, the cost, the three percentiles and the share of refusals of some calls."""
    times, size = sorted(fate.ms for fate in fates if fate.answered), len(fates)
    ranks = (times[math.ceil(share * len(times)) - 1] if times else math.nan for share in _SHARES)
    refused = sum(fate.refused for fate in fates) / size
    return (len(times) / size, math.fsum(fate.usd for fate in fates), *ranks, refused)


def _figures(old: Sequence[Fate], new: Sequence[Fate], seed: int) -> Iterable[Figures]:
    """Return old, new, and the change from one to the other, which the same resamples of calls decide."""
    draw, size = drawn(seed, "resamples"), len(old)
    block = min(BLOCK, math.isqrt(size))
    resampled = list[tuple[_Numbers, _Numbers]]()
    for _ in range(min(RESAMPLES, max(FEWEST_RESAMPLES, RESAMPLED // size))):
        starts = [draw.randrange(size - block + 1) for _ in range(math.ceil(size / block))]
        places = [start + each for start in starts for each in range(block)][:size]
        resampled.append((_numbers([old[each] for each in places]), _numbers([new[each] for each in places])))
    was, willbe = _numbers(old), _numbers(new)
    before, after = [each[0] for each in resampled], [each[1] for each in resampled]
    yield evolve(_bounded(was, before), refused=None)
    yield _bounded(willbe, after)
    differences = [_minus(each[1], each[0]) for each in resampled]
    yield evolve(_bounded(_minus(willbe, was), differences), refused=None)


def _minus(first: _Numbers, second: _Numbers) -> _Numbers:
    return tuple(one - other for one, other in zip(first, second, strict=True))


def _bounded(values: _Numbers, resampled: Sequence[_Numbers]) -> Figures:
    answered, cost, p50, p95, p99, refused = (
        _estimate(value, [each[place] for each in resampled]) for place, value in enumerate(values)
    )
    none = Estimate(math.nan, math.nan, math.nan)
    return Figures(
        answered=answered or none, cost_usd=cost or none, p50_ms=p50, p95_ms=p95, p99_ms=p99, refused=refused
    )


def _estimate(value: float, resampled: Iterable[float]) -> Estimate | None:
    """Return a figure with the middle of its resamples; ``None`` for one that is not known."""
    ordered = sorted(each for each in resampled if not math.isnan(each))
    if math.isnan(value) or not ordered:
        return None
    outside = int((1 - CONFIDENCE) / 2 * len(ordered))
    return Estimate(value, ordered[outside], ordered[-1 - outside])
