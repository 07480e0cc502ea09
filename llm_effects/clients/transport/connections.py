"""The seam between the transport and an HTTP library: checked requests, connections, and the faults of both.

A library is imported when its first connections open, since each takes as long as hundreds of calls.
"""

import errno
import os
import re
import select
import socket
import ssl
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import cache, lru_cache
from importlib import import_module
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NoReturn, Protocol, TypeAlias, TypeVar, cast, final

from anyio.lowlevel import EventLoopToken, current_token
from attrs import define, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.effects.tasks import OnSent
from llm_effects.providers.wire import Timeouts, WireRequest
from llm_effects.values.display import shown
from llm_effects.values.errors import Cause, ConfigurationError, LLMError, NetworkError, NetworkPhase, cause_of
from llm_effects.values.secrets import Secret

if TYPE_CHECKING:
    import h11
    from h11._readers import ChunkedReader
    from h11._receivebuffer import ReceiveBuffer

IDLE_S: Final = 30.0
"""Seconds that an unused connection is kept."""

TOGETHER: Final = 2**16
"""Bytes of a small request, whose body goes out with its head, in one packet."""


@final
@frozen
class Address:
    """A checked URL in its normal form: the origin is what connections are shared by, the target what is asked for.

    >>> address_of("http://localhost:1234/v1/models").unwrap()
    Address(scheme='http', origin='http://localhost:1234', target=b'/v1/models')
    >>> address_of("http://LOCALHOST:80/some path").unwrap()
    Address(scheme='http', origin='http://localhost', target=b'/some%20path')
    """

    __repr__ = shown

    scheme: str
    origin: str
    target: bytes

    @property
    def host(self) -> str:
        """The host, and the port unless it is the usual one."""
        return self.origin.removeprefix(f"{self.scheme}://")


_NORMAL: Final = re.compile(
    r"((https?)://"
    r"(?:[a-z][a-z0-9.-]*|127\.0\.0\.1)(?::(?!80/|443/)(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}))?)"
    r"((?:/(?!\.)[\w~:@$*+,;=.-]*)+(?:\?[\w~&=.-]+)?)",
    re.ASCII,
)
"""URLs that any parser leaves as they are: only others need the one of httpx, whose import takes 25 ms."""


@lru_cache(maxsize=256)
def address_of(url: str) -> Result[Address, LLMError]:
    """Parse and check a URL; parsing is slow, so results are cached."""
    normal = _NORMAL.fullmatch(url)
    if normal is not None:
        return Success(Address(scheme=normal[2], origin=normal[1], target=normal[3].encode()))
    return _parse(url)


def _parse(text: str) -> Result[Address, LLMError]:
    import_httpx()
    import httpx

    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError) as problem:
        return Failure(ConfigurationError(message="the endpoint is not a URL: copy it again", cause=cause_of(problem)))
    if url.scheme not in {"http", "https"} or not url.host:
        return Failure(ConfigurationError(message="the endpoint must be like https://host/v1"))
    if url.userinfo:
        return Failure(ConfigurationError(message="the endpoint must not hold a password: use api_key or headers"))
    return Success(Address(url.scheme, f"{url.scheme}://{url.netloc.decode('ascii')}", url.raw_path))


@final
@define(eq=False, repr=False)
class Outgoing:
    """A request that has been checked, with its secrets revealed."""

    method: str
    address: Address
    headers: tuple[tuple[bytes, bytes], ...]
    wire: WireRequest
    limits: Timeouts


Method: TypeAlias = Literal["GET", "POST"]
Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"(?:[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)?")


def build_request(method: Method, wire: WireRequest, limits: Timeouts) -> Result[Outgoing, LLMError]:
    """Check a request, the only place that reveals secrets; a bad URL or header is a ``ConfigurationError``.

    >>> wire = WireRequest(url="https://api.openai.com/v1", headers=(("authorization", Secret("Bearer sk")),), body=b"")
    >>> build_request("GET", wire, Timeouts()).unwrap().headers[0]
    (b'host', b'api.openai.com')
    """
    address = address_of(wire.url)
    if not is_successful(address):
        return Failure(address.failure())
    fixed = _fixed_headers(wire.headers, address.unwrap())
    if not is_successful(fixed):
        return Failure(fixed.failure())
    headers = _with_length(method, fixed.unwrap(), wire.body)
    if wire.key is not None:
        headers = (*headers, (wire.key[0].encode("ascii"), wire.key[1].reveal().encode("ascii")))
    return Success(Outgoing(method, address.unwrap(), headers, wire, limits))


