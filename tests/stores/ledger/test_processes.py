"""One budget of many processes: never overspent by our own estimates, and freed of dead reservations."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import anyio
import pytest
from returns.pipeline import is_successful

from llm_effects import BudgetExceeded, run, usage_report
from llm_effects.effects.effect import result_of
from llm_effects.effects.env import LLMEnv
from llm_effects.limits.budgets import Hold, accounts_of
from tests.fixtures import killed_callers, ledger_worker
from tests.fixtures.killed_callers import AMOUNT, COST, KILLED, PLENTY, call
from tests.fixtures.ledger_worker import CONFIG, LIMIT, QUESTION, env_at
from tests.fixtures.postgres_server import Postgres, postgres_server

__all__ = ["postgres_server"]

_Value = TypeVar("_Value")

CALLS = 18
"""How many calls each of four processes makes: more than the budget allows."""


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        server: str = request.getfixturevalue("postgres_server").new_url()
        return server
    return f"sqlite:///{tmp_path}/ledger.db"


def python(*arguments: str, program: ModuleType = ledger_worker) -> "subprocess.Popen[str]":
    command = [sys.executable, str(program.__file__), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def observe(url: str, look: Callable[[LLMEnv], Awaitable[_Value]]) -> _Value:
    async def main() -> _Value:
        env = env_at(url, "observer")
        result = await look(env)
        await env.ledger.aclose()
        return result

    return anyio.run(main)


async def fits(env: LLMEnv, dollars: int, name: str = "probe") -> bool:
    now = env.now()
    accounts = accounts_of(CONFIG.budgets, QUESTION, now)
    hold = Hold(id=name, accounts=accounts, amount=Decimal(dollars), at=now, expires_at=now + timedelta(seconds=60))
    held = is_successful(await result_of(env.ledger.reserve(hold)))
    await env.ledger.commit(hold, Decimal(0))
    return held


def test_four_processes_never_overspend_one_budget(url: str) -> None:
    """Each call reserves 10 dollars and costs 2: spent and reserved amounts both count."""
    processes = [python("spend", url, f"w{number}", str(CALLS)) for number in range(4)]
    lines = [line for process in processes for line in process.communicate(timeout=120)[0].split()]
    assert not any(process.returncode for process in processes)
    tags = Counter(lines)
    assert set(tags) == {"answered", "BudgetExceeded"}
    assert sum(tags.values()) == 4 * CALLS
    report = observe(url, lambda env: run(usage_report(by="model"), env)).unwrap()
    spent = report.total.cost_usd
    assert spent == 2 * tags["answered"] == 2 * report.total.requests
    assert spent <= LIMIT
    assert observe(url, lambda env: fits(env, int(LIMIT - spent)))  # all holds were released
    assert not observe(url, lambda env: fits(env, int(LIMIT - spent) + 1, "too much"))


def test_the_reservation_of_a_killed_process_is_freed(url: str) -> None:
    holder = python("hold", url, "holder", str(LIMIT))
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert not observe(url, lambda env: fits(env, 1, "early"))
    holder.kill()
    holder.communicate()
    end = time.monotonic() + 20
    while not observe(url, lambda env: fits(env, LIMIT, "all")):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_killed_process_loses_only_waiting_rows(url: str) -> None:
    recorder = python("record", url, "recorder", "230")
    assert recorder.stdout is not None
    stored = int(recorder.stdout.readline())
    recorder.kill()
    recorder.communicate()
    assert stored >= 200
    assert stored <= len(observe(url, lambda env: result_of(env.ledger.rows())).unwrap()) <= 230


def test_fault_161_other_processes_see_the_rows_of_an_idle_one(url: str) -> None:
    recorder = python("idle", url, "recorder", "3")
    assert recorder.stdout is not None
    assert recorder.stdout.readline() == "idle\n"
    end = time.monotonic() + 2
    while len(observe(url, lambda env: result_of(env.ledger.rows())).unwrap()) < 3:
        assert time.monotonic() < end
        time.sleep(0.1)
    recorder.kill()
    recorder.communicate()


# Processes that are killed while they reserve and commit.

ROUNDS = 12


async def probed(env: LLMEnv, later: timedelta = timedelta()) -> Decimal:
    """Return what is spent and reserved, by an attempt to reserve too much."""
    hold = call("probe", datetime.now(UTC) + later, PLENTY + 1)
    refused = (await result_of(env.ledger.reserve(hold))).failure()
    assert isinstance(refused, BudgetExceeded)
    return refused.spent.usd or Decimal(0)


def test_killed_processes_lose_no_cost_of_an_ended_call_and_never_overspend(url: str) -> None:
    draw, ended = random.Random(20), 0
    with python(url, program=killed_callers) as killer:
        assert killer.stdin is not None
        assert killer.stdout is not None
        for number in range(ROUNDS):
            print(number, draw.uniform(0, 0.03), file=killer.stdin, flush=True)
            ended += int(killer.stdout.readline())
            assert COST * ended <= observe(url, probed) <= PLENTY
    spent = observe(url, lambda env: probed(env, timedelta(seconds=61)))  # all holds have expired
    assert COST * ended <= spent <= COST * (ended + 4 * KILLED * ROUNDS)
    assert spent <= PLENTY


def test_a_reservation_and_a_commit_that_are_repeated_count_once(url: str) -> None:
    """As after a connection that was lost during a commit of the database."""

    async def repeat(env: LLMEnv) -> Decimal:
        hold = call("h", datetime.now(UTC))
        for _ in range(2):
            (await result_of(env.ledger.reserve(hold))).unwrap()
        assert await probed(env) == AMOUNT
        for _ in range(2):
            await env.ledger.commit(hold, Decimal(COST))
        return await probed(env)

    assert observe(url, repeat) == COST


def test_a_server_that_crashes_loses_no_cost_of_an_ended_call(postgres_server: Postgres) -> None:
    async def spend_and_crash(env: LLMEnv) -> None:
        for name in ("first", "second"):
            hold = call(name, datetime.now(UTC))
            (await result_of(env.ledger.reserve(hold))).unwrap()
            await env.ledger.commit(hold, Decimal(COST))
        with postgres_server.crashed():
            pass

    url = postgres_server.new_url()
    observe(url, spend_and_crash)
    assert observe(url, probed) == 2 * COST
