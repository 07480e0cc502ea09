"""One way to write a schema: what JSON Schema can say in several words is said in the word that protocols take."""

from collections.abc import Mapping
from typing import Final

from llm_effects.providers.schema_parts import Schema, as_schema, list_in
from llm_effects.providers.schema_rules import Rules

_NOTHING: Final[Schema] = {"not": {}}


def normal(schema: object, rules: Rules) -> dict[str, object]:
    """Write a schema as ``rules`` know it: ``oneOf`` as ``anyOf``, a tuple as a list, an enumeration with its type.

    >>> from llm_effects.providers.schema_rules import OPENAI
    >>> normal({"oneOf": [{"const": 1}], "discriminator": {}}, OPENAI)
    {'discriminator': {}, 'anyOf': [{'const': 1}]}
    """
    given = _merged(dict(_NOTHING if schema is False else as_schema(schema)))
    if "oneOf" in given and "oneOf" not in rules.keywords and "anyOf" not in given:
        given["anyOf"] = given.pop("oneOf")
    if given.get("items") is False or (given.get("items") is True and "prefixItems" in given):
        del given["items"]
    if "prefixItems" in given and "prefixItems" not in rules.keywords:
        given = _as_list(given)
    return _with_type(given)


def _merged(schema: dict[str, object]) -> dict[str, object]:
    """Take a single ``allOf`` in, as older writers of schemas put references."""
    parts = list_in(schema, "allOf")
    return schema if len(parts) != 1 else {**as_schema(parts[0]), **{k: schema[k] for k in schema if k != "allOf"}}


def _as_list(schema: dict[str, object]) -> dict[str, object]:
    """A list of any of the tuple's types, as long as the tuple; their order is told."""
    items = [as_schema(each) for each in list_in(schema, "prefixItems")]
    distinct = [each for at, each in enumerate(items) if each not in items[:at]]
    rest = {key: value for key, value in schema.items() if key != "prefixItems"}
    of_any = distinct[0] if len(distinct) == 1 else {"anyOf": distinct}
    in_order = {} if len(distinct) == 1 else {"items in order": [_name(each) for each in items]}
    return {**rest, "items": of_any, **in_order} if distinct else rest


def _name(schema: Schema) -> str:
    return str(schema.get("$ref", schema.get("type", "one of several"))).rpartition("/")[2]


_TYPES: Final[Mapping[type, str]] = {str: "string", bool: "boolean", int: "integer", float: "number"}


def _with_type(schema: dict[str, object]) -> dict[str, object]:
    kinds = {_TYPES.get(type(value), "") for value in list_in(schema, "enum")}
    return {"type": kinds.pop(), **schema} if len(kinds) == 1 and "" not in kinds and "type" not in schema else schema
