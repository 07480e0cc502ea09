"""The same question is paid for once: keys, policies, what is kept, what is told again, and sharing calls under way."""

import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from attrs import evolve, fields_dict, frozen
from hypothesis import given
from hypothesis import strategies as st
from returns.future import FutureResult
from returns.result import Result, Success

from llm_effects import (
    Allow,
    AuthenticationFailed,
    CachePolicy,
    Completed,
    ContentRefused,
    FinishReason,
    Image,
    LLMConfig,
    LLMEnv,
    LLMRequest,
    MalformedResponse,
    Message,
    ModelConfig,
    Preferences,
    RateLimitExceeded,
    Reasoning,
    Recovery,
    Restarted,
    Started,
    StreamEvent,
    TextDelta,
    ToolCall,
    generate,
    make_llm_manager,
    open_env,
    run,
    scripted_env,
    stream,
)
from llm_effects.config import CacheConfig, RoutingConfig
from llm_effects.effects.effect import Generate, layered
from llm_effects.pipeline import run_call
from llm_effects.policies import coalescing as flights
from llm_effects.policies.cache import cache_key, cache_stats, clear, invalidate, with_cache
from llm_effects.policies.coalescing import with_coalescing
from llm_effects.policies.complete import complete
from llm_effects.policies.deadline import with_deadline
from llm_effects.policies.recording import with_recording
from llm_effects.policies.routing import with_routing
from llm_effects.stores.cache.memory import MemoryCache
from llm_effects.stores.disabled import NoCache
from llm_effects.testing import Chunks, Delayed, Reply, Scripted, answer, run_in_virtual_time, scripted
from llm_effects.values import CacheStats, Tool
from llm_effects.values.errors import LLMError
from llm_effects.values.serialization import Entry, dump_entry, load_entry

ASK = LLMRequest(prompt="why?")
STUDIO = ModelConfig(provider="lm-studio", model="m")
TWO = LLMConfig(models={"one": STUDIO, "two": STUDIO}, routing=RoutingConfig(max_retries=0))


def remembering(*replies: Reply, config: LLMConfig = TWO) -> tuple[LLMEnv, Scripted]:
    model = scripted(*replies)
    return evolve(scripted_env(clients=model, config=config), cache=MemoryCache(100)), model


async def told(env: LLMEnv, request: LLMRequest = ASK) -> list[StreamEvent]:
    events: list[StreamEvent] = []

    async def sink(event: StreamEvent) -> None:
        events.append(event)

    await run(stream(request, sink), env)
    return events


# --- keys

SHAPING: dict[str, LLMRequest] = {
    "prompt": evolve(ASK, prompt="how?"),
    "messages": LLMRequest(messages=(Message("user", "why?"), Message("assistant", "because"), Message("user", "so?"))),
    "system": evolve(ASK, system="be brief"),
    "task_type": evolve(ASK, task_type="analysis"),
    "preferences.max_tokens": evolve(ASK, preferences=Preferences(max_tokens=5)),
    "preferences.temperature": evolve(ASK, preferences=Preferences(temperature=0.5)),
    "preferences.top_p": evolve(ASK, preferences=Preferences(top_p=0.5)),
    "preferences.stop": evolve(ASK, preferences=Preferences(stop=("x",))),
    "preferences.seed": evolve(ASK, preferences=Preferences(seed=5)),
    "preferences.reasoning_effort": evolve(ASK, preferences=Preferences(reasoning_effort="low")),
    "tools": evolve(ASK, tools=(Tool("look"),)),
    "tool_choice": evolve(ASK, tool_choice="none"),
    "response_schema": evolve(ASK, response_schema={"type": "object"}),
    "model": evolve(ASK, model="one"),
    "owner": evolve(ASK, owner="alice"),
    "allow": evolve(ASK, allow=(Allow.CHEAPER_MODEL,)),
}
ONE_RETRY = LLMConfig(models={"one": STUDIO}, routing=RoutingConfig(max_retries=1))
REST: dict[str, LLMRequest] = {
    "preferences.timeout_ms": evolve(ASK, preferences=Preferences(timeout_ms=5)),
    "cache": evolve(ASK, cache=CachePolicy.REFRESH),
    "recovery": evolve(ASK, recovery=Recovery.RESTART),
    "tags": evolve(ASK, tags=("nightly",)),
    "metadata": evolve(ASK, metadata={"a": "b"}),
}


