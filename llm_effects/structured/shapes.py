"""What a type is made of: the shapes from which its JSON Schema is written and by which its JSON is read.

Classes, unions and containers are taken apart here, so that every problem in an answer can be told with its place.
The rest (numbers, texts, dates, enumerations, literals, constraints) are leaves, which msgspec knows.
"""

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

from llm_effects.values.validation import is_a, join_path

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


# What the validators of an attrs class say: to the schema beforehand, and of an answer afterwards.
#
# Bounds, lengths, choices and patterns are written into the type of their field, in msgspec's words. So the model is told
# of them, a grammar holds it to them, and a misfit is told with its place. The class itself has the last word.


MOST_CHOICES: Final = 1000
"""Choices that are told; a ``range`` may have any number."""

REFUSALS: Final = (ValueError, TypeError, ArithmeticError, LookupError, AssertionError)
"""Exceptions by which a class, its converters and its validators refuse what a model made up."""

_BOUNDS: Final = {">": "gt", ">=": "ge", "<": "lt", "<=": "le"}


def _pattern(pattern: "re.Pattern[Any]", where: str) -> dict[str, object]:
    """JSON Schema looks for a pattern anywhere, and knows no flags."""
    letters = pattern.pattern
    if not isinstance(letters, str) or pattern.flags & ~re.UNICODE:
        return {}
    if where == "search":
        return {"pattern": letters}
    inner = letters.removeprefix("^").removesuffix("$") if where == "fullmatch" else letters
    return {"pattern": f"^{f'({inner})' if '|' in inner else inner}" + "$" * (where == "fullmatch")}


_LIMITS: Final[Mapping[type, Callable[[Any], dict[str, object]]]] = {
    type(validators.ge(0)): lambda each: {_BOUNDS[each.compare_op]: each.bound},  # and gt, le, lt
    type(validators.min_len(0)): lambda each: {"min_length": each.min_length},
    type(validators.max_len(0)): lambda each: {"max_length": each.max_length},
    type(validators.matches_re("")): lambda each: _pattern(each.pattern, each.match_func.__name__),
}

_ANY: Final = validators.instance_of(object)
_ALL_OF: Final[type] = type(validators.and_(_ANY))
_UNLESS_NONE: Final[type] = type(validators.optional(_ANY))
_ONE_OF: Final[type] = type(validators.in_((0,)))
_EACH: Final[type] = type(cast("object", validators.deep_iterable(_ANY)))


def narrowed(kind: Form, validator: object) -> Form:
    """Write into the type of a field what its validator demands, as far as msgspec has words for it.

    >>> narrowed(str | None, validators.optional(validators.max_len(80)))
    typing.Optional[typing.Annotated[str, msgspec.Meta(max_length=80)]]
    """
    if get_origin(kind) in {Union, UnionType}:
        return cast("Any", Union)[tuple(narrowed(each, validator) for each in get_args(kind))]
    held, which = cast("Any", validator), type(validator)
    if which is _ALL_OF:
        return reduce(narrowed, getattr(held, "_validators", ()), kind)
    if which is _UNLESS_NONE:
        return narrowed(kind, held.validator)
    if which is _EACH:
        return narrowed(_of_each(kind, held.member_validator), held.iterable_validator)
    return _chosen(kind, held.options) if which is _ONE_OF else _limited(kind, held)


def _of_each(kind: Form, validator: object) -> Form:
    origin: Any = get_origin(kind)
    first, *more = (*get_args(kind), None)
    if origin is Annotated:
        return origin[(_of_each(first, validator), *more[:-1])]
    return origin[(narrowed(first, validator), *more[:-1])] if more and isinstance(shape_of(kind), Items) else kind


def _chosen(kind: Form, options: Collection[Any]) -> Form:
    if (kind is not str and kind is not int) or isinstance(options, str) or not is_a(options, Collection):
        return kind
    if not 0 < len(options) <= MOST_CHOICES or any(type(each) is not kind for each in options):
        return kind
    return cast("Any", Literal)[tuple(sorted(options))]


def _limited(kind: Form, validator: object) -> Form:
    tell = _LIMITS.get(type(validator))
    try:
        limits: Any = tell(validator) if tell else {}
        told = cast("Any", Annotated)[kind, msgspec.Meta(**limits)] if limits else kind
    except (TypeError, ValueError):  # a bound that is no number, a length below 0
        return kind
    shape = shape_of(told)
    if isinstance(shape, Noted):
        return told if isinstance(shape.shape, Items | Table) and is_known(shape.outline) else kind
    return told if isinstance(shape, Leaf) and is_known(told) else kind


