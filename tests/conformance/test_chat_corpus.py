"""Recorded traffic: every chat answer decodes to the content of its body, or to its error.

The expected content is read straight from the JSON, by other code than the provider's.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.config.models import Capabilities, ModelConfig
from llm_effects.providers.draft import Draft, flush_held
from llm_effects.providers.openai_chat import OPENAI_CHAT
from llm_effects.providers.sse import ServerEvent
from llm_effects.providers.target import Preset, Target
from llm_effects.providers.wire import WireResponse
from llm_effects.values.errors import LLMError
from llm_effects.values.events import ReasoningDelta, TextDelta, ToolCallDelta
from llm_effects.values.messages import Message, Reasoning, Text, ToolResult
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import LLMResponse

SEALED = ("reasoning_content", "reasoning_details")
CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"
Row = dict[str, Any]


def rows(*names: str) -> list[Row]:
    found: list[Row] = []
    for name in names:
        path = CORPUS / f"{name}.jsonl"
        if path.exists():
            found += [{**json.loads(line), "file": name} for line in path.read_text("utf-8").splitlines() if line]
    return found


ANSWERS = [
    row for row in rows("openai_chat", "openai_chat_stream", "local_openai_compatible") if row["endpoint"] == "chat"
]
PLAIN = [row for row in ANSWERS if not row["stream"]]
STREAMED = [row for row in ANSWERS if row["stream"]]
ERRORS = rows("errors", "errors_quoted")

pytestmark = pytest.mark.skipif(not CORPUS.exists(), reason=f"no recorded traffic at {CORPUS}")


def row_id(row: Row) -> str:
    return f"{row['provider']}-{row['id'][:12]}"


def target_for(row: Row) -> Target:
    asked = row["request"].get("body")
    body = json.loads(asked) if isinstance(asked, str) and asked.startswith("{") else asked or {}
    model = body.get("model") if isinstance(body, dict) else None
    config = ModelConfig(provider="openai-chat", model=model or None, api_key="test-key-123")
    preset = Preset(name=row["provider"], wire="openai-chat")
    return Target(name="m", config=config, preset=preset, endpoint="http://x/v1", capabilities=Capabilities())


def response_for(row: Row) -> WireResponse:
    emitted = row["response"]
    headers = {name.lower(): str(value) for name, value in (emitted.get("headers") or {}).items()}
    return WireResponse(status=emitted["status"], headers=headers, body=(emitted["body"] or "").encode())


def events_of(body: str) -> Iterator[ServerEvent]:
    name, data = "message", list[str]()
    for line in [*body.replace("\r\n", "\n").replace("\r", "\n").split("\n"), ""]:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if line == "" and data:
            yield ServerEvent(name, "\n".join(data))
        if line == "":
            name, data = "message", []
        elif field == "event":
            name = value
        elif field == "data":
            data.append(value)


def folded(row: Row) -> tuple[Result[LLMResponse, LLMError], list[object]]:
    draft, emitted = Draft(target=target_for(row)), list[object]()
    for event in events_of(row["response"]["body"]):
        step = OPENAI_CHAT.decode_event(draft, event)
        if not is_successful(step):
            return Failure(step.failure()), emitted
        emitted.extend(step.unwrap())
    return OPENAI_CHAT.finish(draft), emitted


# The content of the JSON


class Expected:
    """The text, thinking, calls, finish reason, usage, refusal and error of one row, read without the provider."""

    def __init__(self, row: Row) -> None:
        self.text, self.thought, self.refusal = "", "", ""
        self.calls: list[dict[str, str]] = []
        self.finish: str | None = None
        self.usage: dict[str, Any] | None = None
        self.error: Any = None
        self.has_choices = False
        body = row["response"]["body"]
        if not row["stream"]:
            self.take(json.loads(body), whole=True)
            return
        for event in events_of(body):
            if event.data == "[DONE]":
                break
            self.take(json.loads(event.data), whole=False)

    def take(self, emitted: dict[str, Any], *, whole: bool) -> None:
        self.error = self.error or emitted.get("error")
        self.usage = emitted.get("usage") or (emitted.get("x_groq") or {}).get("usage") or self.usage
        for choice in emitted.get("choices") or []:
            if choice.get("index"):
                continue
            self.has_choices = True
            delta = choice.get("message" if whole else "delta") or {}
            self.say(delta)
            for call in delta.get("tool_calls") or []:
                self.call(call, whole=whole)
            legacy = delta.get("function_call")
            if legacy and legacy.get("name"):
                self.calls.append({"id": "", "name": legacy["name"], "arguments": legacy["arguments"]})
            self.finish = self.finish or choice.get("finish_reason")

    def say(self, delta: dict[str, Any]) -> None:
        content = delta.get("content")
        if isinstance(content, str):
            self.text += content
        elif isinstance(content, list):
            for part in content:
                if part["type"] == "thinking":
                    self.thought += "".join(each["text"] for each in part["thinking"])
                self.text += part.get("text", "")
        elif isinstance(content, dict):
            self.text += json.dumps(content, separators=(",", ":"))
        elif delta.get("audio"):
            self.text += delta["audio"].get("transcript", "")
        thinking = delta.get("reasoning") or delta.get("reasoning_content")
        details = delta.get("reasoning_details") or []
        self.thought += thinking or "".join(part.get("text") or part.get("summary") or "" for part in details)
        self.refusal += delta.get("refusal") or ""

    def call(self, call: dict[str, Any], *, whole: bool) -> None:
        function = call.get("function") or call.get("custom") or {}
        arguments = function.get("arguments", function.get("input")) or ""
        assert_same = [each for each in self.calls if each["key"] == str(call.get("index"))]
        if whole or not assert_same or (call.get("id") and call["id"] != assert_same[-1]["id"]):
            fresh = {"id": call.get("id") or "", "name": function.get("name") or "", "arguments": arguments}
            self.calls.append({**fresh, "key": str(call.get("index"))})
        else:
            assert_same[-1]["arguments"] += arguments


FINISHES = {"stop": "stop", "eos": "stop", "end_turn": "stop", "length": "length", "tool_calls": "tool_calls"}


def check(row: Row, result: Result[LLMResponse, LLMError]) -> None:
    expected = Expected(row)
    if expected.error is not None or not expected.has_choices:
        error = result.failure()
        assert error.tag == {"f9dd86c66c7c": "MalformedResponse", "70a11955ad95": "ContentRefused"}.get(
            row["id"], "InvalidRequest"
        )
    elif expected.refusal:
        error = result.failure()
        assert error.tag == "ContentRefused"
        assert expected.refusal == getattr(error, "message", None)
    else:
        assert_same(expected, result.unwrap())


def assert_same(expected: Expected, response: LLMResponse) -> None:
    thinking = "".join(part.text for part in response.parts if isinstance(part, Reasoning))
    if expected.text.lstrip().startswith("<think>"):
        inside, _, after = expected.text.lstrip().removeprefix("<think>").partition("</think>")
        assert (response.content, thinking.strip()) == (after.lstrip(), inside.strip())
    else:
        assert response.content == expected.text
        assert thinking == expected.thought
    assert "".join(part.text for part in response.parts if isinstance(part, Text)) == response.content
    assert_calls(expected, response)
    expected_value = FINISHES.get(expected.finish or "stop", expected.finish)
    assert response.finish_reason.value == (
        "tool_calls" if response.tool_calls and expected_value != "length" else expected_value
    )
    assert_usage(expected, response)


def assert_calls(expected: Expected, response: LLMResponse) -> None:
    emitted = [(call.name, call.arguments) for call in response.tool_calls]
    assert emitted == [(call["name"], call["arguments"]) for call in expected.calls]
    for call, expected_value in zip(response.tool_calls, expected.calls, strict=True):
        assert call.id == expected_value["id"] or (not expected_value["id"] and call.id.startswith("call_"))


def assert_usage(expected: Expected, response: LLMResponse) -> None:
    if expected.usage is None:
        assert response.usage.total_tokens is None
        return
    prompt, answer = expected.usage["prompt_tokens"], expected.usage["completion_tokens"]
    asked = expected.usage.get("prompt_tokens_details") or {}
    thinking = (expected.usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    if thinking and expected.usage["total_tokens"] == prompt + answer + thinking:
        answer += thinking
    assert (response.usage.prompt_tokens, response.usage.output_tokens) == (prompt, answer)
    assert response.usage.reasoning_tokens == min(thinking or expected.usage.get("reasoning_tokens") or 0, answer)
    assert response.usage.cache_read_tokens >= min(asked.get("cached_tokens") or 0, prompt)


@pytest.mark.parametrize("row", PLAIN, ids=row_id)
def test_a_whole_answer_equals_its_body(row: Row) -> None:
    check(row, OPENAI_CHAT.decode(target_for(row), response_for(row)))


@pytest.mark.parametrize("row", STREAMED, ids=row_id)
def test_a_folded_stream_equals_its_events(row: Row) -> None:
    result, emitted = folded(row)
    check(row, result)
    if is_successful(result):
        response = result.unwrap()
        assert "".join(event.text for event in emitted if isinstance(event, TextDelta)) == response.content
        thinking = "".join(part.text for part in response.parts if isinstance(part, Reasoning))
        assert "".join(event.text for event in emitted if isinstance(event, ReasoningDelta)) == thinking
        deltas = [event for event in emitted if isinstance(event, ToolCallDelta)]
        for index, call in enumerate(response.tool_calls):
            mine = [event for event in deltas if event.index == index]
            assert {event.id for event in mine} == {call.id}
            assert "".join(event.arguments for event in mine) == call.arguments


@pytest.mark.parametrize("row", STREAMED, ids=row_id)
def test_a_stream_cut_anywhere_is_never_a_silent_success(row: Row) -> None:
    events = list(events_of(row["response"]["body"]))
    ends = next(
        (n for n, event in enumerate(events) if '"finish_reason":"' in event.data.replace(": ", ":")), len(events)
    )
    draft = Draft(target=target_for(row))
    for event in events[:ends]:
        if not is_successful(OPENAI_CHAT.decode_event(draft, event)) or event.data == "[DONE]":
            return
    assert OPENAI_CHAT.finish(draft).failure().tag in {"MalformedResponse", "ContentRefused"}


@pytest.mark.parametrize("row", STREAMED, ids=row_id)
def test_emitted_text_equals_the_content_wherever_the_stream_ends(row: Row) -> None:
    events = list(events_of(row["response"]["body"]))
    for ends in {len(events), *range(0, len(events), 1 + len(events) // 12)}:
        draft, emitted = Draft(target=target_for(row)), list[object]()
        for event in events[:ends]:
            step = OPENAI_CHAT.decode_event(draft, event)
            if not is_successful(step):
                break
            emitted.extend(step.unwrap())
        emitted.extend(flush_held(draft))
        result = OPENAI_CHAT.finish(draft)
        content = result.unwrap().content if is_successful(result) else result.failure().partial
        assert "".join(event.text for event in emitted if isinstance(event, TextDelta)) == content


# Thinking that goes back


def sealed_in(row: Row) -> Row:
    """Return what the message of a row must hold when it is sent back, its fragments joined by kind."""
    bodies = [json.loads(event.data) for event in events_of(row["response"]["body"]) if event.data != "[DONE]"]
    found: dict[str, str] = {}
    for body in bodies if row["stream"] else [json.loads(row["response"]["body"])]:
        for choice in body.get("choices") or ():
            message = choice.get("delta" if row["stream"] else "message") or {}
            add_sealed(found, message)
    return {name: text for name, text in found.items() if text}


def add_sealed(found: dict[str, str], message: Row) -> None:
    found["reasoning_content"] = found.get("reasoning_content", "") + (message.get("reasoning_content") or "")
    for detail in message.get("reasoning_details") or ():
        for name in ("text", "summary", "data", "signature"):
            if detail.get(name):
                found[name] = found.get(name, "") + detail[name]


def sent_back(to: Target, response: LLMResponse) -> Row:
    results = tuple(Message("tool", ToolResult(call.id, "done")) for call in response.tool_calls)
    parts = response.parts if response.content or response.tool_calls else (*response.parts, Text("..."))
    turns = (Message("user", "hi"), Message("assistant", parts), *results, Message("user", "and?"))
    encoded = OPENAI_CHAT.encode(to, LLMRequest(messages=turns), False).unwrap()
    message: Row = json.loads(encoded.body)["messages"][1]
    return message


THINKING = [row for row in ANSWERS if any(name in (row["response"]["body"] or "") for name in SEALED)]


@pytest.mark.parametrize("row", THINKING, ids=row_id)
def test_fault_180_recorded_thinking_goes_back_to_its_origin_only(row: Row) -> None:
    target = target_for(row)
    result = folded(row)[0] if row["stream"] else OPENAI_CHAT.decode(target, response_for(row))
    if target.wire_model is None and is_successful(result):  # the request was not recorded
        target = evolve(target, config=evolve(target.config, model=result.unwrap().served_model))
    expected = sealed_in(row)
    if not is_successful(result) or not expected:
        return
    sent: dict[str, str] = {}
    add_sealed(sent, sent_back(target, result.unwrap()))
    assert {name: text for name, text in sent.items() if text} == expected
    other = sent_back(evolve(target, config=evolve(target.config, model="another")), result.unwrap())
    assert not any(name in other for name in SEALED)


# The errors of rows by id; the others follow from their status.
KINDS = {
    "25d1f0494d48": "ModelUnavailable",
    "4cbd8b36ea6f": "ModelUnavailable",
    "75c1d5f0fe7f": "ModelUnavailable",
    "7c8443004a91": "ModelUnavailable",
    "7a68e817d9e7": "ModelUnavailable",
    "60588f15db55": "ModelUnavailable",
    "bea90907db59": "ModelUnavailable",
    "ecf190c11119": "ModelUnavailable",
    "794b3aea619f": "ContextTooLarge",
    "ce8d25593f9a": "InvalidRequest",
    "cf1b1655a556": "RateLimitExceeded",
    "q304e5262e8f": "ContextTooLarge",
    "qcb5c266d6af": "ContextTooLarge",
    "q9592650b72c": "ContextTooLarge",
    "q27241f24274": "ContextTooLarge",
    "q9b2d9849662": "ConfigurationError",
}
BY_STATUS = {
    400: "InvalidRequest",
    401: "AuthenticationFailed",
    402: "RateLimitExceeded",
    404: "ConfigurationError",
    413: "InvalidRequest",
    422: "InvalidRequest",
    429: "RateLimitExceeded",
    500: "ModelUnavailable",
    502: "ModelUnavailable",
    529: "ModelUnavailable",
}


@pytest.mark.parametrize("row", [row for row in ERRORS if row["response"]["status"] != 200], ids=row_id)
def test_an_error_answer_is_classified(row: Row) -> None:
    error = OPENAI_CHAT.classify(target_for(row), response_for(row))
    assert error.tag == KINDS.get(row["id"], BY_STATUS[row["response"]["status"]])
    assert error.status == row["response"]["status"]


@pytest.mark.parametrize("row", [row for row in ERRORS if row["response"]["status"] == 200], ids=row_id)
def test_an_error_inside_a_2xx_answer_is_classified(row: Row) -> None:
    streamed = "event-stream" in row["response"]["headers"]["content-type"]
    result = folded(row)[0] if streamed else OPENAI_CHAT.decode(target_for(row), response_for(row))
    assert result.failure().tag == KINDS.get(row["id"], "ModelUnavailable")
