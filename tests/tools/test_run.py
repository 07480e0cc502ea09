"""The loop of a model and its tools: steps, limits, events, and that no call runs twice."""

from decimal import Decimal
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from attrs import evolve

from llm_effects import (
    Completed,
    Cost,
    FinishReason,
    LLMConfig,
    LLMRequest,
    LLMResponse,
    MalformedResponse,
    Message,
    ModelConfig,
    ModelUnavailable,
    NetworkError,
    Preferences,
    RequestTimeout,
    Started,
    StreamEvent,
    Text,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    describe,
    run,
    run_tools,
    scripted_env,
    toolkit,
)
from llm_effects.config import Price, RoutingConfig
from llm_effects.testing import Delayed, Reply, run_in_virtual_time, scripted
from llm_effects.testing.scripted import answer, calling
from llm_effects.tools import (
    ToolEnd,
    ToolEvent,
    ToolFinished,
    ToolLimits,
    ToolOutcome,
    ToolStarted,
    ToolStep,
)
from llm_effects.values.requests import Tool
from tests.fixtures.tool_calls import QUESTION, CountingTool, call, finished_run

pytestmark = pytest.mark.anyio


async def test_a_model_calls_a_tool_and_answers_with_its_result() -> None:
    disk, model = CountingTool(), scripted(calling(call("free", '{"path": "/var"}')), "Nearly full.")
    finished = await finished_run(scripted_env(clients=model), disk.free)
    assert (finished.response.content, finished.end, disk.ran) == ("Nearly full.", ToolEnd.ANSWERED, 1)
    step = (Message("assistant", call("free", '{"path": "/var"}')), Message("tool", ToolResult("c1", "3 % of /var")))
    assert model.requests[1].messages == (Message("user", "How is the disk?"), *step)
    assert finished.messages == (*step, Message("assistant", "Nearly full."))
    assert [each.name for each in model.requests[1].tools] == ["free"]


async def test_the_response_has_the_attempts_usage_and_cost_of_all_steps() -> None:
    config = LLMConfig(models={"paid": ModelConfig(provider="lm-studio", price=Price(input=1, output=1))})
    finished = await finished_run(scripted_env(calling(call("free")), "Full.", config=config), CountingTool().free)
    first, second = finished.steps
    assert finished.response.attempts == (*first.response.attempts, *second.response.attempts)
    assert finished.response.cost == first.response.cost + second.response.cost
    assert finished.response.usage.output_tokens == 2
    assert finished.response.latency_ms >= first.response.latency_ms


async def test_calls_of_one_answer_run_concurrently_up_to_a_limit() -> None:
    most, now = 0, 0

    async def look(at: int) -> int:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await anyio.sleep(0.01)
        now -= 1
        return at

    calls = calling(*(call("look", f'{{"at": {at}}}', f"c{at}") for at in range(9)))
    finished = await finished_run(scripted_env(calls, "done"), look, limits=ToolLimits(parallel=3))
    assert most == 3
    assert [each.result.content for each in finished.answers] == [str(at) for at in range(9)]


async def test_reused_call_ids_are_made_unique_over_all_steps() -> None:
    model = scripted(calling(call("free", id="call_0")), calling(call("free", id="call_0")), "Full.")
    finished = await finished_run(scripted_env(clients=model), CountingTool().free)
    assert [each.call.id for each in finished.answers] == ["call_0", "call_0_1"]
    results = [part for each in model.requests[2].messages for part in each.parts if isinstance(part, ToolResult)]
    assert [each.call_id for each in results] == ["call_0", "call_0_1"]


async def test_calls_with_the_same_id_each_have_a_result() -> None:
    model = scripted(calling(call("free", '{"path": "/a"}'), call("free", '{"path": "/b"}')), "done")
    finished = await finished_run(scripted_env(clients=model), CountingTool().free)
    assert [(each.call.id, each.result.content) for each in finished.answers] == [
        ("c1", "3 % of /a"),
        ("c1_1", "3 % of /b"),
    ]
    assert [part.id for part in model.requests[1].messages[1].parts if isinstance(part, ToolCall)] == ["c1", "c1_1"]


# Bounds


async def test_a_run_ends_at_max_steps_without_running_the_last_calls() -> None:
    disk = CountingTool()
    finished = await finished_run(scripted_env(calling(call("free"))), disk.free, max_steps=3)
    assert (finished.end, len(finished.steps), disk.ran) == (ToolEnd.OUT_OF_STEPS, 3, 2)
    assert finished.response.finish_reason is FinishReason.TOOL_CALLS
    assert finished.answers[-1].outcome is ToolOutcome.NOT_RUN
    assert "max_steps" in finished.response.warnings[-1]


