"""A cache in one SQLite file, for many processes at once: what it keeps outlives them, also a killed one."""

import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar, final

from returns.future import FutureResult
from returns.result import Result

from llm_effects.env import Now
from llm_effects.errors import LLMError
from llm_effects.records import CacheStats
from llm_effects.stores import sqlite_entries
from llm_effects.stores.sqlite_entries import Bounds
from llm_effects.stores.sqlite_files import OpenFile, check_version, opened, tried
from llm_effects.stores.tallies import Tally
from llm_effects.stores.workers import Worker

LOCK_WAIT_S: Final = 0.05
"""How long another process may hold the file, in seconds, before an operation gives up."""

PATIENCE_S: Final = 0.25
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
        patience_seconds: float = PATIENCE_S,
    ) -> None:
        self._path = path
        self._now = now
        self._bounds = bounds
        self._lock_wait = lock_wait_seconds
        self._patience = patience_seconds
        self._tally = Tally()
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
        return self._done("delete", lambda file: sqlite_entries.delete(file, key, self._at()), self._patience)

    def clear(self) -> FutureResult[int | None, LLMError]:
        """Drop all entries and give how many they were."""
        return self._done("clear", sqlite_entries.clear, LONG_S)

    def stats(self) -> FutureResult[CacheStats, LLMError]:
        """Tell what is in the file, with what is too old and not yet dropped, and what was asked for here."""
        return self._done("stats", lambda file: self._tally.stats(*sqlite_entries.totals(file)), self._patience)

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
        entry = sqlite_entries.get(file, key, self._at())
        if entry is not None:
            self._used.pop(key, None)
            self._used[key] = None
            if len(self._used) > _REMEMBERED:
                del self._used[next(iter(self._used))]
        return self._tally.asked(entry)

    def _put(self, file: sqlite3.Connection, key: str, entry: bytes, ttl_seconds: float | None) -> None:
        at = self._at()
        evicted = sqlite_entries.put(
            file, key, entry, at=at, ttl_seconds=ttl_seconds, used=self._used, bounds=self._bounds
        )
        self._used.clear()
        self._tally.evicted(evicted)

    def _leave(self) -> None:
        if self._open is not None and self._used:
            file = self._open.connection
            tried("close", self._path, lambda: sqlite_entries.tell(file, self._used))
        tried("close", self._path, self._close)

    def _at(self) -> float:
        return self._now().timestamp()