def test_every_field_of_a_request_is_known_to_shape_its_answer_or_not() -> None:
    known = {name.split(".")[0] for name in (*SHAPING, *REST)}
    assert known == set(fields_dict(LLMRequest))
    wanted = {name.split(".")[1] for name in (*SHAPING, *REST) if "." in name}
    assert wanted == set(fields_dict(Preferences))


@pytest.mark.parametrize("name", SHAPING)
def test_what_shapes_the_answer_changes_the_key(name: str) -> None:
    keys = {cache_key(request, TWO) for request in (ASK, *SHAPING.values())}
    assert len(keys) == 1 + len(SHAPING)
    assert cache_key(SHAPING[name], TWO) != cache_key(ASK, TWO)


@pytest.mark.parametrize("name", REST)
def test_what_does_not_shape_it_leaves_the_key(name: str) -> None:
    assert cache_key(REST[name], TWO) == cache_key(ASK, TWO)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"api_key": "sk-another-key"}, True),
        ({"timeout_ms": 5}, True),
        ({"model": "n"}, False),
        ({"endpoint": "http://localhost:99/v1"}, False),
        ({"temperature": 0.3}, False),
        ({"max_tokens": 3}, False),
        ({"context_length": 99}, False),
    ],
)
def test_the_candidates_count_but_not_their_keys(change: dict[str, object], same: bool) -> None:
    changed = LLMConfig(models={"one": evolve(STUDIO, **change), "two": STUDIO})
    assert (cache_key(ASK, changed) == cache_key(ASK, TWO)) is same


def test_the_order_of_candidates_and_of_mappings_does_not_count() -> None:
    turned = LLMConfig(models={"two": STUDIO, "one": STUDIO})
    assert cache_key(ASK, turned) == cache_key(ASK, TWO)
    there = evolve(ASK, response_schema={"type": "object", "title": "A", "properties": {"a": {}, "b": {}}})
    back = evolve(ASK, response_schema={"properties": {"b": {}, "a": {}}, "title": "A", "type": "object"})
    assert cache_key(there, TWO) == cache_key(back, TWO)


def test_a_prompt_and_its_message_are_the_same_question() -> None:
    assert cache_key(LLMRequest(messages=(Message("user", "why?"),)), TWO) == cache_key(ASK, TWO)


def test_the_key_is_the_same_in_another_process() -> None:
    program = (
        "from llm_effects import *;from llm_effects.policies.cache import cache_key;"
        "m=ModelConfig(provider='lm-studio', model='m');"
        "print(cache_key(LLMRequest(prompt='why?', response_schema={'b': 1, 'a': 2}), LLMConfig(models={'x': m})))"
    )
    keys = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    here = cache_key(LLMRequest(prompt="why?", response_schema={"b": 1, "a": 2}), LLMConfig(models={"x": STUDIO}))
    assert keys == {here + "\n"}


