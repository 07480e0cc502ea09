"""Encoding requests for chat completions, and decoding whole answers."""

import json
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from returns.result import Result

from llm_effects.config.models import Capabilities, ModelConfig
from llm_effects.providers.openai_chat import OPENAI_CHAT
from llm_effects.providers.target import Preset, Target
from llm_effects.providers.wire import WireRequest, WireResponse
from llm_effects.values.errors import ContentRefused, ContextTooLarge, InvalidRequest, LLMError, MalformedResponse
from llm_effects.values.messages import Image, Message, Reasoning, Text, ToolCall, ToolResult
from llm_effects.values.requests import LLMRequest, Preferences, Tool
from llm_effects.values.responses import FinishReason, LLMResponse, Usage

TOOLS = (Tool("look", "Look it up", {"type": "object", "properties": {"q": {"type": "string"}}}), Tool("stop"))


def target(*, preset: dict[str, Any] | None = None, able: Capabilities | None = None, **config: Any) -> Target:
    settings = {"provider": "openai-chat", "model": "gpt-x", **config}
    return Target(
        name="mini",
        config=ModelConfig(**settings),
        preset=Preset(**{"name": "openai-chat", "wire": "openai-chat", **(preset or {})}),
        endpoint="https://api.example.com/v1",
        capabilities=able or Capabilities(),
    )


def wire(request: LLMRequest, to: Target | None = None, *, stream: bool = False) -> WireRequest:
    return OPENAI_CHAT.encode(to or target(), request, stream).unwrap()


def sent(request: LLMRequest, to: Target | None = None, *, stream: bool = False) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(wire(request, to, stream=stream).body)
    return body


MINIMAL = LLMRequest(prompt="hi")


def test_a_minimal_request_sends_only_required_fields() -> None:
    assert sent(MINIMAL) == {"model": "gpt-x", "messages": [{"role": "user", "content": "hi"}]}
    assert "model" not in sent(MINIMAL, target(model=None))
    assert wire(MINIMAL).url == "https://api.example.com/v1/chat/completions"


def test_a_stream_requests_its_usage() -> None:
    body = sent(MINIMAL, stream=True)
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})
    assert ("accept", "text/event-stream") in wire(MINIMAL, stream=True).headers


def test_the_key_is_sent_in_the_header_of_the_preset_and_never_shown() -> None:
    keyed = wire(MINIMAL, target(api_key="sk-canary"))
    assert "sk-canary" not in repr(keyed)
    assert [str(getattr(v, "reveal", str)()) for n, v in keyed.headers if n == "authorization"] == ["Bearer sk-canary"]
    assert "authorization" not in dict(wire(MINIMAL).headers)
    other = wire(MINIMAL, target(api_key="k", preset={"key_header": "api-key"}))
    assert "api-key" in dict(other.headers)


def test_configured_headers_take_precedence() -> None:
    headers = wire(MINIMAL, target(headers={"Content-Type": "application/json; v=2"})).headers
    assert [name for name, _ in headers].count("content-type") == 1


def test_preferences_take_precedence_over_the_configuration() -> None:
    preferences = Preferences(max_tokens=9, top_p=0.5, stop=("END",), seed=7, reasoning_effort="low")
    body = sent(LLMRequest(prompt="hi", preferences=preferences), target(max_tokens=99, temperature=0.25))
    kept = {"max_tokens": 9, "temperature": 0.25, "top_p": 0.5, "stop": ["END"], "seed": 7, "reasoning_effort": "low"}
    assert kept.items() <= body.items()
    assert (
        sent(MINIMAL, target(max_tokens=99, preset={"limit_field": "max_completion_tokens"}))["max_completion_tokens"]
        == 99
    )
    cold = LLMRequest(prompt="hi", preferences=Preferences(temperature=0))
    assert sent(cold, target(temperature=0.9))["temperature"] == 0


def test_unsupported_settings_are_dropped_with_a_warning() -> None:
    request = LLMRequest(prompt="hi", preferences=Preferences(temperature=1, top_p=0.5, reasoning_effort="low"))
    written = wire(request, target(able=Capabilities(sampling=False, reasoning=False)))
    assert json.loads(written.body).keys() == {"model", "messages"}
    assert [warning.partition(":")[0] for warning in written.warnings] == ["temperature", "top_p", "reasoning_effort"]
    assert wire(MINIMAL, target(able=Capabilities(sampling=False))).warnings == ()


