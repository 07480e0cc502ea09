"""The mapping from error answers to errors, without the key."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.config.models import Capabilities, ModelConfig
from llm_effects.providers.error_mapping import classify, classify_error_object
from llm_effects.providers.target import Preset, Target
from llm_effects.providers.wire import WireResponse
from llm_effects.routing.statistics import cooldown_after
from llm_effects.values.errors import (
    ConfigurationError,
    ContentRefused,
    ContextTooLarge,
    Fallback,
    LLMError,
    ModelUnavailable,
    NetworkError,
    RateLimitExceeded,
    RequestTimeout,
    describe,
    fallback_for,
    is_retryable,
)

KEY = "canary-Zx81-secret"
TARGET = Target(
    name="mini",
    config=ModelConfig(provider="openai-chat", model="gpt-x", api_key=KEY, headers={"x-org": "organisation-77"}),
    preset=Preset(name="openai-chat", wire="openai-chat"),
    endpoint="https://api.example.com/v1",
    capabilities=Capabilities(),
)


def classified(status: int, body: object = "", **headers: str) -> LLMError:
    text = body if isinstance(body, str) else json.dumps(body)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return classify(TARGET, WireResponse(status=status, headers=named, body=text.encode()))


def error(message: str, **fields: object) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


@pytest.mark.parametrize(
    ("status", "body", "tag"),
    [
        pytest.param(400, error("bad field"), "InvalidRequest", id="fault-20"),
        pytest.param(401, error("Incorrect API key"), "AuthenticationFailed", id="fault-23"),
        pytest.param(402, error("Insufficient Balance"), "RateLimitExceeded", id="fault-24"),
        pytest.param(
            403, error("no", code="unsupported_country_region_territory"), "AuthenticationFailed", id="fault-25"
        ),
        pytest.param(404, error("not found"), "ConfigurationError", id="fault-28-path"),
        pytest.param(405, "", "ConfigurationError", id="fault-28-method"),
        pytest.param(409, error("conflict"), "ModelUnavailable", id="fault-30"),
        pytest.param(413, error("too big", type="request_too_large"), "InvalidRequest", id="fault-31"),
        pytest.param(415, "", "InvalidRequest", id="fault-32-415"),
        pytest.param(422, {"detail": [{"loc": ["body", "n"], "msg": "wrong"}]}, "InvalidRequest", id="fault-32-422"),
        pytest.param(425, "", "ModelUnavailable", id="fault-33"),
        pytest.param(429, error("slow down"), "RateLimitExceeded", id="fault-34"),
        pytest.param(500, error("oops", type="server_error"), "ModelUnavailable", id="fault-44"),
        pytest.param(501, error("no", type="NotImplementedError"), "ModelUnavailable", id="fault-45"),
        pytest.param(501, error("no", type="not_supported_error"), "ConfigurationError", id="fault-45-llama-cpp"),
        pytest.param(502, "", "ModelUnavailable", id="fault-46"),
        pytest.param(529, error("Overloaded", type="overloaded_error"), "ModelUnavailable", id="fault-48"),
        pytest.param(522, "<html>gone</html>", "ModelUnavailable", id="fault-49"),
        pytest.param(418, "", "InvalidRequest", id="fault-50-418"),
        pytest.param(499, "", "InvalidRequest", id="fault-50-499"),
        pytest.param(204, "", "MalformedResponse", id="fault-51-204"),
        pytest.param(101, "", "MalformedResponse", id="fault-51-101"),
        pytest.param(302, "", "MalformedResponse", id="fault-51-302-without-location"),
    ],
)
def test_the_status_decides_without_other_evidence(status: int, body: object, tag: str) -> None:
    actual = classified(status, body)
    assert actual.tag == tag
    assert (actual.model, actual.provider, actual.status) == ("mini", "openai-chat", status)


@pytest.mark.parametrize("status", [408, 504, 524])
def test_faults_29_47_a_server_timeout_is_a_timeout(status: int) -> None:
    actual = classified(status, "<h1>gateway</h1>")
    assert isinstance(actual, RequestTimeout)
    assert actual.phase == "server"


CONTEXT = [
    (
        400,
        error("This model's maximum context length is 8192 tokens. However, your messages resulted in 9000"),
        9000,
        8192,
    ),
    (400, error("maximum context length is 100 tokens. However, you requested 150 tokens (90 in, 60 out)"), 150, 100),
    (400, error("too long", code="context_length_exceeded"), None, None),
    (400, error("request (31 tokens) exceeds the available context size (16 tokens)"), 31, 16),
    (400, error("too big", type="exceed_context_size_error", n_prompt_tokens=31, n_ctx=16), 31, 16),
    (400, error("prompt is too long: 208310 tokens > 200000 maximum", type="invalid_request_error"), 208310, 200000),
    (400, error("input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000"), 210000, 200000),
    (
        429,
        error("Request too large for gpt-x: Limit 30,000, Requested 41,000.", code="rate_limit_exceeded"),
        41000,
        30000,
    ),
    (400, {"object": "error", "message": "max_tokens must be at least 1, got -186.", "code": 400}, None, None),
    (500, error("Context size has been exceeded.", type="server_error"), None, None),
    (400, {"error": "prompt is longer than the context length"}, None, None),
    (400, error("Your input exceeds the context window of this model."), None, None),
    (400, error("maximum prompt length is 131072 but the request contains 537812 tokens"), 537812, 131072),
]


@pytest.mark.parametrize(("status", "body", "count", "limit"), CONTEXT)
def test_faults_21_43_a_long_prompt_is_context_too_large_with_both_numbers(
    status: int, body: object, count: int | None, limit: int | None
) -> None:
    actual = classified(status, body)
    assert isinstance(actual, ContextTooLarge)
    assert (actual.token_count, actual.limit) == (count, limit)


def test_fault_21_the_message_of_lm_studio_holds_both_numbers() -> None:
    expected_message = (
        "Trying to keep the first 6269 tokens when context the overflows. "
        "However, the model is loaded with context length of only 4096 tokens"
    )
    actual = classified(400, {"error": expected_message})
    assert isinstance(actual, ContextTooLarge)
    assert (actual.token_count, actual.limit) == (6269, 4096)


@pytest.mark.parametrize(
    "message",
    ["max_tokens is too large: 100000. This model supports at most 16384 completion tokens", "max_tokens: 9 > 5"],
)
def test_a_max_tokens_that_is_too_large_is_an_invalid_request(message: str) -> None:
    assert classified(400, error(message)).tag == "InvalidRequest"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, error("no", code="content_filter", innererror={"code": "ResponsibleAIPolicyViolation"})),
        (400, error("filtered due to the prompt triggering Azure OpenAI's content management policy")),
        (400, error("flagged", code="invalid_prompt")),
        (400, error("flagged", code="bio_policy")),
    ],
)
def test_fault_22_a_content_filter_is_content_refused(status: int, body: object) -> None:
    assert classified(status, body).tag == "ContentRefused"


def test_fault_22_a_content_refusal_has_the_categories_that_struck() -> None:
    verdicts = {"hate": {"filtered": True}, "violence": {"filtered": False}}
    actual = classified(400, error("no", code="content_filter", innererror={"content_filter_result": verdicts}))
    assert isinstance(actual, ContentRefused)
    assert actual.category == "hate"


def test_fault_26_a_web_page_with_403_comes_from_an_intermediary() -> None:
    actual = classified(
        403, "<!DOCTYPE html><style>b{}</style><title>Attention Required!</title>", content_type="text/html"
    )
    assert isinstance(actual, NetworkError)
    assert (actual.phase, actual.message) == ("intermediary", "Attention Required!")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, error("The model `gpt-9` does not exist or you do not have access to it.", code="model_not_found")),
        (404, {"error": {"message": "model 'x' not found, try pulling it first", "type": "not_found_error"}}),
        (404, {"type": "error", "error": {"type": "not_found_error", "message": "model: claude-nope"}}),
        (404, error("gpt-x: unknown here")),
        (400, {"object": "error", "message": "Invalid model: nope", "type": "invalid_model"}),
        (404, {"error": "No models loaded. Please load a model in the developer page"}),
    ],
)
def test_fault_27_an_unknown_model_is_unavailable_and_not_retried(status: int, body: object) -> None:
    actual = classified(status, body)
    assert isinstance(actual, ModelUnavailable)
    assert actual.reason == "unknown_model"
    assert not is_retryable(actual)


def test_fault_28_a_wrong_path_names_the_endpoint() -> None:
    actual = classified(404, error("Not Found"))
    assert isinstance(actual, ConfigurationError)
    assert "https://api.example.com/v1" in actual.message


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (429, error("You exceeded your current quota", type="insufficient_quota", code="insufficient_quota")),
        (429, error("no", code="credit_balance_exhausted")),
        (429, error("no", code="project_spend_limit_exceeded")),
        (429, {"error": {"type": "rate_limit_error", "details": {"error_code": "enforced_spend_limit_reached"}}}),
        (402, {"error": {"type": "billing_error", "message": "pay"}}),
        (402, error("Payment Required")),
        (400, error("Your credit balance is too low to access the API", type="invalid_request_error")),
    ],
)
def test_fault_42_an_exhausted_quota_is_not_retried(status: int, body: object) -> None:
    actual = classified(status, body)
    assert isinstance(actual, RateLimitExceeded)
    assert actual.quota
    assert not is_retryable(actual)


def test_a_renewing_quota_is_retried() -> None:
    actual = classified(
        429, error("You exceeded your current quota. Please retry in 33.5s.", status="RESOURCE_EXHAUSTED")
    )
    assert isinstance(actual, RateLimitExceeded)
    assert (actual.quota, actual.retry_after) == (False, 33.5)


@pytest.mark.parametrize("message", ["Loading model", "Model is unloaded."])
def test_fault_46_a_loading_model_is_unavailable(message: str) -> None:
    actual = classified(503, error(message, type="unavailable_error"))
    assert isinstance(actual, ModelUnavailable)
    assert actual.reason == "loading"


def test_fault_53_a_web_page_is_shown_without_tags_and_truncated() -> None:
    actual = classified(502, f"<html><head><title>502 Bad Gateway</title></head><p>{'x' * 9000}</html>")
    assert isinstance(actual, ModelUnavailable)
    assert actual.message.startswith("502 Bad Gateway xxx")
    assert len(actual.message) == 500


@pytest.mark.parametrize(
    ("body", "expected_message"),
    [
        ({"error": {"message": "busy"}}, "busy"),
        ({"error": "busy"}, "busy"),
        ({"object": "error", "message": "busy", "code": 400}, "busy"),
        ({"type": "error", "error": {"type": "x", "message": "busy"}}, "busy"),
        ({"detail": "busy"}, "busy"),
        ({"detail": [{"loc": ["body", "n"], "msg": "busy"}]}, "body.n: busy"),
        ({"message": {"detail": [{"loc": ["a"], "msg": "busy"}]}}, "a: busy"),
        ([{"error": {"message": "busy"}}], "busy"),
        ({"errors": [{"message": "busy"}, {"message": "twice"}]}, "busy; twice"),
        ({"code": "invalid-argument", "error": "busy"}, "busy"),
        (error("Provider returned error", metadata={"raw": "busy"}), "Provider returned error: busy"),
        ("body_error", "body_error"),
        ("", "HTTP 400 without a message"),
        ("[]", "HTTP 400 without a message"),
        ("null", "HTTP 400 without a message"),
        ("17", "HTTP 400 without a message"),
    ],
)
def test_fault_54_every_shape_of_body_is_parsed(body: object, expected_message: str) -> None:
    actual = classified(400, body)
    assert actual.tag == "InvalidRequest"
    assert getattr(actual, "message", None) == expected_message


@pytest.mark.parametrize("message", ["Failed to parse tools: x", "image input is not supported - hint: mmproj"])
def test_fault_55_a_500_caused_by_the_request_is_an_invalid_request(message: str) -> None:
    assert classified(500, error(message, type="server_error")).tag == "InvalidRequest"


@pytest.mark.parametrize(
    ("body_error", "tag", "status"),
    [
        ({"error": {"type": "overloaded_error", "message": "Overloaded"}}, "ModelUnavailable", 529),
        ({"type": "rate_limit_error", "message": "slow"}, "RateLimitExceeded", 429),
        ({"type": "timeout_error"}, "TimeoutError", 504),
        ({"type": "authentication_error", "code": "invalid_request_error"}, "AuthenticationFailed", 401),
        ({"type": "invalid_request_error", "message": "bad"}, "InvalidRequest", 400),
        ({"code": 429, "message": "busy"}, "RateLimitExceeded", 429),
        ({"code": "server_error", "message": "oops"}, "ModelUnavailable", 500),
        ({"error": "llama runner stopped"}, "ModelUnavailable", 500),
        ("a bare text", "ModelUnavailable", 500),
        ({"error": "Unexpected endpoint or method. (POST /x)"}, "ConfigurationError", 500),
    ],
)
def test_fault_56_an_error_inside_a_2xx_answer_is_classified_by_its_code(
    body_error: object, tag: str, status: int
) -> None:
    actual = classify_error_object(TARGET, body_error)
    assert (actual.tag, actual.status) == (tag, status)


def test_the_diagnostics_are_filled_in() -> None:
    actual = classified(429, error("slow", code="rate_limit_exceeded"), x_request_id="req_1", retry_after="7")
    assert (actual.code, actual.request_id, actual.retry_after) == ("rate_limit_exceeded", "req_1", 7.0)
    assert classified(529, {"error": {"type": "x"}, "request_id": "req_2"}).request_id == "req_2"
    assert classified(429, {"error": {"details": {"error_code": "deep"}, "type": "t"}}).code == "deep"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 429, 500, 302])
@pytest.mark.parametrize("shape", ['{{"error": {{"message": "{0}", "code": "{0}"}}}}', "<html>{0}</html>", "{0}"])
def test_fault_132_a_key_echoed_by_the_server_is_masked(status: int, shape: str) -> None:
    shown = repr(classified(status, shape.format(f"bad {KEY} organisation-77 sk-abcdefgh1234")))
    assert KEY not in shown
    assert "organisation-77" not in shown
    assert "sk-abcdefgh1234" not in shown


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 302])
@pytest.mark.parametrize("body", ["", "<html>no</html>", error("no")])
def test_fault_132_a_key_echoed_as_the_request_id_is_masked(status: int, body: object) -> None:
    actual = classified(status, body, x_request_id=f"Bearer {KEY}")
    assert actual.request_id == "***"
    assert KEY not in repr(actual)
    assert len(classified(status, body, x_request_id="r" * 9999).request_id or "") == 200


def test_fault_132_a_key_echoed_as_a_filter_category_is_masked() -> None:
    verdicts = {"content_filter_result": {KEY: {"filtered": True}}}
    actual = classified(400, error("no", code="content_filter", innererror=verdicts, request_id=KEY))
    assert actual.tag == "ContentRefused"
    assert KEY not in repr(actual)
    assert KEY not in repr(classify_error_object(TARGET, {"error": {"message": "no"}, "request_id": KEY}))


def test_a_short_key_is_masked_but_a_short_header_value_is_not() -> None:
    config = ModelConfig(provider="openai-chat", model="m", api_key="k7", headers={"x-version": "2"})
    target = evolve(TARGET, config=config)
    actual = classify(target, WireResponse(status=401, body=b"version 2 of k7"))
    assert describe(actual) == "AuthenticationFailed (mini): version 2 of ***"


LOCAL = evolve(TARGET, preset=Preset(name="lm-studio", wire="openai-chat", family="local"), endpoint="http://h:1/v1")


@pytest.mark.parametrize("status", [301, 307, 404, 405, 501])
@pytest.mark.parametrize("body", [b"", b"<html>Not Found</html>", b"nothing here", b'{"detail":"Not Found"}', b"[]"])
def test_another_program_on_a_local_port_is_an_error_that_falls_back_to_any_model(status: int, body: bytes) -> None:
    actual = classify(LOCAL, WireResponse(status=status, body=body))
    assert (actual.tag, getattr(actual, "phase", None), actual.status) == ("NetworkError", "intermediary", status)
    assert "what answers at http://h:1/v1 is not a model server: check the endpoint" in describe(actual)
    assert fallback_for(actual) is Fallback.ANY


@pytest.mark.parametrize(
    ("status", "body", "tag"),
    [
        (404, {"error": "Unexpected endpoint or method. (POST /v2/chat)"}, "ConfigurationError"),
        (404, {"error": {"message": "Not Found", "code": 404}}, "ConfigurationError"),
        (404, {"object": "error", "message": "The model `x` does not exist."}, "ModelUnavailable"),
        (501, error("This server does not support it", code=501, type="not_supported_error"), "ConfigurationError"),
        (400, {"detail": "n: wrong"}, "InvalidRequest"),
        (503, "", "ModelUnavailable"),
    ],
)
def test_errors_of_a_local_model_server_are_classified(status: int, body: object, tag: str) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    assert classify(LOCAL, WireResponse(status=status, body=text.encode())).tag == tag


def test_an_unimplemented_feature_falls_back_to_any_model() -> None:
    actual = classified(501, error("tool calls are not implemented"))
    assert (actual.tag, fallback_for(actual), is_retryable(actual)) == ("ModelUnavailable", Fallback.ANY, False)
    assert "not implemented" in describe(actual)


RECEIVED = datetime(2026, 1, 5, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "headers",
    [
        {"retry-after": "Mon, 05 Jan 2026 12:00:30 GMT"},
        {"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": "2026-01-05T12:00:30Z"},
    ],
)
@pytest.mark.parametrize("body", [b"", b"slow down", b'{"error":{"message":"slow down"}}'])
def test_a_retry_date_counts_from_the_arrival_of_the_answer(headers: dict[str, str], body: bytes) -> None:
    undated = WireResponse(status=429, headers=headers, body=body, received=RECEIVED)
    assert classify(TARGET, undated).retry_after == 30.0
    dated = evolve(undated, headers={**headers, "date": "Mon, 05 Jan 2026 12:00:10 GMT"})
    assert classify(TARGET, dated).retry_after == 20.0
    assert classify(TARGET, evolve(undated, received=None)).retry_after is None


def test_a_retry_date_of_an_error_inside_a_2xx_answer_counts_from_its_arrival() -> None:
    body_error, headers = error("slow", type="rate_limit_error"), {"retry-after": "Mon, 05 Jan 2026 12:00:30 GMT"}
    assert classify_error_object(TARGET, body_error, headers=headers, received=RECEIVED).retry_after == 30.0


@given(st.integers(100, 599), st.binary(max_size=200))
def test_any_bytes_are_classified(status: int, body: bytes) -> None:
    actual = classify(TARGET, WireResponse(status=status, body=body))
    assert actual.status == status or 200 <= status < 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["error", "message", "code", "type", "detail", "details", "status", "innererror", "metadata"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.sampled_from([None, 200, 400, 404, 429, 500]), JSON)
def test_any_json_is_classified(status: int | None, body: object) -> None:
    assert classify_error_object(TARGET, body, status).model == "mini"


def test_deep_nesting_is_classified() -> None:
    assert classified(500, '{"error":' * 900 + "1" + "}" * 900).tag == "ModelUnavailable"
    assert classified(500, "[" * 100_000).tag == "ModelUnavailable"


def test_hostile_pages_and_numbers_are_classified_quickly() -> None:
    assert classified(502, "<script" * 40_000).tag == "ModelUnavailable"
    assert classified(400, error("maximum context length is , tokens")).tag == "InvalidRequest"
    assert classify_error_object(TARGET, {"code": "9" * 5000, "message": "x"}).tag == "ModelUnavailable"
    assert classified(400, '{"error":{"code":' + "9" * 5000 + "}}").tag == "InvalidRequest"


@pytest.mark.parametrize(
    ("status", "body", "tag", "reason"),
    [
        (400, error("Model Not Exist", type="invalid_request_error"), "ModelUnavailable", "unknown_model"),
        (400, error("`gemma-7b` is gone.", code="model_decommissioned"), "ModelUnavailable", "unknown_model"),
        (404, error("No endpoints found that support tool use.", code=404), "ModelUnavailable", "unsupported"),
        (404, error("tools is not supported in this model. Try another", type="x"), "ModelUnavailable", "unsupported"),
        (400, error("prompt too long; exceeded max context length by 12 tokens"), "ContextTooLarge", None),
        (500, error("audio input is not supported - hint: use an mmproj"), "InvalidRequest", None),
        (500, error("Cannot use tools with stream"), "InvalidRequest", None),
    ],
)
def test_fault_181_error_texts_are_classified_by_what_they_say(
    status: int, body: dict[str, Any], tag: str, reason: str | None
) -> None:
    problem = classified(status, body)
    assert (problem.tag, getattr(problem, "reason", None)) == (tag, reason)
    assert not is_retryable(problem)
    assert (cooldown_after(problem) > 0) is (reason == "unknown_model")
    assert fallback_for(problem) is {
        "ModelUnavailable": Fallback.ANY,
        "ContextTooLarge": Fallback.LARGER_WINDOW,
        "InvalidRequest": Fallback.NEVER,
    }.get(tag)
