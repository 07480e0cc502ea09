"""The ledger in a database: rows that a thread writes in batches, and budgets that all processes share.

The ledger comes first, then the buffer of its rows, then the rows and the budgets in the database.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from threading import Lock, Timer
from typing import Any, Final, TypeAlias, TypeVar, final

import anyio
import msgspec
from attrs import define, field, frozen
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success
from sqlalchemy import Connection, Select, select, tuple_

from llm_effects.effects.effect import result_of
from llm_effects.effects.lifecycle import Chosen, Counts
from llm_effects.limits.budgets import Hold
from llm_effects.stores.ledger.memory import within
from llm_effects.stores.ledger.sql_budgets import BudgetQueue, BudgetStep
from llm_effects.stores.ledger.sql_usage import Period, is_unsummed, read_usage, sum_up, views_of
from llm_effects.stores.sql.database import Database
from llm_effects.stores.sql.erasing import erase_all, erase_rows, forget_log
from llm_effects.stores.sql.tables import LEDGER, insert_all_new, timestamp
from llm_effects.stores.worker_threads import ended
from llm_effects.values.errors import LLMError, StorageFailed
from llm_effects.values.json import dump
from llm_effects.values.records import LedgerRow
from llm_effects.values.requests import TaskType
from llm_effects.values.responses import Attempt, Cost, Usage
from llm_effects.values.usage import TOKENS, Dimension, Saving, UsageSums

LOGGER: Final = logging.getLogger("llm_effects")

TIMEOUT_S: Final = 5.0
"""How long an attempt waits for its reservation, and for its commit, in seconds."""

FLUSH_S: Final = 1.0
"""How long a row waits at most while the database can be written, in seconds, even if no other call comes."""

RETRY_S: Final = 5.0
"""How long after a failure the rows are written again, in seconds, even if no other call comes."""

PAUSE_S: Final = 0.01
"""How long erasing waits before it looks again whether a batch is written, in seconds."""

_Value = TypeVar("_Value")
_Rows: TypeAlias = tuple[LedgerRow, ...]


@frozen(kw_only=True)
class RowFilter:
    """A filter of rows: from ``since`` up to ``until``, ``before`` a row, and how many of the ``newest``."""

    since: datetime | None
    until: datetime | None
    before: LedgerRow | None
    newest: int | None


@final
class SqlLedger:
    """Rows and budgets in a database; closing the ledger closes the database.

    A thread writes rows in batches, once a batch is full or its first row is ``flush_seconds`` old; a process that is
    killed loses the rows that wait. Reservations and commits are stored before they return; those that are made at once
    share transactions.
    """

    def __init__(
        self, database: Database, buffer: "RowBuffer | None" = None, *, flush_seconds: float = FLUSH_S
    ) -> None:
        self._database = database
        self._buffer = buffer or RowBuffer()
        self._flush_seconds = flush_seconds
        self._timer: Timer | None = None
        self._closed = False
        self._newest_hour = ""
        self._lock = Lock()
        self._budgets = BudgetQueue(database)
        database.on_fork(self._after_fork)

    def _after_fork(self) -> None:
        self._buffer.after_fork()
        self._budgets.after_fork()
        self._timer, self._lock = None, Lock()

    def record(self, row: LedgerRow) -> None:
        """Record a row without waiting: a thread writes it soon, or closing does."""
        self._write_batch(self._buffer.add(row))
        self._flush_later(self._flush_seconds)

    def rows(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        before: LedgerRow | None = None,
        newest: int | None = None,
    ) -> FutureResult[Sequence[LedgerRow], LLMError]:
        """Return the rows of all processes, oldest first, including those of this process that wait to be written."""
        query = RowFilter(since=since, until=until, before=before, newest=newest)

        async def run() -> Result[Sequence[LedgerRow], LLMError]:
            waiting = self._buffer.held()  # before reading: a row written meanwhile is in either place, or in both
            stored = await result_of(self._database.read("rows", partial(read_rows, query=query)))
            return stored.map(lambda rows: _merge(rows, waiting, query))

        return FutureResult(run())

    def usage(
        self,
        bys: Sequence[tuple[Dimension, ...]],
        since: datetime | None,
        until: datetime | None,
        saving: Saving,
    ) -> FutureResult[Sequence[UsageSums], LLMError]:
        """Return the sums of all rows that ``rows`` returns, added up by the database.

        Hours and days that are not summed up yet are, first; where that cannot be written, their rows are read.
        """

        async def run() -> Result[Sequence[UsageSums], LLMError]:
            await self._sum_up_all(views_of(bys))
            waiting = [_columns(row) for row in self._buffer.held()]
            period = Period(since=since, until=until, waiting=waiting)
            work = partial(read_usage, bys=bys, period=period, saving=saving)
            return await result_of(self._database.read("usage", work))

        return FutureResult(run())

    async def _sum_up_all(self, views: Collection[int]) -> None:
        left = await result_of(self._database.read("usage", partial(is_unsummed, views=views)))
        while is_successful(left) and left.unwrap():
            left = await result_of(self._database.write("usage", partial(sum_up, views=views)))

    def reserve(self, hold: Hold) -> FutureResult[Hold, LLMError]:
        """Reserve an amount in all accounts or in none, atomically across processes."""

        async def run() -> Result[Hold, LLMError]:
            step = BudgetStep(hold)
            self._budgets.add(step)
            unsure = True  # until there is a result: a cancelled call does not wait for it
            try:
                result = await _outcome(step, shield=False)
                unsure = not is_successful(result) and isinstance(result.failure(), StorageFailed)
            finally:
                if unsure and not step.ended.cancel():
                    self._budgets.commit_later([(hold, Decimal(0))])  # it may be stored all the same
            return result

        return FutureResult(run())

    async def commit(self, hold: Hold, cost: Decimal) -> None:
        """Spend the cost and release the hold, and wait until that is stored; what fails is repeated later."""
        step = BudgetStep(hold, cost)
        self._budgets.add(step)
        await _outcome(step)

    def erase_rows(self, chosen: Chosen) -> FutureResult[Counts, LLMError]:
        """Erase a batch of rows, also those that wait to be written, and what the chosen owners have spent."""

        async def run() -> Result[Counts, LLMError]:
            waiting = await self._forget(chosen)
            last = () if chosen.before is not None else (forget_log,)
            erased = await result_of(erase_all(self._database, "erase_rows", partial(erase_rows, chosen=chosen), *last))
            return erased.map(lambda counts: {**counts, "ledger_rows": counts["ledger_rows"] + waiting})

        return FutureResult(run())

    async def _forget(self, chosen: Chosen) -> int:
        """Forget the rows that wait, once those that are being written are written, or wait again."""
        forgotten = self._buffer.forget(chosen)
        with anyio.move_on_after(TIMEOUT_S):
            while any(chosen.of(row.owner) for row in self._buffer.running()):  # noqa: ASYNC110 - a thread ends it
                await anyio.sleep(PAUSE_S)
        return forgotten + self._buffer.forget(chosen)

    async def aclose(self) -> None:
        """Write the rows and commits that wait, and close the database; what cannot be written is logged."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
        rows = self._buffer.take()  # with the running batch, which may yet fail: a stored row is not stored twice
        if rows and not is_successful(await self._write("record", partial(insert_rows, rows=rows))):
            LOGGER.warning("the ledger was closed with %d rows that could not be written", len(rows))
        for _ in range(2):  # again, as what runs now may yet fail
            for step in self._budgets.flush():
                await _outcome(step)
        await self._database.aclose()

    async def _write(
        self, operation: str, work: Callable[[Connection], Result[_Value, LLMError]]
    ) -> Result[_Value, LLMError]:
        with anyio.move_on_after(TIMEOUT_S, shield=True):
            return await result_of(self._database.write(operation, work))
        return _too_late(operation)

    def _write_batch(self, batch: _Rows) -> None:
        if batch and not self._database.post("record", partial(insert_rows, rows=batch), self._on_batch_written):
            self._buffer.failed()

    def _flush_later(self, seconds: float) -> None:
        """Write the rows that wait after a while: by a timer's thread, since no task may outlive its call."""
        with self._lock:
            if self._closed or (self._timer is not None and self._timer.is_alive()):  # a fork has no timer
                return
            self._timer = Timer(seconds, self._flush)
            self._timer.daemon, self._timer.name = True, "llm-effects-ledger"
            with suppress(RuntimeError):  # no thread can be started: a later call writes the rows, or closing does
                self._timer.start()

    def _flush(self) -> None:
        with self._lock:
            self._timer = None
        self._write_batch(self._buffer.start())

    def _sum_up_later(self, rows: _Rows) -> None:
        """Sum up the hours and days before some rows, if these are the first of their hour in this process."""
        newest = max((timestamp(row.at)[:13] for row in rows), default="")
        if newest > self._newest_hour:
            self._newest_hour = newest
            self._sum_up_next(Success(True))

    def _sum_up_next(self, left: Result[bool, LLMError]) -> None:
        if not self._closed and is_successful(left) and left.unwrap():
            self._database.post("usage", partial(sum_up, wait=False), self._sum_up_next, durable=False)

    def _on_batch_written(self, result: Result[None, LLMError]) -> None:
        """Note the outcome of the running batch; called in a thread."""
        if is_successful(result):
            self._sum_up_later(self._buffer.written())
            if self._buffer.held():
                self._flush_later(self._flush_seconds)
            return
        self._buffer.failed()
        self._flush_later(RETRY_S)
        held, dropped = len(self._buffer.held()), self._buffer.dropped
        LOGGER.warning(
            "the ledger could not be written: %s; %d rows wait, %d were dropped", result.failure().tag, held, dropped
        )


