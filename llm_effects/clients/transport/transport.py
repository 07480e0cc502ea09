"""The HTTP transport: from a ``WireRequest`` to bytes and back; every failure is a ``TransportFault``.

It drives httpx's transports or aiohttp's connections directly, without their clients: no redirects, cookies or netrc,
no proxies of the environment, and less time for each call. It bounds no call as a whole and resends none because of its
response: that is for the layers above.
"""

import asyncio
import functools
import ssl
import zlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from heapq import heappop, heappush
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, final, get_args
from urllib.parse import urlsplit

import anyio
from anyio import to_thread
from anyio.lowlevel import EventLoopToken, checkpoint, current_token
from attrs import define, field
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.clients.transport.connections import (
    Connections,
    Incoming,
    LoopPools,
    Method,
    NoConnections,
    Outgoing,
    TransportFault,
    build_request,
    import_httpx,
    is_httpx_itself,
    trusted,
)
from llm_effects.config.services import TransportKind
from llm_effects.effects.tasks import OnSent, no_listener
from llm_effects.providers.target import is_loopback
from llm_effects.providers.wire import Timeouts, WireRequest, WireResponse
from llm_effects.values import caps
from llm_effects.values.display import shown
from llm_effects.values.errors import ConfigurationError, LLMError, MalformedResponse, NetworkError, cause_of
from llm_effects.values.secrets import Secret
from llm_effects.values.validation import number, one_of

if TYPE_CHECKING:
    from llm_effects.clients.transport.pool import MakePool

AIOHTTP: Final = {("3", "14")}
"""The versions of aiohttp whose connections and parser are known here, which it does not promise to keep."""

FAST: Final = "llm_effects.clients.transport.fast"
"""The module that needs aiohttp."""

HTTPX: Final = "llm_effects.clients.transport.pool"
"""The module that needs httpx."""


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


_PLAIN: Final = ("", "identity")
"""Encodings that leave a body as it is."""

_COMPRESSED_BYTES: Final = 4096


@final
@define(eq=False, repr=False)
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
        for piece in _cut(chunk) if self.encoding in _PLAIN else self._decompress(chunk):
            self._total += len(piece)
            if self._total > self.cap:
                raise _too_large(self.cap)
            if piece:
                yield piece

    def finish(self) -> LLMError | None:
        """Return an error if the compressed data ended too early."""
        if self._decompressor is None or self._decompressor.eof:
            return None
        return NetworkError(message="the compressed answer ends too early", phase="protocol")

    def _decompress(self, chunk: bytes) -> Iterator[bytes]:
        # In small parts, since every stream in a row copies the rest of its part.
        for start in range(0, len(chunk), _COMPRESSED_BYTES):
            yield from self._decompress_part(chunk[start : start + _COMPRESSED_BYTES])

    def _decompress_part(self, data: bytes) -> Iterator[bytes]:
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
    """The decoded pieces of one response body, as they arrive. A reader can stop anywhere."""

    _incoming: Incoming
    _decoder: Decoder
    _pieces: Iterator[bytes] = field(factory=lambda: iter(()), init=False)
    _read: int = field(default=0, init=False)

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

    async def _next_chunk(self) -> bytes:
        self._read += 1
        if self._read % caps.STEP_ITEMS == 0:
            await checkpoint()  # one read of the socket may hold thousands of chunks
        chunk = await self._incoming.read()
        if isinstance(chunk, bytes):
            return chunk
        fault = self._decoder.finish() if chunk is None else chunk
        if fault is not None:
            raise TransportFault(fault)
        raise StopAsyncIteration


@final
@define(eq=False)
class StreamedResponse:
    """A response whose body is still arriving; header names are in lower case, chunks are decoded.

    ``received`` is the wall time of the headers; dates from the server are relative to it.
    """

    __repr__ = shown

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
                raise _too_large(self._max_bytes)
            body.write(piece)
        return body.getvalue()


