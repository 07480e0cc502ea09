"""Decoding answers and streams of Anthropic's Messages API."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from returns.pipeline import is_successful

from llm_effects.config.models import ModelConfig
from llm_effects.providers.anthropic import ANTHROPIC
from llm_effects.providers.draft import Draft
from llm_effects.providers.registry import target_of
from llm_effects.providers.sse import ServerEvent
from llm_effects.providers.target import Target
from llm_effects.providers.wire import WireResponse
from llm_effects.values.events import ReasoningDelta, TextDelta, ToolCallDelta
from llm_effects.values.messages import Message, Origin, Reasoning, Text, ToolCall
from llm_effects.values.requests import LLMRequest, Tool
from llm_effects.values.responses import FinishReason, LLMResponse, Usage

Json = dict[str, Any]

OLD = "2023-06-01"
WEATHER = Tool("weather", "reports the weather", {"type": "object", "properties": {"city": {"type": "string"}}})
SIGNED = '{"type":"thinking","thinking":"hm","signature":"sig"}'


def claude(model: str = "claude-opus-5-5", **config: Any) -> Target:
    given_config = {"provider": "anthropic", "model": model, "api_key": "sk-canary", **config}
    return target_of("claude", ModelConfig(**given_config)).unwrap()


def answer(*blocks: Json, reason: str | None = "end_turn", **more: Any) -> Json:
    usage = {"input_tokens": 3, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 7, "output_tokens": 11}
    return {"type": "message", "model": "m", "content": list(blocks), "stop_reason": reason, "usage": usage} | more


def read(message: object, **headers: str) -> Any:
    raw = message if isinstance(message, bytes) else json.dumps(message).encode()
    return ANTHROPIC.decode(claude(), WireResponse(status=200, headers=headers, body=raw))


def events_of(message: Json, cut: int = 1_000_000) -> list[Json]:
    """Return the events in which a server would stream a message, its texts cut into pieces."""
    usage = message["usage"]
    begin = {"model": message["model"], "content": [], "usage": {**usage, "output_tokens": 1}}
    emitted: list[Json] = [{"type": "message_start", "message": begin}, {"type": "ping"}]
    for index, block in enumerate(message["content"]):
        empty, deltas = split_block(block)
        emitted.append({"type": "content_block_start", "index": index, "content_block": empty})
        emitted += [{"type": "content_block_delta", "index": index, "delta": piece} for piece in pieces(deltas, cut)]
        emitted.append({"type": "content_block_stop", "index": index})
    end = {"stop_reason": message["stop_reason"], "stop_details": message.get("stop_details")}
    emitted.append({"type": "message_delta", "delta": end, "usage": {"output_tokens": usage["output_tokens"]}})
    return [*emitted, {"type": "message_stop"}]


def split_block(block: Json) -> tuple[Json, list[tuple[str, str, str]]]:
    match block["type"]:
        case "text":
            return {**block, "text": ""}, [("text_delta", "text", block["text"])]
        case "thinking":
            whole = [("thinking_delta", "thinking", block["thinking"])]
            return {**block, "thinking": "", "signature": ""}, [
                *whole,
                ("signature_delta", "signature", block["signature"]),
            ]
        case "tool_use":
            text = json.dumps(block["input"], separators=(",", ":"), ensure_ascii=False)
            return {**block, "input": {}}, [("input_json_delta", "partial_json", text)] if block["input"] else []
        case _:
            return block, []


def pieces(deltas: list[tuple[str, str, str]], cut: int) -> list[Json]:
    return [
        {"type": kind, field: text[at : at + cut]} for kind, field, text in deltas for at in range(0, len(text), cut)
    ]


def stream(events: list[Json], draft: Draft | None = None) -> Any:
    """Return the emitted events of a stream, and its result or the first failure."""
    draft = draft or Draft(target=claude())
    emitted: list[object] = []
    for event in events:
        step = ANTHROPIC.decode_event(draft, ServerEvent(event.get("type", "message"), json.dumps(event)))
        if not is_successful(step):
            return emitted, step
        emitted += step.unwrap()
    return emitted, ANTHROPIC.finish(draft)


_tags = st.lists(st.sampled_from(["<think>", "</think>", "\n", "hm", "<thi", "</"]), max_size=6).map("".join)
_texts = st.text(st.characters(codec="utf-8"), max_size=12) | _tags
_values = st.dictionaries(_texts, st.one_of(_texts, st.integers(-9, 9), st.none(), st.booleans()), max_size=3)
_blocks = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, _texts),
    st.builds(lambda text, sign: {"type": "thinking", "thinking": text, "signature": sign}, _texts, _texts),
    st.builds(lambda data: {"type": "redacted_thinking", "data": data}, _texts),
    st.builds(
        lambda at, args: {"type": "tool_use", "id": f"t{at}", "name": "f", "input": args}, st.integers(0, 9), _values
    ),
    st.builds(lambda data: {"type": "server_tool_use", "id": "s", "name": "web", "input": {"q": data}}, _texts),
)
_reasons = st.sampled_from(["end_turn", "tool_use", "stop_sequence", "max_tokens", "pause_turn", "refusal", "new_one"])


@given(st.lists(_blocks, max_size=5), _reasons, st.integers(1, 7))
def test_a_folded_stream_equals_the_whole_answer(blocks: list[Json], reason: str, cut: int) -> None:
    whole = answer(*blocks, reason=reason)
    emitted, folded = stream(events_of(whole, cut))
    plain = read(whole)
    assert folded == plain
    if is_successful(plain):
        assert "".join(event.text for event in emitted if isinstance(event, TextDelta)) == plain.unwrap().content
        assert all(event.text for event in emitted if isinstance(event, TextDelta | ReasoningDelta))


_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(), st.sampled_from(["text", "tool_use"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["type", "content", "usage", "delta", "index", "error", "input", "content_block", "message"]
            ),
            inner,
        ),
    ),
)
_names = st.sampled_from(
    [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "error",
        "new",
    ]
)


@given(_json)
def test_any_json_body_is_a_response_or_an_error(value: object) -> None:
    result = read(json.dumps(value).encode())
    assert is_successful(result) or result.failure().provider == "anthropic"


@given(st.lists(st.tuples(_names, _json), max_size=6))
def test_any_stream_of_json_is_an_error(events: list[tuple[str, Any]]) -> None:
    result = [
        {**(emitted if isinstance(emitted, dict) else {"delta": emitted}), "type": name} for name, emitted in events
    ]
    assert not is_successful(stream(result)[1])


@given(st.binary(max_size=40))
def test_any_bytes_are_an_error(raw: bytes) -> None:
    assert read(raw).failure().tag in {"MalformedResponse", "ModelUnavailable"}


@pytest.mark.parametrize(
    "raw", [b"", b"<html>login</html>", b"null", b"[]", b"7", b'"x"', b"{}", b'{"content":null}', b"{", b"[" * 100_000]
)
def test_a_2xx_answer_without_content_is_malformed(raw: bytes) -> None:
    error = read(raw).failure()
    assert (error.tag, error.model) == ("MalformedResponse", "claude")


def test_a_whole_answer_is_decoded() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "sig"}
    hidden = {"type": "redacted_thinking", "data": "xyz"}
    call = {"type": "tool_use", "id": "t1", "name": "weather", "input": {}}
    text = {"type": "text", "text": "rain"}
    result: LLMResponse = read(
        answer(thought, hidden, text, call, reason="tool_use"), **{"request-id": "req_1"}
    ).unwrap()
    origin = Origin("anthropic", "claude-opus-5-5")
    assert result.parts == (
        Reasoning("hm", SIGNED, origin),
        Reasoning("", '{"type":"redacted_thinking","data":"xyz"}', origin),
        Text("rain"),
        ToolCall("t1", "weather", "{}"),
    )
    assert (result.content, result.finish_reason, result.request_id) == ("rain", FinishReason.TOOL_CALLS, "req_1")
    assert result.usage == Usage(input_tokens=3, cache_read_tokens=5, cache_write_tokens=7, output_tokens=11)
    assert (result.model, result.served_model, result.provider) == ("claude", "m", "anthropic")


def test_decoded_thinking_is_sent_back_unchanged_to_its_model() -> None:
    result = read(
        answer(
            {"type": "thinking", "thinking": "hm", "signature": "sig"},
            {"type": "text", "text": "a"},
            model="claude-opus-5-5-20261001",
        )
    )
    turns = (Message("user", "q"), Message("assistant", result.unwrap().parts), Message("user", "more"))
    for target, replayed in ((claude(), True), (claude("claude-sonnet-5"), False)):
        request = ANTHROPIC.encode(target, LLMRequest(messages=turns), False).unwrap()
        assert (SIGNED in request.body.decode()) is replayed


@pytest.mark.parametrize(
    ("reason", "finish", "warns"),
    [
        ("end_turn", FinishReason.STOP, False),
        ("stop_sequence", FinishReason.STOP, False),
        ("max_tokens", FinishReason.LENGTH, False),
        ("model_context_window_exceeded", FinishReason.LENGTH, False),
        ("tool_use", FinishReason.TOOL_CALLS, False),
        ("pause_turn", FinishReason.STOP, True),
        ("something_new", FinishReason.STOP, True),
    ],
)
def test_stop_reasons_map_to_finish_reasons(reason: str, finish: FinishReason, warns: bool) -> None:
    result = read(answer({"type": "text", "text": "a"}, reason=reason)).unwrap()
    assert (result.finish_reason, bool(result.warnings)) == (finish, warns)


def test_a_refusal_is_an_error_with_its_category() -> None:
    details = {"type": "refusal", "category": "cyber", "explanation": "no"}
    error = read(answer({"type": "text", "text": "Well"}, reason="refusal", stop_details=details)).failure()
    assert (error.tag, error.category, error.message, error.partial) == ("ContentRefused", "cyber", "no", "Well")
    assert error.usage.output_tokens == 11


@pytest.mark.parametrize(
    ("kind", "tag"),
    [
        ("overloaded_error", "ModelUnavailable"),
        ("rate_limit_error", "RateLimitExceeded"),
        ("api_error", "ModelUnavailable"),
        ("authentication_error", "AuthenticationFailed"),
        ("invalid_request_error", "InvalidRequest"),
    ],
)
def test_an_error_inside_a_2xx_answer_is_classified_by_its_type(kind: str, tag: str) -> None:
    error = {"type": "error", "error": {"type": kind, "message": "x"}, "request_id": "req_9"}
    plain = read(error).failure()
    emitted, failed = stream([*events_of(answer({"type": "text", "text": "so far"}))[:4], error])
    assert (plain.tag, plain.request_id) == (tag, "req_9")
    assert (failed.failure().tag, failed.failure().partial, len(emitted)) == (tag, "so far", 1)
    assert failed.failure().usage.input_tokens == 3


@pytest.mark.parametrize("left", range(1, 7))
def test_a_cut_stream_is_malformed(left: int) -> None:
    events = events_of(answer({"type": "text", "text": "half"}))
    error = stream(events[:left])[1].failure()
    assert error.tag == "MalformedResponse"
    assert error.partial == ("half" if left > 3 else "")


def test_message_stop_without_a_reason_is_malformed() -> None:
    assert stream(events_of(answer({"type": "text", "text": "a"}, reason=None)))[1].failure().tag == "MalformedResponse"


def test_a_second_answer_spliced_into_the_first_is_malformed() -> None:
    events = events_of(answer({"type": "text", "text": "a"}))
    failed = stream([*events[:4], *events])[1]
    assert (failed.failure().tag, failed.failure().partial) == ("MalformedResponse", "a")
    assert is_successful(stream([events[0], *events])[1])
    assert stream([*events, *events])[1] == stream(events)[1]


def test_unknown_events_and_blocks_are_ignored() -> None:
    whole = answer({"type": "later_tool", "x": [1]}, {"type": "text", "text": "a"})
    odd: list[Json] = [
        {"type": "later", "delta": "x"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "later_delta"}},
        {"type": "content_block_delta", "index": 9, "delta": {"type": "input_json_delta", "partial_json": "x"}},
        {"type": "content_block_delta", "index": 9, "delta": {"type": "signature_delta", "signature": "x"}},
        {"type": "content_block_stop", "index": 9},
    ]
    events = events_of(whole)
    emitted, result = stream([*events[:3], *odd, *events[3:]])
    assert (emitted, result.unwrap().content) == ([TextDelta("a")], "a")


def test_deltas_without_a_block_start_are_kept() -> None:
    events = events_of(answer({"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "a"}))
    emitted, result = stream([event for event in events if event["type"] != "content_block_start"])
    assert emitted == [ReasoningDelta("hm"), TextDelta("a")]
    assert [part.text for part in result.unwrap().parts if isinstance(part, Reasoning | Text)] == ["hm", "a"]


def test_tool_calls_are_streamed_and_missing_arguments_become_an_object() -> None:
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}
    emitted, result = stream(events_of(answer(call, {**call, "input": {}}, reason="tool_use"), cut=4))
    first = [event for event in emitted if isinstance(event, ToolCallDelta) and event.index == 0]
    assert [event.arguments for event in first] == ["", '{"a"', ":1}"]
    assert {(event.id, event.name) for event in first} == {("t", "f")}
    assert [each.arguments for each in result.unwrap().tool_calls] == ['{"a":1}', "{}"]


def test_a_call_cut_off_by_the_limit_keeps_its_partial_arguments() -> None:
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}
    events = events_of(answer(call, reason="max_tokens"), cut=4)
    without = [event for event in events if event["type"] != "content_block_stop" and ":1}" not in str(event)]
    assert [each.arguments for each in stream(without)[1].unwrap().tool_calls] == ['{"a"']
    bare = [event for event in without if event["type"] != "content_block_delta"]
    assert [each.arguments for each in stream(bare)[1].unwrap().tool_calls] == [""]


@pytest.mark.parametrize("call", [{"id": "t", "name": ""}, {"id": "t"}, {"id": "t", "name": 7}])
def test_a_call_without_a_name_is_malformed(call: Json) -> None:
    assert read(answer({"type": "tool_use", "input": {}, **call})).failure().tag == "MalformedResponse"


def test_a_call_without_an_id_gets_one() -> None:
    assert read(answer({"type": "tool_use", "name": "f", "input": {}})).unwrap().tool_calls[0].id == "toolu_0"


def test_thinking_without_a_signature_is_kept_but_cannot_be_replayed() -> None:
    result = read(
        answer({"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "a"})
    ).unwrap()
    assert [(part.text, part.opaque) for part in result.parts if isinstance(part, Reasoning)] == [("hm", None)]


def test_the_last_usage_counts_win() -> None:
    events = events_of(answer({"type": "text", "text": "a"}))
    details = {"input_tokens": 30, "cache_read_input_tokens": None, "output_tokens_details": {"thinking_tokens": 2}}
    events[-2]["usage"] |= details
    expected = Usage(input_tokens=30, cache_read_tokens=5, cache_write_tokens=7, output_tokens=11, reasoning_tokens=2)
    assert stream(events)[1].unwrap().usage == expected


def test_what_is_kept_for_an_hour_is_counted_apart() -> None:
    kept = {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4}
    usage = {"input_tokens": 3, "cache_creation_input_tokens": 7, "cache_creation": kept, "output_tokens": 11}
    whole = answer({"type": "text", "text": "a"}, usage={**usage, "service_tier": "batch"})
    expected = Usage(
        input_tokens=3, cache_write_tokens=7, cache_write_1h_tokens=4, output_tokens=11, service_tier="batch"
    )
    assert read(whole).unwrap().usage == stream(events_of(whole))[1].unwrap().usage == expected
    for tier, more in (("standard", 99), ("priority", None), (None, "4")):
        odd = {**usage, "cache_creation": {"ephemeral_1h_input_tokens": more}, "service_tier": tier}
        found = read(answer({"type": "text", "text": "a"}, usage=odd)).unwrap().usage
        assert found.service_tier is None
        assert found.cache_write_1h_tokens <= found.cache_write_tokens


def test_missing_usage_is_unknown() -> None:
    assert read(answer({"type": "text", "text": "a"}, usage=None)).unwrap().usage == Usage()


def test_a_malformed_event_ends_the_stream_with_the_partial_text() -> None:
    draft = Draft(target=claude())
    stream(events_of(answer({"type": "text", "text": "so far"}))[:4], draft)
    error = ANTHROPIC.decode_event(draft, ServerEvent("content_block_delta", '{"type":')).failure()
    assert (error.tag, error.partial) == ("MalformedResponse", "so far")


def test_the_key_is_in_no_error() -> None:
    error = {"type": "error", "error": {"type": "authentication_error", "message": "bad key sk-canary"}}
    wire = WireResponse(status=401, body=json.dumps(error).encode())
    assert "canary" not in repr(ANTHROPIC.classify(claude(), wire))
    assert "canary" not in repr(read(error).failure())


def test_a_key_echoed_in_the_metadata_of_an_answer_is_masked() -> None:
    text = {"type": "text", "text": "a"}
    result = read(answer(text, reason="because sk-canary", model="sk-canary"), **{"request-id": "sk-canary"}).unwrap()
    assert (result.served_model, result.request_id) == ("***", "***")
    assert len(result.warnings) == 1
    assert "canary" not in repr(result)
    refusal = {"type": "refusal", "category": "sk-canary", "explanation": "for sk-canary"}
    refused = read(answer(text, reason="refusal", stop_details=refusal), **{"request-id": "sk-canary"}).failure()
    assert (refused.tag, refused.category, refused.request_id) == ("ContentRefused", "***", "***")
    assert "canary" not in repr(refused)


def test_a_retry_date_of_an_error_inside_a_2xx_answer_counts_from_its_arrival() -> None:
    emitted = {"type": "error", "error": {"type": "rate_limit_error", "message": "slow"}}
    headers = {"retry-after": "Mon, 05 Jan 2026 12:00:30 GMT"}
    noon = datetime(2026, 1, 5, 12, tzinfo=UTC)
    wire = WireResponse(status=200, headers=headers, body=json.dumps(emitted).encode(), received=noon)
    assert ANTHROPIC.decode(claude(), wire).failure().retry_after == 30.0


def test_the_events_of_a_call_without_arguments_equal_its_final_arguments() -> None:
    call = {"type": "tool_use", "id": "t1", "name": "weather", "input": {}}
    emitted, result = stream(events_of(answer(call, reason="tool_use")))
    pieces = [event.arguments for event in emitted if isinstance(event, ToolCallDelta)]
    assert "".join(pieces) == result.unwrap().tool_calls[0].arguments == "{}"


# Unread blocks, and thinking in tags


@pytest.mark.parametrize("stream_it", [False, True])
def test_fault_182_an_answer_of_unread_blocks_has_a_warning(stream_it: bool) -> None:
    block = {"type": "container_upload", "file_id": "file_1"}
    events = [
        {"type": "message_start", "message": {"model": "m", "content": [], "usage": {"input_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]
    result = (stream(events)[1] if stream_it else read(answer(block))).unwrap()
    (warning,) = result.warnings
    assert "container_upload" in warning
    assert read(answer(block, {"type": "text", "text": "Yes."})).unwrap().warnings == ()


@pytest.mark.parametrize("cut", [1, 3, 100])
def test_fault_183_thinking_in_tags_is_no_text(cut: int) -> None:
    blocks = [
        {"type": "text", "text": "<think>\nHm\n</think>\n\nBecause <think>."},
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}},
    ]
    message = answer(*blocks, reason="tool_use")
    events, streamed = stream(events_of(message, cut))
    for result in (streamed.unwrap(), read(message).unwrap()):
        parts = [(type(part), getattr(part, "text", "")) for part in result.parts]
        assert parts == [(Reasoning, "Hm\n"), (Text, "Because <think>."), (ToolCall, "")]
    assert "".join(each.text for each in events if isinstance(each, ReasoningDelta)) == "Hm\n"
    assert "".join(each.text for each in events if isinstance(each, TextDelta)) == "Because <think>."


def test_fault_183_blank_text_before_a_tool_call_stays_before_it() -> None:
    blocks = [{"type": "text", "text": "\n"}, {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}]
    message = answer(*blocks, reason="tool_use")
    for result in (stream(events_of(message))[1].unwrap(), read(message).unwrap()):
        assert [type(part) for part in result.parts] == [Text, ToolCall]
