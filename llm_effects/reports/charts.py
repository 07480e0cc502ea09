"""The charts of the usage page, as HTML with inline SVG: bars for models, and columns and curves for days.

Horizontal places are shares of the width, so that a chart fits any page while its texts keep their size. Every text is
escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from html import escape
from itertools import pairwise
from typing import Final, Literal, TypeAlias, final

from llm_effects.reports.usage import UsageRow
from llm_effects.values.caps import NAME_CHARACTERS
from llm_effects.values.responses import CANCELLED
from llm_effects.values.validation import printable

Days: TypeAlias = Mapping[str, UsageRow | None]
"""Consecutive days, each with its row, or ``None`` where nothing was sent."""

_Share: TypeAlias = Literal["p50", "p95", "p99"]


# Elements. Texts are escaped here and nowhere else.


@final
class Markup(str):
    """HTML whose texts are escaped already."""

    __slots__ = ()


NOTHING: Final[Markup] = Markup("")


def tag(name: str, *children: str, **attributes: str | float) -> Markup:
    """Return an element; children that are no markup are escaped, and so are attributes."""
    pairs = (f' {key.rstrip("_").replace("_", "-")}="{_escaped(str(value))}"' for key, value in attributes.items())
    inner = (child if isinstance(child, Markup) else _escaped(child) for child in children)
    return Markup(f"<{name}{''.join(pairs)}>{''.join(inner)}</{name}>")


def _escaped(text: str) -> str:
    return escape(printable(text))


def name_of(text: str) -> str:
    """Return the name of a model at a length that can be shown."""
    return text if len(text) <= NAME_CHARACTERS else f"{text[: NAME_CHARACTERS - 1]}…"


def _at(percent: float) -> str:
    return f"{percent:.2f}%"


# Figures as text. What is unknown says so.


def usd(amount: Decimal) -> str:
    """Return an amount with cents, or two significant digits of less than a cent."""
    if amount == 0 or amount >= Decimal("0.1"):
        return f"${amount:,.2f}" if amount else "$0"
    return f"${amount.quantize(Decimal(1).scaleb(amount.adjusted() - 1)):f}"


def cost_of(row: UsageRow) -> str:
    """Return the known cost; it is a lower bound, or unknown, where some cost is."""
    if not _is_partly_known(row):
        return "unknown"
    return f"at least {usd(row.cost_usd)}" if row.unknown_costs else usd(row.cost_usd)


def _is_partly_known(row: UsageRow) -> bool:
    """Return whether there is a known cost to show: 0 is one only if no other is unknown."""
    return bool(row.cost_usd) or not row.unknown_costs


def cost_note(row: UsageRow) -> str:
    """Return how many costs are unknown; empty if none is."""
    return f"{count_of(row.unknown_costs, 'cost')} of {row.attempts:,} unknown" if row.unknown_costs else ""


def milliseconds(time: float | None) -> str:
    """Return a time in milliseconds or seconds, whichever is shorter to read."""
    if time is None:
        return "none"
    return f"{time:,.0f} ms" if time < 999.5 else f"{time / 1000:,.{1 if time < 99_950 else 0}f} s"


def latencies(row: UsageRow) -> str:
    """Return the percentiles of the latency."""
    times = row.latency_ms
    if times is None:
        return "no success"
    return ", ".join(f"{share} {milliseconds(getattr(times, share))}" for share in _SHARES)


def percent(share: float | None) -> str:
    """Return a share of 0 to 1; what is nearly nothing or nearly all is not rounded to it."""
    if share is None:
        return "unknown"
    if 0 < share < 0.001 or 0.999 < share < 1:
        return "<0.1 %" if share < 0.5 else ">99.9 %"
    return f"{share * 100:.1f} %" if 0 < share < 1 else f"{share:.0%}".replace("%", " %")


def count_of(number: int, noun: str) -> str:
    """Return a number of things."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


_SHARES: Final[tuple[_Share, ...]] = ("p50", "p95", "p99")


def failed_attempts(row: UsageRow) -> int:
    """Return how many attempts failed; a cancelled one did not."""
    return row.attempts - row.successes - cancelled_attempts(row)


def cancelled_attempts(row: UsageRow) -> int:
    """Return how many attempts were cancelled."""
    return row.failures.get(CANCELLED, 0)


def error_rate(row: UsageRow) -> float | None:
    """Return the share of attempts, from 0 to 1, that failed."""
    return failed_attempts(row) / row.attempts if row.attempts else None


def _error_percent(row: UsageRow) -> str:
    return percent(error_rate(row))


def _error_note(row: UsageRow) -> str:
    counts = sorted(row.failures.items(), key=lambda each: -each[1])
    return ", ".join(f"{name_of(outcome)} {count:,}" for outcome, count in counts)


