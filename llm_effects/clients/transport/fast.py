"""The fast transport: aiohttp's connections and parser, driven directly on asyncio.

aiohttp connects (addresses, TLS, proxies) and parses; neither its session nor its requests and responses are used. Idle
connections are kept here, since its own pool does not say whether a connection was used before.
"""

import asyncio
import ssl
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import partial
from http.client import PROXY_AUTHENTICATION_REQUIRED
from typing import Final, TypeAlias, final

from aiohttp import (
    ClientError,
    ClientHttpProxyError,
    ClientRequest,
    ClientTimeout,
    InvalidURL,
    ServerDisconnectedError,
    TCPConnector,
    ThreadedResolver,
)
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError, RawResponseMessage, StreamWriter
from aiohttp.streams import StreamReader
from anyio import CancelScope, move_on_after
from anyio.lowlevel import checkpoint
from attrs import define, field, frozen
from returns.result import Failure, Result, Success
from yarl import URL

from llm_effects.clients.transport.connections import (
    IDLE_S,
    TOGETHER,
    Limiter,
    Outgoing,
    TransportFault,
    connection_error,
    network_error,
    proxy_error,
)
from llm_effects.effects.tasks import OnSent
from llm_effects.providers.wire import CLOSING_S
from llm_effects.values import caps
from llm_effects.values.errors import ConfigurationError, LLMError, RequestTimeout, TimeoutPhase, cause_of
from llm_effects.values.value import Value

Problem: TypeAlias = ClientError | HttpProcessingError | OSError | UnicodeError
"""Exceptions that aiohttp raises for reasons outside of this program."""

PROBLEMS: Final = (ClientError, HttpProcessingError, OSError, UnicodeError)
"""The same classes, for ``except`` clauses."""


class _SilentServerError(OSError):
    """The server sent nothing for as long as it may."""


class _SendTimeoutError(OSError):
    """The server read nothing for as long as it may."""


@final
class _Handler(ResponseHandler):
    """A connection that knows whether the server has answered since the last request."""

    heard: bool = False
    in_head: bool = False

    def expect(self) -> None:
        """Prepare for the answer to another request."""
        self.heard, self.in_head = False, True

    def data_received(self, data: bytes) -> None:
        """Parse the head of an answer on its own: where the parser fails, it loses all of what it was given."""
        self.heard = True
        end = data.find(b"\r\n\r\n") + 4 if self.in_head else 0
        if end >= 4:
            self.in_head = False
            super().data_received(data[:end])
            data = data[end:]
        if data or not end:  # aiohttp asks with no data after a pause
            super().data_received(data)
        if self._exception is not None and self._payload is not None and self._payload.exception() is None:
            self._payload.set_exception(self._exception)  # aiohttp would leave the reader waiting

    def resume_reading(self, resume_parser: bool = True) -> None:
        if self._reading_paused:  # aiohttp asks after each chunk: this is a third of the time of a stream
            super().resume_reading(resume_parser)


