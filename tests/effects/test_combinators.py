"""Combinators: pauses and clocks, order and concurrency, cancellation, exceptions and release."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.lowlevel import checkpoint
from attrs import define, evolve, field, frozen
from returns.result import Failure, Result, Success

from llm_effects import (
    AuthenticationFailed,
    Effect,
    InvalidRequest,
    LLMEnv,
    LLMError,
    MalformedResponse,
    NetworkError,
    RateLimitExceeded,
    RequestFailed,
    RequestTimeout,
    effect,
    exponential,
    fail,
    fallback,
    from_env,
    gather,
    hedge,
    jittered,
    race,
    retry,
    run,
    scripted_env,
    succeed,
    timeout,
    up_to,
    using,
    within,
)
from llm_effects.effects.combinators import Claim, run_hedged
from llm_effects.testing import run_in_virtual_time
from llm_effects.values import InvalidValue
from tests.fixtures.effects import in_turn, late

pytestmark = pytest.mark.anyio

ENV = scripted_env()
BROKEN = NetworkError(phase="reset")
ONE: Result[int, LLMError] = Success(1)


async def timed(operation: Effect[int], env: LLMEnv = ENV) -> tuple[Result[int, LLMError], float]:
    started = anyio.current_time()
    result = await run(operation, env)
    return result, anyio.current_time() - started


# --- retry


def test_retries_pause_as_the_schedule_says() -> None:
    flaky = in_turn(fail(BROKEN), fail(BROKEN), fail(BROKEN), succeed(1))
    assert run_in_virtual_time(timed, retry(exponential(base=1.0), flaky)) == (Success(1), 1 + 2 + 4)


def test_jitter_uses_the_randomness_of_the_environment() -> None:
    env = evolve(ENV, draw=lambda: 0.25)
    flaky = in_turn(fail(BROKEN), succeed(1))
    assert run_in_virtual_time(timed, retry(jittered(exponential(base=8.0)), flaky), env) == (Success(1), 2)


def test_retry_after_is_the_minimum_pause() -> None:
    flaky = in_turn(fail(RateLimitExceeded(retry_after=30)), fail(RateLimitExceeded(retry_after=0.5)), succeed(1))
    assert run_in_virtual_time(timed, retry(exponential(base=1.0), flaky)) == (Success(1), 30 + 2)


def test_a_pause_beyond_the_window_ends_the_retries() -> None:
    limited = RateLimitExceeded(retry_after=30)
    retried = retry(up_to(9) & within(20), in_turn(fail(limited), succeed(1)))
    assert run_in_virtual_time(timed, retried) == (Failure(limited), 0)


def test_the_window_includes_the_time_of_the_attempts() -> None:
    slow = in_turn(late(4, Failure(BROKEN)), late(4, Failure(BROKEN)), late(4, Failure(BROKEN)), succeed(1))
    assert run_in_virtual_time(timed, retry(within(10), slow)) == (Failure(BROKEN), 12)


def test_each_run_has_its_own_window() -> None:
    twice = retry(within(10) & up_to(1), in_turn(late(9, Failure(BROKEN)), succeed(1), fail(BROKEN), succeed(2)))

    async def main() -> list[Result[int, LLMError]]:
        return [await run(twice, ENV) for _ in range(2)]

    assert run_in_virtual_time(main) == [Success(1), Success(2)]


async def test_when_chooses_the_errors_to_retry() -> None:
    unreadable = fail(MalformedResponse())
    operation = in_turn(fail(AuthenticationFailed()), unreadable, succeed(1))
    only_keys = retry(up_to(5), operation, when=lambda error: isinstance(error, AuthenticationFailed))
    assert (await run(only_keys, ENV)).failure() == MalformedResponse()


async def test_a_pause_can_be_cancelled() -> None:
    with anyio.move_on_after(0.01) as scope:
        await run(retry(exponential(base=1000, cap=1000), fail(BROKEN)), ENV)
    assert scope.cancelled_caught


# --- timeout


async def test_a_timeout_error_has_its_duration_and_phase() -> None:
    error = (await run(timeout(0.01, late(60, Success(1))), ENV)).failure()
    assert error == RequestTimeout(timeout_ms=10, phase="total")
    assert error.model is None


async def test_a_timeout_of_zero_ends_at_the_first_wait() -> None:
    assert (await run(timeout(0, late(0.001, Success(1))), ENV)).failure().tag == "TimeoutError"


async def test_an_outer_cancellation_is_not_a_timeout() -> None:
    results: list[object] = []
    with anyio.move_on_after(0.01) as scope:
        results.append(await run(timeout(60, late(60, Success(1))), ENV))
    assert (scope.cancelled_caught, results) == (True, [])


async def test_an_outer_cancellation_wins_over_an_expired_timeout() -> None:
    results: list[object] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        results.append(await run(timeout(0, late(60, Success(1))), ENV))
    assert (scope.cancelled_caught, results) == (True, [])


async def test_a_result_in_time_is_returned_even_if_the_release_is_slow() -> None:
    @asynccontextmanager
    async def slow_to_leave() -> AsyncGenerator[int]:
        yield 1
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.02)

    assert await run(timeout(0.01, using(from_env(lambda _: slow_to_leave()), succeed)), ENV) == Success(1)


@pytest.mark.parametrize("seconds", [-1, math.nan, -math.inf])
def test_an_invalid_timeout_is_refused_at_once(seconds: float) -> None:
    with pytest.raises(InvalidValue, match="seconds: must be a number of seconds from 0 on"):
        timeout(seconds, succeed(1))


# --- fallback


async def test_fallback_stops_at_an_error_that_another_model_cannot_help() -> None:
    invalid = InvalidRequest(message="prompt: blank")
    assert await run(fallback(fail(BROKEN), fail(invalid), succeed(1)), ENV) == Failure(invalid)


async def test_fallback_continues_when_every_candidate_of_a_call_failed() -> None:
    failed = RequestFailed(errors=(BROKEN, RequestTimeout(phase="attempt")))
    assert await run(fallback(fail(failed), succeed(1)), ENV) == Success(1)
    hopeless = RequestFailed(errors=(InvalidRequest(message="prompt: blank"),))
    assert await run(fallback(fail(hopeless), succeed(1)), ENV) == Failure(hopeless)


async def test_alternatives_are_not_started_before_they_are_needed() -> None:
    started: list[int] = []
    assert await run(fallback(succeed(1), from_env(lambda _: started.append(2) or 2)), ENV) == Success(1)
    assert started == []


# --- using


@frozen
class Resource:
    """A resource that logs when it is opened and closed."""

    log: list[str] = field(factory=list[str])

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[int]:
        self.log.append("opened")
        try:
            yield 7
        finally:
            with anyio.CancelScope(shield=True):
                await checkpoint()
            self.log.append("closed")


def crashing(_: int) -> Effect[int]:
    async def run(_: LLMEnv) -> Result[int, LLMError]:
        await checkpoint()
        raise KeyError("a bug")

    return effect(run)


async def test_using_releases_after_success_and_after_an_error() -> None:
    resource = Resource()
    acquire = from_env(lambda _: resource.open())
    assert await run(using(acquire, lambda number: succeed(number + 1)), ENV) == Success(8)
    assert await run(using(acquire, lambda _: fail(BROKEN)), ENV) == Failure(BROKEN)
    assert resource.log == ["opened", "closed"] * 2


async def test_using_releases_after_an_exception() -> None:
    resource = Resource()
    with pytest.raises(KeyError, match="a bug"):
        await run(using(from_env(lambda _: resource.open()), crashing), ENV)
    assert resource.log == ["opened", "closed"]


async def test_using_releases_after_a_cancellation() -> None:
    resource = Resource()
    with anyio.move_on_after(0.01) as scope:
        await run(using(from_env(lambda _: resource.open()), lambda _: late(60, Success(1))), ENV)
    assert scope.cancelled_caught
    assert resource.log == ["opened", "closed"]


async def test_using_releases_after_a_timeout() -> None:
    resource = Resource()
    operation = using(from_env(lambda _: resource.open()), lambda _: late(60, Success(1)))
    assert (await run(timeout(0.01, operation), ENV)).failure().tag == "TimeoutError"
    assert resource.log == ["opened", "closed"]


async def test_a_failed_acquisition_is_an_error() -> None:
    assert await run(using(fail(BROKEN), lambda number: succeed(number)), ENV) == Failure(BROKEN)


# --- gather, race and hedge alike


@define
class Watch:
    """Counts the running effects, their peak, and how each ended."""

    running: int = 0
    peak: int = 0
    log: list[str] = field(factory=list[str])

    def lasting(self, seconds: float, result: Result[int, LLMError] = ONE) -> Effect[int]:
        async def run(_: LLMEnv) -> Result[int, LLMError]:
            self.running += 1
            self.peak = max(self.peak, self.running)
            try:
                await anyio.sleep(seconds)
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.005)  # the canceller waits for this
                self.log.append("cancelled")
                raise
            else:
                self.log.append("done")
            finally:
                self.running -= 1
            return result

        return effect(run)


async def crash(_: LLMEnv) -> Result[int, LLMError]:
    await anyio.sleep(0.02)
    raise KeyError("a bug")


async def crash_with_a_group(_: LLMEnv) -> Result[int, LLMError]:
    raise ExceptionGroup("a group of the user", [KeyError("one"), ValueError("two")])


MANY: dict[str, Callable[..., Effect[object]]] = {
    "gather": lambda *operations: gather(operations),
    "race": race,
    "hedge": lambda *operations: hedge(in_turn(*operations), after=0.0005),
}


@pytest.mark.parametrize("name", MANY)
async def test_an_exception_is_raised_unchanged_after_the_others_ended(name: str) -> None:
    watch = Watch()
    with pytest.raises(KeyError, match="a bug") as raised:
        await run(MANY[name](effect(crash), watch.lasting(60)), ENV)
    assert (watch.running, watch.log) == (0, ["cancelled"])
    assert raised.value.__cause__ is raised.value.__context__ is None


@pytest.mark.parametrize("name", MANY)
async def test_an_exception_group_of_the_user_is_raised_whole(name: str) -> None:
    with pytest.raises(ExceptionGroup, match="a group of the user") as raised:
        await run(MANY[name](effect(crash_with_a_group)), ENV)
    assert len(raised.value.exceptions) == 2


@pytest.mark.parametrize("name", MANY)
async def test_a_cancellation_ends_every_effect(name: str) -> None:
    watch = Watch()
    with anyio.move_on_after(0.02) as scope:
        await run(MANY[name](watch.lasting(60), watch.lasting(60)), ENV)
    assert scope.cancelled_caught
    assert (watch.running, watch.log) == (0, ["cancelled"] * 2)


async def test_a_cancellation_by_asyncio_ends_every_effect(anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        return
    watch = Watch()
    for operation in (gather([watch.lasting(60)] * 2), race(watch.lasting(60)), timeout(60, watch.lasting(60))):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run(operation, ENV), 0.01)
    assert (watch.running, watch.log) == (0, ["cancelled"] * 4)


# --- gather


async def test_gather_returns_values_in_order() -> None:
    operations = [late(0.02, Success("slow")), late(0, Success("quick"))]
    assert await run(gather(operations), ENV) == Success(("slow", "quick"))


async def test_gather_runs_no_more_than_its_limit_at_once() -> None:
    watch = Watch()
    assert await run(gather([watch.lasting(0.002)] * 9, limit=3), ENV) == Success((1,) * 9)
    assert (watch.peak, watch.running) == (3, 0)


async def test_gather_stops_at_the_first_error() -> None:
    watch, never_started = Watch(), Watch()
    operations = [watch.lasting(60), watch.lasting(0.005, Failure(BROKEN)), never_started.lasting(0)]
    assert await run(gather(operations, limit=2), ENV) == Failure(BROKEN)
    assert (watch.log, never_started.peak) == (["done", "cancelled"], 0)


async def test_gather_of_a_generator_can_run_again() -> None:
    both = gather(succeed(number) for number in (1, 2))
    assert [await run(both, ENV) for _ in range(2)] == [Success((1, 2))] * 2


def test_gather_waits_for_a_thousand_effects_at_once() -> None:
    async def main() -> float:
        started = anyio.current_time()
        await run(gather([late(60, Success(1))] * 1_000), ENV)
        return anyio.current_time() - started

    assert run_in_virtual_time(main) == 60


@pytest.mark.parametrize("limit", [0, -1])
def test_an_invalid_limit_is_refused(limit: int) -> None:
    with pytest.raises(InvalidValue, match="limit: must be at least 1"):
        gather([succeed(1)], limit)


# --- race


async def test_race_cancels_and_awaits_the_losers() -> None:
    watch = Watch()
    assert await run(race(watch.lasting(60), late(0.001, Success(2)), watch.lasting(60)), ENV) == Success(2)
    assert (watch.running, watch.log) == (0, ["cancelled", "cancelled"])


async def test_an_error_does_not_end_a_race() -> None:
    assert await run(race(fail(BROKEN), late(0.001, Success(2))), ENV) == Success(2)


async def test_a_race_without_a_success_returns_every_error_in_order() -> None:
    limited = RateLimitExceeded(retry_after=3)
    lost = (await run(race(late(0.002, Failure(limited)), fail(BROKEN)), ENV)).failure()
    assert lost.tag == "RequestFailed"
    assert (lost.errors, lost.retry_after) == ((limited, BROKEN), 3)


def test_an_empty_race_is_refused() -> None:
    with pytest.raises(InvalidValue, match="a race needs at least one effect"):
        race()


# --- hedge


async def test_a_fast_effect_is_not_hedged() -> None:
    watch = Watch()
    assert await run(hedge(watch.lasting(0), after=60), ENV) == Success(1)
    assert watch.log == ["done"]


async def test_an_early_error_is_not_hedged() -> None:
    assert await run(hedge(in_turn(fail(BROKEN), succeed(2)), after=60), ENV) == Failure(BROKEN)


async def test_hedge_cancels_and_awaits_the_slower_attempt() -> None:
    watch = Watch()
    assert await run(hedge(in_turn(watch.lasting(60), succeed(2)), after=0.002), ENV) == Success(2)
    assert (watch.running, watch.log) == (0, ["cancelled"])


def test_an_error_of_one_attempt_does_not_end_the_other() -> None:
    late_error, timed_out = late(5, Failure(BROKEN)), Failure(RequestTimeout(phase="attempt"))
    for operation in (in_turn(late_error, late(9, Success(2))), in_turn(late(9, Success(2)), late_error)):
        assert run_in_virtual_time(run, hedge(operation, after=2), ENV) == Success(2)
    both = in_turn(late(9, Failure(BROKEN)), late(1, timed_out))
    assert run_in_virtual_time(run, hedge(both, after=2), ENV) == Failure(BROKEN)


async def test_only_one_of_two_concurrent_claims_returns() -> None:
    both, ready, shown = anyio.Event(), list[int](), list[int]()

    async def attempt(claim: Claim) -> Result[int, LLMError]:
        mine = len(ready)
        ready.append(mine)
        if len(ready) == 2:
            both.set()
        await both.wait()
        await claim()
        await claim()  # a second claim changes nothing
        shown.append(mine)
        return Success(mine)

    result = await run_hedged(attempt, checkpoint)
    assert [result] == [Success(mine) for mine in shown]


async def test_a_second_attempt_may_be_forbidden() -> None:
    watch = Watch()
    result = await run_hedged(lambda _: run(watch.lasting(0.01), ENV), checkpoint, may_begin=lambda: False)
    assert (result, watch.log) == (ONE, ["done"])


@pytest.mark.parametrize("after", [-1, math.nan])
def test_an_invalid_hedge_delay_is_refused(after: float) -> None:
    with pytest.raises(InvalidValue, match="after: must be a number of seconds"):
        hedge(succeed(1), after)