def prompt_tokens(row: UsageRow) -> int:
    """Return the reported tokens of all prompts."""
    return row.input_tokens + row.cache_read_tokens + row.cache_write_tokens


def cache_rate(row: UsageRow) -> float | None:
    """Return the share of the reported prompt tokens that a provider read from its cache."""
    total = prompt_tokens(row)
    return row.cache_read_tokens / total if total else None


def _cache_percent(row: UsageRow) -> str:
    return percent(cache_rate(row))


# Charts of models: a list with a bar each.


def model_charts(rows: Sequence[UsageRow]) -> Markup:
    """Return charts of cost, latency, errors and prompt cache with a bar for each model."""
    charts = (
        _bars("Cost by model", _COSTS, rows, value=cost_of, note=cost_note, marks=_cost_bar(rows)),
        _bars("Latency by model", _LATENCIES, rows, value=latencies, note=_successes, marks=_latency_bar(rows)),
        _bars("Errors by model", _ERRORS, rows, value=_error_percent, note=_error_note, marks=_error_bar),
        _bars("Prompt cache by model", _CACHED, rows, value=_cache_percent, note=_tokens, marks=_cache_bar),
    )
    return tag("div", *charts, class_="charts")


def _bars(
    title: str,
    legend: Markup,
    rows: Sequence[UsageRow],
    *,
    value: Callable[[UsageRow], str],
    note: Callable[[UsageRow], str],
    marks: Callable[[UsageRow], Iterable[Markup]],
) -> Markup:
    """Return a chart with a bar for each model, its value and a note beside it as text."""
    key = title.split(maxsplit=1)[0].lower()
    lines = (
        tag(
            "li",
            tag("span", name_of(row.group[0]), class_="name"),
            tag("b", value(row)),
            drawing(f"{key}-{place}", f"{title}: {name_of(row.group[0])}", value(row), 12, *marks(row)),
            tag("small", note(row)),
        )
        for place, row in enumerate(rows)
    )
    return figure(title, legend, tag("ol", *lines, class_="bars"))


def _successes(row: UsageRow) -> str:
    return f"{count_of(row.successes, 'successful attempt')}"


def _tokens(row: UsageRow) -> str:
    return f"{row.cache_read_tokens:,} of {count_of(prompt_tokens(row), 'prompt token')}"


def _cost_bar(rows: Sequence[UsageRow]) -> Callable[[UsageRow], Iterator[Markup]]:
    largest = max((row.cost_usd for row in rows), default=Decimal(0)) or Decimal(1)

    def marks(row: UsageRow) -> Iterator[Markup]:
        end = 90 * float(row.cost_usd / largest)
        if _is_partly_known(row):
            yield _rect("cost", _at(0), _at(end))
        if row.unknown_costs:
            yield _rect("unknown", _at(end), "20")

    return marks


def _latency_bar(rows: Sequence[UsageRow]) -> Callable[[UsageRow], Iterator[Markup]]:
    largest = max((row.latency_ms.p99 for row in rows if row.latency_ms), default=0.0) or 1.0

    def marks(row: UsageRow) -> Iterator[Markup]:
        if row.latency_ms is None:
            return
        places = {share: _at(2 + 96 * getattr(row.latency_ms, share) / largest) for share in _SHARES}
        yield tag("line", x1=places["p50"], x2=places["p99"], y1=6, y2=6, class_="range")
        yield from (tag("use", href=f"#{share}", x=place, y=6) for share, place in places.items())

    return marks


def _error_bar(row: UsageRow) -> Iterator[Markup]:
    failed, lost = (100 * count / row.attempts for count in (failed_attempts(row), cancelled_attempts(row)))
    yield _rect("whole", _at(0), _at(100))
    yield _rect("error", _at(0), _at(failed))
    yield _rect("cancelled", _at(failed), _at(lost))


def _cache_bar(row: UsageRow) -> Iterator[Markup]:
    rate = cache_rate(row)
    if rate is not None:
        yield _rect("whole", _at(0), _at(100))
        yield _rect("cache", _at(0), _at(100 * rate))


def _rect(kind: str, x: str, width: str, y: float = 0, height: float = 12) -> Markup:
    return tag("rect", class_=kind, x=x, y=f"{y:.1f}", width=width, height=f"{height:.1f}")


# Charts of days: a column or three marks for each.


def day_charts(key: str, whose: str, days: Days) -> Markup:
    """Return charts of cost, latency, errors and prompt cache over days; ``key`` makes their ids unique."""
    charts = (
        _cost_by_day(key, whose, days),
        _latency_by_day(key, whose, days),
        _errors_by_day(key, whose, days),
        _cache_by_day(key, whose, days),
    )
    return tag("div", *charts, class_="charts")


