"""The calls of an answer: what functions may return, what goes wrong with them, approval and spans."""

import asyncio
import logging
import math
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from attrs import evolve, frozen
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from returns.result import Failure, Result, Success

from llm_effects import (
    Effect,
    NetworkError,
    ToolCall,
    ToolResult,
    fail,
    from_env,
    run,
    run_tools,
    scripted_env,
    succeed,
    tool,
    toolkit,
)
from llm_effects.telemetry.logs import LOGGER
from llm_effects.telemetry.otel import open_telemetry
from llm_effects.testing import run_in_virtual_time, scripted
from llm_effects.testing.scripted import calling
from llm_effects.tools import (
    Approved,
    Refused,
    ToolLimits,
    ToolOutcome,
    Verdict,
    tool_with_schema,
)
from llm_effects.tools.approvals import dangerous_calls
from llm_effects.tools.journal import RunJournal, call_key
from llm_effects.tools.steps import KeptRun
from llm_effects.tools.tool_executor import RunState, ToolExecutor
from llm_effects.values.conversations import JournalEntry
from llm_effects.values.requests import Tool
from tests.fixtures.tool_calls import QUESTION, CountingTool, answer_of, call, finished_run

pytestmark = pytest.mark.anyio

# What a function may be and return


def plain() -> dict[str, int]:
    return {"free": 3}


async def asynchronous() -> list[int]:
    return [1]


def returns_an_effect() -> Effect[int]:
    return from_env(lambda env: len(env.config.models))


async def returns_an_effect_later() -> Effect[str]:
    return succeed("later")


def returns_a_result() -> Result[str, str]:
    return Success("fine")


def returns_a_failure() -> Result[str, str]:
    return Failure("no such disk")


def returns_an_error() -> Effect[str]:
    return fail(NetworkError(message="reset"))


def returns_nothing() -> None: ...


@frozen
class Disk:
    name: str
    free: float


def returns_a_class() -> tuple[Disk, ...]:
    return (Disk("a", 0.5),)


DONE, FAILED = ToolOutcome.DONE, ToolOutcome.FAILED


@pytest.mark.parametrize(
    ("function", "text", "outcome"),
    [
        (plain, '{"free":3}', DONE),
        (asynchronous, "[1]", DONE),
        (returns_an_effect, "1", DONE),
        (returns_an_effect_later, "later", DONE),
        (returns_a_result, "fine", DONE),
        (returns_a_failure, "no such disk", FAILED),
        (returns_an_error, "NetworkError: reset", FAILED),
        (returns_nothing, "null", DONE),
        (returns_a_class, '[{"free":0.5,"name":"a"}]', DONE),
    ],
)
async def test_what_a_function_returns_becomes_text(function: Any, text: str, outcome: ToolOutcome) -> None:
    tool_answer = await answer_of(function)
    assert (tool_answer.result.content, tool_answer.outcome) == (text, outcome)
    assert tool_answer.result.is_error is (outcome is FAILED)


async def test_a_tool_with_its_own_schema_receives_one_object() -> None:
    echo = tool_with_schema(Tool("echo"), lambda arguments: arguments["text"])
    assert (await answer_of(echo, '{"text": "hi"}')).result.content == "hi"


# What goes wrong is a result for the model


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


def returns_an_object() -> object:
    return object()


def returns_itself() -> list[object]:
    itself: list[object] = []
    itself.append(itself)
    return itself


def returns_a_bad_letter() -> str:
    return "a\ud800"


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (leaks, "ValueError: cannot log in with ***"),
        (raises, "KeyError: 'disk'"),
        (raises_many, "ExceptionGroup: several (2 sub-exceptions)"),
        (exits, "SystemExit: 2"),
        (raises_what_has_no_text, "MuteError"),
        (returns_an_object, "the tool ran, but its result is not JSON: TypeError: object cannot be written as JSON"),
        (returns_itself, "the tool ran, but its result is not JSON: RecursionError"),
    ],
)
async def test_fault_77_the_failure_of_a_tool_is_a_result_and_the_run_continues(function: Any, text: str) -> None:
    tool_answer = await answer_of(function)
    assert tool_answer.result.content.startswith(text)
    assert (tool_answer.outcome, tool_answer.result.is_error) == (FAILED, True)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancelled_future_inside_a_tool_is_a_failure_of_the_tool() -> None:
    async def waits_for_what_was_cancelled() -> str:
        waiting = asyncio.get_running_loop().create_future()
        waiting.cancel()
        return str(await waiting)

    tool_answer = await answer_of(waits_for_what_was_cancelled)
    assert (tool_answer.result.content, tool_answer.outcome) == ("CancelledError", FAILED)