@lru_cache(maxsize=256)
def _fixed_headers(given: tuple[tuple[str, str | Secret], ...], address: Address) -> Result[Headers, LLMError]:
    """Return the caller's headers, revealed, and the default ones that are missing, which are the same for each body.

    Checking and encoding them takes 5 microseconds, finding them here 1.
    """
    revealed = [(name, value.reveal() if isinstance(value, Secret) else value) for name, value in given]
    for name, value in revealed:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            problem = f"the header {name[:40]!r} holds a character that headers cannot contain, such as a line break"
            return Failure(ConfigurationError(message=problem))
    names, host = {name.lower() for name, _ in revealed}, address.host
    defaults = (("host", host), ("accept", "*/*"), ("accept-encoding", "gzip"), ("user-agent", "llm-effects"))
    missing = (header for header in defaults if header[0] not in names)
    return Success(tuple((name.encode("ascii"), value.encode("ascii")) for name, value in (*missing, *revealed)))


def _with_length(method: Method, headers: Headers, body: bytes) -> Headers:
    if method == "GET" or any(name.lower() == b"content-length" for name, _ in headers):
        return headers
    return (*headers, (b"content-length", b"%d" % len(body)))


class Incoming(Protocol):
    """A response whose head has arrived."""

    @property
    def status(self) -> int:
        """The status code."""
        ...

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """The header lines as they came."""
        ...

    async def read(self) -> bytes | LLMError | None:
        """Wait for more of the body, and return it, ``None`` at its end, or the error that broke it."""
        ...

    async def aclose(self) -> None:
        """Keep the connection if the body was read to its end; otherwise close it, even when cancelled."""
        ...


class Limiter(Protocol):
    """A queue for a limited number of calls, which have numbered slots."""

    async def acquire(self) -> int:
        """Wait for a slot and return its number; release it once."""
        ...

    def release(self, slot: int) -> None:
        """Pass a slot on."""
        ...


class Connections(Protocol):
    """The connections of one event loop; ``users`` counts the calls and scopes that hold them."""

    users: int

    async def send(self, request: Outgoing, admitted: OnSent) -> Incoming:
        """Wait for a turn, call ``admitted``, send, and wait for the head of the response, or raise its fault."""
        ...

    async def aclose(self) -> None:
        """Close the idle connections now; the others close after their use."""
        ...


_Connections = TypeVar("_Connections", bound=Connections)


@final
@define(eq=False, repr=False)
class LoopPools(Generic[_Connections]):
    """The connections of each event loop in use, so that none meets another loop than its own."""

    open: Callable[[EventLoopToken], _Connections]
    _loops: dict[EventLoopToken, _Connections] = field(factory=dict[EventLoopToken, _Connections], init=False)

    @asynccontextmanager
    async def hold(self) -> AsyncGenerator[_Connections]:
        """Hold the connections of the running loop; their last holder closes them."""
        pool = self.enter()
        try:
            yield pool
        finally:
            await self.leave(pool)

    def enter(self) -> _Connections:
        """Return the connections of the running loop; leave them once."""
        loop = current_token()
        pool = self._loops.get(loop)
        if pool is None:
            pool = self._loops[loop] = self.open(loop)
        pool.users += 1
        return pool

    async def leave(self, pool: _Connections) -> None:
        """Leave the connections of the running loop, and close them after their last holder."""
        pool.users -= 1
        if not pool.users:
            del self._loops[current_token()]
            await pool.aclose()

    async def aclose(self) -> None:
        """Close the idle connections of the running loop; the others close after their use."""
        pool = self._loops.get(current_token())
        if pool is not None:
            await pool.aclose()


@final
@define(eq=False, repr=False)
class NoConnections:
    """Connections that cannot be made; every call fails with the reason."""

    error: LLMError
    users: int = 0

    async def send(self, request: Outgoing, admitted: OnSent) -> Incoming:  # noqa: ARG002
        """Raise the reason."""
        raise TransportFault(self.error)

    async def aclose(self) -> None:
        """Close nothing."""


