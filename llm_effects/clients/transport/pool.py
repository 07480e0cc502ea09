"""The connections of httpx, many small pools behind a queue, and its exceptions as errors.

httpx's own pool leaks connections when a call that queues in it is cancelled, and its bookkeeping is quadratic in its
connections. So calls never queue there: a call acquires a numbered slot here first, and slot ``n`` belongs to the small
pool ``n // size``, which never has more calls than connections.
"""

import functools
import logging
import ssl
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Final, TypeAlias, cast, final, get_args

import anyio
import httpcore
import httpx
from anyio.lowlevel import checkpoint
from attrs import define, field, frozen

from llm_effects.clients.transport.connections import (
    IDLE_S,
    Address,
    Limiter,
    Outgoing,
    TransportFault,
    connection_error,
    is_httpx_itself,
    join_chunks,
    network_error,
    proxy_error,
    trusted,
)
from llm_effects.clients.transport.network import Network
from llm_effects.effects.tasks import OnSent, loop_clock
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
from llm_effects.values.secrets import scrub
from llm_effects.values.value import Value

MakePool: TypeAlias = Callable[[int], httpx.AsyncBaseTransport]
"""A factory of pools, from their number of connections."""


def http_pool(size: int, tls: ssl.SSLContext | None = None, proxy: str | None = None) -> httpx.AsyncBaseTransport:
    """Open a pool of at most ``size`` connections, without retries and redirects."""
    limits = httpx.Limits(max_connections=size, max_keepalive_connections=size, keepalive_expiry=IDLE_S)
    if proxy is None:
        return DirectPool(verify=tls or trusted(), limits=limits)
    return httpx.AsyncHTTPTransport(verify=tls or trusted(), proxy=proxy, limits=limits)


def plain_pool(size: int) -> httpx.AsyncBaseTransport:
    """Open a pool for ``http://`` alone, which trusts no certificate: loading those takes 20 to 70 ms."""
    return http_pool(size, _trusting_none())


@functools.cache
def _trusting_none() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # 0.2 ms, for each of 125 pools of a thousand calls


@final
@define(eq=False, repr=False)
class Shard:
    """One small pool and its number of calls; a retired shard accepts no new calls and its last call closes it."""

    pool: httpx.AsyncBaseTransport
    calls: int = 0
    retired: bool = False
    idle_since: float = 0.0


@final
@define(eq=False, repr=False)
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
@define(eq=False, repr=False)
class ShardedPool:
    """The small pools of one event loop, opened on demand; ``users`` counts the calls and scopes that hold it.

    With ``make_plain``, requests to ``http://`` have pools of their own, which it opens.
    """

    make: MakePool
    size: int
    limiter: Limiter
    make_plain: MakePool | None = None
    users: int = 0
    _clock: Callable[[], float] = field(factory=loop_clock, init=False)
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
        try:
            return Slot(number, key, self._join(key))
        except BaseException:  # no pool can be made
            self.limiter.release(number)
            raise

    async def release(self, slot: Slot) -> None:
        """Pass a slot on, and close the pools that nothing uses any more."""
        self.limiter.release(slot.number)
        await close_all([*self._leave(slot.shard), *self._pop_idle()])

    async def send(self, request: Outgoing, admitted: OnSent) -> "PooledResponse":
        """Send a request through the pool of a slot, which the response holds until it is closed.

        If its reused connection turns out to be closed, it is sent once more, on a new one.
        """
        slot = await self.acquire(plain=request.address.scheme == "http")
        try:
            admitted()
            received = await _try_send(self, slot, request)
            if isinstance(received, _SendFailure) and received.stale:
                await self.renew(slot)
                received = await _try_send(self, slot, request)
            if isinstance(received, _SendFailure):
                raise TransportFault(received.error)  # noqa: TRY301 - the slot is released below
        except BaseException:
            await self.release(slot)
            raise
        to_error = functools.partial(map_exception, request=request.wire, limits=request.limits)
        return PooledResponse(*received, to_error, functools.partial(self.release, slot))

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
        shard.idle_since = self._clock()
        return (shard.pool,) if shard.retired and not shard.calls else ()

    def _pop_idle(self) -> tuple[httpx.AsyncBaseTransport, ...]:
        """Remove the shards that a burst left idle: without new calls, httpx does not expire their connections."""
        now = self._clock()
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

