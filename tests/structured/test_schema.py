"""From types to schemas, from schemas to what providers take, and from JSON back to values."""

import datetime as dt
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from dataclasses import field as dataclass_field
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    TypeAlias,
    TypedDict,
    TypeVar,
)
from uuid import UUID

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
from llm_effects.structured.decoding import decode_text, find_json
from llm_effects.structured.schema import type_schema
from llm_effects.values.errors import InvalidRequest

T = TypeVar("T")
WIRES: Final = (OPENAI, ANTHROPIC, GRAMMAR)
Json: TypeAlias = dict[str, Any]


class Level(Enum):
    LOW = "low"
    HIGH = "high"


@frozen
class Line:
    """One line of an order."""

    article: str = field(metadata={"description": "as on the label"})
    count: Annotated[int, msgspec.Meta(ge=1, le=99)] = 1


@frozen
class Paid:
    kind: Literal["paid"]
    at: dt.datetime


@frozen
class Open:
    kind: Literal["open"]
    due: dt.date | None = None


@frozen
class Order:
    number: str
    lines: tuple[Line, ...]
    state: Paid | Open
    level: Level = Level.LOW
    total: Decimal = Decimal(0)
    notes: list[str] = field(factory=list)


@frozen
class Tree:
    name: str
    children: "tuple[Tree, ...]" = ()


@dataclass
class Point:
    x: float
    y: float = 0.0
    marks: set[str] = dataclass_field(default_factory=set)


@frozen
class Box(Generic[T]):
    held: T


@frozen
class Positive:
    number: int = field(validator=attrs.validators.gt(0))


class Pair(NamedTuple):
    left: int
    right: str


class Options(TypedDict, total=False):
    size: int


class Trip(TypedDict):
    to: "Paid | Open"
    days: NotRequired[int]


@dataclass
class Needs:
    count: InitVar[int]
    kept: ClassVar[int] = 0
    twice: int = dataclass_field(init=False)

    def __post_init__(self, count: int) -> None:
        self.twice = 2 * count


def _short(_: object, __: object, given: str) -> None:
    if len(given) > 3:
        raise ValueError("must be short")


@frozen
class Span:
    first: int
    last: int = field()
    unit: str = field(converter=lambda given: given.strip(), validator=_short)

    @last.validator
    def _after(self, _: object, last: int) -> None:
        if last < self.first:
            raise ValueError("must not be before the first")

    def __attrs_post_init__(self) -> None:
        if self.last - self.first > 90:
            raise ValueError("is too long")


V: Final = attrs.validators


class Own:
    """What pydantic does, by hand."""

    def __init__(self, size: int) -> None:
        self.size = size

    @classmethod
    def model_json_schema(cls) -> Json:
        return {"type": "object", "properties": {"size": {"type": "integer"}}, "required": ["size"]}

    @classmethod
    def model_validate_json(cls, json_data: bytes, /) -> "Own":
        size = json.loads(json_data).get("size")
        if not isinstance(size, int):
            raise ValueError("size must be a number")  # noqa: TRY004 - as pydantic has it
        return cls(size)


Name = NewType("Name", str)


def schema_of(kind: object) -> Json:
    return dict(type_schema(kind).unwrap().schema)


def read(kind: object, text: str) -> Any:
    return decode_text(type_schema(kind).unwrap(), text)