async def test_answer_last_reserves_the_last_step_for_an_answer() -> None:
    kit, model = toolkit(CountingTool().free), scripted(calling(call("free")), calling(call("free")), "Full.")
    request = evolve(QUESTION, tools=kit.tools, tool_choice="free")
    limits = ToolLimits(answer_last=True)
    finished = (await run(run_tools(request, kit, 3, limits=limits), scripted_env(clients=model))).unwrap()
    assert (finished.end, finished.response.content) == (ToolEnd.ANSWERED, "Full.")
    assert [each.tool_choice for each in model.requests] == ["free", None, "none"]


async def test_a_cut_off_answer_ends_the_run_as_cut_off() -> None:
    finished = await finished_run(
        scripted_env(evolve(answer("It is"), finish_reason=FinishReason.LENGTH)), CountingTool().free
    )
    assert (finished.end, finished.response.content) == (ToolEnd.CUT_OFF, "It is")
    assert "not whole" in finished.response.warnings[-1]


@pytest.mark.parametrize("reason", [FinishReason.LENGTH, FinishReason.CONTENT_FILTER])
async def test_calls_of_a_cut_off_answer_do_not_run(reason: FinishReason) -> None:
    disk = CountingTool()
    finished = await finished_run(scripted_env(evolve(calling(call("free")), finish_reason=reason)), disk.free)
    assert (finished.end, disk.ran, finished.response.finish_reason) == (ToolEnd.CUT_OFF, 0, reason)
    assert "not whole" in finished.response.warnings[-1]


def test_one_deadline_limits_the_whole_run() -> None:
    async def slow() -> str:
        await anyio.sleep(20)
        return "done"

    async def main() -> tuple[RequestTimeout, float, int]:
        started = anyio.current_time()
        env = scripted_env(Delayed(5, calling(call("slow"))))
        result = await run(run_tools(QUESTION, toolkit(slow), limits=ToolLimits(timeout_s=40)), env)
        error = result.failure()
        assert isinstance(error, RequestTimeout)
        return error, anyio.current_time() - started, len(error.attempts)

    error, took, attempts = run_in_virtual_time(main)
    assert (took, error.phase, attempts) == (40, "total", 2)


def test_the_deadline_of_a_run_limits_a_step() -> None:
    env = scripted_env(Delayed(1000, "late"))
    limits = ToolLimits(timeout_s=3)
    error = run_in_virtual_time(run, run_tools(QUESTION, toolkit(), limits=limits), env).failure()
    assert (error.tag, [each.outcome for each in error.attempts]) == ("TimeoutError", ["TimeoutError"])


async def test_no_tool_runs_once_max_cost_is_spent() -> None:
    disk = CountingTool()
    config = LLMConfig(models={"paid": ModelConfig(provider="lm-studio", price=Price(input=1000, output=1000))})
    env = scripted_env(calling(call("free")), config=config)
    limits = ToolLimits(max_cost=Decimal("0.02"))
    error = (await run(run_tools(QUESTION, toolkit(disk.free), limits=limits), env)).failure()
    assert (error.tag, disk.ran) == ("BudgetExceeded", len(error.attempts) - 1)
    assert error.cost != Cost.ZERO


async def test_max_cost_is_spent_once_it_is_reached() -> None:
    disk = CountingTool()
    config = LLMConfig(models={"paid": ModelConfig(provider="lm-studio", price=Price(input=1000, output=1000))})
    env = scripted_env(calling(call("free")), config=config)  # of 10 tokens and 1
    limits = ToolLimits(max_cost=Decimal("0.011"))
    error = (await run(run_tools(QUESTION, toolkit(disk.free), limits=limits), env)).failure()
    assert (error.tag, error.cost.usd, disk.ran) == ("BudgetExceeded", Decimal("0.011"), 0)


async def test_an_error_of_a_model_ends_the_run_with_the_attempts_of_all_steps() -> None:
    disk = CountingTool()
    env = scripted_env(calling(call("free")), NetworkError(phase="refused"))
    error = (await run(run_tools(QUESTION, toolkit(disk.free)), env)).failure()
    assert error.attempts[0].outcome == "success"
    assert len(error.attempts) >= 2
    assert disk.ran == 1


