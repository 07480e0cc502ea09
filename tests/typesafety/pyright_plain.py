# pyright: strict
"""The types that pyright infers for ``LLM`` and ``AsyncLLM``; read by ``test_pyright.py``, never run."""

from typing import assert_type

from attrs import frozen

from llm_effects import (
    LLM,
    AsyncLLM,
    Effect,
    LLMConfig,
    LLMEnv,
    LLMError,
    LLMFailure,
    LLMManager,
    LLMRequest,
    LLMResponse,
    Message,
    StreamEvent,
)
from llm_effects.plain.streams import AsyncPartialStream, PartialStream
from llm_effects.structured import Structured


@frozen
class Report:
    title: str


@frozen
class Point:
    x: int


def plain_values_are_returned(llm: LLM, request: LLMRequest, count: Effect[int]) -> None:
    assert_type(llm.generate("why?"), LLMResponse)
    assert_type(llm.generate(request, max_tokens=5, temperature=0.2, model=None, task_type="triage"), LLMResponse)
    assert_type(llm.generate_as("why?", Report, max_tokens=5), Structured[Report])
    assert_type(llm.generate_as("why?", list[Report]).value, list[Report])
    assert_type(llm.generate_as("why?", Structured[Report | Point]), Structured[Report | Point])
    assert_type(llm.generate_as("why?", Report | Point), Structured[object])
    assert_type(llm.generate_many(["why?", request]), tuple[LLMResponse | LLMError, ...])
    assert_type(llm.converse("c", Message("user", "why?"), owner="ada", max_tokens=5), LLMResponse)
    assert_type(llm.generate("why?", owner="ada", tags=["nightly"]), LLMResponse)
    assert_type([*llm.stream("why?", owner="ada")], list[StreamEvent])
    assert_type(llm.stream_as("why?", Report), PartialStream[Report])
    assert_type(llm.stream_as("why?", Structured[Report | Point]), PartialStream[Report | Point])
    assert_type([*llm.converse_stream("c", "why?", pinned=True)], list[StreamEvent])
    assert_type(llm.run(count), int)
    with llm as entered:
        assert_type(entered, LLM)


async def plain_values_are_awaited(llm: AsyncLLM, request: LLMRequest, count: Effect[int]) -> None:
    assert_type(await llm.generate("why?"), LLMResponse)
    assert_type(await llm.generate(request, timeout_ms=5), LLMResponse)
    assert_type(await llm.generate_as("why?", Report, max_tokens=5), Structured[Report])
    assert_type(await llm.generate_as("why?", Structured[Report | Point]), Structured[Report | Point])
    assert_type(llm.stream_as("why?", Structured[Report | Point]), AsyncPartialStream[Report | Point])
    assert_type(await llm.converse("c", "why?"), LLMResponse)
    assert_type([event async for event in llm.stream("why?")], list[StreamEvent])
    assert_type([event async for event in llm.converse_stream("c", "why?")], list[StreamEvent])
    assert_type(await llm.run(count), int)
    async with llm as entered:
        assert_type(entered, AsyncLLM)


def sources_are_these(config: LLMConfig, env: LLMEnv, failure: LLMFailure) -> None:
    print(LLM(), LLM(config), LLM("llm.toml", check=True), LLM(env), LLM({"models": {}}))
    assert_type(failure.error, LLMError)


async def mistakes_are_rejected(llm: LLM, async_llm: AsyncLLM, manager: LLMManager) -> None:
    LLM(manager)  # rejected
    LLM(None, True)  # rejected
    llm.generate("why?", max_token=5)  # rejected
    llm.generate("why?", max_tokens="5")  # rejected
    llm.generate("why?", pinned=True)  # rejected
    llm.generate({"prompt": "why?"})  # rejected
    llm.converse("c", "why?", pinned="yes")  # rejected
    print(async_llm.generate("why?").content)  # rejected
    wrong: int = llm.generate_as("why?", Report).value.title  # rejected
    print(wrong)
