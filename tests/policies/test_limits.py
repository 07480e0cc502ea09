"""The limits layer and the in-memory limits: queues, errors and cancellation. Time is virtual."""

import math
from collections import Counter

import anyio
import pytest
from attrs import evolve
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
from llm_effects.config.routing import RetryBudgetConfig
from llm_effects.config.services import LimitsConfig
from llm_effects.effects.call import AttemptContext, Call
from llm_effects.effects.effect import Answer, Generate, layer, layered, result_of
from llm_effects.effects.env import LLMEnv
from llm_effects.limits.quotas import (
    ActualUsage,
    Demand,
    Quota,
)
from llm_effects.policies.complete import complete
from llm_effects.policies.limits import expected_usage, with_limits
from llm_effects.policies.recording import with_recording
from llm_effects.stores.limits.memory import MemoryHedges, MemoryLimits, MemoryRetries
from llm_effects.testing import Delayed, answer, run_in_virtual_time, scripted
from tests.fixtures.futures import given_by

ASK = LLMRequest(prompt="why?")


def model(**limits: object) -> LLMConfig:
    return LLMConfig(
        models={"m": ModelConfig(provider="lm-studio", model="m", max_tokens=100, **limits)},  # type: ignore[arg-type]
        routing=RoutingConfig(max_retries=0),
    )


def two_models(queue_seconds: float = 60.0, **limits: object) -> LLMConfig:
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
            await anyio.sleep(0.001)  # so that their order is fixed
    return [results[number] for number in range(count)]


def test_fault_105_calls_in_flight_are_bounded_and_the_others_queue_in_order() -> None:
    client, running, maximum, order = scripted("unused"), 0, 0, []

    @layer
    async def busy(next: Generate, call: Call, env: LLMEnv) -> Answer:
        nonlocal running, maximum
        running, maximum = running + 1, max(maximum, running + 1)
        order.append(call.id)
        await anyio.sleep(1)
        running -= 1
        return await run(next(call), env)

    pipeline = layered(with_limits, busy, with_recording, complete)

    async def main() -> None:
        env = scripted_env(clients=client, config=model(concurrency=7))
        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(
                    run, pipeline(Call(id=f"{number:03}", request=ASK, attempt=AttemptContext(model="m"))), env
                )
                await anyio.sleep(0.001)

    run_in_virtual_time(main)
    assert (maximum, order) == (7, [f"{number:03}" for number in range(100)])


def test_requests_are_spread_over_minutes_and_report_their_wait() -> None:
    client = scripted("ok")
    env = scripted_env(
        clients=client, config=evolve(model(requests_per_minute=10), limits=LimitsConfig(queue_seconds=130))
    )
    results = run_in_virtual_time(at_once, env, 25)
    waits = [round(each.unwrap().attempts[0].wait_ms / 1000, -1) for each in results]
    assert waits == [0] * 10 + [60] * 10 + [120] * 5
    assert all(each.unwrap().attempts[0].latency_ms < 1 for each in results)


def test_a_call_that_would_queue_too_long_uses_another_model_at_once() -> None:
    async def main() -> tuple[float, Counter[str]]:
        config = two_models(requests_per_minute=10, queue_seconds=61)
        without_shares = evolve(config, routing=evolve(config.routing, candidate_share=1))
        env = scripted_env("ok", config=without_shares)
        began = anyio.current_time()
        results = await at_once(env, 25)
        return anyio.current_time() - began, Counter(each.unwrap().model for each in results)

    seconds, answered_by = run_in_virtual_time(main)
    assert answered_by == {"m": 20, "n": 5}  # ten wait for a minute; calls that would wait for two use the other model
    assert seconds < 61.1


def test_a_rejected_large_call_does_not_block_smaller_ones() -> None:
    async def main() -> list[str]:
        env = scripted_env(Delayed(30, "slow"), "ok", config=two_models(tokens_per_minute=1000, queue_seconds=5))

        async def ask(tokens: int) -> str:
            request = LLMRequest(prompt=f"why? ({tokens})", preferences=Preferences(max_tokens=tokens))
            return (await run(generate(request), env)).unwrap().model

        async with anyio.create_task_group() as group:
            group.start_soon(ask, 600)
            await anyio.sleep(0.1)
            return [await ask(tokens) for tokens in (601, 50)]

    assert run_in_virtual_time(main) == ["n", "m"]


