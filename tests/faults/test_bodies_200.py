"""Faults 57 to 79: successes that are errors, and unusual ones that are not."""

import gzip
import json
import tracemalloc
from typing import Any, Final

import pytest
from attrs import evolve

from llm_effects import Allow, FinishReason, LLMRequest, Message, ToolResult
from llm_effects.clients.transport.transport import Transport
from llm_effects.values import Tool
from tests.fixtures.chaos import CLAUDE, REQUEST_ID, WHOLE, Chaos, closes, good, problem, says
from tests.fixtures.faults import (
    ASK,
    MODES,
    Case,
    Outcome,
    assert_alone,
    assert_case,
    assert_with_another,
    model,
    rows_alternating,
    run_case,
)
from tests.fixtures.servers import Peer, reply, reply_json

pytestmark = pytest.mark.anyio

NAMED: Final = f"x-request-id: {REQUEST_ID}"
HTML: Final = reply(b"<html><h1>Please sign in</h1></html>").replace(b"application/json", b"text/html")
DEEP: Final = b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def body(content: bytes) -> bytes:
    return reply(content, "200 OK", NAMED)


def text(content: object, **more: object) -> dict[str, object]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}, **more}
    return {**WHOLE, "choices": [choice]}


def malformed(answer: bytes, tries: int = 2) -> Case:
    return Case(step=says(answer), tag="MalformedResponse", tries=tries, falls_back=True)


