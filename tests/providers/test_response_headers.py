"""Rate limits and retry hints: parsed from headers, and respected before a limit is hit."""

from datetime import UTC, datetime

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_httpx import HTTPXMock

from llm_effects import LLMConfig, LLMRequest, ModelConfig, Preferences, RateLimitExceeded, generate, open_env, run
from llm_effects.config import RoutingConfig
from llm_effects.effects.env import LLMEnv
from llm_effects.limits.quotas import Allowance, RateLimits
from llm_effects.providers.response_headers import rate_limits, retry_after

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_openai_headers_are_parsed() -> None:
    parsed = rate_limits(
        {
            "x-ratelimit-limit-requests": "500",
            "x-ratelimit-remaining-requests": "499",
            "x-ratelimit-reset-requests": "120ms",
            "x-ratelimit-limit-tokens": "30000",
            "x-ratelimit-remaining-tokens": "12",
            "x-ratelimit-reset-tokens": "1m0.5s",
        },
        NOON,
        7.0,
    )
    assert parsed == RateLimits(
        requests=Allowance(limit=500, remaining=499, reset=0.12),
        tokens=Allowance(limit=30000, remaining=12, reset=60.5),
        at=7.0,
    )


def test_anthropic_headers_are_parsed() -> None:
    headers = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-requests-reset": "2026-01-01T12:00:02Z",
        "anthropic-ratelimit-tokens-limit": "8000",
        "anthropic-ratelimit-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-reset": "2026-01-01T12:00:10Z",
        "anthropic-ratelimit-input-tokens-remaining": "30000",
        "anthropic-ratelimit-input-tokens-reset": "2026-01-01T12:01:00Z",
        "anthropic-ratelimit-output-tokens-remaining": "0",
        "anthropic-ratelimit-output-tokens-reset": "2026-01-01T12:00:30Z",
    }
    parsed = rate_limits(headers, NOON, 7.0)
    assert parsed is not None
    assert parsed.requests == Allowance(limit=50, remaining=49, reset=2.0)
    assert parsed.tokens == Allowance(
        remaining=0, reset=30.0
    )  # of output tokens only: their limit is not that of all tokens


