"""A database, opened by its first use: transactions in its own threads, from any event loop.

The database comes first, then its engines (how to connect), then the SQLite file, then URLs.
"""

import errno
import math
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Final, Generic, TypeVar, cast, final
from urllib.parse import quote

from attrs import frozen
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success
from sqlalchemy import URL, Connection, Engine, QueuePool, Transaction, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as NoConnectionFree

from llm_effects.config.services import StorageConfig
from llm_effects.providers.target import is_loopback
from llm_effects.stores.sql.driver_errors import CommitLost, Refused, error_of, problem_of, uncertain_commit
from llm_effects.stores.sql.round_trips import hold, share_round_trips
from llm_effects.stores.sql.tables import MIGRATIONS, migrate, version_of
from llm_effects.stores.sqlite_files import create, enable_wal, protect, sqlite_file
from llm_effects.stores.worker_threads import Worker, leave_to_parent, renew_after_fork
from llm_effects.values.errors import ConfigurationError, LLMError, StorageFailed
from llm_effects.values.extras import install_command
from llm_effects.values.secrets import Secret

_Value = TypeVar("_Value")

LOCK_WAIT_S: Final = 5.0
"""How long another process may lock a file or a row, in seconds, before a transaction fails."""

READERS: Final = 4
"""How many transactions read at once."""

WRITERS: Final = 8
"""How many transactions write to Postgres at once; to a file, one does."""

TIMEOUT_S: Final = 20.0
"""How long no transaction may succeed, in seconds, before waiting ones fail."""

PAUSES_S: Final = (0.01, 0.05, 0.2)
"""The pauses before each retry of a transaction that was rolled back, in seconds."""

RETRY_S: Final = 2.0
"""How long a transaction is retried, in seconds: one that waited long for a lock is not."""


READ_ONLY: Final = ConfigurationError(message="storage.read_only: is set: nothing is written")
"""The failure of every write to a database that is opened for reading."""

_OUTDATED: Final = (
    "storage.url: the tables are of version {} and must be of version {}: "
    "apply what `llm-effects storage migrate --sql` prints, or run `llm-effects storage migrate`"
)


@final
@frozen
class Engines:
    """Two views of one pool: reading transactions see one snapshot, writing ones wait for their locks.

    ``check`` raises ``OSError`` once the database is no longer the one that was opened.
    """

    reading: Engine
    writing: Engine
    check: Callable[[], None]

    def dispose(self) -> None:
        """Close all idle connections."""
        self.writing.dispose()


@final
@frozen(kw_only=True)
class _Unit(Generic[_Value]):
    """A unit of work. ``clash`` is the error of a duplicate key; a ``repeatable`` unit may run twice.

    One that is not ``durable`` may be lost if the machine of a SQLite file stops, but not if a process does.
    """

    operation: str
    work: Callable[[Connection], Result[_Value, LLMError]]
    reads: bool = False
    repeatable: bool = True
    durable: bool = True
    clash: LLMError | None = None


