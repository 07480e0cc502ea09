"""Which library carries requests, and what aiohttp must do as httpx does: proxies, certificates, slow readers."""

import asyncio
import os
import ssl
import sys
import traceback
from base64 import b64encode
from functools import wraps
from pathlib import Path
from threading import Thread
from typing import Final

import anyio
import anyio.to_thread
import httpx
import pytest
from pytest_httpx import HTTPXMock
from returns.pipeline import is_successful

from llm_effects import LLMConfig, LLMRequest, ModelConfig, generate, make_llm_manager, open_env, run
from llm_effects.clients.transport import transport as transports
from llm_effects.clients.transport.connections import TransportFault, trusted
from llm_effects.clients.transport.transport import Transport
from llm_effects.config import TransportKind
from llm_effects.providers.wire import Timeouts, WireRequest
from llm_effects.values import caps
from llm_effects.values.errors import LLMError, describe
from llm_effects.values.secrets import Secret
from llm_effects.values.validation import InvalidValue
from tests.fixtures.chaos import WHOLE
from tests.fixtures.servers import Behave, Peer, answering, chunked, reply, reply_json, sending, serving
from tests.fixtures.wires import Wire

pytestmark = pytest.mark.anyio

PASSWORD: Final = "canary-7f3e9d-never-seen"
LIMITS: Final = Timeouts(connect_s=5, read_s=5, send_s=5)


@pytest.fixture
def anyio_backend(wire: Wire) -> str:
    return wire.loop


@pytest.fixture
def transport(wire: Wire) -> Transport:
    return wire.transport()()


def asking(url: str, body: bytes = b"{}") -> WireRequest:
    return WireRequest(url=url, headers=(), body=body)


async def error_of(transport: Transport, url: str, body: bytes = b"{}", limits: Timeouts = LIMITS) -> LLMError:
    """Make a call that must fail, and check that nothing about it shows the password."""
    with pytest.raises(TransportFault) as caught:
        await transport.exchange(asking(url, body), limits)
    text = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert PASSWORD not in text
    return caught.value.error


def phase_of(error: LLMError) -> tuple[str, str]:
    return error.tag, str(getattr(error, "phase", ""))


# --- The choice ---------------------------------------------------------------------------------------------------


async def carried_by(url: str, kind: TransportKind = "auto") -> str:
    """Make a call through an environment, and return the library that carried it: only httpx sends its headers so."""
    model = ModelConfig(provider="openai-chat", model="m", api_key="sk-x", endpoint=url)
    async with open_env(LLMConfig(models={"m": model}, transport=kind)) as env:
        result = await run(generate(LLMRequest(prompt="why?")), env)
        transport: Transport = getattr(env.clients, "transport")  # noqa: B009 - a service has no such field
        async with transport._pools.hold() as pool:
            name = type(pool).__name__
    assert is_successful(result)
    return name


FAST, HTTPX = "FastConnections", "ShardedPool"


async def test_on_asyncio_aiohttp_is_chosen_by_itself_and_on_trio_httpx(anyio_backend: str) -> None:
    with serving(answering(reply_json(WHOLE))) as server:
        assert await carried_by(server.url) == (FAST if anyio_backend == "asyncio" else HTTPX)
        assert await carried_by(server.url, "httpx") == HTTPX


