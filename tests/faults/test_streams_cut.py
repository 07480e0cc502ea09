"""Faults 80 to 103: valid streams in any form, and streams that break before or after their first content."""

import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final, TypeAlias

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from attrs import evolve

from llm_effects import (
    Completed,
    Failed,
    LLMEnv,
    Preferences,
    Recovery,
    Restarted,
    Started,
    StreamEvent,
    TextDelta,
    describe,
    open_converse,
    open_env,
    open_stream,
    run,
    start_conversation,
    stream,
)
from llm_effects.policies.cache import cache_stats
from tests.fixtures.chaos import (
    COUNTED,
    DONE,
    END,
    HEAD,
    REQUEST_ID,
    STOP,
    STREAM,
    WHOLE,
    Chaos,
    Step,
    chunk,
    closes,
    data,
    drips,
    event,
    good,
    holds,
    piece,
    resets,
    says,
)
from tests.fixtures.faults import (
    ASK,
    Case,
    RecordingSink,
    assert_case,
    assert_error,
    config_of,
    model,
    plan_of,
    run_case,
)
from tests.fixtures.servers import chunked, reply, reply_json
from tests.fixtures.wires import Wire

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("carried")]


@pytest.fixture
def anyio_backend(wire: Wire) -> str:
    return wire.loop


MARK: Final = b"\xef\xbb\xbf"
ODD: Final = "na\u00efve \u65e5\u672c \U0001f642 \u2028 \x85 \x0b end"
LINES: Final = b'data:{"choices":[{"index":0,\ndata: "delta":{"content":"because"},"finish_reason":"stop"}]}\n\n'


def bytewise(content: bytes) -> Step:
    return says(chunked(*(bytes([byte]) for byte in content)))


RIGHT: dict[str, Step] = {
    "080_a_byte_at_a_time": bytewise(STREAM),
    "081_crlf": says(chunked(STREAM.replace(b"\n", b"\r\n"))),
    "081_crlf_split": bytewise(STREAM.replace(b"\n", b"\r\n")),
    "081_bare_cr": says(chunked(STREAM.replace(b"\n", b"\r"))),
    "082_comments": says(chunked(b": ping\n\n", piece("be"), b":\n\n", piece("cause"), b": x\n\n", STOP, DONE)),
    "083_lines_and_no_space": says(chunked(LINES, DONE)),
    "084_byte_order_mark": says(chunked(MARK + STREAM)),
    "084_byte_order_mark_split": bytewise(MARK + STREAM),
    "086_no_last_blank_line": says(chunked(STREAM[:-2])),
    "087_no_done": says(chunked(STREAM[: -len(DONE)])),
    "089_broken_off_after_the_end": resets(chunked(STREAM, end=False)),
    "098_counted_twice": says(chunked(piece("be"), COUNTED, piece("cause"), STOP, COUNTED, COUNTED, DONE)),
    "099_nothing_in_it": says(
        chunked(event({"content": None}), data({"object": "new"}), b"event: new\ndata: {}\n\n", event({}), STREAM)
    ),
    "101_whole": says(reply_json(WHOLE)),
    "102_more_after_the_end": says(chunked(STREAM, piece("!!"), event({}, "length"), DONE)),
}


@pytest.mark.parametrize("name", RIGHT)
async def test_a_valid_stream_is_delivered_in_any_form(chaos: Chaos, name: str) -> None:
    outcome = await run_case(chaos, {"first": model(chaos, RIGHT[name])}, mode="streamed")
    assert (outcome.response.content, outcome.asked) == ("because", {"first": 1})
    assert outcome.events[0] == Started("first")


async def test_085_unicode_line_separators_do_not_end_a_line(chaos: Chaos) -> None:
    step = bytewise(piece(ODD) + STOP + DONE)
    assert (await run_case(chaos, {"first": model(chaos, step)}, mode="streamed")).text == ODD


