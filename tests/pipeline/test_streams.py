"""Streams through the whole pipeline: order, backpressure, the pull form, leaving early."""

import anyio
import attrs
import pytest
from attrs import evolve
from returns.future import FutureResult
from returns.result import Failure, Result, Success

from llm_effects import (
    Completed,
    Effect,
    Failed,
    LLMConfig,
    LLMEnv,
    LLMError,
    LLMRequest,
    LLMResponse,
    NetworkError,
    Preferences,
    Recovery,
    RequestTimeout,
    Restarted,
    Started,
    StreamEvent,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    create_default_llm_manager,
    effect,
    generate,
    make_llm_manager,
    open_stream,
    run,
    scripted_env,
    stream,
)
from llm_effects.effects import Call, Sink
from llm_effects.pipeline import ReceivedAnswer, pulled
from llm_effects.testing import Chunks, Delayed, answer, run_in_virtual_time, scripted
from llm_effects.values import Statistics
from tests.fixtures.streams import ASK, CUT, env_of, events_of, models

pytestmark = pytest.mark.anyio


class Peculiar(BaseException):
    """An exception that is not an ``Exception``."""


async def test_events_arrive_in_order_and_end_with_the_whole_response() -> None:
    events = await events_of(env_of(Chunks(("be", "cause"))))
    assert events[:-1] == [Started("one"), TextDelta("be"), TextDelta("cause")]
    [*_, completed] = events
    assert isinstance(completed, Completed)
    assert (completed.response.content, len(completed.response.attempts)) == ("because", 1)


async def test_retries_and_fallbacks_before_the_first_content_are_invisible() -> None:
    env = env_of(NetworkError(), NetworkError(), "because")
    events = await events_of(env)
    assert events[:-1] == [Started("two"), TextDelta("because")]


async def test_the_deadline_ends_a_stream_and_keeps_its_text() -> None:
    env = env_of(Chunks(("a", "b"), pause=0.01), config=models("one"))
    slow = evolve(env, clients=scripted(Delayed(0, Chunks(("a",) * 500, pause=0.02))))
    events = await events_of(slow, evolve(ASK, preferences=Preferences(timeout_ms=100)))
    assert isinstance(events[-1], Failed)
    assert events[-1].error == RequestTimeout(
        model="one", timeout_ms=100, phase="total", partial="a" * (len(events) - 2)
    )


async def test_an_exception_of_the_sink_ends_the_call() -> None:
    async def sink(_: StreamEvent) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await run(stream(ASK, sink), env_of("because"))


async def test_an_answer_without_content_still_starts() -> None:
    silent = evolve(answer(""), parts=())
    assert [type(event) for event in await events_of(env_of(silent))] == [Started, Completed]
    env = env_of(Chunks(("half",), then=CUT), silent)
    events = await events_of(env, evolve(ASK, recovery=Recovery.RESTART))
    assert [type(event) for event in events] == [Started, TextDelta, Restarted, Completed]


async def test_a_scripted_tool_call_is_one_event() -> None:
    calling = evolve(answer(""), parts=(Text("let me see"), ToolCall("call_1", "look", "{}")))
    events = await events_of(env_of(calling))
    assert events[1:-1] == [TextDelta("let me see"), ToolCallDelta(0, "call_1", "look", "{}")]


def test_a_consumer_that_never_takes_the_last_event_is_abandoned() -> None:
    async def sink(event: StreamEvent) -> None:
        if isinstance(event, Completed):
            await anyio.sleep_forever()

    assert run_in_virtual_time(run, stream(ASK, sink), env_of("because")).unwrap().content == "because"


@pytest.mark.parametrize("problem", [GeneratorExit, SystemExit, Peculiar])
async def test_no_exception_of_the_consumer_arrives_in_a_group(problem: type[BaseException]) -> None:
    with pytest.raises(problem):
        async with open_stream(ASK)(env_of("because")) as events:
            async for _ in events:
                raise problem


async def test_a_consumer_that_never_returns_does_not_blame_the_model() -> None:
    env = env_of(RequestTimeout(phase="sink"), config=models("one"))
    await run(generate(ASK), env)
    assert env.health.statistics().get("one", Statistics()).attempts == 0


async def test_a_stream_with_a_broken_configuration_ends_with_failed() -> None:
    manager = create_default_llm_manager({"LLM_CACHE_MAX_SIZE": "many"})
    events: list[StreamEvent] = []

    async def sink(event: StreamEvent) -> None:
        events.append(event)

    await manager.stream(ASK, sink)
    async with manager.open_stream(ASK) as pulled:
        events.extend([event async for event in pulled])
    assert ["LLM_CACHE_MAX_SIZE" in str(event) for event in events] == [True, True]


