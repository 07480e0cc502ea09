"""The pull form of a turn: the events of ``converse``, leaving early, and what is stored then."""

import asyncio

import anyio
import pytest
from attrs import evolve

from llm_effects import (
    Completed,
    Failed,
    LLMConfig,
    LLMEnv,
    LLMRequest,
    MalformedResponse,
    Message,
    ModelConfig,
    Started,
    StreamEvent,
    TextDelta,
    create_default_llm_manager,
    load_conversation,
    make_llm_manager,
    open_converse,
    open_stream,
    run,
    scripted_env,
    start_conversation,
)
from llm_effects.config import RoutingConfig
from llm_effects.testing import Chunks, Reply, run_in_virtual_time, scripted
from llm_effects.values import Turn, TurnState
from tests.fixtures.slow_stores import FULL, Slow

pytestmark = pytest.mark.anyio

ONCE = LLMConfig(
    models={"scripted": ModelConfig(provider="lm-studio", model="scripted")}, routing=RoutingConfig(max_retries=0)
)
KEY = "sk-canary-0123456789abcdef"


async def env_with(*replies: Reply, store: Slow | None = None) -> LLMEnv:
    env = scripted_env(*replies, config=ONCE)
    env = env if store is None else evolve(env, conversations=store)
    (await run(start_conversation("c"), env)).unwrap()
    return env


async def turns(env: LLMEnv) -> tuple[Turn, ...]:
    return (await run(load_conversation("c"), env)).unwrap().turns


def texts(turn: Turn) -> list[str]:
    return [each.message.text for each in turn.messages]


async def events_of(env: LLMEnv, message: str | Message | LLMRequest = "hi", **options: str) -> list[StreamEvent]:
    async with open_converse("c", message, **options)(env) as events:
        return [event async for event in events]


@pytest.mark.parametrize("message", ["hi", Message("user", "hi"), LLMRequest(prompt="hi")])
async def test_the_events_of_a_turn_end_with_its_stored_answer(message: str | Message | LLMRequest) -> None:
    env = await env_with(Chunks(("Hello ", "Ada.")))
    async with open_converse("c", message)(env) as events:
        async for event in events:
            if isinstance(event, Completed):
                (turn,) = await turns(env)
                assert (turn.state, texts(turn)) == (TurnState.FINISHED, ["hi", "Hello Ada."])
    *deltas, completed = await events_of(env, "and now?")
    assert deltas == [Started("scripted"), TextDelta("Hello "), TextDelta("Ada.")]
    assert isinstance(completed, Completed)
    assert [each.text for each in env.clients.calls[-1].request.messages] == ["hi", "Hello Ada.", "and now?"]


async def test_one_value_can_be_opened_again_as_another_turn() -> None:
    env = await env_with("one", "two")
    turn = open_converse("c", "hi")
    for _ in range(2):
        async with turn(env) as events:
            assert isinstance([event async for event in events][-1], Completed)
    assert [texts(each) for each in await turns(env)] == [["hi", "one"], ["hi", "two"]]


async def test_a_repeated_turn_id_streams_the_stored_answer() -> None:
    env = await env_with("because")
    first, again = [await events_of(env, turn_id="t") for _ in range(2)]
    assert first[:-1] == again[:-1] == [Started("scripted"), TextDelta("because")]
    assert len(env.clients.calls) == 1


async def test_a_turn_that_is_never_entered_is_not_stored() -> None:
    env = await env_with("never")
    unentered = open_converse("c", "hi")(env)
    del unentered
    assert (await turns(env), env.clients.calls) == ((), [])


async def test_leaving_early_stores_exactly_the_text_that_was_received() -> None:
    env = await env_with(Chunks(("one ", "two ", "three ")))
    async with open_converse("c", "hi")(env) as events:
        async for event in events:
            if event == TextDelta("two "):
                await anyio.wait_all_tasks_blocked()  # now the third piece is offered
                break
    (turn,) = await turns(env)
    assert (turn.state, turn.error, texts(turn)) == (TurnState.INTERRUPTED, "cancelled", ["hi", "one two "])
    assert turn.messages[1].provenance is not None
    assert turn.messages[1].provenance.model == "scripted"


async def test_an_exception_of_the_consumer_is_raised_unchanged_and_interrupts_the_turn() -> None:
    env = await env_with(Chunks(("one ", "two ")))
    with pytest.raises(KeyError, match="mine"):
        async with open_converse("c", "hi")(env) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    raise KeyError("mine")
    (turn,) = await turns(env)
    assert (turn.state, texts(turn)) == (TurnState.INTERRUPTED, ["hi", "one "])


