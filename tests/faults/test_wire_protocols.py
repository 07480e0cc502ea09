"""Faults 164, 165, 177, 178 and 181 to 183 over sockets, whole and streamed.

The tests of the protocols (``tests/providers``) have the same faults event by event.
"""

import json
from typing import Any, Final

import pytest

from llm_effects import FinishReason, RateLimitExceeded, Text, ToolCall
from llm_effects.values import Reasoning, caps
from tests.fixtures.chaos import (
    COUNTED,
    DONE,
    STOP,
    STREAM,
    USAGE,
    WHOLE,
    Chaos,
    Step,
    data,
    event,
    good,
    piece,
    problem,
    says,
)
from tests.fixtures.faults import MODES, Case, assert_case, model, rows_alternating, run_case
from tests.fixtures.servers import chunked, reply_json

pytestmark = pytest.mark.anyio


def answers(whole: object, streamed: bytes, *headers: str) -> Step:
    """Answer whole or streamed, as requested."""

    async def step(peer: Any, request: bytes) -> None:
        is_stream = b'"stream":true' in request
        await peer.send(chunked(streamed, headers=headers) if is_stream else reply_json(whole, "200 OK", *headers))

    return step


def chat(finish: str, *deltas: dict[str, Any]) -> Step:
    """Answer in chat completions: the deltas one by one, or merged into one message."""
    message: dict[str, Any] = {"role": "assistant"}
    for delta in deltas:
        for key, value in delta.items():
            message[key] = message[key] + value if key in message else value
    whole = {"model": "m", "choices": [{"index": 0, "finish_reason": finish, "message": message}], "usage": USAGE}
    return answers(whole, b"".join([*map(event, deltas), event({}, finish), COUNTED, DONE]))


def responses(*items: dict[str, Any], **fields: object) -> Step:
    """Answer in Responses."""
    usage = {"input_tokens": 3, "output_tokens": 1}
    whole = {"id": "r", "status": "completed", "model": "m", "output": list(items), "usage": usage, **fields}
    started = {**whole, "status": "in_progress", "output": [], "usage": None}
    events = [
        {"type": "response.created", "response": started},
        *(
            {"type": f"response.output_item.{state}", "output_index": at, "item": item}
            for at, item in enumerate(items)
            for state in ("added", "done")
        ),
        {"type": "response.completed", "response": whole},
    ]
    return answers(whole, b"".join(map(data, events)))


def said(text: str) -> dict[str, Any]:
    """Return the item of a text."""
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content}


# Hints that are long, and pauses of years.

RESET: Final = "x-ratelimit-reset-requests"
LONG: Final = {"digits": "1" * 16_000, "units": "1s" * 8_000}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("hint", LONG.values(), ids=LONG)
async def test_fault_164_a_hint_of_16_kb_costs_no_time(chaos: Chaos, hint: str, mode: str) -> None:
    hinted = answers(WHOLE, STREAM, f"{RESET}: {hint}", "x-ratelimit-remaining-requests: 0")
    outcome = await run_case(chaos, {"first": model(chaos, hinted, timeout_ms=60_000)}, mode=mode)
    assert outcome.response.content == "because"
    assert outcome.took < 2  # it was 14 seconds


