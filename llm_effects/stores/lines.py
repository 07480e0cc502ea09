"""Who waits for a turn, first come first served: the first in line asks, all others wait to be first."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from math import inf
from typing import Final, TypeAlias, final

import anyio
from anyio.lowlevel import checkpoint_if_cancelled
from attrs import define, evolve, field

from llm_effects.limits import NOTHING, Need, Ticket

Ask: TypeAlias = Callable[[Need], Awaitable[Ticket | float]]
"""Asks to be let in behind others: a ticket, or after how many seconds to ask again, infinite if only a leaver helps.

Behind anybody it gives no ticket, but the least time to wait.
"""

LEAST_S: Final = 0.001
"""The least time to wait: less may be none at all on a clock that counts in floats."""


@final
@define(eq=False)
class _Place:
    need: Need
    bell: anyio.Event = field(factory=anyio.Event)


@final
@define(eq=False)
class Line:
    """One line. ``poll`` is how many seconds pass until the first asks again for what only a leaver can give.

    In a store of many processes not every leaver rings here.
    """

    poll: float = inf
    _places: OrderedDict[int, _Place] = field(factory=OrderedDict[int, _Place], init=False)
    _ahead: Need = field(default=NOTHING, init=False)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._places)

    def ring(self) -> None:
        """Let the first ask again: somebody has left."""
        if self._places:
            next(iter(self._places.values())).bell.set()

    async def turn(self, need: Need, ask: Ask, patience: float, deadline: float = inf) -> Ticket | float:
        """Wait for a ticket for so many seconds at the most, and no longer than up to a time.

        Where that is not enough it gives how many seconds it would take, at once if that is known; infinite if not.
        """
        began, place = anyio.current_time(), _Place(need)
        until = min(began + patience, deadline)
        ahead = self._join(place)
        try:
            got = await ask(ahead)
            if isinstance(got, Ticket) or until - began < got < inf:
                return got
            got = await self._first(place, ask, until, got if ahead == NOTHING else inf)
        finally:
            self._leave(place)
        return evolve(got, waited=anyio.current_time() - began) if isinstance(got, Ticket) else got

    async def _first(self, place: _Place, ask: Ask, until: float, wait: float) -> Ticket | float:
        while True:
            left = until - anyio.current_time()
            if left <= 0 or left < wait < inf:
                return wait
            with anyio.move_on_after(max(LEAST_S, min(wait, left, self.poll))):
                await place.bell.wait()
            await checkpoint_if_cancelled()  # who is rung for and cancelled in one breath takes nothing
            place.bell = anyio.Event()  # before asking: who leaves meanwhile rings for the next time
            wait = inf
            if next(iter(self._places.values())) is place:
                got = await ask(NOTHING)
                if isinstance(got, Ticket):
                    return got
                wait = got

    def _join(self, place: _Place) -> Need:
        ahead = self._ahead
        self._places[id(place)] = place
        self._ahead = _plus(ahead, place.need, 1)
        return ahead

    def _leave(self, place: _Place) -> None:
        del self._places[id(place)]
        self._ahead = _plus(self._ahead, place.need, -1)
        self.ring()


def _plus(ahead: Need, need: Need, sign: int) -> Need:
    return evolve(ahead, requests=ahead.requests + sign * need.requests, tokens=ahead.tokens + sign * need.tokens)
