"""The definitions of a schema: each class once, under a name of its own, whoever wrote its schema."""

import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Final, TypeAlias, cast, final

from attrs import define, field

from llm_effects.schemas.shapes import Form

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
