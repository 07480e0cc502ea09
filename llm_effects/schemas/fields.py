"""The fields of a record: what its constructor takes, and what may be told of each."""

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar, Final, TypeVar, cast, final, get_args, get_origin, get_type_hints, is_typeddict

import attrs
import msgspec
from attrs import frozen

from llm_effects.schemas.shapes import Form, Record, Shape, shape_of
from llm_effects.schemas.validators import narrowed


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

    >>> from llm_effects.requests import Tool
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
