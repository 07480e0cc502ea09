"""The ledger in a database: written by the batch, off the call's path, and none of its troubles is the call's."""

# ruff: noqa: ASYNC110, ASYNC240 - the file is small, and what is waited for happens in a thread

import asyncio
import logging
import sqlite3
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
from llm_effects.manager import new_memory
from llm_effects.stores.ledger.sql import MAX_UNCOMMITTED, RowBuffer, SqlLedger
from llm_effects.stores.open import open_storage, usable
from llm_effects.stores.sql.database import file_database
from llm_effects.values.records import LedgerRow
from llm_effects.values.responses import Attempt
from tests.fixtures.futures import given_by
from tests.fixtures.holds import NOON, hold
from tests.test_ledger_stores import EMPTY, rows_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def at(path: Path, **bounds: int) -> SqlLedger:
    return SqlLedger(file_database(path, lock_wait_seconds=0.05), RowBuffer(**bounds))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Somebody else writes, and does not end."""
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("BEGIN IMMEDIATE")
        yield


def stored(path: Path) -> int:
    with closing(sqlite3.connect(path)) as file:
        count: int = file.execute("SELECT count(*) FROM llm_ledger").fetchone()[0]
        return count


async def until_stored(path: Path, count: int) -> None:
    with anyio.fail_after(10):
        while not path.exists() or not _has_tables(path) or stored(path) != count:
            await anyio.sleep(0.005)


def _has_tables(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as file:
        return bool(file.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'llm_ledger'").fetchone()[0])


async def test_rows_are_written_by_the_batch_and_the_rest_at_the_end(path: Path) -> None:
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


async def test_a_row_is_not_kept_waiting_for_a_batch_by_seldom_calls(path: Path) -> None:
    ledger = at(path)
    ledger.record(EMPTY)
    ledger.record(evolve(EMPTY, id="call-3.1", at=NOON + timedelta(seconds=6)))
    await until_stored(path, 2)
    await ledger.aclose()


async def test_a_row_that_is_booked_twice_is_there_once(path: Path) -> None:
    for _ in range(2):
        ledger = at(path)
        ledger.record(EMPTY)
        ledger.record(EMPTY)
        await ledger.aclose()
    assert stored(path) == 1


async def test_a_ledger_that_cannot_be_written_costs_no_call_and_no_row(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = at(path, batch=2)
    await given_by(ledger.rows())  # makes the file
    env = evolve(scripted_env("ok"), ledger=ledger)
    questions = [LLMRequest(prompt=str(number)) for number in range(6)]
    with locked(path), caplog.at_level(logging.WARNING, "llm_effects"):
        for question in questions[:4]:
            assert is_successful(await run(generate(question), env))
        with anyio.fail_after(10):
            while not caplog.messages:
                await anyio.sleep(0.005)
        assert (await run(usage_report(), env)).unwrap().total.attempts == 4  # reading goes on
    assert caplog.messages[0].startswith("the ledger could not be written: StorageFailed; ")
    for question in questions[4:]:
        assert is_successful(await run(generate(question), env))
    await until_stored(path, 6)
    await ledger.aclose()


async def test_rows_that_could_not_be_written_in_the_end_are_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = at(path)
    await given_by(ledger.rows())
    ledger.record(EMPTY)
    with locked(path):
        await ledger.aclose()
    assert caplog.messages == ["the ledger was closed with 1 rows that could not be written"]


async def test_a_batch_that_fails_while_the_ledger_is_closed_is_written_in_the_end(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = at(path, batch=2)
    await given_by(ledger.rows())
    async with anyio.create_task_group() as group:
        with locked(path), anyio.fail_after(10):
            for row in rows_of(2):
                ledger.record(row)
            group.start_soon(ledger.aclose)
            while not caplog.messages:
                await anyio.sleep(0.005)
    assert stored(path) == 2


async def test_a_budget_that_cannot_be_asked_stops_the_call(path: Path) -> None:
    ledger = at(path)
    await given_by(ledger.rows())
    with locked(path):
        refused = (await result_of(ledger.reserve(hold("h", "0.1")))).failure()
    assert refused.tag == "StorageFailed"
    await ledger.aclose()


async def test_a_settlement_that_fails_is_made_up_for_by_the_next(path: Path) -> None:
    ledger = at(path)
    first, second = hold("first", "1"), hold("second", "0.5")
    await given_by(ledger.reserve(first))
    with locked(path):
        await ledger.commit(first, Decimal("0.4"))
    assert not is_successful(await result_of(ledger.reserve(second)))
    await ledger.commit(second, Decimal(0))
    assert is_successful(await result_of(ledger.reserve(second)))
    await ledger.aclose()


async def test_of_too_many_settlements_those_that_cost_nothing_make_room(path: Path) -> None:
    ledger = at(path)
    first, second = hold("first", "1"), hold("second", "0.6")
    await given_by(ledger.reserve(first))
    with locked(path):
        await ledger.commit(first, Decimal("0.5"))
    ledger._commit_later((hold(f"unsure-{number}", "1"), Decimal(0)) for number in range(MAX_UNCOMMITTED))
    await ledger.commit(second, Decimal(0))
    assert not is_successful(await result_of(ledger.reserve(second)))
    assert is_successful(await result_of(ledger.reserve(evolve(second, amount=Decimal("0.5")))))
    await ledger.aclose()


async def test_no_cancellation_leaves_a_hold_behind(path: Path) -> None:
    ledger = at(path)
    each = hold("h", "1")
    await given_by(ledger.reserve(each))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await ledger.commit(each, Decimal(0))
    assert is_successful(await result_of(ledger.reserve(hold("another", "1"))))
    await ledger.aclose()


async def test_a_deadline_does_not_wait_for_a_budget_that_cannot_be_asked(path: Path) -> None:
    ledger = SqlLedger(file_database(path))
    await given_by(ledger.rows())
    with locked(path), anyio.fail_after(2):
        with anyio.move_on_after(0.05) as deadline:
            await result_of(ledger.reserve(hold("h", "1")))
        assert deadline.cancelled_caught
    await ledger.commit(hold("next", "1"), Decimal(0))
    assert is_successful(await result_of(ledger.reserve(hold("another", "1"))))
    await ledger.aclose()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancellation_that_minds_no_shield_loses_neither_the_cost_nor_the_hold(path: Path) -> None:
    ledger = at(path)
    spent, unsure = hold("spent", "0.5"), hold("unsure", "0.5")
    await given_by(ledger.reserve(spent))
    with locked(path):
        busy = asyncio.ensure_future(ledger.commit(hold("busy", "1"), Decimal(0)))
        await asyncio.sleep(0.02)
        settling = asyncio.ensure_future(ledger.commit(spent, Decimal("0.2")))
        reserving = asyncio.ensure_future(result_of(ledger.reserve(unsure)))
        await asyncio.sleep(0.02)
        settling.cancel()
        reserving.cancel()
        await asyncio.gather(settling, reserving, return_exceptions=True)
    await busy
    await ledger.commit(hold("next", "1"), Decimal(0))
    assert not is_successful(await result_of(ledger.reserve(hold("more", "0.81"))))
    assert is_successful(await result_of(ledger.reserve(hold("all that is left", "0.8"))))
    await ledger.aclose()


async def test_a_hold_that_expired_is_free_and_booked_all_the_same_when_it_is_settled_late(path: Path) -> None:
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


async def test_the_storage_of_a_configuration_has_the_ledger_too(path: Path) -> None:
    config = LLMConfig(models={}, storage=StorageConfig(url=f"sqlite:///{path}"))
    async with open_env(config) as env:
        env.ledger.record(evolve(EMPTY, at=env.now()))
    assert stored(path) == 1


async def test_routing_begins_with_what_the_ledger_knows(path: Path) -> None:
    config = LLMConfig(models={}, storage=StorageConfig(url=f"sqlite:///{path}"))
    async with open_env(config) as env:
        slow = Attempt(model="gpt", provider="openai", outcome="success", latency_ms=1234.0)
        env.ledger.record(evolve(EMPTY, at=env.now(), attempt=slow))
        assert env.health.statistics() == {}
    async with open_env(config) as env:
        assert env.health.statistics()["gpt"].latency_ms == 1234.0


async def test_a_storage_that_is_wrongly_configured_is_told_and_nothing_is_spent() -> None:
    opened = open_storage(StorageConfig(url="ftp://host"), new_memory())
    ledger = usable(opened).ledger
    ledger.record(EMPTY)
    for refused in (await result_of(ledger.rows()), await result_of(ledger.reserve(hold("h", "1")))):
        assert refused.failure().tag == "ConfigurationError"
    await ledger.commit(hold("h", "1"), Decimal(1))
    await ledger.aclose()


def test_a_buffer_is_bounded_and_counts_what_it_dropped() -> None:
    buffer = RowBuffer(batch=2, max_rows=5)
    rows = rows_of(9)
    assert buffer.add(rows[0]) == ()
    assert buffer.add(rows[1]) == (rows[0], rows[1])
    assert buffer.add(rows[2]) == buffer.add(rows[3]) == ()  # one batch at a time
    buffer.failed()
    assert buffer.held() == tuple(rows[:4])
    assert buffer.add(rows[4]) == buffer.add(rows[5]) == ()  # nor at once after a failure
    assert buffer.held() == tuple(rows[1:6])
    assert buffer.dropped == 1


def test_a_buffer_tries_again_after_as_many_rows_again() -> None:
    buffer = RowBuffer(batch=2)
    rows: list[LedgerRow] = [evolve(row, at=NOON) for row in rows_of(6)]
    buffer.add(rows[0])
    buffer.add(rows[1])
    buffer.failed()
    assert buffer.add(rows[2]) == ()
    assert buffer.add(rows[3]) == tuple(rows[:4])
    buffer.written()
    assert buffer.held() == ()