async def test_100_tool_calls_in_pieces_are_joined(chaos: Chaos) -> None:
    def part(call: dict[str, object]) -> bytes:
        return event({"tool_calls": [call]})

    body = chunked(
        part({"index": 0, "id": "a", "function": {"name": "look", "arguments": '{"at'}}),
        part({"index": 1, "id": "b", "function": {"name": "go", "arguments": ""}}),
        part({"index": 0, "function": {"arguments": '":1}'}}),
        part({"id": "b", "function": {"arguments": "{}"}}),
        event({}, "tool_calls"),
        DONE,
    )
    response = (await run_case(chaos, {"first": model(chaos, says(body))}, mode="streamed")).response
    assert [(call.id, call.name, call.arguments) for call in response.tool_calls] == [
        ("a", "look", '{"at":1}'),
        ("b", "go", "{}"),
    ]


# --- Broken before and after the first content --------------------------------------------------------------------

ERROR: Final = data({"error": {"message": "no memory left", "type": "server_error", "code": 500}})
CLAUDE_BUSY: Final = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"busy"}}\n\n'
HASTY: Final = {"first_content_ms": 50, "between_content_ms": 2000}
PATIENT: Final = {"first_content_ms": 2000, "between_content_ms": 50}


def fails(step: Step, tag: str, tries: int, **fields: object) -> Case:
    limits = {"first_content": HASTY, "between_content": PATIENT}.get(str(fields.get("phase")), {})
    return Case(step=step, tag=tag, tries=tries, falls_back=True, fields=fields, model=limits, modes=("streamed",))


def closing(content: bytes) -> Step:
    return closes(HEAD + (chunk(content) if content else b""))


def ended(content: bytes) -> Step:
    return says(HEAD + (chunk(content) if content else b"") + END)


BEFORE: dict[str, Case] = {
    "088_clean_end_without_finish": fails(ended(event({"role": "assistant"})), "MalformedResponse", 2),
    "089_abrupt_close": fails(closing(event({"role": "assistant"})), "NetworkError", 3, phase="reset"),
    "090_empty": fails(ended(b""), "MalformedResponse", 2),
    "090_only_done": fails(ended(DONE), "MalformedResponse", 2),
    "090_a_finish_without_content": fails(ended(STOP + DONE), "MalformedResponse", 2),
    "091_error_event_first": fails(ended(ERROR), "ModelUnavailable", 3, reason="overloaded"),
    "091_error_event_first_of_claude": evolve(
        fails(ended(CLAUDE_BUSY), "ModelUnavailable", 3, reason="overloaded", status=529),
        model={"provider": "anthropic"},
    ),
    "093_error_that_is_a_text": fails(ended(data({"error": "oops"})), "ModelUnavailable", 3),
    "094_no_json": fails(ended(b"data: {oops\n\n"), "MalformedResponse", 2),
    "095_stall": fails(holds(HEAD), "TimeoutError", 2, phase="first_content", timeout_ms=50),
    "096_drip_of_comments": fails(drips(HEAD, chunk(b": ping\n\n")), "TimeoutError", 2, phase="first_content"),
    "097_endless_line": fails(ended(b"data: " + b"x" * 2**21), "MalformedResponse", 2),
    "101_page": fails(says(reply(b"<html>Sign in</html>")), "MalformedResponse", 2),
    "101_no_answer": fails(says(reply(b'{"ok": true}')), "MalformedResponse", 2),
}


@pytest.mark.parametrize("name", BEFORE)
async def test_a_stream_that_breaks_before_its_content_is_retried_silently(chaos: Chaos, name: str) -> None:
    await assert_case(chaos, BEFORE[name], "streamed")


