"""The live clients, through every layer, with mocked HTTP."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
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
    scripted_env,
    stream,
)
from llm_effects.clients.client import LiveClients
from llm_effects.clients.transport.transport import Transport
from llm_effects.config import CacheConfig, Capabilities, RoutingConfig
from llm_effects.effects.call import Sink
from llm_effects.testing import run_in_virtual_time
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


# The share of the time that a candidate has while others follow it: kept by the timer of its attempt.

IN_40_S = LLMRequest(prompt="why?", preferences=Preferences(timeout_ms=40_000))


class Pieces(httpx.AsyncByteStream):
    """The body of a streamed answer, each piece after a pause in seconds."""

    def __init__(self, *pieces: tuple[float, str]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for pause, text in self._pieces:
            await anyio.sleep(pause)
            yield self._event({"content": text}) if text else b": ping\n\n"
        yield self._event({}, "stop") + b"data: [DONE]\n\n"

    def _event(self, delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


def candidates_answering(
    first: Callable[[], Awaitable[httpx.Response]], sink: Sink | None = None, model: ModelConfig | None = None
) -> LLMResponse:
    """Ask two live models in virtual time, of which the first answers in its own way and the second at once."""

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "first":
            return await first()
        return httpx.Response(200, stream=Pieces((0, "second"))) if sink else httpx.Response(200, json=CHAT)

    async def main() -> LLMResponse:
        plain = [ModelConfig(provider="lm-studio", endpoint=f"http://{name}/v1") for name in ("first", "second")]
        models = {"first": model or plain[0], "second": plain[1]}
        config = LLMConfig(models=models, cache=CacheConfig(enabled=False))
        transport = Transport(make_pool=lambda _: httpx.MockTransport(answer))
        env = scripted_env(config=config, clients=LiveClients(config=config, transport=transport))
        operation = generate(IN_40_S) if sink is None else stream(IN_40_S, sink)
        return (await run(operation, env)).unwrap()

    return run_in_virtual_time(main)


async def never() -> httpx.Response:
    await anyio.sleep_forever()
    return httpx.Response(200)


async def ignore(_: object) -> None: ...


@pytest.mark.parametrize("sink", [None, ignore])
def test_a_live_model_without_an_answer_ends_with_its_share_of_the_time(sink: Sink | None) -> None:
    response = candidates_answering(never, sink)
    (stalled, answered) = response.attempts
    assert (stalled.model, stalled.outcome, stalled.latency_ms) == ("first", "TimeoutError", 20_000)
    assert (answered.model, answered.outcome) == ("second", "success")


def test_a_live_stream_without_content_ends_with_its_share_of_the_time() -> None:
    async def pinging() -> httpx.Response:
        return httpx.Response(200, stream=Pieces(*[(1.0, "")] * 100))

    (stalled, answered) = candidates_answering(pinging, ignore).attempts
    assert (stalled.outcome, stalled.latency_ms, answered.model) == ("TimeoutError", 20_000, "second")


def test_a_live_stream_with_content_goes_on_after_its_share_of_the_time() -> None:
    async def slow() -> httpx.Response:
        return httpx.Response(200, stream=Pieces((10.0, "be"), (15.0, "cause")))

    response = candidates_answering(slow, ignore)
    assert (response.content, response.model, response.latency_ms) == ("because", "first", 25_000)


def test_a_key_that_does_not_come_ends_with_the_share_of_the_time_of_its_model() -> None:
    async def hang() -> str:
        await anyio.sleep_forever()
        return ""

    keyed = ModelConfig(provider="lm-studio", endpoint="https://first/v1", api_key=hang)
    response = candidates_answering(never, model=keyed)
    assert ([each.model for each in response.attempts], response.latency_ms) == (["second"], 20_000)
