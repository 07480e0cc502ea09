"""The loop of a model and its tools: what runs, what is told, and that nothing runs twice."""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from attrs import define, evolve, field, frozen
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from returns.result import Failure, Result, Success

from llm_effects import (
    Completed,
    Cost,
    Effect,
    FinishReason,
    LLMConfig,
    LLMEnv,
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
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    describe,
    fail,
    from_env,
    run,
    run_tools,
    scripted_env,
    succeed,
    tool,
    toolkit,
)
from llm_effects.config import Price, RoutingConfig
from llm_effects.pipeline import standard_pipeline
from llm_effects.telemetry.logs import LOGGER
from llm_effects.telemetry.otel import open_telemetry
from llm_effects.testing import Delayed, Reply, run_in_virtual_time, scripted
from llm_effects.testing.scripted import answer, calling
from llm_effects.tools import (
    Approved,
    Refused,
    ToolAnswer,
    ToolEnd,
    ToolEvent,
    ToolFinished,
    ToolFunction,
    ToolLimits,
    ToolOutcome,
    ToolRun,
    ToolStarted,
    ToolStep,
    Verdict,
    tool_with_schema,
    tools_by_schema,
)
from llm_effects.values.requests import Tool

pytestmark = pytest.mark.anyio

QUESTION = LLMRequest(prompt="How is the disk?")


def call(name: str, arguments: str = "{}", id: str = "c1") -> ToolCall:  # noqa: A002 - as the field
    return ToolCall(id, name, arguments)


@define
class Counted:
    """A tool that counts how often it ran."""

    ran: int = 0
    lock: Any = field(factory=threading.Lock)

    async def free(self, path: str = "/") -> str:
        """Tell how much of a disk is free."""
        self.ran += 1
        return f"3 % of {path}"


async def ran(env: LLMEnv, *functions: Any, **options: Any) -> ToolRun:
    return (await run(run_tools(QUESTION, toolkit(*functions), **options), env)).unwrap()


async def told(function: Any, arguments: str = "{}", **options: Any) -> ToolAnswer:
    """What came of one call of a tool."""
    made = function if isinstance(function, ToolFunction) else tool(function, name="it")
    env = scripted_env(calling(call(made.tool.name, arguments)), "done")
    return (await ran(env, made, **options)).answers[0]


async def test_a_model_calls_a_tool_and_answers_with_its_result() -> None:
    disk, model = Counted(), scripted(calling(call("free", '{"path": "/var"}')), "Nearly full.")
    finished = await ran(scripted_env(clients=model), disk.free)
    assert (finished.response.content, finished.end, disk.ran) == ("Nearly full.", ToolEnd.ANSWERED, 1)
    said = (Message("assistant", call("free", '{"path": "/var"}')), Message("tool", ToolResult("c1", "3 % of /var")))
    assert model.requests[1].messages == (Message("user", "How is the disk?"), *said)
    assert finished.messages == (*said, Message("assistant", "Nearly full."))
    assert [each.name for each in model.requests[1].tools] == ["free"]


async def test_the_response_has_the_attempts_usage_and_cost_of_all_steps() -> None:
    config = LLMConfig(models={"paid": ModelConfig(provider="lm-studio", price=Price(input=1, output=1))})
    finished = await ran(scripted_env(calling(call("free")), "Full.", config=config), Counted().free)
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
    finished = await ran(scripted_env(calls, "done"), look, limits=ToolLimits(parallel=3))
    assert most == 3
    assert [each.result.content for each in finished.answers] == [str(at) for at in range(9)]


# What a function may be and give


def plain() -> dict[str, int]:
    return {"free": 3}


async def asynchronous() -> list[int]:
    return [1]


def gives_an_effect() -> Effect[int]:
    return from_env(lambda env: len(env.config.models))


async def gives_an_effect_later() -> Effect[str]:
    return succeed("later")


def gives_a_result() -> Result[str, str]:
    return Success("fine")


def gives_a_failure() -> Result[str, str]:
    return Failure("no such disk")


def gives_an_error() -> Effect[str]:
    return fail(NetworkError(message="reset"))


def gives_nothing() -> None: ...


@frozen
class Disk:
    name: str
    free: float


def gives_a_class() -> tuple[Disk, ...]:
    return (Disk("a", 0.5),)


DONE, FAILED = ToolOutcome.DONE, ToolOutcome.FAILED


