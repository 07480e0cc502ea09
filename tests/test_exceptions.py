"""Data from outside becomes a value or an error, never an exception."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from returns.pipeline import is_successful
from returns.result import Success

from llm_effects.config import LLMConfig
from llm_effects.config.models import ModelConfig
from llm_effects.config.routing import RoutingConfig
from llm_effects.values.errors import Cause, InvalidRequest, cause_of, checked
from llm_effects.values.messages import Image, Message, ToolCall, ToolResult
from llm_effects.values.requests import LLMRequest, Preferences, Tool

CANARY = "canary-7f3a91"


def test_a_cause_keeps_what_was_said_without_secrets_and_briefly() -> None:
    cause = cause_of(KeyError(f"no {CANARY}" + "x" * 1000), CANARY)
    assert cause.type == "KeyError"
    assert CANARY not in cause.message
    assert len(cause.message) == 500
    assert cause_of(OSError("gone")) == Cause("OSError", "gone")


def test_what_is_right_is_a_success() -> None:
    assert checked(LLMRequest, prompt="x") == Success(LLMRequest(prompt="x"))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"messages": 5}, "messages: must be several values, not int"),
        ({"prompt": "x", "preferences": {"max_tokens": -4}}, "preferences: must be Preferences, not dict"),
    ],
)
def test_what_is_wrong_is_an_invalid_request_that_says_so(data: dict[str, Any], says: str) -> None:
    assert checked(LLMRequest, **data).failure() == InvalidRequest(message=says)


def test_a_type_error_from_inside_is_a_bug_and_stays_one() -> None:
    def buggy(text: str) -> int:
        return text + 1  # type: ignore[operator, no-any-return]

    with pytest.raises(TypeError, match="concatenate"):
        checked(buggy, "x")


VALID: list[tuple[Callable[..., object], dict[str, Any]]] = [
    (LLMRequest, {"prompt": "x"}),
    (Preferences, {}),
    (Tool, {"name": "look"}),
    (Message, {"role": "user", "parts": "x"}),
    (Image, {"url": "x"}),
    (ToolCall, {"id": "1", "name": "look"}),
    (ToolResult, {"call_id": "1"}),
    (ModelConfig, {"provider": "x"}),
    (RoutingConfig, {}),
    (LLMConfig, {"models": {}}),
]
FIELDS = [(make, base, each.name) for make, base in VALID for each in make.__attrs_attrs__]  # type: ignore[attr-defined]
ANYTHING = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(),
        st.binary(),
        st.builds(lambda: 10**5000),
        st.builds(object),
    ),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=5,
)


@given(st.sampled_from(FIELDS), ANYTHING)
def test_no_value_of_any_field_is_an_exception(
    field: tuple[Callable[..., object], dict[str, Any], str], value: object
) -> None:
    make, base, name = field
    made = checked(make, **{**copy.deepcopy(base), name: value})
    if not is_successful(made):
        assert isinstance(made.failure(), InvalidRequest)
