"""Backtests as values: old against new with confidence intervals, as a table and as an HTML page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, TypeAlias, final

from attrs import frozen

from llm_effects.reports.charts import NOTHING, Markup, drawing, figure, legend_of, percent, tag
from llm_effects.reports.charts import milliseconds as time_text
from llm_effects.reports.html import fact, moment, section, whole_page
from llm_effects.values.display import shown, table

UNTOLD: Final = (
    "answers from the cache: they have no rows, so every call here asks a model",
    "calls that a budget refused at that time: they have no rows either",
    "the time limits of single requests: the new configuration's apply",
    "how long an attempt that was cut off would have taken: a longer one near it stands for it, or it never ends",
)
"""What no ledger knows, whatever is in it."""

FEW: Final = 200
"""Calls below which rare outcomes are likely to be missing."""


@final
@frozen
class Estimate:
    """A figure, and the bounds of its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


@final
@frozen(kw_only=True)
class Figures:
    """The figures of some calls: the share that was answered (0 to 1), their cost (USD), and their times.

    Times are the milliseconds within which 50 %, 95 % and 99 % of the answers came, ``None`` without an answer.
    ``refused`` is the share of calls that budgets refused, ``None`` where it is unknown.
    """

    __repr__ = shown

    answered: Estimate
    cost_usd: Estimate
    p50_ms: Estimate | None = None
    p95_ms: Estimate | None = None
    p99_ms: Estimate | None = None
    refused: Estimate | None = None


@final
@frozen(kw_only=True)
class Backtest:
    """Old against new: what the ledger measured, what the new configuration is predicted to do, and the difference.

    ``calls`` are compared. ``left_out`` calls would reach one of the ``untried`` models, of which the ledger has no
    attempt in the period, so nothing is predicted for them. ``cut_off`` counts the attempts whose whole time is not in
    the ledger. ``unpriced`` models answered at a cost that is unknown, old or new, and is in no sum. ``untold`` lists
    what no ledger knows. If ``calls`` is 0 the figures mean nothing.
    """

    __repr__ = shown

    since: datetime
    until: datetime
    calls: int
    left_out: int = 0
    untried: tuple[str, ...] = ()
    cut_off: int = 0
    unpriced: tuple[str, ...] = ()
    old: Figures
    new: Figures
    change: Figures
    untold: tuple[str, ...] = UNTOLD

    def _repr_markdown_(self) -> str:
        figures = table(("figure", "old", "new", "change"), figure_rows(self))
        return "\n\n".join((figures, "\n".join(f"- {each}" for each in remarks(self))))


# The figures as text: of each its name, and how it is written.

Read: TypeAlias = Callable[[Figures], Estimate | None]
"""Reads one of the figures."""

FIGURES: Final[Mapping[str, tuple[Read, Callable[[float], str]]]] = {
    "answered": (lambda each: each.answered, percent),
    "cost": (lambda each: each.cost_usd, lambda usd: f"${usd:,.4g}"),
    "p50": (lambda each: each.p50_ms, time_text),
    "p95": (lambda each: each.p95_ms, time_text),
    "p99": (lambda each: each.p99_ms, time_text),
    "refused by a budget": (lambda each: each.refused, percent),
}
"""The figures of a backtest by name: how each is read, and how its number is written."""


def figure_rows(result: Backtest) -> list[tuple[str, str, str, str]]:
    """Return a row for each figure: its name, the old one, the new one and the change, with their intervals."""
    rows = list[tuple[str, str, str, str]]()
    for name, (read, write) in FIGURES.items():
        sides = (result.old, result.new, result.change)
        old, new, change = (_text(read(each) if result.calls else None, write) for each in sides)
        rows.append((name, old, new, change))
    return rows


def _text(estimate: Estimate | None, write: Callable[[float], str]) -> str:
    if estimate is None:
        return "unknown"
    return f"{_signed(estimate.value, write)} ({_signed(estimate.low, write)} to {_signed(estimate.high, write)})"


