"""The cache of one process: expired and least recently used entries are evicted first."""

import math
import time
from collections.abc import Awaitable, Callable
from threading import Lock
from time import monotonic
from typing import ClassVar, Final, Never, TypeVar, final

from attrs import define, field, frozen
from cachetools import TLRUCache
from returns.future import FutureResult
from returns.result import Failure, Result, Success

from llm_effects.values.errors import LLMError, StorageFailed
from llm_effects.values.records import CacheStats
from llm_effects.values.serialization import Entry, dump_entry, entry_size
from llm_effects.values.value import Value

_Value = TypeVar("_Value")

MAX_FAILURES: Final = 10
"""Consecutive failures after which a store is paused."""

PAUSE_S: Final = 1.0
"""How long it is paused, in seconds."""


@final
@define(eq=False)
class CacheCounters:
    """Counts since a store was opened; safe for any number of threads."""

    _hits: int = 0
    _misses: int = 0
    _evictions: int = 0
    _failures: int = 0
    _consecutive_failures: int = 0
    _paused_until: float = 0.0
    _lock: Lock = field(factory=Lock, init=False, repr=False)

    def count_lookup(self, entry: _Value | None) -> _Value | None:
        """Count a hit or a miss, and return the entry.

        >>> counters = CacheCounters()
        >>> counters.count_lookup(b"{}"), counters.count_lookup(None), counters.stats(entries=1, size=2)
        (b'{}', None, CacheStats(entries=1, bytes=2, hits=1, misses=1))
        """
        with self._lock:
            self._hits += entry is not None
            self._misses += entry is None
        return entry

    def count_evictions(self, entries: int) -> None:
        """Count entries that were evicted to make room."""
        with self._lock:
            self._evictions += entries

    async def run(
        self,
        operation: str,
        work: Callable[[], Awaitable[Result[_Value, LLMError]]],
        uncounted: Result[Never, LLMError] | None = None,
    ) -> Result[_Value, LLMError]:
        """Run an operation and count its failure; after too many in a row the store is paused and operations fail.

        ``uncounted`` is a failure that is none of the store.
        """
        now = monotonic()
        if self._paused_until > now:
            paused = StorageFailed(operation=operation, message="it failed too often just now", transient=True)
            return self._count_failure(Failure(paused), now)
        result = await work()
        return result if result is uncounted else self._count_failure(result, monotonic())

    def _count_failure(self, result: Result[_Value, LLMError], now: float) -> Result[_Value, LLMError]:
        with self._lock:
            failed = not isinstance(result, Success)
            self._failures += failed
            self._consecutive_failures = self._consecutive_failures + 1 if failed else 0
            if failed and self._consecutive_failures >= MAX_FAILURES and self._paused_until <= now:
                # after the pause one more failure starts the next
                self._consecutive_failures, self._paused_until = MAX_FAILURES - 1, now + PAUSE_S
        return result

    def stats(self, entries: int | None, size: int | None) -> CacheStats:
        """Return the counts, with the number of stored entries and their size in bytes (``None`` if unknown)."""
        return CacheStats(
            entries=entries,
            bytes=size,
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
            failures=self._failures,
        )


MAX_BYTES: Final = 64 * 2**20
"""The default bound on the size of all entries together, in bytes."""


@final
@frozen(eq=False, repr=False)
class _Item(Value):
    """An entry and its time to live, in seconds."""

    entry: bytes | Entry
    size: int
    ttl: float


def _expires_at(_: str, item: _Item, now: float) -> float:
    return now + item.ttl


def _size(item: _Item) -> int:
    return item.size


@final
class MemoryCache:
    """A cache of at most ``max_entries`` entries and ``max_bytes`` together, for any number of event loops and threads.

    An entry larger than ``max_bytes`` is not stored. ``clock`` returns seconds and never goes back.

    >>> import anyio
    >>> async def main() -> None:
    ...     cache = MemoryCache(max_entries=1)
    ...     await cache.put("old", b"1", ttl_seconds=60)
    ...     await cache.put("new", b"2", ttl_seconds=60)
    ...     print(await cache.get("old"), await cache.get("new"))
    >>> anyio.run(main)
    <IOResult: <Success: None>> <IOResult: <Success: b'2'>>
    """

    waits: ClassVar[bool] = False
    """Operations return at once, so callers need no timeout."""

    def __init__(
        self, max_entries: int = 1000, max_bytes: int = MAX_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._items: TLRUCache[str, _Item, float] = TLRUCache(max_bytes, _expires_at, clock, _size)
        self._counters = CacheCounters()
        self._lock = Lock()

    def get(self, key: str) -> FutureResult[bytes | None, LLMError]:
        """Return the entry, or ``None`` if there is none or it has expired."""
        entry = self.find(key)
        return FutureResult.from_value(dump_entry(entry) if isinstance(entry, Entry) else entry)

    def find(self, key: str) -> bytes | Entry | None:
        """Return the entry as it was stored, or ``None``, without a future."""
        with self._lock:
            item = self._items.get(key)
        self._counters.count_lookup(item)
        return None if item is None else item.entry

    def hit(self, key: str) -> bytes | Entry | None:
        """Return the entry and count a hit, if there is one; ``get`` and ``find`` count the miss."""
        try:
            with self._lock:
                item = self._items[key]
        except KeyError:
            return None
        self._counters.count_lookup(item)
        return item.entry

    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> FutureResult[None, LLMError]:
        """Store an entry for ``ttl_seconds``; ``None`` is for ever, 0 stores nothing."""
        self._put(key, _Item(entry, len(entry), math.inf if ttl_seconds is None else ttl_seconds))
        return FutureResult.from_value(None)

    def keep(self, key: str, entry: Entry, ttl_seconds: float | None) -> None:
        """Store an entry as ``put`` does, but without encoding it; its size is an estimate."""
        self._put(key, _Item(entry, entry_size(entry), math.inf if ttl_seconds is None else ttl_seconds))

    def _put(self, key: str, item: _Item) -> None:
        with self._lock, self._items.timer:  # freezes the clock, so that no counted entry expires meanwhile
            self._items.pop(key, None)
            if item.ttl > 0 and item.size <= self._max_bytes:
                self._make_room(item.size)
                self._items[key] = item

    def _make_room(self, size: int) -> None:
        before = left = len(self._items)
        while left >= self._max_entries or self._items.currsize + size > self._max_bytes:
            self._items.popitem()
            left -= 1
        if left < before:
            self._counters.count_evictions(before - left)

    def delete(self, key: str) -> FutureResult[bool, LLMError]:
        """Delete an entry; return whether there was one."""
        with self._lock:
            return FutureResult.from_value(self._items.pop(key, None) is not None)

    def clear(self) -> FutureResult[int | None, LLMError]:
        """Delete all entries; return how many there were."""
        with self._lock:
            entries = len(self._items)
            self._items.clear()
        return FutureResult.from_value(entries)

    def delete_all(self, prefix: str) -> FutureResult[int, LLMError]:
        """Delete the entries whose keys begin with a prefix; return how many there were."""
        with self._lock:
            keys = [key for key in self._items if key.startswith(prefix)]
            deleted = sum(self._items.pop(key, None) is not None for key in keys)
        return FutureResult.from_value(deleted)

    def stats(self) -> FutureResult[CacheStats, LLMError]:
        """Return what is stored, and the counts of look-ups."""
        with self._lock, self._items.timer:
            return FutureResult.from_value(self._counters.stats(len(self._items), int(self._items.currsize)))

    async def aclose(self) -> None:
        """Delete all entries."""
        with self._lock:
            self._items.clear()
