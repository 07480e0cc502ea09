"""From types to JSON Schema, and from there to the forms that providers accept."""

import datetime as dt
import json
import re
from decimal import Decimal
from typing import (
    Annotated,
    Any,
    Final,
    Generic,
    Literal,
    TypeVar,
)

import attrs
import cattrs.preconf.json
import jsonschema
import msgspec
import pytest
from attrs import field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_effects import LLMRequest, ModelConfig
from llm_effects.providers.json_schema import (
    ANTHROPIC,
    GRAMMAR,
    OPENAI,
    Rules,
    anthropic_format,
    openai_format,
    rewrite,
)
from llm_effects.providers.registry import target_of
from llm_effects.structured.decoding import decode_text
from llm_effects.structured.schema import type_schema
from tests.fixtures.typed_values import (
    Box,
    Custom,
    Json,
    Level,
    Line,
    Open,
    Options,
    Order,
    Paid,
    Pair,
    Point,
    Tree,
    decode,
    problem_of,
    schema_of,
)

T = TypeVar("T")
WIRES: Final = (OPENAI, ANTHROPIC, GRAMMAR)
V: Final = attrs.validators


ORDER: Final = {
    "number": "A-1",
    "lines": [{"article": "tea", "count": 2}],
    "state": {"kind": "paid", "at": "2026-01-02T03:04:05Z"},
    "level": "high",
    "total": "12.50",
    "notes": [],
}


