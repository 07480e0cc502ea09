"""Usage reports by the database: they equal those of the rows, whatever is summed up, running or waiting."""

import sqlite3
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import combinations
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from threading import Event
from typing import get_args

import anyio
import anyio.to_thread
import pytest
from attrs import evolve
from hypothesis import example, given, settings
from hypothesis import strategies as st
from returns.result import Result, Success
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url

from llm_effects import Attempt, Cost, LLMEnv, TaskType, Usage, run, scripted_env, usage_report
from llm_effects.config import Price, StorageConfig
from llm_effects.effects.lifecycle import Chosen
from llm_effects.manager import new_memory
from llm_effects.reports import UsageOverview, UsageReport, usage_overview
from llm_effects.routing.prices import PriceList
from llm_effects.stores.ledger import sql, sql_usage
from llm_effects.stores.ledger.memory import MemoryLedger
from llm_effects.stores.ledger.sql import RowBuffer, SqlLedger, insert_rows
from llm_effects.stores.ledger.usage_documents import Cell, Document, Totals, document_of, encode, narrowed
from llm_effects.stores.ledger.usage_documents import decode as decode_document
from llm_effects.stores.open import open_storage
from llm_effects.stores.sql.database import Engines, file_database, open_database, postgres_engines, sqlite_engines
from llm_effects.stores.sql.tables import MIGRATIONS, lock_usage, migrate
from llm_effects.values.errors import LLMError
from llm_effects.values.records import LedgerRow
from llm_effects.values.usage import Dimension, UsageKey
from tests.fixtures.futures import given_by
from tests.fixtures.holds import NOON
from tests.fixtures.postgres_server import postgres_server

__all__ = ["postgres_server"]

pytestmark = pytest.mark.anyio

DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
BYS: Sequence[tuple[Dimension, ...]] = [
    *((each,) for each in DIMENSIONS),
    *combinations(("model", "hour", "tag"), 2),
    ("owner", "tag", "day", "model"),
]
PRICES = PriceList({"gpt": Price(input=2, output=10, cache_read="0.2", cache_write="2.5")})


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        server: str = request.getfixturevalue("postgres_server").new_url()
        return server
    return f"sqlite:///{tmp_path}/ledger.db"


@asynccontextmanager
async def ledger_at(url: str) -> AsyncGenerator[SqlLedger]:
    storage = open_storage(StorageConfig(url=url), new_memory()).unwrap()
    assert isinstance(storage.ledger, SqlLedger)
    yield storage.ledger
    await storage.ledger.aclose()


def env_of(ledger: SqlLedger | MemoryLedger) -> LLMEnv:
    return evolve(scripted_env(), ledger=ledger, prices=PRICES)


def random_rows(seed: int, count: int = 400) -> list[LedgerRow]:
    """Return rows as no program would write them: calls share hours, owners, tags and models in every way."""
    draw = Random(seed)
    return [random_row(draw, str(number)) for number in range(count)]


def random_row(draw: Random, number: str) -> LedgerRow:
    outcome = draw.choice(["success", "success", "success", "cancelled", "NetworkError"])
    return LedgerRow(
        id=f"{number}.1",
        at=NOON + timedelta(minutes=draw.randrange(600), microseconds=draw.randrange(2) * 123456),
        call_id=f"call-{draw.randrange(300)}",
        task_type=TaskType(draw.choice(["analysis", "triage"])),
        attempt=Attempt(
            model=draw.choice(["gpt", "claude", "local"]),
            provider=draw.choice(["openai", "anthropic"]),
            outcome=outcome,
            latency_ms=draw.choice([0.0, 0.01234, draw.lognormvariate(6, 2), 1e12]),
            first_content_ms=draw.choice([None, draw.random() * 1000]),
            usage=random_usage(draw),
            cost=draw.choice([Cost.UNKNOWN, Cost.ZERO, Cost(Decimal(draw.choice(COSTS)))]),
        ),
        owner=draw.choice([None, "", "alice", "bob", "späť"]),
        left_machine=draw.choice([None, True, False]),
        tags=draw.choice([(), ("a",), ("b", "a"), ("a", "b", "a"), ('"quoted"',)]),
        cache_saved_usd=draw.choice([None, Decimal("-0.001"), Decimal("0.5")]),
    )


