"""Answers decoded in one pass: the same result and the same events as from the tolerant readers, whatever is sent."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from returns.pipeline import is_successful
from returns.result import Success

from llm_effects.providers.sse import ServerEvent
from llm_effects.providers.wire import WireResponse
from llm_effects.values import caps
from llm_effects.values.errors import describe
from llm_effects.values.responses import FinishReason
from tests.fixtures.answers import (
    CHAT_EVENTS,
    KEY,
    MESSAGES_EVENTS,
    RESPONSES_EVENTS,
    SAMPLES,
    TEXT,
    Sample,
    chat_chunk,
    fold,
    in_both_ways,
    plain_answer,
)

each_protocol = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
ODD: tuple[Any, ...] = (
    None, "", " ", "x", "call_a", "toolu_a", "<think>a</think>b", " <", "\ud83d", KEY, "error", "stop", "length",
    "tool_calls", "max_tokens", "incomplete", "reasoning", "refusal", 0, 1, -1, 1.5, 2**70, True, [], {}, ["x"],
    {"a": 1}, {"b": [[KEY]]}, [{"type": "text", "text": "x"}], [{"type": "url_citation", "url": "http://x"}],
    {"code": 500, "message": "no"}, {"reason": "content_filter"},
)  # fmt: skip
EXTRA = (  # fields that mean something, wherever they are
    "message", "delta", "refusal", "annotations", "tool_calls", "reasoning", "reasoning_content", "error", "type",
    "object", "citations", "x_groq", "status", "incomplete_details", "content", "encrypted_content", "summary",
    "extra_content",
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def part_at(value: Any, path: tuple[Any, ...]) -> Any:
    return part_at(value[path[0]], path[1:]) if path else value


def replaced(value: Any, path: tuple[Any, ...], item: Any) -> Any:
    if not path:
        return item
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], item)
    return copy


def odd_versions(body: Any) -> Iterator[Any]:
    """Yield a body with each of its values replaced by each odd one, and each of its objects with odd fields more."""
    for path in places(body):
        yield from (replaced(body, path, item) for item in ODD)
        if isinstance(part_at(body, path), dict):
            yield from (replaced(body, path, {**part_at(body, path), key: item}) for key in EXTRA for item in ODD)


def whole(body: bytes, **headers: str) -> WireResponse:
    return WireResponse(status=200, headers=headers, body=body)


# Whole answers


@each_protocol
def test_an_answer_of_text_alone_is_read_in_one_pass(sample: Sample) -> None:
    answer = plain_answer(sample, sample.response)
    assert answer is not None
    assert (answer.content, answer.usage.output_tokens is None, answer.served_model is None) == (TEXT, False, False)
    one, other = in_both_ways(sample.provider.decode, sample.target, sample.response)
    assert one == other == Success(answer)


@each_protocol
def test_an_answer_with_tool_calls_is_read_in_one_pass(sample: Sample) -> None:
    response = whole(sample.calling)
    answer = plain_answer(sample, response)
    assert answer is not None
    assert (answer.content, answer.finish_reason) == (TEXT, FinishReason.TOOL_CALLS)
    assert [(call.name, call.arguments) for call in answer.tool_calls] == [
        ("weather", '{"city":"Oslo"}'),
        ("weather", "{}"),
    ]
    one, other = in_both_ways(sample.provider.decode, sample.target, response)
    assert one == other == Success(answer)


@each_protocol
def test_too_many_calls_are_an_error(sample: Sample) -> None:
    few = evolve(sample.target, config=evolve(sample.target.config, max_tool_calls=1))
    one, other = in_both_ways(sample.provider.decode, few, whole(sample.calling))
    assert one == other
    assert "more than 1 tool calls" in describe(one.failure())


@each_protocol
def test_the_id_of_the_exchange_is_the_same(sample: Sample) -> None:
    response = whole(sample.whole, **{"request-id": f"req-{KEY}"})
    one, other = in_both_ways(sample.provider.decode, sample.target, response)
    assert one.unwrap().request_id == other.unwrap().request_id == "req-***"


@each_protocol
def test_a_key_in_an_answer_is_covered(sample: Sample) -> None:
    response = whole(sample.whole.replace(b"Light", KEY.encode()))
    answer = plain_answer(sample, response)
    assert answer is not None
    assert answer.content.startswith("*" * len(KEY))


@each_protocol
@pytest.mark.parametrize("calling", [False, True], ids=["text", "calls"])
def test_odd_answers_are_read_the_same(sample: Sample, calling: bool) -> None:
    plain = 0
    for body in odd_versions(json.loads(sample.calling if calling else sample.whole)):
        response = whole(json.dumps(body).encode())
        one, other = in_both_ways(sample.provider.decode, sample.target, response)
        assert one == other, body
        plain += plain_answer(sample, response) is not None
    assert plain > 100


def test_thinking_that_leaves_nothing_is_no_part_of_the_output() -> None:
    [sample] = (each for each in SAMPLES if each.name == "openai-responses")
    body = json.loads(sample.whole)
    thought = {"id": "rs_1", "type": "reasoning", "summary": []}
    for more, plain in (({}, True), ({"encrypted_content": "x"}, False), ({"summary": [{"text": "hm"}]}, False)):
        response = whole(json.dumps({**body, "output": [{**thought, **more}, *body["output"]]}).encode())
        one, other = in_both_ways(sample.provider.decode, sample.target, response)
        assert one == other
        assert (plain_answer(sample, response) is not None) is plain
        assert len(one.unwrap().parts) == (1 if plain else 2)


UNREAD = {
    "not utf-8": b'"\xff"',
    "half a pair": b'"\\ud83d"',
    "deep": b"[" * 150 + b"]" * 150,
    "too deep for Python": b'{"a":' * 2000 + b"1" + b"}" * 2000,
    "not json": b"nul",
    "long": b'"' + b"x" * caps.STEP_BYTES + b'"',
}


@each_protocol
@pytest.mark.parametrize("problem", UNREAD)
def test_what_the_caps_forbid_is_left_to_the_tolerant_reader(sample: Sample, problem: str) -> None:
    response = whole(sample.whole.replace(b"{", b'{"unread":' + UNREAD[problem] + b",", 1))
    assert plain_answer(sample, response) is None
    one, other = in_both_ways(sample.provider.decode, sample.target, response)
    assert one == other
    assert is_successful(one) is (problem in {"half a pair", "long"})


# Anything at all

JSON_TEXTS = st.sampled_from([json.dumps(each, separators=(",", ":")) for each in ODD])
PIECES = st.one_of(JSON_TEXTS, st.text(max_size=3), st.sampled_from(["{", "}", '"', "\\", ",", ":", "\\u00", "data"]))
FIELDS = st.builds(lambda name, value: f'"{name}":{value},', st.sampled_from(EXTRA), JSON_TEXTS)


@st.composite
def mutated(draw: st.DrawFn, text: str) -> str:
    """Draw a version of a JSON text with fields more, or fields twice, and up to two places overwritten."""
    for _ in range(draw(st.integers(0, 2))):
        opens = [at for at, each in enumerate(text) if each == "{"]
        at = draw(st.sampled_from(opens)) + 1 if opens else 0
        text = text[:at] + draw(FIELDS) + text[at:]
    for _ in range(draw(st.integers(0, 2))):
        start, length = draw(st.integers(0, len(text))), draw(st.integers(0, 4))
        text = text[:start] + draw(PIECES) + text[start + length :]
    return text


@each_protocol
@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_answer_is_read_the_same(sample: Sample, data: st.DataObject) -> None:
    body = json.loads(data.draw(st.sampled_from([sample.whole, sample.calling])))
    text = data.draw(mutated(json.dumps(body, separators=(",", ":"))))
    response = whole(text.encode("utf-8", "surrogatepass"))
    one, other = in_both_ways(sample.provider.decode, sample.target, response)
    assert one == other


CALLS = (
    chat_chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]}),
    chat_chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"x":1}'}}]}),
    chat_chunk({"content": None, "reasoning_content": "hm"}),
)
EVENTS: dict[str, tuple[dict[str, Any], ...]] = {
    "openai-chat": (*CHAT_EVENTS, *CALLS),
    "openai-responses": (
        *RESPONSES_EVENTS,
        {"type": "response.function_call_arguments.delta", "output_index": 1, "item_id": "fc", "delta": "{}"},
        {"type": "response.reasoning_summary_text.delta", "output_index": 2, "summary_index": 0, "delta": "hm"},
        {"type": "response.reasoning_text.delta", "item_id": "rs", "content_index": 1, "delta": "hm"},
        {"type": "response.refusal.delta", "output_index": 0, "delta": "no"},
    ),
    "anthropic": (
        *MESSAGES_EVENTS,
        {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "t", "name": "f"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "{}"}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "signature_delta", "signature": "s"}},
    ),
}


@each_protocol
def test_a_stream_of_text_is_read_the_same(sample: Sample) -> None:
    (emitted, result), other = in_both_ways(fold, sample, sample.events)
    assert (emitted, result) == other
    assert result.unwrap().content == TEXT
    assert len(emitted) == len(TEXT.split())


CHAT = SAMPLES[0]
NAMELESS = {key: value for key, value in chat_chunk({"content": "a"}).items() if key not in {"id", "model"}}
FIRST, END = chat_chunk({"content": "a"}), chat_chunk({}, "stop")
ONE_CALL = [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    "chunks",
    [
        (NAMELESS, NAMELESS, chat_chunk({"content": "b"}), {**NAMELESS, **END, "id": None, "model": None}),
        (chat_chunk({"role": "assistant"}), chat_chunk({"content": "<thi"}), *CALLS, END),
        (FIRST, chat_chunk({"content": "b", "reasoning_content": "hm"}), *CALLS, END),
        (FIRST, chat_chunk({"content": "b", "reasoning_content": ""}), *CALLS, END),
        (
            chat_chunk({"content": "a"}),
            chat_chunk({"content": "b", "tool_calls": []}),
            chat_chunk({"tool_calls": [{}]}),
            END,
        ),
    ],
    ids=["named late", "text held back", "text and thinking", "text and empty thinking", "no calls"],
)
def test_chunks_of_several_kinds_are_read_the_same(chunks: tuple[dict[str, Any], ...]) -> None:
    events = [ServerEvent("message", json.dumps(chunk)) for chunk in chunks]
    one, other = in_both_ways(fold, CHAT, events)
    assert one == other
    assert is_successful(one[1])


@each_protocol
def test_odd_events_are_read_the_same(sample: Sample) -> None:
    events, ended = list(sample.events), 0
    at = next(at for at, event in enumerate(events) if "scattered" in event.data)
    before, after = events[:at], events[at + 1 :]
    for body in odd_versions(json.loads(events[at].data)):
        changed = [*before, ServerEvent(events[at].name, json.dumps(body)), *after]
        one, other = in_both_ways(fold, sample, changed)
        assert one == other, body
        ended += is_successful(one[1])
    assert ended > 100


@each_protocol
@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_stream_is_read_the_same(sample: Sample, data: st.DataObject) -> None:
    names = st.sampled_from([None, None, None, "message", "ping", "error", "content_block_delta"])
    events: list[ServerEvent] = []
    more = data.draw(st.lists(st.sampled_from(EVENTS[sample.name]), max_size=6))
    for body in (*EVENTS[sample.name][:6], *more):
        text = json.dumps(body, separators=(",", ":"))
        text = data.draw(mutated(text)) if data.draw(st.integers(0, 3)) == 0 else text
        events.append(ServerEvent(data.draw(names) or str(body.get("type", "message")), text))
    one, other = in_both_ways(fold, sample, events)
    assert one == other


@each_protocol
def test_events_that_the_caps_forbid_end_the_stream(sample: Sample) -> None:
    at = next(at for at, event in enumerate(sample.events) if "scattered" in event.data)
    for unread in ("[" * 300 + "]" * 300, '{"a":' * 2000 + "1" + "}" * 2000):
        events = list(sample.events)
        data = events[at].data.replace("{", f'{{"unread":{unread},', 1)
        events[at] = ServerEvent(events[at].name, data)
        one, other = in_both_ways(fold, sample, events)
        assert one == other
        assert one[1].failure().tag == "MalformedResponse"
