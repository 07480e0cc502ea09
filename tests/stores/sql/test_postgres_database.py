"""Postgres storages: transactions that are rolled back, lost connections, and secrets that never show."""

from collections.abc import Callable

import pytest
from returns.result import Result, Success
from sqlalchemy import Connection, text

from llm_effects.effects.effect import result_of
from llm_effects.stores.conversations.sql import SqlConversations
from llm_effects.stores.sql.database import PAUSES_S, Database, open_database
from llm_effects.testing.stored_chat import Chat, new_turn, texts, value_of
from llm_effects.values.errors import ConfigurationError, LLMError, StorageFailed
from tests.fixtures.futures import run_in
from tests.fixtures.postgres_server import Postgres, postgres_server, start
from tests.fixtures.redis_server import free_port

__all__ = ["postgres_server"]

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def url(postgres_server: Postgres) -> str:
    return postgres_server.new_url()


def opened(url: str) -> Database:
    return open_database(url).unwrap()


async def failure_of(store: SqlConversations) -> LLMError:
    """Return the failure of reading, and close the store."""
    failure = (await result_of(store.load("c", "alice"))).failure()
    await store.aclose()
    return failure


class Work:
    """Work of a transaction that fails ``times`` times."""

    def __init__(self, trouble: Callable[[Connection], object], times: int = 1) -> None:
        self.trouble, self.times, self.tries = trouble, times, 0

    def __call__(self, connection: Connection) -> Result[int, LLMError]:
        self.tries += 1
        connection.execute(text("INSERT INTO tries VALUES (1)"))
        if self.tries <= self.times:
            self.trouble(connection)
        return Success(self.tries)


async def stored(database: Database) -> int:
    """Return how often the work was stored, and reset the count."""

    def count(connection: Connection) -> Result[int, LLMError]:
        return Success(connection.execute(text("DELETE FROM tries")).rowcount)

    return await value_of(database.write("count", count))


@pytest.fixture
async def database(url: str, postgres_server: Postgres) -> Database:
    postgres_server.execute("CREATE TABLE IF NOT EXISTS tries (n INTEGER)", url.rpartition("/")[2])
    return opened(url)


def raising(code: str) -> Callable[[Connection], object]:
    block = f"DO $$ BEGIN RAISE EXCEPTION 'trouble' USING ERRCODE = '{code}'; END $$"
    return lambda connection: connection.execute(text(block))


@pytest.mark.parametrize("code", ["40001", "40P01"])
async def test_fault_128_a_transaction_that_was_rolled_back_is_retried_as_a_whole(
    database: Database, code: str
) -> None:
    for repeatable in (True, False):
        assert await value_of(database.write("try", Work(raising(code), times=2), repeatable=repeatable)) == 3
        assert await stored(database) == 1
    await database.aclose()


async def test_fault_128_retries_are_bounded(database: Database) -> None:
    work = Work(raising("40001"), times=100)
    failure = (await result_of(database.write("try", work))).failure()
    assert isinstance(failure, StorageFailed)
    assert (failure.transient, failure.code, work.tries) == (True, "40001", len(PAUSES_S) + 1)
    assert await stored(database) == 0
    await database.aclose()


async def test_other_errors_are_not_retried(database: Database) -> None:
    work = Work(raising("P0001"), times=100)
    failure = (await result_of(database.write("try", work))).failure()
    assert isinstance(failure, StorageFailed)
    assert (failure.transient, work.tries) == (False, 1)
    await database.aclose()


def kill_own_connection(connection: Connection) -> None:
    connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


async def test_fault_128_a_transaction_whose_connection_is_lost_is_retried(database: Database) -> None:
    for repeatable in (True, False):
        assert await value_of(database.write("try", Work(kill_own_connection), repeatable=repeatable)) == 2
        assert await stored(database) == 1
    await database.aclose()


@pytest.mark.parametrize("repeatable", [True, False])
async def test_fault_128_a_commit_of_unknown_outcome_is_retried_only_if_repeatable(
    database: Database, postgres_server: Postgres, repeatable: bool
) -> None:
    def kill_on_commit(connection: Connection) -> None:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        postgres_server.execute(f"SELECT pg_terminate_backend({pid}, 5000)")

    work = Work(kill_on_commit)
    result = await result_of(database.write("try", work, repeatable=repeatable))
    if repeatable:
        assert result == Success(2)
    else:
        failure = result.failure()
        assert isinstance(failure, StorageFailed)
        assert (failure.transient, work.tries) == (True, 1)
        assert "it may be stored or not" in failure.message
    assert await stored(database) == int(repeatable)
    await database.aclose()


async def test_fault_128_connections_killed_between_two_turns_do_no_harm(url: str, postgres_server: Postgres) -> None:
    chat = await Chat(SqlConversations(opened(url))).start()
    for number in range(3):
        await chat.add_turn(str(number), "yes")
        name = url.rpartition("/")[2]
        postgres_server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    assert texts(await chat.read()) == ["0", "yes", "1", "yes", "2", "yes"]
    await chat.store.aclose()


def test_fault_128_a_server_that_crashes_and_restarts_loses_nothing() -> None:
    async def run(server: Postgres) -> None:
        chat = await Chat(SqlConversations(opened(server.url()))).start()
        turn = await chat.add_turn("why?", "because")
        with server.crashed():
            failure = (await result_of(chat.store.begin_turn(chat.id, chat.owner, 2, new_turn("more")))).failure()
            assert isinstance(failure, StorageFailed)
            assert failure.transient
        assert (await chat.read()).turns == (turn,)
        await chat.store.aclose()

    with start() as server:
        run_in("asyncio", lambda: run(server))


async def test_a_missing_server_is_a_transient_failure(postgres_server: Postgres) -> None:
    url = postgres_server.url().replace(str(postgres_server.port), str(free_port()))
    failure = await failure_of(SqlConversations(opened(url)))
    assert isinstance(failure, StorageFailed)
    assert failure.transient
    assert "hunter2" not in repr(failure)


async def test_errors_never_show_the_password(postgres_server: Postgres) -> None:
    url = postgres_server.url().replace("hunter2", "hunter3")
    failure = await failure_of(SqlConversations(opened(url)))
    assert "authentication failed" in repr(failure)
    assert "hunter" not in repr(failure)


async def test_a_user_without_the_right_to_create_tables_is_a_configuration_error(postgres_server: Postgres) -> None:
    name = postgres_server.new_url().rpartition("/")[2]
    postgres_server.execute(f"CREATE ROLE guest_of_{name} LOGIN PASSWORD 'guest-secret'")
    url = f"postgresql://guest_of_{name}:guest-secret@127.0.0.1:{postgres_server.port}/{name}"
    failure = await failure_of(SqlConversations(opened(url)))
    assert isinstance(failure, ConfigurationError)
    assert "permission denied" in failure.message
    assert "guest-secret" not in repr(failure)


async def test_fault_127_a_newer_database_is_refused(postgres_server: Postgres) -> None:
    url = postgres_server.new_url()
    await (await Chat(SqlConversations(opened(url))).start()).store.aclose()
    postgres_server.execute("INSERT INTO llm_migrations VALUES (1000, 'tomorrow', 'x')", url.rpartition("/")[2])
    failure = await failure_of(SqlConversations(opened(url)))
    assert isinstance(failure, ConfigurationError)