COSTS = ["0.0123", "1.5", "0.000000000001", "0.00000003750000000000000001", "12345678901234567890.5", "-0.25"]


def random_usage(draw: Random) -> Usage:
    return Usage(
        input_tokens=draw.choice([None, 0, draw.randrange(100_000), 2**63 - 1]),
        cache_read_tokens=draw.choice([0, 0, draw.randrange(100_000), 2**62]),
        cache_write_tokens=draw.choice([0, 0, 300, 70_000]),
        output_tokens=draw.choice([None, draw.randrange(5_000)]),
        reasoning_tokens=draw.choice([0, 7]),
        cache_write_1h_tokens=draw.choice([0, 5]),
        service_tier=draw.choice([None, None, "flex", "batch"]),
    )


def in_memory(rows: Sequence[LedgerRow]) -> LLMEnv:
    ledger = MemoryLedger()
    for row in rows:
        ledger.record(row)
    return env_of(ledger)


async def reports(
    env: LLMEnv, since: datetime | None = None, until: datetime | None = None
) -> tuple[Sequence[UsageReport], UsageOverview]:
    found = [(await run(usage_report(since, by, until=until), env)).unwrap() for by in BYS]
    overview = (await run(usage_overview(since, until=until), env)).unwrap()
    return found, evolve(overview, at=NOON)


PERIODS = [
    (None, None),
    (NOON + timedelta(minutes=90), None),
    (None, NOON + timedelta(hours=5)),
    (NOON + timedelta(hours=2), NOON + timedelta(hours=4)),
    (NOON + timedelta(minutes=100), NOON + timedelta(minutes=110)),
    (NOON + timedelta(minutes=61, microseconds=1), NOON + timedelta(minutes=539)),
]


Reports = tuple[Sequence[UsageReport], UsageOverview]

_OF_ROWS: dict[tuple[int, int, datetime | None, datetime | None], Reports] = {}
"""The reports of the first rows of a seed in a period: they are the same for every database and event loop."""


async def of_rows(seed: int, count: int, since: datetime | None = None, until: datetime | None = None) -> Reports:
    key = (seed, count, since, until)
    if key not in _OF_ROWS:
        _OF_ROWS[key] = await reports(in_memory(random_rows(seed)[:count]), since, until)
    return _OF_ROWS[key]


@pytest.mark.parametrize("seed", range(2))
async def test_a_report_equals_that_of_the_rows(url: str, seed: int) -> None:
    rows = random_rows(seed)
    async with ledger_at(url) as ledger:
        for number, row in enumerate(rows, 1):
            ledger.record(row)
            if number in (150, 380):  # between them hours are summed up, and others change again
                assert await reports(env_of(ledger)) == await of_rows(seed, number)
        for period in PERIODS:
            assert await reports(env_of(ledger), *period) == await of_rows(seed, len(rows), *period)
    async with ledger_at(url) as again:
        assert await reports(env_of(again)) == await of_rows(seed, len(rows))


async def total(ledger: SqlLedger) -> tuple[int, int]:
    report = (await run(usage_report(by=("model", "hour")), env_of(ledger))).unwrap()
    return report.total.requests, report.total.attempts


def call(number: int, hour: int, attempt: int = 1, **fields: object) -> LedgerRow:
    base = random_row(Random(number), f"c{number}.{attempt}")
    return evolve(base, call_id=f"c{number}", at=NOON + timedelta(hours=hour, seconds=number), **fields)


async def written(url: str, rows: Sequence[LedgerRow]) -> None:
    """Write rows as another process does."""
    async with ledger_at(url) as other:
        for row in rows:
            other.record(row)


