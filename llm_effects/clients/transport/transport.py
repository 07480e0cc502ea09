"""The HTTP transport: from a ``WireRequest`` to bytes and back; every failure is a ``TransportFault``.

It drives httpx's transports directly, without httpx's client: no redirects, cookies, proxies or netrc, and less time
for each call. It bounds no call as a whole and resends none because of its response: that is for the layers above.
"""

import functools
import logging
import re
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from io import BytesIO
from typing import Final, Literal, Protocol, TypeAlias, final

import anyio
import httpx
from anyio.lowlevel import checkpoint
from attrs import define, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.clients.transport.faults import WIRE_PROBLEMS, ToError, TransportFault, WireProblem, map_exception
from llm_effects.clients.transport.pool import LoopPools, MakePool, ShardedPool, Slot, http_pool
from llm_effects.effects.tasks import OnSent, no_listener
from llm_effects.providers.wire import CLOSING_S, Timeouts, WireRequest, WireResponse
from llm_effects.values import caps
from llm_effects.values.errors import ConfigurationError, LLMError, MalformedResponse, NetworkError, cause_of
from llm_effects.values.secrets import Secret, scrub, secret_values
from llm_effects.values.validation import number

# More chunks than any connection reads ahead; only a stream that ignores its own close has more.
_BUFFERED: Final = 20_000


class _Decompressor(Protocol):
    """The interface of ``zlib.decompressobj()``, whose class has no public name."""

    @property
    def eof(self) -> bool: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _gzip(_: int) -> _Decompressor:
    return zlib.decompressobj(zlib.MAX_WBITS | 16)


def _deflate(first: int) -> _Decompressor:
    """Decompress zlib data, or the bare stream that some servers send; the first byte shows which."""
    return zlib.decompressobj(zlib.MAX_WBITS if first & 0x0F == zlib.DEFLATED else -zlib.MAX_WBITS)


