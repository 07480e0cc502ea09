"""The connections of httpx, many small pools behind a queue, and its exceptions as errors.

httpx's own pool leaks connections when a call that queues in it is cancelled, and its bookkeeping is quadratic in its
connections. So calls never queue there: a call acquires a numbered slot here first, and slot ``n`` belongs to the small
pool ``n // size``, which never has more calls than connections.
"""

import functools
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Final, TypeAlias, final

import anyio
import httpx
from anyio.lowlevel import checkpoint
from attrs import define, field, frozen

from llm_effects.clients.transport.connections import (
    IDLE_S,
    Limiter,
    Outgoing,
    TransportFault,
    connection_error,
    network_error,
    proxy_error,
    trusted,
)
from llm_effects.effects.tasks import OnSent
from llm_effects.providers.wire import CLOSING_S, Timeouts, WireRequest
from llm_effects.values import caps
from llm_effects.values.errors import (
    Cause,
    ConfigurationError,
    LLMError,
    NetworkPhase,
    RequestTimeout,
    TimeoutPhase,
    cause_of,
)
from llm_effects.values.secrets import scrub, secret_values

MakePool: TypeAlias = Callable[[int], httpx.AsyncBaseTransport]
"""A factory of pools, from their number of connections."""


def http_pool(size: int, tls: ssl.SSLContext | None = None, proxy: str | None = None) -> httpx.AsyncBaseTransport:
    """Open a pool of at most ``size`` connections, without retries and redirects."""
    limits = httpx.Limits(max_connections=size, max_keepalive_connections=size, keepalive_expiry=IDLE_S)
    return httpx.AsyncHTTPTransport(verify=tls or trusted(), proxy=proxy, limits=limits)


