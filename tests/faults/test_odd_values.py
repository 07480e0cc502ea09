"""Fault 168: no value that a server puts anywhere raises, in no protocol, whole or streamed."""

import json
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import pytest
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects import LLMError, LLMResponse, ModelConfig
from llm_effects.providers.draft import Draft
from llm_effects.providers.registry import provider_of, target_of
from llm_effects.providers.sse import ServerEvent
from llm_effects.providers.target import Target
from llm_effects.providers.wire import WireResponse
from llm_effects.values.serialization import dump_value

Json: TypeAlias = dict[str, Any]
Path: TypeAlias = tuple[str | int, ...]

ODD: Final = {
    "integer": 10**400,
    "negative": -1,
    "64 bits": 2**63,
    "float": 1e308,
    "surrogate": "\ud800",
    "empty": "",
    "digits": "9" * 5_000,
    "list": [],
    "lists": [[], None, 1, ""],
    "object": {"a": {}},
    "deep": json.loads("[" * 90 + "]" * 90),
    "null": None,
    "true": True,
}

CALL: Final = {"name": "f", "arguments": "{}"}
SITE: Final = {"type": "url_citation", "url": "https://a.example", "title": "t", "start_index": 0, "end_index": 1}
MESSAGE: Final[Json] = {
    "role": "assistant",
    "content": "a",
    "reasoning_content": "r",
    "reasoning_details": [{"type": "reasoning.text", "text": "t", "signature": "s", "index": 0}],
    "annotations": [{"type": "url_citation", "url_citation": SITE}],
    "tool_calls": [
        {
            "index": 0,
            "id": "c",
            "type": "function",
            "function": CALL,
            "extra_content": {"google": {"thought_signature": "s"}},
        }
    ],
}
CHAT: Final[Json] = {
    "id": "x",
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "tool_calls", "message": MESSAGE}],
    "citations": ["https://a.example"],
    "usage": {
        "prompt_tokens": 3,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 1},
    },
}
RESPONSES: Final[Json] = {
    "id": "r",
    "status": "completed",
    "model": "m",
    "incomplete_details": None,
    "tools": [{"type": "x_search"}, {"type": "custom", "name": "mine"}],
    "output": [
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "a"}], "encrypted_content": "e"},
        {"type": "function_call", "id": "fc", "call_id": "c", **CALL},
        {"type": "custom_tool_call", "id": "cc", "call_id": "d", "name": "f", "input": "x"},
        {
            "type": "message",
            "id": "m",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "a", "annotations": [SITE, {"type": "file_citation"}]}],
        },
    ],
    "usage": {
        "input_tokens": 3,
        "output_tokens": 1,
        "input_tokens_details": {"cached_tokens": 1},
        "output_tokens_details": {"reasoning_tokens": 1},
    },
}
CLAUDE: Final[Json] = {
    "id": "x",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "stop_reason": "tool_use",
    "content": [
        {"type": "thinking", "thinking": "t", "signature": "s"},
        {"type": "redacted_thinking", "data": "d"},
        {
            "type": "text",
            "text": "a",
            "citations": [
                {"type": "char_location", "cited_text": "a", "document_index": 0, "start_char_index": 0},
                {"type": "page_location", "cited_text": "a", "document_index": 0, "start_page_number": 1},
                {"type": "web_search_result_location", "url": "https://a.example", "cited_text": "a"},
            ],
        },
        {"type": "tool_use", "id": "c", "name": "f", "input": {}},
    ],
    "usage": {"input_tokens": 3, "output_tokens": 1, "cache_read_input_tokens": 1, "cache_creation_input_tokens": 1},
}
WHOLE: Final = {"openai-chat": CHAT, "openai-responses": RESPONSES, "anthropic": CLAUDE}


def chat_events() -> Iterator[Json]:
    for name, value in MESSAGE.items():
        yield {"id": "x", "model": "m", "choices": [{"index": 0, "delta": {name: value}, "finish_reason": None}]}
    yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    yield {"choices": [], "usage": CHAT["usage"]}


