"""A database, opened by its first use: units of work in transactions, on threads of their own, from any event loop."""

import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from threading import Lock
from typing import Final, Generic, TypeVar, final

from attrs import frozen
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result
from sqlalchemy import Connection, Transaction
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as NoConnectionFree

from llm_effects.errors import LLMError
from llm_effects.stores.sql_engines import READERS, Engines
from llm_effects.stores.sql_migrations import migrate
from llm_effects.stores.sql_problems import CommitLost, Refused, error_of, problem_of, uncertain
from llm_effects.stores.sql_schema import MIGRATIONS
from llm_effects.stores.workers import Worker

_Made = TypeVar("_Made")

PATIENCE_S: Final = 20.0
"""How long nothing may come to a good end, in seconds, before those who wait give up."""

PAUSES_S: Final = (0.01, 0.05, 0.2)
"""How long to wait before a transaction that was taken back is tried again, in seconds, each time."""

AGAIN_S: Final = 2.0
"""How long, in seconds, until it is not tried again: who has waited for a lock has waited enough."""


@final
@frozen(kw_only=True)
class _Unit(Generic[_Made]):
    """A unit of work. ``clash`` is what two rows with one key mean; ``repeatable``: twice is as good as once."""

    operation: str
    work: Callable[[Connection], Result[_Made, LLMError]]
    reads: bool = False
    repeatable: bool = True
    clash: LLMError | None = None


@final
class Database:
    """Transactions on a database that ``connect`` opens. ``where`` names it; ``secrets`` are never told.

    A transaction is stored once its result is a ``Success``, and leaves nothing otherwise.
    """

    def __init__(
        self,
        connect: Callable[[], Engines],
        where: str,
        *,
        writers: int = 1,
        secrets: tuple[str, ...] = (),
        patience_seconds: float = PATIENCE_S,
    ) -> None:
        self._connect = connect
        self._where = where
        self._secrets = secrets
        self._patience = patience_seconds
        self._readers = Worker("llm-effects-reading", READERS)
        self._writers = Worker("llm-effects-writing", writers)
        self._lock = Lock()
        self._engines: Engines | None = None

    def read(
        self, operation: str, work: Callable[[Connection], Result[_Made, LLMError]]
    ) -> FutureResult[_Made, LLMError]:
        """Read what is there at one moment."""
        return self._done(self._readers, _Unit(operation=operation, work=work, reads=True))

    def write(
        self,
        operation: str,
        work: Callable[[Connection], Result[_Made, LLMError]],
        *,
        repeatable: bool = True,
        clash: LLMError | None = None,
    ) -> FutureResult[_Made, LLMError]:
        """Read and write in one transaction, which may be tried again as a whole.

        ``repeatable`` says that a second time is as good as the first; another is not tried again after a connection
        was lost in the middle of its commit. ``clash`` is the error for a second row with the same key.
        """
        unit = _Unit(operation=operation, work=work, repeatable=repeatable, clash=clash)
        return self._done(self._writers, unit)

    def post(
        self,
        operation: str,
        work: Callable[[Connection], Result[_Made, LLMError]],
        told: Callable[[Result[_Made, LLMError]], None],
    ) -> bool:
        """Write without waiting, as ``write`` does; ``told`` hears in a thread what came of it.

        Says whether it will be tried: no more, once it is closed.
        """
        unit = _Unit(operation=operation, work=work)
        return self._writers.post(lambda: told(self._tried(unit)))

    async def aclose(self) -> None:
        """Close the connections after what has begun, and end the threads; a second time does nothing."""
        await self._readers.aclose(lambda: None)
        await self._writers.aclose(self._dispose)

    def _done(self, worker: Worker, unit: _Unit[_Made]) -> FutureResult[_Made, LLMError]:
        return FutureResult(worker.run(unit.operation, partial(self._tried, unit), self._patience))

    # From here on in a thread.

    def _tried(self, unit: _Unit[_Made]) -> Result[_Made, LLMError]:
        until = time.monotonic() + AGAIN_S
        result, again = self._attempted(unit)
        for pause in PAUSES_S:
            if not again or time.monotonic() > until:
                break
            time.sleep(pause)
            result, again = self._attempted(unit)
        return result

    def _attempted(self, unit: _Unit[_Made]) -> tuple[Result[_Made, LLMError], bool]:
        """Do it once, and say whether it is worth another try."""
        try:
            return _once(self._opened(), unit), False
        except Refused as refused:
            return Failure(refused.error), False
        except CommitLost:
            return Failure(uncertain(unit.operation, self._where)), unit.repeatable
        except (DBAPIError, NoConnectionFree, OSError, sqlite3.DatabaseError) as exception:
            if unit.clash is not None and isinstance(exception, IntegrityError):
                return Failure(unit.clash), False
            problem = problem_of(exception, *self._secrets)
            return Failure(error_of(unit.operation, self._where, problem)), problem.taken_back or problem.lost

    def _opened(self) -> Engines:
        with self._lock:
            if self._engines is None:
                self._engines = _migrated(self._connect())
        self._engines.check()
        return self._engines

    def _dispose(self) -> None:
        if self._engines is not None:
            self._engines.dispose()


def _migrated(engines: Engines) -> Engines:
    with ExitStack() as stack:
        stack.callback(engines.dispose)
        migrate(engines.reading, engines.writing, MIGRATIONS)
        stack.pop_all()
    return engines


def _once(engines: Engines, unit: _Unit[_Made]) -> Result[_Made, LLMError]:
    with (engines.reading if unit.reads else engines.writing).connect() as connection:
        transaction = connection.begin()
        made = unit.work(connection)
        if is_successful(made) and not unit.reads:
            _commit(transaction)
        return made  # what was not stored is taken back with the connection


def _commit(transaction: Transaction) -> None:
    try:
        transaction.commit()
    except DBAPIError as exception:
        if problem_of(exception).lost:
            raise CommitLost from exception
        raise
