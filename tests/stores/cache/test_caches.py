"""The behaviour that every cache shares, beyond the public checks: memory, SQLite and Redis."""

import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import final
from uuid import uuid4

import pytest
from attrs import define, frozen
from redis import Redis
from returns.pipeline import is_successful
from returns.unsafe import unsafe_perform_io

from llm_effects.effects.env import Cache, wall_clock
from llm_effects.stores.cache.memory import MemoryCache
from llm_effects.stores.cache.redis import open_redis
from llm_effects.stores.cache.sqlite import SqliteCache
from llm_effects.testing.store_checks import CACHE_CHECKS, CacheCheck
from tests.fixtures.cache_worker import entry_of, key_of
from tests.fixtures.futures import failure_of, given_by, run_in
from tests.fixtures.redis_server import redis_server

__all__ = ["redis_server"]

ONE, TWO = key_of("one"), key_of("two")


@final
@define
class Clock:
    """A clock that a test moves."""

    seconds: float = 1_000.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds


@final
@frozen
class Store:
    """A cache under test: how to create it, and how to let time pass for it."""

    make: Callable[[], Cache]
    wait: Callable[[float], None]


def memory_store() -> Store:
    clock = Clock()

    def wait(seconds: float) -> None:
        clock.seconds += seconds

    return Store(lambda: MemoryCache(clock=clock.monotonic), wait)


def sqlite_store(folder: Path) -> Store:
    clock = Clock()

    def wait(seconds: float) -> None:
        clock.seconds += seconds

    return Store(lambda: SqliteCache(folder / "cache.db", clock.now, lock_wait_seconds=5, timeout_seconds=10), wait)


def redis_store(url: str) -> Store:
    prefix = f"test:{uuid4().hex}:"

    def wait(seconds: float) -> None:
        """Shorten the time to live of every entry, as if time had passed."""
        with Redis.from_url(url) as client:
            for name in client.scan_iter(match=f"{prefix}*"):
                left = client.pttl(name)
                if left >= 0:
                    client.pexpire(name, max(0, left - round(seconds * 1000)))

    return Store(lambda: open_redis(url, prefix=prefix, timeout_seconds=10).unwrap(), wait)


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "redis":
        yield redis_store(request.getfixturevalue("redis_server"))
    else:
        yield memory_store() if request.param == "memory" else sqlite_store(tmp_path)


# The public checks, in real time.


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def cache(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cache]:
    stores: dict[str, Callable[[], Cache]] = {
        "memory": MemoryCache,
        "sqlite": lambda: SqliteCache(tmp_path / "cache.db", wall_clock, lock_wait_seconds=5, timeout_seconds=30),
        "redis": lambda: open_redis(url, timeout_seconds=30).unwrap(),
    }
    url: str = request.getfixturevalue("redis_server") if request.param == "redis" else ""
    store = stores[request.param]()
    yield store
    await store.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("check", CACHE_CHECKS, ids=lambda check: check.__name__)
async def test_the_cache_passes_the_check(cache: Cache, check: CacheCheck) -> None:
    await check(cache)


# All else, with a clock that the test moves.


@pytest.mark.anyio
async def test_a_second_put_replaces_the_first(store: Store) -> None:
    cache = store.make()
    await given_by(cache.put(ONE, b"old", 10))
    await given_by(cache.put(ONE, b"new", 100))
    store.wait(50)
    assert await given_by(cache.get(ONE)) == b"new"
    await cache.aclose()


@pytest.mark.anyio
async def test_an_entry_expires_after_its_time_to_live(store: Store) -> None:
    cache = store.make()
    await given_by(cache.put(ONE, b"1", 60))
    await given_by(cache.put(TWO, b"2", None))
    store.wait(30)
    assert await given_by(cache.get(ONE)) == b"1"
    store.wait(30)
    assert await given_by(cache.get(ONE)) is None
    store.wait(10_000_000)
    assert await given_by(cache.get(TWO)) == b"2"
    await cache.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("nothing", [0, -1, math.nan])
