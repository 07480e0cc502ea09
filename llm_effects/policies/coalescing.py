"""Coalescing (single flight): identical questions under way at once share one call.

The first caller leads, the others follow its flight. A follower receives every event from the start and has its own
deadline. What concerns only the leader (its cancellation, deadline, budget or consumer) is not shared: the followers
ask again, led by the one with the most time left. A finished flight is not remembered; later callers hit the cache.

No follower waits for what it would not wait for alone. A stream follows streams only. While anyone follows, the model
does not wait for the leader's consumer: events wait instead, and the first content commits the call as it arrives.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Hashable
from enum import Enum, unique
from typing import Final, TypeAlias, final

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import RunVar, checkpoint
from attrs import define, evolve, field
from returns.result import Success

from llm_effects.effects.call import Call, CallHistory, Sink
from llm_effects.effects.effect import Answer, Generate, layer, passing_ready, proceed
from llm_effects.effects.env import LLMEnv
from llm_effects.effects.tasks import Pacer, task_group
from llm_effects.policies.cache import is_cached, key_of
from llm_effects.values.errors import BudgetExceeded, LLMError, RequestFailed, RequestTimeout
from llm_effects.values.events import ReasoningDelta, Restarted, Started, StreamEvent, TextDelta, ToolCallDelta
from llm_effects.values.requests import Recovery
from llm_effects.values.responses import Cost

STALLED_S: Final = 1.0
"""How long the leader's consumer may take over the event that it has when another call joins, in seconds."""


@passing_ready
@layer
def with_coalescing(next: Generate, call: Call, env: LLMEnv) -> Awaitable[Answer]:
    """Share one call among identical questions under way; never where the cache is off or bypassed.

    Questions are identical if they go through the same pipeline, under the same validation.
    """
    if not is_cached(call.request, env.config):
        return proceed(next, call, env)
    validation = None if call.validator is None else call.validator.identity
    question = key_of(call, env.config, next)
    request = call.request
    key = (id(env.clients), id(env.cache), id(next), question, validation, request.cache, request.recovery)
    return _share(next, call, env, key)


async def _share(next: Generate, call: Call, env: LLMEnv, key: Hashable) -> Answer:
    flights, streamed, following = flights_here(), (key, call.sink is not None), call
    while flight := flights.get(streamed) or flights.get((key, True)):
        call.history.looked_up = None  # the answer may be there when the flight has ended
        if following is call and call.sink is not None:
            following = evolve(call, sink=opening_once(call.sink, call.history))
        result = await _follow(flight, following)
        if not isinstance(result, Retry):
            return result
        if result is Retry.ALONE:
            return await proceed(next, following, env)
        if result is Retry.INSTEAD:
            flight.close()
        if call.deadline < flight.latest:
            await checkpoint()  # a follower with more time leads
    return await _lead(next, following, env, Flight(flights, streamed, call.deadline))


# The leader, and its consumer.


async def _lead(next: Generate, call: Call, env: LLMEnv, flight: Flight) -> Answer:
    flight.open()
    try:
        if call.sink is None:
            flight.result = await proceed(next, call, env)
            return flight.result
        return await _lead_stream(next, call, call.sink, env, flight)
    except Exception:
        flight.defect = not flight.consumer_failed  # a defect below would hit every follower, one after the other
        raise
    finally:
        flight.land()


async def _lead_stream(next: Generate, call: Call, sink: Sink, env: LLMEnv, flight: Flight) -> Answer:
    async with task_group() as group:
        consumer = _Consumer(sink, call.history, flight, group)
        result = flight.result = await proceed(next, evolve(call, sink=consumer), env)
        flight.land()  # no follower waits for the events that the leader's consumer has not taken yet
    return result


@final
@define(eq=False, repr=False)
class _Consumer:
    """The sink of a leader: the model waits for its consumer only while no one follows."""

    sink: Sink
    history: CallHistory
    flight: Flight
    group: TaskGroup
    delivered: int = 0
    _counted: bool = False
    _took: anyio.Event = field(factory=anyio.Event)

    async def __call__(self, event: StreamEvent) -> None:
        """Record an event for the followers, and deliver it, now or later."""
        flight = self.flight
        flight.record(event)
        if flight.followers and not flight.buffered:
            flight.buffered = True
            self.history.drain = self._drain
            self.group.start_soon(self._deliver_all)
        if flight.buffered:
            self._commit(event)
            return
        flight.stalled = True
        await self._deliver(event)
        flight.stall(stalled=False)

    def _commit(self, event: StreamEvent) -> None:
        """Count the first content of an attempt before it is delivered: it will be, whatever becomes of the attempt."""
        if not self._counted and isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta):
            self.history.contents += 1
            self._counted = True

    async def _deliver_all(self) -> None:
        events, pacer = self.flight.events, Pacer()
        while self.delivered < len(events) or not self.flight.ended:
            if self.delivered < len(events):
                await self._deliver(events[self.delivered])
                await pacer.step()
            else:
                await self.flight.more()

    async def _drain(self) -> None:
        self.flight.stall(stalled=True)
        while self.delivered < len(self.flight.events):
            self._took = anyio.Event()
            await self._took.wait()
        self._counted = False
        self.flight.stall(stalled=False)

    async def _deliver(self, event: StreamEvent) -> None:
        try:
            await self.sink(event)
        except Exception:
            self.flight.consumer_failed = True
            raise
        self.delivered += 1
        self._took.set()


# The followers.