def _sent(days: Days) -> list[tuple[int, str, UsageRow]]:
    """Return the days on which something was sent, with their places."""
    return [(place, day, row) for place, (day, row) in enumerate(days.items()) if row is not None]


def _cost_by_day(key: str, whose: str, days: Days) -> Markup:
    sent = _sent(days)
    top = _round_up(max(float(row.cost_usd) for _, _, row in sent))

    def columns() -> Iterator[Markup]:
        for place, day, row in sent:
            end = float(row.cost_usd) / top
            known = (_column("cost", place, len(days), 0, end),) if _is_partly_known(row) else ()
            unknown = (_column("unknown", place, len(days), end, end + 0.12),) if row.unknown_costs else ()
            shown = ", ".join(filter(None, (f"{day}: {cost_of(row)}", cost_note(row))))
            yield tag("g", tag("title", shown), *known, *unknown)

    described = f"{_peak(sent, lambda row: float(row.cost_usd), cost_of)} {_unknown_days(sent)}"
    return _plot(f"{key}-cost", f"Cost by day{whose}", described, days, *columns(), legend=_COSTS, ticks=_dollars(top))


def _unknown_days(sent: Sequence[tuple[int, str, UsageRow]]) -> str:
    count = sum(1 for _, _, row in sent if row.unknown_costs)
    return f"Some costs of {count_of(count, 'day')} are unknown." if count else "Every cost is known."


def _latency_by_day(key: str, whose: str, days: Days) -> Markup:
    sent = [each for each in _sent(days) if each[2].latency_ms]
    top = _round_up(max((_time_of(row, "p99") for _, _, row in sent), default=0.0))
    marks = (mark for share in _SHARES for mark in _curve(share, sent, len(days), top))
    described = _peak(sent, lambda row: _time_of(row, "p99"), latencies)
    ticks = (milliseconds(top), milliseconds(top / 2), "0")
    return _plot(f"{key}-latency", f"Latency by day{whose}", described, days, *marks, legend=_LATENCIES, ticks=ticks)


def _curve(share: _Share, sent: Sequence[tuple[int, str, UsageRow]], count: int, top: float) -> Iterator[Markup]:
    """Yield a mark for each day, and a line between two days that follow each other."""
    points = [(place, _at(_middle(place, count)), f"{_y(_time_of(row, share) / top):.1f}") for place, _, row in sent]
    for (place, x1, y1), (following, x2, y2) in pairwise(points):
        if following == place + 1:
            yield tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=f"curve {share}")
    small = "" if count <= 31 else "-small"
    for (_, x, y), (_, day, row) in zip(points, sent, strict=True):
        yield tag("use", tag("title", f"{day}: {latencies(row)}"), href=f"#{share}{small}", x=x, y=y)


def _time_of(row: UsageRow, share: _Share) -> float:
    return 0.0 if row.latency_ms is None else float(getattr(row.latency_ms, share))


def _errors_by_day(key: str, whose: str, days: Days) -> Markup:
    sent = _sent(days)
    top = min(1.0, _round_up(max(1 - row.successes / row.attempts for _, _, row in sent)))

    def columns() -> Iterator[Markup]:
        for place, day, row in sent:
            failed, ended = failed_attempts(row) / row.attempts / top, (1 - row.successes / row.attempts) / top
            lost = (_column("cancelled", place, len(days), failed, ended),) if cancelled_attempts(row) else ()
            shown = f"{day}: {_error_percent(row)} of {count_of(row.attempts, 'attempt')}. {_error_note(row)}"
            yield tag("g", tag("title", shown), _column("error", place, len(days), 0, failed), *lost)

    described = _peak(sent, lambda row: error_rate(row) or 0.0, _error_percent)
    ticks = (percent(top), percent(top / 2), "0 %")
    return _plot(f"{key}-errors", f"Errors by day{whose}", described, days, *columns(), legend=_ERRORS, ticks=ticks)


def _cache_by_day(key: str, whose: str, days: Days) -> Markup:
    sent = [each for each in _sent(days) if prompt_tokens(each[2])]

    def columns() -> Iterator[Markup]:
        for place, day, row in sent:
            shown = f"{day}: {_cache_percent(row)}, {_tokens(row)}"
            yield tag("g", tag("title", shown), _column("cache", place, len(days), 0, cache_rate(row) or 0.0))

    described = _peak(sent, lambda row: cache_rate(row) or 0.0, _cache_percent)
    ticks = ("100 %", "50 %", "0 %")
    return _plot(
        f"{key}-cache", f"Prompt cache by day{whose}", described, days, *columns(), legend=_CACHED, ticks=ticks
    )


