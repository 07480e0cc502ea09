"""Identical questions under way share one call: the first leads, the others follow what it is told.

A follower gets every event from the start and has its own deadline. What befalls only the leader (its cancellation,
its deadline, its budget, its consumer) is not shared: the followers ask again, and the one with the most time left
leads. Nothing is remembered past the flight.
"""

import math
from collections.abc import Hashable
from enum import Enum, unique
from typing import Final, final

import anyio
from anyio.lowlevel import RunVar, checkpoint
from attrs import define, evolve, field
from returns.pipeline import is_successful
from returns.result import Result, Success

from llm_effects.effects.call import Call, Sink, changed
from llm_effects.effects.effect import Answer, Effect, Generate, effect, run
from llm_effects.effects.env import LLMEnv
from llm_effects.policies.cache import cache_key, is_cached
from llm_effects.providers.draft import events_of
from llm_effects.values.errors import BudgetExceeded, LLMError, RequestFailed, RequestTimeout
from llm_effects.values.events import Restarted, Started, StreamEvent, TextDelta
from llm_effects.values.requests import Recovery
from llm_effects.values.responses import Cost, LLMResponse

# A flight: one call under way, followed by everybody who asks the same meanwhile.


BUFFERED: Final = 10_000
"""Events of a flight that are kept for its followers; who is further behind waits for the end."""

HELD_S: Final = 1.0
"""How long a leader's consumer may hold up the others with one event, in seconds."""


@final
@unique
class FollowOutcome(Enum):
    """What a follower does when it got no answer from its flight."""

    AGAIN = "again"
    INSTEAD = "instead"
    ALONE = "alone"


@final
@define(eq=False)
class Flight:
    """What the model has told so far, and the end.

    ``events`` are the first ``BUFFERED`` of the ``noted`` ones. One that has ``ended`` without a ``result`` ended in
    what concerns only its leader, or in a ``defect``. ``held`` says that the leader's consumer has an event;
    ``deadline`` is the leader's and ``latest`` the followers' last.
    """

    deadline: float = math.inf
    events: list[StreamEvent] = field(factory=list[StreamEvent])
    noted: int = 0
    ended: bool = False
    defect: bool = False
    held: bool = False
    latest: float = -math.inf
    result: Result[LLMResponse, LLMError] | None = None
    _news: anyio.Event | None = None
    _landed: anyio.Event | None = None

    @property
    def opens(self) -> bool:
        """Whether its events begin at the beginning, and do not go on from what only its leader's consumer has."""
        return not self.events or isinstance(self.events[0], Started | Restarted)

    def note(self, event: StreamEvent) -> None:
        """Keep an event and wake those who wait for it."""
        self.noted += 1
        if len(self.events) < BUFFERED:
            self.events.append(event)
        if self._news is not None:
            self._news.set()
            self._news = None

    def land(self) -> None:
        """Wake everybody: it is over."""
        self.ended = True
        for event in (self._news, self._landed):
            if event is not None:
                event.set()

    async def more(self) -> None:
        """Wait for the next event, or the end."""
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


_FLIGHTS: Final[RunVar[dict[Hashable, Flight]]] = RunVar("llm_effects_flights")


def flights_here() -> dict[Hashable, Flight]:
    """Give the flights of this event loop, by the services that they are for and the key of the question."""
    try:
        return _FLIGHTS.get()
    except LookupError:
        flights: dict[Hashable, Flight] = {}
        _FLIGHTS.set(flights)
        return flights


def concerns_only_its_leader(flight: Flight, call: Call) -> bool:
    """Whether the end of a flight is none of this follower's business, so that it asks again."""
    if flight.result is None or is_successful(flight.result):
        return False
    error = flight.result.failure()
    committed = bool(flight.events) and not call.history.contents and call.request.recovery is Recovery.FAIL
    return committed or _its_own(error) or _out_of_its_time(error, flight, call)


def _its_own(error: LLMError) -> bool:
    if isinstance(error, RequestFailed):
        return any(map(_its_own, error.errors))
    return isinstance(error, BudgetExceeded) or (isinstance(error, RequestTimeout) and error.phase in {"total", "sink"})


