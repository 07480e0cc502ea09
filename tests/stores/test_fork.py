"""Stores that are used before a fork, as by ``gunicorn --preload``: each child process opens its own connections."""

import os
import traceback
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path

import anyio
import pytest

from llm_effects.config.services import StorageConfig
from llm_effects.effects.env import Cache, wall_clock
from llm_effects.manager import new_memory
from llm_effects.stores.cache.redis import open_redis
from llm_effects.stores.cache.sqlite import SqliteCache
from llm_effects.stores.open import Storage, open_storage
from llm_effects.testing.stored_chat import Chat, texts, value_of
from tests.fixtures.holds import hold
from tests.fixtures.ledger_rows import rows_of
from tests.fixtures.postgres_server import postgres_server
from tests.fixtures.redis_server import redis_server

__all__ = ["postgres_server", "redis_server"]

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # a fork is what is tested

CHILDREN = 4
"""How many processes are forked, each with more calls than a pool has threads."""

CALLS = 12


def forked(work: Callable[[int], Awaitable[None]], number: int) -> int:
    """Fork a process that does some work, and return its id; its exit status is 0 if the work succeeded."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        anyio.run(work, number)
        status = 0
    finally:
        if status:
            traceback.print_exc()
        os._exit(status)


def all_succeed(work: Callable[[int], Awaitable[None]]) -> bool:
    children = [forked(work, number) for number in range(CHILDREN)]
    return [os.waitpid(child, 0)[1] for child in children] == [0] * CHILDREN


@pytest.fixture(params=["sqlite", "postgres"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/talks.db" if sqlite else request.getfixturevalue("postgres_server").new_url()
    return open_storage(StorageConfig(url=url), new_memory()).unwrap()


def test_a_storage_is_opened_anew_in_each_child(storage: Storage) -> None:
    chat = Chat(storage.conversations, id="c", owner="ada")

    async def prepare() -> None:
        await chat.start()
        await chat.add_turn("why?", "because")
        async with anyio.create_task_group() as group:
            for _ in range(CALLS):
                group.start_soon(chat.read)
        storage.ledger.record(rows_of(1)[0])

    async def serve(number: int) -> None:
        mine = Chat(storage.conversations, id=f"c{number}", owner="ada")
        await mine.start()
        for _ in range(CALLS):
            assert texts(await chat.read()) == ["why?", "because"]
            await mine.add_turn("why?", "because")
        held = hold(f"h{number}", "0.1")
        await value_of(storage.ledger.reserve(held))
        await storage.ledger.commit(held, Decimal("0.1"))
        await storage.conversations.aclose()
        await storage.ledger.aclose()

    async def after() -> None:
        await chat.add_turn("more?", "no")
        assert len(await value_of(storage.conversations.page("ada", 10))) == CHILDREN + 1
        for number in range(CHILDREN):
            forks = Chat(storage.conversations, id=f"c{number}", owner="ada")
            assert len((await forks.read()).turns) == CALLS
        assert len(await value_of(storage.ledger.rows())) == 1
        await storage.ledger.aclose()
        await storage.conversations.aclose()

    anyio.run(prepare)
    assert all_succeed(serve)
    anyio.run(after)


@pytest.fixture(params=["sqlite", "redis"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Cache:
    if request.param == "sqlite":
        return SqliteCache(tmp_path / "cache.db", wall_clock)
    return open_redis(request.getfixturevalue("redis_server")).unwrap()


def test_a_cache_is_opened_anew_in_each_child(cache: Cache) -> None:
    async def put(number: int) -> None:
        async with anyio.create_task_group() as group:
            for call in range(CALLS):
                group.start_soon(lambda name=f"{number}.{call}": value_of(cache.put(name, b"{}", 60)))

    async def serve(number: int) -> None:
        for name in ("0.0", f"{number + 1}.0"):
            assert (await value_of(cache.get(name)) is None) == (name != "0.0")
        await put(number + 1)
        assert await value_of(cache.get(f"{number + 1}.0")) == b"{}"
        await cache.aclose()

    async def after() -> None:
        for number in range(CHILDREN + 1):
            assert await value_of(cache.get(f"{number}.{CALLS - 1}")) == b"{}"
        await cache.aclose()

    anyio.run(put, 0)
    assert all_succeed(serve)
    anyio.run(after)


def test_a_store_that_was_closed_stays_closed_in_a_child(storage: Storage) -> None:
    async def fails(_: int) -> None:
        result = await storage.conversations.page("ada", 1)
        assert result.failure()

    anyio.run(Chat(storage.conversations).start)
    anyio.run(storage.conversations.aclose)
    assert all_succeed(fails)
