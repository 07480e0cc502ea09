"""Calls of tools on their way back: ids and arguments in the form that each server takes."""

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


def sent(provider: str, call_id: str, arguments: str = "{}") -> Any:
    config = ModelConfig(provider=provider, model="m", api_key="k-123456789")
    target = target_of("m", config).unwrap()
    turns = (Message("user", "hi"), Message("assistant", ToolCall(call_id, "look", arguments)))
    request = LLMRequest(messages=(*turns, Message("tool", ToolResult(call_id, "ok"))))
    encoded: Result[WireRequest, LLMError] = provider_of(target).encode(target, request, False)
    return json.loads(encoded.unwrap().body)


def ids(provider: str, call_id: str) -> tuple[str, str]:
    _, call, result = sent(provider, call_id)["messages"]
    return call["tool_calls"][0]["id"], result["tool_call_id"]


@pytest.mark.parametrize("call_id", ["call_0", "toolu_01A09q90qw90lq917835lq9", "é", "x" * 300])
def test_mistral_is_given_ids_of_nine_letters_and_digits(call_id: str) -> None:
    call, result = ids("mistral", call_id)
    assert re.fullmatch(r"[a-zA-Z0-9]{9}", call)
    assert call == result
    assert ids("mistral", call_id) == (call, result)
    assert ids("mistral", call_id + "1")[0] != call


def test_its_own_ids_and_those_of_other_servers_stay() -> None:
    assert ids("mistral", "D681PevKs") == ("D681PevKs", "D681PevKs")
    assert ids("ollama", "call_0") == ("call_0", "call_0")


GARBLED = '{"q": "unfinis'


def test_fault_77_garbled_arguments_go_back_as_an_object_that_shows_them() -> None:
    wrapped = {"INVALID_JSON": GARBLED}
    chat = sent("ollama", "c", GARBLED)["messages"][1]["tool_calls"][0]["function"]["arguments"]
    responses = sent("openai-responses", "c", GARBLED)["input"][1]["arguments"]
    assert json.loads(chat) == json.loads(responses) == wrapped
    assert sent("anthropic", "c", GARBLED)["messages"][1]["content"][0]["input"] == wrapped


@given(st.text() | st.recursive(st.none() | st.booleans() | st.integers(), st.lists).map(json.dumps))
def test_what_is_sent_is_always_an_object(arguments: str) -> None:
    assert isinstance(json.loads(encode_arguments(arguments)), dict)
