"""Coalescing (single flight): identical questions under way at once share one call.

The first caller leads, the others follow its flight. A follower receives every event from the start and has its own
deadline. What concerns only the leader (its cancellation, deadline, budget or consumer) is not shared: the followers
ask again, led by the one with the most time left. A finished flight is not remembered; later callers hit the cache.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from enum import Enum, unique
from typing import Final, final

import anyio
from anyio.lowlevel import RunVar, checkpoint
from attrs import define, evolve, field
from returns.pipeline import is_successful
from returns.result import Success

from llm_effects.effects.call import Call, Sink
from llm_effects.effects.effect import Answer, Generate, layer, run
from llm_effects.effects.env import LLMEnv
from llm_effects.policies.cache import cache_key, is_cached
from llm_effects.providers.draft import events_of
from llm_effects.values.errors import BudgetExceeded, LLMError, RequestFailed, RequestTimeout
from llm_effects.values.events import Restarted, Started, StreamEvent, TextDelta
from llm_effects.values.requests import Recovery
from llm_effects.values.responses import Cost, LLMResponse

BUFFERED: Final = 10_000
"""Events of a flight that are kept for followers; a follower further behind waits for the end."""

STALLED_S: Final = 1.0
"""How long the leader's consumer may hold up its followers with one event, in seconds."""


@layer
async def with_coalescing(next: Generate, call: Call, env: LLMEnv) -> Answer:
    """Share one call among identical questions under way; never where the cache is off or bypassed."""
    request = call.request
    if not is_cached(request, env.config):
        return await run(next(call), env)
    question = cache_key(request, env.config)
    return await _share(next, call, env, (id(env.clients), id(env.cache), question, request.cache, request.recovery))


async def _share(next: Generate, call: Call, env: LLMEnv, key: Hashable) -> Answer:
    flights = flights_here()
    while True:
        flight = flights.get(key)
        if flight is None:
            return await _lead(next, call, env, flights, key)
        result = await _follow(flight, call)
        if not isinstance(result, Retry):
            return result
        if result is Retry.ALONE:
            return await run(next(call), env)
        if result is Retry.INSTEAD and flights.get(key) is flight:
            del flights[key]
        if call.deadline < flight.latest:
            await checkpoint()  # a follower with more time leads


async def _lead(next: Generate, call: Call, env: LLMEnv, flights: dict[Hashable, Flight], key: Hashable) -> Answer:
    flight = flights[key] = Flight(deadline=call.deadline)
    recorded = call if call.sink is None else evolve(call, sink=_recording(call.sink, flight))
    try:
        flight.result = await run(next(recorded), env)
    except Exception:
        flight.defect = not flight.stalled  # a defect below would hit every follower, one after the other
        raise
    else:
        return flight.result
    finally:
        if flights.get(key) is flight:
            del flights[key]
        flight.land()


def _recording(sink: Sink, flight: Flight) -> Sink:
    async def deliver(event: StreamEvent) -> None:
        flight.record(event)
        flight.stalled = True
        await sink(event)
        flight.stalled = False

    return deliver


async def _follow(flight: Flight, call: Call) -> Answer | Retry:
    """Follow a flight to its end, or until its leader's consumer stalls it."""
    flight.latest = max(flight.latest, call.deadline)
    delivered = 0
    while not flight.ended:
        delivered = await _deliver(flight, call, delivered)
        seen = flight.recorded
        with anyio.move_on_after(STALLED_S) as scope:
            await (flight.more() if call.sink is not None and flight.opens else flight.landed())
        if scope.cancelled_caught and flight.stalled and seen == flight.recorded:
            return Retry.INSTEAD
    delivered = await _deliver(flight, call, delivered)
    result = flight.result
    if result is None or concerns_only_its_leader(flight, call):
        return Retry.ALONE if flight.defect else Retry.AGAIN
    if not is_successful(result):
        return result
    await _deliver_rest(result.unwrap(), call, delivered)
    return Success(evolve(result.unwrap(), cost=Cost.ZERO, attempts=()))


async def _deliver(flight: Flight, call: Call, delivered: int) -> int:
    while call.sink is not None and flight.opens and delivered < len(flight.events):
        await call.sink(fitting(flight.events[delivered], call))
        delivered += 1
    return delivered


async def _deliver_rest(response: LLMResponse, call: Call, delivered: int) -> None:
    """Deliver what the flight did not record: everything if its leader had no sink, or the end of a long answer."""
    if call.sink is None:
        return
    known = call.history.partial
    if delivered == 0 or (not known and response.content) or not response.content.startswith(known):
        for event in (fitting(Started(response.model), call), *events_of(response)):
            await call.sink(event)
    elif rest := response.content.removeprefix(known):
        await call.sink(TextDelta(rest))


def fitting(event: StreamEvent, call: Call) -> StreamEvent:
    """Return an opening event that fits this consumer: a restart if it has content, else a start."""
    if isinstance(event, Started | Restarted):
        return Restarted(event.model) if call.history.contents else Started(event.model)
    return event


@final
@unique
class Retry(Enum):
    """The next step of a follower without an answer: follow again, take the leader's place, or ask alone."""

    AGAIN = "again"
    INSTEAD = "instead"
    ALONE = "alone"


@final
@define(eq=False)
class Flight:
    """A shared call: its events so far, and how it ended.

    ``events`` are the first ``BUFFERED`` of the ``recorded`` ones. A flight that ``ended`` without a ``result`` ended
    for a reason of its leader alone, or by a ``defect``. ``stalled`` is true while the leader's consumer handles an
    event. ``deadline`` is the leader's, ``latest`` the latest of the followers.
    """

    deadline: float = math.inf
    events: list[StreamEvent] = field(factory=list[StreamEvent])
    recorded: int = 0
    ended: bool = False
    defect: bool = False
    stalled: bool = False
    latest: float = -math.inf
    result: Answer | None = None
    _news: anyio.Event | None = None
    _landed: anyio.Event | None = None

    @property
    def opens(self) -> bool:
        """Whether its events start at the beginning, rather than continue what only the leader's consumer has."""
        return not self.events or isinstance(self.events[0], Started | Restarted)

    def record(self, event: StreamEvent) -> None:
        """Record an event and wake the followers that wait for it."""
        self.recorded += 1
        if len(self.events) < BUFFERED:
            self.events.append(event)
        if self._news is not None:
            self._news.set()
            self._news = None

    def land(self) -> None:
        """End the flight and wake all followers."""
        self.ended = True
        for event in (self._news, self._landed):
            if event is not None:
                event.set()

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


_FLIGHTS: Final[RunVar[dict[Hashable, Flight]]] = RunVar("llm_effects_flights")


def flights_here() -> dict[Hashable, Flight]:
    """Return the flights of this event loop, by the services they use and the key of the question."""
    try:
        return _FLIGHTS.get()
    except LookupError:
        flights: dict[Hashable, Flight] = {}
        _FLIGHTS.set(flights)
        return flights


def concerns_only_its_leader(flight: Flight, call: Call) -> bool:
    """Return whether the flight's error does not concern this follower, which then asks again."""
    if flight.result is None or is_successful(flight.result):
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
