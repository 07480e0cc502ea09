"""A cache in one SQLite file, shared by many processes; entries outlive the processes, even killed ones."""

import math
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Final, TypeVar, final

from attrs import frozen
from returns.future import FutureResult
from returns.result import Failure, Result, Success

from llm_effects.effects.env import Now
from llm_effects.stores.cache.memory import CacheCounters
from llm_effects.stores.sqlite_files import create, empty_log, enable_wal, protect, sqlite_code
from llm_effects.stores.worker_threads import TOO_LATE, Worker, leave_to_parent, renew_after_fork
from llm_effects.values.errors import LLMError, StorageFailed, cause_of
from llm_effects.values.records import CacheStats

LOCK_WAIT_S: Final = 0.05
"""How long another process may hold the file, in seconds, before an operation fails."""

TIMEOUT_S: Final = 0.25
"""How long no operation may succeed, in seconds, before waiting ones fail."""

LONG_S: Final = 60.0
"""How long clearing may take, in seconds."""

_MAX_USED: Final = 256  # look-ups whose order of use is written later

_Value = TypeVar("_Value")


@final
@frozen(kw_only=True)
class Bounds:
    """The bounds of a cache: the number of entries, and their size together in bytes."""

    entries: int = 1000
    size: int = 2**30


_BOUNDS: Final = Bounds()


@final
class SqliteCache:
    """A cache of at most ``bounds`` in the file ``path``, which the first use creates for its owner only.

    It has its own thread, so it serves any number of event loops. ``now`` is wall time. A look-up writes nothing: the
    next write records which entries were used and deletes expired ones; then it evicts the least recently used. After
    the bounds were lowered the cache may exceed them for a while, since each write deletes a limited number of entries.
    """

    def __init__(
        self,
        path: Path,
        now: Now,
        bounds: Bounds = _BOUNDS,
        *,
        lock_wait_seconds: float = LOCK_WAIT_S,
        timeout_seconds: float = TIMEOUT_S,
    ) -> None:
        self._path = path
        self._now = now
        self._bounds = bounds
        self._lock_wait = lock_wait_seconds
        self._timeout = timeout_seconds
        self._counters = CacheCounters()
        self._worker = Worker("llm-effects-cache")
        # the rest is used in the thread only
        self._open: OpenFile | None = None
        self._used: dict[str, None] = {}
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Open the file anew: the connection belongs to the parent."""
        leave_to_parent(self._open)
        self._open, self._used = None, {}

    def get(self, key: str) -> FutureResult[bytes | None, LLMError]:
        """Return the entry, or ``None`` if there is none, it has expired, or its date is in the future."""
        return self._run("get", partial(self._get, key=key), self._timeout)

    async def get_within(self, key: str, seconds: float) -> Result[bytes | None, LLMError]:
        """Return what ``get`` does, or ``TOO_LATE`` after so many seconds, by the same time limit as the thread's."""
        job = partial(as_result, "get", self._path, lambda: self._get(self._connection(), key))
        work = partial(self._worker.run, "get", job, self._timeout, patience=seconds)
        return await self._counters.run("get", work, uncounted=TOO_LATE)

    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> FutureResult[None, LLMError]:
        """Store an entry for ``ttl_seconds``; ``None`` is for ever, 0 stores nothing."""
        return self._run("put", partial(self._put, key=key, entry=entry, ttl_seconds=ttl_seconds), self._timeout)

    def delete(self, key: str) -> FutureResult[bool, LLMError]:
        """Delete an entry; return whether there was one."""
        return self._run("delete", lambda file: _delete(file, key, self._at()), self._timeout)

    def clear(self) -> FutureResult[int | None, LLMError]:
        """Delete all entries; return how many there were."""
        return self._run("clear", _clear, LONG_S)

    def delete_all(self, prefix: str) -> FutureResult[int, LLMError]:
        """Delete the entries whose keys begin with a prefix, and overwrite them; return how many there were."""
        return self._run("delete_all", partial(_delete_all, prefix=prefix), LONG_S)

    def stats(self) -> FutureResult[CacheStats, LLMError]:
        """Return what the file holds, expired entries included, and this process's counts of look-ups."""
        return self._run("stats", lambda file: self._counters.stats(*_totals(file)), self._timeout)

    async def aclose(self) -> None:
        """Record which entries were used, close the file and end the thread."""
        await self._worker.aclose(self._record_and_close)

    def _run(
        self, operation: str, work: Callable[[sqlite3.Connection], _Value], seconds: float
    ) -> FutureResult[_Value, LLMError]:
        job = partial(as_result, operation, self._path, lambda: work(self._connection()))
        return FutureResult(self._counters.run(operation, partial(self._worker.run, operation, job, seconds)))

    # The rest runs in the thread.

    def _connection(self) -> sqlite3.Connection:
        """Return the connection to the file that is at the path now; others no longer see a file that was moved."""
        if self._open is None or not self._open.is_at(self._path):
            self._close()
            self._open = open_file(self._path, self._lock_wait)
        check_version(self._open.connection)
        return self._open.connection

    def _close(self) -> None:
        if self._open is not None:
            self._open.connection.close()
            self._open = None

    def _get(self, file: sqlite3.Connection, key: str) -> bytes | None:
        entry = _find(file, key, self._at())
        if entry is not None:
            self._used.pop(key, None)
            self._used[key] = None
            if len(self._used) > _MAX_USED:
                del self._used[next(iter(self._used))]
        return self._counters.count_lookup(entry)

    def _put(self, file: sqlite3.Connection, key: str, entry: bytes, ttl_seconds: float | None) -> None:
        ttl = math.inf if ttl_seconds is None else ttl_seconds
        evicted = _store(file, key, entry, at=self._at(), ttl=ttl, used=self._used, bounds=self._bounds)
        self._used.clear()
        self._counters.count_evictions(evicted)

    def _record_and_close(self) -> None:
        if self._open is not None and self._used:
            file = self._open.connection
            as_result("close", self._path, lambda: _record_used(file, self._used))
        as_result("close", self._path, self._close)

    def _at(self) -> float:
        return self._now().timestamp()


