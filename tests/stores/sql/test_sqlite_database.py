"""SQLite storages: permissions, files of other programs, migrations, full disks, locks and forged rows."""

# ruff: noqa: ASYNC221, ASYNC240 - the files are small, and nothing else runs

import os
import pickle
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import anyio
import pytest
from returns.result import Result, Success
from sqlalchemy import Connection, text

from llm_effects.effects.effect import result_of
from llm_effects.stores.conversations import sql as conversations_sql
from llm_effects.stores.conversations.sql import SqlConversations
from llm_effects.stores.sql.database import Database, file_database, sqlite_engines
from llm_effects.stores.sql.tables import CONVERSATIONS, MIGRATIONS, Migration, migrate
from llm_effects.testing.conversation_checks import CONVERSATION_CHECKS
from llm_effects.testing.stored_chat import Chat, new_turn, texts, value_of
from llm_effects.values.conversations import UNREADABLE, History, TurnState
from llm_effects.values.errors import ConfigurationError, LLMError, StorageFailed
from tests.fixtures.futures import run_in
from tests.fixtures.sqlite_files import as_unprivileged_user, execute, shared_folder

__all__ = ["shared_folder"]

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "conversations.db"


def at(path: Path, lock_wait_seconds: float = 5.0) -> SqlConversations:
    return SqlConversations(file_database(path, lock_wait_seconds=lock_wait_seconds))


async def filled(path: Path) -> Chat:
    """Create a file with one whole turn."""
    chat = await Chat(at(path), id="c", owner="alice").start()
    await chat.add_turn("why?", "because")
    await chat.store.aclose()
    return chat


def again(chat: Chat, path: Path, lock_wait_seconds: float = 5.0) -> Chat:
    return Chat(at(path, lock_wait_seconds), id=chat.id, owner=chat.owner)


async def reading_fails(path: Path) -> LLMError:
    """Return the failure of reading and of writing, which are alike."""
    chat = Chat(at(path), id="c", owner="alice")
    failures = [
        (await result_of(future)).failure()
        for future in (chat.store.load("c", "alice"), chat.store.begin_turn("c", "alice", 2, new_turn("more")))
    ]
    await chat.store.aclose()
    assert failures[0].tag == failures[1].tag
    return failures[0]


# The file.


async def test_fault_133_only_the_owner_may_read_the_file(path: Path) -> None:
    chat = await Chat(at(path)).start()
    files = list(path.parent.iterdir())
    assert len(files) == 3
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    await chat.store.aclose()
    path.chmod(0o644)
    chat = again(chat, path)
    await chat.read()
    assert path.stat().st_mode & 0o777 == 0o600
    await chat.store.aclose()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


async def test_opening_creates_no_file_and_closing_leaves_no_thread(path: Path) -> None:
    before = set(threading.enumerate())
    store = at(path)
    assert not path.exists()
    await Chat(store).start()
    await store.aclose()
    await store.aclose()
    assert not {each for each in set(threading.enumerate()) - before if each.name.startswith("llm-effects")}
    failure = (await result_of(store.load("c", None))).failure()
    assert isinstance(failure, StorageFailed)
    assert not failure.transient


async def test_fault_122_each_commit_reaches_the_disk(path: Path) -> None:
    database = file_database(path)

    def settings(connection: Connection) -> Success[tuple[object, ...]]:
        names = ("synchronous", "journal_mode", "foreign_keys")
        return Success(tuple(connection.execute(text(f"PRAGMA {name}")).scalar() for name in names))

    full = 2
    assert await value_of(database.write("look", settings)) == (full, "wal", 1)
    assert await value_of(database.read("look", settings)) == (full, "wal", 1)
    await database.aclose()


@pytest.mark.parametrize(
    "statements",
    [
        ("CREATE TABLE mine (text)", "INSERT INTO mine VALUES ('dear')"),
        ("PRAGMA application_id = 1",),
        ("CREATE TABLE llm_conversations (id)",),
    ],
)
async def test_the_file_of_another_program_is_refused(path: Path, statements: tuple[str, ...]) -> None:
    execute(path, *statements)
    before = path.read_bytes()
    failure = await reading_fails(path)
    assert isinstance(failure, ConfigurationError)
    assert "another program" in failure.message
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"no database, but long enough to look like one\n" * 99, pickle.dumps({"a": 1})])
async def test_a_file_that_is_no_database_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    failure = await reading_fails(path)
    assert isinstance(failure, ConfigurationError)
    assert "is not a SQLite database" in failure.message
    assert path.read_bytes() == content


async def test_a_file_that_is_moved_while_open_fails_and_is_not_recreated(path: Path) -> None:
    chat = await Chat(at(path)).start()
    path.rename(path.with_name("moved"))
    failure = (await result_of(chat.store.load(chat.id, chat.owner))).failure()
    assert isinstance(failure, StorageFailed)
    assert "No such file" in failure.message
    assert not path.exists()
    path.write_bytes(b"")
    failure = (await result_of(chat.store.begin_turn(chat.id, chat.owner, 0, new_turn("why?")))).failure()
    assert isinstance(failure, StorageFailed)
    assert "replaced while it was open" in failure.message
    path.unlink()
    path.with_name("moved").rename(path)
    await chat.add_turn("why?", "because")
    await chat.store.aclose()


