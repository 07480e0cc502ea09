"""Reports and ledger rows as CSV and as JSON lines."""

import csv
import json
from io import StringIO

import pytest

from llm_effects.reports import to_csv, to_json_lines
from tests.fixtures.usage_rows import report_of, row


def test_a_report_as_csv_and_as_json_lines() -> None:
    report = report_of(row(owner="alice"), row(outcome="TimeoutError", cost=None, owner="alice"), by=("model", "owner"))
    [cells] = csv.DictReader(StringIO(to_csv(report)))
    assert (cells["model"], cells["owner"], cells["cost_usd"], cells["unknown_costs"]) == ("gpt", "alice", "0.1", "1")
    assert (cells["failures"], cells["latency_ms_p95"], cells["first_content_ms_p50"]) == (
        '{"TimeoutError":1}',
        "100.0",
        "",
    )
    [line] = map(json.loads, to_json_lines(report).splitlines())
    assert (line["cost_usd"], line["failures"], line["first_content_ms_p50"]) == ("0.1", {"TimeoutError": 1}, None)
    assert list(line) == list(cells)


def test_rows_of_the_ledger_as_csv_and_as_json_lines() -> None:
    rows = [row(tags=("a", "b c"), cost="0.00000000000001"), row("d", cost=None)]
    first, second = csv.DictReader(StringIO(to_csv(rows)))
    assert (first["tags"], first["cost_usd"], second["cost_usd"]) == ('["a","b c"]', "0.00000000000001", "")
    lines = [json.loads(line) for line in to_json_lines(rows).splitlines()]
    assert [line["tags"] for line in lines] == [["a", "b c"], []]
    assert lines[0]["at"] == "2026-11-23T12:00:00+00:00"


def test_an_empty_csv_has_a_header() -> None:
    assert to_csv(report_of(by=("task",))).startswith("task,requests,")
    assert to_json_lines(report_of()) == ""
    assert to_csv(()).splitlines() == to_csv([row()]).splitlines()[:1]


@pytest.mark.parametrize("owner", ['=HYPERLINK("http://x")', "+1", "-1", "@a", "\tx"])
def test_csv_cells_cannot_be_formulas(owner: str) -> None:
    report = report_of(row(owner=owner), by=("owner",))
    [cells] = csv.DictReader(StringIO(to_csv(report)))
    assert cells["owner"] == f"'{owner.replace(chr(9), ' ')}"
    assert json.loads(to_json_lines(report))["owner"] == owner
