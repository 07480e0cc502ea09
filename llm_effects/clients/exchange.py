"""One exchange with a model: a request out, an answer in, whole or event by event."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from typing import Final, TypeAlias, TypeVar, final

import anyio
from anyio.lowlevel import current_token
from attrs import define, evolve, field
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.clients.local_engine import Engine
from llm_effects.clients.transport.faults import TransportFault
from llm_effects.clients.transport.transport import StreamedResponse, Transport
from llm_effects.config.models import ModelConfig
from llm_effects.effects.call import AttemptRecord, Call, Sink
from llm_effects.providers.base import Provider
from llm_effects.providers.draft import Draft, events_of, flush_held, interrupted
from llm_effects.providers.error_mapping import classify_error_object, request_id
from llm_effects.providers.openai_embeddings import decode, encode, read
from llm_effects.providers.rate_limits import rate_limits
from llm_effects.providers.registry import provider_of
from llm_effects.providers.sse import EventParser, ServerEvent
from llm_effects.providers.target import Target
from llm_effects.providers.wire import Timeouts, WireRequest, WireResponse
from llm_effects.values.errors import ConfigurationError, ContentRefused, LLMError, RequestTimeout, TimeoutPhase
from llm_effects.values.events import Restarted, Started, StreamEvent
from llm_effects.values.json import dump, parse, record
from llm_effects.values.responses import LLMResponse, Vectors

# The clocks of one attempt: until its first content, between contents, and for all of it.
#
# Only waiting for the model counts: while the call stands in a queue, and while the consumer has an event, the clocks
# stand still. Pings and other events without content do not set them back.
#
# One cancel scope stands around the whole attempt. Setting its deadline costs more than reading an event does, so it is
# set a little late and then left alone for a while: a clock strikes at its time or up to a tenth later.


LATE: Final = 0.1
"""How late a clock may strike, as a share of its time."""


def loop_clock() -> Callable[[], float]:
    """Give the clock behind ``anyio.current_time()``, where it can be had without asking for the backend each time."""
    loop = current_token().native_token
    return loop.time if isinstance(loop, asyncio.AbstractEventLoop) else anyio.current_time


def spare(deadline: float) -> float:
    """How long (seconds) an answer that is all there may wait for what comes after it: half of the time left.

    A call must not run out over a server that keeps its connection open after the last word.
    """
    return (deadline - anyio.current_time()) / 2


@final
@define
class Timers:
    """Who is waited for (``phase``) and until when; ``scope`` ends the wait. No clock runs before ``start``.

    An answer that comes whole (not ``streamed``) has only the time of the attempt.
    """

    config: ModelConfig
    record: AttemptRecord = field(factory=AttemptRecord)
    streamed: bool = True
    phase: TimeoutPhase = "queue"
    attempt_by: float = math.inf
    scope: anyio.CancelScope = field(factory=anyio.CancelScope)
    _clock: Callable[[], float] = field(factory=loop_clock)
    _left_at: float = 0.0

    def __attrs_post_init__(self) -> None:
        self.record.queued_since = self._clock()

    def start(self) -> None:
        """Start all clocks: from now on the model has the call."""
        now = self._clock()
        self.record.queued_s, self.record.queued_since = now - self._queued_at(now), None
        self.attempt_by = now + self.config.timeout_ms / 1000
        self.phase = "first_content" if self.streamed else "attempt"
        first = now + self.config.first_content_ms / 1000 if self.streamed else math.inf
        self.scope.deadline = min(first, self.attempt_by)

    def _queued_at(self, now: float) -> float:
        return now if self.record.queued_since is None else self.record.queued_since

    def consumer(self) -> None:
        """The consumer has content now: the clocks stand still, and only its own limit holds."""
        now, limit = self._clock(), self.config.sink_ms / 1000
        if self.phase != "sink":
            self.phase, self._left_at = "sink", now
        self._strike(now + limit, limit * LATE)

    def model(self) -> None:
        """The consumer is done: wait for the model's next content."""
        now = self._clock()
        self.phase = "between_content"
        self.attempt_by += now - self._left_at
        limit, attempt = self.config.between_content_ms / 1000, self.config.timeout_ms / 1000
        if now + limit <= self.attempt_by:
            self._strike(now + limit, limit * LATE)
        else:
            self._strike(self.attempt_by, min(limit, attempt) * LATE)

    def _strike(self, due: float, late: float) -> None:
        if not due <= self.scope.deadline <= due + late:
            self.scope.deadline = due + late

    def overdue(self) -> RequestTimeout:
        """Say whose time was up."""
        if self.phase != "sink" and self._clock() >= self.attempt_by:
            return RequestTimeout(timeout_ms=self.config.timeout_ms, phase="attempt")
        limits = {
            "sink": self.config.sink_ms,
            "first_content": self.config.first_content_ms,
            "between_content": self.config.between_content_ms,
        }
        return RequestTimeout(timeout_ms=limits.get(self.phase, self.config.timeout_ms), phase=self.phase)


