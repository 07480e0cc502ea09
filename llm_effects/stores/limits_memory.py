"""Limits and breakers in this process. Times are on the clock of an event loop, so each loop has a count of its own."""

from collections.abc import Mapping
from typing import final

from attrs import define, field
from returns.future import FutureResult
from returns.result import Failure, Result, Success

from llm_effects.config import BreakerConfig
from llm_effects.errors import LLMError
from llm_effects.guards import Hedges, Retries
from llm_effects.limits import Bill, Need, Quota, Ticket
from llm_effects.limits.breakers import Passage, Refusal
from llm_effects.stores.hedges import MemoryHedges
from llm_effects.stores.refusals import left_alone, turned_away
from llm_effects.stores.retry_budgets import MemoryRetries
from llm_effects.stores.rooms import Room, Rooms


@final
@define
class MemoryLimits:
    """What is under way in this process. Nobody in it can die and keep a place: no place has to be taken back."""

    _rooms: Rooms = field(factory=Rooms, init=False, repr=False)
    retries: Retries = field(factory=MemoryRetries, init=False, repr=False)
    hedges: Hedges = field(factory=MemoryHedges, init=False, repr=False)

    def enter(
        self, model: str, quota: Quota, need: Need, patience: float, deadline: float
    ) -> Ticket | FutureResult[Ticket, LLMError]:
        """Take a turn, or wait for one."""
        return entered(self._rooms.of(model), quota, need, patience, deadline)

    async def leave(self, ticket: Ticket, bill: Bill) -> None:
        """Give a place back, and put right what was reserved."""
        self._rooms.of(ticket.model).leave(ticket, bill)

    def admit(self, model: str, deadline: float, *, anyway: bool) -> Passage | FutureResult[Passage, LLMError]:
        """Ask the model's breaker to be let through."""
        answer = self._rooms.of(model).admit(deadline, anyway=anyway)
        return FutureResult.from_failure(left_alone(model, answer)) if isinstance(answer, Refusal) else answer

    async def record(self, model: str, config: BreakerConfig, passage: Passage, *, failed: bool | None) -> None:
        """Tell the model's breaker what became of one that it let through."""
        self._rooms.of(model).record(config, passage, failed=failed)

    def opened(self) -> Mapping[str, float]:
        """Give the models that are left alone, and until when."""
        return self._rooms.opened()

    async def aclose(self) -> None:
        """Let go of nothing."""


def entered(
    room: Room, quota: Quota, need: Need, patience: float, deadline: float
) -> Ticket | FutureResult[Ticket, LLMError]:
    """Take a turn in a room of this process, or wait for one."""
    at_once = 0.0 if room.line.waiting else room.ask(quota, need)
    return at_once if isinstance(at_once, Ticket) else FutureResult(_waited(room, quota, need, patience, deadline))


async def _waited(room: Room, quota: Quota, need: Need, patience: float, deadline: float) -> Result[Ticket, LLMError]:
    async def ask(ahead: Need) -> Ticket | float:
        return room.ask(quota, need, ahead)

    got = await room.line.turn(need, ask, patience, deadline)
    return Success(got) if isinstance(got, Ticket) else Failure(turned_away(room.model, quota, need, got))
