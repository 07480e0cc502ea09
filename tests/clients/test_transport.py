"""The HTTP transport, against misbehaving servers on the loopback and mocked transports."""

import asyncio
import errno
import gzip
import json
import logging
import random
import socket
import ssl
import threading
import traceback
from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar, cast

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpcore
import httpx
import pytest
from pytest_httpx import HTTPXMock

from llm_effects.clients.transport.connections import TransportFault
from llm_effects.clients.transport.network import Network
from llm_effects.clients.transport.transport import Transport
from llm_effects.providers.wire import Timeouts, WireRequest
from llm_effects.values.errors import LLMError
from llm_effects.values.secrets import Secret
from tests.fixtures.servers import Peer, answering, chunked, reply, sending, serving
from tests.fixtures.wires import Wire

pytestmark = pytest.mark.anyio

CANARY = "canary-7f3e9d-never-seen"
LIMITS = Timeouts(connect_s=5, read_s=5, send_s=5)
IMPATIENT = Timeouts(connect_s=0.05, read_s=0.05, send_s=0.05)


def asking(url: str, body: bytes = b"{}", *headers: tuple[str, str | Secret]) -> WireRequest:
    return WireRequest(url=url, headers=(("authorization", Secret(f"Bearer {CANARY}")), *headers), body=body)


async def failing(transport: Transport, url: str, limits: Timeouts = LIMITS) -> LLMError:
    """Make a call that must fail, and check that nothing about it shows the key."""
    with pytest.raises(TransportFault) as caught:
        await transport.exchange(asking(url), limits)
    fault = caught.value
    text = "".join(traceback.TracebackException.from_exception(fault, capture_locals=True).format())
    assert CANARY not in text + repr(fault) + repr(fault.error) + str(fault.error.cause)
    assert fault.__context__ is None
    return fault.error


@pytest.fixture
def anyio_backend(wire: Wire) -> str:
    return wire.loop


@pytest.fixture
def transport(wire: Wire, request: pytest.FixtureRequest) -> Transport:
    """Return a transport over each library; where httpx is mocked, by itself over httpx."""
    return Transport(kind="auto" if "httpx_mock" in request.fixturenames else wire.kind, max_bytes=2**20)


# --- Requests and responses ---------------------------------------------------------------------------------------


async def test_a_call_sends_its_request_and_returns_the_whole_response(transport: Transport) -> None:
    with serving(answering(reply(b'{"ok":1}', "200 OK", "X-Request-Id: r1"))) as server:
        answer = await transport.exchange(asking(server.url, b'{"q":1}', ("x-own", "yes")), LIMITS)
    assert (answer.status, answer.body, answer.headers["x-request-id"]) == (200, b'{"ok":1}', "r1")
    sent = server.requests[0]
    assert sent.startswith(b"POST /v1 HTTP/1.1\r\n")
    assert sent.endswith(b'\r\n\r\n{"q":1}')
    assert f"authorization: Bearer {CANARY}\r\n".encode() in sent
    assert b"accept-encoding: gzip\r\n" in sent
    assert b"x-own: yes\r\n" in sent
    assert f"host: 127.0.0.1:{server.port}\r\n".encode() in sent


async def test_a_header_of_the_caller_replaces_the_default(httpx_mock: HTTPXMock, transport: Transport) -> None:
    httpx_mock.add_response()
    await transport.exchange(asking("https://api.test/v1", b"{}", ("User-Agent", "mine")), LIMITS)
    (request,) = httpx_mock.get_requests()
    assert request.headers.get_list("user-agent") == ["mine"]
    assert request.headers["content-length"] == "2"
    assert request.content == b"{}"


async def test_fetch_sends_a_get_request_without_a_body(httpx_mock: HTTPXMock, transport: Transport) -> None:
    httpx_mock.add_response(method="GET", url="http://localhost:1234/v1/models", json={"data": []})
    answer = await transport.fetch("http://localhost:1234/v1/models", (), LIMITS)
    assert json.loads(answer.body) == {"data": []}
    assert "content-length" not in httpx_mock.get_requests()[0].headers