Answer: TypeAlias = Result[LLMResponse, LLMError]

DRAINING_S: Final = 0.25
"""How long to read on after the answer's end, in seconds, so that the connection can be used again."""

_BLANK: Final = b"\xef\xbb\xbf \t\r\n"
_WHOLE: Final = (b"{", b"[", b"<")
"""How JSON and HTML begin, and no event stream does."""

_PREAMBLE: Final = 4096
"""Blank bytes that may stand before an answer, as some servers send while they work on it."""


@final
@define
class ResponseReader:
    """An answer being taken in: events into the draft, and what they tell on to the sink."""

    call: Call
    target: Target
    provider: Provider
    draft: Draft
    timers: Timers
    opened: bool = False

    @classmethod
    def of(cls, call: Call, target: Target, *, streamed: bool) -> "ResponseReader":
        """Begin to listen; the clocks start when the call has left the queue."""
        timers = Timers(target.config, call.attempt.record, streamed)
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
        if self.call.sink is not None:
            await self._deliver(events, self.call.sink)
        self.timers.model()

    async def _deliver(self, events: Iterable[StreamEvent], sink: Sink) -> None:
        opening = None if self.opened else self._open()
        for event in events if opening is None else (opening, *events):
            self.timers.consumer()
            await sink(event)

    def _open(self) -> StreamEvent | None:
        self.opened, self.call.attempt.record.content_at = True, anyio.current_time()
        return opening_of(self.call)

    def hear(self, headers: Mapping[str, str], received: datetime | None) -> None:
        """Note what the server says of its limits, for whoever keeps them."""
        self.call.attempt.record.rate_limits = rate_limits(headers, received, anyio.current_time())

    async def finish(self, wire: WireRequest) -> Answer:
        """Tell what was held back and read the whole answer, with what had to be dropped from the request."""
        rest = flush_held(self.draft)
        answer = self.provider.finish(self.draft)
        if rest or (is_successful(answer) and not self.opened):
            await self.tell(rest)
        return answer.map(lambda told: warned(told, wire))

    def named(self, error: LLMError) -> LLMError:
        """The error that broke the answer off, with the model and what it had told until then."""
        return interrupted(self.draft, signed(self.target, error))


def opening_of(call: Call) -> StreamEvent | None:
    """What comes before the first content: a start, a restart after another model's content, or nothing."""
    if call.attempt.continues:
        return None
    return Restarted(call.model) if call.history.contents else Started(call.model)


def warned(answer: LLMResponse, wire: WireRequest) -> LLMResponse:
    """Say in the answer what had to be dropped from the request."""
    return evolve(answer, warnings=wire.warnings + answer.warnings) if wire.warnings else answer