BODIES: dict[str, Case] = {
    "057_shorter_than_its_length": Case(
        step=closes(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{"),
        tag="NetworkError",
        tries=3,
        falls_back=True,
        fields={"phase": "reset"},
    ),
    "058_cut_json": malformed(body(b'{"choices": [')),
    "059_empty": malformed(body(b"")),
    "060_page": malformed(HTML),
    "062_null": malformed(body(b"null")),
    "062_list": malformed(body(b"[]")),
    "062_number": malformed(body(b"7")),
    "062_string": malformed(body(b'"because"')),
    "063_no_choices": malformed(reply_json({**WHOLE, "choices": []})),
    "063_null_choices": malformed(reply_json({**WHOLE, "choices": None})),
    "063_null_content": malformed(reply_json({**text(None), "usage": {}})),
    "067_nan": malformed(body(json.dumps(WHOLE | {"usage": {"prompt_tokens": float("nan")}}).encode())),
    "067_infinity": malformed(body(json.dumps(WHOLE | {"usage": {"prompt_tokens": float("inf")}}).encode())),
    "067_beyond_every_number": malformed(body(json.dumps(WHOLE).replace("3", "1e999").encode())),
    "068_no_utf8": malformed(body(json.dumps(text("x")).encode().replace(b'"x"', b'"\xff\xfe"'))),
    "071_deep_nesting": malformed(body(DEEP)),
    "074_broken_gzip": Case(
        step=closes(reply(b"\x1f\x8bno", "200 OK", "content-encoding: gzip")),
        tag="NetworkError",
        tries=3,
        falls_back=True,
        fields={"phase": "protocol"},
    ),
    "074_cut_gzip": Case(
        step=closes(reply(gzip.compress(json.dumps(WHOLE).encode())[:-9], "200 OK", "content-encoding: gzip")),
        tag="NetworkError",
        tries=3,
        falls_back=True,
    ),
}


@pytest.mark.parametrize(("case", "mode", "anyio_backend"), rows_alternating(BODIES))
async def test_an_undecodable_success_is_an_error(chaos: Chaos, case: Case, mode: str) -> None:
    await assert_case(chaos, case, mode)


BOMB: Final = reply(gzip.compress(bytes(8 * 2**20)), "200 OK", "content-encoding: gzip")
HUGE: Final = reply(b'{"choices":"' + b"x" * 3 * 2**20 + b'"}')


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("answer", [BOMB, HUGE], ids=["072_compression_bomb", "073_huge_body"])
async def test_a_response_beyond_the_cap_is_dropped_with_its_connection(chaos: Chaos, answer: bytes, mode: str) -> None:
    small = lambda: Transport(max_bytes=2**20, max_stream_bytes=2**21)  # noqa: E731
    models = {"first": model(chaos, closes(answer)), "second": model(chaos, good)}
    tracemalloc.start()
    try:
        outcome = await run_case(chaos, models, mode=mode, transport=small)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 7 * 2**20  # the cap and 5 MB
    assert (outcome.asked, outcome.response.model) == ({"first": 2, "second": 1}, "second")
    assert [attempt.outcome for attempt in outcome.response.attempts][:2] == ["MalformedResponse"] * 2


# --- Unusual, but valid -------------------------------------------------------------------------------------------

BECAUSE: Final = json.dumps(WHOLE).encode()
UNUSUAL: dict[str, bytes] = {
    "061_as_plain_text": body(BECAUSE).replace(b"application/json", b"text/plain"),
    "061_without_a_type": body(BECAUSE).replace(b"content-type: application/json\r\n", b""),
    "064_without_id_model_and_usage": reply_json({"choices": WHOLE["choices"]}),
    "065_unknown_fields_and_words": reply_json({**text("because", logprobs={"x": [1]}, mood="blue"), "object": "new"}),
    "066_a_key_twice": body(BECAUSE.replace(b'{"model"', b'{"choices": [], "model"')),
    "069_byte_order_mark": body(b"\xef\xbb\xbf" + BECAUSE),
    "070_wrong_charset": body(BECAUSE).replace(b"application/json", b"application/json; charset=utf-16"),
    "compressed": reply(gzip.compress(BECAUSE), "200 OK", "content-encoding: gzip"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", UNUSUAL)
async def test_an_unusual_success_is_accepted(chaos: Chaos, name: str, mode: str) -> None:
    outcome = await run_case(chaos, {"first": model(chaos, says(UNUSUAL[name]))}, mode=mode)
    assert (outcome.response.content, outcome.asked) == ("because", {"first": 1})
    assert outcome.response.usage.estimated == name.startswith("064")
    assert outcome.response.usage.input_tokens == 3 or outcome.response.usage.estimated


async def answered(chaos: Chaos, response: object, mode: str, request: LLMRequest = ASK, **settings: Any) -> Outcome:
    return await run_case(
        chaos, {"first": model(chaos, says(reply_json(response)), **settings)}, mode=mode, request=request
    )


@pytest.mark.parametrize("mode", MODES)
async def test_075_half_an_emoji_is_replaced(chaos: Chaos, mode: str) -> None:
    raw = json.dumps(text("half \ud83d here")).encode()
    outcome = await run_case(chaos, {"first": model(chaos, says(body(raw)))}, mode=mode)
    assert outcome.response.content == "half \ufffd here"


@pytest.mark.parametrize("mode", MODES)
async def test_076_a_different_served_model_is_reported(chaos: Chaos, mode: str) -> None:
    outcome = await answered(chaos, {**WHOLE, "model": "other-7b"}, mode)
    assert (outcome.response.model, outcome.response.served_model) == ("first", "other-7b")


@pytest.mark.parametrize("mode", MODES)
async def test_077_tool_calls_are_returned_even_when_invalid(chaos: Chaos, mode: str) -> None:
    calls = [
        {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": '}},
        {"type": "function", "function": {"name": "unknown tool", "arguments": "{}"}},
    ]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    answer = {**WHOLE, "choices": [{"index": 0, "finish_reason": "tool_calls", "message": message}]}
    request = evolve(ASK, tools=(Tool(name="look", description="look", parameters={"type": "object"}),))
    response = (await answered(chaos, answer, mode, request)).response
    assert [call.name for call in response.tool_calls] == ["look", "unknown tool"]
    assert [call.arguments for call in response.tool_calls] == ['{"at": ', "{}"]
    assert all(call.id for call in response.tool_calls)
    assert response.finish_reason is FinishReason.TOOL_CALLS  # so it is not cached


@pytest.mark.parametrize("mode", MODES)
async def test_078_an_answer_cut_off_at_its_limit_is_marked_and_not_cached(chaos: Chaos, mode: str) -> None:
    outcome = await answered(chaos, text("beca", finish_reason="length"), mode)
    assert (outcome.response.content, outcome.response.finish_reason) == ("beca", FinishReason.LENGTH)
    full = {**CLAUDE, "stop_reason": "model_context_window_exceeded"}
    outcome = await answered(chaos, full, mode, provider="anthropic")
    assert outcome.response.finish_reason is FinishReason.LENGTH


CALLED: Final = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
SIGNED: Final = {**CALLED, "extra_content": {"google": {"thought_signature": "CpQB+/=="}}}
THINKING: dict[str, tuple[dict[str, Any], bytes]] = {
    "deepseek": ({"reasoning_content": "Hm", "tool_calls": [CALLED]}, b'"reasoning_content":"Hm"'),
    "openrouter": (
        {"reasoning_details": [{"type": "reasoning.text", "text": "Hm", "signature": "s"}], "tool_calls": [CALLED]},
        b'"reasoning_details":[{"type":"reasoning.text","text":"Hm","signature":"s"}]',
    ),
    "gemini": ({"tool_calls": [SIGNED]}, b'"extra_content":{"google":{"thought_signature":"CpQB+/=="}}'),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("provider", THINKING)
async def test_fault_180_a_server_that_wants_its_thinking_back_gets_it(chaos: Chaos, provider: str, mode: str) -> None:
    fields, wanted = THINKING[provider]

    async def demands(peer: Peer, request: bytes) -> None:
        refusal = problem(400, "The thinking must be passed back to the API.")
        await (good(peer, request) if wanted in request else peer.send(refusal))

    thinks = says(reply_json(text(None, message={"role": "assistant", "content": None, **fields})))
    models = {"first": model(chaos, thinks, demands, provider=provider, model="thinker")}
    response = (await run_case(chaos, models, mode=mode, request=evolve(ASK, tools=(Tool("look"),)))).response
    results = (Message("tool", ToolResult(each.id, "done")) for each in response.tool_calls)
    turns = (Message("user", "why?"), Message("assistant", response.parts), *results)
    followed = await run_case(chaos, models, mode=mode, request=evolve(ASK, prompt=None, messages=turns))
    assert followed.response.content == "because"


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "refusal": (text(None, message={"role": "assistant", "refusal": "I will not"}), {}),
    "filter": (text("", finish_reason="content_filter"), {}),
    "claude": ({**CLAUDE, "content": [], "stop_reason": "refusal"}, {"provider": "anthropic"}),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", REFUSED)
async def test_079_a_refusal_is_an_error_and_not_cached(chaos: Chaos, name: str, mode: str) -> None:
    answer, settings = REFUSED[name]
    case = Case(step=says(reply_json(answer)), tag="ContentRefused", tries=1, falls_back=False, model=settings)
    await assert_alone(chaos, case, mode)
    await assert_with_another(chaos, case, mode)
    models = {"first": model(chaos, case.step, **settings), "second": model(chaos, good)}
    allowed = await run_case(chaos, models, mode=mode, request=evolve(ASK, allow={Allow.FALLBACK_ON_REFUSAL}))
    assert allowed.response.model == "second"
