"""Turns of stored conversations: nothing is lost, stored twice or paid for twice."""

import asyncio
from datetime import timedelta
from functools import partial
from pathlib import Path

import anyio
import pytest
from attrs import evolve

from llm_effects import (
    AuthenticationFailed,
    CachePolicy,
    Completed,
    ConversationConflict,
    Cost,
    Effect,
    Failed,
    FinishReason,
    LLMConfig,
    LLMEnv,
    LLMRequest,
    LLMResponse,
    MalformedResponse,
    Message,
    ModelConfig,
    Preferences,
    Recovery,
    RequestTimeout,
    StreamEvent,
    TextDelta,
    ToolCall,
    ToolResult,
    converse,
    load_conversation,
    make_llm_manager,
    run,
    scripted_env,
    start_conversation,
)
from llm_effects.config import RoutingConfig, StorageConfig
from llm_effects.conversations import append_messages
from llm_effects.conversations.window import INTERRUPTED_NOTE
from llm_effects.effects.effect import result_of
from llm_effects.stores.cache.memory import MemoryCache
from llm_effects.testing import Chunks, Reply, run_in_virtual_time, scripted
from llm_effects.testing.scripted import EPOCH, Delayed, answer
from llm_effects.values import Turn, TurnState
from tests.fixtures.histories import stored
from tests.fixtures.slow_stores import FULL, Slow

pytestmark = pytest.mark.anyio

ONCE = LLMConfig(
    models={"scripted": ModelConfig(provider="lm-studio", model="scripted")}, routing=RoutingConfig(max_retries=0)
)


async def answer_to(effect: Effect[LLMResponse], env: LLMEnv) -> LLMResponse:
    return (await run(effect, env)).unwrap()


async def env_with(*replies: Reply, config: LLMConfig = ONCE, store: Slow | None = None, **start: object) -> LLMEnv:
    env = scripted_env(*replies, config=config)
    env = env if store is None else evolve(env, conversations=store)
    (await run(start_conversation("c", **start), env)).unwrap()
    return env


async def turns(env: LLMEnv, owner: str | None = None) -> tuple[Turn, ...]:
    return (await run(load_conversation("c", owner=owner), env)).unwrap().turns


def texts_by_role(turn: Turn) -> list[tuple[str, str]]:
    return [(each.message.role, each.message.text) for each in turn.messages]


def sent(env: LLMEnv, call: int = -1) -> list[tuple[str, str]]:
    return [(each.role, each.text) for each in env.clients.calls[call].request.messages]


async def test_a_turn_is_sent_with_all_earlier_messages() -> None:
    env = await env_with("Hello Ada.", "Ada.", system="Be brief.")
    await answer_to(converse("c", "I am Ada."), env)
    assert (await answer_to(converse("c", "Who am I?"), env)).content == "Ada."
    assert sent(env) == [("user", "I am Ada."), ("assistant", "Hello Ada."), ("user", "Who am I?")]
    assert env.clients.calls[-1].request.system == "Be brief."
    assert env.clients.calls[-1].turn.conversation_id == "c"


async def test_an_answer_is_stored_with_its_provenance() -> None:
    env = await env_with("Hello Ada.")
    response = await answer_to(converse("c", "I am Ada."), env)
    (turn,) = await turns(env)
    source = turn.messages[1].provenance
    assert source is not None
    assert (turn.state, source.model, source.provider) == (TurnState.FINISHED, "scripted", response.provider)
    assert (source.usage, source.cost, source.finish_reason) == (response.usage, response.cost, FinishReason.STOP)


async def test_the_fields_of_a_request_apply_to_its_turn() -> None:
    env = await env_with("ok", system="Be brief.", owner="ada")
    request = LLMRequest(
        prompt="hi", system="Be long.", owner="ada", tags=("t",), preferences=Preferences(max_tokens=7)
    )
    await answer_to(converse("c", request), env)
    sent = env.clients.calls[-1].request
    assert (sent.system, sent.owner, sent.tags, sent.preferences.max_tokens) == ("Be long.", "ada", ("t",), 7)


