"""Encoding shared by the protocols: tool calls, images and documents."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from returns.result import Result

from llm_effects import LLMRequest, Message, ModelConfig, ToolCall, ToolResult
from llm_effects.providers.message_encoding import encode_arguments
from llm_effects.providers.registry import provider_of, target_of
from llm_effects.providers.wire import WireRequest
from llm_effects.values.errors import LLMError


def encoded_body(provider: str, call_id: str, arguments: str = "{}") -> Any:
    config = ModelConfig(provider=provider, model="m", api_key="k-123456789")
    target = target_of("m", config).unwrap()
    turns = (Message("user", "hi"), Message("assistant", ToolCall(call_id, "look", arguments)))
    request = LLMRequest(messages=(*turns, Message("tool", ToolResult(call_id, "ok"))))
    encoded: Result[WireRequest, LLMError] = provider_of(target).encode(target, request, False)
    return json.loads(encoded.unwrap().body)


def ids(provider: str, call_id: str) -> tuple[str, str]:
    _, call, result = encoded_body(provider, call_id)["messages"]
    return call["tool_calls"][0]["id"], result["tool_call_id"]


@pytest.mark.parametrize("call_id", ["call_0", "toolu_01A09q90qw90lq917835lq9", "é", "x" * 300])
def test_mistral_gets_call_ids_of_nine_letters_and_digits(call_id: str) -> None:
    call, result = ids("mistral", call_id)
    assert re.fullmatch(r"[a-zA-Z0-9]{9}", call)
    assert call == result
    assert ids("mistral", call_id) == (call, result)
    assert ids("mistral", call_id + "1")[0] != call


def test_valid_ids_and_those_for_other_servers_stay() -> None:
    assert ids("mistral", "D681PevKs") == ("D681PevKs", "D681PevKs")
    assert ids("ollama", "call_0") == ("call_0", "call_0")


MALFORMED = '{"q": "unfinis'


def test_fault_77_malformed_arguments_are_sent_back_inside_an_object() -> None:
    wrapped = {"INVALID_JSON": MALFORMED}
    chat = encoded_body("ollama", "c", MALFORMED)["messages"][1]["tool_calls"][0]["function"]["arguments"]
    responses = encoded_body("openai-responses", "c", MALFORMED)["input"][1]["arguments"]
    assert json.loads(chat) == json.loads(responses) == wrapped
    assert encoded_body("anthropic", "c", MALFORMED)["messages"][1]["content"][0]["input"] == wrapped


@given(st.text() | st.recursive(st.none() | st.booleans() | st.integers(), st.lists).map(json.dumps))
def test_encoded_arguments_are_always_an_object(arguments: str) -> None:
    assert isinstance(json.loads(encode_arguments(arguments)), dict)