@pytest.mark.parametrize("status", [200, 204, 400, 401, 429, 500, 503, 529])
async def test_every_status_is_a_response(httpx_mock: HTTPXMock, transport: Transport, status: int) -> None:
    httpx_mock.add_response(status_code=status, headers=[("Retry-After", "3")])
    answer = await transport.exchange(asking("https://api.test/v1"), LIMITS)
    assert (answer.status, answer.headers["retry-after"]) == (status, "3")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_fault_16_17_a_redirect_is_not_followed(transport: Transport, status: int) -> None:
    with serving(answering()) as other:
        moved = reply(b"", f"{status} Moved", f"location: {other.url}")
        with serving(answering(moved)) as server:
            answer = await transport.exchange(asking(server.url), LIMITS)
    assert answer.status == status
    assert other.requests == []


async def test_repeated_headers_are_joined_and_non_ascii_bytes_kept(transport: Transport) -> None:
    with serving(answering(reply(b"", "200 OK", "Warn: a", "warn: b", "x-name: Zoë"))) as server:
        answer = await transport.exchange(asking(server.url), LIMITS)
    assert answer.headers["warn"] == "a, b"
    assert answer.headers["x-name"].encode("latin-1").decode() == "Zoë"


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_a_body_is_decompressed(transport: Transport, encoding: str) -> None:
    body = gzip.compress(b"hello" * 100) if encoding == "gzip" else b"hello" * 100
    with serving(answering(reply(body, "200 OK", f"content-encoding: {encoding}"))) as server:
        answer = await transport.exchange(asking(server.url), LIMITS)
    assert answer.body == b"hello" * 100


# --- Connections: kept, reused, closed ----------------------------------------------------------------------------


async def test_a_scope_reuses_its_connection(transport: Transport) -> None:
    with serving(answering()) as server:
        async with transport.scope():
            for _ in range(5):
                await transport.exchange(asking(server.url), LIMITS)
            assert (server.accepted, server.open) == (1, 1)
        assert server.settled() == 0


async def test_no_connection_is_kept_outside_of_a_scope(transport: Transport) -> None:
    with serving(answering()) as server:
        for _ in range(3):
            await transport.exchange(asking(server.url), LIMITS)
            assert server.settled() == 0
    assert server.accepted == 3


@pytest.mark.parametrize("reset", [True, False])
async def test_fault_4_a_stale_connection_is_replaced_once(transport: Transport, reset: bool) -> None:
    async def one_each(peer: Peer) -> None:
        await peer.request()
        await peer.send(reply())
        await peer.request()  # the next request on this connection is dropped without a response
        if reset:
            peer.reset()

    with serving(one_each) as server:
        async with transport.scope():
            for _ in range(3):
                assert (await transport.exchange(asking(server.url), LIMITS)).status == 200
    assert server.accepted == 3


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n"])
async def test_fault_4_only_a_stale_connection_is_replaced(transport: Transport, answer: bytes) -> None:
    async def one_good(peer: Peer) -> None:
        await peer.request()
        await peer.send(reply())
        await peer.request()
        await peer.send(answer)
        await peer.gone()

    with serving(one_good) as server:
        async with transport.scope():
            await transport.exchange(asking(server.url), LIMITS)
            error = await failing(transport, server.url, IMPATIENT)
    assert error.tag == ("NetworkError" if answer else "TimeoutError")
    assert (server.accepted, len(server.requests)) == (1, 2)


async def test_fault_3_a_dropped_new_connection_is_not_retried(transport: Transport) -> None:
    with serving(sending(b"")) as server:
        error = await failing(transport, server.url)
    assert (error.tag, server.accepted) == ("NetworkError", 1)
    assert getattr(error, "phase", None) == "reset"


@pytest.mark.parametrize("scoped", [True, False])
def test_fault_108_one_transport_serves_many_event_loops(
    transport: Transport, anyio_backend: str, scoped: bool
) -> None:
    async def call(url: str) -> int:
        if not scoped:
            return (await transport.exchange(asking(url), LIMITS)).status
        async with transport.scope():
            return (await transport.exchange(asking(url), LIMITS)).status

    with serving(answering()) as server:
        assert [anyio.run(call, server.url, backend=anyio_backend) for _ in range(3)] == [200, 200, 200]
        assert server.settled() == 0