# Migrations.


async def test_fault_127_a_newer_file_is_refused_and_not_changed(path: Path) -> None:
    await filled(path)
    execute(path, f"INSERT INTO llm_migrations VALUES ({len(MIGRATIONS) + 1}, 'tomorrow', 'x')")
    before = path.read_bytes()
    failure = await reading_fails(path)
    assert isinstance(failure, ConfigurationError)
    assert "newer version" in failure.message
    assert path.read_bytes() == before


async def test_fault_127_a_file_with_other_migrations_is_refused(path: Path) -> None:
    await filled(path)
    execute(path, "UPDATE llm_migrations SET name = 'theirs' WHERE number = 1")
    failure = await reading_fails(path)
    assert isinstance(failure, ConfigurationError)
    assert "does not know" in failure.message


async def test_fault_127_a_failed_migration_is_rolled_back(path: Path) -> None:
    broken = Migration("broken", ("CREATE TABLE half (id)", "CREATE TABLE half (id)"))
    with closing(sqlite3.connect(path)):
        engines = sqlite_engines(path)
        with pytest.raises(Exception, match="half already exists"):
            migrate(engines.reading, engines.writing, (*MIGRATIONS, broken))
        engines.dispose()
    assert execute(path, "SELECT count(*) FROM sqlite_schema WHERE name = 'half'") == 0
    assert execute(path, "SELECT count(*) FROM llm_migrations") == len(MIGRATIONS)
    await filled(path)


@pytest.mark.parametrize("version", range(len(MIGRATIONS) + 1))
async def test_fault_127_a_file_of_each_earlier_version_is_migrated(path: Path, version: int) -> None:
    engines = sqlite_engines(path)
    migrate(engines.reading, engines.writing, MIGRATIONS[:version])
    engines.dispose()
    store = at(path)
    for check in CONVERSATION_CHECKS[:3]:
        await check(store)
    await store.aclose()
    assert execute(path, "SELECT count(*) FROM llm_migrations") == len(MIGRATIONS)


def test_the_migrated_tables_have_the_columns_of_the_queries(path: Path) -> None:
    engines = sqlite_engines(path)
    migrate(engines.reading, engines.writing, MIGRATIONS)
    engines.dispose()
    with closing(sqlite3.connect(path)) as file:
        for table in CONVERSATIONS.metadata.tables.values():
            columns = [row[1] for row in file.execute(f"PRAGMA table_info({table.name})")]
            assert columns == [column.name for column in table.columns]


# Files that cannot be written.


async def test_fault_126_a_read_only_file_is_read_but_not_written(shared_folder: Path) -> None:
    path = shared_folder / "conversations.db"
    chat = await filled(path)
    path.chmod(0o400)
    with as_unprivileged_user(shared_folder):
        chat = again(chat, path)
        assert texts(await chat.read()) == ["why?", "because"]
        failure = (await result_of(chat.store.begin_turn(chat.id, chat.owner, 2, new_turn("more")))).failure()
        assert isinstance(failure, StorageFailed)
        assert "read-only" in failure.message
        await chat.store.aclose()


async def test_fault_126_an_unreadable_file_fails(shared_folder: Path) -> None:
    path = shared_folder / "conversations.db"
    await filled(path)
    path.chmod(0)
    with as_unprivileged_user(shared_folder):
        failure = await reading_fails(path)
        assert isinstance(failure, StorageFailed)
        assert "cannot be opened" in failure.message


