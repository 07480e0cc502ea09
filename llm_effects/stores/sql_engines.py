"""Engines: how a database is connected to. Each has a way to read and a way to write."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, final

from attrs import frozen
from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection

from llm_effects.stores.sql_files import connect, prepare

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
