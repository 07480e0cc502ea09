"""From the JSON of an answer to a value of a type, or to every problem with its place."""

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
)
from uuid import UUID

import msgspec
import pytest
from attrs import field, frozen
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.structured.decoding import _decode_with_problems, decode_text, find_json
from llm_effects.structured.readers import Misfit, reader_of
from llm_effects.structured.schema import type_schema
from llm_effects.structured.shapes import shape_of
from tests.fixtures.typed_values import (
    Box,
    Custom,
    Level,
    Line,
    Name,
    Needs,
    Open,
    Options,
    Order,
    Paid,
    Pair,
    Point,
    Positive,
    Span,
    Tree,
    Trip,
    decode,
)

ORDER: Final = {
    "number": "A-1",
    "lines": [{"article": "tea", "count": 2}],
    "state": {"kind": "paid", "at": "2026-01-02T03:04:05Z"},
    "level": "high",
    "total": "12.50",
    "notes": [],
}


class TestFromJson:
    def test_a_nested_class_is_decoded(self) -> None:
        order = decode(Order, json.dumps(ORDER)).unwrap()
        at = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
        assert order == Order("A-1", (Line("tea", 2),), Paid("paid", at), Level.HIGH, Decimal("12.50"))

    def test_all_problems_are_listed_with_their_places(self) -> None:
        wrong = {
            "lines": [{"article": 1, "count": 100}, {"artcle": "tea"}],
            "state": {"kind": "paid", "at": "noon"},
            "level": "medium",
        }
        assert decode(Trip, '{"to": {"kind": "open", "due": 3}, "day": 1}').failure() == (
            "$.day: is unknown: did you mean days?",
            "$.to.due: expected `date | null`, got `int`",
        )
        assert set(decode(Order, json.dumps(wrong)).failure()) == {
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
        assert decode(kind, text).failure()

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
        assert decode(kind, text).unwrap() == value

    def test_the_constructor_of_a_class_has_the_last_word(self) -> None:
        assert decode(Positive, '{"number": -1}').failure() == ("$.number: expected `int` >= 1",)
        assert decode(Span, '{"first": 1, "last": 99, "unit": "ms"}').failure() == ("$: is too long",)

    def test_rejections_of_field_validators_are_listed_with_all_other_problems(self) -> None:
        spans = '[{"first": "1", "last": 3, "unit": "hours"}, {"first": 3, "last": 1, "unit": " s "}]'
        assert decode(list[Span], spans).failure() == (
            "$[0].first: expected `int`, got `str`",
            "$[0].unit: must be short",
            "$[1].last: must not be before the first",
        )

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

        (converted,) = decode(frozen(Converted), '{"word": "x"}').failure()
        (checked,) = decode(Checked, '{"word": "x"}').failure()
        assert (converted.partition(":")[0], checked.partition(":")[0]) == ("$.word", "$")

    def test_pydantic_dataclasses_report_places(self) -> None:
        pydantic = pytest.importorskip("pydantic")

        class Sized:
            size: int = pydantic.Field(ge=3)

        assert decode(pydantic.dataclasses.dataclass(Sized), '{"size": 1}').failure() == (
            "$.size: Input should be greater than or equal to 3",
        )

    def test_a_long_list_of_choices_is_shortened(self) -> None:
        many: Any = Literal[tuple(f"choice-{number}" for number in range(5000))]
        (problem,) = decode(many, '"none"').failure()
        assert problem.endswith("'choice-49' or 4950 others, not 'none'")

    def test_problems_are_those_of_the_option_that_was_meant(self) -> None:
        assert decode(Paid | Open, '{"kind": "open", "due": 3}').failure()[0].startswith("$.due: ")
        assert decode(Annotated[list[Line], msgspec.Meta(max_length=1)], "[1, 2]").failure() == (
            "$: expected `array` of length <= 1",
        )

    def test_a_custom_type_reports_its_own_problems(self) -> None:
        assert decode(list[Custom], '[{"size": 1}]').unwrap()[0].size == 1
        assert decode(list[Custom], '[{"size": "1"}]').failure() == ("$[0]: size must be a number",)

    def test_pydantic_models_report_places(self) -> None:
        pydantic = pytest.importorskip("pydantic")
        inner = pydantic.create_model("Inner", size=(int, pydantic.Field(ge=1)))
        outer = pydantic.create_model("Outer", name=(str, ...), parts=(list[inner], []))
        assert decode(outer, '{"name": "a", "parts": [{"size": 1}]}').unwrap().parts[0].size == 1
        assert decode(outer, '{"parts": [{"size": 0}, {}]}').failure() == (
            "$.name: Field required",
            "$.parts[0].size: Input should be greater than or equal to 1",
            "$.parts[1].size: Field required",
        )

    @pytest.mark.parametrize("depth", [50, 400, 5000])
    def test_json_of_any_depth_is_decoded_or_rejected(self, depth: int) -> None:
        text = '{"name":"a","children":[' * depth + "]}" * depth
        assert isinstance(decode(Tree, text).value_or(None), Tree | None)


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
        assert decode(Line, 'As [1] says, of {"a": 2}: {"article": "tea"}').unwrap() == Line("tea")
        assert decode(Line, 'As [1] says, {"article": 2}').failure() == ("$: expected an object, got a list",)

    def test_parts_of_broken_json_are_not_decoded(self) -> None:
        assert "not JSON" in decode(Line, '{"lines": [{"article": "tea"}], ').failure()[0]

    @pytest.mark.parametrize("text", ["", " ", "yes", "{", '{"a": 1,}', "{x} " * 10_000, "[" * 50_000, "NaN", "\ud800"])
    def test_text_without_json_is_a_failure(self, text: str) -> None:
        assert find_json(text).failure()

    @given(st.text())
    def test_finding_json_never_raises(self, text: str) -> None:
        find_json(text)


KINDS: dict[str, object] = {
    "records": list[Order | Tree | Line],
    "trees": Tree,
    "plain": list[int | str | Point | None],
    "tables": dict[str, Point | list[Tree] | list[int]],
    "tuples": tuple[int, str] | list[Line],
}
NAMES = st.sampled_from(["name", "children", "article", "count", "x", "y", "marks", "value", "kind", "state"])
SCALARS = st.none() | st.booleans() | st.integers(-3, 200) | st.floats(-3, 3) | st.sampled_from(["a", "paid", "open"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=12
)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@given(value=VALUES)
def test_what_a_reader_accepts_is_what_the_decoder_with_problems_accepts(kind: object, value: object) -> None:
    shape = shape_of(kind)
    slow = _decode_with_problems(shape, value)
    try:
        assert reader_of(shape)(value) == slow.unwrap()
    except Misfit:
        return


def test_an_option_that_fits_only_at_second_sight_is_found() -> None:
    target = type_schema(list[list[Line] | list[Point]]).unwrap()
    assert decode_text(target, '[[{"x": 1}]]').unwrap() == [[Point(1.0)]]
