"""A database, opened by its first use: units of work in transactions, on threads of their own, from any event loop."""

import errno
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Final, Generic, TypeVar, final
from urllib.parse import quote

from attrs import frozen
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success
from sqlalchemy import URL, Connection, Engine, QueuePool, Transaction, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as NoConnectionFree

from llm_effects.stores.sql.driver_errors import CommitLost, Refused, error_of, problem_of, uncertain
from llm_effects.stores.sql.tables import MIGRATIONS, migrate
from llm_effects.stores.sqlite_files import enable_wal, sqlite_file
from llm_effects.stores.worker_threads import Worker
from llm_effects.values.errors import ConfigurationError, LLMError

# The SQLite file of a database: made for its owner only, known by a mark of ours, never another program's.


STORAGE_MARK: Final = 0x6C6C6D73
"""The ``application_id`` of our files: ``llms`` in ASCII."""

_STRANGE_STORAGE: Final = "holds the tables of another program: give the storage a file of its own"


def prepare(path: Path, wait_seconds: float) -> Callable[[], None]:
    """Make the file, or see that it is ours; gives a check that it is still the one at the path.

    What is written to a file that was moved away is lost to everybody else.
    """
    if not path.exists():
        path.touch(mode=0o600)
    status = path.stat()
    if status.st_mode & 0o077:
        with suppress(PermissionError):  # it may be another's
            path.chmod(status.st_mode & 0o700)
    with closing(connect(path, wait_seconds)) as file:
        if not _is_ours(file):
            enable_wal(file, time.monotonic() + wait_seconds)
            _mark(file)

    def check() -> None:
        now = path.stat()
        if (now.st_dev, now.st_ino) != (status.st_dev, status.st_ino):
            raise OSError(errno.ESTALE, "the file was replaced while it was open: open the storage again")

    return check


def connect(path: Path, wait_seconds: float) -> sqlite3.Connection:
    """Connect to a file that is there; each commit reaches the disk before it returns."""
    url = f"{path.absolute().as_uri()}?mode=rw"
    file = sqlite3.connect(url, timeout=wait_seconds, isolation_level=None, uri=True, check_same_thread=False)
    file.execute("PRAGMA synchronous = FULL")
    file.execute("PRAGMA foreign_keys = ON")
    return file


def _mark(file: sqlite3.Connection) -> None:
    with file:
        file.execute("BEGIN IMMEDIATE")
        if not _is_ours(file):  # nobody else was faster
            file.execute(f"PRAGMA application_id = {STORAGE_MARK}")


def _is_ours(file: sqlite3.Connection) -> bool:
    """Whether the file has our mark; one that has not, and is not empty, is refused."""
    query = "SELECT application_id, (SELECT count(*) FROM sqlite_schema) FROM pragma_application_id"
    mark, tables = file.execute(query).fetchone()
    if mark != STORAGE_MARK and (mark or tables):
        raise Refused(ConfigurationError(message=f"storage.url: the file {_STRANGE_STORAGE}"))
    return bool(mark == STORAGE_MARK)


# Engines: how a database is connected to. Each has a way to read and a way to write.


LOCK_WAIT_S: Final = 5.0
"""How long somebody else may hold a file, or a row, in seconds, before a transaction gives up."""

READERS: Final = 4
"""How many read at once."""

WRITERS: Final = 8
"""How many write at once to Postgres; to a file it is one."""


@final
@frozen
class Engines:
    """Two views of one pool: a transaction that reads sees one moment, one that writes waits for its turn.

    ``check`` raises ``OSError`` once the database is not the one that was opened any more.
    """

    reading: Engine
    writing: Engine
    check: Callable[[], None]

    def dispose(self) -> None:
        """Close all connections that nobody uses."""
        self.writing.dispose()