@final
@define(eq=False, repr=False)
class ConnectionLimiter:
    """A first-come, first-served limiter of ``capacity`` numbered slots.

    It hands out the lowest free slot, since the connection of that slot was used last.

    >>> async def visit():
    ...     limiter = ConnectionLimiter(1)
    ...     slot = await limiter.acquire()
    ...     limiter.release(slot)
    ...     return slot, limiter.in_use
    >>> anyio.run(visit)
    (0, 0)
    """

    capacity: int
    _created: int = field(default=0, init=False)
    _free: list[int] = field(factory=list[int], init=False)
    _queue: OrderedDict[anyio.Event, None] = field(factory=OrderedDict[anyio.Event, None], init=False)
    _assigned: dict[anyio.Event, int] = field(factory=dict[anyio.Event, int], init=False)

    @property
    def in_use(self) -> int:
        """The number of acquired slots."""
        return self._created - len(self._free)

    @property
    def waiting(self) -> int:
        """The number of queued calls."""
        return len(self._queue)

    async def acquire(self) -> int:
        """Wait for a slot and return its number; release it once."""
        if self._free:
            return heappop(self._free)
        if self._created < self.capacity:
            self._created += 1
            return self._created - 1
        return await self._wait_in_queue()

    def release(self, slot: int) -> None:
        """Pass a slot to the longest waiter, or put it back."""
        if not self._queue:
            heappush(self._free, slot)
            return
        waiter, _ = self._queue.popitem(last=False)
        self._assigned[waiter] = slot
        waiter.set()

    async def _wait_in_queue(self) -> int:
        waiter, woken = anyio.Event(), False
        self._queue[waiter] = None
        try:
            await waiter.wait()
            woken = True
        finally:
            if not woken:
                self._abandon(waiter)
        return self._assigned.pop(waiter)

    def _abandon(self, waiter: anyio.Event) -> None:
        """Leave the queue; a slot assigned in the moment of the cancellation goes to the next waiter."""
        self._queue.pop(waiter, None)
        if waiter in self._assigned:
            self.release(self._assigned.pop(waiter))