async def test_where_httpx_is_mocked_it_is_chosen(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(json=WHOLE)
    assert await carried_by("https://api.test/v1") == HTTPX


async def test_where_httpx_is_instrumented_it_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Instrumented:
        def __get__(self, pool: httpx.AsyncHTTPTransport | None, _: object) -> object:
            return self if pool is None else handle.__get__(pool)

    handle = httpx.AsyncHTTPTransport.handle_async_request
    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", Instrumented())
    with serving(answering(reply_json(WHOLE))) as server:
        assert await carried_by(server.url) == HTTPX


@pytest.mark.parametrize("kind", ["auto", "httpx"])
async def test_a_function_that_wraps_httpx_sees_every_call(
    kind: TransportKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, seen = httpx.AsyncHTTPTransport.handle_async_request, list[str]()

    @wraps(handle)
    async def note(pool: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        seen.append(request.method)
        return await handle(pool, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", note)
    with serving(answering(reply_json(WHOLE))) as server:
        assert await carried_by(server.url, kind) == HTTPX
    assert seen == ["POST"]


async def test_a_transport_with_its_own_pool_uses_it() -> None:
    seen = list[str]()

    def note(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(200)

    own = Transport(kind="auto", make_pool=lambda _: httpx.MockTransport(note))
    await own.exchange(asking("http://localhost/v1"), LIMITS)
    assert seen == ["http://localhost/v1"]


@pytest.mark.parametrize("installed", [None, "3.13.5", "4.0.0"])
async def test_without_a_known_aiohttp_httpx_is_chosen_and_fast_is_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, installed: str | None
) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    if installed is not None:  # and cannot even be imported, such as an old one on a new Python
        tmp_path.joinpath("aiohttp.py").write_text(f'__version__ = "{installed}"\nraise AttributeError')
        monkeypatch.delitem(sys.modules, "aiohttp")
        monkeypatch.syspath_prepend(tmp_path)
    transports._why_no_aiohttp.cache_clear()
    try:
        with serving(answering(reply_json(WHOLE))) as server:
            assert await carried_by(server.url) == HTTPX
            error = await error_of(Transport(kind="fast"), server.url)
    finally:
        transports._why_no_aiohttp.cache_clear()
    assert (error.tag, error.message.startswith("transport: fast ")) == ("ConfigurationError", True)


async def test_fast_on_trio_is_a_configuration_error(anyio_backend: str) -> None:
    if anyio_backend == "asyncio":
        return
    config = LLMConfig(models={"m": ModelConfig(provider="lm-studio")}, transport="fast")
    async with open_env(config) as env:
        error = (await run(generate(LLMRequest(prompt="why?")), env)).failure()
    assert (error.tag, "transport: fast needs asyncio's event loop" in error.message) == ("ConfigurationError", True)
    with pytest.raises(InvalidValue, match=r"models\.m: transport: fast needs asyncio"):
        async with open_env(config, check=True):
            pass


# --- Connections opened before the first call ---------------------------------------------------------------------


@pytest.mark.parametrize("managed", [True, False])
async def test_a_warm_environment_has_a_connection_before_its_first_call(managed: bool) -> None:
    with serving(answering(reply_json(WHOLE))) as server:
        models = {"m": ModelConfig(provider="openai-compatible", model="m", api_key="k", endpoint=server.url)}
        config = LLMConfig(models=models)
        opened = make_llm_manager(config, warm=True) if managed else open_env(config, warm=True)
        async with opened as env:
            assert server.accepted == 1
            assert is_successful(await run(generate(LLMRequest(prompt="why?")), getattr(env, "env", env)))
        assert server.accepted == 1


async def test_a_warm_environment_opens_without_its_servers() -> None:
    with serving(answering()) as server:
        pass
    models = {"m": ModelConfig(provider="openai-compatible", model="m", api_key="k", endpoint=server.url)}
    async with open_env(LLMConfig(models=models), warm=True) as env:
        assert (await run(generate(LLMRequest(prompt="why?")), env)).failure().tag == "RequestFailed"


# --- Proxies ------------------------------------------------------------------------------------------------------

CREDENTIALS: Final = b64encode(f"me:{PASSWORD}".encode())


async def test_fault_15_a_proxy_carries_plain_http(wire: Wire) -> None:
    with serving(answering(reply(b"answered"))) as proxy:
        through = wire.transport(proxy=Secret(f"http://me:{PASSWORD}@127.0.0.1:{proxy.port}"))()
        answer = await through.exchange(asking("http://api.test:81/v1?x=1"), LIMITS)
    assert answer.body == b"answered"
    head = proxy.requests[0].lower()
    assert head.startswith(b"post http://api.test:81/v1?x=1 http/1.1\r\n")
    assert b"\r\nproxy-authorization: basic " + CREDENTIALS.lower() + b"\r\n" in head
    assert PASSWORD not in repr(through)


def tunnel(port: int) -> Behave:
    """Connect to a port of this machine, whatever the host, and carry bytes in both directions."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")

        async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(2**16):
                sink.write(data)
                await sink.drain()
            sink.close()

        try:
            await asyncio.gather(carry(peer.reader, writer), carry(reader, peer.writer))
        finally:
            writer.close()
            await writer.wait_closed()

    return behave


async def test_fault_15_a_proxy_tunnels_https(wire: Wire, own_authority: ssl.SSLContext, own_certificate: Path) -> None:
    trusting = ssl.create_default_context(cafile=str(own_certificate / "cert"))
    with serving(answering(reply(b"answered")), tls=own_authority) as server, serving(tunnel(server.port)) as proxy:
        through = wire.transport(tls=trusting, proxy=f"http://me:{PASSWORD}@127.0.0.1:{proxy.port}")()
        async with through.scope():
            for _ in range(2):
                assert (await through.exchange(asking(server.url), LIMITS)).body == b"answered"
    assert (server.accepted, proxy.accepted) == (1, 1)
    assert proxy.requests[0].startswith(b"CONNECT localhost:%d HTTP/1.1\r\n" % server.port)
    assert CREDENTIALS in proxy.requests[0]
    assert PASSWORD.encode() not in server.requests[0]


@pytest.mark.parametrize(
    ("status", "expected"),
    [("407 Proxy Authentication Required", ("ConfigurationError", "")), ("503 Busy", ("NetworkError", "intermediary"))],
)
async def test_fault_15_a_proxy_that_rejects_a_tunnel(wire: Wire, status: str, expected: tuple[str, str]) -> None:
    with serving(answering(reply(b"", status))) as proxy:
        through = wire.transport(proxy=f"http://me:{PASSWORD}@127.0.0.1:{proxy.port}")()
        assert phase_of(await error_of(through, "https://auth.test/v1")) == expected
        assert proxy.settled() == 0


async def test_fault_15_a_proxy_that_is_not_there(wire: Wire) -> None:
    with serving(answering()) as proxy:
        pass
    through = wire.transport(proxy=f"http://me:{PASSWORD}@127.0.0.1:{proxy.port}")()
    for url in ("http://api.test/v1", "https://api.test/v1"):
        assert phase_of(await error_of(through, url)) == ("NetworkError", "refused")


@pytest.mark.parametrize("proxy", ["socks5://me:p@proxy:1080", "proxy:3128", "http://", "http://[::1/"])
async def test_fault_15_a_proxy_that_aiohttp_cannot_use_is_a_configuration_error(wire: Wire, proxy: str) -> None:
    if wire.kind == "fast":
        error = await error_of(wire.transport(proxy=proxy)(), "http://api.test/v1")
        assert (error.tag, error.message.startswith("proxy: must be like")) == ("ConfigurationError", True)


# --- Certificates -------------------------------------------------------------------------------------------------


async def test_fault_12_an_authority_of_ones_own_is_trusted(
    wire: Wire, own_authority: ssl.SSLContext, own_certificate: Path
) -> None:
    trusting = ssl.create_default_context(cafile=str(own_certificate / "cert"))
    with serving(answering(), tls=own_authority) as server:
        assert (await wire.transport(tls=trusting)().exchange(asking(server.url), LIMITS)).status == 200
        other_name = server.url.replace("localhost", "127.0.0.1")
        assert (await error_of(wire.transport(tls=trusting)(), other_name)).tag == "ConfigurationError"


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_fault_12_certificates_that_cannot_be_read_are_a_configuration_error_of_each_call(
    content: str | None, wire: Wire, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "own.pem"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    trusted.cache_clear()
    model = ModelConfig(provider="openai-chat", model="m", api_key="sk-x", endpoint="https://localhost:9/v1")
    config = LLMConfig(models={"m": model}, transport=wire.kind)
    try:
        async with open_env(config, transport=wire.transport(max_connections=2)) as env:
            for _ in range(4):  # more than there are connections: none is lost
                with anyio.fail_after(60):
                    error = (await run(generate("why?"), env)).failure()
                assert error.tag == "ConfigurationError"
                assert str(file) in describe(error)
    finally:
        trusted.cache_clear()


async def test_fault_12_a_client_shows_its_certificate(wire: Wire, own_certificate: Path) -> None:
    strict = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(own_certificate / "cert"))
    strict.load_cert_chain(own_certificate / "cert", own_certificate / "key")
    strict.verify_mode = ssl.CERT_REQUIRED
    known = ssl.create_default_context(cafile=str(own_certificate / "cert"))
    known.load_cert_chain(own_certificate / "cert", own_certificate / "key")
    stranger = ssl.create_default_context(cafile=str(own_certificate / "cert"))
    with serving(answering(), tls=strict) as server:
        assert (await wire.transport(tls=known)().exchange(asking(server.url), LIMITS)).status == 200
        assert is_successful(await run_safely(wire.transport(tls=stranger)(), server.url)) is False
    assert len(server.requests) == 1


async def run_safely(transport: Transport, url: str) -> object:
    from returns.result import Failure, Success

    try:
        return Success(await transport.exchange(asking(url), LIMITS))
    except TransportFault as fault:
        return Failure(fault.error)


# --- Readers and writers ------------------------------------------------------------------------------------------


async def test_what_arrived_before_a_cut_is_read_before_the_error(transport: Transport) -> None:
    with serving(sending(chunked(b"one", b"two", end=False))) as server:
        async with transport.stream(asking(server.url), LIMITS) as answer:
            await anyio.to_thread.run_sync(server.settled)  # the reader is busy elsewhere while the connection ends
            await anyio.sleep(0.02)
            read = b""
            with pytest.raises(TransportFault) as caught:
                async for piece in answer.chunks():
                    read += piece
    assert (read, phase_of(caught.value.error)) == (b"onetwo", ("NetworkError", "reset"))


@pytest.mark.parametrize("pause", [0.0, 0.03])
async def test_what_arrived_before_bytes_that_are_no_http_is_read_before_the_error(
    transport: Transport, pause: float
) -> None:
    async def nonsense(peer: Peer) -> None:
        await peer.request()
        await peer.send(chunked(b"one", end=False) + (b"" if pause else b"zz\r\n"))
        await asyncio.sleep(pause)
        await peer.send(b"zz\r\n")
        await peer.gone()

    read = b""
    with serving(nonsense) as server:
        with pytest.raises(TransportFault) as caught:
            async with transport.stream(asking(server.url), LIMITS) as answer:
                async for piece in answer.chunks():
                    read += piece
        assert server.settled() == 0
    assert (read, phase_of(caught.value.error)) == (b"one", ("NetworkError", "protocol"))


async def test_the_time_of_a_busy_reader_is_not_the_silence_of_the_server(transport: Transport) -> None:
    async def patient(peer: Peer) -> None:
        await peer.request()
        await peer.send(chunked(b"one", end=False))
        await peer.gone()

    with serving(patient) as server:
        async with transport.stream(asking(server.url), Timeouts(read_s=0.08)) as answer:
            chunks = answer.chunks()
            assert await anext(chunks) == b"one"
            await anyio.sleep(0.16)
            began = anyio.current_time()
            with pytest.raises(TransportFault) as caught:
                await anext(chunks)
            assert anyio.current_time() - began > 0.05
    assert phase_of(caught.value.error) == ("TimeoutError", "between_content")


async def test_a_slow_reader_holds_the_server_back(transport: Transport) -> None:
    sent = list[int]()

    async def flood(peer: Peer) -> None:
        await peer.request()
        await peer.send(chunked(end=False))
        for _ in range(256):
            await peer.send(b"10000\r\n" + bytes(2**16) + b"\r\n")
            sent.append(2**16)

    with serving(flood) as server:
        async with transport.stream(asking(server.url), LIMITS) as answer:
            await anext(answer.chunks())
            await anyio.sleep(0.1)
            assert sum(sent) < 14 * 2**20  # of 16: what the buffers of two sockets hold
            started = sum(sent)
            await anyio.sleep(0.05)
            assert sum(sent) == started
        assert server.settled() == 0


@pytest.mark.parametrize(
    "head", [b"x-long: " + b"x" * 2**17, b"\r\n".join(b"x-%d: %s" % (n, b"y" * 100) for n in range(2000))]
)
async def test_fault_73_the_head_of_an_answer_is_bounded(transport: Transport, head: bytes) -> None:
    with serving(answering(b"HTTP/1.1 200 OK\r\n" + head + b"\r\ncontent-length: 0\r\n\r\n")) as server:
        assert phase_of(await error_of(transport, server.url)) == ("NetworkError", "protocol")
        assert server.settled() == 0


async def test_a_head_within_the_limits_is_read(transport: Transport) -> None:
    assert caps.HEADERS >= 200
    lines = [f"x-{number}: y" for number in range(190)] + ["x-long: " + "x" * 30_000]
    with serving(answering(reply(b"{}", "200 OK", *lines))) as server:
        answer = await transport.exchange(asking(server.url), LIMITS)
    assert (len(answer.headers["x-long"]), answer.headers["x-189"]) == (30_000, "y")


async def test_informational_answers_are_skipped(transport: Transport) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * 3
    with serving(answering(early + reply(b"answered"))) as server:
        async with transport.scope():
            for _ in range(2):
                assert (await transport.exchange(asking(server.url), LIMITS)).body == b"answered"
    assert server.accepted == 1


async def test_a_large_body_is_sent_whole(transport: Transport) -> None:
    body = os.urandom(2**10) * 2**13
    with serving(answering()) as server:
        await transport.exchange(asking(server.url, body), LIMITS)
    assert server.requests[0].endswith(b"\r\n\r\n" + body)


async def test_aiohttp_reads_the_answer_to_a_body_that_is_too_large(wire: Wire, transport: Transport) -> None:
    if wire.kind == "httpx":
        return  # on asyncio it reports a broken connection

    async def refusing(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(reply(b"too large", "413 Content Too Large"))
        await asyncio.sleep(0.05)  # it reads no more and closes

    with serving(refusing) as server:
        answer = await transport.exchange(asking(server.url, bytes(32 * 2**20)), LIMITS)
    assert (answer.status, answer.body) == (413, b"too large")


async def test_aiohttp_asks_once_where_half_an_answer_came(wire: Wire, transport: Transport) -> None:
    if wire.kind == "httpx":
        return  # it does not know half an answer from none

    async def half(peer: Peer) -> None:
        await peer.request()
        await peer.send(reply())
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-le")

    with serving(half) as server:
        async with transport.scope():
            await transport.exchange(asking(server.url), LIMITS)
            assert phase_of(await error_of(transport, server.url)) == ("NetworkError", "reset")
    assert len(server.requests) == 2


@pytest.mark.parametrize("pause", [0.0, 0.01])
async def test_bytes_after_the_answer_never_become_the_next_one(wire: Wire, transport: Transport, pause: float) -> None:
    if wire.kind == "httpx" and not pause:
        return  # it takes them for the next one if they come in the same packet

    async def smuggle(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(reply(b"{}") + (b"" if pause else reply(b"smuggled")))
            await asyncio.sleep(pause)
            await peer.send(reply(b"smuggled"))

    with serving(smuggle) as server:
        async with transport.scope():
            for _ in range(2):
                assert (await transport.exchange(asking(server.url), LIMITS)).body == b"{}"
                await anyio.sleep(0.05)
    assert server.accepted == 2


async def test_a_connection_that_the_server_closes_is_not_kept(transport: Transport) -> None:
    with serving(answering(reply(b"{}", "200 OK", "connection: close"))) as server:
        async with transport.scope():
            for _ in range(2):
                assert (await transport.exchange(asking(server.url), LIMITS)).body == b"{}"
            assert server.settled() == 0
    assert server.accepted == 2


async def test_fault_105_a_burst_leaves_its_connections_to_the_next(transport: Transport) -> None:
    with serving(answering(delay=0.03)) as server:
        async with transport.scope():
            for _ in range(2):
                async with anyio.create_task_group() as tasks:
                    for _ in range(20):
                        tasks.start_soon(transport.exchange, asking(server.url), LIMITS)
    assert server.accepted == 20


# --- Processes ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # a fork is what is tested
async def test_fault_108_a_fork_leaves_the_connections_of_the_parent_alone(transport: Transport, wire: Wire) -> None:
    def ask_anew() -> None:
        answers.append(anyio.run(transport.exchange, asking(server.url), LIMITS, backend=wire.loop).status)

    answers = list[int]()
    with serving(answering()) as server:
        async with transport.scope():
            await transport.exchange(asking(server.url), LIMITS)
            child = os.fork()
            if not child:
                try:
                    thread = Thread(target=ask_anew)
                    thread.start()
                    thread.join()
                finally:
                    os._exit(0 if answers == [200] else 1)
            _, status = await anyio.to_thread.run_sync(os.waitpid, child, 0)
            assert (await transport.exchange(asking(server.url), LIMITS)).status == 200
    assert (status, server.accepted) == (0, 2)
