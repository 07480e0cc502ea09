"""Decoding answers and streams of OpenAI's Responses."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.config.models import ModelConfig
from llm_effects.providers.draft import Draft
from llm_effects.providers.openai_responses import OPENAI_RESPONSES
from llm_effects.providers.registry import target_of
from llm_effects.providers.sse import ServerEvent
from llm_effects.providers.wire import WireResponse
from llm_effects.values.errors import ContentRefused, LLMError
from llm_effects.values.events import ReasoningDelta, StreamEvent, TextDelta, ToolCallDelta
from llm_effects.values.messages import Origin, Reasoning, Text, ToolCall
from llm_effects.values.responses import FinishReason, LLMResponse, Usage

Json = dict[str, Any]
Answer = Result[LLMResponse, LLMError]
TARGET = target_of("mini", ModelConfig(provider="openai-responses", model="gpt-x", api_key="sk-canary-123")).unwrap()
USAGE = {"input_tokens": 100, "output_tokens": 30, "total_tokens": 130}
COUNTED = {
    **USAGE,
    "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10},
    "output_tokens_details": {"reasoning_tokens": 20},
}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "look", "arguments": '{"q":1}'}


def message(*texts: str, **more: Any) -> Json:
    blocks = [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    return {"type": "message", "id": "msg_1", "role": "assistant", "content": blocks, **more}


def thinking(*summary: str, **more: Any) -> Json:
    emitted = [{"type": "summary_text", "text": text} for text in summary]
    return {"type": "reasoning", "id": "rs_1", "summary": emitted, **more}


def refusal(text: str) -> Json:
    return {"type": "message", "id": "msg_1", "content": [{"type": "refusal", "refusal": text}]}


def response(*output: Json, **more: Any) -> Json:
    usual = {"id": "resp_1", "object": "response", "status": "completed", "model": "gpt-x", "error": None}
    return {**usual, "output": list(output), "usage": USAGE, **more}


def read(body: object, **headers: str) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return OPENAI_RESPONSES.decode(TARGET, WireResponse(status=200, headers=headers, body=raw))


def event(kind: str, **fields: Any) -> Json:
    return {"type": f"response.{kind}", **fields}


def fold(*events: object) -> tuple[Answer, list[StreamEvent]]:
    draft, emitted = Draft(target=TARGET), list[StreamEvent]()
    for each in events:
        data = each if isinstance(each, str) else json.dumps(each)
        name = each["type"] if isinstance(each, dict) and isinstance(each.get("type"), str) else "message"
        step = OPENAI_RESPONSES.decode_event(draft, ServerEvent(name, data))
        if not is_successful(step):
            return Failure(step.failure()), emitted
        emitted += step.unwrap()
    return OPENAI_RESPONSES.finish(draft), emitted


def events_of_item(place: int, item: Json, size: int) -> Iterator[Json]:
    """Yield the events of one item, its texts cut into pieces of a size."""
    location = {"output_index": place, "item_id": item.get("id", "")}
    yield event("output_item.added", output_index=place, item=empty_item(item))
    for kind, fields, text in texts_of(item):
        for at in range(0, len(text), size):
            yield event(kind, **location, **fields, delta=text[at : at + size])
    yield event("output_item.done", output_index=place, item=item)


def empty_item(item: Json) -> Json:
    empty = {"content": [], "summary": [], "arguments": "", "encrypted_content": "another"}
    return {key: empty.get(key, value) if value else value for key, value in item.items()}


def texts_of(item: Json) -> Iterator[tuple[str, Json, str]]:
    for index, part in enumerate(item.get("summary", ())):
        yield "reasoning_summary_text.delta", {"summary_index": index}, part["text"]
    for index, part in enumerate(item.get("content", ())):
        kinds = {"output_text": "output_text", "reasoning_text": "reasoning_text", "refusal": "refusal"}
        field = "refusal" if part["type"] == "refusal" else "text"
        yield f"{kinds[part['type']]}.delta", {"content_index": index}, part[field]
    if "arguments" in item:
        yield "function_call_arguments.delta", {}, item["arguments"]


def stream_of(whole: Json, size: int = 3) -> list[Json]:
    pieces = [each for at, item in enumerate(whole["output"]) for each in events_of_item(at, item, size)]
    start = {**whole, "status": "in_progress", "output": [], "usage": None}
    return [event("created", response=start), *pieces, event(whole["status"], response=whole)]


# Laws


TAGS = st.lists(st.sampled_from(["<think>", "</think>", "\n", "hm", "<thi", "</"]), max_size=6).map("".join)
TEXTS = st.text(st.characters(codec="utf-8"))
ITEMS = st.one_of(
    st.builds(message, TEXTS, TEXTS),
    st.builds(thinking, TEXTS, TEXTS, encrypted_content=st.none() | st.just("gAAA")),
    st.builds(lambda text: thinking(content=[{"type": "reasoning_text", "text": text}]), TEXTS),
    st.builds(lambda n, text: {**CALL, "call_id": f"call_{n}", "arguments": text}, st.integers(), TEXTS),
    st.builds(refusal, TEXTS.filter(bool)),
    st.just({"type": "web_search_call", "id": "ws_1", "status": "completed"}),
)
WHOLE = st.builds(
    lambda items, more: response(*({**item, "id": f"i_{at}"} for at, item in enumerate(items)), usage=COUNTED, **more),
    st.lists(ITEMS, max_size=4),
    st.sampled_from([{}, {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}]),
)
TAGGED = st.builds(
    lambda texts: response(*(message(text, id=f"i_{at}") for at, text in enumerate(texts))), st.lists(TAGS, max_size=3)
)


def equivalent(one: Answer, other: Answer) -> bool:
    return one == other or (not is_successful(one) and one.failure().tag == other.failure().tag)


@given(WHOLE | TAGGED, st.integers(1, 9))
def test_a_folded_stream_equals_the_whole_answer(whole: Json, size: int) -> None:
    answer, emitted = fold(*stream_of(whole, size))
    assert equivalent(answer, read(whole))
    if is_successful(answer):
        assert_emitted(emitted, answer.unwrap())


def assert_emitted(emitted: list[StreamEvent], whole: LLMResponse) -> None:
    assert "".join(each.text for each in emitted if isinstance(each, TextDelta)) == whole.content
    thought = "".join(part.text for part in whole.parts if isinstance(part, Reasoning))
    assert "".join(each.text for each in emitted if isinstance(each, ReasoningDelta)) == thought
    pieces = [each for each in emitted if isinstance(each, ToolCallDelta)]
    for index, call in enumerate(whole.tool_calls):
        mine = [each for each in pieces if each.index == index]
        assert "".join(each.arguments for each in mine) == call.arguments
        assert {(each.id, each.name) for each in mine} == {(call.id, call.name)}


@given(WHOLE, st.data())
def test_the_last_event_restores_whatever_was_lost_before(whole: Json, data: st.DataObject) -> None:
    *events, end = stream_of(whole)
    kept = [each for each in events if data.draw(st.booleans())]
    answer, _ = fold(*kept, end)
    plain = read(whole)
    assert is_successful(answer) is is_successful(plain)
    if is_successful(plain):
        assert (answer.unwrap().parts, answer.unwrap().usage) == (plain.unwrap().parts, plain.unwrap().usage)


@given(WHOLE)
def test_a_last_event_without_items_keeps_the_streamed_ones(whole: Json) -> None:
    *events, end = stream_of(whole)
    bare = {**end, "response": {**whole, "output": []}}
    assert equivalent(fold(*events, bare)[0], read(whole))


@given(WHOLE, st.data())
def test_a_stream_cut_before_its_end_is_an_error_with_the_partial_text(whole: Json, data: st.DataObject) -> None:
    events = stream_of(whole)[:-1]
    answer, emitted = fold(*events[: data.draw(st.integers(0, len(events)))])
    assert answer.failure().tag in {"MalformedResponse", "ContentRefused"}
    assert answer.failure().partial == "".join(each.text for each in emitted if isinstance(each, TextDelta))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    *("type", "object", "status", "output", "response", "item", "error", "delta", "output_index", "item_id", "usage"),
    *("content", "summary", "text", "arguments", "name", "call_id", "id", "model", "incomplete_details", "reason"),
]
KINDS = [
    *("response.completed", "response.incomplete", "response.failed", "response.output_item.added", "response.created"),
    *("response.output_item.done", "response.output_text.delta", "response.function_call_arguments.delta"),
    *("response.function_call_arguments.done", "response.reasoning_summary_text.delta", "response.refusal.delta"),
    *("response.reasoning_text.delta", "error", "response", "message", "reasoning", "function_call", "completed"),
]
ODD = st.recursive(
    JSON | st.sampled_from(KINDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=16,
)


@given(st.binary() | ODD.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_a_response_or_an_error(raw: bytes) -> None:
    answer = read(raw)
    assert is_successful(answer) or answer.failure().tag


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(FIELDS), ODD, max_size=6))))
def test_any_stream_of_json_is_a_response_or_an_error(events: list[tuple[str, Json]]) -> None:
    answer, _ = fold(*({**fields, "type": kind} for kind, fields in events))
    assert is_successful(answer) or answer.failure().tag


@given(st.lists(st.text()))
def test_any_texts_as_events_are_an_error(events: list[str]) -> None:
    answer, _ = fold(*events)
    assert not is_successful(answer)


# Whole answers


def test_a_whole_answer_is_decoded() -> None:
    sealed = thinking("First.", "Then.", encrypted_content="gAAA")
    answer = read(response(sealed, message("It is ", "warm."), CALL, usage=COUNTED), **{"x-request-id": "req_9"})
    whole = answer.unwrap()
    opaque = json.dumps(sealed, separators=(",", ":"))
    assert whole.parts == (
        Reasoning("First.\n\nThen.", opaque, Origin("openai-responses", "gpt-x")),
        Text("It is warm."),
        ToolCall("call_1", "look", '{"q":1}'),
    )
    assert (whole.content, whole.finish_reason) == ("It is warm.", FinishReason.TOOL_CALLS)
    assert (whole.model, whole.provider, whole.served_model) == ("mini", "openai-responses", "gpt-x")
    assert (whole.request_id, whole.warnings) == ("req_9", ())


def test_usage_is_sorted_into_disjoint_buckets() -> None:
    usage = read(response(message("hi"), usage=COUNTED)).unwrap().usage
    buckets = Usage(input_tokens=30, cache_read_tokens=60, cache_write_tokens=10, output_tokens=30, reasoning_tokens=20)
    assert usage == buckets
    assert usage.total_tokens == 130


def test_fault_64_missing_metadata_stays_unknown() -> None:
    whole = read({"status": "completed", "output": [message("hi")]}).unwrap()
    assert (whole.usage, whole.served_model, whole.request_id) == (Usage(), None, None)


def test_fault_65_unknown_items_and_fields_are_ignored() -> None:
    odd = {"type": "hologram", "id": "h_1", "content": [{"type": "output_text", "text": "no"}]}
    blocks = {**message("hi"), "content": [{"type": "smell"}, {"type": "output_text", "text": "hi"}, None, 7]}
    whole = read(response(odd, blocks, mood="good")).unwrap()
    assert whole.parts == (Text("hi"),)


@pytest.mark.parametrize(
    ("more", "finish", "warning"),
    [
        ({}, FinishReason.STOP, ""),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, FinishReason.LENGTH, ""),
        ({"status": "incomplete", "incomplete_details": {"reason": "tired"}}, FinishReason.LENGTH, "'tired'"),
        ({"status": None}, FinishReason.STOP, "no status"),
    ],
)
def test_fault_78_statuses_map_to_finish_reasons(more: Json, finish: FinishReason, warning: str) -> None:
    whole = read(response(message("hi"), **more)).unwrap()
    assert whole.finish_reason is finish
    assert bool(whole.warnings) is bool(warning)
    assert warning in "".join(whole.warnings)


def test_an_answer_cut_off_while_reasoning_is_empty_but_complete() -> None:
    cut = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    whole = read(response(thinking(), **cut)).unwrap()
    assert (whole.content, whole.parts, whole.finish_reason) == ("", (), FinishReason.LENGTH)


@pytest.mark.parametrize("status", ["queued", "in_progress", "cancelled", "dreaming"])
def test_an_answer_that_is_not_completed_is_malformed(status: str) -> None:
    error = read(response(message("hi"), status=status)).failure()
    assert (error.tag, getattr(error, "message", "")) == (
        "MalformedResponse",
        f"the answer is '{status}', not completed",
    )


def test_fault_79_a_refusal_is_content_refused_with_its_text() -> None:
    error = read(response(refusal("I would rather not."))).failure()
    assert isinstance(error, ContentRefused)
    assert (error.message, error.category) == ("I would rather not.", "refusal")


FILTERED = [{"content_filter_results": {"hate": {"filtered": False}, "violence": {"filtered": True}}}]


@pytest.mark.parametrize(("emitted", "category"), [({}, "content_filter"), ({"content_filters": FILTERED}, "violence")])
def test_fault_79_a_content_filter_keeps_the_partial_text(emitted: Json, category: str) -> None:
    cut = {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}
    error = read(response(message("Mix two"), **cut, **emitted)).failure()
    assert isinstance(error, ContentRefused)
    assert (error.category, error.partial) == (category, "Mix two")


@pytest.mark.parametrize(
    ("error", "tag"),
    [
        ({"code": "server_error", "message": "oops"}, "ModelUnavailable"),
        ({"code": "rate_limit_exceeded", "message": "slow down"}, "RateLimitExceeded"),
        ({"code": "insufficient_quota", "message": "spent"}, "RateLimitExceeded"),
        ({"code": "invalid_prompt", "message": "no"}, "ContentRefused"),
        ({"code": "bio_policy", "message": "no"}, "ContentRefused"),
        ({"code": "context_length_exceeded", "message": "too long"}, "ContextTooLarge"),
        (None, "ModelUnavailable"),
    ],
)
def test_faults_56_and_92_a_failure_is_classified_by_its_code(error: Json | None, tag: str) -> None:
    failed = response(message("half"), status="failed", error=error)
    plain = read(failed, **{"retry-after": "7"}).failure()
    assert (plain.tag, plain.retry_after, plain.request_id) == (tag, 7.0, "resp_1")
    streamed, _ = fold(*stream_of(response(message("half")))[:-1], event("failed", response=failed))
    assert (streamed.failure().tag, streamed.failure().partial) == (tag, "half")
    assert streamed.failure().usage == Usage(input_tokens=100, output_tokens=30)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b"{}",
        b'{"output":',
        b"<html>Sign in</html>",
        b'{"object":"response","status":"completed","output":null}',
        b'{"object":"chat.completion","choices":[]}',
        b'\xff{"output":[]}',
        b"[" * 100_000,
        json.dumps(response(usage=None)).encode(),
    ],
)
def test_faults_58_to_71_a_2xx_answer_without_content_is_malformed(raw: bytes) -> None:
    assert read(raw).failure().tag == "MalformedResponse"


def test_faults_69_and_75_a_byte_order_mark_and_a_lone_surrogate_are_accepted() -> None:
    raw = b"\xef\xbb\xbf" + json.dumps(response(message("a\ud83db"))).encode()
    assert read(raw).unwrap().content == "a\ufffdb"


def test_fault_76_another_served_model_causes_a_warning() -> None:
    whole = read(response(message("hi"), model="tiny-7b")).unwrap()
    assert (whole.served_model, whole.warnings) == ("tiny-7b", ("'tiny-7b' answered instead of 'gpt-x'",))
    assert not read(response(message("hi"), model="gpt-x-2026-03-05")).unwrap().warnings


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({**CALL, "arguments": '{"q'}, ToolCall("call_1", "look", '{"q')),
        ({**CALL, "arguments": {"q": 1}}, ToolCall("call_1", "look", '{"q":1}')),
        ({**CALL, "call_id": None}, ToolCall("fc_1", "look", '{"q":1}')),
        ({**CALL, "call_id": " ", "id": None}, ToolCall("call_0", "look", '{"q":1}')),
        ({"type": "custom_tool_call", "call_id": "c", "name": "sh", "input": "ls"}, ToolCall("c", "sh", "ls")),
    ],
)
def test_fault_77_calls_are_decoded_in_every_shape(call: Json, expected: ToolCall) -> None:
    assert read(response(call)).unwrap().tool_calls == (expected,)


def test_a_call_without_a_name_is_malformed() -> None:
    assert read(response({**CALL, "name": ""})).failure().tag == "MalformedResponse"


def test_the_key_is_in_no_error() -> None:
    error = read({"error": {"message": "bad key sk-canary-123", "code": "invalid_api_key"}}).failure()
    assert "sk-canary" not in repr(error)


# Streams


def test_text_is_emitted_in_pieces() -> None:
    answer, emitted = fold(*stream_of(response(message("abcdef"))))
    assert emitted == [TextDelta("abc"), TextDelta("def")]
    assert answer.unwrap().content == "abcdef"


def test_a_call_is_emitted_with_its_id_from_the_start() -> None:
    _, emitted = fold(*stream_of(response(CALL), 4))
    assert emitted == [
        ToolCallDelta(0, "call_1", "look", ""),
        ToolCallDelta(0, "call_1", "look", '{"q"'),
        ToolCallDelta(0, "call_1", "look", ":1}"),
    ]


def test_paragraphs_of_reasoning_are_separated_by_a_blank_line() -> None:
    _, emitted = fold(*stream_of(response(thinking("First.", "Then."), message("hi")), 9))
    assert emitted == [ReasoningDelta("First."), ReasoningDelta("\n\nThen."), TextDelta("hi")]


def test_sealed_reasoning_comes_from_the_last_event() -> None:
    first, last = (thinking(encrypted_content=word) for word in ("early", "late"))
    added, done = (event(f"output_item.{word}", output_index=0, item=first) for word in ("added", "done"))
    answer, _ = fold(added, done, event("completed", response=response(last, message("hi"))))
    [thought] = [part for part in answer.unwrap().parts if isinstance(part, Reasoning)]
    assert json.loads(thought.opaque or "") == last


def test_ids_that_change_between_events_are_accepted() -> None:
    whole = response(message("abcdef"), CALL)
    events = [{**each, "item_id": f"id_{at}"} for at, each in enumerate(stream_of(whole)[:-1])]
    renamed = [
        {**each, "item": {**each["item"], "id": f"id_{at}"}} if "item" in each else each
        for at, each in enumerate(events)
    ]
    assert fold(*renamed, event("completed", response=whole))[0] == read(whole)


def test_items_without_an_index_are_identified_by_their_ids() -> None:
    whole = response(thinking("Hm."), message("abcdef"), CALL)
    events = [{key: value for key, value in each.items() if key != "output_index"} for each in stream_of(whole)]
    answer, emitted = fold(*events)
    assert answer == read(whole)
    assert_emitted(emitted, answer.unwrap())


def test_indexes_that_the_last_event_renumbers_are_accepted() -> None:
    whole = response(message("abcdef", id="msg_1"), message("ghijkl", id="msg_2"))
    moved = [
        {**each, "output_index": each["output_index"] * 2} if "output_index" in each else each
        for each in stream_of(whole)
    ]
    answer, emitted = fold(*moved)
    assert answer == read(whole)
    assert_emitted(emitted, answer.unwrap())


def test_content_that_was_not_streamed_is_emitted_at_the_end() -> None:
    whole = response(thinking("Hm."), message("abcdef"), CALL)
    answer, emitted = fold(event("completed", response=whole))
    assert answer == read(whole)
    assert_emitted(emitted, answer.unwrap())


def test_arguments_that_precede_their_call_are_kept() -> None:
    piece = event("function_call_arguments.delta", output_index=0, item_id="fc_1", delta='{"q"')
    rest = event("function_call_arguments.done", output_index=0, item_id="fc_1", arguments='{"q":1}')
    _, emitted = fold(piece, rest, event("output_item.done", output_index=0, item=CALL))
    assert emitted == [ToolCallDelta(0, "call_1", "look", '{"q":1}')]


def test_pieces_that_contradict_the_complete_text_are_replaced_with_a_warning() -> None:
    piece = event("output_text.delta", output_index=0, item_id="msg_1", delta="xyz")
    answer, emitted = fold(piece, event("completed", response=response(message("abc"))))
    assert (answer.unwrap().content, emitted) == ("abc", [TextDelta("xyz")])
    assert "streamed pieces" in answer.unwrap().warnings[0]


def test_an_incomplete_response_ends_the_stream() -> None:
    cut = response(
        {**CALL, "arguments": '{"q'}, status="incomplete", incomplete_details={"reason": "max_output_tokens"}
    )
    whole = fold(*stream_of(cut))[0].unwrap()
    assert (whole.finish_reason, whole.tool_calls[0].arguments) == (FinishReason.LENGTH, '{"q')


def test_fault_87_done_is_optional() -> None:
    events = stream_of(response(message("hi")))
    assert fold(*events, "[DONE]") == fold(*events)
    assert fold(*events[:-1], "[DONE]")[0].failure().tag == "MalformedResponse"


def test_fault_88_a_stream_without_its_last_event_is_malformed() -> None:
    error = fold(*stream_of(response(message("abcdef")))[:-1])[0].failure()
    assert (error.tag, error.partial) == ("MalformedResponse", "abcdef")


@pytest.mark.parametrize("events", [(), ("[DONE]",), (event("created", response={}),)])
def test_fault_90_an_empty_stream_is_malformed(events: tuple[object, ...]) -> None:
    assert fold(*events)[0].failure().tag == "MalformedResponse"


@pytest.mark.parametrize(
    ("problem", "tag"),
    [
        ({"type": "error", "code": "server_error", "message": "oops", "param": None}, "ModelUnavailable"),
        ({"type": "error", "code": "rate_limit_exceeded", "message": "slow down"}, "RateLimitExceeded"),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, "ModelUnavailable"),
        ({"type": "error", "error": {"code": "context_length_exceeded", "message": "long"}}, "ContextTooLarge"),
        ({"error": "out of memory"}, "ModelUnavailable"),
        ('{"type": "response.output_te', "MalformedResponse"),
    ],
)
def test_faults_91_to_94_an_error_in_the_stream_keeps_the_partial_text(problem: object, tag: str) -> None:
    assert fold(problem)[0].failure().tag == tag
    late = fold(*stream_of(response(message("half")))[:-1], problem)[0].failure()
    assert (late.tag, late.partial, late.request_id) == (tag, "half", "resp_1")


@pytest.mark.parametrize("data", ["overloaded", '{"message":"busy"}', '{"type":"response.created"}'])
def test_an_event_named_error_is_an_error_whatever_its_data(data: str) -> None:
    assert not is_successful(OPENAI_RESPONSES.decode_event(Draft(target=TARGET), ServerEvent("error", data)))


def test_fault_99_empty_and_unknown_events_are_ignored() -> None:
    odd = [
        *("", " ", "null", "[]", "{}", '{"type":null}'),
        *(event("dream.delta", delta="no"), {"type": "keepalive", "sequence_number": 3}),
        event("output_text.delta", output_index=0, delta=None),
        event("output_item.added", output_index=9, item=None),
        event("web_search_call.searching", output_index=1, item_id="ws_1"),
    ]
    whole = response(message("hi"))
    answer, emitted = fold(*odd, *stream_of(whole))
    assert (answer, emitted) == (read(whole), [TextDelta("hi")])


def test_fault_101_a_whole_answer_as_the_only_event_is_decoded() -> None:
    whole = response(message("hi"))
    assert fold(whole)[0] == read(whole)


def test_fault_102_events_after_the_end_are_ignored() -> None:
    first, second = (stream_of(response(message(text))) for text in ("one", "two"))
    assert fold(*first, *second, {"type": "error", "message": "oops"}) == fold(*first)


def test_a_streamed_refusal_is_content_refused_at_the_end() -> None:
    answer, emitted = fold(*stream_of(response(refusal("I would rather not."))))
    error = answer.failure()
    assert isinstance(error, ContentRefused)
    assert (error.message, emitted) == ("I would rather not.", [])


# Tools of the server, unread items, and thinking in tags

SEARCHED = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "xs_1", "name": "x_keyword_search", "input": "sky"}
SERVER_TOOLS = [{"type": "x_search"}, {"type": "function", "name": "look"}]


@pytest.mark.parametrize("stream", [False, True])
def test_fault_178_a_tool_that_the_server_ran_is_no_call(stream: bool) -> None:
    whole = response(SEARCHED, message("because"), tools=SERVER_TOOLS)
    result, emitted = fold(*stream_of(whole)) if stream else (read(whole), [])
    assert (result.unwrap().finish_reason, result.unwrap().parts) == (FinishReason.STOP, (Text("because"),))
    assert result.unwrap().warnings == ("x_keyword_search: the server ran this tool itself",)
    assert not any(isinstance(each, ToolCallDelta) for each in emitted)


@pytest.mark.parametrize("tools", [[], [{"type": "custom", "name": "x_keyword_search"}, {"type": "x_search"}]])
def test_fault_178_a_tool_of_the_client_is_a_call(tools: list[Json]) -> None:
    result = read(response(SEARCHED, tools=tools)).unwrap()
    assert (result.finish_reason, result.tool_calls) == (
        FinishReason.TOOL_CALLS,
        (ToolCall("xs_1", "x_keyword_search", "sky"),),
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["image_generation_call", "mcp_approval_request", "computer_call"])
def test_fault_182_an_answer_of_unread_items_has_a_warning(kind: str, stream: bool) -> None:
    whole = response({"type": kind, "id": "x_1"}, thinking("hm"))
    result = (fold(*stream_of(whole))[0] if stream else read(whole)).unwrap()
    assert result.content == ""
    (warning,) = result.warnings
    assert kind in warning
    assert read(response({"type": kind, "id": "x_1"}, message("because"))).unwrap().warnings == ()


TAGGED = "<think>\nHm, <b>\n</think>\n\nBecause <think>."


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_fault_183_thinking_in_tags_is_no_text(size: int) -> None:
    whole = response(message(TAGGED), CALL, message("Then <think>.", id="msg_2"))
    result, emitted = fold(*stream_of(whole, size))
    assert equivalent(result, read(whole))
    parts = result.unwrap().parts
    assert [(type(part), getattr(part, "text", "")) for part in parts] == [
        (Reasoning, "Hm, <b>\n"),
        (Text, "Because <think>."),
        (ToolCall, ""),
        (Text, "Then <think>."),
    ]
    assert result.unwrap().warnings == ()
    assert "".join(each.text for each in emitted if isinstance(each, TextDelta)) == result.unwrap().content
    assert "".join(each.text for each in emitted if isinstance(each, ReasoningDelta)) == "Hm, <b>\n"


def test_fault_183_text_that_only_begins_like_a_tag_is_text() -> None:
    for text in ("<thi", "\n", "<think"):
        result, emitted = fold(*stream_of(response(message(text))))
        assert result.unwrap().content == text
        assert emitted == [TextDelta(text)]


@pytest.mark.parametrize(("reported", "priced"), [("flex", "flex"), ("fast", "priority"), ("default", None), (5, None)])
def test_the_service_tier_is_a_part_of_the_usage(reported: object, priced: str | None) -> None:
    usage = read(response(message("x"), service_tier=reported)).unwrap().usage
    assert usage == Usage(input_tokens=100, output_tokens=30, service_tier=priced)  # type: ignore[arg-type]
