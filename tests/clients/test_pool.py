"""The connection limiter and the pools: first come, first served; cancellations leak nothing; nothing stays open."""

import random
from typing import TypeAlias

import anyio
import anyio.lowlevel
import httpx
import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.clients.transport.pool import ShardedPool, http_pool
from llm_effects.clients.transport.transport import ConnectionLimiter, LoopPools

pytestmark = pytest.mark.anyio

Pools: TypeAlias = LoopPools[ShardedPool]


@define(eq=False)
class Counted(httpx.AsyncBaseTransport):
    """A pool that counts how often it was closed."""

    size: int
    closed: int = 0

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed += 1


@define(eq=False)
class PoolFactory:
    """A factory that records the pools it opened."""

    made: list[Counted] = field(factory=list[Counted])

    def __call__(self, size: int) -> Counted:
        self.made.append(Counted(size))
        return self.made[-1]


@pytest.fixture
def factory() -> PoolFactory:
    return PoolFactory()


def small_pools(factory: PoolFactory, max_connections: int = 6) -> Pools:
    return LoopPools(lambda _: ShardedPool(factory, 2, ConnectionLimiter(max_connections)))


@pytest.fixture
def pools(factory: PoolFactory) -> Pools:
    return small_pools(factory)


async def test_the_lowest_free_slot_is_acquired_first() -> None:
    limiter = ConnectionLimiter(3)
    assert [await limiter.acquire() for _ in range(3)] == [0, 1, 2]
    limiter.release(2)
    limiter.release(0)
    assert await limiter.acquire() == 0
    assert limiter.in_use == 2


async def test_fault_105_the_queue_is_first_come_first_served() -> None:
    limiter, served = ConnectionLimiter(1), list[int]()

    async def call(number: int) -> None:
        slot = await limiter.acquire()
        served.append(number)
        await anyio.lowlevel.checkpoint()
        limiter.release(slot)

    async with anyio.create_task_group() as tasks:
        slot = await limiter.acquire()
        for number in range(20):
            tasks.start_soon(call, number)
            await anyio.wait_all_tasks_blocked()
        limiter.release(slot)
    assert served == list(range(20))
    assert (limiter.in_use, limiter.waiting) == (0, 0)


async def test_a_late_caller_does_not_overtake_the_queue() -> None:
    limiter, served = ConnectionLimiter(1), list[str]()

    async def call(name: str) -> None:
        slot = await limiter.acquire()
        served.append(name)
        limiter.release(slot)

    async with anyio.create_task_group() as tasks:
        slot = await limiter.acquire()
        tasks.start_soon(call, "early")
        await anyio.wait_all_tasks_blocked()
        limiter.release(slot)
        await call("late")
    assert served == ["early", "late"]


async def test_a_waiter_cancelled_on_wake_up_passes_its_slot_on() -> None:
    limiter, served = ConnectionLimiter(1), list[str]()

    async def call(name: str, scope: anyio.CancelScope) -> None:
        with scope:
            slot = await limiter.acquire()
            served.append(name)
            limiter.release(slot)

    async with anyio.create_task_group() as tasks:
        slot = await limiter.acquire()
        scopes = [anyio.CancelScope(), anyio.CancelScope()]
        for name, scope in zip(("first", "second"), scopes, strict=True):
            tasks.start_soon(call, name, scope)
            await anyio.wait_all_tasks_blocked()
        limiter.release(slot)
        scopes[0].cancel()
    assert "second" in served
    assert (limiter.in_use, limiter.waiting) == (0, 0)


async def test_fault_104_cancelled_waiters_leave_nothing_behind() -> None:
    limiter, draw = ConnectionLimiter(4), random.Random(7)

    async def call(timeout: float) -> None:
        with anyio.move_on_after(timeout):
            slot = await limiter.acquire()
            try:
                await anyio.sleep(draw.random() * 0.0005)
            finally:
                limiter.release(slot)

    async with anyio.create_task_group() as tasks:
        for _ in range(3000):
            tasks.start_soon(call, draw.random() * 0.02)
    assert (limiter.in_use, limiter.waiting) == (0, 0)
    assert sorted([await limiter.acquire() for _ in range(4)]) == [0, 1, 2, 3]