def hours_of(url: str) -> list[str]:
    with connected(url) as connection:
        return list(connection.execute(text("SELECT hour FROM llm_usage_hours ORDER BY hour")).scalars())


def execute(url: str, statement: str) -> None:
    with connected(url) as connection:
        connection.execute(text(statement))


@contextmanager
def connected(url: str) -> Generator[Connection]:
    engines = engines_of(url)
    try:
        with engines.writing.begin() as connection:
            yield connection
    finally:
        engines.dispose()


def engines_of(url: str) -> Engines:
    if url.startswith("sqlite"):
        return sqlite_engines(Path(url.removeprefix("sqlite:///")))
    return postgres_engines(make_url(url).set(drivername="postgresql+psycopg"))


async def test_hours_before_the_newest_one_are_summed_up_and_change_with_their_rows(url: str) -> None:
    await written(url, [call(number, number % 4) for number in range(20)])
    async with ledger_at(url) as ledger:
        assert await total(ledger) == (20, 20)
        assert hours_of(url) == ["2026-11-23T12", "2026-11-23T13", "2026-11-23T14"]
        await written(url, [call(0, 1, 2)])  # a late row of a call that began an hour before
        assert "2026-11-23T14" in hours_of(url)
        assert not {"2026-11-23T12", "2026-11-23T13"} & set(hours_of(url))
        assert await total(ledger) == (20, 21)
        execute(url, "DELETE FROM llm_ledger WHERE call_id IN ('c0', 'c5')")
        assert await total(ledger) == (18, 18)
        execute(url, "UPDATE llm_ledger SET owner = 'nobody', call_id = 'c1' WHERE call_id = 'c2'")
        assert await total(ledger) == (17, 18)
        report = (await run(usage_report(by="owner"), env_of(ledger))).unwrap()
        assert next(row for row in report.rows if row.group == ("nobody",)).attempts == 1


async def test_fault_266_the_sums_of_hours_forget_an_owner_who_is_erased(url: str) -> None:
    rows = [evolve(call(number, number % 4), owner="alice" if number % 2 else "bob") for number in range(20)]
    split = [evolve(call(99, hour, 1), id=f"99.{hour}", owner="alice") for hour in (0, 2)]
    await written(url, [*rows, *split])
    async with ledger_at(url) as ledger:
        assert await total(ledger) == (21, 22)
        erased = await given_by(ledger.erase_rows(Chosen(owners=("alice",))))
        assert erased["ledger_rows"] == 12
        with connected(url) as connection:
            stale = "SELECT count(*) FROM llm_usage WHERE hour NOT IN (SELECT hour FROM llm_usage_hours)"
            assert connection.execute(text(stale)).scalar_one() == 0
            named = "SELECT count(*) FROM llm_usage_calls WHERE owner = 'alice'"
            assert connection.execute(text(named)).scalar_one() == 0
        report = (await run(usage_report(by="owner"), env_of(ledger))).unwrap()
        assert [row.group for row in report.rows] == [("bob",)]


async def test_an_hour_is_summed_up_when_the_next_one_begins(url: str) -> None:
    async with ledger_at(url) as ledger:
        await given_by(ledger.rows())  # creates the tables
        for hour in range(3):
            for number in range(100):
                ledger.record(call(hour * 100 + number, hour))
            with anyio.fail_after(30):
                while len(hours_of(url)) < hour:  # noqa: ASYNC110 - a thread sums up, and announces nothing
                    await anyio.sleep(0.05)


async def test_a_report_of_a_database_that_cannot_be_written_reads_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    await written(f"sqlite:///{path}", [call(number, number % 4) for number in range(20)])
    ledger = SqlLedger(file_database(path, lock_wait_seconds=0.05), RowBuffer())
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("BEGIN IMMEDIATE")
        assert await total(ledger) == (20, 20)
        ledger.record(call(3, 7, 2))
        assert await total(ledger) == (20, 21)
    assert hours_of(f"sqlite:///{path}") == []
    await ledger.aclose()