async def test_a_conversation_of_another_owner_does_not_exist() -> None:
    env = await env_with("ok", owner="ada")
    other = (await run(converse("c", "hi", owner="bob"), env)).failure()
    ownerless = (await run(converse("c", "hi"), env)).failure()
    unknown = (await run(converse("d", "hi", owner="ada"), env)).failure()
    assert other == ownerless == evolve(unknown, message=unknown.message.replace("'d'", "'c'"))
    assert env.clients.calls == []


async def test_two_different_owners_are_rejected() -> None:
    env = await env_with("ok", owner="ada")
    refused = (await run(converse("c", LLMRequest(prompt="hi", owner="ada"), owner="bob"), env)).failure()
    assert refused.tag == "InvalidRequest"


@pytest.mark.parametrize("message", ["", " ", 7])
async def test_an_invalid_message_is_rejected_before_anything_is_stored(message: str) -> None:
    env = await env_with("ok")
    assert (await run(converse("c", message), env)).failure().tag == "InvalidRequest"
    assert await turns(env) == ()


async def test_the_conversation_stays_with_the_model_that_answered_last() -> None:
    config = LLMConfig(models={name: ModelConfig(provider="lm-studio") for name in ("one", "two", "three")})
    env = await env_with("ok", config=config)
    await answer_to(converse("c", LLMRequest(prompt="hi", model="two")), env)
    assert (await answer_to(converse("c", "and now?"), env)).model == "two"


async def test_a_repeated_turn_id_returns_the_stored_answer_at_no_cost() -> None:
    env = await env_with("first", "second")
    once = await answer_to(converse("c", "hi", turn_id="t"), env)
    again = await answer_to(converse("c", "hi", turn_id="t"), env)
    assert (again.content, again.cached, again.cost, again.attempts) == ("first", True, Cost.ZERO, ())
    assert (again.model, again.usage, again.finish_reason) == (once.model, once.usage, once.finish_reason)
    assert len(env.clients.calls) == len(await turns(env)) == 1


async def test_a_turn_id_cannot_be_used_for_another_message() -> None:
    env = await env_with("first", AuthenticationFailed(), "third")
    await answer_to(converse("c", "hi", turn_id="t"), env)
    await run(converse("c", "hi", turn_id="u"), env)
    for name in ("t", "u"):
        assert (await run(converse("c", "other", turn_id=name), env)).failure().tag == "InvalidRequest"
    assert (await answer_to(converse("c", "hi", turn_id="u"), env)).content == "third"


async def test_a_failed_turn_keeps_its_question_and_can_be_retried() -> None:
    env = await env_with(AuthenticationFailed(), "better", "ok")
    assert (await run(converse("c", "hi", turn_id="t"), env)).failure().tag == "AuthenticationFailed"
    (failed,) = await turns(env)
    assert (failed.state, failed.error, texts_by_role(failed)) == (
        TurnState.FAILED,
        "AuthenticationFailed",
        [("user", "hi")],
    )
    assert (await answer_to(converse("c", "hi", turn_id="t"), env)).content == "better"
    (turn,) = await turns(env)
    assert texts_by_role(turn) == [("user", "hi"), ("assistant", "better")]
    assert turn.messages[0].id == failed.messages[0].id


async def test_the_question_of_a_failed_turn_is_left_out_of_later_prompts() -> None:
    env = await env_with(AuthenticationFailed(), "ok")
    await run(converse("c", "lost"), env)
    await answer_to(converse("c", "hi"), env)
    assert sent(env) == [("user", "hi")]