_DECOMPRESSORS: Final[dict[str, Callable[[int], _Decompressor]]] = {"gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate}


@final
@define(eq=False)
class Decoder:
    """An incremental decoder of one ``content-encoding``.

    It raises ``TransportFault`` after ``cap`` decoded bytes, and for broken data.

    >>> import gzip
    >>> b"".join(Decoder("gzip", 100).decode(gzip.compress(b"hello")))
    b'hello'
    """

    encoding: str
    cap: int
    _decompressor: _Decompressor | None = field(default=None, init=False)
    _total: int = field(default=0, init=False)

    def decode(self, chunk: bytes) -> Iterator[bytes]:
        """Decode one chunk into non-empty pieces."""
        for piece in _cut(chunk) if self.encoding in ("", "identity") else self._decompress(chunk):
            self._total += len(piece)
            if self._total > self.cap:
                raise TransportFault(MalformedResponse(message=f"the answer is larger than {self.cap} bytes"))
            if piece:
                yield piece

    def finish(self) -> LLMError | None:
        """Return an error if the compressed data ended too early."""
        if self._decompressor is None or self._decompressor.eof:
            return None
        return NetworkError(message="the compressed answer ends too early", phase="protocol")

    def _decompress(self, data: bytes) -> Iterator[bytes]:
        full = False
        while data or full:
            if self._decompressor is None or self._decompressor.eof:  # a body may hold several streams in a row
                self._decompressor = self._new_decompressor(data[0])
            step = _decompress_step(self._decompressor, data)
            if not is_successful(step):
                raise TransportFault(step.failure())
            yield step.unwrap()
            full = len(step.unwrap()) == caps.STEP_BYTES and not self._decompressor.eof
            data = self._decompressor.unconsumed_tail or self._decompressor.unused_data

    def _new_decompressor(self, first: int) -> _Decompressor:
        if self.encoding not in _DECOMPRESSORS:
            problem = f"the answer has the content-encoding {self.encoding[:40]!r}, which was not asked for"
            raise TransportFault(MalformedResponse(message=problem))
        return _DECOMPRESSORS[self.encoding](first)


def _cut(chunk: bytes) -> Iterable[bytes]:
    if len(chunk) <= caps.STEP_BYTES:
        return (chunk,)
    return (chunk[at : at + caps.STEP_BYTES] for at in range(0, len(chunk), caps.STEP_BYTES))


def _decompress_step(decompressor: _Decompressor, data: bytes) -> Result[bytes, LLMError]:
    try:
        return Success(decompressor.decompress(data, caps.STEP_BYTES))
    except zlib.error as problem:
        broken = NetworkError(message="the compressed answer is broken", phase="protocol", cause=cause_of(problem))
        return Failure(broken)


@final
@define(eq=False, repr=False)
class Body:
    """The decoded pieces of one response body, as they arrive.

    It is not a generator, so a reader can stop anywhere: ``aclose`` closes a half-read body.
    """

    _stream: httpx.AsyncByteStream
    _decoder: Decoder
    _to_error: ToError
    _chunks: AsyncIterator[bytes] = field(init=False)
    _pieces: Iterator[bytes] = field(factory=lambda: iter(()), init=False)
    _started: bool = field(default=False, init=False)
    _suspended: bool = field(default=False, init=False)
    _read: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._chunks = aiter(self._stream)

    def __aiter__(self) -> "Body":
        return self

    async def __anext__(self) -> bytes:
        piece = next(self._pieces, None)
        if piece is not None:  # more of a chunk: it may decompress to a thousand times its size
            await checkpoint()
        while piece is None:
            self._pieces = self._decoder.decode(await self._next_chunk())
            piece = next(self._pieces, None)
        return piece

    async def aclose(self) -> None:
        """Keep the connection if the body was read to its end; otherwise close it, even when cancelled."""
        with anyio.move_on_after(CLOSING_S, shield=True):
            await self._stream.aclose()
        if self._suspended:
            await _exhaust(self._chunks)

    async def _next_chunk(self) -> bytes:
        self._read += 1
        if self._read % caps.STEP_ITEMS == 0:
            await checkpoint()  # one read of the socket may hold thousands of chunks
        self._suspended = False
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            fault = self._decoder.finish()
        except WIRE_PROBLEMS as problem:
            fault = self._to_error(problem, self._started)
        else:
            self._suspended = self._started = True
            return chunk
        # Outside of the handlers: the wire's exception holds the request with its key, and must not become the context.
        if fault is not None:
            raise TransportFault(fault)
        raise StopAsyncIteration


async def _exhaust(chunks: AsyncIterator[bytes]) -> None:
    """Run the generators below to their end in a cancelled scope; trio warns about unfinished ones.

    The stream is closed, so they can only yield what was already received: in steps, as it may be thousands of chunks.
    """
    for _ in range(0, _BUFFERED, caps.STEP_ITEMS):
        if await _has_ended(chunks, caps.STEP_ITEMS):
            return
        with anyio.CancelScope(shield=True):
            await checkpoint()


async def _has_ended(chunks: AsyncIterator[bytes], count: int) -> bool:
    """Read up to so many chunks in a cancelled scope; return whether they have ended."""
    with anyio.CancelScope(shield=True) as scope:
        scope.cancel()
        for _ in range(count):
            try:
                await anext(chunks)
            except (StopAsyncIteration, *WIRE_PROBLEMS):
                return True
        return False
    return True


Method: TypeAlias = Literal["GET", "POST"]
Headers: TypeAlias = list[tuple[bytes, bytes]]

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"(?:[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)?")


def build_request(method: Method, wire: WireRequest, limits: Timeouts) -> Result[httpx.Request, LLMError]:
    """Build httpx's request, the only place that reveals secrets; a bad URL or header is a ``ConfigurationError``.

    >>> wire = WireRequest(url="https://api.openai.com/v1", headers=(("authorization", Secret("Bearer sk")),), body=b"")
    >>> build_request("GET", wire, Timeouts()).unwrap().headers["host"]
    'api.openai.com'
    """
    url = _parse_url(wire.url)
    if not is_successful(url):
        return Failure(url.failure())
    timeout = {"connect": limits.connect_s, "read": limits.read_s, "write": limits.send_s, "pool": None}
    return _headers(method, wire, url.unwrap()).map(
        lambda headers: httpx.Request(
            method, url.unwrap(), headers=headers, stream=_RequestBody(wire.body), extensions={"timeout": timeout}
        )
    )


@functools.lru_cache(maxsize=256)
def _parse_url(text: str) -> Result[httpx.URL, LLMError]:
    """Parse and check a URL; parsing is slow, so results are cached."""
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError) as problem:
        return Failure(ConfigurationError(message="the endpoint is not a URL: copy it again", cause=cause_of(problem)))
    if url.scheme not in {"http", "https"} or not url.host:
        return Failure(ConfigurationError(message="the endpoint must be like https://host/v1"))
    if url.userinfo:
        return Failure(ConfigurationError(message="the endpoint must not hold a password: use api_key or headers"))
    return Success(url)