async def test_fault_115_no_time_to_live_stores_nothing_and_deletes_the_old_entry(store: Store, nothing: float) -> None:
    cache = store.make()
    await given_by(cache.put(ONE, b"old", 60))
    await given_by(cache.put(ONE, b"new", nothing))
    assert await given_by(cache.get(ONE)) is None
    await cache.aclose()


@pytest.mark.anyio
async def test_an_infinite_time_to_live_is_for_ever(store: Store) -> None:
    cache = store.make()
    await given_by(cache.put(ONE, b"1", math.inf))
    assert await given_by(cache.get(ONE)) == b"1"
    await cache.aclose()


@pytest.mark.anyio
async def test_delete_returns_whether_there_was_an_entry(store: Store) -> None:
    cache = store.make()
    await given_by(cache.put(ONE, b"1", 60))
    assert await given_by(cache.delete(ONE)) is True
    assert await given_by(cache.delete(ONE)) is False
    await given_by(cache.put(TWO, b"2", 60))
    store.wait(60)
    assert await given_by(cache.delete(TWO)) is False
    await cache.aclose()


@pytest.mark.anyio
async def test_clear_deletes_all_entries(store: Store) -> None:
    cache = store.make()
    for number in range(20):
        await given_by(cache.put(key_of(str(number)), b"x", 60))
    assert await given_by(cache.clear()) == 20
    assert await given_by(cache.get(key_of("3"))) is None
    assert await given_by(cache.clear()) == 0
    await cache.aclose()


@pytest.mark.anyio
async def test_stats_count_hits_and_misses(store: Store) -> None:
    cache = store.make()
    await given_by(cache.put(ONE, b"123", 60))
    await given_by(cache.put(ONE, b"12345", 60))
    await given_by(cache.put(TWO, b"12", 60))
    for key in (ONE, TWO, ONE, key_of("other")):
        await given_by(cache.get(key))
    stats = await given_by(cache.stats())
    assert (stats.hits, stats.misses, stats.evictions) == (3, 1, 0)
    assert (stats.entries, stats.bytes) in {(2, 7), (None, None)}
    await cache.aclose()


@pytest.mark.anyio
async def test_closing_twice_is_fine_and_leaves_no_thread(store: Store) -> None:
    before = set(threading.enumerate())
    cache = store.make()
    await given_by(cache.put(ONE, b"1", 60))
    await cache.aclose()
    await cache.aclose()
    assert not {each for each in set(threading.enumerate()) - before if each.name.startswith("llm-effects")}
    result = await cache.get(ONE)
    if is_successful(result):
        assert unsafe_perform_io(result.unwrap()) is None
    else:
        assert (await failure_of(cache.put(ONE, b"1", 60))).transient is False


def test_consecutive_event_loops_share_a_store(store: Store) -> None:
    cache = store.make()
    run_in("asyncio", lambda: given_by(cache.put(ONE, b"1", 60)))
    assert run_in("trio", lambda: given_by(cache.get(ONE))) == b"1"
    assert run_in("asyncio", lambda: given_by(cache.get(ONE))) == b"1"
    run_in("trio", cache.aclose)


def test_concurrent_event_loops_share_a_store(store: Store) -> None:
    cache = store.make()
    wrong: list[object] = []

    async def use(name: str) -> None:
        for number in range(30):
            key = key_of(f"{name} {number % 5}")
            await given_by(cache.put(key, entry_of(key), 60))
            if await given_by(cache.get(key)) != entry_of(key):
                wrong.append(key)

    backends = ["asyncio", "trio", "asyncio", "trio"]
    threads = [
        threading.Thread(target=run_in, args=(backend, lambda n=str(number): use(n)))
        for number, backend in enumerate(backends)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert run_in("asyncio", lambda: given_by(cache.stats())).hits == 4 * 30
    run_in("asyncio", cache.aclose)