@pytest.mark.parametrize(
    ("function", "text", "outcome"),
    [
        (plain, '{"free":3}', DONE),
        (asynchronous, "[1]", DONE),
        (gives_an_effect, "1", DONE),
        (gives_an_effect_later, "later", DONE),
        (gives_a_result, "fine", DONE),
        (gives_a_failure, "no such disk", FAILED),
        (gives_an_error, "NetworkError: reset", FAILED),
        (gives_nothing, "null", DONE),
        (gives_a_class, '[{"free":0.5,"name":"a"}]', DONE),
    ],
)
async def test_what_a_function_returns_becomes_text(function: Any, text: str, outcome: ToolOutcome) -> None:
    said = await told(function)
    assert (said.result.content, said.outcome) == (text, outcome)
    assert said.result.is_error is (outcome is FAILED)


async def test_a_tool_with_its_own_schema_receives_one_object() -> None:
    echo = tool_with_schema(Tool("echo"), lambda arguments: arguments["text"])
    assert (await told(echo, '{"text": "hi"}')).result.content == "hi"


# What goes wrong is told to the model


async def leaks() -> str:
    raise ValueError("cannot log in with sk-abc123456789")


def raises() -> str:
    raise KeyError("disk")


async def raises_many() -> str:
    raise ExceptionGroup("several", [ValueError("a"), OSError("b")])


def exits() -> str:
    sys.exit(2)


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


def raises_what_has_no_text() -> str:
    raise MuteError


def gives_an_object() -> object:
    return object()


def gives_itself() -> list[object]:
    itself: list[object] = []
    itself.append(itself)
    return itself


def gives_a_bad_letter() -> str:
    return "a\ud800"


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (leaks, "ValueError: cannot log in with ***"),
        (raises, "KeyError: 'disk'"),
        (raises_many, "ExceptionGroup: several (2 sub-exceptions)"),
        (exits, "SystemExit: 2"),
        (raises_what_has_no_text, "MuteError"),
        (gives_an_object, "the tool ran, but its result is not JSON: TypeError: object cannot be written as JSON"),
        (gives_itself, "the tool ran, but its result is not JSON: RecursionError"),
    ],
)
async def test_fault_77_the_failure_of_a_tool_is_a_result_and_the_run_continues(function: Any, text: str) -> None:
    said = await told(function)
    assert said.result.content.startswith(text)
    assert (said.outcome, said.result.is_error) == (FAILED, True)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancelled_future_inside_a_tool_is_a_failure_of_the_tool() -> None:
    async def waits_for_what_was_cancelled() -> str:
        waiting = asyncio.get_running_loop().create_future()
        waiting.cancel()
        return str(await waiting)

    said = await told(waits_for_what_was_cancelled)
    assert (said.result.content, said.outcome) == ("CancelledError", FAILED)


async def test_an_invalid_character_is_replaced() -> None:
    assert (await told(gives_a_bad_letter)).result.content == "a\ufffd"


async def test_the_traceback_of_a_tool_that_raised_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, LOGGER.name):
        await told(raises)
    assert any(record.exc_info and record.exc_info[0] is KeyError for record in caplog.records)


@pytest.mark.parametrize(
    ("asked_for", "text", "outcome"),
    [
        (call("fre"), "there is no tool 'fre': did you mean free?", ToolOutcome.UNKNOWN_TOOL),
        (call("free", '{"path": 3}'), "the arguments do not fit:\n- $.path: ", ToolOutcome.BAD_ARGUMENTS),
        (call("free", '{"path":'), "the arguments do not fit:\n- $: is not JSON", ToolOutcome.BAD_ARGUMENTS),
        (call("free", "[" * 100_000), "the arguments do not fit:\n- $: ", ToolOutcome.BAD_ARGUMENTS),
    ],
)
async def test_fault_77_a_call_that_cannot_run_gets_an_error_result(asked_for: ToolCall, text: str, outcome: ToolOutcome) -> None:
    disk = Counted()
    finished = await ran(scripted_env(calling(asked_for), "Sorry."), disk.free)
    assert finished.answers[0].result.content.startswith(text)
    assert (finished.answers[0].outcome, finished.answers[0].result.is_error, disk.ran) == (outcome, True, 0)


@pytest.mark.parametrize("asked_for", [call("x" * 3_000_000), call("free", f'{{"{"x" * 3_000_000}": 1}}')])
async def test_the_result_of_a_garbled_call_is_truncated(asked_for: ToolCall) -> None:
    finished = await ran(scripted_env(calling(asked_for), "Sorry."), Counted().free)
    assert len(finished.answers[0].result.content) < ToolLimits().result_chars + 100