async def test_a_retried_question_comes_last_in_its_prompt() -> None:
    env = await env_with(AuthenticationFailed(), "between", "late")
    await run(converse("c", "first", turn_id="t"), env)
    await answer_to(converse("c", "second"), env)
    await answer_to(converse("c", "first", turn_id="t"), env)
    assert sent(env) == [("user", "second"), ("assistant", "between"), ("user", "first")]


async def test_a_broken_stream_is_stored_as_seen_and_the_next_turn_works() -> None:
    env = await env_with(Chunks(("The disk ", "is"), then=MalformedResponse()), "full")
    seen: list[StreamEvent] = []
    broken = (await run(converse("c", "why?", sink=partial(collect, seen)), env)).failure()
    assert (broken.tag, broken.partial, type(seen[-1])) == ("MalformedResponse", "The disk is", Failed)
    (turn,) = await turns(env)
    assert (turn.state, turn.error) == (TurnState.INTERRUPTED, "MalformedResponse")
    assert texts_by_role(turn) == [("user", "why?"), ("assistant", "The disk is")]
    await answer_to(converse("c", "go on"), env)
    assert sent(env) == [("user", "why?"), ("assistant", "The disk is" + INTERRUPTED_NOTE), ("user", "go on")]


async def collect(seen: list[StreamEvent], event: StreamEvent) -> None:
    seen.append(event)


async def test_retrying_an_interrupted_turn_returns_the_partial_answer_with_a_warning() -> None:
    env = await env_with(Chunks(("half",), then=MalformedResponse()), "never")
    seen: list[StreamEvent] = []
    await run(converse("c", "why?", turn_id="t", sink=partial(collect, seen)), env)
    again = await answer_to(converse("c", "why?", turn_id="t"), env)
    assert (again.content, again.finish_reason, again.cost) == ("half", FinishReason.LENGTH, Cost.ZERO)
    assert "interrupted" in again.warnings[0]
    assert len(env.clients.calls) == 1


async def test_a_restarted_stream_stores_only_the_text_after_the_restart() -> None:
    config = LLMConfig(
        models={name: ModelConfig(provider="lm-studio") for name in ("one", "two")},
        routing=RoutingConfig(max_retries=0),
    )
    broken = (Chunks(("wrong",), then=MalformedResponse()), Chunks(("ri",), then=MalformedResponse()))
    env = await env_with(*broken, config=config)
    seen: list[StreamEvent] = []
    request = LLMRequest(prompt="why?", recovery=Recovery.RESTART)
    await run(converse("c", request, sink=partial(collect, seen)), env)
    (turn,) = await turns(env)
    assert texts_by_role(turn) == [("user", "why?"), ("assistant", "ri")]
    assert turn.messages[1].provenance is not None
    assert turn.messages[1].provenance.model == "two"


async def test_a_replayed_stream_has_the_same_text_and_ends_with_its_response() -> None:
    env = await env_with(Chunks(("a", "b")))
    for _ in range(2):
        seen: list[StreamEvent] = []
        response = await answer_to(converse("c", "why?", turn_id="t", sink=partial(collect, seen)), env)
        assert "".join(event.text for event in seen if isinstance(event, TextDelta)) == "ab"
        assert seen[-1] == Completed(response)


async def test_an_exception_of_the_consumer_is_raised_and_interrupts_the_turn() -> None:
    env = await env_with(Chunks(("a", "b")), "ok")

    async def broken(event: StreamEvent) -> None:
        if isinstance(event, TextDelta):
            raise KeyError(event.text)

    with pytest.raises(KeyError):
        await run(converse("c", "why?", sink=broken), env)
    (turn,) = await turns(env)
    assert (turn.state, texts_by_role(turn)) == (TurnState.INTERRUPTED, [("user", "why?"), ("assistant", "a")])
    assert (await answer_to(converse("c", "and?"), env)).content == "ok"