@given(st.sampled_from(["asyncio", "trio"]), st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=60))
def test_no_slot_is_acquired_twice(backend: str, steps: list[int | None]) -> None:
    """``None`` acquires a free slot; a number releases one of those held."""

    async def play() -> None:
        limiter, held = ConnectionLimiter(6), list[int]()
        for step in steps:
            if step is None and len(held) < 6:
                held.append(await limiter.acquire())
            elif step is not None and held:
                limiter.release(held.pop(step % len(held)))
            assert len(set(held)) == len(held) == limiter.in_use
            assert all(0 <= slot < 6 for slot in held)

    anyio.run(play, backend=backend)


async def test_slots_share_small_pools_in_order(pools: Pools, factory: PoolFactory) -> None:
    async with pools.hold() as here:
        async with here.slot() as one, here.slot() as two, here.slot() as three:
            assert one.pool is two.pool
            assert three.pool is not one.pool
        async with here.slot() as again:
            assert again.pool is one.pool
        assert [pool.size for pool in factory.made] == [2, 2]
        assert [pool.closed for pool in factory.made] == [0, 0]
    assert [pool.closed for pool in factory.made] == [1, 1]


async def test_plain_requests_have_pools_of_their_own_where_a_factory_opens_them(factory: PoolFactory) -> None:
    plain = PoolFactory()
    here = ShardedPool(factory, 2, ConnectionLimiter(6), plain)
    with_tls, without = await here.acquire(), await here.acquire(plain=True)
    assert (with_tls.pool, without.pool) == (factory.made[0], plain.made[0])
    await here.renew(without)
    assert without.pool is plain.made[1]
    for slot in (with_tls, without):
        await here.release(slot)
    await here.aclose()
    assert [pool.closed for pool in (*factory.made, *plain.made)] == [1, 1, 1]


async def test_the_last_holder_closes_the_pools(pools: Pools, factory: PoolFactory) -> None:
    async with pools.hold() as scope:
        async with pools.hold() as call, call.slot():
            assert call is scope
        assert [pool.closed for pool in factory.made] == [0]
    async with pools.hold() as later, later.slot():
        assert later is not scope
    assert [pool.closed for pool in factory.made] == [1, 1]


async def test_a_renewed_slot_gets_a_new_pool_and_the_last_call_closes_the_old_one(
    pools: Pools, factory: PoolFactory
) -> None:
    async with pools.hold() as here, here.slot() as slot:
        async with here.slot() as neighbour:
            await here.renew(slot)
            assert slot.pool is not neighbour.pool
            assert factory.made[0].closed == 0
        assert factory.made[0].closed == 1
        assert factory.made[1].closed == 0


async def test_closing_closes_idle_pools_and_keeps_those_in_use(pools: Pools, factory: PoolFactory) -> None:
    async with pools.hold() as here:
        async with here.slot():
            async with here.slot(), here.slot():
                pass
            await pools.aclose()
            await pools.aclose()
            assert [pool.closed for pool in factory.made] == [0, 1]
        assert [pool.closed for pool in factory.made] == [1, 1]


async def test_a_cancellation_does_not_interrupt_closing(pools: Pools, factory: PoolFactory) -> None:
    with anyio.CancelScope() as scope:
        async with pools.hold() as here, here.slot():
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert [pool.closed for pool in factory.made] == [1]


def test_event_loops_do_not_share_pools(factory: PoolFactory, anyio_backend: str) -> None:
    pools = small_pools(factory, max_connections=2)

    async def call() -> None:
        async with pools.hold() as here, here.slot():
            await anyio.lowlevel.checkpoint()

    for _ in range(3):
        anyio.run(call, backend=anyio_backend)  # each run has its own loop
    assert [pool.closed for pool in factory.made] == [1, 1, 1]


async def test_the_default_pool_is_a_transport_of_httpx() -> None:
    pool = http_pool(3)
    assert isinstance(pool, httpx.AsyncHTTPTransport)
    await pool.aclose()