async def test_an_invalid_character_is_replaced() -> None:
    assert (await answer_of(returns_a_bad_letter)).result.content == "a\ufffd"


async def test_the_traceback_of_a_tool_that_raised_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, LOGGER.name):
        await answer_of(raises)
    assert any(record.exc_info and record.exc_info[0] is KeyError for record in caplog.records)


@pytest.mark.parametrize(
    ("requested", "text", "outcome"),
    [
        (call("fre"), "there is no tool 'fre': did you mean free?", ToolOutcome.UNKNOWN_TOOL),
        (call("free", '{"path": 3}'), "the arguments do not fit:\n- $.path: ", ToolOutcome.BAD_ARGUMENTS),
        (call("free", '{"path":'), "the arguments do not fit:\n- $: is not JSON", ToolOutcome.BAD_ARGUMENTS),
        (call("free", "[" * 100_000), "the arguments do not fit:\n- $: ", ToolOutcome.BAD_ARGUMENTS),
    ],
)
async def test_fault_77_a_call_that_cannot_run_gets_an_error_result(
    requested: ToolCall, text: str, outcome: ToolOutcome
) -> None:
    disk = CountingTool()
    finished = await finished_run(scripted_env(calling(requested), "Sorry."), disk.free)
    assert finished.answers[0].result.content.startswith(text)
    assert (finished.answers[0].outcome, finished.answers[0].result.is_error, disk.ran) == (outcome, True, 0)


@pytest.mark.parametrize("requested", [call("x" * 3_000_000), call("free", f'{{"{"x" * 3_000_000}": 1}}')])
async def test_the_result_of_a_garbled_call_is_truncated(requested: ToolCall) -> None:
    finished = await finished_run(scripted_env(calling(requested), "Sorry."), CountingTool().free)
    assert len(finished.answers[0].result.content) < ToolLimits().result_chars + 100


async def test_a_long_result_is_truncated_with_a_note() -> None:
    tool_answer = await answer_of(lambda: "x" * 3_000_000, limits=ToolLimits(result_chars=1000))
    assert (
        tool_answer.result.content
        == "x" * 1000 + "\n[The result was cut here: 1000 of its 3000000 characters are shown.]"
    )


async def hangs() -> str:
    await anyio.sleep_forever()
    return "never"


def test_a_tool_that_hangs_times_out() -> None:
    tool_answer = run_in_virtual_time(answer_of, tool(hangs, timeout_s=5))
    assert (tool_answer.outcome, tool_answer.latency_ms) == (ToolOutcome.TIMED_OUT, 5000)
    assert tool_answer.result.content == "no result within 5 s: it may or may not have taken effect"


async def test_a_plain_function_that_hangs_times_out_and_keeps_its_thread() -> None:
    release = threading.Event()

    def stuck() -> str:
        release.wait(10)
        return "late"

    started = time.monotonic()
    tool_answer = await answer_of(tool(stuck, timeout_s=0.02))
    release.set()
    assert tool_answer.outcome is ToolOutcome.TIMED_OUT
    assert time.monotonic() - started < 5


async def test_cancellation_passes_through_a_tool() -> None:
    with anyio.move_on_after(0.02) as scope:
        await answer_of(hangs)
    assert scope.cancelled_caught


# Approval


def approving(*verdicts: Verdict) -> tuple[list[ToolCall], Callable[[ToolCall], Awaitable[Verdict]]]:
    requested: list[ToolCall] = []

    async def approve(call: ToolCall) -> Verdict:
        requested.append(call)
        await anyio.lowlevel.checkpoint()
        return verdicts[len(requested) - 1]

    return requested, approve


async def test_a_dangerous_call_runs_only_when_it_is_approved() -> None:
    disk, (requested, approve) = CountingTool(), approving(Approved(), Refused("not at night"))
    calls = calling(call("free", id="a"), call("free", id="b"), call("fre", id="c"), call("free", "[]", "d"))
    finished = await finished_run(scripted_env(calls, "done"), tool(disk.free, dangerous=True), approve=approve)
    assert [each.outcome.value for each in finished.answers] == ["done", "refused", "unknown_tool", "bad_arguments"]
    assert finished.answers[1].result == ToolResult("b", "refused: not at night", is_error=True)
    assert ([each.id for each in requested], disk.ran) == (["a", "b"], 1)


