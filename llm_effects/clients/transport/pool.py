"""Connection pools: many small ones for each event loop, behind a first-come, first-served limiter.

httpx's own pool leaks connections when a call that queues in it is cancelled, and its bookkeeping is quadratic in its
connections. So calls never queue there: a call acquires a numbered slot here first, and slot ``n`` belongs to the small
pool ``n // size``, which never has more calls than connections.
"""

import functools
import ssl
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from heapq import heappop, heappush
from typing import Final, TypeAlias, final

import anyio
import httpx
from anyio.lowlevel import EventLoopToken, current_token
from attrs import define, field

from llm_effects.providers.wire import CLOSING_S


@final
@define(eq=False)
class ConnectionLimiter:
    """A first-come, first-served limiter of ``capacity`` numbered slots.

    It hands out the lowest free slot, since the connection of that slot was used last.

    >>> async def visit():
    ...     limiter = ConnectionLimiter(1)
    ...     slot = await limiter.acquire()
    ...     limiter.release(slot)
    ...     return slot, limiter.in_use
    >>> anyio.run(visit)
    (0, 0)
    """

    capacity: int
    _created: int = field(default=0, init=False)
    _free: list[int] = field(factory=list[int], init=False)
    _queue: OrderedDict[anyio.Event, None] = field(factory=OrderedDict[anyio.Event, None], init=False)
    _assigned: dict[anyio.Event, int] = field(factory=dict[anyio.Event, int], init=False)

    @property
    def in_use(self) -> int:
        """The number of acquired slots."""
        return self._created - len(self._free)

    @property
    def waiting(self) -> int:
        """The number of queued calls."""
        return len(self._queue)

    async def acquire(self) -> int:
        """Wait for a slot and return its number; release it once."""
        if self._free:
            return heappop(self._free)
        if self._created < self.capacity:
            self._created += 1
            return self._created - 1
        return await self._wait_in_queue()

    def release(self, slot: int) -> None:
        """Pass a slot to the longest waiter, or put it back."""
        if not self._queue:
            heappush(self._free, slot)
            return
        waiter, _ = self._queue.popitem(last=False)
        self._assigned[waiter] = slot
        waiter.set()

    async def _wait_in_queue(self) -> int:
        waiter, woken = anyio.Event(), False
        self._queue[waiter] = None
        try:
            await waiter.wait()
            woken = True
        finally:
            if not woken:
                self._abandon(waiter)
        return self._assigned.pop(waiter)

    def _abandon(self, waiter: anyio.Event) -> None:
        """Leave the queue; a slot assigned in the moment of the cancellation goes to the next waiter."""
        self._queue.pop(waiter, None)
        if waiter in self._assigned:
            self.release(self._assigned.pop(waiter))


MakePool: TypeAlias = Callable[[int], httpx.AsyncBaseTransport]
"""A factory of pools, from their number of connections."""

IDLE_S: Final = 30.0
"""Seconds that an unused connection is kept."""


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    """Load the trusted certificates once: loading takes as long as many calls."""
    return httpx.create_ssl_context()


def http_pool(size: int) -> httpx.AsyncBaseTransport:
    """Open a pool of at most ``size`` connections, without retries and redirects."""
    limits = httpx.Limits(max_connections=size, max_keepalive_connections=size, keepalive_expiry=IDLE_S)
    return httpx.AsyncHTTPTransport(verify=_ssl_context(), limits=limits)


@final
@define(eq=False)
class Shard:
    """One small pool and its number of calls; a retired shard accepts no new calls and its last call closes it."""

    pool: httpx.AsyncBaseTransport
    calls: int = 0
    retired: bool = False
    idle_since: float = 0.0


@final
@define(eq=False)
class Slot:
    """The slot of one call: its number and its shard."""

    number: int
    shard: Shard

    @property
    def pool(self) -> httpx.AsyncBaseTransport:
        """The pool that sends the call."""
        return self.shard.pool


@final
@define(eq=False)
class ShardedPool:
    """The small pools of one event loop, opened on demand; ``users`` counts the calls and scopes that hold it."""

    make: MakePool
    size: int
    limiter: ConnectionLimiter
    users: int = 0
    _shards: dict[int, Shard] = field(factory=dict[int, Shard], init=False)
    _next_sweep: float = field(default=0.0, init=False)

    @asynccontextmanager
    async def slot(self) -> AsyncGenerator[Slot]:
        """Wait for a slot and hold it."""
        number = await self.limiter.acquire()
        slot = Slot(number, self._join(number))
        try:
            yield slot
        finally:
            self.limiter.release(number)
            await close_all([*self._leave(slot.shard), *self._pop_idle()])

    async def renew(self, slot: Slot) -> None:
        """Move a slot to a new shard, which has no old connections."""
        self.retire(slot)
        old, slot.shard = slot.shard, self._join(slot.number)
        await close_all(self._leave(old))

    def retire(self, slot: Slot) -> None:
        """Send no more calls to the shard of a slot."""
        slot.shard.retired = True
        index = slot.number // self.size
        if self._shards.get(index) is slot.shard:
            del self._shards[index]

    async def aclose(self) -> None:
        """Close the idle shards now; the last call of each other shard closes it."""
        shards, self._shards = tuple(self._shards.values()), {}
        for shard in shards:
            shard.retired = True
        await close_all(shard.pool for shard in shards if not shard.calls)

    def _join(self, number: int) -> Shard:
        index = number // self.size
        shard = self._shards.get(index)
        if shard is None:
            shard = self._shards[index] = Shard(self.make(self.size))
        shard.calls += 1
        return shard

    def _leave(self, shard: Shard) -> tuple[httpx.AsyncBaseTransport, ...]:
        """Leave a shard and return the pool to close now, if any."""
        shard.calls -= 1
        shard.idle_since = anyio.current_time()
        return (shard.pool,) if shard.retired and not shard.calls else ()

    def _pop_idle(self) -> tuple[httpx.AsyncBaseTransport, ...]:
        """Remove the shards that a burst left idle: without new calls, httpx does not expire their connections."""
        now = anyio.current_time()
        if now < self._next_sweep:
            return ()
        self._next_sweep = now + IDLE_S / 10
        idle = [index for index, each in self._shards.items() if not each.calls and each.idle_since < now - IDLE_S]
        return tuple(self._shards.pop(index).pool for index in idle)


@final
@define(eq=False, kw_only=True)
class LoopPools:
    """One sharded pool for each event loop in use, so a connection never meets another loop than its own."""

    make: MakePool
    max_connections: int
    size: int
    _loops: dict[EventLoopToken, ShardedPool] = field(factory=dict[EventLoopToken, ShardedPool], init=False)

    @asynccontextmanager
    async def hold(self) -> AsyncGenerator[ShardedPool]:
        """Hold the pool of the running loop; its last holder closes it."""
        loop = current_token()
        pool = self._loops.get(loop)
        if pool is None:
            pool = self._loops[loop] = ShardedPool(self.make, self.size, ConnectionLimiter(self.max_connections))
        pool.users += 1
        try:
            yield pool
        finally:
            pool.users -= 1
            if not pool.users:
                del self._loops[loop]
                await pool.aclose()

    async def aclose(self) -> None:
        """Close the idle connections of the running loop; the others close after their use."""
        pool = self._loops.get(current_token())
        if pool is not None:
            await pool.aclose()


async def close_all(pools: Iterable[httpx.AsyncBaseTransport]) -> None:
    """Close pools in bounded time, also under cancellation."""
    for pool in pools:
        with anyio.move_on_after(CLOSING_S, shield=True):
            await pool.aclose()
