"""Limits: the laws of the counts, and what a caller meets when a model is busy. Time is virtual."""

import math
from collections import Counter

import anyio
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects import (
    ContextTooLarge,
    LLMConfig,
    LLMError,
    LLMRequest,
    LLMResponse,
    ModelConfig,
    NetworkError,
    Preferences,
    RateLimitExceeded,
    RequestTimeout,
    Usage,
    generate,
    make_llm_manager,
    run,
    scripted_env,
)
from llm_effects.config import RoutingConfig
from llm_effects.config.services import LimitsConfig
from llm_effects.effects.call import AttemptContext, Call
from llm_effects.effects.effect import Answer, Generate, layer, layered
from llm_effects.effects.env import LLMEnv
from llm_effects.limits.quotas import (
    ActualUsage,
    Allowance,
    Demand,
    LimiterState,
    Meter,
    Permit,
    Quota,
    has_free_slot,
    wait_time,
    with_actual_usage,
    with_reported_limits,
    with_reservation,
)
from llm_effects.policies.complete import complete
from llm_effects.policies.limits import expected_usage, with_limits
from llm_effects.policies.recording import with_recording
from llm_effects.stores.limits.memory import MemoryLimits
from llm_effects.testing import Delayed, answer, run_in_virtual_time, scripted
from tests.fixtures.futures import given_by

ASK = LLMRequest(prompt="why?")


# --- the pure laws

STEPS = st.lists(
    st.tuples(st.floats(0, 30, width=32), st.integers(1, 6), st.floats(0, 1), st.booleans()), min_size=1, max_size=60
)


