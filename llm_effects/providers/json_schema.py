"""JSON Schemas rewritten to the subset that each protocol accepts.

A rewrite only narrows: an answer that fits the rewritten schema has the shape of the original one, which stays the
authority. What the protocol cannot enforce goes into the ``description`` instead, and is listed in ``unenforced``.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeAlias, cast, final

from attrs import define, field, frozen
from returns.result import Failure, Result, Success

from llm_effects.providers.target import Target
from llm_effects.values.json import as_list
from llm_effects.values.validation import JSONObject, join_path

# --- Access to schemas: a hand-written one may hold anything, and a value of the wrong type counts as absent

Schema: TypeAlias = Mapping[str, object]

TABLES: Final = ("properties", "$defs")
"""Keywords that map names to schemas."""

LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
"""Keywords that hold a list of schemas."""

ONES: Final = ("items", "additionalProperties")
"""Keywords that hold one schema or a boolean."""


def as_schema(value: object) -> Schema:
    """Return a value that is a schema, or else an empty schema."""
    return cast("Schema", value) if isinstance(value, Mapping) else {}


def table_in(schema: Schema, key: str) -> Mapping[str, Schema]:
    """Return the schemas by name under a keyword."""
    return {name: as_schema(each) for name, each in as_schema(schema.get(key)).items()}


def list_in(schema: Schema, key: str) -> list[object]:
    """Return the list under a keyword."""
    return as_list(schema.get(key))


def schemas_in(schema: Schema) -> Iterator[Schema]:
    """Yield the schemas directly inside another one."""
    for key in TABLES:
        yield from table_in(schema, key).values()
    for key in LISTS:
        yield from map(as_schema, list_in(schema, key))
    for key in ONES:
        if isinstance(schema.get(key), Mapping):
            yield as_schema(schema[key])


def is_object(schema: Schema) -> bool:
    """Return whether a schema describes objects."""
    return schema.get("type") == "object" or "properties" in schema


def admits_null(schema: Schema) -> bool:
    """Return whether a schema accepts null."""
    kinds = (schema.get("type"), *list_in(schema, "type"))
    return "null" in kinds or any(admits_null(as_schema(each)) for each in list_in(schema, "anyOf"))


# --- What each protocol accepts of JSON Schema, as rows of data
#
# Sources: OpenAI, "Structured Outputs: supported schemas"; Anthropic, "Structured outputs: JSON Schema limitations";
# llama.cpp, ``grammars/README.md`` and its converter. Read in September 2026.


_ANNOTATIONS: Final = frozenset({"type", "enum", "const", "description", "anyOf", "$ref", "$defs"})
_OBJECTS: Final = frozenset({"properties", "required", "additionalProperties"})
_NUMBERS: Final = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_FORMATS: Final = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
)  # fmt: skip


@final
@frozen(kw_only=True)
class Rules:
    """The subset of JSON Schema that a protocol accepts.

    ``keywords`` are kept; all others become words in the description. ``formats`` are the accepted formats of texts,
    ``None`` for all. ``most`` caps numeric keywords. ``closed``: an object names all its properties, and all of them
    are required. ``recursive``: a schema may refer to itself. The other fields limit how many of their kind a whole
    schema has; ``None`` is no limit.
    """

    name: str
    keywords: frozenset[str]
    formats: frozenset[str] | None = None
    patterns: re.Pattern[str] | None = None
    most: Mapping[str, float] = field(factory=dict[str, float])
    closed: bool = True
    recursive: bool = True
    properties: int | None = None
    levels: int | None = None
    choices: int | None = None
    optional: int | None = None
    unions: int | None = None


_NO_LOOKAROUND: Final = re.compile(r"(?!.*\(\?(?:[=!]|<[=!])).*", re.DOTALL)
_PLAIN: Final = re.compile(r"\^(?!.*(?:\(\?|\\[A-Za-z0-9]|\^|\$.)).*\$", re.DOTALL)
"""Anchored at both ends, with no other anchors, named classes or special groups."""

OPENAI: Final = Rules(
    name="OpenAI's strict mode",
    keywords=_ANNOTATIONS | _OBJECTS | _NUMBERS | {"items", "minItems", "maxItems", "pattern", "format"},
    formats=_FORMATS,
    patterns=_NO_LOOKAROUND,
    properties=5000,
    levels=10,
    choices=1000,
)
"""Chat completions and Responses with ``strict``; without it a schema is only a hint."""

ANTHROPIC: Final = Rules(
    name="Anthropic's structured output",
    keywords=_ANNOTATIONS | _OBJECTS | {"items", "minItems", "format"},
    formats=_FORMATS | {"uri"},
    most={"minItems": 1},
    recursive=False,
    optional=24,
    unions=16,
)
"""``output_config.format``, where a schema is enforced or refused."""

GRAMMAR: Final = Rules(
    name="llama.cpp's grammar",
    keywords=_ANNOTATIONS
    | _OBJECTS
    | _NUMBERS
    | {"items", "prefixItems", "minItems", "maxItems", "minLength", "maxLength", "pattern", "format", "oneOf", "allOf"},
    patterns=_PLAIN,
    most={"minItems": 100, "maxItems": 100, "minLength": 500, "maxLength": 500},
    closed=False,
)
"""Local engines. The grammar spells out each repetition, so large counts break it or slow it down."""


# --- Limits: schemas that are too large, recursive, or refer to nothing


def _walk(schema: Schema) -> Iterator[Schema]:
    yield schema
    for inner in schemas_in(schema):
        yield from _walk(inner)


def limit_problems(schema: Schema, rules: Rules) -> tuple[str, ...]:
    """Return how a rewritten schema exceeds the limits.

    >>> limit_problems({"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}, ANTHROPIC)
    ('it is recursive',)
    """
    nodes = tuple(_walk(schema))
    counts = (
        ("properties", rules.properties, sum(len(table_in(each, "properties")) for each in nodes)),
        ("enum values", rules.choices, sum(len(list_in(each, "enum")) for each in nodes)),
        ("optional properties", rules.optional, sum(map(_optional, nodes))),
        ("unions", rules.unions, sum(map(_is_union, nodes))),
        ("levels of objects", rules.levels, max(map(_depth, (schema, *table_in(schema, "$defs").values())))),
    )
    too_many = (
        f"it has {count} {what}, more than {limit}"
        for what, limit, count in counts
        if limit is not None and count > limit
    )
    return (*_bad_references(schema, nodes), *(("it is recursive",) if _is_recursive(schema, rules) else ()), *too_many)


def _optional(schema: Schema) -> int:
    return len(set(table_in(schema, "properties")) - set(map(str, list_in(schema, "required"))))


def _is_union(schema: Schema) -> bool:
    return "anyOf" in schema or isinstance(schema.get("type"), list)


def _depth(schema: Schema) -> int:
    """Return how deep objects are nested, without following references."""
    below = (_depth(each) for each in schemas_in({key: schema[key] for key in schema if key != "$defs"}))
    return max(below, default=0) + (schema.get("type") == "object")


def _bad_references(schema: Schema, nodes: Sequence[Schema]) -> tuple[str, ...]:
    root = () if schema.get("type") == "object" else ("its root is not an object",)
    known = {"#", *(f"#/$defs/{name}" for name in table_in(schema, "$defs"))}
    unknown = sorted({str(each["$ref"]) for each in nodes if "$ref" in each} - known)
    return (*root, *(f"it refers to {target}, which it does not define" for target in unknown))


def _is_recursive(schema: Schema, rules: Rules) -> bool:
    if rules.recursive:
        return False
    named = {f"#/$defs/{name}": each for name, each in table_in(schema, "$defs").items()} | {
        "#": {key: schema[key] for key in schema if key != "$defs"}
    }
    targets = {name: {str(node["$ref"]) for node in _walk(each) if "$ref" in node} for name, each in named.items()}
    while leaves := [name for name, referred in targets.items() if not referred & set(targets)]:
        for name in leaves:
            del targets[name]
    return bool(targets)


# --- Rewriting

_NOTHING: Final[Schema] = {"not": {}}


def normalize(schema: object, rules: Rules) -> dict[str, object]:
    """Replace keywords by equivalents in ``rules``: ``oneOf`` by ``anyOf``, tuples by lists; add the types of enums.

    >>> normalize({"oneOf": [{"const": 1}], "discriminator": {}}, OPENAI)
    {'discriminator': {}, 'anyOf': [{'const': 1}]}
    """
    plain = _merge_single(dict(_NOTHING if schema is False else as_schema(schema)))
    if "oneOf" in plain and "oneOf" not in rules.keywords and "anyOf" not in plain:
        plain["anyOf"] = plain.pop("oneOf")
    if plain.get("items") is False or (plain.get("items") is True and "prefixItems" in plain):
        del plain["items"]
    if "prefixItems" in plain and "prefixItems" not in rules.keywords:
        plain = _tuple_as_list(plain)
    return _with_type(plain)


def _merge_single(schema: dict[str, object]) -> dict[str, object]:
    """Merge a single ``allOf``, in which older generators of schemas wrap references."""
    parts = list_in(schema, "allOf")
    return schema if len(parts) != 1 else {**as_schema(parts[0]), **{k: schema[k] for k in schema if k != "allOf"}}


def _tuple_as_list(schema: dict[str, object]) -> dict[str, object]:
    """Return a list of any of the tuple's types, with their order as a keyword for the description."""
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


@final
@frozen(kw_only=True)
class Rewritten:
    """A schema for a protocol.

    ``unenforced`` lists the keywords that are only described, ``problems`` the reasons why the schema is unusable.
    """

    schema: Schema
    unenforced: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def rewrite(schema: Schema, rules: Rules) -> Rewritten:
    """Rewrite a schema to the subset of ``rules``; rewriting it again changes nothing.

    >>> name = {"type": "string", "minLength": 1}
    >>> done = rewrite({"type": "object", "properties": {"name": name}, "required": ["name"]}, ANTHROPIC)
    >>> done.schema["properties"], done.schema["additionalProperties"], done.unenforced
    ({'name': {'type': 'string', 'description': '(minLength: 1)'}}, False, ('name: minLength',))
    """
    writer = _Writer(rules)
    done = writer.node(_inline_root(schema), "")
    problems = (*writer.problems, *limit_problems(done, rules)) if rules.closed else tuple(writer.problems)
    return Rewritten(schema=done, unenforced=tuple(writer.unenforced), problems=problems)


def _inline_root(schema: Schema) -> Schema:
    """Replace a reference at the root by its target: no protocol accepts one there."""
    target = table_in(schema, "$defs").get(str(schema.get("$ref", "")).removeprefix("#/$defs/"))
    return schema if target is None else {key: schema[key] for key in schema if key != "$ref"} | dict(target)


_SILENT: Final = frozenset(
    {"title", "$schema", "$id", "$comment", "$anchor", "discriminator", "readOnly", "writeOnly", "deprecated"}
)
"""Keywords that neither narrow a value nor help to find it."""

_SHAPING: Final = frozenset(
    {"not", "if", "then", "else", "patternProperties", "dependentSchemas", "dependentRequired", "allOf", "contains"}
)
"""Keywords that cannot be put into a few words."""

_TYPED: Final = frozenset({"type", "$ref", "anyOf", "enum", "const"})


@final
@define
class _Writer:
    """One run of a rewrite: its rules, and what it found."""

    rules: Rules
    unenforced: list[str] = field(factory=list[str])
    problems: list[str] = field(factory=list[str])

    def node(self, schema: object, path: str) -> dict[str, object]:
        """Rewrite a schema and those inside it."""
        plain = normalize(schema, self.rules)
        done = {key: self._inner(key, value, path) for key, value in plain.items()}
        if self.rules.closed:
            self._check_closed(done, path)
            done = self._close(done, plain, path) if is_object(done) else done
        return self._describe(done, path)

    def _inner(self, key: str, value: object, path: str) -> object:
        if key in TABLES:
            return {name: self.node(each, join_path(path, name)) for name, each in as_schema(value).items()}
        if key in LISTS:
            return [self.node(each, path) for each in as_list(value)]
        if key == "items" or (key == "additionalProperties" and not isinstance(value, bool)):
            return self.node(value, join_path(path, "*"))
        return value

    def _check_closed(self, schema: Schema, path: str) -> None:
        where = path or "it"
        self.problems.extend(f"{where} has {keyword}" for keyword in sorted(_SHAPING & set(schema)))
        if not _TYPED & set(schema):
            self.problems.append(f"{where} may be anything")
        if schema.get("type") == "array" and "items" not in schema:
            self.problems.append(f"{join_path(path, '*')} may be anything")
        if is_object(schema) and _is_open(schema):
            self.problems.append(f"{where} has keys that are not named in it")

    def _close(self, schema: Schema, plain: Schema, path: str) -> dict[str, object]:
        """Close an object, and require each property that has a value for its absence."""
        properties, required = table_in(plain, "properties"), list_in(plain, "required")
        names = [name for name, each in properties.items() if name in required or _has_empty_value(each)]
        if self.rules.optional is None:
            self.problems.extend(f"{join_path(path, name)} is optional" for name in properties if name not in names)
        return {**schema, "properties": schema.get("properties", {}), "required": names, "additionalProperties": False}

    def _describe(self, schema: dict[str, object], path: str) -> dict[str, object]:
        """Move the keywords that are not accepted into the description."""
        kept = {key: value for key, value in schema.items() if self._accepts(key, value)}
        words = {key: value for key, value in schema.items() if key not in kept and key not in _SILENT}
        self.unenforced.extend(f"{path or 'it'}: {key}" for key in words if key not in {"default", "examples"})
        text = ", ".join(f"{key}: {json.dumps(value)}" for key, value in words.items() if key not in _SHAPING)
        description = " ".join(filter(None, (str(kept.get("description", "")), f"({text})" if text else "")))
        return _wrap_reference(kept | ({"description": description} if description else {}), self.rules)

    def _accepts(self, key: str, value: object) -> bool:
        rules = self.rules
        if key not in rules.keywords or (isinstance(value, int | float) and value > rules.most.get(key, value)):
            return False
        if key == "format":
            return rules.formats is None or value in rules.formats
        return key != "pattern" or rules.patterns is None or rules.patterns.fullmatch(str(value)) is not None


def _is_open(schema: Schema) -> bool:
    """Return whether an object may, by intent, hold keys that it does not name."""
    extra = schema.get("additionalProperties")
    return isinstance(extra, Mapping) or (extra is not False and not schema.get("properties"))


def _has_empty_value(schema: Schema) -> bool:
    """Return whether a property has a value for its absence: its default, null, or an empty list."""
    return "default" in schema or schema.get("type") == "array" or admits_null(schema)


def _wrap_reference(schema: dict[str, object], rules: Rules) -> dict[str, object]:
    """Wrap a reference that has other keywords beside it, which would be refused or ignored."""
    beside = {key: value for key, value in schema.items() if key != "$ref"}
    return beside | {"anyOf": [{"$ref": schema["$ref"]}]} if rules.closed and "$ref" in schema and beside else schema


# --- Requests for structured answers


def rules_for(target: Target) -> Rules:
    """Return the rules of a target; local engines turn a schema into a grammar."""
    if target.preset.wire == "anthropic":
        return ANTHROPIC
    return GRAMMAR if target.preset.family == "local" else OPENAI


def anthropic_format(schema: JSONObject) -> Result[tuple[JSONObject, tuple[str, ...]], str]:
    """Return the ``format`` field of Anthropic's Messages with warnings, or the problem of the schema.

    >>> anthropic_format({"type": "object", "additionalProperties": {"type": "string"}}).failure()
    "response_schema: it has keys that are not named in it, which Anthropic's structured output does not accept"
    """
    done = rewrite(schema, ANTHROPIC)
    if done.problems:
        return Failure(f"response_schema: {_first_few(done.problems)}, which {ANTHROPIC.name} does not accept")
    return Success(({"type": "json_schema", "schema": done.schema}, _warnings(done, ANTHROPIC)))


def openai_format(target: Target, schema: JSONObject) -> tuple[JSONObject, tuple[str, ...]]:
    """Return the ``json_schema`` of OpenAI's protocols with warnings: strict if possible, else only a hint."""
    rules = rules_for(target)
    done = rewrite(schema, rules)
    if done.problems:
        reason = f"response_schema: is only a hint, not enforced by {rules.name}: {_first_few(done.problems)}"
        return {"name": "answer", "schema": schema}, (reason,)
    return {"name": "answer", "strict": True, "schema": done.schema}, _warnings(done, rules)


def schema_problem(target: Target, schema: JSONObject) -> str:
    """Return why a target cannot use a schema at all, or an empty text."""
    if target.preset.wire != "anthropic":
        return ""
    encoded = anthropic_format(schema)
    return encoded.failure() if isinstance(encoded, Failure) else ""


_SHOWN: Final = 3


def _first_few(reasons: tuple[str, ...]) -> str:
    more = len(reasons) - _SHOWN
    return "; ".join(reasons[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _warnings(done: Rewritten, rules: Rules) -> tuple[str, ...]:
    if not done.unenforced:
        return ()
    return (
        f"response_schema: only described to the model, not enforced by {rules.name}: {_first_few(done.unenforced)}",
    )
