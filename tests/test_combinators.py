"""Retry, timeout, fallback and using, as far as no law says it: pauses, clocks, cancellation and release."""

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.lowlevel import checkpoint
from attrs import evolve, field, frozen
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
    jittered,
    retry,
    run,
    scripted_env,
    succeed,
    timeout,
    up_to,
    using,
    within,
)
from llm_effects.testing import run_in_virtual_time
from llm_effects.values import InvalidValue
from tests.fixtures.effects import in_turn, late

pytestmark = pytest.mark.anyio

ENV = scripted_env()
BROKEN = NetworkError(phase="reset")


async def timed(operation: Effect[int], env: LLMEnv = ENV) -> tuple[Result[int, LLMError], float]:
    started = anyio.current_time()
    result = await run(operation, env)
    return result, anyio.current_time() - started


# --- retry


def test_the_pauses_are_those_of_the_schedule() -> None:
    flaky = in_turn(fail(BROKEN), fail(BROKEN), fail(BROKEN), succeed(1))
    assert run_in_virtual_time(timed, retry(exponential(base=1.0), flaky)) == (Success(1), 1 + 2 + 4)


def test_jitter_is_drawn_from_the_environment() -> None:
    env = evolve(ENV, draw=lambda: 0.25)
    flaky = in_turn(fail(BROKEN), succeed(1))
    assert run_in_virtual_time(timed, retry(jittered(exponential(base=8.0)), flaky), env) == (Success(1), 2)


def test_what_the_server_asks_for_is_the_least_pause() -> None:
    flaky = in_turn(fail(RateLimitExceeded(retry_after=30)), fail(RateLimitExceeded(retry_after=0.5)), succeed(1))
    assert run_in_virtual_time(timed, retry(exponential(base=1.0), flaky)) == (Success(1), 30 + 2)


def test_a_pause_past_the_window_is_not_begun() -> None:
    limited = RateLimitExceeded(retry_after=30)
    patient = retry(up_to(9) & within(20), in_turn(fail(limited), succeed(1)))
    assert run_in_virtual_time(timed, patient) == (Failure(limited), 0)


def test_the_window_counts_the_time_of_the_attempts() -> None:
    slow = in_turn(late(4, Failure(BROKEN)), late(4, Failure(BROKEN)), late(4, Failure(BROKEN)), succeed(1))
    assert run_in_virtual_time(timed, retry(within(10), slow)) == (Failure(BROKEN), 12)


def test_the_window_begins_anew_with_each_run() -> None:
    twice = retry(within(10) & up_to(1), in_turn(late(9, Failure(BROKEN)), succeed(1), fail(BROKEN), succeed(2)))

    async def main() -> list[Result[int, LLMError]]:
        return [await run(twice, ENV) for _ in range(2)]

    assert run_in_virtual_time(main) == [Success(1), Success(2)]


async def test_when_may_choose_other_errors() -> None:
    unreadable = fail(MalformedResponse())
    operation = in_turn(fail(AuthenticationFailed()), unreadable, succeed(1))
    only_keys = retry(up_to(5), operation, when=lambda error: isinstance(error, AuthenticationFailed))
    assert (await run(only_keys, ENV)).failure() == MalformedResponse()


async def test_a_pause_can_be_cancelled() -> None:
    with anyio.move_on_after(0.01) as scope:
        await run(retry(exponential(base=1000, cap=1000), fail(BROKEN)), ENV)
    assert scope.cancelled_caught


# --- timeout


async def test_a_timeout_says_how_long_and_for_what() -> None:
    error = (await run(timeout(0.01, late(60, Success(1))), ENV)).failure()
    assert error == RequestTimeout(timeout_ms=10, phase="total")
    assert error.model is None


async def test_zero_seconds_end_at_the_first_wait() -> None:
    assert (await run(timeout(0, late(0.001, Success(1))), ENV)).failure().tag == "TimeoutError"


async def test_a_cancellation_from_outside_is_not_a_timeout() -> None:
    ended: list[object] = []
    with anyio.move_on_after(0.01) as scope:
        ended.append(await run(timeout(60, late(60, Success(1))), ENV))
    assert (scope.cancelled_caught, ended) == (True, [])


async def test_a_cancellation_from_outside_wins_over_a_timeout_that_is_due_as_well() -> None:
    ended: list[object] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        ended.append(await run(timeout(0, late(60, Success(1))), ENV))
    assert (scope.cancelled_caught, ended) == (True, [])


async def test_an_answer_that_came_in_time_is_given_though_the_release_is_slow() -> None:
    @asynccontextmanager
    async def slow_to_leave() -> AsyncGenerator[int]:
        yield 1
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.02)

    assert await run(timeout(0.01, using(from_env(lambda _: slow_to_leave()), succeed)), ENV) == Success(1)


@pytest.mark.parametrize("seconds", [-1, math.nan, -math.inf])
def test_a_time_that_is_none_is_refused_at_once(seconds: float) -> None:
    with pytest.raises(InvalidValue, match="seconds: must be a number of seconds from 0 on"):
        timeout(seconds, succeed(1))


# --- fallback


async def test_fallback_stops_where_another_model_would_not_help() -> None:
    wrong = InvalidRequest(message="prompt: blank")
    assert await run(fallback(fail(BROKEN), fail(wrong), succeed(1)), ENV) == Failure(wrong)


async def test_fallback_goes_on_when_all_candidates_of_a_call_are_spent() -> None:
    spent = RequestFailed(errors=(BROKEN, RequestTimeout(phase="attempt")))
    assert await run(fallback(fail(spent), succeed(1)), ENV) == Success(1)
    hopeless = RequestFailed(errors=(InvalidRequest(message="prompt: blank"),))
    assert await run(fallback(fail(hopeless), succeed(1)), ENV) == Failure(hopeless)


async def test_the_others_are_not_begun_before_they_are_needed() -> None:
    begun: list[int] = []
    assert await run(fallback(succeed(1), from_env(lambda _: begun.append(2) or 2)), ENV) == Success(1)
    assert begun == []


# --- using


@frozen
class Desk:
    """A resource that notes what becomes of it."""

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


async def test_what_was_taken_is_let_go_of_after_success_and_after_an_error() -> None:
    desk = Desk()
    held = from_env(lambda _: desk.open())
    assert await run(using(held, lambda number: succeed(number + 1)), ENV) == Success(8)
    assert await run(using(held, lambda _: fail(BROKEN)), ENV) == Failure(BROKEN)
    assert desk.log == ["opened", "closed"] * 2


async def test_what_was_taken_is_let_go_of_after_a_defect() -> None:
    desk = Desk()
    with pytest.raises(KeyError, match="a bug"):
        await run(using(from_env(lambda _: desk.open()), crashing), ENV)
    assert desk.log == ["opened", "closed"]


async def test_what_was_taken_is_let_go_of_after_a_cancellation() -> None:
    desk = Desk()
    with anyio.move_on_after(0.01) as scope:
        await run(using(from_env(lambda _: desk.open()), lambda _: late(60, Success(1))), ENV)
    assert scope.cancelled_caught
    assert desk.log == ["opened", "closed"]


async def test_what_was_taken_is_let_go_of_after_a_timeout() -> None:
    desk = Desk()
    held = using(from_env(lambda _: desk.open()), lambda _: late(60, Success(1)))
    assert (await run(timeout(0.01, held), ENV)).failure().tag == "TimeoutError"
    assert desk.log == ["opened", "closed"]


async def test_what_cannot_be_taken_is_an_error_like_any_other() -> None:
    assert await run(using(fail(BROKEN), lambda number: succeed(number)), ENV) == Failure(BROKEN)
