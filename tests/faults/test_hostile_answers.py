"""One small answer does not stop everything: hostile and broken servers are bounded before their words are used."""

from __future__ import annotations

import gzip
import json
import os
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.lowlevel
import pytest
from attrs import evolve, frozen
from returns.pipeline import is_successful

from llm_effects import (
    ConfigurationError,
    InvalidRequest,
    LLMRequest,
    MalformedResponse,
    ModelConfig,
    Preferences,
    RateLimitExceeded,
    Text,
    Usage,
    generate,
    load_config,
    open_env,
    run,
    scripted_env,
    stream,
)
from llm_effects.config import BudgetConfig, Capabilities, Price
from llm_effects.effects.files import read_document
from llm_effects.limits.quotas import Demand, LimiterState, Quota, wait_time, with_reported_limits
from llm_effects.providers.anthropic import ANTHROPIC
from llm_effects.providers.error_mapping import classify
from llm_effects.providers.registry import provider_of, target_of
from llm_effects.providers.response_headers import rate_limits, retry_after
from llm_effects.providers.wire import WireResponse
from llm_effects.structured import generate_as
from llm_effects.structured.decoding import decode_text
from llm_effects.structured.schema import type_schema
from llm_effects.testing import answer, run_in_virtual_time
from llm_effects.values import caps
from llm_effects.values.messages import dimensions_of, page_count
from tests.fixtures.chaos import CLAUDE, DONE, END, HEAD, STOP, WHOLE, Chaos, chunk, event, says
from tests.fixtures.faults import MODES, RecordingSink, config_of, model, run_case
from tests.fixtures.models import models_in_order, scripted_models
from tests.fixtures.servers import reply, reply_json
from tests.fixtures.steps import steps_of

pytestmark = pytest.mark.anyio


@frozen
class Num:
    value: float


@frozen
class Add:
    left: Add | Mul | Num
    right: Add | Mul | Num


@frozen
class Mul:
    left: Add | Mul | Num
    right: Add | Mul | Num


def sum_of(levels: int, last: str) -> str:
    """Write a sum in a sum in a sum, whose innermost number is ``last``."""
    text = f'{{"value":{last}}}'
    for _ in range(levels):
        text = f'{{"left":{{"value":1}},"right":{text}}}'
    return text


@pytest.mark.parametrize("last", ["1", '"x"'], ids=["right", "wrong"])
def test_fault_163_nested_unions_are_decoded_in_linear_time(last: str) -> None:
    schema = type_schema(Add | Mul | Num).unwrap()
    small, large = (steps_of(partial(decode_text, schema, sum_of(levels, last))) for levels in (20, 40))
    assert large < 2.5 * small
    assert is_successful(decode_text(schema, sum_of(40, last))) == (last == "1")


@pytest.mark.parametrize("last", ["1", '"x"'], ids=["right", "wrong"])
def test_fault_163_broad_unions_are_decoded_in_linear_time(last: str) -> None:
    schema = type_schema(list[Add | Mul | Num]).unwrap()
    texts = (json.dumps([json.loads(sum_of(3, last))] * count) for count in (50, 100))
    small, large = (steps_of(partial(decode_text, schema, text)) for text in texts)
    assert large < 2.5 * small


def test_fault_163_at_most_a_hundred_problems_are_listed() -> None:
    problems = decode_text(type_schema(list[Num]).unwrap(), json.dumps([{}] * 10_000)).failure()
    assert len(problems) == caps.PROBLEMS


def test_fault_163_long_keys_are_written_into_few_problems_only() -> None:
    text = json.dumps({"k" * 500_000: {str(number): "x" for number in range(1_000)}})
    problems = decode_text(type_schema(dict[str, dict[str, int]]).unwrap(), text).failure()
    assert sum(map(len, problems)) < caps.PROBLEMS * 2 * caps.NAME_CHARACTERS


