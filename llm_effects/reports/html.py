"""The usage page: costs, latencies, errors and cache rates as one self-contained HTML file, with charts and tables.

The page loads nothing and runs no script. Every text from outside is escaped, and a policy in its head forbids
anything else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final

from llm_effects.reports.charts import (
    NOTHING,
    PATTERNS,
    Days,
    Markup,
    cache_rate,
    cancelled_attempts,
    cost_note,
    cost_of,
    count_of,
    day_charts,
    error_rate,
    failed_attempts,
    latencies,
    milliseconds,
    model_charts,
    name_of,
    percent,
    prompt_tokens,
    tag,
)
from llm_effects.reports.usage import UsageOverview, UsageReport, UsageRow
from llm_effects.values.records import CacheStats

MOST_MODELS: Final = 12
"""How many models have charts; the table has all of them."""

MOST_DAYS: Final = 92
"""How many days the charts show at most, the newest; the table has all of them."""


def usage_page(overview: UsageOverview, *, cache: CacheStats | None = None) -> str:
    """Return an HTML page with the costs (USD), latencies, error rates and cache rates of each model and of each day.

    Write it to a file: it is complete, without scripts and without anything to load. An unknown cost is shown as
    unknown, never as 0. Days and times are in UTC. The ledger has no rows for answers from the cache: pass ``cache``,
    of ``cache_stats``, to show the hits of this process.

    >>> import anyio
    >>> from llm_effects import LLMRequest, generate, run, scripted_env, then
    >>> from llm_effects.reports import usage_overview
    >>> answered = generate(LLMRequest(prompt="why?"))
    >>> overview = anyio.run(run, then(answered, lambda _: usage_overview()), scripted_env()).unwrap()
    >>> page = usage_page(overview)
    >>> page[:15], "Cost by model" in page
    ('<!DOCTYPE html>', True)
    """
    contents = _contents(overview) if overview.by_model.rows else (_nothing(),)
    return whole_page("LLM usage", _heading(overview), *contents, _meaning(cache))


def _contents(overview: UsageOverview) -> tuple[Markup, ...]:
    models, days = overview.by_model.rows[:MOST_MODELS], _days(overview.by_day)
    return (
        _tiles(overview.by_model.total),
        _by_model(overview.by_model, models),
        _by_day(overview.by_day, days),
        _each_model(models, overview.by_model_and_day, days) if len(overview.by_model.rows) > 1 else NOTHING,
    )


def _by_model(report: UsageReport, models: Sequence[UsageRow]) -> Markup:
    table = _table("Usage by model", "Model", report.rows, report.total)
    return section("By model", _left_out(len(report.rows)), model_charts(models), table)


def _by_day(report: UsageReport, days: Days) -> Markup:
    table = _table("Usage by day", "Day", _by_date(report.rows), report.total)
    return section("By day", _skipped(report, days), day_charts("all", "", days), table)


# The head, the totals, and what the figures mean.


def whole_page(title: str, *contents: Markup) -> str:
    """Return a complete page, which loads nothing and runs no script."""
    body = tag("body", PATTERNS, tag("main", *contents))
    return f"<!DOCTYPE html>\n{tag('html', _head(title), body, lang='en')}\n"


def _head(title: str) -> Markup:
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return Markup(
        f'<head><meta charset="utf-8">{tag("title", title)}'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<style>{_STYLE}</style></head>"
    )


def _heading(overview: UsageOverview) -> Markup:
    report = overview.by_model
    since = "the beginning of the ledger" if report.since is None else moment(report.since)
    until = "the time of reading" if report.until is None else moment(report.until)
    facts = (("Period", f"{since} to {until}"), ("Read", moment(overview.at)), ("Time zone of days and times", "UTC"))
    return tag("header", tag("h1", "LLM usage"), tag("dl", *map(fact, facts), class_="facts"))


def moment(time: datetime) -> str:
    """Return a time as pages show it, in UTC."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def fact(named: tuple[str, str]) -> Markup:
    """Return a fact of a list of facts: its name and its text."""
    return tag("div", tag("dt", named[0]), tag("dd", named[1]))


