"""Streams through every layer: order, commit, recovery, backpressure, leaving early."""

import anyio
import attrs
import pytest
from attrs import evolve
from returns.future import FutureResult
from returns.result import Result, Success

from llm_effects import (
    Completed,
    ConfigurationError,
    Failed,
    LLMConfig,
    LLMEnv,
    LLMError,
    LLMRequest,
    LLMResponse,
    MalformedResponse,
    ModelConfig,
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
    generate,
    make_llm_manager,
    open_stream,
    run,
    scripted_env,
    stream,
)
from llm_effects.config import Capabilities, RoutingConfig
from llm_effects.effects import Call
from llm_effects.testing import Chunks, Delayed, Reply, answer, run_in_virtual_time, scripted
from llm_effects.values import Statistics

pytestmark = pytest.mark.anyio

ASK = LLMRequest(prompt="why?")
CUT = MalformedResponse(message="cut")


def models(*names: str, prefill: bool | None = None) -> LLMConfig:
    can = Capabilities(prefill=prefill)
    settings = {name: ModelConfig(provider="lm-studio", model=name, capabilities=can) for name in names}
    return LLMConfig(models=settings, routing=RoutingConfig(max_retries=1))


def env_of(*replies: Reply, config: LLMConfig | None = None) -> LLMEnv:
    return evolve(scripted_env(*replies, config=config or models("one", "two")), draw=lambda: 0.0)


async def events_of(env: LLMEnv, request: LLMRequest = ASK) -> list[StreamEvent]:
    events: list[StreamEvent] = []

    async def sink(event: StreamEvent) -> None:
        events.append(event)

    result = await run(stream(request, sink), env)
    last = events[-1]
    assert isinstance(last, Completed | Failed)
    assert last == (Completed(result.unwrap()) if isinstance(last, Completed) else Failed(result.failure()))
    return events


async def test_events_come_in_order_and_end_with_the_whole_answer() -> None:
    events = await events_of(env_of(Chunks(("be", "cause"))))
    assert events[:-1] == [Started("one"), TextDelta("be"), TextDelta("cause")]
    [*_, completed] = events
    assert isinstance(completed, Completed)
    assert (completed.response.content, len(completed.response.attempts)) == ("because", 1)


async def test_before_the_first_content_retry_and_fallback_are_not_seen() -> None:
    env = env_of(NetworkError(), NetworkError(), "because")
    events = await events_of(env)
    assert events[:-1] == [Started("two"), TextDelta("because")]


async def test_after_it_a_break_ends_the_stream_with_the_text_so_far() -> None:
    model = scripted(Chunks(("half an ",), then=CUT), "never asked")
    events = await events_of(evolve(env_of(), clients=model))
    [started, text, failed] = events
    assert (started, text) == (Started("one"), TextDelta("half an "))
    assert isinstance(failed, Failed)
    assert (failed.error.tag, failed.error.partial, len(model.calls)) == ("MalformedResponse", "half an ", 1)


async def test_restart_tells_the_consumer_to_drop_what_it_has() -> None:
    env = env_of(Chunks(("half an ",), then=CUT), Chunks(("a whole", " answer")))
    events = await events_of(env, evolve(ASK, recovery=Recovery.RESTART))
    assert events[:-1] == [
        Started("one"),
        TextDelta("half an "),
        Restarted("two"),
        TextDelta("a whole"),
        TextDelta(" answer"),
    ]
    assert isinstance(events[-1], Completed)
    assert events[-1].response.content == "a whole answer"


async def test_a_restart_is_told_with_the_first_content_of_whoever_gives_some() -> None:
    env = env_of(Chunks(("half",), then=CUT), NetworkError(), NetworkError(), "whole", config=models("a", "b", "c"))
    events = await events_of(env, evolve(ASK, recovery=Recovery.RESTART))
    assert events[:-1] == [Started("a"), TextDelta("half"), Restarted("c"), TextDelta("whole")]


async def test_resume_goes_on_where_the_other_stopped() -> None:
    model = scripted(
        Chunks(("one, two, ",), then=CUT),
        Chunks(
            (
                " ",
                " three",
            )
        ),
    )
    env = evolve(env_of(config=models("a", "b", prefill=True)), clients=model)
    events = await events_of(env, evolve(ASK, recovery=Recovery.RESUME))
    assert events[:-1] == [Started("a"), TextDelta("one, two, "), TextDelta("three")]
    assert isinstance(events[-1], Completed)
    response = events[-1].response
    assert (response.content, response.model) == ("one, two, three", "b")
    assert "continued it" in response.warnings[-1]
    assert model.requests[1].messages[-1].text == "one, two,"


async def test_resume_becomes_restart_where_the_next_model_cannot_go_on() -> None:
    env = env_of(Chunks(("half",), then=CUT), "whole", config=models("a", "b", prefill=False))
    events = await events_of(env, evolve(ASK, recovery=Recovery.RESUME))
    assert events[:-1] == [Started("a"), TextDelta("half"), Restarted("b"), TextDelta("whole")]


async def test_when_every_recovery_fails_the_error_has_what_the_consumer_has() -> None:
    broken = Chunks(("half",), then=CUT)
    events = await events_of(env_of(broken, broken), evolve(ASK, recovery=Recovery.RESTART))
    assert isinstance(events[-1], Failed)
    assert (events[-1].error.tag, events[-1].error.partial) == ("RequestFailed", "half")


