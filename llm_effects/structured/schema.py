"""The JSON Schema (draft 2020-12) of a type: the form of the answer that a model is asked for.

Every provider accepts an object at the top, so any other type is asked for as ``{"value": ...}``.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Final, TypeAlias, assert_never, cast, final, get_origin

import msgspec
from attrs import define, field, frozen
from returns.result import Failure, Result, Success

from llm_effects.structured.shapes import (
    SCHEMA_OVERRIDES,
    UNKNOWN_DEFAULT,
    Array,
    Constrained,
    Custom,
    Field,
    FixedArray,
    Leaf,
    OneOf,
    Record,
    Shape,
    Table,
    TypeForm,
    fields_of,
    shape_of,
)
from llm_effects.values.errors import InvalidRequest, LLMError, cause_of
from llm_effects.values.json import to_json_object
from llm_effects.values.validation import is_a

Schema: TypeAlias = dict[str, object]

WRAPPER: Final = "value"
"""The property that holds an answer that is not an object."""

MAX_CLASSES: Final = 500
"""Most classes in one schema: a generic class can hold itself with ever new arguments."""


@final
@frozen
class TypeSchema:
    """The shape of a type, its JSON Schema, and whether the schema wraps it in an object."""

    shape: Shape
    schema: Mapping[str, object] = field(hash=False)
    wrapped: bool


def type_schema(kind: TypeForm) -> Result[TypeSchema, LLMError]:
    """Write the schema of a type; a type that has none is an ``InvalidRequest``.

    >>> from typing import Literal
    >>> type_schema(Literal["low", "high"]).unwrap().schema["properties"]
    {'value': {'enum': ['high', 'low']}}
    >>> type_schema(complex).failure().message
    "no JSON Schema can be made of <class 'complex'>: type <class 'complex'> is not supported"
    """
    try:
        return Success(_type_schema(kind))
    except RecursionError as problem:
        name = getattr(kind, "__name__", "the type")  # its repr might be as deep
        return Failure(_no_schema(name, "it is nested too deeply, or has no end", problem))
    except (TypeError, NameError, ValueError, RuntimeError) as problem:  # how libraries reject a type
        lines = str(problem).splitlines() or [type(problem).__name__]
        return Failure(_no_schema(kind, lines[-1], problem))


def _no_schema(kind: TypeForm, reason: str, problem: Exception) -> InvalidRequest:
    if is_a(kind, Mapping):
        remedy = "pass a class, or a request with response_schema=... to generate"
        return InvalidRequest(message=f"the type of an answer is a class, not {type(kind).__name__}: {remedy}")
    return InvalidRequest(message=f"no JSON Schema can be made of {kind}: {reason}", cause=cause_of(problem))


@lru_cache(maxsize=256)
def _type_schema(kind: TypeForm) -> TypeSchema:
    shape, definitions = shape_of(kind), Definitions()
    root = definitions.resolve(_schema(shape, definitions))
    wrapped = root.get("type") != "object"
    if wrapped:
        root = _closed_object({WRAPPER: root}, [WRAPPER])
    used = used_definitions(root, definitions.schemas)
    if is_infinite(root, used):
        raise TypeError("it has no end: each value of it would have to hold another one")
    schema = root | ({"$defs": used} if used else {})
    return TypeSchema(shape, to_json_object("response_schema", schema), wrapped)


def _closed_object(properties: Schema, required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _schema(shape: Shape, definitions: Definitions) -> Schema:
    match shape:
        case Leaf():
            return _leaf(shape.kind, definitions)
        case Custom():
            return definitions.embed(shape.kind, shape.kind.model_json_schema())
        case Record():
            return _record(shape, definitions)
        case Array():
            unique = {"uniqueItems": True} if shape.make in {set, frozenset} else {}
            return {"type": "array", "items": _schema(shape.item, definitions), **unique}
        case FixedArray():
            items = [_schema(each, definitions) for each in shape.items]
            return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
        case Table():
            return {"type": "object", "additionalProperties": _schema(shape.value, definitions)}
        case OneOf():
            return {"anyOf": [_schema(each, definitions) for each in shape.options]}
        case Constrained():
            outline = msgspec.json.schema(shape.outline)
            constraints = {name: value for name, value in outline.items() if name != "type"}
            return _schema(shape.shape, definitions) | constraints
        case _:
            assert_never(shape)


def _leaf(kind: TypeForm, definitions: Definitions) -> Schema:
    if kind in SCHEMA_OVERRIDES:
        return dict(SCHEMA_OVERRIDES[kind])
    schema = msgspec.json.schema(kind)
    return definitions.embed(kind, schema) if "$defs" in schema else schema


def _record(shape: Record, definitions: Definitions) -> Schema:
    if shape.kind not in definitions.names:
        generic = get_origin(shape.kind)
        kind = cast("type", generic or shape.kind)
        name = definitions.reserve(str(shape.kind).rpartition(".")[2] if generic else kind.__name__)
        definitions.names[shape.kind] = name
        fields = fields_of(shape)
        properties: Schema = {each.name: _property(each, definitions) for each in fields}
        required = [each.name for each in fields if each.required]
        definitions.schemas[name] = {**_description(kind), **_closed_object(properties, required)}
    return _reference(definitions.names[shape.kind])


def _description(kind: type) -> Schema:
    docstring = kind.__doc__ or ""
    generated = dataclasses.is_dataclass(kind) and docstring.startswith(f"{kind.__name__}(")
    return {"description": inspect.cleandoc(docstring)} if docstring and not generated else {}


def _property(each: Field, definitions: Definitions) -> Schema:
    """Return the schema of a field; if it may be left out and its default is unknown, null counts as left out."""
    schema = _schema(each.shape, definitions)
    known = each.default is not UNKNOWN_DEFAULT
    if not (each.required or known or schema.get("type") == "array"):
        schema = {"anyOf": [schema, {"type": "null"}]}
    description = {"description": each.description} if each.description else {}
    return schema | description | ({"default": each.default} if known else {})


# The definitions of a schema: each class once, under a name of its own.


@final
@define
class Definitions:
    """The definitions of a schema that is being written: ``schemas`` by name, and the ``names`` of types."""

    schemas: dict[str, Schema] = field(factory=dict[str, Schema])
    names: dict[TypeForm, str] = field(factory=dict[TypeForm, str])

    def reserve(self, name: str) -> str:
        """Reserve a free name like ``name`` and return it."""
        if len(self.schemas) >= MAX_CLASSES:
            raise TypeError(f"it holds more than {MAX_CLASSES} classes")
        base = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") or "type"
        candidates = (base, *(f"{base}_{number}" for number in range(2, MAX_CLASSES + 2)))
        free = next(each for each in candidates if each not in self.schemas)
        self.schemas[free] = {}
        return free

    def resolve(self, schema: Schema) -> Schema:
        """Return the definition that a schema refers to, if it is nothing but a reference."""
        name = reference_of(schema)
        return schema if name is None or len(schema) > 1 else self.schemas[name]

    def embed(self, kind: TypeForm, schema: Schema) -> Schema:
        """Store a schema from elsewhere with its own definitions, under free names, and return a reference to it."""
        if kind not in self.names:
            inner = _table(schema.get("$defs"))
            renames = {name: self.reserve(name) for name in inner}
            for name, each in inner.items():
                self.schemas[renames[name]] = _renamed(_table(each), renames)
            root = _renamed({key: value for key, value in schema.items() if key != "$defs"}, renames)
            target = reference_of(root) if len(root) == 1 else None
            self.names[kind] = target or self.reserve(getattr(kind, "__name__", "type"))
            if target is None:
                self.schemas[self.names[kind]] = root
        return _reference(self.names[kind])


def _reference(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def reference_of(schema: Mapping[str, object]) -> str | None:
    """Return the name of the definition that a schema refers to, if it is a reference.

    >>> reference_of({"$ref": "#/$defs/Line"})
    'Line'
    """
    target = schema.get("$ref")
    return target.removeprefix("#/$defs/") if isinstance(target, str) else None


def _renamed(schema: Schema, renames: Mapping[str, str]) -> Schema:
    return cast("Schema", _rename_references(schema, renames))


def _rename_references(value: object, renames: Mapping[str, str]) -> object:
    if isinstance(value, list):
        return [_rename_references(each, renames) for each in cast("list[object]", value)]
    if not isinstance(value, dict):
        return value
    table = {key: _rename_references(each, renames) for key, each in cast("Schema", value).items()}
    name = reference_of(table)
    return table if name is None or name not in renames else table | _reference(renames[name])


def used_definitions(root: Schema, definitions: Mapping[str, Schema]) -> dict[str, Schema]:
    """Return the definitions that a schema refers to, directly or not; a dangling reference stays as it is."""
    used: dict[str, Schema] = {}
    queue = [root]
    while queue:
        names = (set(_references(queue.pop())) & set(definitions)) - set(used)
        used |= {name: definitions[name] for name in names}
        queue.extend(definitions[name] for name in names)
    return {name: used[name] for name in definitions if name in used}


def _references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        table = cast("Schema", value)
        name = reference_of(table)
        if name is not None:
            yield name
        for each in table.values():
            yield from _references(each)
    if isinstance(value, list):
        for each in cast("list[object]", value):
            yield from _references(each)


def is_infinite(root: Schema, definitions: Mapping[str, Schema]) -> bool:
    """Return whether no value can fit a schema, since each would have to hold another one without end.

    >>> is_infinite({"$ref": "#/$defs/A"}, {"A": {"properties": {"a": {"$ref": "#/$defs/A"}}, "required": ["a"]}})
    True
    """
    finite = set[str]()
    while more := {name for name in definitions if name not in finite and _is_finite(definitions[name], finite)}:
        finite |= more
    return len(finite) < len(definitions) and not _is_finite(root, finite)


def _is_finite(schema: Schema, finite: AbstractSet[str]) -> bool:
    """Return whether a value can fit a schema, if values can fit the ``finite`` definitions."""
    target, properties = reference_of(schema), _table(schema.get("properties"))
    options = _list(schema.get("anyOf")) or _list(schema.get("oneOf"))
    required = [properties.get(str(name)) for name in _list(schema.get("required"))]
    items = [schema.get("items"), *_list(schema.get("prefixItems"))] if schema.get("minItems") else []
    return (
        (target is None or target in finite)
        and (not options or any(_is_finite(_table(each), finite) for each in options))
        and all(_is_finite(_table(each), finite) for each in (*required, *items, *_list(schema.get("allOf"))))
    )


def _table(value: object) -> Schema:
    """Return an object of a schema; the schema of a class may be malformed, and a wrong value counts as absent."""
    return cast("Schema", value) if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []
