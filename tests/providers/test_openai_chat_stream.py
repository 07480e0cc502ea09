"""Decoding streams of chat completions: a folded stream equals the whole answer; a cut one is an error."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.config.models import Capabilities, ModelConfig
from llm_effects.providers.draft import Draft, flush_held
from llm_effects.providers.openai_chat import OPENAI_CHAT
from llm_effects.providers.sse import ServerEvent
from llm_effects.providers.target import Preset, Target
from llm_effects.providers.wire import WireResponse
from llm_effects.values.errors import ContentRefused, LLMError
from llm_effects.values.events import ReasoningDelta, StreamEvent, TextDelta, ToolCallDelta
from llm_effects.values.messages import Reasoning, Text, ToolCall
from llm_effects.values.responses import FinishReason, LLMResponse, Usage

TARGET = Target(
    name="mini",
    config=ModelConfig(provider="openai-chat", model="gpt-x"),
    preset=Preset(name="openai-chat", wire="openai-chat"),
    endpoint="https://api.example.com/v1",
    capabilities=Capabilities(),
)
DONE = "[DONE]"


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return {"object": "chat.completion.chunk", "model": "gpt-x", "choices": [choice], **more}


def text_chunk(text: str) -> dict[str, Any]:
    return chunk({"content": text})


def call(*, id: str | None = None, name: str | None = None, piece: object = None, **more: Any) -> dict[str, Any]:  # noqa: A002
    emitted = {"id": id, "function": {"name": name, "arguments": piece}, **more}
    return chunk({"tool_calls": [emitted]})


END = chunk({}, "stop")
TOOL_END = chunk({}, "tool_calls")
USAGE_CHUNK = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


def fold(*chunks: object, name: str = "message") -> tuple[Result[LLMResponse, LLMError], list[StreamEvent]]:
    draft, emitted = Draft(target=TARGET), list[StreamEvent]()
    for each in chunks:
        data = each if isinstance(each, str) else json.dumps(each)
        step = OPENAI_CHAT.decode_event(draft, ServerEvent(name, data))
        if not is_successful(step):
            return Failure(step.failure()), emitted
        emitted.extend(step.unwrap())
    return OPENAI_CHAT.finish(draft), emitted


def test_text_is_emitted_in_pieces_and_whole_at_the_end() -> None:
    result, emitted = fold(
        chunk({"role": "assistant", "content": ""}), text_chunk("Hel"), text_chunk("lo"), END, USAGE_CHUNK, DONE
    )
    response = result.unwrap()
    assert emitted == [TextDelta("Hel"), TextDelta("lo")]
    assert (response.content, response.finish_reason) == ("Hello", FinishReason.STOP)
    assert response.usage == Usage(input_tokens=3, output_tokens=2)


@given(st.text(max_size=20), st.lists(st.text(min_size=1, max_size=4), max_size=6))
def test_a_folded_stream_equals_the_whole_answer(first: str, others: list[str]) -> None:
    text = first + "".join(others)
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    plain = {"model": "gpt-x", "choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage}
    whole = OPENAI_CHAT.decode(TARGET, WireResponse(status=200, body=json.dumps(plain).encode()))
    assert fold(*map(text_chunk, [first, *others]), END, USAGE_CHUNK, DONE)[0] == whole


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_thinking_in_a_separate_field_is_emitted_as_reasoning(field: str) -> None:
    result, emitted = fold(chunk({field: "hm"}), chunk({"content": "a", field: None}), END)
    assert emitted == [ReasoningDelta("hm"), TextDelta("a")]
    assert result.unwrap().content == "a"


TAGGED = "<think>\nfirst < then</think>\n\nso </think> it <think>is"


@given(st.sets(st.integers(1, len(TAGGED) - 1)))
def test_tagged_thinking_is_the_same_at_any_chunk_boundaries(cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), len(TAGGED)]
    result, emitted = fold(*(text_chunk(TAGGED[a:b]) for a, b in pairwise(edges)), END)
    response = result.unwrap()
    assert [part.text for part in response.parts if isinstance(part, Reasoning)] == ["first < then"]
    assert response.content == "so </think> it <think>is"
    assert "".join(event.text for event in emitted if isinstance(event, TextDelta)) == response.content


@given(st.text("<thinkSo/> \n", max_size=20), st.sets(st.integers(1, 40)), st.booleans())
def test_emitted_text_equals_the_content_wherever_the_stream_ends(text: str, cuts: set[int], ended: bool) -> None:
    text = "<think>" + text
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    draft, emitted = Draft(target=TARGET), list[StreamEvent]()
    for each in (*([END] if ended else []), *(text_chunk(text[a:b]) for a, b in pairwise(edges))):
        emitted += OPENAI_CHAT.decode_event(draft, ServerEvent("message", json.dumps(each))).unwrap()
    emitted += flush_held(draft)
    result = OPENAI_CHAT.finish(draft)
    content = result.unwrap().content if is_successful(result) else result.failure().partial
    assert "".join(event.text for event in emitted if isinstance(event, TextDelta)) == content
    assert flush_held(draft) == ()


def test_held_text_can_be_flushed_when_the_connection_breaks() -> None:
    draft = Draft(target=TARGET)
    for each in (END, text_chunk("<thi")):
        assert OPENAI_CHAT.decode_event(draft, ServerEvent("message", json.dumps(each))).unwrap() == ()
    assert flush_held(draft) == (TextDelta("<thi"),)
    assert OPENAI_CHAT.finish(draft).unwrap().content == "<thi"


def test_text_that_only_looks_like_a_tag_is_emitted_at_the_end() -> None:
    result, emitted = fold(text_chunk("<thi"), END, DONE)
    assert emitted == [TextDelta("<thi")]
    assert result.unwrap().content == "<thi"


@pytest.mark.parametrize(
    ("chunks", "calls"),
    [
        pytest.param(
            [call(index=0, id="a", name="f", piece=""), call(index=0, piece='{"x"'), call(index=0, piece=":1}")],
            [("a", "f", '{"x":1}')],
            id="usual",
        ),
        pytest.param(
            [
                call(index=0, id="a", name="f"),
                call(index=1, id="b", name="g"),
                call(index=0, piece="1"),
                call(index=1, piece="2"),
            ],
            [("a", "f", "1"), ("b", "g", "2")],
            id="interleaved",
        ),
        pytest.param(
            [call(index=0, id="a", name="f", piece="{}"), call(index=0, id="b", name="f", piece="{}")],
            [("a", "f", "{}"), ("b", "f", "{}")],
            id="index-used-twice",
        ),
        pytest.param(
            [call(id="a", name="f", piece="1"), call(id="b", name="g", piece="2"), call(piece="3")],
            [("a", "f", "1"), ("b", "g", "23")],
            id="no-index",
        ),
        pytest.param(
            [call(name="f", piece="{}"), call(name="g", piece="{}")],
            [("call_0", "f", "{}"), ("call_1", "g", "{}")],
            id="no-index-no-id",
        ),
        pytest.param(
            [call(index=0, id="", name="f", piece='{"a"'), call(index=0, id="", piece=":1}")],
            [("call_0", "f", '{"a":1}')],
            id="empty-ids",
        ),
        pytest.param(
            [call(index=0, name="f", piece='{"a"'), call(index=0, id="late", piece=":1}")],
            [("call_0", "f", '{"a":1}')],
            id="id-comes-late",
        ),
        pytest.param(
            [call(index=0, name="f", piece="{}"), call(index=0, name="f", piece="{}")],
            [("call_0", "f", "{}"), ("call_1", "f", "{}")],
            id="same-name-again",
        ),
        pytest.param(
            [call(index=0, id="a", name="f", piece='{"x"'), call(index=0, id="a", name="f", piece=":1}")],
            [("a", "f", '{"x":1}')],
            id="name-and-id-repeated",
        ),
        pytest.param(
            [call(index=0, id="a", name="get_"), call(index=0, name="time"), call(index=0, piece="{}")],
            [("a", "get_time", "{}")],
            id="name-in-pieces",
        ),
        pytest.param([call(index=0, id="a", name="f", piece={"x": 1})], [("a", "f", '{"x":1}')], id="object"),
        pytest.param(
            [chunk({"function_call": {"name": "f", "arguments": ""}}), chunk({"function_call": {"arguments": "{}"}})],
            [("call_0", "f", "{}")],
            id="legacy",
        ),
    ],
)
def test_fault_100_tool_calls_are_assembled_from_any_deltas(
    chunks: list[object], calls: list[tuple[str, str, str]]
) -> None:
    result, emitted = fold(*chunks, TOOL_END, DONE)
    response = result.unwrap()
    assert [(each.id, each.name, each.arguments) for each in response.tool_calls] == calls
    assert response.finish_reason is FinishReason.TOOL_CALLS
    deltas = [event for event in emitted if isinstance(event, ToolCallDelta)]
    for index, (call_id, _, arguments) in enumerate(calls):
        mine = [event for event in deltas if event.index == index]
        assert {event.id for event in mine} == {call_id}
        assert "".join(event.arguments for event in mine) == arguments


def test_tool_calls_after_the_finish_reason_are_kept() -> None:
    response = fold(END, call(index=0, id="a", name="f", piece="{}"), DONE)[0].unwrap()
    assert (len(response.tool_calls), response.finish_reason) == (1, FinishReason.TOOL_CALLS)


def test_arguments_cut_off_by_the_limit_are_kept() -> None:
    response = fold(call(index=0, id="a", name="f", piece='{"x": "lo'), chunk({}, "length"), DONE)[0].unwrap()
    assert (response.tool_calls[0].arguments, response.finish_reason) == ('{"x": "lo', FinishReason.LENGTH)


def test_faults_86_87_a_finish_reason_completes_a_stream() -> None:
    assert fold(text_chunk("a"), END)[0].unwrap().content == "a"
    assert fold(text_chunk("a"), chunk({}, "length"), END, DONE)[0].unwrap().finish_reason is FinishReason.LENGTH


def test_fault_88_a_stream_without_a_finish_reason_is_malformed() -> None:
    error = fold(text_chunk("half"), USAGE_CHUNK)[0].failure()
    assert (error.tag, error.partial) == ("MalformedResponse", "half")
    assert fold(text_chunk("half"), DONE)[0].failure().tag == "MalformedResponse"


def test_a_missing_finish_reason_is_accepted_with_usage_and_done() -> None:
    response = fold(text_chunk("a"), USAGE_CHUNK, DONE)[0].unwrap()
    assert (response.content, response.finish_reason, len(response.warnings)) == ("a", FinishReason.STOP, 1)


@pytest.mark.parametrize("chunks", [(), (DONE,), (END, DONE), (USAGE_CHUNK, DONE)])
def test_fault_90_an_empty_stream_is_malformed(chunks: tuple[object, ...]) -> None:
    assert fold(*chunks)[0].failure().tag == "MalformedResponse"


@pytest.mark.parametrize(
    ("event", "tag"),
    [
        ({"error": {"message": "Overloaded", "type": "overloaded_error"}}, "ModelUnavailable"),
        ({"error": {"message": "slow", "code": 429}}, "RateLimitExceeded"),
        ({"error": "runner stopped"}, "ModelUnavailable"),
        ({"object": "error", "message": "max_tokens must be at least 1, got -2.", "code": 400}, "ContextTooLarge"),
        (chunk({"content": ""}, None, error={"code": 400, "message": "Token limit reached"}), "InvalidRequest"),
        (chunk({}, "error"), "ModelUnavailable"),
        ("not json", "MalformedResponse"),
        ('{"choices":[{"delta":{"content":NaN}}]}', "MalformedResponse"),
        ("[" * 100_000, "MalformedResponse"),
    ],
)
def test_faults_91_to_94_an_error_in_the_stream_keeps_the_partial_text(event: object, tag: str) -> None:
    error = fold(text_chunk("ha"), text_chunk("lf"), event)[0].failure()
    assert (error.tag, error.partial) == (tag, "half")


@pytest.mark.parametrize("data", ['{"message":"slow","code":429}', "slow"])
def test_an_event_named_error_is_an_error_whatever_its_data(data: str) -> None:
    assert fold(data, name="error")[0].failure().tag in {"RateLimitExceeded", "ModelUnavailable"}


def test_faults_98_99_empty_and_unknown_events_are_ignored() -> None:
    nothing = [
        {"choices": [{"index": 0, "delta": None}]},
        {"choices": [{"index": 0}]},
        {"choices": [None]},
        {"choices": None},
        {"choices": []},
        {"object": "something.else", "payload": [1]},
        chunk({"content": None, "tool_calls": None, "refusal": None}),
        {"choices": [{"index": 1, "delta": {"content": "of another choice"}}]},
        "null",
        "[]",
        "7",
        "",
    ]
    result, emitted = fold(text_chunk("a"), *nothing, END, USAGE_CHUNK, USAGE_CHUNK, DONE)
    assert emitted == [TextDelta("a")]
    assert result.unwrap().usage == Usage(input_tokens=3, output_tokens=2)


def test_fault_102_events_after_the_end_are_ignored() -> None:
    assert fold(text_chunk("a"), END, DONE, text_chunk("b"), "not json", {"error": "late"})[0].unwrap().content == "a"


def test_a_streamed_refusal_is_content_refused_at_the_end() -> None:
    result, emitted = fold(chunk({"refusal": "I "}), chunk({"refusal": "can't."}), END, DONE)
    error = result.failure()
    assert isinstance(error, ContentRefused)
    assert (emitted, error.message) == ([], "I can't.")


def test_a_content_filter_keeps_the_partial_text() -> None:
    verdicts = {"violence": {"filtered": True}, "hate": {"filtered": False}}
    last = {
        "choices": [{"index": 0, "delta": {}, "finish_reason": "content_filter", "content_filter_results": verdicts}]
    }
    error = fold(text_chunk("half"), last, DONE)[0].failure()
    assert isinstance(error, ContentRefused)
    assert (error.partial, error.category) == ("half", "violence")


def test_a_whole_message_as_the_only_event_is_decoded() -> None:
    whole = {"choices": [{"index": 0, "message": {"content": "all"}, "finish_reason": "stop"}]}
    result, emitted = fold(whole, DONE)
    assert (emitted, result.unwrap().content) == ([TextDelta("all")], "all")


def test_usage_in_a_server_specific_field_is_read() -> None:
    usage = (
        fold(text_chunk("a"), chunk({}, "stop", x_groq={"usage": {"prompt_tokens": 3, "completion_tokens": 2}}))[0]
        .unwrap()
        .usage
    )
    assert usage == Usage(input_tokens=3, output_tokens=2)


def test_a_lone_surrogate_in_a_delta_is_replaced() -> None:
    cut = '{"choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}'
    assert fold(cut, END)[0].unwrap().content == "\ufffd"


@given(
    st.lists(
        st.sampled_from(
            [
                text_chunk("a"),
                text_chunk("<think>"),
                END,
                TOOL_END,
                USAGE_CHUNK,
                DONE,
                call(name="f"),
                call(piece="{"),
                call(index=0, id="x"),
            ]
        )
    )
)
def test_any_order_of_events_is_decoded_without_an_exception(chunks: list[object]) -> None:
    fold(*chunks)


# Citations, unread content, and the order of parts


SITE = {"type": "url_citation", "url_citation": {"start_index": 0, "end_index": 7, "url": "https://a.example"}}


def test_fault_177_citations_that_stream_before_the_text_are_kept() -> None:
    result, _ = fold(chunk({"content": "", "annotations": [SITE]}), text_chunk("be"), text_chunk("cause"), END, DONE)
    (part,) = result.unwrap().parts
    assert isinstance(part, Text)
    assert [(each.start, each.end, each.url) for each in part.citations] == [(0, 7, "https://a.example")]


def test_fault_177_citations_that_stream_inside_the_text_keep_their_end() -> None:
    result, _ = fold(chunk({"content": "be", "annotations": [SITE]}), text_chunk("cause"), END, DONE)
    (part,) = result.unwrap().parts
    assert isinstance(part, Text)
    assert [(each.start, each.end) for each in part.citations] == [(0, 7)]


@pytest.mark.parametrize(
    ("delta", "name"),
    [
        ({"images": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}, "images"),
        ({"audio": {"id": "audio_1", "data": "AAAA"}}, "audio"),
        ({"content": [{"type": "image_url"}]}, "image_url"),
    ],
)
def test_fault_182_an_answer_of_unread_content_has_a_warning(delta: dict[str, Any], name: str) -> None:
    result, _ = fold(chunk(delta), END, USAGE_CHUNK, DONE)
    (warning,) = result.unwrap().warnings
    assert name in warning
    assert "cannot be read" in warning
    read, _ = fold(chunk(delta), text_chunk("because"), END, USAGE_CHUNK, DONE)
    assert read.unwrap().warnings == ()


def test_fault_183_blank_content_before_a_tool_call_stays_before_it() -> None:
    result, emitted = fold(text_chunk("\n\n"), call(id="a", name="look", piece="{}"), TOOL_END, DONE)
    assert result.unwrap().parts == (Text("\n\n"), ToolCall("a", "look", "{}"))
    assert emitted == [TextDelta("\n\n"), ToolCallDelta(0, "a", "look", "{}")]
