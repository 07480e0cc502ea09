"""Limits and breakers in this process. Times are on the clock of an event loop, so each loop has a count of its own."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping
from math import inf, isfinite
from typing import Final, TypeAlias, final

import anyio
from anyio import NoEventLoopError
from anyio.lowlevel import RunVar, checkpoint_if_cancelled
from attrs import define, evolve, field
from returns.future import FutureResult
from returns.result import Failure, Result, Success

from llm_effects.config.routing import BreakerConfig, RetryBudgetConfig
from llm_effects.effects.env import Hedges, Retries
from llm_effects.limits.circuit_breaker import Breaker, BreakerPermit, Refusal, record_outcome, request_permit
from llm_effects.limits.quotas import (
    NO_DEMAND,
    ActualUsage,
    Demand,
    LimiterState,
    Permit,
    Quota,
    has_free_slot,
    lease_seconds,
    wait_time,
    with_actual_usage,
    with_reservation,
)
from llm_effects.values.errors import LLMError, ModelUnavailable, RateLimitExceeded

# How many second attempts may be made: a bucket that every call fills a little and every hedge takes one from.


BURST: Final = 10.0
"""Hedges that may be saved up: a model that turns slow after a quiet hour is not hedged for an hour's worth."""

_ROUNDING: Final = 1e-9  # ten tenths add up to a little less than one


@final
@define
class MemoryHedges:
    """The budget of this process, empty at first."""

    _saved: float = 0.0

    def earn(self, share: float) -> None:
        """Put in a call's share of a hedge.

        >>> budget = MemoryHedges()
        >>> for _ in range(3):
        ...     budget.earn(0.5)
        >>> budget.spend(), budget.spend()
        (True, False)
        """
        self._saved = min(self._saved + share, BURST)

    def spend(self) -> bool:
        """Take one hedge out, if there is a whole one."""
        if self._saved < 1.0 - _ROUNDING:
            return False
        self._saved -= 1.0
        return True


# What those are told who are not let in. Nothing was sent, and asking the same model again is no use.


def turned_away(model: str, quota: Quota, need: Demand, wait: float) -> RateLimitExceeded:
    """Say that one's turn does not come in time; ``wait`` is in how many seconds it would, infinite if unknown.

    >>> turned_away("gpt", Quota(requests=1), Demand(), 40.0).message
    'our own limits (1 request a minute) have room for 1 request in 40 s'
    """
    size = f" of about {_many(need.tokens, 'token')}" if need.tokens else ""
    asked = _many(need.requests, "request") + size
    when = f"in {wait:.3g} s" if isfinite(wait) else "in the time that there is"
    no = "" if isfinite(wait) else "no "
    return RateLimitExceeded(
        model=model,
        message=f"our own limits ({_told(quota)}) have {no}room for {asked} {when}",
        retry_after=wait if isfinite(wait) else None,
        should_retry=False,
    )


def left_alone(model: str, refusal: Refusal) -> ModelUnavailable:
    """Say that a model is left alone, and for how long.

    >>> left_alone("gpt", Refusal(12.0)).message
    'it failed too often of late and is left alone for 12 s'
    """
    message = f"it failed too often of late and is left alone for {refusal.retry_after:.3g} s"
    return ModelUnavailable(model=model, message=message, reason="breaker_open", retry_after=refusal.retry_after)


def _told(quota: Quota) -> str:
    told = (
        (quota.concurrency, "call", "at once"),
        (quota.requests, "request", "a minute"),
        (quota.tokens, "token", "a minute"),
    )
    limits = ", ".join(f"{_many(number, what)} {how}" for number, what, how in told if number is not None)
    return limits or "as the server told them"


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# How often all calls together may ask again: a bucket of tokens for each server and key, full at first.


@final
@define
class MemoryRetries:
    """The budgets of this process: a client that storms is one process, so nobody shares them."""

    _left: dict[Hashable, int] = field(factory=dict[Hashable, int], init=False, repr=False)

    def afford(self, server: Hashable, budget: RetryBudgetConfig, cost: int) -> bool:
        """Take the cost of a retry, if there is as much.

        >>> retries, budget = MemoryRetries(), RetryBudgetConfig(tokens=20)
        >>> [retries.afford("server", budget, 14) for _ in range(2)]
        [True, False]
        """
        left = self._left.get(server, budget.tokens) - cost
        if left < 0:
            return False
        self._left[server] = left
        return True

    def repay(self, server: Hashable, budget: RetryBudgetConfig, amount: int) -> None:
        """Put some back, up to the full bucket."""
        if server in self._left:
            self._left[server] = min(budget.tokens, self._left[server] + amount)