def test_tools_and_tool_choice_are_encoded() -> None:
    body = sent(LLMRequest(prompt="hi", tools=TOOLS, tool_choice="look"))
    assert body["tools"][0]["function"] == {
        "name": "look",
        "description": "Look it up",
        "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
    }
    assert body["tool_choice"] == {"type": "function", "function": {"name": "look"}}
    assert sent(LLMRequest(prompt="hi", tools=TOOLS, tool_choice="required"))["tool_choice"] == "required"
    assert "tool_choice" not in sent(LLMRequest(prompt="hi", tools=TOOLS))
    assert "tool_choice" not in sent(LLMRequest(prompt="hi", tool_choice="none"))


def test_a_named_tool_is_sent_alone_as_required_where_names_are_unsupported() -> None:
    written = wire(
        LLMRequest(prompt="hi", tools=TOOLS, tool_choice="stop"), target(preset={"named_tool_choice": False})
    )
    body = json.loads(written.body)
    assert (body["tool_choice"], [tool["function"]["name"] for tool in body["tools"]]) == ("required", ["stop"])
    assert len(written.warnings) == 1


@pytest.mark.parametrize(("model", "reasoning_off"), [("gpt-6-luna", True), ("gpt-5.4-mini", True), ("gpt-4.1", False)])
def test_newer_gpt_models_get_tools_with_reasoning_off(model: str, reasoning_off: bool) -> None:
    gpt = target(model=model, preset={"family": "gpt"})
    request = LLMRequest(prompt="hi", tools=TOOLS)
    assert (sent(request, gpt).get("reasoning_effort") == "none") is reasoning_off
    assert "reasoning_effort" not in sent(MINIMAL, gpt)
    with_effort = LLMRequest(prompt="hi", tools=TOOLS, preferences=Preferences(reasoning_effort="high"))
    assert bool(wire(with_effort, gpt).warnings) is reasoning_off


def test_only_a_closed_schema_is_strict() -> None:
    closed: dict[str, Any] = {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    open_schema: dict[str, Any] = {**closed, "properties": {"a": {"type": "object", "properties": {}}}}
    assert sent(LLMRequest(prompt="hi", response_schema=closed))["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": closed},
    }
    assert "strict" not in sent(LLMRequest(prompt="hi", response_schema=open_schema))["response_format"]["json_schema"]


def test_a_schema_may_be_a_frozen_mapping() -> None:
    frozen = MappingProxyType({"type": "string"})
    assert sent(LLMRequest(prompt="hi", response_schema=frozen))["response_format"]["json_schema"]["schema"] == frozen


def test_a_conversation_with_tools_and_images_is_encoded() -> None:
    thinking = Reasoning("hm", "opaque")
    messages = (
        Message("user", (Text("what is this?"), Image(b"abc", "image/png"), Image(url="https://x/y.png"))),
        Message(
            "assistant", (thinking, Text("let me see"), ToolCall("c1", "look", '{"q":1}'), ToolCall("c2", "stop", ""))
        ),
        Message("tool", (ToolResult("c1", "a cat"), ToolResult("c2", "ok"))),
        Message("assistant", (thinking,)),
        Message("assistant", ToolCall("c3", "wait")),
        Message("user", (ToolResult("c3", "late"), Text("so?"))),
    )
    turns = sent(LLMRequest(messages=messages, system="Be brief."))["messages"]
    assert [turn["role"] for turn in turns] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
        "tool",
        "user",
    ]
    assert [part["type"] for part in turns[1]["content"]] == ["text", "image_url", "image_url"]
    assert turns[1]["content"][1]["image_url"]["url"] == "data:image/png;base64,YWJj"
    assert [call["function"]["arguments"] for call in turns[2]["tool_calls"]] == ['{"q":1}', "{}"]
    assert turns[3] == {"role": "tool", "tool_call_id": "c1", "content": "a cat"}
    assert "hm" not in json.dumps(turns)
    assert "opaque" not in json.dumps(turns)


