"""Resumed runs: nothing runs twice and nothing is paid for twice."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, Never, cast

import anyio
import pytest
from attrs import define, evolve, field
from returns.future import FutureResult
from returns.result import Result

from llm_effects import (
    AuthenticationFailed,
    Cost,
    Effect,
    LLMEnv,
    LLMRequest,
    StorageFailed,
    ToolCall,
    ToolResult,
    describe,
    load_conversation,
    run,
    run_tools,
    scripted_env,
    start_conversation,
    then,
    toolkit,
)
from llm_effects.effects.effect import result_of
from llm_effects.effects.env import Conversations
from llm_effects.stores.conversations.memory import MemoryConversations
from llm_effects.testing import Delayed, run_in_virtual_time, scripted
from llm_effects.testing.scripted import Scripted, calling
from llm_effects.tools import ToolEnd, ToolEvent, ToolFinished, ToolOutcome, ToolRun, resolve_tool_call
from llm_effects.tools.journal import call_key
from llm_effects.values import Conversation
from llm_effects.values.conversations import History, JournalEntry, Turn
from llm_effects.values.errors import LLMError
from tests.fixtures import tool_worker
from tests.fixtures.tool_worker import QUESTION, SCRIPT, environment, tools

pytestmark = pytest.mark.anyio


def killed_at(point: str, folder: Path) -> tuple[str, Path]:
    """Run the program until it kills itself, and return its database and its ledger."""
    url, ledger = f"sqlite:///{folder / 'runs.db'}", folder / "ledger"
    command = [sys.executable, "-m", "tests.fixtures.tool_worker", url, str(ledger), point]
    done = subprocess.run(command, check=False, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    return url, ledger


@asynccontextmanager
async def resumed(url: str, *script: str) -> AsyncGenerator[tuple[LLMEnv, Scripted]]:
    model = scripted(*script)
    env = environment(url, model)
    yield env, model
    await env.conversations.aclose()


async def again(env: LLMEnv, ledger: Path) -> ToolRun:
    return (await run(tool_worker.tool_run(ledger), env)).unwrap()


ONCE = pytest.mark.parametrize("anyio_backend", ["asyncio"])
"""For tests of another process, for which the event loop here does not matter."""


@ONCE
@pytest.mark.parametrize("point", ["before", "after"])
async def test_a_call_under_way_when_the_process_died_is_unknown_until_resolved(point: str, tmp_path: Path) -> None:
    url, ledger = killed_at(point, tmp_path)
    async with resumed(url, "All done.") as (env, model):
        happened = ledger.read_text().split()
        finished = await again(env, ledger)
        assert (finished.end, finished.unknown, model.calls) == (ToolEnd.UNKNOWN, (ToolCall("b", "erase"),), [])
        assert ledger.read_text().split() == happened  # neither was run again
        assert [each.outcome for each in finished.answers] == [ToolOutcome.DONE, ToolOutcome.UNKNOWN]

        content = "did erase" if "erase" in happened else "it did not happen"
        step = finished.steps[-1].number
        resolved = resolve_tool_call(
            "nightly", step, finished.unknown[0], content, is_error=point == "before", owner="alice"
        )
        assert (await run(then(resolved, lambda _: tool_worker.tool_run(ledger)), env)).unwrap().end is ToolEnd.ANSWERED
        assert model.requests[0].messages[-1].parts == (ToolResult("b", content, is_error=point == "before"),)


@ONCE
async def test_a_run_that_died_while_the_model_was_asked_continues_from_there(tmp_path: Path) -> None:
    url, ledger = killed_at("answer", tmp_path)
    async with resumed(url, "All done.") as (env, model):
        finished = await again(env, ledger)
        assert (finished.response.content, len(model.calls)) == ("All done.", 1)
        assert ledger.read_text().split() == ["rotate", "erase"]
        assert all(each.replayed for each in finished.answers)
        assert len(finished.response.attempts) == 3  # those of the steps that were read as well


async def finished(env: LLMEnv, ledger: Path, request: LLMRequest = QUESTION) -> ToolRun:
    return (await run(run_tools(request, tools(ledger), run_id="nightly"), env)).unwrap()


async def test_a_finished_run_is_replayed_at_no_cost(tmp_path: Path) -> None:
    ledger, model = tmp_path / "ledger", scripted(*SCRIPT)
    env = scripted_env(clients=model)
    first = await finished(env, ledger)
    second = await finished(env, ledger)
    assert (second.response.content, second.messages, len(model.calls)) == ("All done.", first.messages, 3)
    assert ledger.read_text().split() == ["rotate", "erase"]


async def test_a_run_id_belongs_to_one_question_and_owner(tmp_path: Path) -> None:
    ledger, env = tmp_path / "ledger", scripted_env(*SCRIPT, *SCRIPT)
    await finished(env, ledger)
    other = run_tools(evolve(QUESTION, prompt="Erase all."), tools(ledger), run_id="nightly")
    error = (await run(other, env)).failure()
    assert "another question" in describe(error)
    await finished(env, ledger, evolve(QUESTION, owner="bob"))
    assert ledger.read_text().split() == ["rotate", "erase"] * 2


async def test_concurrent_runs_with_the_same_id_run_each_call_once(tmp_path: Path) -> None:
    ledger, numbers = tmp_path / "ledger", count()
    env = scripted_env(lambda _: Delayed(0.01, calling(ToolCall(f"c{next(numbers)}", "rotate"))))
    runs: list[ToolRun] = []

    async def one() -> None:
        runs.append((await run(run_tools(QUESTION, tools(ledger), 2, run_id="nightly"), env)).unwrap())

    async with anyio.create_task_group() as group:
        group.start_soon(one)
        group.start_soon(one)
    assert ledger.read_text().split() == ["rotate"]
    assert {finished.answers[0].call.id for finished in runs} == {"c0"}  # the first answer counts for both
    assert {finished.end for finished in runs} <= {ToolEnd.OUT_OF_STEPS, ToolEnd.UNKNOWN}


async def test_a_call_of_a_cancelled_run_is_unknown() -> None:
    started = anyio.Event()

    async def slow() -> str:
        started.set()
        await anyio.sleep_forever()
        return "never"

    env = scripted_env(calling(ToolCall("a", "slow")))
    async with anyio.create_task_group() as group:
        group.start_soon(run, run_tools(QUESTION, toolkit(slow), run_id="nightly"), env)
        await started.wait()
        group.cancel_scope.cancel()
    finished = (await run(run_tools(QUESTION, toolkit(slow), run_id="nightly"), env)).unwrap()
    assert finished.end is ToolEnd.UNKNOWN


async def test_a_refused_call_stays_refused_in_a_resumed_run(tmp_path: Path) -> None:
    events: list[ToolEvent] = []

    async def listen(event: ToolEvent) -> None:
        events.append(event)

    env = scripted_env(calling(ToolCall("a", "nothing")), AuthenticationFailed(), "Sorry.")
    first = run_tools(QUESTION, tools(tmp_path / "ledger"), run_id="nightly")
    assert (await run(first, env)).failure().tag == "AuthenticationFailed"
    again = run_tools(QUESTION, tools(tmp_path / "ledger"), run_id="nightly", on_event=listen)
    finished = (await run(again, env)).unwrap()
    assert finished.answers[0].outcome is ToolOutcome.UNKNOWN_TOOL
    assert events[0] == ToolFinished(1, finished.answers[0])


def never() -> FutureResult[Never, LLMError]:
    async def wait() -> Result[Never, LLMError]:
        await anyio.sleep_forever()
        raise AssertionError

    return FutureResult(wait())


@define
class Failing:
    """A store of conversations that fails at one operation of the journal."""

    at: str
    inner: MemoryConversations = field(factory=MemoryConversations)

    def intend(self, run_id: str, owner: str | None, key: str, intent: bytes) -> FutureResult[JournalEntry, LLMError]:
        if self.at == f"begin {key}":
            return FutureResult.from_failure(StorageFailed(operation="intend"))
        return self.inner.intend(run_id, owner, key, intent)

    def conclude(self, run_id: str, owner: str | None, key: str, result: bytes) -> FutureResult[None, LLMError]:
        if self.at == f"end {key}":
            return FutureResult.from_failure(StorageFailed(operation="conclude"))
        return self.inner.conclude(run_id, owner, key, result)

    def journal(self, run_id: str, owner: str | None) -> FutureResult[tuple[JournalEntry, ...], LLMError]:
        return never() if self.at == "hangs" else self.inner.journal(run_id, owner)

    def finish_turn(self, *given: Any, **named: Any) -> FutureResult[Turn, LLMError]:
        return FutureResult.from_failure(StorageFailed(operation="finish_turn"))

    def load(self, *given: Any) -> FutureResult[History | None, LLMError]:
        return self.inner.load(*given)

    def begin_turn(self, *given: Any) -> FutureResult[Turn, LLMError]:
        return self.inner.begin_turn(*given)


@pytest.mark.parametrize("at", ["begin 1", "end 1", "begin 1/a"])
async def test_a_call_that_could_not_be_noted_does_not_run(at: str, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    env = evolve(scripted_env(*SCRIPT), conversations=cast("Conversations", Failing(at)))
    error = (await run(run_tools(QUESTION, tools(ledger), run_id="nightly"), env)).failure()
    assert (error.tag, ledger.exists()) == ("StorageFailed", False)
    assert len(error.attempts) == (0 if at == "begin 1" else 1)


def test_a_store_that_hangs_fails_the_run_in_time(tmp_path: Path) -> None:
    env = evolve(scripted_env(*SCRIPT), conversations=cast("Conversations", Failing("hangs")))
    error = run_in_virtual_time(run, run_tools(QUESTION, tools(tmp_path / "ledger"), run_id="nightly"), env).failure()
    assert (error.tag, "within 5 s" in describe(error)) == ("StorageFailed", True)


@ONCE
async def test_an_answer_is_stored_even_if_asyncio_itself_cancels(tmp_path: Path) -> None:
    noting = asyncio.Event()

    @define
    class Slow(Failing):
        def conclude(self, run_id: str, owner: str | None, key: str, result: bytes) -> FutureResult[None, LLMError]:
            async def wait() -> Result[None, LLMError]:
                noting.set()
                await anyio.sleep(0.01)
                return await result_of(self.inner.conclude(run_id, owner, key, result))

            return FutureResult(wait())

    env = evolve(scripted_env(*SCRIPT), conversations=cast("Conversations", Slow("")))
    under_way = asyncio.ensure_future(finished(env, tmp_path / "ledger"))
    await noting.wait()
    under_way.cancel()
    with pytest.raises(asyncio.CancelledError):
        await under_way
    noted = (await result_of(env.conversations.journal("nightly", "alice"))).unwrap()
    assert [(each.key, each.result is not None) for each in noted] == [("1", True)]
    assert not (tmp_path / "ledger").exists()


@pytest.mark.parametrize(("at", "what"), [("end 1/a", "the result of rotate"), ("end 3", "this answer")])
async def test_a_result_that_could_not_be_stored_is_a_warning(at: str, what: str, tmp_path: Path) -> None:
    env = evolve(scripted_env(*SCRIPT), conversations=cast("Conversations", Failing(at)))
    done = await finished(env, tmp_path / "ledger")
    assert done.response.content == "All done."
    assert any(what in warning for warning in done.response.warnings)


def test_every_store_can_keep_the_key_of_a_call() -> None:
    assert call_key(1, "a b") != call_key(1, "a c")
    assert len(call_key(1, "x" * 10_000)) < 100
    call_key(1, "\ud800\0")


# In a conversation


def talk(ledger: Path, run_id: str | None = None) -> Effect[ToolRun]:
    return run_tools(evolve(QUESTION, owner=None), tools(ledger), run_id=run_id, conversation_id="c")


async def start_conversation_in(env: LLMEnv) -> Conversation:
    return (await run(start_conversation("c", system="Be brief."), env)).unwrap()


async def test_a_conversation_stores_every_call_with_its_result(tmp_path: Path) -> None:
    model = scripted(*SCRIPT, "I rotated and erased.")
    env = scripted_env(clients=model)
    await start_conversation_in(env)
    finished = (await run(talk(tmp_path / "ledger"), env)).unwrap()
    history = (await run(load_conversation("c"), env)).unwrap()
    content = [stored.message for turn in history.turns for stored in turn.messages]
    assert content[1:] == list(finished.messages)
    assert model.requests[2].messages == tuple(content[:-1])
    assert model.requests[2].system == "Be brief."


async def test_calls_that_could_not_be_stored_in_the_conversation_do_not_run(tmp_path: Path) -> None:
    ledger, env = tmp_path / "ledger", scripted_env(*SCRIPT)
    await start_conversation_in(env)
    inner = cast("MemoryConversations", env.conversations)
    error = (await run(talk(ledger), evolve(env, conversations=cast("Conversations", Failing("", inner))))).failure()
    assert (error.tag, len(error.attempts), ledger.exists()) == ("StorageFailed", 1, False)


async def test_a_run_in_a_conversation_is_replayed_at_no_cost(tmp_path: Path) -> None:
    ledger, model = tmp_path / "ledger", scripted(*SCRIPT)
    env = scripted_env(clients=model)
    await start_conversation_in(env)
    await run(talk(ledger, "nightly"), env)
    finished = (await run(talk(ledger, "nightly"), env)).unwrap()
    assert (finished.response.content, finished.response.cost, finished.response.cached) == (
        "All done.",
        Cost.ZERO,
        True,
    )
    assert (len(model.calls), ledger.read_text().split()) == (3, ["rotate", "erase"])
