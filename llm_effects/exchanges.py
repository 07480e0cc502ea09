"""One exchange with a model: a request out, an answer in, whole or event by event."""

from collections.abc import Awaitable, Iterable
from typing import Final, TypeAlias, final

import anyio
from attrs import define, evolve
from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.calls import Call, Sink
from llm_effects.engines import Engine
from llm_effects.errors import ContentRefused, LLMError
from llm_effects.events import Restarted, Started, StreamEvent
from llm_effects.providers.base import Provider, ServerEvent
from llm_effects.providers.drafts import Draft, events_of, interrupted
from llm_effects.providers.error_bodies import request_id
from llm_effects.providers.registry import provider_of
from llm_effects.providers.targets import Target
from llm_effects.providers.thinking import rest_of
from llm_effects.responses import LLMResponse
from llm_effects.sse import EventParser
from llm_effects.timers import Timers
from llm_effects.transports import Streamed, Timeouts, Transport, TransportFault
from llm_effects.wire import WireRequest, WireResponse

Answer: TypeAlias = Result[LLMResponse, LLMError]

DRAINING_S: Final = 0.25
"""How long to read on after the answer's end, in seconds, so that the connection can be used again."""

_STREAM_STARTS: Final = (b"data:", b"event:", b":")
"""How an event stream begins, which is neither JSON nor HTML."""


@final
@define
class Reception:
    """An answer being taken in: events into the draft, and what they tell on to the sink."""

    call: Call
    target: Target
    provider: Provider
    draft: Draft
    timers: Timers
    opened: bool = False

    @classmethod
    def of(cls, call: Call, target: Target, *, streamed: bool) -> "Reception":
        """Begin to listen; the clocks start when the call has left the queue."""
        timers = Timers(target.config, call.queueing, streamed)
        return cls(call, target, provider_of(target, call.request), Draft(target=target), timers)

    async def take(self, events: Iterable[ServerEvent]) -> LLMError | None:
        """Take events in and tell what they bring; gives the error that ends the answer, if there is one."""
        told: list[StreamEvent] = []
        broken: LLMError | None = None
        for event in events:
            decoded = self.provider.decode_event(self.draft, event)
            if not is_successful(decoded):
                broken = decoded.failure()
                break
            told.extend(decoded.unwrap())
        if told:
            await self.tell(told)
        return broken

    async def tell(self, events: Iterable[StreamEvent]) -> None:
        """Give content to the consumer, while the model's clocks stand still."""
        self.timers.consumer()
        if self.call.sink is not None:
            await self._deliver(events, self.call.sink)
        self.timers.model()

    async def _deliver(self, events: Iterable[StreamEvent], sink: Sink) -> None:
        opening = None if self.opened else opening_of(self.call)
        self.opened = True
        if opening is not None:
            await sink(opening)
        for event in events:
            await sink(event)

    async def finish(self, wire: WireRequest) -> Answer:
        """Tell what was held back and read the whole answer, with what had to be dropped from the request."""
        rest = rest_of(self.draft)
        if rest:
            await self.tell(rest)
        return self.provider.finish(self.draft).map(lambda answer: warned(answer, wire))

    def named(self, error: LLMError) -> LLMError:
        """The error that broke the answer off, with the model and what it had told until then."""
        return interrupted(self.draft, _signed(self.target, error))


def opening_of(call: Call) -> StreamEvent | None:
    """What comes before the first content: a start, a restart after another model's content, or nothing."""
    if call.continues:
        return None
    return Restarted(call.model) if call.trail.contents else Started(call.model)


def warned(answer: LLMResponse, wire: WireRequest) -> LLMResponse:
    """Say in the answer what had to be dropped from the request."""
    return evolve(answer, warnings=wire.warnings + answer.warnings) if wire.warnings else answer


async def ask_server(transport: Transport, target: Target, call: Call) -> Answer:
    """Send a call to a server: read its answer whole, or event by event where there is a sink."""
    reception = Reception.of(call, target, streamed=call.sink is not None)
    encoded = reception.provider.encode(target, call.request, call.sink is not None)
    if not is_successful(encoded):
        return Failure(encoded.failure())
    exchange = _whole if call.sink is None else _streamed
    return await _timed(reception, exchange(transport, reception, encoded.unwrap()), encoded.unwrap())


async def _timed(reception: Reception, exchange: Awaitable[Answer], wire: WireRequest) -> Answer:
    with reception.timers.scope:
        return await exchange
    overdue = reception.timers.overdue()
    if overdue.phase != "sink" and reception.draft.finish_reason is not None:
        return await reception.finish(wire)  # all was said; only the connection was not closed
    return Failure(reception.named(overdue))


