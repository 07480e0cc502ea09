"""Errors: equality without diagnostics, what to do after each, and no exceptions or secrets inside."""

import copy
from collections.abc import Callable
from decimal import Decimal
from typing import Any, get_args
from unittest.mock import ANY

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from returns.pipeline import is_successful
from returns.result import Success

from llm_effects.config import LLMConfig
from llm_effects.config.models import ModelConfig
from llm_effects.config.routing import RoutingConfig
from llm_effects.routing.statistics import INFORMATIVE_OUTCOMES
from llm_effects.values.errors import (
    UNLIMITED,
    AuthenticationFailed,
    Blame,
    BudgetExceeded,
    Cause,
    ConfigurationError,
    ContentRefused,
    ContextTooLarge,
    ConversationConflict,
    Fallback,
    InvalidRequest,
    LLMError,
    MalformedResponse,
    ModelUnavailable,
    NetworkError,
    RateLimitExceeded,
    RequestFailed,
    RequestTimeout,
    SchemaMismatch,
    StorageFailed,
    blame_for,
    cause_of,
    checked,
    describe,
    fallback_for,
    is_retryable,
    retry_limit,
)
from llm_effects.values.messages import Image, Message, ToolCall, ToolResult
from llm_effects.values.requests import LLMRequest, Preferences, Tool
from llm_effects.values.responses import SUCCESS, Attempt, Cost, Usage

KINDS: tuple[type[LLMError], ...] = get_args(LLMError)
REQUIRED_FIELDS: dict[type, dict[str, object]] = {
    InvalidRequest: {"message": "prompt: blank"},
    ConfigurationError: {"message": "models: missing"},
    BudgetExceeded: {"budget": "daily", "spent": Cost.ZERO, "limit": Cost.ZERO},
    StorageFailed: {"operation": "put"},
    ConversationConflict: {"conversation_id": "c1"},
    SchemaMismatch: {"problems": ("age: missing",)},
    RequestFailed: {"errors": ()},
}


def make(kind: type[LLMError], **common: object) -> LLMError:
    return kind(**{**REQUIRED_FIELDS.get(kind, {}), **common})  # type: ignore[arg-type]


def test_there_are_fifteen_errors_with_distinct_tags() -> None:
    assert len(KINDS) == 15
    assert len({kind.tag for kind in KINDS}) == 15
    assert {kind.__name__ for kind in KINDS if kind.tag != kind.__name__} == {"RequestTimeout"}
    assert {kind.tag for kind in KINDS if kind.__name__ == "RequestTimeout"} == {"TimeoutError"}