@given(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
def test_different_texts_have_different_keys(one: str, other: str) -> None:
    same = cache_key(LLMRequest(prompt=one), TWO) == cache_key(LLMRequest(prompt=other), TWO)
    assert same == (one == other)


# --- entries

FULL = evolve(
    answer("because"),
    parts=(
        Reasoning("hm", '{"signature":"x"}'),
        ToolCall("call_1", "look", "{}"),
        Image(data=b"\x00\xff", media_type="image/png"),
    ),
    warnings=("temperature was dropped",),
    request_id="req_1",
    task_type="triage",
)


def test_an_entry_comes_back_as_it_was() -> None:
    entry = Entry(response=FULL, events=(TextDelta("be"), TextDelta("cause")))
    assert load_entry(dump_entry(entry)) == entry


def test_every_flipped_bit_and_every_cut_is_a_miss() -> None:
    data = dump_entry(Entry(response=answer("because"), events=(TextDelta("because"),)))
    for index in range(len(data)):
        assert load_entry(data[:index]) is None
        for bit in range(8):
            assert load_entry(data[:index] + bytes([data[index] ^ (1 << bit)]) + data[index + 1 :]) is None


@pytest.mark.parametrize("data", [b"", b"null", b"\x80\x04K\x01.", b'{"version":2,"sha256":"","body":{}}', b"[" * 9999])
def test_what_is_no_entry_of_ours_is_a_miss(data: bytes) -> None:
    assert load_entry(data) is None


# --- policies


@pytest.mark.anyio
async def test_the_second_answer_is_the_first_at_no_cost() -> None:
    env, model = remembering("because")
    first = (await run(generate(ASK), env)).unwrap()
    second = (await run(generate(ASK), env)).unwrap()
    assert (first.cached, second.cached, len(model.calls)) == (False, True, 1)
    assert (second.content, second.usage, second.cost.usd, second.attempts) == ("because", first.usage, 0, ())


@pytest.mark.anyio
async def test_refresh_asks_and_stores_bypass_does_neither_and_only_never_asks() -> None:
    env, model = remembering("one", "two", "three", "four")
    policies = (CachePolicy.BYPASS, CachePolicy.USE, CachePolicy.REFRESH, CachePolicy.USE, CachePolicy.ONLY)
    contents = [(await run(generate(evolve(ASK, cache=policy)), env)).unwrap().content for policy in policies]
    assert contents == ["one", "two", "three", "three", "three"]
    missed = (await run(generate(evolve(ASK, prompt="new?", cache=CachePolicy.ONLY)), env)).failure()
    assert (missed.tag, len(model.calls)) == ("StorageFailed", 3)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "reply",
    [
        AuthenticationFailed(),
        ContentRefused(),
        evolve(answer("cut off"), finish_reason=FinishReason.LENGTH),
        evolve(answer(""), finish_reason=FinishReason.TOOL_CALLS),
    ],
    ids=lambda reply: getattr(reply, "tag", None) or reply.finish_reason.value,
)
async def test_only_whole_answers_are_kept(reply: Reply) -> None:
    env, model = remembering(reply)
    request = evolve(ASK, model="one")
    for _ in range(2):
        await run(generate(request), env)
    assert len(model.calls) == 2


@pytest.mark.anyio
async def test_a_cut_off_answer_is_kept_if_asked() -> None:
    config = evolve(TWO, cache=CacheConfig(keep=("stop", "length")))
    env, model = remembering(evolve(answer("cut off"), finish_reason=FinishReason.LENGTH), config=config)
    for _ in range(2):
        await run(generate(ASK), env)
    assert len(model.calls) == 1


@pytest.mark.anyio
async def test_one_entry_serves_plain_and_streamed_calls() -> None:
    env, model = remembering(Chunks(("be", "cause")))
    streamed = await told(env)
    again = await told(env)
    plain = (await run(generate(ASK), env)).unwrap()
    assert again[:-1] == streamed[:-1] == [Started("one"), TextDelta("be"), TextDelta("cause")]
    assert isinstance(again[-1], Completed)
    assert (again[-1].response.cached, plain.cached, plain.content, len(model.calls)) == (True, True, "because", 1)


@pytest.mark.anyio
async def test_a_plain_answer_is_told_to_a_later_stream() -> None:
    env, _ = remembering("because")
    await run(generate(ASK), env)
    assert (await told(env))[:-1] == [Started("one"), TextDelta("because")]


@pytest.mark.anyio
async def test_a_restarted_answer_is_not_kept() -> None:
    env, model = remembering(Chunks(("half",), then=MalformedResponse()), "whole", "whole again")
    request = evolve(ASK, recovery=Recovery.RESTART)
    assert Restarted("two") in await told(env, request)
    await told(env, request)
    assert len(model.calls) == 3


@pytest.mark.anyio
async def test_a_corrupt_entry_is_a_miss_and_is_replaced() -> None:
    env, model = remembering("because")
    await env.cache.put(cache_key(ASK, env.config), b'{"version": 99}', None)
    assert not (await run(generate(ASK), env)).unwrap().cached
    assert (await run(generate(ASK), env)).unwrap().cached
    assert len(model.calls) == 1


@pytest.mark.anyio
async def test_a_store_that_fails_is_a_miss_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_bytes(b"this is no database, however long it may be" * 50)
    url = f"sqlite:///{tmp_path}/broken.db"
    model = scripted("because")
    adapted = make_llm_manager(evolve(TWO, cache=CacheConfig(url=url)), lambda env: evolve(env, clients=model))
    async with adapted as manager:
        response = (await manager.run(generate(ASK))).unwrap()
        await manager.run(generate(ASK))
    assert (response.content, len(model.calls)) == ("because", 2)
    assert "cache could not be read" in response.warnings[0]


