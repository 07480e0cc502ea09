"""A queue with numbered places: first come, first served."""

from collections import OrderedDict
from heapq import heappop, heappush
from typing import final

import anyio
from attrs import define, field


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