# Statements. Times are seconds since 1970.


SKEW_S: Final = 300.0
"""How far clocks may differ, in seconds: an entry of a later time than that from now is ignored."""

_BATCH: Final = 256  # the most entries that one write deletes, so that none takes long

_FIND: Final = """SELECT entry FROM entries WHERE key = ? AND typeof(entry) = 'blob'
    AND created_at <= ? AND (expires_at IS NULL OR expires_at > ?)"""


def _find(file: sqlite3.Connection, key: str, at: float) -> bytes | None:
    row: tuple[bytes] | None = file.execute(_FIND, (key, at + SKEW_S, at)).fetchone()
    return row and row[0]


def _store(
    file: sqlite3.Connection, key: str, entry: bytes, *, at: float, ttl: float, used: Iterable[str], bounds: Bounds
) -> int:
    """Store an entry and make room for it; return how many others were evicted."""
    with file:
        file.execute("BEGIN IMMEDIATE")
        _mark_used(file, used)
        _delete_expired(file, at)
        if not ttl > 0 or len(entry) > bounds.size:
            file.execute("DELETE FROM entries WHERE key = ?", (key,))
            return 0
        _upsert(file, key, entry, at, None if ttl == math.inf else at + ttl)
        return _evict(file, bounds)


def _upsert(file: sqlite3.Connection, key: str, entry: bytes, at: float, expires_at: float | None) -> None:
    file.execute(
        "INSERT INTO entries VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET entry = excluded.entry, "
        "created_at = excluded.created_at, expires_at = excluded.expires_at, used = excluded.used",
        (key, entry, at, expires_at, _next_use(file)),
    )


def _next_use(file: sqlite3.Connection) -> int:
    number: int = file.execute("SELECT coalesce(max(used), 0) + 1 FROM entries").fetchone()[0]
    return number


def _mark_used(file: sqlite3.Connection, used: Iterable[str]) -> None:
    first = _next_use(file)
    file.executemany("UPDATE entries SET used = ? WHERE key = ?", [(first + n, key) for n, key in enumerate(used)])