async def test_concurrent_turns_all_succeed_and_are_stored_once() -> None:
    env = await env_with(Delayed(0.005, "ok"))
    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(answer_to, converse("c", f"question {number}"), env)
    stored_turns = await turns(env)
    assert sorted(turn.messages[0].message.text for turn in stored_turns) == [
        f"question {number}" for number in range(8)
    ]
    assert all(len(turn.messages) == 2 for turn in stored_turns)


@pytest.mark.parametrize(("conflicts", "tag"), [(7, None), (8, "ConversationConflict")])
async def test_beginning_a_turn_is_retried_on_conflicts_up_to_a_limit(conflicts: int, tag: str | None) -> None:
    store = Slow(failing={"begin_turn": conflicts}, error=ConversationConflict(conversation_id="c"))
    env = evolve(await env_with("ok", store=store), draw=lambda: 0.0)
    result = await run(converse("c", "hi"), env)
    assert result.failure().tag == tag if tag else result.unwrap().content == "ok"
    assert (store.done.count("begin_turn"), len(env.clients.calls)) == (8, 0 if tag else 1)


async def test_a_turn_under_way_elsewhere_is_a_conflict_until_its_lease_expires() -> None:
    env = await env_with("at last")
    lease = EPOCH + timedelta(seconds=60)
    dead = Turn(id="t", begun_at=EPOCH, lease_until=lease, writer="dead", messages=(stored("user", "hi"),))
    (await result_of(env.conversations.begin_turn("c", None, 0, dead))).unwrap()
    refused = (await run(converse("c", "hi", turn_id="t"), env)).failure()
    assert (refused.tag, refused.retry_after, env.clients.calls) == ("ConversationConflict", 60.0, [])
    later = evolve(env, now=lambda: lease)
    assert (await answer_to(converse("c", "hi", turn_id="t"), later)).content == "at last"
    assert [texts_by_role(turn) for turn in await turns(env)] == [[("user", "hi"), ("assistant", "at last")]]


async def test_a_turn_under_way_elsewhere_is_not_in_a_prompt() -> None:
    env = await env_with("ok")
    lease = EPOCH + timedelta(seconds=60)
    other = Turn(id="t", begun_at=EPOCH, lease_until=lease, writer="other", messages=(stored("user", "other"),))
    (await result_of(env.conversations.begin_turn("c", None, 0, other))).unwrap()
    await answer_to(converse("c", "hi"), env)
    assert sent(env) == [("user", "hi")]


@pytest.mark.parametrize("transient", [False, True])
async def test_an_answer_that_cannot_be_stored_is_returned_with_a_warning(transient: bool) -> None:
    store = Slow(error=evolve(FULL, transient=transient))
    env = await env_with("paid for", store=store)
    store.failing["finish_turn"] = 9
    response = await answer_to(converse("c", "hi"), env)
    assert response.content == "paid for"
    assert "not saved" in response.warnings[-1]
    assert "disk full" in response.warnings[-1]


async def test_a_transient_failure_to_store_the_answer_is_retried() -> None:
    store = Slow(error=evolve(FULL, transient=True))
    env = await env_with("paid for", store=store)
    store.failing["finish_turn"] = 1
    assert (await answer_to(converse("c", "hi"), env)).warnings == ()
    assert (await turns(env))[0].state is TurnState.FINISHED


async def test_a_transient_failure_to_begin_a_turn_is_retried_and_stores_it_once() -> None:
    store = Slow(failing={"begin_turn": 1}, error=evolve(FULL, transient=True))
    env = await env_with("ok", store=store)
    await answer_to(converse("c", "hi"), env)
    assert [texts_by_role(turn) for turn in await turns(env)] == [[("user", "hi"), ("assistant", "ok")]]


@pytest.mark.parametrize("operation", ["load", "begin_turn"])
async def test_a_store_that_fails_before_the_call_prevents_it(operation: str) -> None:
    store = Slow(failing={operation: 9})
    env = evolve(scripted_env("never"), conversations=store)
    await run(start_conversation("c"), env)
    seen: list[StreamEvent] = []
    refused = (await run(converse("c", "hi", sink=partial(collect, seen)), env)).failure()
    assert (refused.tag, env.clients.calls, seen) == ("StorageFailed", [], [Failed(refused)])