def test_without_another_model_the_error_has_retry_after() -> None:
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


def test_a_call_queues_for_a_slot_up_to_the_configured_time() -> None:
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


def test_tokens_are_reserved_for_the_longest_answer_and_replaced_by_actual_usage() -> None:
    short = evolve(answer("ok"), usage=Usage(input_tokens=5, output_tokens=5))

    async def main() -> list[float]:
        config = evolve(model(tokens_per_minute=220), limits=LimitsConfig(queue_seconds=70))
        env = scripted_env(short, config=config)
        return [(await run(generate(ASK), env)).unwrap().attempts[0].wait_ms for _ in range(13)]

    # Each call reserves 100 and its prompt of 5, and uses 10: after twelve calls the rest is too small to reserve.
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
def test_a_failure_refunds_what_the_server_cannot_have_counted(error: LLMError, kept: int) -> None:
    async def main() -> int:
        env = scripted_env(error, config=model(requests_per_minute=10, tokens_per_minute=1000))
        await run(generate(ASK), env)
        standing = env.limits._states.of("m").limiter  # type: ignore[attr-defined]
        return sum(sum(amount for _, amount in meter.cells) for meter in (standing.requests, standing.tokens))

    assert run_in_virtual_time(main) == kept


def test_the_estimate_is_calibrated_by_counts_of_the_provider() -> None:
    dear = evolve(answer("ok"), usage=Usage(input_tokens=50, output_tokens=1))
    long = LLMRequest(prompt="why? " * 10, preferences=Preferences(max_tokens=10))

    async def main() -> list[int]:
        estimates = list[int]()  # the expected input tokens of each attempt

        @layer
        async def noting(next: Generate, call: Call, env: LLMEnv) -> Answer:
            estimates.append(expected_usage(call, env).input_tokens or 0)
            return await run(next(call), env)

        env = scripted_env(dear, config=model(tokens_per_minute=100_000))
        pipeline = layered(noting, with_limits, with_recording, complete)
        for number in range(30):
            await run(pipeline(Call(id=str(number), request=long, attempt=AttemptContext(model="m"))), env)
        return estimates

    first, *_, last = run_in_virtual_time(main)
    assert first < last <= 50


def test_a_call_larger_than_the_quota_is_a_context_too_large() -> None:
    env = scripted_env("ok", config=model(tokens_per_minute=100))
    error = run_in_virtual_time(run, generate(ASK), env).failure()
    assert isinstance(error, ContextTooLarge)
    assert error.token_count is not None
    assert error.token_count > (error.limit or 0) == 100


def test_a_429_pauses_every_call_of_the_model() -> None:
    client = scripted(RateLimitExceeded(retry_after=30.0), "ok")

    async def main() -> list[float]:
        env = scripted_env(clients=client, config=model())
        await run(generate(ASK), env)
        began = anyio.current_time()
        await at_once(env, 3)
        return [anyio.current_time() - began]

    assert run_in_virtual_time(main)[0] == pytest.approx(30, abs=0.01)
    assert len(client.calls) == 4


def test_a_call_queues_no_longer_than_its_share_of_the_time() -> None:
    async def main() -> tuple[str, float]:
        env = scripted_env(Delayed(15, "from m"), "from n", config=two_models(concurrency=1))
        hurried = LLMRequest(prompt="how?", preferences=Preferences(timeout_ms=20_000))
        async with anyio.create_task_group() as group:
            group.start_soon(run, generate(ASK), env)
            await anyio.sleep(1)
            began = anyio.current_time()
            return (await run(generate(hurried), env)).unwrap().content, anyio.current_time() - began

    assert run_in_virtual_time(main) == ("from n", 10)


def test_a_call_never_overtakes_one_that_waits() -> None:
    async def main() -> list[str]:
        limits, quota, order = MemoryLimits(), Quota(tokens=100), list[str]()

        async def one(name: str, tokens: int) -> None:
            await given_by(limits.acquire("m", quota, Demand(tokens=tokens), 600.0, math.inf))
            order.append(name)

        await one("first", 60)
        async with anyio.create_task_group() as group:
            group.start_soon(one, "large", 90)
            await anyio.sleep(1)
            group.start_soon(one, "small", 5)
        return order

    assert run_in_virtual_time(main) == ["first", "large", "small"]