@pytest.mark.parametrize("kind", KINDS)
def test_comparisons_ignore_diagnostics(kind: type[LLMError]) -> None:
    diagnosed = make(
        kind,
        provider="anthropic",
        status=529,
        code="overloaded_error",
        request_id="req_1",
        usage=Usage(input_tokens=1),
        attempts=(Attempt(model="m", provider="p", outcome="NetworkError", latency_ms=3),),
        cause=Cause("ConnectError", "refused"),
    )
    assert diagnosed == make(kind)
    assert hash(diagnosed) == hash(make(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", [{"model": "gpt"}, {"retry_after": 1.0}, {"partial": "so far"}])
def test_comparisons_include_model_retry_after_and_partial(kind: type[LLMError], field: dict[str, object]) -> None:
    assert make(kind, **field) != make(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_frozen_values_not_exceptions(kind: type[LLMError]) -> None:
    assert BaseException not in kind.__mro__
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        make(kind).model = "other"  # type: ignore[misc]


@pytest.mark.parametrize("kind", KINDS)
def test_another_type_may_compare_itself_with_an_error(kind: type[LLMError]) -> None:
    assert make(kind) == ANY
    assert make(kind) != "an error"


def test_errors_of_different_kinds_are_never_equal() -> None:
    assert len({make(kind) for kind in KINDS}) == len(KINDS)


# Retry, fall back, describe.

ONE_DOLLAR = Cost(Decimal(1))

TABLE: list[tuple[LLMError, int, Fallback]] = [
    (ModelUnavailable(reason="overloaded"), UNLIMITED, Fallback.ANY),
    (ModelUnavailable(reason="loading"), UNLIMITED, Fallback.ANY),
    (ModelUnavailable(reason="unknown_model"), 0, Fallback.ANY),
    (ModelUnavailable(reason="breaker_open"), 0, Fallback.ANY),
    (RateLimitExceeded(retry_after=2.0), UNLIMITED, Fallback.ANY),
    (RateLimitExceeded(quota=True), 0, Fallback.ANY),
    (InvalidRequest(message="prompt: blank"), 0, Fallback.NEVER),
    (AuthenticationFailed(), 0, Fallback.ANY),
    (RequestTimeout(phase="first_content"), 1, Fallback.ANY),
    (RequestTimeout(phase="attempt"), 1, Fallback.ANY),
    (RequestTimeout(phase="queue"), 0, Fallback.ANY),
    (RequestTimeout(phase="total"), 0, Fallback.NEVER),
    (RequestTimeout(phase="sink"), 0, Fallback.NEVER),
    (ContextTooLarge(token_count=9, limit=8), 0, Fallback.LARGER_WINDOW),
    (ConfigurationError(message="models: missing"), 0, Fallback.NEVER),
    (NetworkError(phase="reset"), UNLIMITED, Fallback.ANY),
    (NetworkError(phase="refused"), UNLIMITED, Fallback.ANY),
    (NetworkError(phase="dns"), 1, Fallback.ANY),
    (MalformedResponse(), 1, Fallback.ANY),
    (ContentRefused(category="violence"), 0, Fallback.IF_ALLOWED),
    (BudgetExceeded(budget="daily", spent=ONE_DOLLAR, limit=ONE_DOLLAR), 0, Fallback.CHEAPER),
    (StorageFailed(operation="put", transient=True), 1, Fallback.NEVER),
    (StorageFailed(operation="put"), 0, Fallback.NEVER),
    (ConversationConflict(conversation_id="c1"), 0, Fallback.NEVER),
    (SchemaMismatch(problems=("age: missing",)), 0, Fallback.ANY),
    (RequestFailed(errors=()), 0, Fallback.NEVER),
]


def test_the_table_covers_every_error() -> None:
    assert {type(error) for error, _, _ in TABLE} == set(get_args(LLMError))


@pytest.mark.parametrize(("error", "retries", "fallback"), TABLE, ids=lambda each: getattr(each, "tag", None))
def test_retries_and_fallbacks_follow_the_table(error: LLMError, retries: int, fallback: Fallback) -> None:
    assert retry_limit(error) == retries
    assert is_retryable(error) is (retries > 0)
    assert fallback_for(error) is fallback


@pytest.mark.parametrize("error", [error for error, _, _ in TABLE], ids=lambda error: error.tag)
def test_a_description_is_one_line_that_begins_with_the_tag(error: LLMError) -> None:
    assert describe(error).startswith(error.tag)
    assert "\n" not in describe(error)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (NetworkError(model="a", message="refused"), "NetworkError (a): refused"),
        (
            RequestTimeout(model="a", timeout_ms=1500, phase="connect"),
            "TimeoutError (a): connect timed out after 1500 ms",
        ),
        (RequestTimeout(phase="total"), "TimeoutError: total timed out"),
        (BudgetExceeded(budget="daily", spent=ONE_DOLLAR, limit=ONE_DOLLAR), "BudgetExceeded: daily: $1 of $1 spent"),
        (SchemaMismatch(problems=("age: missing", "name: blank")), "SchemaMismatch: age: missing; name: blank"),
        (StorageFailed(operation="put", message="locked"), "StorageFailed: put: locked"),
        (
            ConversationConflict(conversation_id="c1"),
            "ConversationConflict: conversation 'c1' was changed by another writer",
        ),
    ],
)
def test_a_description_names_the_model_and_the_problem(error: LLMError, message: str) -> None:
    assert describe(error) == message


def test_the_description_of_a_failed_request_lists_every_attempt_in_order() -> None:
    failed = RequestFailed(errors=(NetworkError(model="a", message="reset"), RequestTimeout(model="b", timeout_ms=5)))
    assert describe(failed) == "RequestFailed: NetworkError (a): reset; TimeoutError (b): attempt timed out after 5 ms"


# Exceptions to values.

CANARY = "canary-7f3a91"


@given(st.text("abcdef0123456789", min_size=8))
def test_a_cause_keeps_the_message_without_the_key(key: str) -> None:
    error = NetworkError(cause=cause_of(OSError(f"refused, Bearer sk-{key}, token {key}"), key))
    assert error.cause is not None
    assert error.cause.type == "OSError"
    assert error.cause.message.startswith("refused")
    assert key not in repr(error)


def test_a_cause_is_truncated_to_500_characters() -> None:
    assert len(cause_of(ValueError("x" * 10_000)).message) == 500


def test_a_cause_is_the_class_and_the_truncated_message_without_secrets() -> None:
    cause = cause_of(KeyError(f"no {CANARY}" + "x" * 1000), CANARY)
    assert cause.type == "KeyError"
    assert CANARY not in cause.message
    assert len(cause.message) == 500
    assert cause_of(OSError("gone")) == Cause("OSError", "gone")


def test_checked_returns_a_value_or_an_invalid_request() -> None:
    assert checked(LLMRequest, prompt="why?").unwrap() == LLMRequest(prompt="why?")
    failure = checked(Preferences, max_tokens=-1).failure()
    assert failure == InvalidRequest(message="max_tokens: must be at least 1, not -1")
    assert checked(Image).failure().tag == "InvalidRequest"


def test_checked_does_not_catch_an_unknown_argument() -> None:
    with pytest.raises(TypeError):
        checked(Preferences, no_such_field=1)  # type: ignore[call-arg]


def test_checked_returns_a_valid_value() -> None:
    assert checked(LLMRequest, prompt="x") == Success(LLMRequest(prompt="x"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"messages": 5}, "messages: must be several values, not int"),
        (
            {"prompt": "x", "preferences": {"max_tokens": -4}},
            "preferences: must be Preferences, not dict: write Preferences(...)",
        ),
    ],
)
def test_checked_returns_the_message_of_an_invalid_value(data: dict[str, Any], message: str) -> None:
    assert checked(LLMRequest, **data).failure() == InvalidRequest(message=message)