async def _outcome(step: "BudgetStep", *, shield: bool = True) -> Result[Hold, LLMError]:
    with anyio.move_on_after(TIMEOUT_S, shield=shield):
        return await ended(step.ended)
    return _too_late("reserve" if step.cost is None else "commit")


def _too_late(operation: str) -> Result[Any, LLMError]:
    message = f"no answer within {TIMEOUT_S * 1000:g} ms"
    return Failure(StorageFailed(operation=operation, message=message, transient=True))


def _merge(stored: Sequence[LedgerRow], waiting: Sequence[LedgerRow], query: RowFilter) -> Sequence[LedgerRow]:
    """Merge stored and waiting rows; a row that is just being written may be among both."""
    ours = [row for row in waiting if _matches(row, query)]
    if not ours:
        return stored
    by_key = {_sort_key(row): row for row in (*ours, *stored)}
    rows = [by_key[key] for key in sorted(by_key)]
    return rows if query.newest is None else rows[max(0, len(rows) - query.newest) :]


def _matches(row: LedgerRow, query: RowFilter) -> bool:
    earlier = query.before is None or _sort_key(row) < _sort_key(query.before)
    return earlier and within(row, query.since, query.until)


# The buffer of rows: bounded, so that a database that is gone costs no memory.


BATCH: Final = 100
"""How many rows are written at once."""

