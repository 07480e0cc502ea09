"""The Redis cache: with a server that is slow, full, gone, or refuses."""

# ruff: noqa: ASYNC110 - a server does not announce its changes

import signal
import subprocess
import sys
import time

import anyio
import pytest
from redis import Redis

from llm_effects.stores.cache.redis import PREFIX, open_redis
from llm_effects.values.extras import install_command
from tests.fixtures.cache_worker import entry_of, hammered, key_of
from tests.fixtures.futures import failure_of, given_by
from tests.fixtures.redis_server import free_port, redis_server, start

__all__ = ["redis_server"]

pytestmark = pytest.mark.anyio

ONE, TWO = key_of("one"), key_of("two")


async def test_the_server_expires_entries(redis_server: str) -> None:
    cache = open_redis(redis_server, prefix="time:", timeout_seconds=10).unwrap()
    await given_by(cache.put(ONE, b"1", 60))
    await given_by(cache.put(TWO, b"2", None))
    with Redis.from_url(redis_server) as client:
        assert 0 < client.pttl(f"time:{ONE}") <= 60_000
        assert client.pttl(f"time:{TWO}") == -1
    await given_by(cache.put(ONE, b"1", 0.001))
    with anyio.fail_after(30):
        while await given_by(cache.get(ONE)) is not None:
            await anyio.sleep(0.001)
    await cache.aclose()


async def test_clear_deletes_only_keys_with_the_prefix(redis_server: str) -> None:
    cache = open_redis(redis_server, prefix="a[b]*:", timeout_seconds=10).unwrap()
    with Redis.from_url(redis_server) as client:
        client.mset({"ab:mine": "1", "a[b]x:mine": "2"})
        for number in range(2500):
            await given_by(cache.put(key_of(str(number)), b"x", 60)) if number < 3 else client.set(f"a[b]*:{number}", 1)
        assert await given_by(cache.clear()) == 2500
        assert client.mget("ab:mine", "a[b]x:mine") == [b"1", b"2"]
    await cache.aclose()


async def test_fault_112_a_missing_server_fails_at_once() -> None:
    cache = open_redis(f"redis://:hunter2@127.0.0.1:{free_port()}").unwrap()
    failure = await failure_of(cache.get(ONE))
    assert failure.transient
    assert failure.operation == "get"
    assert "hunter2" not in repr(failure) + repr(cache)
    await cache.aclose()


async def test_an_unknown_host_fails() -> None:
    cache = open_redis(f"redis://{'a' * 64}.invalid", timeout_seconds=10).unwrap()
    assert (await failure_of(cache.put(ONE, b"1", 60))).operation == "put"
    await cache.aclose()


async def test_the_password_is_used_and_never_shown() -> None:
    with start("--requirepass", "hun#ter 2") as server:
        right = open_redis(server.url("hun%23ter%202"), timeout_seconds=10).unwrap()
        await given_by(right.put(ONE, b"1", 60))
        assert await given_by(right.get(ONE)) == b"1"
        await right.aclose()
        for url in (server.url("wrong-hunter2"), server.url()):
            wrong = open_redis(url, timeout_seconds=10).unwrap()
            failure = await failure_of(wrong.get(ONE))
            assert not failure.transient
            assert "hun" not in repr(failure)
            await wrong.aclose()


async def test_a_key_of_another_type_fails_until_it_is_overwritten(redis_server: str) -> None:
    cache = open_redis(redis_server, timeout_seconds=10).unwrap()
    with Redis.from_url(redis_server) as client:
        client.delete(PREFIX + ONE)
        client.lpush(PREFIX + ONE, "x")
    failure = await failure_of(cache.get(ONE))
    assert "WRONGTYPE" in failure.message
    assert not failure.transient
    await given_by(cache.put(ONE, b"1", 60))
    assert await given_by(cache.get(ONE)) == b"1"
    await cache.aclose()


async def test_fault_112_a_full_server_fails_writes_but_not_reads() -> None:
    with start("--maxmemory", "100kb", "--maxmemory-policy", "noeviction") as server:
        cache = open_redis(server.url(), timeout_seconds=10).unwrap()
        assert not (await failure_of(cache.put(ONE, b"1", 60))).transient
        assert await given_by(cache.get(ONE)) is None
        await cache.aclose()


async def test_fault_112_a_server_that_evicts_returns_whole_entries_or_none() -> None:
    with start("--maxmemory", "3mb", "--maxmemory-policy", "allkeys-lru") as server:
        cache = open_redis(server.url(), timeout_seconds=10).unwrap()
        keys = [key_of(str(number)) for number in range(200)]
        for key in keys:
            await given_by(cache.put(key, entry_of(key, 30_000), None))
        hits = [await given_by(cache.get(key)) == entry_of(key, 30_000) for key in keys]
        stats = await given_by(cache.stats())
        assert 0 < sum(hits) == stats.hits < len(keys)
        await cache.aclose()


async def test_fault_112_a_server_that_hangs_fails_all_callers_in_time() -> None:
    with start() as server:
        cache = open_redis(server.url(), timeout_seconds=0.1).unwrap()
        for _ in range(5):
            await cache.put(ONE, b"1", 60)
        server.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        async with anyio.create_task_group() as tasks:
            for _ in range(200):
                tasks.start_soon(failure_of, cache.get(ONE))
        assert time.monotonic() - began < 2  # one after another they would take 2.5 s
        server.process.send_signal(signal.SIGCONT)
        with anyio.fail_after(30):
            while "Success" not in str(await cache.get(ONE)):
                await anyio.sleep(0.005)
        await cache.aclose()


async def test_the_cache_reconnects_to_a_restarted_server() -> None:
    with start() as server:
        cache = open_redis(server.url(), timeout_seconds=10).unwrap()
        await given_by(cache.put(ONE, b"1", 60))
        port = server.port
    assert (await failure_of(cache.get(ONE))).transient
    with start(port=port):
        assert await given_by(cache.get(ONE)) is None
        await given_by(cache.put(ONE, b"2", 60))
    await cache.aclose()


async def test_closing_closes_all_connections() -> None:
    with start() as server, Redis.from_url(server.url()) as client:
        cache = open_redis(server.url(), timeout_seconds=10).unwrap()
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(given_by, cache.get(ONE))
        assert len(client.client_list()) > 1
        await cache.aclose()
        with anyio.fail_after(30):
            while len(client.client_list()) > 1:
                await anyio.sleep(0.005)


def test_four_processes_share_a_server(redis_server: str) -> None:
    assert hammered(redis_server, rounds=150) == []


def test_without_the_client_the_error_names_the_extra_to_install() -> None:
    program = (
        "import sys; sys.modules['redis'] = None\n"
        "from llm_effects.config import CacheConfig\n"
        "from llm_effects.stores.open import open_cache\n"
        "print(open_cache(CacheConfig(url='redis://localhost'), lambda: None).failure().message)"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output == f"cache.url: the Redis client is not installed: {install_command('redis')}\n"