async def test_fault_163_a_long_answer_lets_other_tasks_run() -> None:
    text = json.dumps([{"value": 1}] * 40_000)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.sleep(0.001)

    async with anyio.create_task_group() as group:
        group.start_soon(count)
        answer = await run(generate_as(LLMRequest(prompt="?"), list[Num]), scripted_env(text))
        group.cancel_scope.cancel()
    assert len(answer.unwrap().value) == 40_000
    assert turns > 5


RESET = "x-ratelimit-reset-requests"
HINTS = {
    "digits": {RESET: "1" * 16_000, "x-ratelimit-remaining-requests": "0"},
    "units": {RESET: "1s" * 8_000, "x-ratelimit-remaining-requests": "0"},
    "seconds": {"retry-after": "1" * 16_000, "retry-after-ms": "1" * 16_000},
    "date": {"retry-after": "Mon, " * 3_000, "date": "Mon, " * 3_000},
}


@pytest.mark.parametrize("headers", HINTS.values(), ids=HINTS)
def test_fault_164_long_hints_are_ignored(headers: dict[str, str]) -> None:
    assert retry_after(headers) is None
    limits = rate_limits(headers, None, 0.0)
    assert limits is None or limits.requests.reset is None


def test_fault_164_a_hint_has_at_most_64_characters() -> None:
    assert retry_after({"retry-after": "5".zfill(64)}) == 5.0
    assert retry_after({"retry-after": "5".zfill(65)}) is None


