"""Encoding requests for Anthropic's Messages API."""

import json
from collections import deque
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from returns.pipeline import is_successful

from llm_effects.config.models import Capabilities, ModelConfig
from llm_effects.providers.anthropic import ANTHROPIC
from llm_effects.providers.registry import target_of
from llm_effects.providers.target import Target
from llm_effects.providers.wire import WireRequest
from llm_effects.values.messages import Image, Message, Origin, Reasoning, Text, ToolCall, ToolResult
from llm_effects.values.requests import LLMRequest, Preferences, Tool
from llm_effects.values.secrets import Secret

Json = dict[str, Any]

OLD = "2023-06-01"
WEATHER = Tool("weather", "reports the weather", {"type": "object", "properties": {"city": {"type": "string"}}})
SIGNED = '{"type":"thinking","thinking":"hm","signature":"sig"}'


def claude(model: str = "claude-opus-5-5", **config: Any) -> Target:
    given_config = {"provider": "anthropic", "model": model, "api_key": "sk-canary", **config}
    return target_of("claude", ModelConfig(**given_config)).unwrap()


def encoded(target: Target, stream: bool = False, **request: Any) -> WireRequest:
    return ANTHROPIC.encode(target, LLMRequest(**{"prompt": "why?", **request}), stream).unwrap()


def body(target: Target, **request: Any) -> Json:
    expected: Json = json.loads(encoded(target, **request).body)
    return expected


def encoded_messages(target: Target, *messages: Message, **request: Any) -> list[Json]:
    return list(body(target, prompt=None, messages=messages, **request)["messages"])


def body_with(target: Target, **preferences: Any) -> Json:
    return body(target, preferences=Preferences(**preferences))


def warnings_of(target: Target, **request: Any) -> str:
    return " | ".join(encoded(target, **request).warnings)


def test_a_request_has_the_url_key_and_version_headers() -> None:
    request = encoded(claude(wire_version=OLD, headers={"anthropic-beta": "b"}))
    headers = dict(request.headers)
    assert request.url == "https://api.anthropic.com/v1/messages"
    assert headers["x-api-key"] == Secret("sk-canary")
    assert headers["anthropic-version"] == OLD
    assert headers["content-type"] == "application/json"
    assert headers["anthropic-beta"] == Secret("b")
    assert "canary" not in repr(request)


def test_a_plain_question_sends_only_required_fields() -> None:
    assert body(claude()) == {
        "model": "claude-opus-5-5",
        "max_tokens": 8192,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "why?"}]}],
    }
    assert json.loads(encoded(claude(), stream=True).body)["stream"] is True


def test_max_tokens_comes_from_the_request_then_the_configuration_then_the_capabilities() -> None:
    assert body_with(claude(max_tokens=50), max_tokens=20)["max_tokens"] == 20
    assert body(claude(max_tokens=50))["max_tokens"] == 50
    assert body(claude(capabilities=Capabilities(max_output=4096)))["max_tokens"] == 4096
    small, preferences = claude(capabilities=Capabilities(max_output=4096)), Preferences(max_tokens=9000)
    assert body(small, preferences=preferences)["max_tokens"] == 4096
    assert "max_tokens: 9000 is sent as 4096" in warnings_of(small, preferences=preferences)


def test_system_texts_are_merged_at_the_top_with_a_warning_for_late_ones() -> None:
    turns = (Message("system", "b"), Message("user", "hi"), Message("system", "c"))
    whole = body(claude(), prompt=None, messages=turns, system="a")
    assert whole["system"] == "a\n\nb\n\nc"
    assert [turn["role"] for turn in whole["messages"]] == ["user"]
    assert "messages[2]: the system message was moved" in warnings_of(claude(), prompt=None, messages=turns)


