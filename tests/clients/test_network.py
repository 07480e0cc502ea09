"""The network below httpcore: connections to an address, to a name, and to nobody."""

import gc
import socket
from collections.abc import Iterator
from contextlib import closing

import anyio
import anyio.lowlevel
import httpcore
import pytest

from llm_effects.clients.transport.network import Network

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET, "localhost")])
def listening(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, str, int]]:
    """A socket that listens, and the host and port to reach it."""
    family, host = request.param
    with closing(socket.socket(family, socket.SOCK_STREAM)) as server:
        try:
            server.bind((host if host != "localhost" else "127.0.0.1", 0))
        except OSError as problem:
            pytest.skip(f"this machine has no {host}: {problem}")
        server.listen()
        yield server, host, server.getsockname()[1]


async def test_what_is_written_goes_out_before_the_first_read(listening: tuple[socket.socket, str, int]) -> None:
    server, host, port = listening
    connected: list[str] = []
    stream = await Network(lambda: connected.append(host)).connect_tcp(host, port, timeout=30)
    with closing(server.accept()[0]) as peer:
        await stream.write(b"head, ", timeout=30)
        await stream.write(b"body", timeout=30)
        peer.sendall(b"answer")
        assert await stream.read(100) == b"answer"
        assert peer.recv(100) == b"head, body"
        peer.sendall(b"more")
        assert await stream.read(2, timeout=30) + await stream.read(100) == b"more"
        assert not stream.get_extra_info("is_readable")
    assert await stream.read(100) == b""
    await stream.aclose()
    assert connected == [host]


async def test_a_reset_and_a_closed_connection_are_errors_of_httpcore() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        stream = await Network(lambda: None).connect_tcp("127.0.0.1", server.getsockname()[1], timeout=30)
        peer, _ = server.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        with pytest.raises(httpcore.ReadError):
            await stream.read(100)
        await stream.aclose()
        with pytest.raises(httpcore.ReadError):
            await stream.read(100)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_refused_connection_says_so(host: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    with pytest.raises(httpcore.ConnectError) as raised:
        await Network(lambda: None).connect_tcp(host, port, timeout=30)
    assert isinstance(raised.value.__cause__, OSError)


@pytest.mark.parametrize("timed", [False, True])
async def test_a_connection_that_is_not_made_is_closed_in_time_or_when_it_is_cancelled(
    timed: bool,
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as server:
        port, waiting = server.getsockname()[1], list[socket.socket]()
        for _ in range(8):  # more than the backlog: the next one waits
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(("127.0.0.1", port))
        with anyio.move_on_after(30 if timed else 0.2) as scope:
            with pytest.raises(httpcore.ConnectTimeout) if timed else anyio.CancelScope():
                await Network(lambda: None).connect_tcp("127.0.0.1", port, timeout=0.2 if timed else 30)
        assert scope.cancelled_caught is not timed
        await anyio.lowlevel.checkpoint()
        gc.collect()  # a socket left open would warn here
        for each in waiting:
            each.close()
