"""Identical questions under way share one call: the first leads, the others follow what it is told.

A follower gets every event from the start and has its own deadline. What befalls only the leader (its cancellation,
its deadline, its budget, its consumer) is not shared: the followers ask again, and one of them leads. Nothing is
remembered past the flight.
"""

from collections.abc import Hashable
from typing import Final, final

import anyio
from anyio.lowlevel import RunVar
from attrs import define, evolve, field
from returns.pipeline import is_successful
from returns.result import Result, Success

from llm_effects.caching import cache_key
from llm_effects.calls import Call, Sink
from llm_effects.effects import Effect, Generate, effect, settle
from llm_effects.env import LLMEnv
from llm_effects.errors import BudgetExceeded, LLMError, RequestTimeout
from llm_effects.events import Restarted, Started, StreamEvent, TextDelta
from llm_effects.providers.drafts import events_of
from llm_effects.requests import CachePolicy
from llm_effects.responses import Cost, LLMResponse

_Answer = Result[LLMResponse, LLMError]

BUFFERED: Final = 10_000
"""Events of a flight that are kept for its followers; who is further behind waits for the end."""


@final
@define(eq=False)
class Flight:
    """A call under way: what its model has told so far, and its end.

    One that has ``ended`` without a ``result`` ended in what concerns only its leader.
    """

    events: list[StreamEvent] = field(factory=list[StreamEvent])
    ended: bool = False
    result: _Answer | None = None
    news: anyio.Event | None = None

    def tell(self) -> None:
        """Wake the followers, if there are any."""
        if self.news is not None:
            self.news.set()
            self.news = None

    async def more(self) -> None:
        """Wait for more to be told."""
        if self.news is None:
            self.news = anyio.Event()
        await self.news.wait()


_FLIGHTS: Final[RunVar[dict[Hashable, Flight]]] = RunVar("llm_effects_flights")
"""Those of this event loop, by the clients that they are for and the key of the question."""


def coalesced(inner: Generate) -> Generate:
    """Let identical questions that are under way at once share one call; never where the cache is off or bypassed."""

    def share(call: Call) -> Effect[LLMResponse]:
        async def run(env: LLMEnv) -> _Answer:
            if not env.config.cache.enabled or call.request.cache is CachePolicy.BYPASS:
                return await settle(inner(call), env)
            request, question = call.request, cache_key(call.request, env.config)
            key = (id(env.clients), question, request.cache, request.recovery, request.allow)
            return await _shared(inner, evolve(call, key=question), env, key)

        return effect(run)

    return share


async def _shared(inner: Generate, call: Call, env: LLMEnv, key: Hashable) -> _Answer:
    flights = _flights()
    while True:
        flight = flights.get(key)
        if flight is None:
            return await _lead(inner, call, env, flights, key)
        result = await _follow(flight, call)
        if result is not None:
            return result
        # Its consumer may have some content already: whoever answers now tells it to begin again.
        call = evolve(call, before=call.trail.contents)


def _flights() -> dict[Hashable, Flight]:
    try:
        return _FLIGHTS.get()
    except LookupError:
        flights: dict[Hashable, Flight] = {}
        _FLIGHTS.set(flights)
        return flights


async def _lead(inner: Generate, call: Call, env: LLMEnv, flights: dict[Hashable, Flight], key: Hashable) -> _Answer:
    flight = flights[key] = Flight()
    told = call if call.sink is None else evolve(call, sink=_recording(call.sink, flight))
    try:
        result = await settle(inner(told), env)
        flight.result = result if is_successful(result) or not _only_its_own(result.failure()) else None
        return result
    finally:
        del flights[key]
        flight.ended = True
        flight.tell()


def _recording(sink: Sink, flight: Flight) -> Sink:
    async def deliver(event: StreamEvent) -> None:
        if len(flight.events) < BUFFERED:
            flight.events.append(event)
        flight.tell()
        await sink(event)

    return deliver


def _only_its_own(error: LLMError) -> bool:
    return isinstance(error, BudgetExceeded) or (isinstance(error, RequestTimeout) and error.phase in {"total", "sink"})


async def _follow(flight: Flight, call: Call) -> _Answer | None:
    """Follow a flight to its end; ``None`` if it ended in what concerns only its leader."""
    told = 0
    while call.sink is not None and (told < len(flight.events) or not flight.ended):
        for event in flight.events[told:]:
            await call.sink(event)
            told += 1
        if told == len(flight.events) and not flight.ended:
            await flight.more()
    while not flight.ended:
        await flight.more()
    if flight.result is None or not is_successful(flight.result):
        return flight.result
    response = flight.result.unwrap()
    await _tell_rest(response, call, told)
    return Success(evolve(response, cost=Cost.ZERO, attempts=()))


async def _tell_rest(response: LLMResponse, call: Call, told: int) -> None:
    """Tell what the flight kept no events of: all, where its leader had no consumer, or the end of a very long one."""
    if call.sink is None:
        return
    if told == 0:
        await call.sink(Restarted(response.model) if call.trail.contents else Started(response.model))
        for event in events_of(response):
            await call.sink(event)
    elif told >= BUFFERED and (rest := response.content.removeprefix(call.trail.partial)):
        await call.sink(TextDelta(rest))