def _headers(method: Method, wire: WireRequest, url: httpx.URL) -> Result[Headers, LLMError]:
    """Return the caller's headers, revealed, and the default ones that are missing."""
    revealed = [(name, value.reveal() if isinstance(value, Secret) else value) for name, value in wire.headers]
    for name, value in revealed:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            problem = f"the header {name[:40]!r} holds a character that headers cannot contain, such as a line break"
            return Failure(ConfigurationError(message=problem))
    names = {name.lower() for name, _ in revealed}
    defaults = [header for header in _default_headers(method, wire, url) if header[0] not in names]
    return Success([(name.encode("ascii"), value.encode("ascii")) for name, value in (*defaults, *revealed)])


def _default_headers(method: Method, wire: WireRequest, url: httpx.URL) -> tuple[tuple[str, str], ...]:
    length = () if method == "GET" else (("content-length", str(len(wire.body))),)
    return (
        ("host", url.netloc.decode("ascii")),
        ("accept", "*/*"),
        ("accept-encoding", "gzip"),
        ("user-agent", "llm-effects"),
        *length,
    )


@final
class _RequestBody(httpx.ByteStream):
    """A request body in one piece; httpx's own uses a generator, which a cancelled call leaves to the collector."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _SingleChunk(self._body)


@final
@define(eq=False, repr=False)
class _SingleChunk(AsyncIterator[bytes]):
    _body: bytes | None

    async def __anext__(self) -> bytes:
        if self._body is None:
            raise StopAsyncIteration
        body, self._body = self._body, None
        return body


@final
@define(eq=False)
class StreamedResponse:
    """A response whose body is still arriving; header names are in lower case, chunks are decoded.

    ``received`` is the wall time of the headers; dates from the server are relative to it.
    """

    status: int
    headers: Mapping[str, str]
    received: datetime
    _body: Body = field(repr=False)
    _max_bytes: int

    def chunks(self) -> AsyncIterator[bytes]:
        """Return the body piece by piece; a broken connection raises ``TransportFault``."""
        return self._body

    async def read(self, start: bytes = b"") -> bytes:
        """Return ``start`` and the rest of the body, or raise ``TransportFault`` if it is larger than ``max_bytes``."""
        body = BytesIO()  # which returns its bytes without a copy
        size = body.write(start)
        async for piece in self._body:
            size += len(piece)
            if size > self._max_bytes:
                raise TransportFault(MalformedResponse(message=f"the answer is larger than {self._max_bytes} bytes"))
            body.write(piece)
        return body.getvalue()


@final
@define(eq=False, kw_only=True)
class Transport:
    """A sender of requests over pooled connections of each event loop; every failure is a ``TransportFault``.

    A loop has at most ``max_connections`` calls in flight, in pools of ``pool_size``; further calls queue in order, and
    ``admitted`` is called when a call leaves the queue. ``max_bytes`` limits a body that is read at once,
    ``max_stream_bytes`` a streamed one.

    >>> import anyio
    >>> def echo(request):
    ...     return httpx.Response(200, content=request.content)
    >>> transport = Transport(make_pool=lambda size: httpx.MockTransport(echo))
    >>> request = WireRequest(url="http://localhost/v1", headers=(), body=b"hello")
    >>> anyio.run(transport.exchange, request, Timeouts()).body
    b'hello'
    """

    make_pool: MakePool = http_pool
    max_connections: int = field(default=1000, validator=number(at_least=1, whole=True))
    pool_size: int = field(default=8, validator=number(at_least=1, whole=True))
    max_bytes: int = field(default=caps.ANSWER_BYTES, validator=number(at_least=1, whole=True))
    max_stream_bytes: int = field(default=caps.STREAM_BYTES, validator=number(at_least=1, whole=True))
    _pools: LoopPools = field(init=False, repr=False)
    _closed: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._pools = LoopPools(make=self.make_pool, max_connections=self.max_connections, size=self.pool_size)

    async def exchange(self, request: WireRequest, limits: Timeouts, admitted: OnSent = no_listener) -> WireResponse:
        """Send a POST request and return its whole response, whatever its status."""
        async with self._send("POST", request, limits, admitted) as response:
            return await _read_all(response)

    def stream(
        self, request: WireRequest, limits: Timeouts, admitted: OnSent = no_listener
    ) -> AbstractAsyncContextManager[StreamedResponse]:
        """Send a POST request and stream its response; leaving early closes the connection."""
        return self._send("POST", request, limits, admitted)

    async def fetch(self, url: str, headers: tuple[tuple[str, str | Secret], ...], limits: Timeouts) -> WireResponse:
        """Send a GET request and return its whole response."""
        request = WireRequest(url=url, headers=headers, body=b"")
        async with self._send("GET", request, limits) as response:
            return await _read_all(response)

    @asynccontextmanager
    async def scope(self) -> AsyncGenerator[None]:
        """Keep the connections of this event loop open between calls, until the scope ends."""
        async with self._pools.hold():
            yield

    async def aclose(self) -> None:
        """Reject new calls; calls in flight finish. Closing twice is fine."""
        self._closed = True
        await self._pools.aclose()

    @asynccontextmanager
    async def _send(
        self, method: Method, wire: WireRequest, limits: Timeouts, admitted: OnSent = no_listener
    ) -> AsyncGenerator[StreamedResponse]:
        self._require_open()
        request = build_request(method, wire, limits)
        if not is_successful(request):
            raise TransportFault(request.failure())
        to_error = functools.partial(map_exception, request=wire, limits=limits)
        async with self._pools.hold() as pool, pool.slot() as slot:
            self._require_open()  # it may have been closed while this call was queued
            admitted()
            with _masked_logs(wire):
                response = await _send_fresh(pool, slot, request.unwrap(), to_error)
            headers = _merged_headers(response.headers.raw)
            decoder = Decoder(headers.get("content-encoding", "").lower(), self.max_stream_bytes)
            body = Body(_stream(response), decoder, to_error)
            try:
                yield StreamedResponse(response.status_code, headers, datetime.now(UTC), body, self.max_bytes)
            finally:
                await body.aclose()

    def _require_open(self) -> None:
        if self._closed:
            raise TransportFault(ConfigurationError(message="the environment is closed: open a new one for this call"))


_sent: Final[ContextVar[WireRequest | None]] = ContextVar("llm_effects.sent", default=None)


@contextmanager
def _masked_logs(wire: WireRequest) -> Generator[None]:
    """Mask the secrets of a request in what httpcore logs of it: at DEBUG, all headers of the response."""
    token = _sent.set(wire)
    try:
        yield
    finally:
        _sent.reset(token)


def _mask_record(record: logging.LogRecord) -> bool:
    wire = _sent.get()
    if wire is not None:
        record.msg, record.args = scrub(record.getMessage(), *secret_values(wire.headers)), ()
    return True


logging.getLogger("httpcore.http11").addFilter(_mask_record)


@final
@define(eq=False)
class _Trace:
    """The pool's trace of a call: whether its connection is being made, and whether it was kept from earlier."""

    connecting: bool = False
    reused: bool = False
    _connected: bool = False

    async def __call__(self, event: str, _: Mapping[str, object]) -> None:
        if event == "connection.connect_tcp.started":
            self.connecting = self._connected = True
        elif event == "http11.send_request_headers.started":
            self.connecting, self.reused = False, not self._connected