@pytest.mark.parametrize(
    ("message", "path"),
    [
        (Message("user", (Text("hi"), ToolCall("c1", "look"))), "messages[0].parts[1]"),
        (Message("user", (Reasoning("hm"),)), "messages[0].parts[0]"),
        (Message("assistant", (Image(url="https://x/y.png"),)), "messages[0].parts[0]"),
        (Message("assistant", (ToolResult("c1", "a cat"),)), "messages[0].parts[0]"),
        (Message("system", (Image(url="https://x/y.png"),)), "messages[0].parts[0]"),
        (Message("assistant", (Reasoning("hm"),)), "messages: there is nothing to send"),
    ],
)
def test_a_part_that_cannot_be_sent_is_an_invalid_request_with_its_path(message: Message, path: str) -> None:
    request = LLMRequest(messages=(message,))
    problem = OPENAI_CHAT.encode(target(), request, False).failure()
    assert isinstance(problem, InvalidRequest)
    assert problem.message.startswith(path)
    assert (problem.model, problem.provider, problem.request) == ("mini", "openai-chat", request)


def test_fault_132_a_key_echoed_in_the_metadata_of_an_answer_is_masked() -> None:
    key = "my-own-canary"
    body = {
        "model": key,
        "choices": [{"message": {"content": "hi"}, "finish_reason": f"because {key}"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }
    answer = WireResponse(status=200, headers={"x-request-id": f"Bearer {key}"}, body=json.dumps(body).encode())
    response = OPENAI_CHAT.decode(target(api_key=key), answer).unwrap()
    assert (response.served_model, response.request_id) == ("***", "***")
    assert len(response.warnings) == 2
    assert key not in repr(response)


@pytest.mark.parametrize("choice", [{"finish_reason": "content_filter"}, {"message": {"refusal": "my-own-canary"}}, {}])
def test_fault_132_a_key_echoed_in_a_malformed_answer_is_masked(choice: dict[str, Any]) -> None:
    key = "my-own-canary"
    verdicts = {"content_filter_results": {key: {"filtered": True}}}
    body = {"id": key, "model": key, "choices": [{**choice, **verdicts}]}
    error = OPENAI_CHAT.decode(target(api_key=key), WireResponse(status=200, body=json.dumps(body).encode())).failure()
    assert error.tag in {"ContentRefused", "MalformedResponse"}
    assert error.request_id == "***"
    assert key not in repr(error)


def test_long_names_and_ids_from_a_server_are_truncated() -> None:
    body = {
        "id": "i" * 9999,
        "model": "m" * 9999,
        "choices": [{"message": {"content": "hi"}, "finish_reason": "f" * 9999}],
    }
    response = OPENAI_CHAT.decode(target(), WireResponse(status=200, body=json.dumps(body).encode())).unwrap()
    assert [len(response.served_model or ""), len(response.request_id or "")] == [200, 200]
    assert {len(warning) for warning in response.warnings} == {500}


def test_fault_75_a_lone_surrogate_is_replaced_before_it_is_sent() -> None:
    request = LLMRequest(prompt="a\ud83d", response_schema={"title": "\ud83d"}, tools=(Tool("t", "\ud83d"),))
    body = sent(request)
    assert body["messages"][0]["content"] == "a\ufffd"
    assert body["response_format"]["json_schema"]["schema"] == {"title": "\ufffd"}
    assert body["tools"][0]["function"]["description"] == "\ufffd"


# Decoding whole answers


def read(body: object, **headers: str) -> Result[LLMResponse, LLMError]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return OPENAI_CHAT.decode(target(), WireResponse(status=200, headers=named, body=data))


def answer(message: dict[str, Any], finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    return {"model": "gpt-x", "choices": [{"index": 0, "message": message, "finish_reason": finish}], **more}


def test_a_whole_answer_is_decoded() -> None:
    fields = {"prompt_tokens": 100, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 80}}
    response = read(answer({"content": "hello"}, usage=fields), x_request_id="req_1").unwrap()
    assert (response.content, response.model, response.provider) == ("hello", "mini", "openai-chat")
    assert (response.request_id, response.served_model, response.warnings) == ("req_1", "gpt-x", ())
    assert response.usage == Usage(input_tokens=20, cache_read_tokens=80, output_tokens=7)


@pytest.mark.parametrize(
    ("fields", "usage"),
    [
        (None, Usage()),
        ({}, Usage()),
        ({"prompt_tokens": 5}, Usage(input_tokens=5)),
        ({"prompt_tokens": 5, "completion_tokens": 0}, Usage(input_tokens=5, output_tokens=0)),
        (
            {"prompt_tokens": 9, "completion_tokens": 4, "completion_tokens_details": {"reasoning_tokens": 3}},
            Usage(input_tokens=9, output_tokens=4, reasoning_tokens=3),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 43, "reasoning_tokens": 30},
            Usage(input_tokens=9, output_tokens=34, reasoning_tokens=30),
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 1,
                "prompt_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 5},
            },
            Usage(input_tokens=1, cache_read_tokens=3, cache_write_tokens=5, output_tokens=1),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 1, "prompt_cache_hit_tokens": 4},
            Usage(input_tokens=5, cache_read_tokens=4, output_tokens=1),
        ),
        ({"prompt_tokens": "many", "completion_tokens": -1}, Usage()),
    ],
)
def test_fault_64_usage_is_sorted_into_disjoint_buckets_and_unknown_is_not_0(fields: object, usage: Usage) -> None:
    assert read(answer({"content": "x"}, usage=fields)).unwrap().usage == usage


