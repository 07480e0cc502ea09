"""The ledger in a database: rows written by the batch, budgets that all processes share."""

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from threading import Lock
from typing import Any, Final, TypeAlias, TypeVar, final

import anyio
import msgspec
from attrs import define, field, frozen
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success
from sqlalchemy import Connection, Select, delete, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from llm_effects.effects.effect import result_of
from llm_effects.limits.budgets import Account, Hold, check_budget
from llm_effects.stores.conversations.sql import insert_new
from llm_effects.stores.ledger.memory import within
from llm_effects.stores.sql.database import Database
from llm_effects.stores.sql.tables import BUDGETS, HOLDS, LEDGER
from llm_effects.values.errors import LLMError, StorageFailed
from llm_effects.values.json import dump
from llm_effects.values.records import LedgerRow
from llm_effects.values.requests import TaskType
from llm_effects.values.responses import Attempt, Cost, Usage

# Rows of the ledger in a database, written and read.


_MOST: Final = 2**63 - 1

_BUCKETS: Final = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")


@frozen(kw_only=True)
class RowFilter:
    """Which rows are wanted: from a time up to another, before one, and how many of the newest."""

    since: datetime | None
    until: datetime | None
    before: LedgerRow | None
    newest: int | None


def stamp(at: datetime) -> str:
    """Write a time so that it sorts as a text.

    >>> stamp(datetime(2026, 11, 23, tzinfo=UTC))
    '2026-11-23T00:00:00.000000+00:00'
    """
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def insert_rows(connection: Connection, rows: Sequence[LedgerRow]) -> Result[None, LLMError]:
    """Keep rows, but for those that are there already."""
    add = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    if rows:
        connection.execute(add(LEDGER).on_conflict_do_nothing(), [_columns(row) for row in rows])
    return Success(None)


def read_rows(connection: Connection, wanted: RowFilter) -> Result[tuple[LedgerRow, ...], LLMError]:
    """Give the rows that are wanted, oldest first."""
    found = connection.execute(_query(wanted)).all()
    return Success(tuple(_row(each) for each in reversed(found)))  # by place: by name it takes twice as long


def _query(wanted: RowFilter) -> "Select[Any]":
    columns = LEDGER.c
    query = select(LEDGER).order_by(columns.at.desc(), columns.id.desc())
    if wanted.since is not None:
        query = query.where(columns.at >= stamp(wanted.since))
    if wanted.until is not None:
        query = query.where(columns.at < stamp(wanted.until))
    if wanted.before is not None:
        query = query.where(tuple_(columns.at, columns.id) < tuple_(*key_of(wanted.before)))
    return query if wanted.newest is None else query.limit(wanted.newest)


def key_of(row: LedgerRow) -> tuple[str, str]:
    """Give what a row is sorted by."""
    return stamp(row.at), row.id


def _columns(row: LedgerRow) -> dict[str, object]:
    attempt, usage = row.attempt, row.attempt.usage
    return {
        "at": stamp(row.at),
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
        **{name: _whole(getattr(usage, name)) for name in _BUCKETS},
        "estimated": int(usage.estimated),
        "cost_usd": None if attempt.cost.usd is None else f"{attempt.cost.usd:f}",
    }


def _whole(tokens: int | None) -> int | None:
    """Keep a number that no database takes from costing the whole batch: whatever a server said."""
    return None if tokens is None else min(tokens, _MOST)


def _clean(text: str | None) -> str | None:
    """Mend what no database takes: letters NUL, and halves of letters."""
    return text and text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _row(values: Sequence[Any]) -> LedgerRow:
    at, name, call_id, conversation_id, owner, task, tags, served_model, *attempt = values
    return LedgerRow(
        id=name,
        at=datetime.fromisoformat(at),
        call_id=call_id,
        task_type=TaskType(task),
        attempt=_attempt(attempt),
        conversation_id=conversation_id,
        served_model=served_model,
        owner=owner,
        tags=() if tags == "[]" else tuple(msgspec.json.decode(tags, type=list[str])),
    )