@final
@frozen
class _SendFailure:
    """A request without a response; ``stale`` means that the server had closed its reused connection before."""

    error: LLMError
    stale: bool


async def _send_fresh(pool: ShardedPool, slot: Slot, request: httpx.Request, to_error: ToError) -> httpx.Response:
    """Send a request; if its reused connection turns out to be closed, send it once more on a new one."""
    response = await _try_send(pool, slot, request, to_error)
    if isinstance(response, _SendFailure) and response.stale:
        await pool.renew(slot)
        response = await _try_send(pool, slot, request, to_error)
    if isinstance(response, _SendFailure):
        raise TransportFault(response.error)
    return response


async def _try_send(
    pool: ShardedPool, slot: Slot, request: httpx.Request, to_error: ToError
) -> httpx.Response | _SendFailure:
    request.extensions["trace"] = trace = _Trace()
    try:
        return await slot.pool.handle_async_request(request)
    except WIRE_PROBLEMS as problem:
        trace.connecting = False
        return _SendFailure(to_error(problem, False), trace.reused and _is_unanswered(problem))
    finally:
        if trace.connecting:  # cancelled: httpcore may keep a connection that it neither uses nor closes
            pool.retire(slot)


def _is_unanswered(problem: WireProblem) -> bool:
    match problem:
        case httpx.ReadError() | httpx.WriteError():
            return True
        case httpx.RemoteProtocolError():
            return "without sending a response" in str(problem)
        case _:
            return False


def _stream(response: httpx.Response) -> httpx.AsyncByteStream:
    if isinstance(response.stream, httpx.AsyncByteStream):
        return response.stream
    msg = f"the pool returned a stream that cannot be awaited: {type(response.stream).__name__}"
    raise TypeError(msg)


async def _read_all(response: StreamedResponse) -> WireResponse:
    body = await response.read()
    return WireResponse(status=response.status, headers=response.headers, body=body, received=response.received)


def _merged_headers(raw: list[tuple[bytes, bytes]]) -> Mapping[str, str]:
    """Decode header lines; the values of a repeated name are joined by commas."""
    headers: dict[str, str] = {}
    for key, value in raw:
        name, text = key.decode("latin-1").lower(), value.decode("latin-1")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    return headers