async def test_a_large_hour_is_summed_up_in_parts(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_usage, "PART_ROWS", 7)
    rows = random_rows(3, 100)
    await written(url, rows)
    async with ledger_at(url) as ledger:
        assert await reports(env_of(ledger)) == await reports(in_memory(rows))


async def test_hours_without_rows_are_not_read(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await written(url, [call(number, number * 2) for number in range(5)])
    async with ledger_at(url) as ledger:
        await run(usage_report(by="model"), env_of(ledger))
        monkeypatch.setattr(sql_usage, "ROWS", "no query")
        report = await run(usage_report(by="model", until=NOON + timedelta(hours=7)), env_of(ledger))
        assert report.unwrap().total.attempts == 4


# Days, and tens of days.


def long_rows(seed: int, count: int, days: int = 35) -> list[LedgerRow]:
    """Return rows of many days, whose calls share days too."""
    draw = Random(seed)
    rows = (random_row(draw, f"{seed}.{number}") for number in range(count))
    return [
        evolve(row, at=NOON + timedelta(hours=draw.randrange(days * 24), microseconds=int(row.id[-1]))) for row in rows
    ]


def spans_of(url: str, view: int) -> list[str]:
    query = "SELECT hour FROM llm_usage WHERE hours IS NOT NULL AND detailed = :view ORDER BY length(hour), hour"
    with connected(url) as connection:
        return list(connection.execute(text(query), {"view": view}).scalars())


@pytest.mark.parametrize("seed", range(2))
async def test_a_report_of_many_days_equals_that_of_the_rows(url: str, seed: int) -> None:
    rows = long_rows(seed, 60)
    async with ledger_at(url) as ledger:
        for number, row in enumerate(rows, 1):
            ledger.record(row)
            if number in (50, 57):  # then late rows change days that are summed up
                assert await reports(env_of(ledger)) == await reports(in_memory(rows[:number]))
        for period in ((None, None), *(cut(Random(number)) for number in range(3))):
            assert await reports(env_of(ledger), *period) == await reports(in_memory(rows), *period)


def cut(draw: Random) -> tuple[datetime, datetime]:
    """Return a period that may cut hours, days and tens of days, or none of them."""
    first, length = draw.randrange(12 * 24), draw.choice([5, 24, 100, 700])
    minutes = draw.choice([0, 0, 20])
    since = NOON - timedelta(hours=12) + timedelta(hours=first, minutes=minutes)
    return since, since + timedelta(hours=length)


async def test_days_are_summed_up_and_change_with_their_hours(url: str) -> None:
    rows = [call(number, hour=number * 12) for number in range(60)]  # from 2026-11-23T12 to 2026-12-23T00
    await written(url, rows)
    async with ledger_at(url) as ledger:
        assert (await run(usage_report(by="owner"), env_of(ledger))).unwrap().total.attempts == 60
        view = sql_usage.view_of(sql_usage.OF_SPANS, ("owner",))
        assert spans_of(url, view)[:3] == ["2026-11-2", "2026-11-3", "2026-12-0"]
        assert spans_of(url, view)[-1] == "2026-12-22"
        await written(url, [call(100, hour=24)])  # a late row, in a new hour of 2026-11-24
        execute(url, "DELETE FROM llm_ledger WHERE at < '2026-11-24'")
        report = (await run(usage_report(by="owner"), env_of(ledger))).unwrap()
        assert report.total.attempts == 60
        assert {"2026-11-2", "2026-11-24"} < set(spans_of(url, view))


async def test_fault_277_a_report_of_a_month_reads_few_documents(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await written(url, [call(number, hour=number * 3) for number in range(100)])  # of 13 days
    few: list[tuple[Dimension, ...]] = [("owner",), ("tag",), ("owner", "task", "tag"), ("day", "model")]
    read = list[bytes]()

    def decode(document: bytes) -> Document:
        read.append(document)
        return decode_document(document)

    async with ledger_at(url) as ledger:
        for by in few:
            await run(usage_report(by=by), env_of(ledger))
            with monkeypatch.context() as patch:
                patch.setattr(sql_usage, "decode", decode)
                report = (await run(usage_report(NOON + timedelta(minutes=30), by), env_of(ledger))).unwrap()
            assert report.total.attempts == 99
            assert len(read) < 30  # of 98 hours
            read.clear()


async def test_a_report_since_midnight_reads_the_sums_of_the_first_day(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await written(url, [call(number, hour=number) for number in range(60)])  # from noon of 2026-11-23
    midnight = NOON + timedelta(hours=12)
    async with ledger_at(url) as ledger:
        await run(usage_report(by="model"), env_of(ledger))
        read = list[str]()

        def add(_: Totals, hour: str, _document: Document) -> None:
            read.append(hour)

        monkeypatch.setattr(Totals, "add", add)
        await run(usage_report(midnight, "model", until=midnight + timedelta(days=1, hours=1)), env_of(ledger))
        assert read == ["2026-11-24", "2026-11-25T00"]


async def test_fault_276_the_sums_of_days_forget_an_owner_who_is_erased(url: str) -> None:
    rows = [evolve(call(number, number * 11), owner="alice" if number % 9 == 0 else "bob") for number in range(18)]
    await written(url, rows)
    async with ledger_at(url) as ledger:
        await reports(env_of(ledger))
        assert any(b"alice" in document for document in documents_of(url))
        erased = await given_by(ledger.erase_rows(Chosen(owners=("alice",))))
        assert erased["ledger_rows"] == 2
        assert not [document for document in documents_of(url) if b"alice" in document]
        assert any(b"bob" in document for document in documents_of(url))
        left = [row for row in rows if row.owner == "bob"]
        assert await reports(env_of(ledger)) == await reports(in_memory(left))


def documents_of(url: str) -> list[bytes]:
    with connected(url) as connection:
        return [bytes(each) for each in connection.execute(text("SELECT document FROM llm_usage")).scalars()]


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
async def test_fault_278_a_row_that_comes_while_its_day_is_summed_up_is_counted(url: str) -> None:
    rows = [call(number, number * 7) for number in range(30)]
    await written(url, rows)
    late = evolve(call(50, 7), id="late")
    async with ledger_at(url) as ledger:
        await run(usage_report(by="hour"), env_of(ledger))  # sums up hours only
        with connected(url) as connection:
            assert sql_usage.sum_up(connection) == Success(False)
            await written(url, [late])  # is stored before the sums are
        assert await reports(env_of(ledger)) == await reports(in_memory([*rows, late]))


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
async def test_a_row_that_comes_between_the_sums_of_a_day_is_counted_once(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [call(number, number * 7) for number in range(60)]
    await written(url, rows)
    late, store = evolve(call(61, 7), id="late"), sql_usage.store_document

    def store_and_write(connection: Connection, **columns: object) -> None:
        store(connection, **columns)
        if (columns["detailed"], columns["hour"]) == (min(sql_usage.OF_SPANS), "2026-11-23"):
            with connected(url) as other:
                insert_rows(other, [late])

    async with ledger_at(url) as ledger:
        await run(usage_report(by="hour"), env_of(ledger))  # sums up hours only
    with monkeypatch.context() as patch, connected(url) as connection:
        patch.setattr(sql_usage, "store_document", store_and_write)
        assert sql_usage.sum_up(connection) == Success(False)
    reader = SqlLedger(open_database(url, StorageConfig(url=url, read_only=True)).unwrap())
    assert await reports(env_of(reader)) == await reports(in_memory([*rows, late]))
    await reader.aclose()


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
async def test_hours_are_left_to_a_process_that_sums_up_already(url: str) -> None:
    await written(url, [call(number, number) for number in range(3)])
    execute(url, "DELETE FROM llm_usage_hours")
    with connected(url) as other:
        assert lock_usage(other, wait=False)
        with connected(url) as connection:
            assert sql_usage.sum_up(connection, wait=False) == Success(False)
        assert hours_of(url) == []
    with connected(url) as connection:
        assert sql_usage.sum_up(connection, wait=False) == Success(False)
    assert len(hours_of(url)) == 2


async def test_closing_does_not_wait_until_all_hours_are_summed_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, closed, steps = Event(), Event(), list[Connection]()

    def step(connection: Connection, *, wait: bool) -> Result[bool, LLMError]:
        steps.append(connection)
        begun.set()
        assert closed.wait(30)
        return Success(not wait)  # some are left

    monkeypatch.setattr(sql, "sum_up", step)
    ledger = SqlLedger(open_database(url, StorageConfig(url=url)).unwrap(), flush_seconds=0.01)
    ledger.record(call(1, 1))
    assert await anyio.to_thread.run_sync(begun.wait, 30)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ledger.aclose)
        await anyio.sleep(0.05)
        closed.set()
    assert len(steps) == 1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 10**6)),
        st.tuples(st.just("report"), st.integers(0, 10**6)),
        st.tuples(st.just("erase"), st.sampled_from([None, "alice", "bob"])),
        st.tuples(st.just("keep"), st.integers(0, 12)),
    ),
    min_size=3,
    max_size=6,
)


