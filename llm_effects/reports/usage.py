"""Usage reports: tokens, cost, latency and outcomes from the ledger, by model, task, day, owner or tag."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from itertools import product
from math import ceil
from typing import Final, Literal, TypeAlias, final, get_args

from attrs import define, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.effects.effect import Effect, effect, result_of
from llm_effects.effects.env import LLMEnv, Prices
from llm_effects.routing.prices import saving_of
from llm_effects.values.display import count, milliseconds, shown, table
from llm_effects.values.errors import InvalidRequest, LLMError
from llm_effects.values.records import LedgerRow
from llm_effects.values.responses import SUCCESS, Usage
from llm_effects.values.validation import short_repr, suggestion

Dimension: TypeAlias = Literal["model", "provider", "task", "day", "owner", "tag", "left_machine"]
"""A dimension that a report can group by."""

_Group: TypeAlias = tuple[str, ...]


@final
@frozen
class Percentiles:
    """The latencies, in milliseconds, within which 50 %, 95 % and 99 % of the answers arrived."""

    __repr__ = shown

    p50: float
    p95: float
    p99: float


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

    group: _Group = ()
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

    ``by`` groups the rows: ``model``, ``provider``, ``task``, ``day`` (UTC), ``owner``, ``tag``, ``left_machine``
    (``yes`` if the attempt was sent to another machine, else ``no``; ``""`` is not known), or several of them.
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
        sums = await _sum_pages(env, dimensions, since, until)
        return sums.map(lambda found: found.report(since, until))

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
        sums = await _sum_pages(env, ("model", "day"), since, until)
        return sums.map(lambda found: _overview(found, at, since, until))

    return effect(summarize)


def _overview(sums: UsageSums, at: datetime, since: datetime | None, until: datetime | None) -> UsageOverview:
    return UsageOverview(
        at=at,
        by_model=sums.regrouped("model").report(since, until),
        by_day=sums.regrouped("day").report(since, until),
        by_model_and_day=sums.report(since, until),
    )


async def _sum_pages(
    env: LLMEnv, by: tuple[Dimension, ...], since: datetime | None, until: datetime | None
) -> Result[UsageSums, LLMError]:
    error = _argument_error(by, since, until)
    if error is not None:
        return Failure(error)
    sums, first = UsageSums(by, partial(_saving, env.prices)), None
    while True:
        page = await result_of(env.ledger.rows(since, until, before=first, newest=PAGE))
        if not is_successful(page):
            return Failure(page.failure())
        rows: Sequence[LedgerRow] = page.unwrap()
        sums.add(rows)
        if len(rows) < PAGE:
            return Success(sums)
        first = rows[0]


def _saving(prices: Prices, row: LedgerRow) -> Decimal:
    return saving_of(prices, row.attempt.model, row.attempt.usage, row.attempt.cost, row.at)


def _argument_error(by: tuple[str, ...], since: datetime | None, until: datetime | None) -> InvalidRequest | None:
    for name, time in (("since", since), ("until", until)):
        if time is not None and time.tzinfo is None:
            return InvalidRequest(message=f"{name}: must have a time zone, such as datetime.now(UTC)")
    for dimension in by:
        if dimension not in get_args(Dimension):
            hint = suggestion(dimension, get_args(Dimension), "the groups")
            return InvalidRequest(message=f"by: {short_repr(dimension)}: {hint}")
    return None


# Sums of rows, by group.

GROUPS: Final[Mapping[Dimension, Callable[[LedgerRow], tuple[str, ...]]]] = {
    "model": lambda row: (row.attempt.model,),
    "provider": lambda row: (row.attempt.provider,),
    "task": lambda row: (str(row.task_type),),
    "day": lambda row: (row.at.astimezone(UTC).date().isoformat(),),
    "owner": lambda row: (row.owner or "",),
    "tag": lambda row: tuple(dict.fromkeys(row.tags)) or ("",),
    "left_machine": lambda row: ("" if row.left_machine is None else "yes" if row.left_machine else "no",),
}
"""The groups of a row, for each dimension."""


@final
@define
class _Sums:
    """The sums of a group so far."""

    calls: set[str] = field(factory=set[str])
    outcomes: Counter[str] = field(factory=Counter[str])
    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    unknown_costs: int = 0
    cache_saved_usd: Decimal = Decimal(0)
    cache_write_1h_tokens: int = 0
    latency_ms: array[float] = field(factory=lambda: array("d"))
    first_content_ms: array[float] = field(factory=lambda: array("d"))

    def add(self, row: LedgerRow, saved: Decimal) -> None:
        """Add a row, and what the provider's cache saved of its cost."""
        attempt = row.attempt
        self.cache_saved_usd += saved
        self.calls.add(row.call_id)
        self.outcomes[attempt.outcome] += 1
        self._add_tokens(attempt.usage)
        if attempt.cost.usd is None:
            self.unknown_costs += 1
        else:
            self.cost_usd += attempt.cost.usd
        if attempt.succeeded and attempt.usage.service_tier != "batch":  # whose latency is that of a queue
            self.latency_ms.append(attempt.latency_ms)
            if attempt.first_content_ms is not None:
                self.first_content_ms.append(attempt.first_content_ms)

    def _add_tokens(self, usage: Usage) -> None:
        self.input_tokens += usage.input_tokens or 0
        self.cache_read_tokens += usage.cache_read_tokens
        self.cache_write_tokens += usage.cache_write_tokens
        self.cache_write_1h_tokens += usage.cache_write_1h_tokens
        self.output_tokens += usage.output_tokens or 0
        self.reasoning_tokens += usage.reasoning_tokens

    def merge(self, other: _Sums) -> None:
        """Add the sums of another group."""
        self.calls |= other.calls
        self.outcomes.update(other.outcomes)
        self.input_tokens += other.input_tokens
        self.cache_read_tokens += other.cache_read_tokens
        self.cache_write_tokens += other.cache_write_tokens
        self.cache_write_1h_tokens += other.cache_write_1h_tokens
        self.cache_saved_usd += other.cache_saved_usd
        self.output_tokens += other.output_tokens
        self.reasoning_tokens += other.reasoning_tokens
        self.cost_usd += other.cost_usd
        self.unknown_costs += other.unknown_costs
        self.latency_ms.extend(other.latency_ms)
        self.first_content_ms.extend(other.first_content_ms)

    def row(self, group: _Group) -> UsageRow:
        """Return the sums as a row of a report."""
        return UsageRow(
            group=group,
            requests=len(self.calls),
            attempts=self.outcomes.total(),
            successes=self.outcomes[SUCCESS],
            failures={outcome: count for outcome, count in sorted(self.outcomes.items()) if outcome != SUCCESS},
            input_tokens=self.input_tokens,
            cache_read_tokens=self.cache_read_tokens,
            cache_write_tokens=self.cache_write_tokens,
            output_tokens=self.output_tokens,
            reasoning_tokens=self.reasoning_tokens,
            cost_usd=self.cost_usd,
            unknown_costs=self.unknown_costs,
            cache_saved_usd=self.cache_saved_usd,
            cache_write_1h_tokens=self.cache_write_1h_tokens,
            latency_ms=percentiles(self.latency_ms),
            first_content_ms=percentiles(self.first_content_ms),
        )


