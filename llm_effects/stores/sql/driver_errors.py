"""Exceptions of databases and their drivers, translated into errors."""

import sqlite3
from collections.abc import Mapping
from typing import Final, final

from attrs import frozen
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionFree

from llm_effects.stores.sqlite_files import sqlite_code
from llm_effects.values.errors import Cause, ConfigurationError, LLMError, StorageFailed
from llm_effects.values.secrets import Secret, scrub
from llm_effects.values.validation import printable

ROLLED_BACK: Final = frozenset({"40001", "40P01", "55P03"})
"""Codes of a Postgres transaction that was rolled back: not serialisable, a deadlock, or a lock timeout."""

_LOCKED: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})

# Classes of Postgres codes (the first two letters): lost connections, resources, operator intervention, and a server
# that is still read-only during a failover.
_TRANSIENT: Final = frozenset({"08", "40", "53", "55", "57", "25"})
_PERSISTENT: Final = frozenset({"53100"})  # the disk is full

# Wrong credentials or database, and tables that differ from the migrations: retrying does not help.
_MISCONFIGURED: Final = frozenset({"28", "3D", "3F", "42", "0A"})

_SQLITE_MESSAGES: Final[Mapping[int, str]] = {
    sqlite3.SQLITE_ERROR: "the tables are not as this version creates them",
    sqlite3.SQLITE_BUSY: "the file is locked by another process",
    sqlite3.SQLITE_LOCKED: "the file is locked by another connection",
    sqlite3.SQLITE_FULL: "there is no room left on the disk",
    sqlite3.SQLITE_READONLY: "the file is read-only",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened: check that its folder exists and is writable",
    sqlite3.SQLITE_NOTADB: "the file is not a SQLite database: move it away, or name another one",
    sqlite3.SQLITE_CORRUPT: "the file is damaged: restore it from a backup",
}

_NO_MODULE: Final = "no such module: fts5"
_NO_FTS5: Final = (
    "the file has an index of words, and the SQLite of this Python has no FTS5 to keep it: use one that has, or set "
    "storage.read_only"
)

_SQLITE_MISCONFIGURED: Final = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOTADB})


@final
class Refused(Exception):  # noqa: N818 - it carries an error value
    """An error of our own that rolls a transaction back."""

    def __init__(self, error: LLMError) -> None:
        super().__init__(error.tag)
        self.error = error


@final
class CommitLost(Exception):  # noqa: N818 - named for the event
    """A connection lost during a commit: the transaction may be stored or not."""


@final
@frozen
class Problem:
    """A problem that a database reported: SQLite's or Postgres' code, and a message without values of rows."""

    sqlite_code: int
    sqlstate: str
    message: str
    exception: str
    connection_lost: bool

    @property
    def rolled_back(self) -> bool:
        """Whether nothing was stored, and the same transaction may succeed at once."""
        return self.sqlite_code in _LOCKED or self.sqlstate in ROLLED_BACK

    @property
    def transient(self) -> bool:
        """Whether a later try may succeed."""
        passing = self.sqlstate[:2] in _TRANSIENT and self.sqlstate not in _PERSISTENT
        return self.rolled_back or self.connection_lost or passing

    @property
    def misconfigured(self) -> bool:
        """Whether the configuration is wrong, and the store itself works."""
        return self.sqlite_code in _SQLITE_MISCONFIGURED or self.sqlstate[:2] in _MISCONFIGURED


def problem_of(
    exception: DBAPIError | NoConnectionFree | OSError | sqlite3.DatabaseError, *secrets: str | Secret
) -> Problem:
    """Describe an exception, without its statement and parameters."""
    origin = exception.orig if isinstance(exception, DBAPIError) else exception
    code = sqlite_code(origin)
    state = getattr(origin, "sqlstate", None) or ""
    text = getattr(getattr(origin, "diag", None), "message_primary", None) or getattr(origin, "strerror", None)
    message = scrub(printable(str(text or origin)), *secrets)[:500]
    unreachable = not isinstance(exception, OSError) and not code and not state  # the driver's own messages only
    lost = unreachable or (isinstance(exception, DBAPIError) and exception.connection_invalidated)
    return Problem(code, state, message, type(origin).__name__, lost)


def error_of(operation: str, where: str, problem: Problem) -> LLMError:
    """Build the error of a problem; ``where`` names the store without its password."""
    known = _NO_FTS5 if _NO_MODULE in problem.message else _SQLITE_MESSAGES.get(problem.sqlite_code)
    message = f"{where}: {known or problem.message}"
    cause = Cause(problem.exception, problem.message)
    code = problem.sqlstate or None
    if problem.misconfigured:
        return ConfigurationError(message=message, code=code, cause=cause)
    return StorageFailed(operation=operation, message=message, transient=problem.transient, code=code, cause=cause)


def uncertain_commit(operation: str, where: str) -> StorageFailed:
    """Build the error of a commit that may have been stored or not."""
    message = f"{where}: the connection was lost during the commit: it may be stored or not"
    return StorageFailed(operation=operation, message=message, transient=True)
