"""Reachable and ready are different answers."""

import httpx
import pytest
from pytest_httpx import HTTPXMock

from llm_effects import (
    LLMConfig,
    ModelConfig,
    ModelHealth,
    check_health,
    check_local_model_health,
    open_env,
    settle,
)
from tests.fixtures.llama_server import llama_server  # noqa: F401

pytestmark = pytest.mark.anyio

STUDIO = "http://localhost:1234"


async def probe(endpoint: str = f"{STUDIO}/v1") -> ModelHealth:
    async with open_env(LLMConfig(models={})) as env:
        return (await settle(check_local_model_health(endpoint), env)).unwrap()


async def probed(**models: ModelConfig) -> tuple[ModelHealth, ...]:
    async with open_env(LLMConfig(models=models)) as env:
        return (await settle(check_health(), env)).unwrap()


async def test_lm_studio_tells_what_is_loaded_and_its_window(httpx_mock: HTTPXMock) -> None:
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


async def test_an_older_lm_studio_is_asked_in_its_older_ways(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(url=f"{STUDIO}/api/v1/models", status_code=404, json={"error": "Unexpected endpoint"})
    httpx_mock.add_response(url=f"{STUDIO}/api/v0/models", status_code=404, json={"error": "Unexpected endpoint"})
    httpx_mock.add_response(url=f"{STUDIO}/v1/models", json={"data": [{"id": "a", "object": "model"}]})
    health = await probe()
    assert (health.reachable, health.loaded) == (True, ("a",))


async def test_the_wanted_model_must_be_the_loaded_one(httpx_mock: HTTPXMock) -> None:
    loaded = {"key": "a", "loaded_instances": [{"id": "a", "config": {}}]}
    httpx_mock.add_response(url=f"{STUDIO}/api/v1/models", json={"models": [loaded]})
    [health] = await probed(studio=ModelConfig(provider="lm-studio", model="b"))
    assert (health.reachable, health.ready) == (True, False)
    assert "'b' is not there" in health.message


async def test_a_refused_connection_is_an_answer(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_exception(httpx.ConnectError("All connection attempts failed"))
    health = await probe()
    assert (health.reachable, health.ready) == (False, False)
    assert health.message.startswith("NetworkError (local)")


async def test_something_else_at_the_endpoint_is_reachable_but_no_model(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(html="<html>It works!</html>", is_reusable=True)
    health = await probe()
    assert (health.reachable, health.ready) == (True, False)
    assert "not a model server" in health.message


async def test_a_refused_key_is_told(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(
        url="https://api.openai.com/v1/models", status_code=401, json={"error": {"message": "bad key"}}
    )
    [health] = await probed(gpt=ModelConfig(provider="openai-chat", model="gpt-4.1", api_key="sk-canary-1"))
    assert (health.reachable, health.ready) == (True, False)
    assert health.message.startswith("AuthenticationFailed")


async def test_a_wrong_endpoint_is_a_failure_for_one_and_a_line_for_all() -> None:
    async with open_env(LLMConfig(models={"a": ModelConfig(provider="lm-studio", endpoint="nowhere")})) as env:
        assert (await settle(check_local_model_health("nowhere"), env)).failure().tag == "ConfigurationError"
        [health] = (await settle(check_health(), env)).unwrap()
    assert "endpoint" in health.message


async def test_a_missing_file_is_told_with_the_remedy() -> None:
    [health] = await probed(mine=ModelConfig(provider="llama", model_path="/nowhere/model.gguf"))
    assert not health.ready
    assert "/nowhere/model.gguf" in health.message


@pytest.mark.httpx_mock(should_mock=lambda request: False)
async def test_a_real_server_is_ready(llama_server: str) -> None:  # noqa: F811
    [health] = await probed(server=ModelConfig(provider="llama-cpp", endpoint=llama_server))
    assert (health.reachable, health.ready) == (True, True)
    assert health.context_length == 2048
