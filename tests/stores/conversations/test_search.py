"""Search in databases: by an index, also of what earlier versions stored, and whatever a row holds."""

import sqlite3
from collections.abc import AsyncIterator, Generator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from attrs import evolve
from sqlalchemy import Connection, select, text
from sqlalchemy.engine import make_url

from llm_effects import LLM, AsyncLLM, Message, run, scripted_env
from llm_effects.config import StorageConfig
from llm_effects.conversations import (
    append_messages,
    erase_owner,
    list_conversations,
    search_conversations,
    start_conversation,
)
from llm_effects.effects.env import Conversations
from llm_effects.manager import new_memory
from llm_effects.stores.open import open_storage
from llm_effects.stores.sql import searching, tables
from llm_effects.stores.sql.database import Engines, postgres_engines, sqlite_engines
from llm_effects.stores.sql.searching import explain_search, metadata_filter
from llm_effects.stores.sql.tables import CONVERSATIONS, MIGRATIONS, migrate
from llm_effects.testing.lifecycle_checks import LIFECYCLE_CHECKS
from llm_effects.testing.stored_chat import Chat, value_of
from tests.fixtures.postgres_server import postgres_server
from tests.stores.test_checks import Around

__all__ = ["postgres_server"]

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        server: str = request.getfixturevalue("postgres_server").new_url()
        return server
    return f"sqlite:///{tmp_path}/talks.db"


@pytest.fixture
async def store(url: str) -> AsyncIterator[Conversations]:
    opened = open_storage(StorageConfig(url=url), new_memory()).unwrap()
    yield opened.conversations
    await opened.conversations.aclose()


def engines_of(url: str) -> Engines:
    if url.startswith("sqlite"):
        return sqlite_engines(Path(url.removeprefix("sqlite:///")))
    return postgres_engines(make_url(url).set(drivername="postgresql+psycopg"))


@contextmanager
def connected(url: str) -> Generator[Connection]:
    engines = engines_of(url)
    try:
        with engines.writing.begin() as connection:
            yield connection
    finally:
        engines.dispose()


async def found(store: Conversations, owner: str, words: str) -> list[str]:
    env = evolve(scripted_env(), conversations=store)
    hits = (await run(search_conversations(words, owner=owner), env)).unwrap()
    return [hit.message.message.text for hit in hits]


async def test_fault_270_a_search_uses_the_index_of_words(url: str, store: Conversations) -> None:
    chat = await Chat(store).start()
    for number in range(200):
        await chat.add_turn(f"question {number}", f"answer {number}")
    with connected(url) as connection:
        if url.startswith("postgres"):
            connection.execute(text("ANALYZE"))
            connection.execute(text("SET LOCAL enable_seqscan = off"))  # of so few rows it would read them all
        plan = explain_search(connection, str(chat.owner), ["question", "7"])
    assert "llm_messages_by_word" in plan or "VIRTUAL TABLE INDEX" in plan, plan
    assert await found(store, str(chat.owner), "question 7") == ["question 7"]


