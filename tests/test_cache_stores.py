"""What every cache keeps its word on, wherever it keeps its entries; and the cache in memory exactly."""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import final
from uuid import uuid4

import anyio
import pytest
from attrs import define, frozen
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from returns.pipeline import is_successful
from returns.unsafe import unsafe_perform_io

from llm_effects.config.services import CacheConfig
from llm_effects.effects.env import Cache
from llm_effects.stores.cache.memory import MemoryCache
from llm_effects.stores.cache.redis import RedisCache, open_redis
from llm_effects.stores.cache.sqlite import SqliteCache
from llm_effects.stores.disabled import NoCache
from llm_effects.stores.open import open_cache
from llm_effects.values.records import CacheStats
from tests.fixtures.cache_worker import entry_of, key_of
from tests.fixtures.futures import failure_of, given_by, run_in
from tests.fixtures.redis_server import redis_server

__all__ = ["redis_server"]

ONE, TWO = key_of("one"), key_of("two")


@final
@define
class Clock:
    """Time that passes when it is told to."""

    seconds: float = 1_000.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds


@final
@frozen
class Store:
    """A store under test: how it is made, and how time passes for it."""

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
        """Take time away from every entry, as if it had passed."""
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


@pytest.mark.anyio
async def test_an_entry_is_given_as_it_was_put(store: Store) -> None:
    cache = store.make()
    entry = bytes(range(256)) * 100
    assert await given_by(cache.get(ONE)) is None
    await given_by(cache.put(ONE, entry, 60))
    await given_by(cache.put(TWO, b"", None))
    assert await given_by(cache.get(ONE)) == entry
    assert await given_by(cache.get(TWO)) == b""
    await cache.aclose()


@pytest.mark.anyio
async def test_a_second_put_takes_the_place_of_the_first(store: Store) -> None:
    cache = store.make()
    await given_by(cache.put(ONE, b"old", 10))
    await given_by(cache.put(ONE, b"new", 100))
    store.wait(50)
    assert await given_by(cache.get(ONE)) == b"new"
    await cache.aclose()


@pytest.mark.anyio
async def test_an_entry_lives_as_long_as_it_was_told(store: Store) -> None:
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
async def test_fault_115_no_time_to_live_keeps_nothing_also_not_what_was_there(store: Store, nothing: float) -> None:
    cache = store.make()
    await given_by(cache.put(ONE, b"old", 60))
    await given_by(cache.put(ONE, b"new", nothing))
    assert await given_by(cache.get(ONE)) is None
    await cache.aclose()


@pytest.mark.anyio
async def test_infinitely_long_is_for_ever(store: Store) -> None:
    cache = store.make()
    await given_by(cache.put(ONE, b"1", math.inf))
    assert await given_by(cache.get(ONE)) == b"1"
    await cache.aclose()


@pytest.mark.anyio
async def test_delete_says_whether_there_was_something(store: Store) -> None:
    cache = store.make()
    await given_by(cache.put(ONE, b"1", 60))
    assert await given_by(cache.delete(ONE)) is True
    assert await given_by(cache.delete(ONE)) is False
    await given_by(cache.put(TWO, b"2", 60))
    store.wait(60)
    assert await given_by(cache.delete(TWO)) is False
    await cache.aclose()


@pytest.mark.anyio
async def test_clear_drops_all(store: Store) -> None:
    cache = store.make()
    for number in range(20):
        await given_by(cache.put(key_of(str(number)), b"x", 60))
    assert await given_by(cache.clear()) == 20
    assert await given_by(cache.get(key_of("3"))) is None
    assert await given_by(cache.clear()) == 0
    await cache.aclose()


@pytest.mark.anyio
async def test_stats_count_what_was_asked_for(store: Store) -> None:
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
async def test_many_at_once(store: Store) -> None:
    cache = store.make()
    keys = [key_of(str(number)) for number in range(60)]
    wrong: list[str] = []

    async def use(key: str) -> None:
        await given_by(cache.put(key, entry_of(key), 60))
        if await given_by(cache.get(key)) != entry_of(key):
            wrong.append(key)

    async with anyio.create_task_group() as tasks:
        for key in keys:
            tasks.start_soon(use, key)
    assert not wrong
    await cache.aclose()


@pytest.mark.anyio
async def test_a_cancelled_caller_leaves_the_store_as_it_was(store: Store) -> None:
    cache = store.make()
    for _ in range(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(given_by, cache.put(ONE, b"1", 60))
            tasks.start_soon(given_by, cache.get(ONE))
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    assert await given_by(cache.get(ONE)) in {b"1", None}  # what had begun may still go on
    await given_by(cache.put(TWO, b"2", 60))
    assert await given_by(cache.get(TWO)) == b"2"
    await cache.aclose()


@pytest.mark.anyio
async def test_closing_twice_is_closing_and_leaves_no_thread(store: Store) -> None:
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


def test_event_loops_one_after_another_share_a_store(store: Store) -> None:
    cache = store.make()
    run_in("asyncio", lambda: given_by(cache.put(ONE, b"1", 60)))
    assert run_in("trio", lambda: given_by(cache.get(ONE))) == b"1"
    assert run_in("asyncio", lambda: given_by(cache.get(ONE))) == b"1"
    run_in("trio", cache.aclose)


def test_event_loops_at_once_share_a_store(store: Store) -> None:
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


# The cache in memory, against the plainest model of it.

PUTS = st.tuples(
    st.just("put"), st.sampled_from("abcdef"), st.integers(0, 12), st.sampled_from([None, 0, 0.5, 1, 2.5, 7])
)
STEPS = st.lists(
    st.one_of(
        PUTS,
        PUTS,
        st.tuples(st.just("get"), st.sampled_from("abcdef")),
        st.tuples(st.just("delete"), st.sampled_from("abcdef")),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 1.0, 3.25])),
    ),
    max_size=60,
)


