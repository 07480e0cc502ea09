"""Helpers for files of ours: the path in a URL, access for their owner only, and SQLite's logging and error codes."""

import errno
import os
import sqlite3
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from returns.result import Failure, Result, Success

NO_FILE: Final = "names no file: write sqlite:///file for one in the current folder, sqlite:////folder/file for any"

_PAUSE_S: Final = 0.01


def sqlite_file(url: str) -> Result[Path, str]:
    """Return the file that a ``sqlite:///file`` URL names, or what is wrong with the URL.

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


FOREIGN_OWNER: Final = "belongs to another user: change its owner (chown), or use another file"

_OTHERS: Final = 0o077
_WRITABLE: Final = 0o022


def owner_problem(status: os.stat_result) -> str | None:
    """Return why a file cannot be trusted: its owner, if not root, can change what is read and read what is written.

    A file of root that others can write is refused too, because its permissions cannot be restricted.
    """
    if not hasattr(os, "geteuid") or status.st_uid == os.geteuid():
        return None
    return None if status.st_uid == 0 and not status.st_mode & _WRITABLE else FOREIGN_OWNER


def create(path: Path, mark: int) -> None:
    """Create a file for its owner only, or restrict it to its owner if it has our ``mark``.

    This comes before the first byte is written: SQLite gives its logs the permissions of the file. The file of another
    user is a ``PermissionError``; that of another program stays as it is.
    """
    with suppress(FileExistsError):
        os.close(os.open(os.path.realpath(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    status = _status_of(path)
    if not status.st_size or _mark_of(path, status) == mark:
        protect(path)


def protect(path: Path) -> os.stat_result:
    """Restrict a file of ours and its logs to their owner, and return its status."""
    for log in (path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        with suppress(FileNotFoundError):
            _restrict(log)
    return _restrict(path)


def _status_of(path: Path) -> os.stat_result:
    status = path.stat()
    if problem := owner_problem(status):
        raise PermissionError(errno.EPERM, problem)
    return status


def _restrict(path: Path) -> os.stat_result:
    status = _status_of(path)
    if status.st_mode & _OTHERS:
        with suppress(OSError):  # a read-only disk, or a file of root
            path.chmod(status.st_mode & 0o700)
    return status


def _mark_of(path: Path, status: os.stat_result) -> int | None:
    """Return the ``application_id`` in the header of a file (https://sqlite.org/fileformat2.html, 1.3)."""
    if not stat.S_ISREG(status.st_mode):
        return None
    with suppress(OSError), path.open("rb") as file:
        return int.from_bytes(file.read(72)[68:], "big")
    return None


def enable_wal(connection: sqlite3.Connection, until: float) -> None:
    """Switch a file to write-ahead logging, trying again up to a time on ``time.monotonic()``.

    SQLite itself does not wait here for other processes that open the same new file.
    """
    while not _try_wal(connection, last_try=time.monotonic() >= until):
        time.sleep(_PAUSE_S)


def _try_wal(connection: sqlite3.Connection, *, last_try: bool) -> bool:
    try:
        connection.execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError as problem:
        if last_try or sqlite_code(problem) != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True


EMPTYING_MS: Final = 1_000
"""How long emptying a log waits for other programs, which cannot write meanwhile, in milliseconds."""


def empty_log(connection: sqlite3.Connection) -> bool:
    """Empty the log, which still has what is overwritten in the file; return whether no program reads an old state."""
    wait = connection.execute("PRAGMA busy_timeout").fetchone()[0]
    connection.execute(f"PRAGMA busy_timeout = {min(wait, EMPTYING_MS)}")
    busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    connection.execute(f"PRAGMA busy_timeout = {wait}")
    return not busy


def sqlite_code(problem: BaseException | None) -> int:
    """Return the primary result code of an exception, 0 if it has none."""
    code: int = getattr(problem, "sqlite_errorcode", 0)
    return code & 0xFF  # the higher bits refine it
