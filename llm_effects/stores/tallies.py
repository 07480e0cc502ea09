"""How often a cache had what was asked for."""

from collections.abc import Awaitable
from threading import Lock
from typing import TypeVar, final

from attrs import define, field
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects.env import CacheStats
from llm_effects.errors import LLMError

_Made = TypeVar("_Made")


@final
@define(eq=False)
class Tally:
    """Counts since a store was opened, for any number of threads."""

    _hits: int = 0
    _misses: int = 0
    _evictions: int = 0
    _failures: int = 0
    _lock: Lock = field(factory=Lock, init=False, repr=False)

    def asked(self, entry: bytes | None) -> bytes | None:
        """Count a look-up by what it gave, and give that on.

        >>> tally = Tally()
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

    async def watched(self, work: Awaitable[Result[_Made, LLMError]]) -> Result[_Made, LLMError]:
        """Await an operation, and count it if it failed."""
        result = await work
        if not is_successful(result):
            with self._lock:
                self._failures += 1
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
