"""From a type to its JSON Schema (draft 2020-12): what a model is asked for.

An object at the top is what every provider takes, so anything else is asked for as ``{"value": ...}``.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, assert_never, cast, final, get_origin

import msgspec
from attrs import field, frozen
from returns.result import Failure, Result, Success

from llm_effects.errors import InvalidRequest, LLMError
from llm_effects.exceptions import cause_of
from llm_effects.jsons import plain_object
from llm_effects.schemas.definitions import Definitions, Schema, endless, taken_in, used_of
from llm_effects.schemas.fields import UNTOLD, Field, fields_of
from llm_effects.schemas.shapes import (
    TOLD_BETTER,
    Choice,
    Fixed,
    Form,
    Items,
    Leaf,
    Noted,
    Own,
    Record,
    Shape,
    Table,
    shape_of,
)

WRAPPED: Final = "value"
"""The property that holds what is no object."""


@final
@frozen
class Wanted:
    """What a type asks for: its shape, its schema, and whether the schema wraps it in an object."""

    shape: Shape
    schema: Mapping[str, object] = field(hash=False)
    wrapped: bool


def wanted_of(kind: Form) -> Result[Wanted, LLMError]:
    """Write the schema of a type; one that has none is an ``InvalidRequest``.

    >>> from typing import Literal
    >>> wanted_of(Literal["low", "high"]).unwrap().schema["properties"]
    {'value': {'enum': ['high', 'low']}}
    >>> wanted_of(complex).failure().message
    "no JSON Schema can be made of <class 'complex'>: type <class 'complex'> is not supported"
    """
    try:
        return Success(_wanted(kind))
    except RecursionError as problem:
        name = getattr(kind, "__name__", "the type")  # to show it whole might be as deep
        return Failure(_refused(name, "it is nested too deeply, or has no end", problem))
    except (TypeError, NameError, ValueError, RuntimeError) as problem:  # by these, libraries refuse a type
        says = str(problem).splitlines() or [type(problem).__name__]
        return Failure(_refused(kind, says[-1], problem))


def _refused(kind: Form, why: str, problem: Exception) -> InvalidRequest:
    return InvalidRequest(message=f"no JSON Schema can be made of {kind}: {why}", cause=cause_of(problem))


@lru_cache(maxsize=256)
def _wanted(kind: Form) -> Wanted:
    shape, book = shape_of(kind), Definitions()
    root = book.resolved(_schema(shape, book))
    wrapped = root.get("type") != "object"
    if wrapped:
        root = _closed({WRAPPED: root}, [WRAPPED])
    used = used_of(root, book.definitions)
    if endless(root, used):
        raise TypeError("it has no end: each value of it would have to hold another one")
    schema = root | ({"$defs": used} if used else {})
    return Wanted(shape, plain_object("response_schema", schema), wrapped)


def _closed(properties: Schema, required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _schema(shape: Shape, book: Definitions) -> Schema:
    match shape:
        case Leaf():
            return _of_leaf(shape.kind, book)
        case Own():
            return taken_in(shape.kind, shape.kind.model_json_schema(), book)
        case Record():
            return _of_record(shape, book)
        case Items():
            unique = {"uniqueItems": True} if shape.make in {set, frozenset} else {}
            return {"type": "array", "items": _schema(shape.item, book), **unique}
        case Fixed():
            items = [_schema(each, book) for each in shape.items]
            return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
        case Table():
            return {"type": "object", "additionalProperties": _schema(shape.value, book)}
        case Choice():
            return {"anyOf": [_schema(each, book) for each in shape.options]}
        case Noted():
            notes = {name: note for name, note in msgspec.json.schema(shape.outline).items() if name != "type"}
            return _schema(shape.shape, book) | notes
        case _:
            assert_never(shape)


def _of_leaf(kind: Form, book: Definitions) -> Schema:
    if kind in TOLD_BETTER:
        return dict(TOLD_BETTER[kind])
    written = msgspec.json.schema(kind)
    return taken_in(kind, written, book) if "$defs" in written else written


def _of_record(shape: Record, book: Definitions) -> Schema:
    if shape.kind not in book.names:
        generic = get_origin(shape.kind)
        kind = cast("type", generic or shape.kind)
        name = book.name(str(shape.kind).rpartition(".")[2] if generic else kind.__name__)
        book.names[shape.kind] = name
        fields = fields_of(shape)
        book.definitions[name] = {
            **_described(kind),
            **_closed(
                {each.name: _of_field(each, book) for each in fields}, [each.name for each in fields if each.required]
            ),
        }
    return {"$ref": f"#/$defs/{book.names[shape.kind]}"}


def _described(kind: type) -> Schema:
    written = kind.__doc__ or ""
    made_up = dataclasses.is_dataclass(kind) and written.startswith(f"{kind.__name__}(")
    return {"description": inspect.cleandoc(written)} if written and not made_up else {}


def _of_field(each: Field, book: Definitions) -> Schema:
    """Where a field may be left out and its default cannot be told, it may be null too, which counts as left out."""
    schema = _schema(each.shape, book)
    told = each.default is not UNTOLD
    if not (each.required or told or schema.get("type") == "array"):
        schema = {"anyOf": [schema, {"type": "null"}]}
    described = {"description": each.description} if each.description else {}
    return schema | described | ({"default": each.default} if told else {})