async def test_an_error_that_forbids_going_on_is_not_recovered_from() -> None:
    env = env_of(Chunks(("half",), then=ConfigurationError(message="broken")), "never")
    events = await events_of(env, evolve(ASK, recovery=Recovery.RESTART))
    assert [type(event) for event in events] == [Started, TextDelta, Failed]


async def test_the_deadline_ends_a_stream_and_keeps_its_text() -> None:
    env = env_of(Chunks(("a", "b"), pause=0.01), config=models("one"))
    slow = evolve(env, clients=scripted(Delayed(0, Chunks(("a",) * 500, pause=0.02))))
    events = await events_of(slow, evolve(ASK, preferences=Preferences(timeout_ms=100)))
    assert isinstance(events[-1], Failed)
    assert events[-1].error == RequestTimeout(timeout_ms=100, phase="total", partial="a" * (len(events) - 2))


async def test_a_sink_that_raises_ends_the_call_with_its_own_exception() -> None:
    async def sink(_: StreamEvent) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await run(stream(ASK, sink), env_of("because"))


async def test_an_answer_without_content_is_begun_all_the_same() -> None:
    silent = evolve(answer(""), parts=())
    assert [type(event) for event in await events_of(env_of(silent))] == [Started, Completed]
    env = env_of(Chunks(("half",), then=CUT), silent)
    events = await events_of(env, evolve(ASK, recovery=Recovery.RESTART))
    assert [type(event) for event in events] == [Started, TextDelta, Restarted, Completed]


async def test_a_scripted_tool_call_is_streamed_as_one() -> None:
    calling = evolve(answer(""), parts=(Text("let me see"), ToolCall("call_1", "look", "{}")))
    events = await events_of(env_of(calling))
    assert events[1:-1] == [TextDelta("let me see"), ToolCallDelta(0, "call_1", "look", "{}")]


def test_a_consumer_that_never_takes_the_last_event_is_left() -> None:
    async def sink(event: StreamEvent) -> None:
        if isinstance(event, Completed):
            await anyio.sleep_forever()

    assert run_in_virtual_time(run, stream(ASK, sink), env_of("because")).unwrap().content == "because"


class Peculiar(BaseException):
    """An exception that is not an ``Exception``."""


@pytest.mark.parametrize("problem", [GeneratorExit, SystemExit, Peculiar])
async def test_no_exception_of_the_consumer_comes_in_a_group(problem: type[BaseException]) -> None:
    with pytest.raises(problem):
        async with open_stream(ASK)(env_of("because")) as events:
            async for _ in events:
                raise problem


async def test_a_consumer_that_does_not_come_back_is_not_the_model_s_fault() -> None:
    env = env_of(RequestTimeout(phase="sink"), config=models("one"))
    await run(generate(ASK), env)
    assert env.health.statistics().get("one", Statistics()).attempts == 0


async def test_a_broken_configuration_is_told_to_streams_too() -> None:
    manager = create_default_llm_manager({"LLM_CACHE_MAX_SIZE": "many"})
    events: list[StreamEvent] = []

    async def sink(event: StreamEvent) -> None:
        events.append(event)

    await manager.stream(ASK, sink)
    async with manager.open_stream(ASK) as pulled:
        events.extend([event async for event in pulled])
    assert ["LLM_CACHE_MAX_SIZE" in str(event) for event in events] == [True, True]


async def test_a_cancelled_stream_tells_no_end() -> None:
    events: list[StreamEvent] = []

    async def sink(event: StreamEvent) -> None:
        events.append(event)

    env = env_of(Chunks(("a",) * 1000, pause=0.01))
    with anyio.move_on_after(0.05):
        await run(stream(ASK, sink), env)
    assert {type(event) for event in events} <= {Started, TextDelta}


# --- the pull form


async def test_pulling_gives_the_same_events() -> None:
    env = env_of(Chunks(("be", "cause")))
    async with open_stream(ASK)(env) as events:
        pulled = [event async for event in events]
    assert pulled[:-1] == [Started("one"), TextDelta("be"), TextDelta("cause")]
    assert isinstance(pulled[-1], Completed)


async def test_nothing_runs_ahead_of_a_consumer_that_does_not_pull() -> None:
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


async def test_an_exception_of_the_consumer_comes_out_as_itself() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_stream(ASK)(env_of("because")) as events:
            async for _ in events:
                raise KeyError("mine")


async def test_a_defect_beneath_comes_out_as_itself() -> None:
    def broken(_: LLMRequest) -> str:
        raise LookupError("bug")

    with pytest.raises(LookupError, match="bug"):
        async with open_stream(ASK)(env_of(broken)) as events:
            [event async for event in events]


async def test_a_cancelled_consumer_is_just_cancelled() -> None:
    env = env_of(Chunks(("a",) * 1000, pause=0.01))
    with anyio.move_on_after(0.05) as scope:
        async with open_stream(ASK)(env) as events:
            [event async for event in events]
    assert scope.cancelled_caught


async def test_a_manager_streams_both_ways() -> None:
    manager = make_llm_manager(LLMConfig(models={}))
    events: list[StreamEvent] = []

    async def sink(event: StreamEvent) -> None:
        events.append(event)

    await manager.stream(ASK, sink)
    async with manager.open_stream(ASK) as pulled:
        events.extend([event async for event in pulled])
    assert [type(event) for event in events] == [Failed, Failed]
