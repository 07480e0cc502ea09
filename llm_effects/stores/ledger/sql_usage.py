"""Usage reports by the database: each hour of the ledger is summed up once, and reports add up hours.

The sums of an hour are a document of columns, which takes far less time to add up than rows do. What no document covers
is read row by row: the beginning and the end of a period, the hour that is running, and hours whose rows have changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from heapq import merge
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, Final, TypeAlias, final

import msgspec
from attrs import define, field, frozen
from returns.result import Result, Success
from sqlalchemy import Connection, bindparam, insert, text

from llm_effects.stores.ledger.usage_documents import (
    FIELDS,
    REQUESTS,
    Cell,
    Place,
    Totals,
    decode,
    document_of,
    encode,
    without_owners,
)
from llm_effects.stores.sql.tables import UNSAVED, USAGE, USAGE_CALLS, USAGE_HOURS, USAGE_LOCK, timestamp
from llm_effects.values.errors import LLMError
from llm_effects.values.json import dump
from llm_effects.values.responses import Cost, Usage
from llm_effects.values.usage import (
    GROUPS,
    LEFT_MACHINE,
    TOKENS,
    Dimension,
    GroupSums,
    Saving,
    UsageKey,
    UsageSums,
)

PART_ROWS: Final = 20_000
"""How many rows a document sums up at most, and after how many rows a transaction ends."""

_END: Final = "~"  # sorts after every time
_CallKeys: TypeAlias = tuple[str, UsageKey]


# Rows of the ledger, summed up by key and outcome.


_COLUMNS: Final = (
    *("at", "id", "call_id", *FIELDS, "outcome", "latency_ms", "first_content_ms", "cost_usd", "cache_saved_usd"),
    *("service_tier", *TOKENS),
)
_LEFT: Final = "CASE left_machine WHEN 1 THEN 'yes' WHEN 0 THEN 'no' ELSE '' END"
_ROW: Final = ", ".join(_LEFT if name == "left_machine" else name for name in _COLUMNS)
_KEY_END: Final = 3 + len(FIELDS)  # where the fields of a key end in a row

ROWS: Final = f"""SELECT {_ROW},
    (SELECT count(*) FROM llm_ledger AS same WHERE same.call_id = llm_ledger.call_id)
    FROM llm_ledger WHERE at >= :start AND at < :end ORDER BY at"""  # noqa: S608 - our own names
"""The rows of a period, each with the number of rows of its call."""


@final
@define
class _Calls:
    """The attempts of a call among some rows, and how many rows it has anywhere."""

    count: int
    places: list[Place] = field(factory=list[Place])


@final
@define
class _Cells:
    """Sums of rows by key and outcome. Calls that no single cell can count are in ``calls``, with their keys."""

    wanted: Collection[str]
    apart: Collection[str] = ()
    cells: dict[Place, Cell] = field(factory=dict[Place, Cell], init=False)
    calls: list[_CallKeys] = field(factory=list[_CallKeys], init=False)

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        """Add rows of ``ROWS``. No cell counts a call that is ``apart``, or that has rows elsewhere."""
        several: dict[str, _Calls] = {}
        for row in rows:
            place = _key_of(row, self.wanted), row[_KEY_END]
            cell = self.cells.get(place)
            if cell is None:
                cell = self.cells[place] = Cell()
            cell.add(row[_KEY_END:-1])
            if row[-1] == 1 and row[2] not in self.apart:
                cell.counts[REQUESTS] += 1
            else:
                several.setdefault(row[2], _Calls(row[-1])).places.append(place)
        for call_id, call in several.items():
            self._count(call_id, call)

    def _count(self, call_id: str, call: _Calls) -> None:
        keys = {key for key, _ in call.places}
        if len(keys) == 1 and len(call.places) == call.count and call_id not in self.apart:
            self.cells[call.places[0]].counts[REQUESTS] += 1
        else:
            self.calls += [(call_id, key) for key in keys]


def _key_of(row: Sequence[Any], wanted: Collection[str]) -> UsageKey:
    """Return the key of a row, without its hour, of which only the ``wanted`` fields are filled in."""
    model, provider, task, owner, left, tags = row[3:_KEY_END]
    return UsageKey(
        model=model if "model" in wanted else "",
        provider=provider if "provider" in wanted else "",
        task=task if "task" in wanted else "",
        owner=(owner or "") if "owner" in wanted else "",
        left_machine=left if "left_machine" in wanted else "",
        tags=_tags(tags) if "tags" in wanted else (),
    )


@lru_cache(1_000)
def _tags(stored: str) -> tuple[str, ...]:
    return tuple(msgspec.json.decode(stored, type=list[str]))


# Summing up hours.


def sum_up_hours(connection: Connection) -> Result[bool, LLMError]:
    """Sum up hours before the newest one that are not summed up; return whether some are left for another step."""
    rows = 0
    for hour in unsummed_hours(connection):
        if rows >= PART_ROWS:
            return Success(True)
        rows += _sum_up(connection, hour)
    return Success(False)


def unsummed_hours(connection: Connection) -> Iterator[str]:
    """Return the hours before the newest one that have rows but no sums."""
    newest = (connection.execute(text(NEWEST)).scalar() or "")[:13]
    for start, end in _gaps(_hours(connection, "", newest), "", newest):
        at = _first(connection, start, end)
        while at is not None:
            yield at[:13]
            at = _first(connection, at[:13] + _END, end)


NEWEST: Final = "SELECT max(at) FROM llm_ledger"
FIRST: Final = "SELECT min(at) FROM llm_ledger WHERE at >= :start AND at < :end"


def _first(connection: Connection, start: str, end: str) -> str | None:
    found: str | None = connection.execute(text(FIRST), {"start": start, "end": end}).scalar()
    return found


def _sum_up(connection: Connection, hour: str) -> int:
    """Store the sums of an hour; return the number of its rows."""
    if connection.dialect.name == "postgresql":
        lock = text(f"SELECT pg_advisory_xact_lock({USAGE_LOCK}, hashtext(:hour))")
        connection.execute(lock, {"hour": hour})
    if connection.execute(text("SELECT 1 FROM llm_usage_hours WHERE hour = :hour"), {"hour": hour}).scalar():
        return 0  # another process was faster
    connection.execute(text("DELETE FROM llm_usage WHERE hour = :hour"), {"hour": hour})
    connection.execute(text("DELETE FROM llm_usage_calls WHERE hour = :hour"), {"hour": hour})
    rows, calls = 0, list[_CallKeys]()
    for part, each in enumerate(_in_parts(_stream(connection, ROWS, {"start": hour, "end": hour + _END}))):
        cells = _Cells(FIELDS)
        cells.add(each)
        for detailed, some in ((0, without_owners(cells.cells)), (1, cells.cells)):
            document = encode(document_of(some))
            entry = {"detailed": detailed, "hour": hour, "part": part, "document": document}
            connection.execute(insert(USAGE), entry)
        rows, calls = rows + len(each), calls + cells.calls
    if calls:
        connection.execute(insert(USAGE_CALLS), [_call_columns(hour, *each) for each in enumerate(calls)])
    connection.execute(insert(USAGE_HOURS), {"hour": hour})
    return rows


def _call_columns(hour: str, place: int, call: _CallKeys) -> dict[str, object]:
    call_id, key = call
    named = {name: getattr(key, name) for name in FIELDS}
    return {**named, "hour": hour, "call_id": call_id, "place": place, "tags": dump(list(key.tags)).decode()}


def _in_parts(rows: Iterable[Any]) -> Iterator[Sequence[Any]]:
    rest = iter(rows)
    while part := list(islice(rest, PART_ROWS)):
        yield part


# Reading.


@final
@frozen(kw_only=True)
class Period:
    """The rows of a report: from ``since`` up to ``until``, and those that wait to be written, as columns."""

    since: datetime | None
    until: datetime | None
    waiting: Sequence[Mapping[str, Any]] = ()

    @property
    def start(self) -> str:
        """The time from which on rows count."""
        return "" if self.since is None else timestamp(self.since)

    @property
    def end(self) -> str:
        """The time before which rows count."""
        return _END if self.until is None else timestamp(self.until)

    @property
    def first_hour(self) -> str:
        """The text from which on hours are whole; up to ``last_hour``, which is not."""
        return self.start if self.start[13:] in {"", ":00:00.000000+00:00"} else self.start[:13] + _END

    @property
    def last_hour(self) -> str:
        """The text before which hours are whole."""
        return self.end[:13]


def read_usage(
    connection: Connection, bys: Sequence[tuple[Dimension, ...]], period: Period, saving: Saving
) -> Result[Sequence[UsageSums], LLMError]:
    """Return the sums of a period, for several reports at once."""
    sums = [UsageSums(by) for by in bys]
    _Reader(connection, sums, period, saving).read()
    return Success(sums)


@final
@define
class _Reader:
    """A report that is being read, in one transaction."""

    connection: Connection
    sums: Sequence[UsageSums]
    period: Period
    saving: Saving
    wanted: Sequence[str] = field(init=False)
    totals: Totals = field(init=False)
    waiting: dict[tuple[str, str], Mapping[str, Any]] = field(init=False)
    calls: list[_CallKeys] = field(factory=list[_CallKeys], init=False)

    def __attrs_post_init__(self) -> None:
        by: set[Dimension] = {dimension for each in self.sums for dimension in each.by}
        fields = {GROUPS[dimension][0] for dimension in by}
        self.wanted = tuple(name for name in FIELDS if name in fields)
        self.totals = Totals(self.wanted, 13 if "hour" in by else 10 if "day" in by else 0)
        self.waiting = {(row["at"], row["id"]): row for row in self.period.waiting}

    def read(self) -> None:
        """Read all that the report needs."""
        ours = {row["call_id"] for row in self.waiting.values()}
        changed, period = self._changed_hours(ours), self.period
        hours = [each for each in _hours(self.connection, period.first_hour, period.last_hour) if each not in changed]
        for start, end in _gaps(hours, period.start, period.end):
            self._read_rows(start, end, ours)
        self._add_waiting()
        self._read_documents(changed)
        for key, part in self.totals.parts():
            self._add(key, part)
        self._read_calls(changed)
        for row in _stream(self.connection, UNSAVED_ROWS, {"start": period.start, "end": period.end}):
            self._add_saving(row)

    @property
    def detailed(self) -> bool:
        """Whether the report needs owners or tags."""
        return not {"owner", "tags"}.isdisjoint(self.wanted)

    def _add(self, key: UsageKey, part: GroupSums) -> None:
        for each in self.sums:
            each.add(key, part)

    def _changed_hours(self, ours: Collection[str]) -> Collection[str]:
        """Return the hours of the rows that wait, and of the stored rows of their calls."""
        query = text("SELECT DISTINCT substr(at, 1, 13) FROM llm_ledger WHERE call_id IN :calls")
        hours = {at[:13] for at, _ in self.waiting}
        calls = iter(sorted(ours))
        while some := list(islice(calls, 500)):
            found = self.connection.execute(query.bindparams(bindparam("calls", some, expanding=True)))
            hours.update(found.scalars())
        return hours

    def _read_rows(self, start: str, end: str, ours: Collection[str]) -> None:
        rows = _stream(self.connection, ROWS, {"start": start, "end": end})
        for hour, each in groupby(self._stored(rows), key=_hour_of):
            for part in _in_parts(each):
                self._add_rows(hour, part, ours)

    def _stored(self, rows: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
        """Pass rows on; one that is stored waits no longer."""
        for row in rows:
            if self.waiting:
                self.waiting.pop((row[0], row[1]), None)
            yield row

    def _add_waiting(self) -> None:
        start, end = self.period.start, self.period.end
        rows = sorted(
            (*(_shown(name, each[name]) for name in _COLUMNS), 0)
            for (at, _), each in self.waiting.items()
            if start <= at < end
        )
        for hour, each in groupby(rows, key=_hour_of):
            self._add_rows(hour, each, ())
        for row in rows:
            if row[_COLUMNS.index("cache_saved_usd")] is None and row[_COLUMNS.index("cost_usd")] is not None:
                self._add_saving(row[:-1])

    def _add_rows(self, hour: str, rows: Iterable[Sequence[Any]], ours: Collection[str]) -> None:
        cells = _Cells(self.wanted, ours)
        cells.add(rows)
        if cells.cells:
            self.totals.add(hour, document_of(cells.cells))
        at = hour[: self.totals.hour]
        self.calls += [(call_id, key._replace(hour=at)) for call_id, key in cells.calls]

    def _read_documents(self, changed: Collection[str]) -> None:
        bounds = {"first": self.period.first_hour, "end": self.period.last_hour, "detailed": int(self.detailed)}
        for count, (hour, document) in enumerate(_stream(self.connection, DOCUMENTS, bounds, 8)):
            if hour not in changed:
                self.totals.add(hour, decode(document))
            if count % 100 == 0:
                self.totals.count_times()

    def _read_calls(self, changed: Collection[str]) -> None:
        """Count the calls that several cells have rows of: in the order of calls, so that few are in memory."""
        bounds = {"first": self.period.first_hour, "end": self.period.last_hour}
        stored = _stream(self.connection, calls_query(self.totals.hour, self.wanted), bounds)
        keys_of = _CallKeysOf(self.wanted)
        whole = ((row[0], keys_of[row[2:]]) for row in stored if row[1] not in changed)
        for _, rows in groupby(merge(whole, sorted(self.calls), key=itemgetter(0)), key=itemgetter(0)):
            keys = {key for _, key in rows}
            for each in self.sums:
                each.count_call(keys)

    def _add_saving(self, row: Sequence[Any]) -> None:
        """Add what a cache saved of a cost, at the prices of the report, where the row does not say it."""
        named = dict(zip(_COLUMNS, row, strict=True))
        usage = Usage(service_tier=named["service_tier"], **{name: named[name] for name in TOKENS})
        cost, at = Cost(Decimal(named["cost_usd"])), datetime.fromisoformat(named["at"])
        key = _key_of(row, self.wanted)._replace(hour=named["at"][: self.totals.hour])
        self._add(key, GroupSums(cache_saved_usd=self.saving(named["model"], usage, cost, at)))


@final
@define(eq=False)
class _CallKeysOf(dict[Sequence[Any], UsageKey]):
    """The keys of rows of ``calls_query``: there are far fewer than rows."""

    fields: Sequence[str]

    def __missing__(self, row: Sequence[Any]) -> UsageKey:
        named: dict[str, Any] = dict(zip(("hour", *self.fields), row, strict=True))
        named["tags"] = _tags(named.get("tags", "[]"))
        key = UsageKey(**named)
        self[row] = key
        return key


def _shown(name: str, value: object) -> object:
    """Return the value of a column as ``ROWS`` returns it."""
    return ("" if value is None else LEFT_MACHINE[bool(value)]) if name == "left_machine" else value


def _hour_of(row: Sequence[Any]) -> str:
    hour: str = row[0][:13]
    return hour


_SUMMED: Final = "hour IN (SELECT hour FROM llm_usage_hours WHERE hour >= :first AND hour < :end)"

HOURS: Final = "SELECT hour FROM llm_usage_hours WHERE hour >= :first AND hour < :end ORDER BY hour"
"""The hours of a period that are summed up."""

DOCUMENTS: Final = f"SELECT hour, document FROM llm_usage WHERE detailed = :detailed AND {_SUMMED} ORDER BY hour, part"  # noqa: S608
"""The sums of these hours."""

UNSAVED_ROWS: Final = f"""SELECT {_ROW} FROM llm_ledger
    WHERE {UNSAVED} AND at >= :start AND at < :end"""  # noqa: S608 - our own names
"""The rows of a period that do not say what a cache saved."""


def calls_query(hour: int, fields: Sequence[str]) -> str:
    """Return the query of the calls that no single cell of these hours counts, in the order of their ids."""
    names = ", ".join(("call_id", "hour", f"substr(hour, 1, {hour})", *fields))
    return f"SELECT {names} FROM llm_usage_calls WHERE {_SUMMED} ORDER BY call_id"  # noqa: S608 - our own names


def _hours(connection: Connection, first: str, end: str) -> Sequence[str]:
    return connection.execute(text(HOURS), {"first": first, "end": end}).scalars().all()


def _gaps(hours: Sequence[str], start: str, end: str) -> Iterator[tuple[str, str]]:
    """Return the periods between ``start`` and ``end`` that no hour covers."""
    before = None
    for hour in hours:
        if before is None or _number(hour) != _number(before) + 1:
            yield start, hour
        before, start = hour, hour + _END
    yield start, end


def _number(hour: str) -> int:
    return round(datetime.fromisoformat(f"{hour}:00+00:00").timestamp()) // 3600


def _stream(connection: Connection, query: str, values: Mapping[str, object], at_once: int = 2_000) -> Iterator[Any]:
    """Return rows, some at once, so that memory does not grow with their number."""
    return iter(connection.execute(text(query), dict(values), execution_options={"yield_per": at_once}))
