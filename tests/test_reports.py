"""Reports: what the ledger comes to, by any dimension, and as CSV and JSON lines."""

import csv
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from io import StringIO
from xml.etree import ElementTree

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llm_effects import (
    Attempt,
    Cost,
    LLMEnv,
    LLMRequest,
    NetworkError,
    Preferences,
    TaskType,
    Usage,
    generate,
    run,
    scripted_env,
    usage_report,
)
from llm_effects.reports import Percentiles, UsageReport, to_csv, to_json_lines
from llm_effects.reports import usage as reports
from llm_effects.reports.usage import GROUPS, UsageSums, percentiles
from llm_effects.stores.disabled import UnusableStore
from llm_effects.values.errors import ConfigurationError
from llm_effects.values.records import LedgerRow
from tests.fixtures.holds import NOON
from tests.test_examples import load

TIMES = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


def row(
    call: str = "c",
    model: str = "gpt",
    outcome: str = "success",
    cost: str | None = "0.1",
    latency: float = 100.0,
    **fields: object,
) -> LedgerRow:
    attempt = Attempt(
        model=model,
        provider="openai",
        outcome=outcome,
        latency_ms=latency,
        usage=Usage(input_tokens=10, cache_read_tokens=5, cache_write_tokens=2, output_tokens=3, reasoning_tokens=1),
        cost=Cost(None if cost is None else Decimal(cost)),
    )
    made = LedgerRow(id=f"{call}.1", at=NOON, call_id=call, task_type=TaskType.ANALYSIS, attempt=attempt)
    return evolve(made, **fields)  # type: ignore[arg-type]


def report_of(*rows: LedgerRow, by: Sequence[str] = ("model",)) -> UsageReport:
    sums = UsageSums(tuple(by))  # type: ignore[arg-type]
    sums.add(rows)
    return sums.report()


async def env_with(*rows: LedgerRow) -> LLMEnv:
    env = scripted_env()
    for each in rows:
        env.ledger.record(each)
    return env


# What it comes to.


def test_a_row_counts_calls_and_attempts_outcomes_tokens_and_costs() -> None:
    [gpt] = report_of(
        row(latency=300), row(outcome="TimeoutError", cost=None), row("d", latency=100), row("e", outcome="cancelled")
    ).rows
    assert (gpt.requests, gpt.attempts, gpt.successes) == (3, 4, 2)
    assert gpt.failures == {"TimeoutError": 1, "cancelled": 1}
    assert gpt.error_rates == {"TimeoutError": 0.25, "cancelled": 0.25}
    assert (gpt.input_tokens, gpt.cache_read_tokens, gpt.cache_write_tokens) == (40, 20, 8)
    assert (gpt.output_tokens, gpt.reasoning_tokens) == (12, 4)
    assert (gpt.cost_usd, gpt.unknown_costs) == (Decimal("0.3"), 1)
    assert gpt.latency_ms == Percentiles(100, 300, 300)
    assert gpt.first_content_ms is None


def test_each_dimension_has_its_groups() -> None:
    each = row(owner="alice", tags=("b", "a", "b"))
    found = {name: of(each) for name, of in GROUPS.items()}
    assert found == {
        "model": ("gpt",),
        "provider": ("openai",),
        "task": ("analysis",),
        "day": ("2026-11-23",),
        "owner": ("alice",),
        "tag": ("b", "a"),
    }
    assert (GROUPS["owner"](row()), GROUPS["tag"](row())) == (("",), ("",))


def test_a_day_is_one_of_utc() -> None:
    from zoneinfo import ZoneInfo

    late = datetime(2026, 11, 24, 5, tzinfo=ZoneInfo("Asia/Tokyo"))
    assert GROUPS["day"](row(at=late)) == ("2026-11-23",)


def test_an_attempt_with_two_tags_counts_for_both_and_once_in_all() -> None:
    report = report_of(row(tags=("a", "b")), by=("tag",))
    assert [each.group for each in report.rows] == [("a",), ("b",)]
    assert report.total.attempts == 1


def test_the_dearest_come_first() -> None:
    report = report_of(row(model="cheap"), row(model="dear", cost="5"), row(model="none", cost=None))
    assert [each.group for each in report.rows] == [("dear",), ("cheap",), ("none",)]


@given(TIMES)
def test_percentiles_are_times_that_were_measured_and_in_order(times: list[float]) -> None:
    found = percentiles(times)
    assert found is not None
    assert {found.p50, found.p95, found.p99} <= set(times)
    assert found.p50 <= found.p95 <= found.p99 <= max(times)
    assert sum(each <= found.p95 for each in times) >= 0.95 * len(times)
    assert sum(each < found.p95 for each in times) < 0.95 * len(times)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 9)), max_size=30))
def test_groups_add_up_to_all(given_: list[tuple[str, str, int]]) -> None:
    rows = [row(str(place), model, owner=owner, cost=str(cost)) for place, (model, owner, cost) in enumerate(given_)]
    report = report_of(*rows, by=("model", "owner"))
    assert sum(each.attempts for each in report.rows) == report.total.attempts == len(rows)
    assert sum(each.cost_usd for each in report.rows) == report.total.cost_usd == sum(cost for _, _, cost in given_)


# From the ledger.


