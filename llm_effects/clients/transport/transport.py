"""The HTTP edge: from a ``WireRequest`` to bytes and back, with each way to fail told as an error.

httpx's transports are driven directly, without its client: no redirect is followed, no cookie kept, no proxy or
netrc looked up, and a call costs less. No call is bounded as a whole, nor sent again because of its answer:
that is for the layers above.
"""

import functools
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias, final

import httpx
from attrs import define, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.clients.transport.body import Body, Decoder
from llm_effects.clients.transport.faults import WIRE_PROBLEMS, TransportFault, WireProblem, fault_of
from llm_effects.clients.transport.pool import LoopPools, MakePool, Place, Pools, http_pool
from llm_effects.effects.tasks import Admitted, unheard
from llm_effects.providers.wire import Timeouts, WireRequest, WireResponse
from llm_effects.values.errors import ConfigurationError, LLMError, MalformedResponse, cause_of
from llm_effects.values.secrets import Secret
from llm_effects.values.validation import number

# From a ``WireRequest`` to httpx's request: the one place where secrets are revealed.


Method: TypeAlias = Literal["GET", "POST"]
"""What is done at a URL."""

Headers: TypeAlias = list[tuple[bytes, bytes]]
"""Header lines as they are sent."""

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"(?:[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)?")


def outgoing(method: Method, wire: WireRequest, limits: Timeouts) -> Result[httpx.Request, LLMError]:
    """Make the request that a pool takes; a URL or a header that cannot be sent is a ``ConfigurationError``.

    >>> wire = WireRequest(url="https://api.openai.com/v1", headers=(("authorization", Secret("Bearer sk")),), body=b"")
    >>> outgoing("GET", wire, Timeouts()).unwrap().headers["host"]
    'api.openai.com'
    """
    url = _url(wire.url)
    if not is_successful(url):
        return Failure(url.failure())
    waits = {"connect": limits.connect_s, "read": limits.read_s, "write": limits.send_s, "pool": None}
    return _headers(method, wire, url.unwrap()).map(
        lambda headers: httpx.Request(
            method, url.unwrap(), headers=headers, stream=_Whole(wire.body), extensions={"timeout": waits}
        )
    )


@functools.lru_cache(maxsize=256)
def _url(text: str) -> Result[httpx.URL, LLMError]:
    """Parse a URL, which takes long, once."""
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError) as problem:
        return Failure(ConfigurationError(message="the endpoint is no URL: copy it again", cause=cause_of(problem)))
    if url.scheme not in {"http", "https"} or not url.host:
        return Failure(ConfigurationError(message="the endpoint must be like https://host/v1"))
    if url.userinfo:
        return Failure(ConfigurationError(message="the endpoint must not hold a password: use api_key or headers"))
    return Success(url)


def _headers(method: Method, wire: WireRequest, url: httpx.URL) -> Result[Headers, LLMError]:
    """Reveal the caller's headers and add those that are missing."""
    given = [(name, value.reveal() if isinstance(value, Secret) else value) for name, value in wire.headers]
    for name, value in given:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            problem = f"the header {name[:40]!r} holds a character that no header may hold, such as the end of a line"
            return Failure(ConfigurationError(message=problem))
    names = {name.lower() for name, _ in given}
    own = [header for header in _own(method, wire, url) if header[0] not in names]
    return Success([(name.encode("ascii"), value.encode("ascii")) for name, value in (*own, *given)])


def _own(method: Method, wire: WireRequest, url: httpx.URL) -> tuple[tuple[str, str], ...]:
    length = () if method == "GET" else (("content-length", str(len(wire.body))),)
    return (
        ("host", url.netloc.decode("ascii")),
        ("accept", "*/*"),
        ("accept-encoding", "gzip"),
        ("user-agent", "llm-effects"),
        *length,
    )


