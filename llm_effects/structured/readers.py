"""Readers: functions that decode JSON which fits a type, and stop at the first misfit without saying what is wrong.

Each part of a type becomes one function. An object is read at most once, so the time grows with the length of the
answer: of the options of a union only the first is read whose keys and tags fit. ``decoding`` tries the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, Final, TypeAlias, assert_never, cast, final, get_origin

import msgspec
from attrs import define

from llm_effects.structured.shapes import (
    REJECTIONS,
    Array,
    Constrained,
    Custom,
    Field,
    FieldNames,
    FixedArray,
    Leaf,
    OneOf,
    Record,
    Shape,
    Table,
    fields_of,
    names_of,
)
from llm_effects.values.json import dump


class Misfit(Exception):  # noqa: N818 - never an error of a program: another way to decode is tried
    """The value does not fit, or not at first sight."""


Reader: TypeAlias = Callable[[object], object]
"""Decodes a value, or raises ``Misfit``."""

_UNFIT: Final = (msgspec.ValidationError, *REJECTIONS)


def reader_of(shape: Shape) -> Reader:
    """Return the reader of a shape.

    >>> reader_of(Array(Leaf(int), tuple))([1, 2])
    (1, 2)
    >>> reader_of(Array(Leaf(int), tuple))([1, "2"])
    Traceback (most recent call last):
        ...
    llm_effects.structured.readers.Misfit
    """
    match shape:
        case Leaf():
            return _read_text if shape.kind is str else partial(_read_leaf, shape.kind)
        case Record():
            return _record_reader(shape)
        case Array():
            return partial(_read_array, shape.make, _items_reader(shape.item))
        case FixedArray():
            return partial(_read_tuple, tuple(map(reader_of, shape.items)))
        case Table():
            return partial(_read_table, shape.key, reader_of(shape.value))
        case OneOf():
            return partial(_read_one_of, tuple(map(_option, shape.options)))
        case Custom():
            return partial(_read_custom, shape)
        case Constrained():
            return partial(_read_constrained, shape.outline, reader_of(shape.shape))
        case _:
            assert_never(shape)


# Numbers, texts and other values that msgspec handles.


def _read_text(value: object) -> object:
    if type(value) is not str:
        raise Misfit
    return value


def _read_leaf(kind: object, value: object) -> object:
    try:
        return msgspec.convert(value, cast("type[object]", kind))
    except _UNFIT:
        raise Misfit from None


def _read_custom(shape: Custom, value: object) -> object:
    try:
        return shape.kind.model_validate_json(dump(value))
    except REJECTIONS:
        raise Misfit from None


def _read_constrained(outline: object, read: Reader, value: object) -> object:
    _read_leaf(outline, value)
    return read(value)


# Lists and tables.


def table_of(value: object) -> dict[str, object] | None:
    """Return a JSON object as it is, and ``None`` for anything else."""
    return cast("dict[str, object]", value) if isinstance(value, dict) else None


def _items_reader(item: Shape) -> Reader:
    """Return a reader of a list: numbers, texts and the like are decoded at once."""
    if isinstance(item, Leaf):
        return partial(_read_leaf, cast("Any", list)[item.kind])
    return partial(_read_items, reader_of(item))


def _read_items(read: Reader, value: object) -> object:
    return list(map(read, cast("list[object]", value)))


def _read_array(make: type, read: Reader, value: object) -> object:
    if not isinstance(value, list):
        raise Misfit
    return _make(make, (read(cast("object", value)),), {})


def _read_tuple(readers: tuple[Reader, ...], value: object) -> object:
    if not isinstance(value, list) or len(cast("list[object]", value)) != len(readers):
        raise Misfit
    return tuple(read(item) for read, item in zip(readers, cast("list[object]", value), strict=True))


def _read_table(key: object, read: Reader, value: object) -> object:
    table = table_of(value)
    if table is None:
        raise Misfit
    try:
        keys = table if key is str else [msgspec.convert(each, cast("Any", key), strict=False) for each in table]
    except _UNFIT:
        raise Misfit from None
    return dict(zip(keys, map(read, table.values()), strict=True))


def _make(kind: type, arguments: tuple[object, ...], named: Mapping[str, object]) -> object:
    try:
        return kind(*arguments, **named)
    except REJECTIONS:
        raise Misfit from None


# Classes.


_NO_NAMES: Final = FieldNames(frozenset(), frozenset(), ())


@final
@define(eq=False)
class _RecordReader:
    """The reader of a class. Its fields are looked up when it is first used: a class may hold itself."""

    shape: Record
    _fields: dict[str, tuple[Reader, bool]] | None = None
    _names: FieldNames = _NO_NAMES
    _kind: type = object

    def __call__(self, value: object) -> object:
        """Read an object; null counts as left out if the field may be left out and is not null itself."""
        table, fields = table_of(value), self._known_fields()
        if table is None or not self._names.required <= table.keys() <= self._names.all:
            raise Misfit
        values = dict[str, object]()
        for name, each in table.items():
            read, required = fields[name]
            try:
                values[name] = read(each)
            except Misfit:
                if each is not None or required:
                    raise
        return _make(self._kind, (), values)

    def fits(self, value: object) -> bool:
        """Return whether an object has the keys and tags of the class."""
        self._known_fields()
        table, names = table_of(value), self._names
        if table is None or not names.required <= table.keys() <= names.all:
            return False
        return all(tag_matches(table.get(each.name), each, choices) for each, choices in names.tags)

    def _known_fields(self) -> dict[str, tuple[Reader, bool]]:
        if self._fields is None:
            self._names = names_of(self.shape)
            self._kind = cast("type", get_origin(self.shape.kind) or self.shape.kind)
            self._fields = {each.name: (reader_of(each.shape), each.required) for each in fields_of(self.shape)}
        return self._fields


_record_reader: Final = lru_cache(maxsize=1024)(_RecordReader)


def tag_matches(value: object, field: Field, choices: tuple[object, ...]) -> bool:
    """Return whether a value may be that of a tag; one that may be left out may be null too."""
    return value in choices or (value is None and not field.required)


# Unions.


_Option: TypeAlias = tuple[Callable[[object], bool], bool, Reader]
"""Whether an option may fit, whether it looks into objects and lists, and its reader."""

_ACCEPTED: Final[Mapping[object, tuple[type, ...]]] = {
    str: (str,),
    bool: (bool,),
    int: (int, float),
    float: (int, float),
    type(None): (type(None),),
}
"""The types of JSON that may become a plain type."""


def _option(shape: Shape) -> _Option:
    read = reader_of(shape)
    fits = read.fits if isinstance(read, _RecordReader) else partial(_is_one_of, _types_of(shape))
    return fits, not isinstance(shape, Leaf | Custom), read


def _types_of(shape: Shape) -> tuple[type, ...]:
    match shape:
        case Leaf():
            return _ACCEPTED.get(shape.kind, (object,)) if isinstance(shape.kind, type) else (object,)
        case Record() | Table():
            return (dict,)
        case Array() | FixedArray():
            return (list,)
        case _:
            return (object,)


def _is_one_of(types: tuple[type, ...], value: object) -> bool:
    return isinstance(value, types)


def _read_one_of(options: tuple[_Option, ...], value: object) -> object:
    """Read the first option that fits; of an object or a list, the first that looks into it is the only one."""
    for fits, looks_inside, read in options:
        if not fits(value):
            continue
        try:
            return read(value)
        except Misfit:
            if looks_inside and isinstance(value, dict | list):
                raise
    raise Misfit