def test_fault_108_two_threads_with_two_loops_share_a_transport(transport: Transport, anyio_backend: str) -> None:
    statuses: list[int] = []

    async def call(url: str) -> None:
        async with transport.scope():
            statuses.extend([(await transport.exchange(asking(url), LIMITS)).status for _ in range(20)])

    with serving(answering(delay=0.001)) as server:
        threads = [
            threading.Thread(target=anyio.run, args=(call, server.url), kwargs={"backend": anyio_backend})
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [200] * 40
        assert server.settled() == 0


async def test_fault_108_a_call_after_closing_is_a_configuration_error(transport: Transport) -> None:
    with serving(answering()) as server:
        async with transport.scope():
            await transport.exchange(asking(server.url), LIMITS)
            await transport.aclose()
            await transport.aclose()
            assert server.settled() == 0
            assert (await failing(transport, server.url)).tag == "ConfigurationError"


async def test_fault_108_closing_finishes_calls_in_flight_and_rejects_queued_ones(wire: Wire) -> None:
    transport, ended = wire.transport(max_connections=1)(), list[str]()

    async def call(url: str) -> None:
        try:
            ended.append(str((await transport.exchange(asking(url), LIMITS)).status))
        except TransportFault as fault:
            ended.append(fault.error.tag)

    with serving(answering(delay=0.05)) as server:
        with anyio.fail_after(30):
            async with transport.scope(), anyio.create_task_group() as tasks:
                for _ in range(2):
                    tasks.start_soon(call, server.url)
                await anyio.to_thread.run_sync(server.asked)
                await transport.aclose()
        assert sorted(ended) == ["200", "ConfigurationError"]
        assert server.settled() == 0


async def test_fault_9_calls_beyond_the_limit_queue(wire: Wire) -> None:
    transport, limits = (
        wire.transport(max_connections=4, pool_size=2)(),
        Timeouts(connect_s=0.25, read_s=0.25, send_s=0.25),
    )
    with serving(answering(delay=0.03)) as server:
        async with transport.scope(), anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(transport.exchange, asking(server.url), limits)  # the last ones queue for longer
        assert (len(server.requests), server.most) == (40, 4)
        assert server.settled() == 0


# --- Cancellation -------------------------------------------------------------------------------------------------


async def test_fault_104_random_cancellations_leak_no_slot_and_no_connection(wire: Wire) -> None:
    transport, draw, done = wire.transport(max_connections=6, pool_size=3)(), random.Random(11), list[int]()

    async def call(url: str, longest: float) -> None:
        with anyio.move_on_after(draw.random() * longest):
            if draw.random() < 0.5:
                done.append((await transport.exchange(asking(url), LIMITS)).status)
                return
            async with transport.stream(asking(url), LIMITS) as answer:
                async for _ in answer.chunks():
                    done.append(answer.status)
                    break

    with serving(answering(chunked(*[b"piece"] * 50), delay=0.001)) as server:
        async with transport.scope():
            began = anyio.current_time()
            await transport.exchange(asking(server.url), LIMITS)
            longest = max(0.03, 10 * (anyio.current_time() - began))  # on a slow machine some calls must succeed, too
            for _ in range(6):
                async with anyio.create_task_group() as tasks:
                    for _ in range(50):
                        tasks.start_soon(call, server.url, longest)
            with anyio.fail_after(30):  # all slots and connections are still available at once
                async with anyio.create_task_group() as tasks:
                    for _ in range(6):
                        tasks.start_soon(transport.exchange, asking(server.url), LIMITS)
            assert server.settled(6) <= 6
        assert server.settled() == 0
    assert done


async def test_fault_104_calls_cancelled_while_connecting_leave_the_pool_usable(wire: Wire) -> None:
    transport, draw = wire.transport(max_connections=2, pool_size=2)(), random.Random(5)
    with serving(answering()) as server:
        async with transport.scope():
            for _ in range(150):
                with anyio.move_on_after(draw.random() * 0.003):
                    await transport.exchange(asking(server.url), LIMITS)
            with anyio.fail_after(30):
                async with anyio.create_task_group() as tasks:
                    for _ in range(2):
                        tasks.start_soon(transport.exchange, asking(server.url), LIMITS)
            assert server.settled(2) <= 2
        assert server.settled() == 0


class CancelledOnceConnected(httpx.AsyncHTTPTransport):
    """A transport that cancels a scope for each call, in the moment its connection is made."""

    scopes: ClassVar[list[anyio.CancelScope]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        inner = request.extensions["trace"]

        async def trace(event: str, info: Mapping[str, object]) -> None:
            await inner(event, info)
            if event == "connection.connect_tcp.complete" and self.scopes:
                self.scopes.pop().cancel()

        request.extensions["trace"] = trace
        return await super().handle_async_request(request)


async def test_fault_104_a_call_cancelled_between_connecting_and_sending_leaves_the_pool_usable() -> None:
    def make_pool(size: int) -> httpx.AsyncBaseTransport:
        return CancelledOnceConnected(limits=httpx.Limits(max_connections=size), verify=False)

    transport = Transport(make_pool=make_pool, max_connections=1, pool_size=1)
    with serving(answering()) as server:
        async with transport.scope():
            with anyio.CancelScope() as scope:
                CancelledOnceConnected.scopes.append(scope)
                await transport.exchange(asking(server.url), LIMITS)
            assert scope.cancelled_caught
            assert server.settled() == 0
            with anyio.fail_after(30):
                await transport.exchange(asking(server.url), LIMITS)
        assert server.settled() == 0


# --- Streams ------------------------------------------------------------------------------------------------------


async def test_a_stream_yields_its_pieces(transport: Transport) -> None:
    with serving(answering(chunked(b"one", b"two", b"three"))) as server:
        async with transport.stream(asking(server.url), LIMITS) as answer:
            assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
            assert b"".join([piece async for piece in answer.chunks()]) == b"onetwothree"


async def test_chunks_that_arrive_together_are_few_pieces(transport: Transport) -> None:
    with serving(answering(chunked(*(b"%03d" % number for number in range(500))))) as server:
        async with transport.stream(asking(server.url), LIMITS) as response:
            pieces = [piece async for piece in response.chunks()]
    assert b"".join(pieces) == b"".join(b"%03d" % number for number in range(500))
    assert len(pieces) < 20


async def test_a_stream_can_be_read_at_once(transport: Transport) -> None:
    with serving(answering(reply(b"no such model", "404 Not Found"))) as server:
        async with transport.stream(asking(server.url), LIMITS) as answer:
            assert (answer.status, await answer.read()) == (404, b"no such model")


async def test_a_stream_read_to_its_end_keeps_its_connection(transport: Transport) -> None:
    with serving(answering(chunked(b"one", b"two"))) as server:
        async with transport.scope():
            for _ in range(3):
                async with transport.stream(asking(server.url), LIMITS) as answer:
                    await answer.read()
    assert server.accepted == 1


@pytest.mark.parametrize("pieces", [0, 1, 3])
async def test_a_stream_left_early_closes_its_connection_at_once(transport: Transport, pieces: int) -> None:
    with serving(sending(chunked(*[b"piece"] * 9, end=False), hold=True)) as server:
        async with transport.scope():
            async with transport.stream(asking(server.url), LIMITS) as answer:
                chunks, read = answer.chunks(), b""
                while len(read) < len(b"piece") * pieces:
                    read += await anext(chunks)
            assert server.settled() == 0


async def test_a_cancelled_stream_closes_its_connection_at_once(transport: Transport) -> None:
    with serving(sending(chunked(b"one", end=False), hold=True)) as server:
        async with transport.scope():
            with anyio.CancelScope() as scope:
                async with transport.stream(asking(server.url), LIMITS) as answer:
                    async for _ in answer.chunks():
                        scope.cancel()
            assert scope.cancelled_caught
            assert server.settled() == 0


async def test_an_exception_of_the_reader_propagates_unchanged(transport: Transport) -> None:
    with serving(sending(chunked(b"one", end=False), hold=True)) as server:
        with pytest.raises(KeyError):
            async with transport.stream(asking(server.url), LIMITS) as answer:
                async for _ in answer.chunks():
                    raise KeyError
        assert server.settled() == 0


async def test_a_stream_of_a_mocked_transport_can_be_left_early(httpx_mock: HTTPXMock, transport: Transport) -> None:
    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                yield b"piece"
                await anyio.lowlevel.checkpoint()

    httpx_mock.add_response(stream=Endless())
    async with transport.stream(asking("https://api.test/v1"), LIMITS) as answer:
        assert await anext(answer.chunks()) == b"piece"


async def test_a_pool_that_is_not_async_is_a_bug() -> None:
    class Blocking(httpx.SyncByteStream):
        pass

    transport = Transport(make_pool=lambda _: httpx.MockTransport(lambda _: httpx.Response(200, stream=Blocking())))
    with pytest.raises(TypeError, match="Blocking"):
        await transport.exchange(asking("http://localhost/v1"), LIMITS)


# --- Faults -------------------------------------------------------------------------------------------------------


def phase_of(error: LLMError) -> tuple[str, str]:
    return error.tag, str(getattr(error, "phase", ""))


async def test_fault_1_a_refused_connection(transport: Transport) -> None:
    with serving(answering()) as server:
        pass
    error = await failing(transport, server.url)
    assert phase_of(error) == ("NetworkError", "refused")
    assert "is the server running?" in str(error)


async def test_fault_2_a_connection_that_is_never_accepted_times_out(transport: Transport) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]  # fill the backlog: the next connection is never accepted
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        error = await failing(transport, f"http://127.0.0.1:{port}/v1", IMPATIENT)
        for one in waiting:
            one.close()
    assert phase_of(error) == ("TimeoutError", "connect")
    assert getattr(error, "timeout_ms", None) == 50


CUTS: dict[str, tuple[bytes, str]] = {
    "fault_3_closed_before_the_answer": (b"", "reset"),
    "fault_6_no_http": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "protocol"),
    "fault_6_bytes_of_another_protocol": (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x80", "protocol"),
    "half_a_head": (b"HTTP/1.1 200 OK\r\nContent-Le", "reset"),
    "fault_57_shorter_than_its_length": (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", "reset"),
    "chunks_without_an_end": (chunked(b"one", end=False), "reset"),
    "a_broken_chunk": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "protocol"),
    "two_lengths": (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx", "protocol"),
    "fault_74_broken_gzip": (reply(b"\x1f\x8bno", "200 OK", "content-encoding: gzip"), "protocol"),
}


@pytest.mark.parametrize("case", CUTS)
async def test_a_broken_response_is_a_network_error(transport: Transport, case: str) -> None:
    answer, phase = CUTS[case]
    with serving(sending(answer)) as server:
        error = await failing(transport, server.url)
        assert phase_of(error) == ("NetworkError", phase)
        assert server.settled() == 0


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"])
async def test_fault_5_a_reset_connection(transport: Transport, answer: bytes) -> None:
    with serving(sending(answer, reset=True)) as server:
        assert phase_of(await failing(transport, server.url)) == ("NetworkError", "reset")


@pytest.mark.parametrize(
    ("answer", "phase"),
    [
        (b"", "first_content"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n", "first_content"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", "between_content"),
    ],
)
async def test_fault_7_a_silent_server_times_out(transport: Transport, answer: bytes, phase: str) -> None:
    with serving(sending(answer, hold=True)) as server:
        error = await failing(transport, server.url, IMPATIENT)
        assert phase_of(error) == ("TimeoutError", phase)
        assert server.settled() == 0


async def test_fault_8_a_server_that_reads_nothing_times_out(transport: Transport) -> None:
    async def deaf(peer: Peer) -> None:
        await asyncio.sleep(2)  # it reads nothing: after some megabytes the buffers are full

    request = asking("", bytes(32 * 2**20))
    with serving(deaf) as server, pytest.raises(TransportFault) as caught:
        await transport.exchange(
            WireRequest(url=server.url, headers=request.headers, body=request.body), Timeouts(send_s=0.05, read_s=0.05)
        )
    assert phase_of(caught.value.error) == ("TimeoutError", "send")


async def test_fault_10_a_host_without_an_address(transport: Transport) -> None:
    error = await failing(transport, "http://no-such-host.invalid/v1")
    assert phase_of(error) == ("NetworkError", "dns")


async def test_fault_19_running_out_of_descriptors_is_a_local_error(
    httpx_mock: HTTPXMock, transport: Transport
) -> None:
    problem = httpx.ConnectError("All connection attempts failed")
    problem.__cause__ = OSError(errno.EMFILE, "Too many open files")
    httpx_mock.add_exception(problem)
    assert phase_of(await failing(transport, "https://api.test/v1")) == ("NetworkError", "local")


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (httpx.PoolTimeout("x"), ("TimeoutError", "queue")),
        (httpx.WriteTimeout("x"), ("TimeoutError", "send")),
        (httpx.CloseError("x"), ("NetworkError", "reset")),
        (httpx.ProxyError("407 Proxy Authentication Required"), ("ConfigurationError", "")),
        (httpx.ProxyError("503 Service Unavailable"), ("NetworkError", "intermediary")),
        (httpx.LocalProtocolError("x"), ("ConfigurationError", "")),
        (httpx.UnsupportedProtocol("x"), ("ConfigurationError", "")),
        (httpx.DecodingError("x"), ("NetworkError", "reset")),
        (httpx.ConnectError(f"with {CANARY} in it"), ("NetworkError", "connect")),
    ],
)
async def test_every_wire_exception_is_mapped_to_an_error(
    httpx_mock: HTTPXMock, transport: Transport, problem: Exception, expected: tuple[str, str]
) -> None:
    httpx_mock.add_exception(problem)
    assert phase_of(await failing(transport, "https://api.test/v1")) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:1234/v1",
        "ftp://host/v1",
        "file:///etc/passwd",
        "http:///v1",
        "http://u:p@host/v1",
        "http://[::1/",
        "http://a:b/",
    ],
)
async def test_an_invalid_url_is_a_configuration_error(transport: Transport, url: str) -> None:
    assert (await failing(transport, url)).tag == "ConfigurationError"


