"""Messages and answers in the shape of OpenAI's chat completions: read, written, and both in turn."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_effects import Document, Image, LLMRequest, LLMResponse, Message, Reasoning, Text, ToolCall, ToolResult, Usage
from llm_effects.providers.openai_chat import encode_messages
from llm_effects.testing import answer
from llm_effects.values import FinishReason, InvalidValue, messages_from, to_openai

PNG = b"\x89PNG\r\n\x1a\n"
PNG_URL = "data:image/png;base64,iVBORw0KGgo="

CALL = {"id": "c1", "type": "function", "function": {"name": "free_space", "arguments": '{"path": "/"}'}}

TEXTS = st.text(min_size=1).filter(lambda text: bool(text.strip()))
CALLS = st.lists(st.builds(ToolCall, TEXTS, TEXTS, st.just('{"a":1}')), max_size=3, unique_by=lambda call: call.id)


def test_a_whole_conversation_is_read() -> None:
    conversation: list[dict[str, object]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {
            "role": "user",
            "name": "ada",
            "content": [
                {"type": "text", "text": "How is the disk?"},
                {"type": "image_url", "image_url": {"url": PNG_URL, "detail": "low"}},
                {"type": "image_url", "image_url": "https://example.com/disk.png"},
                {"type": "file", "file": {"filename": "df.txt", "file_data": "data:text/plain,97%25"}},
            ],
        },
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL]},
        {
            "role": "tool",
            "tool_call_id": "c1",
            "content": [{"type": "text", "text": "3 "}, {"type": "text", "text": "%"}],
        },
        {"role": "assistant", "content": "Nearly full.", "reasoning_content": "97 is high.", "tool_calls": None},
        {"role": "assistant", "content": None, "refusal": "I will not delete it."},
    ]
    pictures = (Image(data=PNG), Image(url="https://example.com/disk.png"))
    file = Document(data=b"97%", media_type="text/plain", title="df.txt")
    assert messages_from(conversation) == (
        Message("system", "Be brief."),
        Message("system", "Be kind."),
        Message("user", (Text("How is the disk?"), *pictures, file)),
        Message("assistant", (ToolCall("c1", "free_space", '{"path": "/"}'),)),
        Message("tool", (ToolResult("c1", "3 %"),)),
        Message("assistant", (Reasoning("97 is high."), Text("Nearly full."))),
        Message("assistant", "I will not delete it."),
    )


USER = {"role": "user", "content": "?"}


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ("why?", "messages[1]: must be a dictionary, not str: pass the model_dump() of an object"),
        ({"content": "?"}, "messages[1].role: must be one of system, developer, user, assistant, tool, not None"),
        ({"role": "function", "content": "?"}, "messages[1].role: must be one of"),
        ({"role": "user"}, "messages[1].content: is missing: give a text or a list of parts"),
        ({"role": "assistant"}, "messages[1].content: is missing: give a text or a list of parts"),
        ({"role": "user", "content": 7}, "messages[1].content: must be a text or a list of parts, not int"),
        ({"role": "user", "content": []}, "messages[1].content: must not be empty: give at least one part"),
        ({"role": "user", "content": ["?"]}, "messages[1].content[0]: must be a dictionary, not str"),
        (
            {"role": "user", "content": [{"type": "input_audio"}]},
            "messages[1].content[0].type: must be text, image_url or file, not 'input_audio'",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text: is missing"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "disk.png"}}]},
            "messages[1].content[0].image_url.url: must begin with https:// or data:",
        ),
        (
            {"role": "user", "content": [{"type": "file", "file": {"file_id": "f1"}}]},
            "messages[1].content[0].file.file_data: is missing",
        ),
        ({"role": "tool", "content": "3 %"}, "messages[1].tool_call_id: is missing"),
        (
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "image_url", "image_url": PNG_URL}]},
            "messages[1].content: of a tool must be text, not Image: send it as a user message",
        ),
        ({"role": "assistant", "tool_calls": {}}, "messages[1].tool_calls: must be a list of calls, not dict"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[1].tool_calls[0].function: is missing"),
        (
            {"role": "assistant", "tool_calls": [{"id": "", "function": {"name": "f"}}]},
            "messages[1].tool_calls[0].id: must not be blank",
        ),
        (
            {"role": "assistant", "function_call": {"name": "f"}},
            "messages[1].function_call: is not supported: write it as one of tool_calls, with an id",
        ),
    ],
)
def test_what_cannot_be_read_is_an_error_with_its_place_and_the_remedy(message: Any, problem: str) -> None:
    with pytest.raises(InvalidValue) as raised:
        messages_from([USER, message])
    assert str(raised.value).startswith(problem)


def test_one_message_is_no_list() -> None:
    with pytest.raises(InvalidValue, match="messages: must be several values"):
        messages_from("why?")  # type: ignore[arg-type]


def test_an_answer_has_the_shape_of_a_completion() -> None:
    usage = Usage(input_tokens=20, cache_read_tokens=80, output_tokens=5, reasoning_tokens=2)
    calls = (ToolCall("c1", "free_space", '{"path": "/"}'),)
    response = LLMResponse(
        content="",
        parts=(Reasoning("Look first."), *calls),
        model="mini",
        served_model="gpt-mini-1",
        provider="openai",
        finish_reason=FinishReason.TOOL_CALLS,
        usage=usage,
        request_id="r1",
    )
    completion = to_openai(response, created=1_700_000_000)
    assert (
        completion
        == json.loads(json.dumps(completion))
        == {
            "id": "r1",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": "gpt-mini-1",
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": None,
                        "refusal": None,
                        "tool_calls": [CALL],
                        "reasoning_content": "Look first.",
                    },
                    "finish_reason": "tool_calls",
                    "logprobs": None,
                }
            ],
            "usage": {
                "prompt_tokens": 100,
                "completion_tokens": 5,
                "total_tokens": 105,
                "prompt_tokens_details": {"cached_tokens": 80},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
        }
    )


def test_unknown_usage_is_none() -> None:
    assert to_openai(LLMResponse(content="hi", model="m", provider="p"))["usage"] is None


@given(st.sampled_from(["", "think"]), st.one_of(st.just(""), TEXTS), CALLS)
def test_an_answer_is_read_again_as_the_message_it_was(thoughts: str, text: str, calls: list[ToolCall]) -> None:
    reasoning = (Reasoning(thoughts),) if thoughts else ()
    parts = (*reasoning, *((Text(text),) if text or not calls else ()), *calls)
    response = LLMResponse(content=text, parts=parts, model="m", provider="p")
    [choice] = to_openai(response)["choices"]
    assert messages_from([choice["message"]]) == (Message("assistant", parts),)


USERS = st.lists(st.one_of(st.builds(Text, TEXTS), st.just(Image(data=PNG))), min_size=1, max_size=3)
MESSAGES = st.one_of(
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), TEXTS),
    st.builds(lambda parts: Message("user", (*parts, Image(data=PNG))), USERS),
    st.builds(lambda calls, text: Message("assistant", (Text(text), *calls)), CALLS, TEXTS),
    st.builds(lambda call_id, text: Message("tool", (ToolResult(call_id, text),)), TEXTS, st.text()),
)


@given(st.lists(MESSAGES, min_size=1, max_size=5))
def test_messages_are_read_again_as_they_are_sent(messages: list[Message]) -> None:
    assert messages_from(encode_messages(LLMRequest(messages=messages))) == tuple(messages)  # type: ignore[arg-type]


def test_a_scripted_answer_is_read_again() -> None:
    [choice] = to_openai(answer("Logs."))["choices"]
    assert messages_from([choice["message"]]) == (Message("assistant", "Logs."),)