async def test_reused_call_ids_are_made_unique_over_all_steps() -> None:
    model = scripted(calling(call("free", id="call_0")), calling(call("free", id="call_0")), "Full.")
    finished = await ran(scripted_env(clients=model), Counted().free)
    assert [each.call.id for each in finished.answers] == ["call_0", "call_0_1"]
    results = [part for each in model.requests[2].messages for part in each.parts if isinstance(part, ToolResult)]
    assert [each.call_id for each in results] == ["call_0", "call_0_1"]


async def test_calls_with_the_same_id_each_have_a_result() -> None:
    model = scripted(calling(call("free", '{"path": "/a"}'), call("free", '{"path": "/b"}')), "done")
    finished = await ran(scripted_env(clients=model), Counted().free)
    assert [(each.call.id, each.result.content) for each in finished.answers] == [
        ("c1", "3 % of /a"),
        ("c1_1", "3 % of /b"),
    ]
    assert [part.id for part in model.requests[1].messages[1].parts if isinstance(part, ToolCall)] == ["c1", "c1_1"]


async def test_a_long_result_is_truncated_with_a_note() -> None:
    said = await told(lambda: "x" * 3_000_000, limits=ToolLimits(result_chars=1000))
    assert said.result.content == "x" * 1000 + "\n[The result was cut here: 1000 of its 3000000 characters are shown.]"


async def hangs() -> str:
    await anyio.sleep_forever()
    return "never"


def test_a_tool_that_hangs_times_out() -> None:
    said = run_in_virtual_time(told, tool(hangs, timeout_s=5))
    assert (said.outcome, said.latency_ms) == (ToolOutcome.TIMED_OUT, 5000)
    assert said.result.content == "no result within 5 s: it may or may not have taken effect"


async def test_a_plain_function_that_hangs_times_out_and_keeps_its_thread() -> None:
    release = threading.Event()

    def stuck() -> str:
        release.wait(10)
        return "late"

    started = time.monotonic()
    said = await told(tool(stuck, timeout_s=0.02))
    release.set()
    assert said.outcome is ToolOutcome.TIMED_OUT
    assert time.monotonic() - started < 5


async def test_cancellation_passes_through_a_tool() -> None:
    with anyio.move_on_after(0.02) as scope:
        await told(hangs)
    assert scope.cancelled_caught


# Approval


def approving(*verdicts: Verdict) -> tuple[list[ToolCall], Callable[[ToolCall], Awaitable[Verdict]]]:
    asked_for: list[ToolCall] = []

    async def approve(wanted: ToolCall) -> Verdict:
        asked_for.append(wanted)
        await anyio.lowlevel.checkpoint()
        return verdicts[len(asked_for) - 1]

    return asked_for, approve


async def test_a_dangerous_call_runs_only_when_it_is_approved() -> None:
    disk, (asked_for, approve) = Counted(), approving(Approved(), Refused("not at night"))
    calls = calling(call("free", id="a"), call("free", id="b"), call("fre", id="c"), call("free", "[]", "d"))
    finished = await ran(scripted_env(calls, "done"), tool(disk.free, dangerous=True), approve=approve)
    assert [each.outcome.value for each in finished.answers] == ["done", "refused", "unknown_tool", "bad_arguments"]
    assert finished.answers[1].result == ToolResult("b", "refused: not at night", is_error=True)
    assert ([each.id for each in asked_for], disk.ran) == (["a", "b"], 1)


async def test_a_harmless_call_needs_no_approval() -> None:
    asked_for, approve = approving()
    await ran(scripted_env(calling(call("free")), "done"), Counted().free, approve=approve)
    assert not asked_for


@pytest.mark.parametrize(
    ("verdict", "runs"), [(succeed(Approved()), 1), (succeed(Refused()), 0), (fail(NetworkError()), 0)]
)
async def test_approval_may_be_an_effect_and_a_failed_one_refuses(verdict: Effect[Verdict], runs: int) -> None:
    disk = Counted()
    env = scripted_env(calling(call("free")), "done")
    await ran(env, tool(disk.free, dangerous=True), approve=lambda _: verdict)
    assert disk.ran == runs


async def test_dangerous_tools_without_approve_are_rejected_before_any_model_is_asked() -> None:
    model = scripted("never")
    kit = toolkit(tool(Counted().free, dangerous=True))
    error = (await run(run_tools(QUESTION, kit), scripted_env(clients=model))).failure()
    assert (error.tag, model.calls) == ("InvalidRequest", [])


# Bounds


async def test_a_run_ends_at_max_steps_without_running_the_last_calls() -> None:
    disk = Counted()
    finished = await ran(scripted_env(calling(call("free"))), disk.free, max_steps=3)
    assert (finished.end, len(finished.steps), disk.ran) == (ToolEnd.OUT_OF_STEPS, 3, 2)
    assert finished.response.finish_reason is FinishReason.TOOL_CALLS
    assert finished.answers[-1].outcome is ToolOutcome.NOT_RUN
    assert "max_steps" in finished.response.warnings[-1]


