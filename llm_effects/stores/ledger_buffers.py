"""Rows of a ledger that wait to be written: bounded, so that a store that is gone costs no memory."""

from datetime import datetime, timedelta
from threading import Lock
from typing import Final, TypeAlias, final

from attrs import define, field

from llm_effects.records import LedgerRow

BATCH: Final = 100
"""How many rows are written at once."""

OLDEST: Final = timedelta(seconds=5)
"""How long a row waits for the next call, at the most, to be written with it."""

MOST: Final = 10_000
"""How many rows are kept of a store that cannot be written; then the oldest are dropped."""

_Rows: TypeAlias = tuple[LedgerRow, ...]


@final
@define(eq=False)
class RowBuffer:
    """Rows that wait, and those that are being written: for any number of threads.

    >>> RowBuffer(batch=2).held()
    ()
    """

    batch: int = BATCH
    oldest: timedelta = OLDEST
    most: int = MOST
    dropped: int = field(default=0, init=False)
    _waiting: list[LedgerRow] = field(factory=list[LedgerRow], init=False)
    _under_way: _Rows = field(default=(), init=False)
    _next: int = field(init=False)
    _since: datetime | None = field(default=None, init=False)
    _lock: Lock = field(factory=Lock, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._next = self.batch

    def add(self, row: LedgerRow) -> _Rows:
        """Keep a row; gives those that are to be written now, if any. There is one batch under way at a time."""
        with self._lock:
            self._waiting.append(row)
            self._since = self._since or row.at
            self._drop_too_many()
            due = len(self._waiting) >= self._next or row.at - self._since >= self.oldest
            return self._taken() if due and not self._under_way else ()

    def take(self) -> _Rows:
        """Give all rows that are not known to be stored, and forget them."""
        with self._lock:
            rows = (*self._under_way, *self._waiting)
            self._under_way = ()
            self._waiting.clear()
            return rows

    def written(self) -> None:
        """Forget the batch under way: it is stored."""
        with self._lock:
            self._under_way = ()
            self._next = self.batch

    def failed(self) -> None:
        """Keep the batch under way for another try, once as many rows again have come, or some time is over."""
        with self._lock:
            self._waiting[:0] = self._under_way
            self._under_way = ()
            self._drop_too_many()
            self._next = len(self._waiting) + self.batch

    def held(self) -> _Rows:
        """Give all rows that are not known to be stored."""
        with self._lock:
            return (*self._under_way, *self._waiting)

    def _taken(self) -> _Rows:
        self._under_way = tuple(self._waiting)
        self._waiting.clear()
        self._since = None
        return self._under_way

    def _drop_too_many(self) -> None:
        more = len(self._waiting) - self.most
        if more > 0:
            self.dropped += more
            del self._waiting[:more]
