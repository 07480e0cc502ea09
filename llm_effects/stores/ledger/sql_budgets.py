"""Budgets in a database, which all processes share: steps that wait, and the transactions that take them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from threading import Lock
from typing import Any, Final, TypeAlias, final

from attrs import define, evolve, field
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success
from sqlalchemy import Connection, delete, select, text, update

from llm_effects.limits.budgets import Account, Hold, check_budget
from llm_effects.stores.sql.database import Database, begin_later
from llm_effects.stores.sql.round_trips import script_of
from llm_effects.stores.sql.tables import BUDGETS, HOLDS, insert_all_new, timestamp
from llm_effects.values.errors import BudgetExceeded, LLMError, StorageFailed

LOGGER: Final = logging.getLogger("llm_effects")

MAX_UNCOMMITTED: Final = 1_000
"""How many commits are kept while the database cannot be written."""

_Commit: TypeAlias = tuple[Hold, Decimal]


# Budgets: steps that wait for the next transaction. One transaction of this process runs at a time and takes all steps
# that have come meanwhile, so that many calls lock an account, and wait for the disk, once.


@final
@define(eq=False)
class BudgetStep:
    """A reservation, or the commit of its cost, and its result."""

    hold: Hold
    cost: Decimal | None = None
    ended: Future[Result[Hold, LLMError]] = field(factory=Future[Result[Hold, LLMError]])


@final
class BudgetQueue:
    """The steps that wait, and the commits that failed; safe for any number of threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.after_fork()

    def after_fork(self) -> None:
        """Forget all steps: they belong to the parent process."""
        self._waiting: list[BudgetStep] = []
        self._batch: tuple[BudgetStep, ...] = ()
        self._running = False
        self._uncommitted: list[_Commit] = []
        self._lock = Lock()

    def add(self, step: BudgetStep) -> None:
        """Add a step to the next transaction."""
        with self._lock:
            self._waiting.append(step)
        self._start()

    def commit_later(self, commits: Iterable[_Commit]) -> None:
        """Keep commits for the next transaction; too many drop the cheapest, since every hold expires in time."""
        with self._lock:
            kept = sorted((*self._uncommitted, *commits), key=lambda each: each[1])
            self._uncommitted = kept[-MAX_UNCOMMITTED:]

    def flush(self) -> tuple[BudgetStep, ...]:
        """Start the commits that were kept; return all steps that run or wait."""
        with self._lock:
            self._retry()
            steps = (*self._batch, *self._waiting)
        self._start()
        return steps

    def _retry(self) -> None:
        self._waiting[:0] = [BudgetStep(hold, cost) for hold, cost in self._uncommitted]
        self._uncommitted.clear()

    def _start(self) -> None:
        """Start a transaction, unless one runs: its end starts the next."""
        with self._lock:
            if self._running or not self._waiting:
                return
            self._running = True
            durable = any(step.cost is not None for step in self._waiting) or bool(self._uncommitted)
        apply = partial(self._apply, durable=durable)
        if not self._database.post("budget", apply, self._on_end, durable=durable):
            self._on_end(Failure(StorageFailed(operation="budget", message="the ledger is closed, or read-only")))

    def _take(self, *, commits: bool = True) -> None:
        """Make the steps that wait the batch, with or without commits."""
        with self._lock:
            self._retry()
            taken = [step for step in self._waiting if commits or step.cost is None]
            self._waiting = [step for step in self._waiting if not commits and step.cost is not None]
            self._batch = tuple(step for step in taken if step.ended.set_running_or_notify_cancel())

    def _apply(self, connection: Connection, *, durable: bool) -> Result[Sequence[Result[Hold, LLMError]], LLMError]:
        """Apply the steps that wait; a repeated transaction applies the same steps, and changes nothing more."""
        on_server = connection.dialect.name == "postgresql"
        if not self._batch:
            self._take(commits=durable or on_server)
        if on_server:
            if apply_at_once(connection, self._batch):
                return Success([Success(step.hold) for step in self._batch])
            begin_later(connection)  # the next transaction
        accounts = lock(connection, [step.hold for step in self._batch])
        return Success(apply_steps(accounts, self._batch))

    def _on_end(self, result: Result[Sequence[Result[Hold, LLMError]], LLMError]) -> None:
        """Pass on the results, and start the next transaction; called in a thread."""
        if not self._batch and not is_successful(result):  # the transaction could not begin
            self._take()
        batch, commits = self._batch, [(step.hold, step.cost) for step in self._batch if step.cost is not None]
        if not is_successful(result):
            self.commit_later(commits)
        with self._lock:
            self._batch, self._running = (), False
            if is_successful(result):
                self._retry()  # reservations that were cancelled meanwhile
        if not is_successful(result) and commits:
            LOGGER.warning("the ledger could not commit a cost to its budgets: %s", result.failure().tag)
        outcomes = result.unwrap() if is_successful(result) else [Failure(result.failure())] * len(batch)
        for step, outcome in zip(batch, outcomes, strict=True):
            step.ended.set_result(outcome)
        self._start()


