"""Encoding shared by the protocols: tool calls, images and documents."""

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from returns.result import Result

from llm_effects import Document, LLMRequest, Message, ModelConfig, Reasoning, Text, ToolCall, ToolResult
from llm_effects.providers.message_encoding import encode_arguments, message_problem, unseal
from llm_effects.providers.registry import provider_of, target_of
from llm_effects.providers.wire import WireRequest
from llm_effects.values import Part
from llm_effects.values.errors import LLMError
from llm_effects.values.messages import Origin


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


# Images and documents

CLAUDE = ModelConfig(provider="anthropic", model="claude-haiku-5-5", api_key="k")
GPT = ModelConfig(provider="openai", model="gpt-6-luna", api_key="k")
CHAT = ModelConfig(provider="openai-chat", model="gpt-6-luna", api_key="k")
RESPONSES = ModelConfig(provider="openai-responses", model="gpt-6-luna", api_key="k")
STUDIO = ModelConfig(provider="lm-studio")
LOCAL = ModelConfig(provider="llama", model_path="m.gguf")

REPORT = Document(b"%PDF-1.7 << /Type /Page >>", title="Report", cite=True)
LOG = Document(b"disk: 97 %", "text/plain", title="df")


def encoded_content(model: ModelConfig, *parts: Part) -> Any:
    target, request = target_of("m", model).unwrap(), LLMRequest(messages=(Message("user", parts),))
    body: Mapping[str, Any] = json.loads(provider_of(target, request).encode(target, request, False).unwrap().body)
    return (body.get("messages") or body["input"])[-1]["content"]


def test_anthropic_gets_documents_with_optional_citations() -> None:
    pdf, log = encoded_content(CLAUDE, REPORT, LOG)
    assert pdf["source"]["type"] == "base64"
    assert (pdf["title"], pdf["citations"]) == ("Report", {"enabled": True})
    assert log["source"] == {"type": "text", "media_type": "text/plain", "data": "disk: 97 %"}
    assert "citations" not in log
    (by_url,) = encoded_content(CLAUDE, Document(url="https://a.example/x.pdf"))
    assert by_url["source"] == {"type": "url", "url": "https://a.example/x.pdf"}


def test_openai_gets_documents_as_files() -> None:
    (chat,) = encoded_content(CHAT, REPORT)
    assert chat["file"]["filename"] == "Report.pdf"
    assert chat["file"]["file_data"].startswith("data:application/pdf;base64,")
    (item,) = encoded_content(RESPONSES, REPORT)
    assert (item["type"], item["filename"]) == ("input_file", "Report.pdf")


def test_a_document_at_a_url_is_sent_over_responses() -> None:
    assert encoded_content(GPT, Document(url="https://a.example/x.pdf")) == [
        {"type": "input_file", "file_url": "https://a.example/x.pdf"}
    ]


@pytest.mark.parametrize("model", [CHAT, RESPONSES, STUDIO, LOCAL])
def test_a_plain_text_document_is_inlined_where_documents_are_unsupported(model: ModelConfig) -> None:
    assert encoded_content(model, LOG, Text("why?")) == "df:\n\ndisk: 97 %\n\nwhy?"


def test_a_call_without_its_result_is_a_problem_of_the_messages() -> None:
    turns = (Message("user", "hm?"), Message("assistant", (ToolCall("id", "weather"),)))
    assert "has no result" in (message_problem(LLMRequest(messages=turns), turns) or "")


def test_sealed_thinking_goes_back_to_its_own_model_only() -> None:
    ours, theirs = Origin("deepseek", "deepseek-v4"), Origin("openrouter", "deepseek-v4")
    thought = Reasoning("hm", '{"reasoning_content":"hm"}', ours)
    assert unseal([thought], ours)[0].keys() == {"reasoning_content"}
    for other in (theirs, None):
        assert unseal([thought], other) == ({}, {})
