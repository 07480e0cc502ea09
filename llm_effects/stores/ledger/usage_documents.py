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
from itertools import chain, islice, repeat
from typing import Any, Final, TypeAlias, TypeVar, final

import msgspec
from attrs import define, field, frozen

from llm_effects.values.responses import SUCCESS
from llm_effects.values.usage import TOKENS, GroupSums, Times, UsageKey, exact_sum, time_code

FIELDS: Final = UsageKey._fields[1:]
"""The fields of a key in a document: the hour is that of the document."""

Place: TypeAlias = tuple[UsageKey, str]
"""A key and an outcome."""

_Key = TypeVar("_Key")


@final
class _Numbers(dict[_Key, int]):
    """Numbers from 0, in the order in which keys are asked for."""

    def __missing__(self, key: _Key) -> int:
        self[key] = number = len(self)
        return number


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


# Cells as columns.


_COSTS: Final = ("cost_usd", "cache_saved_usd")
_TIMES: Final = ("latency_ms", "first_content_ms")
_PICO: Final = 12
_EXACT: Final = Context(prec=1_000)
_TYPES: Final = (("B", 0, 2**8), ("H", 0, 2**16), ("I", 0, 2**32), ("q", -(2**63), 2**63))


@final
@frozen
class Document:
    """Cells as columns: which of the ``values`` each has, its sums, and its times, with how many each has.

    ``rest`` has what is left of costs, by cell: those that are too fine for their column.
    """

    values: Mapping[str, Sequence[Any]]
    places: Mapping[str, Sequence[int]]
    sums: Mapping[str, Sequence[int]]
    times: Mapping[str, tuple[Sequence[int], array[int]]]
    rest: Mapping[str, Mapping[int, str]]


def document_of(cells: Mapping[Place, Cell]) -> Document:
    """Return cells as columns."""
    values, places = _placed((*FIELDS, "outcome"), zip(*((*key[1:], outcome) for key, outcome in cells), strict=True))
    every, rest = list(cells.values()), dict[str, dict[int, str]]()
    counts = zip(*(cell.counts for cell in every), strict=True)
    sums: dict[str, Sequence[int]] = {name: each for name, each in zip(_COUNTS, counts, strict=True) if any(each)}
    for name in _COSTS:
        sums[name] = _in_pico([getattr(cell, name) for cell in every], rest.setdefault(name, {}))
    times = {name: _times_of([getattr(cell, name) for cell in every]) for name in _TIMES}
    return Document(values, places, sums, times, rest)


def _placed(
    names: Iterable[str], columns: Iterable[Iterable[Any]]
) -> tuple[Mapping[str, Sequence[Any]], Mapping[str, Sequence[int]]]:
    """Return the values of each column, and the place of each cell's value among them."""
    values: dict[str, Sequence[Any]] = {}
    places: dict[str, Sequence[int]] = {}
    for name, column in zip(names, columns, strict=True):
        distinct = _Numbers[Any]()
        places[name] = list(map(distinct.__getitem__, column))
        values[name] = list(distinct)
    return values, places


def _in_pico(amounts: Sequence[Decimal], rest: dict[int, str]) -> list[int]:
    column = [0] * len(amounts)
    for place, usd in enumerate(amounts):
        if usd:
            pico = usd.scaleb(_PICO, _EXACT)
            if pico == pico.to_integral_value():
                column[place] = int(pico)
            else:
                rest[place] = f"{usd:f}"
    return column


def _times_of(codes: Sequence[Sequence[int]]) -> tuple[Sequence[int], array[int]]:
    return [len(each) for each in codes], array("H", chain.from_iterable(codes))


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
    times = {name: (_unpack(counts), array("H", _unpack(codes))) for name, (counts, codes) in fields["times"].items()}
    return Document(
        values=fields["values"],
        places={name: _unpack(column) for name, column in fields["places"].items()},
        sums={name: _unpack(column) for name, column in fields["sums"].items()},
        times=times,
        rest=fields["rest"],
    )


def _pack(numbers: Sequence[int]) -> tuple[str, bytes | Sequence[str]]:
    low, high = min(numbers), max(numbers)
    kind = next((kind for kind, least, limit in _TYPES if least <= low and high < limit), "")
    return kind, _little_endian(array(kind, numbers)).tobytes() if kind else [str(number) for number in numbers]


def _unpack(column: tuple[str, Any]) -> Sequence[int]:
    kind, stored = column
    return _little_endian(array(kind, stored)) if kind else [int(number) for number in stored]


def _little_endian(numbers: array[int]) -> array[int]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


_MANY: Final = 4_096  # times


# Adding up documents: a number for each key, and lists of sums by that number.