@pytest.mark.parametrize("value", [f"{CANARY}\r\nx: 1", f"{CANARY}é", f"{CANARY}\x00", f" {CANARY}"])
async def test_fault_135_a_key_that_is_not_a_valid_header_is_never_sent(transport: Transport, value: str) -> None:
    with pytest.raises(TransportFault) as caught:
        await transport.exchange(asking("http://localhost/v1", b"", ("x-api-key", Secret(value))), LIMITS)
    assert caught.value.error.tag == "ConfigurationError"
    assert CANARY not in repr(caught.value)


async def test_fault_72_a_gzip_bomb_is_malformed(transport: Transport) -> None:
    bomb = gzip.compress(bytes(64 * 2**20))
    with serving(answering(reply(bomb, "200 OK", "content-encoding: gzip"))) as server:
        error = await failing(transport, server.url)
        assert error.tag == "MalformedResponse"
        assert server.settled() == 0


async def test_fault_73_a_huge_body_is_malformed_before_it_ends(transport: Transport) -> None:
    async def endless(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await peer.send(bytes(2**16))

    with serving(endless) as server:
        error = await failing(transport, server.url)
        assert "larger than 1048576 bytes" in str(error)
        assert server.settled() == 0


async def test_an_unknown_encoding_is_malformed(transport: Transport) -> None:
    with serving(answering(reply(b"xx", "200 OK", "content-encoding: br"))) as server:
        assert (await failing(transport, server.url)).tag == "MalformedResponse"
        assert server.settled() == 0


# --- TLS ----------------------------------------------------------------------------------------------------------


async def test_fault_12_an_untrusted_certificate(transport: Transport, own_authority: ssl.SSLContext) -> None:
    with serving(answering(), tls=own_authority) as server:
        error = await failing(transport, server.url)
    assert error.tag == "ConfigurationError"
    assert "certificate" in str(error)
    assert server.requests == []


async def test_fault_13_a_tls_handshake_that_is_cut_off(transport: Transport) -> None:
    async def cut(peer: Peer) -> None:
        await peer.reader.read(100)

    with serving(cut) as server:
        error = await failing(transport, server.url.replace("http:", "https:"))
    assert error.tag == "NetworkError"


async def test_fault_14_plain_http_instead_of_tls(transport: Transport) -> None:
    async def plain(peer: Peer) -> None:
        await peer.reader.read(100)
        await peer.send(reply(b"", "400 Bad Request"))
        await peer.gone()

    with serving(plain) as server:
        error = await failing(transport, server.url.replace("http:", "https:"))
    assert error.tag == "ConfigurationError"
    assert "does not speak TLS" in str(error)


# --- Secrets ------------------------------------------------------------------------------------------------------


async def test_fault_132_no_log_shows_the_key(
    wire: Wire, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(answering()) as server:
        await transport.exchange(asking(server.url), LIMITS)
    with serving(sending(b"nonsense\r\n\r\n")) as server:
        await failing(transport, server.url)
    assert wire.kind == "fast" or "send_request_headers" in caplog.text
    assert CANARY not in caplog.text


async def test_admitted_is_called_when_a_call_acquires_its_slot(wire: Wire) -> None:
    transport, turns = wire.transport(max_connections=1)(), list[str]()
    with serving(answering(delay=0.02)) as server:

        async def call(name: str) -> None:
            await transport.exchange(asking(server.url), LIMITS, lambda: turns.append(f"{name} begins"))
            turns.append(f"{name} ends")

        async with transport.scope(), anyio.create_task_group() as tasks:
            for name in "abc":
                tasks.start_soon(call, name)
                await anyio.wait_all_tasks_blocked()
    assert [turn for turn in turns if "begins" in turn] == ["a begins", "b begins", "c begins"]
    assert turns.index("b begins") > 0
    assert server.most == 1


# The pools of httpx, driven without the requests and responses of httpx.


async def test_fault_104_a_call_cancelled_as_its_connection_is_made_leaves_the_default_pool_usable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scopes = list[anyio.CancelScope]()
    connect = Network.connect_tcp

    async def cancelling(*args: Any, **named: Any) -> httpcore.AsyncNetworkStream:
        made = await connect(*args, **named)
        if scopes:
            scopes.pop().cancel()
        return made

    monkeypatch.setattr(Network, "connect_tcp", cancelling)
    transport = Transport(max_connections=1, pool_size=1)
    with serving(answering()) as server:
        async with transport.scope():
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                await transport.exchange(asking(server.url), LIMITS)
            assert scope.cancelled_caught
            with anyio.fail_after(30):
                await transport.exchange(asking(server.url), LIMITS)


@pytest.mark.parametrize("size", [10, 2**17])
async def test_a_request_is_written_at_once_and_a_large_one_in_two_parts(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, connect = list[int](), Network.connect_tcp

    async def counting(*args: Any, **named: Any) -> httpcore.AsyncNetworkStream:
        made: Any = await connect(*args, **named)
        write = made._stream.write

        async def counted(buffer: bytes, timeout: float | None = None) -> None:
            written.append(len(buffer))
            await write(buffer, timeout)

        made._stream.write = counted
        return cast("httpcore.AsyncNetworkStream", made)

    monkeypatch.setattr(Network, "connect_tcp", counting)
    with serving(answering()) as server:
        async with Transport().scope():
            await Transport().exchange(asking(server.url, b"x" * size), LIMITS)
    assert len(written) == (1 if size == 10 else 2)
    assert written[-1] >= size


async def test_a_mock_of_httpx_takes_the_place_of_the_default_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[str]()

    async def handle(_: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(200, stream=httpx.ByteStream(b"mocked"))

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", handle)
    answer = await Transport().exchange(asking("http://localhost/v1"), LIMITS)
    assert (answer.body, seen) == (b"mocked", ["http://localhost/v1"])


async def test_a_mock_that_breaks_is_not_asked_again() -> None:
    asked = list[str]()

    def breaking(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        msg = "broken"
        raise httpx.ReadError(msg)

    with pytest.raises(TransportFault):
        await Transport(make_pool=lambda _: httpx.MockTransport(breaking)).exchange(asking("http://a.test"), LIMITS)
    assert len(asked) == 1


async def test_silence_is_not_limited_where_the_caller_limits_it() -> None:
    with serving(answering(delay=0.2)) as server:
        answer = await Transport().exchange(asking(server.url), Timeouts(read_s=None))
        assert answer.status == 200
        with pytest.raises(TransportFault):
            await Transport().exchange(asking(server.url), Timeouts(read_s=0.05))
