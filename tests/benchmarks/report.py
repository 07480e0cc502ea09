"""The figures as Markdown tables, and their sections of ``docs/performance.md``."""

import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.benchmarks.bars import (
    ALL_PEERS,
    CASES,
    OVER,
    Case,
    Clock,
    Figures,
    Sample,
    figure,
    multiple,
    seconds,
    text_of,
)

DOCS: Final = Path(__file__).parents[2] / "docs"
PAGE: Final = DOCS / "performance.md"


def rows_to_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table.

    >>> print(rows_to_table(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(figures: Figures, more: Iterable[Sequence[str]] = (), clock: Clock = "elapsed") -> str:
    """Return each measured case, over both transports, with its bars, and more rows below.

    Figures in seconds are of this clock, all others of the processor's.
    """
    head = ("", "bare httpx", "over httpx", "bar", "over aiohttp", "bar")
    rows = [row(case, figures[case.key], clock) for case in CASES if case.key in figures]
    return rows_to_table(head, [*rows, *more])


def row(case: Case, taken: Mapping[str, Sequence[Sample]], clock: Clock) -> list[str]:
    cells = [cell for over in OVER for cell in (judged(case, over, taken, clock), text_of(case.bar(over), case.unit))]
    return [case.title, bare_text(case, taken.get("bare", ()), clock), *cells]


def judged(case: Case, over: str, taken: Mapping[str, Sequence[Sample]], clock: Clock) -> str:
    """Return a figure, in bold if it misses its bar."""
    found, bar = figure(case, over, taken, clock), case.bar(over)
    shown = text_of(found, case.unit)
    return f"**{shown}**" if found is not None and bar is not None and found > bar else shown


def bare_text(case: Case, samples: Sequence[Sample], clock: Clock) -> str:
    """Return what bare httpx takes, unless for another case."""
    if not samples or case.against:
        return ""
    return duration(seconds(samples, clock if case.unit == "s" else "processor"))


def duration(took: float) -> str:
    """Return a time in the unit that is shortest to read.

    >>> duration(0.00054), duration(0.0034), duration(19.4)
    ('540 µs', '3.40 ms', '19.4 s')
    """
    if took < 1e-3:
        return f"{took * 1e6:.0f} µs"
    return text_of(took, "s") if took >= 0.1 else text_of(took * 1e3, "ms")


def peer_table(figures: Figures) -> str:
    """Return how many times as much each peer takes as this library over aiohttp, with its bar."""
    measured = [peer for peer in ALL_PEERS if any(peer in taken for taken in figures.values())]
    cases = [case for case in CASES if any(peer in figures.get(case.key, {}) for peer in measured)]
    rows = ([case.title, *(against(case, peer, figures[case.key]) for peer in measured)] for case in cases)
    return rows_to_table(("", *measured), rows) if measured else ""


def against(case: Case, peer: str, taken: Mapping[str, Sequence[Sample]]) -> str:
    found, bar = multiple(case, peer, taken), case.peers.get(peer)
    if peer in taken and not taken[peer]:
        return "fails"
    if found is None or bar is None:
        return text_of(found, "x")
    shown = text_of(found, "x")
    return f"{f'**{shown}**' if found < bar else shown} (at least {bar:g})"


def interpreter_table(measured: Mapping[str, Figures]) -> str:
    """Return the ratios under each interpreter and event loop, with what bare httpx takes there."""
    cases = [case for case in CASES if any(case.key in figures for figures in measured.values())]
    head = ["", *(f"{case.title.partition(',')[0]}: {name}" for case in cases for name in SHORT)]
    return rows_to_table(head, ([name, *interpreter_cells(cases, figures)] for name, figures in measured.items()))


SHORT: Final = ("bare httpx", "over httpx", "over aiohttp")


def interpreter_cells(cases: Iterable[Case], figures: Figures) -> Iterator[str]:
    for case in cases:
        taken = figures[case.key]
        yield duration(seconds(taken["bare"], "processor"))
        yield from (text_of(figure(case, over, taken), case.unit) for over in OVER)


def conditions(versions: Mapping[str, str], command: str) -> str:
    """Return where, when and of what the figures are."""
    load = f"{os.getloadavg()[2]:.1f}"
    packages = ", ".join(f"{name} {number}" for name, number in versions.items() if name != "python")
    return (
        f"`{command}` on {datetime.now(UTC):%Y-%m-%d}: {python_of(versions)}{platform.system()}, "
        f"{os.cpu_count()} cores of {processor()}, load {load} over 15 minutes; {packages}."
    )


def python_of(versions: Mapping[str, str]) -> str:
    return f"{platform.python_implementation()} {versions['python']}, " if "python" in versions else ""


def processor() -> str:
    """Return the name of the processor, as far as the system knows it."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def with_section(page: str, name: str, content: str) -> str:
    """Replace a section between its marks.

    >>> with_section("a <!-- measured: x -->old<!-- end --> b", "x", "new")
    'a <!-- measured: x -->\\n\\nnew\\n\\n<!-- end --> b'
    """
    start, end = f"<!-- measured: {name} -->", "<!-- end -->"
    before, found, rest = page.partition(start)
    if not found:
        message = f"the page has no section {name!r}"
        raise ValueError(message)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n\n{content}\n\n{end}{after}"


def write(sections: Mapping[str, str], page: Path = PAGE) -> None:
    """Write sections into the page; one without content stays as it is."""
    text = page.read_text(encoding="utf-8")
    for name, content in sections.items():
        text = with_section(text, name, content) if content else text
    page.write_text(text, encoding="utf-8")
