"""What a type is made of: the shapes from which its JSON Schema is written and by which its JSON is read.

Classes, unions and containers are taken apart here, so that every problem in an answer can be told with its place.
The rest (numbers, texts, dates, enumerations, literals, constraints) are leaves, which msgspec knows.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from enum import EnumType
from types import UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NewType,
    NotRequired,
    Protocol,
    Required,
    TypeAlias,
    TypeGuard,
    Union,
    cast,
    final,
    get_args,
    get_origin,
    is_typeddict,
    runtime_checkable,
)

import attrs
import msgspec
from attrs import frozen

Form: TypeAlias = object
"""Anything that may stand in an annotation: a class, a union, a ``Literal``, a generic alias."""


@runtime_checkable
class OwnSchema(Protocol):
    """A type that brings its own JSON Schema, with pydantic's two methods; a misfit is a ``ValueError``."""

    @classmethod
    def model_json_schema(cls) -> dict[str, object]:
        """Give its JSON Schema."""
        ...

    @classmethod
    def model_validate_json(cls, json_data: bytes, /) -> object:
        """Read a value."""
        ...


@final
@frozen
class Leaf:
    """A type that msgspec knows."""

    kind: Form


@final
@frozen
class Own:
    """A type with its own JSON Schema."""

    kind: type[OwnSchema]


@final
@frozen
class Record:
    """An attrs class, a dataclass or a ``TypedDict``, or a generic one with its arguments: see ``fields_of``."""

    kind: Form


@final
@frozen
class Items:
    """Any number of the same; ``make`` is the container."""

    item: "Shape"
    make: type


@final
@frozen
class Fixed:
    """A tuple with a type for each place."""

    items: "tuple[Shape, ...]"


@final
@frozen
class Table:
    """Values under keys that the type does not name."""

    key: Form
    value: "Shape"


@final
@frozen
class Choice:
    """One of several."""

    options: "tuple[Shape, ...]"


@final
@frozen
class Noted:
    """A shape with remarks of an ``Annotated``: ``outline`` is its container with them, which msgspec knows."""

    shape: "Shape"
    outline: Form


Shape: TypeAlias = Leaf | Own | Record | Items | Fixed | Table | Choice | Noted
"""What types are made of."""


TOLD_BETTER: Final[Mapping[Form, Mapping[str, object]]] = {
    datetime: {"type": "string", "format": "date-time"},
    Decimal: {"type": "string", "pattern": "^-?[0-9]+([.][0-9]+)?$"},
}
"""What msgspec reads strictly and describes loosely: a model needs to know more."""

MOST: Final = 5000
"""Types that may be written in one: inside each other, they grow by powers."""

_CONTAINERS: Final[Mapping[object, type]] = {
    list: list,
    set: set,
    frozenset: frozenset,
    tuple: tuple,
    Sequence: list,
    Collection: list,
}

_ANYTHING_IN: Final[Mapping[object, tuple[Form, ...]]] = {Sequence: (Any,), Collection: (Any,), Mapping: (str, Any)}
"""What ``typing``'s own names hold where that is not said."""


def shape_of(kind: Form) -> Shape:
    """Take a type apart, one level of classes deep.

    >>> shape_of(list[int])
    Items(item=Leaf(kind=<class 'int'>), make=<class 'list'>)
    """
    if _weight(kind, {}) > MOST:
        raise TypeError(f"it holds more than {MOST} types")
    return _shape_of(kind)


def _weight(kind: Form, weighed: dict[int, int]) -> int:
    """Count the types that are written in a type; one that is written twice is looked through once."""
    if id(kind) not in weighed:
        weighed[id(kind)] = 1  # for one that holds itself
        inner = () if get_origin(kind) is Literal else get_args(kind)
        weighed[id(kind)] = 1 + sum(_weight(each, weighed) for each in inner)
    return weighed[id(kind)]


def _shape_of(kind: Form) -> Shape:
    kind = _unnamed(kind)
    origin: Any = get_origin(kind)
    args: Any = get_args(kind) or _ANYTHING_IN.get(origin)
    if origin is Annotated:
        return _annotated(kind, _shape_of(args[0]))
    if origin in {Union, UnionType}:
        options = tuple(map(_shape_of, args))
        return Leaf(kind) if all(map(_is_plain, options)) and is_known(kind) else Choice(options)
    if origin is tuple and args[-1:] != (Ellipsis,):
        return Fixed(tuple(map(_shape_of, args)))
    if origin in _CONTAINERS:
        return Items(_shape_of(args[0]), _CONTAINERS[origin])
    if origin in {dict, Mapping}:
        return Table(args[0], _shape_of(args[1]))
    if _is_own(kind):
        return Own(kind)
    return Record(kind) if _is_record(origin or kind) else Leaf(Any if kind is object else kind)


def _unnamed(kind: Form) -> Form:
    """What a new type, an alias of Python 3.12, or a remark of how a class has its field, stands for."""
    while True:
        if isinstance(kind, NewType):
            kind = kind.__supertype__
        elif isinstance(kind, dataclasses.InitVar):
            kind = cast("Any", kind).type
        elif type(kind).__name__ == "TypeAliasType":
            kind = cast("Any", kind).__value__
        elif get_origin(kind) in {Required, NotRequired}:
            kind = get_args(kind)[0]
        else:
            return kind


def _annotated(kind: Form, shape: Shape) -> Shape:
    if isinstance(shape, Leaf):
        return Leaf(kind)
    bare: Form = list if isinstance(shape, Items | Fixed) else Any if isinstance(shape, Choice) else dict
    return Noted(shape, cast("Any", Annotated)[(bare, *get_args(kind)[1:])])


def _is_plain(shape: Shape) -> bool:
    return isinstance(shape, Leaf) and shape.kind not in TOLD_BETTER


def is_known(kind: Form) -> bool:
    """Whether msgspec can write the schema of a type.

    >>> is_known(int | str), is_known(complex)
    (True, False)
    """
    try:
        msgspec.json.schema(kind)
    except TypeError:
        return False
    return True


def _is_own(kind: Form) -> TypeGuard[type[OwnSchema]]:
    return isinstance(kind, type) and issubclass(kind, OwnSchema)


def _is_record(kind: Form) -> bool:
    return is_typeddict(kind) or (isinstance(kind, type) and (attrs.has(kind) or dataclasses.is_dataclass(kind)))


def choices_of(shape: Shape) -> tuple[object, ...]:
    """Give the only values of a ``Literal``, or of an enumeration; of anything else none."""
    kind = shape.kind if isinstance(shape, Leaf) else None
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(member.value for member in cast("Any", kind)) if isinstance(kind, EnumType) else ()