async def _follow(flight: Flight, call: Call) -> Answer | Retry:
    """Follow a flight to its end, or until its leader's consumer has held it up for too long."""
    flight.latest = max(flight.latest, call.deadline)
    flight.followers += 1
    try:
        delivered, stays = await _follow_events(flight, call)
    finally:
        flight.followers -= 1
    if not stays:
        return Retry.INSTEAD
    await _deliver(flight, call, delivered)
    result = flight.result
    if result is None or concerns_only_its_leader(flight, call):
        return Retry.ALONE if flight.defect else Retry.AGAIN
    return result.map(lambda response: evolve(response, cost=Cost.ZERO, attempts=()))


async def _follow_events(flight: Flight, call: Call) -> tuple[int, bool]:
    """Deliver the events until the end; return how many, and whether the leader's consumer was quick enough."""
    delivered, patience = 0, STALLED_S
    while not flight.ended:
        delivered = await _deliver(flight, call, delivered)
        if not flight.stalled:
            await flight.news(call)
            continue
        since = anyio.current_time()
        with anyio.move_on_after(patience) as scope:
            await flight.news(call)
        if scope.cancelled_caught:
            return delivered, False
        patience -= anyio.current_time() - since
    return delivered, True


async def _deliver(flight: Flight, call: Call, delivered: int) -> int:
    pacer = Pacer()
    while call.sink is not None and delivered < len(flight.events):
        await call.sink(flight.events[delivered])
        delivered += 1
        await pacer.step()
    return delivered


def opening_once(sink: Sink, history: CallHistory) -> Sink:
    """Return a sink of a consumer that may see several flights: one start, then restarts, none of them twice."""
    opened: str | None = None
    has_content = bool(history.contents)

    async def deliver(event: StreamEvent) -> None:
        nonlocal opened, has_content
        if isinstance(event, Started | Restarted):
            if opened == event.model and not has_content:
                return
            begun = opened is not None or has_content
            opened = event.model
            event = Restarted(event.model) if begun else Started(event.model)
        else:
            has_content = True
        await sink(event)

    return deliver


@final
@unique
class Retry(Enum):
    """The next step of a follower without an answer: follow again, take the leader's place, or ask alone."""

    AGAIN = "again"
    INSTEAD = "instead"
    ALONE = "alone"


Flights: TypeAlias = "dict[Hashable, Flight]"
"""The flights of an event loop, by the services they use and the key of the question."""


@final
@define(eq=False, repr=False)
class Flight:
    """A shared call: its events so far, and how it ended.

    A flight that ``ended`` without a ``result`` ended for a reason of its leader alone, or by a ``defect``. ``stalled``
    is true while the model waits for the leader's consumer, and ``buffered`` once it no longer does. ``deadline`` is
    the leader's, ``latest`` the latest of the followers.
    """

    flights: Flights
    key: Hashable
    deadline: float = math.inf
    events: list[StreamEvent] = field(factory=list[StreamEvent])
    followers: int = 0
    ended: bool = False
    defect: bool = False
    consumer_failed: bool = False
    stalled: bool = False
    buffered: bool = False
    latest: float = -math.inf
    result: Answer | None = None
    _news: anyio.Event | None = None
    _landed: anyio.Event | None = None

    def open(self) -> None:
        """Accept followers."""
        self.flights[self.key] = self

    def close(self) -> None:
        """Accept no more followers."""
        if self.flights.get(self.key) is self:
            del self.flights[self.key]

    def record(self, event: StreamEvent) -> None:
        """Record an event and wake those that wait for it."""
        self.events.append(event)
        self.wake()

    def land(self) -> None:
        """End the flight and wake all that wait."""
        self.close()
        self.ended = True
        self.wake()
        if self._landed is not None:
            self._landed.set()

    def stall(self, *, stalled: bool) -> None:
        """Begin or end a wait for the leader's consumer, and wake all that wait."""
        self.stalled = stalled
        self.wake()
        if self._landed is not None:
            self._landed.set()
            self._landed = None

    def wake(self) -> None:
        """Wake those that wait for more."""
        if self._news is not None:
            self._news.set()
            self._news = None

    async def news(self, call: Call) -> None:
        """Wait for the next event, the end, or a stall; a follower without a consumer needs no buffered events."""
        await (self.landed() if call.sink is None and self.buffered else self.more())

    async def more(self) -> None:
        """Wait for the next event or the end."""
        if self.ended:
            return
        if self._news is None:
            self._news = anyio.Event()
        await self._news.wait()

    async def landed(self) -> None:
        """Wait for the end."""
        if self.ended:
            return
        if self._landed is None:
            self._landed = anyio.Event()
        await self._landed.wait()


_FLIGHTS: Final[RunVar[Flights]] = RunVar("llm_effects_flights")


def flights_here() -> Flights:
    """Return the flights of this event loop, by the services they use and the key of the question."""
    try:
        return _FLIGHTS.get()
    except LookupError:
        flights: Flights = {}
        _FLIGHTS.set(flights)
        return flights


def concerns_only_its_leader(flight: Flight, call: Call) -> bool:
    """Return whether the flight's error does not concern this follower, which then asks again."""
    if flight.result is None or isinstance(flight.result, Success):
        return False
    error = flight.result.failure()
    committed = bool(flight.events) and not call.history.contents and call.request.recovery is Recovery.FAIL
    return committed or _is_the_leaders(error) or _had_less_time(error, flight, call)


def _is_the_leaders(error: LLMError) -> bool:
    if isinstance(error, RequestFailed):
        return any(map(_is_the_leaders, error.errors))
    return isinstance(error, BudgetExceeded) or (isinstance(error, RequestTimeout) and error.phase in {"total", "sink"})


def _had_less_time(error: LLMError, flight: Flight, call: Call) -> bool:
    """Return whether the leader gave up on a pause that this follower has the time for."""
    if error.retry_after is None:
        return False
    until = anyio.current_time() + error.retry_after
    return flight.deadline < until < call.deadline