MAX_AGE: Final = timedelta(seconds=5)
"""How long a row waits at most, before the next call writes it."""

MAX_ROWS: Final = 10_000
"""How many rows wait at most while the database cannot be written; then the oldest are dropped."""


@final
@define(eq=False)
class RowBuffer:
    """The rows that wait and the batch that is being written; safe for any number of threads.

    >>> RowBuffer(batch=2).held()
    ()
    """

    batch: int = BATCH
    max_age: timedelta = MAX_AGE
    max_rows: int = MAX_ROWS
    dropped: int = field(default=0, init=False)
    _waiting: list[LedgerRow] = field(factory=list[LedgerRow], init=False)
    _running: _Rows = field(default=(), init=False)
    _due_at: int = field(init=False)
    _oldest_at: datetime | None = field(default=None, init=False)
    _lock: Lock = field(factory=Lock, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._due_at = self.batch

    def add(self, row: LedgerRow) -> _Rows:
        """Add a row; return the batch to write now, if one is due. Only one batch runs at a time."""
        with self._lock:
            self._waiting.append(row)
            self._oldest_at = self._oldest_at or row.at
            self._drop_oldest()
            due = len(self._waiting) >= self._due_at or row.at - self._oldest_at >= self.max_age
            return self._start_batch() if due and not self._running else ()

    def start(self) -> _Rows:
        """Return the rows that wait as the batch to write now, unless one is being written."""
        with self._lock:
            return self._start_batch() if self._waiting and not self._running else ()

    def take(self) -> _Rows:
        """Return and forget all rows that are not known to be stored."""
        with self._lock:
            rows = (*self._running, *self._waiting)
            self._running = ()
            self._waiting.clear()
            return rows

    def after_fork(self) -> None:
        """Forget all rows: the parent process writes them."""
        self._waiting, self._running, self._lock = [], (), Lock()
        self._oldest_at, self._due_at = None, self.batch

    def written(self) -> _Rows:
        """Forget the running batch, and return it: it is stored."""
        with self._lock:
            rows, self._running = self._running, ()
            self._due_at = self.batch
            return rows

    def failed(self) -> None:
        """Keep the running batch for another try, after as many new rows as a batch has or some time."""
        with self._lock:
            self._waiting[:0] = self._running
            self._running = ()
            self._drop_oldest()
            self._due_at = len(self._waiting) + self.batch

    def held(self) -> _Rows:
        """Return all rows that are not known to be stored."""
        with self._lock:
            return (*self._running, *self._waiting)

    def running(self) -> _Rows:
        """Return the rows that are being written."""
        return self._running

    def forget(self, chosen: Chosen) -> int:
        """Forget the chosen rows that wait, and return their number."""
        with self._lock:
            before = len(self._waiting)
            self._waiting = [row for row in self._waiting if not (chosen.of(row.owner) and chosen.at(row.at))]
            return before - len(self._waiting)

    def _start_batch(self) -> _Rows:
        self._running = tuple(self._waiting)
        self._waiting.clear()
        self._oldest_at = None
        return self._running

    def _drop_oldest(self) -> None:
        excess = len(self._waiting) - self.max_rows
        if excess > 0:
            self.dropped += excess
            del self._waiting[:excess]


# Rows in the database.


_MAX_INTEGER: Final = 2**63 - 1


def insert_rows(connection: Connection, rows: Sequence[LedgerRow]) -> Result[None, LLMError]:
    """Insert the rows that are not stored yet."""
    insert_all_new(connection, LEDGER, [_columns(row) for row in rows])
    return Success(None)


def read_rows(connection: Connection, query: RowFilter) -> Result[_Rows, LLMError]:
    """Read the rows that match, oldest first."""
    rows = connection.execute(_select(query)).all()
    return Success(tuple(_to_row(each) for each in reversed(rows)))  # by index: by name it takes twice as long


def _select(query: RowFilter) -> "Select[Any]":
    columns = LEDGER.c
    statement = select(LEDGER).order_by(columns.at.desc(), columns.id.desc())
    if query.since is not None:
        statement = statement.where(columns.at >= timestamp(query.since))
    if query.until is not None:
        statement = statement.where(columns.at < timestamp(query.until))
    if query.before is not None:
        statement = statement.where(tuple_(columns.at, columns.id) < tuple_(*_sort_key(query.before)))
    return statement if query.newest is None else statement.limit(query.newest)


def _sort_key(row: LedgerRow) -> tuple[str, str]:
    return timestamp(row.at), row.id


def _columns(row: LedgerRow) -> dict[str, object]:
    attempt, usage = row.attempt, row.attempt.usage
    return {
        "at": timestamp(row.at),
        "id": row.id,
        "call_id": row.call_id,
        "conversation_id": _clean(row.conversation_id),
        "owner": _clean(row.owner),
        "task": _clean(row.task_type),
        "tags": dump(list(row.tags)).decode(),
        "model": _clean(attempt.model),
        "provider": attempt.provider,
        "served_model": _clean(row.served_model),
        "outcome": attempt.outcome,
        "latency_ms": attempt.latency_ms,
        "first_content_ms": attempt.first_content_ms,
        "wait_ms": attempt.wait_ms,
        **{name: _bounded(getattr(usage, name)) for name in TOKENS},
        "estimated": int(usage.estimated),
        "service_tier": usage.service_tier,
        "left_machine": None if row.left_machine is None else int(row.left_machine),
        "cost_usd": None if attempt.cost.usd is None else f"{attempt.cost.usd:f}",
        "cache_saved_usd": None if row.cache_saved_usd is None else f"{row.cache_saved_usd:f}",
    }


def _bounded(tokens: int | None) -> int | None:
    """Limit a number that a server reported to what databases store: otherwise the whole batch would fail."""
    return None if tokens is None else min(tokens, _MAX_INTEGER)


def _clean(text: str | None) -> str | None:
    """Replace the characters that databases reject: NUL and lone surrogates."""
    return text and text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _to_row(values: Sequence[Any]) -> LedgerRow:
    at, name, call_id, conversation_id, owner, task, tags, served_model, *attempt, left, saved = values
    return LedgerRow(
        id=name,
        at=datetime.fromisoformat(at),
        call_id=call_id,
        task_type=TaskType(task),
        attempt=_to_attempt(attempt),
        conversation_id=conversation_id,
        served_model=served_model,
        owner=owner,
        tags=() if tags == "[]" else tuple(msgspec.json.decode(tags, type=list[str])),
        left_machine=None if left is None else bool(left),
        cache_saved_usd=None if saved is None else Decimal(saved),
    )


def _to_attempt(values: Sequence[Any]) -> Attempt:
    model, provider, outcome, latency_ms, first_content_ms, wait_ms, cost_usd, *usage = values
    return Attempt(
        model=model,
        provider=provider,
        outcome=outcome,
        latency_ms=latency_ms,
        first_content_ms=first_content_ms,
        wait_ms=wait_ms,
        usage=_to_usage(usage),
        cost=Cost.UNKNOWN if cost_usd is None else Cost(Decimal(cost_usd)),
    )


def _to_usage(values: Sequence[Any]) -> Usage:
    fresh, cache_read, cache_write, output, reasoning, estimated, cache_write_1h, service_tier = values
    return Usage(
        input_tokens=fresh,
        cache_read_tokens=cache_read,
        cache_write_tokens=cache_write,
        output_tokens=output,
        reasoning_tokens=reasoning,
        estimated=bool(estimated),
        cache_write_1h_tokens=cache_write_1h,
        service_tier=service_tier,
    )