@cache
def trusted() -> ssl.SSLContext:
    """Load the trusted certificates once, at the first https: loading takes as long as many calls.

    A file of certificates that cannot be read is a ``TransportFault`` of each call that needs it.
    """
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file:
        return _trusted_in(file)
    if folder:
        return ssl.create_default_context(capath=folder)
    import certifi

    return ssl.create_default_context(cafile=certifi.where())


def _trusted_in(file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as problem:  # an ``SSLError`` too
        message = f"SSL_CERT_FILE: no certificates can be read from {file!r}: correct or remove it"
        raise TransportFault(ConfigurationError(message=message, cause=cause_of(problem))) from None


def is_httpx_itself() -> bool:
    """Return whether nothing replaces httpx's transport: neither a mock, as in tests, nor an instrumentation.

    Either would have imported httpx.
    """
    if "httpx" not in sys.modules:
        return True
    import httpx

    handle: object = httpx.AsyncHTTPTransport.handle_async_request
    # Where it was written: wrappers copy its ``__module__``.
    return isinstance(handle, FunctionType) and handle.__globals__.get("__name__") == "httpx._transports.default"


def import_httpx() -> None:
    """Import httpx without its command line, whose click, rich and pygments take 38 of 104 ms."""
    modules: dict[str, Any] = sys.modules
    if "httpx" not in modules:
        modules["httpx._main"] = None  # as if they were not installed, which httpx allows for
        import_module("httpx")
        modules.pop("httpx._main", None)  # or another thread did both


# What goes wrong on the wire.


@final
class TransportFault(Exception):  # noqa: N818 - it carries an error value
    """The only exception that the transport raises; callers turn its ``error`` into a ``Failure``."""

    def __init__(self, error: LLMError) -> None:
        super().__init__(error)
        self.error = error


# Root causes of a broken connection, the most specific first.
_PHASES: Final[tuple[tuple[type[BaseException], NetworkPhase], ...]] = (
    (socket.gaierror, "dns"),
    (ConnectionRefusedError, "refused"),
    (ConnectionResetError, "reset"),
    (BrokenPipeError, "reset"),
)

_LOCAL: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})

_MESSAGES: Final[dict[NetworkPhase, str]] = {
    "dns": "{origin} has no address: check the host name",
    "connect": "{origin} cannot be reached",
    "refused": "{origin} refused the connection: is the server running?",
    "reset": "the connection to {origin} broke before the answer was whole",
    "protocol": "{origin} did not answer in proper HTTP",
    "intermediary": "the proxy on the way to {origin} rejected the request",
    "local": "this machine has no descriptor or port left: make fewer calls at once or raise its limits",
}

# What the versions of OpenSSL call bytes that are not TLS.
_NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL")


def network_error(phase: NetworkPhase, request: WireRequest, cause: Cause | None = None) -> NetworkError:
    """Build a ``NetworkError`` that names the server, but neither the path nor the query."""
    origin = re.split(r"(?<=[^:/])[/?#]", request.url, maxsplit=1)[0]
    return NetworkError(message=_MESSAGES[phase].format(origin=origin), phase=phase, cause=cause)


def proxy_error(request: WireRequest, cause: Cause, *, needs_password: bool) -> LLMError:
    """Build the error for a proxy that rejects a request: a missing password is a matter of configuration."""
    if needs_password:
        message = "a proxy on the way requires a user name and a password: configure them, or bypass the proxy"
        return ConfigurationError(message=message, cause=cause)
    return network_error("intermediary", request, cause)


def connection_error(problem: BaseException, request: WireRequest, cause: Cause, *, connecting: bool) -> LLMError:
    """Build the error for a connection that cannot be made or breaks, by the causes of an exception."""
    roots = tuple(_roots(problem))
    tls = next((root for root in roots if isinstance(root, ssl.SSLError) and not _is_eof(root)), None)
    if tls is not None:
        return _tls_error(tls, cause) if connecting else network_error("protocol", request, cause)
    if any(isinstance(root, OSError) and root.errno in _LOCAL for root in roots):
        return network_error("local", request, cause)
    return network_error(_phase_of(roots) or ("connect" if connecting else "reset"), request, cause)