class TestFromTypes:
    def test_a_class_is_a_closed_object_with_descriptions_limits_and_defaults(self) -> None:
        assert schema_of(Line) == {
            "type": "object",
            "description": "One line of an order.",
            "properties": {
                "article": {"type": "string", "description": "as on the label"},
                "count": {"type": "integer", "minimum": 1, "maximum": 99, "default": 1},
            },
            "required": ["article"],
            "additionalProperties": False,
        }

    def test_nested_classes_are_defined_once(self) -> None:
        schema = schema_of(Order)
        assert set(schema["$defs"]) == {"Line", "Paid", "Open", "Level"}
        assert schema["properties"]["state"] == {"anyOf": [{"$ref": "#/$defs/Paid"}, {"$ref": "#/$defs/Open"}]}

    @pytest.mark.parametrize("kind", [Literal["a", "b"], list[Line], int, Paid | Open, Paid | None, Level, Pair])
    def test_a_type_that_is_not_an_object_is_wrapped_in_one(self, kind: object) -> None:
        schema = schema_of(kind)
        assert (schema["type"], schema["required"]) == ("object", ["value"])

    def test_a_recursive_class_refers_to_itself(self) -> None:
        schema = schema_of(Tree)
        assert schema["properties"]["children"]["items"] == {"$ref": "#/$defs/Tree"}
        assert "Tree" in schema["$defs"]

    def test_a_field_with_an_unknown_default_may_be_null(self) -> None:
        @frozen
        class Stamped:
            at: dt.datetime = field(factory=lambda: dt.datetime(2026, 1, 1, tzinfo=dt.UTC))

        assert {"type": "null"} in schema_of(Stamped)["properties"]["at"]["anyOf"]
        assert decode(Stamped, '{"at": null}').unwrap() == Stamped()

    def test_classes_with_the_same_name_get_different_definitions(self) -> None:
        @frozen
        class Line:  # another one
            length: int

        schema = schema_of(tuple[Line, Order])
        assert {"Line", "Line_2"} <= set(schema["$defs"])

    def test_every_schema_is_valid(self) -> None:
        for kind in (
            Order,
            Tree,
            Point,
            Box[Paid | Open],
            list[Order],
            Pair,
            Options,
            dict[str, Line],
            Custom,
            list[Custom],
        ):
            jsonschema.Draft202012Validator.check_schema(schema_of(kind))

    @pytest.mark.parametrize(
        ("kind", "why"),
        [
            (complex, "complex"),
            ("Order", "not supported"),
            (5, "not supported"),
            ([], "unhashable"),
            (type("Odd", (), {}), "Odd"),
        ],
    )
    def test_a_type_without_a_schema_is_an_invalid_request(self, kind: object, why: str) -> None:
        assert why in problem_of(kind)

    @pytest.mark.parametrize(
        ("kind", "validator", "expected"),
        [
            (str, V.max_len(80), {"type": "string", "maxLength": 80}),
            (str, [V.min_len(1), V.max_len(80)], {"type": "string", "minLength": 1, "maxLength": 80}),
            (str | None, V.optional(V.max_len(80)), {"anyOf": [{"type": "string", "maxLength": 80}, {"type": "null"}]}),
            (int, V.and_(V.ge(0), V.lt(10)), {"type": "integer", "minimum": 0, "exclusiveMaximum": 10}),
            (str, V.in_({"b", "a"}), {"enum": ["a", "b"]}),
            (str, V.matches_re("[a-z]+"), {"type": "string", "pattern": "^[a-z]+$"}),
            (str, V.matches_re("a|b"), {"type": "string", "pattern": "^(a|b)$"}),
            (str, V.matches_re("a", func=re.search), {"type": "string", "pattern": "a"}),
            (str, V.matches_re("a", func=re.match), {"type": "string", "pattern": "^a"}),
            (
                Annotated[list[str], msgspec.Meta(min_length=1)],
                V.deep_iterable(V.max_len(9), V.max_len(3)),
                {"type": "array", "items": {"type": "string", "maxLength": 9}, "minItems": 1, "maxItems": 3},
            ),
            (tuple[int, ...], V.deep_iterable(V.ge(1)), {"type": "array", "items": {"type": "integer", "minimum": 1}}),
        ],
    )
    def test_validators_become_constraints(self, kind: Any, validator: Any, expected: Json) -> None:
        made = attrs.make_class("Made", {"a": attrs.field(type=kind, validator=validator)})
        assert schema_of(made)["properties"]["a"] == expected

    @pytest.mark.parametrize(
        ("kind", "validator"),
        [
            (Decimal, V.ge(Decimal(1))),
            (dt.date, V.ge(dt.date(2026, 1, 1))),
            (int, V.ge(0.5)),
            (int, V.in_(range(10**9))),
            (str, V.in_("abc")),
            (str, V.matches_re("a", re.IGNORECASE)),
            (str, V.or_(V.max_len(1), V.min_len(3))),
            (str, V.instance_of(str)),
            (Annotated[int, msgspec.Meta(ge=1)], V.gt(1)),
            (Line, V.max_len(3)),
            (Any, V.max_len(3)),
        ],
    )
    def test_validators_that_msgspec_cannot_express_are_left_out(self, kind: Any, validator: Any) -> None:
        bare, made = (
            attrs.make_class("Made", {"a": attrs.field(type=kind, validator=each)}) for each in (None, validator)
        )
        assert schema_of(made) == schema_of(bare)

    def test_a_dangling_reference_in_a_custom_schema_is_reported(self) -> None:
        class Astray(Custom):
            @classmethod
            def model_json_schema(cls) -> Json:
                return {"type": "object", "properties": {"a": {"$ref": "#/$defs/Gone"}}, "required": ["a"]}

        assert "refers to #/$defs/Gone, which it does not define" in anthropic_format(schema_of(Astray)).failure()

    def test_infinite_types_are_invalid_requests(self) -> None:
        deep: Any = int
        for _ in range(3000):
            deep = list[deep]
        assert "nested too deeply" in problem_of(deep)
        assert "holds more than" in problem_of(Ever[int]) or "deep" in problem_of(Ever[int])
        assert "has no end" in problem_of(Loop)
        assert schema_of(list[Loop])  # an empty one fits

    def test_deeply_nested_types_take_bounded_time(self) -> None:
        wide: Any = int
        deep: Any = int
        for _ in range(9):
            wide = tuple[wide, wide, wide]
        for _ in range(30):
            deep = list[deep] | None
        assert "holds more than" in problem_of(wide)
        assert decode(deep, "[[null]]").unwrap() == [[None]]