async def test_a_tool_result_follows_its_call_in_the_prompt() -> None:
    call = ToolCall("1", "time")
    env = await env_with(evolve(answer(""), parts=(call,), finish_reason=FinishReason.TOOL_CALLS), "It is noon.")
    assert (await answer_to(converse("c", "time?"), env)).tool_calls == (call,)
    await answer_to(converse("c", Message("tool", ToolResult("1", "noon"))), env)
    sent = env.clients.calls[-1].request.messages
    assert [each.role for each in sent] == ["user", "assistant", "tool"]
    assert sent[-1].parts == (ToolResult("1", "noon"),)


async def test_a_result_without_a_call_is_rejected_before_it_is_stored() -> None:
    env = await env_with("never")
    refused = (await run(converse("c", Message("tool", ToolResult("9", "noon"))), env)).failure()
    assert refused.tag == "InvalidRequest"
    assert "'9'" in refused.message
    assert await turns(env) == ()


async def test_a_call_without_a_result_gets_an_error_result() -> None:
    env = await env_with(
        evolve(answer(""), parts=(ToolCall("1", "time"),), finish_reason=FinishReason.TOOL_CALLS), "ok"
    )
    await answer_to(converse("c", "time?"), env)
    await answer_to(converse("c", "never mind"), env)
    sent = env.clients.calls[-1].request.messages
    assert [each.role for each in sent] == ["user", "assistant", "tool", "user"]
    assert isinstance(sent[2].parts[0], ToolResult)
    assert sent[2].parts[0].is_error


async def test_the_deadline_includes_the_store() -> None:
    store = Slow(seconds=0.02)
    env = await env_with("never", store=store)
    request = LLMRequest(prompt="hi", preferences=Preferences(timeout_ms=10))
    refused = (await run(converse("c", request), env)).failure()
    assert (refused.tag, env.clients.calls) == ("TimeoutError", [])


def test_a_slow_stream_is_interrupted_at_its_deadline_and_stored() -> None:
    async def main() -> tuple[object, ...]:
        env = await env_with(Chunks(("a ", "b ", "c "), pause=20.0))
        seen: list[StreamEvent] = []
        request = LLMRequest(prompt="hi", preferences=Preferences(timeout_ms=50_000))
        error = (await run(converse("c", request, sink=partial(collect, seen)), env)).failure()
        return error, (await turns(env))[0]

    error, turn = run_in_virtual_time(main)
    assert isinstance(error, RequestTimeout)
    assert (error.partial, error.timeout_ms) == ("a ", 50_000)
    assert (turn.state, turn.error, texts_by_role(turn)[-1]) == (
        TurnState.INTERRUPTED,
        "TimeoutError",
        ("assistant", "a "),
    )


async def cancelled_after(seconds: float, tick: float) -> tuple[list[str], list[StreamEvent], LLMEnv]:
    """Cancel a turn after some time in a slow store and a slow model."""
    env = await env_with(Chunks(("one ", "two "), pause=tick), "next", store=Slow(seconds=tick))
    seen: list[StreamEvent] = []
    with anyio.move_on_after(seconds):
        await run(converse("c", "hi", turn_id="t", sink=partial(collect, seen)), env)
    return [event.text for event in seen if isinstance(event, TextDelta)], seen, env