def refusal(kind: object) -> str:
    error = type_schema(kind).failure()
    assert isinstance(error, InvalidRequest)
    return error.message


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
        told = schema_of(Order)
        assert set(told["$defs"]) == {"Line", "Paid", "Open", "Level"}
        assert told["properties"]["state"] == {"anyOf": [{"$ref": "#/$defs/Paid"}, {"$ref": "#/$defs/Open"}]}

    @pytest.mark.parametrize("kind", [Literal["a", "b"], list[Line], int, Paid | Open, Paid | None, Level, Pair])
    def test_a_type_that_is_not_an_object_is_wrapped_in_one(self, kind: object) -> None:
        told = schema_of(kind)
        assert (told["type"], told["required"]) == ("object", ["value"])

    def test_a_recursive_class_refers_to_itself(self) -> None:
        told = schema_of(Tree)
        assert told["properties"]["children"]["items"] == {"$ref": "#/$defs/Tree"}
        assert "Tree" in told["$defs"]

    def test_a_field_with_an_unknown_default_may_be_null(self) -> None:
        @frozen
        class Stamped:
            at: dt.datetime = field(factory=lambda: dt.datetime(2026, 1, 1, tzinfo=dt.UTC))

        assert {"type": "null"} in schema_of(Stamped)["properties"]["at"]["anyOf"]
        assert read(Stamped, '{"at": null}').unwrap() == Stamped()

    def test_classes_with_the_same_name_get_different_definitions(self) -> None:
        @frozen
        class Line:  # another one
            length: int

        told = schema_of(tuple[Line, Order])
        assert {"Line", "Line_2"} <= set(told["$defs"])

    def test_every_schema_is_valid(self) -> None:
        for kind in (Order, Tree, Point, Box[Paid | Open], list[Order], Pair, Options, dict[str, Line], Own, list[Own]):
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
        assert why in refusal(kind)

    @pytest.mark.parametrize(
        ("kind", "validator", "told"),
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
    def test_validators_become_constraints(self, kind: Any, validator: Any, told: Json) -> None:
        made = attrs.make_class("Made", {"a": attrs.field(type=kind, validator=validator)})
        assert schema_of(made)["properties"]["a"] == told

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
        class Astray(Own):
            @classmethod
            def model_json_schema(cls) -> Json:
                return {"type": "object", "properties": {"a": {"$ref": "#/$defs/Gone"}}, "required": ["a"]}

        assert "refers to #/$defs/Gone, which it does not define" in anthropic_format(schema_of(Astray)).failure()

    def test_infinite_types_are_invalid_requests(self) -> None:
        deep: Any = int
        for _ in range(3000):
            deep = list[deep]
        assert "nested too deeply" in refusal(deep)
        assert "holds more than" in refusal(Ever[int]) or "deep" in refusal(Ever[int])
        assert "has no end" in refusal(Loop)
        assert schema_of(list[Loop])  # an empty one fits

    def test_deeply_nested_types_take_bounded_time(self) -> None:
        wide: Any = int
        deep: Any = int
        for _ in range(9):
            wide = tuple[wide, wide, wide]
        for _ in range(30):
            deep = list[deep] | None
        assert "holds more than" in refusal(wide)
        assert read(deep, "[[null]]").unwrap() == [[None]]


@frozen
class Loop:
    next: "Loop"


@frozen
class Ever(Generic[T]):
    held: T
    more: "Ever[list[T]] | None" = None


class TestFromJson:
    def test_a_nested_class_is_decoded(self) -> None:
        order = read(Order, json.dumps(ORDER)).unwrap()
        at = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
        assert order == Order("A-1", (Line("tea", 2),), Paid("paid", at), Level.HIGH, Decimal("12.50"))

    def test_all_problems_are_listed_with_their_places(self) -> None:
        wrong = {
            "lines": [{"article": 1, "count": 100}, {"artcle": "tea"}],
            "state": {"kind": "paid", "at": "noon"},
            "level": "medium",
        }
        assert read(Trip, '{"to": {"kind": "open", "due": 3}, "day": 1}').failure() == (
            "$.day: is unknown: did you mean days?",
            "$.to.due: expected `date | null`, got `int`",
        )
        assert set(read(Order, json.dumps(wrong)).failure()) == {
            "$.number: is missing",
            "$.lines[0].article: expected `str`, got `int`",
            "$.lines[0].count: expected `int` <= 99",
            "$.lines[1].article: is missing",
            "$.lines[1].artcle: is unknown: did you mean article?",
            "$.state.at: invalid RFC3339 encoded datetime",
            "$.level: must be one of 'low', 'high', not 'medium'",
        }

    @pytest.mark.parametrize(
        ("kind", "text"),
        [
            (int, '"3"'),
            (str, "3"),
            (bool, "1"),
            (int, "true"),
            (list[str], '"abc"'),
            (dict[str, int], "[]"),
            (Literal[1, 2], "true"),
            (tuple[int, str], "[1]"),
            (Line, "[]"),
            (list[int], '{"0": 1}'),
            (float, "1" + "0" * 400),
        ],
    )
    def test_values_are_not_coerced(self, kind: object, text: str) -> None:
        assert read(kind, text).failure()

    @pytest.mark.parametrize(
        ("kind", "text", "value"),
        [
            (float, "3", 3.0),
            (Name, '"x"', Name("x")),
            (Sequence[int], "[1]", [1]),
            (Mapping[str, int], '{"a": 1}', {"a": 1}),
            (dict[int, str], '{"1": "a"}', {1: "a"}),
            (frozenset[int], "[1, 1]", frozenset({1})),
            (int | str, '"x"', "x"),
            (Line | None, "null", None),
            (Box[Paid | Open], '{"held": {"kind": "open"}}', Box(Open("open"))),
            (Point, '{"x": 1, "marks": ["a"]}', Point(1.0, 0.0, {"a"})),
            (UUID, '"12345678-1234-5678-1234-567812345678"', UUID("12345678-1234-5678-1234-567812345678")),
            (Any, '{"a": [1]}', {"a": [1]}),
            (Pair, '[1, "a"]', Pair(1, "a")),
            (Literal["a", "b"], '{"value": "a"}', "a"),
            (Literal["a", "b"], '"a"', "a"),
            (Annotated[list[Line], msgspec.Meta(max_length=1)], "[]", []),
            (Sequence, "[1]", [1]),
            (Mapping, '{"a": 1}', {"a": 1}),
            (Options, '{"size": 1}', {"size": 1}),
            (Options, "{}", {}),
            (Needs, '{"count": 2}', Needs(2)),
        ],
    )
    def test_each_kind_of_type_is_decoded(self, kind: object, text: str, value: object) -> None:
        assert read(kind, text).unwrap() == value

    def test_the_constructor_of_a_class_has_the_last_word(self) -> None:
        assert read(Positive, '{"number": -1}').failure() == ("$.number: expected `int` >= 1",)
        assert read(Span, '{"first": 1, "last": 99, "unit": "ms"}').failure() == ("$: is too long",)

    def test_rejections_of_field_validators_are_listed_with_all_other_problems(self) -> None:
        assert read(list[Span], '[{"first": "1", "last": 3, "unit": "hours"}, {"first": 3, "last": 1, "unit": " s "}]')\
            .failure() == (
                "$[0].first: expected `int`, got `str`",
                "$[0].unit: must be short",
                "$[1].last: must not be before the first",
            )  # fmt: skip

    @pytest.mark.parametrize(
        "refusal", [ValueError("no"), TypeError("no"), KeyError("x"), InvalidOperation(), AssertionError()]
    )
    def test_any_rejection_by_a_class_is_a_problem(self, refusal: Exception) -> None:
        def refuse(_: str) -> str:
            raise refusal

        class Converted:
            word: str = field(converter=refuse)

        @dataclass
        class Checked:
            word: str

            def __post_init__(self) -> None:
                refuse(self.word)

        (converted,) = read(frozen(Converted), '{"word": "x"}').failure()
        (checked,) = read(Checked, '{"word": "x"}').failure()
        assert (converted.partition(":")[0], checked.partition(":")[0]) == ("$.word", "$")

    def test_pydantic_dataclasses_report_places(self) -> None:
        pydantic = pytest.importorskip("pydantic")

        class Sized:
            size: int = pydantic.Field(ge=3)

        assert read(pydantic.dataclasses.dataclass(Sized), '{"size": 1}').failure() == (
            "$.size: Input should be greater than or equal to 3",
        )

    def test_a_long_list_of_choices_is_shortened(self) -> None:
        many: Any = Literal[tuple(f"choice-{number}" for number in range(5000))]
        (problem,) = read(many, '"none"').failure()
        assert problem.endswith("'choice-49' or 4950 others, not 'none'")

    def test_problems_are_those_of_the_option_that_was_meant(self) -> None:
        assert read(Paid | Open, '{"kind": "open", "due": 3}').failure()[0].startswith("$.due: ")
        assert read(Annotated[list[Line], msgspec.Meta(max_length=1)], "[1, 2]").failure() == (
            "$: expected `array` of length <= 1",
        )

    def test_a_custom_type_reports_its_own_problems(self) -> None:
        assert read(list[Own], '[{"size": 1}]').unwrap()[0].size == 1
        assert read(list[Own], '[{"size": "1"}]').failure() == ("$[0]: size must be a number",)

    def test_pydantic_models_report_places(self) -> None:
        pydantic = pytest.importorskip("pydantic")
        inner = pydantic.create_model("Inner", size=(int, pydantic.Field(ge=1)))
        outer = pydantic.create_model("Outer", name=(str, ...), parts=(list[inner], []))
        assert read(outer, '{"name": "a", "parts": [{"size": 1}]}').unwrap().parts[0].size == 1
        assert read(outer, '{"parts": [{"size": 0}, {}]}').failure() == (
            "$.name: Field required",
            "$.parts[0].size: Input should be greater than or equal to 1",
            "$.parts[1].size: Field required",
        )

    @pytest.mark.parametrize("depth", [50, 400, 5000])
    def test_json_of_any_depth_is_decoded_or_rejected(self, depth: int) -> None:
        text = '{"name":"a","children":[' * depth + "]}" * depth
        assert isinstance(read(Tree, text).value_or(None), Tree | None)


class TestExcerpts:
    @pytest.mark.parametrize(
        "text",
        [
            '{"a": 1}',
            '  {"a": 1}\n',
            '```json\n{"a": 1}\n```',
            'Of course.\n\n```\n{"a": 1}\n```\nAnything else?',
            'The answer is {"a": 1}.',
            'A set {x} first, then {"a": 1}',
        ],
    )
    def test_json_is_found_in_an_answer(self, text: str) -> None:
        assert find_json(text).unwrap() == ({"a": 1},)

    def test_the_excerpt_that_fits_is_decoded(self) -> None:
        assert read(Line, 'As [1] says, of {"a": 2}: {"article": "tea"}').unwrap() == Line("tea")
        assert read(Line, 'As [1] says, {"article": 2}').failure() == ("$: expected an object, got a list",)

    def test_parts_of_broken_json_are_not_decoded(self) -> None:
        assert "not JSON" in read(Line, '{"lines": [{"article": "tea"}], ').failure()[0]

    @pytest.mark.parametrize("text", ["", " ", "yes", "{", '{"a": 1,}', "{x} " * 10_000, "[" * 50_000, "NaN", "\ud800"])
    def test_text_without_json_is_a_failure(self, text: str) -> None:
        assert find_json(text).failure()

    @given(st.text())
    def test_finding_json_never_raises(self, text: str) -> None:
        find_json(text)


class TestRewriting:
    def openai(self, kind: object) -> Json:
        return dict(rewrite(schema_of(kind), OPENAI).schema)

    def test_strict_mode_requires_every_property_and_describes_defaults(self) -> None:
        line = self.openai(Line)
        assert line["required"] == ["article", "count"]
        assert line["properties"]["count"]["description"] == "(default: 1)"
        assert line["properties"]["count"]["minimum"] == 1

    def test_limits_that_anthropic_does_not_enforce_become_descriptions(self) -> None:
        form, told = anthropic_format(schema_of(Line)).unwrap()
        count = form["schema"]["properties"]["count"]  # type: ignore[index]
        assert count == {"type": "integer", "description": "(minimum: 1, maximum: 99, default: 1)"}
        assert told[0].endswith("not enforced by Anthropic's structured output: count: minimum; count: maximum")

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
        form, told = openai_format(gpt, schema_of(dict[str, int]))
        assert "strict" not in form
        assert form["schema"] == schema_of(dict[str, int])
        assert "only a hint" in told[0]

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
        told = rewritten({"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}, GRAMMAR)
        assert told.told == ("a: pattern",)

    def test_limits_that_break_a_grammar_are_left_out(self) -> None:
        plain = {"type": "string", "pattern": "^[a-z]+$", "maxLength": 10}
        heavy = {"type": "string", "pattern": "^(?=a)\\d+", "maxLength": 100_000}
        told = rewrite({"type": "object", "properties": {"a": plain, "b": heavy}}, GRAMMAR)
        assert told.schema["properties"]["a"] == plain  # type: ignore[index]
        assert told.unenforced == ("b: pattern", "b: maxLength")

    @pytest.mark.parametrize("rules", WIRES, ids=lambda rules: rules.name)
    @given(schema=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
            st.sampled_from(["type", "properties", "required", "anyOf", "oneOf", "allOf", "items", "enum", "$ref",
                             "$defs", "additionalProperties", "prefixItems", "minItems", "pattern", "a"]), inner),
        max_leaves=12,
    ))  # fmt: skip
    def test_rewriting_any_schema_is_idempotent(self, rules: Rules, schema: object) -> None:
        once = rewritten({"type": "object", "properties": {"x": schema}, "extra": schema}, rules).schema
        assert rewritten(once, rules).schema == once


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
    wanted = type_schema(kind).unwrap()
    text = plain(kind, value)
    whole = {"value": text} if wanted.wrapped else text
    assert decode_text(wanted, json.dumps(whole)).unwrap() == value
    for rules in WIRES:
        done = rewrite(wanted.schema, rules)
        if not done.problems:
            jsonschema.Draft202012Validator.check_schema(done.schema)
            jsonschema.validate(whole, done.schema)
        assert rewrite(done.schema, rules).schema == done.schema


def test_a_request_accepts_the_schema_of_a_class() -> None:
    assert LLMRequest(prompt="x", response_schema=schema_of(Order)).response_schema == schema_of(Order)