def _nothing() -> Markup:
    hint = "A ledger in memory ends with its process: set LLM_STORAGE_URL to keep one."
    return tag(
        "section", tag("h2", "Nothing was sent in this period"), tag("p", f"The ledger has no rows of it. {hint}")
    )


def _tiles(total: UsageRow) -> Markup:
    tiles = (
        ("Cost", cost_of(total), cost_note(total) or "every cost is known"),
        ("Calls", f"{total.requests:,}", f"{count_of(total.attempts, 'attempt')} sent"),
        (
            "Errors",
            percent(error_rate(total)),
            f"{failed_attempts(total):,} failed, {cancelled_attempts(total):,} cancelled",
        ),
        ("Median latency", milliseconds(total.latency_ms and total.latency_ms.p50), latencies(total)),
        ("Prompt cache", percent(cache_rate(total)), f"of {count_of(prompt_tokens(total), 'prompt token')}"),
        ("Answer tokens", f"{total.output_tokens:,}", f"{total.reasoning_tokens:,} of them reasoning"),
    )
    return tag("dl", *map(_tile, tiles), class_="tiles")


def _tile(tile: tuple[str, str, str]) -> Markup:
    label, value, note = tile
    return tag("div", tag("dt", label), tag("dd", tag("b", value), tag("span", note)))


def section(title: str, *parts: Markup) -> Markup:
    """Return a part of a page under a heading."""
    return tag("section", tag("h2", title), *parts)


def _left_out(count: int) -> Markup:
    note = f"Charts of the first {MOST_MODELS} of {count:,} models, by cost; the table has all of them."
    return tag("p", note) if count > MOST_MODELS else NOTHING


def _skipped(report: UsageReport, days: Days) -> Markup:
    first = min(group for row in report.rows for group in row.group)
    note = f"Charts of the last {MOST_DAYS} days; the table has every day on which something was sent."
    return tag("p", note) if first not in days else NOTHING


def _meaning(cache: CacheStats | None) -> Markup:
    looked = cache.hits + cache.misses if cache else 0
    counted = f"{cache.hits:,} of {looked:,} look-ups ({percent(cache.hits / looked)})" if cache and looked else ""
    answers = (
        f"Since this process opened the cache, {counted} were hits."
        if counted
        else "The number of hits is not recorded here."
    )
    facts = (*_MEANINGS, ("Answers from the cache", f"{_UNRECORDED} {answers}"))
    return tag("section", tag("h2", "What the figures mean"), tag("dl", *map(fact, facts), class_="facts meaning"))


_MEANINGS: Final = (
    ("Attempts", "Requests sent to a model: the first of a call, its retries, its hedges, and those to other models."),
    ("Calls", "Calls with at least one attempt. One that went to two models counts for both, and once in the total."),
    ("Cost", "The sum of the known costs. An unknown cost is not 0: the true sum is higher."),
    ("Errors", "The share of attempts that failed. Cancelled attempts, such as lost hedges, are counted separately."),
    ("Latency", "50 %, 95 % and 99 % of the successful attempts took at most this long, without pauses and queues."),
    ("Tokens", "What providers reported, or estimates in place of it. An attempt with neither adds nothing."),
    ("Prompt cache", "The share of these prompt tokens that providers read from their caches; 0 % if none says so."),
)
_UNRECORDED: Final = (
    "An answer from the cache of this library sends nothing, so that the ledger has no row of it, by model or by day."
)


# Tables.


def _table(caption: str, first: str, rows: Sequence[UsageRow], total: UsageRow) -> Markup:
    """Return a table of rows and their total, which scrolls sideways where it is too wide."""
    heads = (tag("th", name, scope="col") for name in (first, *_CELLS))
    lines = (_line(name_of(row.group[-1]), row) for row in rows)
    table = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *lines),
        tag("tfoot", _line("All", total)),
        class_=first.lower(),
    )
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _line(name: str, row: UsageRow) -> Markup:
    return tag("tr", tag("th", name, scope="row"), *(tag("td", cell(row)) for cell in _CELLS.values()))


