"""The network below httpcore: connections that send a whole request at once, and read without a time limit."""

import asyncio
import select
import socket
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import ip_address
from typing import cast, final

import anyio
import httpcore
from anyio.abc import ByteStream, SocketStream
from httpcore._backends.anyio import AnyIOStream

from llm_effects.clients.transport.connections import TOGETHER, Pollable, is_readable
from llm_effects.effects.tasks import running_loop


@final
class Network(httpcore.AsyncNetworkBackend):
    """The network of httpcore, with streams that write a request at once.

    ``on_connect`` is called before each connection.
    """

    def __init__(self, on_connect: Callable[[], object]) -> None:
        self._on_connect = on_connect

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect, by the library of the running event loop."""
        self._on_connect()
        loop, family = running_loop(), _family(host)
        if loop is not None and family is not None and not (local_address or socket_options):
            return _Corked(AnyIOStream(await _connect(loop, family, (host, port), timeout)))
        kind: object = httpcore.TrioBackend if loop is None else httpcore.AnyIOBackend
        network = cast("type[httpcore.AsyncNetworkBackend]", kind)()
        return _Corked(await network.connect_tcp(host, port, timeout, local_address, socket_options))


def _family(host: str) -> socket.AddressFamily | None:
    """Return the family of an address; ``None`` for a name."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


async def _connect(
    loop: asyncio.AbstractEventLoop, family: socket.AddressFamily, address: tuple[str, int], timeout: float | None
) -> ByteStream:
    """Connect to a single address, without what anyio needs to try several: 8 kB and a third of the time of a call."""
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        with anyio.fail_after(timeout):
            await loop.sock_connect(connection, address)
            return await SocketStream.from_socket(connection)
    except TimeoutError as problem:
        connection.close()
        raise httpcore.ConnectTimeout(problem) from problem
    except OSError as problem:
        connection.close()
        raise httpcore.ConnectError(problem) from problem
    except BaseException:
        connection.close()
        raise


@final
class _Corked(httpcore.AsyncNetworkStream):
    """A connection that sends what is written to it before it is read, or once that is large."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        below: object = getattr(stream, "_stream", None)  # of httpcore's AnyIOBackend
        self._below = below if isinstance(below, ByteStream) else None
        # By the documented way it takes 40 microseconds.
        self._socket: Pollable | None = getattr(below, "_raw_socket", None) or stream.get_extra_info("socket")
        self._unsent = b""
        self._limit: float | None = None

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._unsent:
            with suppress(httpcore.WriteError):  # the answer may say why the server reads no more
                await self._flush()
        if timeout is None and self._below is not None:
            return await _receive(self._below, max_bytes)
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._limit = timeout
        if len(self._unsent) + len(buffer) <= TOGETHER:
            self._unsent += buffer
            return
        await self._flush()
        await self._stream.write(buffer, timeout)

    async def _flush(self) -> None:
        unsent, self._unsent = self._unsent, b""
        await self._stream.write(unsent, self._limit)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _Corked(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> object:
        # The pool asks this of each idle connection for each call: a fifth of the time of a call with 1,000 in flight.
        if info == "is_readable" and self._socket is not None and hasattr(select, "poll"):
            return is_readable(self._socket)
        return self._stream.get_extra_info(info)


async def _receive(stream: ByteStream, max_bytes: int) -> bytes:
    """Read without a time limit, and without the scope for one, which takes a quarter of the time of each read."""
    try:
        return await stream.receive(max_bytes)
    except anyio.EndOfStream:
        return b""
    except (anyio.BrokenResourceError, anyio.ClosedResourceError) as problem:
        raise httpcore.ReadError(problem) from problem