@pytest.mark.parametrize("reset", ["-1", "0", "0s", "soon", "", "2025-01-01T00:00:00Z", "nan"])
def test_an_unusable_reset_is_ignored(reset: str) -> None:
    parsed = rate_limits({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": reset}, NOON, 0.0)
    assert parsed is not None
    assert parsed.requests.reset is None


NAMES = [f"x-ratelimit-{of}-{what}" for of in ("limit", "remaining", "reset") for what in ("requests", "tokens")]


@given(st.dictionaries(st.sampled_from(NAMES), st.text(max_size=8)))
def test_any_header_value_is_parsed_or_ignored(headers: dict[str, str]) -> None:
    parsed = rate_limits(headers, NOON, 0.0) or RateLimits()
    for each in (parsed.requests, parsed.tokens):
        assert each.limit is None or each.limit >= 1
        assert each.remaining is None or each.remaining >= 0
        assert each.reset is None or each.reset > 0


# Retry hints

DATE = "Wed, 18 Nov 2026 12:00:00 GMT"
HALF_A_MINUTE_LATER = "Wed, 18 Nov 2026 12:00:30 GMT"


@pytest.mark.parametrize(
    ("headers", "message", "seconds"),
    [
        pytest.param({"retry-after": "3"}, "", 3.0, id="fault-35"),
        pytest.param({"retry-after": HALF_A_MINUTE_LATER, "date": DATE}, "", 30.0, id="fault-36"),
        pytest.param({"retry-after": HALF_A_MINUTE_LATER}, "", None, id="fault-36-no-date"),
        pytest.param({"retry-after-ms": "250", "retry-after": "9"}, "", 0.25, id="fault-37"),
        pytest.param({"retry-after-ms": "0", "retry-after": "1"}, "", 1.0, id="zero-says-nothing"),
        pytest.param({"retry-after": "99999999"}, "", 86400.0, id="fault-38"),
        pytest.param({"retry-after": "inf"}, "", None, id="fault-39"),
        pytest.param({"retry-after": "1e999"}, "", None, id="fault-39-overflow"),
        pytest.param({"retry-after": "nan"}, "", None, id="fault-40-nan"),
        pytest.param({"retry-after": "-5"}, "", None, id="fault-40-negative"),
        pytest.param({"retry-after": "soon"}, "", None, id="fault-40-text"),
        pytest.param({"retry-after": DATE, "date": HALF_A_MINUTE_LATER}, "", None, id="fault-40-past"),
        pytest.param(
            {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, "", 360.0, id="fault-41"
        ),
        pytest.param(
            {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "12ms"}, "", 0.012, id="fault-41-ms"
        ),
        pytest.param(
            {"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "9s"}, "", None, id="fault-41-left"
        ),
        pytest.param(
            {
                "anthropic-ratelimit-input-tokens-remaining": "0",
                "anthropic-ratelimit-input-tokens-reset": "2026-11-18T12:00:45Z",
                "date": DATE,
            },
            "",
            45.0,
            id="fault-41-anthropic",
        ),
        pytest.param(
            {"anthropic-ratelimit-tokens-remaining": "0", "anthropic-ratelimit-tokens-reset": "Tomorrow", "date": DATE},
            "",
            None,
            id="fault-41-unreadable",
        ),
        pytest.param({}, "Please try again in 1.5s. Visit", 1.5, id="message-seconds"),
        pytest.param({}, "Please try again in 120ms.", 0.12, id="message-milliseconds"),
        pytest.param({}, "try again in 6m0s", 360.0, id="message-minutes"),
        pytest.param({}, "Please retry after 26 seconds.", 26.0, id="message-words"),
        pytest.param({}, "try again in a moment", None, id="message-vague"),
        pytest.param({}, "", None, id="nothing"),
    ],
)
def test_a_retry_hint_is_parsed_as_seconds(headers: dict[str, str], message: str, seconds: float | None) -> None:
    assert retry_after(headers, message) == (None if seconds is None else pytest.approx(seconds))


def test_a_retry_date_counts_from_the_given_clock() -> None:
    assert retry_after({"retry-after": HALF_A_MINUTE_LATER}, "", datetime(2026, 11, 18, 12, tzinfo=UTC)) == 30.0


@given(
    st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "date"]), st.text(max_size=30)),
    st.text(max_size=60),
)
def test_any_retry_hint_is_positive_and_finite(headers: dict[str, str], message: str) -> None:
    hint = retry_after(headers, message)
    assert hint is None or 0 < hint < float("inf")


# Through the whole library

CONFIG = LLMConfig(
    models={"gpt": ModelConfig(provider="openai-chat", model="m", api_key="sk-test", endpoint="https://gpt.test/v1")},
    routing=RoutingConfig(max_retries=0),
)
ANSWER = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}]}
EXHAUSTED = {
    "x-ratelimit-limit-requests": "500",
    "x-ratelimit-remaining-requests": "0",
    "x-ratelimit-reset-requests": "6m0s",
}


async def ask(env: LLMEnv, prompt: str) -> object:
    request = LLMRequest(prompt=prompt, preferences=Preferences(timeout_ms=2000))
    result = await run(generate(request), env)
    return result.value_or(None) or result.failure()


@pytest.mark.anyio
@pytest.mark.parametrize("status", [200, 429])
async def test_fault_41_an_exhausted_rate_limit_blocks_the_next_call(httpx_mock: HTTPXMock, status: int) -> None:
    body = ANSWER if status == 200 else {"error": {"code": "rate_limit_exceeded", "message": "slow down"}}
    httpx_mock.add_response(status_code=status, json=body, headers=EXHAUSTED)
    async with open_env(CONFIG) as env:
        await ask(env, "first")
        began = anyio.current_time()
        error = await ask(env, "second")
        assert anyio.current_time() - began < 1
    assert isinstance(error, RateLimitExceeded)
    assert error.retry_after == pytest.approx(360, abs=5)
    assert len(httpx_mock.get_requests()) == 1


@pytest.mark.anyio
async def test_the_headers_of_a_stream_count_too(httpx_mock: HTTPXMock) -> None:
    from llm_effects import stream

    chunk = '{"choices":[{"index":0,"delta":{"content":"ok"},"finish_reason":"stop"}]}'
    text = f"data: {chunk}\n\ndata: [DONE]\n\n"
    httpx_mock.add_response(text=text, headers={**EXHAUSTED, "content-type": "text/event-stream"})

    async def sink(_: object) -> None:
        await anyio.lowlevel.checkpoint()

    async with open_env(CONFIG) as env:
        assert (await run(stream(LLMRequest(prompt="first"), sink), env)).unwrap().content == "ok"
        assert isinstance(await ask(env, "second"), RateLimitExceeded)