_CELLS: Final[Mapping[str, Callable[[UsageRow], str]]] = {
    "Calls": lambda row: f"{row.requests:,}",
    "Attempts": lambda row: f"{row.attempts:,}",
    "Errors": lambda row: f"{failed_attempts(row):,} ({percent(error_rate(row))})",
    "Cancelled": lambda row: f"{cancelled_attempts(row):,}",
    "Cost": cost_of,
    "Unknown costs": lambda row: f"{row.unknown_costs:,}",
    "p50": lambda row: milliseconds(row.latency_ms and row.latency_ms.p50),
    "p95": lambda row: milliseconds(row.latency_ms and row.latency_ms.p95),
    "p99": lambda row: milliseconds(row.latency_ms and row.latency_ms.p99),
    "First content p50": lambda row: milliseconds(row.first_content_ms and row.first_content_ms.p50),
    "Prompt cache": lambda row: percent(cache_rate(row)),
    "Prompt tokens": lambda row: f"{prompt_tokens(row):,}",
    "Answer tokens": lambda row: f"{row.output_tokens:,}",
}


# Days.


def _by_date(rows: Iterable[UsageRow]) -> list[UsageRow]:
    return sorted(rows, key=lambda row: row.group[-1])


def _days(report: UsageReport) -> Days:
    """Return the newest days, up to the last on which something was sent, those without a row included."""
    rows = {row.group[0]: row for row in report.rows}
    last, first = date.fromisoformat(max(rows)), date.fromisoformat(min(rows))
    count = min(MOST_DAYS, (last - first).days + 1)
    names = [(last - timedelta(days=back)).isoformat() for back in reversed(range(count))]
    return {name: rows.get(name) for name in names}


def _each_model(models: Sequence[UsageRow], report: UsageReport, days: Days) -> Markup:
    by_model: dict[str, list[UsageRow]] = {row.group[0]: [] for row in models}
    for row in report.rows:
        if row.group[0] in by_model:
            by_model[row.group[0]].append(row)
    parts = (_one_model(place, row, by_model[row.group[0]], days) for place, row in enumerate(models))
    return section("Each model by day", *parts)


def _one_model(place: int, total: UsageRow, rows: Sequence[UsageRow], days: Days) -> Markup:
    name, by_day = name_of(total.group[0]), {row.group[1]: row for row in rows}
    own = {day: by_day.get(day) for day in days}
    charts = day_charts(f"m{place}", f" of {name}", own) if any(own.values()) else NOTHING
    summary = tag("summary", tag("b", name), f" {cost_of(total)}, {count_of(total.attempts, 'attempt')}")
    return tag("details", summary, charts, _table(f"Usage of {name} by day", "Day", _by_date(rows), total))


# The style sheet.

