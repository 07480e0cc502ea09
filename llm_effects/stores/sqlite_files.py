"""SQLite files: opening one safely, and the path that a ``sqlite:///`` URL names."""

import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Final, TypeVar, final

from attrs import frozen
from returns.result import Failure, Result, Success

from llm_effects.values.errors import LLMError, StorageFailed, cause_of

SCHEMA: Final = 1
"""Version of the tables; an older file is made anew, a newer one is left alone."""

CACHE_MARK: Final = 0x6C6C6D63
"""The ``application_id`` of our files: ``llmc`` in ASCII."""

# ``used`` is a number in a sequence, not a time: the order of use does not follow a clock that goes back. The totals
# are kept by triggers, so that a bound costs the same in a file of any size.
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
    f"PRAGMA application_id = {CACHE_MARK}",
    f"PRAGMA user_version = {SCHEMA}",
)

_REMEDIES: Final[Mapping[int, str]] = {
    sqlite3.SQLITE_BUSY: "is locked by another process",
    sqlite3.SQLITE_LOCKED: "is locked by another connection",
    sqlite3.SQLITE_FULL: "has no room left on its disk",
    sqlite3.SQLITE_READONLY: "is read-only",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: is its folder there, and may it be written to?",
    sqlite3.SQLITE_NOTADB: "is no SQLite database: move it away, or give the cache another file",
    sqlite3.SQLITE_CORRUPT: "is damaged: move it away, and a new one is made",
}

_TRANSIENT: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_SHUT: Final = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY})

_PAUSE_S: Final = 0.01

_NEWER: Final = "was written by a newer version: it is left alone; give this one another file"
_STRANGE_CACHE: Final = "holds the tables of another program: give the cache a file of its own"

_Made = TypeVar("_Made")


@final
@frozen
class OpenFile:
    """A connection, and the device and inode of what it has open; ``log`` is what must not appear meanwhile."""

    connection: sqlite3.Connection
    inode: tuple[int, int]
    log: Path | None = None

    def is_at(self, path: Path) -> bool:
        """Whether the path still leads to this file."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        return self.inode == (status.st_dev, status.st_ino) and (self.log is None or not self.log.exists())


def tried(operation: str, path: Path, work: Callable[[], _Made]) -> Result[_Made, LLMError]:
    """Turn what SQLite and the system say into a ``StorageFailed``."""
    try:
        return Success(work())
    except (sqlite3.DatabaseError, OSError) as problem:
        code = _code(problem)
        message = f"{path} {_REMEDIES.get(code) or getattr(problem, 'strerror', None) or problem}"
        transient = code in _TRANSIENT
        return Failure(
            StorageFailed(operation=operation, message=message, transient=transient, cause=cause_of(problem))
        )


def _code(problem: Exception) -> int:
    code: int = getattr(problem, "sqlite_errorcode", 0)
    return code & 0xFF  # what stands above says more than is needed here


def opened(path: Path, wait_seconds: float) -> OpenFile:
    """Open the file for this thread, or make it; a lock is waited for so long.

    Where nothing can be written, not even beside the file, it is read as it stands, until somebody writes a log for it.
    """
    if not path.exists():
        path.touch(mode=0o600)
    log = path.with_name(f"{path.name}-wal")
    try:
        return _found(_connected(path, wait_seconds, "mode=rw"), path)
    except sqlite3.OperationalError as problem:
        if _code(problem) not in _SHUT or log.exists():
            raise
        return _found(_connected(path, wait_seconds, "mode=ro&immutable=1"), path, log)


def _found(connection: sqlite3.Connection, path: Path, log: Path | None = None) -> OpenFile:
    status = path.stat()
    with suppress(OSError):  # it may be another's, or on a disk that is read-only
        path.chmod(status.st_mode & 0o700)
    return OpenFile(connection, (status.st_dev, status.st_ino), log)


def _connected(path: Path, wait_seconds: float, mode: str) -> sqlite3.Connection:
    url = f"{path.absolute().as_uri()}?{mode}"
    with ExitStack() as stack:
        connection = sqlite3.connect(url, timeout=wait_seconds, isolation_level=None, uri=True)
        stack.enter_context(closing(connection))
        with connection:
            connection.execute("BEGIN")  # what is read belongs together, also while another process makes the tables
            version = _version(connection)
        if version < SCHEMA:
            keep_a_log(connection, time.monotonic() + wait_seconds)
            _make_tables(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        stack.pop_all()
    return connection


def keep_a_log(connection: sqlite3.Connection, until: float) -> None:
    """Write ahead from now on. SQLite does not wait here for others who open the same new file, so we do."""
    while not _keeps_a_log(connection, last_try=time.monotonic() >= until):
        time.sleep(_PAUSE_S)


def _keeps_a_log(connection: sqlite3.Connection, *, last_try: bool) -> bool:
    try:
        connection.execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError as problem:
        if last_try or _code(problem) != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True


def _make_tables(connection: sqlite3.Connection) -> None:
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        if _version(connection) < SCHEMA:  # nobody else was faster
            for statement in _TABLES:
                connection.execute(statement)


def _version(connection: sqlite3.Connection) -> int:
    """Give the version of the tables, 0 for an empty file; a file that is not for us raises."""
    query = "SELECT (SELECT application_id FROM pragma_application_id), (SELECT count(*) FROM sqlite_schema)"
    owner, tables = connection.execute(query).fetchone()
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if owner != CACHE_MARK and (tables or version):
        raise sqlite3.DatabaseError(_STRANGE_CACHE)
    check_version(connection)
    return version


def check_version(connection: sqlite3.Connection) -> None:
    """Leave a file alone, also one that is open, once it has tables of a newer version."""
    if connection.execute("PRAGMA user_version").fetchone()[0] > SCHEMA:
        raise sqlite3.DatabaseError(_NEWER)


# What the URL of a store says.


NO_FILE: Final = "names no file: write sqlite:///file for one in the current folder, sqlite:////folder/file for any"


def sqlite_file(url: str) -> Result[Path, str]:
    """Give the file that a ``sqlite:///file`` URL names, or what is wrong with it.

    >>> sqlite_file("sqlite:///answers.db").unwrap().name
    'answers.db'
    >>> sqlite_file("sqlite:///:memory:").failure()[:14]
    'names no file:'
    """
    host, slash, path = url.partition("://")[2].partition("/")
    if host or not slash or not path.strip("/") or path == ":memory:" or "\0" in path:
        return Failure(NO_FILE)
    try:
        return Success(Path(path).expanduser())
    except RuntimeError:
        return Failure(f"there is no such user: {path}")
