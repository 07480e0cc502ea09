"""The usage page: what it shows, that texts from outside stay texts, and how a browser sees it."""

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import anyio
import pytest
from attrs import define, evolve, field, frozen
from hypothesis import given
from hypothesis import strategies as st

from llm_effects import LLMRequest, Usage, generate, run, scripted_env, usage_report
from llm_effects.reports import UsageOverview, usage_overview, usage_page
from llm_effects.reports.charts import percent, usd
from llm_effects.stores.disabled import unusable_ledger
from llm_effects.values.errors import ConfigurationError
from llm_effects.values.records import CacheStats, LedgerRow
from tests.fixtures.browser import Browser, browser
from tests.fixtures.holds import NOON
from tests.fixtures.usage_rows import env_with, report_of, row

__all__ = ["browser"]

HOSTILE = "</title></script></style>\"'><img src=x onerror=alert(1)><script>alert(2)</script>&lt;\u202egpj\x00"

VOID = {"meta", "!doctype"}


@frozen
class Element:
    tag: str
    attributes: Mapping[str, str | None]


@define
class Page(HTMLParser):
    """The elements of a page, and its texts in order."""

    elements: list[Element] = field(factory=list[Element])
    texts: list[str] = field(factory=list[str])
    open_tags: list[str] = field(factory=list[str])

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs)))
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data)

    def of_class(self, name: str) -> list[Element]:
        return [each for each in self.elements if each.attributes.get("class") == name]

    def tags(self, name: str) -> list[Element]:
        return [each for each in self.elements if each.tag == name]


async def overview_of(*rows: LedgerRow, since: datetime | None = None) -> UsageOverview:
    numbered = (evolve(each, id=f"{place}.1", call_id=f"{each.call_id}{place}") for place, each in enumerate(rows))
    return (await run(usage_overview(since), env_with(*numbered))).unwrap()


async def page_of(*rows: LedgerRow) -> Page:
    return parsed(usage_page(await overview_of(*rows)))


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert page.open_tags == []
    return page


def on_day(day: int) -> datetime:
    return NOON + timedelta(days=day)


def some_rows(model: str = "gpt", days: int = 5) -> list[LedgerRow]:
    """Return rows of three models over some days: known, unknown and no costs, failures, and a day without any."""
    rows = list[LedgerRow]()
    for day in range(days):
        if day % 7 != 3:
            rows += (
                row(model=model, latency=200 + 40 * day, cost="1.25", at=on_day(day)),
                row(model=model, outcome="RateLimitExceeded", cost="0", at=on_day(day)),
                row(model="mystery", latency=900, cost=None, at=on_day(day)),
                row(model="local", latency=2500, cost="0", at=on_day(day)),
                row(model="local", outcome="cancelled", cost=None, at=on_day(day)),
            )
    return rows


# The overview.


@pytest.mark.anyio
async def test_an_overview_has_the_rows_of_three_reports() -> None:
    env = env_with(*(evolve(each, id=f"{place}.1") for place, each in enumerate(some_rows())))
    overview = (await run(usage_overview(on_day(1), until=on_day(4)), env)).unwrap()
    for report, by in (
        (overview.by_model, ("model",)),
        (overview.by_day, ("day",)),
        (overview.by_model_and_day, ("model", "day")),
    ):
        assert report == (await run(usage_report(on_day(1), by, until=on_day(4)), env)).unwrap()
    assert overview.at.tzinfo is not None


@pytest.mark.anyio
async def test_an_overview_counts_a_call_of_two_days_once_in_a_model() -> None:
    env = env_with(row(id="c.1"), row(id="c.2", at=on_day(1)))
    overview = (await run(usage_overview(), env)).unwrap()
    [gpt] = overview.by_model.rows
    assert (gpt.requests, gpt.attempts) == (1, 2)
    assert [each.requests for each in overview.by_day.rows] == [1, 1]


@pytest.mark.anyio
async def test_the_errors_of_an_overview_are_those_of_a_report() -> None:
    naive = (await run(usage_overview(datetime(2026, 11, 23)), scripted_env())).failure()  # noqa: DTZ001
    assert naive.tag == "InvalidRequest"
    problem = ConfigurationError(message="storage.url: unknown scheme")
    assert (await run(usage_overview(), evolve(scripted_env(), ledger=unusable_ledger(problem)))).failure() == problem


# The page.