_STYLE: Final = """
:root { color-scheme: light dark; --page: #fff; --panel: #f6f8fa; --line: #c9d1d9; --text: #1f2328; --quiet: #57606a;
  --blue: #0b62b8; --red: #b3261e; --green: #1a7046; --amber: #8a5a00; --purple: #7b2d8e; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1419; --panel: #171d24; --line: #3a434d; --text: #e6eaef;
  --quiet: #a3adb8; --blue: #6cb0f5; --red: #f58f86; --green: #6ccf9a; --amber: #e3b45c; --purple: #d49ae3; } }
@media print { :root { color-scheme: light; --page: #fff; --panel: #fff; --line: #c9d1d9; --text: #000; --quiet: #444;
  --blue: #0b62b8; --red: #b3261e; --green: #1a7046; --amber: #8a5a00; --purple: #7b2d8e; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scrollbar-gutter: stable; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0; }
h3, caption { overflow-wrap: anywhere; }
p, small, dt, caption, .key { color: var(--quiet); }
dl, dd, p, ol, figure { margin: 0; padding: 0; }
section > p { margin-bottom: .75rem; }
.facts { display: flex; flex-wrap: wrap; gap: .25rem 2rem; }
.facts dt, .facts dd { display: inline; }
.facts dt::after { content: ": "; }
.meaning { display: block; max-width: 50rem; }
.meaning div { margin-bottom: .4rem; }
.meaning dt { color: var(--text); font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 9rem), 1fr)); gap: .75rem;
  margin-top: 1.5rem; }
.tiles div, figure, details { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; }
.tiles div { padding: .6rem .8rem; }
.tiles b { display: block; font-size: 1.35rem; line-height: 1.3; overflow-wrap: anywhere; }
.tiles span, .tiles dt, small { font-size: .8rem; color: var(--quiet); overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: .75rem; }
figure { padding: .8rem; min-width: 0; }
figcaption { margin-bottom: .75rem; }
figcaption p { display: flex; flex-wrap: wrap; gap: 0 .8rem; font-size: .8rem; }
.key svg { vertical-align: -2px; margin-right: .3rem; }
.bars { list-style: none; display: grid; gap: .6rem; }
.bars li { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; font-size: .87rem; }
.name { overflow-wrap: anywhere; min-width: 0; }
.bars b { margin-left: auto; text-align: right; font-weight: 600; font-variant-numeric: tabular-nums; }
.bars svg { display: block; flex: 0 0 100%; margin: .2rem 0 .1rem; }
.plot { padding-left: 3.4rem; }
.plot svg { display: block; }
svg { overflow: visible; }
.defs { position: absolute; }
text { font-size: 12px; fill: var(--quiet); }
.tick { text-anchor: end; }
.grid, .range { stroke: var(--line); stroke-width: 1; }
.range { stroke: var(--quiet); stroke-width: 2; }
.curve { stroke-width: 1.5; fill: none; }
.whole { fill: var(--page); stroke: var(--line); }
.cost, .cache { fill: var(--blue); }
.cache { fill: var(--green); }
.error { fill: var(--red); }
.unknown, .cancelled { fill: url(#hatch); stroke: var(--quiet); stroke-dasharray: 3 2; }
.gap { fill: var(--panel); }
.stripe { fill: var(--quiet); }
.p50 { fill: var(--blue); stroke: var(--blue); }
.p95 { fill: var(--amber); stroke: var(--amber); }
.p99 { fill: var(--purple); stroke: var(--purple); }
.curve.p95 { stroke-dasharray: 5 3; }
.curve.p99 { stroke-dasharray: 1.5 3; }
.scroll { overflow-x: auto; margin-top: 1rem; background: var(--page); border: 1px solid var(--line);
  border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .82rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .5rem .6rem; }
th, td { padding: .35rem .4rem; text-align: right; border-top: 1px solid var(--line); vertical-align: top; }
td { white-space: nowrap; }
thead th { vertical-align: bottom; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--page); min-width: 6.5rem;
  max-width: 18rem; overflow-wrap: anywhere; }
.model th:first-child { min-width: 9.5rem; }
@media (max-width: 40rem) { .model th:first-child { min-width: 8rem; max-width: 9rem; } }
tfoot th, tfoot td { font-weight: 600; border-top: 2px solid var(--quiet); }
details { padding: .6rem .8rem; margin-bottom: .75rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
details .charts { margin-top: .75rem; }
details figure { background: var(--page); }
:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
@media print {
  body { font-size: 11px; } main { max-width: none; padding: 0; } .scroll { overflow: visible; border: 0; }
  figure, .tiles div, tr { break-inside: avoid; } h2, h3, summary { break-after: avoid; }
  details::details-content { content-visibility: visible; display: block; }
  th, td { padding: .2rem .3rem; } table { font-size: 9px; }
}
"""
