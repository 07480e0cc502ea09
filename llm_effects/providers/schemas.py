"""A schema, rewritten to what a protocol takes.

Every rewriting only narrows: an answer that fits the rewritten schema has the shape of the original one, which stays
the authority. What cannot be demanded is told in the ``description`` instead, and named in ``told``.
"""

import json
from collections.abc import Mapping
from typing import Final, final

from attrs import define, field, frozen

from llm_effects.providers.schema_limits import over
from llm_effects.providers.schema_parts import (
    LISTS,
    TABLES,
    Schema,
    admits_null,
    as_list,
    as_schema,
    is_object,
    list_in,
    table_in,
)
from llm_effects.providers.schema_rules import Rules
from llm_effects.providers.schema_words import normal
from llm_effects.values import inside


@final
@frozen(kw_only=True)
class Rewritten:
    """A schema for a protocol. ``told`` is what the model is only told of, ``barred`` why it cannot be used at all."""

    schema: Schema
    told: tuple[str, ...] = ()
    barred: tuple[str, ...] = ()


def rewritten(schema: Schema, rules: Rules) -> Rewritten:
    """Rewrite a schema to what ``rules`` take; rewriting it again changes nothing.

    >>> from llm_effects.providers.schema_rules import ANTHROPIC
    >>> name = {"type": "string", "minLength": 1}
    >>> done = rewritten({"type": "object", "properties": {"name": name}, "required": ["name"]}, ANTHROPIC)
    >>> done.schema["properties"], done.schema["additionalProperties"], done.told
    ({'name': {'type': 'string', 'description': '(minLength: 1)'}}, False, ('name: minLength',))
    """
    writer = _Writer(rules)
    done = writer.node(_from_the_top(schema), "")
    barred = (*writer.barred, *over(done, rules)) if rules.closed else tuple(writer.barred)
    return Rewritten(schema=done, told=tuple(writer.told), barred=barred)


def _from_the_top(schema: Schema) -> Schema:
    """Write out what the whole schema refers to: no protocol takes a reference at the top."""
    target = table_in(schema, "$defs").get(str(schema.get("$ref", "")).removeprefix("#/$defs/"))
    return schema if target is None else {key: schema[key] for key in schema if key != "$ref"} | dict(target)


_SILENT: Final = frozenset(
    {"title", "$schema", "$id", "$comment", "$anchor", "discriminator", "readOnly", "writeOnly", "deprecated"}
)
"""What neither narrows a value nor helps to find it."""

_SHAPING: Final = frozenset(
    {"not", "if", "then", "else", "patternProperties", "dependentSchemas", "dependentRequired", "allOf", "contains"}
)
"""What cannot be said in a few words."""

_TYPED: Final = frozenset({"type", "$ref", "anyOf", "enum", "const"})


@final
@define
class _Writer:
    """One rewriting: its rules, and what came up on the way."""

    rules: Rules
    told: list[str] = field(factory=list[str])
    barred: list[str] = field(factory=list[str])

    def node(self, schema: object, path: str) -> dict[str, object]:
        """Rewrite a schema and what is in it."""
        given = normal(schema, self.rules)
        done = {key: self._inner(key, value, path) for key, value in given.items()}
        if self.rules.closed:
            self._bar_what_is_open(done, path)
            done = self._closed(done, given, path) if is_object(done) else done
        return self._in_words(done, path)

    def _inner(self, key: str, value: object, path: str) -> object:
        if key in TABLES:
            return {name: self.node(each, inside(path, name)) for name, each in as_schema(value).items()}
        if key in LISTS:
            return [self.node(each, path) for each in as_list(value)]
        if key == "items" or (key == "additionalProperties" and not isinstance(value, bool)):
            return self.node(value, inside(path, "*"))
        return value

    def _bar_what_is_open(self, schema: Schema, path: str) -> None:
        where = path or "it"
        self.barred.extend(f"{where} has {keyword}" for keyword in sorted(_SHAPING & set(schema)))
        if not _TYPED & set(schema):
            self.barred.append(f"{where} may be anything")
        if schema.get("type") == "array" and "items" not in schema:
            self.barred.append(f"{inside(path, '*')} may be anything")
        if is_object(schema) and _is_open(schema):
            self.barred.append(f"{where} has keys that are not named in it")

    def _closed(self, schema: Schema, given: Schema, path: str) -> dict[str, object]:
        """Close an object, and demand each property that has a way to say that it is left out."""
        properties, demanded = table_in(given, "properties"), list_in(given, "required")
        names = [name for name, each in properties.items() if name in demanded or _can_say_nothing(each)]
        if self.rules.optional is None:
            self.barred.extend(f"{inside(path, name)} may be left out" for name in properties if name not in names)
        written = schema.get("properties", {})
        return {**schema, "properties": written, "required": names, "additionalProperties": False}

    def _in_words(self, schema: dict[str, object], path: str) -> dict[str, object]:
        """Put what is not taken into the description."""
        kept = {key: value for key, value in schema.items() if self._takes(key, value)}
        words = {key: value for key, value in schema.items() if key not in kept and key not in _SILENT}
        self.told.extend(f"{path or 'it'}: {key}" for key in words if key not in {"default", "examples"})
        says = ", ".join(f"{key}: {json.dumps(value)}" for key, value in words.items() if key not in _SHAPING)
        description = " ".join(filter(None, (str(kept.get("description", "")), f"({says})" if says else "")))
        return _apart(kept | ({"description": description} if description else {}), self.rules)

    def _takes(self, key: str, value: object) -> bool:
        rules = self.rules
        if key not in rules.keywords or (isinstance(value, int | float) and value > rules.most.get(key, value)):
            return False
        if key == "format":
            return rules.formats is None or value in rules.formats
        return key != "pattern" or rules.patterns is None or rules.patterns.fullmatch(str(value)) is not None


def _is_open(schema: Schema) -> bool:
    """Whether an object may hold what it does not name, and is meant to."""
    extra = schema.get("additionalProperties")
    return isinstance(extra, Mapping) or (extra is not False and not schema.get("properties"))


def _can_say_nothing(schema: Schema) -> bool:
    """Whether a property has a way to say that it is left out: its default, null, or an empty list."""
    return "default" in schema or schema.get("type") == "array" or admits_null(schema)


def _apart(schema: dict[str, object], rules: Rules) -> dict[str, object]:
    """Set a reference apart from what stands beside it, which would be refused or not be heard."""
    beside = {key: value for key, value in schema.items() if key != "$ref"}
    return beside | {"anyOf": [{"$ref": schema["$ref"]}]} if rules.closed and "$ref" in schema and beside else schema