async def check_nothing_is_lost_after(seconds: float, tick: float) -> str:
    pieces, _, env = await cancelled_after(seconds, tick)
    stored_turns = await turns(env)
    assert len(stored_turns) <= 1
    for turn in stored_turns:
        assert turn.state is not TurnState.PENDING
        assert texts_by_role(turn)[0] == ("user", "hi")
        assert "".join(text for _, text in texts_by_role(turn)[1:]) == "".join(pieces)
    again = await answer_to(converse("c", "hi", turn_id="t"), env)
    assert again.content in {"".join(pieces), "next", "one two "}
    (turn,) = await turns(env)
    assert [role for role, _ in texts_by_role(turn)] == ["user", "assistant"]
    assert (await answer_to(converse("c", "and now?"), env)).content == "next"
    return stored_turns[0].state.value if stored_turns else "nothing"


def test_a_turn_cancelled_at_any_await_loses_nothing_in_virtual_time() -> None:
    async def main() -> set[str]:
        return {await check_nothing_is_lost_after(moment + 0.5, 1.0) for moment in range(13)}

    assert run_in_virtual_time(main) == {"nothing", "interrupted", "finished"}


async def test_a_turn_cancelled_at_any_await_loses_nothing_on_both_backends() -> None:
    for moment in range(13):
        await check_nothing_is_lost_after((moment + 0.5) * 0.002, 0.002)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("moment", range(18))
async def test_a_task_cancelled_by_asyncio_at_any_await_loses_nothing(moment: int) -> None:
    """``asyncio.timeout`` and ``Task.cancel`` ignore the shields of anyio."""
    env = await env_with(Chunks(("one ", "two "), pause=0.004), "next", store=Slow(seconds=0.004))
    seen: list[StreamEvent] = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout((moment + 0.5) * 0.004):
            await run(converse("c", "hi", turn_id="t", sink=partial(collect, seen)), env)
            await asyncio.sleep(1)
    pieces = "".join(event.text for event in seen if isinstance(event, TextDelta))
    for turn in await turns(env):
        assert turn.state is not TurnState.PENDING
        assert "".join(text for _, text in texts_by_role(turn)[1:]) == pieces


async def test_appended_user_messages_are_merged_into_the_next_question() -> None:
    env = await env_with("ok")
    (await run(append_messages("c", (Message("user", "I am Ada."),)), env)).unwrap()
    await answer_to(converse("c", "Who am I?"), env)
    assert sent(env) == [("user", "I am Ada.\n\nWho am I?")]


async def test_a_cached_answer_is_stored_in_the_conversation() -> None:
    env = evolve(await env_with("first", "second"), cache=MemoryCache(10))
    (await run(start_conversation("d"), env)).unwrap()
    await answer_to(converse("c", "hi"), env)
    assert (await answer_to(converse("d", "hi"), env)).cached
    assert (
        await answer_to(converse("d", LLMRequest(prompt="again", cache=CachePolicy.BYPASS)), env)
    ).content == "second"
    assert [each.text for each in env.clients.calls[-1].request.messages] == ["hi", "first", "again"]


def test_a_manager_can_converse() -> None:
    async def main() -> str:
        manager = make_llm_manager(ONCE, lambda env: evolve(env, clients=scripted("hello")))
        await manager.run(start_conversation("c"))
        result = await result_of(manager.converse("c", "hi"))
        await manager.aclose()
        return result.unwrap().content

    assert anyio.run(main) == "hello"


def test_a_conversation_continues_in_another_environment(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy", reason="pip install 'llm-effects[sql]'")
    storage = evolve(ONCE, storage=StorageConfig(url=f"sqlite:///{tmp_path / 'talk.db'}"))

    async def talk(question: str) -> list[tuple[str, str]]:
        model = scripted(Chunks(("an", "swer")))
        manager = make_llm_manager(storage, lambda env: evolve(env, clients=model))
        await manager.run(start_conversation("c"))
        (await manager.run(converse("c", question))).unwrap()
        await manager.aclose()
        return [(each.role, each.text) for each in model.requests[-1].messages]

    anyio.run(talk, "one")
    assert anyio.run(talk, "two") == [("user", "one"), ("assistant", "answer"), ("user", "two")]