ENDLESS: Final = {
    "retry-after": "retry-after: 1e308",
    "retry-after-ms": "retry-after-ms: 1e308",
    "reset": f"{RESET}: {'9' * 40}h",
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("header", ENDLESS.values(), ids=ENDLESS)
async def test_fault_165_a_pause_of_years_is_a_day_at_most(chaos: Chaos, header: str, mode: str) -> None:
    busy = says(problem(429, "slow", header, "x-ratelimit-remaining-requests: 0"))
    alone = await run_case(chaos, {"first": model(chaos, busy)}, mode=mode, max_retries=0)
    assert isinstance(alone.error, RateLimitExceeded)
    assert (alone.error.retry_after or 0.0) <= caps.PAUSE_S
    with_another = await run_case(chaos, {"first": model(chaos, busy), "second": model(chaos, good)}, mode=mode)
    assert with_another.response.model == "second"


# What an answer has besides its text.

SITE: Final = {"type": "url_citation", "url_citation": {"start_index": 0, "end_index": 7, "url": "https://a.example"}}


async def test_fault_177_citations_that_stream_before_the_text_arrive(chaos: Chaos) -> None:
    streamed = event({"content": "", "annotations": [SITE]}) + piece("be") + piece("cause") + STOP + DONE
    outcome = await run_case(chaos, {"first": model(chaos, answers(WHOLE, streamed))}, mode="streamed")
    (part,) = outcome.response.parts
    assert isinstance(part, Text)
    assert [(each.start, each.end, each.url) for each in part.citations] == [(0, 7, "https://a.example")]


SEARCHED: Final = {
    "type": "custom_tool_call",
    "id": "c_1",
    "call_id": "x_1",
    "name": "x_keyword_search",
    "input": "sky",
}


@pytest.mark.parametrize("mode", MODES)
async def test_fault_178_a_tool_that_the_server_ran_is_information(chaos: Chaos, mode: str) -> None:
    searched = {
        "type": "custom_tool_call",
        "id": "ctc_1",
        "call_id": "xs_1",
        "name": "x_keyword_search",
        "input": "sky",
    }
    step = responses(searched, said("because"), tools=[{"type": "x_search"}])
    outcome = await run_case(chaos, {"first": model(chaos, step, provider="openai-responses")}, mode=mode)
    response = outcome.response
    assert (response.finish_reason, response.content, response.tool_calls) == (FinishReason.STOP, "because", ())
    assert response.warnings == ("x_keyword_search: the server ran this tool itself",)


NOT_HERE: Final[dict[str, Any]] = {"tag": "ModelUnavailable", "tries": 1, "falls_back": True}
MINE: Final[dict[str, Any]] = {"tag": "InvalidRequest", "tries": 1, "falls_back": False}
UNKNOWN: Final = {"reason": "unknown_model"}
UNSUPPORTED: Final = {"reason": "unsupported"}

TEXTS: Final[dict[str, Case]] = {
    "181_400_model_not_exist": Case(step=says(problem(400, "Model Not Exist")), **NOT_HERE, fields=UNKNOWN),
    "181_400_decommissioned": Case(
        step=says(problem(400, "`gemma-7b` is gone.", code="model_decommissioned")), **NOT_HERE, fields=UNKNOWN
    ),
    "181_404_no_endpoints_with_tools": Case(
        step=says(problem(404, "No endpoints found that support tool use.")), **NOT_HERE, fields=UNSUPPORTED
    ),
    "181_404_tools_not_supported": Case(
        step=says(problem(404, "tools is not supported in this model.")), **NOT_HERE, fields=UNSUPPORTED
    ),
    "181_400_prompt_too_long": Case(
        step=says(problem(400, "prompt too long; exceeded max context length by 12 tokens")),
        tag="ContextTooLarge",
        tries=1,
        falls_back=True,
    ),
    "181_500_audio_not_supported": Case(step=says(problem(500, "audio input is not supported - hint: mmproj")), **MINE),
    "181_500_tools_with_stream": Case(step=says(problem(500, "Cannot use tools with stream")), **MINE),
}


@pytest.mark.parametrize(("case", "mode", "anyio_backend"), rows_alternating(TEXTS))
async def test_a_text_about_a_model_or_a_tool_is_the_right_error(chaos: Chaos, case: Case, mode: str) -> None:
    await assert_case(chaos, case, mode)


PICTURE: Final = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
UNREAD: Final = {
    "images": ("openai-chat", chat("stop", {"images": [PICTURE]})),
    "audio": ("openai-chat", chat("stop", {"audio": {"id": "audio_1", "data": "AAAA"}})),
    **{
        kind: ("openai-responses", responses({"type": kind, "id": "x_1"}))
        for kind in ("image_generation_call", "mcp_approval_request", "computer_call")
    },
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", UNREAD)
async def test_fault_182_an_empty_answer_names_what_was_not_read(chaos: Chaos, kind: str, mode: str) -> None:
    provider, step = UNREAD[kind]
    outcome = await run_case(chaos, {"first": model(chaos, step, provider=provider)}, mode=mode)
    assert outcome.response.content == ""
    (warning,) = outcome.response.warnings
    assert kind in warning


@pytest.mark.parametrize("mode", MODES)
async def test_fault_183_blank_content_stays_before_its_tool_call(chaos: Chaos, mode: str) -> None:
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    step = chat("tool_calls", {"content": "\n\n"}, {"tool_calls": [call]})
    outcome = await run_case(chaos, {"first": model(chaos, step)}, mode=mode)
    assert outcome.response.parts == (Text("\n\n"), ToolCall("a", "look", "{}"))


THINKING: Final = {
    "openai-chat": chat("stop", {"content": "<think>\nHm.\n"}, {"content": "</think>\n\nBecause."}),
    "openai-responses": responses(said("<think>\nHm.\n</think>\n\nBecause.")),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("provider", THINKING)
async def test_fault_183_thinking_in_tags_is_reasoning_in_every_protocol(
    chaos: Chaos, provider: str, mode: str
) -> None:
    outcome = await run_case(chaos, {"first": model(chaos, THINKING[provider], provider=provider)}, mode=mode)
    assert outcome.response.content == "Because."
    assert [part.text.strip() for part in outcome.response.parts if isinstance(part, Reasoning)] == ["Hm."]
    assert "<think>" not in json.dumps([repr(each) for each in outcome.events])
