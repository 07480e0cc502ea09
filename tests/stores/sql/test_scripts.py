"""Migrations as SQL, schemas, pools, and storages that are only read: in a file and on a server."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from attrs import evolve
from sqlalchemy import text
from sqlalchemy.engine import make_url

from llm_effects import run, scripted_env, usage_report
from llm_effects.config import StorageConfig
from llm_effects.conversations import list_conversations, search_conversations, start_conversation
from llm_effects.effects.effect import result_of
from llm_effects.effects.env import Conversations
from llm_effects.manager import new_memory
from llm_effects.stores.open import Storage, open_storage
from llm_effects.stores.sql.database import postgres_engines, sqlite_engines
from llm_effects.stores.sql.scripts import NEWEST, grants_script, migration_script, stored_version
from llm_effects.stores.sql.tables import MIGRATIONS, migrate
from llm_effects.testing.stored_chat import Chat, expect_failure, value_of
from tests.fixtures.holds import hold
from tests.fixtures.ledger_rows import rows_of
from tests.fixtures.postgres_server import postgres_server

__all__ = ["postgres_server"]

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "postgres":
        yield request.getfixturevalue("postgres_server").new_url()
    else:
        yield f"sqlite:///{tmp_path}/talks.db"


def opened(config: StorageConfig) -> Storage:
    return open_storage(config, new_memory()).unwrap()


def apply(url: str, script: str) -> None:
    """Apply a script as a tool does that knows nothing of this library."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as file:
            file.executescript(script)
        return
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(script)  # type: ignore[arg-type]