@pytest.mark.anyio
async def test_failures_of_the_store_are_counted() -> None:
    nowhere = evolve(TWO, cache=CacheConfig(url="redis://127.0.0.1:9/0"))
    model = scripted("because")
    async with make_llm_manager(nowhere, lambda env: evolve(env, clients=model)) as manager:
        response = (await manager.run(generate(ASK))).unwrap()
        stats = (await manager.run(cache_stats())).unwrap()
    assert (response.content, stats.failures, stats.hits) == ("because", 1, 0)


@pytest.mark.anyio
async def test_a_wrong_url_is_a_configuration_error() -> None:
    async with open_env(evolve(TWO, cache=CacheConfig(url="ftp://nowhere"))) as env:
        error = (await run(generate(ASK), env)).failure()
    assert (error.tag, "cache.url" in str(error)) == ("ConfigurationError", True)


@pytest.mark.anyio
async def test_owners_do_not_share() -> None:
    env, model = remembering("for alice", "for bob")
    alice = (await run(generate(evolve(ASK, owner="alice")), env)).unwrap()
    bob = (await run(generate(evolve(ASK, owner="bob")), env)).unwrap()
    assert (alice.content, bob.content, len(model.calls)) == ("for alice", "for bob", 2)


@pytest.mark.anyio
async def test_looking_after_the_cache() -> None:
    env, model = remembering("because")
    await run(generate(ASK), env)
    await run(generate(ASK), env)
    stats = (await run(cache_stats(), env)).unwrap()
    assert (stats.entries, stats.hits) == (1, 1)
    assert (await run(invalidate(ASK), env)).unwrap()
    assert not (await run(invalidate(ASK), env)).unwrap()
    await run(generate(ASK), env)
    assert (await run(clear(), env)).unwrap() == 1
    await run(generate(ASK), env)
    assert len(model.calls) == 3


def test_answers_survive_a_restart(tmp_path: Path) -> None:
    config = evolve(TWO, cache=CacheConfig(url=f"sqlite:///{tmp_path}/answers.db"))

    async def use(model: Scripted) -> bool:
        async with make_llm_manager(config, lambda env: evolve(env, clients=model)) as manager:
            return (await manager.run(generate(ASK))).unwrap().cached

    model = scripted("because")
    assert [anyio.run(use, model, backend=backend) for backend in ("asyncio", "trio", "asyncio")] == [False, True, True]
    assert len(model.calls) == 1


# --- calls under way


async def at_once(env: LLMEnv, request: LLMRequest, callers: int) -> list[str]:
    contents: list[str] = []

    async def one() -> None:
        contents.append((await run(generate(request), env)).map(lambda r: r.content).value_or("failed"))

    async with anyio.create_task_group() as group:
        for _ in range(callers):
            group.start_soon(one)
    return contents


@pytest.mark.anyio
async def test_a_thousand_identical_calls_are_one() -> None:
    env, model = remembering(Delayed(0.01, "because"))
    assert await at_once(env, ASK, 1000) == ["because"] * 1000
    assert len(model.calls) == 1


@pytest.mark.anyio
async def test_bypassing_calls_share_nothing() -> None:
    env, model = remembering(Delayed(0.01, "because"))
    await at_once(env, evolve(ASK, cache=CachePolicy.BYPASS), 3)
    assert len(model.calls) == 3


@pytest.mark.anyio
async def test_with_the_cache_off_calls_share_nothing() -> None:
    env, model = remembering(Delayed(0.01, "because"), config=evolve(TWO, cache=CacheConfig(enabled=False)))
    await at_once(env, ASK, 3)
    assert len(model.calls) == 3


@pytest.mark.anyio
async def test_a_follower_pays_nothing_and_has_no_attempts_of_its_own() -> None:
    env, _ = remembering(Delayed(0.01, "because"))
    responses = []

    async def one() -> None:
        responses.append((await run(generate(ASK), env)).unwrap())

    async with anyio.create_task_group() as group:
        group.start_soon(one)
        group.start_soon(one)
    assert sorted(len(response.attempts) for response in responses) == [0, 1]
    assert next(each for each in responses if not each.attempts).cost.usd == 0