def _no_saving(_: LedgerRow) -> Decimal:
    return Decimal(0)


@final
@define
class UsageSums:
    """A report under construction: add pages of rows, in any order. ``saving`` is what a cache saved of each (USD).

    >>> UsageSums(("model",)).report().total.attempts
    0
    """

    by: tuple[Dimension, ...]
    saving: Callable[[LedgerRow], Decimal] = _no_saving
    _groups: dict[_Group, _Sums] = field(factory=dict[_Group, _Sums], init=False)
    _total: _Sums = field(factory=_Sums, init=False)

    def add(self, rows: Iterable[LedgerRow]) -> None:
        """Add rows of the ledger."""
        for row in rows:
            saved = self.saving(row)
            self._total.add(row, saved)
            for group in product(*(GROUPS[dimension](row) for dimension in self.by)):
                self._group(group).add(row, saved)

    def _group(self, group: _Group) -> _Sums:
        if group not in self._groups:
            self._groups[group] = _Sums()
        return self._groups[group]

    def regrouped(self, dimension: Dimension) -> UsageSums:
        """Return the same sums by one of their dimensions, of which none may be ``tag``: a row may have several."""
        sums, place = UsageSums((dimension,)), self.by.index(dimension)
        sums._total = self._total
        for group, each in self._groups.items():
            sums._group(group[place : place + 1]).merge(each)
        return sums

    def report(self, since: datetime | None = None, until: datetime | None = None) -> UsageReport:
        """Return the report of all rows so far."""
        rows = sorted((sums.row(group) for group, sums in self._groups.items()), key=_most_expensive_first)
        return UsageReport(by=self.by, since=since, until=until, rows=tuple(rows), total=self._total.row(()))


def _most_expensive_first(row: UsageRow) -> tuple[Decimal, int, _Group]:
    return -row.cost_usd, -row.attempts, row.group


def percentiles(times: Iterable[float]) -> Percentiles | None:
    """Return the percentiles by nearest rank, so that each is a measured time; ``None`` if there are no times.

    >>> percentiles(range(1, 101)), percentiles([])
    (Percentiles(p50=50, p95=95, p99=99), None)
    """
    ordered = sorted(times)
    ranks = (ordered[ceil(len(ordered) * share / 100) - 1] for share in (50, 95, 99) if ordered)
    return Percentiles(*ranks) if ordered else None