BE: Final = piece("be")
AFTER: dict[str, Case] = {
    "088_clean_end_without_finish": fails(ended(BE), "MalformedResponse", 1, request_id=REQUEST_ID),
    "088_done_without_finish": fails(ended(BE + DONE), "MalformedResponse", 1),
    "089_abrupt_close": fails(closing(BE), "NetworkError", 1, phase="reset", request_id=REQUEST_ID),
    "089_reset": fails(resets(HEAD + chunk(BE)), "NetworkError", 1, phase="reset"),
    "092_error_event": fails(ended(BE + ERROR), "ModelUnavailable", 1, request_id=REQUEST_ID),
    "093_error_that_is_a_text": fails(ended(BE + data({"error": "oops"})), "ModelUnavailable", 1),
    "094_no_json": fails(ended(BE + b"data: {oops\n\n" + STREAM), "MalformedResponse", 1),
    "094_no_utf8": fails(ended(BE + b"data: \xff\xfe\n\n" + STREAM), "MalformedResponse", 1),
    "095_stall": fails(holds(HEAD + chunk(BE)), "TimeoutError", 1, phase="between_content", timeout_ms=50),
    "096_drip_of_comments": fails(
        drips(HEAD + chunk(BE), chunk(b": ping\n\n")), "TimeoutError", 1, phase="between_content"
    ),
    "097_endless_line": fails(ended(BE + b"data: " + b"x" * 2**21), "MalformedResponse", 1),
}


@pytest.mark.parametrize("name", AFTER)
async def test_a_stream_that_breaks_after_content_fails_with_it_and_is_not_restarted(chaos: Chaos, name: str) -> None:
    case = AFTER[name]
    models = {"first": model(chaos, case.step, **case.model), "second": model(chaos, good)}
    outcome = await run_case(chaos, models, mode="streamed")
    assert outcome.asked == {"first": 1, "second": 0}
    assert_error(outcome.error, case)
    assert (outcome.error.partial, outcome.text) == ("be", "be")


async def test_092_a_broken_stream_restarts_with_another_model_if_requested(chaos: Chaos) -> None:
    models = {"first": model(chaos, closing(BE)), "second": model(chaos, good)}
    outcome = await run_case(chaos, models, mode="streamed", request=evolve(ASK, recovery=Recovery.RESTART))
    at = outcome.events.index(Restarted("second"))
    assert outcome.events[:at] == (Started("first"), TextDelta("be"))
    assert outcome.response.content == "because"
    assert isinstance(outcome.events[-1], Completed)


@pytest.mark.parametrize("content", [STREAM, STREAM[: -len(DONE)]], ids=["done", "no_done"])
async def test_087_a_complete_answer_survives_a_server_that_does_not_close(chaos: Chaos, content: bytes) -> None:
    hasty = evolve(ASK, preferences=Preferences(timeout_ms=200))
    outcome = await run_case(
        chaos, {"first": model(chaos, holds(HEAD + chunk(content)))}, mode="streamed", request=hasty
    )
    assert outcome.response.content == "because"


async def test_096_content_that_the_consumer_never_took_is_not_partial_text(chaos: Chaos) -> None:
    both = model(chaos, holds(HEAD + chunk(BE + piece("cause"))))
    hasty, taken = evolve(ASK, preferences=Preferences(timeout_ms=500)), list[StreamEvent]()
    async with open_env(config_of({"first": both})) as env, open_stream(hasty)(env) as events:
        async for event in events:
            taken.append(event)
            if event == TextDelta("be"):
                await anyio.sleep(0.8)  # meanwhile the second piece is offered and the deadline passes
    assert taken[:-1] == [Started("first"), TextDelta("be")]
    assert isinstance(taken[-1], Failed)
    assert taken[-1].error.partial == "be"


async def test_096_an_endless_answer_ends_with_its_attempt(chaos: Chaos) -> None:
    endless = model(chaos, drips(HEAD, chunk(piece("x"))), timeout_ms=200)
    outcome = await run_case(chaos, {"first": endless}, mode="streamed")
    assert (outcome.error.tag, getattr(outcome.error, "phase", "")) == ("TimeoutError", "attempt")
    assert outcome.took < 0.45


# --- 103: consumers that leave ------------------------------------------------------------------------------------

ENDLESS: Final = drips(HEAD, chunk(piece("x")))
LEAVING: Final = ("breaks off", "raises", "is cancelled")


Pulled: TypeAlias = Callable[[LLMEnv], AbstractAsyncContextManager[AsyncIterator[StreamEvent]]]