@pytest.mark.anyio
async def test_a_page_says_period_time_zone_and_totals() -> None:
    overview = await overview_of(*some_rows(), since=datetime(2026, 11, 1, tzinfo=UTC))
    text = " ".join(parsed(usage_page(evolve(overview, at=on_day(6)))).texts)
    assert "Period 2026-11-01 00:00 UTC to the time of reading Read 2026-11-29 12:00 UTC" in text
    assert "Time zone of days and times UTC" in text
    assert "Cost at least $5.00 8 costs of 20 unknown Calls 20 20 attempts sent" in text
    assert "Errors 20.0 % 4 failed, 4 cancelled" in text


@pytest.mark.anyio
async def test_a_page_loads_nothing_and_runs_nothing() -> None:
    text = usage_page(await overview_of(*some_rows()))
    page = parsed(text)
    links = [each.attributes[name] for each in page.elements for name in ("href", "src") if name in each.attributes]
    assert all(str(link).startswith("#") for link in links)
    assert not {"script", "link", "img", "iframe", "object", "a", "form"} & {each.tag for each in page.elements}
    assert re.findall(r"url\((?!#)|@import|https?:", text) == []
    [style] = re.findall(r"<style>(.*)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    [policy] = (each for each in page.tags("meta") if each.attributes.get("http-equiv") == "Content-Security-Policy")
    assert str(policy.attributes["content"]).startswith(f"default-src 'none'; style-src 'sha256-{digest}';")


@pytest.mark.anyio
async def test_texts_from_outside_stay_texts() -> None:
    usual, hostile = await page_of(*some_rows()), await page_of(*some_rows(HOSTILE), row(outcome=HOSTILE))
    kinds = {(each.tag, *each.attributes) for each in usual.elements}
    assert {(each.tag, *each.attributes) for each in hostile.elements} == kinds
    shown = [text for text in hostile.texts if "alert(1)" in text]
    assert len(shown) > 10
    assert all("&lt;gpj " in text and "\u202e" not in text for text in shown)


@pytest.mark.anyio
async def test_a_very_long_name_is_cut() -> None:
    text = usage_page(await overview_of(row(model="m" * 10_000)))
    assert f"{'m' * 199}…" in text
    assert "m" * 200 not in text


@pytest.mark.anyio
async def test_an_unknown_cost_is_never_drawn_as_0() -> None:
    page = await page_of(row(model="mystery", cost=None), row(model="mystery", cost="0", outcome="RateLimitExceeded"))
    assert "2026-11-23: unknown, 1 cost of 2 unknown" in page.texts
    assert page.texts.count("$0") == 1  # the base of the scale
    assert {each.attributes["width"] for each in page.of_class("cost")} == {"12"}  # in the legends
    drawn = [each for each in page.of_class("unknown") if each.attributes["width"] != "12"]
    assert [each.attributes["x"] for each in drawn] == ["0.00%", "44.00%"]  # of the model, of the day


@pytest.mark.anyio
async def test_a_cost_that_is_partly_unknown_is_a_lower_bound() -> None:
    page = await page_of(row(cost="0.25"), row(cost=None), row(cost=None))
    assert {"at least $0.25", "2 costs of 3 unknown", "2026-11-23: at least $0.25, 2 costs of 3 unknown"} <= {
        *page.texts
    }


@pytest.mark.anyio
async def test_a_free_model_costs_0() -> None:
    page = await page_of(row(cost="0"))
    assert "2026-11-23: $0" in page.texts
    assert "every cost is known" in page.texts


@pytest.mark.anyio
async def test_cancelled_attempts_are_no_errors() -> None:
    page = await page_of(row(), row(outcome="cancelled"), row(outcome="TimeoutError"), row(outcome="TimeoutError"))
    assert "TimeoutError 2, cancelled 1" in page.texts
    assert "50.0 %" in page.texts


@pytest.mark.anyio
async def test_cache_rates_are_of_reported_tokens() -> None:
    silent = row(model="silent")
    silent = evolve(silent, attempt=evolve(silent.attempt, usage=Usage()))
    page = await page_of(row(), silent)
    assert "5 of 17 prompt tokens" in page.texts
    assert "29.4 %" in page.texts
    place = page.texts.index("Prompt cache by model")
    after = page.texts[page.texts.index("silent", place) :]
    assert after[1] == "unknown"


@pytest.mark.anyio
async def test_a_page_says_what_the_ledger_does_not_record() -> None:
    overview = await overview_of(row())
    assert "The number of hits is not recorded here." in usage_page(overview)
    assert "The number of hits is not recorded here." in usage_page(overview, cache=CacheStats())
    assert "30 of 40 look-ups (75.0 %) were hits." in usage_page(overview, cache=CacheStats(hits=30, misses=10))


@pytest.mark.anyio
async def test_an_empty_ledger_is_said_to_be_empty() -> None:
    page = await page_of()
    assert "Nothing was sent in this period" in page.texts
    assert not page.tags("table")
    assert not page.tags("figure")


@pytest.mark.anyio
async def test_days_without_attempts_keep_their_place_and_have_no_mark() -> None:
    page = await page_of(row(at=on_day(0)), row(at=on_day(3)))
    columns = [
        each.attributes["x"] for each in page.of_class("cost") if str(each.attributes["x"]) not in {"0", "0.00%"}
    ]
    assert columns == ["6.50%", "81.50%"]
    assert page.of_class("curve p50") == []  # no line over days of which nothing is known


@pytest.mark.anyio
async def test_charts_show_the_newest_days_and_the_first_models_and_tables_show_all() -> None:
    rows = [row(model=f"m{place:02}", cost=str(20 - place), at=on_day(10 * place)) for place in range(20)]
    page = await page_of(*rows)
    assert "Charts of the first 12 of 20 models, by cost; the table has all of them." in page.texts
    assert "Charts of the last 92 days; the table has every day on which something was sent." in page.texts
    assert len(page.tags("details")) == 12
    text = Counter(page.texts)
    assert (text["m11"], text["m12"]) == (6, 1)  # four charts, a table and a summary; the table alone
    assert text["2026-11-23"] == 2  # in the tables: of all days, of its model


@pytest.mark.anyio
async def test_every_chart_has_a_name_and_a_description() -> None:
    page = await page_of(*some_rows())
    ids = [each.attributes["id"] for each in page.elements if "id" in each.attributes]
    assert len(ids) == len(set(ids))
    charts = [each.attributes for each in page.tags("svg") if each.attributes.get("aria-hidden") != "true"]
    assert len(charts) == 3 * 4 + 4 + 3 * 4
    for chart in charts:
        assert chart["role"] == "img"
        assert {chart["aria-labelledby"], chart["aria-describedby"]} <= {*ids}
    assert all(each.attributes["aria-label"] and each.attributes["tabindex"] == "0" for each in page.of_class("scroll"))
    assert len(page.tags("table")) == len(page.tags("caption")) == 2 + 3


@given(st.floats(0, 1))
def test_only_nothing_is_0_percent_and_only_all_is_100(share: float) -> None:
    shown = percent(share)
    assert (shown == "0 %") == (share == 0)
    assert (shown == "100 %") == (share == 1)
    assert shown not in {"0.0 %", "100.0 %"}


@given(st.decimals(0, 10**6, places=8))
def test_only_no_cost_is_0_dollars(amount) -> None:
    assert (float(usd(amount).lstrip("$").replace(",", "")) == 0) == (amount == 0)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 400), st.sampled_from(["0", "1e-9", "3", None]))))
