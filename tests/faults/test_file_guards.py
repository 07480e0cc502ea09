"""Fault 172: files that hold answers are for their owner only before the first byte, and another user's is refused."""

import os
import sqlite3
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from attrs import evolve
from returns.result import Result

from llm_effects import LLMError, LLMRequest, describe, generate_many, run, scripted_env, start_conversation
from llm_effects.batches import file_journal
from llm_effects.config import CacheConfig, StorageConfig
from llm_effects.effects.effect import result_of
from llm_effects.manager import new_memory
from llm_effects.stores.open import open_cache, open_storage
from tests.fixtures.sqlite_files import NOBODY

pytestmark = pytest.mark.anyio

Use: TypeAlias = Callable[[Path], Awaitable[Result[object, LLMError]]]
"""One use of a file, from opening it to closing it."""


NUMBERS = count()


async def use_cache(path: Path) -> Result[object, LLMError]:
    cache = open_cache(CacheConfig(url=f"sqlite:///{path}"), lambda: datetime.now(UTC)).unwrap()
    result = await result_of(cache.put("key", b"entry", 60))
    await cache.aclose()
    return result


async def use_storage(path: Path) -> Result[object, LLMError]:
    storage = open_storage(StorageConfig(url=f"sqlite:///{path}"), new_memory()).unwrap()
    env = evolve(scripted_env(), conversations=storage.conversations)
    result = await run(start_conversation(f"talk {next(NUMBERS)}"), env)
    await storage.conversations.aclose()
    return result


async def use_journal(path: Path) -> Result[object, LLMError]:
    return await run(generate_many([LLMRequest(prompt="why?")], journal=file_journal(path)), scripted_env("because"))


USES = [use_cache, use_storage, use_journal]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Collect the permissions of all files whenever a connection opens and whenever a byte reaches the disk."""
    seen, connect, sync = set[int](), sqlite3.connect, os.fsync

    def note() -> None:
        seen.update(mode(each) for each in tmp_path.iterdir())

    def connecting(*args: Any, **settings: Any) -> sqlite3.Connection:
        note()
        connection: sqlite3.Connection = connect(*args, **settings)
        connection.set_trace_callback(lambda _: note())
        return connection

    def syncing(file: int) -> None:
        note()
        sync(file)

    monkeypatch.setattr(sqlite3, "connect", connecting)
    monkeypatch.setattr(os, "fsync", syncing)
    return seen


@pytest.mark.parametrize("use", USES)
async def test_fault_172_a_file_and_its_logs_are_never_readable_for_others(
    use: Use, tmp_path: Path, modes: set[int]
) -> None:
    path = tmp_path / "kept"
    (await use(path)).unwrap()
    path.chmod(0o666)
    (await use(path)).unwrap()
    assert modes == {0o600}
    assert mode(path) == 0o600


@pytest.mark.parametrize("use", USES)
async def test_fault_172_an_empty_file_is_restricted_before_it_is_used(
    use: Use, tmp_path: Path, modes: set[int]
) -> None:
    path = tmp_path / "kept"
    path.touch(0o666)
    (await use(path)).unwrap()
    assert modes == {0o600}


@pytest.mark.parametrize("use", USES)
async def test_fault_172_logs_that_a_crash_left_open_are_restricted(use: Use, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    (await use(path)).unwrap()
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).touch(0o666)
    (await use(path)).unwrap()
    kept = [path] if use is use_journal else files_in(tmp_path)
    assert {mode(each) for each in kept} == {0o600}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize("use", USES)
async def test_fault_172_a_file_of_another_user_is_refused_with_the_remedy(use: Use, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    (await use(path)).unwrap()
    before = path.read_bytes()
    os.chown(path, NOBODY, NOBODY)
    error = (await use(path)).failure()
    assert error.tag == "StorageFailed"
    assert "belongs to another user: change its owner (chown), or use another file" in describe(error)
    assert path.read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("permissions", "refused"), [(0o644, False), (0o666, True)])
async def test_fault_172_a_file_of_root_is_read_if_others_cannot_write_it(
    tmp_path: Path, permissions: int, refused: bool
) -> None:
    path = tmp_path / "kept"
    (await use_cache(path)).unwrap()
    path.chmod(permissions)
    for folder in (tmp_path, *(each for each in tmp_path.parents if "pytest" in str(each))):
        folder.chmod(0o755)
    os.seteuid(NOBODY)
    try:
        error = (await use_cache(path)).failure()
    finally:
        os.seteuid(0)
    assert ("belongs to another user" in describe(error)) is refused
    assert ("is read-only" in describe(error)) is not refused


@pytest.mark.parametrize("use", [use_cache, use_storage])
async def test_fault_172_a_file_of_another_program_keeps_its_permissions(use: Use, tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    with closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE theirs (one)")
    path.chmod(0o644)
    assert (await use(path)).failure().tag in {"StorageFailed", "ConfigurationError"}
    assert mode(path) == 0o644
