"""Usage reports: sums, groups, percentiles, and reading the ledger page by page."""

from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llm_effects import (
    LLMRequest,
    NetworkError,
    Preferences,
    Usage,
    generate,
    run,
    scripted_env,
    usage_report,
)
from llm_effects.config import Price
from llm_effects.reports import Percentiles
from llm_effects.reports import usage as reports
from llm_effects.reports.usage import usage_overview
from llm_effects.routing.prices import PriceList, cost_of
from llm_effects.stores.disabled import unusable_ledger
from llm_effects.values.errors import ConfigurationError
from llm_effects.values.records import LedgerRow
from llm_effects.values.usage import GROUPS, Times, key_of, percentiles, time_code, time_value
from tests.fixtures.holds import NOON
from tests.fixtures.usage_rows import env_with, report_of, row

TIMES = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


def test_a_row_sums_calls_attempts_outcomes_tokens_and_costs() -> None:
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


@pytest.mark.anyio
async def test_a_report_shows_what_prompt_caches_saved() -> None:
    price = Price(input=2, output=10, cache_read="0.2", cache_write="2.5")
    read = Usage(input_tokens=0, cache_read_tokens=1_000_000, output_tokens=0)
    written = Usage(input_tokens=0, cache_write_tokens=100_000, cache_write_1h_tokens=100_000, output_tokens=0)
    attempts = [evolve(row().attempt, usage=usage, cost=cost_of(price, usage, NOON)) for usage in (read, written, read)]
    rows = [row(str(at), attempt=attempt, owner=f"owner {at % 2}") for at, attempt in enumerate(attempts)]
    env = evolve(env_with(*rows), prices=PriceList({"gpt": price}))
    report = (await run(usage_report(by="owner"), env)).unwrap()
    assert {each.group[0]: each.cache_saved_usd for each in report.rows} == {
        "owner 0": Decimal("3.6"),
        "owner 1": Decimal("-0.2"),
    }
    assert report.total.cache_saved_usd == Decimal("3.4")
    assert report.total.cache_write_1h_tokens == 100_000
    assert "prompt caches saved" in report._repr_markdown_()
    overview = (await run(usage_overview(), env)).unwrap()
    assert overview.by_model.total.cache_saved_usd == overview.by_model.rows[0].cache_saved_usd == Decimal("3.4")


def groups_of(each: LedgerRow) -> dict[str, tuple[str, ...]]:
    key = key_of(each)
    return {name: of(getattr(key, field)) for name, (field, of) in GROUPS.items()}


def test_each_dimension_has_its_groups() -> None:
    assert groups_of(evolve(row(owner="alice", tags=("b", "a", "b")), left_machine=True)) == {
        "model": ("gpt",),
        "provider": ("openai",),
        "task": ("analysis",),
        "hour": ("2026-11-23T12:00Z",),
        "day": ("2026-11-23",),
        "owner": ("alice",),
        "tag": ("b", "a"),
        "left_machine": ("yes",),
    }
    nothing = groups_of(row())
    assert (nothing["owner"], nothing["tag"], nothing["left_machine"]) == (("",), ("",), ("",))
    assert groups_of(evolve(row(), left_machine=False))["left_machine"] == ("no",)


def test_hours_and_days_are_in_utc() -> None:
    from zoneinfo import ZoneInfo

    late = row(at=datetime(2026, 11, 24, 5, 59, tzinfo=ZoneInfo("Asia/Kolkata")))
    assert (groups_of(late)["hour"], groups_of(late)["day"]) == (("2026-11-24T00:00Z",), ("2026-11-24",))
    early = row(at=datetime(2026, 11, 24, 5, 29, tzinfo=ZoneInfo("Asia/Kolkata")))
    assert (groups_of(early)["hour"], groups_of(early)["day"]) == (("2026-11-23T23:00Z",), ("2026-11-23",))


@given(st.floats(0, 1e8))
def test_times_are_exact_to_three_significant_digits(ms: float) -> None:
    assert abs(time_value(time_code(ms)) - ms) <= max(0.005 * ms, 0.000501)


@given(st.floats(0), st.floats(0))
def test_codes_of_times_have_their_order(first: float, second: float) -> None:
    assert (time_code(first) <= time_code(second)) or first > second
    assert 0 <= time_code(first) < 2**16


@given(TIMES)
def test_counted_percentiles_are_those_of_the_times(times: list[float]) -> None:
    counted, many = Times(), Times()
    counted.extend(map(time_code, times))
    for _ in range(2_000):  # more than are kept as they are
        many.merge(counted)
    exact = percentiles(time_value(time_code(each)) for each in times)
    assert counted.percentiles() == many.percentiles() == exact