@given(
    st.fixed_dictionaries(
        {name: st.integers(0, 99) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    ),
    st.integers(0, 99),
    st.integers(0, 99),
)
def test_the_input_buckets_add_up_to_the_prompt(fields: dict[str, Any], cached: int, thinking: int) -> None:
    details = {
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": thinking},
    }
    usage = read(answer({"content": "x"}, usage={**fields, **details})).unwrap().usage
    assert usage.prompt_tokens == fields["prompt_tokens"]
    assert usage.reasoning_tokens <= (usage.output_tokens or 0)


@pytest.mark.parametrize(
    ("message", "text", "thinking"),
    [
        ({"content": "a", "reasoning": "t"}, "a", "t"),
        ({"content": "a", "reasoning_content": "t"}, "a", "t"),
        ({"content": "a", "reasoning": "t", "reasoning_content": "t"}, "a", "t"),
        ({"content": "<think>\nt</think>\n\na"}, "a", "t"),
        ({"content": " \n<think>t</think>a"}, "a", "t"),
        ({"content": "<think>t"}, "", "t"),
        ({"content": "a <think>b</think>"}, "a <think>b</think>", ""),
        ({"content": "<thin"}, "<thin", ""),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "t"}]},
                    {"type": "text", "text": "a"},
                ]
            },
            "a",
            "t",
        ),
        ({"content": [{"type": "text", "text": "a"}, {"type": "unheard_of"}, None]}, "a", ""),
        ({"content": {"name": "Ada"}}, '{"name":"Ada"}', ""),
        ({"content": None, "audio": {"transcript": "a"}}, "a", ""),
        ({"content": "a", "reasoning_details": [{"type": "reasoning.summary", "summary": "t"}]}, "a", "t"),
    ],
)
def test_text_and_thinking_are_separated_in_every_spelling(message: dict[str, Any], text: str, thinking: str) -> None:
    response = read(answer(message, usage={"completion_tokens": 3})).unwrap()
    assert response.content == text
    assert "".join(part.text for part in response.parts if isinstance(part, Reasoning)) == thinking


@pytest.mark.parametrize(
    ("fields", "calls"),
    [
        ({"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": '{"x":1}'}}]}, [("a", "f", '{"x":1}')]),
        ({"tool_calls": [{"function": {"name": "f", "arguments": None}}]}, [("call_0", "f", "")]),
        ({"tool_calls": [{"id": "", "function": {"name": "f", "arguments": {"x": 1}}}]}, [("call_0", "f", '{"x":1}')]),
        ({"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "null"}}]}, [("a", "f", "null")]),
        ({"tool_calls": [{"id": "a", "custom": {"name": "f", "input": "4 + 4"}}]}, [("a", "f", "4 + 4")]),
        ({"function_call": {"name": "f", "arguments": "{}"}}, [("call_0", "f", "{}")]),
        (
            {
                "tool_calls": [
                    {"id": "a", "index": 0, "function": {"name": "f"}},
                    {"id": "a", "index": 0, "function": {"name": "f"}},
                ]
            },
            [("a", "f", ""), ("call_1", "f", "")],
        ),
    ],
)
def test_fault_77_tool_calls_are_decoded_in_every_shape(fields: dict[str, Any], calls: list[tuple[str, ...]]) -> None:
    response = read(answer({"content": None, **fields}, "stop")).unwrap()
    assert [(call.id, call.name, call.arguments) for call in response.tool_calls] == calls
    assert response.finish_reason is FinishReason.TOOL_CALLS


