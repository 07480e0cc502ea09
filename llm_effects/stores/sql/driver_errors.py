"""What databases and their drivers say, turned into errors."""

import sqlite3
from collections.abc import Mapping
from typing import Final, final

from attrs import frozen
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionFree

from llm_effects.values.errors import Cause, ConfigurationError, LLMError, StorageFailed
from llm_effects.values.secrets import scrub

REPEATED: Final = frozenset({"40001", "40P01", "55P03"})
"""Postgres took the transaction back: it could not be serialised, met a deadlock, or waited too long for a lock."""

_LOCKED: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})

# Of Postgres by the first two letters of its codes: lost connections, resources, interventions of an operator, and
# the server of a failover that only reads yet.
_PASSING: Final = frozenset({"08", "40", "53", "55", "57", "25"})
_LASTING: Final = frozenset({"53100"})  # the disk is full

# Who is asking, what for, and tables that are not as they were made: nothing that the next try would mend.
_SET_UP: Final = frozenset({"28", "3D", "3F", "42", "0A"})

_OF_FILES: Final[Mapping[int, str]] = {
    sqlite3.SQLITE_ERROR: "the tables are not as this version made them",
    sqlite3.SQLITE_BUSY: "the file is locked by another process",
    sqlite3.SQLITE_LOCKED: "the file is locked by another connection",
    sqlite3.SQLITE_FULL: "there is no room left on the disk",
    sqlite3.SQLITE_READONLY: "the file is read-only",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened: is its folder there, and may it be written to?",
    sqlite3.SQLITE_NOTADB: "the file is no SQLite database: move it away, or name another one",
    sqlite3.SQLITE_CORRUPT: "the file is damaged: restore it from a backup",
}

_FILES_SET_UP: Final = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOTADB})


@final
class Refused(Exception):  # noqa: N818 - it carries an error, and is none of its own
    """Breaks off a transaction with an error that no driver knows of."""

    def __init__(self, error: LLMError) -> None:
        super().__init__(error.tag)
        self.error = error


@final
class CommitLost(Exception):  # noqa: N818 - named for what happened
    """The connection went while a transaction was being committed: it may be stored or not."""


@final
@frozen
class Problem:
    """What a database said: SQLite's number or Postgres' code, and its words without the values of rows."""

    number: int
    state: str
    said: str
    kind: str
    lost: bool

    @property
    def taken_back(self) -> bool:
        """Whether nothing was stored, and the same transaction may do better at once."""
        return self.number in _LOCKED or self.state in REPEATED

    @property
    def transient(self) -> bool:
        """Whether it may be over at the next try."""
        passing = self.state[:2] in _PASSING and self.state not in _LASTING
        return self.taken_back or self.lost or passing

    @property
    def of_set_up(self) -> bool:
        """Whether the set-up is wrong, not the store."""
        return self.number in _FILES_SET_UP or self.state[:2] in _SET_UP


def problem_of(exception: DBAPIError | NoConnectionFree | OSError | sqlite3.DatabaseError, *secrets: str) -> Problem:
    """Read what an exception says; of its statement and parameters nothing is kept."""
    origin = exception.orig if isinstance(exception, DBAPIError) else exception
    number = getattr(origin, "sqlite_errorcode", 0) & 0xFF  # what stands above says more than is needed here
    state = getattr(origin, "sqlstate", None) or ""
    words = getattr(getattr(origin, "diag", None), "message_primary", None) or getattr(origin, "strerror", None)
    said = scrub(str(words or origin), *secrets)[:500]
    unreachable = not isinstance(exception, OSError) and not number and not state  # the driver's own words only
    lost = unreachable or (isinstance(exception, DBAPIError) and exception.connection_invalidated)
    return Problem(number, state, said, type(origin).__name__, lost)


def error_of(operation: str, where: str, problem: Problem) -> LLMError:
    """Make an error of a problem; ``where`` names the store without its password."""
    message = f"{where}: {_OF_FILES.get(problem.number) or problem.said}"
    cause = Cause(problem.kind, problem.said)
    code = problem.state or None
    if problem.of_set_up:
        return ConfigurationError(message=message, code=code, cause=cause)
    return StorageFailed(operation=operation, message=message, transient=problem.transient, code=code, cause=cause)


def uncertain(operation: str, where: str) -> StorageFailed:
    """Say that nobody knows whether it was stored."""
    message = f"{where}: the connection was lost while it was being stored: it may be there or not"
    return StorageFailed(operation=operation, message=message, transient=True)