CoreProblem: TypeAlias = (
    httpcore.TimeoutException
    | httpcore.NetworkError
    | httpcore.ProtocolError
    | httpcore.ProxyError
    | httpcore.UnsupportedProtocol
)
"""Exceptions of httpcore, each with a namesake in httpx."""

WireProblem: TypeAlias = CoreProblem | httpx.HTTPError | httpx.InvalidURL | OSError | UnicodeError
"""Exceptions that a pool raises for reasons outside of this program; any other is a bug or a cancellation."""

WIRE_PROBLEMS: Final = (*get_args(CoreProblem), httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError)
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
    problem = _by_httpx(problem)
    cause = cause_of(problem, *request.secrets)
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


def _by_httpx(problem: WireProblem) -> WireProblem:
    """Return the namesake in httpx of an exception of httpcore, as httpx's transport does."""
    if not isinstance(problem, CoreProblem):
        return problem
    namesake: type[httpx.TransportError] = getattr(httpx, type(problem).__name__)
    named = namesake(str(problem))
    named.__cause__ = problem
    return named


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


# One request, by httpcore below httpx's transport, or by a transport of httpx that stands in its place.

Received: TypeAlias = tuple[int, Sequence[tuple[bytes, bytes]], AsyncIterable[bytes]]
"""The status, the header lines and the body of a response."""


@final
@define(eq=False, repr=False)
class _Sending:
    """A request under way: whether its connection is being made, and whether it was kept from earlier."""

    wire: WireRequest
    connecting: bool = False
    reused: bool = False
    _connected: bool = False

    def connect(self) -> None:
        """Note that a connection is being made."""
        self.connecting = self._connected = True

    def begin(self) -> None:
        """Note that there is a connection, and that the request goes out over it."""
        self.connecting, self.reused = False, not self._connected

    async def __call__(self, event: str, _: Mapping[str, object]) -> None:
        """Note the events of httpcore's ``trace``, which takes 20 microseconds a call: only where needed."""
        if event == "connection.connect_tcp.started":
            self.connect()
        elif event == "http11.send_request_headers.started":
            self.begin()


_sending: Final[ContextVar[_Sending | None]] = ContextVar("llm_effects.sending", default=None)


def _mask_record(record: logging.LogRecord) -> bool:
    """Mask the secrets of a request in what httpcore logs of it: at DEBUG, all headers of the response."""
    sending = _sending.get()
    if sending is not None:
        record.msg, record.args = scrub(record.getMessage(), *sending.wire.secrets), ()
    return True


logging.getLogger("httpcore.http11").addFilter(_mask_record)


@final
@frozen(eq=False, repr=False)
class _SendFailure(Value):
    """A request without a response; ``stale`` means that the server had closed its reused connection before."""

    error: LLMError
    stale: bool


async def _try_send(pool: ShardedPool, slot: Slot, request: Outgoing) -> Received | _SendFailure:
    sending = _Sending(request.wire)
    token = _sending.set(sending)
    try:
        if isinstance(slot.pool, DirectPool) and is_httpx_itself():
            return await slot.pool.send(request, sending)
        return await _send_by_httpx(slot.pool, request, sending)
    except WIRE_PROBLEMS as problem:
        sending.connecting = False
        error = map_exception(problem, False, request=request.wire, limits=request.limits)
        return _SendFailure(error, sending.reused and _is_unanswered(problem))
    finally:
        _sending.reset(token)
        if sending.connecting:  # cancelled: httpcore may keep a connection that it neither uses nor closes
            pool.retire(slot)


async def _send_by_httpx(pool: httpx.AsyncBaseTransport, request: Outgoing, sending: _Sending) -> Received:
    body = _HttpxBody(_RequestBody(request.wire.body))
    extensions = {"timeout": _timeouts(request.limits), "trace": sending}
    sent = httpx.Request(
        request.method, _url(request.wire.url), headers=[*request.headers], stream=body, extensions=extensions
    )
    response = await pool.handle_async_request(sent)
    if not isinstance(response.stream, httpx.AsyncByteStream):
        msg = f"the pool returned a stream that cannot be awaited: {type(response.stream).__name__}"
        raise TypeError(msg)
    return response.status_code, response.headers.raw, response.stream


