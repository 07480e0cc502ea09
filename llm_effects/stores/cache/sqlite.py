"""A cache in one SQLite file, for many processes at once: what it keeps outlives them, also a killed one."""

import math
import sqlite3
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar, final

from attrs import frozen
from returns.future import FutureResult
from returns.result import Result

from llm_effects.effects.env import Now
from llm_effects.stores.cache.stats import CacheCounters
from llm_effects.stores.sqlite_files import OpenFile, check_version, opened, tried
from llm_effects.stores.worker_threads import Worker
from llm_effects.values.errors import LLMError
from llm_effects.values.records import CacheStats

# What is said to the tables of the SQLite cache. Times are seconds since 1970.


SKEW_S: Final = 300.0
"""How far clocks may differ, in seconds: what was made later than that from now is not believed."""

_BATCH: Final = 256  # at most so many are dropped by one write, so that none takes long


@final
@frozen(kw_only=True)
class Bounds:
    """How many entries are kept, and what they may weigh together, in bytes."""

    entries: int = 1000
    size: int = 2**30


_FRESH: Final = "created_at <= :at + :skew AND (expires_at IS NULL OR expires_at > :at)"


def get(file: sqlite3.Connection, key: str, at: float) -> bytes | None:
    """Give the entry of a key, unless it is too old, of a future day, or no bytes."""
    query = f"SELECT entry FROM entries WHERE key = :key AND typeof(entry) = 'blob' AND {_FRESH}"  # noqa: S608
    row: tuple[bytes] | None = file.execute(query, {"key": key, "at": at, "skew": SKEW_S}).fetchone()
    return row and row[0]


def put(
    file: sqlite3.Connection,
    key: str,
    entry: bytes,
    *,
    at: float,
    ttl_seconds: float | None,
    used: Iterable[str],
    bounds: Bounds,
) -> int:
    """Keep an entry and make room for it; gives how many others had to go before their time."""
    ttl = math.inf if ttl_seconds is None else ttl_seconds
    with file:
        file.execute("BEGIN IMMEDIATE")
        _mark(file, used)
        _drop_expired(file, at)
        if not ttl > 0 or len(entry) > bounds.size:
            file.execute("DELETE FROM entries WHERE key = ?", (key,))
            return 0
        _insert(file, key, entry, at, None if ttl == math.inf else at + ttl)
        return _evict(file, bounds)


def _insert(file: sqlite3.Connection, key: str, entry: bytes, at: float, expires_at: float | None) -> None:
    file.execute(
        "INSERT INTO entries VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET entry = excluded.entry, "
        "created_at = excluded.created_at, expires_at = excluded.expires_at, used = excluded.used",
        (key, entry, at, expires_at, _next_use(file)),
    )


def _next_use(file: sqlite3.Connection) -> int:
    number: int = file.execute("SELECT coalesce(max(used), 0) + 1 FROM entries").fetchone()[0]
    return number


def _mark(file: sqlite3.Connection, used: Iterable[str]) -> None:
    first = _next_use(file)
    file.executemany("UPDATE entries SET used = ? WHERE key = ?", [(first + n, key) for n, key in enumerate(used)])


def _drop_expired(file: sqlite3.Connection, at: float) -> None:
    query = "DELETE FROM entries WHERE rowid IN (SELECT rowid FROM entries WHERE expires_at <= ? LIMIT ?)"
    file.execute(query, (at, _BATCH))


def _evict(file: sqlite3.Connection, bounds: Bounds) -> int:
    for evicted in range(_BATCH):
        entries, size = totals(file)
        if entries <= bounds.entries and size <= bounds.size:
            return evicted
        file.execute("DELETE FROM entries WHERE rowid = (SELECT rowid FROM entries ORDER BY used LIMIT 1)")
    return _BATCH


def tell(file: sqlite3.Connection, used: Iterable[str]) -> None:
    """Make entries the ones that were used last, in this order."""
    with file:
        file.execute("BEGIN IMMEDIATE")
        _mark(file, used)


def delete(file: sqlite3.Connection, key: str, at: float) -> bool:
    """Drop an entry; says whether it could have been given."""
    with file:
        file.execute("BEGIN IMMEDIATE")
        there = get(file, key, at) is not None
        file.execute("DELETE FROM entries WHERE key = ?", (key,))
    return there


def clear(file: sqlite3.Connection) -> int:
    """Drop all entries and give how many they were."""
    with file:
        file.execute("BEGIN IMMEDIATE")
        return file.execute("DELETE FROM entries").rowcount


def totals(file: sqlite3.Connection) -> tuple[int, int]:
    """Give how many entries there are, and their size in bytes."""
    entries, size = file.execute("SELECT entries, bytes FROM totals").fetchone()
    return entries, size


