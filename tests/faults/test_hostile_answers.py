"""One small answer does not stop everything: hostile and broken servers are bounded before their words are used."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from types import FrameType

import anyio
import pytest
from attrs import frozen
from returns.pipeline import is_successful

from llm_effects import LLMRequest, ModelConfig, RateLimitExceeded, generate, run, scripted_env
from llm_effects.limits.quotas import Demand, LimiterState, Quota, wait_time, with_reported_limits
from llm_effects.providers.error_mapping import classify
from llm_effects.providers.registry import target_of
from llm_effects.providers.response_headers import rate_limits, retry_after
from llm_effects.providers.wire import WireResponse
from llm_effects.structured import generate_as
from llm_effects.structured.decoding import decode_text
from llm_effects.structured.schema import type_schema
from llm_effects.testing import run_in_virtual_time
from llm_effects.values import caps
from tests.fixtures.models import models_in_order, scripted_models

pytestmark = pytest.mark.anyio


def calls_of(work: Callable[..., object], *arguments: object) -> int:
    """Count the calls of Python functions and of C functions that some work makes."""
    calls = 0

    def count(_: FrameType, event: str, __: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work(*arguments)
    finally:
        sys.setprofile(before)
    return calls


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
    small, large = (calls_of(decode_text, schema, sum_of(levels, last)) for levels in (20, 40))
    assert large < 2.5 * small
    assert is_successful(decode_text(schema, sum_of(40, last))) == (last == "1")


@pytest.mark.parametrize("last", ["1", '"x"'], ids=["right", "wrong"])
def test_fault_163_broad_unions_are_decoded_in_linear_time(last: str) -> None:
    schema = type_schema(list[Add | Mul | Num]).unwrap()
    texts = (json.dumps([json.loads(sum_of(3, last))] * count) for count in (50, 100))
    small, large = (calls_of(decode_text, schema, text) for text in texts)
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


HINT_MESSAGES = {
    "digits": "try again in " + "1" * 4_000,
    "units": "try again in " + "1s" * 2_000 + "x",
    "spaces": "retry after " * 300 + " " * 4_000,
    "page": "<!-- " * 800 + "<script>" * 500 + "<" * 4_000,
}


@pytest.mark.parametrize("message", HINT_MESSAGES.values(), ids=HINT_MESSAGES)
def test_fault_164_messages_are_searched_in_linear_time(message: str) -> None:
    target = target_of("m", ModelConfig(provider="lm-studio")).unwrap()
    began = time.perf_counter()
    error = classify(target, WireResponse(status=429, body=message.encode()))
    assert time.perf_counter() - began < 0.2  # a few milliseconds; it was seconds
    assert (error.retry_after or 0.0) <= caps.PAUSE_S


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
