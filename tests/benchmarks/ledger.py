"""The cost of the ledger and of budgets per call, and its growth: ``python -m tests.benchmarks.ledger [ROWS]``.

Calls of a scripted model alternate between environments, in runs of a hundred. The figures are microseconds per call:
the median of single calls, and the mean of all, which includes writing the batches. Then the same is measured on a
SQLite file with ROWS rows and a tenth as many budget accounts, and a usage report is made of it.
"""

import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime
from decimal import Decimal
from itertools import count
from pathlib import Path
from statistics import fmean, median
from time import perf_counter

import anyio
from attrs import evolve
from returns.future import FutureResult

from llm_effects import LLMConfig, LLMRequest, ModelConfig, run, scripted_env
from llm_effects.config import BudgetConfig, Price
from llm_effects.effects.call import AttemptContext, Call
from llm_effects.effects.effect import layered, result_of
from llm_effects.effects.env import Ledger, LLMEnv, wall_clock
from llm_effects.limits.budgets import Hold
from llm_effects.policies.budget import with_budget
from llm_effects.policies.complete import complete
from llm_effects.policies.recording import with_recording
from llm_effects.reports.usage import usage_report
from llm_effects.stores.ledger.memory import MemoryLedger
from llm_effects.stores.ledger.sql import SqlLedger
from llm_effects.stores.sql.database import file_database
from llm_effects.testing import scripted
from llm_effects.values.errors import LLMError
from llm_effects.values.records import LedgerRow

PIPELINE = layered(with_budget, with_recording, complete)
ASK = LLMRequest(prompt="why?", owner="alice")
PRICED = ModelConfig(provider="openai-chat", model="m", api_key="sk-benchmark", price=Price(input=1, output=1))
PLAIN = LLMConfig(models={"m": PRICED})
BUDGET = evolve(PLAIN, budgets=(BudgetConfig(name="b", limit_usd=Decimal(10**9), scope="owner:*"),))


class NoLedger:
    """Records nothing: the baseline."""

    def record(self, row: LedgerRow) -> None:
        pass

    def rows(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        before: LedgerRow | None = None,
        newest: int | None = None,
    ) -> FutureResult[Sequence[LedgerRow], LLMError]:
        return FutureResult.from_value(())

    def reserve(self, hold: Hold) -> FutureResult[Hold, LLMError]:
        return FutureResult.from_value(hold)

    async def commit(self, hold: Hold, cost: Decimal) -> None:
        pass

    async def aclose(self) -> None:
        pass


def env_of(ledger: Ledger, config: LLMConfig) -> LLMEnv:
    return evolve(scripted_env(clients=scripted("ok"), config=config), ledger=ledger, now=wall_clock)


async def run_of(env: LLMEnv, numbers: Iterator[int], calls: int) -> list[float]:
    times: list[float] = []
    for _ in range(calls):
        call = Call(id=f"benchmark-{next(numbers)}", request=ASK, attempt=AttemptContext(model="m"))
        started = perf_counter()
        await run(PIPELINE(call), env)
        times.append((perf_counter() - started) * 1e6)
    return times


def figures(name: str, times: list[float]) -> str:
    return f"  {name}: median {median(times):.0f} us, mean {fmean(times):.0f} us"


async def compare(folder: Path, rounds: int) -> None:
    envs = {
        "no ledger": env_of(NoLedger(), PLAIN),
        "memory": env_of(MemoryLedger(), PLAIN),
        "SQLite": env_of(SqlLedger(file_database(folder / "a.db")), PLAIN),
        "memory, with a budget": env_of(MemoryLedger(), BUDGET),
        "SQLite, with a budget": env_of(SqlLedger(file_database(folder / "b.db")), BUDGET),
    }
    times: dict[str, list[float]] = {name: [] for name in envs}
    numbers = count()
    for env in envs.values():
        await run_of(env, numbers, 20)
    for _ in range(rounds):
        for name, env in envs.items():
            times[name] += await run_of(env, numbers, 100)
    for name, env in envs.items():
        await env.ledger.aclose()
        print(figures(name, times[name]))


_FILL = """WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
INSERT INTO llm_ledger (at, id, call_id, owner, task, tags, model, provider, outcome, latency_ms, wait_ms, input_tokens,
    cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, estimated, cost_usd)
SELECT strftime('%Y-%m-%dT%H:%M:%S.000000+00:00', 1700000000 + n, 'unixepoch'), 'call-' || n || '.1', 'call-' || n,
    'owner-' || (n % 100), 'analysis', '[]', 'model-' || (n % 5), 'openai-chat', 'success', 100.5 + n % 1000, 0.0, 10,
    0, 0, 20, 0, 0, '0.000123' FROM numbers"""

_ACCOUNTS = """WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
INSERT INTO llm_budgets SELECT '["b","day","2023-11-14T00","owner:' || n || '"]', '0.5', '0' FROM numbers"""


async def fill(path: Path, rows: int) -> Path:
    ledger = SqlLedger(file_database(path))
    await result_of(ledger.rows(newest=1))  # creates the tables
    await ledger.aclose()
    with closing(sqlite3.connect(path)) as file, file:
        file.execute(_FILL, (rows,))
        file.execute(_ACCOUNTS, (max(1, rows // 10),))
    return path


async def grow(folder: Path, rows: int, rounds: int) -> None:
    for size in (1, rows):
        path = await fill(folder / f"{size}.db", size)
        print(f"{size} rows:")
        numbers = count()
        for name, config in (("SQLite", PLAIN), ("SQLite, with a budget", BUDGET)):
            env = env_of(SqlLedger(file_database(path)), config)
            await run_of(env, numbers, 20)
            print(figures(name, await run_of(env, numbers, rounds * 100)))
            started = perf_counter()
            await result_of(env.ledger.rows(newest=500))
            print(f"  the newest 500 rows: {(perf_counter() - started) * 1e3:.1f} ms")
            await env.ledger.aclose()
        env = env_of(SqlLedger(file_database(path)), PLAIN)
        started = perf_counter()
        report = (await run(usage_report(by=("model", "day")), env)).unwrap()
        print(f"  a report of {report.total.attempts} attempts: {perf_counter() - started:.2f} s")
        await env.ledger.aclose()


async def main(rows: int = 1_000_000, rounds: int = 20) -> None:
    with tempfile.TemporaryDirectory() as folder:
        await compare(Path(folder), rounds)
        await grow(Path(folder), rows, rounds)


if __name__ == "__main__":
    anyio.run(main, *map(int, sys.argv[1:]))
