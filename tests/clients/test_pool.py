"""The connection limiter and the pools: first come, first served; cancellations leak nothing; nothing stays open."""

import itertools
import random
import sys
from types import SimpleNamespace
from typing import TypeAlias

import anyio
import anyio.lowlevel
import h11
import httpx
import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.clients.transport.connections import JoinedChunks, LoopPools, join_chunks
from llm_effects.clients.transport.pool import ShardedPool, http_pool
from llm_effects.clients.transport.transport import ConnectionLimiter

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


# --- The chunks of a body over httpx --------------------------------------------------------------------------------


def read_body(pieces: list[bytes], *, joined: bool) -> tuple[list[bytes], str]:
    """Read a body by h11, as pieces of the wire arrive: return its pieces, and how it ended."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    connection.next_event()
    if joined:
        connection._reader = JoinedChunks(connection._reader, h11.Data)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    body = list[bytes]()
    arriving = iter([*pieces, b""])
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as problem:
            return body, str(problem)
        if isinstance(event, h11.Data):
            body.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            return body, f"ended {event.headers!r} {connection.trailing_data[0]!r}"
        else:
            connection.receive_data(next(arriving))


def test_another_h11_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h11, "__version__", "0.17.0")
    monkeypatch.setitem(sys.modules, "h11._readers", None)  # as if it had no such module
    join_chunks(
        SimpleNamespace(_stream=SimpleNamespace(_connection=SimpleNamespace(_h11_state=h11.Connection(h11.CLIENT))))
    )


CHUNKS = {
    "plain": b"3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n",
    "trailers": b"1\r\na\r\n0\r\nx-a: b\r\n1\r\n\r\n",
    "extensions": b"1\r\na\r\n1;a=b\r\nb\r\n1\r\nc\r\n0\r\n\r\n",
    "spaces and zeros": b"0001\r\na\r\n1  \r\nb\r\n000\r\n\r\n",
    "line ends inside": b"4\r\n\r\n\r\n\r\n5\r\n1\r\na\r\r\n0\r\n\r\n",
    "more after the end": b"1\r\na\r\n0\r\n\r\n1\r\nb\r\n",
    "a chunk with too much": b"1\r\na\r\n1\r\nbc\r\n1\r\nd\r\n0\r\n\r\n",
    "no size": b"1\r\na\r\n\r\nb\r\n0\r\n\r\n",
    "no number": b"1\r\na\r\nx\r\nb\r\n0\r\n\r\n",
    "a negative number": b"1\r\na\r\n-1\r\nb\r\n0\r\n\r\n",
    "only line feeds": b"1\na\n0\n\n",
    "an enormous size": b"1\r\na\r\nffffffffff\r\nabc",
    "cut off": b"1\r\na\r\n5\r\nbc",
    "cut off between chunks": b"1\r\na\r\n",
}


@pytest.mark.parametrize("wire", CHUNKS.values(), ids=CHUNKS)
def test_joined_chunks_are_the_same_body_and_end_the_same(wire: bytes) -> None:
    for place in range(len(wire) + 1):
        pieces = [each for each in (wire[:place], wire[place:]) if each]
        (apart, ended), (joined, ended_too) = read_body(pieces, joined=False), read_body(pieces, joined=True)
        assert (b"".join(joined), ended_too) == (b"".join(apart), ended)
    bytewise = [wire[at : at + 1] for at in range(len(wire))]
    apart, ended = read_body(bytewise, joined=False)
    assert read_body(bytewise, joined=True) == (apart, ended)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.lists(st.integers(min_value=0, max_value=500)))
def test_any_chunks_cut_anywhere_are_joined_without_loss(chunks: list[bytes], places: list[int]) -> None:
    wire = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in chunks) + b"0\r\n\r\n"
    bounds = sorted({0, len(wire), *(place % len(wire) for place in places)})
    pieces = [wire[start:end] for start, end in itertools.pairwise(bounds)]
    body, ended = read_body(pieces, joined=True)
    assert (b"".join(body), ended) == (b"".join(chunks), read_body(pieces, joined=False)[1])


def test_chunks_that_arrive_together_are_one_piece() -> None:
    wire = b"".join(b"3\r\n%03d\r\n" % number for number in range(500))
    body, _ = read_body([wire[:1000], wire[1000:], b"0\r\n\r\n"], joined=True)
    assert len(body) <= 4