def test_messages_of_one_role_are_merged_with_tool_results_first() -> None:
    turns = encoded_messages(
        claude(),
        Message("user", "weather?"),
        Message("assistant", (Text("let me see"), ToolCall("call:1", "weather", '{"city": "Oslo"}'))),
        Message("user", "quick"),
        Message("tool", (ToolResult("call:1", "rain", is_error=True),)),
    )
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[1]["content"][1] == {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Oslo"}}
    assert turns[2]["content"] == [
        {"type": "tool_result", "tool_use_id": "call_1", "content": "rain", "is_error": True},
        {"type": "text", "text": "quick"},
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [("", {}), ("null", {}), (" { } ", {}), ('{"a":', {"INVALID_JSON": '{"a":'}), ("[1]", {"INVALID_JSON": "[1]"})],
)
def test_arguments_are_always_sent_as_an_object(arguments: str, expected: Json) -> None:
    turns = encoded_messages(
        claude(), Message("assistant", (ToolCall("1", "t", arguments),)), Message("tool", (ToolResult("1"),))
    )
    assert turns[0]["content"][0]["input"] == expected


def test_images_are_sent_as_base64_or_as_urls() -> None:
    pictures = (
        Image(b"\x01", "image/png"),
        Image(url="https://a.example/x.png"),
        Image(url="data:image/gif;base64,AQ=="),
    )
    sources = [block["source"] for block in encoded_messages(claude(), Message("user", pictures))[0]["content"]]
    assert sources == [
        {"type": "base64", "media_type": "image/png", "data": "AQ=="},
        {"type": "url", "url": "https://a.example/x.png"},
        {"type": "base64", "media_type": "image/gif", "data": "AQ=="},
    ]


@pytest.mark.parametrize(
    ("origin", "opaque", "kept"),
    [
        (Origin("anthropic", "claude-opus-5-5"), SIGNED, True),
        (Origin("anthropic", "claude-opus-5-5-20261001"), SIGNED, True),
        (Origin("anthropic", "claude-opus-5"), SIGNED, False),
        (Origin("openai", "claude-opus-5-5"), SIGNED, False),
        (None, SIGNED, False),
        (Origin("anthropic", "claude-opus-5-5"), None, False),
        (Origin("anthropic", "claude-opus-5-5"), '{"type":"text","text":"x"},{"type":"text"}', False),
        (Origin("anthropic", "claude-opus-5-5"), '{"type":"text","text":"forged"}', False),
    ],
)
def test_thinking_is_replayed_byte_for_byte_to_its_own_model_only(
    origin: Origin | None, opaque: str | None, kept: bool
) -> None:
    turns = (
        Message("user", "a"),
        Message("assistant", (Reasoning("hm", opaque, origin), Text("b"))),
        Message("user", "c"),
    )
    text = encoded(claude(), prompt=None, messages=turns).body.decode()
    assert (SIGNED in text) is kept
    assert "forged" not in text
    assert len(json.loads(text)["messages"][1]["content"]) == 1 + kept


def test_prefill_is_refused_unless_the_model_supports_it() -> None:
    turns = (Message("user", "count"), Message("assistant", "one, two "))
    refusal = ANTHROPIC.encode(claude(), LLMRequest(messages=turns), False).failure()
    assert (refusal.tag, refusal.model) == ("InvalidRequest", "claude")
    assert "messages: " in str(refusal)
    assert encoded_messages(claude("claude-haiku-4-5"), *turns)[-1]["content"] == [{"type": "text", "text": "one, two"}]


@pytest.mark.parametrize(
    "message",
    [
        Message("user", (ToolCall("1", "t"),)),
        Message("assistant", (Image(url="https://a.example"),)),
        Message("user", " "),
    ],
)
def test_a_message_that_cannot_be_sent_is_an_invalid_request_with_its_path(message: Message) -> None:
    error = ANTHROPIC.encode(claude(), LLMRequest(messages=(message,)), False).failure()
    assert error.tag == "InvalidRequest"
    assert "messages" in str(error)


def test_a_lone_surrogate_is_replaced_before_it_is_sent() -> None:
    assert body(claude(), prompt="a\ud83d")["messages"][0]["content"] == [{"type": "text", "text": "a\ufffd"}]


@pytest.mark.parametrize(("model", "version"), [("claude-haiku-4-5", "2026-10-21"), ("claude-sonnet-5", OLD)])
def test_unsupported_sampling_settings_are_dropped_with_a_warning(model: str, version: str) -> None:
    target = claude(model, wire_version=version, temperature=0.3)
    whole, warnings = body_with(target, top_p=0.9), warnings_of(target, preferences=Preferences(top_p=0.9))
    assert "temperature" not in whole
    assert "top_p" not in whole
    assert "temperature: dropped" in warnings
    assert "top_p: dropped" in warnings


def test_supported_sampling_settings_are_sent() -> None:
    old = claude("claude-haiku-4-5", wire_version=OLD, temperature=0.3)
    assert body(old)["temperature"] == 0.3
    assert body_with(old, temperature=0.0)["temperature"] == 0.0
    assert body_with(old, temperature=1.5)["temperature"] == 1.0
    assert body_with(claude("claude-haiku-4-5", wire_version=OLD), top_p=0.5)["top_p"] == 0.5
    both = Preferences(temperature=0.2, top_p=0.5)
    assert "top_p" not in body(old, preferences=both)
    assert "top_p: dropped" in warnings_of(old, preferences=both)
    assert "temperature" not in body_with(old, reasoning_effort="high")


def test_stop_sequences_are_sent_and_a_seed_is_dropped_with_a_warning() -> None:
    preferences = Preferences(stop=("END", "\n"), seed=7)
    assert body(claude(), preferences=preferences)["stop_sequences"] == ["END"]
    assert "seed: dropped" in warnings_of(claude(), preferences=preferences)
    assert "stop: dropped, white space alone" in warnings_of(claude(), preferences=preferences)


@pytest.mark.parametrize(
    ("model", "effort", "thinking", "output"),
    [
        ("claude-opus-5", "none", {"type": "disabled"}, None),
        ("claude-sonnet-5-5", "none", {"type": "between_tools"}, None),
        ("claude-opus-5-5", "none", None, None),
        ("claude-sonnet-4-6", "none", None, None),
        ("claude-opus-5-5", "minimal", "adaptive", {"effort": "low"}),
        ("claude-opus-5-5", "max", "adaptive", {"effort": "max"}),
        ("claude-sonnet-4-6", "xhigh", "adaptive", {"effort": "high"}),
        ("claude-haiku-4-5", "high", {"type": "enabled", "budget_tokens": 4096}, None),
        ("claude-haiku-4-5", "low", {"type": "enabled", "budget_tokens": 1024}, None),
        ("claude-3-5-haiku-latest", "low", None, None),
    ],
)
def test_effort_is_encoded_for_each_model(model: str, effort: str, thinking: object, output: object) -> None:
    whole = body_with(claude(model), reasoning_effort=effort)
    expected = {"type": "adaptive", "display": "summarized"} if thinking == "adaptive" else thinking
    assert (whole.get("thinking"), whole.get("output_config")) == (expected, output)


@pytest.mark.parametrize(
    ("model", "preferences"),
    [
        ("claude-opus-5-5", Preferences(reasoning_effort="none")),
        ("claude-opus-5-5", Preferences(reasoning_effort="minimal")),
        ("claude-3-5-haiku-latest", Preferences(reasoning_effort="high")),
        ("claude-haiku-4-5", Preferences(reasoning_effort="high", max_tokens=500)),
    ],
)
def test_an_unsupported_effort_causes_a_warning(model: str, preferences: Preferences) -> None:
    assert "reasoning_effort: " in warnings_of(claude(model), preferences=preferences)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", {"type": "auto"}),
        ("none", {"type": "none"}),
        ("required", {"type": "any"}),
        ("weather", {"type": "tool", "name": "weather"}),
        (None, None),
    ],
)
def test_tools_and_tool_choice_are_encoded(choice: str | None, expected: Json | None) -> None:
    whole = body(claude("claude-opus-5"), tools=(WEATHER,), tool_choice=choice)
    assert whole["tools"] == [
        {"name": "weather", "description": "reports the weather", "input_schema": dict(WEATHER.parameters)}
    ]
    assert whole.get("tool_choice") == expected


