"""Coalescing: identical calls under way share one, and no caller fails for another."""

import anyio
import pytest
from attrs import evolve

from llm_effects import (
    Allow,
    AuthenticationFailed,
    BudgetExceeded,
    CachePolicy,
    Completed,
    ContentRefused,
    Cost,
    LLMConfig,
    LLMEnv,
    LLMError,
    LLMRequest,
    MalformedResponse,
    Preferences,
    RateLimitExceeded,
    RequestTimeout,
    Restarted,
    Started,
    StreamEvent,
    TextDelta,
    generate,
    run,
    scripted_env,
    stream,
)
from llm_effects.config import CacheConfig, RoutingConfig
from llm_effects.effects.call import ResponseValidator
from llm_effects.pipeline import run_call, standard_pipeline
from llm_effects.testing import Chunks, Delayed, Reply, run_in_virtual_time
from tests.fixtures.cached import ASK, ONE, STUDIO, TWO, remembering, streamed_events

FREE = Cost.ZERO
ONE_RETRY = LLMConfig(models={"one": STUDIO}, routing=RoutingConfig(max_retries=1))


async def at_once(env: LLMEnv, request: LLMRequest, callers: int) -> list[str]:
    contents: list[str] = []

    async def one() -> None:
        contents.append((await run(generate(request), env)).map(lambda r: r.content).value_or("failed"))

    async with anyio.create_task_group() as group:
        for _ in range(callers):
            group.start_soon(one)
    return contents


def shown(events: list[StreamEvent]) -> str:
    """What a reader has in the end: a restart drops what was there."""
    text = ""
    for event in events:
        text = "" if isinstance(event, Restarted) else text + (event.text if isinstance(event, TextDelta) else "")
    return text


@pytest.mark.anyio
async def test_a_thousand_identical_calls_make_one_upstream_call() -> None:
    env, model = remembering(Delayed(0.01, "because"))
    assert await at_once(env, ASK, 1000) == ["because"] * 1000
    assert len(model.calls) == 1


@pytest.mark.anyio
async def test_calls_that_bypass_the_cache_are_not_coalesced() -> None:
    env, model = remembering(Delayed(0.01, "because"))
    await at_once(env, evolve(ASK, cache=CachePolicy.BYPASS), 3)
    assert len(model.calls) == 3


@pytest.mark.anyio
async def test_calls_are_not_coalesced_with_the_cache_off() -> None:
    env, model = remembering(Delayed(0.01, "because"), config=evolve(TWO, cache=CacheConfig(enabled=False)))
    await at_once(env, ASK, 3)
    assert len(model.calls) == 3


@pytest.mark.anyio
async def test_a_follower_costs_nothing_and_has_no_attempts() -> None:
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
async def test_followers_receive_all_events_from_the_start() -> None:
    env, model = remembering(Chunks(tuple("abcdef"), pause=0.002))
    both: list[list[StreamEvent]] = [[], []]

    async def follow(index: int, delay: float) -> None:
        await anyio.sleep(delay)
        both[index] = await streamed_events(env)

    async with anyio.create_task_group() as group:
        group.start_soon(follow, 0, 0)
        group.start_soon(follow, 1, 0.007)
    assert both[0][:-1] == both[1][:-1] == [Started("one"), *map(TextDelta, "abcdef")]
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
async def test_the_leader_s_deadline_does_not_fail_its_followers() -> None:
    env, model = remembering(Delayed(0.05, "because"), config=ONE)
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
async def test_an_exception_of_the_leader_s_sink_fails_no_follower() -> None:
    env, _ = remembering(Chunks(("be", "cause"), pause=0.01))
    events: list[StreamEvent] = []

    async def broken(event: StreamEvent) -> None:
        if event == TextDelta("be"):
            raise KeyError("mine")

    async def lead() -> None:
        with pytest.raises(KeyError):
            await run(stream(ASK, broken), env)

    async def follow() -> None:
        events.extend(await streamed_events(env))

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
async def test_a_slow_follower_stalls_no_other_caller() -> None:
    env, _ = remembering(Chunks(tuple("abc"), pause=0.001))
    finished = anyio.Event()
    slow: list[StreamEvent] = []

    async def crawl(event: StreamEvent) -> None:
        await finished.wait()
        slow.append(event)

    async def lead() -> None:
        await streamed_events(env)
        finished.set()

    async with anyio.create_task_group() as group:
        group.start_soon(lead)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(run, stream(ASK, crawl), env)
    assert slow[:-1] == [Started("one"), *map(TextDelta, "abc")]


@pytest.mark.anyio
async def test_an_error_is_shared_within_the_flight_and_forgotten_after_it() -> None:
    env, model = remembering(Delayed(0.01, AuthenticationFailed()), Delayed(0.0, AuthenticationFailed()), "because")
    assert await at_once(env, ASK, 10) == ["failed"] * 10
    assert len(model.calls) == 2
    assert (await run(generate(ASK), env)).unwrap().content == "because"