@final
class Model:
    """Entries in the order of their use, looked through from end to end."""

    def __init__(self, entries: int, size: int) -> None:
        self.entries, self.size, self.time = entries, size, 0.0
        self.kept: OrderedDict[str, tuple[bytes, float]] = OrderedDict()

    def expire(self) -> None:
        self.kept = OrderedDict(each for each in self.kept.items() if self.time < each[1][1])

    def get(self, key: str) -> bytes | None:
        self.expire()
        if key not in self.kept:
            return None
        self.kept.move_to_end(key)
        return self.kept[key][0]

    def put(self, key: str, entry: bytes, ttl: float | None) -> None:
        self.expire()
        self.kept.pop(key, None)
        if ttl == 0 or len(entry) > self.size:
            return
        while len(self.kept) >= self.entries or self.weight() + len(entry) > self.size:
            self.kept.popitem(last=False)
        self.kept[key] = (entry, self.time + (math.inf if ttl is None else ttl))

    def weight(self) -> int:
        return sum(len(entry) for entry, _ in self.kept.values())


@given(entries=st.integers(1, 4), size=st.integers(1, 20), steps=STEPS)
def test_memory_is_exact_in_time_order_and_bounds(entries: int, size: int, steps: list[tuple[object, ...]]) -> None:
    clock, model = Clock(0.0), Model(entries, size)
    cache = MemoryCache(entries, size, clock.monotonic)

    async def run() -> None:
        for step in steps:
            match step:
                case ("put", str(key), int(length), int() | float() | None as ttl):
                    entry = key.encode() * length
                    model.put(key, entry, ttl)
                    await given_by(cache.put(key, entry, ttl))
                case ("get", str(key)):
                    assert await given_by(cache.get(key)) == model.get(key)
                case ("delete", str(key)):
                    model.expire()
                    assert await given_by(cache.delete(key)) is (model.kept.pop(key, None) is not None)
                case (_, float(seconds)):
                    model.time += seconds
                    clock.seconds += seconds
                case _:
                    pytest.fail(f"what is {step}?")
            model.expire()
            stats = await given_by(cache.stats())
            assert (stats.entries, stats.bytes) == (len(model.kept), model.weight())

    anyio.run(run)


@pytest.mark.anyio
async def test_memory_counts_only_what_had_to_go_early() -> None:
    clock = Clock()
    cache = MemoryCache(2, clock=clock.monotonic)
    await given_by(cache.put("old", b"1", 1))
    await given_by(cache.put("kept", b"2", 60))
    clock.seconds += 1
    await given_by(cache.put("new", b"3", 60))
    assert (await given_by(cache.stats())).evictions == 0
    await given_by(cache.put("newer", b"4", 60))
    assert (await given_by(cache.stats())).evictions == 1
    assert await given_by(cache.get("kept")) is None


# Which store a configuration names.


def now() -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("memory://", MemoryCache),
        ("memory", MemoryCache),
        ("sqlite:///relative.db", SqliteCache),
        ("sqlite:////tmp/absolute.db", SqliteCache),
        ("SQLITE:///~/home.db", SqliteCache),
        ("redis://localhost", RedisCache),
        ("redis://user:p%23w@[::1]:6380/2", RedisCache),
        ("rediss://localhost:6379/0?ssl_ca_certs=ca.pem", RedisCache),
    ],
)
def test_a_url_names_a_store(url: str, kind: type) -> None:
    assert isinstance(open_cache(CacheConfig(url=url), now).unwrap(), kind)


@pytest.mark.parametrize(
    "url",
    [
        "cache.db",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite://host/file.db",
        "sqlite:///~nobody-of-that-name/file.db",
        "sqlite:///a\0b",
        "memcached://localhost",
        "postgresql://user:hunter2@localhost/cache",
        "redis://:hunter2@localhost:port",
        "redis://:hun#ter2@localhost",
        "redis://:hunter2@localhost/cache",
        "redis://:hunter2@localhost?socket_timeout=9",
        "redis://:hunter2@[localhost",
        "rediss://:hunter2@localhost?db=first",
    ],
)
def test_any_other_url_is_a_problem_with_a_name_and_without_a_password(url: str) -> None:
    error = open_cache(CacheConfig(url=url), now).failure()
    assert error.message.startswith("cache.url: ")
    assert "hun" not in repr(error)


@pytest.mark.anyio
@pytest.mark.parametrize("config", [CacheConfig(enabled=False), CacheConfig(ttl_seconds=0)])
async def test_a_cache_that_is_switched_off_keeps_nothing(config: CacheConfig) -> None:
    cache = open_cache(config, now).unwrap()
    assert isinstance(cache, NoCache)
    await given_by(cache.put(ONE, b"1", 60))
    assert await given_by(cache.get(ONE)) is None
    assert await given_by(cache.delete(ONE)) is False
    assert await given_by(cache.clear()) == 0
    assert await given_by(cache.stats()) == CacheStats(entries=0, bytes=0)
    await cache.aclose()


def test_the_bound_of_the_configuration_is_the_bound_of_the_store(tmp_path: Path) -> None:
    async def filled(url: str) -> CacheStats:
        cache = open_cache(CacheConfig(url=url, max_size=3), now).unwrap()
        for number in range(5):
            await given_by(cache.put(key_of(str(number)), b"x", 60))
        stats = await given_by(cache.stats())
        await cache.aclose()
        return stats

    for url in ("memory://", f"sqlite:///{tmp_path}/cache.db"):
        stats = run_in("asyncio", lambda url=url: filled(url))
        assert (stats.entries, stats.evictions) == (3, 2)
