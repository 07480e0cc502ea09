"""Budgets that four processes share on Postgres: ``python -m tests.benchmarks.budgets [SECONDS]``.

Each process makes calls in 16 tasks. A call reserves in two accounts, one of which all calls share, and commits. The
figures are the calls a second of all processes, and the milliseconds of a reservation and its commit. In the end
the account must have spent what was committed, and hold nothing. Then one process makes calls one by one, on Postgres
and on a SQLite file.
"""

import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from statistics import median, quantiles
from time import monotonic, perf_counter

import anyio

from llm_effects.effects.effect import result_of
from llm_effects.limits.budgets import Account, Hold
from llm_effects.stores.ledger.sql import SqlLedger
from llm_effects.stores.sql.database import open_database
from tests.fixtures.postgres_server import Postgres, start

PROCESSES = 4
TASKS = 16
AMOUNT = Decimal("0.0001")
COST = Decimal("0.00009")


def hold_of(owner: str, name: str) -> Hold:
    now = datetime.now(UTC)
    ends = now + timedelta(days=1)
    accounts = tuple(Account(budget=each, key=each, limit=Decimal(10**6), ends=ends) for each in ("all", owner))
    return Hold(id=name, accounts=accounts, amount=AMOUNT, at=now, expires_at=now + timedelta(seconds=60))


async def work(url: str, worker: str, seconds: float, tasks: int = TASKS) -> list[float]:
    """Make calls for some seconds; return the milliseconds of each."""
    ledger, times, numbers = SqlLedger(open_database(url).unwrap()), list[float](), count()
    await result_of(ledger.rows(newest=1))
    end = monotonic() + seconds

    async def calls(task: int) -> None:
        while monotonic() < end:
            hold = hold_of(f"{worker}.{task % 4}", f"{worker}.{next(numbers)}")
            started = perf_counter()
            (await result_of(ledger.reserve(hold))).unwrap()
            await ledger.commit(hold, COST)
            times.append((perf_counter() - started) * 1e3)

    async with anyio.create_task_group() as group:
        for task in range(tasks):
            group.start_soon(calls, task)
    await ledger.aclose()
    return times


def measure(server: Postgres, seconds: float) -> tuple[float, list[float]]:
    """Return the calls a second, and the quantiles of their times."""
    url = server.new_url()
    anyio.run(work, url, "first", 0.1)
    spent_before = spent(server, url)[0]
    command = [sys.executable, "-m", "tests.benchmarks.budgets", "work", url]
    started = [
        subprocess.Popen([*command, f"w{number}", str(seconds)], stdout=subprocess.PIPE, text=True)
        for number in range(PROCESSES)
    ]
    times = [float(each) for process in started for each in process.communicate()[0].split()]
    total, reserved, holds = spent(server, url)
    assert (total - spent_before, reserved, holds) == (COST * len(times), 0, 0)
    return len(times) / seconds, quantiles(times, n=100)


def spent(server: Postgres, url: str) -> tuple[Decimal, Decimal, int]:
    """Return what the shared account has spent and reserved, and how many holds there are."""
    name = url.rpartition("/")[2]
    [(total, reserved)] = server.execute("SELECT spent, reserved FROM llm_budgets WHERE key = 'all'", name)
    [(holds,)] = server.execute("SELECT count(*) FROM llm_holds", name)
    return Decimal(str(total)), Decimal(str(reserved)), int(str(holds))


def main(seconds: float = 5.0) -> None:
    with start() as server, tempfile.TemporaryDirectory() as folder:
        rate, times = measure(server, seconds)
        urls = {"Postgres": server.new_url(), "SQLite": f"sqlite:///{folder}/ledger.db"}
        single = {name: median(anyio.run(work, url, "w", seconds, 1)) for name, url in urls.items()}
    print(f"{PROCESSES} processes, {TASKS} calls at once in each, two accounts a call:")
    print(f"  {rate:.0f} calls/s; p50 {times[49]:.0f} ms, p99 {times[98]:.0f} ms")
    print("one call at a time:", ", ".join(f"p50 {time:.1f} ms on {name}" for name, time in single.items()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        print(*(f"{each:.2f}" for each in anyio.run(work, sys.argv[2], sys.argv[3], float(sys.argv[4]))))
    else:
        main(*map(float, sys.argv[1:]))
