"""Documents: the sums of some rows of the ledger by key and outcome, as columns, and adding documents up.

In the database, a column has the narrowest type that holds its numbers, and one that is all 0 is left out. Costs are
units of 1e-12 US dollars.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Context, Decimal
from itertools import chain, repeat
from typing import Any, Final, TypeAlias, TypeVar, final

import msgspec
from attrs import define, field, frozen

from llm_effects.values.responses import SUCCESS
from llm_effects.values.usage import TOKENS, GroupSums, UsageKey, exact_sum, time_code

FIELDS: Final = UsageKey._fields[1:]
"""The fields of a key in a document: the hour is that of the document."""

Place: TypeAlias = tuple[UsageKey, str]
"""A key and an outcome."""

_Key = TypeVar("_Key")


# Cells.


_COUNTS: Final = ("attempts", "requests", "unknown_costs", *TOKENS)
_ATTEMPTS, REQUESTS, _UNKNOWN, _FIRST_TOKENS = range(4)


@final
@define
class Cell:
    """The sums of rows with the same key and outcome: ``counts`` are those of ``_COUNTS``, times are codes."""

    counts: list[int] = field(factory=lambda: [0] * len(_COUNTS))
    cost_usd: Decimal = Decimal(0)
    cache_saved_usd: Decimal = Decimal(0)
    latency_ms: list[int] = field(factory=list[int])
    first_content_ms: list[int] = field(factory=list[int])

    def add(self, row: Sequence[Any]) -> None:
        """Add a row by its columns from the outcome on, but not its call."""
        outcome, latency_ms, first_content_ms, cost, saved, tier, *tokens = row
        self._add_counts(cost, saved, tokens)
        if outcome == SUCCESS and tier != "batch":  # whose latency is that of a queue
            self.latency_ms.append(time_code(latency_ms))
            if first_content_ms is not None:
                self.first_content_ms.append(time_code(first_content_ms))

    def _add_counts(self, cost: str | None, saved: str | None, tokens: Sequence[int | None]) -> None:
        counts = self.counts
        counts[_ATTEMPTS] += 1
        for place, count in enumerate(tokens, _FIRST_TOKENS):
            if count:
                counts[place] += count
        if cost is None:
            counts[_UNKNOWN] += 1
        else:
            self.cost_usd = exact_sum(self.cost_usd, Decimal(cost))
        if saved is not None:
            self.cache_saved_usd = exact_sum(self.cache_saved_usd, Decimal(saved))

    def merge(self, other: Cell) -> None:
        """Add another cell."""
        self.counts = [ours + theirs for ours, theirs in zip(self.counts, other.counts, strict=True)]
        self.cost_usd = exact_sum(self.cost_usd, other.cost_usd)
        self.cache_saved_usd = exact_sum(self.cache_saved_usd, other.cache_saved_usd)
        self.latency_ms += other.latency_ms
        self.first_content_ms += other.first_content_ms


def without_owners(cells: Mapping[Place, Cell]) -> Mapping[Place, Cell]:
    """Add up cells that differ in nothing but their owners and tags."""
    fewer: dict[Place, Cell] = {}
    for (key, outcome), cell in cells.items():
        place = key._replace(owner="", tags=()), outcome
        if place not in fewer:
            fewer[place] = Cell()
        fewer[place].merge(cell)
    return fewer


# Cells as columns.


_COSTS: Final = ("cost_usd", "cache_saved_usd")
_TIMES: Final = ("latency_ms", "first_content_ms")
_PICO: Final = 12
_EXACT: Final = Context(prec=1_000)
_LARGEST: Final = 2**63 - 1
_TYPES: Final = (("B", 0, 2**8), ("H", 0, 2**16), ("I", 0, 2**32), ("q", -(2**63), 2**63))


@final
@frozen
class Document:
    """Cells as columns: which of the ``values`` each has, its sums, and its times, with how many each has.

    ``rest`` has the sums, by cell, that are too large for their column, or too fine.
    """

    values: Mapping[str, Sequence[Any]]
    places: Mapping[str, Sequence[int]]
    sums: Mapping[str, Sequence[int]]
    times: Mapping[str, tuple[Sequence[int], Sequence[int]]]
    rest: Mapping[str, Mapping[int, str]]


def document_of(cells: Mapping[Place, Cell]) -> Document:
    """Return cells as columns."""
    values: dict[str, Sequence[Any]] = {}
    places: dict[str, Sequence[int]] = {}
    columns = zip(*((*key[1:], outcome) for key, outcome in cells), strict=True)
    for name, column in zip((*FIELDS, "outcome"), columns, strict=True):
        distinct = {value: place for place, value in enumerate(dict.fromkeys(column))}
        values[name], places[name] = list(distinct), [distinct[value] for value in column]
    every, rest = list(cells.values()), dict[str, dict[int, str]]()
    counts = zip(*(cell.counts for cell in every), strict=True)
    sums = {name: list(column) for name, column in zip(_COUNTS, counts, strict=True)}
    _move_largest(sums, rest)
    for name in _COSTS:
        sums[name] = _in_pico([getattr(cell, name) for cell in every], rest.setdefault(name, {}))
    times = {name: _times_of([getattr(cell, name) for cell in every]) for name in _TIMES}
    return Document(values, places, sums, times, rest)


def _move_largest(sums: Mapping[str, list[int]], rest: dict[str, dict[int, str]]) -> None:
    for name, column in sums.items():
        if max(column) > _LARGEST:
            rest[name] = {place: str(count) for place, count in enumerate(column) if count > _LARGEST}
            column[:] = [0 if count > _LARGEST else count for count in column]


def _in_pico(amounts: Sequence[Decimal], rest: dict[int, str]) -> list[int]:
    column = [0] * len(amounts)
    for place, usd in enumerate(amounts):
        if usd:
            pico = usd.scaleb(_PICO, _EXACT)
            if pico == pico.to_integral_value() and abs(pico) <= _LARGEST:
                column[place] = int(pico)
            else:
                rest[place] = f"{usd:f}"
    return column


def _times_of(codes: Sequence[Sequence[int]]) -> tuple[Sequence[int], Sequence[int]]:
    return [len(each) for each in codes], list(chain.from_iterable(codes))


def encode(document: Document) -> bytes:
    """Encode a document for the database."""
    return msgspec.msgpack.encode(
        {
            "values": document.values,
            "places": {name: _pack(column) for name, column in document.places.items()},
            "sums": {name: _pack(column) for name, column in document.sums.items() if any(column)},
            "times": {name: tuple(map(_pack, columns)) for name, columns in document.times.items() if columns[1]},
            "rest": {name: each for name, each in document.rest.items() if each},
        }
    )


def decode(stored: bytes) -> Document:
    """Decode a document from the database."""
    fields = msgspec.msgpack.decode(stored)
    return Document(
        values=fields["values"],
        places={name: _unpack(column) for name, column in fields["places"].items()},
        sums={name: _unpack(column) for name, column in fields["sums"].items()},
        times={name: (_unpack(counts), _unpack(codes)) for name, (counts, codes) in fields["times"].items()},
        rest=fields["rest"],
    )


def _pack(numbers: Sequence[int]) -> tuple[str, bytes]:
    low, high = min(numbers), max(numbers)
    kind = next(kind for kind, least, limit in _TYPES if least <= low and high < limit)
    return kind, _little_endian(array(kind, numbers)).tobytes()


def _unpack(column: tuple[str, bytes]) -> Sequence[int]:
    kind, stored = column
    return _little_endian(array(kind, stored))


def _little_endian(numbers: array[int]) -> array[int]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


_FEW: Final = 4  # times in a cell: adding them one by one is faster than slice by slice
_MANY: Final = 4_096


# Adding up documents: a number for each key and outcome, and lists of sums by that number.


@final
class _Numbers(dict[_Key, int]):
    """Numbers from 0, in the order in which keys are asked for."""

    def __missing__(self, key: _Key) -> int:
        self[key] = number = len(self)
        return number


@final
@define
class Totals:
    """The sums of documents by some fields of keys, and by outcome. ``hour`` is how much of an hour's text counts."""

    fields: tuple[str, ...]
    hour: int
    _numbers: _Numbers[tuple[int, ...]] = field(factory=_Numbers[tuple[int, ...]], init=False)
    _values: _Numbers[Any] = field(factory=_Numbers[Any], init=False)
    _sums: dict[str, list[int]] = field(factory=dict[str, list[int]], init=False)
    _parts: list[GroupSums] = field(factory=list[GroupSums], init=False)
    _times: dict[str, list[array[int]]] = field(factory=dict[str, "list[array[int]]"], init=False)

    def __attrs_post_init__(self) -> None:
        self._sums = {name: [] for name in (*_COUNTS, *_COSTS)}
        self._times = {name: [] for name in _TIMES}

    def add(self, hour: str, document: Document) -> None:
        """Add the document of an hour."""
        numbers = self._numbers_of(hour, document)
        self._grow()
        for name, column in document.sums.items():
            totals = self._sums[name]
            for number, each in zip(numbers, column, strict=True):
                totals[number] += each
        for name, (counts, codes) in document.times.items():
            self._add_times(self._times[name], numbers, counts, codes)
        for name, rest in document.rest.items():
            for place, amount in rest.items():
                self._add_rest(self._parts[numbers[place]], name, amount)

    def _numbers_of(self, hour: str, document: Document) -> Sequence[int]:
        columns: list[Iterable[int]] = [repeat(self._values[hour[: self.hour]])]
        for name in (*self.fields, "outcome"):
            values = [self._values[tuple(value) if name == "tags" else value] for value in document.values[name]]
            columns.append(map(values.__getitem__, document.places[name]))
        return list(map(self._numbers.__getitem__, zip(*columns, strict=False)))

    def _grow(self) -> None:
        more = range(len(self._numbers) - len(self._parts))
        self._parts += [GroupSums() for _ in more]
        for totals in self._sums.values():
            totals.extend(0 for _ in more)
        for times in self._times.values():
            times.extend(array("H") for _ in more)

    @staticmethod
    def _add_times(
        times: Sequence[array[int]], numbers: Sequence[int], counts: Sequence[int], codes: Sequence[int]
    ) -> None:
        if len(codes) < _FEW * len(numbers):
            for number, code in zip(chain.from_iterable(map(repeat, numbers, counts)), codes, strict=True):
                times[number].append(code)
            return
        start = 0
        for number, count in zip(numbers, counts, strict=True):
            times[number].extend(codes[start : start + count])
            start += count

    def count_times(self) -> None:
        """Count the times of keys that have many, so that memory does not grow with their number."""
        for name, times in self._times.items():
            for number, codes in enumerate(times):
                if len(codes) > _MANY:
                    getattr(self._parts[number], name).extend(codes)
                    times[number] = array("H")

    @staticmethod
    def _add_rest(part: GroupSums, name: str, amount: str) -> None:
        if name in _COSTS:
            setattr(part, name, exact_sum(getattr(part, name), Decimal(amount)))
        else:
            part.tokens[TOKENS.index(name)] += int(amount)

    def parts(self) -> Iterator[tuple[UsageKey, GroupSums]]:
        """Return the sums by key; a key has a part for each outcome."""
        values = list(self._values)
        for places, number in self._numbers.items():
            hour, *named, outcome = (values[place] for place in places)
            yield UsageKey(hour, **dict(zip(self.fields, named, strict=True))), self._part(number, outcome)

    def _part(self, number: int, outcome: str) -> GroupSums:
        part, sums = self._parts[number], {name: totals[number] for name, totals in self._sums.items()}
        part.requests, part.unknown_costs = sums["requests"], sums["unknown_costs"]
        part.outcomes = Counter({outcome: sums["attempts"]})
        part.tokens = [more + sums[name] for more, name in zip(part.tokens, TOKENS, strict=True)]
        for name in _COSTS:
            self._add_rest(part, name, str(Decimal(sums[name]).scaleb(-_PICO, _EXACT)))
        for name in _TIMES:
            getattr(part, name).extend(self._times[name][number])
        return part
