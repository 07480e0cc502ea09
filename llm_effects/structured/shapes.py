"""The shapes that types are made of: their JSON Schema is written from them, and their JSON is read by them.

Classes, unions and containers are taken apart here, so that every problem of an answer can be reported with its place.
Everything else (numbers, texts, dates, enumerations, literals, constraints) is a leaf, which msgspec handles.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from enum import EnumType
from functools import lru_cache, reduce
from types import SimpleNamespace, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Literal,
    NewType,
    NotRequired,
    Protocol,
    Required,
    TypeAlias,
    TypeGuard,
    TypeVar,
    Union,
    cast,
    final,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
    runtime_checkable,
)

import attrs
import msgspec
from attrs import frozen, validators

from llm_effects.values.validation import is_a

TypeForm: TypeAlias = object
"""Anything that may be an annotation: a class, a union, a ``Literal``, a generic alias."""


@runtime_checkable
class OwnSchema(Protocol):
    """A type with its own JSON Schema, by pydantic's two methods; invalid data is a ``ValueError``."""

    @classmethod
    def model_json_schema(cls) -> dict[str, object]:
        """Return its JSON Schema."""
        ...

    @classmethod
    def model_validate_json(cls, json_data: bytes, /) -> object:
        """Read a value."""
        ...


@final
@frozen
class Leaf:
    """A type that msgspec handles."""

    kind: TypeForm


@final
@frozen
class Custom:
    """A type with its own JSON Schema."""

    kind: type[OwnSchema]


@final
@frozen
class Record:
    """An attrs class, a dataclass or a ``TypedDict``, or a generic one with its arguments: see ``fields_of``."""

    kind: TypeForm


@final
@frozen
class Array:
    """Any number of items of one type; ``make`` is the container."""

    item: Shape
    make: type


@final
@frozen
class FixedArray:
    """A tuple with a type for each item."""

    items: tuple[Shape, ...]


@final
@frozen
class Table:
    """Values under keys that the type does not name."""

    key: TypeForm
    value: Shape


@final
@frozen
class OneOf:
    """A union."""

    options: tuple[Shape, ...]


@final
@frozen
class Constrained:
    """A shape with the constraints of an ``Annotated``; ``outline`` is the bare container with them, for msgspec."""

    shape: Shape
    outline: TypeForm


Shape: TypeAlias = Leaf | Custom | Record | Array | FixedArray | Table | OneOf | Constrained
"""Any part of a type."""


# From a type to its shape.


SCHEMA_OVERRIDES: Final[Mapping[TypeForm, Mapping[str, object]]] = {
    datetime: {"type": "string", "format": "date-time"},
    Decimal: {"type": "string", "pattern": "^-?[0-9]+([.][0-9]+)?$"},
}
"""Schemas of types that msgspec reads strictly but describes too loosely for a model."""

MAX_TYPES: Final = 5000
"""Most types that may be nested in one; nesting grows by powers."""

_CONTAINERS: Final[Mapping[object, type]] = {
    list: list,
    set: set,
    frozenset: frozenset,
    tuple: tuple,
    Sequence: list,
    Collection: list,
}

_DEFAULT_ARGUMENTS: Final[Mapping[object, tuple[TypeForm, ...]]] = {
    Sequence: (Any,),
    Collection: (Any,),
    Mapping: (str, Any),
}
"""Arguments of the names of ``typing`` that are written without any."""


def shape_of(kind: TypeForm) -> Shape:
    """Split a type into its parts, down to its classes.

    >>> shape_of(list[int])
    Array(item=Leaf(kind=<class 'int'>), make=<class 'list'>)
    """
    if _count_types(kind, {}) > MAX_TYPES:
        raise TypeError(f"it holds more than {MAX_TYPES} types")
    return _shape_of(kind)


def _count_types(kind: TypeForm, counts: dict[int, int]) -> int:
    """Return how many types a type holds; one that occurs twice is visited once."""
    if id(kind) not in counts:
        counts[id(kind)] = 1  # for a type that holds itself
        inner = () if get_origin(kind) is Literal else get_args(kind)
        counts[id(kind)] = 1 + sum(_count_types(each, counts) for each in inner)
    return counts[id(kind)]


