"""Building and running effects: laziness, repetition, errors, exceptions and cancellation."""

import re
from typing import Any

import anyio
import attrs
import pytest
from hypothesis import given
from returns.future import FutureResult
from returns.io import IOSuccess
from returns.result import Failure, Result, Success

from llm_effects.effects.effect import Effect, effect, fail, from_env, from_result, rescue, run, succeed, then
from llm_effects.effects.env import LLMEnv
from llm_effects.testing.scripted import scripted_env
from llm_effects.values.errors import InvalidRequest, LLMError, NetworkError, RequestTimeout
from tests.fixtures.effects import ERRORS, NUMBERS

pytestmark = pytest.mark.anyio

ENV = scripted_env()
LATE = RequestTimeout(timeout_ms=5)


def counted() -> tuple[Effect[int], list[int]]:
    """Return an effect that returns the number of its run, and the list of its runs."""
    runs: list[int] = []

    async def run(_: LLMEnv) -> Result[int, LLMError]:
        runs.append(len(runs) + 1)
        await anyio.lowlevel.checkpoint()
        return Success(runs[-1])

    return effect(run), runs


async def test_an_effect_does_nothing_until_it_is_run() -> None:
    count, runs = counted()
    chain = rescue(then(count.map(lambda run: run + 1), succeed), fail)
    assert runs == []
    await run(chain, ENV)
    assert runs == [1]


async def waits(_: object) -> int:
    return 1


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (then(succeed(1), lambda one: Success(one)), "not Result: write effect.bind_result(f)"),  # type: ignore[arg-type, return-value]
        (then(succeed(1), waits), "not coroutine: return effect(work), where work is an async function"),  # type: ignore[arg-type]
        (rescue(fail(LATE), lambda _: Success(1)), "not Result: return from_result(...)"),  # type: ignore[arg-type, return-value]
        (rescue(fail(LATE), waits), "not coroutine: return effect(work)"),  # type: ignore[arg-type]
    ],
)
async def test_a_step_that_is_no_effect_says_how_to_make_one(chain: Effect[int], message: str) -> None:
    with pytest.raises(TypeError, match=f"^the function of (then|rescue) must return an effect, {re.escape(message)}"):
        await run(chain, ENV)


@pytest.mark.parametrize("chained", [then, rescue])
async def test_a_step_that_has_its_environment_already_says_what_to_return(chained: Any) -> None:
    begun = FutureResult[int, LLMError].from_value(1)
    await begun
    first = succeed(1) if chained is then else fail(LATE)
    with pytest.raises(TypeError, match=r"not FutureResult: return the effect itself, such as generate\(request\)"):
        await run(chained(first, lambda _: begun), ENV)


async def test_every_run_of_an_effect_repeats_its_work() -> None:
    count, runs = counted()
    chain = then(count, lambda run: succeed(run * 10))
    assert [await run(chain, ENV) for _ in range(3)] == [Success(10), Success(20), Success(30)]
    assert runs == [1, 2, 3]


async def test_one_effect_can_run_many_times_concurrently() -> None:
    count, runs = counted()
    results: list[Result[int, LLMError]] = []

    async def once() -> None:
        results.append(await run(count, ENV))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(once)
    assert len(results) == len(runs) == 5


async def test_an_unused_effect_does_nothing() -> None:
    count, runs = counted()
    unused = then(count, succeed)  # no coroutine was created, so none is left unawaited
    del unused
    assert runs == []


@given(value=NUMBERS, error=ERRORS)
async def test_succeed_fail_and_from_result_return_their_argument(value: int, error: LLMError) -> None:
    assert await run(succeed(value), ENV) == await run(from_result(Success(value)), ENV) == Success(value)
    assert await run(fail(error), ENV) == await run(from_result(Failure(error)), ENV) == Failure(error)


async def test_from_env_reads_the_environment_of_the_run() -> None:
    drawn = from_env(lambda env: env.draw())
    assert await run(drawn, attrs.evolve(ENV, draw=lambda: 0.25)) == Success(0.25)
    assert await run(drawn, attrs.evolve(ENV, draw=lambda: 0.75)) == Success(0.75)


async def test_all_steps_get_the_same_environment() -> None:
    seen: list[LLMEnv] = []

    async def look(env: LLMEnv) -> Result[int, LLMError]:
        seen.append(env)
        return Failure(LATE) if len(seen) == 2 else Success(len(seen))

    looking = effect(look)
    assert await run(rescue(then(looking, lambda _: looking), lambda _: looking), ENV) == Success(3)
    assert all(env is ENV for env in seen)


async def test_an_error_skips_later_steps() -> None:
    count, runs = counted()
    assert await run(then(then(fail(LATE), lambda _: count), lambda _: count), ENV) == Failure(LATE)
    assert runs == []


async def test_a_handler_may_fail_with_another_error() -> None:
    refused = NetworkError(phase="refused")
    assert await run(rescue(fail(LATE), lambda _: fail(refused)), ENV) == Failure(refused)


async def test_bind_result_continues_with_a_result() -> None:
    blank = InvalidRequest(message="prompt: blank")

    def positive(value: int) -> Result[int, LLMError]:
        return Success(value) if value > 0 else Failure(blank)

    assert await run(succeed(1).bind_result(positive), ENV) == Success(1)
    assert await run(succeed(0).bind_result(positive), ENV) == Failure(blank)


async def test_an_exception_is_not_an_error_value() -> None:
    def divide(value: int) -> Effect[float]:
        return succeed(1 / value)

    with pytest.raises(ZeroDivisionError):
        await run(rescue(then(succeed(0), divide), lambda _: succeed(0.0)), ENV)


async def test_cancellation_is_not_rescued() -> None:
    async def forever(_: LLMEnv) -> Result[int, LLMError]:
        await anyio.sleep_forever()
        return Success(1)

    with anyio.move_on_after(0.001) as scope:
        await run(rescue(effect(forever), lambda _: succeed(0)), ENV)
    assert scope.cancelled_caught


async def test_an_effect_runs_in_a_larger_environment_of_the_user() -> None:
    @attrs.frozen
    class App:
        llm: LLMEnv
        name: str

    def llm_of(app: App) -> LLMEnv:
        return app.llm

    drawn = from_env(lambda env: env.draw()).modify_env(llm_of)
    assert await drawn(App(ENV, "shop")) == IOSuccess(ENV.draw())


async def test_a_loop_inside_one_effect_has_no_depth_limit() -> None:
    async def climb(env: LLMEnv) -> Result[int, LLMError]:
        total = 0
        for step in range(1_000):
            total += (await run(succeed(step), env)).unwrap()
        return Success(total)

    assert await run(effect(climb), ENV) == Success(499_500)
