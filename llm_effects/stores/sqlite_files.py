"""Helpers for SQLite files: the path in a URL, write-ahead logging and error codes."""

import sqlite3
import time
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


def sqlite_code(problem: BaseException | None) -> int:
    """Return the primary result code of an exception, 0 if it has none."""
    code: int = getattr(problem, "sqlite_errorcode", 0)
    return code & 0xFF  # the higher bits refine it
