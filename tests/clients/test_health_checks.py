"""Health checks: reachable and ready are different answers."""

from typing import NoReturn
from unittest.mock import patch

import httpx
import pytest
from pytest_httpx import HTTPXMock

from llm_effects import (
    LLMConfig,
    ModelConfig,
    check_health,
    check_local_model_health,
    describe,
    open_env,
    run,
    scripted_env,
)
from llm_effects.effects.effect import result_of
from llm_effects.testing import scripted
from llm_effects.values import ModelHealth
from tests.fixtures.llama_server import llama_server  # noqa: F401

pytestmark = pytest.mark.anyio

STUDIO = "http://localhost:1234"


async def probe(endpoint: str = f"{STUDIO}/v1") -> ModelHealth:
    async with open_env(LLMConfig(models={})) as env:
        return (await run(check_local_model_health(endpoint), env)).unwrap()


async def probed(**models: ModelConfig) -> tuple[ModelHealth, ...]:
    async with open_env(LLMConfig(models=models)) as env:
        return (await run(check_health(), env)).unwrap()


async def test_lm_studio_reports_the_loaded_model_and_its_window(httpx_mock: HTTPXMock) -> None:
    loaded = {"id": "qwen3", "config": {"context_length": 8192, "parallel": 4}}
    idle = {"key": "other", "type": "llm", "loaded_instances": []}
    httpx_mock.add_response(
        url=f"{STUDIO}/api/v1/models", json={"models": [idle, {"key": "qwen3", "loaded_instances": [loaded]}]}
    )
    health = await probe()
    assert (health.reachable, health.ready, health.loaded, health.context_length) == (True, True, ("qwen3",), 8192)
    assert health.latency_ms > 0


async def test_a_server_without_a_loaded_model_is_reachable_but_not_ready(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(url=f"{STUDIO}/api/v1/models", json={"models": [{"key": "a", "loaded_instances": []}]})
    health = await probe()
    assert (health.reachable, health.ready) == (True, False)
    assert "load one" in health.message


async def test_an_old_lm_studio_is_probed_by_its_old_endpoints(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(url=f"{STUDIO}/api/v1/models", status_code=404, json={"error": "Unexpected endpoint"})
    httpx_mock.add_response(url=f"{STUDIO}/api/v0/models", status_code=404, json={"error": "Unexpected endpoint"})
    httpx_mock.add_response(url=f"{STUDIO}/v1/models", json={"data": [{"id": "a", "object": "model"}]})
    health = await probe()
    # the list may be of downloaded models: it does not tell which are loaded
    assert (health.reachable, health.ready, health.loaded) == (True, False, ())
    assert "lists a, but not what is loaded" in health.message


async def test_an_old_lm_studio_reports_the_loaded_model(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(url=f"{STUDIO}/api/v1/models", status_code=404, json={"error": "Unexpected endpoint"})
    models = [
        {"id": "idle", "type": "llm", "state": "not-loaded"},
        {"id": "nomic", "type": "embeddings", "state": "loaded"},
        {"id": "q", "type": "vlm", "state": "loaded", "loaded_context_length": 4096, "max_context_length": 32768},
    ]
    httpx_mock.add_response(url=f"{STUDIO}/api/v0/models", json={"data": models})
    health = await probe()
    assert (health.ready, health.loaded, health.context_length) == (True, ("q",), 4096)


async def test_a_loaded_embedding_model_is_not_ready(httpx_mock: HTTPXMock) -> None:
    nomic = {"key": "nomic", "type": "embedding", "loaded_instances": [{"id": "nomic", "config": {}}]}
    httpx_mock.add_response(url=f"{STUDIO}/api/v1/models", json={"models": [nomic]})
    health = await probe()
    assert (health.reachable, health.ready, health.loaded) == (True, False, ())


@pytest.mark.parametrize("asked", ["q", "q:2"])
async def test_a_loaded_instance_is_found_by_its_name_or_its_model(httpx_mock: HTTPXMock, asked: str) -> None:
    loaded = {"key": "q", "type": "llm", "loaded_instances": [{"id": "q:2", "config": {"context_length": 2048}}]}
    httpx_mock.add_response(url=f"{STUDIO}/api/v1/models", json={"models": [loaded]})
    [health] = await probed(studio=ModelConfig(provider="lm-studio", model=asked))
    assert (health.ready, health.loaded, health.context_length) == (True, ("q:2",), 2048)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"models": 5, "data": "x"}',
        b'{"models": {"a": 1}, "data": {"a": 1}}',
        b"\xff",
        b"null",
        b"<html>",
    ],
)
async def test_an_invalid_list_of_models_is_not_a_model_server(httpx_mock: HTTPXMock, body: bytes) -> None:
    httpx_mock.add_response(content=body, is_reusable=True)
    for health in await probed(
        studio=ModelConfig(provider="lm-studio"),
        pulled=ModelConfig(provider="ollama", model="m"),
        plain=ModelConfig(provider="llama-cpp"),
        claude=ModelConfig(provider="anthropic", model="m", api_key="k-12345678"),
    ):
        assert (health.reachable, health.ready) == (True, False)
        assert "not a model server" in health.message


