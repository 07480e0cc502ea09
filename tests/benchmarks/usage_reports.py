"""Usage reports over many rows: ``python -m tests.benchmarks.usage_reports [ROWS] [sqlite|postgres]``.

The rows are of 30 days, with 200 owners, 5 models, 5 tasks and 6 sets of tags. In the usual ledger an owner has its
own task and tags; in the scattered one everything occurs with everything, so that hardly two rows of an hour can be
added up beforehand. The first reports sum up all hours and days, as after an upgrade; the ledger does that hour by hour
while it writes. Times are seconds, of the clock and of the processors (of this process and the server). Then rows are
written with the indexes and triggers that reports need, and without.
"""

import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import islice
from pathlib import Path

import anyio
from attrs import evolve
from sqlalchemy import text
from sqlalchemy.engine import make_url

from llm_effects import Attempt, Cost, LLMEnv, TaskType, Usage, run, scripted_env, usage_report
from llm_effects.effects.effect import result_of
from llm_effects.effects.env import new_id
from llm_effects.stores.ledger.sql import BATCH, SqlLedger, insert_rows
from llm_effects.stores.sql.database import Engines, open_database, postgres_engines, sqlite_engines
from llm_effects.values.records import LedgerRow
from llm_effects.values.usage import Dimension
from tests.fixtures.postgres_server import Postgres, start

SINCE = datetime(2026, 10, 1, tzinfo=UTC)
PERIOD = timedelta(days=30)
MODELS = (("sonnet", "anthropic"), ("haiku", "anthropic"), ("luna", "openai"), ("mini", "openai"), ("local", "llama"))
TASKS = ("analysis", "ui_generation", "config_management", "general", "triage")
TAGS = ((), ("nightly",), ("web",), ("nightly", "eu"), ("web", "eu"), ("retry",))
BYS: Sequence[tuple[Dimension, ...]] = (
    *(("model",), ("task",), ("day",), ("hour",), ("owner",), ("tag",)),
    *(("day", "model"), ("owner", "model"), ("owner", "task", "tag")),
)


def rows_of(count: int, *, scattered: bool) -> Iterator[LedgerRow]:
    draw, written = random.Random(1), 0
    while written < count:
        owner, call = draw.randrange(200), new_id()
        task, tags = (draw.randrange(5), draw.randrange(6)) if scattered else (owner % 5, owner % 6)
        attempts = 1 if draw.random() < 0.97 else 2
        for number in range(1, attempts + 1):
            at = SINCE + PERIOD * (written / count)
            model, provider = MODELS[draw.randrange(5) if scattered else (task + number) % 5]
            yield _row(draw, at, f"{call}.{number}", call, model, provider, owner, TASKS[task], TAGS[tags])
            written += 1


def _row(draw: random.Random, at: datetime, name: str, call: str, *names: object) -> LedgerRow:
    model, provider, owner, task, tags = names
    fresh, cached, answer = draw.randrange(200, 8_000), draw.choice((0, draw.randrange(20_000))), draw.randrange(1_500)
    latency_ms = draw.lognormvariate(7, 1)
    attempt = Attempt(
        model=str(model),
        provider=str(provider),
        outcome="success" if draw.random() < 0.97 else "RateLimitExceeded",
        latency_ms=latency_ms,
        first_content_ms=latency_ms / 3 if draw.random() < 0.5 else None,
        usage=Usage(input_tokens=fresh, cache_read_tokens=cached, output_tokens=answer),
        cost=Cost(Decimal(fresh * 2 + answer * 10) / 1_000_000),
    )
    saved = Decimal(cached) / 1_000_000 if cached else None
    row = LedgerRow(id=name, at=at, call_id=call, task_type=TaskType(str(task)), attempt=attempt, cache_saved_usd=saved)
    return evolve(row, owner=f"owner-{owner}", tags=tags)


def fill(engines: Engines, rows: Iterator[LedgerRow]) -> None:
    with engines.writing.begin() as connection:
        while some := list(islice(rows, 5_000)):
            insert_rows(connection, some)
        connection.execute(text("ANALYZE llm_ledger"))  # as a server does by itself, soon


def cpu_of(server: Postgres | None) -> float:
    total = time.process_time()
    for status in Path("/proc").glob("[0-9]*/stat") if server is not None else ():
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if server is not None and (
            int(fields[1]) == server.process.pid or status.parent.name == str(server.process.pid)
        ):
            total += (int(fields[11]) + int(fields[12])) / 100
    return total