@final
@define
class Totals:
    """The sums of documents by some fields of keys. ``hour`` is how much of an hour's text counts."""

    fields: tuple[str, ...]
    hour: int
    _numbers: _Numbers[tuple[int, ...]] = field(factory=_Numbers[tuple[int, ...]], init=False)
    _values: _Numbers[Any] = field(factory=_Numbers[Any], init=False)
    _outcomes: dict[str, list[int]] = field(factory=dict[str, list[int]], init=False)
    _sums: dict[str, list[int]] = field(factory=dict[str, list[int]], init=False)
    _rest: dict[str, dict[int, Decimal]] = field(factory=dict[str, dict[int, Decimal]], init=False)
    _times: dict[str, list[array[int]]] = field(factory=dict[str, "list[array[int]]"], init=False)
    _counted: dict[str, dict[int, Times]] = field(factory=dict[str, dict[int, Times]], init=False)

    def __attrs_post_init__(self) -> None:
        self._rest = {name: {} for name in _COSTS}
        self._times = {name: [] for name in _TIMES}
        self._counted = {name: {} for name in _TIMES}

    def add(self, hour: str, document: Document) -> None:
        """Add the document of an hour."""
        numbers = self._numbers_of(hour, document)
        outcomes = [self._outcomes.setdefault(value, []) for value in document.values["outcome"]]
        sums = dict(document.sums)
        attempts = sums.pop("attempts")
        for name in chain(sums, document.rest):
            self._sums.setdefault(name, [])
        self._grow()
        for number, place, each in zip(numbers, document.places["outcome"], attempts, strict=True):
            outcomes[place][number] += each
        for name, column in sums.items():
            totals = self._sums[name]
            for number, each in zip(numbers, column, strict=True):
                totals[number] += each
        for name, (counts, codes) in document.times.items():
            self._add_times(self._times[name], numbers, counts, codes)
        for name, rest in document.rest.items():
            for place, amount in rest.items():
                self._add_rest(name, numbers[place], amount)

    def _numbers_of(self, hour: str, document: Document) -> Sequence[int]:
        columns: list[Iterable[int]] = [repeat(self._values[hour[: self.hour]], len(document.places["outcome"]))]
        for name in self.fields:
            values = [self._values[tuple(value) if name == "tags" else value] for value in document.values[name]]
            columns.append(map(values.__getitem__, document.places[name]))
        return list(map(self._numbers.__getitem__, zip(*columns, strict=True)))

    def _grow(self) -> None:
        count = len(self._numbers)
        for totals in chain(self._sums.values(), self._outcomes.values()):
            totals.extend(repeat(0, count - len(totals)))
        for times in self._times.values():
            times.extend(array("H") for _ in range(count - len(times)))

    @staticmethod
    def _add_times(times: list[array[int]], numbers: Sequence[int], counts: Sequence[int], codes: array[int]) -> None:
        start = 0
        for number, count in zip(numbers, counts, strict=True):
            if count:
                end = start + count
                times[number] += codes[start:end]
                start = end

    def _add_rest(self, name: str, number: int, amount: str) -> None:
        if name in _COSTS:
            rest = self._rest[name]
            rest[number] = exact_sum(rest.get(number, Decimal(0)), Decimal(amount))
        else:  # earlier versions moved the largest counts there
            self._sums[name][number] += int(amount)

    def count_times(self) -> None:
        """Count the times of keys that have many, so that memory does not grow with their number."""
        for name, times in self._times.items():
            for number, codes in enumerate(times):
                if len(codes) > _MANY:
                    self._counted[name].setdefault(number, Times()).extend(codes)
                    times[number] = array("H")

    def keys(self) -> Sequence[UsageKey]:
        """Return all keys; the places of their sums are in the same order."""
        values = list(self._values)
        keys = list[UsageKey]()
        for places in self._numbers:
            hour, *named = (values[place] for place in places)
            keys.append(UsageKey(hour, **dict(zip(self.fields, named, strict=True))))
        return keys

    def sums_of(self, numbers: Sequence[int]) -> GroupSums:
        """Return the sums of some keys, by their places."""
        totals = {name: sum(map(column.__getitem__, numbers)) for name, column in self._sums.items()}
        outcomes = {name: sum(map(column.__getitem__, numbers)) for name, column in self._outcomes.items()}
        return GroupSums(
            requests=totals.get("requests", 0),
            outcomes=Counter({name: count for name, count in outcomes.items() if count}),
            tokens=[totals.get(name, 0) for name in TOKENS],
            cost_usd=self._cost("cost_usd", totals, numbers),
            unknown_costs=totals.get("unknown_costs", 0),
            cache_saved_usd=self._cost("cache_saved_usd", totals, numbers),
            latency_ms=self._times_of("latency_ms", numbers),
            first_content_ms=self._times_of("first_content_ms", numbers),
        )

    def _cost(self, name: str, totals: Mapping[str, int], numbers: Sequence[int]) -> Decimal:
        usd, rest = Decimal(totals.get(name, 0)).scaleb(-_PICO, _EXACT), self._rest[name]
        for number in numbers if rest else ():
            usd = exact_sum(usd, rest.get(number, Decimal(0)))
        return usd

    def _times_of(self, name: str, numbers: Sequence[int]) -> Times:
        times, codes, counted = Times(), self._times[name], self._counted[name]
        for number in numbers:
            times.extend(codes[number])
            if number in counted:
                times.merge(counted[number])
        return times

    @property
    def is_full(self) -> bool:
        """Whether these sums are as large as a document should be."""
        return len(self._numbers) >= MOST_CELLS or sum(map(sum, self._outcomes.values())) >= MOST_ROWS

    def document(self) -> Document:
        """Return the sums as a document, before any times are counted: ``fields`` are all but the hour."""
        values = list(self._values)
        columns = ([values[place] for place in column] for column in islice(zip(*self._numbers, strict=True), 1, None))
        return Document(
            *_placed(self.fields, columns),
            sums={"attempts": list(map(sum, zip(*self._outcomes.values(), strict=True))), **self._sums},
            times={name: _times_of(times) for name, times in self._times.items()},
            rest={name: {number: f"{usd:f}" for number, usd in rest.items()} for name, rest in self._rest.items()},
        )


MOST_CELLS: Final = 20_000
"""How many cells a document has at most, but for those of one more document that is added."""

MOST_ROWS: Final = 1_000_000
"""How many rows a document sums up, about, at most."""


def narrowed(documents: Iterable[Document], fields: tuple[str, ...]) -> Iterator[Document]:
    """Add documents up by fewer fields, to documents that are not too large."""
    totals = None
    for each in documents:
        totals = totals or Totals((*fields, "outcome"), 0)
        totals.add("", each)
        if totals.is_full:
            yield totals.document()
            totals = None
    if totals is not None:
        yield totals.document()