async def test_answer_last_reserves_the_last_step_for_an_answer() -> None:
    kit, model = toolkit(Counted().free), scripted(calling(call("free")), calling(call("free")), "Full.")
    request = evolve(QUESTION, tools=kit.tools, tool_choice="free")
    limits = ToolLimits(answer_last=True)
    finished = (await run(run_tools(request, kit, 3, limits=limits), scripted_env(clients=model))).unwrap()
    assert (finished.end, finished.response.content) == (ToolEnd.ANSWERED, "Full.")
    assert [each.tool_choice for each in model.requests] == ["free", None, "none"]


async def test_a_cut_off_answer_ends_the_run_as_cut_off() -> None:
    finished = await ran(scripted_env(evolve(answer("It is"), finish_reason=FinishReason.LENGTH)), Counted().free)
    assert (finished.end, finished.response.content) == (ToolEnd.CUT_OFF, "It is")
    assert "not whole" in finished.response.warnings[-1]


@pytest.mark.parametrize("reason", [FinishReason.LENGTH, FinishReason.CONTENT_FILTER])
async def test_calls_of_a_cut_off_answer_do_not_run(reason: FinishReason) -> None:
    disk = Counted()
    finished = await ran(scripted_env(evolve(calling(call("free")), finish_reason=reason)), disk.free)
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
    disk = Counted()
    config = LLMConfig(models={"paid": ModelConfig(provider="lm-studio", price=Price(input=1000, output=1000))})
    env = scripted_env(calling(call("free")), config=config)
    limits = ToolLimits(max_cost=Decimal("0.02"))
    error = (await run(run_tools(QUESTION, toolkit(disk.free), limits=limits), env)).failure()
    assert (error.tag, disk.ran) == ("BudgetExceeded", len(error.attempts) - 1)
    assert error.cost != Cost.ZERO


async def test_an_error_of_a_model_ends_the_run_with_the_attempts_of_all_steps() -> None:
    disk = Counted()
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
    error = (await run(run_tools(request_, toolkit(Counted().free), **options), scripted_env())).failure()
    assert error.tag == "InvalidRequest"
    assert problem in describe(error)


async def test_a_forced_tool_choice_applies_to_the_first_step_only() -> None:
    kit, model = toolkit(Counted().free), scripted(calling(call("free")), "done")
    request = evolve(QUESTION, tools=kit.tools, tool_choice="required")
    await run(run_tools(request, kit), scripted_env(clients=model))
    assert [each.tool_choice for each in model.requests] == ["required", None]


async def test_a_tool_that_was_not_offered_does_not_run() -> None:
    disk = Counted()
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
    disk = Counted()
    unavailable = ModelUnavailable(retry_after=0.001)
    env = scripted_env(unavailable, unavailable, calling(call("free")), broken_off, broken_off, "Full.", config=TWO)
    finished = await ran(env, disk.free)
    assert (finished.response.content, disk.ran) == ("Full.", 1)
    assert [each.outcome for each in finished.response.attempts].count("success") == 2
    assert {each.model for each in finished.response.attempts} == {"one", "two"}


# Events


async def test_the_stream_of_a_run_ends_once() -> None:
    seen: list[StreamEvent] = []

    async def sink(event: StreamEvent) -> None:
        seen.append(event)

    finished = await ran(scripted_env(calling(call("free")), "Full."), Counted().free, sink=sink)
    kinds = [type(event) for event in seen]
    assert kinds.count(Completed) == 1
    assert (kinds[0], kinds.count(Started), kinds.count(ToolCallDelta)) == (Started, 2, 1)
    assert seen[-1] == Completed(finished.response)


async def test_every_step_is_reported_as_it_happens() -> None:
    seen: list[ToolEvent] = []

    async def on_event(event: ToolEvent) -> None:
        seen.append(event)

    finished = await ran(scripted_env(calling(call("free")), "Full."), Counted().free, on_event=on_event)
    assert [type(event) for event in seen] == [ToolStarted, ToolFinished, ToolStep, ToolStep]
    assert (seen[1], seen[2:]) == (ToolFinished(1, finished.answers[0]), list(finished.steps))


async def test_an_exception_of_a_listener_is_raised_unchanged() -> None:
    async def on_event(_: ToolEvent) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await ran(scripted_env(calling(call("free")), "Full."), Counted().free, on_event=on_event)


