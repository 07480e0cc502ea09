"""Secrets that never show, texts that are scrubbed, and rules that name the field and the remedy."""

import copy
import json
import math
import pickle
from collections.abc import Mapping
from enum import Enum

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.values.secrets import MASK, Secret, scrub
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

CANARY = "canary-7f3a91"


@attrs.frozen
class Holder:
    key: Secret


def ways_to_show(secret: Secret) -> list[str]:
    return [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r}",
        "%s %r" % (secret, secret),  # noqa: UP031 - one more way
        repr([secret]),
        repr(Holder(secret)),
        repr(attrs.asdict(Holder(secret))),
        repr(attrs.astuple(Holder(secret))),
        repr(copy.copy(secret)),
        repr(copy.deepcopy(Holder(secret))),
        json.dumps({"key": secret}, default=str),
    ]


def test_no_way_of_showing_a_secret_shows_it() -> None:
    shown = ways_to_show(Secret(CANARY))
    assert [each for each in shown if CANARY in each] == []
    assert all(MASK in each for each in shown)


def test_a_secret_has_no_dict_to_look_into() -> None:
    with pytest.raises(TypeError):
        vars(Secret(CANARY))
    with pytest.raises(AttributeError):
        Secret(CANARY).text  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_refuses_to_be_pickled_without_telling_itself(protocol: int) -> None:
    with pytest.raises(TypeError, match="cannot be pickled") as caught:
        pickle.dumps(Holder(Secret(CANARY)), protocol)
    assert CANARY not in str(caught.value)


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_secrets_compare_and_hash_as_their_texts(one: str, other: str) -> None:
    assert Secret(one).reveal() == one
    assert (Secret(one) == Secret(other)) == (one == other)
    assert hash(Secret(one)) == hash(Secret(one))
    assert Secret(one) != one


@given(st.text(), st.text(st.characters(exclude_characters="*"), min_size=1), st.text())
def test_a_given_secret_never_survives_scrubbing(before: str, secret: str, after: str) -> None:
    assert secret not in scrub(f"{before}{secret}{after}", secret)


LETTERS = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-", min_size=6, max_size=40)


@given(
    st.sampled_from(["sk-", "sk-proj-", "sk-ant-api03-", "gsk_", "xai-"]),
    LETTERS,
    st.sampled_from(["", " ", "\n", '"', ":"]),
)
def test_whatever_looks_like_a_key_never_survives_scrubbing(prefix: str, body: str, edge: str) -> None:
    assert prefix + body not in scrub(f"refused{edge or ' '}{prefix}{body}{edge}")


@given(st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1).filter(lambda token: token not in MASK))
def test_a_bearer_token_never_survives_scrubbing(token: str) -> None:
    assert scrub(f"authorization: Bearer {token}") == f"authorization: Bearer {MASK}"


def test_plain_words_are_left_alone() -> None:
    said = "the task-manager on disk-01 asked for 97 % of the risk-free key"
    assert scrub(said) == said
    assert scrub(said, "") == said


@attrs.frozen(kw_only=True)
class Ruled:
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
def test_a_broken_rule_names_the_field_and_the_remedy(field: str, value: object, remedy: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        Ruled(**{field: value})  # type: ignore[arg-type]
    assert str(caught.value) == f"{field}: {remedy}"


def test_a_wrong_item_is_named_by_its_index() -> None:
    with pytest.raises(InvalidValue, match=r"words\[1\]: must be str, not int"):
        Ruled(words=("a", 1))  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match=r'table\."a b": must be int, not str'):
        Ruled(table={"a": 1, "a b": "1"})  # type: ignore[dict-item]


def test_none_is_unset_and_edges_are_inside() -> None:
    assert Ruled() == Ruled(count=None, share=None, name=None, note=None, colour=None, words=(), kind=None)
    assert Ruled(size=2**63 - 1).size == 2**63 - 1
    assert Ruled(count=1, share=1, name="x", note="", colour="red").count == 1


def test_a_bare_text_is_no_sequence() -> None:
    with pytest.raises(InvalidValue, match=r"^tags: must be several values, not the single text 'stop': write"):
        to_tuple("tags", "stop")


@pytest.mark.parametrize("given", [5, None, object(), 1.5])
def test_what_holds_nothing_is_no_sequence_and_no_table(given: object) -> None:
    with pytest.raises(InvalidValue, match=f"^tags: must be several values, not {type(given).__name__}$"):
        to_tuple("tags", given)  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match=f"^tags: must be a table, not {type(given).__name__}$"):
        to_table("tags", given)  # type: ignore[arg-type]


def test_the_keys_of_a_table_are_texts() -> None:
    assert to_table("tags", {"b": 1, "a": 2}) == {"b": 1, "a": 2}
    with pytest.raises(InvalidValue, match=r"^tags: each key must be a text, not int$"):
        to_table("tags", {5: 1})  # type: ignore[dict-item]


class Colour(Enum):
    RED = "red"
    GREEN = "green"


@pytest.mark.parametrize("colour", Colour)
def test_a_member_and_its_text_are_the_same_choice(colour: Colour) -> None:
    assert to_member("colour", Colour, colour) is to_member("colour", Colour, colour.value) is colour


@pytest.mark.parametrize(("given", "said"), [("RED", "'RED'"), (5, "5"), (None, "None"), ([], "list")])
def test_a_wrong_choice_is_told_the_right_ones(given: object, said: str) -> None:
    with pytest.raises(InvalidValue, match=f"^colour: must be one of red, green, not {said}"):
        to_member("colour", Colour, given)  # type: ignore[arg-type]


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.booleans(), st.binary(), st.just(HUGE)))
def test_whatever_is_shown_is_short(value: object) -> None:
    assert len(short_repr(value)) <= 40


@given(st.lists(st.integers()))
def test_collections_are_frozen_as_they_are(items: list[int]) -> None:
    assert to_tuple("items", iter(items)) == tuple(items)
