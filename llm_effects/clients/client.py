"""The live clients: one exchange with a configured model, over HTTP or in this process."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar, final

import anyio
from anyio.lowlevel import checkpoint
from attrs import define, evolve, field
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.clients.transport.connections import TransportFault
from llm_effects.clients.transport.transport import StreamedResponse, Transport
from llm_effects.config import LLMConfig
from llm_effects.config.models import ModelConfig
from llm_effects.effects.call import Call, Timers, opening_of
from llm_effects.effects.effect import Answer
from llm_effects.effects.env import Now, wall_clock
from llm_effects.effects.tasks import Delivery, Pacer, in_steps
from llm_effects.providers.base import Provider
from llm_effects.providers.draft import (
    NO_EVENTS,
    Draft,
    events_of,
    excess_of,
    flush_held,
    has_substance,
    interrupted,
    malformed,
)
from llm_effects.providers.error_mapping import classify_error_object
from llm_effects.providers.registry import provider_of, ready_targets, target_of
from llm_effects.providers.response_headers import rate_limits, request_id
from llm_effects.providers.sse import EventParser, ServerEvent
from llm_effects.providers.target import Target
from llm_effects.providers.wire import Timeouts, WireRequest, WireResponse
from llm_effects.values import caps
from llm_effects.values.errors import (
    ConfigurationError,
    ContentRefused,
    LLMError,
    RequestTimeout,
    describe,
)
from llm_effects.values.events import StreamEvent, TextDelta, length_of
from llm_effects.values.json import as_object, dump, parse
from llm_effects.values.records import ModelHealth
from llm_effects.values.responses import LLMResponse, Vectors
from llm_effects.values.secrets import RotatingKey

if TYPE_CHECKING:
    from llm_effects.clients.credentials import Send, Sender
    from llm_effects.clients.local_engine import Engine

_T = TypeVar("_T")

# One exchange, within the time of its attempt.


async def _within(timers: Timers, exchange: Awaitable[Result[_T, LLMError]]) -> Result[_T, LLMError] | RequestTimeout:
    """Await an exchange, or return the time-out that ended it."""
    with timers.scope:
        return await exchange
    return timers.expired()


@lru_cache(maxsize=1024)
def _wire_timeouts(target: Target) -> Timeouts:
    """Return limits for the transport: silence is limited by the timers, which distinguish content from pings."""
    return Timeouts(connect_s=target.config.connect_ms / 1000, read_s=None)


def _with_model(target: Target, error: LLMError) -> LLMError:
    return evolve(error, model=target.name, provider=target.preset.name)


async def _post(
    transport: "Sender", target: Target, timers: Timers, wire: WireRequest
) -> Result[WireResponse, LLMError]:
    """Send a request, return its whole response, and record the rate limits that it reports."""
    try:
        response = await transport.exchange(wire, _wire_timeouts(target), timers.start)
    except TransportFault as fault:
        return Failure(_with_model(target, fault.error))
    _record_limits(timers, response.headers, response.received)
    return Success(response)


def _record_limits(timers: Timers, headers: Mapping[str, str], received: datetime | None) -> None:
    timers.record.rate_limits = rate_limits(headers, received, timers.clock())


# A completion: its events go into a draft, and on to the sink.


@final
@define(eq=False, repr=False)
class ResponseReader:
    """A reader of one response: it decodes events into ``draft`` and delivers their content to the sink.

    ``late`` is an error that the server reported after the reason to stop: token counts may still follow it.
    """

    call: Call
    target: Target
    provider: Provider
    wire: WireRequest
    timers: Timers
    draft: Draft
    late: LLMError | None = None
    _opened: bool = False
    _characters: int = 0
    _events: int = 0
    _late_errors: int = 0
    _pacer: Pacer = field(factory=Pacer)

    @classmethod
    def of(cls, call: Call, target: Target, *, streamed: bool) -> "Result[ResponseReader, LLMError]":
        """Encode the request and return a reader of its response."""
        timers = Timers(target.config, call.attempt.record, streamed, call.attempt.first_content_by)
        provider = provider_of(target, call.request)
        encoded = provider.encode(target, call.request, streamed)
        return encoded.map(lambda wire: cls(call, target, provider, wire, timers, Draft(target=target)))

    async def run(self, exchange: Awaitable[Answer]) -> Answer:
        """Await an exchange within its time-outs."""
        answer = await _within(self.timers, exchange)
        if not isinstance(answer, RequestTimeout):
            return answer
        return Failure(self.with_partial(answer)) if answer.phase == "sink" else await self.end(answer)

    async def feed(self, events: Sequence[ServerEvent]) -> LLMError | None:
        """Decode events and deliver their content; return the error that ends the response, unless it is ``late``.

        Other tasks run between every few events, also if more of them are here already.
        """
        for at in range(0, len(events), caps.STEP_ITEMS):
            step = events[at : at + caps.STEP_ITEMS]
            error = await self._feed(step)
            if error is not None:
                return error
            await self._pacer.step(len(step))
        return None

    async def _feed(self, events: Sequence[ServerEvent]) -> LLMError | None:
        content: list[StreamEvent] = []
        error = self._decode_events(events, content)
        excess = self._excess(content)
        if content and excess is None:
            await self.deliver(content)
        return error or excess

    def _decode_events(self, events: Sequence[ServerEvent], content: list[StreamEvent]) -> LLMError | None:
        """Add what some events hold to the draft and to the content; return the error that ends the response."""
        at = 0
        while at < len(events):
            texts = self.provider.read_texts(self.draft, islice(events, at, None))
            content.extend(map(TextDelta, texts))
            at += len(texts) + 1
            decoded = self.provider.decode_event(self.draft, events[at - 1]) if at <= len(events) else NO_EVENTS
            if is_successful(decoded):
                content.extend(decoded.unwrap())
            elif not self._is_late(decoded.failure()):
                return decoded.failure()
        return None

    def _is_late(self, error: LLMError) -> bool:
        """Keep the first error after the reason to stop, and return whether the stream may still hold something."""
        if self.draft.finish_reason is None or isinstance(error, ContentRefused):
            return False
        self.late = self.late or error
        self._late_errors += 1
        return self._late_errors < LATE_ERRORS

    def _excess(self, content: Sequence[StreamEvent]) -> LLMError | None:
        """Return an error once the answer is too much to keep: its characters, events, tool calls or parts."""
        self._characters += sum(map(length_of, content))
        self._events += len(content)
        if self._characters > caps.CONTENT_CHARACTERS:
            return malformed(self.draft, f"the answer has more than {caps.CONTENT_CHARACTERS} characters")
        if self._events > caps.STREAM_EVENTS:
            return malformed(self.draft, f"the answer has more than {caps.STREAM_EVENTS} events")
        return excess_of(self.draft)

    async def deliver(self, events: Iterable[StreamEvent]) -> None:
        """Deliver content to the consumer, while the timers of the model are paused."""
        if self.call.sink is not None:
            opening = None if self._opened else self._open()
            self.timers.pause()
            all_events = events if opening is None else (opening, *events)
            await Delivery(all_events, self.call.sink, self.timers.wait_for_consumer)
        self.timers.wait_for_model()

    def _open(self) -> StreamEvent | None:
        self._opened, self.call.attempt.record.content_at = True, anyio.current_time()
        return opening_of(self.call)

    async def end(self, error: LLMError | None = None) -> Answer:
        """End a stream that broke off with ``error``, if any; an error after the protocol's own end is ignored.

        One that the server reported then becomes a warning, unless content is missing.
        """
        if self.late is not None and not isinstance(error, ContentRefused):
            return await self._finish_late(self.late)
        if error is None:
            return await self._finish()
        if self.draft.finish_reason is not None and not isinstance(error, ContentRefused):
            answer = await self._finish()
            if is_successful(answer) or isinstance(answer.failure(), ContentRefused):
                return answer
        return Failure(self.with_partial(error))

    async def _finish_late(self, late: LLMError) -> Answer:
        self.draft.warnings.append(f"after its end the server reported an error: {describe(late)}")
        answer = await self._finish()
        whole = is_successful(answer) and has_substance(self.draft)
        return answer if whole else Failure(self.with_partial(late))

    async def _finish(self) -> Answer:
        """Deliver the content that was held back and return the whole response."""
        rest = flush_held(self.draft)
        answer = self.provider.finish(self.draft)
        if rest or (is_successful(answer) and not self._opened):
            await self.deliver(rest)
        return answer.map(partial(_with_warnings, self.wire)) if self.wire.warnings else answer

    def with_partial(self, error: LLMError) -> LLMError:
        """Add the model, and the content received so far, to the error that broke off the response."""
        return interrupted(self.draft, _with_model(self.target, error))


# A completion from a server.

DRAINING_S: Final = 0.25
"""Seconds to read on after the end of a stream, so that its connection can be reused."""

LATE_S: Final = 1.0
"""Seconds to wait for each further piece of a stream after an error that followed the reason to stop."""

LATE_ERRORS: Final = 8
"""Most errors after the reason to stop that are read over for the token counts that may follow them."""

_BLANK: Final = b"\xef\xbb\xbf \t\r\n"

_NOT_A_STREAM: Final = (b"{", b"[", b"<")
"""How JSON and HTML start; event streams never do."""


def ask_server(transport: "Sender", target: Target, call: Call) -> Awaitable[Answer]:
    """Send a call to a server; read its response whole, or event by event if there is a sink."""
    return (_ask_whole if call.sink is None else _ask_streamed)(transport, target, call)


async def _ask_streamed(transport: "Sender", target: Target, call: Call) -> Answer:
    reader = ResponseReader.of(call, target, streamed=True)
    if not is_successful(reader):
        return Failure(reader.failure())
    return await reader.unwrap().run(_exchange_streamed(transport, reader.unwrap()))


async def _ask_whole(transport: "Sender", target: Target, call: Call) -> Answer:
    """Ask for a whole response, without the draft that only a stream needs: it takes 6 microseconds to make."""
    provider = provider_of(target, call.request)
    timers = Timers(target.config, call.attempt.record, False, call.attempt.first_content_by)
    encoded = provider.encode(target, call.request, False)
    if not is_successful(encoded):
        return Failure(encoded.failure())
    with timers.scope:
        response = await _post(transport, target, timers, encoded.unwrap())
        if not is_successful(response):
            return Failure(response.failure())
        return await _decode_whole(target, provider, encoded.unwrap(), response.unwrap())
    return Failure(interrupted(Draft(target=target), _with_model(target, timers.expired())))


async def _decode_whole(target: Target, provider: Provider, wire: WireRequest, response: WireResponse) -> Answer:
    """Decode a whole response, whatever its status: in a thread if it is long."""
    if not 200 <= response.status < 300:
        return Failure(provider.classify(target, response))
    answer = await in_steps(partial(provider.decode, target, response), len(response.body))
    return answer.map(partial(_with_warnings, wire)) if wire.warnings else answer


def _with_warnings(wire: WireRequest, response: LLMResponse) -> LLMResponse:
    """Add the warnings about parts of the request that were dropped."""
    return evolve(response, warnings=wire.warnings + response.warnings)


async def _exchange_streamed(transport: "Sender", reader: ResponseReader) -> Answer:
    try:
        async with transport.stream(reader.wire, _wire_timeouts(reader.target), reader.timers.start) as response:
            return await _read_streamed(reader, response)
    except TransportFault as fault:
        return await reader.end(fault.error)


async def _read_streamed(reader: ResponseReader, response: StreamedResponse) -> Answer:
    reader.draft.request_id = request_id(response.headers)
    _record_limits(reader.timers, response.headers, response.received)
    start = await _read_start(response)
    # The content type is unreliable: proxies label streams as JSON and JSON as a stream.
    if not 200 <= response.status < 300 or start.lstrip(_BLANK)[:1] in _NOT_A_STREAM:
        return await _read_unstreamed(reader, response, start)
    return await reader.end(await _read_events(reader, response, start))


async def _read_start(response: StreamedResponse) -> bytes:
    """Read up to the first byte that is not blank."""
    start = b""
    async for chunk in response.chunks():
        start += chunk
        if start.lstrip(_BLANK) or len(start) > caps.PREAMBLE_BYTES:
            break
    return start


async def _read_unstreamed(reader: ResponseReader, response: StreamedResponse, start: bytes) -> Answer:
    """Read an error, or the whole response of a server that ignores the request for a stream."""
    body = await response.read(start)
    whole = WireResponse(status=response.status, headers=response.headers, body=body, received=response.received)
    answer = await _decode_whole(reader.target, reader.provider, reader.wire, whole)
    if is_successful(answer):
        await reader.deliver(events_of(answer.unwrap()))
    return answer


async def _read_events(reader: ResponseReader, response: StreamedResponse, start: bytes) -> LLMError | None:
    """Read a stream to its end; return the error that broke it off, if any."""
    parser = EventParser()
    error = await _feed_bytes(reader, parser, start)
    while error is None and not reader.draft.done:
        chunk = await _next_chunk(reader, response)
        if chunk is None:
            return await reader.feed(parser.finish()) or parser.fault
        error = await _feed_bytes(reader, parser, chunk)
    if error is None:
        with anyio.move_on_after(min(DRAINING_S, _grace_s(reader.call.deadline))):
            await response.read()
    return error


async def _feed_bytes(reader: ResponseReader, parser: EventParser, chunk: bytes) -> LLMError | None:
    """Parse and decode some bytes in steps: thousands of events may be in one chunk."""
    error: LLMError | None = None
    for at in range(0, len(chunk), caps.STEP_EVENT_BYTES):
        if at:
            await checkpoint()
        error = await reader.feed(parser.feed(chunk[at : at + caps.STEP_EVENT_BYTES])) or parser.fault
        if error is not None:
            break
    return error


async def _next_chunk(reader: ResponseReader, response: StreamedResponse) -> bytes | None:
    if reader.draft.finish_reason is None:
        return await anext(response.chunks(), None)
    grace = _grace_s(reader.call.deadline)
    with anyio.move_on_after(grace if reader.late is None else min(LATE_S, grace)):
        return await anext(response.chunks(), None)
    return None


def _grace_s(deadline: float) -> float:
    """Return the seconds that a complete response may wait for the end of its stream: half of the time left.

    A server that keeps its connection open after the last event must not make the call miss its deadline.
    """
    return (deadline - anyio.current_time()) / 2


# A completion from the model in this process.


async def ask_engine(engine: "Engine", target: Target, call: Call) -> Answer:
    """Run a call in this process, token by token."""
    reader = ResponseReader.of(call, target, streamed=True)
    if not is_successful(reader):
        return Failure(reader.failure())
    return await reader.unwrap().run(_complete_in_engine(engine, reader.unwrap()))


async def _complete_in_engine(engine: "Engine", reader: ResponseReader) -> Answer:
    async def deliver(chunk: str) -> LLMError | None:
        return await reader.feed((ServerEvent("message", chunk),))

    result = await engine.run(reader.wire.body, deliver, reader.timers.start)
    if not is_successful(result):
        return Failure(interrupted(reader.draft, result.failure()))
    return await reader.end()


# Embeddings: texts out, vectors in.


async def embed_at_server(
    transport: "Sender", target: Target, call: Call, texts: tuple[str, ...], dimensions: int | None
) -> Result[Vectors, LLMError]:
    """Ask a server for the vectors of some texts."""
    from llm_effects.providers.openai_embeddings import decode, encode

    if target.preset.wire == "anthropic":
        remedy = f"{target.preset.name} has no embeddings: use another model"
        message = f"models.{target.name}.capabilities.embeddings: {remedy}"
        return Failure(ConfigurationError(model=target.name, message=message))
    timers = Timers(target.config, call.attempt.record, streamed=False)
    response = await _within(timers, _post(transport, target, timers, encode(target, texts, dimensions)))
    if isinstance(response, RequestTimeout):
        return Failure(_with_model(target, response))
    if not is_successful(response):
        return Failure(response.failure())
    wire = response.unwrap()
    return await in_steps(partial(decode, target, wire, len(texts), dimensions), len(wire.body))


async def embed_in_engine(
    engine: "Engine", target: Target, call: Call, texts: tuple[str, ...], dimensions: int | None
) -> Result[Vectors, LLMError]:
    """Ask the model in this process for the vectors of some texts; it finishes a batch even after a cancellation."""
    timers = Timers(target.config, call.attempt.record, streamed=False)
    result = await _within(timers, engine.embed(dump({"input": texts}), timers.start))
    if isinstance(result, RequestTimeout):
        return Failure(_with_model(target, result))
    if not is_successful(result):
        return Failure(result.failure())
    work = partial(_read_vectors, target, result.unwrap(), len(texts), dimensions)
    return await in_steps(work, len(result.unwrap()))


def _read_vectors(target: Target, text: str, count: int, dimensions: int | None) -> Result[Vectors, LLMError]:
    from llm_effects.providers.openai_embeddings import read

    body = parse(text, values=caps.JSON_VALUES + count * caps.DIMENSIONS)
    if as_object(body).get("error"):
        return Failure(classify_error_object(target, body))
    return read(target, body, count, dimensions)


# The clients of an environment.


@final
@define(eq=False, repr=False, kw_only=True)
class LiveClients:
    """The clients of every configured model; ``engines`` are those of the in-process models, by name.

    ``keeps_time`` means that the time-out of an attempt is enforced here, starting when it leaves the queue, and
    ``keeps_share`` that its share of the time is, too: with the same timer, which saves 12 microseconds.
    """

    keeps_time: ClassVar[bool] = True
    keeps_share: ClassVar[bool] = True

    config: LLMConfig
    transport: Transport
    engines: "Mapping[str, Engine]" = field(factory=dict[str, "Engine"])
    now: Now = wall_clock

    def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
        """Send ``call`` to its model once; events go to ``call.sink``, if there is one."""
        return FutureResult(self.answer(call))

    def answer(self, call: Call) -> Awaitable[Answer]:
        """Send ``call`` to its model once, as ``complete`` does, without a future."""
        target = ready_targets(self.config).get(call.model)
        if target is None:
            return _known(Failure(target_of(call.model, self.config.models[call.model]).failure()))
        engine = self.engines.get(call.model)
        if engine is not None:
            return ask_engine(engine, target, call)
        if call.request.stays is not None or isinstance(target.config.api_key, RotatingKey):
            return self._checked(target, call, lambda transport: ask_server(transport, target, call))
        return ask_server(self.transport, target, call)

    async def _checked(self, target: Target, call: Call, send: "Send[_T]") -> Result[_T, LLMError]:
        from llm_effects.clients.credentials import send_checked

        return await send_checked(self.transport, target, call, self.now, send)

    def embed(self, call: Call, texts: tuple[str, ...], dimensions: int | None) -> FutureResult[Vectors, LLMError]:
        """Ask the model of ``call`` once for a vector of each text, of ``dimensions`` numbers if given."""

        async def embed_at(target: Target) -> Result[Vectors, LLMError]:
            engine = self.engines.get(call.model)
            if engine is not None:
                return await embed_in_engine(engine, target, call, texts, dimensions)
            return await self._checked(target, call, lambda at: embed_at_server(at, target, call, texts, dimensions))

        return FutureResult(_at(call.model, self.config.models[call.model], embed_at))

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        """Check the health of a model without sending it a prompt."""

        async def probe_at(target: Target) -> Result[ModelHealth, LLMError]:
            from llm_effects.clients.health_checks import probe_engine, probe_server
            from llm_effects.clients.local_engine import Engine

            if target.preset.wire != "llama":
                return await probe_server(self.transport, target, self.now)
            engine = self.engines.get(name)
            if engine is None or engine.target != target:  # the name may mean another model than the configured one
                engine = Engine(target)
            return await probe_engine(engine, target)

        return FutureResult(_at(name, model, probe_at))

    async def aclose(self) -> None:
        """Close every connection and free the in-process models; closing twice is fine."""
        for engine in self.engines.values():
            engine.close()
        await self.transport.aclose()


async def _known(answer: Answer) -> Answer:
    return answer


async def _at(
    name: str, model: ModelConfig, work: Callable[[Target], Awaitable[Result[_T, LLMError]]]
) -> Result[_T, LLMError]:
    """Do some work with the target of a model, unless the model is misconfigured."""
    target = target_of(name, model)
    return await work(target.unwrap()) if is_successful(target) else Failure(target.failure())
