"""Which database a URL names."""

from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from returns.pipeline import is_successful
from returns.result import Failure, Result, Success
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from llm_effects.errors import ConfigurationError
from llm_effects.stores.databases import PATIENCE_S, Database
from llm_effects.stores.sql_engines import LOCK_WAIT_S, WRITERS, postgres_engines, sqlite_engines
from llm_effects.stores.urls import sqlite_file


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
    path: Path, *, lock_wait_seconds: float = LOCK_WAIT_S, patience_seconds: float = PATIENCE_S
) -> Database:
    """Make the database of a file: how long a lock is waited for, and when those who wait give up, in seconds."""
    connect = partial(sqlite_engines, path, lock_wait_seconds)
    return Database(connect, str(path), patience_seconds=patience_seconds)


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