# Who waits for a turn, first come first served: the first in line asks, all others wait to be first.


TryEnter: TypeAlias = Callable[[Demand], Awaitable[Permit | float]]
"""Asks to be let in behind others: a ticket, or after how many seconds to ask again, infinite if only a leaver helps.

Behind anybody it gives no ticket, but the least time to wait.
"""

LEAST_S: Final = 0.001
"""The least time to wait: less may be none at all on a clock that counts in floats."""


@final
@define(eq=False)
class _Place:
    need: Demand
    bell: anyio.Event = field(factory=anyio.Event)


@final
@define(eq=False)
class FairQueue:
    """One line. ``poll`` is how many seconds pass until the first asks again for what only a leaver can give.

    In a store of many processes not every leaver rings here.
    """

    poll: float = inf
    _places: OrderedDict[int, _Place] = field(factory=OrderedDict[int, _Place], init=False)
    _ahead: Demand = field(default=NO_DEMAND, init=False)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._places)

    def ring(self) -> None:
        """Let the first ask again: somebody has left."""
        if self._places:
            next(iter(self._places.values())).bell.set()

    async def turn(self, need: Demand, ask: TryEnter, timeout: float, deadline: float = inf) -> Permit | float:
        """Wait for a ticket for so many seconds at the most, and no longer than up to a time.

        Where that is not enough it gives how many seconds it would take, at once if that is known; infinite if not.
        """
        began, place = anyio.current_time(), _Place(need)
        until = min(began + timeout, deadline)
        ahead = self._join(place)
        try:
            got = await ask(ahead)
            if isinstance(got, Permit) or until - began < got < inf:
                return got
            got = await self._first(place, ask, until, got if ahead == NO_DEMAND else inf)
        finally:
            self._leave(place)
        return evolve(got, wait_seconds=anyio.current_time() - began) if isinstance(got, Permit) else got

    async def _first(self, place: _Place, ask: TryEnter, until: float, wait: float) -> Permit | float:
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
                got = await ask(NO_DEMAND)
                if isinstance(got, Permit):
                    return got
                wait = got

    def _join(self, place: _Place) -> Demand:
        ahead = self._ahead
        self._places[id(place)] = place
        self._ahead = _plus(ahead, place.need, 1)
        return ahead

    def _leave(self, place: _Place) -> None:
        del self._places[id(place)]
        self._ahead = _plus(self._ahead, place.need, -1)
        self.ring()


def _plus(ahead: Demand, need: Demand, sign: int) -> Demand:
    return evolve(ahead, requests=ahead.requests + sign * need.requests, tokens=ahead.tokens + sign * need.tokens)


# How things stand with each model in one event loop, by its clock: who is in, who waits, and the model's breaker.


_QUIET: Final = LimiterState()
"""How things stand where nothing is limited and no server said a word."""


