"""The ledger in a database: rows written by the batch, budgets that all processes share."""

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from functools import partial
from threading import Lock
from typing import Final, TypeAlias, TypeVar, final

import anyio
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result
from sqlalchemy import Connection

from llm_effects.budgets import Hold
from llm_effects.effects import result_of
from llm_effects.errors import LLMError, StorageFailed
from llm_effects.records import LedgerRow
from llm_effects.stores import ledger_holds
from llm_effects.stores.databases import Database
from llm_effects.stores.ledger_buffers import RowBuffer
from llm_effects.stores.ledger_memory import within
from llm_effects.stores.ledger_rows import Wanted, insert_rows, key_of, read_rows

LOGGER: Final = logging.getLogger("llm_effects")

PATIENCE_S: Final = 5.0
"""How long an attempt waits for its budget, and for its settlement, in seconds."""

MOST_UNSETTLED: Final = 1_000
"""How many settlements are kept of a database that cannot be written."""

_Made = TypeVar("_Made")
_Rows: TypeAlias = tuple[LedgerRow, ...]
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
        wanted = Wanted(since=since, until=until, before=before, newest=newest)

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
                result = await self._written("reserve", partial(ledger_holds.reserve, hold=hold), shield=False)
                unsure = not is_successful(result) and isinstance(result.failure(), StorageFailed)
            finally:
                if unsure:
                    self._keep([(hold, Decimal(0))])  # it may be stored all the same
            return result

        return FutureResult(run())

    async def settle(self, hold: Hold, cost: Decimal) -> None:
        """Spend what it came to and give the hold back; what fails is tried again with the next one."""
        await self._settle((hold, cost))

    async def aclose(self) -> None:
        """Write what waits, and close the database; what cannot be written is told in the log."""
        rows = self._buffer.take()  # with the batch under way, which may yet fail: a row that is there stays once
        if rows and not is_successful(await self._written("record", partial(insert_rows, rows=rows))):
            LOGGER.warning("the ledger was closed with %d rows that could not be written", len(rows))
        if self._unsettled:
            await self._settle()
        await self._database.aclose()

    async def _read(self, wanted: Wanted) -> Result[_Rows, LLMError]:
        return await result_of(self._database.read("rows", partial(read_rows, wanted=wanted)))

    async def _settle(self, *more: _Settlement) -> None:
        with self._lock:
            due = (*self._unsettled, *more)
            self._unsettled.clear()
        settled = False
        try:  # asyncio's own cancellation minds no shield
            result = await self._written("settle", partial(ledger_holds.settle_all, settlements=due))
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
        with anyio.move_on_after(PATIENCE_S, shield=shield):
            return await result_of(self._database.write(operation, work))
        message = f"no answer within {PATIENCE_S * 1000:g} ms"
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


def _merged(stored: Sequence[LedgerRow], waiting: Sequence[LedgerRow], wanted: Wanted) -> Sequence[LedgerRow]:
    """Put the rows that wait to those that are stored; in the middle of being written, one may be both."""
    ours = [row for row in waiting if _is_wanted(row, wanted)]
    if not ours:
        return stored
    by_key = {key_of(row): row for row in (*ours, *stored)}
    rows = [by_key[key] for key in sorted(by_key)]
    return rows if wanted.newest is None else rows[max(0, len(rows) - wanted.newest) :]


def _is_wanted(row: LedgerRow, wanted: Wanted) -> bool:
    earlier = wanted.before is None or key_of(row) < key_of(wanted.before)
    return earlier and within(row, wanted.since, wanted.until)