# Budgets in the database, step by step. A transaction locks each of its accounts once, in the order of their keys.
#
# An expired hold is freed but remembered, so that a late commit still counts, and counts once.


FORGOTTEN_AFTER: Final = timedelta(days=1)
"""How long after its expiry a hold is remembered, for a late commit."""

_FREED: Final = "0"


@define
class _Totals:
    """The amounts of an account that are spent and reserved, in US dollars."""

    spent: Decimal
    reserved: Decimal


@define
class Accounts:
    """The accounts of a transaction, and the amounts of its holds: as they are stored, and what is to change."""

    connection: Connection
    totals: dict[str, _Totals]
    amounts: dict[tuple[str, str], Decimal] = field(factory=dict[tuple[str, str], Decimal], init=False)
    stored: frozenset[tuple[str, str]] = field(default=frozenset[tuple[str, str]](), init=False)
    added: dict[tuple[str, str], Hold] = field(factory=dict[tuple[str, str], Hold], init=False)
    freed: set[str] = field(factory=set[str], init=False)

    def find(self, holds: Sequence[Hold]) -> None:
        """Read what is stored of some holds."""
        known = select(HOLDS.c.key, HOLDS.c.id, HOLDS.c.amount).where(
            HOLDS.c.key.in_(list(self.totals)), HOLDS.c.id.in_({hold.id for hold in holds})
        )
        self.amounts = {(key, name): Decimal(amount) for key, name, amount in self.connection.execute(known)}
        self.stored = frozenset(self.amounts)

    def reserve(self, hold: Hold) -> Result[Hold, LLMError]:
        """Reserve an amount in all accounts or in none; a hold that is stored already stays as it is."""
        if any((account.key, hold.id) in self.amounts for account in hold.accounts):
            return Success(hold)  # stored by an earlier try whose result was lost
        refused = next(filter(None, (self._refused(account, hold) for account in _in_order(hold.accounts))), None)
        if refused is not None:
            return Failure(refused)
        for account in hold.accounts:
            self.totals[account.key].reserved += hold.amount
            self.amounts[account.key, hold.id] = hold.amount
            self.added[account.key, hold.id] = hold
        return Success(hold)

    def commit(self, hold: Hold, cost: Decimal) -> None:
        """Spend the cost and release the hold; a hold that is not stored changes nothing."""
        for account in hold.accounts:
            amount = self.amounts.pop((account.key, hold.id), None)
            if amount is not None:
                self.added.pop((account.key, hold.id), None)
                self.totals[account.key].spent += cost
                self.totals[account.key].reserved -= amount

    def _refused(self, account: Account, hold: Hold) -> BudgetExceeded | None:
        totals = self.totals[account.key]
        refused = check_budget(account, totals.spent + totals.reserved, hold.amount)
        if refused is None or account.key in self.freed:
            return refused
        self._free_expired(account.key, hold.at)
        return check_budget(account, totals.spent + totals.reserved, hold.amount)

    def _free_expired(self, key: str, at: datetime) -> None:
        """Free the holds of an account that have expired."""
        self.freed.add(key)
        expired = (HOLDS.c.key == key) & (HOLDS.c.expires_at <= timestamp(at)) & (HOLDS.c.amount != _FREED)
        rows = self.connection.execute(select(HOLDS.c.id, HOLDS.c.amount).where(expired)).all()
        for name, amount in rows:
            if (key, name) not in self.stored or (key, name) in self.amounts:  # or it was committed just now
                self.totals[key].reserved -= Decimal(amount)
            if (key, name) in self.amounts:
                self.amounts[key, name] = Decimal(0)
        if rows:
            self.connection.execute(update(HOLDS).where(expired).values(amount=_FREED))
            forgotten = (HOLDS.c.key == key) & (HOLDS.c.expires_at <= timestamp(at - FORGOTTEN_AFTER))
            self.connection.execute(delete(HOLDS).where(forgotten))


def apply_steps(accounts: Accounts, steps: Sequence[BudgetStep]) -> Sequence[Result[Hold, LLMError]]:
    """Reserve and commit, in order, and write what has changed."""
    accounts.find([step.hold for step in steps])
    before = {key: evolve(totals) for key, totals in accounts.totals.items()}
    results: list[Result[Hold, LLMError]] = []
    for step in steps:
        if step.cost is None:
            results.append(accounts.reserve(step.hold))
        else:
            accounts.commit(step.hold, step.cost)
            results.append(Success(step.hold))
    _store(accounts, before)
    return results


def lock(connection: Connection, holds: Sequence[Hold]) -> Accounts:
    """Lock the accounts of some holds."""
    keys = sorted({account.key for hold in holds for account in hold.accounts})
    query = select(BUDGETS.c.key, BUDGETS.c.spent, BUDGETS.c.reserved).where(BUDGETS.c.key.in_(keys))
    locking = query.order_by(BUDGETS.c.key).with_for_update()
    rows = connection.execute(locking).all()
    if len(rows) < len(keys):
        insert_all_new(connection, BUDGETS, [{"key": key, "spent": "0", "reserved": "0"} for key in keys])
        rows = connection.execute(locking).all()
    return Accounts(connection, {key: _Totals(Decimal(spent), Decimal(reserved)) for key, spent, reserved in rows})