def _record_used(file: sqlite3.Connection, used: Iterable[str]) -> None:
    """Make entries the most recently used ones, in this order."""
    with file:
        file.execute("BEGIN IMMEDIATE")
        _mark_used(file, used)


def _delete_expired(file: sqlite3.Connection, at: float) -> None:
    query = "DELETE FROM entries WHERE rowid IN (SELECT rowid FROM entries WHERE expires_at <= ? LIMIT ?)"
    file.execute(query, (at, _BATCH))


def _evict(file: sqlite3.Connection, bounds: Bounds) -> int:
    for evicted in range(_BATCH):
        entries, size = _totals(file)
        if entries <= bounds.entries and size <= bounds.size:
            return evicted
        file.execute("DELETE FROM entries WHERE rowid = (SELECT rowid FROM entries ORDER BY used LIMIT 1)")
    return _BATCH


def _delete(file: sqlite3.Connection, key: str, at: float) -> bool:
    """Delete an entry; return whether ``get`` would have returned it."""
    with file:
        file.execute("BEGIN IMMEDIATE")
        exists = _find(file, key, at) is not None
        file.execute("DELETE FROM entries WHERE key = ?", (key,))
    return exists


def _clear(file: sqlite3.Connection) -> int:
    with file:
        file.execute("BEGIN IMMEDIATE")
        return file.execute("DELETE FROM entries").rowcount


def _delete_all(file: sqlite3.Connection, prefix: str) -> int:
    with file:
        file.execute("BEGIN IMMEDIATE")
        query = "DELETE FROM entries WHERE key >= ? AND key < ? || char(1114111)"
        deleted = file.execute(query, (prefix, prefix)).rowcount
    if not empty_log(file):
        raise sqlite3.OperationalError(_LOG_IN_USE)
    return deleted


def _totals(file: sqlite3.Connection) -> tuple[int, int]:
    entries, size = file.execute("SELECT entries, bytes FROM totals").fetchone()
    return entries, size


# The file: opened or created, and never one of another program or of a newer version.


SCHEMA: Final = 1
"""The version of the tables; an older file is recreated, a newer one is refused."""

MARK: Final = 0x6C6C6D63
"""The ``application_id`` of our files: ``llmc`` in ASCII."""

# ``used`` is a sequence number, not a time: the order of use does not depend on a clock that may go back. Triggers keep
# the totals, so that checking a bound costs the same in a file of any size.
_TABLES: Final = (
    "DROP TABLE IF EXISTS entries",
    "DROP TABLE IF EXISTS totals",
    """CREATE TABLE entries (
        key TEXT NOT NULL UNIQUE,
        entry BLOB NOT NULL,
        created_at REAL NOT NULL,
        expires_at REAL,
        used INTEGER NOT NULL
    )""",
    "CREATE INDEX entries_by_use ON entries (used)",
    "CREATE INDEX entries_by_expiry ON entries (expires_at) WHERE expires_at IS NOT NULL",
    "CREATE TABLE totals (entries INTEGER NOT NULL, bytes INTEGER NOT NULL)",
    "INSERT INTO totals VALUES (0, 0)",
    """CREATE TRIGGER entries_added AFTER INSERT ON entries BEGIN
        UPDATE totals SET entries = entries + 1, bytes = bytes + length(new.entry);
    END""",
    """CREATE TRIGGER entries_changed AFTER UPDATE OF entry ON entries BEGIN
        UPDATE totals SET bytes = bytes + length(new.entry) - length(old.entry);
    END""",
    """CREATE TRIGGER entries_dropped AFTER DELETE ON entries BEGIN
        UPDATE totals SET entries = entries - 1, bytes = bytes - length(old.entry);
    END""",
    f"PRAGMA application_id = {MARK}",
    f"PRAGMA user_version = {SCHEMA}",
)

_MESSAGES: Final[Mapping[int, str]] = {
    sqlite3.SQLITE_BUSY: "is locked by another process",
    sqlite3.SQLITE_LOCKED: "is locked by another connection",
    sqlite3.SQLITE_FULL: "has no room left on its disk",
    sqlite3.SQLITE_READONLY: "is read-only",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: check that its folder exists and is writable",
    sqlite3.SQLITE_NOTADB: "is not a SQLite database: move it away, or give the cache another file",
    sqlite3.SQLITE_CORRUPT: "is damaged: move it away, and a new one is created",
}

