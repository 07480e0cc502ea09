"""Recorded traffic: every answer of Responses decodes to what its body holds, or to the error that it is.

What is expected is read straight from the JSON here, by other code than the provider's.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.config.models import Capabilities, ModelConfig
from llm_effects.providers.draft import Draft
from llm_effects.providers.openai_responses import OPENAI_RESPONSES
from llm_effects.providers.sse import EventParser, ServerEvent
from llm_effects.providers.target import Preset, Target
from llm_effects.providers.wire import WireResponse
from llm_effects.values.errors import LLMError
from llm_effects.values.events import ReasoningDelta, TextDelta, ToolCallDelta
from llm_effects.values.messages import Reasoning
from llm_effects.values.responses import LLMResponse

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"
Row = dict[str, Any]

pytestmark = pytest.mark.skipif(not CORPUS.exists(), reason=f"no recorded traffic at {CORPUS}")


def rows(name: str) -> list[Row]:
    path = CORPUS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line] if path.exists() else []


PLAIN = rows("openai_responses")
STREAMED = rows("openai_responses_stream")


def row_id(row: Row) -> str:
    return f"{row['provider']}-{row['id'][:12]}"


def target_for(row: Row) -> Target:
    requested = row["request"].get("body")
    body = json.loads(requested) if isinstance(requested, str) and requested.startswith("{") else requested or {}
    model = body.get("model") if isinstance(body, dict) else None
    config = ModelConfig(provider="openai-responses", model=model or None, api_key="test-key-123")
    preset = Preset(name=row["provider"], wire="openai-responses")
    return Target(name="m", config=config, preset=preset, endpoint="http://x/v1", capabilities=Capabilities())


def events_of(row: Row) -> list[ServerEvent]:
    parser = EventParser(limit=1 << 24)
    return [*parser.feed(row["response"]["body"].encode()), *parser.finish()]


def folded(target: Target, events: list[ServerEvent]) -> tuple[Result[LLMResponse, LLMError], list[object]]:
    draft, emitted = Draft(target=target), list[object]()
    for event in events:
        step = OPENAI_RESPONSES.decode_event(draft, event)
        if not is_successful(step):
            return Failure(step.failure()), emitted
        emitted.extend(step.unwrap())
    return OPENAI_RESPONSES.finish(draft), emitted


# The content of the JSON


def final_response(row: Row) -> Row:
    """Return the response of the first terminal event, with the streamed items if it has none."""
    done: dict[int, Row] = {}
    for event in events_of(row):
        emitted = json.loads(event.data)
        if emitted["type"] == "response.output_item.done":
            done[emitted["output_index"]] = emitted["item"]
        if emitted["type"] in {"response.completed", "response.incomplete", "response.failed"}:
            items = emitted["response"]["output"] or [done[index] for index in sorted(done)]
            return {"status": emitted["type"].removeprefix("response."), **emitted["response"], "output": items}
    return pytest.fail("no terminal")


def texts(response: Row, kind: str, field: str) -> str:
    messages = (item for item in response["output"] if item["type"] == "message")
    return "".join(part[field] for item in messages for part in item["content"] if part["type"] == kind)


def thoughts(response: Row) -> list[str]:
    items = (item for item in response["output"] if item["type"] == "reasoning")
    emitted = ([*(item.get("summary") or ()), *(item.get("content") or ())] for item in items)
    joined = ("\n\n".join(part["text"] for part in parts if part["text"]) for parts in emitted)
    return [text for text in joined if text]


def calls(response: Row) -> list[tuple[str, str, str]]:
    kinds = {"function_call": "arguments", "custom_tool_call": "input"}
    return [
        (item["call_id"], item["name"], item[kinds[item["type"]]])
        for item in response["output"]
        if item["type"] in kinds
    ]


def finish_of(response: Row) -> str:
    if response["status"] == "incomplete":
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        return "length"
    return "tool_calls" if calls(response) else "stop"


def check(expected: Row, result: Result[LLMResponse, LLMError]) -> None:
    refusal = texts(expected, "refusal", "refusal")
    if expected["status"] not in {"completed", "incomplete"}:
        assert result.failure().tag == "MalformedResponse"
    elif refusal:
        error = result.failure()
        assert (error.tag, getattr(error, "message", "")) == ("ContentRefused", refusal)
    elif is_empty(expected):
        assert result.failure().tag == "MalformedResponse"
    else:
        assert_same(expected, result.unwrap())


def is_empty(expected: Row) -> bool:
    content = texts(expected, "output_text", "text") or thoughts(expected) or calls(expected)
    return not content and not (expected.get("usage") or {}).get("output_tokens")


def is_tagged(expected: Row) -> bool:
    return texts(expected, "output_text", "text").startswith("<think>")


def assert_same(expected: Row, response: LLMResponse) -> None:
    text = texts(expected, "output_text", "text")
    inside, _, after = text.removeprefix("<think>").partition("</think>") if is_tagged(expected) else ("", "", text)
    tagged = [inside.lstrip()] if inside else []
    assert response.content == (after.lstrip() if tagged else text)
    assert [part.text for part in response.parts if isinstance(part, Reasoning) and part.text] == [
        *thoughts(expected),
        *tagged,
    ]
    assert [(call.id, call.name, call.arguments) for call in response.tool_calls] == calls(expected)
    assert response.finish_reason.value == finish_of(expected)
    assert response.served_model == expected["model"]
    assert_order(expected, response)
    assert_seals(expected, response)
    assert_usage(expected.get("usage"), response)


def assert_order(expected: Row, response: LLMResponse) -> None:
    kinds = {"message": "Text", "reasoning": "Reasoning", "function_call": "ToolCall", "custom_tool_call": "ToolCall"}
    expected_kinds = [kinds[item["type"]] for item in expected["output"] if item["type"] in kinds]
    expected_kinds = ["Reasoning", *expected_kinds] if is_tagged(expected) else expected_kinds
    found = [type(part).__name__ for part in response.parts]
    left = iter(expected_kinds)
    assert all(kind in left for kind in found), f"{found} is no part of {expected_kinds}"


def assert_seals(expected: Row, response: LLMResponse) -> None:
    sealed = [item for item in expected["output"] if item["type"] == "reasoning" and item.get("encrypted_content")]
    opaque = [json.loads(part.opaque) for part in response.parts if isinstance(part, Reasoning) and part.opaque]
    assert [item for item in opaque if item.get("encrypted_content")] == sealed


def assert_usage(usage: Row | None, response: LLMResponse) -> None:
    found = response.usage
    if not usage:
        assert found.total_tokens is None
        return
    requested, answered = usage.get("input_tokens_details") or {}, usage.get("output_tokens_details") or {}
    assert (found.prompt_tokens, found.output_tokens) == (usage["input_tokens"], usage["output_tokens"])
    assert found.total_tokens == usage["total_tokens"]
    assert found.cache_read_tokens == min(requested.get("cached_tokens") or 0, usage["input_tokens"])
    assert found.reasoning_tokens == min(answered.get("reasoning_tokens") or 0, usage["output_tokens"])


@pytest.mark.parametrize("row", PLAIN, ids=row_id)
def test_a_whole_answer_equals_its_body(row: Row) -> None:
    emitted = row["response"]
    headers = {name.lower(): str(value) for name, value in (emitted.get("headers") or {}).items()}
    response = WireResponse(status=emitted["status"], headers=headers, body=emitted["body"].encode())
    check(json.loads(emitted["body"]), OPENAI_RESPONSES.decode(target_for(row), response))


@pytest.mark.parametrize("row", STREAMED, ids=row_id)
def test_a_folded_stream_equals_its_events(row: Row) -> None:
    result, emitted = folded(target_for(row), events_of(row))
    check(final_response(row), result)
    if is_successful(result) and not any("streamed pieces" in warning for warning in result.unwrap().warnings):
        assert_deltas(emitted, result.unwrap())


def assert_deltas(emitted: list[object], response: LLMResponse) -> None:
    assert "".join(event.text for event in emitted if isinstance(event, TextDelta)) == response.content
    thought = "".join(part.text for part in response.parts if isinstance(part, Reasoning))
    assert "".join(event.text for event in emitted if isinstance(event, ReasoningDelta)) == thought
    deltas = [event for event in emitted if isinstance(event, ToolCallDelta)]
    for index, call in enumerate(response.tool_calls):
        mine = [event for event in deltas if event.index == index]
        assert {(event.id, event.name) for event in mine} == {(call.id, call.name)}
        assert "".join(event.arguments for event in mine) == call.arguments


@pytest.mark.parametrize("row", STREAMED, ids=row_id)
def test_a_folded_stream_equals_its_last_event_alone(row: Row) -> None:
    expected = final_response(row)
    whole = OPENAI_RESPONSES.decode(target_for(row), WireResponse(status=200, body=json.dumps(expected).encode()))
    stream, _ = folded(target_for(row), events_of(row))
    assert is_successful(whole) is is_successful(stream)
    if is_successful(whole):
        one, other = whole.unwrap(), stream.unwrap()
        assert (one.parts, one.usage, one.finish_reason) == (other.parts, other.usage, other.finish_reason)


@pytest.mark.parametrize("row", STREAMED, ids=row_id)
def test_a_stream_cut_anywhere_is_never_a_silent_success(row: Row) -> None:
    events = events_of(row)
    ends = ("response.completed", "response.incomplete", "response.failed")
    last = next(at for at, event in enumerate(events) if json.loads(event.data)["type"] in ends)
    draft = Draft(target=target_for(row))
    emitted_text = ""
    for event in events[:last]:
        emitted = OPENAI_RESPONSES.decode_event(draft, event).unwrap()
        emitted_text += "".join(each.text for each in emitted if isinstance(each, TextDelta))
        error = OPENAI_RESPONSES.finish(draft).failure()
        assert error.tag in {"MalformedResponse", "ContentRefused"}
        assert error.partial == emitted_text or any("streamed pieces" in warning for warning in draft.warnings)
