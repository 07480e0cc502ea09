"""The two ways to an MCP server, a process of its own or HTTP, between it and the official client.

Whatever a server sends is bounded here: how long a message is, how many values it has, and how fast messages that
answer nothing are read. What goes wrong on the way is an error that the client reads as the server's answer.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, final

import anyio
import httpx2
import msgspec
from anyio.abc import ByteReceiveStream, Process
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from attrs import define, field
from mcp.client.stdio import get_default_environment
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from mcp_types import (
    INTERNAL_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
)

from llm_effects.effects.tasks import task_group
from llm_effects.providers.sse import EventParser
from llm_effects.values import caps
from llm_effects.values.json import Unreadable, as_object, as_string, parse
from llm_effects.values.validation import is_table, printable

if TYPE_CHECKING:
    from mcp.client._transport import TransportStreams

MESSAGE_BYTES: Final = 8 * 2**20
"""Longest message of a server, in bytes: a picture fits."""

BURST: Final = 500
"""How many messages that answer nothing are read without a pause."""

PAUSE_S: Final = 0.1
"""The pause after a burst, in seconds."""

GRACE_S: Final = 2.0
"""How long a process may take to end, in seconds: after its input is closed, and again after ``SIGTERM``."""

CONNECT_S: Final = 10.0
"""Longest time to connect to a server by HTTP, and to send it a request, in seconds."""

SILENCE_S: Final = 300.0
"""Longest silence of an answer by HTTP, in seconds, unless the tools may take longer."""

_HEARD: Final = frozenset(
    {
        "notifications/cancelled",
        "notifications/subscriptions/acknowledged",
        "notifications/tools/list_changed",
    }
)
"""The notifications that mean something here; the others are dropped."""

_FIRST_ID: Final = re.compile(rb'[^\[\]{}]*\{[^\[\]{}]*?"id"\s*:\s*(\d{1,15})\b')
"""The id of a message, where it comes before its contents."""

_LISTEN: Final = "subscriptions/listen"
_STDERR_CHARACTERS: Final = 2000
_POLL_S: Final = 0.01


class Ended(Protocol):
    """Called once the server is gone."""

    def __call__(self, problem: str, details: str = ..., /) -> object:
        """Note the problem, and details that no model should see."""


_Incoming: TypeAlias = MemoryObjectSendStream[SessionMessage | Exception]
_Outgoing: TypeAlias = MemoryObjectReceiveStream[SessionMessage]
_Streams: TypeAlias = tuple[
    MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]
]


class _Envelope(msgspec.Struct):
    """A message whose contents are not parsed yet."""

    id: int | str | None = None
    method: str | None = None
    params: msgspec.Raw = msgspec.Raw(b"null")
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def message_of(line: bytes) -> JSONRPCMessage | None:
    r"""Return the message of a line; ``None`` for what is none, such as a log line, or means nothing here.

    An answer that cannot be read becomes an error with its id.

    >>> message_of(b'{"jsonrpc": "2.0", "id": 1, "result": {"a": 2}}').result
    {'a': 2}
    >>> message_of(b'{"jsonrpc": "2.0", "id": 1, "result": [1]}').error.message
    'its answer is not an object'
    >>> message_of(b"Listening on port 80"), message_of(b'{"method": "notifications/message"}')
    (None, None)
    """
    try:
        envelope = msgspec.json.decode(line, type=_Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    except RecursionError:
        known = _FIRST_ID.match(line)
        return None if known is None else _error(int(known[1]), "its answer cannot be read: it is nested too deeply")
    if envelope.method is not None:
        return _from_server(envelope, envelope.method)
    return None if envelope.id is None else _answer(envelope, envelope.id)


def _from_server(envelope: _Envelope, method: str) -> JSONRPCMessage | None:
    params = parse(bytes(envelope.params))
    known = as_object(params) if is_table(params) else None
    if envelope.id is not None:
        return JSONRPCRequest(jsonrpc="2.0", id=envelope.id, method=method, params=known)
    return JSONRPCNotification(jsonrpc="2.0", method=method, params=known) if method in _HEARD else None


def _answer(envelope: _Envelope, request_id: int | str) -> JSONRPCMessage:
    if isinstance(envelope.error, msgspec.Raw):
        error = as_object(parse(bytes(envelope.error)))
        code = error.get("code")
        known = code if isinstance(code, int) and abs(code) < 2**31 else INTERNAL_ERROR
        return _error(request_id, as_string(error.get("message")), known, error.get("data"))
    raw = envelope.result
    result = parse(bytes(raw)) if isinstance(raw, msgspec.Raw) else None
    if isinstance(result, Unreadable):
        return _error(request_id, f"its answer cannot be read: {result.reason}")
    if not is_table(result):
        return _error(request_id, "its answer is not an object")
    return JSONRPCResponse(jsonrpc="2.0", id=request_id, result=as_object(result))


def _error(request_id: int | str, message: str, code: int = INTERNAL_ERROR, data: object = None) -> JSONRPCError:
    return JSONRPCError(jsonrpc="2.0", id=request_id, error=ErrorData(code=code, message=message, data=data))


@final
@define(eq=False)
class LineSplitter:
    r"""The lines of a stream of bytes, in time that grows with their length.

    >>> lines = LineSplitter()
    >>> lines.feed(b"one\ntw"), lines.feed(b"o\n"), lines.rest
    ([b'one'], [b'two'], 0)
    """

    rest: int = 0
    _pieces: list[bytes] = field(factory=list[bytes])

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that the chunk ends; ``rest`` is the length of the line that has not ended."""
        *whole, rest = chunk.split(b"\n")
        if whole:
            whole[0] = b"".join((*self._pieces, whole[0]))
            self._pieces, self.rest = [], 0
        self._pieces.append(rest)
        self.rest += len(rest)
        return whole