async def ask_server(transport: Transport, target: Target, call: Call) -> Answer:
    """Send a call to a server: read its answer whole, or event by event where there is a sink."""
    reception = ResponseReader.of(call, target, streamed=call.sink is not None)
    encoded = reception.provider.encode(target, call.request, call.sink is not None)
    if not is_successful(encoded):
        return Failure(encoded.failure())
    exchange = _whole if call.sink is None else _streamed
    return await _timed(reception, exchange(transport, reception, encoded.unwrap()), encoded.unwrap())


async def _timed(reception: ResponseReader, exchange: Awaitable[Answer], wire: WireRequest) -> Answer:
    with reception.timers.scope:
        return await exchange
    overdue = reception.timers.overdue()
    return Failure(reception.named(overdue)) if overdue.phase == "sink" else await _cut(reception, overdue, wire)


async def _whole(transport: Transport, reception: ResponseReader, wire: WireRequest) -> Answer:
    target = reception.target
    try:
        response = await transport.exchange(wire, timeouts_of(target), reception.timers.start)
    except TransportFault as fault:
        return Failure(signed(target, fault.error))
    reception.hear(response.headers, response.received)
    return _read(reception, response).map(lambda answer: warned(answer, wire))


def timeouts_of(target: Target) -> Timeouts:
    """Silences are timed by the timers, which know content from pings; the transport need only be no stricter."""
    return Timeouts(connect_s=target.config.connect_ms / 1000, read_s=target.config.timeout_ms / 1000)


def signed(target: Target, error: LLMError) -> LLMError:
    """Name the model in its error."""
    return evolve(error, model=target.name, provider=target.preset.name)


def _read(reception: ResponseReader, response: WireResponse) -> Answer:
    if 200 <= response.status < 300:
        return reception.provider.decode(reception.target, response)
    return Failure(reception.provider.classify(reception.target, response))


async def _streamed(transport: Transport, reception: ResponseReader, wire: WireRequest) -> Answer:
    try:
        async with transport.stream(wire, timeouts_of(reception.target), reception.timers.start) as answer:
            return await _received(reception, answer, wire)
    except TransportFault as fault:
        return await _cut(reception, fault.error, wire)


async def _received(reception: ResponseReader, answer: StreamedResponse, wire: WireRequest) -> Answer:
    reception.draft.request_id = request_id(answer.headers)
    reception.hear(answer.headers, answer.received)
    first = await _first(answer)
    # What it is called says little: servers in between label streams as JSON and JSON as a stream.
    if not 200 <= answer.status < 300 or first.lstrip(_BLANK)[:1] in _WHOLE:
        return await _unstreamed(reception, answer, first, wire)
    broken = await _events(reception, answer, first)
    return await reception.finish(wire) if broken is None else await _cut(reception, broken, wire)


async def _first(answer: StreamedResponse) -> bytes:
    """Read up to the first byte that says something."""
    read = b""
    async for chunk in answer.chunks():
        read += chunk
        if read.lstrip(_BLANK) or len(read) > _PREAMBLE:
            break
    return read


async def _unstreamed(reception: ResponseReader, answer: StreamedResponse, first: bytes, wire: WireRequest) -> Answer:
    """An error, or a server that answers whole though it was asked for a stream."""
    body = first + await answer.read()
    whole = WireResponse(status=answer.status, headers=answer.headers, body=body, received=answer.received)
    read = _read(reception, whole)
    if is_successful(read):
        await reception.tell(events_of(read.unwrap()))
    return read.map(lambda told: warned(told, wire))


async def _events(reception: ResponseReader, answer: StreamedResponse, first: bytes) -> LLMError | None:
    """Take the stream in to its end; gives what broke it off, if anything did."""
    parser = EventParser()
    broken = await reception.take(parser.feed(first)) or parser.fault
    while broken is None and not reception.draft.done:
        chunk = await _chunk(reception, answer)
        if chunk is None:
            return await reception.take(parser.finish()) or parser.fault
        broken = await reception.take(parser.feed(chunk)) or parser.fault
    if broken is None:
        with anyio.move_on_after(min(DRAINING_S, spare(reception.call.deadline))):
            await answer.read()
    return broken


