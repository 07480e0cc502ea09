"""Budgets in a database, which all processes share: steps that wait, and the transactions that take them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from threading import Lock, Timer
from typing import Final, TypeAlias, final

from attrs import define, evolve, field
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success
from sqlalchemy import Connection, delete, select, text, update

from llm_effects.limits.budgets import Account, Hold, check_budget
from llm_effects.stores.sql.database import Database
from llm_effects.stores.sql.tables import BUDGETS, HOLDS, insert_all_new
from llm_effects.values.errors import BudgetExceeded, LLMError, StorageFailed

LOGGER: Final = logging.getLogger("llm_effects")

MAX_UNCOMMITTED: Final = 1_000
"""How many commits are kept while the database cannot be written."""

_Commit: TypeAlias = tuple[Hold, Decimal]


def timestamp(at: datetime) -> str:
    """Format a time so that it sorts as text.

    >>> timestamp(datetime(2026, 11, 23, tzinfo=UTC))
    '2026-11-23T00:00:00.000000+00:00'
    """
    return at.astimezone(UTC).isoformat(timespec="microseconds")


# Budgets: steps that wait for the next transaction. One transaction of this process runs at a time and takes all steps
# that have come meanwhile, so that many calls lock an account, and wait for the disk, once.


COMMIT_PAUSE_S: Final = 0.01
"""How long a commit waits for others, in seconds, if no reservation takes it along."""


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
        self._timer: Timer | None = None
        self._uncommitted: list[_Commit] = []
        self._lock = Lock()

    def add(self, step: BudgetStep) -> None:
        """Add a step to the next transaction, which a reservation starts at once and a commit after a moment."""
        with self._lock:
            self._waiting.append(step)
            if step.cost is not None:
                self._start_soon()
        if step.cost is None:
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

    def _start_soon(self) -> None:
        if self._timer is None and not self._running:
            self._timer = Timer(COMMIT_PAUSE_S, self._start)
            self._timer.daemon = True
            self._timer.start()

    def _start(self) -> None:
        """Start a transaction, unless one runs: its end starts the next."""
        with self._lock:
            self._timer = None
            if self._running or not self._waiting:
                return
            self._running = True
        if not self._database.post("budget", self._apply, self._on_end):
            self._on_end(Failure(StorageFailed(operation="budget", message="the ledger is closed")))

    def _apply(self, connection: Connection) -> Result[Sequence[Result[Hold, LLMError]], LLMError]:
        """Apply the waiting steps; a repeated transaction applies the same steps again."""
        if not self._batch:
            self._take(lambda _: True)
        accounts = lock(connection, [step.hold for step in self._batch])
        self._take(lambda step: all(account.key in accounts.totals for account in step.hold.accounts))
        return Success(apply_steps(accounts, self._batch))

    def _take(self, fits: Callable[[BudgetStep], bool]) -> None:
        """Add the waiting steps that fit to the batch."""
        with self._lock:
            self._retry()
            taken = [step for step in self._waiting if fits(step)]
            self._waiting = [step for step in self._waiting if not fits(step)]
            self._batch += tuple(step for step in taken if step.ended.set_running_or_notify_cancel())

    def _on_end(self, result: Result[Sequence[Result[Hold, LLMError]], LLMError]) -> None:
        """Pass on the results, and start the next transaction; called in a thread."""
        if not self._batch:  # the transaction could not begin
            self._take(lambda _: True)
        batch, commits = self._batch, [(step.hold, step.cost) for step in self._batch if step.cost is not None]
        if not is_successful(result):
            self.commit_later(commits)
        with self._lock:
            self._batch, self._running = (), False
            if is_successful(result):
                self._retry()  # reservations that were cancelled meanwhile
            urgent = any(step.cost is None for step in self._waiting)
            if self._waiting and not urgent:
                self._start_soon()
        if not is_successful(result) and commits:
            LOGGER.warning("the ledger could not commit a cost to its budgets: %s", result.failure().tag)
        outcomes = result.unwrap() if is_successful(result) else [Failure(result.failure())] * len(batch)
        for step, outcome in zip(batch, outcomes, strict=True):
            step.ended.set_result(outcome)
        if urgent:
            self._start()


# Budgets in the database. A transaction locks each of its accounts once, in the order of their keys.
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
    """Write what has changed: on Postgres, each table in one statement."""
    gone = [{"k": key, "i": name} for key, name in accounts.stored - accounts.amounts.keys()]
    gone += [{"k": key, "i": name} for key, name in accounts.stored & accounts.added.keys()]
    added = [_hold_row(key, hold) for (key, _), hold in accounts.added.items()]
    changed = [
        {"k": key, "s": str(totals.spent), "r": str(totals.reserved)}
        for key, totals in accounts.totals.items()
        if totals != before[key]
    ]
    statements = _ARRAYS if accounts.connection.dialect.name == "postgresql" else _ROWS
    for statement, rows in zip(statements, (gone, added, changed), strict=True):
        if rows:
            many = {name: [row[name] for row in rows] for name in rows[0]} if statements is _ARRAYS else rows
            accounts.connection.execute(statement, many)


_ROWS: Final = (
    text("DELETE FROM llm_holds WHERE key = :k AND id = :i"),
    text("INSERT INTO llm_holds (key, id, amount, expires_at) VALUES (:k, :i, :a, :e)"),
    text("UPDATE llm_budgets SET spent = :s, reserved = :r WHERE key = :k"),
)

_ARRAYS: Final = (
    text(
        "DELETE FROM llm_holds USING unnest(CAST(:k AS text[]), CAST(:i AS text[])) AS gone (k, i) "
        "WHERE key = gone.k AND id = gone.i"
    ),
    text(
        "INSERT INTO llm_holds (key, id, amount, expires_at) SELECT * FROM "
        "unnest(CAST(:k AS text[]), CAST(:i AS text[]), CAST(:a AS text[]), CAST(:e AS text[]))"
    ),
    text(
        "UPDATE llm_budgets SET spent = new.s, reserved = new.r "
        "FROM unnest(CAST(:k AS text[]), CAST(:s AS text[]), CAST(:r AS text[])) AS new (k, s, r) WHERE key = new.k"
    ),
)


def _hold_row(key: str, hold: Hold) -> dict[str, str]:
    return {"k": key, "i": hold.id, "a": str(hold.amount), "e": timestamp(hold.expires_at)}


def _in_order(accounts: Iterable[Account]) -> list[Account]:
    return sorted(accounts, key=lambda account: account.key)