def test_budgets_of_retries_and_hedges_are_saved_up_to_a_bound() -> None:
    retries, rules = MemoryRetries(), RetryBudgetConfig(tokens=20)
    assert retries.afford("server", rules, 14)
    for _ in range(100):
        retries.repay("server", rules, 1)
    assert [retries.afford("server", rules, 14) for _ in range(2)] == [True, False]
    hedges = MemoryHedges()
    for _ in range(1000):
        hedges.earn(1.0)
    assert [hedges.spend() for _ in range(11)] == [True] * 10 + [False]


# Cancellation.


def test_a_cancelled_attempt_frees_its_slot_and_keeps_its_tokens() -> None:
    async def main() -> list[float]:
        limits = LimitsConfig(queue_seconds=70)
        config = evolve(model(concurrency=1, tokens_per_minute=220), limits=limits)
        env = scripted_env(Delayed(100, "late"), "ok", config=config)
        with anyio.move_on_after(1):
            await run(generate(ASK), env)
        return [(await run(generate(ASK), env)).unwrap().attempts[0].wait_ms for _ in range(2)]

    # The model may have worked on the first call, so its 106 tokens count for a minute, and the third call waits.
    assert [wait > 0 for wait in run_in_virtual_time(main)] == [False, True]


async def contend(limits: MemoryLimits, count: int, quota: Quota) -> int:
    """Start many calls for a few slots, cancel each at some point, and return how many got a permit."""
    permitted = 0

    async def one(number: int) -> None:
        nonlocal permitted
        with anyio.move_on_after(0.02 * (number % 7)):
            permit = await given_by(limits.acquire("m", quota, Demand(), 60.0, math.inf))
            permitted += 1
            try:
                await anyio.sleep(0.002 * (number % 3))
            finally:
                await limits.release(permit, ActualUsage(requests=0))

    async with anyio.create_task_group() as group:
        for number in range(count):
            group.start_soon(one, number)
            if number % 50 == 0:
                await anyio.sleep(0.001)
    return permitted


@pytest.mark.anyio
@pytest.mark.parametrize("count", [2_000])
async def test_fault_104_cancellation_under_contention_leaks_no_permit(count: int) -> None:
    limits, quota = MemoryLimits(), Quota(concurrency=3, requests=1_000_000)
    assert await contend(limits, count, quota) > 10
    state = limits._states.of("m")
    requests = sum(amount for _, amount in state.limiter.requests.cells)
    assert (state.limiter.in_flight, state.queue.waiting, requests) == (0, 0, 0)
    for _ in range(3):
        await given_by(limits.acquire("m", quota, Demand(), 0.0, math.inf))


@pytest.mark.anyio
async def test_a_future_that_is_not_awaited_holds_no_permit() -> None:
    env = evolve(scripted_env(answer("yes"), config=model(concurrency=1)), limits=MemoryLimits())
    effect = layered(with_limits, complete)(Call(id="1", request=ASK, attempt=AttemptContext(model="m")))
    earlier = effect(env)
    with anyio.fail_after(30):
        assert is_successful(await run(effect, env))
        assert is_successful(await result_of(earlier))


@pytest.mark.anyio
async def test_a_manager_keeps_its_counts_when_entered_again() -> None:
    config = evolve(model(requests_per_minute=1), limits=LimitsConfig(queue_seconds=1))
    manager = make_llm_manager(config, lambda env: evolve(env, clients=scripted("ok")))
    async with manager:
        assert is_successful(await manager.run(generate(LLMRequest(prompt="first"))))
    async with manager:
        assert (await manager.run(generate(LLMRequest(prompt="second")))).failure().tag == "RateLimitExceeded"


def test_calls_without_limits_never_wait() -> None:
    results = run_in_virtual_time(at_once, scripted_env(Delayed(1, "ok")), 50)
    assert {each.unwrap().attempts[0].wait_ms for each in results} == {0}