def _shape_of(kind: TypeForm) -> Shape:
    kind = _without_alias(kind)
    origin: Any = get_origin(kind)
    args: Any = get_args(kind) or _DEFAULT_ARGUMENTS.get(origin)
    if origin is Annotated:
        return _constrained(kind, _shape_of(args[0]))
    if origin in {Union, UnionType}:
        options = tuple(map(_shape_of, args))
        return Leaf(kind) if all(map(_is_plain, options)) and is_known(kind) else OneOf(options)
    if origin is tuple and args[-1:] != (Ellipsis,):
        return FixedArray(tuple(map(_shape_of, args)))
    if origin in _CONTAINERS:
        return Array(_shape_of(args[0]), _CONTAINERS[origin])
    if origin in {dict, Mapping}:
        return Table(args[0], _shape_of(args[1]))
    if _has_own_schema(kind):
        return Custom(kind)
    return Record(kind) if _is_record(origin or kind) else Leaf(Any if kind is object else kind)


def _without_alias(kind: TypeForm) -> TypeForm:
    """Return the type behind a ``NewType``, an alias of Python 3.12, ``InitVar``, ``Required`` or ``NotRequired``."""
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


def _constrained(kind: TypeForm, shape: Shape) -> Shape:
    if isinstance(shape, Leaf):
        return Leaf(kind)
    bare: TypeForm = list if isinstance(shape, Array | FixedArray) else Any if isinstance(shape, OneOf) else dict
    return Constrained(shape, cast("Any", Annotated)[(bare, *get_args(kind)[1:])])


def _is_plain(shape: Shape) -> bool:
    return isinstance(shape, Leaf) and shape.kind not in SCHEMA_OVERRIDES


def is_known(kind: TypeForm) -> bool:
    """Return whether msgspec can write the schema of a type.

    >>> is_known(int | str), is_known(complex)
    (True, False)
    """
    try:
        msgspec.json.schema(kind)
    except TypeError:
        return False
    return True


def _has_own_schema(kind: TypeForm) -> TypeGuard[type[OwnSchema]]:
    return isinstance(kind, type) and issubclass(kind, OwnSchema)


def _is_record(kind: TypeForm) -> bool:
    return is_typeddict(kind) or (isinstance(kind, type) and (attrs.has(kind) or dataclasses.is_dataclass(kind)))


def choices_of(shape: Shape) -> tuple[object, ...]:
    """Return the values of a ``Literal`` or an enumeration; of any other type none."""
    kind = shape.kind if isinstance(shape, Leaf) else None
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(member.value for member in cast("Any", kind)) if isinstance(kind, EnumType) else ()


# The fields of a record: the arguments of its constructor.


UNKNOWN_DEFAULT: Final = object()
"""A default that is not known before a value is made."""

_FACTORY: Final[type] = type(attrs.Factory(dict[str, object]))
_EMPTY: Final = (list, tuple, set, frozenset, dict)


@final
@frozen
class Field:
    """A field of a record; ``name`` is what its constructor calls it; the schema shows a known ``default``."""

    name: str
    shape: Shape
    required: bool
    default: object
    description: str


@final
@frozen
class FieldNames:
    """The names of the fields of a record, of those that are ``required``, and the choices of its ``tags``."""

    all: frozenset[str]
    required: frozenset[str]
    tags: tuple[tuple[Field, tuple[object, ...]], ...]


@lru_cache(maxsize=1024)
def names_of(record: Record) -> FieldNames:
    """Return the names of the fields of a record.

    >>> from llm_effects.values.requests import Tool
    >>> sorted(names_of(Record(Tool)).required)
    ['name']
    """
    fields = fields_of(record)
    tags = ((each, choices_of(each.shape)) for each in fields)
    required = frozenset(each.name for each in fields if each.required)
    return FieldNames(frozenset(each.name for each in fields), required, tuple(each for each in tags if each[1]))


@lru_cache(maxsize=1024)
def fields_of(record: Record) -> tuple[Field, ...]:
    """Return the fields that a record is made with.

    >>> from llm_effects.values.requests import Tool
    >>> [field.name for field in fields_of(Record(Tool)) if field.required]
    ['name']
    """
    kind = record.kind
    origin = cast("type", get_origin(kind) or kind)
    arguments: dict[object, object] = dict(zip(getattr(origin, "__parameters__", ()), get_args(kind), strict=False))
    hints = get_type_hints(origin, include_extras=True)
    hints = {name: _substituted(hint, arguments) for name, hint in hints.items()}
    if attrs.has(origin):
        return _attrs_fields(origin, hints)
    return _typed_dict_fields(origin, hints) if is_typeddict(origin) else _dataclass_fields(origin, hints)