def _out_of_its_time(error: LLMError, flight: Flight, call: Call) -> bool:
    """Whether the leader gave up because a pause would have passed its deadline, and this one has the time."""
    if error.retry_after is None:
        return False
    until = anyio.current_time() + error.retry_after
    return flight.deadline < until < call.deadline


def fitting(event: StreamEvent, call: Call) -> StreamEvent:
    """What opens an answer, for this consumer: a restart if it has content, else a start."""
    if isinstance(event, Started | Restarted):
        return Restarted(event.model) if call.history.contents else Started(event.model)
    return event


def with_coalescing(inner: Generate) -> Generate:
    """Let identical questions that are under way at once share one call; never where the cache is off or bypassed."""

    def share(call: Call) -> Effect[LLMResponse]:
        async def perform(env: LLMEnv) -> Answer:
            if not is_cached(call.request, env.config):
                return await run(inner(call), env)
            request, question = call.request, cache_key(call.request, env.config)
            key = (id(env.clients), id(env.cache), question, request.cache, request.recovery)
            return await _shared(inner, changed(call, key=question, keyed=request), env, key)

        return effect(perform)

    return share


async def _shared(inner: Generate, call: Call, env: LLMEnv, key: Hashable) -> Answer:
    flights = flights_here()
    while True:
        flight = flights.get(key)
        if flight is None:
            return await _lead(inner, call, env, flights, key)
        result = await _follow(flight, call)
        if not isinstance(result, FollowOutcome):
            return result
        if result is FollowOutcome.ALONE:
            return await run(inner(call), env)
        if result is FollowOutcome.INSTEAD and flights.get(key) is flight:
            del flights[key]
        # Its consumer may have some content already: whoever answers now tells it to begin again.
        call = changed(call, before=call.history.contents)
        if call.deadline < flight.latest:
            await checkpoint()  # let one with more time lead


async def _lead(inner: Generate, call: Call, env: LLMEnv, flights: dict[Hashable, Flight], key: Hashable) -> Answer:
    flight = flights[key] = Flight(deadline=call.deadline)
    told = call if call.sink is None else changed(call, sink=_recording(call.sink, flight))
    try:
        flight.result = await run(inner(told), env)
    except Exception:
        flight.defect = not flight.held  # a defect beneath would befall everybody, and not one after the other
        raise
    else:
        return flight.result
    finally:
        if flights.get(key) is flight:
            del flights[key]
        flight.land()


def _recording(sink: Sink, flight: Flight) -> Sink:
    async def deliver(event: StreamEvent) -> None:
        flight.note(event)
        flight.held = True
        await sink(event)
        flight.held = False

    return deliver


async def _follow(flight: Flight, call: Call) -> Answer | FollowOutcome:
    """Follow a flight to its end, or as long as its leader does not stand in the way."""
    flight.latest = max(flight.latest, call.deadline)
    told = 0
    while not flight.ended:
        told = await _told_so_far(flight, call, told)
        seen = flight.noted
        with anyio.move_on_after(HELD_S) as patience:
            await (flight.more() if call.sink is not None and flight.opens else flight.landed())
        if patience.cancelled_caught and flight.held and seen == flight.noted:
            return FollowOutcome.INSTEAD
    told = await _told_so_far(flight, call, told)
    result = flight.result
    if result is None or concerns_only_its_leader(flight, call):
        return FollowOutcome.ALONE if flight.defect else FollowOutcome.AGAIN
    if not is_successful(result):
        return result
    await _tell_rest(result.unwrap(), call, told)
    return Success(evolve(result.unwrap(), cost=Cost.ZERO, attempts=()))


async def _told_so_far(flight: Flight, call: Call, told: int) -> int:
    while call.sink is not None and flight.opens and told < len(flight.events):
        await call.sink(fitting(flight.events[told], call))
        told += 1
    return told


async def _tell_rest(response: LLMResponse, call: Call, told: int) -> None:
    """Tell what the flight kept no events of: all, where its leader had no consumer, or the end of a very long one."""
    if call.sink is None:
        return
    known = call.history.partial
    if told == 0 or (not known and response.content) or not response.content.startswith(known):
        for event in (fitting(Started(response.model), call), *events_of(response)):
            await call.sink(event)
    elif rest := response.content.removeprefix(known):
        await call.sink(TextDelta(rest))