HINT_MESSAGES: Final[dict[str, Callable[[int], str]]] = {
    "digits": lambda size: "try again in " + "1" * size,
    "units": lambda size: "try again in " + "1s" * (size // 2) + "x",
    "spaces": lambda size: "retry after " * (size // 12) + " " * size,
    "page": lambda size: "<!-- " * (size // 5) + "<script>" * (size // 8) + "<" * size,
}


@pytest.mark.parametrize("message", HINT_MESSAGES.values(), ids=HINT_MESSAGES)
def test_fault_164_messages_are_searched_in_linear_time(message: Callable[[int], str]) -> None:
    target = target_of("m", ModelConfig(provider="lm-studio")).unwrap()

    def seconds(size: int) -> float:
        response = WireResponse(status=429, body=message(size).encode())
        began = time.process_time()
        error = classify(target, response)
        took = time.process_time() - began
        assert (error.retry_after or 0.0) <= caps.PAUSE_S
        return took

    small, large = (min(seconds(size) for _ in range(5)) for size in (4_000, 32_000))
    assert large < 24 * small + 0.001  # eight times the text: 64 times would be quadratic


PAUSES = {"h": "9" * 40 + "h", "d": "99999d", "s": "1e308"}


@pytest.mark.parametrize("pause", PAUSES.values(), ids=PAUSES)
def test_fault_165_no_pause_is_longer_than_a_day(pause: str) -> None:
    headers = {"x-ratelimit-remaining-requests": "0", RESET: pause, "retry-after": pause}
    assert (retry_after(headers) or 0.0) <= caps.PAUSE_S
    reported = rate_limits(headers, None, 0.0)
    assert reported is not None
    meter = with_reported_limits(LimiterState().requests, reported.requests, 0.0)
    assert wait_time(LimiterState(requests=meter), Quota(), Demand(), caps.PAUSE_S + 1) == 0.0


@pytest.mark.parametrize("asked", [1e308, 10.0**30])
def test_fault_165_a_model_is_asked_again_after_a_day_at_most(asked: float) -> None:
    clients = scripted_models(a=(RateLimitExceeded(status=429, retry_after=asked), "back"), b="because")
    env = scripted_env(clients=clients, config=models_in_order("a", "b"))
    ask = LLMRequest(prompt="why?", cache="bypass")

    async def main() -> list[str]:
        first = (await run(generate(ask), env)).unwrap().model
        await anyio.sleep(caps.PAUSE_S + 1)
        return [first, (await run(generate(ask), env)).unwrap().model]

    assert run_in_virtual_time(main) == ["b", "a"]


def tool_calls(count: int) -> dict[str, object]:
    """Build a message with many calls."""
    calls = [{"index": n, "id": f"c{n}", "function": {"name": "f", "arguments": "{}"}} for n in range(count)]
    return {"role": "assistant", "tool_calls": calls}


def with_calls(count: int, mode: str) -> bytes:
    if mode == "whole":
        return reply_json({**WHOLE, "choices": [{"index": 0, "finish_reason": "stop", "message": tool_calls(count)}]})
    return HEAD + chunk(event(tool_calls(count)) + STOP + DONE) + END


@pytest.mark.parametrize("mode", MODES)
async def test_fault_166_an_answer_has_at_most_128_tool_calls(chaos: Chaos, mode: str) -> None:
    outcome = await run_case(chaos, {"first": model(chaos, says(with_calls(128, mode)))}, mode=mode)
    assert len(outcome.response.tool_calls) == 128
    many = model(chaos, says(with_calls(5_000, mode)))
    outcome = await run_case(chaos, {"first": many}, mode=mode, max_retries=0)
    assert isinstance(outcome.error, MalformedResponse)
    assert "128 tool calls" in outcome.error.message
    assert "max_tool_calls" in outcome.error.message


@pytest.mark.parametrize("mode", MODES)
async def test_fault_166_the_number_of_tool_calls_is_configurable(chaos: Chaos, mode: str) -> None:
    few = model(chaos, says(with_calls(3, mode)), max_tool_calls=2)
    assert "2 tool calls" in (await run_case(chaos, {"first": few}, mode=mode, max_retries=0)).error.message


ODD_USAGE = {"integer": 10**400, "float": 1e308, "count": 10**15}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", ODD_USAGE.values(), ids=ODD_USAGE)
async def test_fault_169_implausible_counts_are_replaced_by_the_estimate(chaos: Chaos, mode: str, count: float) -> None:
    content = {**WHOLE, "usage": {"prompt_tokens": count, "completion_tokens": count}}
    outcome = await run_case(chaos, {"first": model(chaos, says(reply_json(content)))}, mode=mode)
    usage = outcome.response.usage
    assert usage.estimated
    assert (usage.total_tokens or 0) < 100
    assert [each for each in outcome.response.warnings if "the estimate is used instead" in each]


async def test_fault_169_an_implausible_count_does_not_exhaust_a_budget() -> None:
    usage = Usage(input_tokens=10**15, output_tokens=1)
    replies = (evolve(answer("because"), usage=usage), "again")
    config = evolve(
        models_in_order("a", a={"price": Price(input=1, output=1)}), budgets=(BudgetConfig(name="day", limit_usd=1),)
    )
    env = scripted_env(clients=scripted_models(a=replies), config=config)
    ask = LLMRequest(prompt="why?", cache="bypass", preferences=Preferences(max_tokens=100))
    first = (await run(generate(ask), env)).unwrap()
    assert first.cost.usd is not None
    assert first.cost.usd < 1
    assert (await run(generate(ask), env)).unwrap().content == "again"


@pytest.mark.parametrize(
    ("prompt", "output", "window", "plausible"),
    [
        (20_000, 40, None, True),  # what the server adds
        (20_000, 40, 8_192, False),  # over the window
        (8_192, 40, 8_192, True),
        (40, 9_000, 8_192, False),
        (40_000, 40, None, False),  # over the bytes sent, and what a server adds
        (40_000, 40, 200_000, False),
    ],
)
async def test_fault_169_counts_over_the_window_or_the_bytes_sent_are_implausible(
    chaos: Chaos, prompt: int, output: int, window: int | None, plausible: bool
) -> None:
    content = {**WHOLE, "usage": {"prompt_tokens": prompt, "completion_tokens": output}}
    counted = model(chaos, says(reply_json(content)), capabilities=Capabilities(context_length=window))
    response = (await run_case(chaos, {"first": counted})).response
    assert response.usage.estimated is not plausible
    assert bool(response.warnings) is not plausible
    assert ((response.usage.total_tokens or 0) == prompt + output) is plausible


async def test_fault_169_plausible_counts_stay() -> None:
    usage = Usage(input_tokens=20_000, output_tokens=40)
    env = scripted_env(evolve(answer("because"), usage=usage))
    assert (await run(generate(LLMRequest(prompt="why?")), env)).unwrap().usage == usage


CITED = b'{"choices":[{"finish_reason":"stop","message":{"content":"a","annotations":[{"type":"url_citation","x":'
OUTPUT_TEXT = b'{"type":"output_text","text":"a","annotations":[{"type":"url_citation","url":"https://a.example","x":'
OUTPUT = b'{"status":"completed","output":[{"type":"message","role":"assistant","content":[' + OUTPUT_TEXT
BLOCKS = b'{"type":"message","stop_reason":"end_turn","content":[{"type":"text","text":"a","citations":[{"x":'
CITING = {
    "openai-chat": (CITED, b"}]}}]}"),
    "openai-responses": (OUTPUT, b"}]}]}]}"),
    "anthropic": (BLOCKS, b"}]}]}"),
}
"""An answer around a citation, by protocol."""


def nested(provider: str, levels: int) -> bytes:
    """Write an answer with a citation that is nested so deep."""
    before, after = CITING[provider]
    return before + b"[" * levels + b"]" * levels + after


@pytest.mark.parametrize("provider", CITING)
def test_fault_168_no_depth_of_nesting_raises(provider: str) -> None:
    target = target_of("m", ModelConfig(provider=provider, model="m", api_key="sk-x")).unwrap()
    decode = provider_of(target).decode
    assert decode(target, WireResponse(status=200, body=nested(provider, 80))).unwrap().content == "a"
    for levels in range(caps.NESTING, 1_050):  # beyond what Python's stack holds, too
        error = decode(target, WireResponse(status=200, body=nested(provider, levels))).failure()
        assert isinstance(error, MalformedResponse)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("provider", CITING)
async def test_fault_168_a_deep_citation_is_an_error(chaos: Chaos, provider: str, mode: str) -> None:
    deep = model(chaos, says(reply(nested(provider, 300))), provider=provider)
    assert isinstance((await run_case(chaos, {"first": deep}, mode=mode, max_retries=0)).error, MalformedResponse)


ODD_ANSWERS = {
    "nested": nested("openai-chat", 900),
    "deep": b"[" * 90_000,
    "many values": b'{"choices":[' + b"[]," * 200_000 + b"1]}",
    "infinite": b'{"choices":[{"index":1e999}]}',
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("body", ODD_ANSWERS.values(), ids=ODD_ANSWERS)
async def test_fault_168_odd_answers_are_errors(chaos: Chaos, mode: str, body: bytes) -> None:
    odd = model(chaos, says(reply(body)))
    assert isinstance((await run_case(chaos, {"first": odd}, mode=mode, max_retries=0)).error, MalformedResponse)


def test_fault_168_an_index_of_more_than_64_bits_is_ignored() -> None:
    target = target_of("m", ModelConfig(provider="anthropic", model="m", api_key="sk-x")).unwrap()
    citation = {"type": "char_location", "cited_text": "a", "document_index": 2**63}
    content = {**CLAUDE, "content": [{"type": "text", "text": "a", "citations": [citation]}]}
    decoded = ANTHROPIC.decode(target, WireResponse(status=200, body=json.dumps(content).encode())).unwrap()
    part = decoded.parts[0]
    assert isinstance(part, Text)
    assert [(each.quote, each.document) for each in part.citations] == [("a", None)]


@pytest.mark.parametrize("name", ["content-length", "Transfer-Encoding", "connection"])
def test_fault_168_a_header_that_frames_the_message_is_rejected_when_loaded(name: str) -> None:
    loaded = load_config({"models": {"a": {"provider": "lm-studio", "headers": {name: "5"}}}}, environ={})
    error = loaded.failure()
    assert isinstance(error, ConfigurationError)
    assert f"{name} is set by the library itself" in error.message


def squeezed(*members: bytes) -> bytes:
    """Build a whole response of several gzip members, each of which is small."""
    body = b"".join(members)
    head = f"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


BOMBS = {
    "text": squeezed(gzip.compress(event({"content": "a" * 60_000})) * 4_000),
    "refusals": squeezed(gzip.compress(event({"refusal": "a" * 60_000})) * 4_000),
    "comments": squeezed(gzip.compress(b": a" + b"a" * 60_000 + b"\n") * 4_000),
    "lists": squeezed(gzip.compress(b"[" + b"[]," * 10_000_000 + b"1]")),
    "texts": squeezed(gzip.compress(b"[" + b'"",' * 10_000_000 + b"1]")),
    "text in one": squeezed(gzip.compress(b'["' + b"a" * 30_000_000 + b'"]')),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
async def test_fault_167_a_small_compressed_answer_takes_little_memory(chaos: Chaos, mode: str, bomb: bytes) -> None:
    hostile = model(chaos, says(bomb), timeout_ms=60_000)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with open_env(config_of({"first": hostile}, max_retries=0)) as env:
        tracemalloc.start()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(count)
                ask = LLMRequest(prompt="?")
                result = await run(generate(ask) if mode == "whole" else stream(ask, RecordingSink()), env)
                group.cancel_scope.cancel()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert isinstance(result.failure(), MalformedResponse)
    assert peak < 64 * 2**20
    assert turns > 100  # one for each step of decompressing


async def test_fault_167_a_stream_of_tiny_pieces_has_a_limit(chaos: Chaos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caps, "STREAM_EVENTS", 1_000)
    sink = RecordingSink()
    hostile = model(chaos, says(squeezed(gzip.compress(event({"content": "a"}) * 2_000 + STOP + DONE))))
    async with open_env(config_of({"first": hostile}, max_retries=0)) as env:
        error = (await run(stream(LLMRequest(prompt="?"), sink), env)).failure()
    assert isinstance(error, MalformedResponse)
    assert "more than 1000 events" in error.message
    assert 900 <= len(sink.events) <= 1_002


async def test_fault_173_a_pipe_or_a_device_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pdf")
    with anyio.fail_after(30):
        for path in (tmp_path / "pipe.pdf", Path("/dev/zero")):
            error = (await run(read_document(path), scripted_env())).failure()
            assert isinstance(error, InvalidRequest)
            assert "is not a regular file" in error.message


JPEGS = {
    "bare markers": b"\xff\xd8" + b"\xff\xd0" * 1_000_000,
    "empty segments": b"\xff\xd8" + b"\xff\xe0\x00\x02" * 500_000,
    "fill bytes": b"\xff\xd8" + b"\xff" * 2_000_000,
    "fill bytes and markers": b"\xff\xd8" + (b"\xff" * 1_000 + b"\xd0") * 2_000,
    "pages": b"%PDF-" + b"/Type " * 300_000,
}


@pytest.mark.parametrize("data", JPEGS.values(), ids=JPEGS)
def test_fault_173_a_crafted_picture_is_measured_in_few_steps(data: bytes) -> None:
    page_count(b"")  # its pattern is compiled on first use
    assert steps_of(partial(dimensions_of, data)) < 10 * caps.PICTURE_SEGMENTS
    assert steps_of(partial(page_count, data)) < 100
    assert dimensions_of(data) is None


def test_every_limit_is_listed_in_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs/guides/errors.md").read_text()
    missing = [name for name in vars(caps) if name.isupper() and f"`{name}`" not in guide]
    assert not missing
