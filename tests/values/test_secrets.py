"""Secrets: they never show, and no text keeps them."""

import copy
import json
import pickle

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.values.secrets import MASK, Secret, scrub

CANARY = "canary-7f3a91"


@attrs.frozen
class Holder:
    key: Secret


def renderings(secret: Secret) -> list[str]:
    return [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r}",
        "%s %r" % (secret, secret),  # noqa: UP031 - one more rendering
        repr([secret]),
        repr(Holder(secret)),
        repr(attrs.asdict(Holder(secret))),
        repr(attrs.astuple(Holder(secret))),
        repr(copy.copy(secret)),
        repr(copy.deepcopy(Holder(secret))),
        json.dumps({"key": secret}, default=str),
    ]


def test_no_rendering_shows_a_secret() -> None:
    shown = renderings(Secret(CANARY))
    assert [each for each in shown if CANARY in each] == []
    assert [each for each in shown if MASK not in each] == []


def test_a_secret_has_neither_a_dict_nor_a_text_attribute() -> None:
    with pytest.raises(TypeError):
        vars(Secret(CANARY))
    with pytest.raises(AttributeError):
        Secret(CANARY).text  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_a_secret_fails_without_showing_it(protocol: int) -> None:
    with pytest.raises(TypeError, match="cannot be pickled") as caught:
        pickle.dumps(Holder(Secret(CANARY)), protocol)
    assert CANARY not in str(caught.value)


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_secrets_compare_and_hash_by_their_texts(one: str, other: str) -> None:
    assert Secret(one).reveal() == one
    assert (Secret(one) == Secret(other)) == (one == other)
    assert hash(Secret(one)) == hash(Secret(one))
    assert Secret(one) != one


@given(st.text(), st.text(st.characters(exclude_characters="*"), min_size=1), st.text())
def test_scrubbing_removes_given_secrets(before: str, secret: str, after: str) -> None:
    assert secret not in scrub(f"{before}{secret}{after}", secret)


KEY_BODIES = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-", min_size=6, max_size=40)


@given(
    st.sampled_from(["sk-", "sk-proj-", "sk-ant-api03-", "gsk_", "xai-"]),
    KEY_BODIES,
    st.sampled_from(["", " ", "\n", '"', ":"]),
)
def test_scrubbing_removes_anything_that_looks_like_a_key(prefix: str, body: str, edge: str) -> None:
    assert prefix + body not in scrub(f"refused{edge or ' '}{prefix}{body}{edge}")


@given(st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1).filter(lambda token: token not in MASK))
def test_scrubbing_removes_bearer_tokens(token: str) -> None:
    assert scrub(f"authorization: Bearer {token}") == f"authorization: Bearer {MASK}"


def test_scrubbing_leaves_other_text_unchanged() -> None:
    text = "the task-manager on disk-01 asked for 97 % of the risk-free key"
    assert scrub(text) == text
    assert scrub(text, "") == text


def test_a_secret_that_begins_with_another_is_masked_whole() -> None:
    assert scrub("login: tenant-7-admin", "tenant-7", "tenant-7-admin") == f"login: {MASK}"