def plain_pool(size: int) -> httpx.AsyncBaseTransport:
    """Open a pool for ``http://`` alone, which trusts no certificate: loading those takes 20 to 70 ms."""
    return http_pool(size, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


@final
@define(eq=False)
class Shard:
    """One small pool and its number of calls; a retired shard accepts no new calls and its last call closes it."""

    pool: httpx.AsyncBaseTransport
    calls: int = 0
    retired: bool = False
    idle_since: float = 0.0


@final
@define(eq=False)
class Slot:
    """The slot of one call: its number, its shard, and the key of that among the shards."""

    number: int
    key: tuple[int, bool]
    shard: Shard

    @property
    def pool(self) -> httpx.AsyncBaseTransport:
        """The pool that sends the call."""
        return self.shard.pool


@final
@define(eq=False)
class ShardedPool:
    """The small pools of one event loop, opened on demand; ``users`` counts the calls and scopes that hold it.

    With ``make_plain``, requests to ``http://`` have pools of their own, which it opens.
    """

    make: MakePool = field(repr=False)  # it may hold the password of a proxy
    size: int
    limiter: Limiter
    make_plain: MakePool | None = None
    users: int = 0
    _shards: dict[tuple[int, bool], Shard] = field(factory=dict[tuple[int, bool], Shard], init=False)
    _next_sweep: float = field(default=0.0, init=False)

    @asynccontextmanager
    async def slot(self) -> AsyncGenerator[Slot]:
        """Wait for a slot and hold it."""
        slot = await self.acquire()
        try:
            yield slot
        finally:
            await self.release(slot)

    async def acquire(self, *, plain: bool = False) -> Slot:
        """Wait for a slot, for a ``plain`` request or one with TLS; release it once."""
        number = await self.limiter.acquire()
        key = (number // self.size, plain and self.make_plain is not None)
        return Slot(number, key, self._join(key))

    async def release(self, slot: Slot) -> None:
        """Pass a slot on, and close the pools that nothing uses any more."""
        self.limiter.release(slot.number)
        await close_all([*self._leave(slot.shard), *self._pop_idle()])

    async def send(self, request: Outgoing, admitted: OnSent) -> "HttpxResponse":
        """Send a request through the pool of a slot, which the response holds until it is closed."""
        to_error = functools.partial(map_exception, request=request.wire, limits=request.limits)
        slot = await self.acquire(plain=request.address.scheme == "http")
        try:
            admitted()
            with _masked_logs(request.wire):
                response = await _send_fresh(self, slot, _httpx_request(request), to_error)
            return HttpxResponse(response, to_error, functools.partial(self.release, slot))
        except BaseException:
            await self.release(slot)
            raise

    async def renew(self, slot: Slot) -> None:
        """Move a slot to a new shard, which has no old connections."""
        self.retire(slot)
        old, slot.shard = slot.shard, self._join(slot.key)
        await close_all(self._leave(old))

    def retire(self, slot: Slot) -> None:
        """Send no more calls to the shard of a slot."""
        slot.shard.retired = True
        if self._shards.get(slot.key) is slot.shard:
            del self._shards[slot.key]

    async def aclose(self) -> None:
        """Close the idle shards now; the last call of each other shard closes it."""
        shards, self._shards = tuple(self._shards.values()), {}
        for shard in shards:
            shard.retired = True
        await close_all(shard.pool for shard in shards if not shard.calls)

    def _join(self, key: tuple[int, bool]) -> Shard:
        shard = self._shards.get(key)
        if shard is None:
            make = self.make_plain if self.make_plain is not None and key[1] else self.make
            shard = self._shards[key] = Shard(make(self.size))
        shard.calls += 1
        return shard

    def _leave(self, shard: Shard) -> tuple[httpx.AsyncBaseTransport, ...]:
        """Leave a shard and return the pool to close now, if any."""
        shard.calls -= 1
        shard.idle_since = anyio.current_time()
        return (shard.pool,) if shard.retired and not shard.calls else ()

    def _pop_idle(self) -> tuple[httpx.AsyncBaseTransport, ...]:
        """Remove the shards that a burst left idle: without new calls, httpx does not expire their connections."""
        now = anyio.current_time()
        if now < self._next_sweep:
            return ()
        self._next_sweep = now + IDLE_S / 10
        idle = [key for key, each in self._shards.items() if not each.calls and each.idle_since < now - IDLE_S]
        return tuple(self._shards.pop(key).pool for key in idle)


async def close_all(pools: Iterable[httpx.AsyncBaseTransport]) -> None:
    """Close pools in bounded time, also under cancellation."""
    for pool in pools:
        with anyio.move_on_after(CLOSING_S, shield=True):
            await pool.aclose()


# The exceptions of httpx.

WireProblem: TypeAlias = httpx.HTTPError | httpx.InvalidURL | OSError | UnicodeError
"""Exceptions that a pool raises for reasons outside of this program; any other is a bug or a cancellation."""

WIRE_PROBLEMS: Final = (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError)
"""The same classes, for ``except`` clauses."""


ToError: TypeAlias = Callable[[WireProblem, bool], LLMError]
"""A mapping from an exception, and whether part of the response body has arrived, to an error."""


_PROXY_AUTH: Final = ("407", "auth", "password")

# How httpcore and h11 describe a response that ends too early.
_TRUNCATED: Final = ("disconnected", "peer closed", "incomplete")


def map_exception(problem: WireProblem, started: bool, *, request: WireRequest, limits: Timeouts) -> LLMError:
    """Map an exception to an error; ``started`` means that part of the response body has arrived.

    >>> request = WireRequest(url="http://localhost:1/v1", headers=(), body=b"")
    >>> error = map_exception(httpx.ConnectTimeout(""), False, request=request, limits=Timeouts(connect_s=2))
    >>> error.tag, error.phase, error.timeout_ms
    ('TimeoutError', 'connect', 2000)
    """
    cause = cause_of(problem, *secret_values(request.headers))
    match problem:
        case httpx.TimeoutException():
            return _timeout(problem, limits, started, cause)
        case httpx.InvalidURL() | httpx.UnsupportedProtocol() | httpx.LocalProtocolError() | UnicodeError():
            return ConfigurationError(message=f"this request cannot be sent: {cause.message}", cause=cause)
        case httpx.ProxyError():
            needs_password = any(word in cause.message.lower() for word in _PROXY_AUTH)
            return proxy_error(request, cause, needs_password=needs_password)
        case httpx.RemoteProtocolError():
            return network_error(_protocol_phase(cause), request, cause)
        case _:
            return connection_error(problem, request, cause, connecting=isinstance(problem, httpx.ConnectError))


def _protocol_phase(cause: Cause) -> NetworkPhase:
    return "reset" if any(words in cause.message for words in _TRUNCATED) else "protocol"


def _timeout(problem: httpx.TimeoutException, limits: Timeouts, started: bool, cause: Cause) -> LLMError:
    read: TimeoutPhase = "between_content" if started else "first_content"
    phases: dict[type[httpx.TimeoutException], tuple[TimeoutPhase, float | None]] = {
        httpx.ConnectTimeout: ("connect", limits.connect_s),
        httpx.WriteTimeout: ("send", limits.send_s),
        httpx.PoolTimeout: ("queue", None),
    }
    phase, seconds = phases.get(type(problem), (read, limits.read_s))
    return RequestTimeout(phase=phase, timeout_ms=None if seconds is None else seconds * 1000, cause=cause)


# The requests and responses of httpx.


_url = functools.lru_cache(maxsize=256)(httpx.URL)


def _httpx_request(request: Outgoing) -> httpx.Request:
    limits = request.limits
    timeout = {"connect": limits.connect_s, "read": limits.read_s, "write": limits.send_s, "pool": None}
    return httpx.Request(
        request.method,
        _url(request.wire.url),
        headers=request.headers,
        stream=_RequestBody(request.wire.body),
        extensions={"timeout": timeout},
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


@final
@define(eq=False, repr=False)
class HttpxResponse:
    """A response of httpx and the slot that it holds.

    It drives the generator of httpx by hand, so a reader can stop anywhere: ``aclose`` closes a half-read body.
    """

    _response: httpx.Response
    _to_error: ToError
    _release: Callable[[], Awaitable[None]]
    _stream: httpx.AsyncByteStream = field(init=False)
    _chunks: AsyncIterator[bytes] = field(init=False)
    _started: bool = field(default=False, init=False)
    _suspended: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._stream = _stream(self._response)
        self._chunks = aiter(self._stream)

    @property
    def status(self) -> int:
        """The status code."""
        return self._response.status_code

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """The header lines as they came."""
        return self._response.headers.raw

    async def read(self) -> bytes | LLMError | None:
        """Return the next chunk as httpx has it."""
        self._suspended = False
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            return None
        except WIRE_PROBLEMS as problem:
            return self._to_error(problem, self._started)
        self._suspended = self._started = True
        return chunk

    async def aclose(self) -> None:
        """Close the body and release the slot."""
        try:
            with anyio.move_on_after(CLOSING_S, shield=True):
                await self._stream.aclose()
            if self._suspended:
                await _exhaust(self._chunks)
        finally:
            await self._release()


# More chunks than any connection reads ahead; only a stream that ignores its own close has more.
_BUFFERED: Final = 20_000


def _stream(response: httpx.Response) -> httpx.AsyncByteStream:
    if isinstance(response.stream, httpx.AsyncByteStream):
        return response.stream
    msg = f"the pool returned a stream that cannot be awaited: {type(response.stream).__name__}"
    raise TypeError(msg)


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