@pytest.mark.anyio
async def test_followers_get_all_events_from_the_start() -> None:
    env, model = remembering(Chunks(tuple("abcdef"), pause=0.002))
    both: list[list[StreamEvent]] = [[], []]

    async def follow(index: int, delay: float) -> None:
        await anyio.sleep(delay)
        both[index] = await told(env)

    async with anyio.create_task_group() as group:
        group.start_soon(follow, 0, 0)
        group.start_soon(follow, 1, 0.007)
    assert both[0][:-1] == both[1][:-1] == [Started("one"), *map(TextDelta, "abcdef")]
    assert len(model.calls) == 1


@pytest.mark.anyio
async def test_a_leader_without_a_consumer_serves_followers_that_have_one() -> None:
    env, model = remembering(Delayed(0.01, "because"))
    events: list[StreamEvent] = []

    async def follow() -> None:
        events.extend(await told(env))

    async with anyio.create_task_group() as group:
        group.start_soon(run, generate(ASK), env)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(follow)
    assert events[:-1] == [Started("one"), TextDelta("because")]
    assert len(model.calls) == 1


@pytest.mark.anyio
async def test_a_cancelled_leader_hands_over() -> None:
    env, model = remembering(Delayed(0.03, "because"))
    contents: list[str] = []

    async def follow() -> None:
        contents.extend(await at_once(env, ASK, 5))

    async with anyio.create_task_group() as group:
        with anyio.move_on_after(0.01):
            group.start_soon(follow)
            await run(generate(ASK), env)
    assert contents == ["because"] * 5
    assert len(model.calls) == 2


@pytest.mark.anyio
async def test_the_leader_s_deadline_is_not_the_followers() -> None:
    env, model = remembering(Delayed(0.05, "because"))
    hasty = evolve(ASK, preferences=Preferences(timeout_ms=20))
    outcomes: list[str] = []

    async def one(request: LLMRequest) -> None:
        result = await run(generate(request), env)
        outcomes.append(result.map(lambda response: response.content).value_or("failed"))

    async with anyio.create_task_group() as group:
        group.start_soon(one, hasty)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(one, ASK)
    assert outcomes == ["failed", "because"]
    assert len(model.calls) == 2


@pytest.mark.anyio
async def test_a_follower_has_its_own_deadline() -> None:
    env, model = remembering(Delayed(0.05, "because"))
    hasty = evolve(ASK, preferences=Preferences(timeout_ms=10))
    tags: list[str] = []

    async def follow() -> None:
        tags.append((await run(generate(hasty), env)).failure().tag)

    async with anyio.create_task_group() as group:
        group.start_soon(run, generate(ASK), env)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(follow)
    assert tags == ["TimeoutError"]
    assert len(model.calls) == 1


@pytest.mark.anyio
async def test_a_leader_whose_consumer_raises_fails_nobody_else() -> None:
    env, _ = remembering(Chunks(("be", "cause"), pause=0.01))
    events: list[StreamEvent] = []

    async def broken(event: StreamEvent) -> None:
        if event == TextDelta("be"):
            raise KeyError("mine")

    async def lead() -> None:
        with pytest.raises(KeyError):
            await run(stream(ASK, broken), env)

    async def follow() -> None:
        events.extend(await told(env))

    async with anyio.create_task_group() as group:
        group.start_soon(lead)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(follow)
    assert isinstance(events[-1], Completed)
    shown = ""
    for event in events:
        shown = "" if isinstance(event, Restarted) else shown + (event.text if isinstance(event, TextDelta) else "")
    assert shown == "because"


@pytest.mark.anyio
async def test_a_slow_follower_holds_nobody_up() -> None:
    env, _ = remembering(Chunks(tuple("abc"), pause=0.001))
    finished = anyio.Event()
    slow: list[StreamEvent] = []

    async def crawl(event: StreamEvent) -> None:
        await finished.wait()
        slow.append(event)

    async def lead() -> None:
        await told(env)
        finished.set()

    async with anyio.create_task_group() as group:
        group.start_soon(lead)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(run, stream(ASK, crawl), env)
    assert slow[:-1] == [Started("one"), *map(TextDelta, "abc")]


@pytest.mark.anyio
async def test_a_follower_behind_the_buffer_gets_the_rest_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "BUFFERED", 3)
    env, _ = remembering(Chunks(tuple("abcdef"), pause=0.001))
    texts: list[str] = []

    async def follow() -> None:
        texts.append("".join(event.text for event in await told(env) if isinstance(event, TextDelta)))

    async with anyio.create_task_group() as group:
        group.start_soon(follow)
        group.start_soon(follow)
    assert texts == ["abcdef", "abcdef"]