async def test_a_broken_stream_ends_with_failed_and_is_stored_as_received() -> None:
    env = await env_with(Chunks(("The disk ", "is"), then=MalformedResponse()))
    failed = (await events_of(env))[-1]
    assert isinstance(failed, Failed)
    assert (failed.error.tag, failed.error.partial) == ("MalformedResponse", "The disk is")
    (turn,) = await turns(env)
    assert (turn.state, texts(turn)) == (TurnState.INTERRUPTED, ["hi", "The disk is"])


def test_the_time_limit_of_the_turn_ends_it_with_the_received_text() -> None:
    async def main() -> tuple[StreamEvent, Turn]:
        env = await env_with(Chunks(("a ", "b ", "c "), pause=20.0))
        limited = evolve(env, config=evolve(ONCE, routing=RoutingConfig(max_retries=0, timeout_ms=50_000)))
        return (await events_of(limited))[-1], (await turns(env))[0]

    failed, turn = run_in_virtual_time(main)
    assert isinstance(failed, Failed)
    assert (failed.error.tag, failed.error.partial) == ("TimeoutError", "a ")
    assert (turn.state, texts(turn)) == (TurnState.INTERRUPTED, ["hi", "a "])


async def test_a_turn_that_cannot_begin_is_one_failed_event() -> None:
    unknown = await events_of(scripted_env("never"))
    assert [type(event) for event in unknown] == [Failed]
    assert "no conversation 'c'" in str(unknown)
    store = Slow(failing={"begin_turn": 9}, error=FULL)
    full = await events_of(await env_with("never", store=store))
    assert full == [Failed(FULL)]


@pytest.mark.parametrize("pulled", [open_stream(LLMRequest(prompt="hi")), open_converse("c", "hi")])
async def test_no_key_that_a_model_repeats_is_in_the_error_of_a_pulled_stream(pulled: object) -> None:
    config = LLMConfig(
        models={"gpt": ModelConfig(provider="openai-chat", model="m", api_key=KEY)},
        routing=RoutingConfig(max_retries=0),
    )
    env = scripted_env(Chunks((f"The key is {KEY[:9]}", f"{KEY[9:]}."), then=MalformedResponse()), config=config)
    await run(start_conversation("c"), env)
    async with pulled(env) as events:
        failed = [event async for event in events][-1]
    assert failed.error.partial == f"The key is {'*' * len(KEY)}."
    assert [KEY in text for turn in await turns(env) for text in texts(turn)] in ([], [False, False])


def test_a_turn_left_at_any_await_loses_nothing_in_virtual_time() -> None:
    async def left_after(seconds: float) -> str:
        env = await env_with(Chunks(("one ", "two "), pause=1.0), "next", store=Slow(seconds=1.0))
        seen: list[StreamEvent] = []
        with anyio.move_on_after(seconds):
            async with open_converse("c", "hi", turn_id="t")(env) as events:
                async for event in events:
                    seen.append(event)  # noqa: PERF401 - kept when it is cut off
        pieces = "".join(event.text for event in seen if isinstance(event, TextDelta))
        stored = await turns(env)
        for turn in stored:
            assert turn.state is not TurnState.PENDING
            assert texts(turn) in (["hi"], ["hi", pieces])
        assert isinstance((await events_of(env, turn_id="t"))[-1], Completed)
        return stored[0].state.value if stored else "nothing"

    async def main() -> set[str]:
        return {await left_after(moment + 0.5) for moment in range(13)}

    assert run_in_virtual_time(main) == {"nothing", "interrupted", "finished"}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("moment", range(18))
async def test_a_task_cancelled_by_asyncio_at_any_await_loses_nothing(moment: int) -> None:
    """``asyncio.timeout`` and ``Task.cancel``, by which web servers end a request, ignore the shields of anyio."""
    env = await env_with(Chunks(("one ", "two "), pause=0.004), store=Slow(seconds=0.004))
    seen: list[StreamEvent] = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout((moment + 0.5) * 0.004):
            async with open_converse("c", "hi")(env) as events:
                async for event in events:
                    seen.append(event)  # noqa: PERF401 - kept when it is cut off
            await asyncio.sleep(1)
    pieces = "".join(event.text for event in seen if isinstance(event, TextDelta))
    for turn in await turns(env):
        stored = "".join(texts(turn)[1:])
        assert turn.state is not TurnState.PENDING
        assert stored.startswith(pieces)
        assert "one two ".startswith(stored)  # a piece may have been on its way to the reader


async def test_a_manager_opens_a_turn() -> None:
    manager = make_llm_manager(ONCE, lambda env: evolve(env, clients=scripted("hello")))
    await manager.run(start_conversation("c"))
    async with manager.open_converse("c", "hi") as events:
        assert [type(event) for event in [each async for each in events]] == [Started, TextDelta, Completed]
    await manager.aclose()
    broken = create_default_llm_manager({"LLM_CACHE_MAX_SIZE": "many"})
    async with broken.open_converse("c", "hi") as events:
        (failed,) = [event async for event in events]
    assert "LLM_CACHE_MAX_SIZE" in str(failed)