@given(STEPS)
@settings(max_examples=5, deadline=None)
@example([("write", 1), ("report", 1), ("erase", "alice"), ("write", 2), ("report", 2), ("keep", 9), ("report", 3)])
def test_reports_are_exact_whatever_happened_before(steps: Sequence[tuple[str, int | str | None]]) -> None:
    anyio.run(take, steps)


async def take(steps: Sequence[tuple[str, int | str | None]]) -> None:
    rows = list[LedgerRow]()
    with TemporaryDirectory() as folder:
        async with ledger_at(f"sqlite:///{folder}/ledger.db") as ledger:
            for name, value in (*steps, ("report", 0)):
                if name == "write":
                    new = {row.id: row for row in long_rows(int(value or 0), 30, days=12)}
                    added = [row for row in new.values() if row.id not in {each.id for each in rows}]
                    rows += added
                    for row in added:
                        ledger.record(row)
                elif name == "report":
                    period = (None, None) if not value else cut(Random(value))
                    assert await reports(env_of(ledger), *period) == await reports(in_memory(rows), *period)
                else:
                    day = NOON + timedelta(days=int(value)) if name == "keep" and isinstance(value, int) else None
                    owners = None if name == "keep" else (value if isinstance(value, str) else None,)
                    chosen = Chosen(owners=owners, before=day)
                    while (await given_by(ledger.erase_rows(chosen)))["ledger_rows"]:
                        pass
                    rows = [row for row in rows if not (chosen.of(row.owner) and chosen.at(row.at))]


