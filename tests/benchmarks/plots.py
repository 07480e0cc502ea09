"""The plots of ``docs/performance.md``: horizontal bars, as SVG that follows the colours of the reader's system."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, final

from llm_effects.reports.charts import Markup, tag
from tests.benchmarks.bars import ALL_PEERS, CASES, OVER, Case, Figures, figure, text_of
from tests.benchmarks.report import DOCS

BARS_PLOT: Final = "performance-bars.svg"
PEERS_PLOT: Final = "performance-peers.svg"
NAMES: Final = {"bare": "bare httpx", "httpx": "llm_effects over httpx", "aiohttp": "llm_effects over aiohttp"}

WIDTH, LEFT, RIGHT = 800, 190, 70
ROW, THICK, HEAD, GAP = 24, 14, 44, 18

STYLE: Final = """
svg { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 13px; }
.page { fill: #ffffff; }
.title { font-size: 14px; font-weight: 600; fill: #1b2330; }
.name { fill: #3c4553; text-anchor: end; } .note { fill: #5b6472; font-size: 12px; }
.httpx { fill: #8fb4ee; } .aiohttp { fill: #2f6fd0; } .bare { fill: #8a93a3; } .peer { fill: #d9a15c; }
.value { fill: #1b2330; stroke: #ffffff; stroke-width: 3; paint-order: stroke; }
.one { stroke: #5b6472; stroke-width: 1; stroke-dasharray: 3 3; } .goal { stroke: #1b2330; stroke-width: 2.5; }
@media (prefers-color-scheme: dark) {
  .page { fill: #131416; }
  .title { fill: #eef1f5; } .value { fill: #eef1f5; stroke: #131416; } .name { fill: #c3cad4; } .note { fill: #a3abb8; }
  .httpx { fill: #3f68a8; } .aiohttp { fill: #7fb0ff; } .bare { fill: #78818f; } .peer { fill: #b9813c; }
  .one { stroke: #a3abb8; } .goal { stroke: #eef1f5; }
}
"""


@final
class Bar(NamedTuple):
    """A bar: its name, its length as a ratio to bare httpx, its colour, and where its goal is marked, if it has one."""

    name: str
    ratio: float
    kind: str
    goal: float | None = None


@final
class Panel(NamedTuple):
    """Bars under a title, on a scale that ends at a ratio."""

    title: str
    bars: Sequence[Bar]
    most: float

    @property
    def height(self) -> int:
        return HEAD + ROW * len(self.bars) + GAP


def drawing(title: str, note: str, panels: Sequence[Panel]) -> str:
    """Draw panels below each other; a dashed line in each is bare httpx."""
    height = 30 + sum(panel.height for panel in panels)
    tops = [30 + sum(panel.height for panel in panels[:place]) for place in range(len(panels))]
    marks = (mark for panel, top in zip(panels, tops, strict=True) for mark in panel_marks(panel, top))
    described = "; ".join(f"{panel.title}: {spoken(panel)}" for panel in panels)
    return tag(
        "svg",
        tag("title", title),
        tag("desc", described),
        tag("style", Markup(STYLE)),
        tag("rect", class_="page", width=WIDTH, height=height),
        tag("text", note, class_="note", x=16, y=22),
        *marks,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
    )


def spoken(panel: Panel) -> str:
    return ", ".join(f"{bar.name} {text_of(bar.ratio, 'x')}" for bar in panel.bars)


def panel_marks(panel: Panel, top: int) -> Iterator[Markup]:
    """Draw the bars of a panel, with their values at their ends."""
    unit = (WIDTH - LEFT - RIGHT) / panel.most
    first, last = top + HEAD - 8, top + HEAD + ROW * len(panel.bars)
    yield tag("text", panel.title, class_="title", x=16, y=top + 24)
    for place, bar in enumerate(panel.bars):
        y = top + HEAD + ROW * place
        yield tag("text", bar.name, class_="name", x=LEFT - 8, y=y + 12)
        yield tag("rect", class_=bar.kind, x=LEFT, y=y, width=f"{bar.ratio * unit:.1f}", height=THICK, rx=2)
        if bar.goal is not None:
            yield line("goal", LEFT + bar.goal * unit, y - 3, y + THICK + 3)
    yield line("one", LEFT + unit, first, last)
    for place, bar in enumerate(panel.bars):
        end = LEFT + max(bar.ratio, bar.goal or 0) * unit
        y = top + HEAD + ROW * place + 12
        yield tag("text", text_of(bar.ratio, "x"), class_="value", x=f"{end + 6:.1f}", y=y)


def line(kind: str, x: float, top: float, bottom: float) -> Markup:
    return tag("line", class_=kind, x1=f"{x:.1f}", x2=f"{x:.1f}", y1=top, y2=bottom)


def bars_plot(figures: Figures) -> str:
    """Draw our ratios with their bars."""
    bars = {case.title: our_bars(case, figures) for case in plotted(figures)}
    most = longest(bar for each in bars.values() for bar in each)
    return drawing(
        "Processor time of llm_effects as a ratio to bare httpx",
        "Processor time; 1 (dashed) is bare httpx; a thick line is the bar; shorter is better.",
        [Panel(title, each, most) for title, each in bars.items()],
    )


def longest(bars: Iterable[Bar]) -> float:
    """Return where a scale ends: at the longest bar, the farthest goal, or 1."""
    return max([1.0, *(max(bar.ratio, bar.goal or 0) for bar in bars)])


def plotted(figures: Figures) -> Iterator[Case]:
    """Yield the measured cases whose figures are ratios of a size that can be seen."""
    return (case for case in CASES if case.key in figures and case.unit == "x" and (case.bars[0] or 0) > 0.5)


def our_bars(case: Case, figures: Figures) -> list[Bar]:
    found = ((over, figure(case, over, figures[case.key])) for over in OVER)
    return [Bar(NAMES[over], ratio, over, case.bar(over)) for over, ratio in found if ratio is not None]


def peers_plot(figures: Figures) -> str:
    """Draw everything that was measured beside each other."""
    cases = [case for case in plotted(figures) if set(ALL_PEERS) & figures[case.key].keys()]
    return drawing(
        "Processor time of llm_effects and of other libraries as a ratio to bare httpx",
        "Processor time; 1 (dashed) is bare httpx; shorter is better.",
        [Panel(case.title, bars, longest(bars)) for case in cases for bars in [all_bars(case, figures)]],
    )


def all_bars(case: Case, figures: Figures) -> list[Bar]:
    """Return the bars of everyone, shortest first."""
    found = ((name, figure(case, name, figures[case.key])) for name in case.clients)
    bars = [
        Bar(NAMES.get(name, name), ratio, name if name in NAMES else "peer")
        for name, ratio in found
        if ratio is not None
    ]
    return sorted(bars, key=lambda bar: bar.ratio)


def write(figures: Figures, folder: Path = DOCS) -> Iterable[Path]:
    """Write the plots of what was measured, and return their files."""
    drawn = {BARS_PLOT: bars_plot(figures)} if any(plotted(figures)) else {}
    if any(set(ALL_PEERS) & taken.keys() for taken in figures.values()):
        drawn[PEERS_PLOT] = peers_plot(figures)
    for name, picture in drawn.items():
        (folder / name).write_text(f"{picture}\n", encoding="utf-8")
    return [folder / name for name in drawn]