def refusals(kind: type, given: Mapping[str, object], path: str) -> Iterator[str]:
    """Tell what the rules of single fields say of them, by the names that the constructor has for them.

    What looks at more than the values that are ``given`` is left to the class.
    """
    if not attrs.has(kind):
        return
    fields = [each for each in attrs.fields(kind) if each.init and (each.alias or each.name) in given]
    made = SimpleNamespace(**{each.name: given[each.alias or each.name] for each in fields})
    for each in fields:
        try:
            _ruled(each, made)
        except AttributeError:
            continue
        except REFUSALS as problem:
            yield f"{join_path(path, each.alias or each.name)}: {said(problem)}"


def _ruled(field: "attrs.Attribute[Any]", made: SimpleNamespace) -> None:
    """Do what the constructor does with one field; a converter that wants to know of the others is not run."""
    value, convert = getattr(made, field.name), cast("Any", field).converter
    if isinstance(convert, attrs.Converter):
        return
    converted = value if convert is None else convert(value)
    if field.validator is not None:
        field.validator(made, field, converted)


def said(problem: Exception) -> str:
    """Say what a class refused, in its own words where it has some.

    >>> said(ValueError("must be even")), said(KeyError("x"))
    ('must be even', "KeyError('x')")
    """
    if not isinstance(problem, ValueError | TypeError):
        return repr(problem)
    told = problem.args[0] if problem.args else None
    return told if isinstance(told, str) else str(problem)


# The fields of a record: what its constructor takes, and what may be told of each.


@final
@frozen
class Field:
    """A field of a record; ``name`` is what its constructor calls it. ``default`` is told to the model where known."""

    name: str
    shape: Shape
    required: bool
    default: object
    description: str


@lru_cache(maxsize=1024)
def fields_of(record: Record) -> tuple[Field, ...]:
    """Give the fields that a record is made with.

    >>> from llm_effects.values.requests import Tool
    >>> [field.name for field in fields_of(Record(Tool)) if field.required]
    ['name']
    """
    kind = record.kind
    origin = cast("type", get_origin(kind) or kind)
    given: dict[object, object] = dict(zip(getattr(origin, "__parameters__", ()), get_args(kind), strict=False))
    hints = get_type_hints(origin, include_extras=True)
    filled = {name: _filled(hint, given) for name, hint in hints.items()}
    if attrs.has(origin):
        return _of_attrs(origin, filled)
    return _of_typed_dict(origin, filled) if is_typeddict(origin) else _of_dataclass(origin, filled)


def _filled(hint: Form, given: Mapping[object, object]) -> Form:
    """Put the arguments of a generic class in the place of its variables."""
    if isinstance(hint, TypeVar):
        return given.get(hint, hint)
    open_ones = getattr(hint, "__parameters__", ())
    return cast("Any", hint)[tuple(given.get(each, each) for each in open_ones)] if open_ones else hint


UNTOLD: Final = object()
"""A default that is not known before it is made."""

_FACTORY: Final[type] = type(attrs.Factory(dict[str, object]))
_EMPTY: Final = (list, tuple, set, frozenset, dict)


def _of_attrs(kind: type, hints: Mapping[str, Form]) -> tuple[Field, ...]:
    """What a validator says of a converted value says nothing of what is given."""
    return tuple(
        _field(
            each.alias or each.name,
            narrowed(hints.get(each.name, Any), None if each.converter else each.validator),
            each.default,
            each.metadata,
        )
        for each in attrs.fields(kind)
        if each.init
    )


def _of_dataclass(kind: type, hints: Mapping[str, Form]) -> tuple[Field, ...]:
    """Its ``InitVar``s too, which ``dataclasses.fields`` leaves out."""
    every: Mapping[str, dataclasses.Field[Any]] = cast("Any", kind).__dataclass_fields__
    return tuple(
        _field(each.name, hints[each.name], _default_of(each), each.metadata)
        for each in every.values()
        if each.init and ClassVar not in {hints[each.name], get_origin(hints[each.name])}
    )


def _of_typed_dict(kind: type, hints: Mapping[str, Form]) -> tuple[Field, ...]:
    demanded = cast("Any", kind).__required_keys__
    return tuple(Field(name, shape_of(hint), name in demanded, UNTOLD, "") for name, hint in hints.items())


def _default_of(field: "dataclasses.Field[Any]") -> object:
    if field.default_factory is not dataclasses.MISSING:
        return attrs.Factory(field.default_factory)
    return attrs.NOTHING if field.default is dataclasses.MISSING else field.default


def _field(name: str, hint: Form, default: object, metadata: Mapping[object, object]) -> Field:
    required = default is attrs.NOTHING
    description = str(metadata.get("description", ""))
    return Field(name, shape_of(hint), required, UNTOLD if required else _told(default), description)


def _told(default: object) -> object:
    made = cast("Any", default).factory if type(default) is _FACTORY else None
    if made is not None and made not in _EMPTY:
        return UNTOLD
    try:
        return msgspec.to_builtins(default if made is None else made())
    except (TypeError, ValueError, RecursionError):
        return UNTOLD
