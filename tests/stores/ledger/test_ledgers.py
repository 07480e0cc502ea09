"""The behaviour that every ledger shares, beyond the public checks: memory, SQLite and Postgres."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from attrs import evolve
from returns.pipeline import is_successful

from llm_effects import Attempt, BudgetExceeded, Cost, TaskType, Usage
from llm_effects.config import StorageConfig
from llm_effects.effects.effect import result_of
from llm_effects.effects.env import Ledger
from llm_effects.limits.budgets import Hold
from llm_effects.manager import new_memory
from llm_effects.stores.open import open_storage
from llm_effects.testing.store_checks import LEDGER_CHECKS, LedgerCheck
from llm_effects.values.records import LedgerRow
from tests.fixtures.futures import given_by
from tests.fixtures.holds import NOON, hold
from tests.fixtures.ledger_rows import EMPTY
from tests.fixtures.postgres_server import postgres_server

__all__ = ["postgres_server"]

pytestmark = pytest.mark.anyio

FULL = LedgerRow(
    id="call-1.1",
    at=datetime(2026, 11, 23, 13, 0, 0, 123456, tzinfo=UTC),
    call_id="call-1",
    task_type=TaskType("triage"),
    attempt=Attempt(
        model="gpt",
        provider="openai",
        outcome="success",
        latency_ms=1234.5678901234567,
        first_content_ms=0.1,
        wait_ms=2.5,
        usage=Usage(
            input_tokens=1,
            cache_read_tokens=2,
            cache_write_tokens=3,
            output_tokens=2**40,
            reasoning_tokens=5,
            estimated=True,
            cache_write_1h_tokens=1,
            service_tier="flex",
        ),
        cost=Cost(Decimal("0.00000003750000000000000001")),
    ),
    conversation_id="incident-7",
    served_model="gpt-6-luna-2026-10-01",
    owner="alice",
    tags=("nightly", 'a "quoted" one', "späť"),
)


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        server: str = request.getfixturevalue("postgres_server").new_url()
        return server
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/ledger.db"


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[Ledger]:
    storage = open_storage(StorageConfig(url=url), new_memory()).unwrap()
    yield storage.ledger
    await storage.ledger.aclose()
    await storage.conversations.aclose()


@pytest.fixture
async def ledger(url: str) -> AsyncIterator[Ledger]:
    async with opened(url) as each:
        yield each


@pytest.mark.parametrize("check", LEDGER_CHECKS, ids=lambda check: check.__name__)
async def test_the_ledger_passes_the_check(ledger: Ledger, check: LedgerCheck) -> None:
    await check(ledger)


async def test_rows_returns_what_was_recorded(ledger: Ledger, url: str) -> None:
    ledger.record(FULL)
    ledger.record(EMPTY)
    assert list(await given_by(ledger.rows())) == [EMPTY, FULL]
    await ledger.aclose()
    if not url.startswith("memory"):
        async with opened(url) as again:
            assert list(await given_by(again.rows())) == [EMPTY, FULL]


async def test_values_that_databases_reject_lose_no_row(ledger: Ledger, url: str) -> None:
    """Otherwise the whole batch with such a row would be lost."""
    ledger.record(evolve(FULL, owner="a\0b\ud800", tags=("c\0\ud800",), served_model="\0"))
    much = evolve(FULL.attempt, usage=Usage(input_tokens=2**70, output_tokens=1))
    ledger.record(evolve(EMPTY, attempt=much))
    await ledger.aclose()
    if not url.startswith("memory"):
        async with opened(url) as again:
            bounded, full = await given_by(again.rows())
        assert full.attempt == FULL.attempt
        assert bounded.attempt.usage.input_tokens == 2**63 - 1


# Budgets.


async def reserved(ledger: Ledger, each: Hold) -> bool:
    result = await result_of(ledger.reserve(each))
    assert is_successful(result) or isinstance(result.failure(), BudgetExceeded), result
    return is_successful(result)


async def test_an_expired_hold_cannot_exceed_the_limit(ledger: Ledger) -> None:
    assert not await reserved(ledger, evolve(hold("late", "2"), expires_at=NOON))
    assert await reserved(ledger, hold("first", "1"))


async def test_closing_twice_is_fine(ledger: Ledger) -> None:
    ledger.record(EMPTY)
    await ledger.aclose()
    await ledger.aclose()


async def test_a_second_commit_frees_nothing(ledger: Ledger) -> None:
    first = hold("first", "0.5")
    assert await reserved(ledger, first)
    await ledger.commit(first, Decimal("0.4"))
    await ledger.commit(first, Decimal(0))
    assert not await reserved(ledger, hold("second", "0.7"))