def _phase_of(roots: tuple[BaseException, ...]) -> NetworkPhase | None:
    for kind, phase in _PHASES:
        if any(isinstance(root, kind) for root in roots):
            return phase
    return None


def _tls_error(problem: ssl.SSLError, cause: Cause) -> ConfigurationError:
    """Build the error for TLS that cannot work: a matter of configuration, which a retry does not fix."""
    if any(word in str(problem) for word in _NOT_TLS):
        remedy = "the server does not speak TLS there: use its TLS port, or http:// if it is on this machine"
    else:
        remedy = (
            "check the host name and certificate of the endpoint; for your own certificate authority set SSL_CERT_FILE"
        )
    return ConfigurationError(message=f"no secure connection: {remedy}", cause=cause)


def _is_eof(problem: ssl.SSLError) -> bool:
    return isinstance(problem, ssl.SSLEOFError | ssl.SSLZeroReturnError) or "EOF" in str(problem)


def _roots(problem: BaseException) -> Iterator[BaseException]:
    """Yield an exception, its causes and contexts, and the members of groups."""
    yield problem
    if isinstance(problem, ExceptionGroup):
        for each in cast("ExceptionGroup[Exception]", problem).exceptions:
            yield from _roots(each)
    below = problem.__cause__ or problem.__context__
    if below is not None:
        yield from _roots(below)


class Pollable(Protocol):
    """A socket."""

    def fileno(self) -> int:
        """Return its descriptor, -1 once it is closed."""
        ...


def is_readable(socket: Pollable) -> bool:
    """Return whether something has arrived at a socket, or its end, or whether it is closed."""
    descriptor = socket.fileno()
    if descriptor < 0:
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


# The chunks of a body over httpx, in larger pieces.

H11: Final = "0.16."
"""The version of h11 whose reader of chunks is known here; with any other each chunk is passed on by itself."""

_CHUNK_HEAD: Final = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")


@final
@define(eq=False, repr=False)
class JoinedChunks:
    """h11's reader of a chunked body, which returns all whole chunks that have arrived as one piece.

    A chunk of its own passes through ten functions of h11, httpcore and httpx. A stream of 200 events, each in a chunk,
    takes 0.4 of the time of bare httpx less this way. Only plain chunks are joined, with no extension: all else,
    errors and the end included, is left to h11.
    """

    _reader: "ChunkedReader"
    _data: "type[h11.Data]"

    def __call__(self, buffer: "ReceiveBuffer") -> "h11.Event | None":
        """Return the next piece of the body, its end, or ``None`` if more bytes are needed."""
        reader = self._reader
        between = not (reader._bytes_in_chunk or reader._reading_trailer)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        pieces = self._take(buffer) if between else None
        return self._data(data=b"".join(pieces)) if pieces else reader(buffer)

    def _take(self, buffer: "ReceiveBuffer") -> list[bytes]:
        """Remove the whole chunks from a buffer that begins between two chunks, and return them."""
        data, pieces = bytes(buffer), list[bytes]()
        end_of_last = self._reader._bytes_to_discard  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        at = len(end_of_last) if data.startswith(end_of_last) else len(data)
        while (head := _CHUNK_HEAD.match(data, at)) is not None:
            begin, end = head.end(), head.end() + int(head[1], 16)
            if begin == end or data[end : end + 2] != b"\r\n":
                break
            pieces.append(data[begin:end])
            at = end + 2
        if pieces:
            self._reader._bytes_to_discard = b""  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            buffer.maybe_extract_at_most(at)
        return pieces

    def read_eof(self) -> NoReturn:
        """Raise what h11 raises where a body is cut off."""
        self._reader.read_eof()


def join_chunks(stream: object) -> None:
    """Make h11 join the chunks of a response of httpx; leave a stream as it is that has another library below."""
    import h11

    stream = getattr(stream, "_httpcore_stream", stream)
    for inner in ("_stream", "_connection", "_h11_state"):
        stream = getattr(stream, inner, None)
    if isinstance(stream, h11.Connection) and str(getattr(h11, "__version__", "")).startswith(H11):
        from h11._readers import ChunkedReader  # which another version may not have

        reader = stream._reader  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        if isinstance(reader, ChunkedReader):
            stream._reader = JoinedChunks(reader, h11.Data)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
