"""The SQLite file of a database: made for its owner only, known by a mark of ours, never another program's."""

import errno
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from llm_effects.errors import ConfigurationError
from llm_effects.stores.sql_problems import Refused
from llm_effects.stores.sqlite_files import keep_a_log

OURS: Final = 0x6C6C6D73
"""The ``application_id`` of our files: ``llms`` in ASCII."""

_STRANGE: Final = "holds the tables of another program: give the storage a file of its own"


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
            keep_a_log(file, time.monotonic() + wait_seconds)
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
            file.execute(f"PRAGMA application_id = {OURS}")


def _is_ours(file: sqlite3.Connection) -> bool:
    """Whether the file has our mark; one that has not, and is not empty, is refused."""
    query = "SELECT application_id, (SELECT count(*) FROM sqlite_schema) FROM pragma_application_id"
    mark, tables = file.execute(query).fetchone()
    if mark != OURS and (mark or tables):
        raise Refused(ConfigurationError(message=f"storage.url: the file {_STRANGE}"))
    return bool(mark == OURS)
