"""Encoding requests for OpenAI's Responses."""

import json
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from returns.pipeline import is_successful

from llm_effects.config.models import Capabilities, ModelConfig
from llm_effects.providers.openai_responses import OPENAI_RESPONSES
from llm_effects.providers.registry import target_of
from llm_effects.providers.target import Target
from llm_effects.providers.wire import WireRequest, WireResponse
from llm_effects.values.errors import InvalidRequest
from llm_effects.values.messages import Image, Message, Origin, Part, Reasoning, Text, ToolCall, ToolResult
from llm_effects.values.requests import LLMRequest, Preferences, Tool

CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
CLOSED = {**CITY, "required": ["city"], "additionalProperties": False}
WEATHER = Tool("weather", "Ask for it", CITY)
MINIMAL = LLMRequest(prompt="hi")
SEALED = '{"id":"rs_1", "type":"reasoning","summary":[], "encrypted_content":"gAAAA\\u00e9=="}'


def target(model: str = "gpt-6-luna", **config: Any) -> Target:
    settings: dict[str, Any] = {"provider": "openai-responses", "api_key": "sk-canary", **config}
    return target_of("mini", ModelConfig(model=model, **settings)).unwrap()


PLAIN = target("gpt-4.1")


def wire(request: LLMRequest, to: Target | None = None, *, stream: bool = False) -> WireRequest:
    return OPENAI_RESPONSES.encode(to or target(), request, stream).unwrap()


def sent(request: LLMRequest, to: Target | None = None, *, stream: bool = False) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(wire(request, to, stream=stream).body)
    return body


def input_items(*messages: Message, to: Target | None = None) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = sent(LLMRequest(messages=messages), to)["input"]
    return items