def _substituted(hint: TypeForm, arguments: Mapping[object, object]) -> TypeForm:
    """Replace the type variables of a generic class by its arguments."""
    if isinstance(hint, TypeVar):
        return arguments.get(hint, hint)
    variables = getattr(hint, "__parameters__", ())
    return cast("Any", hint)[tuple(arguments.get(each, each) for each in variables)] if variables else hint


def _attrs_fields(kind: type, hints: Mapping[str, TypeForm]) -> tuple[Field, ...]:
    """Return the fields of an attrs class; a validator that sees a converted value says nothing about the input."""
    return tuple(
        _field(
            each.alias or each.name,
            constrain(hints.get(each.name, Any), None if each.converter else each.validator),
            each.default,
            each.metadata,
        )
        for each in attrs.fields(kind)
        if each.init
    )


def _dataclass_fields(kind: type, hints: Mapping[str, TypeForm]) -> tuple[Field, ...]:
    """Return the fields of a dataclass, and its ``InitVar``s, which ``dataclasses.fields`` leaves out."""
    every: Mapping[str, dataclasses.Field[Any]] = cast("Any", kind).__dataclass_fields__
    return tuple(
        _field(each.name, hints[each.name], _dataclass_default(each), each.metadata)
        for each in every.values()
        if each.init and ClassVar not in {hints[each.name], get_origin(hints[each.name])}
    )


def _typed_dict_fields(kind: type, hints: Mapping[str, TypeForm]) -> tuple[Field, ...]:
    required = cast("Any", kind).__required_keys__
    return tuple(Field(name, shape_of(hint), name in required, UNKNOWN_DEFAULT, "") for name, hint in hints.items())


def _dataclass_default(field: dataclasses.Field[Any]) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return attrs.Factory(field.default_factory)
    return attrs.NOTHING if field.default is dataclasses.MISSING else field.default


def _field(name: str, hint: TypeForm, default: object, metadata: Mapping[object, object]) -> Field:
    required = default is attrs.NOTHING
    description = str(metadata.get("description", ""))
    return Field(name, shape_of(hint), required, UNKNOWN_DEFAULT if required else _json_default(default), description)


def _json_default(default: object) -> object:
    factory = cast("Any", default).factory if type(default) is _FACTORY else None
    if factory is not None and factory not in _EMPTY:
        return UNKNOWN_DEFAULT
    try:
        return msgspec.to_builtins(default if factory is None else factory())
    except (TypeError, ValueError, RecursionError):
        return UNKNOWN_DEFAULT


# The validators of an attrs class. Before a request, bounds, lengths, choices and patterns become constraints on the
# type of their field: the model sees them, a grammar enforces them, and a violation is reported with its place. After
# it, the constructor of the class has the last word.


MAX_CHOICES: Final = 1000
"""Most choices that a schema lists; a ``range`` may have any number."""

REJECTIONS: Final = (ValueError, TypeError, ArithmeticError, LookupError, AssertionError)
"""Exceptions by which a class, its converters and its validators reject data."""

_BOUNDS: Final = {">": "gt", ">=": "ge", "<": "lt", "<=": "le"}


def _pattern(pattern: re.Pattern[Any], where: str) -> dict[str, object]:
    """Return a pattern for JSON Schema, which searches anywhere and knows no flags."""
    source = pattern.pattern
    if not isinstance(source, str) or pattern.flags & ~re.UNICODE:
        return {}
    if where == "search":
        return {"pattern": source}
    inner = source.removeprefix("^").removesuffix("$") if where == "fullmatch" else source
    return {"pattern": f"^{f'({inner})' if '|' in inner else inner}" + "$" * (where == "fullmatch")}


_LIMITS: Final[Mapping[type, Callable[[Any], dict[str, object]]]] = {
    type(validators.ge(0)): lambda each: {_BOUNDS[each.compare_op]: each.bound},  # and gt, le, lt
    type(validators.min_len(0)): lambda each: {"min_length": each.min_length},
    type(validators.max_len(0)): lambda each: {"max_length": each.max_length},
    type(validators.matches_re("")): lambda each: _pattern(each.pattern, each.match_func.__name__),
}