def test_a_tool_call_without_a_name_is_malformed_and_an_empty_one_is_ignored() -> None:
    nameless = answer({"tool_calls": [{"id": "a", "function": {"arguments": "{}"}}]}, "tool_calls")
    assert read(nameless).failure().tag == "MalformedResponse"
    empty = answer({"content": "4", "function_call": {"name": "", "arguments": ""}, "tool_calls": None})
    assert read(empty).unwrap().parts == (Text("4"),)


@pytest.mark.parametrize(
    ("word", "reason", "warned"),
    [
        ("stop", FinishReason.STOP, False),
        ("length", FinishReason.LENGTH, False),
        ("eos", FinishReason.STOP, False),
        ("whatever", FinishReason.STOP, True),
        (None, FinishReason.STOP, True),
        ("", FinishReason.STOP, True),
    ],
)
def test_fault_78_finish_reasons_are_mapped_with_warnings_for_unknown_ones(
    word: str | None, reason: FinishReason, warned: bool
) -> None:
    response = read(answer({"content": "a"}, word)).unwrap()
    assert (response.finish_reason, bool(response.warnings)) == (reason, warned)


def test_fault_79_refusals_and_filters_are_content_refused() -> None:
    refusal = read(answer({"content": None, "refusal": "I can't."})).failure()
    assert isinstance(refusal, ContentRefused)
    assert (refusal.message, refusal.category) == ("I can't.", "refusal")
    cut = read(answer({"content": "half"}, "content_filter", usage={"completion_tokens": 3})).failure()
    assert isinstance(cut, ContentRefused)
    assert (cut.partial, cut.category, cut.usage) == ("half", "content_filter", Usage(output_tokens=3))


def test_fault_56_an_error_in_a_2xx_answer_is_classified_with_its_request_id() -> None:
    error = read({"error": {"message": "too long", "code": "context_length_exceeded"}}, x_request_id="req_9").failure()
    assert isinstance(error, ContextTooLarge)
    assert error.request_id == "req_9"
    assert read({"error": "boom"}).failure().tag == "ModelUnavailable"
    inside = {
        "choices": [{"message": {"content": ""}, "finish_reason": "error", "error": {"code": 429, "message": "slow"}}]
    }
    assert read(inside).failure().tag == "RateLimitExceeded"
    assert read(answer({"content": "half"}, "error")).failure().partial == "half"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"choices":[{"mess', id="fault-58"),
        pytest.param(b"", id="fault-59"),
        pytest.param(b"<html>log in</html>", id="fault-60"),
        pytest.param(b"null", id="fault-62-null"),
        pytest.param(b"[]", id="fault-62-list"),
        pytest.param(b"7", id="fault-62-number"),
        pytest.param(b'{"choices":[]}', id="fault-63-none"),
        pytest.param(b'{"choices":null}', id="fault-63-null"),
        pytest.param(b'{"choices":[{"message":{"content":null},"finish_reason":"stop"}]}', id="fault-63-empty"),
        pytest.param(b'{"choices":[{"message":null,"finish_reason":"stop"}]}', id="fault-63-no-message"),
        pytest.param(b'{"choices":[{"message":{"content":"a"}}],"usage":{"prompt_tokens":NaN}}', id="fault-67-nan"),
        pytest.param(b'{"choices":[{"message":{"content":"a"}}],"usage":{"prompt_tokens":1e999}}', id="fault-67-huge"),
        pytest.param(b'{"choices":[{"message":{"content":"\xff"}}]}', id="fault-68"),
        pytest.param(b"[" * 100_000, id="fault-71"),
    ],
)
def test_an_unreadable_2xx_answer_is_malformed(body: bytes) -> None:
    error = read(body).failure()
    assert isinstance(error, MalformedResponse)
    assert error.message


