"""Usage reports by the database: each hour and each day of the ledger is summed up once, and reports add these up.

The sums of an hour are a document of columns, which takes far less time to add up than rows do. Those of a day are
added up from its hours, several times by different fields: a report reads the smallest that have the fields it needs.

What no document covers is read row by row: the beginning and the end of a period, the hour that is running, and hours
whose rows have changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from heapq import merge
from itertools import chain, groupby, islice, product
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
    Document,
    Place,
    Totals,
    decode,
    document_of,
    encode,
    narrowed,
)
from llm_effects.stores.sql.tables import UNSAVED, USAGE, USAGE_CALLS, USAGE_HOURS, USAGE_LOCK, lock_usage, timestamp
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
_TEN_DAYS, _DAY, _HOUR = 9, 10, 13  # how much of the text of a time names its span, such as 2026-11-2 for ten days
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


_PLACES: Final = ("model", "provider", "left_machine")

_OF_HOURS: Final[Mapping[int, tuple[str, ...]]] = {0: (*_PLACES, "task"), 1: FIELDS}
"""The fields of the documents of an hour, by what the column ``detailed`` says."""

OF_SPANS: Final[Mapping[int, tuple[str, ...]]] = {
    3: (*_PLACES, "task"),
    4: (*_PLACES, "task", "tags"),
    5: (*_PLACES, "task", "owner"),
    6: ("task", "owner", "tags"),
    7: (*_PLACES, "owner", "tags"),
    2: FIELDS,
}
"""The fields of the documents of longer spans: few, then all but one of those with many values, then all."""

_WHOLE_HOUR, _WHOLE_SPAN = max(_OF_HOURS), min(OF_SPANS)

_CELLS_PER_ROW: Final = 5  # adding up a cell of a document takes a fifth of the time of a row, or less
_ROWS_PER_SPAN: Final = 100  # the statements for an hour, or for a longer span, take as long as that many rows


def sum_up(
    connection: Connection, views: Collection[int] = tuple(reversed(tuple(OF_SPANS))), *, wait: bool = True
) -> Result[bool, LLMError]:
    """Sum up hours, then days, then tens of days, by some views; return whether some are left for another step.

    Where this does not ``wait``, all is left to a process that sums up already.
    """
    if not lock_usage(connection, wait=wait):
        return Success(False)
    rows = 0
    for hour in unsummed_hours(connection):
        if rows >= PART_ROWS:
            return Success(True)
        rows += _ROWS_PER_SPAN + _sum_up_hour(connection, hour)
    for view, span, hours in unsummed_spans(connection, views):
        if rows >= PART_ROWS:
            return Success(True)
        rows += _ROWS_PER_SPAN + _sum_up_span(connection, view, span, hours)
    return Success(False)


def is_unsummed(connection: Connection, views: Collection[int]) -> Result[bool, LLMError]:
    """Return whether there is something to sum up."""
    left = chain(unsummed_hours(connection), unsummed_spans(connection, views))
    return Success(next(left, None) is not None)


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


def unsummed_spans(connection: Connection, views: Collection[int]) -> Iterator[tuple[int, str, Sequence[str]]]:
    """Return the views, and the days and tens of days that are over, without sums or with sums that do not count.

    Sums count while as many hours do as they are of: an hour that is summed up anew drops them. Each comes with the
    hours that count now: on a server, a late row may take one of them out before its sums are made.
    """
    newest = connection.execute(text(NEWEST)).scalar() or ""
    hours = _hours(connection, "", newest[:_DAY])
    summed = {tuple(row) for row in connection.execute(text(SUMMED_SPANS))}
    for length in (_DAY, _TEN_DAYS):
        over = (hour for hour in hours if hour < newest[:length])
        for span, each in groupby(over, key=itemgetter(slice(length))):
            some = list(each)
            yield from ((view, span, some) for view in views if (view, span, len(some)) not in summed)


def _first(connection: Connection, start: str, end: str) -> str | None:
    found: str | None = connection.execute(text(FIRST), {"start": start, "end": end}).scalar()
    return found


def _sum_up_hour(connection: Connection, hour: str) -> int:
    """Store the sums of an hour; return the number of its rows."""
    if connection.dialect.name == "postgresql":  # a transaction that changes its rows has the lock too
        lock = text(f"SELECT pg_advisory_xact_lock({USAGE_LOCK}, hashtext(:hour))")
        connection.execute(lock, {"hour": hour})
    if connection.execute(text("SELECT 1 FROM llm_usage_hours WHERE hour = :hour"), {"hour": hour}).scalar():
        return 0  # a process of an earlier version was faster
    connection.execute(text("DELETE FROM llm_usage WHERE hour = :hour"), {"hour": hour})
    connection.execute(text("DELETE FROM llm_usage_calls WHERE hour = :hour"), {"hour": hour})
    rows, calls = 0, list[_CallKeys]()
    for part, each in enumerate(_in_parts(_stream(connection, ROWS, {"start": hour, "end": hour + _END}))):
        cells = _Cells(FIELDS)
        cells.add(each)
        whole = document_of(cells.cells)
        for view, fields in _OF_HOURS.items():
            [document] = [whole] if fields == FIELDS else narrowed([whole], fields)
            store_document(connection, detailed=view, hour=hour, part=part, document=encode(document))
        rows, calls = rows + len(each), calls + cells.calls
    if calls:
        connection.execute(insert(USAGE_CALLS), [_call_columns(hour, *each) for each in enumerate(calls)])
    connection.execute(insert(USAGE_HOURS), {"hour": hour})  # a trigger drops the day that lacks this hour
    return rows


def _sum_up_span(connection: Connection, view: int, span: str, hours: Sequence[str]) -> int:
    """Store the sums of a span by the fields of a view; return how many rows could be read in the same time."""
    of_span = {"detailed": view, "hour": span}
    connection.execute(text("DELETE FROM llm_usage WHERE detailed = :detailed AND hour = :hour"), of_span)
    source, cells = _source_of(view, span, hours), 0

    def documents() -> Iterator[Document]:
        nonlocal cells
        for _, document in _documents(connection, *source):
            cells += len(document.places["outcome"])
            yield document

    for part, document in enumerate(narrowed(documents(), OF_SPANS[view])):
        store_document(connection, **of_span, part=part, hours=len(hours), document=encode(document))
    return cells // _CELLS_PER_ROW


def _source_of(view: int, span: str, hours: Sequence[str]) -> tuple[int, Sequence[str]]:
    """Return the view and the spans that make up a span."""
    if len(span) == _TEN_DAYS:
        return view, sorted(set(map(_day_of, hours)))
    return (_WHOLE_HOUR, hours) if view == _WHOLE_SPAN else (_WHOLE_SPAN, [span])


def store_document(connection: Connection, **columns: object) -> None:
    """Store a document with its view, its hour or longer span, its part, and of how many hours it is."""
    connection.execute(insert(USAGE), columns)


def _documents(connection: Connection, view: int, spans: Sequence[str]) -> Iterator[tuple[str, Document]]:
    """Read the documents of neighbouring spans of the same length."""
    bounds, wanted = {"detailed": view, "first": spans[0], "last": spans[-1]}, frozenset(spans)
    for span, document in _stream(connection, DOCUMENTS, bounds, 8):
        if span in wanted:
            yield span, decode(document)


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
        hour, rest = self.start[:_HOUR], self.start[_HOUR:]
        return hour if rest in {"", ":00:00.000000+00:00"} else hour + _END

    @property
    def last_hour(self) -> str:
        """The text before which hours are whole."""
        return self.end[:_HOUR]


def read_usage(
    connection: Connection, bys: Sequence[tuple[Dimension, ...]], period: Period, saving: Saving
) -> Result[Sequence[UsageSums], LLMError]:
    """Return the sums of a period, for several reports at once."""
    sums = [UsageSums(by) for by in bys]
    _Reader(connection, sums, period, saving).read()
    return Success(sums)


def views_of(bys: Sequence[Sequence[Dimension]]) -> Collection[int]:
    """Return the views of spans that reports need, after that from which they are made."""
    views = _WHOLE_SPAN, view_of(OF_SPANS, _fields_of(bys))
    return () if _length_of_times(bys) == _HOUR else tuple(dict.fromkeys(views))


def view_of(views: Mapping[int, Sequence[str]], fields: Sequence[str]) -> int:
    """Return the first view that has these fields.

    >>> view_of(OF_SPANS, ("model",)), view_of(OF_SPANS, ("owner", "tags")), view_of(OF_SPANS, FIELDS)
    (3, 6, 2)
    """
    return next(view for view, every in views.items() if set(fields) <= set(every))


def _fields_of(bys: Sequence[Sequence[Dimension]]) -> tuple[str, ...]:
    fields = {GROUPS[dimension][0] for by in bys for dimension in by}
    return tuple(name for name in FIELDS if name in fields)


def _length_of_times(bys: Sequence[Sequence[Dimension]]) -> int:
    """Return how much of the text of an hour reports need."""
    every = {dimension for by in bys for dimension in by}
    return _HOUR if "hour" in every else _DAY if "day" in every else 0


@final
@define
class _Reader:
    """A report that is being read, in one transaction."""

    connection: Connection
    sums: Sequence[UsageSums]
    period: Period
    saving: Saving
    wanted: tuple[str, ...] = field(init=False)
    totals: Totals = field(init=False)
    waiting: dict[tuple[str, str], Mapping[str, Any]] = field(init=False)
    unsaved: Sequence[Sequence[Any]] = field(default=(), init=False)
    calls: list[_CallKeys] = field(factory=list[_CallKeys], init=False)

    def __attrs_post_init__(self) -> None:
        bys = [each.by for each in self.sums]
        self.wanted = _fields_of(bys)
        self.totals = Totals(self.wanted, _length_of_times(bys))
        self.waiting = {(row["at"], row["id"]): row for row in self.period.waiting}

    def read(self) -> None:
        """Read all that the report needs."""
        ours = {row["call_id"] for row in self.waiting.values()}
        changed, period = self._changed_hours(ours), self.period
        hours = [each for each in _hours(self.connection, period.first_hour, period.last_hour) if each not in changed]
        for start, end in _gaps(hours, period.start, period.end):
            if _first(self.connection, start, end) is not None:  # most gaps are empty, and a stream takes longer
                self._read_rows(start, end, ours)
        self._add_waiting()
        self._read_documents(hours)
        keys = self.totals.keys()
        for each in self.sums:
            each.add_all(keys, self.totals.sums_of)
        self._read_calls(changed)
        stored = _stream(self.connection, UNSAVED_ROWS, {"start": period.start, "end": period.end})
        for row in chain(self.unsaved, stored):
            self._add_saving(row)

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
        saved, cost = map(_COLUMNS.index, ("cache_saved_usd", "cost_usd"))
        self.unsaved = [row[:-1] for row in rows if row[saved] is None and row[cost] is not None]

    def _add_rows(self, hour: str, rows: Iterable[Sequence[Any]], ours: Collection[str]) -> None:
        cells = _Cells(self.wanted, ours)
        cells.add(rows)
        if cells.cells:
            self.totals.add(hour, document_of(cells.cells))
        at = hour[: self.totals.hour]
        self.calls += [(call_id, key._replace(hour=at)) for call_id, key in cells.calls]

    def _read_documents(self, hours: Sequence[str]) -> None:
        for count, (hour, document) in enumerate(self._documents(hours), 1):
            self.totals.add(hour, document)
            if count % 50 == 0:
                self.totals.count_times()

    def _documents(self, hours: Sequence[str]) -> Iterator[tuple[str, Document]]:
        """Return the documents of the longest spans of which all hours count, then those of the hours left."""
        view = view_of(OF_SPANS, self.wanted)
        left: Sequence[str] = hours
        for length in (_TEN_DAYS, _DAY):
            if left and self.totals.hour <= length:
                counts, read = Counter(hour[:length] for hour in left), set[str]()
                bounds = {"detailed": view, "first": left[0][:length], "last": left[-1], "length": length}
                for span, count, document in _stream(self.connection, SPANS, bounds, 8):
                    if count == counts[span]:
                        read.add(span)
                        yield span, decode(document)
                left = _outside(read, left)
        for is_left, each in groupby(hours, key=frozenset(left).__contains__):
            if is_left:
                yield from _documents(self.connection, view_of(_OF_HOURS, self.wanted), list(each))

    def _read_calls(self, changed: Collection[str]) -> None:
        """Count the calls that several cells have rows of: in the order of calls, so that few are in memory."""
        bounds = {"first": self.period.first_hour, "end": self.period.last_hour}
        stored = _stream(self.connection, calls_query(self.totals.hour, self.wanted), bounds)
        keys_of = _CallKeysOf(self.wanted)
        whole = ((row[0], keys_of[row[2:]]) for row in stored if row[1] not in changed)
        by_call = groupby(merge(whole, sorted(self.calls), key=itemgetter(0)), key=itemgetter(0))
        calls = (frozenset(key for _, key in rows) for _, rows in by_call)
        while some := Counter(islice(calls, PART_ROWS)):  # many calls have the same keys
            for each, (keys, count) in product(self.sums, some.items()):
                each.count_calls(keys, count)

    def _add_saving(self, row: Sequence[Any]) -> None:
        """Add what a cache saved of a cost, at the prices of the report, where the row does not say it."""
        named = dict(zip(_COLUMNS, row, strict=True))
        usage = Usage(service_tier=named["service_tier"], **{name: named[name] for name in TOKENS})
        cost, at = Cost(Decimal(named["cost_usd"])), datetime.fromisoformat(named["at"])
        key = _key_of(row, self.wanted)._replace(hour=named["at"][: self.totals.hour])
        for each in self.sums:
            each.add(key, GroupSums(cache_saved_usd=self.saving(named["model"], usage, cost, at)))


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


def _outside(spans: set[str], hours: Sequence[str]) -> Sequence[str]:
    return [hour for hour in hours if spans.isdisjoint((hour[:_TEN_DAYS], hour[:_DAY]))]


def _hour_of(row: Sequence[Any]) -> str:
    hour: str = row[0][:_HOUR]
    return hour


def _day_of(hour: str) -> str:
    return hour[:_DAY]


_SUMMED: Final = "hour IN (SELECT hour FROM llm_usage_hours WHERE hour >= :first AND hour < :end)"

HOURS: Final = "SELECT hour FROM llm_usage_hours WHERE hour >= :first AND hour < :end ORDER BY hour"
"""The hours of a period that are summed up."""

DOCUMENTS: Final = """SELECT hour, document FROM llm_usage
    WHERE detailed = :detailed AND hour >= :first AND hour <= :last ORDER BY hour, part"""
"""The sums of hours."""

SPANS: Final = """SELECT hour, hours, document FROM llm_usage
    WHERE detailed = :detailed AND hour >= :first AND hour <= :last AND length(hour) = :length ORDER BY hour, part"""
"""The sums of days, or of tens of days, with how many hours they are of."""

SUMMED_SPANS: Final = "SELECT detailed, hour, hours FROM llm_usage WHERE hours IS NOT NULL"
"""The days and tens of days that are summed up, with the numbers of their hours."""

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
    rows = connection.execute(text(query), dict(values), execution_options={"yield_per": at_once})
    return chain.from_iterable(rows.partitions())