def with_preferences(to: Target | None = None, **preferences: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    request = wire(LLMRequest(prompt="hi", preferences=Preferences(**preferences)), to)
    return json.loads(request.body), request.warnings


# The frame


def test_a_minimal_request_is_not_stored_at_the_server() -> None:
    least = {"model": "gpt-4.1", "input": [{"role": "user", "content": "hi"}], "store": False}
    assert sent(MINIMAL, PLAIN) == least
    assert wire(MINIMAL).url == "https://api.openai.com/v1/responses"


def test_a_stream_is_requested() -> None:
    assert sent(MINIMAL, PLAIN, stream=True)["stream"] is True
    assert ("accept", "text/event-stream") in wire(MINIMAL, stream=True).headers
    assert ("accept", "application/json") in wire(MINIMAL).headers


def test_the_key_is_sent_and_never_shown() -> None:
    request = wire(MINIMAL)
    assert "sk-canary" not in repr(request)
    assert [value.reveal() for name, value in request.headers if name == "authorization"] == ["Bearer sk-canary"]  # type: ignore[union-attr]


def test_configured_headers_take_precedence() -> None:
    headers = wire(MINIMAL, target(headers={"Content-Type": "application/json; v=2"})).headers
    assert [name for name, _ in headers].count("content-type") == 1


# The settings


def test_preferences_take_precedence_over_the_configuration() -> None:
    to = target("gpt-4.1", max_tokens=99, temperature=0.25)
    body, warnings = with_preferences(to, max_tokens=50, top_p=0.5)
    assert {"max_output_tokens": 50, "temperature": 0.25, "top_p": 0.5}.items() <= body.items()
    assert sent(MINIMAL, to)["max_output_tokens"] == 99
    assert not warnings


def test_a_limit_below_the_minimum_is_raised_with_a_warning() -> None:
    body, warnings = with_preferences(PLAIN, max_tokens=5)
    assert body["max_output_tokens"] == 16
    assert warnings == ("max_tokens: 5 is sent as 16, the least that the protocol accepts",)


def test_settings_unknown_to_the_protocol_are_dropped_with_a_warning() -> None:
    body, warnings = with_preferences(PLAIN, stop=("END",), seed=7)
    assert not {"stop", "seed"} & set(body)
    assert [warning.partition(":")[0] for warning in warnings] == ["stop", "seed"]


@pytest.mark.parametrize(("model", "effort"), [("gpt-6-luna", None), ("gpt-5", None), ("gpt-5.2", "low")])
def test_sampling_is_dropped_for_a_model_that_reasons(model: str, effort: str | None) -> None:
    body, warnings = with_preferences(target(model), temperature=0.5, top_p=0.5, reasoning_effort=effort)
    assert not {"temperature", "top_p"} & set(body)
    assert [warning.partition(":")[0] for warning in warnings] == ["temperature", "top_p"]


@pytest.mark.parametrize("effort", [None, "none"])
def test_sampling_is_sent_to_an_optional_reasoner_that_does_not_reason(effort: str | None) -> None:
    body, warnings = with_preferences(target("gpt-5.2"), temperature=0.5, reasoning_effort=effort)
    assert body["temperature"] == 0.5
    assert not warnings


def test_requested_reasoning_asks_for_a_summary_and_sealed_content() -> None:
    body, _ = with_preferences(reasoning_effort="high")
    assert body["reasoning"] == {"effort": "high", "summary": "auto"}
    assert body["include"] == ["reasoning.encrypted_content"]
    quiet, _ = with_preferences(reasoning_effort="none")
    assert quiet["reasoning"] == {"effort": "none"}
    assert "reasoning" not in sent(MINIMAL)


def test_sealed_reasoning_is_requested_only_from_known_reasoners() -> None:
    assert "include" not in sent(MINIMAL, PLAIN)
    assert "include" not in sent(MINIMAL, target("unheard-of"))
    assert "include" in sent(MINIMAL, target("unheard-of", capabilities=Capabilities(reasoning=True)))


@pytest.mark.parametrize(
    ("model", "requested", "effort"),
    [
        ("gpt-6.2-sol", "none", "low"),
        ("gpt-6-luna", "minimal", "low"),
        ("gpt-5", "max", "high"),
        ("gpt-5", "none", "minimal"),
        ("gpt-5-pro", "low", "high"),
        ("o3", "minimal", "low"),
        ("gpt-6-luna", "xhigh", "xhigh"),
        ("unheard-of", "max", "max"),
    ],
)
def test_an_unsupported_effort_is_replaced_by_the_nearest(model: str, requested: str, effort: str) -> None:
    body, warnings = with_preferences(target(model), reasoning_effort=requested)
    assert body["reasoning"]["effort"] == effort
    assert warnings == (() if requested == effort else (f"reasoning_effort: {requested} is sent as {effort}",))


def test_effort_is_dropped_for_a_model_that_does_not_reason() -> None:
    body, warnings = with_preferences(PLAIN, reasoning_effort="high")
    assert "reasoning" not in body
    assert warnings == ("reasoning_effort: dropped, mini does not accept it",)


@pytest.mark.parametrize(("schema", "strict"), [(CLOSED, True), (CITY, None), (MappingProxyType(CLOSED), True)])
def test_only_a_closed_schema_is_strict(schema: Any, strict: bool | None) -> None:
    form = sent(LLMRequest(prompt="where?", response_schema=schema))["text"]["format"]
    assert (form["type"], form["schema"], form.get("strict")) == ("json_schema", dict(schema), strict)
    assert form["name"]


def test_tools_are_encoded_flat_and_not_strict() -> None:
    body = sent(LLMRequest(prompt="how warm?", tools=(WEATHER, Tool("stop"))))
    first, second = body["tools"]
    weather = {"type": "function", "name": "weather", "description": "Ask for it", "parameters": CITY, "strict": False}
    assert first == weather
    assert "description" not in second
    assert "tool_choice" not in body


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        ("weather", {"type": "function", "name": "weather"}),
    ],
)
def test_tool_choice_is_encoded(choice: str, expected: object) -> None:
    assert sent(LLMRequest(prompt="hi", tools=(WEATHER,), tool_choice=choice))["tool_choice"] == expected
    assert "tool_choice" not in sent(LLMRequest(prompt="hi", tool_choice="none"))


# The items


def test_the_system_text_becomes_instructions_and_system_messages_keep_their_place() -> None:
    turns = (Message("user", "a"), Message("system", "b"), Message("user", "c"))
    body = sent(LLMRequest(messages=turns, system="Be brief."))
    assert body["instructions"] == "Be brief."
    assert [(item["role"], item["content"]) for item in body["input"]] == [
        ("user", "a"),
        ("system", "b"),
        ("user", "c"),
    ]


def test_images_are_sent_with_their_text() -> None:
    shown = (Text("what is it?"), Image(data=b"\x89PNG", media_type="image/png"), Image(url="https://x.example/a.png"))
    [item] = input_items(Message("user", shown))
    assert item["content"] == [
        {"type": "input_text", "text": "what is it?"},
        {"type": "input_image", "image_url": "data:image/png;base64,iVBORw=="},
        {"type": "input_image", "image_url": "https://x.example/a.png"},
    ]


def test_calls_and_results_are_separate_items() -> None:
    call = Message("assistant", (Text("Let me see."), ToolCall("call_1", "weather", ' {"city":"Oslo"}')))
    result = Message("tool", (ToolResult("call_1", "12 C"), Text("and now?")))
    assert input_items(call, result) == [
        {"role": "assistant", "content": "Let me see."},
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city":"Oslo"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "12 C"},
        {"role": "user", "content": "and now?"},
    ]