@final
class _Whole(httpx.ByteStream):
    """A body in one piece; httpx's own is read by a generator, which a cancelled call leaves for the collector."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(self._body)


@final
@define(eq=False, repr=False)
class _Once(AsyncIterator[bytes]):
    _body: bytes | None

    async def __anext__(self) -> bytes:
        if self._body is None:
            raise StopAsyncIteration
        body, self._body = self._body, None
        return body


@final
@define(eq=False)
class Streamed:
    """An answer that is still coming in: header names in lower case, ``chunks`` decoded from their transfer.

    ``received`` is the wall time of its headers, against which a server's dates are read.
    """

    status: int
    headers: Mapping[str, str]
    received: datetime
    _body: Body = field(repr=False)
    _max_bytes: int

    def chunks(self) -> AsyncIterator[bytes]:
        """Give the body piece by piece; a break raises ``TransportFault``."""
        return self._body

    async def read(self) -> bytes:
        """Give the rest of the body at once; one of more than ``max_bytes`` is refused."""
        pieces, size = list[bytes](), 0
        async for piece in self._body:
            pieces.append(piece)
            size += len(piece)
            if size > self._max_bytes:
                raise TransportFault(MalformedResponse(message=f"the answer is larger than {self._max_bytes} bytes"))
        return b"".join(pieces)


@final
@define(eq=False, kw_only=True)
class Transport:
    """Sends requests over connections that it keeps for each event loop; every failure is a ``TransportFault``.

    At most ``max_connections`` calls are under way in a loop, in pools of ``pool_size``; others wait in order, and
    ``admitted`` is called when their turn has come. A body read at once may have
    ``max_bytes``, one read as it comes ``max_stream_bytes``.

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
    max_bytes: int = field(default=32 * 2**20, validator=number(at_least=1, whole=True))
    max_stream_bytes: int = field(default=2**30, validator=number(at_least=1, whole=True))
    _pools: LoopPools = field(init=False, repr=False)
    _closed: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._pools = LoopPools(make=self.make_pool, places=self.max_connections, size=self.pool_size)

    async def exchange(self, request: WireRequest, limits: Timeouts, admitted: Admitted = unheard) -> WireResponse:
        """Post a request and read its whole answer, whatever its status."""
        async with self._answer("POST", request, limits, admitted) as answer:
            return await _whole(answer)

    def stream(
        self, request: WireRequest, limits: Timeouts, admitted: Admitted = unheard
    ) -> AbstractAsyncContextManager[Streamed]:
        """Post a request and read its answer as it comes; leaving early closes the connection."""
        return self._answer("POST", request, limits, admitted)

    async def fetch(self, url: str, headers: tuple[tuple[str, str | Secret], ...], limits: Timeouts) -> WireResponse:
        """Get what is at a URL."""
        request = WireRequest(url=url, headers=headers, body=b"")
        async with self._answer("GET", request, limits) as answer:
            return await _whole(answer)

    @asynccontextmanager
    async def scope(self) -> AsyncGenerator[None]:
        """Keep connections of this event loop for the next call, until the scope ends."""
        async with self._pools.held():
            yield

    async def aclose(self) -> None:
        """Take no more calls; those under way end as they would. Closing twice is fine."""
        self._closed = True
        await self._pools.aclose()

    @asynccontextmanager
    async def _answer(
        self, method: Method, wire: WireRequest, limits: Timeouts, admitted: Admitted = unheard
    ) -> AsyncGenerator[Streamed]:
        self._require_open()
        request = outgoing(method, wire, limits)
        if not is_successful(request):
            raise TransportFault(request.failure())
        async with self._pools.held() as pools, pools.place() as place:
            self._require_open()  # it may have been closed while this call stood in the queue
            admitted()
            explain = _Explain(wire, limits)
            response = await _response(pools, place, request.unwrap(), explain)
            headers = _lowered(response.headers.raw)
            body = Body(
                _stream(response), Decoder(headers.get("content-encoding", "").lower(), self.max_stream_bytes), explain
            )
            try:
                yield Streamed(response.status_code, headers, datetime.now(UTC), body, self.max_bytes)
            finally:
                await body.aclose()

    def _require_open(self) -> None:
        if self._closed:
            raise TransportFault(ConfigurationError(message="the environment is closed: open a new one for this call"))


@final
@frozen
class _Explain:
    """What an exception of the wire means for one request."""

    wire: WireRequest
    limits: Timeouts

    def __call__(self, problem: WireProblem, begun: bool) -> LLMError:
        return fault_of(problem, self.wire, self.limits, begun=begun)


@final
@define(eq=False)
class _Trace:
    """What the pool tells of a call's connection: that it is being made, and that it is an old one."""

    connecting: bool = False
    kept: bool = False
    fresh: bool = False

    async def __call__(self, event: str, _: Mapping[str, object]) -> None:
        if event == "connection.connect_tcp.started":
            self.connecting = self.fresh = True
        elif event == "http11.send_request_headers.started":
            self.connecting, self.kept = False, not self.fresh


@final
@frozen
class _Lost:
    """A request without an answer; ``stale`` says that its connection was an old one, closed before any byte."""

    error: LLMError
    stale: bool


async def _response(pools: Pools, place: Place, request: httpx.Request, explain: _Explain) -> httpx.Response:
    """Send a request; when the server had closed the kept connection meanwhile, once more on a new one."""
    answer = await _sent(pools, place, request, explain)
    if isinstance(answer, _Lost) and answer.stale:
        await pools.renew(place)
        answer = await _sent(pools, place, request, explain)
    if isinstance(answer, _Lost):
        raise TransportFault(answer.error)
    return answer


async def _sent(pools: Pools, place: Place, request: httpx.Request, explain: _Explain) -> httpx.Response | _Lost:
    request.extensions["trace"] = trace = _Trace()
    try:
        return await place.pool.handle_async_request(request)
    except WIRE_PROBLEMS as problem:
        trace.connecting = False
        return _Lost(explain(problem, False), trace.kept and _unanswered(problem))
    finally:
        if trace.connecting:  # cancelled: httpcore may keep a connection that it never uses nor closes
            pools.retire(place)


def _unanswered(problem: WireProblem) -> bool:
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
    msg = f"the pool gave a stream that cannot be awaited: {type(response.stream).__name__}"
    raise TypeError(msg)


async def _whole(answer: Streamed) -> WireResponse:
    body = await answer.read()
    return WireResponse(status=answer.status, headers=answer.headers, body=body, received=answer.received)


def _lowered(raw: list[tuple[bytes, bytes]]) -> Mapping[str, str]:
    """Read header lines: the same name twice is one list."""
    headers: dict[str, str] = {}
    for key, value in raw:
        name, text = key.decode("latin-1").lower(), value.decode("latin-1")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    return headers
