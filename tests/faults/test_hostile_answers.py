"""One small answer does not stop everything: hostile and broken servers are bounded before their words are used."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import FrameType

import anyio
import pytest
from attrs import frozen
from returns.pipeline import is_successful

from llm_effects import LLMRequest, run, scripted_env
from llm_effects.structured import generate_as
from llm_effects.structured.decoding import decode_text
from llm_effects.structured.schema import type_schema
from llm_effects.values import caps

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
