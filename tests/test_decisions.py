"""The two decisions about an error are total, and say what the table of the errors says."""

from decimal import Decimal
from typing import get_args

import pytest

from llm_effects.values.errors import (
    UNLIMITED,
    AuthenticationFailed,
    BudgetExceeded,
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
    describe,
    fallback_for,
    is_retryable,
    retry_limit,
)
from llm_effects.values.responses import Cost

DOLLAR = Cost(Decimal(1))

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
    (BudgetExceeded(budget="daily", spent=DOLLAR, limit=DOLLAR), 0, Fallback.CHEAPER),
    (StorageFailed(operation="put", transient=True), 1, Fallback.NEVER),
    (StorageFailed(operation="put"), 0, Fallback.NEVER),
    (ConversationConflict(conversation_id="c1"), 0, Fallback.NEVER),
    (SchemaMismatch(problems=("age: missing",)), 0, Fallback.ANY),
    (RequestFailed(errors=()), 0, Fallback.NEVER),
]


def test_the_table_has_every_kind_of_error() -> None:
    assert {type(error) for error, _, _ in TABLE} == set(get_args(LLMError))


@pytest.mark.parametrize(("error", "retries", "fallback"), TABLE, ids=lambda each: getattr(each, "tag", None))
def test_decisions_follow_the_table(error: LLMError, retries: int, fallback: Fallback) -> None:
    assert retry_limit(error) == retries
    assert is_retryable(error) is (retries > 0)
    assert fallback_for(error) is fallback


@pytest.mark.parametrize("error", [error for error, _, _ in TABLE], ids=lambda error: error.tag)
def test_a_description_is_one_line_that_begins_with_the_tag(error: LLMError) -> None:
    assert describe(error).startswith(error.tag)
    assert "\n" not in describe(error)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (NetworkError(model="a", message="refused"), "NetworkError (a): refused"),
        (
            RequestTimeout(model="a", timeout_ms=1500, phase="connect"),
            "TimeoutError (a): connect timed out after 1500 ms",
        ),
        (RequestTimeout(phase="total"), "TimeoutError: total timed out"),
        (BudgetExceeded(budget="daily", spent=DOLLAR, limit=DOLLAR), "BudgetExceeded: daily: $1 of $1 spent"),
        (SchemaMismatch(problems=("age: missing", "name: blank")), "SchemaMismatch: age: missing; name: blank"),
        (StorageFailed(operation="put", message="locked"), "StorageFailed: put: locked"),
        (
            ConversationConflict(conversation_id="c1"),
            "ConversationConflict: conversation 'c1' was changed by another writer",
        ),
    ],
)
def test_a_description_says_what_happened(error: LLMError, says: str) -> None:
    assert describe(error) == says


def test_a_failed_request_tells_every_attempt_in_order() -> None:
    failed = RequestFailed(errors=(NetworkError(model="a", message="reset"), RequestTimeout(model="b", timeout_ms=5)))
    assert describe(failed) == "RequestFailed: NetworkError (a): reset; TimeoutError (b): attempt timed out after 5 ms"
