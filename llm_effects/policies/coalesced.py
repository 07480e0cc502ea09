"""Identical questions under way share one call: the first leads, the others follow what it is told.

A follower gets every event from the start and has its own deadline. What befalls only the leader (its cancellation,
its deadline, its budget, its consumer) is not shared: the followers ask again, and the one with the most time left
leads. Nothing is remembered past the flight.
"""

from collections.abc import Hashable

import anyio
from anyio.lowlevel import checkpoint
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Success

from llm_effects.caching import cache_key, is_cached
from llm_effects.calls import Call, Sink, changed
from llm_effects.effects import Answer, Effect, Generate, effect, settle
from llm_effects.env import LLMEnv
from llm_effects.events import Started, StreamEvent, TextDelta
from llm_effects.policies.flights import HELD_S, Ask, Flight, concerns_only_its_leader, fitting, flights_here
from llm_effects.providers.drafts import events_of
from llm_effects.responses import Cost, LLMResponse


def coalesced(inner: Generate) -> Generate:
    """Let identical questions that are under way at once share one call; never where the cache is off or bypassed."""

    def share(call: Call) -> Effect[LLMResponse]:
        async def run(env: LLMEnv) -> Answer:
            if not is_cached(call.request, env.config):
                return await settle(inner(call), env)
            request, question = call.request, cache_key(call.request, env.config)
            key = (id(env.clients), id(env.cache), question, request.cache, request.recovery)
            return await _shared(inner, changed(call, key=question, keyed=request), env, key)

        return effect(run)

    return share


async def _shared(inner: Generate, call: Call, env: LLMEnv, key: Hashable) -> Answer:
    flights = flights_here()
    while True:
        flight = flights.get(key)
        if flight is None:
            return await _lead(inner, call, env, flights, key)
        result = await _follow(flight, call)
        if not isinstance(result, Ask):
            return result
        if result is Ask.ALONE:
            return await settle(inner(call), env)
        if result is Ask.INSTEAD and flights.get(key) is flight:
            del flights[key]
        # Its consumer may have some content already: whoever answers now tells it to begin again.
        call = changed(call, before=call.trail.contents)
        if call.deadline < flight.latest:
            await checkpoint()  # let one with more time lead


async def _lead(inner: Generate, call: Call, env: LLMEnv, flights: dict[Hashable, Flight], key: Hashable) -> Answer:
    flight = flights[key] = Flight(deadline=call.deadline)
    told = call if call.sink is None else changed(call, sink=_recording(call.sink, flight))
    try:
        flight.result = await settle(inner(told), env)
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


async def _follow(flight: Flight, call: Call) -> Answer | Ask:
    """Follow a flight to its end, or as long as its leader does not stand in the way."""
    flight.latest = max(flight.latest, call.deadline)
    told = 0
    while not flight.ended:
        told = await _told_so_far(flight, call, told)
        seen = flight.noted
        with anyio.move_on_after(HELD_S) as patience:
            await (flight.more() if call.sink is not None and flight.opens else flight.landed())
        if patience.cancelled_caught and flight.held and seen == flight.noted:
            return Ask.INSTEAD
    told = await _told_so_far(flight, call, told)
    result = flight.result
    if result is None or concerns_only_its_leader(flight, call):
        return Ask.ALONE if flight.defect else Ask.AGAIN
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
    known = call.trail.partial
    if told == 0 or (not known and response.content) or not response.content.startswith(known):
        for event in (fitting(Started(response.model), call), *events_of(response)):
            await call.sink(event)
    elif rest := response.content.removeprefix(known):
        await call.sink(TextDelta(rest))