# A process.


@asynccontextmanager
async def process_streams(
    command: Sequence[str], env: Mapping[str, str], cwd: str | None, ended: Ended
) -> AsyncGenerator[_Streams]:
    """Start a server and connect to its standard input and output; on exit it ends, by force if need be.

    Its environment is ``env`` and a few variables of this process, such as ``PATH`` and ``HOME``.
    """
    process = await anyio.open_process(
        [*command], env=get_default_environment() | dict(env), cwd=cwd, start_new_session=True
    )
    incoming, received = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    to_send, outgoing = anyio.create_memory_object_stream[SessionMessage](64)  # a cancellation never waits for it
    try:
        async with task_group() as group:
            group.start_soon(_read, process, incoming, ended)
            group.start_soon(_write, process, outgoing, incoming)
            yield received, to_send
            group.cancel_scope.cancel()
    finally:
        for stream in (incoming, received, to_send, outgoing):
            stream.close()
        with anyio.CancelScope(shield=True):
            await _end(process)


async def _read(process: Process, incoming: _Incoming, ended: Ended) -> None:
    """Pass on each message until the process ends, or sends one that is too long."""
    stdout, stderr = _pipes(process)
    tail, read = bytearray(), anyio.Event()
    async with task_group() as group:
        group.start_soon(_keep_tail, stderr, tail, read)
        problem = await _pass_on(stdout, incoming)
        if problem is None:
            await _exited(process, GRACE_S)
            problem = _exit_text(process)
            if process.returncode is not None:
                with anyio.move_on_after(GRACE_S):  # a process that it started may keep its error output open
                    await read.wait()
        group.cancel_scope.cancel()
    ended(problem, _tail_text(tail))
    incoming.close()  # the client ends every call under way


def _pipes(process: Process) -> tuple[ByteReceiveStream, ByteReceiveStream]:
    assert process.stdout is not None  # noqa: S101 - open_process makes pipes
    assert process.stderr is not None  # noqa: S101
    return process.stdout, process.stderr


async def _pass_on(stdout: ByteReceiveStream, incoming: _Incoming) -> str | None:
    lines, noise = LineSplitter(), 0
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, ConnectionError):
        async for chunk in stdout:
            for line in lines.feed(chunk):
                message = message_of(line) if len(line) <= MESSAGE_BYTES else None
                if message is not None:
                    await incoming.send(SessionMessage(message))
                noise = 0 if isinstance(message, JSONRPCResponse | JSONRPCError) else noise + 1
                if noise >= BURST:  # the process has to wait until its output is read
                    noise = 0
                    await anyio.sleep(PAUSE_S)
                if len(line) > MESSAGE_BYTES:
                    return _TOO_LONG
            if lines.rest > MESSAGE_BYTES:
                return _TOO_LONG
    return None


_TOO_LONG: Final = f"it sent a message of more than {MESSAGE_BYTES} bytes"


async def _keep_tail(stderr: ByteReceiveStream, tail: bytearray, read: anyio.Event) -> None:
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, ConnectionError):
        async for chunk in stderr:
            tail += chunk
            del tail[:-_STDERR_CHARACTERS]
    read.set()


def _tail_text(tail: bytearray) -> str:
    text = printable(tail.decode(errors="replace")).strip()
    return f"the end of its error output: {text}" if text else ""


def _exit_text(process: Process) -> str:
    code = process.returncode
    if code is None:
        return "it closed its output"
    return f"its process ended with {code}" if code >= 0 else f"its process was ended by signal {-code}"


