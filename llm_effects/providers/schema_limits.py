"""Whether a schema is more than a protocol takes: too large, without end, or pointing nowhere."""

from collections.abc import Iterator, Sequence

from llm_effects.providers.schema_parts import Schema, list_in, schemas_in, table_in
from llm_effects.providers.schema_rules import Rules


def _all(schema: Schema) -> Iterator[Schema]:
    yield schema
    for inner in schemas_in(schema):
        yield from _all(inner)


def over(schema: Schema, rules: Rules) -> tuple[str, ...]:
    """Say by what a rewritten schema goes beyond the limits.

    >>> from llm_effects.providers.schema_rules import ANTHROPIC
    >>> over({"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}, ANTHROPIC)
    ('it holds itself',)
    """
    nodes = tuple(_all(schema))
    counted = (
        ("properties", rules.properties, sum(len(table_in(each, "properties")) for each in nodes)),
        ("values to choose from", rules.choices, sum(len(list_in(each, "enum")) for each in nodes)),
        ("properties that may be left out", rules.optional, sum(map(_optional, nodes))),
        ("unions", rules.unions, sum(map(_is_union, nodes))),
        ("levels of objects", rules.levels, max(map(_levels, (schema, *table_in(schema, "$defs").values())))),
    )
    too_many = (
        f"it has {count} {what} where {limit} are taken"
        for what, limit, count in counted
        if limit is not None and count > limit
    )
    return (*_astray(schema, nodes), *(("it holds itself",) if _holds_itself(schema, rules) else ()), *too_many)


def _optional(schema: Schema) -> int:
    return len(set(table_in(schema, "properties")) - set(map(str, list_in(schema, "required"))))


def _is_union(schema: Schema) -> bool:
    return "anyOf" in schema or isinstance(schema.get("type"), list)


def _levels(schema: Schema) -> int:
    """How deep objects are written in each other."""
    below = (_levels(each) for each in schemas_in({key: schema[key] for key in schema if key != "$defs"}))
    return max(below, default=0) + (schema.get("type") == "object")


def _astray(schema: Schema, nodes: Sequence[Schema]) -> tuple[str, ...]:
    root = () if schema.get("type") == "object" else ("its top is no object",)
    known = {"#", *(f"#/$defs/{name}" for name in table_in(schema, "$defs"))}
    unknown = sorted({str(each["$ref"]) for each in nodes if "$ref" in each} - known)
    return (*root, *(f"it points to {target}, which is not in it" for target in unknown))


def _holds_itself(schema: Schema, rules: Rules) -> bool:
    if rules.recursive:
        return False
    named = {f"#/$defs/{name}": each for name, each in table_in(schema, "$defs").items()} | {
        "#": {key: schema[key] for key in schema if key != "$defs"}
    }
    targets = {name: {str(node["$ref"]) for node in _all(each) if "$ref" in node} for name, each in named.items()}
    while leaves := [name for name, wanted in targets.items() if not wanted & set(targets)]:
        for name in leaves:
            del targets[name]
    return bool(targets)