async def test_fault_279_a_list_by_metadata_uses_an_index(url: str, store: Conversations) -> None:
    env, metadata = evolve(scripted_env(), conversations=store), {"team": "checkout", "stage": "prod"}
    for number in range(60):
        odd = {"team": "checkout", "stage": "prod" if number % 3 else "test", "n": str(number)}
        await run(start_conversation(f"c{number:02}", owner="alice", metadata=odd if number % 2 else {}), env)
    with connected(url) as connection:
        if url.startswith("postgres"):
            connection.execute(text("ANALYZE"))
            connection.execute(text("SET LOCAL enable_seqscan = off"))  # of so few rows it would read them all
            connection.execute(text("SET LOCAL enable_indexscan = off"))
        explain = "EXPLAIN " if url.startswith("postgres") else "EXPLAIN QUERY PLAN "
        condition = metadata_filter(connection, "alice", metadata)
        query = (
            select(CONVERSATIONS.c.id).where(CONVERSATIONS.c.owner == "alice", condition).order_by(CONVERSATIONS.c.id)
        )
        statement = query.compile(connection, compile_kwargs={"literal_binds": True})
        plan = "\n".join(map(str, connection.exec_driver_sql(f"{explain}{statement}".replace("%", "%%")).all()))
    if url.startswith("postgres"):
        assert "llm_conversations_by_metadata" in plan, plan
    else:
        assert "SEARCH llm_metadata USING PRIMARY KEY (owner=? AND name=? AND value=?)" in plan, plan
        assert "(owner=? AND id=?)" in plan, plan
    listed = (await run(list_conversations(owner="alice", metadata=metadata, limit=5, after="c05"), env)).unwrap()
    assert [each.id for each in listed] == ["c07", "c11", "c13", "c17", "c19"]
    await run(erase_owner("alice"), env)
    if url.startswith("sqlite"):
        with connected(url) as connection:
            assert connection.execute(text("SELECT count(*) FROM llm_metadata")).scalar_one() == 0


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
async def test_fault_270_what_an_earlier_version_stored_is_found(url: str, version: int) -> None:
    engines = engines_of(url)
    migrate(engines.reading, engines.writing, MIGRATIONS[:version])
    engines.dispose()
    document = (
        '{"id":"m","message":{"role":"user","parts":[{"text":"Why is p99 up?\\u0000","type":"Text"}]},'
        '"at":"2026-01-01T00:00:00+00:00"}'
    )
    conversation = (
        '{"id":"c","created_at":"2026-01-01T00:00:00+00:00","updated_at":"2026-01-01T00:00:00+00:00",'
        '"owner":"alice","metadata":{"team":"a"}}'
    )
    turn = '{"id":"t","begun_at":"2026-01-01T00:00:00+00:00","lease_until":"2026-01-01T00:00:00+00:00"}'
    with connected(url) as connection:
        for statement, values in (
            (
                """INSERT INTO llm_conversations (owner, id, version, turns, updated_at, document)
                VALUES ('alice', 'c', 1, 1, '2026-01-01T00:00:00+00:00', :d)""",
                {"d": conversation},
            ),
            ("INSERT INTO llm_turns SELECT key, 1, 't', :d FROM llm_conversations", {"d": turn}),
            ("INSERT INTO llm_messages SELECT key, 1, 0, 'm', 0, :d FROM llm_conversations", {"d": document}),
            ("INSERT INTO llm_messages SELECT key, 1, 1, 'n', 0, :d FROM llm_conversations", {"d": "{not ours"}),
            ("INSERT INTO llm_messages SELECT key, 1, 2, 'o', 0, :d FROM llm_conversations", {"d": "[]"}),
        ):
            connection.execute(text(statement), values)
        connection.execute(
            text("INSERT INTO llm_journal (owner, run, key, intent) VALUES ('alice', 'r', 'k', :i)"), {"i": b"x"}
        )
    store = open_storage(StorageConfig(url=url), new_memory()).unwrap().conversations
    assert await found(store, "alice", "p99") == ["Why is p99 up?\0"]
    env = evolve(scripted_env(), conversations=store)
    listed = (await run(list_conversations(owner="alice", metadata={"team": "a"}), env)).unwrap()
    assert [each.id for each in listed] == ["c"]
    assert len(await value_of(store.journal("r", "alice"))) == 1
    await store.aclose()


async def test_an_unreadable_row_harms_neither_a_search_nor_a_list(url: str, store: Conversations) -> None:
    chat = await Chat(store).start()
    await value_of(store.start(evolve(chat.initial, id="tagged", metadata={"team": "a"})))
    await chat.add_turn("why is the disk full", "the disk is full of logs")
    with connected(url) as connection:
        connection.execute(text("UPDATE llm_messages SET document = '{' WHERE turn = 1 AND place = 0"))
        connection.execute(text("UPDATE llm_conversations SET document = '{' WHERE id = :id"), {"id": chat.id})
    assert await found(store, str(chat.owner), "disk full") == ["the disk is full of logs"]
    env = evolve(scripted_env(), conversations=store)
    listed = (await run(list_conversations(owner=chat.owner, metadata={"team": "a"}), env)).unwrap()
    assert [each.id for each in listed] == ["tagged"]


async def test_a_long_message_is_stored_and_its_beginning_is_found(store: Conversations) -> None:
    chat = await Chat(store).start()
    many = " ".join(f"word{number}" for number in range(150_000))
    await chat.add_turn(f"needle {many}", "yes")
    assert len(await found(store, str(chat.owner), "needle word5000")) == 1
    assert await found(store, str(chat.owner), "word149999") == []