@given(STEPS, st.integers(1, 4), st.integers(6, 12))
def test_no_minute_ever_takes_more_than_it_may(steps: list[tuple[float, int, float, bool]], rpm: int, tpm: int) -> None:
    """Whatever comes when, and whatever is put right: who goes when told to fits into every minute that ends then."""
    quota, now, standing = Quota(requests=rpm, tokens=tpm), 0.0, LimiterState()
    taken: list[list[float]] = []  # when, requests, tokens
    for wait, tokens, share, at_once in steps:
        now += wait
        need = Demand(tokens=tokens)
        now += wait_time(standing, quota, need, now)
        while wait_time(standing, quota, need, now):  # the last bit of a float
            now = math.nextafter(now, math.inf)
        standing = with_reservation(standing, quota, need, now)
        taken.append([now, 1, tokens])
        minute = [each for each in taken if each[0] > now - 60]
        assert sum(each[1] for each in minute) <= rpm
        assert sum(each[2] for each in minute) <= tpm
        if at_once:
            used = round(tokens * share)
            ticket = Permit(model="m", quota=quota, demand=need, cell=int(now // 1))
            standing = with_actual_usage(standing, ticket, ActualUsage(requests=1 if share else 0, tokens=used))
            taken[-1][1:] = [1 if share else 0, used]


@given(st.integers(1, 50), st.integers(1, 50), st.floats(0, 1000, width=32))
def test_what_is_refunded_was_never_there(limit: int, tokens: int, now: float) -> None:
    quota, need = Quota(concurrency=1, requests=limit, tokens=50), Demand(tokens=tokens)
    before = LimiterState()
    inside = with_reservation(before, quota, need, now)
    assert not has_free_slot(inside, quota)
    after = with_actual_usage(
        inside, Permit(model="m", quota=quota, demand=need, cell=int(now // 1)), ActualUsage(requests=0)
    )
    assert has_free_slot(after, quota)
    assert wait_time(after, quota, Demand(tokens=50), now) == 0


@given(st.integers(0, 80))
def test_a_bill_above_the_estimate_counts_as_it_is(used: int) -> None:
    quota, need = Quota(tokens=100), Demand(tokens=40)
    inside = with_reservation(LimiterState(), quota, need, 0.0)
    after = with_actual_usage(inside, Permit(model="m", quota=quota, demand=need), ActualUsage(tokens=used))
    assert wait_time(after, quota, Demand(tokens=100 - used), 0.0) == 0
    assert wait_time(after, quota, Demand(tokens=101 - used), 0.0) > 0


def test_what_a_server_says_counts_besides() -> None:
    said = with_reported_limits(Meter(), Allowance(limit=3, remaining=1, reset=10.0), at=5.0)
    standing, free = LimiterState(requests=said), Quota()
    assert wait_time(standing, free, Demand(), 6.0) == 0
    assert wait_time(with_reservation(standing, free, Demand(), 6.0), free, Demand(), 6.0) == 9.0
    assert wait_time(with_reservation(standing, free, Demand(), 6.0), free, Demand(), 15.0) == 0
    assert with_reported_limits(said, Allowance(remaining=50, reset=1.0), at=4.0) == said  # older than what is known
    wide = Quota(requests=100)
    for _ in range(3):
        standing = with_reservation(standing, wide, Demand(), 20.0)
    assert wait_time(standing, wide, Demand(), 20.5) == 60.5  # its limit is lower than ours


# --- one model, one process


def model(**limits: object) -> LLMConfig:
    return LLMConfig(
        models={"m": ModelConfig(provider="lm-studio", model="m", max_tokens=100, **limits)},  # type: ignore[arg-type]
        routing=RoutingConfig(max_retries=0),
    )


def two(queue_seconds: float = 60.0, **limits: object) -> LLMConfig:
    first = ModelConfig(provider="lm-studio", model="m", **limits)  # type: ignore[arg-type]
    second = ModelConfig(provider="lm-studio", model="n")
    routing = RoutingConfig(max_retries=0, fallback_order=("m", "n"))
    return LLMConfig(
        models={"m": first, "n": second}, routing=routing, limits=LimitsConfig(queue_seconds=queue_seconds)
    )


async def at_once(env: LLMEnv, count: int) -> list[Result[LLMResponse, LLMError]]:
    results: dict[int, Result[LLMResponse, LLMError]] = {}

    async def one(number: int) -> None:
        results[number] = await run(generate(LLMRequest(prompt=f"why? ({number})")), env)

    async with anyio.create_task_group() as group:
        for number in range(count):
            group.start_soon(one, number)
            await anyio.sleep(0.001)  # so that their order is known
    return [results[number] for number in range(count)]


def test_fault_105_calls_under_way_are_bounded_and_all_others_wait_in_order() -> None:
    model_, running, most, order = scripted("unused"), 0, 0, []

    @layer
    async def busy(next: Generate, call: Call, env: LLMEnv) -> Answer:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        order.append(call.id)
        await anyio.sleep(1)
        running -= 1
        return await run(next(call), env)

    onion = layered(with_limits, busy, with_recording, complete)

    async def main() -> None:
        env = scripted_env(clients=model_, config=model(concurrency=7))
        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(
                    run, onion(Call(id=f"{number:03}", request=ASK, attempt=AttemptContext(model="m"))), env
                )
                await anyio.sleep(0.001)

    run_in_virtual_time(main)
    assert (most, order) == (7, [f"{number:03}" for number in range(100)])


def test_requests_are_spread_over_minutes_and_the_wait_is_told() -> None:
    model_ = scripted("ok")
    env = scripted_env(
        clients=model_, config=evolve(model(requests_per_minute=10), limits=LimitsConfig(queue_seconds=130))
    )
    results = run_in_virtual_time(at_once, env, 25)
    waits = [round(each.unwrap().attempts[0].wait_ms / 1000, -1) for each in results]
    assert waits == [0] * 10 + [60] * 10 + [120] * 5
    assert all(each.unwrap().attempts[0].latency_ms < 1 for each in results)


def test_a_turn_that_cannot_come_in_time_is_told_at_once_and_another_model_is_asked() -> None:
    async def main() -> tuple[float, Counter[str]]:
        env = scripted_env("ok", config=two(requests_per_minute=10, queue_seconds=61))
        began = anyio.current_time()
        results = await at_once(env, 25)
        return anyio.current_time() - began, Counter(each.unwrap().model for each in results)

    seconds, asked = run_in_virtual_time(main)
    assert asked == {"m": 20, "n": 5}  # ten wait for a minute; who would have waited for two is answered elsewhere
    assert seconds < 61.1


def test_who_asks_for_too_much_does_not_send_others_away() -> None:
    async def main() -> list[str]:
        env = scripted_env(Delayed(30, "slow"), "ok", config=two(tokens_per_minute=1000, queue_seconds=5))

        async def ask(tokens: int) -> str:
            request = LLMRequest(prompt=f"why? ({tokens})", preferences=Preferences(max_tokens=tokens))
            return (await run(generate(request), env)).unwrap().model

        async with anyio.create_task_group() as group:
            group.start_soon(ask, 600)
            await anyio.sleep(0.1)
            return [await ask(tokens) for tokens in (601, 50)]

    assert run_in_virtual_time(main) == ["n", "m"]


def test_without_another_model_the_error_says_when() -> None:
    async def main() -> tuple[float, LLMError]:
        env = scripted_env("ok", config=model(requests_per_minute=1))
        await run(generate(ASK), env)
        await anyio.sleep(20)
        hurried = LLMRequest(prompt="why?", preferences=Preferences(timeout_ms=5000))
        began = anyio.current_time()
        error = (await run(generate(hurried), env)).failure()
        return anyio.current_time() - began, error

    waited, error = run_in_virtual_time(main)
    assert isinstance(error, RateLimitExceeded)
    assert (waited, error.attempts) == (0, ())
    assert error.retry_after is not None
    assert 40 <= error.retry_after <= 41
    assert "1 request a minute" in error.message


def test_a_place_that_does_not_come_free_is_waited_for_up_to_the_bound() -> None:
    async def main() -> tuple[float, list[Result[LLMResponse, LLMError]]]:
        env = scripted_env(
            Delayed(100, "late"), config=evolve(model(concurrency=1), limits=LimitsConfig(queue_seconds=5))
        )
        began = anyio.current_time()
        results = await at_once(env, 2)
        return anyio.current_time() - began, results

    _, (first, second) = run_in_virtual_time(main)
    assert is_successful(first)
    assert second.failure() == RateLimitExceeded(
        model="m", message="our own limits (1 call at once) have no room for 1 request in the time that there is"
    )


def test_tokens_are_reserved_by_the_longest_answer_and_settled_by_the_real_one() -> None:
    short = evolve(answer("ok"), usage=Usage(input_tokens=5, output_tokens=5))

    async def main() -> list[float]:
        config = evolve(model(tokens_per_minute=220), limits=LimitsConfig(queue_seconds=70))
        env = scripted_env(short, config=config)
        return [(await run(generate(ASK), env)).unwrap().attempts[0].wait_ms for _ in range(13)]

    # Each reserves 100 and its prompt of 5, and takes 10: after twelve of these there is too little for a reservation.
    assert [wait > 0 for wait in run_in_virtual_time(main)] == [False] * 12 + [True]


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (NetworkError(phase="refused"), 0),
        (RequestTimeout(phase="queue"), 0),
        (RateLimitExceeded(status=429), 1),
        (NetworkError(phase="reset"), 106),
        (RequestTimeout(phase="attempt"), 106),
        (NetworkError(phase="reset", usage=Usage(input_tokens=30, output_tokens=10)), 41),
    ],
    ids=lambda value: getattr(value, "phase", getattr(value, "tag", value)),
)
def test_a_failure_gives_back_what_the_server_cannot_have_counted(error: LLMError, kept: int) -> None:
    async def main() -> int:
        env = scripted_env(error, config=model(requests_per_minute=10, tokens_per_minute=1000))
        await run(generate(ASK), env)
        standing = env.limits._rooms.of("m").standing  # type: ignore[attr-defined]
        return sum(sum(amount for _, amount in meter.cells) for meter in (standing.requests, standing.tokens))

    assert run_in_virtual_time(main) == kept


def test_the_estimate_is_put_right_by_what_the_provider_counted_before() -> None:
    dear = evolve(answer("ok"), usage=Usage(input_tokens=50, output_tokens=1))
    long = LLMRequest(prompt="why? " * 10, preferences=Preferences(max_tokens=10))

    async def main() -> list[int]:
        asked = list[int]()  # what an attempt was expected to take

        @layer
        async def noting(next: Generate, call: Call, env: LLMEnv) -> Answer:
            asked.append(expected_usage(call, env).input_tokens or 0)
            return await run(next(call), env)

        env = scripted_env(dear, config=model(tokens_per_minute=100_000))
        onion = layered(noting, with_limits, with_recording, complete)
        for number in range(30):
            await run(onion(Call(id=str(number), request=long, attempt=AttemptContext(model="m"))), env)
        return asked

    first, *_, last = run_in_virtual_time(main)
    assert first < last <= 50


def test_what_can_never_fit_is_told_as_the_provider_would() -> None:
    env = scripted_env("ok", config=model(tokens_per_minute=100))
    error = run_in_virtual_time(run, generate(ASK), env).failure()
    assert isinstance(error, ContextTooLarge)
    assert error.token_count is not None
    assert error.token_count > (error.limit or 0) == 100


def test_one_who_is_told_to_wait_is_told_so_for_all() -> None:
    asked = scripted(RateLimitExceeded(retry_after=30.0), "ok")

    async def main() -> list[float]:
        env = scripted_env(clients=asked, config=model())
        await run(generate(ASK), env)
        began = anyio.current_time()
        await at_once(env, 3)
        return [anyio.current_time() - began]

    assert run_in_virtual_time(main)[0] == pytest.approx(30, abs=0.01)
    assert len(asked.calls) == 4


# --- cancellation


async def rushed(limits: MemoryLimits, count: int, quota: Quota) -> int:
    """Let many fight for a few places and cancel each at some point; gives how many got in."""
    inside = 0

    async def one(number: int) -> None:
        nonlocal inside
        with anyio.move_on_after(0.02 * (number % 7)):
            ticket = await given_by(limits.acquire("m", quota, Demand(), 60.0, math.inf))
            inside += 1
            try:
                await anyio.sleep(0.002 * (number % 3))
            finally:
                await limits.release(ticket, ActualUsage(requests=0))

    async with anyio.create_task_group() as group:
        for number in range(count):
            group.start_soon(one, number)
            if number % 50 == 0:
                await anyio.sleep(0.001)
    return inside


@pytest.mark.anyio
@pytest.mark.parametrize("count", [2_000])
async def test_fault_104_cancels_under_contention_leave_no_place_taken(count: int) -> None:
    limits, quota = MemoryLimits(), Quota(concurrency=3, requests=1_000_000)
    assert await rushed(limits, count, quota) > 10
    room = limits._rooms.of("m")
    assert (room.standing.in_flight, room.line.waiting, sum(amount for _, amount in room.standing.requests.cells)) == (
        0,
        0,
        0,
    )
    for _ in range(3):
        await given_by(limits.acquire("m", quota, Demand(), 0.0, math.inf))


@pytest.mark.anyio
async def test_a_manager_that_is_entered_again_goes_on_counting() -> None:
    config = evolve(model(requests_per_minute=1), limits=LimitsConfig(queue_seconds=1))
    manager = make_llm_manager(config, lambda env: evolve(env, clients=scripted("ok")))
    async with manager:
        assert is_successful(await manager.run(generate(LLMRequest(prompt="first"))))
    async with manager:
        assert (await manager.run(generate(LLMRequest(prompt="second")))).failure().tag == "RateLimitExceeded"


def test_a_user_without_limits_waits_for_nothing() -> None:
    results = run_in_virtual_time(at_once, scripted_env(Delayed(1, "ok")), 50)
    assert {each.unwrap().attempts[0].wait_ms for each in results} == {0}