@final
class Database:
    """Transactions on a database that ``connect`` opens. Messages name it ``where``, and never show ``secrets``.

    A transaction is committed if its result is a ``Success``, and rolled back otherwise.
    """

    def __init__(
        self,
        connect: Callable[[], Engines],
        where: str,
        *,
        readers: int = READERS,
        writers: int = 1,
        migrates: bool = True,
        read_only: bool = False,
        secrets: tuple[Secret, ...] = (),
        timeout_seconds: float = TIMEOUT_S,
    ) -> None:
        self._connect = connect
        self._where = where
        self._secrets = secrets
        self._timeout = timeout_seconds
        self._migrates, self._read_only = migrates, read_only
        self._readers = Worker("llm-effects-reading", readers)
        self._writers = Worker("llm-effects-writing", writers)
        self._lock = Lock()
        self._engines: Engines | None = None
        self._last_writes: list[Callable[[], Awaitable[None]]] = []
        self._forked: list[Callable[[], None]] = []
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Connect anew: what was connected, and what waits to be written, belongs to the parent."""
        leave_to_parent(self._engines)
        self._engines, self._lock = None, Lock()
        for forget in self._forked:
            forget()

    def on_fork(self, forget: Callable[[], None]) -> None:
        """Add what makes a store forget, in a child process, what its parent will write."""
        self._forked.append(forget)

    def read(
        self, operation: str, work: Callable[[Connection], Result[_Value, LLMError]]
    ) -> FutureResult[_Value, LLMError]:
        """Read from one snapshot."""
        return self._submit(self._readers, _Unit(operation=operation, work=work, reads=True))

    def write(
        self,
        operation: str,
        work: Callable[[Connection], Result[_Value, LLMError]],
        *,
        repeatable: bool = True,
        clash: LLMError | None = None,
    ) -> FutureResult[_Value, LLMError]:
        """Read and write in one transaction, which is retried as a whole if it was rolled back.

        Only a ``repeatable`` one, whose second run changes nothing, is retried after the connection was lost during the
        commit. ``clash`` is the error of a duplicate key.
        """
        if self._read_only:
            return FutureResult.from_failure(READ_ONLY)
        unit = _Unit(operation=operation, work=work, repeatable=repeatable, clash=clash)
        return self._submit(self._writers, unit)

    def post(
        self,
        operation: str,
        work: Callable[[Connection], Result[_Value, LLMError]],
        done: Callable[[Result[_Value, LLMError]], None],
        *,
        durable: bool = True,
        clash: LLMError | None = None,
    ) -> bool:
        """Write as ``write`` does, without waiting; a thread calls ``done`` with the result.

        A write that is not ``durable`` does not wait for the disk of a SQLite file: it survives its process, but not
        the machine. Return whether the write was accepted: not once the database is closed, nor if it is read-only.
        """
        unit = _Unit(operation=operation, work=work, durable=durable, clash=clash)

        def write() -> None:
            result: Result[_Value, LLMError] = Failure(StorageFailed(operation=operation))
            try:
                result = self._run(unit)
            finally:  # also after a defect, or what waits for it would wait for ever
                done(result)

        return not self._read_only and self._writers.post(write)

    def before_closing(self, write: Callable[[], Awaitable[None]]) -> None:
        """Add what is to be written before the database is closed, whichever of its stores is closed first."""
        self._last_writes.append(write)

    async def aclose(self) -> None:
        """Close the connections after all started work, and end the threads; a second time is a no-op."""
        for write in self._last_writes:
            await write()
        self._last_writes.clear()
        await self._readers.aclose(lambda: None)
        await self._writers.aclose(self._dispose)

    def _submit(self, worker: Worker, unit: _Unit[_Value]) -> FutureResult[_Value, LLMError]:
        return FutureResult(worker.run(unit.operation, partial(self._run, unit), self._timeout))

    # The rest runs in a thread.

    def _run(self, unit: _Unit[_Value]) -> Result[_Value, LLMError]:
        until = time.monotonic() + RETRY_S
        result, retry = self._try(unit)
        for pause in PAUSES_S:
            if not retry or time.monotonic() > until:
                break
            time.sleep(pause)
            result, retry = self._try(unit)
        return result

    def _try(self, unit: _Unit[_Value]) -> tuple[Result[_Value, LLMError], bool]:
        """Run a unit once; return its result, and whether to retry."""
        try:
            return _transact(self._open(), unit), False
        except Refused as refused:
            return Failure(refused.error), False
        except CommitLost:
            return Failure(uncertain_commit(unit.operation, self._where)), unit.repeatable
        except (DBAPIError, NoConnectionFree, OSError, sqlite3.DatabaseError) as exception:
            if unit.clash is not None and isinstance(exception, IntegrityError):
                return Failure(unit.clash), False
            problem = problem_of(exception, *self._secrets)
            return Failure(
                error_of(unit.operation, self._where, problem)
            ), problem.rolled_back or problem.connection_lost

    def _open(self) -> Engines:
        with self._lock:
            if self._engines is None:
                self._engines = _current(self._connect(), migrates=self._migrates and not self._read_only)
        self._engines.check()
        return self._engines

    def version(self) -> Result[int, LLMError]:
        """Return the version of the tables, 0 if there are none, in this thread; nothing is created or changed."""
        try:
            with ExitStack() as stack:
                engines = self._connect()
                stack.callback(engines.dispose)
                return Success(version_of(engines.reading, MIGRATIONS))
        except FileNotFoundError:
            return Success(0)
        except Refused as refused:
            return Failure(refused.error)
        except (DBAPIError, OSError, sqlite3.DatabaseError) as exception:
            return Failure(error_of("version", self._where, problem_of(exception, *self._secrets)))

    def _dispose(self) -> None:
        if self._engines is not None:
            self._engines.dispose()


def _current(engines: Engines, *, migrates: bool) -> Engines:
    """Return engines of a database whose tables are of the newest version."""
    with ExitStack() as stack:
        stack.callback(engines.dispose)
        if migrates:
            migrate(engines.reading, engines.writing, MIGRATIONS)
        elif (version := version_of(engines.reading, MIGRATIONS)) < len(MIGRATIONS):
            raise Refused(ConfigurationError(message=_OUTDATED.format(version, len(MIGRATIONS))))
        stack.pop_all()
    return engines


def _transact(engines: Engines, unit: _Unit[_Value]) -> Result[_Value, LLMError]:
    with (engines.reading if unit.reads else engines.writing).connect() as connection:
        transaction = connection.execution_options(durable=unit.durable).begin()
        result = unit.work(connection)
        if is_successful(result) and not unit.reads:
            _commit(transaction)
        return result  # without a commit, closing the connection rolls back


def _commit(transaction: Transaction) -> None:
    try:
        transaction.commit()
    except DBAPIError as exception:
        if problem_of(exception).connection_lost:
            raise CommitLost from exception
        raise


# Engines: how to connect to a file and to a server.


def sqlite_engines(path: Path, lock_wait_seconds: float = LOCK_WAIT_S, *, read_only: bool = False) -> Engines:
    """Open a file, or create it; one that is only read is neither created nor changed."""
    check = opened_for_reading(path, lock_wait_seconds) if read_only else prepare(path, lock_wait_seconds)
    engine = create_engine(
        "sqlite://",
        creator=partial(connect, path, lock_wait_seconds, "ro" if read_only else "rw"),
        poolclass=QueuePool,
        pool_size=READERS + 1,
        max_overflow=0,
        hide_parameters=True,
    )
    event.listen(engine, "begin", _begin)
    return Engines(engine, engine.execution_options(writes=True), check)


def _begin(connection: Connection) -> None:
    """Begin explicitly, since the driver begins too late: a writer must wait for its lock before it reads."""
    options = connection.get_execution_options()
    if options.get("writes"):
        connection.exec_driver_sql(f"PRAGMA synchronous = {'FULL' if options.get('durable', True) else 'NORMAL'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes") else "BEGIN")


_DEFAULTS: Final = StorageConfig()

_TIMEOUTS: Final[Mapping[str, str]] = {
    "application_name": "llm_effects",
    "connect_timeout": "5",  # s
    "tcp_user_timeout": "10000",  # ms
}


def postgres_engines(url: URL, config: StorageConfig = _DEFAULTS) -> Engines:
    """Create the engines of a server, without connecting; their ``repr`` hides every password of the URL."""
    hidden = _passwords(url)
    engine = create_engine(
        url.difference_update_query(hidden),
        connect_args={
            **{name: each for name, each in _TIMEOUTS.items() if name not in url.query},
            "prepare_threshold": None,  # a pooler gives each transaction another connection of the server
            **hidden,
        },
        pool_size=config.connections,
        pool_recycle=-1 if config.recycle_seconds is None else math.ceil(config.recycle_seconds),
        max_overflow=0,
        hide_parameters=True,
        isolation_level="AUTOCOMMIT",  # statements of ours begin the transactions
        execution_options={} if config.schema is None else {"schema": config.schema},
    )
    event.listen(engine, "begin", begin_later)
    share_round_trips(engine)
    if not is_here(url):
        event.listen(engine, "before_cursor_execute", _refuse_labelled)
    return Engines(engine, engine.execution_options(writes=True), _no_check)


def is_here(url: URL) -> bool:
    """Return whether a server is on this machine: at literal loopback addresses, or at sockets in the file system.

    >>> is_here(make_url("postgresql://127.0.0.1/name")), is_here(make_url("postgresql://db.example/name"))
    (True, False)
    """
    named = (url.host, *(url.normalized_query.get(name, ()) for name in ("host", "hostaddr", "service")))
    hosts = [host for each in named for host in ((each,) if isinstance(each, str) else each or ())]
    if not hosts:  # what libpq takes in its place
        hosts = [os.environ[name] for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE") if os.environ.get(name)]
    return all(host.startswith("/") or is_loopback(host) for listed in hosts for host in listed.split(","))


_LABELLED: Final = '"stays":"machine"'
"""The label as documents hold it; in the text of a message its quotes are escaped."""

_MUST_STAY: Final = (
    "stays: this data must stay on this machine, and storage.url is on another one: use sqlite:///file, or a server at "
    "a literal loopback address"
)


def _refuse_labelled(
    _connection: Connection, _cursor: object, _statement: str, parameters: object, _context: object, many: bool
) -> None:
    """Raise ``Refused`` before labelled data is sent to a server on another machine."""
    rows = cast("Sequence[Sequence[object] | Mapping[str, object]]", parameters if many else (parameters,))
    values = chain.from_iterable(row.values() if isinstance(row, Mapping) else row for row in rows)
    if any(_is_labelled(getattr(each, "obj", each)) for each in values):  # the driver wraps bytes
        raise Refused(ConfigurationError(message=_MUST_STAY))


def _is_labelled(value: object) -> bool:
    return _LABELLED in value if isinstance(value, str) else isinstance(value, bytes) and _LABELLED.encode() in value


def _passwords(url: URL) -> dict[str, str]:
    """Return the options of a URL that are passwords, such as ``sslpassword``."""
    return {name: str(each) for name, each in url.query.items() if "password" in name.lower()}


def begin_later(connection: Connection) -> None:
    """Hold what begins a transaction: its isolation, its schema, and how long a writer waits for a lock.

    All of it ends with the transaction, since a pooler lends the connection on.
    """
    options = connection.get_execution_options()
    writes, schema = options.get("writes"), options.get("schema")
    settings = [f'SET LOCAL search_path TO "{schema}"'] if schema else []
    if writes:
        settings.append(f"SET LOCAL lock_timeout = {LOCK_WAIT_S * 1000:.0f}")
    isolation = "READ COMMITTED" if writes else "REPEATABLE READ READ ONLY"
    hold(connection, f"BEGIN ISOLATION LEVEL {isolation}", *settings)


def _no_check() -> None:
    """No-op: a server cannot be replaced as a file can."""


# The SQLite file: created for its owner only, marked as ours, and never another program's.


STORAGE_MARK: Final = 0x6C6C6D73
"""The ``application_id`` of our files: ``llms`` in ASCII."""

_FOREIGN: Final = "holds the tables of another program: give the storage a file of its own"


def prepare(path: Path, wait_seconds: float) -> Callable[[], None]:
    """Create the file, or check that it is ours; return a check that it is still at the path.

    Other processes never see what is written to a file that was moved away.
    """
    create(path, STORAGE_MARK)
    with closing(connect(path, wait_seconds)) as file:
        if not _is_ours(file):
            enable_wal(file, time.monotonic() + wait_seconds)
            _mark(file)
        status = protect(path)
    return _still_at(path, status)


def opened_for_reading(path: Path, wait_seconds: float) -> Callable[[], None]:
    """Check that a file is ours; return a check that it is still at the path."""
    status = path.stat()
    with closing(connect(path, wait_seconds, "ro")) as file:
        _is_ours(file)
    return _still_at(path, status)


def _still_at(path: Path, status: os.stat_result) -> Callable[[], None]:
    def check() -> None:
        now = path.stat()
        if (now.st_dev, now.st_ino) != (status.st_dev, status.st_ino):
            raise OSError(errno.ESTALE, "the file was replaced while it was open: open the storage again")

    return check


def connect(path: Path, wait_seconds: float, mode: str = "rw") -> sqlite3.Connection:
    """Connect to an existing file; each commit reaches the disk before it returns."""
    url = f"{path.absolute().as_uri()}?mode={mode}"
    file = sqlite3.connect(url, timeout=wait_seconds, isolation_level=None, uri=True, check_same_thread=False)
    file.execute("PRAGMA synchronous = FULL")
    file.execute("PRAGMA foreign_keys = ON")
    file.execute("PRAGMA secure_delete = ON")  # what is erased is overwritten
    return file


def _mark(file: sqlite3.Connection) -> None:
    with file:
        file.execute("BEGIN IMMEDIATE")
        if not _is_ours(file):  # unless another process was faster
            file.execute(f"PRAGMA application_id = {STORAGE_MARK}")


def _is_ours(file: sqlite3.Connection) -> bool:
    """Return whether the file has our mark; refuse a file that has not and is not empty."""
    query = "SELECT application_id, (SELECT count(*) FROM sqlite_schema) FROM pragma_application_id"
    mark, tables = file.execute(query).fetchone()
    if mark != STORAGE_MARK and (mark or tables):
        raise Refused(ConfigurationError(message=f"storage.url: the file {_FOREIGN}"))
    return bool(mark == STORAGE_MARK)


# URLs.


def open_database(url: str, config: StorageConfig = _DEFAULTS) -> Result[Database, ConfigurationError]:
    """Open the database of a ``sqlite:///file`` or ``postgresql://`` URL; nothing is connected before its first use.

    >>> open_database("postgresql://me:hunter2@host:port/name").failure().message[:41]
    'storage.url: is not the URL of a Postgres'
    """
    is_file = url.partition("://")[0].lower() == "sqlite"
    if is_file and config.schema is not None:
        return Failure(ConfigurationError(message="storage.schema: is of Postgres: a file has no schemas"))
    open_file = partial(
        file_database, timeout_seconds=config.timeout_seconds, migrates=config.migrate, read_only=config.read_only
    )
    database = sqlite_file(url).map(open_file) if is_file else _server_database(url, config)
    return database.alt(lambda problem: ConfigurationError(message=f"storage.url: {problem}"))


def file_database(
    path: Path,
    *,
    lock_wait_seconds: float = LOCK_WAIT_S,
    timeout_seconds: float = TIMEOUT_S,
    migrates: bool = True,
    read_only: bool = False,
) -> Database:
    """Return the database of a file, with other time limits."""
    connect = partial(sqlite_engines, path, lock_wait_seconds, read_only=read_only)
    return Database(connect, str(path), timeout_seconds=timeout_seconds, migrates=migrates, read_only=read_only)


_NO_SERVER: Final = (
    "is not the URL of a Postgres server: write postgresql://user:password@host:5432/name, "
    "and percent-encode special characters of the password, such as %23"
)
_NO_DRIVER: Final = "the driver of Postgres is not installed"


def _server_database(url: str, config: StorageConfig) -> Result[Database, str]:
    try:
        from psycopg import Error
        from psycopg.conninfo import make_conninfo
    except ModuleNotFoundError:
        return Failure(f"{_NO_DRIVER}: {install_command('sql')}")
    try:
        parts = make_url(url).set(drivername="postgresql+psycopg")
        make_conninfo(**{name: str(each) for name, each in parts.query.items()})
    except (ArgumentError, ValueError, Error):  # their messages may show a part of a password
        return Failure(_NO_SERVER)
    passwords = (str(parts.password or ""), *_passwords(parts).values())
    secrets = tuple(Secret(form) for each in passwords for form in (each, quote(each, safe="")))
    where = parts.set(password=None, query={}).render_as_string().partition("://")[2]

    def connect() -> Engines:  # a partial shows its arguments
        return postgres_engines(parts, config)

    readers = max(1, config.connections * READERS // (READERS + WRITERS))
    return Success(
        Database(
            connect,
            where,
            readers=readers,
            writers=config.connections - readers,
            migrates=config.migrate,
            read_only=config.read_only,
            secrets=secrets,
            timeout_seconds=config.timeout_seconds,
        )
    )
