"""How often a cache had what was asked for."""

from collections.abc import Awaitable, Callable
from threading import Lock
from time import monotonic
from typing import Final, TypeVar, final

from attrs import define, field
from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.values.errors import LLMError, StorageFailed
from llm_effects.values.records import CacheStats

_Made = TypeVar("_Made")

IN_A_ROW: Final = 10
"""Failures one after the other that give a store a rest."""

REST_S: Final = 1.0
"""How long it rests, in seconds."""


@final
@define(eq=False)
class CacheCounters:
    """Counts since a store was opened, for any number of threads."""

    _hits: int = 0
    _misses: int = 0
    _evictions: int = 0
    _failures: int = 0
    _in_a_row: int = 0
    _resting_until: float = 0.0
    _lock: Lock = field(factory=Lock, init=False, repr=False)

    def asked(self, entry: bytes | None) -> bytes | None:
        """Count a look-up by what it gave, and give that on.

        >>> tally = CacheCounters()
        >>> tally.asked(b"{}"), tally.asked(None), tally.stats(entries=1, size=2)
        (b'{}', None, CacheStats(entries=1, bytes=2, hits=1, misses=1, evictions=0, failures=0))
        """
        with self._lock:
            self._hits += entry is not None
            self._misses += entry is None
        return entry

    def evicted(self, entries: int) -> None:
        """Count entries that made room."""
        with self._lock:
            self._evictions += entries

    async def watched(
        self, operation: str, work: Callable[[], Awaitable[Result[_Made, LLMError]]]
    ) -> Result[_Made, LLMError]:
        """Do an operation, and count it if it fails; after some failures in a row the store gets a rest."""
        now = monotonic()
        if self._resting_until > now:
            resting = StorageFailed(operation=operation, message="it failed too often just now", transient=True)
            return self._noted(Failure(resting), now)
        return self._noted(await work(), monotonic())

    def _noted(self, result: Result[_Made, LLMError], now: float) -> Result[_Made, LLMError]:
        with self._lock:
            failed = not is_successful(result)
            self._failures += failed
            self._in_a_row = self._in_a_row + 1 if failed else 0
            if failed and self._in_a_row >= IN_A_ROW and self._resting_until <= now:
                self._in_a_row, self._resting_until = IN_A_ROW - 1, now + REST_S  # then one may try
        return result

    def stats(self, entries: int | None, size: int | None) -> CacheStats:
        """Tell the counts, with what the store holds: entries, and their size in bytes."""
        return CacheStats(
            entries=entries,
            bytes=size,
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
            failures=self._failures,
        )