async def _whole(transport: Transport, reception: Reception, wire: WireRequest) -> Answer:
    target = reception.target
    try:
        response = await transport.exchange(wire, _limits(target), reception.timers.start)
    except TransportFault as fault:
        return Failure(_signed(target, fault.error))
    return _read(reception, response).map(lambda answer: warned(answer, wire))


def _limits(target: Target) -> Timeouts:
    """Silences are timed by the timers, which know content from pings; the transport need only be no stricter."""
    return Timeouts(connect_s=target.config.connect_ms / 1000, read_s=target.config.timeout_ms / 1000)


def _signed(target: Target, error: LLMError) -> LLMError:
    return evolve(error, model=target.name, provider=target.preset.name)


def _read(reception: Reception, response: WireResponse) -> Answer:
    if 200 <= response.status < 300:
        return reception.provider.decode(reception.target, response)
    return Failure(reception.provider.classify(reception.target, response))


async def _streamed(transport: Transport, reception: Reception, wire: WireRequest) -> Answer:
    try:
        async with transport.stream(wire, _limits(reception.target), reception.timers.start) as answer:
            return await _received(reception, answer, wire)
    except TransportFault as fault:
        return await _cut(reception, fault.error, wire)


async def _received(reception: Reception, answer: Streamed, wire: WireRequest) -> Answer:
    reception.draft.request_id = request_id(answer.headers)
    kind = answer.headers.get("content-type", "")
    if not 200 <= answer.status < 300 or "json" in kind or "html" in kind:
        return await _unstreamed(reception, answer, wire)
    broken = await _events(reception, answer)
    if broken is not None:
        return await _cut(reception, broken, wire)
    return await reception.finish(wire)


async def _unstreamed(reception: Reception, answer: Streamed, wire: WireRequest) -> Answer:
    """An error, or a server that answers whole though it was asked for a stream."""
    body = await answer.read()
    if 200 <= answer.status < 300 and body.lstrip().startswith(_STREAM_STARTS):
        return await _misnamed(reception, body, wire)
    whole = WireResponse(status=answer.status, headers=answer.headers, body=body, received=answer.received)
    read = _read(reception, whole)
    if is_successful(read):
        await reception.tell(events_of(read.unwrap()))
    return read.map(lambda told: warned(told, wire))


async def _misnamed(reception: Reception, body: bytes, wire: WireRequest) -> Answer:
    """A stream that is called JSON or HTML, as some servers in between do."""
    parser = EventParser()
    broken = await reception.take([*parser.feed(body), *parser.finish()]) or parser.fault
    return await reception.finish(wire) if broken is None else await _cut(reception, broken, wire)


async def _events(reception: Reception, answer: Streamed) -> LLMError | None:
    """Take the stream in to its end; gives what broke it off, if anything did."""
    parser = EventParser()
    async for chunk in answer.chunks():
        broken = await reception.take(parser.feed(chunk)) or parser.fault
        if broken is not None:
            return broken
        if reception.draft.done:
            await _drain(answer)
            return None
    return await reception.take(parser.finish()) or parser.fault


async def _drain(answer: Streamed) -> None:
    """Read on for a moment after the end, so that the connection can be used again."""
    with anyio.move_on_after(DRAINING_S):
        await answer.read()


async def _cut(reception: Reception, error: LLMError, wire: WireRequest) -> Answer:
    """A break after the protocol's own end took nothing away."""
    if reception.draft.finish_reason is not None and not isinstance(error, ContentRefused):
        return await reception.finish(wire)
    return Failure(reception.named(error))


async def ask_engine(engine: Engine, target: Target, call: Call) -> Answer:
    """Run a call in this process, token by token."""
    reception = Reception.of(call, target, streamed=True)
    encoded = reception.provider.encode(target, call.request, True)
    if not is_successful(encoded):
        return Failure(encoded.failure())
    return await _timed(reception, _run(engine, reception, encoded.unwrap()), encoded.unwrap())


async def _run(engine: Engine, reception: Reception, wire: WireRequest) -> Answer:
    async def deliver(chunk: str) -> LLMError | None:
        return await reception.take((ServerEvent("message", chunk),))

    ran = await engine.run(wire.body, deliver, reception.timers.start)
    if not is_successful(ran):
        return Failure(interrupted(reception.draft, ran.failure()))
    return await reception.finish(wire)