def _attempt(values: Sequence[Any]) -> Attempt:
    model, provider, outcome, latency_ms, first_content_ms, wait_ms, cost_usd, *usage = values
    return Attempt(
        model=model,
        provider=provider,
        outcome=outcome,
        latency_ms=latency_ms,
        first_content_ms=first_content_ms,
        wait_ms=wait_ms,
        usage=_usage(usage),
        cost=Cost.UNKNOWN if cost_usd is None else Cost(Decimal(cost_usd)),
    )


def _usage(values: Sequence[Any]) -> Usage:
    fresh, read, written, output, reasoning, estimated = values
    return Usage(
        input_tokens=fresh,
        cache_read_tokens=read,
        cache_write_tokens=written,
        output_tokens=output,
        reasoning_tokens=reasoning,
        estimated=bool(estimated),
    )


# Budgets in a database: amounts reserved and spent, each step a transaction that locks the accounts it touches.
#
# A hold that has expired is freed, not forgotten: whoever settles it late is booked all the same, and nobody twice.


FORGOTTEN_AFTER: Final = timedelta(days=1)
"""How long after its expiry a hold is still known, for one who settles it late."""

_FREED: Final = "0"


@frozen
class _Sums:
    """What is spent of an account and what is reserved, in US dollars."""

    spent: Decimal
    reserved: Decimal


def reserve(connection: Connection, hold: Hold) -> Result[Hold, LLMError]:
    """Reserve an amount in all accounts or in none; one that is reserved already stays as it is."""
    for account in _in_order(hold.accounts):
        sums = _locked(connection, account.key)
        if not _is_new(connection, account.key, hold):
            return Success(hold)  # by a try before this one, whose answer was lost
        reserved = sums.reserved - _freed(connection, account.key, hold)
        refused = check_budget(account, sums.spent + reserved, hold.amount)
        if refused is not None:
            return Failure(refused)
        _keep(connection, account.key, _Sums(sums.spent, reserved + hold.amount))
    return Success(hold)


def _is_new(connection: Connection, key: str, hold: Hold) -> bool:
    row = {"key": key, "id": hold.id, "amount": str(hold.amount), "expires_at": stamp(hold.expires_at)}
    return insert_new(connection, HOLDS, row)


def commit_all(connection: Connection, settlements: Iterable[tuple[Hold, Decimal]]) -> Result[None, LLMError]:
    """Settle several holds."""
    for hold, cost in settlements:
        commit_hold(connection, hold, cost)
    return Success(None)


def commit_hold(connection: Connection, hold: Hold, cost: Decimal) -> None:
    """Spend what it came to and give the hold back; what is not held changes nothing."""
    for account in _in_order(hold.accounts):
        sums = _locked(connection, account.key)
        mine = (HOLDS.c.key == account.key) & (HOLDS.c.id == hold.id)
        amount = connection.execute(select(HOLDS.c.amount).where(mine)).scalar_one_or_none()
        if amount is not None:
            connection.execute(delete(HOLDS).where(mine))
            _keep(connection, account.key, _Sums(sums.spent + cost, sums.reserved - Decimal(amount)))


def _in_order(accounts: Iterable[Account]) -> list[Account]:
    """Lock accounts in one order everywhere, so that no two transactions wait for each other."""
    return sorted(accounts, key=lambda account: account.key)


def _locked(connection: Connection, key: str) -> _Sums:
    query = select(BUDGETS.c.spent, BUDGETS.c.reserved).where(BUDGETS.c.key == key).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        insert_new(connection, BUDGETS, {"key": key, "spent": "0", "reserved": "0"})
        row = connection.execute(query).one()
    return _Sums(Decimal(row.spent), Decimal(row.reserved))


def _freed(connection: Connection, key: str, hold: Hold) -> Decimal:
    """Free what the dead have reserved, and give its sum."""
    others = (HOLDS.c.key == key) & (HOLDS.c.id != hold.id)
    expired = others & (HOLDS.c.expires_at <= stamp(hold.at)) & (HOLDS.c.amount != _FREED)
    amounts = connection.execute(select(HOLDS.c.amount).where(expired)).scalars().all()
    if amounts:
        connection.execute(update(HOLDS).where(expired).values(amount=_FREED))
        forgotten = others & (HOLDS.c.expires_at <= stamp(hold.at - FORGOTTEN_AFTER))
        connection.execute(delete(HOLDS).where(forgotten))
    return sum(map(Decimal, amounts), Decimal(0))


