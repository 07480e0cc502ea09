"""The live clients, through every layer, with mocked HTTP."""

import json

import httpx
import pytest
from pytest_httpx import HTTPXMock
from returns.result import Result

from llm_effects import (
    ConfigurationError,
    Image,
    LLMConfig,
    LLMRequest,
    Message,
    ModelConfig,
    Preferences,
    RateLimitExceeded,
    RequestFailed,
    Text,
    describe,
    generate,
    open_env,
    run,
)
from llm_effects.config import Capabilities, RoutingConfig
from llm_effects.values.errors import LLMError
from llm_effects.values.responses import LLMResponse

pytestmark = pytest.mark.anyio

GPT = ModelConfig(provider="openai-chat", model="gpt-4.1-mini", api_key="sk-canary-123456")
CLAUDE = ModelConfig(provider="anthropic", model="claude-sonnet-5-5", api_key="sk-ant-canary-123456")
STUDIO = ModelConfig(provider="lm-studio", endpoint="http://localhost:1234/v1")
ASK = LLMRequest(prompt="why?", system="be brief", preferences=Preferences(max_tokens=20, temperature=0.1))

CHAT = {
    "id": "chatcmpl-1",
    "model": "gpt-4.1-mini",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "because"}}],
    "usage": {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}},
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5-5",
    "content": [{"type": "text", "text": "because"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 10, "output_tokens": 3},
}


async def ask(request: LLMRequest, **models: ModelConfig) -> Result[LLMResponse, LLMError]:
    config = LLMConfig(models=models, routing=RoutingConfig(max_retries=0))
    async with open_env(config) as env:
        return await run(generate(request), env)


async def test_a_call_to_openai_is_encoded_and_decoded(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(json=CHAT, headers={"x-request-id": "req_1"})
    response = (await ask(ASK, gpt=GPT)).unwrap()
    assert (response.content, response.model, response.served_model) == ("because", "gpt", "gpt-4.1-mini")
    assert (response.usage.input_tokens, response.usage.cache_read_tokens, response.request_id) == (10, 2, "req_1")
    sent = httpx_mock.get_request()
    assert sent is not None
    assert str(sent.url) == "https://api.openai.com/v1/chat/completions"
    assert sent.headers["authorization"] == "Bearer sk-canary-123456"
    assert json.loads(sent.content) == {
        "model": "gpt-4.1-mini",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}],
        "max_completion_tokens": 20,
        "temperature": 0.1,
    }


async def test_a_call_to_anthropic_drops_unsupported_options_with_a_warning(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(json=MESSAGE, headers={"request-id": "req_2"})
    response = (await ask(ASK, claude=CLAUDE)).unwrap()
    assert (response.content, response.usage.input_tokens) == ("because", 10)
    assert any("temperature" in warning for warning in response.warnings)
    sent = httpx_mock.get_request()
    assert sent is not None
    assert sent.headers["anthropic-version"] == "2026-10-21"
    body = json.loads(sent.content)
    assert (body["system"], body["max_tokens"], "temperature" in body) == ("be brief", 20, False)


async def test_a_refused_connection_falls_back_at_once(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_exception(httpx.ConnectError("refused"), url="http://localhost:1234/v1/chat/completions")
    httpx_mock.add_response(json=CHAT, url="https://api.openai.com/v1/chat/completions")
    response = (await ask(ASK, studio=STUDIO, gpt=GPT)).unwrap()
    assert [(each.model, each.outcome) for each in response.attempts] == [
        ("studio", "NetworkError"),
        ("gpt", "success"),
    ]


async def test_a_login_page_is_a_malformed_response(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(html="<html><body>Please log in</body></html>")
    error = (await ask(ASK, studio=STUDIO)).failure()
    assert error.tag == "MalformedResponse"


async def test_a_redirect_is_not_followed(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(status_code=307, headers={"location": "https://elsewhere.test/"})
    error = (await ask(ASK, gpt=GPT)).failure()
    assert isinstance(error, ConfigurationError)
    assert len(httpx_mock.get_requests()) == 1


async def test_a_key_repeated_by_the_server_is_in_no_error(httpx_mock: HTTPXMock) -> None:
    for _ in range(2):
        httpx_mock.add_response(
            status_code=401,
            json={"error": {"message": "Incorrect API key provided: sk-canary-123456", "code": "invalid_api_key"}},
        )
    error = (await ask(ASK, gpt=GPT, other=GPT)).failure()
    assert isinstance(error, RequestFailed)
    assert {each.tag for each in error.errors} == {"AuthenticationFailed"}
    assert "canary" not in f"{error!r} {describe(error)} {error.errors!r} {error.cause}"


async def test_an_exhausted_quota_reports_model_status_and_code(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(
        status_code=429, json={"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    )
    error = (await ask(ASK, gpt=GPT)).failure()
    assert isinstance(error, RateLimitExceeded)
    assert (error.quota, error.model, error.status, error.code) == (True, "gpt", 429, "insufficient_quota")


async def test_images_are_sent_only_to_models_that_support_them(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(json=MESSAGE)
    blind = ModelConfig(provider="lm-studio", capabilities=Capabilities(images=False))
    picture = Message("user", (Text("what is this?"), Image(data=b"\x89PNG", media_type="image/png")))
    response = (await ask(LLMRequest(messages=(picture,)), studio=blind, claude=CLAUDE)).unwrap()
    assert response.model == "claude"


async def test_keys_are_not_sent_over_plain_http() -> None:
    exposed = ModelConfig(
        provider="openai-compatible", model="m", endpoint="http://example.com/v1", api_key="sk-canary-1"
    )
    error = (await ask(ASK, exposed=exposed)).failure()
    assert isinstance(error, ConfigurationError)
    assert error.message.startswith("models.exposed.endpoint: keys are never sent over plain HTTP")
    assert "canary" not in repr(error)
