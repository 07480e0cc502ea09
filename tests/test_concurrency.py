"""Gather, race and hedge: what is cancelled, what comes out, and that nothing is left behind."""

import asyncio
import math
from collections.abc import Callable

import anyio
import pytest
from attrs import define, field
from returns.result import Failure, Result, Success

from llm_effects import (
    Effect,
    LLMEnv,
    LLMError,
    NetworkError,
    RateLimitExceeded,
    RequestTimeout,
    effect,
    fail,
    gather,
    hedge,
    race,
    run,
    scripted_env,
    succeed,
    timeout,
)
from llm_effects.effects.combinators import Claim, duel
from llm_effects.testing import run_in_virtual_time
from llm_effects.values import InvalidValue
from tests.fixtures.effects import in_turn, late

pytestmark = pytest.mark.anyio

ENV = scripted_env()
BROKEN = NetworkError(phase="reset")
ONE: Result[int, LLMError] = Success(1)


@define
class Watch:
    """Counts the effects under way, and how each ended."""

    now: int = 0
    most: int = 0
    log: list[str] = field(factory=list[str])

    def over(self, seconds: float, result: Result[int, LLMError] = ONE) -> Effect[int]:
        async def run(_: LLMEnv) -> Result[int, LLMError]:
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                await anyio.sleep(seconds)
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.005)  # whoever cancelled it waits for this
                self.log.append("cancelled")
                raise
            else:
                self.log.append("done")
            finally:
                self.now -= 1
            return result

        return effect(run)


async def crash(_: LLMEnv) -> Result[int, LLMError]:
    await anyio.sleep(0.02)
    raise KeyError("a bug")


async def crash_with_a_group(_: LLMEnv) -> Result[int, LLMError]:
    raise ExceptionGroup("the user's own", [KeyError("one"), ValueError("two")])


MANY: dict[str, Callable[..., Effect[object]]] = {
    "gather": lambda *operations: gather(operations),
    "race": race,
    "hedge": lambda *operations: hedge(in_turn(*operations), after=0.0005),
}


@pytest.mark.parametrize("name", MANY)
async def test_a_defect_comes_out_as_itself_and_the_others_are_awaited(name: str) -> None:
    watch = Watch()
    with pytest.raises(KeyError, match="a bug") as raised:
        await run(MANY[name](effect(crash), watch.over(60)), ENV)
    assert (watch.now, watch.log) == (0, ["cancelled"])
    assert raised.value.__cause__ is raised.value.__context__ is None


@pytest.mark.parametrize("name", MANY)
async def test_a_group_that_is_the_defect_stays_whole(name: str) -> None:
    with pytest.raises(ExceptionGroup, match="the user's own") as raised:
        await run(MANY[name](effect(crash_with_a_group)), ENV)
    assert len(raised.value.exceptions) == 2


@pytest.mark.parametrize("name", MANY)
async def test_a_cancellation_passes_and_nothing_is_left(name: str) -> None:
    watch = Watch()
    with anyio.move_on_after(0.02) as scope:
        await run(MANY[name](watch.over(60), watch.over(60)), ENV)
    assert scope.cancelled_caught
    assert (watch.now, watch.log) == (0, ["cancelled"] * 2)


async def test_a_cancellation_of_asyncio_s_own_passes_too(anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        return
    watch = Watch()
    for operation in (gather([watch.over(60)] * 2), race(watch.over(60)), timeout(60, watch.over(60))):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run(operation, ENV), 0.01)
    assert (watch.now, watch.log) == (0, ["cancelled"] * 4)


# --- gather


async def test_values_come_in_order_whichever_is_done_first() -> None:
    operations = [late(0.02, Success("slow")), late(0, Success("quick"))]
    assert await run(gather(operations), ENV) == Success(("slow", "quick"))


async def test_no_more_than_the_limit_are_under_way() -> None:
    watch = Watch()
    assert await run(gather([watch.over(0.002)] * 9, limit=3), ENV) == Success((1,) * 9)
    assert (watch.most, watch.now) == (3, 0)


