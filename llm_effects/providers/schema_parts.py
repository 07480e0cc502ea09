"""What is inside a schema. A hand-written one may hold anything: what is of the wrong kind counts as absent."""

from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias, cast

Schema: TypeAlias = Mapping[str, object]

TABLES: Final = ("properties", "$defs")
"""Keywords that hold schemas by name."""

LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
"""Keywords that hold schemas in a row."""

ONES: Final = ("items", "additionalProperties")
"""Keywords that hold one schema, or a yes or no."""


def as_schema(value: object) -> Schema:
    """Take a value as a schema, or as an empty one."""
    return cast("Schema", value) if isinstance(value, Mapping) else {}


def table_in(schema: Schema, key: str) -> Mapping[str, Schema]:
    """Give the schemas by name under a keyword."""
    return {name: as_schema(each) for name, each in as_schema(schema.get(key)).items()}


def as_list(value: object) -> list[object]:
    """Take a value as a list, or as an empty one."""
    return cast("list[object]", value) if isinstance(value, list) else []


def list_in(schema: Schema, key: str) -> list[object]:
    """Give the values in a row under a keyword."""
    return as_list(schema.get(key))


def schemas_in(schema: Schema) -> Iterator[Schema]:
    """Give the schemas that are directly in another one."""
    for key in TABLES:
        yield from table_in(schema, key).values()
    for key in LISTS:
        yield from map(as_schema, list_in(schema, key))
    for key in ONES:
        if isinstance(schema.get(key), Mapping):
            yield as_schema(schema[key])


def is_object(schema: Schema) -> bool:
    """Whether a schema is one of objects."""
    return schema.get("type") == "object" or "properties" in schema


def admits_null(schema: Schema) -> bool:
    """Whether a schema takes null."""
    kinds = (schema.get("type"), *list_in(schema, "type"))
    return "null" in kinds or any(admits_null(as_schema(each)) for each in list_in(schema, "anyOf"))