def _peak(
    sent: Sequence[tuple[int, str, UsageRow]], size: Callable[[UsageRow], float], text: Callable[[UsageRow], str]
) -> str:
    """Return a sentence on the day with the highest value."""
    if not sent:
        return "No day has a value."
    _, day, row = max(sent, key=lambda each: size(each[2]))
    return f"{count_of(len(sent), 'day')} with a value; the highest is {text(row)} on {day}."


_TOP: Final = 22.0
_BASE: Final = 132.0


def _plot(
    key: str, title: str, described: str, days: Days, *marks: Markup, legend: Markup, ticks: tuple[str, str, str]
) -> Markup:
    """Return a chart over days, with lines at the top, the middle and the base of its scale."""
    first, last = min(days), max(days)
    heights = (_TOP, (_TOP + _BASE) / 2, _BASE)
    grid = (tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid") for y in heights)
    scale = (tag("text", tick, x="-6", y=y + 4, class_="tick") for y, tick in zip(heights, ticks, strict=True))
    dates = (tag("text", first, x="0", y=150), tag("text", last, x="100%", y=150, class_="tick"))
    shown = dates if first != last else dates[:1]
    picture = drawing(key, title, described, 156, *grid, *scale, *marks, *shown)
    return figure(title, legend, tag("div", picture, class_="plot"))


def _round_up(value: float) -> float:
    """Return a round number that is not below the value, as the top of a scale.

    >>> [_round_up(value) for value in (0.0, 0.031, 7.0, 100.0, 101.0)]
    [1.0, 0.04, 8.0, 100.0, 150.0]
    """
    if value <= 0:
        return 1.0
    power = float(f"1e{math.floor(math.log10(value))}")
    return next(
        float(f"{step * power:.3g}") for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * power >= value * 0.999_999
    )


def _dollars(top: float) -> tuple[str, str, str]:
    return usd(Decimal(repr(top))), usd(Decimal(repr(top)) / 2), "$0"


def _middle(place: int, count: int) -> float:
    return (place + 0.5) * 100 / count


def _y(share: float) -> float:
    return _BASE - share * (_BASE - _TOP)


def _column(kind: str, place: int, count: int, low: float, high: float) -> Markup:
    """Return a column between two shares of the scale; one of height 0 is a thin line at its base."""
    width = min(12.0, 70 / count)
    height = max((high - low) * (_BASE - _TOP), 1.5 if low == 0 else 0.0)
    return _rect(kind, _at(_middle(place, count) - width / 2), _at(width), _y(low) - height, height)


# Figures and legends.


def figure(title: str, legend: Markup, *contents: Markup) -> Markup:
    """Return a chart under its title and legend."""
    return tag("figure", tag("figcaption", tag("h3", title), legend), *contents)


def drawing(key: str, title: str, described: str, height: int, *marks: Markup) -> Markup:
    """Return a picture as wide as its place, with a name and a description for those who do not see it."""
    names = (tag("title", title, id=f"{key}-name"), tag("desc", described, id=f"{key}-text"))
    labels = {"aria_labelledby": f"{key}-name", "aria_describedby": f"{key}-text"}
    return tag("svg", *names, *marks, role="img", width="100%", height=height, **labels)


def legend_of(unit: str, **kinds: str) -> Markup:
    """Return the unit of a chart, and its marks with their meanings."""
    keys = (tag("span", _swatch(kind), meaning, class_="key") for kind, meaning in kinds.items())
    return tag("p", unit, *keys)


def _swatch(kind: str) -> Markup:
    mark = tag("use", href=f"#{kind}", x=6, y=6) if kind in _SHARES else _rect(kind, "0", "12")
    return tag("svg", mark, width=12, height=12, aria_hidden="true")


_COSTS: Final = legend_of("US dollars ", cost="known", unknown="unknown amount")
_LATENCIES: Final = legend_of("Time of successful attempts ", p50="p50", p95="p95", p99="p99")
_ERRORS: Final = legend_of("Share of attempts ", error="failed", cancelled="cancelled")
_CACHED: Final = legend_of("Share of prompt tokens ", cache="read from the provider's cache")


# Marks that all charts use.

PATTERNS: Final[Markup] = Markup("""<svg class="defs" width="0" height="0" aria-hidden="true"><defs>
<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<rect class="gap" width="6" height="6"/><rect class="stripe" width="2.5" height="6"/></pattern>
<circle id="p50" class="p50" r="4"/><circle id="p50-small" class="p50" r="2"/>
<rect id="p95" class="p95" x="-3.5" y="-3.5" width="7" height="7"/>
<rect id="p95-small" class="p95" x="-1.7" y="-1.7" width="3.4" height="3.4"/>
<path id="p99" class="p99" d="M0-5 5 4H-5Z"/><path id="p99-small" class="p99" d="M0-2.6 2.6 2H-2.6Z"/>
</defs></svg>""")