def test_the_largest_sums_of_an_earlier_version_are_read() -> None:
    cell = Cell(counts=[2, 1, 0, 5, 0, 0, 0, 0, 0], cost_usd=Decimal(10**12))
    key = UsageKey(model="gpt")
    document = evolve(document_of({(key, "success"): cell}), rest={"input_tokens": {0: "9223372036854775808"}})
    totals = Totals(("model",), 0)
    for each in (document, decode_document(encode(document)), next(narrowed([document], ("model",)))):
        totals.add("2026-11-23T12", each)
    [sums] = [totals.sums_of([place]) for place, _ in enumerate(totals.keys())]
    assert (sums.tokens[0], sums.cost_usd, sums.outcomes["success"]) == (3 * (2**63 + 5), Decimal(3 * 10**12), 6)


# Upgrades, and plans.


COLUMNS = "at, id, call_id, owner, task, tags, model, provider, outcome, latency_ms, wait_ms, cost_usd, estimated"
OLD_ROWS = f"""INSERT INTO llm_ledger ({COLUMNS}, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens,
    reasoning_tokens) VALUES
    ('2026-11-23T12:00:00.000000+00:00', 'a.1', 'a', 'alice', 'general', '["x"]', 'gpt', 'openai', 'success', 100.0,
    0.0, '0.5', 0, 10, 1000000, 0, 20, 0),
    ('2026-11-23T13:00:00.000000+00:00', 'a.2', 'a', 'alice', 'general', '["x"]', 'gpt', 'openai', 'success', 300.0,
    0.0, '0.25', 0, 1, 0, 0, 2, 0),
    ('2026-11-23T14:00:00.000000+00:00', 'b.1', 'b', NULL, 'general', '[]', 'gpt', 'openai', 'cancelled', 5.0,
    0.0, NULL, 0, NULL, 0, 0, NULL, 0)"""