async def measure(env: LLMEnv, server: Postgres | None, name: str, by: tuple[Dimension, ...]) -> None:
    cpu, clock = cpu_of(server), time.perf_counter()
    report = (await run(usage_report(SINCE + timedelta(minutes=10), by), env)).unwrap()
    spent, waited = cpu_of(server) - cpu, time.perf_counter() - clock
    print(f"  {name}: {waited:.2f} s, processors {spent:.2f} s, {len(report.rows)} groups", flush=True)


async def compare(url: str, engines: Engines, server: Postgres | None, rows: int) -> None:
    for scattered in (False, True):
        ledger = SqlLedger(open_database(url).unwrap())
        await result_of(ledger.rows(newest=1))  # creates the tables
        with engines.writing.begin() as connection:
            connection.execute(text("DELETE FROM llm_ledger"))
            connection.execute(text("DELETE FROM llm_usage"))
            connection.execute(text("DELETE FROM llm_usage_calls"))
        fill(engines, rows_of(rows, scattered=scattered))
        print(f"{rows} rows, {'scattered' if scattered else 'usual'}:", flush=True)
        env = evolve(scripted_env(), ledger=ledger)
        await sum_up(env, server)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for by in BYS:
            await measure(env, server, ", ".join(by), by)
        more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(f"  memory of the reports: {more / 1024:.0f} MB more than before", flush=True)
        await ledger.aclose()


async def sum_up(env: LLMEnv, server: Postgres | None) -> None:
    cpu, clock = cpu_of(server), time.perf_counter()
    for by in BYS:  # of no rows
        (await run(usage_report(SINCE + PERIOD, by), env)).unwrap()
    spent, waited = cpu_of(server) - cpu, time.perf_counter() - clock
    print(f"  summing up all hours and days, once: {waited:.2f} s, processors {spent:.2f} s", flush=True)


def write(engines: Engines, server: Postgres | None, name: str) -> None:
    """Write batches as the ledger does, at the end of its rows."""
    end = SINCE + PERIOD
    rows = [evolve(row, at=end + timedelta(seconds=n)) for n, row in enumerate(rows_of(20_000, scattered=True))]
    cpu, clock = cpu_of(server), time.perf_counter()
    for start_at in range(0, len(rows), BATCH):
        with engines.writing.begin() as connection:
            insert_rows(connection, rows[start_at : start_at + BATCH])
    spent, waited = (cpu_of(server) - cpu) / len(rows) * 1e6, (time.perf_counter() - clock) / len(rows) * 1e6
    print(f"  {name}: {waited:.0f} us a row, processors {spent:.0f} us", flush=True)
    with engines.writing.begin() as connection:
        connection.execute(text("DELETE FROM llm_ledger WHERE at >= :end"), {"end": end.isoformat()})


TRIGGERS = {
    "sqlite": [f"DROP TRIGGER llm_ledger_{each}" for each in ("insert", "update", "delete")],
    "postgresql": ["DROP FUNCTION llm_usage_changed CASCADE"],
}


def compare_writing(engines: Engines, server: Postgres | None) -> None:
    print("writing:", flush=True)
    for _ in range(2):
        write(engines, server, "with the indexes and triggers of reports")
    with engines.writing.begin() as connection:
        for statement in (*TRIGGERS[connection.dialect.name], "DROP INDEX llm_ledger_by_call"):
            connection.execute(text(statement))
    for _ in range(2):
        write(engines, server, "without")


async def main(rows: int = 1_000_000, only: str = "") -> None:
    if only != "postgres":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ledger.db"
            await result_of(SqlLedger(open_database(f"sqlite:///{path}").unwrap()).rows(newest=1))
            engines = sqlite_engines(path)
            print("SQLite", flush=True)
            await compare(f"sqlite:///{path}", engines, None, rows)
            compare_writing(engines, None)
            engines.dispose()
    if only != "sqlite":
        with ExitStack() as stack:
            server = stack.enter_context(start())
            url = server.new_url()
            engines = postgres_engines(make_url(url).set(drivername="postgresql+psycopg"))
            print("Postgres", flush=True)
            await compare(url, engines, server, rows)
            compare_writing(engines, server)
            engines.dispose()


if __name__ == "__main__":
    anyio.run(partial(main, int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, *sys.argv[2:3]))