def test_flights_of_two_event_loops_are_separate() -> None:
    env, model = remembering(Delayed(0.001, "because"), config=TWO)
    bypassed = evolve(env, cache=scripted_env().cache)
    for backend in ("asyncio", "trio", "asyncio"):
        assert anyio.run(at_once, bypassed, ASK, 5, backend=backend) == ["because"] * 5
    assert len(model.calls) == 3


@pytest.mark.anyio
async def test_a_plain_follower_does_not_fail_with_a_committed_leader() -> None:
    env, model = remembering(Chunks(("half", ""), then=MalformedResponse(), pause=0.005), "whole")
    contents: list[str] = []

    async def follow() -> None:
        contents.append((await run(generate(ASK), env)).unwrap().content)

    async with anyio.create_task_group() as group:
        group.start_soon(streamed_events, env)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(follow)
    assert (contents, len(model.calls)) == (["whole"], 2)


@pytest.mark.anyio
async def test_a_follower_that_takes_over_still_has_its_fallback() -> None:
    env, _ = remembering(Chunks(("half",) * 9, pause=0.005), AuthenticationFailed(), "whole")
    events: list[StreamEvent] = []

    async def follow() -> None:
        events.extend(await streamed_events(env))

    async with anyio.create_task_group() as group:
        with anyio.move_on_after(0.02):
            group.start_soon(follow)
            await streamed_events(env)
    assert shown(events) == "whole"


@pytest.mark.anyio
async def test_a_follower_with_content_gets_restarted_from_the_next_leader() -> None:
    env, _ = remembering(Chunks(tuple("abcdef"), pause=0.005), Chunks(tuple("uvwxyz"), pause=0.005))
    every: list[list[StreamEvent]] = [[], [], []]

    async def follow(index: int) -> None:
        every[index] = await streamed_events(env)

    async with anyio.create_task_group() as group:
        with anyio.move_on_after(0.018):
            group.start_soon(follow, 0)
            group.start_soon(follow, 1)
            await streamed_events(env)
        group.start_soon(follow, 2)
    assert [shown(events) for events in every] == ["uvwxyz"] * 3
    assert every[2][0] == Started("one")


@pytest.mark.anyio
async def test_a_stalled_leader_is_replaced() -> None:
    env, model = remembering("because", "because")
    stop = anyio.Event()

    async def hold(event: StreamEvent) -> None:
        if isinstance(event, TextDelta):
            await stop.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(run, stream(ASK, hold), env)
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(30):
            assert (await run(generate(ASK), env)).unwrap().content == "because"
        stop.set()
    assert len(model.calls) == 2


@pytest.mark.anyio
async def test_a_pause_past_the_leader_s_deadline_only_is_not_shared() -> None:
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


def test_the_follower_with_the_most_time_left_leads_next() -> None:
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
async def test_a_defect_fails_all_followers_at_once() -> None:
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

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(one)
    assert len(defects) == 50


@pytest.mark.anyio
async def test_calls_with_different_permissions_are_not_coalesced() -> None:
    env, model = remembering(ContentRefused(), "from the second", ContentRefused())
    lax = evolve(ASK, allow=(Allow.FALLBACK_ON_REFUSAL,))
    assert (await run(generate(lax), env)).unwrap().content == "from the second"
    assert (await run(generate(ASK), env)).failure().tag == "ContentRefused"
    assert len(model.calls) == 3


@pytest.mark.anyio
async def test_calls_are_not_coalesced_without_a_time_to_live() -> None:
    env, model = remembering(Delayed(0.01, "because"), config=evolve(TWO, cache=CacheConfig(ttl_seconds=0)))
    await at_once(env, ASK, 3)
    assert len(model.calls) == 3


@pytest.mark.parametrize(
    "error",
    [RequestTimeout(phase="sink"), RequestTimeout(phase="total"), BudgetExceeded(budget="b", spent=FREE, limit=FREE)],
    ids=lambda error: getattr(error, "phase", error.tag),
)
def test_an_error_of_the_leader_alone_fails_no_follower(error: LLMError) -> None:
    env, model = remembering(Delayed(1, error), "because", config=ONE)
    contents = run_in_virtual_time(at_once, env, ASK, 3)
    assert (sorted(contents), len(model.calls)) == (["because", "because", "failed"], 2)


def test_calls_under_different_validation_are_not_coalesced() -> None:
    env, model = remembering(Delayed(1, "because"), config=ONE)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for name in ("short", "polite", "polite"):
                validator = ResponseValidator(lambda _: (), max_repairs=0, name=name)
                group.start_soon(run, run_call(standard_pipeline, ASK, validator=validator), env)

    run_in_virtual_time(main)
    assert len(model.calls) == 2