@final
@define(eq=False)
class ModelState:
    """One model. ``shut_until`` is what is known here of a breaker that others share."""

    model: str
    line: FairQueue
    standing: LimiterState = field(default=_QUIET, init=False)
    breaker: Breaker = field(factory=Breaker, init=False)
    shut_until: float | None = field(default=None, init=False)

    def ask(self, quota: Quota, need: Demand, ahead: Demand = NO_DEMAND) -> Permit | float:
        """Ask to be let in, as a ``FairQueue`` does; what is taken here is not lost on the way to whoever waits."""
        if quota.unlimited and self.standing is _QUIET:
            return Permit(model=self.model, quota=quota, demand=need)
        now = anyio.current_time()
        wait = wait_time(self.standing, quota, need, now, ahead)
        if wait or ahead.requests or not has_free_slot(self.standing, quota):
            return wait or inf
        self.standing = with_reservation(self.standing, quota, need, now)
        return Permit(model=self.model, quota=quota, demand=need, cell=int(now // 1))

    def shut(self, seconds: float) -> None:
        """Note for how long the breaker that others share is open, or that it is not."""
        self.shut_until = anyio.current_time() + seconds if seconds else None

    def undo(self, ticket: Permit) -> None:
        """Take back what was taken just now."""
        self.standing = with_actual_usage(self.standing, ticket, ActualUsage(requests=0))

    def release(self, ticket: Permit, bill: ActualUsage) -> None:
        """Give a place back, and let the next one ask."""
        if bill.reported_limits is not None or not ticket.quota.unlimited:
            self.standing = with_actual_usage(self.standing, ticket, bill)
            self.line.ring()

    def admit(self, deadline: float, *, force: bool) -> BreakerPermit | Refusal:
        """Ask the breaker to be let through."""
        now = anyio.current_time()
        self.breaker, answer = request_permit(self.breaker, now, lease_seconds(deadline, now), force=force)
        return answer

    def record(self, config: BreakerConfig, passage: BreakerPermit, *, failed: bool | None) -> None:
        """Tell the breaker what became of one that it let through."""
        self.breaker = record_outcome(self.breaker, config, passage, anyio.current_time(), failed=failed)


@final
@define(eq=False)
class ModelStates:
    """A room for each model, made when it is entered; each event loop has its own."""

    poll: float = inf
    _rooms: RunVar[dict[str, ModelState]] = field(factory=lambda: RunVar("llm_effects_rooms"), init=False, repr=False)

    def of(self, model: str) -> ModelState:
        """Give the room of a model."""
        try:
            rooms = self._rooms.get()
        except LookupError:
            self._rooms.set(rooms := dict[str, ModelState]())
        room = rooms.get(model)
        if room is None:
            room = rooms[model] = ModelState(model, FairQueue(self.poll))
        return room

    def opened(self) -> Mapping[str, float]:
        """Give the models that are left alone, and until when."""
        try:
            rooms = self._rooms.get(dict[str, ModelState]())
        except NoEventLoopError:  # asked from outside: no clock, no pauses
            return {}
        known = {name: room.shut_until or room.breaker.open_until for name, room in rooms.items()}
        return {name: until for name, until in known.items() if until is not None}


@final
@define
class MemoryLimits:
    """What is under way in this process. Nobody in it can die and keep a place: no place has to be taken back."""

    _rooms: ModelStates = field(factory=ModelStates, init=False, repr=False)
    retries: Retries = field(factory=MemoryRetries, init=False, repr=False)
    hedges: Hedges = field(factory=MemoryHedges, init=False, repr=False)

    def acquire(
        self, model: str, quota: Quota, need: Demand, timeout: float, deadline: float
    ) -> Permit | FutureResult[Permit, LLMError]:
        """Take a turn, or wait for one."""
        return entered(self._rooms.of(model), quota, need, timeout, deadline)

    async def release(self, ticket: Permit, bill: ActualUsage) -> None:
        """Give a place back, and put right what was reserved."""
        self._rooms.of(ticket.model).release(ticket, bill)

    def admit(
        self, model: str, deadline: float, *, force: bool
    ) -> BreakerPermit | FutureResult[BreakerPermit, LLMError]:
        """Ask the model's breaker to be let through."""
        answer = self._rooms.of(model).admit(deadline, force=force)
        return FutureResult.from_failure(left_alone(model, answer)) if isinstance(answer, Refusal) else answer

    async def record(self, model: str, config: BreakerConfig, passage: BreakerPermit, *, failed: bool | None) -> None:
        """Tell the model's breaker what became of one that it let through."""
        self._rooms.of(model).record(config, passage, failed=failed)

    def opened(self) -> Mapping[str, float]:
        """Give the models that are left alone, and until when."""
        return self._rooms.opened()

    async def aclose(self) -> None:
        """Let go of nothing."""


def entered(
    room: ModelState, quota: Quota, need: Demand, timeout: float, deadline: float
) -> Permit | FutureResult[Permit, LLMError]:
    """Take a turn in a room of this process, or wait for one."""
    at_once = 0.0 if room.line.waiting else room.ask(quota, need)
    return at_once if isinstance(at_once, Permit) else FutureResult(_waited(room, quota, need, timeout, deadline))


async def _waited(
    room: ModelState, quota: Quota, need: Demand, timeout: float, deadline: float
) -> Result[Permit, LLMError]:
    async def ask(ahead: Demand) -> Permit | float:
        return room.ask(quota, need, ahead)

    got = await room.line.turn(need, ask, timeout, deadline)
    return Success(got) if isinstance(got, Permit) else Failure(turned_away(room.model, quota, need, got))