@pytest.mark.parametrize("window", ["lots", -1, 2.5, True, None, [1]])
async def test_an_invalid_window_is_unknown(httpx_mock: HTTPXMock, window: object) -> None:
    instance = {"id": "q", "config": {"context_length": window}}
    httpx_mock.add_response(
        url=f"{STUDIO}/api/v1/models", json={"models": [3, {"key": "q", "loaded_instances": [instance, "odd"]}]}
    )
    health = await probe()
    assert (health.ready, health.context_length) == (True, None)


async def test_claude_is_probed_for_the_configured_model(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(
        url="https://api.anthropic.com/v1/models/claude-sonnet-5-5", json={"type": "model", "id": "claude-sonnet-5-5-1"}
    )
    claude = ModelConfig(provider="anthropic", model="claude-sonnet-5-5", api_key="sk-ant-canary-1")
    [health] = await probed(claude=claude)
    assert (health.reachable, health.ready, health.loaded) == (True, True, ("claude-sonnet-5-5-1",))
    sent = httpx_mock.get_request()
    assert sent is not None
    assert (sent.headers["anthropic-version"], sent.headers["x-api-key"]) == (claude.wire_version, "sk-ant-canary-1")


async def test_a_configured_protocol_version_is_sent_once(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(json={"id": "m"})
    own = {"Anthropic-Version": "2027-01-01"}
    await probed(claude=ModelConfig(provider="anthropic", model="m", api_key="sk-ant-canary-1", headers=own))
    sent = httpx_mock.get_request()
    assert sent is not None
    assert sent.headers.get_list("anthropic-version") == ["2027-01-01"]


async def test_a_model_unknown_to_claude_is_not_ready(httpx_mock: HTTPXMock) -> None:
    missing = {"type": "error", "error": {"type": "not_found_error", "message": "model: claude-9"}}
    httpx_mock.add_response(status_code=404, json=missing)
    [health] = await probed(claude=ModelConfig(provider="anthropic", model="claude-9", api_key="sk-ant-canary-1"))
    assert (health.reachable, health.ready) == (True, False)
    assert "claude-9" in health.message


async def test_a_password_never_shows() -> None:
    endpoint = "http://user:hunter2secret@localhost:1/v1"
    [health] = await probed(studio=ModelConfig(provider="lm-studio", endpoint=endpoint))
    assert "password" in health.message
    assert health.endpoint is None
    assert "hunter2secret" not in repr(health) + repr(ModelHealth(model="m", provider="p", endpoint=endpoint))
    async with open_env(LLMConfig(models={})) as env:
        error = (await run(check_local_model_health(endpoint), env)).failure()
    assert "hunter2secret" not in repr(error)
    assert describe(error).startswith("ConfigurationError: endpoint: must not hold a user name or password")


async def test_a_configured_model_named_local_is_not_the_one_at_the_endpoint(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(url=f"{STUDIO}/api/v1/models", json={"models": []})
    config = LLMConfig(models={"local": ModelConfig(provider="llama", model_path="/nowhere/model.gguf")})
    async with open_env(config) as env:
        health = (await run(check_local_model_health(f"{STUDIO}/v1"), env)).unwrap()
    assert (health.provider, health.endpoint, health.reachable) == ("lm-studio", f"{STUDIO}/v1", True)


async def test_another_file_under_a_configured_name_is_probed_itself() -> None:
    config = LLMConfig(models={"mine": ModelConfig(provider="llama", model_path="/nowhere/one.gguf")})
    async with open_env(config) as env:
        probing = env.clients.probe("mine", ModelConfig(provider="llama", model_path="/nowhere/two.gguf"))
        health = (await result_of(probing)).unwrap()
    assert "/nowhere/two.gguf" in health.message


async def test_the_configured_model_must_be_loaded(httpx_mock: HTTPXMock) -> None:
    loaded = {"key": "a", "loaded_instances": [{"id": "a", "config": {}}]}
    httpx_mock.add_response(url=f"{STUDIO}/api/v1/models", json={"models": [loaded]})
    [health] = await probed(studio=ModelConfig(provider="lm-studio", model="b"))
    assert (health.reachable, health.ready) == (True, False)
    assert "'b' is not there" in health.message


async def test_a_refused_connection_is_unreachable_and_not_a_failure(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_exception(httpx.ConnectError("All connection attempts failed"))
    health = await probe()
    assert (health.reachable, health.ready) == (False, False)
    assert health.message.startswith("NetworkError (local)")


async def test_another_service_at_the_endpoint_is_reachable_but_not_ready(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(html="<html>It works!</html>", is_reusable=True)
    health = await probe()
    assert (health.reachable, health.ready) == (True, False)
    assert "not a model server" in health.message


async def test_a_rejected_key_is_reported(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(
        url="https://api.openai.com/v1/models", status_code=401, json={"error": {"message": "bad key"}}
    )
    [health] = await probed(gpt=ModelConfig(provider="openai-chat", model="gpt-4.1", api_key="sk-canary-1"))
    assert (health.reachable, health.ready) == (True, False)
    assert health.message.startswith("AuthenticationFailed")


async def test_a_wrong_endpoint_fails_a_single_check_and_is_a_message_among_all() -> None:
    async with open_env(LLMConfig(models={"a": ModelConfig(provider="lm-studio", endpoint="nowhere")})) as env:
        assert (await run(check_local_model_health("nowhere"), env)).failure().tag == "ConfigurationError"
        [health] = (await run(check_health(), env)).unwrap()
    assert "endpoint" in health.message


async def test_a_missing_model_file_is_reported_with_its_path() -> None:
    [health] = await probed(mine=ModelConfig(provider="llama", model_path="/nowhere/model.gguf"))
    assert not health.ready
    assert "/nowhere/model.gguf" in health.message


@pytest.mark.httpx_mock(should_mock=lambda request: False)
async def test_a_real_server_is_ready(llama_server: str) -> None:  # noqa: F811
    [health] = await probed(server=ModelConfig(provider="llama-cpp", endpoint=llama_server))
    assert (health.reachable, health.ready) == (True, True)
    assert health.context_length == 2048


async def test_fault_160_a_defect_of_a_probe_is_raised_as_itself() -> None:
    def broken(name: str, model: ModelConfig) -> NoReturn:
        raise LookupError(name)

    clients = scripted()
    env = scripted_env(clients=clients, config=LLMConfig(models={"m": ModelConfig(provider="lm-studio")}))
    with patch.object(type(clients), "probe", staticmethod(broken)), pytest.raises(LookupError):
        await run(check_health(), env)


OPENAI = ModelConfig(provider="openai-chat", model="gpt-9", api_key="sk-test")
OTHER = ModelConfig(
    provider="openai-compatible", model="gpt-9", endpoint="https://models.example/v1", api_key="sk-test"
)


@pytest.mark.parametrize(
    ("model", "status", "body", "error"),
    [
        (OPENAI, 200, {"data": [{"id": "gpt-9"}]}, None),
        (OPENAI, 200, {"data": [{"id": "gpt-8"}]}, "ModelUnavailable"),
        (OTHER, 200, {"data": [{"id": "gpt-8"}]}, None),  # its list may lack aliases
        (OTHER, 200, {"data": []}, "ModelUnavailable"),
        (OTHER, 200, {"hello": "world"}, None),
        (OTHER, 401, {"error": {"message": "no such key", "code": "invalid_api_key"}}, "AuthenticationFailed"),
        (OTHER, 403, {"error": {"message": "may not list models"}}, None),
        (OTHER, 404, {"error": {"message": "no such path"}}, None),
        (OTHER, 503, {"error": {"message": "overloaded"}}, "ModelUnavailable"),
    ],
)
async def test_the_error_is_that_which_a_request_would_surely_end_in(
    httpx_mock: HTTPXMock, model: ModelConfig, status: int, body: object, error: str | None
) -> None:
    httpx_mock.add_response(status_code=status, json=body)
    [health] = await probed(gpt=model)
    assert health.reachable
    assert health.error == error, health.message


async def test_progress_is_reported_for_each_model_as_it_is_known(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_exception(httpx.ConnectError("refused"), is_reusable=True)
    known: list[ModelHealth] = []
    async with open_env(LLMConfig(models={"first": OTHER, "second": OTHER})) as env:
        health = (await run(check_health(known.append), env)).unwrap()
    assert sorted(known, key=lambda each: each.model) == list(health)
    assert {each.error for each in health} == {"NetworkError"}
