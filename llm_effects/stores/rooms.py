"""How things stand with each model in one event loop, by its clock: who is in, who waits, and the model's breaker."""

from collections.abc import Mapping
from math import inf
from typing import Final, final

import anyio
from anyio import NoEventLoopError
from anyio.lowlevel import RunVar
from attrs import define, field

from llm_effects.config import BreakerConfig
from llm_effects.limits import NOTHING, Bill, Need, Quota, Standing, Ticket, has_place, lease, pause, reserved, settled
from llm_effects.limits.breakers import Breaker, Passage, Refusal, admitted, recorded
from llm_effects.stores.lines import Line

_QUIET: Final = Standing()
"""How things stand where nothing is limited and no server said a word."""


@final
@define(eq=False)
class Room:
    """One model. ``shut_until`` is what is known here of a breaker that others share."""

    model: str
    line: Line
    standing: Standing = field(default=_QUIET, init=False)
    breaker: Breaker = field(factory=Breaker, init=False)
    shut_until: float | None = field(default=None, init=False)

    def ask(self, quota: Quota, need: Need, ahead: Need = NOTHING) -> Ticket | float:
        """Ask to be let in, as a ``Line`` does; what is taken here is not lost on the way to whoever waits."""
        if quota.free and self.standing is _QUIET:
            return Ticket(model=self.model, quota=quota, need=need)
        now = anyio.current_time()
        wait = pause(self.standing, quota, need, now, ahead)
        if wait or ahead.requests or not has_place(self.standing, quota):
            return wait or inf
        self.standing = reserved(self.standing, quota, need, now)
        return Ticket(model=self.model, quota=quota, need=need, cell=int(now // 1))

    def shut(self, seconds: float) -> None:
        """Note for how long the breaker that others share is open, or that it is not."""
        self.shut_until = anyio.current_time() + seconds if seconds else None

    def undo(self, ticket: Ticket) -> None:
        """Take back what was taken just now."""
        self.standing = settled(self.standing, ticket, Bill(requests=0))

    def leave(self, ticket: Ticket, bill: Bill) -> None:
        """Give a place back, and let the next one ask."""
        if bill.said is not None or not ticket.quota.free:
            self.standing = settled(self.standing, ticket, bill)
            self.line.ring()

    def admit(self, deadline: float, *, anyway: bool) -> Passage | Refusal:
        """Ask the breaker to be let through."""
        now = anyio.current_time()
        self.breaker, answer = admitted(self.breaker, now, lease(deadline, now), anyway=anyway)
        return answer

    def record(self, config: BreakerConfig, passage: Passage, *, failed: bool | None) -> None:
        """Tell the breaker what became of one that it let through."""
        self.breaker = recorded(self.breaker, config, passage, anyio.current_time(), failed=failed)


@final
@define(eq=False)
class Rooms:
    """A room for each model, made when it is entered; each event loop has its own."""

    poll: float = inf
    _rooms: RunVar[dict[str, Room]] = field(factory=lambda: RunVar("llm_effects_rooms"), init=False, repr=False)

    def of(self, model: str) -> Room:
        """Give the room of a model."""
        try:
            rooms = self._rooms.get()
        except LookupError:
            self._rooms.set(rooms := dict[str, Room]())
        room = rooms.get(model)
        if room is None:
            room = rooms[model] = Room(model, Line(self.poll))
        return room

    def opened(self) -> Mapping[str, float]:
        """Give the models that are left alone, and until when."""
        try:
            rooms = self._rooms.get(dict[str, Room]())
        except NoEventLoopError:  # asked from outside: no clock, no pauses
            return {}
        known = {name: room.shut_until or room.breaker.open_until for name, room in rooms.items()}
        return {name: until for name, until in known.items() if until is not None}
