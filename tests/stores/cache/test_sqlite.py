"""The SQLite cache: its file, permissions, full disks, locks, clocks, bounds and killed processes."""

# ruff: noqa: ASYNC221, ASYNC240 - the files are small, and nothing else runs

import os
import sqlite3
import subprocess
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from attrs import define
from returns.result import Success

from llm_effects.effects.env import Cache
from llm_effects.stores.cache.sqlite import SCHEMA, Bounds, SqliteCache
from llm_effects.stores.worker_threads import TOO_LATE
from tests.fixtures import cache_worker
from tests.fixtures.cache_worker import entry_of, hammered, key_of, python
from tests.fixtures.futures import failure_of, given_by, run_in
from tests.fixtures.sqlite_files import as_unprivileged_user, execute, shared_folder

__all__ = ["shared_folder"]

pytestmark = pytest.mark.anyio

ONE, TWO, THREE, FOUR = (key_of(name) for name in ("one", "two", "three", "four"))

ROUNDS = int(os.environ.get("CACHE_KILL_ROUNDS", "60"))
"""How often a writing process is killed."""


@define
class WallClock:
    """A wall clock that a test moves."""

    time: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def move(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> WallClock:
    return WallClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.db"


def at(path: Path, clock: WallClock | None = None, bounds: Bounds | None = None) -> SqliteCache:
    """Return a cache with long time limits: the machine may be busy."""
    return SqliteCache(path, (clock or WallClock()).now, bounds or Bounds(), lock_wait_seconds=5, timeout_seconds=10)


async def filled(path: Path) -> None:
    cache = at(path)
    await given_by(cache.put(ONE, b"1", None))
    await cache.aclose()


async def assert_all_fail(cache: Cache, message: str) -> None:
    for future in (cache.get(ONE), cache.put(ONE, b"2", 60), cache.delete(ONE), cache.clear(), cache.stats()):
        failure = await failure_of(future)
        assert message in failure.message
        assert not failure.transient
    await cache.aclose()


# The file.


async def test_fault_133_only_the_owner_may_read_the_file(path: Path) -> None:
    cache = at(path)
    await given_by(cache.put(ONE, b"1", 60))
    files = list(path.parent.iterdir())
    assert len(files) == 3
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    await cache.aclose()
    path.chmod(0o644)
    again = at(path)
    await given_by(again.get(ONE))
    assert path.stat().st_mode & 0o777 == 0o600
    await again.aclose()


async def test_entries_outlive_the_cache_object(path: Path) -> None:
    await filled(path)
    cache = at(path)
    assert await given_by(cache.get(ONE)) == b"1"
    await cache.aclose()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


async def test_opening_a_cache_creates_no_file(path: Path) -> None:
    await at(path).aclose()
    assert not path.exists()


async def test_fault_113_a_newer_file_is_neither_read_nor_changed(path: Path) -> None:
    await filled(path)
    execute(path, f"PRAGMA user_version = {SCHEMA + 1}")
    before = path.read_bytes()
    await assert_all_fail(at(path), "newer version")
    assert path.read_bytes() == before


async def test_a_file_that_becomes_newer_while_open_is_refused(path: Path) -> None:
    cache = at(path)
    await given_by(cache.put(ONE, b"1", 60))
    execute(path, f"PRAGMA user_version = {SCHEMA + 1}")
    await assert_all_fail(cache, "newer version")


async def test_an_older_file_is_recreated(path: Path) -> None:
    await filled(path)
    execute(path, "PRAGMA user_version = 0", "ALTER TABLE entries RENAME COLUMN used TO age")
    cache = at(path)
    assert await given_by(cache.get(ONE)) is None
    await given_by(cache.put(ONE, b"1", 60))
    assert await given_by(cache.get(ONE)) == b"1"
    await cache.aclose()


async def test_many_caches_can_create_the_file_at_once(tmp_path: Path) -> None:
    for round_ in range(10):
        caches = [at(tmp_path / f"{round_}.db") for _ in range(8)]
        async with anyio.create_task_group() as tasks:
            for number, cache in enumerate(caches):
                tasks.start_soon(given_by, cache.put(key_of(str(number)), b"x", None))
        assert (await given_by(caches[0].stats())).entries == len(caches)
        for cache in caches:
            await cache.aclose()


async def test_the_file_of_another_program_is_refused(path: Path) -> None:
    execute(path, "CREATE TABLE mine (text)", "INSERT INTO mine VALUES ('dear')")
    before = path.read_bytes()
    await assert_all_fail(at(path), "another program")
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"no database, but long enough to look like one\n" * 99, b"\x80\x04\x95pickle."])
async def test_faults_111_119_a_file_that_is_no_database_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    await assert_all_fail(at(path), "is not a SQLite database")
    assert path.read_bytes() == content


