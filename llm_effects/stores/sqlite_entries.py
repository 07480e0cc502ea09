"""What is said to the tables of the SQLite cache. Times are seconds since 1970."""

import math
import sqlite3
from collections.abc import Iterable
from typing import Final, final

from attrs import frozen

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