@frozen
class Loop:
    next: "Loop"


@frozen
class Ever(Generic[T]):
    held: T
    more: "Ever[list[T]] | None" = None


class TestRewriting:
    def openai(self, kind: object) -> Json:
        return dict(rewrite(schema_of(kind), OPENAI).schema)

    def test_strict_mode_requires_every_property_and_describes_defaults(self) -> None:
        line = self.openai(Line)
        assert line["required"] == ["article", "count"]
        assert line["properties"]["count"]["description"] == "(default: 1)"
        assert line["properties"]["count"]["minimum"] == 1

    def test_limits_that_anthropic_does_not_enforce_become_descriptions(self) -> None:
        form, schema = anthropic_format(schema_of(Line)).unwrap()
        count = form["schema"]["properties"]["count"]  # type: ignore[index]
        assert count == {"type": "integer", "description": "(minimum: 1, maximum: 99, default: 1)"}
        assert schema[0].endswith("not enforced by Anthropic's structured output: count: minimum; count: maximum")

    def test_a_reference_with_siblings_is_wrapped(self) -> None:
        level = self.openai(Order)["properties"]["level"]
        assert level == {"description": '(default: "low")', "anyOf": [{"$ref": "#/$defs/Level"}]}

    def test_a_tuple_becomes_a_list_of_fixed_length(self) -> None:
        value = self.openai(tuple[int, str])["properties"]["value"]
        assert value["items"] == {"anyOf": [{"type": "integer"}, {"type": "string"}]}
        assert (value["minItems"], value["maxItems"], "prefixItems" in value) == (2, 2, False)

    def test_all_of_and_one_of_are_rewritten(self) -> None:
        old = {
            "type": "object",
            "properties": {"a": {"allOf": [{"type": "string"}], "title": "A"}, "b": {"oneOf": [{"const": 1}]}},
            "required": ["a", "b"],
        }
        assert rewrite(old, OPENAI).schema["properties"] == {
            "a": {"type": "string"},
            "b": {"anyOf": [{"const": 1}]},
        }

    @pytest.mark.parametrize(
        ("kind", "why"),
        [
            (dict[str, int], "keys that are not named"),
            (Any, "may be anything"),
            (list[Any], "may be anything"),
            (dict, "keys that are not named"),
            (Tree, "is recursive"),
        ],
    )
    def test_schemas_that_anthropic_cannot_express_are_rejected(self, kind: object, why: str) -> None:
        assert why in anthropic_format(schema_of(kind)).failure()

    def test_openai_accepts_recursion_and_gets_other_schemas_as_a_hint(self) -> None:
        gpt = target_of("gpt", ModelConfig(provider="openai", model="gpt-4.1", api_key="k")).unwrap()
        assert openai_format(gpt, schema_of(Tree))[0]["strict"] is True
        form, schema = openai_format(gpt, schema_of(dict[str, int]))
        assert "strict" not in form
        assert form["schema"] == schema_of(dict[str, int])
        assert "only a hint" in schema[0]

    def test_limits_of_providers_on_unions_and_depth(self) -> None:
        many = attrs.make_class("Many", {f"f{n}": attrs.field(type=int | None, default=None) for n in range(20)})
        assert "20 unions, more than 16" in anthropic_format(schema_of(many)).failure()
        assert not rewrite(schema_of(many), OPENAI).problems
        deep: Any = int
        for _ in range(12):
            deep = attrs.make_class("Deep", {"d": attrs.field(type=deep)})
        inlined = json.loads(json.dumps(schema_of(deep)))
        assert not rewrite(inlined, OPENAI).problems  # levels are those that are written in each other

    @pytest.mark.parametrize("pattern", ["^[^x]*$", "a", "^a", r"^\d$", "^(?:a)$", "^a$|^b$", r"^\bx$"])
    def test_a_grammar_accepts_only_plain_patterns(self, pattern: str) -> None:
        outcome = rewrite({"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}, GRAMMAR)
        assert outcome.unenforced == ("a: pattern",)

    def test_limits_that_break_a_grammar_are_left_out(self) -> None:
        plain = {"type": "string", "pattern": "^[a-z]+$", "maxLength": 10}
        heavy = {"type": "string", "pattern": "^(?=a)\\d+", "maxLength": 100_000}
        outcome = rewrite({"type": "object", "properties": {"a": plain, "b": heavy}}, GRAMMAR)
        assert outcome.schema["properties"]["a"] == plain  # type: ignore[index]
        assert outcome.unenforced == ("b: pattern", "b: maxLength")

    @pytest.mark.parametrize("rules", WIRES, ids=lambda rules: rules.name)
    @given(schema=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
            st.sampled_from(["type", "properties", "required", "anyOf", "oneOf", "allOf", "items", "enum", "$ref",
                             "$defs", "additionalProperties", "prefixItems", "minItems", "pattern", "a"]), inner),
        max_leaves=12,
    ))  # fmt: skip
    def test_rewriting_any_schema_is_idempotent(self, rules: Rules, schema: object) -> None:
        once = rewrite({"type": "object", "properties": {"x": schema}, "extra": schema}, rules).schema
        assert rewrite(once, rules).schema == once