def _store(accounts: Accounts, before: Mapping[str, _Totals]) -> None:
    """Write what has changed."""
    gone = [{"k": key, "i": name} for key, name in accounts.stored - accounts.amounts.keys()]
    gone += [{"k": key, "i": name} for key, name in accounts.stored & accounts.added.keys()]
    added = [_hold_row(key, hold) for (key, _), hold in accounts.added.items()]
    changed = [
        {"k": key, "s": str(totals.spent), "r": str(totals.reserved)}
        for key, totals in accounts.totals.items()
        if totals != before[key]
    ]
    for statement, rows in zip(_ROWS, (gone, added, changed), strict=True):
        if rows:
            accounts.connection.execute(statement, rows)


_ROWS: Final = (
    text("DELETE FROM llm_holds WHERE key = :k AND id = :i"),
    text("INSERT INTO llm_holds (key, id, amount, expires_at) VALUES (:k, :i, :a, :e)"),
    text("UPDATE llm_budgets SET spent = :s, reserved = :r WHERE key = :k"),
)


def _hold_row(key: str, hold: Hold) -> dict[str, str]:
    return {"k": key, "i": hold.id, "a": str(hold.amount), "e": timestamp(hold.expires_at)}


def _in_order(accounts: Iterable[Account]) -> list[Account]:
    return sorted(accounts, key=lambda account: account.key)


# On Postgres, a batch in which every reservation fits is one round trip, and its locks never wait for this process.
#
# They do not wait for the disk either: the first transaction is not flushed, and unlocks the accounts for other
# processes; then the message, which nothing reads, is flushed to the disk, and with it all that was written before.


_AT_ONCE: Final = """
    WITH step AS (
        SELECT * FROM unnest(
            CAST(%(key)s AS text[]), CAST(%(id)s AS text[]), CAST(%(cost)s AS numeric[]),
            CAST(%(amount)s AS numeric[]), CAST(%(expires_at)s AS text[]), CAST(%(max)s AS numeric[])
        ) AS step (key, id, cost, amount, expires_at, max)
    ), account AS (
        SELECT key, CAST(spent AS numeric) AS spent, CAST(reserved AS numeric) AS reserved FROM llm_budgets
        WHERE key IN (SELECT key FROM step) AND (SELECT set_config('synchronous_commit', 'off', true)) = 'off'
        ORDER BY key FOR UPDATE
    ), wanted AS (
        SELECT key, sum(amount) FILTER (WHERE cost IS NULL) AS amount, min(max) FILTER (WHERE cost IS NULL) AS max
        FROM step GROUP BY key
    ), fit AS (
        SELECT 1 FROM wanted LEFT JOIN account USING (key)
        HAVING bool_and(account.key IS NOT NULL AND coalesce(spent + reserved + wanted.amount <= wanted.max, true))
    ), gone AS (
        DELETE FROM llm_holds USING step, fit
        WHERE llm_holds.key = step.key AND llm_holds.id = step.id AND cost IS NOT NULL
        RETURNING llm_holds.key, cost AS spent, -CAST(llm_holds.amount AS numeric) AS reserved
    ), added AS (
        INSERT INTO llm_holds (key, id, amount, expires_at)
        SELECT key, id, CAST(amount AS text), expires_at FROM step, fit WHERE cost IS NULL
        ON CONFLICT DO NOTHING RETURNING key, 0, CAST(amount AS numeric)
    ), change AS (
        SELECT key, sum(spent) AS spent, sum(reserved) AS reserved
        FROM (SELECT * FROM gone UNION ALL SELECT * FROM added) AS holds GROUP BY key
    ), changed AS (
        UPDATE llm_budgets AS stored SET
            spent = CAST(account.spent + change.spent AS text),
            reserved = CAST(account.reserved + change.reserved AS text)
        FROM change JOIN account USING (key) WHERE stored.key = change.key
    )
    SELECT count(*) FROM fit;
    COMMIT;
    SELECT pg_logical_emit_message(true, 'llm_effects', '')
"""


def apply_at_once(connection: Connection, steps: Sequence[BudgetStep]) -> bool:
    """Apply all steps and commit, if every reservation fits; otherwise change nothing, and return ``False``."""
    from psycopg import ClientCursor

    if not steps or len({step.hold.id for step in steps}) < len(steps):
        return False  # the order of two steps of a hold matters
    rows = [_step_row(step, account) for step in steps for account in step.hold.accounts]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    driver: Any = connection.connection.driver_connection
    script = script_of(connection, ClientCursor(driver).mogrify(" ".join(_AT_ONCE.split()), columns))
    return bool(connection.exec_driver_sql(script, execution_options={"no_parameters": True}).scalar_one())


def _step_row(step: BudgetStep, account: Account) -> dict[str, object]:
    hold = step.hold
    return {
        "key": account.key,
        "id": hold.id,
        "cost": step.cost,
        "amount": hold.amount,
        "expires_at": timestamp(hold.expires_at),
        "max": account.limit,
    }
