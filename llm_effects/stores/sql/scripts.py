"""Our migrations as SQL that other tools apply, and the grants of a role that only reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, TypeAlias

from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.config.services import StorageConfig
from llm_effects.stores.sql.database import STORAGE_MARK, open_database
from llm_effects.stores.sql.tables import CREATE_MIGRATIONS, LOCK, MIGRATIONS, WORDS
from llm_effects.values.errors import LLMError
from llm_effects.values.secrets import reveal

Dialect: TypeAlias = Literal["sqlite", "postgresql"]

NEWEST: Final = len(MIGRATIONS)
"""The version that this release of the library reads and writes."""


def stored_version(config: StorageConfig) -> Result[int, LLMError]:
    """Return the version of the tables of a storage, 0 if there are none; nothing is created or changed."""
    opened = open_database(reveal(config.url), evolve(config, read_only=True))
    return opened.unwrap().version() if is_successful(opened) else Failure(opened.failure())


def pending_steps(version: int) -> tuple[str, ...]:
    """Return the names of the steps that a version lacks.

    >>> pending_steps(NEWEST - 1)
    ('usage by day, and metadata',)
    """
    return tuple(step.name for step in MIGRATIONS[version:])


def dialect_of(config: StorageConfig) -> Dialect | None:
    """Return the database of a storage, or ``None`` if it is none."""
    scheme = reveal(config.url).partition("://")[0].lower()
    return "sqlite" if scheme == "sqlite" else "postgresql" if scheme.startswith("postgres") else None


def migration_script(dialect: Dialect, first: int = 0, *, schema: str | None = None) -> str:
    """Return the SQL that brings a database from a version to ``NEWEST``, each step in a transaction of its own.

    It adds the rows of ``llm_migrations`` as the library does, so that either may go on. A step that is applied already
    fails, and changes nothing. Version 0 is an empty database.

    >>> migration_script("sqlite", NEWEST)
    ''
    >>> migration_script("postgresql", NEWEST - 1, schema="llm").splitlines()[:3]
    ['CREATE SCHEMA IF NOT EXISTS "llm";', 'BEGIN;', 'SET LOCAL search_path TO "llm";']
    """
    return "".join(f"{statement};\n" for statement in _statements(dialect, first, schema))


def _statements(dialect: Dialect, first: int, schema: str | None) -> Iterator[str]:
    on_server, pending = dialect == "postgresql", MIGRATIONS[first:]
    if pending and on_server and schema is not None:
        yield f'CREATE SCHEMA IF NOT EXISTS "{schema}"'
    if pending and not on_server and not first:
        yield f"PRAGMA application_id = {STORAGE_MARK}"
        yield "PRAGMA journal_mode = WAL"
    for number, step in enumerate(pending, first + 1):
        yield "BEGIN" if on_server else "BEGIN IMMEDIATE"
        if on_server and schema is not None:
            yield f'SET LOCAL search_path TO "{schema}"'
        if on_server:
            yield f"SELECT pg_advisory_xact_lock({LOCK})"
        yield CREATE_MIGRATIONS
        yield from step.statements_for(dialect)
        yield f"INSERT INTO llm_migrations VALUES ({number}, '{step.name}', {WORDS[dialect]['now']})"  # noqa: S608 - ours
        yield "COMMIT"


REPORTED: Final = ("llm_migrations", "llm_ledger", "llm_usage_hours", "llm_usage", "llm_usage_calls")
"""The tables that reports read."""

CONVERSED: Final = ("llm_conversations", "llm_turns", "llm_messages", "llm_summaries", "llm_journal")
"""The tables of conversations and journals."""


def grants_script(role: str, *, schema: str | None = None, conversations: bool = False) -> str:
    """Return the SQL that lets a role of Postgres read what reports need, or conversations too, and write nothing.

    >>> print(grants_script("reporter"), end="")
    GRANT USAGE ON SCHEMA "public" TO "reporter";
    GRANT SELECT ON "public".llm_migrations TO "reporter";
    GRANT SELECT ON "public".llm_ledger TO "reporter";
    GRANT SELECT ON "public".llm_usage_hours TO "reporter";
    GRANT SELECT ON "public".llm_usage TO "reporter";
    GRANT SELECT ON "public".llm_usage_calls TO "reporter";
    """
    where, to = _quoted(schema or "public"), _quoted(role)
    tables = (*REPORTED, *(CONVERSED if conversations else ()))
    granted = (f"GRANT SELECT ON {where}.{table} TO {to};\n" for table in tables)
    return "".join((f"GRANT USAGE ON SCHEMA {where} TO {to};\n", *granted))


def _quoted(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'