async def test_each_step_has_its_own_time_limit() -> None:
    request = evolve(QUESTION, preferences=Preferences(timeout_ms=50_000))
    model = scripted(calling(call("free")), "done")
    await run(run_tools(request, toolkit(Counted().free)), scripted_env(clients=model))
    assert [each.preferences.timeout_ms for each in model.requests] == [50_000, 50_000]


async def test_text_beside_calls_is_sent_back_unchanged() -> None:
    parts = (Text("Let me look."), call("free"))
    model = scripted(evolve(answer("Let me look."), parts=parts, finish_reason=FinishReason.STOP), "Full.")
    finished = await ran(scripted_env(clients=model), Counted().free)
    assert model.requests[1].messages[1] == Message("assistant", parts)
    assert isinstance(finished.response, LLMResponse)


# Models that know no tools


@frozen
class Place:
    """A place on a disk."""

    path: str


async def look(place: Place, other: Place | None = None) -> str:
    """Look at places."""
    return place.path


LOOKS = '{"next": {"tool": "look", "arguments": {"place": {"path": "/var"}}}}'


async def test_a_model_without_tools_gets_a_schema_and_descriptions() -> None:
    seen: list[StreamEvent] = []

    async def sink(event: StreamEvent) -> None:
        seen.append(event)

    model = scripted(LOOKS, '{"next": {"answer": "Full."}}')
    options: dict[str, Any] = {"sink": sink, "pipeline": tools_by_schema(standard_pipeline)}
    finished = await ran(scripted_env(clients=model), look, **options)
    assert (finished.answers[0].result.content, finished.response.content) == ("/var", "Full.")
    first, second = model.requests
    assert (first.tools, second.messages[-1]) == ((), Message("user", "The tool says: /var"))
    assert "Look at places." in (first.system or "")
    assert [event.text for event in seen if isinstance(event, TextDelta)] == ["Full."]


@pytest.mark.parametrize(("choice", "answers"), [("required", False), ("look", False), ("auto", True)])
async def test_the_schema_follows_the_tool_choice(choice: str, answers: bool) -> None:
    model, kit = scripted(LOOKS, '{"next": {"answer": "Full."}}'), toolkit(look, Counted().free)
    request = evolve(QUESTION, tools=kit.tools, tool_choice=choice)
    await run(run_tools(request, kit, pipeline=tools_by_schema(standard_pipeline)), scripted_env(clients=model))
    schema: Any = model.requests[0].response_schema
    options = schema["properties"]["next"]["anyOf"]
    named = [each["properties"]["tool"]["enum"][0] for each in options if "tool" in each["properties"]]
    assert named == (["look"] if choice == "look" else ["look", "free"])
    assert ("answer" in options[-1]["properties"]) is answers


async def test_an_answer_that_does_not_fit_the_schema_stays_as_it_is() -> None:
    cut = evolve(answer('{"next": {"tool": "lo'), finish_reason=FinishReason.LENGTH)
    finished = await ran(scripted_env(cut), look, pipeline=tools_by_schema(standard_pipeline))
    assert (finished.response.content, finished.end) == (cut.content, ToolEnd.CUT_OFF)


async def test_tool_choice_none_allows_only_an_answer() -> None:
    model, kit = scripted('{"next": {"answer": "Full."}}'), toolkit(look)
    request = evolve(QUESTION, tools=kit.tools, tool_choice="none")
    onion = tools_by_schema(standard_pipeline)
    finished = (await run(run_tools(request, kit, pipeline=onion), scripted_env(clients=model))).unwrap()
    schema: Any = model.requests[0].response_schema
    assert [list(each["properties"]) for each in schema["properties"]["next"]["anyOf"]] == [["answer"]]
    assert (finished.response.content, model.requests[0].tool_choice) == ("Full.", None)


async def test_every_tool_run_is_a_span_without_contents() -> None:
    spans, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    calls = calling(call("free", '{"path": "canary"}'), call("raises", id="c2"))
    env = evolve(scripted_env(calls, "Full."), telemetry=open_telemetry(tracers, MeterProvider()))
    await ran(env, Counted().free, raises)
    found = {span.name: span for span in spans.get_finished_spans() if "tool" in span.name}
    assert set(found) == {"execute_tool free", "execute_tool raises"}
    good, bad = (dict(found[f"execute_tool {name}"].attributes or {}) for name in ("free", "raises"))
    assert (good["gen_ai.tool.name"], good["gen_ai.tool.call.id"], "error.type" in good) == ("free", "c1", False)
    assert bad["error.type"] == "failed"
    assert not any("canary" in span.to_json() for span in found.values())