def _handler(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
    return _Handler(loop)


@final
class _Connector(TCPConnector):
    """aiohttp's connector, which makes connections and keeps none."""

    def __init__(self) -> None:
        super().__init__(limit=0, use_dns_cache=False, resolver=ThreadedResolver())  # pyright: ignore[reportUnknownMemberType]
        self._factory = partial(_handler, loop=self._loop)

    async def open(self, route: ClientRequest, seconds: float) -> ResponseHandler:
        """Make a connection in time, TLS and proxies included."""
        async with asyncio.timeout(seconds):
            return await self._create_connection(route, [], ClientTimeout())


@final
@define(eq=False, repr=False)
class _Wire:
    """One open connection, and when it was used last."""

    handler: _Handler
    transport: asyncio.Transport
    reused: bool = False
    idle_since: float = 0.0

    def is_usable(self, since: float) -> bool:
        """Return whether the connection can carry another request."""
        return self.idle_since >= since and self.handler.is_connected() and not self.handler.should_close

    def close(self) -> None:
        """Close the connection at once, whatever is still to be sent."""
        self.handler.abort()


@final
@frozen(eq=False, repr=False)
class Proxy(Value):
    """A proxy and the header with its password."""

    url: URL
    headers: dict[str, str] = field(repr=False)


def proxy_of(address: str) -> Result[Proxy, LLMError]:
    """Parse the address of a proxy, and take its password out of it.

    >>> proxy_of("http://me:secret@proxy:3128").unwrap()
    Proxy(url=URL('http://proxy:3128'))
    >>> proxy_of("socks5://proxy").failure().message
    'proxy: must be like http://user:password@host:3128; for others use httpx as the transport'
    """
    try:
        url = URL(address)
    except ValueError:
        url = URL()
    if url.scheme not in {"http", "https"} or not url.host:
        remedy = "must be like http://user:password@host:3128; for others use httpx as the transport"
        return Failure(ConfigurationError(message=f"proxy: {remedy}"))
    pair = f"{url.user or ''}:{url.password or ''}"
    headers = {"Proxy-Authorization": f"Basic {b64encode(pair.encode()).decode()}"} if url.raw_user else {}
    return Success(Proxy(url.with_user(None), headers))


@final
@frozen(eq=False, repr=False)
class _Broken(Value):
    """A request without a response; ``stale`` means that the server had closed its reused connection before."""

    error: LLMError
    stale: bool


@final
@define(eq=False, repr=False)
class FastConnections:
    """The connections of one event loop of asyncio; ``users`` counts the calls and scopes that hold them."""

    limiter: Limiter
    tls: Callable[[], ssl.SSLContext]
    _proxy: Proxy | None = field(default=None, repr=False)
    users: int = 0
    _connector: _Connector = field(factory=_Connector, init=False)
    _loop: asyncio.AbstractEventLoop = field(factory=asyncio.get_running_loop, init=False)
    _idle: dict[str, list[_Wire]] = field(factory=dict[str, list[_Wire]], init=False)
    _next_sweep: float = field(default=0.0, init=False)
    _closed: bool = field(default=False, init=False)

    async def send(self, request: Outgoing, admitted: OnSent) -> "FastResponse":
        """Send a request over an idle or a new connection, which the response holds until it is closed."""
        slot = await self.limiter.acquire()
        try:
            admitted()
            return await self._send_fresh(request, slot)
        except BaseException:
            self.limiter.release(slot)
            raise

    def after_silence(self, request: Outgoing, report: Callable[[BaseException], None]) -> asyncio.TimerHandle | None:
        """Report a silent server in time, unless the timer is cancelled before; ``None`` if the caller bounds it."""
        limit = request.limits.read_s
        return None if limit is None else self._loop.call_later(limit, report, _SilentServerError())

    async def aclose(self) -> None:
        """Close the idle connections; the last call of each other one closes it."""
        self._closed = True
        wires = [wire for idle in self._idle.values() for wire in idle]
        self._idle.clear()
        for wire in wires:
            wire.close()
        await _let_close()
        if not self.users:
            with move_on_after(CLOSING_S, shield=True):
                await self._connector.close()

    async def _send_fresh(self, request: Outgoing, slot: int) -> "FastResponse":
        """Send a request; if its reused connection turns out to be closed, send it once more on a new one."""
        wire = self._take(request.address.origin)
        outcome = None if wire is None else await self._try_send(wire, request, slot)
        if outcome is None or (isinstance(outcome, _Broken) and outcome.stale):
            outcome = await self._try_send(await self._connect(request), request, slot)
        if isinstance(outcome, _Broken):
            raise TransportFault(outcome.error)
        return outcome

    def _take(self, origin: str) -> _Wire | None:
        """Return the idle connection of the last use, which the server is the least likely to have closed."""
        idle, since = self._idle.get(origin), self._loop.time() - IDLE_S
        while idle:
            wire = idle.pop()
            if wire.is_usable(since):
                wire.reused = True
                return wire
            wire.close()
        return None

    async def _connect(self, request: Outgoing) -> _Wire:
        try:
            handler = await self._connector.open(self._route(request), request.limits.connect_s)
        except PROBLEMS as problem:
            error = _map_connecting(problem, request)
        else:
            if isinstance(handler, _Handler) and handler.transport is not None:
                return _Wire(handler, handler.transport)
            error = network_error("reset", request.wire)
        raise TransportFault(error)

    def _route(self, request: Outgoing) -> ClientRequest:
        """Return where to connect to, as aiohttp's connector wants it."""
        proxy, url = self._proxy, URL(f"{request.address.origin}/")
        if proxy is None:
            return ClientRequest("GET", url, loop=self._loop, ssl=self._tls_for(url))
        return ClientRequest(
            "GET",
            url,
            loop=self._loop,
            ssl=self._tls_for(url, proxy.url),
            proxy=proxy.url,
            proxy_headers=dict(proxy.headers),
        )

    def _tls_for(self, *urls: URL) -> ssl.SSLContext | bool:
        """Return the certificates if an address needs them: loading them takes 20 to 70 ms."""
        if all(url.scheme == "http" for url in urls):
            return True
        tls = self.tls()
        tls.set_alpn_protocols(["http/1.1"])
        return tls

    async def _try_send(self, wire: _Wire, request: Outgoing, slot: int) -> "FastResponse | _Broken":
        wire.handler.expect()
        broken = True
        try:
            wire.handler.set_response_params(
                read_until_eof=True,
                auto_decompress=False,
                read_bufsize=caps.STEP_BYTES,
                max_line_size=caps.HEADER_BYTES,
                max_field_size=caps.HEADER_BYTES,
                max_headers=caps.HEADERS,
            )
            await self._write(wire, request)
            message, payload = await self._read_head(wire, request)
            broken = False
        except PROBLEMS as problem:
            stale = wire.reused and not wire.handler.heard and _is_disconnect(problem)
            return _Broken(_map_problem(problem, request, "first_content"), stale)
        finally:
            if broken:
                await self.drop(wire)
        return FastResponse(message.code, message.raw_headers, payload, wire, request, self, slot)

    async def _write(self, wire: _Wire, request: Outgoing) -> None:
        head, body = self._head(request), request.wire.body
        if len(body) <= TOGETHER:
            wire.transport.write(head + body)
        else:
            wire.transport.write(head)
            wire.transport.write(body)
        if wire.handler.writing_paused:
            await self._drain(wire, request)

    async def _drain(self, wire: _Wire, request: Outgoing) -> None:
        """Wait until most of the request is sent; the response may say why a server reads no more of it."""
        try:
            async with asyncio.timeout(request.limits.send_s):
                await StreamWriter(wire.handler, self._loop).drain()
        except TimeoutError as problem:
            raise _SendTimeoutError from problem
        except OSError:
            return

    def _head(self, request: Outgoing) -> bytes:
        """Encode the request line and the headers."""
        through = self._proxy if request.address.scheme == "http" else None
        target = request.address.target if through is None else request.address.origin.encode() + request.address.target
        lines = [b"%b %b HTTP/1.1" % (request.method.encode(), target)]
        lines += [b"%b: %b" % header for header in request.headers]
        if through is not None:
            lines += [f"{name}: {value}".encode() for name, value in through.headers.items()]
        return b"\r\n".join([*lines, b"", b""])

    async def _read_head(self, wire: _Wire, request: Outgoing) -> tuple[RawResponseMessage, StreamReader]:
        """Wait for the head of the response; informational ones before it are skipped."""
        timer = self.after_silence(request, wire.handler.set_exception)
        try:
            message, payload = await wire.handler.read()
            while 100 <= message.code < 200 and message.code != 101:
                message, payload = await wire.handler.read()
        finally:
            if timer is not None:
                timer.cancel()
        return message, payload

    def keep(self, wire: _Wire, request: Outgoing) -> None:
        """Keep a connection for the next call, and close those that were idle for long."""
        now = wire.idle_since = self._loop.time()
        self._idle.setdefault(request.address.origin, []).append(wire)
        if now >= self._next_sweep:
            self._next_sweep = now + IDLE_S / 10
            self._sweep(now - IDLE_S)

    def _sweep(self, since: float) -> None:
        for origin, idle in tuple(self._idle.items()):
            usable = [wire for wire in idle if wire.is_usable(since)]
            for wire in idle:
                if wire not in usable:
                    wire.close()
            self._idle[origin] = usable
            if not usable:
                del self._idle[origin]

    async def drop(self, wire: _Wire) -> None:
        """Close a connection before this returns, also when cancelled."""
        wire.close()
        await _let_close()

    async def finish(self, wire: _Wire, request: Outgoing, slot: int) -> None:
        """Keep or close the connection of a call, and release its slot."""
        try:
            if self._closed or wire.handler.should_close:
                await self.drop(wire)
            else:
                self.keep(wire, request)
        finally:
            self.limiter.release(slot)


@final
@define(eq=False, repr=False)
class FastResponse:
    """A response whose head has arrived, with the connection and the slot that it holds."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    _payload: StreamReader
    _wire: _Wire
    _request: Outgoing
    _pool: FastConnections
    _slot: int
    _taken: int = 0

    async def read(self) -> bytes | LLMError | None:
        """Return all that has arrived of the body, or wait for more of it."""
        payload = self._payload
        if payload.total_bytes > self._taken:  # also of a connection that broke after it
            piece = payload._read_nowait(-1)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        elif payload.is_eof():
            return None
        elif not self._wire.handler.connected and payload.exception() is None:
            return network_error("reset", self._request.wire)
        else:
            try:
                piece = await self._wait()
            except PROBLEMS as problem:
                return _map_problem(problem, self._request, "between_content" if self._taken else "first_content")
        self._taken += len(piece)
        return piece or None

    async def _wait(self) -> bytes:
        """Wait for bytes; only the silence of the server counts, not the time of a reader that is busy elsewhere."""
        timer = self._pool.after_silence(self._request, self._payload.set_exception)
        try:
            return await self._payload.readany()
        finally:
            if timer is not None:
                timer.cancel()

    async def aclose(self) -> None:
        """Keep the connection if the whole body has arrived; otherwise close it, even when cancelled."""
        await self._pool.finish(self._wire, self._request, self._slot)


async def _let_close() -> None:
    """Wait until the event loop has closed the sockets of aborted connections."""
    with CancelScope(shield=True):
        await checkpoint()


def _is_disconnect(problem: Problem) -> bool:
    own = isinstance(problem, _SilentServerError | _SendTimeoutError)
    return isinstance(problem, ServerDisconnectedError | OSError) and not own


def _map_connecting(problem: Problem, request: Outgoing) -> LLMError:
    """Map an exception raised while connecting to an error."""
    cause = cause_of(problem, *request.wire.secrets)
    match problem:
        case InvalidURL() | UnicodeError():
            return ConfigurationError(message=f"this request cannot be sent: {cause.message}", cause=cause)
        case ClientHttpProxyError():
            return proxy_error(request.wire, cause, needs_password=problem.status == PROXY_AUTHENTICATION_REQUIRED)
        case TimeoutError() if problem.errno is None:
            return RequestTimeout(phase="connect", timeout_ms=request.limits.connect_s * 1000, cause=cause)
        case _:
            return connection_error(problem, request.wire, cause, connecting=True)


def _map_problem(problem: Problem, request: Outgoing, phase: TimeoutPhase) -> LLMError:
    """Map an exception of an open connection to an error; ``phase`` is what was waited for."""
    cause = cause_of(problem, *request.wire.secrets)
    match problem:
        case _SilentServerError():
            limit = request.limits.read_s
            return RequestTimeout(phase=phase, timeout_ms=None if limit is None else limit * 1000, cause=cause)
        case _SendTimeoutError():
            return RequestTimeout(phase="send", timeout_ms=request.limits.send_s * 1000, cause=cause)
        case HttpProcessingError():
            return network_error("protocol", request.wire, cause)
        case _:
            return connection_error(problem, request.wire, cause, connecting=False)