def _signed(number: float, write: Callable[[float], str]) -> str:
    return f"-{write(-number)}" if number < 0 and write(-number) != write(0.0) else write(abs(number))


def remarks(result: Backtest) -> tuple[str, ...]:
    """Return what limits a backtest: the calls left out, the attempts cut off, and all that no ledger knows."""
    untried = ", ".join(result.untried)
    left_out = f"{result.left_out} calls are left out: the ledger has no attempt at {untried}"
    cut_off = f"{result.cut_off} attempts were cut off, so that their whole time is not known"
    unpriced = f"the cost of {', '.join(result.unpriced)} is unknown, and missing in the sums: configure a price"
    few = f"{result.calls} calls are few: what is rare may not be among them, so the intervals are too narrow"
    said = (
        left_out if result.left_out else "",
        cut_off if result.cut_off else "",
        unpriced if result.unpriced else "",
        few if result.calls < FEW else "",
    )
    return (*filter(None, said), *(f"not in the ledger: {each}" for each in result.untold))


# The page.


def backtest_page(result: Backtest) -> str:
    """Return an HTML page of a backtest: each figure with its interval, drawn and as a table.

    Write it to a file: it is complete, without scripts and without anything to load.

    >>> sure = Estimate(1.0, 1.0, 1.0)
    >>> figures = Figures(answered=sure, cost_usd=sure)
    >>> from datetime import UTC
    >>> noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    >>> page = backtest_page(Backtest(since=noon, until=noon, calls=1, old=figures, new=figures, change=figures))
    >>> page[:15], "old against new" in page
    ('<!DOCTYPE html>', True)
    """
    facts = (
        ("Period", f"{moment(result.since)} to {moment(result.until)}"),
        ("Calls compared", f"{result.calls:,}"),
        ("Calls left out", f"{result.left_out:,}"),
    )
    heading = tag("header", tag("h1", "Backtest: old against new"), tag("dl", *map(fact, facts), class_="facts"))
    charts = tag("div", *(_chart(name, result) for name in FIGURES), class_="charts")
    limits = tag("ul", *(tag("li", each) for each in remarks(result)))
    return whole_page(
        "Backtest",
        heading,
        section("Figures", charts, _page_table(result)),
        section("What limits it", limits),
    )


_LEGEND: Final = legend_of("95 % of the resamples, and the figure ", p50="old", p95="new")


def _chart(name: str, result: Backtest) -> Markup:
    """Return the chart of a figure: a line for its interval, and a mark, for the old and for the new."""
    read, write = FIGURES[name]
    known = {"p50": read(result.old), "p95": read(result.new)} if result.calls else {"p50": None, "p95": None}
    top = max((each.high for each in known.values() if each is not None), default=0.0) or 1.0
    lines = (
        tag("li", tag("span", label, class_="name"), tag("b", _text(each, write)), _interval(name, kind, each, top))
        for (kind, each), label in zip(known.items(), ("old", "new"), strict=True)
    )
    return figure(name, _LEGEND, tag("ol", *lines, class_="bars"))


def _interval(name: str, kind: str, estimate: Estimate | None, top: float) -> Markup:
    if estimate is None:
        return NOTHING
    places = (estimate.low, estimate.value, estimate.high)
    low, value, high = (f"{2 + 96 * max(0.0, each) / top:.2f}%" for each in places)
    marks = (
        tag("line", x1=low, x2=high, y1=6, y2=6, class_="range"),
        tag("use", href=f"#{kind}", x=value, y=6),
    )
    return drawing(f"{name.replace(' ', '-')}-{kind}", name, f"{estimate}", 12, *marks)


def _page_table(result: Backtest) -> Markup:
    heads = (tag("th", name, scope="col") for name in ("Figure", "Old", "New", "Change"))
    rows = (
        tag("tr", tag("th", name, scope="row"), *(tag("td", cell) for cell in cells))
        for name, *cells in figure_rows(result)
    )
    whole = tag("table", tag("caption", "Old against new"), tag("thead", tag("tr", *heads)), tag("tbody", *rows))
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label="Old against new")