async def _write(process: Process, outgoing: _Outgoing, incoming: _Incoming) -> None:
    stdin = process.stdin
    assert stdin is not None  # noqa: S101 - open_process makes pipes
    try:
        async for message in outgoing:
            await stdin.send(message.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
        await _exited(process, GRACE_S)  # the reader then knows why
        await anyio.sleep(_POLL_S)
        incoming.close()


async def _end(process: Process) -> None:
    """End a process and all that it started: by closing its input, then by signals. Every wait is bounded."""
    if process.stdin is not None:
        with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            await process.stdin.aclose()
    exited = await _exited(process, GRACE_S)
    _signal_all(process, "SIGTERM")  # also what it left behind
    if not exited and not await _exited(process, GRACE_S):
        _signal_all(process, "SIGKILL")
        await _exited(process, GRACE_S)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                await stream.aclose()
    _close_transport(process)


async def _exited(process: Process, seconds: float) -> bool:
    """Wait for the end of a process; ``Process.wait`` would wait for everything that holds its output open, too."""
    ends = anyio.current_time() + seconds
    while process.returncode is None and anyio.current_time() < ends:  # noqa: ASYNC110 - nothing else says it
        await anyio.sleep(_POLL_S)
    return process.returncode is not None


def _signal_all(process: Process, name: str) -> None:
    with suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.Signals[name])  # it leads a session of its own


def _close_transport(process: Process) -> None:
    """Close what asyncio keeps open while anything holds the pipes; it has no public name. Trio keeps nothing."""
    transport = getattr(getattr(process, "_process", None), "_transport", None)
    if transport is not None:
        with suppress(PermissionError, ProcessLookupError):
            transport.close()


# HTTP.


@asynccontextmanager
async def http_streams(
    url: str, headers: Mapping[str, str], timeout_s: float | None, expired: Callable[[str], object]
) -> AsyncGenerator[TransportStreams]:
    """Connect to a server by streamable HTTP; redirects are followed within its origin only.

    ``expired`` is called with the reason when the server knows the session no longer.
    """
    silence = max(SILENCE_S, (timeout_s or 0) + CONNECT_S)
    client = httpx2.AsyncClient(
        transport=BoundedTransport(httpx2.AsyncHTTPTransport(), expired),
        headers={**headers, "accept-encoding": "identity"},
        timeout=httpx2.Timeout(CONNECT_S, read=silence),
    )
    async with client, streamable_http_client(url, http_client=client, max_sse_event_size=MESSAGE_BYTES) as streams:
        yield streams