def sqlite_engines(path: Path, lock_wait_seconds: float = LOCK_WAIT_S) -> Engines:
    """Open a file, or make it."""
    check = prepare(path, lock_wait_seconds)
    engine = create_engine(
        "sqlite://",
        creator=partial(connect, path, lock_wait_seconds),
        poolclass=QueuePool,
        pool_size=READERS + 1,
        max_overflow=0,
        hide_parameters=True,
    )
    event.listen(engine, "begin", _begin)
    return Engines(engine, engine.execution_options(writes=True), check)


def _begin(connection: Connection) -> None:
    """Begin by hand, since the driver would begin too late: who is to write must wait before it reads."""
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


_PATIENCE: Final[Mapping[str, str]] = {
    "application_name": "llm_effects",
    "connect_timeout": "5",  # s
    "tcp_user_timeout": "10000",  # ms
}


def postgres_engines(url: URL) -> Engines:
    """Make the engines of a server; nothing is connected yet."""
    engine = create_engine(
        url,
        connect_args={name: each for name, each in _PATIENCE.items() if name not in url.query},
        pool_size=READERS + WRITERS,
        max_overflow=0,
        hide_parameters=True,
    )
    event.listen(engine, "connect", _set_up)
    reading = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return Engines(reading, engine.execution_options(isolation_level="READ COMMITTED"), _nothing)


def _set_up(connection: DBAPIConnection, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"SET lock_timeout = {LOCK_WAIT_S * 1000:.0f}")
    cursor.close()
    connection.commit()  # or it is forgotten with the transaction


def _nothing() -> None:
    """A server is always the same one."""


_Made = TypeVar("_Made")

TIMEOUT_S: Final = 20.0
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
        timeout_seconds: float = TIMEOUT_S,
    ) -> None:
        self._connect = connect
        self._where = where
        self._secrets = secrets
        self._timeout = timeout_seconds
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
        return FutureResult(worker.run(unit.operation, partial(self._tried, unit), self._timeout))

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


# Which database a URL names.


def open_database(url: str) -> Result[Database, ConfigurationError]:
    """Make the database of a ``sqlite:///file`` or ``postgresql://`` URL; nothing is opened before its first use.

    >>> open_database("postgresql://me:hunter2@host:port/name").failure().message[:38]
    'storage.url: is no URL of a Postgres s'
    """
    scheme = url.partition("://")[0].lower()
    return _file(url) if scheme == "sqlite" else _server(url)


def _wrong(message: str) -> Result[Any, ConfigurationError]:
    return Failure(ConfigurationError(message=f"storage.url: {message}"))


def _file(url: str) -> Result[Database, ConfigurationError]:
    path = sqlite_file(url)
    return Success(file_database(path.unwrap())) if is_successful(path) else _wrong(path.failure())


def file_database(
    path: Path, *, lock_wait_seconds: float = LOCK_WAIT_S, timeout_seconds: float = TIMEOUT_S
) -> Database:
    """Make the database of a file: how long a lock is waited for, and when those who wait give up, in seconds."""
    connect = partial(sqlite_engines, path, lock_wait_seconds)
    return Database(connect, str(path), timeout_seconds=timeout_seconds)


_NO_SERVER: Final = (
    "is no URL of a Postgres server: write postgresql://user:password@host:5432/name, "
    "and a special letter of the password by its code, such as %23"
)
_NO_DRIVER: Final = "the driver of Postgres is not installed: pip install 'llm-effects[sql]'"


def _server(url: str) -> Result[Database, ConfigurationError]:
    try:
        from psycopg import Error
        from psycopg.conninfo import make_conninfo
    except ModuleNotFoundError:
        return _wrong(_NO_DRIVER)
    try:
        parts = make_url(url).set(drivername="postgresql+psycopg")
        make_conninfo(**{name: str(each) for name, each in parts.query.items()})
    except (ArgumentError, ValueError, Error):  # their texts may show a part of a password
        return _wrong(_NO_SERVER)
    password = str(parts.password or "")
    secrets = (password, quote(password, safe=""))
    where = parts.set(password=None, query={}).render_as_string().partition("://")[2]
    return Success(Database(partial(postgres_engines, parts), where, writers=WRITERS, secrets=secrets))
