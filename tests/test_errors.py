"""Errors as values: tags, equality without diagnostics, and no secret inside."""

from typing import get_args

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.values.errors import (
    BudgetExceeded,
    Cause,
    ConfigurationError,
    ConversationConflict,
    InvalidRequest,
    LLMError,
    NetworkError,
    RequestFailed,
    SchemaMismatch,
    StorageFailed,
    cause_of,
    checked,
)
from llm_effects.values.messages import Image
from llm_effects.values.requests import LLMRequest, Preferences
from llm_effects.values.responses import Attempt, Cost, Usage

KINDS: tuple[type[LLMError], ...] = get_args(LLMError)
NEEDED: dict[type, dict[str, object]] = {
    InvalidRequest: {"message": "prompt: blank"},
    ConfigurationError: {"message": "models: missing"},
    BudgetExceeded: {"budget": "daily", "spent": Cost.ZERO, "limit": Cost.ZERO},
    StorageFailed: {"operation": "put"},
    ConversationConflict: {"conversation_id": "c1"},
    SchemaMismatch: {"problems": ("age: missing",)},
    RequestFailed: {"errors": ()},
}


def make(kind: type[LLMError], **common: object) -> LLMError:
    return kind(**{**NEEDED.get(kind, {}), **common})  # type: ignore[arg-type]


def test_there_are_fifteen_kinds_each_with_a_tag_of_its_own() -> None:
    assert len(KINDS) == 15
    assert len({kind.tag for kind in KINDS}) == 15
    assert {kind.__name__ for kind in KINDS if kind.tag != kind.__name__} == {"RequestTimeout"}
    assert {kind.tag for kind in KINDS if kind.__name__ == "RequestTimeout"} == {"TimeoutError"}


@pytest.mark.parametrize("kind", KINDS)
def test_diagnostics_do_not_count_in_comparisons(kind: type[LLMError]) -> None:
    told = make(
        kind,
        provider="anthropic",
        status=529,
        code="overloaded_error",
        request_id="req_1",
        usage=Usage(input_tokens=1),
        attempts=(Attempt(model="m", provider="p", outcome="NetworkError", latency_ms=3),),
        cause=Cause("ConnectError", "refused"),
    )
    assert told == make(kind)
    assert hash(told) == hash(make(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", [{"model": "gpt"}, {"retry_after": 1.0}, {"partial": "so far"}])
def test_what_the_error_says_does_count(kind: type[LLMError], field: dict[str, object]) -> None:
    assert make(kind, **field) != make(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_frozen_values_and_no_exceptions(kind: type[LLMError]) -> None:
    assert BaseException not in kind.__mro__
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        make(kind).model = "other"  # type: ignore[misc]


def test_no_two_kinds_are_equal() -> None:
    assert len({make(kind) for kind in KINDS}) == len(KINDS)


@given(st.text("abcdef0123456789", min_size=8))
def test_a_cause_keeps_the_words_and_drops_the_key(key: str) -> None:
    error = NetworkError(cause=cause_of(OSError(f"refused, Bearer sk-{key}, token {key}"), key))
    assert error.cause is not None
    assert error.cause.type == "OSError"
    assert error.cause.message.startswith("refused")
    assert key not in repr(error)


def test_a_cause_is_never_long() -> None:
    assert len(cause_of(ValueError("x" * 10_000)).message) == 500


def test_checked_makes_values_and_turns_broken_rules_into_errors() -> None:
    assert checked(LLMRequest, prompt="why?").unwrap() == LLMRequest(prompt="why?")
    failure = checked(Preferences, max_tokens=-1).failure()
    assert failure == InvalidRequest(message="max_tokens: must be at least 1, not -1")
    assert checked(Image).failure().tag == "InvalidRequest"


def test_checked_lets_bugs_through() -> None:
    with pytest.raises(TypeError):
        checked(Preferences, no_such_field=1)  # type: ignore[call-arg]