async def test_a_harmless_call_needs_no_approval() -> None:
    requested, approve = approving()
    await finished_run(scripted_env(calling(call("free")), "done"), CountingTool().free, approve=approve)
    assert not requested


@pytest.mark.parametrize(
    ("verdict", "runs"), [(succeed(Approved()), 1), (succeed(Refused()), 0), (fail(NetworkError()), 0)]
)
async def test_approval_may_be_an_effect_and_a_failed_one_refuses(verdict: Effect[Verdict], runs: int) -> None:
    disk = CountingTool()
    env = scripted_env(calling(call("free")), "done")
    await finished_run(env, tool(disk.free, dangerous=True), approve=lambda _: verdict)
    assert disk.ran == runs


@pytest.mark.parametrize(
    ("verdict", "shown"), [(True, "returned bool"), (None, "returned NoneType"), (fail(NetworkError()), "failed")]
)
async def test_what_is_no_verdict_refuses_with_a_warning_that_names_the_remedy(verdict: Any, shown: str) -> None:
    disk = CountingTool()
    env = scripted_env(calling(call("free")), "done")
    finished = await finished_run(env, tool(disk.free, dangerous=True), approve=lambda _: verdict)
    assert (disk.ran, finished.answers[0].result.content) == (0, "refused: the approval failed")
    [warning] = finished.response.warnings
    assert warning.startswith(f"tools: free was refused, because approve {shown}")
    assert warning.endswith(": return Approved(), Refused(reason) or Waiting()")


async def test_dangerous_tools_without_approve_are_rejected_before_any_model_is_asked() -> None:
    model = scripted("never")
    kit = toolkit(tool(CountingTool().free, dangerous=True))
    error = (await run(run_tools(QUESTION, kit), scripted_env(clients=model))).failure()
    assert (error.tag, model.calls) == ("InvalidRequest", [])


async def test_every_tool_run_is_a_span_without_contents() -> None:
    spans, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    calls = calling(call("free", '{"path": "canary"}'), call("raises", id="c2"))
    env = evolve(scripted_env(calls, "Full."), telemetry=open_telemetry(tracers, MeterProvider()))
    await finished_run(env, CountingTool().free, raises)
    found = {span.name: span for span in spans.get_finished_spans() if "tool" in span.name}
    assert set(found) == {"execute_tool free", "execute_tool raises"}
    good, bad = (dict(found[f"execute_tool {name}"].attributes or {}) for name in ("free", "raises"))
    assert (good["gen_ai.tool.name"], good["gen_ai.tool.call.id"], "error.type" in good) == ("free", "c1", False)
    assert bad["error.type"] == "failed"
    assert not any("canary" in span.to_json() for span in found.values())


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_fault_160_a_plain_function_that_hangs_does_not_keep_the_process_alive(backend: str) -> None:
    program = f"""
import threading, anyio
from llm_effects import LLMRequest, ToolCall, run, run_tools, scripted_env, toolkit
from llm_effects.testing import calling
from llm_effects.tools import tool

@tool(timeout_s=0.01)
def hang() -> str:
    "Hang."
    threading.Event().wait()
    return ""

env = scripted_env(calling(ToolCall("1", "hang")), "done")
question = run_tools(LLMRequest(prompt="why?"), toolkit(hang))
print(anyio.run(run, question, env, backend={backend!r}).unwrap().response.content)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("done\n", "", 0)


@pytest.mark.anyio
async def test_no_call_runs_beside_one_that_may_have_happened() -> None:
    disk = CountingTool()
    begun = JournalEntry(key=call_key(1, "c1"), intent=b"{}")
    journal = RunJournal(run_id="r", owner=None, entries={begun.key: begun})
    kept = KeptRun(request=QUESTION, max_steps=1, limits=ToolLimits())
    state = RunState(journal=journal, kept=kept, run_id="r", name="r", started=0.0, deadline=math.inf)
    functions = {each.tool.name: each for each in toolkit(disk.free).functions}
    executor = ToolExecutor(
        functions=functions, limits=ToolLimits(), approve=None, needs_approval=dangerous_calls, on_event=None
    )
    calls = [ToolCall("c1", "free", '{"path": "/"}'), ToolCall("c2", "free", '{"path": "/"}')]
    answers = (await executor.execute(calls, state, scripted_env())).unwrap()
    assert [each.outcome for each in answers] == [ToolOutcome.UNKNOWN, ToolOutcome.NOT_RUN]
    assert disk.ran == 0