def responses_events() -> Iterator[Json]:
    deltas: dict[str, tuple[tuple[str, Json], ...]] = {
        "reasoning": (("reasoning_summary_text.delta", {"summary_index": 0, "delta": "a"}),),
        "function_call": (("function_call_arguments.delta", {"delta": "{}"}),),
        "message": (
            ("output_text.delta", {"content_index": 0, "delta": "a"}),
            ("output_text.annotation.added", {"content_index": 0, "annotation_index": 0, "annotation": SITE}),
        ),
    }
    yield {"type": "response.created", "response": RESPONSES | {"status": "in_progress", "output": []}}
    for at, item in enumerate(RESPONSES["output"]):
        place = {"output_index": at, "item_id": item["id"]}
        yield {"type": "response.output_item.added", **place, "item": item}
        for kind, content in deltas.get(item["type"], ()):
            yield {"type": f"response.{kind}", **place, **content}
        yield {"type": "response.output_item.done", **place, "item": item}
    yield {"type": "response.completed", "response": RESPONSES}


def claude_events() -> Iterator[Json]:
    yield {"type": "message_start", "message": CLAUDE | {"content": [], "stop_reason": None}}
    deltas: dict[str, tuple[Json, ...]] = {
        "thinking": ({"type": "thinking_delta", "thinking": "a"}, {"type": "signature_delta", "signature": "a"}),
        "text": ({"type": "text_delta", "text": "a"}, {"type": "citations_delta", "citation": SITE}),
        "tool_use": ({"type": "input_json_delta", "partial_json": "{}"},),
    }
    for at, block in enumerate(CLAUDE["content"]):
        yield {"type": "content_block_start", "index": at, "content_block": block}
        for delta in deltas.get(block["type"], ()):
            yield {"type": "content_block_delta", "index": at, "delta": delta}
        yield {"type": "content_block_stop", "index": at}
    yield {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 3}}
    yield {"type": "message_stop"}


STREAMED: Final = {
    "openai-chat": [*chat_events()],
    "openai-responses": [*responses_events()],
    "anthropic": [*claude_events()],
}


def paths_of(value: object, path: Path = ()) -> Iterator[Path]:
    """Yield the place of each value."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield from paths_of(each, (*path, key))


def with_odd(value: Any, path: Path, odd: object) -> Any:
    """Return a copy in which one value is odd."""
    if not path:
        return odd
    copy = value.copy()
    copy[path[0]] = with_odd(copy[path[0]], path[1:], odd)
    return copy


def read(target: Target, body: object) -> Result[LLMResponse, LLMError]:
    return provider_of(target).decode(target, WireResponse(status=200, body=json.dumps(body).encode()))


def fold(target: Target, events: list[Any]) -> Result[LLMResponse, LLMError]:
    draft, provider = Draft(target=target), provider_of(target)
    for each in events:
        name = each.get("type") if isinstance(each, dict) else None
        step = provider.decode_event(draft, ServerEvent(name if isinstance(name, str) else "message", json.dumps(each)))
        if not is_successful(step):
            return step  # type: ignore[return-value]
    return provider.finish(draft)


def assert_kept(result: Result[LLMResponse, LLMError]) -> None:
    """Check that what came can be shown and stored."""
    assert repr(result)
    if is_successful(result):
        assert dump_value(result.unwrap())


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("provider", WHOLE)
def test_fault_168_no_odd_value_of_a_whole_answer_raises(provider: str, odd: object) -> None:
    target = target_of("m", ModelConfig(provider=provider, model="m", api_key="sk-x")).unwrap()
    whole = WHOLE[provider]
    assert read(target, whole).unwrap().content == "a"
    for path in paths_of(whole):
        body = with_odd(whole, path, odd)
        assert_kept(read(target, body))
        for status in (400, 429, 500):
            answer = WireResponse(status=status, body=json.dumps({"error": body}).encode())
            assert repr(provider_of(target).classify(target, answer))


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("provider", STREAMED)
def test_fault_168_no_odd_value_of_a_stream_raises(provider: str, odd: object) -> None:
    target = target_of("m", ModelConfig(provider=provider, model="m", api_key="sk-x")).unwrap()
    events = STREAMED[provider]
    assert "a" in fold(target, events).unwrap().content
    for at, event in enumerate(events):
        for path in paths_of(event):
            assert_kept(fold(target, [*events[:at], with_odd(event, path, odd), *events[at + 1 :]]))