def _keep(connection: Connection, key: str, sums: _Sums) -> None:
    connection.execute(
        update(BUDGETS).where(BUDGETS.c.key == key).values(spent=str(sums.spent), reserved=str(sums.reserved))
    )


# Rows of a ledger that wait to be written: bounded, so that a store that is gone costs no memory.


BATCH: Final = 100
"""How many rows are written at once."""

OLDEST: Final = timedelta(seconds=5)
"""How long a row waits for the next call, at the most, to be written with it."""

MOST: Final = 10_000
"""How many rows are kept of a store that cannot be written; then the oldest are dropped."""

_Rows: TypeAlias = tuple[LedgerRow, ...]


@final
@define(eq=False)
class RowBuffer:
    """Rows that wait, and those that are being written: for any number of threads.

    >>> RowBuffer(batch=2).held()
    ()
    """

    batch: int = BATCH
    oldest: timedelta = OLDEST
    most: int = MOST
    dropped: int = field(default=0, init=False)
    _waiting: list[LedgerRow] = field(factory=list[LedgerRow], init=False)
    _under_way: _Rows = field(default=(), init=False)
    _next: int = field(init=False)
    _since: datetime | None = field(default=None, init=False)
    _lock: Lock = field(factory=Lock, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._next = self.batch

    def add(self, row: LedgerRow) -> _Rows:
        """Keep a row; gives those that are to be written now, if any. There is one batch under way at a time."""
        with self._lock:
            self._waiting.append(row)
            self._since = self._since or row.at
            self._drop_too_many()
            due = len(self._waiting) >= self._next or row.at - self._since >= self.oldest
            return self._taken() if due and not self._under_way else ()

    def take(self) -> _Rows:
        """Give all rows that are not known to be stored, and forget them."""
        with self._lock:
            rows = (*self._under_way, *self._waiting)
            self._under_way = ()
            self._waiting.clear()
            return rows

    def written(self) -> None:
        """Forget the batch under way: it is stored."""
        with self._lock:
            self._under_way = ()
            self._next = self.batch

    def failed(self) -> None:
        """Keep the batch under way for another try, once as many rows again have come, or some time is over."""
        with self._lock:
            self._waiting[:0] = self._under_way
            self._under_way = ()
            self._drop_too_many()
            self._next = len(self._waiting) + self.batch

    def held(self) -> _Rows:
        """Give all rows that are not known to be stored."""
        with self._lock:
            return (*self._under_way, *self._waiting)

    def _taken(self) -> _Rows:
        self._under_way = tuple(self._waiting)
        self._waiting.clear()
        self._since = None
        return self._under_way

    def _drop_too_many(self) -> None:
        more = len(self._waiting) - self.most
        if more > 0:
            self.dropped += more
            del self._waiting[:more]


LOGGER: Final = logging.getLogger("llm_effects")

TIMEOUT_S: Final = 5.0
"""How long an attempt waits for its budget, and for its settlement, in seconds."""

MOST_UNSETTLED: Final = 1_000
"""How many settlements are kept of a database that cannot be written."""

_Made = TypeVar("_Made")
_Settlement: TypeAlias = tuple[Hold, Decimal]


@final
class SqlLedger:
    """Rows and budgets in a database, which it closes in the end.

    A row is written with others by a thread, once there is a batch of them or some seconds after the first; a process
    that is killed loses those that wait. What is reserved and spent of a budget is stored at once.
    """

    def __init__(self, database: Database, buffer: RowBuffer | None = None) -> None:
        self._database = database
        self._buffer = buffer or RowBuffer()
        self._unsettled: list[_Settlement] = []
        self._lock = Lock()

    def record(self, row: LedgerRow) -> None:
        """Book a row without waiting: it is written by a later call, or at the end."""
        batch = self._buffer.add(row)
        if batch and not self._database.post("record", partial(insert_rows, rows=batch), self._told):
            self._buffer.failed()

    def rows(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        before: LedgerRow | None = None,
        newest: int | None = None,
    ) -> FutureResult[Sequence[LedgerRow], LLMError]:
        """Give the rows of all processes, oldest first, with those of this one that wait to be written."""
        wanted = RowFilter(since=since, until=until, before=before, newest=newest)

        async def run() -> Result[Sequence[LedgerRow], LLMError]:
            waiting = self._buffer.held()  # before reading: what is stored meanwhile is found in either place
            stored = await self._read(wanted)
            return stored.map(lambda rows: _merged(rows, waiting, wanted))

        return FutureResult(run())

    def reserve(self, hold: Hold) -> FutureResult[Hold, LLMError]:
        """Reserve an amount in all accounts or in none, whichever processes do at the same time."""

        async def run() -> Result[Hold, LLMError]:
            unsure = True  # until there is an answer: who is cancelled does not wait for it
            try:
                result = await self._written("reserve", partial(reserve, hold=hold), shield=False)
                unsure = not is_successful(result) and isinstance(result.failure(), StorageFailed)
            finally:
                if unsure:
                    self._keep([(hold, Decimal(0))])  # it may be stored all the same
            return result

        return FutureResult(run())

    async def commit(self, hold: Hold, cost: Decimal) -> None:
        """Spend what it came to and give the hold back; what fails is tried again with the next one."""
        await self._commit((hold, cost))

    async def aclose(self) -> None:
        """Write what waits, and close the database; what cannot be written is told in the log."""
        rows = self._buffer.take()  # with the batch under way, which may yet fail: a row that is there stays once
        if rows and not is_successful(await self._written("record", partial(insert_rows, rows=rows))):
            LOGGER.warning("the ledger was closed with %d rows that could not be written", len(rows))
        if self._unsettled:
            await self._commit()
        await self._database.aclose()

    async def _read(self, wanted: RowFilter) -> Result[_Rows, LLMError]:
        return await result_of(self._database.read("rows", partial(read_rows, wanted=wanted)))

    async def _commit(self, *more: _Settlement) -> None:
        with self._lock:
            due = (*self._unsettled, *more)
            self._unsettled.clear()
        settled = False
        try:  # asyncio's own cancellation minds no shield
            result = await self._written("settle", partial(commit_all, settlements=due))
            settled = is_successful(result)
        finally:
            if not settled:
                self._keep(due)
        if not settled:
            LOGGER.warning("the ledger could not settle a budget: %s", result.failure().tag)

    def _keep(self, settlements: Iterable[_Settlement]) -> None:
        """Try them again with the next; of too many the cheapest make room, since a hold ends by itself in time."""
        with self._lock:
            self._unsettled = sorted((*self._unsettled, *settlements), key=lambda each: each[1])[-MOST_UNSETTLED:]

    async def _written(
        self, operation: str, work: Callable[[Connection], Result[_Made, LLMError]], *, shield: bool = True
    ) -> Result[_Made, LLMError]:
        with anyio.move_on_after(TIMEOUT_S, shield=shield):
            return await result_of(self._database.write(operation, work))
        message = f"no answer within {TIMEOUT_S * 1000:g} ms"
        return Failure(StorageFailed(operation=operation, message=message, transient=True))

    def _told(self, result: Result[None, LLMError]) -> None:
        """Hear, in a thread, what became of the batch under way."""
        if is_successful(result):
            self._buffer.written()
            return
        self._buffer.failed()
        held, dropped = len(self._buffer.held()), self._buffer.dropped
        LOGGER.warning(
            "the ledger could not be written: %s; %d rows wait, %d were dropped", result.failure().tag, held, dropped
        )


def _merged(stored: Sequence[LedgerRow], waiting: Sequence[LedgerRow], wanted: RowFilter) -> Sequence[LedgerRow]:
    """Put the rows that wait to those that are stored; in the middle of being written, one may be both."""
    ours = [row for row in waiting if _matches(row, wanted)]
    if not ours:
        return stored
    by_key = {key_of(row): row for row in (*ours, *stored)}
    rows = [by_key[key] for key in sorted(by_key)]
    return rows if wanted.newest is None else rows[max(0, len(rows) - wanted.newest) :]


def _matches(row: LedgerRow, wanted: RowFilter) -> bool:
    earlier = wanted.before is None or key_of(row) < key_of(wanted.before)
    return earlier and within(row, wanted.since, wanted.until)
