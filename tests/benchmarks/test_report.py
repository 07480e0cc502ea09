"""The tables and plots of ``docs/performance.md``."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.benchmarks import plots, report
from tests.benchmarks.bars import Figures, Sample


def samples(*processor_s: float) -> list[Sample]:
    return [Sample(each, 2 * each) for each in processor_s]


FIGURES: Figures = {
    "call": {
        "bare": samples(500e-6),
        "httpx": samples(600e-6),
        "aiohttp": samples(300e-6),
        "openai": samples(1200e-6),
        "litellm": samples(2400e-6),
    },
    "hit": {"bare": samples(500e-6), "httpx": samples(10e-6), "aiohttp": samples(20e-6)},
    "1000": {"bare": samples(9.7), "httpx": samples(0.5), "aiohttp": samples(0.6)},
}


def lines(table: str) -> dict[str, list[str]]:
    """Return the cells of each row by the first."""
    rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    return {name: cells for name, *cells in rows}


def test_the_table_has_each_measured_case_with_its_bars_and_misses_in_bold() -> None:
    assert lines(report.table(FIGURES, [["more", "", "0", "0", "0", "0"]])) == {
        "": ["bare httpx", "over httpx", "bar", "over aiohttp", "bar"],
        "---": ["---"] * 5,
        "one call, every layer on": ["500 µs", "**1.20**", "1.10", "0.60", "0.60"],
        "a cache hit in memory": ["", "0.020", "0.025", "**0.040**", "0.025"],
        "1,000 calls at once to a server that takes 200 ms": ["19.4 s", "1.00 s", "1.60 s", "**1.20 s**", "1.00 s"],
        "more": ["", "0", "0", "0", "0"],
    }


def test_seconds_of_a_short_run_are_processor_time() -> None:
    row = lines(report.table(FIGURES, clock="processor"))["1,000 calls at once to a server that takes 200 ms"]
    assert row == ["9.70 s", "0.50 s", "1.60 s", "0.60 s", "1.00 s"]


def test_the_table_of_peers_has_multiples_of_ours_with_what_is_asked_of_them() -> None:
    table = report.peer_table(FIGURES)
    assert lines(table)["one call, every layer on"] == ["4.00 (at least 3)", "**8.00** (at least 12)"]
    assert lines(table)[""] == ["openai", "litellm"]


def test_a_peer_that_could_not_do_a_case_fails() -> None:
    table = report.peer_table({"call": {**FIGURES["call"], "litellm": []}})
    assert lines(table)["one call, every layer on"] == ["4.00 (at least 3)", "fails"]


def test_without_peers_there_is_no_table_of_them() -> None:
    assert report.peer_table({"hit": FIGURES["hit"]}) == ""


def test_interpreters_have_a_row_each() -> None:
    only_call: Figures = {"call": FIGURES["call"]}
    table = report.interpreter_table({"CPython 3.13.0, uvloop": only_call})
    assert lines(table)["CPython 3.13.0, uvloop"] == ["500 µs", "1.20", "0.60"]


def test_a_section_is_replaced_and_the_rest_of_the_page_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("above <!-- measured: a -->old<!-- end --> between <!-- measured: b -->kept<!-- end -->\n")
    report.write({"a": "new", "b": ""}, page)
    assert page.read_text() == (
        "above <!-- measured: a -->\n\nnew\n\n<!-- end --> between <!-- measured: b -->kept<!-- end -->\n"
    )


def test_a_page_without_the_section_is_an_error() -> None:
    with pytest.raises(ValueError, match="no section 'peers'"):
        report.with_section("nothing", "peers", "new")


def test_the_page_has_a_place_for_every_section_and_shows_every_plot() -> None:
    page = report.PAGE.read_text(encoding="utf-8")
    assert re.findall("<!-- measured: (.+) -->", page) == ["table", "conditions", "peers", "interpreters"]
    assert page.count("<!-- end -->") == 4
    for name in (plots.BARS_PLOT, plots.PEERS_PLOT):
        assert f"({name})" in page
        assert (report.DOCS / name).exists()


def test_plots_draw_what_was_measured_to_scale(tmp_path: Path) -> None:
    files = plots.write(FIGURES, tmp_path)
    assert [file.name for file in files] == [plots.BARS_PLOT, plots.PEERS_PLOT]
    bars, peers = (ElementTree.fromstring(file.read_text()) for file in files)
    assert widths(bars, "httpx")[0] == pytest.approx(2 * widths(bars, "aiohttp")[0], rel=1e-3)
    assert widths(peers, "peer")[1] == pytest.approx(2 * widths(peers, "peer")[0], rel=1e-3)


def test_without_peers_their_plot_stays_as_it_is(tmp_path: Path) -> None:
    assert [file.name for file in plots.write({"call": dict(list(FIGURES["call"].items())[:3])}, tmp_path)] == [
        plots.BARS_PLOT
    ]


def widths(picture: ElementTree.Element, kind: str) -> list[float]:
    rects = picture.iter("{http://www.w3.org/2000/svg}rect")
    return [float(rect.attrib["width"]) for rect in rects if rect.attrib["class"] == kind]