def test_any_rows_make_a_page(attempts: list[tuple[str, int, str | None]]) -> None:
    rows = [row(str(day), model, cost=cost, latency=day, at=on_day(day)) for model, day, cost in attempts]
    by_model, by_day, both = (report_of(*rows, by=by) for by in (["model"], ["day"], ["model", "day"]))
    overview = UsageOverview(at=NOON, by_model=by_model, by_day=by_day, by_model_and_day=both)
    assert "nan" not in " ".join(
        str(value) for each in parsed(usage_page(overview)).elements for value in each.attributes.values()
    )


@pytest.mark.anyio
async def test_a_page_of_a_call() -> None:
    env = scripted_env("A lock.")
    await run(generate(LLMRequest(prompt="why?")), env)
    assert "scripted" in usage_page((await run(usage_overview(), env)).unwrap())


# In a browser.

LEDGERS = {"empty": [], "call": [row()], "month": some_rows("gpt", 31), "hostile": some_rows(HOSTILE + "W" * 150)}
OPEN_ALL = "document.querySelectorAll('details').forEach(each => { each.open = true; })"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", list(LEDGERS))
def test_a_browser_shows_the_page(browser: Browser, tmp_path: Path, name: str, width: int, dark: bool) -> None:
    file = tmp_path / "usage.html"
    file.write_text(usage_page(anyio.run(overview_of, *LEDGERS[name])), encoding="utf-8")
    look = browser.look(file, width, dark=dark, before=OPEN_ALL)
    assert look.is_clean, look