LEAVES: Final[tuple[tuple[Any, st.SearchStrategy[Any]], ...]] = (
    (int, st.integers(-(2**53), 2**53)),
    (str, st.text(max_size=5)),
    (bool, st.booleans()),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (Level, st.sampled_from(Level)),
    (Literal["a", "b"], st.sampled_from(["a", "b"])),
    (dt.date, st.dates()),
    (int | None, st.none() | st.integers(-9, 9)),
)


@st.composite
def typed_values(draw: st.DrawFn, depth: int = 2) -> tuple[Any, Any]:
    """A random type without free keys, and a value of it."""
    if depth == 0 or draw(st.booleans()):
        kind, values = draw(st.sampled_from(LEAVES))
        return kind, draw(values)
    match draw(st.sampled_from(["list", "tuple", "class"])):
        case "list":
            kind, value = draw(typed_values(depth - 1))
            return list[kind], [value] * draw(st.integers(0, 2))
        case "tuple":
            parts = [draw(typed_values(depth - 1)) for _ in range(draw(st.integers(1, 3)))]
            return tuple[tuple(kind for kind, _ in parts)], tuple(value for _, value in parts)  # type: ignore[misc]
        case _:
            parts = [draw(typed_values(depth - 1)) for _ in range(draw(st.integers(1, 3)))]
            required = {f"r{at}": attrs.field(type=kind) for at, (kind, _) in enumerate(parts)}
            kind, value = draw(typed_values(0))
            made = attrs.make_class("Made", required | {"o": attrs.field(type=kind, default=value)}, frozen=True)
            return made, made(*(value for _, value in parts))


CONVERTER: Final = cattrs.preconf.json.make_converter()


def plain(kind: Any, value: Any) -> Any:
    return json.loads(CONVERTER.dumps(value, unstructure_as=kind))


@settings(max_examples=60)
@given(typed_values())
def test_any_value_fits_its_rewritten_schemas_and_survives_a_round_trip(typed: tuple[Any, Any]) -> None:
    kind, value = typed
    target = type_schema(kind).unwrap()
    text = plain(kind, value)
    whole = {"value": text} if target.wrapped else text
    assert decode_text(target, json.dumps(whole)).unwrap() == value
    for rules in WIRES:
        done = rewrite(target.schema, rules)
        if not done.problems:
            jsonschema.Draft202012Validator.check_schema(done.schema)
            jsonschema.validate(whole, done.schema)
        assert rewrite(done.schema, rules).schema == done.schema


def test_a_request_accepts_the_schema_of_a_class() -> None:
    assert LLMRequest(prompt="x", response_schema=schema_of(Order)).response_schema == schema_of(Order)