@pytest.mark.anyio
async def test_a_report_covers_its_time_only() -> None:
    rows = [row(str(day), at=NOON + timedelta(days=day), id=f"{day}.1") for day in range(5)]
    env = await env_with(*rows)
    since, until = NOON + timedelta(days=1), NOON + timedelta(days=3)
    report = (await run(usage_report(since, "day", until=until), env)).unwrap()
    assert sorted(each.group for each in report.rows) == [("2026-11-24",), ("2026-11-25",)]
    assert (report.since, report.until, report.by) == (since, until, ("day",))


@pytest.mark.anyio
async def test_a_report_of_many_pages_has_every_row_once() -> None:
    count = 2 * reports.PAGE + 1
    env = await env_with(*(row(str(place), id=f"{place}.1", at=NOON) for place in range(count)))
    report = (await run(usage_report(), env)).unwrap()
    assert (report.total.attempts, report.total.requests) == (count, count)


@pytest.mark.anyio
async def test_calls_are_in_the_report_with_owner_task_and_tags_and_so_are_their_failures() -> None:
    env = scripted_env(NetworkError(phase="dns"), "ok")
    request = LLMRequest(prompt="?", owner="alice", task_type="triage", tags=("nightly",), preferences=Preferences())
    await run(generate(request), env)
    report = (await run(usage_report(by=("owner", "task", "tag")), env)).unwrap()
    [alice] = report.rows
    assert alice.group == ("alice", "triage", "nightly")
    assert (alice.requests, alice.attempts, alice.failures) == (1, 2, {"NetworkError": 1})


@pytest.mark.anyio
async def test_what_makes_no_sense_is_an_invalid_request() -> None:
    naive = datetime(2026, 11, 23)  # noqa: DTZ001
    env = scripted_env()
    wrong = (await run(usage_report(naive), env)).failure()
    assert (wrong.tag, wrong.message) == (  # type: ignore[union-attr]
        "InvalidRequest",
        "since: must have a time zone, such as datetime.now(UTC)",
    )
    unknown = (await run(usage_report(by="modle"), env)).failure()  # type: ignore[arg-type]
    assert unknown.message == "by: 'modle': did you mean model?"  # type: ignore[union-attr]


@pytest.mark.anyio
async def test_a_ledger_that_cannot_be_read_is_an_error() -> None:
    problem = ConfigurationError(message="storage.url: unknown scheme")
    env = evolve(scripted_env(), ledger=UnusableStore(problem))
    assert (await run(usage_report(), env)).failure() == problem


# As text.


def test_a_report_as_csv_and_as_json_lines() -> None:
    report = report_of(row(owner="alice"), row(outcome="TimeoutError", cost=None, owner="alice"), by=("model", "owner"))
    [told] = csv.DictReader(StringIO(to_csv(report)))
    assert (told["model"], told["owner"], told["cost_usd"], told["unknown_costs"]) == ("gpt", "alice", "0.1", "1")
    assert (told["failures"], told["latency_ms_p95"], told["first_content_ms_p50"]) == (
        '{"TimeoutError":1}',
        "100.0",
        "",
    )
    [line] = map(json.loads, to_json_lines(report).splitlines())
    assert (line["cost_usd"], line["failures"], line["first_content_ms_p50"]) == ("0.1", {"TimeoutError": 1}, None)
    assert list(line) == list(told)


def test_rows_of_the_ledger_as_csv_and_as_json_lines() -> None:
    rows = [row(tags=("a", "b c"), cost="0.00000000000001"), row("d", cost=None)]
    first, second = csv.DictReader(StringIO(to_csv(rows)))
    assert (first["tags"], first["cost_usd"], second["cost_usd"]) == ('["a","b c"]', "0.00000000000001", "")
    lines = [json.loads(line) for line in to_json_lines(rows).splitlines()]
    assert [line["tags"] for line in lines] == [["a", "b c"], []]
    assert lines[0]["at"] == "2026-11-23T12:00:00+00:00"


def test_nothing_is_a_heading() -> None:
    assert to_csv(report_of(by=("task",))).startswith("task,requests,")
    assert to_json_lines(report_of()) == ""
    assert to_csv(()).splitlines() == to_csv([row()]).splitlines()[:1]


@pytest.mark.parametrize("owner", ['=HYPERLINK("http://x")', "+1", "-1", "@a", "\tx"])
def test_a_spreadsheet_runs_nothing_that_a_stranger_typed(owner: str) -> None:
    report = report_of(row(owner=owner), by=("owner",))
    [told] = csv.DictReader(StringIO(to_csv(report)))
    assert told["owner"] == f"'{owner}"
    assert json.loads(to_json_lines(report))["owner"] == owner


# The example.


@pytest.mark.anyio
async def test_the_example_draws_a_table_and_charts() -> None:
    example = load("cost_report")
    rows = (
        row("a", cost="0.3", latency=800),
        row("b", "claude", cost="0.1", latency=400),
        row("c", "claude", cost=None),
    )
    report = (await run(usage_report(by=("model", "task")), await env_with(*rows))).unwrap()
    table, chart = example.table(report).splitlines(), example.chart(report).splitlines()
    assert table[1].split() == ["gpt", "/", "analysis", "1", "1", "1", "13", "$0.3", "800", "800"]
    assert "$0.1+" in table[2]
    assert table[3].startswith("all")
    assert [line.count("#") for line in chart] == [0, 24, 8, 0, 0, 24, 3]  # the longest is for the largest
    picture = ElementTree.fromstring(example.svg(report))
    assert len(picture.findall("{http://www.w3.org/2000/svg}rect")) == 2
