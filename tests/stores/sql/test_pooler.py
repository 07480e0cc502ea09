"""Postgres behind a pooler in transaction mode: nothing belongs to a connection, since others get it next."""

from decimal import Decimal

import anyio
import psycopg
import pytest
from returns.result import Result, Success
from sqlalchemy import Connection, text

from llm_effects.config import StorageConfig
from llm_effects.manager import new_memory
from llm_effects.stores.conversations.sql import SqlConversations
from llm_effects.stores.ledger.sql import SqlLedger
from llm_effects.stores.open import open_storage
from llm_effects.stores.sql.database import LOCK_WAIT_S, Database, open_database
from llm_effects.testing.stored_chat import Chat, texts, value_of
from llm_effects.values.errors import LLMError
from tests.fixtures.holds import hold
from tests.fixtures.pgbouncer_server import pooled
from tests.fixtures.postgres_server import Postgres, postgres_server

__all__ = ["postgres_server"]

pytestmark = pytest.mark.anyio


async def setting(database: Database, name: str, *, writing: bool) -> str:
    def work(connection: Connection) -> Result[str, LLMError]:
        return Success(str(connection.execute(text(f"SHOW {name}")).scalar_one()))

    return await value_of((database.write if writing else database.read)("show", work))


async def test_a_connection_has_no_prepared_statements_and_no_settings_of_its_own(postgres_server: Postgres) -> None:
    database = open_database(postgres_server.new_url()).unwrap()
    chat = await Chat(SqlConversations(database)).start()
    for number in range(12):  # psycopg prepares what it has executed five times
        await chat.add_turn(str(number), "yes")
        await chat.read()

    def prepared(connection: Connection) -> Result[int, LLMError]:
        return Success(connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one())

    for _ in range(4):
        assert await value_of(database.write("look", prepared)) == 0
    raw = database._engines.writing.raw_connection()  # type: ignore[union-attr]
    try:
        cursor = raw.cursor()
        cursor.execute("SHOW lock_timeout")
        assert cursor.fetchone() == ("0",)
        assert isinstance(raw.driver_connection, psycopg.Connection)
        assert raw.driver_connection.prepare_threshold is None
    finally:
        raw.close()
    assert await setting(database, "lock_timeout", writing=True) == f"{LOCK_WAIT_S:.0f}s"
    await database.aclose()


async def test_a_pooler_in_transaction_mode_is_no_obstacle(postgres_server: Postgres) -> None:
    name = postgres_server.new_url().rpartition("/")[2]
    with pooled(postgres_server, name) as url:
        databases = [open_database(url).unwrap() for _ in range(3)]
        failures: list[object] = []

        async def talk(database: Database, number: int) -> None:
            chat = await Chat(SqlConversations(database)).start()
            ledger = SqlLedger(database)
            for step in range(8):
                await chat.add_turn(str(step), "yes")
                held = hold(f"{number}.{step}", "0.001")
                await value_of(ledger.reserve(held))
                await ledger.commit(held, Decimal("0.001"))
            if texts(await chat.read()) != [each for step in range(8) for each in (str(step), "yes")]:
                failures.append(number)

        await setting(databases[0], "lock_timeout", writing=True)
        async with anyio.create_task_group() as group:
            for number in range(15):
                group.start_soon(talk, databases[number % 3], number)
        assert failures == []
        for database in databases:
            await database.aclose()
        with psycopg.connect(url, autocommit=True) as other:
            other.prepare_threshold = None
            for _ in range(6):
                assert other.execute("SHOW lock_timeout").fetchone() == ("0",)
                assert other.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


async def test_fault_273_a_schema_is_chosen_behind_a_pooler(postgres_server: Postgres) -> None:
    name = postgres_server.new_url().rpartition("/")[2]
    with pooled(postgres_server, name) as url:
        for schema in ("tenant_a", "tenant_b"):
            storage = open_storage(StorageConfig(url=url, schema=schema), new_memory()).unwrap()
            chat = await Chat(storage.conversations, id="c", owner="alice").start()
            await chat.add_turn(schema, "yes")
            assert texts(await chat.read()) == [schema, "yes"]
            await storage.ledger.aclose()