async def test_fault_126_a_full_disk_fails_writes_and_stores_no_part(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "none", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted here: that takes root")
    try:
        chat = await Chat(at(tmp_path / "conversations.db")).start()
        turn = await chat.add_turn("why?", "because")
        for _ in range(2):
            future = chat.store.begin_turn(chat.id, chat.owner, 2, new_turn("x" * 700_000))
            failure = (await result_of(future)).failure()
            assert isinstance(failure, StorageFailed)
            assert "no room left" in failure.message
            assert "xxx" not in repr(failure)
        assert (await chat.read()).turns == (turn,)
        await chat.add_turn("again?", "yes")
        await chat.store.aclose()
        assert execute(tmp_path / "conversations.db", "PRAGMA integrity_check") == "ok"
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


async def test_fault_126_a_locked_file_is_read_and_writes_fail_in_time(path: Path) -> None:
    chat = again(await filled(path), path, lock_wait_seconds=0.05)
    await chat.read()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert texts(await chat.read()) == ["why?", "because"]
        failure = (await result_of(chat.store.begin_turn(chat.id, chat.owner, 2, new_turn("more")))).failure()
        assert isinstance(failure, StorageFailed)
        assert failure.transient
        assert "locked" in failure.message
        other.execute("ROLLBACK")
    await chat.add_turn("more", "yes")
    await chat.store.aclose()


# Rows.

FORGED = (
    '{"py/object": "os.system"}',
    "!!python/object/apply:os.system [id]",
    '{"lc": 1, "type": "constructor", "id": ["os", "system"], "kwargs": {}}',
    "[" * 100_000,
    '{"id": 1, "message": {}, "at": "now"}',
    "null",
    "",
)


async def with_forged(path: Path, table: str, document: str | bytes) -> Result[History | None, LLMError]:
    """Forge all documents of a table, and load the conversation."""
    with closing(sqlite3.connect(path)) as file, file:
        file.execute(f"UPDATE {table} SET document = ?", (document,))
    store = at(path)
    loaded = await result_of(store.load("c", "alice"))
    await store.aclose()
    return loaded


@pytest.mark.parametrize("document", [*FORGED, pickle.dumps(print)])
async def test_fault_130_a_forged_conversation_is_a_failure_and_never_runs(path: Path, document: str | bytes) -> None:
    await filled(path)
    failure = (await with_forged(path, "llm_conversations", document)).failure()
    assert isinstance(failure, StorageFailed)
    assert "holds no" in failure.message


@pytest.mark.parametrize("table", ["llm_turns", "llm_messages"])
@pytest.mark.parametrize("document", [*FORGED, pickle.dumps(print)])
async def test_fault_130_a_forged_turn_is_marked_and_never_runs(path: Path, table: str, document: str | bytes) -> None:
    await filled(path)
    history = (await with_forged(path, table, document)).unwrap()
    assert history is not None
    assert [(turn.error, turn.settled) for turn in history.turns] == [(UNREADABLE, False)]


async def test_fault_123_a_failed_turn_that_is_repeated_is_stored_once(path: Path) -> None:
    chat = await Chat(at(path)).start()
    turn = new_turn("why?", turn_id="t", writer="first")
    await chat.begin(turn)
    await chat.finish("t", state=TurnState.FAILED)
    await chat.store.aclose()
    chat = again(chat, path)
    await chat.begin(new_turn("why?", turn_id="t", writer="second"))
    await chat.finish("t", "because")
    assert texts(await chat.read()) == ["why?", "because"]
    await chat.store.aclose()


# Growth.


async def steps_of(database: Database, chat: Chat) -> list[int]:
    """Return how many steps SQLite takes to load the newest turns, and to begin a turn."""
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    def counted(work: Callable[[Connection], object]) -> Callable[[Connection], Result[int, LLMError]]:
        def run(connection: Connection) -> Result[int, LLMError]:
            nonlocal steps
            steps = 0
            driver = connection.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            driver.set_progress_handler(step, 1)
            work(connection)
            driver.set_progress_handler(None, 0)
            return Success(steps)

        return run

    version = await chat.version()
    load = counted(partial(conversations_sql.load, conversation_id=chat.id, owner=chat.owner, newest=3))
    more = {"expected": version, "turn": new_turn("more")}
    begin = counted(partial(conversations_sql.begin_turn, conversation_id=chat.id, owner=chat.owner, **more))
    return [await value_of(database.read("load", load)), await value_of(database.write("begin", begin))]


async def test_a_turn_costs_the_same_in_long_conversations_and_large_stores(path: Path) -> None:
    store = at(path)
    short, long = await Chat(store).start(), await Chat(store).start()
    await value_of(store.append(short.id, short.owner, 0, tuple(new_turn("x") for _ in range(5))))
    before = await steps_of(store.database, short)
    await value_of(store.append(long.id, long.owner, 0, tuple(new_turn("x") for _ in range(3_000))))
    await value_of(store.begin_turn(short.id, short.owner, await short.version(), new_turn("x")))
    for chat in (long, short):
        loading, beginning = await steps_of(store.database, chat)
        assert loading == pytest.approx(before[0], rel=0.2)
        assert beginning < 2 * before[1]  # the index of words merges a few of its segments, whatever its size
    await store.aclose()


# Event loops.


def test_consecutive_event_loops_share_a_store(path: Path) -> None:
    chat = Chat(at(path))
    run_in("asyncio", chat.start)
    run_in("trio", lambda: chat.add_turn("one", "1"))
    assert texts(run_in("asyncio", chat.read)) == ["one", "1"]
    run_in("trio", chat.store.aclose)


async def test_a_cancelled_caller_leaves_the_store_usable(path: Path) -> None:
    chat = await Chat(at(path)).start()
    for number in range(10):
        async with anyio.create_task_group() as tasks:
            turn = new_turn(str(number), turn_id=str(number))
            tasks.start_soon(chat.begin, turn)
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    await chat.add_turn("last", "yes")
    history = await chat.read()
    assert [turn.number for turn in history.turns] == list(range(1, len(history.turns) + 1))
    assert texts(history)[-2:] == ["last", "yes"]
    await chat.store.aclose()