@pytest.mark.parametrize(
    ("request_", "options", "problem"),
    [
        (QUESTION, {"max_steps": 0}, "max_steps: must be at least 1"),
        (evolve(QUESTION, tools=(Tool("other"),)), {}, "tools: other is not in the toolkit"),
        (QUESTION, {"run_id": " "}, "run_id"),
    ],
)
async def test_an_impossible_run_is_an_invalid_request(
    request_: LLMRequest, options: dict[str, Any], problem: str
) -> None:
    error = (await run(run_tools(request_, toolkit(CountingTool().free), **options), scripted_env())).failure()
    assert error.tag == "InvalidRequest"
    assert problem in describe(error)


async def test_a_forced_tool_choice_applies_to_the_first_step_only() -> None:
    kit, model = toolkit(CountingTool().free), scripted(calling(call("free")), "done")
    request = evolve(QUESTION, tools=kit.tools, tool_choice="required")
    await run(run_tools(request, kit), scripted_env(clients=model))
    assert [each.tool_choice for each in model.requests] == ["required", None]


async def test_a_tool_that_was_not_offered_does_not_run() -> None:
    disk = CountingTool()
    request = evolve(QUESTION, tools=toolkit(disk.free).tools, tool_choice="none")
    finished = await run(run_tools(request, toolkit(disk.free)), scripted_env(calling(call("free")), "done"))
    assert (finished.unwrap().answers[0].outcome, disk.ran) == (ToolOutcome.UNKNOWN_TOOL, 0)


# At most once


TWO = LLMConfig(
    models={name: ModelConfig(provider="lm-studio", model=name) for name in ("one", "two")},
    routing=RoutingConfig(max_retries=1),
)


def broken_off(request: LLMRequest) -> Reply:
    return MalformedResponse(partial="I will call")


async def test_every_call_runs_once_despite_retries_and_fallback() -> None:
    disk = CountingTool()
    unavailable = ModelUnavailable(retry_after=0.001)
    env = scripted_env(unavailable, unavailable, calling(call("free")), broken_off, broken_off, "Full.", config=TWO)
    finished = await finished_run(env, disk.free)
    assert (finished.response.content, disk.ran) == ("Full.", 1)
    assert [each.outcome for each in finished.response.attempts].count("success") == 2
    assert {each.model for each in finished.response.attempts} == {"one", "two"}


# Events


async def test_the_stream_of_a_run_ends_once() -> None:
    seen: list[StreamEvent] = []

    async def sink(event: StreamEvent) -> None:
        seen.append(event)

    finished = await finished_run(scripted_env(calling(call("free")), "Full."), CountingTool().free, sink=sink)
    kinds = [type(event) for event in seen]
    assert kinds.count(Completed) == 1
    assert (kinds[0], kinds.count(Started), kinds.count(ToolCallDelta)) == (Started, 2, 1)
    assert seen[-1] == Completed(finished.response)


async def test_every_step_is_reported_as_it_happens() -> None:
    seen: list[ToolEvent] = []

    async def on_event(event: ToolEvent) -> None:
        seen.append(event)

    finished = await finished_run(scripted_env(calling(call("free")), "Full."), CountingTool().free, on_event=on_event)
    assert [type(event) for event in seen] == [ToolStarted, ToolFinished, ToolStep, ToolStep]
    assert (seen[1], seen[2:]) == (ToolFinished(1, finished.answers[0]), list(finished.steps))


async def test_an_exception_of_a_listener_is_raised_unchanged() -> None:
    async def on_event(_: ToolEvent) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await finished_run(scripted_env(calling(call("free")), "Full."), CountingTool().free, on_event=on_event)


async def test_each_step_has_its_own_time_limit() -> None:
    request = evolve(QUESTION, preferences=Preferences(timeout_ms=50_000))
    model = scripted(calling(call("free")), "done")
    await run(run_tools(request, toolkit(CountingTool().free)), scripted_env(clients=model))
    assert [each.preferences.timeout_ms for each in model.requests] == [50_000, 50_000]


async def test_text_beside_calls_is_sent_back_unchanged() -> None:
    parts = (Text("Let me look."), call("free"))
    model = scripted(evolve(answer("Let me look."), parts=parts, finish_reason=FinishReason.STOP), "Full.")
    finished = await finished_run(scripted_env(clients=model), CountingTool().free)
    assert model.requests[1].messages[1] == Message("assistant", parts)
    assert isinstance(finished.response, LLMResponse)


async def test_a_text_is_the_prompt_of_a_request() -> None:
    finished = (await run(run_tools("Why?", toolkit()), scripted_env("Because."))).unwrap()
    assert finished.response.content == "Because."
    error = (await run(run_tools(" ", toolkit()), scripted_env())).failure()
    assert describe(error) == "InvalidRequest: prompt: must not be blank: give some text, or leave it out"