def shape_of(url: str, schema: str = "public") -> list[str]:
    """Return every table, index, function and trigger, with its definition."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            return [str(row) for row in file.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY 1, 2")]
    queries = (
        """SELECT table_name, column_name, data_type, collation_name, is_nullable FROM information_schema.columns
        WHERE table_schema = %s ORDER BY 1, 2""",
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = %s ORDER BY 1",
        "SELECT proname, prosrc FROM pg_proc JOIN pg_namespace n ON n.oid = pronamespace WHERE nspname = %s ORDER BY 1",
        "SELECT trigger_name, event_manipulation FROM information_schema.triggers WHERE trigger_schema = %s ORDER BY 1",
    )
    import psycopg

    with psycopg.connect(url) as connection:
        return [str(row).replace(f"{schema}.", "") for each in queries for row in connection.execute(each, [schema])]


async def used(storage: Storage) -> None:
    """Use every table: a conversation, a journal, the ledger, a budget, a report and a search."""
    chat = await Chat(storage.conversations).start()
    await chat.add_turn("why?", "because")
    await value_of(storage.conversations.intend("run", chat.owner, "key", b""))
    for row in rows_of(3):
        storage.ledger.record(row)
    await storage.ledger.commit(await value_of(storage.ledger.reserve(hold("h", "0.1"))), hold("h", "0.1").amount)
    env = evolve(scripted_env(), conversations=storage.conversations, ledger=storage.ledger)
    assert (await run(usage_report(), env)).unwrap().total.attempts == 3
    assert len((await run(search_conversations("because", owner=chat.owner), env)).unwrap()) == 1


@pytest.mark.parametrize("version", range(NEWEST))
async def test_fault_271_the_sql_of_a_version_makes_what_the_library_makes(
    url: str, version: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    on_file = url.startswith("sqlite")
    script = migration_script("sqlite" if on_file else "postgresql", version)
    if version:
        engines = (
            sqlite_engines(Path(url.removeprefix("sqlite:///")))
            if on_file
            else postgres_engines(make_url(url).set(drivername="postgresql+psycopg"))
        )
        migrate(engines.reading, engines.writing, MIGRATIONS[:version])
        engines.dispose()
    apply(url, script)
    by_library = f"sqlite:///{tmp_path}/other.db" if on_file else request.getfixturevalue("postgres_server").new_url()
    migrated = opened(StorageConfig(url=by_library))
    await value_of(migrated.ledger.rows())
    await migrated.ledger.aclose()
    assert shape_of(url) == shape_of(by_library)
    storage = opened(StorageConfig(url=url, migrate=False))
    await used(storage)
    await storage.ledger.aclose()


async def test_fault_272_tables_are_not_created_where_that_is_forbidden(url: str) -> None:
    config = StorageConfig(url=url, migrate=False)
    storage = opened(config)
    error = (await result_of(storage.conversations.page("alice", 1))).failure()
    assert error.tag == "ConfigurationError"
    assert "version 0 and must be of version" in str(error)
    assert "storage migrate --sql" in str(error)
    await storage.ledger.aclose()
    assert stored_version(config).unwrap() == 0


def test_the_version_of_a_file_that_is_not_there_creates_none(tmp_path: Path) -> None:
    assert stored_version(StorageConfig(url=f"sqlite:///{tmp_path}/none.db")).unwrap() == 0
    assert list(tmp_path.iterdir()) == []


# Postgres: schemas and pools.


@pytest.fixture
def server_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue("postgres_server").new_url()
    return url


async def test_fault_273_two_schemas_of_a_database_share_nothing(server_url: str) -> None:
    storages = [opened(StorageConfig(url=server_url, schema=name)) for name in ("tenant_a", "tenant_b")]
    for storage in storages:
        await used(storage)
    for storage in storages:
        await storage.ledger.aclose()
    assert shape_of(server_url) == []
    assert shape_of(server_url, "tenant_a") == shape_of(server_url, "tenant_b") != []
    again = opened(StorageConfig(url=server_url, schema="tenant_a", connections=2, recycle_seconds=60))
    assert len(await value_of(again.ledger.rows())) == 3
    await again.ledger.aclose()


async def test_other_programs_change_the_ledger_of_a_schema_from_any_search_path(server_url: str) -> None:
    for name in ("tenant_a", "tenant_b"):
        apply(server_url, migration_script("postgresql", schema=name))
        apply(server_url, f"INSERT INTO {name}.llm_usage_hours VALUES ('2026-01-01T12')")
    row = "'2026-01-01T12:00:00', 'i', 'c', 'chat', '[]', 'm', 'p', 'success', 1, 0, 0, 0, 0, 0"
    columns = "at, id, call_id, task, tags, model, provider, outcome, latency_ms, wait_ms, cache_read_tokens"
    columns += ", cache_write_tokens, reasoning_tokens, estimated"
    for path in ("public", "tenant_b"):
        change = f"INSERT INTO tenant_a.llm_ledger ({columns}) VALUES ({row}); DELETE FROM tenant_a.llm_ledger"
        apply(server_url, f"SET search_path TO {path}; {change}")
    engine = postgres_engines(make_url(server_url).set(drivername="postgresql+psycopg")).writing
    with engine.begin() as connection:
        left = [
            connection.execute(text(f"SELECT count(*) FROM {name}.llm_usage_hours")).scalar_one()
            for name in ("tenant_a", "tenant_b")
        ]
    engine.dispose()
    assert left == [0, 1]


async def test_the_sql_for_a_schema_makes_what_the_library_makes_there(server_url: str) -> None:
    apply(server_url, migration_script("postgresql", schema="tenant_a"))
    storage = opened(StorageConfig(url=server_url, schema="tenant_a", migrate=False))
    await used(storage)
    await storage.ledger.aclose()
    assert shape_of(server_url) == []


async def test_a_pool_has_as_many_connections_as_it_is_given(server_url: str) -> None:
    storage = opened(StorageConfig(url=server_url, connections=2))
    await used(storage)
    engine = postgres_engines(
        make_url(server_url).set(drivername="postgresql+psycopg"), StorageConfig(connections=3, recycle_seconds=1.5)
    ).writing
    assert "Pool size: 3" in engine.pool.status()
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with engine.begin() as connection:
        assert connection.execute(text(query)).scalar_one() <= 2
    engine.dispose()
    await storage.ledger.aclose()


@pytest.mark.parametrize("name", ["", "a b", 'a"', "A", "1a", "x" * 64, "a;b"])
def test_the_name_of_a_schema_is_checked(name: str) -> None:
    with pytest.raises(ValueError, match="schema"):
        StorageConfig(schema=name)


def test_a_file_has_no_schemas() -> None:
    error = open_storage(StorageConfig(url="sqlite:///a.db", schema="a"), new_memory()).failure()
    assert error.message == "storage.schema: is of Postgres: a file has no schemas"


# Storages that are only read.


async def refuses_to_write(conversations: Conversations) -> None:
    env = evolve(scripted_env(), conversations=conversations)
    error = (await run(start_conversation("c"), env)).failure()
    assert str(error.tag) == "ConfigurationError"
    assert "storage.read_only" in str(error)


async def test_fault_274_a_storage_is_read_and_not_written(url: str) -> None:
    writing = opened(StorageConfig(url=url))
    await used(writing)
    await writing.ledger.aclose()
    reading = opened(StorageConfig(url=url, read_only=True))
    env = evolve(scripted_env(), conversations=reading.conversations, ledger=reading.ledger)
    assert (await run(usage_report(), env)).unwrap().total.attempts == 3
    assert (await run(list_conversations(owner="alice"), env)).unwrap() == ()
    await refuses_to_write(reading.conversations)
    await expect_failure(reading.ledger.reserve(hold("i", "0.1")), "StorageFailed")
    await reading.ledger.aclose()


async def test_a_role_that_only_reads_can_report(server_url: str) -> None:
    writing = opened(StorageConfig(url=server_url))
    await used(writing)
    await writing.ledger.aclose()
    role = f"reporter_{make_url(server_url).database}"
    apply(server_url, f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'secret';\n{grants_script(role)}")
    as_role = make_url(server_url).set(username=role, password="secret").render_as_string(hide_password=False)
    reading = opened(StorageConfig(url=as_role, read_only=True))
    env = evolve(scripted_env(), conversations=reading.conversations, ledger=reading.ledger)
    assert (await run(usage_report(), env)).unwrap().total.attempts == 3
    assert (await run(list_conversations(), env)).failure().tag in {"StorageFailed", "ConfigurationError"}
    apply(server_url, grants_script(role, conversations=True))
    assert (await run(list_conversations(), env)).unwrap() == ()
    await reading.ledger.aclose()
