"""What a turn costs a Postgres server in round trips, and what holds when statements share them."""

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

import anyio
import psycopg
import pytest
from attrs import evolve
from psycopg import ServerCursor
from psycopg.rows import dict_row
from returns.result import Result, Success
from sqlalchemy import Connection, TextClause, text

from llm_effects import LLMConfig, LLMEnv, converse, open_env, run, start_conversation
from llm_effects.config import BudgetConfig, CacheConfig, ModelConfig, StorageConfig
from llm_effects.config.models import Price
from llm_effects.effects.effect import result_of
from llm_effects.stores.conversations.rules import DUPLICATE_MESSAGE_ID
from llm_effects.stores.conversations.sql import SqlConversations
from llm_effects.stores.sql import database
from llm_effects.stores.sql.database import Database, open_database
from llm_effects.stores.sql.round_trips import ALONE, execute_together
from llm_effects.testing import scripted
from llm_effects.testing.stored_chat import Chat, new_turn, texts, value_of
from llm_effects.values.errors import LLMError, StorageFailed
from tests.benchmarks.fleet import Relay, relayed
from tests.fixtures.pgbouncer_server import pooled
from tests.fixtures.postgres_server import Postgres, postgres_server

__all__ = ["postgres_server"]

pytestmark = pytest.mark.anyio

TURNS = 20

MODEL = ModelConfig(provider="lm-studio", model="m", price=Price(input=1, output=2))


@contextmanager
def counted(server: Postgres) -> Generator[tuple[Relay, str]]:
    """Yield a relay that counts round trips, and the URL of a new database behind it."""
    with relayed(server.port) as (relay, port):
        yield relay, server.new_url().replace(f":{server.port}/", f":{port}/")


@asynccontextmanager
async def talking(url: str, schema: str | None = None) -> AsyncGenerator[LLMEnv]:
    config = LLMConfig(
        models={"one": MODEL},
        cache=CacheConfig(enabled=False),
        storage=StorageConfig(url=url, schema=schema),
        budgets=(BudgetConfig(name="all", limit_usd="5"),),
    )
    async with open_env(config) as env:
        yield evolve(env, clients=scripted("because"))


async def trips_of_a_turn(relay: Relay, env: LLMEnv) -> float:
    """Return the round trips of a turn, on the average of some turns of several conversations."""
    ids = [(await run(start_conversation(), env)).unwrap().id for _ in range(4)]
    for each in ids:  # connections are opened, and the account of the budget is created
        (await run(converse(each, "why?"), env)).unwrap()
    before = relay.traffic.trips
    for number in range(TURNS):
        (await run(converse(ids[number % len(ids)], f"{number}?"), env)).unwrap()
    return (relay.traffic.trips - before) / TURNS


# 1 to read the conversation, 3 each to begin and to finish the turn (read, write, commit), and 1 each to reserve and to
# spend money. Rows of the ledger are written once a second, in 2 round trips.
@pytest.mark.parametrize(("schema", "most"), [(None, 9), ("tenant", 10)])
async def test_a_turn_makes_few_round_trips(postgres_server: Postgres, schema: str | None, most: int) -> None:
    with counted(postgres_server) as (relay, url):
        async with talking(url, schema) as env:
            least = min([await trips_of_a_turn(relay, env) for _ in range(3)])
    assert most - 0.5 < least < most + 0.5


def rows(connection: Connection) -> Result[int, LLMError]:
    return Success(connection.execute(text("SELECT count(*) FROM tries")).scalar_one())


@pytest.fixture
async def tried(postgres_server: Postgres) -> AsyncGenerator[Database]:
    url = postgres_server.new_url()
    postgres_server.execute("CREATE TABLE tries (n INTEGER UNIQUE)", url.rpartition("/")[2])
    opened = open_database(url).unwrap()
    yield opened
    await opened.aclose()


INSERT = text("INSERT INTO tries VALUES (:n)")


