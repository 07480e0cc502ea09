"""A small fast HTTP/1.1 server for measuring clients: ``python tests/benchmarks/stub.py [delay_ms [events [gap_ms]]]``.

It prints its port. A streaming request gets ``events`` server-sent events, ``gap_ms`` apart; any other gets a canned
chat completion after ``delay_ms``.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

USAGE = {"prompt_tokens": 12, "completion_tokens": 9, "total_tokens": 21}

COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_790_000_000,
    "model": "stub",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Light is scattered by air, blue most of all."},
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE,
}


def answer(body: bytes, kind: str = "application/json") -> bytes:
    """Build a whole response."""
    return f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def event(delta: dict[str, str], finish: str | None = None) -> bytes:
    """Build one event as a chunk."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "stub", "choices": [choice]}
    return as_chunk(b"data: " + json.dumps(body).encode() + b"\n\n")


def as_chunk(data: bytes) -> bytes:
    """Encode data as a chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def events(count: int) -> list[bytes]:
    """Build ``count`` events: a role, words, and an end."""
    words = [event({"content": f"word{index} "}) for index in range(count - 2)]
    return [event({"role": "assistant", "content": ""}), *words, event({}, "stop")]


class Stub(asyncio.Protocol):
    """A connection that reads whole requests and answers them in order."""

    def __init__(self, delay_s: float, count: int, gap_s: float) -> None:
        self.delay_s, self.gap_s = delay_s, gap_s
        self.whole = answer(json.dumps(COMPLETION).encode())
        self.head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        self.pieces = events(count)
        self.tail = as_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, end, rest = self.data.partition(b"\r\n\r\n")
        if not end:
            return
        _, _, length = head.lower().partition(b"content-length:")
        size = int(length.split(b"\r\n", 1)[0]) if length else 0
        if len(rest) < size:
            return
        self.data = rest[size:]
        body = rest[:size]
        self.stream(0) if b'"stream":true' in body.replace(b" ", b"") else self.reply()

    def reply(self) -> None:
        if self.delay_s:
            asyncio.get_running_loop().call_later(self.delay_s, self.transport.write, self.whole)
        else:
            self.transport.write(self.whole)

    def stream(self, index: int) -> None:
        """Send all events at once, or this one, and the next after a gap."""
        if not self.gap_s:
            self.transport.write(self.head + b"".join(self.pieces) + self.tail)
            return
        self.transport.write((self.head if index == 0 else b"") + self.pieces[index])
        if index + 1 == len(self.pieces):
            self.transport.write(self.tail)
        else:
            asyncio.get_running_loop().call_later(self.gap_s, self.stream, index + 1)


async def serve(delay_ms: float = 0.0, count: float = 200, gap_ms: float = 0.0) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Stub(delay_ms / 1000, int(count), gap_ms / 1000), "127.0.0.1", 0, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def stub(delay_ms: float = 0.0, count: int = 200, gap_ms: float = 0.0) -> Iterator[str]:
    """Run the stub as a child process, and yield its base URL."""
    with child_server(str(Path(__file__)), str(delay_ms), str(count), str(gap_ms)) as base:
        yield f"{base}/v1"


@contextlib.contextmanager
def child_server(*arguments: str) -> Iterator[str]:
    """Run a Python program that prints the port it serves as a child process, and yield its base URL."""
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield f"http://127.0.0.1:{child.stdout.readline().strip()}"
        finally:
            child.kill()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(*(float(argument) for argument in sys.argv[1:])))