def test_harmless_defects_are_accepted() -> None:
    good = json.dumps(answer({"content": "é"})).encode()
    assert read(b"\xef\xbb\xbf" + good).unwrap().content == "é", "fault 69: a byte order mark"
    assert read(b"\n   \n" + good).unwrap().content == "é", "white space that keeps the connection alive"
    assert read(good, content_type="text/html; charset=latin-1").unwrap().content == "é", "faults 61, 70: a wrong label"
    assert read(b'{"choices":[{"message":{"content":"a"}}],"x":1,"x":2}').unwrap().content == "a", "faults 65, 66"


def test_fault_75_a_lone_surrogate_in_an_answer_is_replaced() -> None:
    response = read(
        b'{"choices":[{"message":{"content":"a\\ud83d b \\\\ud83d \\ud83d\\ude00"},"finish_reason":"stop"}]}'
    ).unwrap()
    assert response.content == "a\ufffd b \\ud83d \U0001f600"
    wire(LLMRequest(messages=(Message("assistant", response.parts), Message("user", "go on"))))


@pytest.mark.parametrize(
    ("requested", "served", "warned"),
    [
        ("gpt-x", "gpt-x", False),
        ("gpt-x", "gpt-x-2026-01-31", False),
        ("openai/gpt-x", "gpt-x", False),
        ("big-latest", "big-2508", False),
        ("qwen3", "/models/qwen3.gguf", False),
        ("org/kimi:fast", "org/kimi", False),
        ("gpt-x", "gpt-x-mini", True),
        ("qwen3:8b", "qwen3:4b", True),
        ("a", "b", True),
        (None, "whatever", False),
    ],
)
def test_fault_76_another_served_model_causes_a_warning(requested: str | None, served: str, warned: bool) -> None:
    body = json.dumps({**answer({"content": "a"}), "model": served}).encode()
    response = OPENAI_CHAT.decode(target(model=requested), WireResponse(status=200, body=body)).unwrap()
    assert (response.served_model, bool(response.warnings)) == (served, warned)


@given(st.binary(max_size=99))
def test_any_bytes_are_decoded_without_an_exception(body: bytes) -> None:
    read(body)


FIELDS = ["choices", "message", "delta", "content", "tool_calls", "function", "name", "id", "arguments", "type", "text"]
ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=3) | st.sampled_from(["stop", "text", "<think>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["content", "tool_calls", "function_call", "reasoning", "refusal", "audio"]), ODD),
    ODD,
)
def test_any_json_is_decoded_without_an_exception(message: dict[str, Any], usage: object) -> None:
    read(answer(message, usage=usage))


QUESTION = Message("user", "how warm is it?")
CALL = Message("assistant", ToolCall("c1", "look"))
RESULT = Message("tool", ToolResult("c1", "warm"))


@pytest.mark.parametrize(
    ("messages", "problem_text"),
    [
        ((QUESTION, CALL), "messages[1].parts[0]: the call 'c1' has no result"),
        ((QUESTION, CALL, Message("user", "well?")), "messages[1].parts[0]: the call 'c1' has no result"),
        ((QUESTION, RESULT), "messages[1].parts[0]: no call 'c1' before it waits for a result"),
        ((QUESTION, CALL, RESULT, RESULT), "messages[3].parts[0]: no call 'c1' before it waits for a result"),
    ],
)
def test_an_unpaired_call_or_result_is_an_invalid_request(messages: tuple[Message, ...], problem_text: str) -> None:
    error = OPENAI_CHAT.encode(target(), LLMRequest(messages=messages), False).failure()
    assert isinstance(error, InvalidRequest)
    assert error.message.startswith(problem_text)


@pytest.mark.parametrize(("reported", "priced"), [("flex", "flex"), ("fast", "priority"), ("default", None), (5, None)])
def test_the_service_tier_is_a_part_of_the_usage(reported: object, priced: str | None) -> None:
    counts = {"prompt_tokens": 5, "completion_tokens": 2}
    whole = answer({"content": "x"}, usage=counts, service_tier=reported, object="chat.completion")
    response = WireResponse(status=200, headers={}, body=json.dumps(whole).encode())
    found = OPENAI_CHAT.decode(target(preset={"family": "gpt"}), response).unwrap().usage
    assert found == Usage(input_tokens=5, output_tokens=2, service_tier=priced)  # type: ignore[arg-type]
    assert read(whole).unwrap().usage.service_tier is None  # another server's tiers have other prices
