"""Usage reports: tokens, cost, latency and outcomes from the ledger, by model, task, hour, day, owner or tag."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Final, TypeAlias, final, get_args

from attrs import field, frozen
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.effects.effect import Effect, effect, result_of
from llm_effects.effects.env import LLMEnv
from llm_effects.routing.prices import saving_of
from llm_effects.values.display import count, milliseconds, shown, table
from llm_effects.values.errors import InvalidRequest, LLMError
from llm_effects.values.records import LedgerRow
from llm_effects.values.responses import SUCCESS
from llm_effects.values.usage import (
    TOKENS,
    Dimension,
    Group,
    GroupSums,
    Percentiles,
    RowSums,
    Saving,
    UsageSums,
    plain_decimal,
)
from llm_effects.values.validation import is_a, short_repr, suggestion


@final
@frozen(kw_only=True)
class UsageRow:
    """The usage of one group. ``group`` holds its model, task and so on, in the order of the report; ``""`` is none.

    ``requests`` counts calls, ``attempts`` what was sent for them, and ``failures`` the unsuccessful attempts by
    outcome. Tokens are sums of what providers reported. ``cost_usd`` is the sum of the known costs (USD), and
    ``unknown_costs`` counts the other attempts. ``cache_saved_usd`` is what the prompt caches of providers saved of it:
    the price of the same tokens without a cache, less the cost; it is negative where writing took more than reading
    saved. Latencies are those of successful attempts.
    """

    __repr__ = shown

    group: Group = ()
    requests: int = 0
    attempts: int = 0
    successes: int = 0
    failures: Mapping[str, int] = field(factory=dict[str, int])
    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    unknown_costs: int = 0
    cache_saved_usd: Decimal = Decimal(0)
    cache_write_1h_tokens: int = 0
    latency_ms: Percentiles | None = None
    first_content_ms: Percentiles | None = None

    @property
    def error_rates(self) -> Mapping[str, float]:
        """The share of attempts, from 0 to 1, that ended in each failure."""
        return {outcome: count / self.attempts for outcome, count in self.failures.items()}


@final
@frozen(kw_only=True)
class UsageReport:
    """The usage in a period: a row for each group, the most expensive first, and the total.

    An attempt with several tags counts for each of them, and once in the ``total``.
    """

    __repr__ = shown

    by: tuple[Dimension, ...]
    since: datetime | None = None
    until: datetime | None = None
    rows: tuple[UsageRow, ...] = field(default=(), repr=count)
    total: UsageRow = field(factory=UsageRow)

    def _repr_markdown_(self) -> str:
        numbers = ("requests", "attempts", "failures", "input tokens", "output tokens", "cost", "p50", "p95")
        total = ("total", *[""] * (len(self.by) - 1)) if self.by else ()
        rows = [(*each.group, *_numbers(each)) for each in self.rows]
        return table((*self.by, *numbers), [*rows, (*total, *_numbers(self.total))])


def _numbers(row: UsageRow) -> tuple[object, ...]:
    cost = f"${row.cost_usd:f}" + (f" and {row.unknown_costs} unknown" if row.unknown_costs else "")
    cost += f" (prompt caches saved ${row.cache_saved_usd:f})" if row.cache_saved_usd else ""
    p50, p95 = (None, None) if row.latency_ms is None else (row.latency_ms.p50, row.latency_ms.p95)
    calls = (row.requests, row.attempts, sum(row.failures.values()))
    prompt = row.input_tokens + row.cache_read_tokens + row.cache_write_tokens
    return (*calls, prompt, row.output_tokens, cost, milliseconds(p50), milliseconds(p95))


@final
@frozen(kw_only=True)
class UsageOverview:
    """The same rows of the ledger by model, by day, and by both, as read at one time, ``at``."""

    at: datetime
    by_model: UsageReport
    by_day: UsageReport
    by_model_and_day: UsageReport


PAGE: Final = 1_000
"""How many rows are read at a time."""


def usage_report(
    since: datetime | None = None,
    by: Dimension | Sequence[Dimension] = "model",
    *,
    until: datetime | None = None,
) -> Effect[UsageReport]:
    """Sum up the ledger from ``since`` up to ``until``: tokens, cost (USD), latency (milliseconds), outcomes.

    ``by`` groups the rows: ``model``, ``provider``, ``task``, ``hour``, ``day`` (UTC), ``owner``, ``tag``,
    ``left_machine`` (``yes`` if the attempt was sent to another machine, else ``no``; ``""`` is not known), or several
    of them. Latencies are exact to three significant digits.
    Times without a time zone, and an unknown ``by``, are an ``InvalidRequest``; a ledger that cannot be read is a
    ``StorageFailed``.

    >>> import anyio
    >>> from llm_effects import LLMRequest, generate, run, scripted_env, then
    >>> answered = generate(LLMRequest(prompt="why?", owner="alice"))
    >>> report = anyio.run(run, then(answered, lambda _: usage_report(by=("owner", "model"))), scripted_env()).unwrap()
    >>> [(row.group, row.requests, row.output_tokens, str(row.cost_usd)) for row in report.rows]
    [(('alice', 'scripted'), 1, 1, '0')]
    """
    dimensions = (by,) if isinstance(by, str) else tuple(by)

    async def summarize(env: LLMEnv) -> Result[UsageReport, LLMError]:
        sums = await _sums(env, (dimensions,), since, until)
        return sums.map(lambda found: report_of(found[0], since, until))

    return effect(summarize)


def usage_overview(since: datetime | None = None, *, until: datetime | None = None) -> Effect[UsageOverview]:
    """Sum up the ledger from ``since`` up to ``until`` by model, by day (UTC), and by both, reading it once.

    ``usage_page`` shows it. Errors are those of ``usage_report``.

    >>> import anyio
    >>> from llm_effects import LLMRequest, generate, run, scripted_env, then
    >>> answered = generate(LLMRequest(prompt="why?"))
    >>> overview = anyio.run(run, then(answered, lambda _: usage_overview()), scripted_env()).unwrap()
    >>> [row.group for row in overview.by_model.rows], overview.by_model_and_day.total.requests
    ([('scripted',)], 1)
    """

    async def summarize(env: LLMEnv) -> Result[UsageOverview, LLMError]:
        at = env.now()
        sums = await _sums(env, (("model",), ("day",), ("model", "day")), since, until)
        return sums.map(lambda found: _overview(at, *(report_of(each, since, until) for each in found)))

    return effect(summarize)


def _overview(at: datetime, by_model: UsageReport, by_day: UsageReport, by_both: UsageReport) -> UsageOverview:
    return UsageOverview(at=at, by_model=by_model, by_day=by_day, by_model_and_day=by_both)


def report_of(sums: UsageSums, since: datetime | None = None, until: datetime | None = None) -> UsageReport:
    """Return the report of some sums.

    >>> report_of(UsageSums(("model",))).total.attempts
    0
    """
    rows = sorted((_row_of(group, each) for group, each in sums.groups.items()), key=_most_expensive_first)
    return UsageReport(by=sums.by, since=since, until=until, rows=tuple(rows), total=_row_of((), sums.total))


def _most_expensive_first(row: UsageRow) -> tuple[Decimal, int, Group]:
    return -row.cost_usd, -row.attempts, row.group


def _row_of(group: Group, sums: GroupSums) -> UsageRow:
    return UsageRow(
        group=group,
        requests=sums.requests,
        attempts=sums.outcomes.total(),
        successes=sums.outcomes[SUCCESS],
        failures={outcome: count for outcome, count in sorted(sums.outcomes.items()) if outcome != SUCCESS},
        cost_usd=plain_decimal(sums.cost_usd),
        unknown_costs=sums.unknown_costs,
        cache_saved_usd=plain_decimal(sums.cache_saved_usd),
        latency_ms=sums.latency_ms.percentiles(),
        first_content_ms=sums.first_content_ms.percentiles(),
        **dict(zip(TOKENS, sums.tokens, strict=True)),
    )


# Sums of the rows of a period: made by the ledger itself, if it can, or of its rows, page by page.


_SumUp: TypeAlias = Callable[
    [Sequence[tuple[Dimension, ...]], datetime | None, datetime | None, Saving],
    FutureResult[Sequence[UsageSums], LLMError],
]


async def _sums(
    env: LLMEnv, bys: Sequence[tuple[Dimension, ...]], since: datetime | None, until: datetime | None
) -> Result[Sequence[UsageSums], LLMError]:
    error = next(filter(None, (_argument_error(by, since, until) for by in bys)), None)
    if error is not None:
        return Failure(error)
    saving, sum_up = partial(saving_of, env.prices), _sum_up_of(env)
    if sum_up is not None:
        return await result_of(sum_up(bys, since, until, saving))
    return await _sum_pages(env, RowSums([UsageSums(by) for by in bys], saving), since, until)


def _sum_up_of(env: LLMEnv) -> _SumUp | None:
    found: _SumUp | None = getattr(env.ledger, "usage", None)
    return found


async def _sum_pages(
    env: LLMEnv, sums: RowSums, since: datetime | None, until: datetime | None
) -> Result[Sequence[UsageSums], LLMError]:
    first: LedgerRow | None = None
    while True:
        page = await result_of(env.ledger.rows(since, until, before=first, newest=PAGE))
        if not is_successful(page):
            return Failure(page.failure())
        rows: Sequence[LedgerRow] = page.unwrap()
        sums.add(rows)
        if len(rows) < PAGE:
            return Success(sums.counted())
        first = rows[0]


def _argument_error(by: tuple[str, ...], since: datetime | None, until: datetime | None) -> InvalidRequest | None:
    for name, time in (("since", since), ("until", until)):
        if time is not None and not is_a(time, datetime):
            return InvalidRequest(message=f"{name}: must be a datetime, not {type(time).__name__}")
        if time is not None and time.tzinfo is None:
            return InvalidRequest(message=f"{name}: must have a time zone, such as datetime.now(UTC)")
    for dimension in by:
        if dimension not in get_args(Dimension):
            hint = suggestion(dimension, get_args(Dimension), "the groups")
            return InvalidRequest(message=f"by: {short_repr(dimension)}: {hint}")
    return None