LOCK_WAIT_S: Final = 0.05
"""How long another process may hold the file, in seconds, before an operation gives up."""

TIMEOUT_S: Final = 0.25
"""How long nothing may come to a good end, in seconds, before those who wait give up."""

LONG_S: Final = 60.0
"""How long clearing may take."""

_BOUNDS: Final = Bounds()
_REMEMBERED: Final = 256  # look-ups whose order of use is told by the next write

_Made = TypeVar("_Made")


@final
class SqliteCache:
    """At most ``bounds`` of entries in the file ``path``, which is made by the first use and is for its owner only.

    It has a thread of its own, so it serves any number of event loops. ``now`` is wall time. A look-up writes nothing:
    which entries were used is told by the next write, and so is what is too old; then the entries used longest ago
    go. Its bounds are exact but for a while after they were lowered, since a write drops a limited number.
    """

    def __init__(
        self,
        path: Path,
        now: Now,
        bounds: Bounds = _BOUNDS,
        *,
        lock_wait_seconds: float = LOCK_WAIT_S,
        patience_seconds: float = TIMEOUT_S,
    ) -> None:
        self._path = path
        self._now = now
        self._bounds = bounds
        self._lock_wait = lock_wait_seconds
        self._patience = patience_seconds
        self._tally = CacheCounters()
        self._worker = Worker("llm-effects-cache")
        # what follows is for the one thread only
        self._open: OpenFile | None = None
        self._used: dict[str, None] = {}

    def get(self, key: str) -> FutureResult[bytes | None, LLMError]:
        """Give the entry, or ``None`` where there is none, it is too old, or it is of a future day."""
        return self._done("get", partial(self._get, key=key), self._patience)

    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> FutureResult[None, LLMError]:
        """Keep an entry for ``ttl_seconds``; ``None`` is for ever, 0 keeps nothing."""
        work = partial(self._put, key=key, entry=entry, ttl_seconds=ttl_seconds)
        return self._done("put", work, self._patience)

    def delete(self, key: str) -> FutureResult[bool, LLMError]:
        """Drop an entry; says whether there was one."""
        return self._done("delete", lambda file: delete(file, key, self._at()), self._patience)

    def clear(self) -> FutureResult[int | None, LLMError]:
        """Drop all entries and give how many they were."""
        return self._done("clear", clear, LONG_S)

    def stats(self) -> FutureResult[CacheStats, LLMError]:
        """Tell what is in the file, with what is too old and not yet dropped, and what was asked for here."""
        return self._done("stats", lambda file: self._tally.stats(*totals(file)), self._patience)

    async def aclose(self) -> None:
        """Tell the file what was used, close it, and end the thread."""
        await self._worker.aclose(self._leave)

    def _done(
        self, operation: str, work: Callable[[sqlite3.Connection], _Made], seconds: float
    ) -> FutureResult[_Made, LLMError]:
        run = partial(self._worker.run, operation, partial(self._tried, operation, work), seconds)
        return FutureResult(self._tally.watched(operation, run))

    # From here on in the thread.

    def _tried(self, operation: str, work: Callable[[sqlite3.Connection], _Made]) -> Result[_Made, LLMError]:
        return tried(operation, self._path, lambda: work(self._connection()))

    def _connection(self) -> sqlite3.Connection:
        """Give the connection to the file that is at the path now: what was moved away is of no use to others."""
        if self._open is None or not self._open.is_at(self._path):
            self._close()
            self._open = opened(self._path, self._lock_wait)
        check_version(self._open.connection)
        return self._open.connection

    def _close(self) -> None:
        if self._open is not None:
            self._open.connection.close()
            self._open = None

    def _get(self, file: sqlite3.Connection, key: str) -> bytes | None:
        entry = get(file, key, self._at())
        if entry is not None:
            self._used.pop(key, None)
            self._used[key] = None
            if len(self._used) > _REMEMBERED:
                del self._used[next(iter(self._used))]
        return self._tally.asked(entry)

    def _put(self, file: sqlite3.Connection, key: str, entry: bytes, ttl_seconds: float | None) -> None:
        at = self._at()
        evicted = put(file, key, entry, at=at, ttl_seconds=ttl_seconds, used=self._used, bounds=self._bounds)
        self._used.clear()
        self._tally.evicted(evicted)

    def _leave(self) -> None:
        if self._open is not None and self._used:
            file = self._open.connection
            tried("close", self._path, lambda: tell(file, self._used))
        tried("close", self._path, self._close)

    def _at(self) -> float:
        return self._now().timestamp()