@final
@define(eq=False, kw_only=True)
class Transport:
    """A sender of requests over pooled connections of each event loop; every failure is a ``TransportFault``.

    A loop has at most ``max_connections`` calls in flight; further calls queue in order, and ``admitted`` is called
    when a call leaves the queue. ``max_bytes`` limits a body that is read at once, ``max_stream_bytes`` a streamed one.
    ``tls`` replaces the trusted certificates, and may hold a certificate of the client. ``proxy`` is an address such as
    ``http://user:password@host:3128``; proxies of the environment are not used.

    ``kind`` chooses the library. ``auto`` is aiohttp if it is installed and the event loop is asyncio's, unless
    something stands in the place of httpx's own transport: ``make_pool``, which opens httpx's pools of ``pool_size``,
    or a mock or an instrumentation of httpx.

    >>> import anyio, httpx
    >>> def echo(request):
    ...     return httpx.Response(200, content=request.content)
    >>> transport = Transport(make_pool=lambda size: httpx.MockTransport(echo))
    >>> request = WireRequest(url="http://localhost/v1", headers=(), body=b"hello")
    >>> anyio.run(transport.exchange, request, Timeouts()).body
    b'hello'
    """

    __repr__ = shown

    kind: TransportKind = field(default="httpx", validator=one_of(*get_args(TransportKind)))
    make_pool: "MakePool | None" = None
    max_connections: int = field(default=1000, validator=number(at_least=1, whole=True))
    pool_size: int = field(default=8, validator=number(at_least=1, whole=True))
    max_bytes: int = field(default=caps.ANSWER_BYTES, validator=number(at_least=1, whole=True))
    max_stream_bytes: int = field(default=caps.STREAM_BYTES, validator=number(at_least=1, whole=True))
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    proxy: str | Secret | None = field(default=None, repr=False)
    _pools: LoopPools[Connections] = field(init=False, repr=False)
    _closed: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._pools = LoopPools(self._connect)

    @property
    def reaches_network(self) -> bool:
        """Whether requests leave by a library itself: neither a pool of one's own nor a mock stands in its place."""
        return self.make_pool is None and (self.kind == "fast" or is_httpx_itself())

    @property
    def proxied(self) -> bool:
        """Whether requests go through a proxy that is not on this machine, by its literal address."""
        address = _revealed(self.proxy)
        return address is not None and not is_loopback(urlsplit(address).hostname or "")

    def exchange(
        self, request: WireRequest, limits: Timeouts, admitted: OnSent = no_listener
    ) -> Awaitable[WireResponse]:
        """Send a POST request and return its whole response, whatever its status."""
        return self._exchange("POST", request, limits, admitted)

    @asynccontextmanager
    async def stream(
        self,
        request: WireRequest,
        limits: Timeouts,
        admitted: OnSent = no_listener,
        *,
        method: Method = "POST",
        max_bytes: int | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Send a request and stream its response; leaving early closes the connection.

        ``max_bytes`` replaces ``max_stream_bytes``.
        """
        outgoing, pool = self._prepare(method, request, limits), self._pools.enter()
        try:
            incoming = await pool.send(outgoing, functools.partial(self._admit, admitted))
            try:
                yield self._respond(incoming, max_bytes or self.max_stream_bytes)
            finally:
                await incoming.aclose()
        finally:
            await self._pools.leave(pool)

    async def fetch(
        self,
        url: str,
        headers: tuple[tuple[str, str | Secret], ...],
        limits: Timeouts,
        key: tuple[str, Secret] | None = None,
    ) -> WireResponse:
        """Send a GET request and return its whole response."""
        return await self._exchange(
            "GET", WireRequest(url=url, headers=headers, body=b"", key=key), limits, no_listener
        )

    async def load(self, *, https: bool) -> None:
        """Import the library, and load the certificates for ``https``, in a thread: either takes 20 to 100 ms."""
        await to_thread.run_sync(self._load, _is_asyncio(current_token()), https and self.tls is None)

    @asynccontextmanager
    async def scope(self) -> AsyncGenerator[None]:
        """Keep the connections of this event loop open between calls, until the scope ends."""
        async with self._pools.hold():
            yield

    async def aclose(self) -> None:
        """Reject new calls; calls in flight finish. Closing twice is fine."""
        self._closed = True
        await self._pools.aclose()

    async def _exchange(self, method: Method, wire: WireRequest, limits: Timeouts, admitted: OnSent) -> WireResponse:
        request, pool = self._prepare(method, wire, limits), self._pools.enter()
        try:
            incoming = await pool.send(request, functools.partial(self._admit, admitted))
            try:
                return await self._read_all(incoming)
            finally:
                await incoming.aclose()
        finally:
            await self._pools.leave(pool)

    def _prepare(self, method: Method, wire: WireRequest, limits: Timeouts) -> Outgoing:
        self._require_open()
        request = build_request(method, wire, limits)
        if not is_successful(request):
            raise TransportFault(request.failure())
        return request.unwrap()

    def _admit(self, admitted: OnSent) -> None:
        self._require_open()  # it may have been closed while this call was queued
        admitted()

    async def _read_all(self, incoming: Incoming) -> WireResponse:
        """Read a whole response; one without compression needs no decoder, which saves 6 microseconds."""
        headers, received = _merged_headers(incoming.headers), datetime.now(UTC)
        if headers.get("content-encoding", "").lower() in _PLAIN:
            body = await _read_plain(incoming, self.max_bytes)
        else:
            body = await self._respond(incoming, self.max_stream_bytes).read()
        return WireResponse(status=incoming.status, headers=headers, body=body, received=received)

    def _respond(self, incoming: Incoming, max_bytes: int) -> StreamedResponse:
        headers = _merged_headers(incoming.headers)
        decoder = Decoder(headers.get("content-encoding", "").lower(), max_bytes)
        return StreamedResponse(incoming.status, headers, datetime.now(UTC), Body(incoming, decoder), self.max_bytes)

    def _require_open(self) -> None:
        if self._closed:
            raise TransportFault(ConfigurationError(message="the environment is closed: open a new one for this call"))

    def _load(self, on_asyncio: bool, certificates: bool) -> None:
        if self._is_fast(on_asyncio):
            import_module(FAST)
        else:
            import_httpx()
            import_module(HTTPX)
        if certificates:
            with suppress(TransportFault):  # each call reports it
                trusted()

    def check(self) -> Result[None, LLMError]:
        """Return the error of a library that was chosen and cannot carry requests in this event loop."""
        problem = _why_not_fast(_is_asyncio(current_token())) if self.kind == "fast" else None
        return Success(None) if problem is None else Failure(ConfigurationError(message=f"transport: fast {problem}"))

    def _is_fast(self, on_asyncio: bool) -> bool:
        """Return whether aiohttp carries requests: chosen, or by itself where nothing replaces httpx's transport."""
        by_itself = self.kind == "auto" and self.make_pool is None and is_httpx_itself()
        return (self.kind == "fast" or by_itself) and _why_not_fast(on_asyncio) is None

    def _connect(self, loop: EventLoopToken) -> Connections:
        """Choose the library for an event loop."""
        problem = self.check()
        if not is_successful(problem):
            return NoConnections(problem.failure())
        if self._is_fast(_is_asyncio(loop)):
            return self._fast_connections()
        return self._httpx_connections()

    def _httpx_connections(self) -> Connections:
        import_httpx()
        from llm_effects.clients.transport.pool import ShardedPool, http_pool, plain_pool

        make = self.make_pool or functools.partial(http_pool, tls=self.tls, proxy=_revealed(self.proxy))
        may_split = self.make_pool is None and self.tls is None and self.proxy is None
        limiter = ConnectionLimiter(self.max_connections)
        return ShardedPool(make, self.pool_size, limiter, plain_pool if may_split else None)

    def _fast_connections(self) -> Connections:
        from llm_effects.clients.transport.fast import FastConnections, proxy_of

        limiter, address = ConnectionLimiter(self.max_connections), _revealed(self.proxy)
        if address is None:
            return FastConnections(limiter, self._tls)
        proxy = proxy_of(address)
        if not is_successful(proxy):
            return NoConnections(proxy.failure())
        return FastConnections(limiter, self._tls, proxy.unwrap())

    def _tls(self) -> ssl.SSLContext:
        return self.tls or trusted()


async def _read_plain(incoming: Incoming, max_bytes: int) -> bytes:
    """Return a whole body without a content-encoding, or raise ``TransportFault``."""
    pieces, size = list[bytes](), 0
    while isinstance(piece := await incoming.read(), bytes):
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            raise _too_large(max_bytes)
        if len(pieces) % caps.STEP_ITEMS == 0:
            await checkpoint()  # one read of the socket may hold thousands of chunks
    if piece is not None:
        raise TransportFault(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_large(max_bytes: int) -> TransportFault:
    return TransportFault(MalformedResponse(message=f"the answer is larger than {max_bytes} bytes"))


def _merged_headers(raw: Sequence[tuple[bytes, bytes]]) -> Mapping[str, str]:
    """Decode header lines; the values of a repeated name are joined by commas."""
    headers: dict[str, str] = {}
    for key, value in raw:
        name, text = key.decode("latin-1").lower(), value.decode("latin-1")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    return headers


# Which library.


def _revealed(proxy: str | Secret | None) -> str | None:
    return proxy.reveal() if isinstance(proxy, Secret) else proxy


def _why_not_fast(on_asyncio: bool) -> str | None:
    """Return what keeps aiohttp from being used, with its remedy."""
    if not on_asyncio:
        return "needs asyncio's event loop, and this one is trio's: use auto or httpx"
    return _why_no_aiohttp()


@functools.cache
def _why_no_aiohttp() -> str | None:
    installed = _version_of_aiohttp()
    if not installed:
        return "needs aiohttp: pip install 'llm-effects[fast]'"
    if tuple(installed.split(".")[:2]) in AIOHTTP:
        return None
    return f"does not know aiohttp {installed}: pip install 'llm-effects[fast]'"


def _version_of_aiohttp() -> str:
    """Return the version of aiohttp from its source, or an empty text: one that is not known is not imported."""
    with suppress(ModuleNotFoundError, OSError):
        spec = find_spec("aiohttp")
        if spec is not None and spec.origin is not None:  # importlib.metadata takes 14 ms more
            return Path(spec.origin).read_text(encoding="utf-8").partition('__version__ = "')[2].partition('"')[0]
    return ""


def _is_asyncio(loop: EventLoopToken) -> bool:
    return isinstance(loop.native_token, asyncio.AbstractEventLoop)
