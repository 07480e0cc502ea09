"""A cache in this process: what is too old or was used longest ago goes first."""

import math
import time
from collections.abc import Callable
from threading import Lock
from typing import ClassVar, Final, final

from attrs import frozen
from cachetools import TLRUCache
from returns.future import FutureResult

from llm_effects.stores.cache.stats import CacheCounters
from llm_effects.values.errors import LLMError
from llm_effects.values.records import CacheStats

MAX_BYTES: Final = 64 * 2**20
"""What all entries together may weigh, in bytes, where nothing else is said."""


@final
@frozen
class _Kept:
    """An entry and how long it may be given, in seconds."""

    entry: bytes
    seconds: float


def _expiry(_: str, kept: _Kept, now: float) -> float:
    return now + kept.seconds


def _size(kept: _Kept) -> int:
    return len(kept.entry)


@final
class MemoryCache:
    """At most ``max_entries`` entries of at most ``max_bytes`` together; for any number of event loops and threads.

    An entry that is larger by itself is not kept. ``clock`` gives seconds and never goes back.

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
    """No operation waits for anything, so that nobody need limit its time."""

    def __init__(
        self, max_entries: int = 1000, max_bytes: int = MAX_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._kept: TLRUCache[str, _Kept, float] = TLRUCache(max_bytes, _expiry, clock, _size)
        self._tally = CacheCounters()
        self._lock = Lock()

    def get(self, key: str) -> FutureResult[bytes | None, LLMError]:
        """Give the entry, or ``None`` where there is none or it is too old."""
        with self._lock:
            kept = self._kept.get(key)
        return FutureResult.from_value(self._tally.asked(kept and kept.entry))

    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> FutureResult[None, LLMError]:
        """Keep an entry for ``ttl_seconds``; ``None`` is for ever, 0 keeps nothing."""
        kept = _Kept(entry, math.inf if ttl_seconds is None else ttl_seconds)
        with self._lock, self._kept.timer:  # time stands still: what is counted cannot expire before it goes
            self._kept.pop(key, None)
            if kept.seconds > 0 and len(entry) <= self._max_bytes:
                self._make_room(len(entry))
                self._kept[key] = kept
        return FutureResult.from_value(None)

    def _make_room(self, size: int) -> None:
        there = left = len(self._kept)
        while left >= self._max_entries or self._kept.currsize + size > self._max_bytes:
            self._kept.popitem()
            left -= 1
        if left < there:
            self._tally.evicted(there - left)

    def delete(self, key: str) -> FutureResult[bool, LLMError]:
        """Drop an entry; says whether there was one."""
        with self._lock:
            return FutureResult.from_value(self._kept.pop(key, None) is not None)

    def clear(self) -> FutureResult[int | None, LLMError]:
        """Drop all entries and give how many they were."""
        with self._lock:
            there = len(self._kept)
            self._kept.clear()
        return FutureResult.from_value(there)

    def stats(self) -> FutureResult[CacheStats, LLMError]:
        """Tell what is there and what was asked for."""
        with self._lock, self._kept.timer:
            return FutureResult.from_value(self._tally.stats(len(self._kept), int(self._kept.currsize)))

    async def aclose(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()
