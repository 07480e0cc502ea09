"""Statistics of a cache, and a pause for a store that keeps failing."""

from collections.abc import Awaitable, Callable
from threading import Lock
from time import monotonic
from typing import Final, TypeVar, final

from attrs import define, field
from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.values.errors import LLMError, StorageFailed
from llm_effects.values.records import CacheStats

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

    def count_lookup(self, entry: bytes | None) -> bytes | None:
        """Count a hit or a miss, and return the entry.

        >>> counters = CacheCounters()
        >>> counters.count_lookup(b"{}"), counters.count_lookup(None), counters.stats(entries=1, size=2)
        (b'{}', None, CacheStats(entries=1, bytes=2, hits=1, misses=1, evictions=0, failures=0))
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
        self, operation: str, work: Callable[[], Awaitable[Result[_Value, LLMError]]]
    ) -> Result[_Value, LLMError]:
        """Run an operation and count its failure; after too many in a row the store is paused and operations fail."""
        now = monotonic()
        if self._paused_until > now:
            paused = StorageFailed(operation=operation, message="it failed too often just now", transient=True)
            return self._count_failure(Failure(paused), now)
        return self._count_failure(await work(), monotonic())

    def _count_failure(self, result: Result[_Value, LLMError], now: float) -> Result[_Value, LLMError]:
        with self._lock:
            failed = not is_successful(result)
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