async def leave(how: str, scope: anyio.CancelScope) -> None:
    if how == "raises":
        raise KeyError(how)
    if how == "is cancelled":
        scope.cancel()
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("pulled", [open_stream(ASK), open_converse("c", ASK)], ids=["stream", "turn"])
@pytest.mark.parametrize("how", LEAVING)
async def test_103_a_consumer_that_leaves_closes_the_connection_and_nothing_is_cached(
    chaos: Chaos, how: str, pulled: Pulled
) -> None:
    async with open_env(config_of({"first": model(chaos, ENDLESS)})) as env:
        await run(start_conversation("c"), env)
        with pytest.raises(KeyError) if how == "raises" else nullcontext(), anyio.CancelScope() as scope:
            async with pulled(env) as events:
                async for event in events:
                    if isinstance(event, TextDelta):
                        await leave(how, scope)
                        break
        assert await anyio.to_thread.run_sync(chaos.server.settled) == 0
        assert (await run(cache_stats(), env)).unwrap().entries == 0


async def test_103_an_unused_stream_sends_no_request(chaos: Chaos) -> None:
    first = model(chaos, ENDLESS)
    async with open_env(config_of({"first": first})) as env:
        open_stream(ASK)(env)
        with pytest.warns(RuntimeWarning, match="was never run"):
            stream(ASK, RecordingSink())
        gc.collect()
        assert chaos.asked[plan_of(first)] == 0


async def test_103_a_consumer_that_stops_reading_ends_the_call_at_its_own_limit(chaos: Chaos) -> None:
    async def never(event: object) -> None:
        if isinstance(event, TextDelta):
            await anyio.sleep_forever()

    async with open_env(config_of({"first": model(chaos, ENDLESS, sink_ms=50), "second": model(chaos, good)})) as env:
        with anyio.fail_after(30):
            error = (await run(stream(ASK, never), env)).failure()
        assert (error.tag, getattr(error, "phase", ""), error.model) == ("TimeoutError", "sink", "first")
        assert await anyio.to_thread.run_sync(chaos.server.settled) == 0


# --- An error after the reason to stop ----------------------------------------------------------------------------

LATE: Final = event({}, "length") + ERROR
USED: Final = data({"choices": [], "usage": {"prompt_tokens": 41, "completion_tokens": 243}})


@pytest.mark.parametrize("step", [says, holds])
async def test_fault_179_an_error_after_the_end_is_a_warning_and_the_usage_after_it_counts(
    chaos: Chaos, step: Callable[[bytes], Step]
) -> None:
    body = chunked(piece("because"), LATE, USED, DONE, end=step is says)
    outcome = await run_case(chaos, {"first": model(chaos, step(body))}, mode="streamed")
    response = outcome.response
    assert (response.content, response.usage.prompt_tokens, response.usage.output_tokens) == ("because", 41, 243)
    assert not response.usage.estimated
    (warning,) = response.warnings
    assert "no memory left" in warning


@pytest.mark.parametrize("reasoning", ["", "hm"])
async def test_fault_179_an_error_after_the_end_is_the_result_where_content_is_missing(
    chaos: Chaos, reasoning: str
) -> None:
    body = chunked(event({"content": "", "reasoning": reasoning}), LATE, USED, DONE)
    outcome = await run_case(chaos, {"first": model(chaos, says(body))}, mode="streamed", max_retries=0)
    assert outcome.error.tag == "ModelUnavailable"
    assert "no memory left" in describe(outcome.error)
    assert outcome.error.usage is not None
    assert outcome.error.usage.output_tokens == 243


async def test_fault_179_a_server_that_is_silent_after_its_error_is_not_waited_for(chaos: Chaos) -> None:
    body = chunked(piece("because"), LATE, end=False)
    outcome = await run_case(chaos, {"first": model(chaos, holds(body), timeout_ms=3000)}, mode="streamed")
    assert outcome.response.content == "because"
    assert outcome.took < 1.5