@pytest.mark.anyio
async def test_an_error_is_shared_in_the_flight_and_forgotten_after_it() -> None:
    env, model = remembering(Delayed(0.01, AuthenticationFailed()), Delayed(0.0, AuthenticationFailed()), "because")
    assert await at_once(env, ASK, 10) == ["failed"] * 10
    assert len(model.calls) == 2
    assert (await run(generate(ASK), env)).unwrap().content == "because"


def test_flights_of_two_event_loops_do_not_meet() -> None:
    env, model = remembering(Delayed(0.001, "because"), config=TWO)
    bypassed = evolve(env, cache=scripted_env().cache)
    for backend in ("asyncio", "trio", "asyncio"):
        assert anyio.run(at_once, bypassed, ASK, 5, backend=backend) == ["because"] * 5
    assert len(model.calls) == 3


def shown(events: list[StreamEvent]) -> str:
    """What a reader has in the end: a restart drops what was there."""
    text = ""
    for event in events:
        text = "" if isinstance(event, Restarted) else text + (event.text if isinstance(event, TextDelta) else "")
    return text


@pytest.mark.anyio
async def test_a_plain_follower_is_not_failed_by_what_the_leader_s_reader_had_seen() -> None:
    env, model = remembering(Chunks(("half", ""), then=MalformedResponse(), pause=0.005), "whole")
    contents: list[str] = []

    async def follow() -> None:
        contents.append((await run(generate(ASK), env)).unwrap().content)

    async with anyio.create_task_group() as group:
        group.start_soon(told, env)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(follow)
    assert (contents, len(model.calls)) == (["whole"], 2)


@pytest.mark.anyio
async def test_an_heir_still_has_its_fallback() -> None:
    env, _ = remembering(Chunks(("half",) * 9, pause=0.005), AuthenticationFailed(), "whole")
    events: list[StreamEvent] = []

    async def follow() -> None:
        events.extend(await told(env))

    async with anyio.create_task_group() as group:
        with anyio.move_on_after(0.02):
            group.start_soon(follow)
            await told(env)
    assert shown(events) == "whole"


@pytest.mark.anyio
async def test_a_reader_with_content_is_told_to_begin_again_whoever_leads_next() -> None:
    env, _ = remembering(Chunks(tuple("abcdef"), pause=0.005), Chunks(tuple("uvwxyz"), pause=0.005))
    every: list[list[StreamEvent]] = [[], [], []]

    async def follow(index: int) -> None:
        every[index] = await told(env)

    async with anyio.create_task_group() as group:
        with anyio.move_on_after(0.018):
            group.start_soon(follow, 0)
            group.start_soon(follow, 1)
            await told(env)
        group.start_soon(follow, 2)
    assert [shown(events) for events in every] == ["uvwxyz"] * 3
    assert every[2][0] == Started("one")


@pytest.mark.anyio
async def test_a_reader_that_stands_in_the_way_is_passed_by() -> None:
    env, model = remembering("because", "because")
    stop = anyio.Event()

    async def hold(event: StreamEvent) -> None:
        if isinstance(event, TextDelta):
            await stop.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(run, stream(ASK, hold), env)
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(3):
            assert (await run(generate(ASK), env)).unwrap().content == "because"
        stop.set()
    assert len(model.calls) == 2


@pytest.mark.anyio
async def test_a_pause_that_only_the_leader_has_no_time_for_is_not_shared() -> None:
    env, model = remembering(Delayed(0.01, RateLimitExceeded(retry_after=0.1)), "because", config=ONE_RETRY)
    outcomes: list[str] = []

    async def one(request: LLMRequest) -> None:
        outcomes.append((await run(generate(request), env)).map(lambda r: r.content).value_or("failed"))

    async with anyio.create_task_group() as group:
        group.start_soon(one, evolve(ASK, preferences=Preferences(timeout_ms=60)))
        await anyio.wait_all_tasks_blocked()
        group.start_soon(one, ASK)
    assert outcomes == ["failed", "because"]
    assert len(model.calls) == 2


