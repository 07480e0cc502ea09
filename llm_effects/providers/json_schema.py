"""A schema, rewritten to what a protocol takes.

Every rewriting only narrows: an answer that fits the rewritten schema has the shape of the original one, which stays
the authority. What cannot be demanded is told in the ``description`` instead, and named in ``told``.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeAlias, cast, final

from attrs import define, field, frozen
from returns.result import Failure, Result, Success

from llm_effects.providers.target import Target
from llm_effects.values.validation import JSONObject, join_path

# What is inside a schema. A hand-written one may hold anything: what is of the wrong kind counts as absent.


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


# What each protocol takes of JSON Schema, as rows of data.
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
    """What a protocol takes.

    ``keywords`` are kept, all others become words in the description. ``formats`` are the known ones of texts;
    ``None`` is any. ``most`` caps keywords that are numbers. ``closed`` says that an object must name all that it
    may hold, and hold all of it; ``recursive`` that a schema may hold itself. The limits are numbers of their kind
    in a whole schema: ``None`` is no limit.
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


_NO_LOOKING_AROUND: Final = re.compile(r"(?!.*\(\?(?:[=!]|<[=!])).*", re.DOTALL)
_PLAIN: Final = re.compile(r"\^(?!.*(?:\(\?|\\[A-Za-z0-9]|\^|\$.)).*\$", re.DOTALL)
"""Anchored at both ends only, without classes by name, sets of what may not be, and groups of a special kind."""

OPENAI: Final = Rules(
    name="OpenAI's strict mode",
    keywords=_ANNOTATIONS | _OBJECTS | _NUMBERS | {"items", "minItems", "maxItems", "pattern", "format"},
    formats=_FORMATS,
    patterns=_NO_LOOKING_AROUND,
    properties=5000,
    levels=10,
    choices=1000,
)
"""Chat completions and Responses with ``strict``; without it a schema is a mere hint."""

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
"""Local engines: each repetition is written out in the grammar, so large counts break or slow it."""


# Whether a schema is more than a protocol takes: too large, without end, or pointing nowhere.


def _all(schema: Schema) -> Iterator[Schema]:
    yield schema
    for inner in schemas_in(schema):
        yield from _all(inner)


def over(schema: Schema, rules: Rules) -> tuple[str, ...]:
    """Say by what a rewritten schema goes beyond the limits.

    >>> from llm_effects.providers.json_schema import ANTHROPIC
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


# One way to write a schema: what JSON Schema can say in several words is said in the word that protocols take.


_NOTHING: Final[Schema] = {"not": {}}


def normal(schema: object, rules: Rules) -> dict[str, object]:
    """Write a schema as ``rules`` know it: ``oneOf`` as ``anyOf``, a tuple as a list, an enumeration with its type.

    >>> from llm_effects.providers.json_schema import OPENAI
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


@final
@frozen(kw_only=True)
class Rewritten:
    """A schema for a protocol. ``told`` is what the model is only told of, ``barred`` why it cannot be used at all."""

    schema: Schema
    told: tuple[str, ...] = ()
    barred: tuple[str, ...] = ()


def rewritten(schema: Schema, rules: Rules) -> Rewritten:
    """Rewrite a schema to what ``rules`` take; rewriting it again changes nothing.

    >>> from llm_effects.providers.json_schema import ANTHROPIC
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
            return {name: self.node(each, join_path(path, name)) for name, each in as_schema(value).items()}
        if key in LISTS:
            return [self.node(each, path) for each in as_list(value)]
        if key == "items" or (key == "additionalProperties" and not isinstance(value, bool)):
            return self.node(value, join_path(path, "*"))
        return value

    def _bar_what_is_open(self, schema: Schema, path: str) -> None:
        where = path or "it"
        self.barred.extend(f"{where} has {keyword}" for keyword in sorted(_SHAPING & set(schema)))
        if not _TYPED & set(schema):
            self.barred.append(f"{where} may be anything")
        if schema.get("type") == "array" and "items" not in schema:
            self.barred.append(f"{join_path(path, '*')} may be anything")
        if is_object(schema) and _is_open(schema):
            self.barred.append(f"{where} has keys that are not named in it")

    def _closed(self, schema: Schema, given: Schema, path: str) -> dict[str, object]:
        """Close an object, and demand each property that has a way to say that it is left out."""
        properties, demanded = table_in(given, "properties"), list_in(given, "required")
        names = [name for name, each in properties.items() if name in demanded or _can_say_nothing(each)]
        if self.rules.optional is None:
            self.barred.extend(f"{join_path(path, name)} may be left out" for name in properties if name not in names)
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


# How each protocol is asked for an answer of a shape.


def rules_for(target: Target) -> Rules:
    """The rules by which a target takes schemas; what runs on one's own machine makes a grammar of them."""
    if target.preset.wire == "anthropic":
        return ANTHROPIC
    return GRAMMAR if target.preset.family == "local" else OPENAI


def anthropic_format(schema: JSONObject) -> Result[tuple[JSONObject, tuple[str, ...]], str]:
    """Ask Anthropic's Messages for a shape, or say why it cannot be: there, a schema is enforced or refused.

    >>> anthropic_format({"type": "object", "additionalProperties": {"type": "string"}}).failure()
    "response_schema: it has keys that are not named in it, which Anthropic's structured output does not take"
    """
    written = rewritten(schema, ANTHROPIC)
    if written.barred:
        return Failure(f"response_schema: {_list(written.barred)}, which {ANTHROPIC.name} does not take")
    return Success(({"type": "json_schema", "schema": written.schema}, _told(written, ANTHROPIC)))


def openai_format(target: Target, schema: JSONObject) -> tuple[JSONObject, tuple[str, ...]]:
    """Ask chat completions or Responses for a shape: strictly where that can be, else as a mere hint, told as such."""
    rules = rules_for(target)
    written = rewritten(schema, rules)
    if written.barred:
        why = f"response_schema: is only a hint, not enforced by {rules.name}: {_list(written.barred)}"
        return {"name": "answer", "schema": schema}, (why,)
    return {"name": "answer", "strict": True, "schema": written.schema}, _told(written, rules)


def misfit(target: Target, schema: JSONObject) -> str:
    """Say why a target can make nothing at all of a schema, or nothing."""
    if target.preset.wire != "anthropic":
        return ""
    written = anthropic_format(schema)
    return written.failure() if isinstance(written, Failure) else ""


_SHOWN = 3


def _list(reasons: tuple[str, ...]) -> str:
    more = len(reasons) - _SHOWN
    return "; ".join(reasons[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _told(written: Rewritten, rules: Rules) -> tuple[str, ...]:
    told = _list(written.told)
    return (f"response_schema: told to the model, not enforced by {rules.name}: {told}",) if told else ()