_TRANSIENT: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_NOT_WRITABLE: Final = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY})

_NEWER: Final = "was written by a newer version and is not touched: give this one another file"
_LOG_IN_USE: Final = "holds what was deleted in its log still, which another program reads: erase again"
_FOREIGN: Final = "holds the tables of another program: give the cache a file of its own"


@final
@frozen
class OpenFile:
    """A connection, with the device and inode of its file; ``log`` is a file that must not appear meanwhile."""

    connection: sqlite3.Connection
    inode: tuple[int, int]
    log: Path | None = None

    def is_at(self, path: Path) -> bool:
        """Return whether the path still leads to this file."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        return self.inode == (status.st_dev, status.st_ino) and (self.log is None or not self.log.exists())


def as_result(operation: str, path: Path, work: Callable[[], _Value]) -> Result[_Value, LLMError]:
    """Run some work, and turn exceptions of SQLite and the system into a ``StorageFailed``."""
    try:
        return Success(work())
    except (sqlite3.DatabaseError, OSError) as problem:
        code, cause = sqlite_code(problem), cause_of(problem)
        message = f"{path} {_MESSAGES.get(code) or getattr(problem, 'strerror', None) or problem}"
        failed = StorageFailed(operation=operation, message=message, transient=code in _TRANSIENT, cause=cause)
        return Failure(failed)


def open_file(path: Path, wait_seconds: float) -> OpenFile:
    """Open the file for this thread, or create it; wait up to ``wait_seconds`` for a lock.

    A file that cannot be written, nor its folder, is opened for reading, until another process writes a log for it.
    """
    create(path, MARK)
    log = path.with_name(f"{path.name}-wal")
    try:
        return _protected(_connect(path, wait_seconds, "mode=rw"), path)
    except sqlite3.OperationalError as problem:
        if sqlite_code(problem) not in _NOT_WRITABLE or log.exists():
            raise
        return _protected(_connect(path, wait_seconds, "mode=ro&immutable=1"), path, log)


def _protected(connection: sqlite3.Connection, path: Path, log: Path | None = None) -> OpenFile:
    """Restrict the file and its logs to their owner, also if it was replaced meanwhile."""
    status = protect(path)
    return OpenFile(connection, (status.st_dev, status.st_ino), log)


def _connect(path: Path, wait_seconds: float, mode: str) -> sqlite3.Connection:
    url = f"{path.absolute().as_uri()}?{mode}"
    with ExitStack() as stack:
        connection = sqlite3.connect(url, timeout=wait_seconds, isolation_level=None, uri=True)
        stack.enter_context(closing(connection))
        with connection:
            connection.execute("BEGIN")  # one snapshot, also while another process creates the tables
            version = _version(connection)
        if version < SCHEMA:
            enable_wal(connection, time.monotonic() + wait_seconds)
            _create_tables(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = ON")  # what expires or is deleted is overwritten
        stack.pop_all()
    return connection


def _create_tables(connection: sqlite3.Connection) -> None:
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        if _version(connection) < SCHEMA:  # unless another process was faster
            for statement in _TABLES:
                connection.execute(statement)


def _version(connection: sqlite3.Connection) -> int:
    """Return the version of the tables, 0 for an empty file; raise for a file that is not ours or is newer."""
    query = "SELECT (SELECT application_id FROM pragma_application_id), (SELECT count(*) FROM sqlite_schema)"
    mark, tables = connection.execute(query).fetchone()
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if mark != MARK and (tables or version):
        raise sqlite3.DatabaseError(_FOREIGN)
    check_version(connection)
    return version


def check_version(connection: sqlite3.Connection) -> None:
    """Raise if the tables are of a newer version, also in a file that has been open for a while."""
    if connection.execute("PRAGMA user_version").fetchone()[0] > SCHEMA:
        raise sqlite3.DatabaseError(_NEWER)