_url = functools.lru_cache(maxsize=256)(httpx.URL)


@functools.lru_cache(maxsize=256)
def _core_url(address: Address) -> httpcore.URL:
    return httpcore.URL(address.origin.encode("ascii") + address.target)


def _timeouts(limits: Timeouts) -> dict[str, float | None]:
    return {"connect": limits.connect_s, "read": limits.read_s, "write": limits.send_s, "pool": None}


@final
class DirectPool(httpx.AsyncHTTPTransport):
    """The connections of httpx's transport, without its requests and responses, and with one write for each request.

    What httpx adds to httpcore takes 60 microseconds a call, and a write of the head alone 40.
    """

    def __init__(self, verify: ssl.SSLContext, limits: httpx.Limits) -> None:
        # What httpx's own constructor does, which takes no network.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=verify,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=Network(_note_connecting),
        )

    async def send(self, request: Outgoing, sending: _Sending) -> Received:
        """Send a request and wait for the head of its response."""
        sent = httpcore.Request(
            request.method,
            _core_url(request.address),
            headers=request.headers,
            content=_RequestBody(request.wire.body, sending),
            extensions={"timeout": _timeouts(request.limits)},
        )
        response = await self._pool.handle_async_request(sent)
        return response.status, response.headers, cast("AsyncIterable[bytes]", response.stream)


def _note_connecting() -> None:
    sending = _sending.get()
    if sending is not None:
        sending.connect()


@final
@define(eq=False, repr=False)
class _RequestBody(AsyncIterator[bytes]):
    """A request body in one piece; a generator would be left to the collector by a cancelled call."""

    _body: bytes | None
    _sending: _Sending | None = None

    async def __anext__(self) -> bytes:
        if self._body is None:
            raise StopAsyncIteration
        if self._sending is not None:
            self._sending.begin()  # after the head
        body, self._body = self._body, None
        return body


@final
class _HttpxBody(httpx.AsyncByteStream):
    def __init__(self, body: _RequestBody) -> None:
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._body


def _is_unanswered(problem: WireProblem) -> bool:
    match problem:
        case httpx.ReadError() | httpx.WriteError() | httpcore.ReadError() | httpcore.WriteError():
            return True
        case httpx.RemoteProtocolError() | httpcore.RemoteProtocolError():
            return "without sending a response" in str(problem)
        case _:
            return False


@final
@define(eq=False, repr=False)
class PooledResponse:
    """A response of a pool and the slot that it holds.

    It drives the generator of the pool by hand, so a reader can stop anywhere: ``aclose`` closes a half-read body.
    """

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    _stream: AsyncIterable[bytes]
    _to_error: ToError
    _release: Callable[[], Awaitable[None]]
    _chunks: AsyncIterator[bytes] = field(init=False)
    _started: bool = field(default=False, init=False)
    _suspended: bool = field(default=False, init=False)
    _ended: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        join_chunks(self._stream)
        self._chunks = aiter(self._stream)

    async def read(self) -> bytes | LLMError | None:
        """Return the next chunk as the pool has it."""
        self._suspended = False
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self._ended = True
            return None
        except WIRE_PROBLEMS as problem:
            return self._to_error(problem, self._started)
        self._suspended = self._started = True
        return chunk

    async def aclose(self) -> None:
        """Close the body and release the slot."""
        try:
            if self._ended:  # nothing to wait for: a time limit would take 7 microseconds
                await _close(self._stream)
                return
            with anyio.move_on_after(CLOSING_S, shield=True):
                await _close(self._stream)
            if self._suspended:
                await _exhaust(self._chunks)
        finally:
            await self._release()


async def _close(stream: object) -> None:
    close: Callable[[], Awaitable[None]] | None = getattr(stream, "aclose", None)
    if close is not None:
        await close()


# More chunks than any connection reads ahead; only a stream that ignores its own close has more.
_BUFFERED: Final = 20_000


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
