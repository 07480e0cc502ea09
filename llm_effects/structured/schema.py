"""From a type to its JSON Schema (draft 2020-12): what a model is asked for.

An object at the top is what every provider takes, so anything else is asked for as ``{"value": ...}``.
"""

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
    TOLD_BETTER,
    UNTOLD,
    Choice,
    Field,
    Fixed,
    Form,
    Items,
    Leaf,
    Noted,
    Own,
    Record,
    Shape,
    Table,
    fields_of,
    shape_of,
)
from llm_effects.values.errors import InvalidRequest, LLMError, cause_of
from llm_effects.values.json import to_json_object

# The definitions of a schema: each class once, under a name of its own, whoever wrote its schema.


Schema: TypeAlias = dict[str, object]

MOST: Final = 500
"""Classes that one schema may hold: a generic class can hold itself with ever new arguments."""


@final
@define
class Definitions:
    """The definitions of a schema being written: each class once, under a name of its own."""

    definitions: dict[str, Schema] = field(factory=dict[str, Schema])
    names: dict[Form, str] = field(factory=dict[Form, str])

    def name(self, wanted: str) -> str:
        """Take a name that is still free."""
        if len(self.definitions) >= MOST:
            raise TypeError(f"it holds more than {MOST} classes")
        base = re.sub(r"[^A-Za-z0-9]+", "_", wanted).strip("_") or "type"
        free = (base, *(f"{base}_{number}" for number in range(2, MOST + 2)))
        name = next(each for each in free if each not in self.definitions)
        self.definitions[name] = {}
        return name

    def resolved(self, schema: Schema) -> Schema:
        """Look up what a reference alone stands for."""
        name = reference_of(schema)
        return schema if name is None or len(schema) > 1 else self.definitions[name]


def reference_of(schema: Mapping[str, object]) -> str | None:
    """Name the definition that a schema refers to, if it does.

    >>> reference_of({"$ref": "#/$defs/Line"})
    'Line'
    """
    target = schema.get("$ref")
    return target.removeprefix("#/$defs/") if isinstance(target, str) else None


def used_of(root: Schema, definitions: Mapping[str, Schema]) -> dict[str, Schema]:
    """Give the definitions that a schema refers to, directly or not; a reference to nothing stays one."""
    found: dict[str, Schema] = {}
    waiting = [root]
    while waiting:
        names = (set(_references(waiting.pop())) & set(definitions)) - set(found)
        found |= {name: definitions[name] for name in names}
        waiting.extend(definitions[name] for name in names)
    return {name: found[name] for name in definitions if name in found}


def endless(root: Schema, definitions: Mapping[str, Schema]) -> bool:
    """Whether no value can fit a schema, since each would have to hold another one, without an end.

    >>> endless({"$ref": "#/$defs/A"}, {"A": {"properties": {"a": {"$ref": "#/$defs/A"}}, "required": ["a"]}})
    True
    """
    ending = set[str]()
    while more := {name for name in definitions if name not in ending and _ends(definitions[name], ending)}:
        ending |= more
    return len(ending) < len(definitions) and not _ends(root, ending)


def _ends(given: Schema, ending: AbstractSet[str]) -> bool:
    """Whether a value can fit, where those of the definitions in ``ending`` can."""
    target, properties = reference_of(given), _table(given.get("properties"))
    options = _list(given.get("anyOf")) or _list(given.get("oneOf"))
    demanded = [properties.get(str(name)) for name in _list(given.get("required"))]
    held = [given.get("items"), *_list(given.get("prefixItems"))] if given.get("minItems") else []
    return (
        (target is None or target in ending)
        and (not options or any(_ends(_table(each), ending) for each in options))
        and all(_ends(_table(each), ending) for each in (*demanded, *held, *_list(given.get("allOf"))))
    )


def _table(value: object) -> Schema:
    """A class may bring a schema that is none: what is of the wrong kind counts as absent."""
    return cast("Schema", value) if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


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


def taken_in(kind: Form, written: Schema, book: Definitions) -> Schema:
    """Take a schema of somebody else in, its definitions under names of our own."""
    if kind not in book.names:
        theirs = _table(written.get("$defs"))
        ours = {name: book.name(name) for name in theirs}
        for name, schema in theirs.items():
            book.definitions[ours[name]] = _renamed(_table(schema), ours)
        root = _renamed({key: value for key, value in written.items() if key != "$defs"}, ours)
        theirs_alone = reference_of(root) if len(root) == 1 else None
        book.names[kind] = theirs_alone or book.name(getattr(kind, "__name__", "type"))
        if theirs_alone is None:
            book.definitions[book.names[kind]] = root
    return {"$ref": f"#/$defs/{book.names[kind]}"}


def _renamed(schema: Schema, ours: Mapping[str, str]) -> Schema:
    return cast("Schema", _walked(schema, ours))


def _walked(value: object, ours: Mapping[str, str]) -> object:
    if isinstance(value, list):
        return [_walked(each, ours) for each in cast("list[object]", value)]
    if not isinstance(value, dict):
        return value
    table = {key: _walked(each, ours) for key, each in cast("Schema", value).items()}
    name = reference_of(table)
    return table if name is None or name not in ours else table | {"$ref": f"#/$defs/{ours[name]}"}


WRAPPED: Final = "value"
"""The property that holds what is no object."""


@final
@frozen
class Target:
    """What a type asks for: its shape, its schema, and whether the schema wraps it in an object."""

    shape: Shape
    schema: Mapping[str, object] = field(hash=False)
    wrapped: bool


def target_type(kind: Form) -> Result[Target, LLMError]:
    """Write the schema of a type; one that has none is an ``InvalidRequest``.

    >>> from typing import Literal
    >>> target_type(Literal["low", "high"]).unwrap().schema["properties"]
    {'value': {'enum': ['high', 'low']}}
    >>> target_type(complex).failure().message
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
def _wanted(kind: Form) -> Target:
    shape, book = shape_of(kind), Definitions()
    root = book.resolved(_schema(shape, book))
    wrapped = root.get("type") != "object"
    if wrapped:
        root = _closed({WRAPPED: root}, [WRAPPED])
    used = used_of(root, book.definitions)
    if endless(root, used):
        raise TypeError("it has no end: each value of it would have to hold another one")
    schema = root | ({"$defs": used} if used else {})
    return Target(shape, to_json_object("response_schema", schema), wrapped)


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