@final
@define(eq=False)
class BoundedTransport(httpx2.AsyncBaseTransport):
    """A transport whose answers are bounded, and whose failures are answers, which the client can read."""

    _inner: httpx2.AsyncBaseTransport
    _expired: Callable[[str], object]
    _next_get: float = 0.0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and return its answer, or one that says what went wrong."""
        try:
            if request.method == "GET":
                await self._pause()
            response = await self._inner.handle_async_request(request)
            return await self._bounded(request, response)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as problem:
            return _refusal(request, f"{type(problem).__name__}: {problem}")
        except httpx2.TransportError as problem:
            return _refusal(request, f"{type(problem).__name__}: {problem}: it may or may not have taken effect")

    async def _pause(self) -> None:
        """Open a stream of notifications at most once a second, whatever the server says about it."""
        now = anyio.current_time()
        self._next_get = max(now, self._next_get) + 1
        await anyio.sleep(self._next_get - 1 - now)

    async def _bounded(self, request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        problem = self._problem(request, response, kind)
        if problem is not None:
            await response.aclose()
            return _refusal(request, problem)
        if kind == "text/event-stream" and (request.method == "GET" or _envelope_of(request).method == _LISTEN):
            response.stream = _PacedStream(response.stream)
            return response
        read = _answer_in if kind == "text/event-stream" else _body
        body = b"" if response.is_redirect else await read(response.stream)
        await response.aclose()
        if isinstance(body, str):
            return _refusal(request, body)
        is_answer = kind in {"application/json", "text/event-stream"} and not response.is_redirect
        if is_answer and request.method == "POST":
            return _checked(request, response, body)
        return httpx2.Response(response.status_code, headers=_plain_headers(response), request=request)

    def _problem(self, request: httpx2.Request, response: httpx2.Response, kind: str) -> str | None:
        if response.headers.get("content-encoding", "identity") != "identity":
            return "its answer is compressed, though that was not asked for"
        if response.status_code == 404 and "mcp-session-id" in request.headers and request.method == "POST":
            self._expired("it has forgotten this session")
            return "it has forgotten this session, and did not run this"
        if response.status_code >= 400 and kind != "application/json" and request.method == "POST":
            return f"HTTP status {response.status_code}"
        return None

    async def aclose(self) -> None:
        """Close all connections."""
        await self._inner.aclose()


def _plain_headers(response: httpx2.Response, **changed: str) -> list[tuple[str, str]]:
    """Return the headers without those of the body."""
    dropped = {"content-length", "transfer-encoding", "content-encoding", *changed}
    return [*((name, value) for name, value in response.headers.multi_items() if name.lower() not in dropped)]


_Stream: TypeAlias = httpx2.AsyncByteStream | httpx2.SyncByteStream


async def _chunks(stream: _Stream, take: Callable[[bytes], float | None]) -> None:
    """Pass on each chunk until ``take`` returns ``None``; what it returns is a pause, in seconds.

    A stream that is left early is cancelled, since trio warns of a generator that has not run to its end.
    """
    assert isinstance(stream, httpx2.AsyncByteStream)  # noqa: S101 - of an async transport
    with anyio.CancelScope() as scope:
        async for chunk in stream:
            pause = None if scope.cancel_called else take(chunk)
            if pause is None:
                scope.cancel()
            elif pause:
                await anyio.sleep(pause)


async def _body(stream: _Stream) -> bytes | str:
    """Return the whole body, or what is wrong with it."""
    body = bytearray()

    def take(chunk: bytes) -> float | None:
        body.extend(chunk)
        return 0 if len(body) <= MESSAGE_BYTES else None

    await _chunks(stream, take)
    return bytes(body) if len(body) <= MESSAGE_BYTES else f"its answer has more than {MESSAGE_BYTES} bytes"


async def _answer_in(stream: _Stream) -> bytes | str:
    """Return the answer among the events of a stream, or what is wrong with it; other messages are passed over."""
    parser, found, noise = EventParser(limit=MESSAGE_BYTES), list[bytes](), 0

    def take(chunk: bytes) -> float | None:
        nonlocal noise
        for event in parser.feed(chunk):
            message = message_of(event.data.encode())
            if isinstance(message, JSONRPCResponse | JSONRPCError):
                found.append(event.data.encode())
            noise += 1
        noise, pause = (0, PAUSE_S) if noise >= BURST else (noise, 0.0)
        return None if found or parser.fault is not None else pause

    await _chunks(stream, take)
    problem = _CUT_OFF if parser.fault is None else parser.fault.message
    return found[0] if found else f"{problem}: it may or may not have taken effect"


_CUT_OFF: Final = "its stream ended without an answer"


def _checked(request: httpx2.Request, response: httpx2.Response, body: bytes) -> httpx2.Response:
    """Return the answer to a request, bounded like a line of a process."""
    expected, message = _envelope_of(request).id, message_of(body)
    if expected is None or _envelope_of(request).method is None:  # the client sent no request
        return httpx2.Response(response.status_code, headers=_plain_headers(response), request=request)
    if isinstance(message, JSONRPCError):
        message = message.model_copy(update={"id": expected})
    if not isinstance(message, JSONRPCResponse | JSONRPCError):
        return _refusal(request, f"HTTP status {response.status_code}, and its answer is no JSON-RPC")
    if message.id != expected:
        return _refusal(request, "its answer has the id of another request")
    headers = [*_plain_headers(response, **{"content-type": ""}), ("content-type", "application/json")]
    content = message.model_dump_json(by_alias=True, exclude_unset=True).encode()
    return httpx2.Response(200, headers=headers, content=content, request=request)


def _envelope_of(request: httpx2.Request) -> _Envelope:
    with suppress(msgspec.DecodeError, httpx2.RequestNotRead):
        return msgspec.json.decode(request.content, type=_Envelope)
    return _Envelope()


def _refusal(request: httpx2.Request, message: str) -> httpx2.Response:
    """Return the answer that a server would send that refuses a request: the client goes on after it."""
    asked = _envelope_of(request)
    request_id = asked.id if asked.method is not None else None
    if request.method != "POST":
        return httpx2.Response(405, request=request)
    if request_id is None:
        return httpx2.Response(202, request=request)
    error = _error(request_id, message[: caps.MESSAGE_CHARACTERS])
    content = error.model_dump_json(exclude_unset=True).encode()
    return httpx2.Response(200, headers={"content-type": "application/json"}, content=content, request=request)


@final
class _PacedStream(httpx2.AsyncByteStream):
    """A stream of events, read at a bounded pace."""

    def __init__(self, inner: _Stream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._inner, httpx2.AsyncByteStream)  # noqa: S101 - of an async transport
        events = 0
        async for chunk in self._inner:
            yield chunk
            events += chunk.count(b"\n\n") + chunk.count(b"\r\n\r\n")
            if events >= BURST:
                events = 0
                await anyio.sleep(PAUSE_S)

    async def aclose(self) -> None:
        if isinstance(self._inner, httpx2.AsyncByteStream):
            await self._inner.aclose()