@pytest.mark.parametrize("version", range(2, len(MIGRATIONS) + 1))
async def test_rows_of_each_earlier_version_are_reported(url: str, version: int) -> None:
    engines = engines_of(url)
    migrate(engines.reading, engines.writing, MIGRATIONS[:version])
    engines.dispose()
    execute(url, OLD_ROWS)
    async with ledger_at(url) as ledger:
        report = (await run(usage_report(by="day"), env_of(ledger))).unwrap()
        [day] = report.rows
        assert (day.requests, day.attempts, day.cost_usd, day.unknown_costs) == (2, 3, Decimal("0.75"), 1)
        assert day.cache_saved_usd == Decimal("1.500220")  # at the prices of the report: 1,000,010 tokens and 20
        assert len(await given_by(ledger.rows())) == 3
    assert hours_of(url) == ["2026-11-23T12", "2026-11-23T13"]


QUERIES = {
    sql_usage.ROWS: ["llm_ledger_pkey", "llm_ledger_by_call"],
    sql_usage.UNSAVED_ROWS: ["llm_ledger_unsaved"],
    sql_usage.FIRST: ["llm_ledger_pkey"],
    sql_usage.SPANS: ["llm_usage_pkey"],
    sql_usage.SUMMED_SPANS: ["llm_usage_of_spans"],
    sql_usage.NEWEST: ["llm_ledger_pkey"],
    sql_usage.HOURS: ["llm_usage_hours_pkey"],
    sql_usage.DOCUMENTS: ["llm_usage_pkey"],
    sql_usage.calls_query(10, ("model",)): ["llm_usage_calls_pkey"],
}
BOUNDS = {
    "start": "2026-11-23T13:00",
    "end": "2026-11-23T14",
    "first": "2026-11-23T13",
    "last": "2026-11-23T14",
    "detailed": 1,
    "length": 10,
}


@pytest.mark.parametrize("query", QUERIES)
async def test_each_query_has_an_index(url: str, query: str) -> None:
    await written(url, [call(number, number % 9) for number in range(200)])
    async with ledger_at(url) as ledger:
        await total(ledger)
    values = {name: value for name, value in BOUNDS.items() if f":{name}" in query}
    with connected(url) as connection:
        if connection.dialect.name == "sqlite":
            rows = connection.execute(text(f"EXPLAIN QUERY PLAN {query}"), values)
            plan = [row.detail for row in rows]
            scans = [step for step in plan if step.startswith("SCAN") and "CONSTANT" not in step]
            assert not [step for step in scans if "USING COVERING INDEX llm_usage_of_spans" not in step]  # of few rows
            assert any(("USING" in step and "INDEX" in step) or "PRIMARY KEY" in step for step in plan)
        else:
            connection.execute(text("SET LOCAL enable_seqscan = off"))  # of so few rows it would read all
            connection.execute(text("SET LOCAL enable_bitmapscan = off"))
            plan = list(connection.execute(text(f"EXPLAIN {query}"), values).scalars())
            assert not [step for step in plan if "Seq Scan" in step]
            assert all(any(index in step for step in plan) for index in QUERIES[query]), plan