async def _chunk(reception: ResponseReader, answer: StreamedResponse) -> bytes | None:
    if reception.draft.finish_reason is None:
        return await anext(answer.chunks(), None)
    with anyio.move_on_after(spare(reception.call.deadline)):
        return await anext(answer.chunks(), None)
    return None


async def _cut(reception: ResponseReader, error: LLMError, wire: WireRequest) -> Answer:
    """A break after the protocol's own end took nothing away."""
    if reception.draft.finish_reason is not None and not isinstance(error, ContentRefused):
        ended = await reception.finish(wire)
        if is_successful(ended) or isinstance(ended.failure(), ContentRefused):
            return ended
    return Failure(reception.named(error))


async def ask_engine(engine: Engine, target: Target, call: Call) -> Answer:
    """Run a call in this process, token by token."""
    reception = ResponseReader.of(call, target, streamed=True)
    encoded = reception.provider.encode(target, call.request, True)
    if not is_successful(encoded):
        return Failure(encoded.failure())
    return await _timed(reception, _run(engine, reception, encoded.unwrap()), encoded.unwrap())


async def _run(engine: Engine, reception: ResponseReader, wire: WireRequest) -> Answer:
    async def deliver(chunk: str) -> LLMError | None:
        return await reception.take((ServerEvent("message", chunk),))

    ran = await engine.run(wire.body, deliver, reception.timers.start)
    if not is_successful(ran):
        return Failure(interrupted(reception.draft, ran.failure()))
    return await reception.finish(wire)


# One exchange with a model that embeds: texts out, vectors in, from a server or in this process.


_Embedded: TypeAlias = Result[Vectors, LLMError]
_Came = TypeVar("_Came")


async def embed_at_server(
    transport: Transport, target: Target, call: Call, texts: tuple[str, ...], dimensions: int | None
) -> _Embedded:
    """Ask a server."""
    if target.preset.wire == "anthropic":
        message = f"models.{target.name}.capabilities.embeddings: {target.preset.name} gives none; configure another"
        return Failure(ConfigurationError(model=target.name, message=message))
    timers = Timers(target.config, call.attempt.record, streamed=False)
    wire = encode(target, texts, dimensions)
    answer = await _timed_embedding(target, timers, _asked(transport, target, call, timers, wire))
    if not is_successful(answer):
        return Failure(answer.failure())
    return decode(target, answer.unwrap(), len(texts), dimensions)


async def _timed_embedding(
    target: Target, timers: Timers, exchange: Awaitable[Result[_Came, LLMError]]
) -> Result[_Came, LLMError]:
    with timers.scope:
        return await exchange
    return Failure(signed(target, timers.overdue()))


async def _asked(
    transport: Transport, target: Target, call: Call, timers: Timers, wire: WireRequest
) -> Result[WireResponse, LLMError]:
    try:
        response = await transport.exchange(wire, timeouts_of(target), timers.start)
    except TransportFault as fault:
        return Failure(signed(target, fault.error))
    call.attempt.record.rate_limits = rate_limits(response.headers, response.received, anyio.current_time())
    return Success(response)


async def embed_in_engine(
    engine: Engine, target: Target, call: Call, texts: tuple[str, ...], dimensions: int | None
) -> _Embedded:
    """Ask the model in this process; it reads a batch to its end, also where nobody waits for it any more."""
    timers = Timers(target.config, call.attempt.record, streamed=False)
    return await _timed_embedding(target, timers, _run_embedding(engine, target, timers, texts, dimensions))


async def _run_embedding(
    engine: Engine, target: Target, timers: Timers, texts: tuple[str, ...], dimensions: int | None
) -> _Embedded:
    ran = await engine.embed(dump({"input": texts}), timers.start)
    if not is_successful(ran):
        return Failure(ran.failure())
    told = parse(ran.unwrap())
    if record(told).get("error"):
        return Failure(classify_error_object(target, told))
    return read(target, told, len(texts), dimensions)