async def test_what_is_sent_together_is_stored_in_order_and_the_last_result_is_returned(tried: Database) -> None:
    def work(connection: Connection) -> Result[list[int], LLMError]:
        more = text("UPDATE tries SET n = n + 10")
        execute_together(connection, (INSERT, {"n": 1}), (INSERT, [{"n": 2}, {"n": 3}]), (more, {}))
        query = (text("SELECT n FROM tries ORDER BY n"), dict[str, object]())
        return Success(list(execute_together(connection, (INSERT, {"n": 4}), query).scalars()))

    assert await value_of(tried.write("try", work)) == [4, 11, 12, 13]
    assert await value_of(tried.read("count", rows)) == 4


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_an_error_of_one_statement_is_that_of_all_and_nothing_is_stored(tried: Database, place: int) -> None:
    def work(connection: Connection) -> Result[None, LLMError]:
        steps: list[tuple[TextClause, dict[str, object]]]
        steps = [(INSERT, {"n": n}) for n in range(3)]
        steps[place] = (text("INSERT INTO tries SELECT 1 / :n"), {"n": 0})
        execute_together(connection, *steps)
        return Success(None)

    failure = (await result_of(tried.write("try", work))).failure()
    assert isinstance(failure, StorageFailed)
    assert (failure.code, failure.transient) == ("22012", False)
    assert await value_of(tried.read("count", rows)) == 0


async def test_a_message_id_that_is_used_twice_stores_nothing_of_the_turn(postgres_server: Postgres) -> None:
    chat = await Chat(SqlConversations(open_database(postgres_server.new_url()).unwrap())).start()
    first = await chat.add_turn("why?", "because")
    again = evolve(new_turn("and?"), messages=first.messages[:1])
    result = await result_of(chat.store.begin_turn(chat.id, chat.owner, await chat.version(), again))
    assert result.failure() == DUPLICATE_MESSAGE_ID
    assert texts(await chat.read()) == ["why?", "because"]
    await chat.store.aclose()


async def test_rows_are_streamed_from_a_transaction_that_begins_with_them(tried: Database) -> None:
    kinds = list[type[object]]()

    def work(connection: Connection) -> Result[int, LLMError]:
        query = text("SELECT generate_series(1, 5000)")
        found = connection.execute(query, execution_options={"yield_per": 100})
        kinds.append(type(found.cursor))
        return Success(sum(1 for _ in found))

    assert await value_of(tried.read("stream", work)) == 5000
    assert kinds == [ServerCursor]


async def test_a_transaction_of_several_statements_reads_one_moment(tried: Database, postgres_server: Postgres) -> None:
    def work(connection: Connection) -> Result[tuple[int, int], LLMError]:
        before = rows(connection).unwrap()
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        postgres_server.execute("INSERT INTO tries VALUES (1)", name)
        connection.execute(text("SELECT 1"), execution_options=ALONE)  # and belongs to it
        return Success((before, rows(connection).unwrap()))

    assert await value_of(tried.read("twice", work)) == (0, 0)


async def test_fault_288_a_turn_waits_for_a_lock_for_a_bounded_time(
    postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOCK_WAIT_S", 0.1)
    monkeypatch.setattr(database, "PAUSES_S", ())
    url = postgres_server.new_url()
    chat = await Chat(SqlConversations(open_database(url).unwrap())).start()
    for lock in ("SELECT 1 FROM llm_conversations FOR UPDATE", "LOCK TABLE llm_messages IN EXCLUSIVE MODE"):
        with psycopg.connect(url) as other:
            other.execute(lock.encode())
            failure = (await result_of(chat.store.begin_turn(chat.id, chat.owner, 0, new_turn("why?")))).failure()
        assert isinstance(failure, StorageFailed)
        assert (failure.code, failure.transient) == ("55P03", True)
    assert (await chat.read()).turns == ()
    await chat.store.aclose()


async def test_fault_289_a_transaction_that_has_ended_occupies_no_connection_of_a_pooler(
    postgres_server: Postgres,
) -> None:
    name = postgres_server.new_url().rpartition("/")[2]
    with pooled(postgres_server, name) as url:
        async with talking(url) as env:
            ids = [(await run(start_conversation(), env)).unwrap().id for _ in range(8)]

            async def talk(conversation: str) -> None:
                for number in range(4):
                    (await run(converse(conversation, f"{number}?"), env)).unwrap()

            async with anyio.create_task_group() as group:
                for each in ids:
                    group.start_soon(talk, each)
            await anyio.sleep(1.5)  # the last rows of the ledger are written
            assert busy_connections(url) == 0


def busy_connections(url: str) -> int:
    """Return how many connections of the server the pooler has given to clients."""
    with psycopg.connect(url.rpartition("/")[0] + "/pgbouncer", autocommit=True) as admin:
        pools = admin.cursor(row_factory=dict_row).execute("SHOW POOLS").fetchall()
    return sum(int(pool["sv_active"]) for pool in pools if pool["database"] != "pgbouncer")