_ANY: Final = validators.instance_of(object)
_ALL_OF: Final[type] = type(validators.and_(_ANY))
_OPTIONAL: Final[type] = type(validators.optional(_ANY))
_ONE_OF: Final[type] = type(validators.in_((0,)))
_EACH: Final[type] = type(cast("object", validators.deep_iterable(_ANY)))


def constrain(kind: TypeForm, validator: object) -> TypeForm:
    """Add what the validator of a field requires to the type of the field, as far as msgspec can express it.

    >>> constrain(str | None, validators.optional(validators.max_len(80)))
    typing.Optional[typing.Annotated[str, msgspec.Meta(max_length=80)]]
    """
    if get_origin(kind) in {Union, UnionType}:
        return cast("Any", Union)[tuple(constrain(each, validator) for each in get_args(kind))]
    rule, which = cast("Any", validator), type(validator)
    if which is _ALL_OF:
        return reduce(constrain, getattr(rule, "_validators", ()), kind)
    if which is _OPTIONAL:
        return constrain(kind, rule.validator)
    if which is _EACH:
        return constrain(_constrain_items(kind, rule.member_validator), rule.iterable_validator)
    return _constrain_choices(kind, rule.options) if which is _ONE_OF else _constrain_limits(kind, rule)


def _constrain_items(kind: TypeForm, validator: object) -> TypeForm:
    origin: Any = get_origin(kind)
    first, *more = (*get_args(kind), None)
    if origin is Annotated:
        return origin[(_constrain_items(first, validator), *more[:-1])]
    return origin[(constrain(first, validator), *more[:-1])] if more and isinstance(shape_of(kind), Array) else kind


def _constrain_choices(kind: TypeForm, options: Collection[Any]) -> TypeForm:
    if (kind is not str and kind is not int) or isinstance(options, str) or not is_a(options, Collection):
        return kind
    if not 0 < len(options) <= MAX_CHOICES or any(type(each) is not kind for each in options):
        return kind
    return cast("Any", Literal)[tuple(sorted(options))]


def _constrain_limits(kind: TypeForm, validator: object) -> TypeForm:
    limits_of = _LIMITS.get(type(validator))
    try:
        limits: Any = limits_of(validator) if limits_of else {}
        constrained = cast("Any", Annotated)[kind, msgspec.Meta(**limits)] if limits else kind
    except (TypeError, ValueError):  # a bound that is not a number, a length below 0
        return kind
    shape = shape_of(constrained)
    if isinstance(shape, Constrained):
        return constrained if isinstance(shape.shape, Array | Table) and is_known(shape.outline) else kind
    return constrained if isinstance(shape, Leaf) and is_known(constrained) else kind


def field_problems(kind: type, values: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """List the fields and what their own rules reject in ``values``, which have the names of the constructor.

    Rules that need more than the values at hand are left to the constructor.
    """
    if not attrs.has(kind):
        return
    fields = [each for each in attrs.fields(kind) if each.init and (each.alias or each.name) in values]
    instance = SimpleNamespace(**{each.name: values[each.alias or each.name] for each in fields})
    for each in fields:
        try:
            _apply_rules(each, instance)
        except AttributeError:
            continue
        except REJECTIONS as problem:
            yield each.alias or each.name, message_of(problem)


def _apply_rules(field: attrs.Attribute[Any], instance: SimpleNamespace) -> None:
    """Convert and validate a field as the constructor does; a converter that reads other fields is skipped."""
    value, convert = getattr(instance, field.name), cast("Any", field).converter
    if isinstance(convert, attrs.Converter):
        return
    converted = value if convert is None else convert(value)
    if field.validator is not None:
        field.validator(instance, field, converted)


def message_of(problem: Exception) -> str:
    """Return the message of an exception that rejected data, or its ``repr`` if it has none.

    >>> message_of(ValueError("must be even")), message_of(KeyError("x"))
    ('must be even', "KeyError('x')")
    """
    if not isinstance(problem, ValueError | TypeError):
        return repr(problem)
    message = problem.args[0] if problem.args else None
    return message if isinstance(message, str) else str(problem)