@pytest.mark.parametrize("choice", ["required", "weather"])
def test_a_forced_tool_becomes_auto_with_a_warning_where_the_model_cannot_be_forced(choice: str) -> None:
    assert body(claude(), tools=(WEATHER,), tool_choice=choice)["tool_choice"] == {"type": "auto"}
    assert "tool_choice: " in warnings_of(claude(), tools=(WEATHER,), tool_choice=choice)


def test_a_forced_tool_drops_optional_reasoning() -> None:
    effort = Preferences(reasoning_effort="high")
    request = {"tools": (WEATHER,), "tool_choice": "required", "preferences": effort}
    assert "thinking" not in body(claude("claude-sonnet-4-6"), **request)
    assert "reasoning_effort: dropped" in warnings_of(claude("claude-sonnet-4-6"), **request)


def test_a_schema_is_sent_with_the_effort_or_dropped_with_a_warning() -> None:
    schema = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    whole = body(claude(), response_schema=schema, preferences=Preferences(reasoning_effort="high"))
    assert whole["output_config"] == {"effort": "high", "format": {"type": "json_schema", "schema": schema}}
    old = claude("claude-sonnet-4-20250514")
    assert "output_config" not in body(old, response_schema=schema)
    assert "response_schema: dropped" in warnings_of(old, response_schema=schema)


@given(st.lists(st.sampled_from(["user", "assistant", "tool", "system"]), max_size=8), st.text(min_size=1))
def test_roles_always_alternate(roles: list[Any], text: str) -> None:
    turns = tuple(Message(role, text) for role in roles)
    result = ANTHROPIC.encode(claude("claude-haiku-4-5"), LLMRequest(messages=(Message("user", "a"), *turns)), False)
    if is_successful(result):
        sides = [turn["role"] for turn in json.loads(result.unwrap().body)["messages"]]
        assert all(one != other for one, other in pairwise(sides))


def test_a_schema_may_consist_of_any_mapping_and_sequence() -> None:
    number = MappingProxyType({"type": "integer"})
    schema = MappingProxyType({"type": "object", "properties": {"a": number}, "required": deque(["a"])})
    expected = body(claude(), response_schema=schema)["output_config"]["format"]["schema"]
    assert (expected["properties"], expected["required"]) == ({"a": {"type": "integer"}}, ["a"])
