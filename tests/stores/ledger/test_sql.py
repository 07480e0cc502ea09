"""The ledger in a database: rows are written in batches by a thread, and its problems fail no call."""

# ruff: noqa: ASYNC110, ASYNC240 - the file is small, and the thread announces nothing

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import anyio
import pytest
from attrs import evolve
from returns.pipeline import is_successful

from llm_effects import LLMRequest, generate, open_env, run, scripted_env, usage_report
from llm_effects.config import LLMConfig, StorageConfig
from llm_effects.effects.effect import result_of
from llm_effects.stores.ledger import sql
from llm_effects.stores.ledger.sql import RowBuffer, SqlLedger
from llm_effects.stores.ledger.sql_budgets import MAX_UNCOMMITTED
from llm_effects.stores.sql.database import file_database
from llm_effects.values.records import LedgerRow
from llm_effects.values.responses import Attempt
from tests.fixtures.futures import given_by
from tests.fixtures.holds import NOON, hold
from tests.fixtures.ledger_rows import EMPTY, rows_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def at(path: Path, **bounds: int) -> SqlLedger:
    return SqlLedger(file_database(path, lock_wait_seconds=0.05), RowBuffer(**bounds))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock the file as another process would."""
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("BEGIN IMMEDIATE")
        yield


def stored(path: Path) -> int:
    with closing(sqlite3.connect(path)) as file:
        count: int = file.execute("SELECT count(*) FROM llm_ledger").fetchone()[0]
        return count


async def until_stored(path: Path, count: int) -> None:
    with anyio.fail_after(30):
        while not path.exists() or not _has_tables(path) or stored(path) != count:
            await anyio.sleep(0.005)


def _has_tables(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as file:
        return bool(file.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'llm_ledger'").fetchone()[0])


async def test_rows_are_written_in_batches_and_the_rest_on_closing(path: Path) -> None:
    ledger = at(path, batch=10)
    for row in rows_of(25)[:9]:
        ledger.record(evolve(row, at=NOON))
    assert not path.exists()
    ledger.record(evolve(rows_of(25)[9], at=NOON))
    await until_stored(path, 10)
    for row in rows_of(25)[10:25]:
        ledger.record(evolve(row, at=NOON))
    assert len(await given_by(ledger.rows())) == 25
    await ledger.aclose()
    assert stored(path) == 25


async def test_a_row_does_not_wait_for_a_full_batch_for_ever(path: Path) -> None:
    ledger = at(path)
    ledger.record(EMPTY)
    ledger.record(evolve(EMPTY, id="call-3.1", at=NOON + timedelta(seconds=6)))
    await until_stored(path, 2)
    await ledger.aclose()


async def test_a_row_that_is_recorded_twice_is_stored_once(path: Path) -> None:
    for _ in range(2):
        ledger = at(path)
        ledger.record(EMPTY)
        ledger.record(EMPTY)
        await ledger.aclose()
    assert stored(path) == 1


async def test_a_ledger_that_cannot_be_written_fails_no_call_and_loses_no_row(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = at(path, batch=2)
    await given_by(ledger.rows())  # creates the file
    env = evolve(scripted_env("ok"), ledger=ledger)
    questions = [LLMRequest(prompt=str(number)) for number in range(6)]
    with locked(path), caplog.at_level(logging.WARNING, "llm_effects"):
        for question in questions[:4]:
            assert is_successful(await run(generate(question), env))
        with anyio.fail_after(30):
            while not caplog.messages:
                await anyio.sleep(0.005)
        assert (await run(usage_report(), env)).unwrap().total.attempts == 4  # reading still works
    assert caplog.messages[0].startswith("the ledger could not be written: StorageFailed; ")
    for question in questions[4:]:
        assert is_successful(await run(generate(question), env))
    await until_stored(path, 6)
    await ledger.aclose()


async def test_rows_that_closing_cannot_write_are_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = at(path)
    await given_by(ledger.rows())
    ledger.record(EMPTY)
    with locked(path):
        await ledger.aclose()
    assert caplog.messages == ["the ledger was closed with 1 rows that could not be written"]


async def test_a_batch_that_fails_during_closing_is_written_after_all(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = at(path, batch=2)
    await given_by(ledger.rows())
    async with anyio.create_task_group() as group:
        with locked(path), anyio.fail_after(30):
            for row in rows_of(2):
                ledger.record(row)
            group.start_soon(ledger.aclose)
            while not caplog.messages:
                await anyio.sleep(0.005)
    assert stored(path) == 2


async def test_a_reservation_fails_when_the_database_cannot_be_written(path: Path) -> None:
    ledger = at(path)
    await given_by(ledger.rows())
    with locked(path):
        refused = (await result_of(ledger.reserve(hold("h", "0.1")))).failure()
    assert refused.tag == "StorageFailed"
    await ledger.aclose()


async def until_logged(caplog: pytest.LogCaptureFixture) -> None:
    with anyio.fail_after(30):
        while not caplog.messages:
            await anyio.sleep(0.005)


async def test_a_failed_commit_is_repeated_with_the_next_step(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = at(path)
    first, second = hold("first", "1"), hold("second", "0.5")
    await given_by(ledger.reserve(first))
    with locked(path):
        await ledger.commit(first, Decimal("0.4"))
        await until_logged(caplog)
    assert caplog.messages == ["the ledger could not commit a cost to its budgets: StorageFailed"]
    assert is_successful(await result_of(ledger.reserve(second)))
    assert not is_successful(await result_of(ledger.reserve(hold("third", "0.11"))))
    await ledger.aclose()


async def test_closing_repeats_a_failed_commit(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = at(path)
    first = hold("first", "1")
    await given_by(ledger.reserve(first))
    with locked(path):
        await ledger.commit(first, Decimal("0.4"))
        await until_logged(caplog)
    await ledger.aclose()
    assert totals(path) == (Decimal("0.4"), 0, 0)


def totals(path: Path) -> tuple[Decimal, Decimal, int]:
    """Return what the only account has spent and reserved, and how many holds there are."""
    with closing(sqlite3.connect(path)) as file:
        spent, reserved = file.execute("SELECT spent, reserved FROM llm_budgets").fetchone()
        return Decimal(spent), Decimal(reserved), file.execute("SELECT count(*) FROM llm_holds").fetchone()[0]


async def test_a_commit_alone_is_stored_within_a_moment(path: Path) -> None:
    ledger = at(path)
    first = hold("first", "1")
    await given_by(ledger.reserve(first))
    await ledger.commit(first, Decimal("0.4"))
    with anyio.fail_after(30):
        while totals(path)[2]:
            await anyio.sleep(0.005)
    await ledger.aclose()


async def test_steps_at_once_share_a_transaction(path: Path) -> None:
    ledger = at(path)
    await given_by(ledger.rows())
    transactions: list[str] = []
    post = ledger._database.post
    ledger._database.post = lambda name, *work, **options: (  # type: ignore[method-assign]
        transactions.append(name) or post(name, *work, **options)
    )

    async def call(number: int) -> None:
        each = hold(f"h{number}", "0.001")
        await given_by(ledger.reserve(each))
        await ledger.commit(each, Decimal("0.001"))

    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(call, number)
    await ledger.aclose()
    assert len(transactions) < 20
    assert totals(path) == (Decimal("0.1"), 0, 0)


async def test_of_too_many_pending_commits_the_free_ones_are_dropped(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = at(path)
    first, second = hold("first", "1"), hold("second", "0.6")
    await given_by(ledger.reserve(first))
    with locked(path):
        await ledger.commit(first, Decimal("0.5"))
        await until_logged(caplog)
    ledger._budgets.commit_later((hold(f"unsure-{number}", "1"), Decimal(0)) for number in range(MAX_UNCOMMITTED))
    await ledger.commit(second, Decimal(0))
    assert not is_successful(await result_of(ledger.reserve(second)))
    assert is_successful(await result_of(ledger.reserve(evolve(second, amount=Decimal("0.5")))))
    await ledger.aclose()


async def test_a_cancelled_commit_releases_its_hold(path: Path) -> None:
    ledger = at(path)
    each = hold("h", "1")
    await given_by(ledger.reserve(each))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await ledger.commit(each, Decimal(0))
    assert is_successful(await result_of(ledger.reserve(hold("another", "1"))))
    await ledger.aclose()


async def test_a_deadline_interrupts_a_reservation_that_waits_for_a_lock(path: Path) -> None:
    ledger = SqlLedger(file_database(path))
    await given_by(ledger.rows())
    with locked(path), anyio.fail_after(4):
        with anyio.move_on_after(0.05) as deadline:
            await result_of(ledger.reserve(hold("h", "1")))
        assert deadline.cancelled_caught
    await ledger.commit(hold("next", "1"), Decimal(0))
    assert is_successful(await result_of(ledger.reserve(hold("another", "1"))))
    await ledger.aclose()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancellation_that_ignores_shields_loses_neither_cost_nor_hold(path: Path) -> None:
    ledger = at(path)
    spent, unsure = hold("spent", "0.5"), hold("unsure", "0.5")
    await given_by(ledger.reserve(spent))
    with locked(path):
        busy = asyncio.ensure_future(ledger.commit(hold("busy", "1"), Decimal(0)))
        await asyncio.sleep(0.02)
        committing = asyncio.ensure_future(ledger.commit(spent, Decimal("0.2")))
        reserving = asyncio.ensure_future(result_of(ledger.reserve(unsure)))
        await asyncio.sleep(0.02)
        committing.cancel()
        reserving.cancel()
        await asyncio.gather(committing, reserving, return_exceptions=True)
    await busy
    await ledger.commit(hold("next", "1"), Decimal(0))
    assert not is_successful(await result_of(ledger.reserve(hold("more", "0.81"))))
    assert is_successful(await result_of(ledger.reserve(hold("all that is left", "0.8"))))
    await ledger.aclose()


async def test_an_expired_hold_is_freed_and_its_late_commit_still_counts(path: Path) -> None:
    ledger = at(path)
    slow = hold("slow", "1")
    await given_by(ledger.reserve(slow))
    later = evolve(hold("later", "0.5"), at=NOON + timedelta(seconds=61), expires_at=NOON + timedelta(seconds=121))
    await given_by(ledger.reserve(later))
    await ledger.commit(slow, Decimal("0.25"))
    await ledger.commit(slow, Decimal("0.25"))
    rest = evolve(later, id="rest", amount=Decimal("0.25"))
    assert is_successful(await result_of(ledger.reserve(rest)))
    assert not is_successful(await result_of(ledger.reserve(evolve(later, id="more", amount=Decimal("0.01")))))
    await ledger.aclose()


async def test_the_configured_storage_has_the_ledger_too(path: Path) -> None:
    config = LLMConfig(models={}, storage=StorageConfig(url=f"sqlite:///{path}"))
    async with open_env(config) as env:
        env.ledger.record(evolve(EMPTY, at=env.now()))
    assert stored(path) == 1


async def test_routing_starts_with_statistics_from_the_ledger(path: Path) -> None:
    config = LLMConfig(models={}, storage=StorageConfig(url=f"sqlite:///{path}"))
    async with open_env(config) as env:
        slow = Attempt(model="gpt", provider="openai", outcome="success", latency_ms=1234.0)
        env.ledger.record(evolve(EMPTY, at=env.now(), attempt=slow))
        assert env.health.statistics() == {}
    async with open_env(config) as env:
        assert env.health.statistics()["gpt"].latency_ms == 1234.0


def test_the_buffer_is_bounded_and_counts_dropped_rows() -> None:
    buffer = RowBuffer(batch=2, max_rows=5)
    rows = rows_of(9)
    assert buffer.add(rows[0]) == ()
    assert buffer.add(rows[1]) == (rows[0], rows[1])
    assert buffer.add(rows[2]) == buffer.add(rows[3]) == ()  # one batch at a time
    buffer.failed()
    assert buffer.held() == tuple(rows[:4])
    assert buffer.add(rows[4]) == buffer.add(rows[5]) == ()  # and none right after a failure
    assert buffer.held() == tuple(rows[1:6])
    assert buffer.dropped == 1


def test_the_buffer_retries_after_another_batch_of_rows() -> None:
    buffer = RowBuffer(batch=2)
    rows: list[LedgerRow] = [evolve(row, at=NOON) for row in rows_of(6)]
    buffer.add(rows[0])
    buffer.add(rows[1])
    buffer.failed()
    assert buffer.add(rows[2]) == ()
    assert buffer.add(rows[3]) == tuple(rows[:4])
    buffer.written()
    assert buffer.held() == ()


async def test_fault_161_rows_are_written_while_idle(path: Path) -> None:
    ledger = SqlLedger(file_database(path), flush_seconds=0.05)
    for row in rows_of(3):
        ledger.record(evolve(row, at=NOON))
    await until_stored(path, 3)
    ledger.record(evolve(EMPTY, id="later", at=NOON))
    await until_stored(path, 4)
    await ledger.aclose()


async def test_fault_161_rows_that_could_not_be_written_are_written_while_idle(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "RETRY_S", 0.05)
    ledger = SqlLedger(file_database(path, lock_wait_seconds=0.02), flush_seconds=0.05)
    await given_by(ledger.rows())  # creates the file
    with locked(path):
        ledger.record(EMPTY)
        await anyio.sleep(0.3)
    await until_stored(path, 1)
    await ledger.aclose()


async def test_fault_161_closing_leaves_no_thread(path: Path) -> None:
    ledger = SqlLedger(file_database(path), flush_seconds=60)
    ledger.record(EMPTY)
    await ledger.aclose()
    assert stored(path) == 1
    with anyio.fail_after(30):
        while any(thread.name == "llm-effects-ledger" for thread in threading.enumerate()):
            await anyio.sleep(0.005)
