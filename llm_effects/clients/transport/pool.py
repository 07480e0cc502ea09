"""The connections of one event loop, in many small pools with a queue in front.

httpx's own pool loses places when a call that queues in it is cancelled, and its bookkeeping grows with the square of
its connections. So nobody ever queues there: a call gets a place here first, and place ``n`` belongs to the small
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

# A queue with numbered places: first come, first served.


@final
@define(eq=False)
class Admission:
    """So many ``places``; the lowest free one is given, since what belongs to it was used last.

    >>> async def visit():
    ...     admission = Admission(1)
    ...     place = await admission.take()
    ...     admission.give(place)
    ...     return place, admission.held
    >>> anyio.run(visit)
    (0, 0)
    """

    places: int
    _begun: int = field(default=0, init=False)
    _free: list[int] = field(factory=list[int], init=False)
    _queue: OrderedDict[anyio.Event, None] = field(factory=OrderedDict[anyio.Event, None], init=False)
    _given: dict[anyio.Event, int] = field(factory=dict[anyio.Event, int], init=False)

    @property
    def held(self) -> int:
        """How many places are held now."""
        return self._begun - len(self._free)

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return len(self._queue)

    async def take(self) -> int:
        """Wait for a place and give its number, which goes back once, by ``give``."""
        if self._free:
            return heappop(self._free)
        if self._begun < self.places:
            self._begun += 1
            return self._begun - 1
        return await self._queued()

    def give(self, place: int) -> None:
        """Hand a place to whoever waits longest, or put it back."""
        if not self._queue:
            heappush(self._free, place)
            return
        turn, _ = self._queue.popitem(last=False)
        self._given[turn] = place
        turn.set()

    async def _queued(self) -> int:
        turn, came = anyio.Event(), False
        self._queue[turn] = None
        try:
            await turn.wait()
            came = True
        finally:
            if not came:
                self._forget(turn)
        return self._given.pop(turn)

    def _forget(self, turn: anyio.Event) -> None:
        """Leave the queue; a place that came at the very moment of being cancelled goes to the next."""
        self._queue.pop(turn, None)
        if turn in self._given:
            self.give(self._given.pop(turn))


MakePool: TypeAlias = Callable[[int], httpx.AsyncBaseTransport]
"""Makes one pool of so many connections."""

IDLE_S: Final = 30.0
"""How long an unused connection is kept, in seconds."""


@functools.cache
def _verified() -> ssl.SSLContext:
    """Load the known authorities once: it takes as long as many calls."""
    return httpx.create_ssl_context()


def http_pool(size: int) -> httpx.AsyncBaseTransport:
    """Make a pool of at most ``size`` connections, which retries nothing and follows no redirect."""
    limits = httpx.Limits(max_connections=size, max_keepalive_connections=size, keepalive_expiry=IDLE_S)
    return httpx.AsyncHTTPTransport(verify=_verified(), limits=limits)


@final
@define(eq=False)
class Shard:
    """One small pool and how many calls use it; a retired one gets no new call and is closed by its last."""

    pool: httpx.AsyncBaseTransport
    calls: int = 0
    retired: bool = False
    idle_since: float = 0.0


@final
@define(eq=False)
class Place:
    """Where one call is: its number and its shard."""

    number: int
    shard: Shard

    @property
    def pool(self) -> httpx.AsyncBaseTransport:
        """The pool that the call is sent through."""
        return self.shard.pool


@final
@define(eq=False)
class Pools:
    """The pools of one event loop, made as places need them; ``users`` counts the calls and scopes that hold them."""

    make: MakePool
    size: int
    admission: Admission
    users: int = 0
    _shards: dict[int, Shard] = field(factory=dict[int, Shard], init=False)
    _look_at: float = field(default=0.0, init=False)

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[Place]:
        """Wait for a place and hold it."""
        number = await self.admission.take()
        place = Place(number, self._entered(number))
        try:
            yield place
        finally:
            self.admission.give(number)
            await closed([*self._left(place.shard), *self._idle()])

    async def renew(self, place: Place) -> None:
        """Move to a new pool: no connection there is an old one."""
        self.retire(place)
        old, place.shard = place.shard, self._entered(place.number)
        await closed(self._left(old))

    def retire(self, place: Place) -> None:
        """Give no more calls to the pool of a place."""
        place.shard.retired = True
        index = place.number // self.size
        if self._shards.get(index) is place.shard:
            del self._shards[index]

    async def aclose(self) -> None:
        """Close what is idle now, and let the last call of each other pool close it."""
        shards, self._shards = tuple(self._shards.values()), {}
        for shard in shards:
            shard.retired = True
        await closed(shard.pool for shard in shards if not shard.calls)

    def _entered(self, number: int) -> Shard:
        index = number // self.size
        shard = self._shards.get(index)
        if shard is None:
            shard = self._shards[index] = Shard(self.make(self.size))
        shard.calls += 1
        return shard

    def _left(self, shard: Shard) -> tuple[httpx.AsyncBaseTransport, ...]:
        """Leave a shard, and give its pool if that must be closed now."""
        shard.calls -= 1
        shard.idle_since = anyio.current_time()
        return (shard.pool,) if shard.retired and not shard.calls else ()

    def _idle(self) -> tuple[httpx.AsyncBaseTransport, ...]:
        """Take out the pools that a burst left behind: nobody else would look at their connections again."""
        now = anyio.current_time()
        if now < self._look_at:
            return ()
        self._look_at = now + IDLE_S / 10
        old = [index for index, each in self._shards.items() if not each.calls and each.idle_since < now - IDLE_S]
        return tuple(self._shards.pop(index).pool for index in old)


@final
@define(eq=False, kw_only=True)
class LoopPools:
    """The pools of every event loop that is using them: a connection never meets another loop than its own."""

    make: MakePool
    places: int
    size: int
    _loops: dict[EventLoopToken, Pools] = field(factory=dict[EventLoopToken, Pools], init=False)

    @asynccontextmanager
    async def held(self) -> AsyncGenerator[Pools]:
        """Hold the pools of the running loop; the last who lets go of them closes them."""
        loop = current_token()
        pools = self._loops.get(loop)
        if pools is None:
            pools = self._loops[loop] = Pools(self.make, self.size, Admission(self.places))
        pools.users += 1
        try:
            yield pools
        finally:
            pools.users -= 1
            if not pools.users:
                del self._loops[loop]
                await pools.aclose()

    async def aclose(self) -> None:
        """Close the idle connections of the running loop; those in use, or of other loops, close after their use."""
        pools = self._loops.get(current_token())
        if pools is not None:
            await pools.aclose()


async def closed(pools: Iterable[httpx.AsyncBaseTransport]) -> None:
    """Close pools, also while being cancelled, in bounded time."""
    for pool in pools:
        with anyio.move_on_after(CLOSING_S, shield=True):
            await pool.aclose()