def test_of_many_with_little_time_left_the_one_with_the_most_leads() -> None:
    env, model = remembering(Delayed(3.0, "because"))

    async def crowd() -> None:
        async with anyio.create_task_group() as group:
            for number in range(100):
                hasty = evolve(ASK, preferences=Preferences(timeout_ms=2000))
                group.start_soon(run, generate(hasty), env)
                await anyio.sleep(0.01)
                del number

    run_in_virtual_time(crowd)
    assert len(model.calls) <= 10


@pytest.mark.anyio
async def test_a_defect_befalls_all_at_once_and_not_one_after_the_other() -> None:
    def broken(_: LLMRequest) -> Reply:
        return Delayed(0.05, raising)

    def raising(_: LLMRequest) -> Reply:
        raise LookupError("bug")

    env, _ = remembering(broken)
    defects: list[str] = []

    async def one() -> None:
        with pytest.raises(LookupError):
            await run(generate(ASK), env)
        defects.append("bug")

    with anyio.fail_after(1):
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(one)
    assert len(defects) == 50


@pytest.mark.anyio
async def test_what_was_permitted_to_one_is_not_given_to_another() -> None:
    env, model = remembering(ContentRefused(), "from the second", ContentRefused())
    lax = evolve(ASK, allow=(Allow.FALLBACK_ON_REFUSAL,))
    assert (await run(generate(lax), env)).unwrap().content == "from the second"
    assert (await run(generate(ASK), env)).failure().tag == "ContentRefused"
    assert len(model.calls) == 3


@pytest.mark.anyio
async def test_an_empty_answer_is_not_kept() -> None:
    env, model = remembering("")
    for _ in range(2):
        await run(generate(ASK), env)
    assert len(model.calls) == 2


@pytest.mark.anyio
async def test_with_no_time_to_live_nothing_is_shared() -> None:
    env, model = remembering(Delayed(0.01, "because"), config=evolve(TWO, cache=CacheConfig(ttl_seconds=0)))
    await at_once(env, ASK, 3)
    assert len(model.calls) == 3


@pytest.mark.anyio
async def test_a_layer_of_the_user_s_own_may_change_the_question() -> None:
    def for_user(inner: Generate) -> Generate:
        return lambda call: inner(evolve(call, request=evolve(call.request, system=call.request.metadata["user"])))

    onion = layered(with_deadline, with_coalescing, for_user, with_cache, with_routing, with_recording, complete)
    env, _ = remembering(lambda request: f"for {request.system}")
    answers = [
        (await run(run_call(onion, evolve(ASK, metadata={"user": user})), env)).unwrap().content
        for user in ("alice", "bob", "alice")
    ]
    assert answers == ["for alice", "for bob", "for alice"]


@frozen
class Slow:
    """A store that takes its time over everything."""

    seconds: float

    def get(self, key: str) -> FutureResult[bytes | None, LLMError]:
        return FutureResult(self._late())

    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> FutureResult[None, LLMError]:
        return FutureResult(self._late())

    def delete(self, key: str) -> FutureResult[bool, LLMError]:
        return NoCache().delete(key)

    def clear(self) -> FutureResult[int | None, LLMError]:
        return NoCache().clear()

    def stats(self) -> FutureResult[CacheStats, LLMError]:
        return NoCache().stats()

    async def aclose(self) -> None:
        pass

    async def _late(self) -> Result[None, LLMError]:
        await anyio.sleep(self.seconds)
        return Success(None)


@pytest.mark.parametrize("timeout_ms", [400, 60_000])
def test_a_slow_store_costs_neither_the_answer_nor_much_time(timeout_ms: float) -> None:
    env = evolve(scripted_env(Delayed(0.1, "because"), config=TWO), cache=Slow(3600))
    request = evolve(ASK, preferences=Preferences(timeout_ms=timeout_ms))
    response = run_in_virtual_time(run, generate(request), env).unwrap()
    assert response.content == "because"
    assert response.latency_ms <= min(timeout_ms, 2100)
    assert "took too long" in response.warnings[0]


@pytest.mark.anyio
async def test_a_manager_closes_its_own_cache_and_not_one_it_was_given() -> None:
    shared, model = MemoryCache(10), scripted("because")

    def adapt(env: LLMEnv) -> LLMEnv:
        return evolve(env, clients=model, cache=shared)

    async with make_llm_manager(TWO, adapt) as first:
        await first.run(generate(ASK))
    async with make_llm_manager(TWO, adapt) as second:
        assert (await second.run(generate(ASK))).unwrap().cached