async def test_a_cancelled_stream_has_no_last_event() -> None:
    events: list[StreamEvent] = []

    async def sink(event: StreamEvent) -> None:
        events.append(event)

    env = env_of(Chunks(("a",) * 1000, pause=0.01))
    with anyio.move_on_after(0.05):
        await run(stream(ASK, sink), env)
    assert {type(event) for event in events} <= {Started, TextDelta}


async def test_open_stream_yields_the_same_events() -> None:
    env = env_of(Chunks(("be", "cause")))
    async with open_stream(ASK)(env) as events:
        pulled = [event async for event in events]
    assert pulled[:-1] == [Started("one"), TextDelta("be"), TextDelta("cause")]
    assert isinstance(pulled[-1], Completed)


async def test_the_error_of_a_pulled_stream_has_every_piece_that_was_pulled() -> None:
    for _ in range(10):  # trio runs its tasks in random order
        async with open_stream(ASK)(env_of(Chunks(("be", "cause"), then=CUT), config=models("one"))) as events:
            *pieces, failed = [event async for event in events]
        assert pieces == [Started("one"), TextDelta("be"), TextDelta("cause")]
        assert isinstance(failed, Failed)
        assert failed.error.partial == "because"


async def test_the_error_of_a_pulled_stream_has_a_piece_that_was_pulled_as_its_sender_was_cancelled() -> None:
    sending = anyio.CancelScope()

    def answer(deliver: Sink, _: ReceivedAnswer) -> Effect[LLMResponse]:
        async def send(_: LLMEnv) -> Result[LLMResponse, LLMError]:
            with sending:
                await deliver(TextDelta("be"))
            return Failure(CUT)

        return effect(send)

    pieces = list[StreamEvent]()
    async with pulled(answer)(scripted_env()) as events:

        async def take() -> None:
            pieces.append(await anext(events))

        async def cancel() -> None:
            sending.cancel()

        await anyio.wait_all_tasks_blocked()  # the sender waits for the consumer
        async with anyio.create_task_group() as group:
            group.start_soon(take)  # it takes the piece in the turn after this one,
            group.start_soon(cancel)  # before the cancelled sender runs again
        pieces += [event async for event in events]
    *texts, failed = pieces
    assert isinstance(failed, Failed)
    assert failed.error.partial == "".join(event.text for event in texts if isinstance(event, TextDelta))


async def test_the_model_waits_for_a_consumer_that_does_not_pull() -> None:
    delivered: list[str] = []

    @attrs.frozen
    class Telling:
        """Clients that note each piece once it has been taken."""

        def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
            return FutureResult(self._complete(call))

        async def _complete(self, call: Call) -> Result[LLMResponse, LLMError]:
            assert call.sink is not None
            for piece in "abcdef":
                await call.sink(TextDelta(piece))
                delivered.append(piece)
            return Success(answer("abcdef"))

    env = evolve(env_of(), clients=Telling())
    async with open_stream(ASK)(env) as events:
        assert await anext(events) == TextDelta("a")
        await anyio.wait_all_tasks_blocked()
        assert delivered in ([], ["a"])
        rest = [event async for event in events]
    assert ("".join(delivered), len(rest)) == ("abcdef", 6)


async def test_leaving_early_ends_the_call() -> None:
    env = env_of(Chunks(("a",) * 1000, pause=0.001))
    async with open_stream(ASK)(env) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                break
    [row] = (await env.ledger.rows()).unwrap()._inner_value
    assert row.attempt.outcome == "cancelled"


async def test_an_exception_of_the_pulling_consumer_is_raised_unchanged() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_stream(ASK)(env_of("because")) as events:
            async for _ in events:
                raise KeyError("mine")


async def test_a_defect_of_the_call_is_raised_unchanged() -> None:
    def broken(_: LLMRequest) -> str:
        raise LookupError("bug")

    with pytest.raises(LookupError, match="bug"):
        async with open_stream(ASK)(env_of(broken)) as events:
            [event async for event in events]


async def test_a_cancelled_consumer_is_only_cancelled() -> None:
    env = env_of(Chunks(("a",) * 1000, pause=0.01))
    with anyio.move_on_after(0.05) as scope:
        async with open_stream(ASK)(env) as events:
            [event async for event in events]
    assert scope.cancelled_caught


async def test_a_manager_streams_by_push_and_by_pull() -> None:
    manager = make_llm_manager(LLMConfig(models={}))
    events: list[StreamEvent] = []

    async def sink(event: StreamEvent) -> None:
        events.append(event)

    await manager.stream(ASK, sink)
    async with manager.open_stream(ASK) as pulled:
        events.extend([event async for event in pulled])
    assert [type(event) for event in events] == [Failed, Failed]
