"""Recorded traffic of the Messages API: every answer decodes to the content of its body, or to its error."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.config.models import ModelConfig
from llm_effects.providers.anthropic import ANTHROPIC
from llm_effects.providers.draft import Draft, flush_held
from llm_effects.providers.registry import target_of
from llm_effects.providers.sse import ServerEvent
from llm_effects.providers.target import Target
from llm_effects.providers.wire import WireResponse
from llm_effects.values.errors import LLMError
from llm_effects.values.events import ReasoningDelta, StreamEvent, TextDelta, ToolCallDelta
from llm_effects.values.messages import Reasoning, text_of
from llm_effects.values.responses import LLMResponse

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"

FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "compaction": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
}

TAGS = {400: "InvalidRequest", 401: "AuthenticationFailed", 404: "ModelUnavailable", 413: "InvalidRequest"}
TAGS |= {429: "RateLimitExceeded", 500: "ModelUnavailable", 529: "ModelUnavailable"}
BY_MESSAGE = {"prompt is too long": "ContextTooLarge", "exceeds model context window": "ContextTooLarge"}

Row = dict[str, Any]


def rows(name: str) -> list[Any]:
    path = CORPUS / name
    if not path.is_file():
        return [pytest.param({}, marks=pytest.mark.skip(reason=f"no recorded exchanges at {path}"))]
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    claudes = [row for row in found if row["provider"] == "anthropic"]
    return [pytest.param(row, id=row["id"]) for row in claudes]


def target(row: Row) -> Target:
    body = row["request"].get("body")
    asked = body.get("model") if isinstance(body, dict) else None
    return target_of("claude", ModelConfig(provider="anthropic", model=asked or "claude-x", api_key="sk-x")).unwrap()


def wire(row: Row) -> WireResponse:
    emitted = row["response"]
    return WireResponse(status=emitted["status"], headers=emitted["headers"], body=emitted["body"].encode())


def events(text: str) -> Iterator[ServerEvent]:
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields = [line.partition(":") for line in block.split("\n") if line and not line.startswith(":")]
        data = "\n".join(value.removeprefix(" ") for name, _, value in fields if name == "data")
        named = [value.strip() for name, _, value in fields if name == "event"]
        if data:
            yield ServerEvent(named[-1] if named else "message", data)


def replayed(row: Row) -> tuple[list[StreamEvent], Result[LLMResponse, LLMError]]:
    draft, emitted = Draft(target=target(row)), list[StreamEvent]()
    for event in events(row["response"]["body"]):
        step = ANTHROPIC.decode_event(draft, event)
        if not is_successful(step):
            return emitted, Failure(step.failure())
        emitted.extend(step.unwrap())
    return emitted, ANTHROPIC.finish(draft)


def folded(text: str) -> Row:
    """Return the message that a stream describes, folded without the library."""
    blocks: dict[int, Row] = {}
    message: Row = {"usage": {}}
    for event in events(text):
        emitted: Row = json.loads(event.data) if event.data != "[DONE]" else {"type": "ping"}
        match emitted["type"]:
            case "message_start":
                message["usage"] |= emitted["message"]["usage"]
            case "content_block_start":
                blocks[emitted["index"]] = {"json": "", **emitted["content_block"]}
            case "content_block_delta":
                grow(blocks[emitted["index"]], emitted["delta"])
            case "message_delta":
                message |= emitted["delta"]
                message["usage"] |= {name: n for name, n in emitted["usage"].items() if n is not None}
            case "message_stop":
                break
            case _:
                pass
    return {**message, "content": list(blocks.values())}


def grow(block: Row, delta: Row) -> None:
    field = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}.get(delta["type"])
    if field:
        block[field] = block.get(field, "") + delta[field]
    elif delta["type"] == "input_json_delta":
        block["json"] += delta["partial_json"]


def check(response: LLMResponse, message: Row) -> None:
    blocks = message["content"]
    assert response.content == text_of(response.parts) == join(blocks, "text")
    reasoning = [part for part in response.parts if isinstance(part, Reasoning)]
    assert "".join(part.text for part in reasoning) == join(blocks, "thinking")
    assert [json.loads(part.opaque) for part in reasoning if part.opaque] == replayable(blocks)
    calls = [block for block in blocks if block["type"] == "tool_use"]
    assert [(call.id, call.name) for call in response.tool_calls] == [(call["id"], call["name"]) for call in calls]
    assert [json_or_text(call.arguments) for call in response.tool_calls] == [arguments(call) for call in calls]
    assert response.finish_reason.value == FINISH[message["stop_reason"]]
    check_usage(response, message["usage"])


def check_usage(response: LLMResponse, usage: Row) -> None:
    emitted = response.usage
    assert emitted.input_tokens == usage.get("input_tokens")
    assert emitted.output_tokens == usage.get("output_tokens")
    assert emitted.cache_read_tokens == (usage.get("cache_read_input_tokens") or 0)
    assert emitted.cache_write_tokens == (usage.get("cache_creation_input_tokens") or 0)
    assert emitted.reasoning_tokens == ((usage.get("output_tokens_details") or {}).get("thinking_tokens") or 0)


def join(blocks: list[Row], kind: str) -> str:
    return "".join(block[kind] for block in blocks if block["type"] == kind)


def replayable(blocks: list[Row]) -> list[Row]:
    kinds = {"thinking", "redacted_thinking"}
    reasoning = [{name: block[name] for name in block if name != "json"} for block in blocks if block["type"] in kinds]
    return [block for block in reasoning if block["type"] == "redacted_thinking" or block.get("signature")]


def arguments(call: Row) -> object:
    return json_or_text(call["json"]) if call.get("json") else call["input"]


def json_or_text(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


@pytest.mark.parametrize("row", rows("anthropic_messages.jsonl"))
def test_a_recorded_answer_equals_its_body(row: Row) -> None:
    message = json.loads(row["response"]["body"])
    answer = ANTHROPIC.decode(target(row), wire(row))
    if message["stop_reason"] == "refusal":
        assert answer.failure().tag == "ContentRefused"
        return
    check(answer.unwrap(), message)
    assert answer.unwrap().served_model == message["model"]


@pytest.mark.parametrize("row", rows("anthropic_messages_stream.jsonl"))
def test_a_recorded_stream_equals_its_events(row: Row) -> None:
    emitted, answer = replayed(row)
    spliced = "msg_first" in row["response"]["body"]
    message = {} if spliced else folded(row["response"]["body"])
    if spliced or message["stop_reason"] == "refusal":
        assert answer.failure().tag == ("MalformedResponse" if spliced else "ContentRefused")
        return
    response = answer.unwrap()
    check(response, message)
    assert "".join(event.text for event in emitted if isinstance(event, TextDelta)) == response.content
    pieces = [event for event in emitted if isinstance(event, ToolCallDelta)]
    for call in response.tool_calls:
        given = "".join(piece.arguments for piece in pieces if piece.id == call.id)
        assert given == call.arguments
    assert "".join(event.text for event in emitted if isinstance(event, ReasoningDelta)) == join(
        message["content"], "thinking"
    )


@pytest.mark.parametrize("row", rows("anthropic_messages_stream.jsonl"))
def test_emitted_text_equals_the_content_wherever_the_stream_ends(row: Row) -> None:
    server_events = list(events(row["response"]["body"]))
    for ends in {len(server_events), *range(0, len(server_events), 1 + len(server_events) // 12)}:
        draft, emitted = Draft(target=target(row)), list[StreamEvent]()
        for event in server_events[:ends]:
            step = ANTHROPIC.decode_event(draft, event)
            if not is_successful(step):
                break
            emitted.extend(step.unwrap())
        emitted.extend(flush_held(draft))
        answer = ANTHROPIC.finish(draft)
        content = answer.unwrap().content if is_successful(answer) else answer.failure().partial
        assert "".join(event.text for event in emitted if isinstance(event, TextDelta)) == content


@pytest.mark.parametrize("row", rows("errors.jsonl") + rows("errors_quoted.jsonl"))
def test_a_recorded_error_is_classified(row: Row) -> None:
    status, body = row["response"]["status"], row["response"]["body"]
    if status == 200:
        error = replayed(row)[1].failure()
        assert error.tag == "ModelUnavailable"
        return
    error = ANTHROPIC.classify(target(row), wire(row))
    special = [tag for phrase, tag in BY_MESSAGE.items() if phrase in body]
    assert error.tag == (special[0] if special else TAGS[status])
    assert error.status == status
    assert error.provider == "anthropic"