def test_a_call_without_arguments_is_sent_with_an_empty_object() -> None:
    assert (
        input_items(Message("assistant", ToolCall("c", "stop", "")), Message("tool", ToolResult("c")))[0]["arguments"]
        == "{}"
    )


def thought(provider: str = "openai-responses", model: str = "gpt-6-luna", opaque: str = SEALED) -> Reasoning:
    return Reasoning("hm", opaque, Origin(provider, model))


def conversation_with(*parts: Part) -> LLMRequest:
    return LLMRequest(messages=(Message("user", "a"), Message("assistant", parts), Message("user", "b")))


def test_reasoning_is_replayed_byte_for_byte_to_its_own_model() -> None:
    assert SEALED.encode() in wire(conversation_with(thought(), Text("yes"))).body


@pytest.mark.parametrize(
    "part",
    [
        thought(model="gpt-6.2-sol"),
        thought(provider="openai"),
        thought(provider="anthropic"),
        thought(opaque='{"type":"thinking","signature":"x"}'),
        thought(opaque="half a li"),
        thought(opaque='{"type":"reasoning","x":"\ud83d"}'),
        Reasoning("hm", SEALED),
        Reasoning("hm"),
    ],
)
def test_other_reasoning_is_not_sent(part: Reasoning) -> None:
    assert wire(conversation_with(part, Text("yes"))).body == wire(conversation_with(Text("yes"))).body


def test_reasoning_without_a_following_item_is_not_sent() -> None:
    assert wire(conversation_with(Text("yes"), thought(), thought())).body == wire(conversation_with(Text("yes"))).body


def test_reasoning_is_not_sent_without_a_configured_model() -> None:
    nameless = target_of("mini", ModelConfig(provider="openai-compatible", endpoint="http://localhost:1/v1")).unwrap()
    request = conversation_with(thought("openai-compatible", "mini"), Text("yes"))
    assert SEALED.encode() not in wire(request, nameless).body
    assert "model" not in sent(request, nameless)


def test_decoded_parts_can_be_sent_back() -> None:
    call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "weather", "arguments": "{}"}
    body = {"object": "response", "status": "completed", "model": "gpt-6-luna", "output": [json.loads(SEALED), call]}
    answer = OPENAI_RESPONSES.decode(target(), WireResponse(status=200, body=json.dumps(body).encode())).unwrap()
    turns = (Message("user", "a"), Message("assistant", answer.parts), Message("tool", ToolResult("call_1", "12 C")))
    _, thinking, tool_call, _ = input_items(*turns)
    assert thinking == json.loads(SEALED)
    assert (tool_call["call_id"], "id" in tool_call) == ("call_1", False)


@pytest.mark.parametrize(
    "messages",
    [
        (Message("assistant", Reasoning("hm")),),
        (Message("user", Text("")),),
        (Message("user", ToolCall("c", "stop")),),
        (Message("assistant", Image(url="https://x.example/a.png")),),
    ],
)
def test_messages_that_cannot_be_sent_are_an_invalid_request(messages: tuple[Message, ...]) -> None:
    error = OPENAI_RESPONSES.encode(target(), LLMRequest(messages=messages), False).failure()
    assert isinstance(error, InvalidRequest)
    assert error.message.startswith("messages")


def test_a_lone_surrogate_is_replaced_before_it_is_sent() -> None:
    assert input_items(Message("user", "a\ud83d"))[0]["content"] == "a\ufffd"


PARTS = st.one_of(
    st.builds(Text, st.text()),
    st.builds(Reasoning, st.text(), st.none() | st.text(), st.just(Origin("openai-responses", "gpt-6-luna"))),
    st.builds(ToolCall, st.just("c"), st.just("f"), st.text()),
    st.builds(ToolResult, st.just("c"), st.text()),
)
TURNS = st.builds(
    Message, st.sampled_from(["system", "user", "assistant", "tool"]), st.lists(PARTS, min_size=1).map(tuple)
)


@given(st.lists(TURNS, min_size=1), st.booleans())
def test_any_conversation_is_json_or_an_invalid_request(turns: list[Message], stream: bool) -> None:
    encoded = OPENAI_RESPONSES.encode(target(), LLMRequest(messages=turns), stream)
    if is_successful(encoded):
        assert json.loads(encoded.unwrap().body)["input"]
    else:
        assert isinstance(encoded.failure(), InvalidRequest)
