"""JSON: copies of a caller's values, encoding, and the repair of surrogates."""

import json
from collections import UserDict, UserList
from enum import IntEnum, StrEnum
from types import MappingProxyType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.values import caps
from llm_effects.values.json import dump, repair_surrogates, to_json_object
from llm_effects.values.validation import InvalidValue

HALF = "\ud83d"


class Kind(StrEnum):
    A = "a"


class Size(IntEnum):
    ONE = 1


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


TEXTS = st.text()
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=10,
)
TABLES = st.dictionaries(TEXTS, JSON_VALUES)


@given(TABLES)
def test_plain_json_is_copied_unchanged(table: dict[str, object]) -> None:
    assert to_json_object("schema", table) == table


@given(TABLES)
def test_encoded_json_decodes_with_its_texts_repaired(table: dict[str, object]) -> None:
    encoded = dump(to_json_object("schema", table))
    assert json.loads(encoded) == json.loads(repair_surrogates(json.dumps(table, ensure_ascii=False)))


def test_other_classes_become_plain_ones() -> None:
    source = UserDict({Text("k"): (Kind.A, Size.ONE, Text("x")), "l": UserList([MappingProxyType({"a": 1})])})
    plain = to_json_object("schema", source)
    assert plain == {"k": ["a", 1, "x"], "l": [{"a": 1}]}
    assert {type(key) for key in plain} == {str}
    assert [type(each) for each in plain["k"]] == [str, int, str]  # type: ignore[attr-defined]


def cycle() -> dict[str, object]:
    table: dict[str, object] = {}
    table["again"] = [table, table]
    return table


def deep(levels: int) -> dict[str, object]:
    return {"a": deep(levels - 1)} if levels > 1 else {}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "s: must be a JSON object, not int"),
        ([], "s: must be a JSON object, not list"),
        ({"a b": [{"c": {1}}]}, 's."a b"[0].c: must be JSON, not set'),
        ({"a": b"x"}, "s.a: must be JSON, not bytes"),
        ({"a": {5: 1}}, "s.a: each key must be a text, not int"),
        ({"a": float("nan")}, "s.a: must be a finite number"),
        ({"a": float("-inf")}, "s.a: must be a finite number"),
        ({"a": -(10**5000)}, "s.a: must be a finite number"),
        (cycle(), "s.again[0]: must not contain itself"),
        (deep(caps.NESTING + 1), f"s{'.a' * caps.NESTING}: must not be nested deeper than 100 levels"),
        (deep(500), f"s{'.a' * caps.NESTING}: must not be nested deeper than 100 levels"),
    ],
)
def test_a_value_that_is_not_json_is_named_by_its_path(value: object, message: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        to_json_object("s", value)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_shared_and_deeply_nested_values_are_valid() -> None:
    shared = {"type": "string"}
    assert to_json_object("s", {"a": shared, "b": [shared, shared]}) == {"a": shared, "b": [shared, shared]}
    assert to_json_object("s", deep(caps.NESTING)) == deep(caps.NESTING)
    assert to_json_object("s", {"maximum": 2**64, "large": 10**300}) == {"maximum": 2**64, "large": 10**300}


@given(st.text(), st.text())
def test_a_repaired_text_can_be_encoded_and_stays_unchanged(before: str, after: str) -> None:
    text = repair_surrogates(f"{before}{HALF}{after}")
    assert text.encode()
    assert repair_surrogates(text) == text


@given(st.text(st.characters(codec="utf-8")))
def test_valid_unicode_stays_unchanged_and_split_pairs_are_joined(text: str) -> None:
    units = text.encode("utf-16-le")
    split = "".join(chr(int.from_bytes(units[at : at + 2], "little")) for at in range(0, len(units), 2))
    assert repair_surrogates(text) == repair_surrogates(split) == text


def test_a_half_pair_anywhere_is_replaced_and_raw_json_is_unchanged() -> None:
    body = {"a" + HALF: [HALF, {"b": HALF}], "raw": msgspec.Raw(b'{"x":  1}'), "n": None}
    assert dump(body).decode() == '{"a\ufffd":["\ufffd",{"b":"\ufffd"}],"raw":{"x":  1},"n":null}'