async def test_an_empty_file_becomes_a_cache(path: Path) -> None:
    path.touch()
    await filled(path)
    assert execute(path, "SELECT count(*) FROM entries") == 1


async def test_a_damaged_file_never_raises(path: Path) -> None:
    cache = at(path)
    for number in range(40):
        key = key_of(str(number))
        await given_by(cache.put(key, entry_of(key), None))
    await cache.aclose()
    sound = path.read_bytes()
    for page in range(1, len(sound) // 4096):
        path.write_bytes(sound[: page * 4096] + b"\xff" * 4096 + sound[(page + 1) * 4096 :])
        damaged = at(path)
        for number in range(0, 40, 8):
            await damaged.get(key_of(str(number)))
        await damaged.put(ONE, b"1", 60)
        await damaged.aclose()


async def test_a_file_that_was_moved_is_recreated(path: Path) -> None:
    cache = at(path)
    await given_by(cache.put(ONE, b"1", 60))
    for file in list(path.parent.iterdir()):
        file.unlink()
    assert await given_by(cache.get(ONE)) is None
    await given_by(cache.put(ONE, b"2", 60))
    await cache.aclose()
    assert execute(path, "SELECT entry FROM entries") == b"2"


async def test_the_cache_works_again_when_its_folder_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    cache = at(folder / "cache.db")
    assert "No such file" in (await failure_of(cache.put(ONE, b"1", 60))).message
    folder.mkdir()
    await given_by(cache.put(ONE, b"1", 60))
    for file in list(folder.iterdir()):
        file.unlink()
    folder.rmdir()
    assert "No such file" in (await failure_of(cache.get(ONE))).message
    folder.mkdir()
    await given_by(cache.put(ONE, b"2", 60))
    assert await given_by(cache.get(ONE)) == b"2"
    await cache.aclose()


# Files that cannot be written.


@pytest.mark.parametrize("folder_mode", [0o700, 0o500])
async def test_fault_112_a_read_only_file_is_read_but_not_written(shared_folder: Path, folder_mode: int) -> None:
    path = shared_folder / "cache.db"
    await filled(path)
    path.chmod(0o400)
    shared_folder.chmod(folder_mode)
    with as_unprivileged_user(shared_folder):
        cache = at(path)
        assert await given_by(cache.get(ONE)) == b"1"
        assert "is read-only" in (await failure_of(cache.put(TWO, b"2", 60))).message
        assert "is read-only" in (await failure_of(cache.delete(ONE))).message
        assert await given_by(cache.get(ONE)) == b"1"
        await cache.aclose()


async def test_an_unreadable_file_fails(shared_folder: Path) -> None:
    path = shared_folder / "cache.db"
    await filled(path)
    path.chmod(0)
    with as_unprivileged_user(shared_folder):
        await assert_all_fail(at(path), "cannot be opened")


async def test_fault_112_a_full_file_fails_writes_but_not_reads(path: Path) -> None:
    cache = at(path)
    await given_by(cache.put(ONE, b"1", None))

    def fill() -> Success[object]:
        return Success(cache._connection().execute("PRAGMA max_page_count = 12").fetchone())

    await cache._worker.run("fill", fill, 5)
    assert "no room left" in (await failure_of(cache.put(TWO, b"2" * 100_000, None))).message
    assert await given_by(cache.get(ONE)) == b"1"
    assert await given_by(cache.get(TWO)) is None
    await given_by(cache.put(THREE, b"3", None))
    await cache.aclose()
    assert execute(path, "PRAGMA integrity_check") == "ok"


async def test_fault_112_a_full_disk_fails_writes_but_not_reads(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted here: that takes root")
    try:
        cache = at(tmp_path / "cache.db")
        await given_by(cache.put(ONE, b"1", None))
        failures = [
            await failure_of(cache.put(TWO, b"2" * 500_000, None)),
            await failure_of(cache.put(THREE, b"3" * 500_000, None)),
        ]
        assert not any(failure.transient for failure in failures)
        assert await given_by(cache.get(ONE)) == b"1"
        await given_by(cache.put(FOUR, b"4", None))
        await cache.aclose()
        assert execute(tmp_path / "cache.db", "PRAGMA integrity_check") == "ok"
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


async def test_fault_112_a_locked_file_is_read_and_writes_fail_soon(path: Path) -> None:
    cache = SqliteCache(path, WallClock().now)
    await given_by(cache.put(ONE, b"1", 60))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert await given_by(cache.get(ONE)) == b"1"
        failure = await failure_of(cache.put(ONE, b"2", 60))
        assert failure.transient
        assert failure.operation == "put"
        other.execute("ROLLBACK")
    assert await given_by(cache.get(ONE)) == b"1"
    await cache.aclose()


async def test_a_new_file_that_is_locked_is_a_transient_failure(path: Path) -> None:
    cache = SqliteCache(path, WallClock().now)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert (await failure_of(cache.get(ONE))).transient
        other.execute("ROLLBACK")
    assert await given_by(cache.get(ONE)) is None
    await cache.aclose()


async def test_an_operation_that_hangs_times_out(path: Path) -> None:
    cache = SqliteCache(path, WallClock().now, lock_wait_seconds=0.5, timeout_seconds=0.02)
    await filled(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "no answer within 20 ms" in (await failure_of(cache.put(ONE, b"2", 60))).message
        other.execute("ROLLBACK")
    await cache.aclose()


async def test_a_caller_without_time_is_no_failure_of_the_file(path: Path) -> None:
    cache, release = at(path), threading.Event()
    await given_by(cache.put(ONE, b"1", 60))
    cache._worker.post(lambda: release.wait(30))
    assert await cache.get_within(ONE, 0.01) is TOO_LATE
    assert await cache.get_within(ONE, 0.0) is TOO_LATE
    release.set()
    assert await cache.get_within(ONE, 30) == Success(b"1")
    assert (await given_by(cache.stats())).failures == 0
    await cache.aclose()


# Time.


async def test_fault_114_an_entry_from_the_future_is_ignored(path: Path, clock: WallClock) -> None:
    cache = at(path, clock)
    await given_by(cache.put(ONE, b"1", None))
    clock.move(-299)
    assert await given_by(cache.get(ONE)) == b"1"
    clock.move(-2)
    assert await given_by(cache.get(ONE)) is None
    await given_by(cache.put(ONE, b"2", 60))
    assert await given_by(cache.get(ONE)) == b"2"
    await cache.aclose()


async def test_a_clock_that_goes_back_a_little_does_not_extend_the_time_to_live(path: Path, clock: WallClock) -> None:
    cache = at(path, clock)
    await given_by(cache.put(ONE, b"1", 60))
    clock.move(-100)
    assert await given_by(cache.get(ONE)) == b"1"
    clock.move(159.5)
    assert await given_by(cache.get(ONE)) == b"1"
    clock.move(0.5)
    assert await given_by(cache.get(ONE)) is None
    await cache.aclose()


async def test_a_write_deletes_expired_entries_before_it_evicts(path: Path, clock: WallClock) -> None:
    cache = at(path, clock, Bounds(entries=2))
    await given_by(cache.put(ONE, b"1", 60))
    await given_by(cache.put(TWO, b"2", 600))
    clock.move(60)
    await given_by(cache.put(THREE, b"3", 60))
    stats = await given_by(cache.stats())
    assert (stats.entries, stats.evictions) == (2, 0)
    assert await given_by(cache.get(TWO)) == b"2"
    await cache.aclose()


# Bounds.


async def test_the_least_recently_used_entry_is_evicted_first(path: Path) -> None:
    cache = at(path, bounds=Bounds(entries=3))
    for key in (ONE, TWO, THREE):
        await given_by(cache.put(key, b"x", None))
    await given_by(cache.get(ONE))
    await given_by(cache.put(FOUR, b"x", None))
    assert [await given_by(cache.get(key)) for key in (ONE, TWO, THREE, FOUR)] == [b"x", None, b"x", b"x"]
    await cache.aclose()


async def test_the_order_of_use_outlives_the_cache_object(path: Path) -> None:
    first = at(path)
    for key in (ONE, TWO, THREE):
        await given_by(first.put(key, b"x", None))
    await given_by(first.get(ONE))
    await first.aclose()
    second = at(path, bounds=Bounds(entries=3))
    await given_by(second.put(FOUR, b"x", None))
    assert [await given_by(second.get(key)) for key in (ONE, TWO)] == [b"x", None]
    await second.aclose()


async def test_the_order_of_the_latest_look_ups_is_recorded(path: Path) -> None:
    cache = at(path, bounds=Bounds(entries=300))
    keys = [key_of(str(number)) for number in range(300)]
    for key in keys:
        await given_by(cache.put(key, b"x", None))
    for key in reversed(keys):
        await given_by(cache.get(key))
    for key in (ONE, TWO):
        await given_by(cache.put(key, b"x", None))
    assert await given_by(cache.get(keys[0])) == b"x"
    assert (await given_by(cache.stats())).evictions == 2
    await cache.aclose()


async def test_fault_116_the_bound_in_bytes_is_exact(path: Path) -> None:
    cache = at(path, bounds=Bounds(size=100))
    await given_by(cache.put(ONE, b"x" * 60, None))
    await given_by(cache.put(TWO, b"x" * 40, None))
    assert (await given_by(cache.stats())).entries == 2
    await given_by(cache.put(TWO, b"x" * 41, None))
    stats = await given_by(cache.stats())
    assert (stats.entries, stats.bytes, stats.evictions) == (1, 41, 1)
    await given_by(cache.put(TWO, b"x" * 101, None))
    assert (await given_by(cache.stats())).bytes == 0
    await cache.aclose()


async def test_a_lowered_bound_is_reached_over_several_writes(path: Path) -> None:
    first = at(path, bounds=Bounds(entries=700))
    for number in range(600):
        await given_by(first.put(key_of(str(number)), b"x", None))
    await first.aclose()
    second = at(path, bounds=Bounds(entries=10))
    held = []
    for number in range(4):
        await given_by(second.put(key_of(str(number)), b"x", None))
        held.append((await given_by(second.stats())).entries)
    assert held[0] > 10
    assert held[-1] == 10
    await second.aclose()


# Processes.


def test_four_processes_share_a_file(path: Path) -> None:
    assert hammered(f"sqlite:///{path}", rounds=150) == []
    assert execute(path, "PRAGMA integrity_check") == "ok"
    assert execute(path, "SELECT count(*) FROM entries") == 4 * 150 + cache_worker.SHARED
    assert execute(path, "SELECT bytes FROM totals") == execute(path, "SELECT sum(length(entry)) FROM entries")


def test_a_killed_process_loses_no_acknowledged_entry(path: Path) -> None:
    killer = python("killed", f"sqlite:///{path}", "seed", str(ROUNDS))
    keys = killer.communicate(timeout=60 + ROUNDS)[0].split()
    assert killer.returncode == 0
    assert len(keys) >= ROUNDS // 2
    assert execute(path, "PRAGMA integrity_check") == "ok"
    assert execute(path, "SELECT entries FROM totals") == execute(path, "SELECT count(*) FROM entries")

    async def lost() -> list[str]:
        cache = SqliteCache(path, lambda: datetime.now(UTC), timeout_seconds=10)
        missing = [key for key in keys if await given_by(cache.get(key)) != entry_of(key)]
        await cache.aclose()
        return missing

    assert run_in("asyncio", lost) == []