def test_an_attempt_with_two_tags_counts_for_both_and_once_in_the_total() -> None:
    report = report_of(row(tags=("a", "b")), by=("tag",))
    assert [each.group for each in report.rows] == [("a",), ("b",)]
    assert report.total.attempts == 1


def test_the_most_expensive_groups_come_first() -> None:
    report = report_of(row(model="cheap"), row(model="expensive", cost="5"), row(model="none", cost=None))
    assert [each.group for each in report.rows] == [("expensive",), ("cheap",), ("none",)]


@given(TIMES)
def test_percentiles_are_measured_times_in_order(times: list[float]) -> None:
    result = percentiles(times)
    assert result is not None
    assert {result.p50, result.p95, result.p99} <= set(times)
    assert result.p50 <= result.p95 <= result.p99 <= max(times)
    assert sum(each <= result.p95 for each in times) >= 0.95 * len(times)
    assert sum(each < result.p95 for each in times) < 0.95 * len(times)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 9)), max_size=30))
def test_groups_add_up_to_the_total(attempts: list[tuple[str, str, int]]) -> None:
    rows = [row(str(place), model, owner=owner, cost=str(cost)) for place, (model, owner, cost) in enumerate(attempts)]
    report = report_of(*rows, by=("model", "owner"))
    assert sum(each.attempts for each in report.rows) == report.total.attempts == len(rows)
    assert sum(each.cost_usd for each in report.rows) == report.total.cost_usd == sum(cost for _, _, cost in attempts)


# Reading the ledger.


@pytest.mark.anyio
async def test_a_report_covers_only_its_period() -> None:
    rows = [row(str(day), at=NOON + timedelta(days=day), id=f"{day}.1") for day in range(5)]
    env = env_with(*rows)
    since, until = NOON + timedelta(days=1), NOON + timedelta(days=3)
    report = (await run(usage_report(since, "day", until=until), env)).unwrap()
    assert sorted(each.group for each in report.rows) == [("2026-11-24",), ("2026-11-25",)]
    assert (report.since, report.until, report.by) == (since, until, ("day",))


@pytest.mark.anyio
async def test_a_report_of_many_pages_counts_every_row_once() -> None:
    count = 2 * reports.PAGE + 1
    env = env_with(*(row(str(place), id=f"{place}.1", at=NOON) for place in range(count)))
    report = (await run(usage_report(), env)).unwrap()
    assert (report.total.attempts, report.total.requests) == (count, count)


@pytest.mark.anyio
async def test_calls_are_reported_with_owner_task_tags_and_failures() -> None:
    env = scripted_env(NetworkError(phase="dns"), "ok")
    request = LLMRequest(prompt="?", owner="alice", task_type="triage", tags=("nightly",), preferences=Preferences())
    await run(generate(request), env)
    report = (await run(usage_report(by=("owner", "task", "tag")), env)).unwrap()
    [alice] = report.rows
    assert alice.group == ("alice", "triage", "nightly")
    assert (alice.requests, alice.attempts, alice.failures) == (1, 2, {"NetworkError": 1})


@pytest.mark.anyio
async def test_invalid_arguments_are_an_invalid_request() -> None:
    naive = datetime(2026, 11, 23)  # noqa: DTZ001
    env = scripted_env()
    naive_since = (await run(usage_report(naive), env)).failure()
    assert (naive_since.tag, naive_since.message) == (  # type: ignore[union-attr]
        "InvalidRequest",
        "since: must have a time zone, such as datetime.now(UTC)",
    )
    text = (await run(usage_report("2026-11-23"), env)).failure()  # type: ignore[arg-type]
    assert text.message == "since: must be a datetime, not str"  # type: ignore[union-attr]
    unknown = (await run(usage_report(by="modle"), env)).failure()  # type: ignore[arg-type]
    assert unknown.message == "by: 'modle': did you mean model?"  # type: ignore[union-attr]
    foreign = (await run(usage_report(by="foo"), env)).failure()  # type: ignore[arg-type]
    groups = "model, provider, task, hour, day, owner, tag, left_machine"
    assert foreign.message == f"by: 'foo': the groups are {groups}"  # type: ignore[union-attr]


@pytest.mark.anyio
async def test_a_ledger_that_cannot_be_read_is_an_error() -> None:
    problem = ConfigurationError(message="storage.url: unknown scheme")
    env = evolve(scripted_env(), ledger=unusable_ledger(problem))
    assert (await run(usage_report(), env)).failure() == problem
