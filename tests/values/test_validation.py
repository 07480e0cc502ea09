"""Converters and validators: each error names the field and the remedy."""

import math
from collections.abc import Mapping
from enum import Enum

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.values.validation import (
    InvalidValue,
    instance,
    instances,
    number,
    one_of,
    short_repr,
    text,
    to_member,
    to_table,
    to_tuple,
)


@attrs.frozen(kw_only=True)
class Validated:
    count: int | None = attrs.field(default=None, validator=number(at_least=1, at_most=10, whole=True))
    share: float | None = attrs.field(default=None, validator=number(above=0, at_most=1))
    name: str | None = attrs.field(default=None, validator=text())
    note: str | None = attrs.field(default=None, validator=text(empty=True))
    colour: str | None = attrs.field(default=None, validator=one_of("red", "green"))
    words: tuple[str, ...] = attrs.field(default=(), validator=instances(str))
    table: Mapping[str, int] = attrs.field(factory=dict[str, int], validator=instances(int))
    flag: bool = attrs.field(default=False, validator=instance(bool))
    kind: bytes | None = attrs.field(default=None, validator=instance(bytes))
    size: int = attrs.field(default=1, validator=number(whole=True))
    title: str = attrs.field(default="x", validator=text())
    mood: str = attrs.field(default="good", validator=one_of("good", "bad"))


HUGE = 10**5000


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("count", 0, "must be at least 1, not 0"),
        ("count", 11, "must be at most 10, not 11"),
        ("count", True, "must be a whole number, not True"),
        ("count", 1.0, "must be a whole number, not 1.0"),
        ("count", "1", "must be a whole number, not '1'"),
        ("share", 0, "must be above 0, not 0"),
        ("share", 1.5, "must be at most 1, not 1.5"),
        ("share", math.nan, "must be a finite number, not nan"),
        ("share", math.inf, "must be a finite number, not inf"),
        ("name", "", "must not be blank: give some text, or leave it out"),
        ("name", " \n", "must not be blank: give some text, or leave it out"),
        ("name", 5, "must be a text, not int"),
        ("note", b"", "must be a text, not bytes"),
        ("colour", "blue", "must be one of red, green, not 'blue'"),
        ("colour", ["red"], "must be one of red, green, not list"),
        pytest.param("colour", -HUGE, "must be one of red, green, not a number of more than 64 bits", id="huge colour"),
        pytest.param("count", -HUGE, "must be a number of at most 64 bits", id="huge count"),
        ("count", 2**63, "must be a number of at most 64 bits"),
        ("count", object(), "must be a whole number, not object"),
        pytest.param("share", HUGE, "must be a number of at most 64 bits", id="huge share"),
        ("share", 1e300, "must be a number of at most 64 bits"),
        ("size", -(2**63), "must be a number of at most 64 bits"),
        ("size", None, "must be a whole number, not None"),
        ("title", None, "must be a text, not NoneType"),
        ("mood", None, "must be one of good, bad, not None"),
        ("flag", 1, "must be bool, not int"),
        ("flag", None, "must be bool, not NoneType"),
        ("kind", "x", "must be bytes, not str"),
    ],
)
def test_an_invalid_value_names_the_field_and_the_remedy(field: str, value: object, remedy: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        Validated(**{field: value})  # type: ignore[arg-type]
    assert str(caught.value) == f"{field}: {remedy}"


def test_an_invalid_item_is_named_by_its_index_or_key() -> None:
    with pytest.raises(InvalidValue, match=r"words\[1\]: must be str, not int"):
        Validated(words=("a", 1))  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match=r'table\."a b": must be int, not str'):
        Validated(table={"a": 1, "a b": "1"})  # type: ignore[dict-item]


def test_none_is_unset_and_bounds_are_inclusive() -> None:
    assert Validated() == Validated(count=None, share=None, name=None, note=None, colour=None, words=(), kind=None)
    assert Validated(size=2**63 - 1).size == 2**63 - 1
    assert Validated(count=1, share=1, name="x", note="", colour="red").count == 1


def test_a_bare_text_is_not_a_sequence() -> None:
    with pytest.raises(InvalidValue, match=r"^tags: must be several values, not the single text 'stop': write"):
        to_tuple("tags", "stop")


@pytest.mark.parametrize("value", [5, None, object(), 1.5])
def test_a_scalar_is_neither_a_sequence_nor_a_table(value: object) -> None:
    with pytest.raises(InvalidValue, match=f"^tags: must be several values, not {type(value).__name__}$"):
        to_tuple("tags", value)  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match=f"^tags: must be a table, not {type(value).__name__}$"):
        to_table("tags", value)  # type: ignore[arg-type]


def test_the_keys_of_a_table_must_be_texts() -> None:
    assert to_table("tags", {"b": 1, "a": 2}) == {"b": 1, "a": 2}
    with pytest.raises(InvalidValue, match=r"^tags: each key must be a text, not int$"):
        to_table("tags", {5: 1})  # type: ignore[dict-item]


class Colour(Enum):
    RED = "red"
    GREEN = "green"


@pytest.mark.parametrize("colour", Colour)
def test_a_member_and_its_text_are_the_same_choice(colour: Colour) -> None:
    assert to_member("colour", Colour, colour) is to_member("colour", Colour, colour.value) is colour


@pytest.mark.parametrize(("value", "shown"), [("RED", "'RED'"), (5, "5"), (None, "None"), ([], "list")])
def test_an_invalid_choice_lists_the_valid_ones(value: object, shown: str) -> None:
    with pytest.raises(InvalidValue, match=f"^colour: must be one of red, green, not {shown}"):
        to_member("colour", Colour, value)  # type: ignore[arg-type]


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.booleans(), st.binary(), st.just(HUGE)))
def test_the_short_repr_of_any_value_is_short(value: object) -> None:
    assert len(short_repr(value)) <= 40


@given(st.lists(st.integers()))
def test_an_iterable_becomes_a_tuple_in_the_same_order(items: list[int]) -> None:
    assert to_tuple("items", iter(items)) == tuple(items)
