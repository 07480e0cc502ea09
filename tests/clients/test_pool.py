"""Places and pools: first come first served, nothing lost to a cancellation, nothing left open."""

import random

import anyio
import anyio.lowlevel
import httpx
import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.clients.transport.pool import ConnectionLimiter, LoopPools, http_pool

pytestmark = pytest.mark.anyio


@define(eq=False)
class Counted(httpx.AsyncBaseTransport):
    """A pool that only knows whether it is open."""

    size: int
    closed: int = 0

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed += 1


@define(eq=False)
class Making:
    """Makes pools and remembers them."""

    made: list[Counted] = field(factory=list[Counted])

    def __call__(self, size: int) -> Counted:
        self.made.append(Counted(size))
        return self.made[-1]


@pytest.fixture
def making() -> Making:
    return Making()


@pytest.fixture
def pools(making: Making) -> LoopPools:
    return LoopPools(make=making, max_connections=6, size=2)


async def test_places_go_lowest_first_and_come_back() -> None:
    limiter = ConnectionLimiter(3)
    assert [await limiter.acquire() for _ in range(3)] == [0, 1, 2]
    limiter.release(2)
    limiter.release(0)
    assert await limiter.acquire() == 0
    assert limiter.in_use == 2


async def test_fault_105_the_queue_is_first_come_first_served() -> None:
    limiter, served = ConnectionLimiter(1), list[int]()

    async def call(number: int) -> None:
        place = await limiter.acquire()
        served.append(number)
        await anyio.lowlevel.checkpoint()
        limiter.release(place)

    async with anyio.create_task_group() as tasks:
        place = await limiter.acquire()
        for number in range(20):
            tasks.start_soon(call, number)
            await anyio.wait_all_tasks_blocked()
        limiter.release(place)
    assert served == list(range(20))
    assert (limiter.in_use, limiter.waiting) == (0, 0)


async def test_a_late_caller_does_not_overtake_the_queue() -> None:
    limiter, served = ConnectionLimiter(1), list[str]()

    async def call(name: str) -> None:
        place = await limiter.acquire()
        served.append(name)
        limiter.release(place)

    async with anyio.create_task_group() as tasks:
        place = await limiter.acquire()
        tasks.start_soon(call, "early")
        await anyio.wait_all_tasks_blocked()
        limiter.release(place)
        await call("late")
    assert served == ["early", "late"]


async def test_a_waiter_cancelled_as_its_place_comes_hands_it_on() -> None:
    limiter, served = ConnectionLimiter(1), list[str]()

    async def call(name: str, scope: anyio.CancelScope) -> None:
        with scope:
            place = await limiter.acquire()
            served.append(name)
            limiter.release(place)

    async with anyio.create_task_group() as tasks:
        place = await limiter.acquire()
        scopes = [anyio.CancelScope(), anyio.CancelScope()]
        for name, scope in zip(("first", "second"), scopes, strict=True):
            tasks.start_soon(call, name, scope)
            await anyio.wait_all_tasks_blocked()
        limiter.release(place)
        scopes[0].cancel()
    assert "second" in served
    assert (limiter.in_use, limiter.waiting) == (0, 0)


async def test_fault_104_cancelled_waiters_leave_nothing_behind() -> None:
    limiter, draw = ConnectionLimiter(4), random.Random(7)

    async def call(patience: float) -> None:
        with anyio.move_on_after(patience):
            place = await limiter.acquire()
            try:
                await anyio.sleep(draw.random() * 0.0005)
            finally:
                limiter.release(place)

    async with anyio.create_task_group() as tasks:
        for _ in range(3000):
            tasks.start_soon(call, draw.random() * 0.02)
    assert (limiter.in_use, limiter.waiting) == (0, 0)
    assert sorted([await limiter.acquire() for _ in range(4)]) == [0, 1, 2, 3]


@given(st.sampled_from(["asyncio", "trio"]), st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=60))
def test_no_place_is_ever_held_twice(backend: str, steps: list[int | None]) -> None:
    """``None`` takes a place where there is one; a number gives one of the held back."""

    async def play() -> None:
        limiter, held = ConnectionLimiter(6), list[int]()
        for step in steps:
            if step is None and len(held) < 6:
                held.append(await limiter.acquire())
            elif step is not None and held:
                limiter.release(held.pop(step % len(held)))
            assert len(set(held)) == len(held) == limiter.in_use
            assert all(0 <= place < 6 for place in held)

    anyio.run(play, backend=backend)


async def test_places_share_small_pools_in_order(pools: LoopPools, making: Making) -> None:
    async with pools.hold() as here:
        async with here.slot() as one, here.slot() as two, here.slot() as three:
            assert one.pool is two.pool
            assert three.pool is not one.pool
        async with here.slot() as again:
            assert again.pool is one.pool
        assert [pool.size for pool in making.made] == [2, 2]
        assert [pool.closed for pool in making.made] == [0, 0]
    assert [pool.closed for pool in making.made] == [1, 1]


async def test_the_last_who_holds_the_pools_closes_them(pools: LoopPools, making: Making) -> None:
    async with pools.hold() as scope:
        async with pools.hold() as call, call.slot():
            assert call is scope
        assert [pool.closed for pool in making.made] == [0]
    async with pools.hold() as later, later.slot():
        assert later is not scope
    assert [pool.closed for pool in making.made] == [1, 1]


async def test_a_renewed_place_is_in_a_new_pool_and_the_old_closes_after_its_last_call(
    pools: LoopPools, making: Making
) -> None:
    async with pools.hold() as here, here.slot() as place:
        async with here.slot() as neighbour:
            await here.renew(place)
            assert place.pool is not neighbour.pool
            assert making.made[0].closed == 0
        assert making.made[0].closed == 1
        assert making.made[1].closed == 0


async def test_closing_ends_what_is_idle_and_leaves_calls_alone(pools: LoopPools, making: Making) -> None:
    async with pools.hold() as here:
        async with here.slot():
            async with here.slot(), here.slot():
                pass
            await pools.aclose()
            await pools.aclose()
            assert [pool.closed for pool in making.made] == [0, 1]
        assert [pool.closed for pool in making.made] == [1, 1]


async def test_closing_is_not_cut_short_by_a_cancellation(pools: LoopPools, making: Making) -> None:
    with anyio.CancelScope() as scope:
        async with pools.hold() as here, here.slot():
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert [pool.closed for pool in making.made] == [1]


def test_pools_of_different_loops_never_meet(making: Making, anyio_backend: str) -> None:
    pools = LoopPools(make=making, max_connections=2, size=2)

    async def call() -> None:
        async with pools.hold() as here, here.slot():
            await anyio.lowlevel.checkpoint()

    for _ in range(3):
        anyio.run(call, backend=anyio_backend)  # each run is a loop of its own
    assert [pool.closed for pool in making.made] == [1, 1, 1]


async def test_the_default_pool_is_httpx_s() -> None:
    pool = http_pool(3)
    assert isinstance(pool, httpx.AsyncHTTPTransport)
    await pool.aclose()