async def test_the_first_error_ends_all() -> None:
    watch, never_begun = Watch(), Watch()
    operations = [watch.over(60), watch.over(0.005, Failure(BROKEN)), never_begun.over(0)]
    assert await run(gather(operations, limit=2), ENV) == Failure(BROKEN)
    assert (watch.log, never_begun.most) == (["done", "cancelled"], 0)


async def test_a_gathering_can_be_run_again_though_it_was_given_a_generator() -> None:
    both = gather(succeed(number) for number in (1, 2))
    assert [await run(both, ENV) for _ in range(2)] == [Success((1, 2))] * 2


def test_a_thousand_waits_take_as_long_as_one() -> None:
    async def main() -> float:
        started = anyio.current_time()
        await run(gather([late(60, Success(1))] * 1_000), ENV)
        return anyio.current_time() - started

    assert run_in_virtual_time(main) == 60


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_lets_nobody_through_is_refused(limit: int) -> None:
    with pytest.raises(InvalidValue, match="limit: must be at least 1"):
        gather([succeed(1)], limit)


# --- race


async def test_the_losers_are_cancelled_and_awaited() -> None:
    watch = Watch()
    assert await run(race(watch.over(60), late(0.001, Success(2)), watch.over(60)), ENV) == Success(2)
    assert (watch.now, watch.log) == (0, ["cancelled", "cancelled"])


async def test_an_error_does_not_end_the_race() -> None:
    assert await run(race(fail(BROKEN), late(0.001, Success(2))), ENV) == Success(2)


async def test_a_lost_race_tells_every_error_in_order() -> None:
    limited = RateLimitExceeded(retry_after=3)
    lost = (await run(race(late(0.002, Failure(limited)), fail(BROKEN)), ENV)).failure()
    assert lost.tag == "RequestFailed"
    assert (lost.errors, lost.retry_after) == ((limited, BROKEN), 3)


def test_a_race_of_nobody_is_refused() -> None:
    with pytest.raises(InvalidValue, match="a race needs at least one effect"):
        race()


# --- hedge


async def test_a_quick_effect_is_run_once() -> None:
    watch = Watch()
    assert await run(hedge(watch.over(0), after=60), ENV) == Success(1)
    assert watch.log == ["done"]


async def test_an_early_error_is_not_hedged() -> None:
    assert await run(hedge(in_turn(fail(BROKEN), succeed(2)), after=60), ENV) == Failure(BROKEN)


async def test_the_slow_one_is_cancelled_and_awaited() -> None:
    watch = Watch()
    assert await run(hedge(in_turn(watch.over(60), succeed(2)), after=0.002), ENV) == Success(2)
    assert (watch.now, watch.log) == (0, ["cancelled"])


def test_an_error_of_one_leaves_the_other_its_time() -> None:
    late_error, timed_out = late(5, Failure(BROKEN)), Failure(RequestTimeout(phase="attempt"))
    for operation in (in_turn(late_error, late(9, Success(2))), in_turn(late(9, Success(2)), late_error)):
        assert run_in_virtual_time(run, hedge(operation, after=2), ENV) == Success(2)
    both = in_turn(late(9, Failure(BROKEN)), late(1, timed_out))
    assert run_in_virtual_time(run, hedge(both, after=2), ENV) == Failure(BROKEN)


async def test_of_two_claims_at_once_one_returns() -> None:
    both, ready, shown = anyio.Event(), list[int](), list[int]()

    async def attempt(claim: Claim) -> Result[int, LLMError]:
        mine = len(ready)
        ready.append(mine)
        if len(ready) == 2:
            both.set()
        await both.wait()
        await claim()
        await claim()  # once more changes nothing
        shown.append(mine)
        return Success(mine)

    result = await duel(attempt, after=0)
    assert [result] == [Success(mine) for mine in shown]


async def test_a_second_attempt_may_be_forbidden() -> None:
    watch = Watch()
    result = await duel(lambda _: run(watch.over(0.01), ENV), after=0, may_begin=lambda: False)
    assert (result, watch.log) == (ONE, ["done"])


@pytest.mark.parametrize("after", [-1, math.nan])
def test_a_time_that_is_none_is_refused(after: float) -> None:
    with pytest.raises(InvalidValue, match="after: must be a number of seconds"):
        hedge(succeed(1), after)