def test_checked_does_not_catch_a_type_error_from_inside() -> None:
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
ANY_VALUE = st.recursive(
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


@given(st.sampled_from(FIELDS), ANY_VALUE)
def test_no_value_of_any_field_raises(field: tuple[Callable[..., object], dict[str, Any], str], value: object) -> None:
    make, base, name = field
    made = checked(make, **{**copy.deepcopy(base), name: value})
    if not is_successful(made):
        assert isinstance(made.failure(), InvalidRequest)


BLAMES: list[tuple[LLMError, Blame]] = [
    (NetworkError(phase="refused"), Blame.SERVER),
    (NetworkError(phase="local"), Blame.OURSELVES),
    (RequestTimeout(phase="first_content"), Blame.SERVER),
    (RequestTimeout(phase="queue"), Blame.OURSELVES),
    (RequestTimeout(phase="sink"), Blame.OURSELVES),
    (RequestTimeout(phase="total"), Blame.OURSELVES),
    (ModelUnavailable(status=503), Blame.SERVER),
    (ModelUnavailable(status=409), Blame.MODEL),
    (ModelUnavailable(status=503, reason="loading"), Blame.MODEL),
    (ModelUnavailable(status=404, reason="unknown_model"), Blame.MODEL),
    (ModelUnavailable(status=404, reason="unsupported"), Blame.REQUEST),
    (ModelUnavailable(reason="breaker_open"), Blame.OURSELVES),
    (RateLimitExceeded(status=429), Blame.MODEL),
    (RateLimitExceeded(should_retry=False), Blame.OURSELVES),
    (AuthenticationFailed(status=401), Blame.MODEL),
    (MalformedResponse(status=200), Blame.MODEL),
    (SchemaMismatch(problems=("age: missing",)), Blame.MODEL),
    (InvalidRequest(message="prompt: no", status=400), Blame.REQUEST),
    (ContextTooLarge(status=400), Blame.REQUEST),
    (ContentRefused(category="violence"), Blame.REQUEST),
    (ConfigurationError(message="models: missing"), Blame.OURSELVES),
    (BudgetExceeded(budget="daily", spent=ONE_DOLLAR, limit=ONE_DOLLAR), Blame.OURSELVES),
    (StorageFailed(operation="put"), Blame.OURSELVES),
    (ConversationConflict(conversation_id="c1"), Blame.OURSELVES),
    (RequestFailed(errors=()), Blame.OURSELVES),
]


@pytest.mark.parametrize(("error", "blame"), BLAMES, ids=lambda each: getattr(each, "tag", None))
def test_blame_follows_the_table(error: LLMError, blame: Blame) -> None:
    assert blame_for(error) is blame
    assert {type(each) for each, _ in BLAMES} == set(get_args(LLMError))


def test_statistics_learn_from_the_outcomes_that_blame_a_server_or_a_model() -> None:
    tags = {error.tag for error, blame in BLAMES if blame in {Blame.SERVER, Blame.MODEL}}
    assert tags | {SUCCESS} == INFORMATIVE_OUTCOMES