@pytest.fixture
def unindexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of a file, for a SQLite that was built without FTS5."""
    for module in (searching, tables):
        monkeypatch.setattr(module, "has_fts5", lambda connection: connection.dialect.name == "postgresql")
    return f"sqlite:///{tmp_path}/unindexed.db"


async def test_fault_286_a_sqlite_without_fts5_searches_without_an_index(
    unindexed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_storage(StorageConfig(url=unindexed), new_memory()).unwrap().conversations
    for check in LIFECYCLE_CHECKS:
        await check(opened)
    chat = await Chat(opened).start()
    for number in range(50):
        await chat.add_turn(f"\u00c4rger mit Platte {number}", "50% war_voll")
    texts = [f"\u00c4rger mit Platte {number}" for number in reversed(range(20, 50))]
    assert await found(opened, str(chat.owner), "platte \u00e4rger") == texts[:20]
    env = evolve(scripted_env(), conversations=opened)
    first = (await run(search_conversations("voll 50", owner=chat.owner, limit=3), env)).unwrap()
    rest = (await run(search_conversations("voll 50", owner=chat.owner, limit=2, after=first[-1].cursor), env)).unwrap()
    assert [hit.turn for hit in (*first, *rest)] == [50, 49, 48, 47, 46]
    await opened.aclose()
    monkeypatch.undo()
    with_fts5 = open_storage(StorageConfig(url=unindexed), new_memory()).unwrap().conversations
    assert await found(with_fts5, str(chat.owner), "platte 7") == ["\u00c4rger mit Platte 7"]
    await with_fts5.aclose()


async def test_fault_286_a_file_with_an_index_is_read_without_fts5_and_says_why_it_is_not_written(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/unindexed.db"
    indexed = open_storage(StorageConfig(url=url), new_memory()).unwrap().conversations
    chat = await Chat(indexed).start()
    await chat.add_turn("disk full?", "yes")
    await indexed.aclose()
    with closing(sqlite3.connect(tmp_path / "unindexed.db")) as file, file:
        file.execute("PRAGMA writable_schema = ON")
        file.execute(
            "UPDATE sqlite_schema SET sql = replace(sql, 'fts5(', 'fts5_is_missing(') WHERE name = 'llm_search'"
        )
    opened = open_storage(StorageConfig(url=request.getfixturevalue("unindexed")), new_memory()).unwrap().conversations
    assert await found(opened, str(chat.owner), "full") == ["disk full?"]
    env = evolve(scripted_env(), conversations=opened)
    error = (await run(append_messages(chat.id, (Message("user", "why?"),), owner=chat.owner), env)).failure()
    assert error.tag == "ConfigurationError"
    assert "has no FTS5" in str(error)
    await opened.aclose()


async def test_a_store_without_a_search_says_so() -> None:
    class Plain(Around):
        def __getattr__(self, name: str) -> object:
            if name in {"search", "page_by_metadata"}:
                raise AttributeError(name)
            return super().__getattr__(name)

    env = evolve(scripted_env(), conversations=Plain(scripted_env().conversations))
    for effect in (search_conversations("why"), list_conversations(metadata={"a": "b"})):
        error = (await run(effect, env)).failure()
        assert error.tag == "ConfigurationError"


async def test_the_plain_faces_search() -> None:
    async with AsyncLLM(scripted_env()) as llm:
        await llm.start_conversation("c", owner="alice", metadata={"team": "a"})
        await llm.run(append_messages("c", (Message("user", "Why?"),), owner="alice"))
        assert [each.conversation_id for each in await llm.search_conversations("why", owner="alice")] == ["c"]
        assert len(await llm.list_conversations(owner="alice", metadata={"team": "a"})) == 1


def test_the_blocking_face_searches() -> None:
    with LLM(scripted_env()) as llm:
        llm.run(start_conversation("c", metadata={"team": "a"}))
        llm.run(append_messages("c", (Message("user", "Why?"),)))
        assert [each.turn for each in llm.search_conversations("why")] == [1]
        assert llm.list_conversations(metadata={"team": "b"}) == ()
