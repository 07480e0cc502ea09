"""A small fast HTTP/1.1 server for measuring clients: ``python tests/benchmarks/stub.py [delay_ms [events [gap_ms]]]``.

It prints its port. A streaming request gets ``events`` server-sent events, ``gap_ms`` apart; any other gets a canned
chat completion after ``delay_ms``. Requests to ``/messages`` get the same in Anthropic's protocol. A request that says
"forever" is never answered.
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


MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "stub",
    "content": [{"type": "text", "text": "Light is scattered by air, blue most of all."}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 12, "output_tokens": 9},
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


def message_events(count: int) -> list[bytes]:
    """Build ``count`` events of Anthropic's protocol: an opening, words, and an end."""
    words = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": f"word{index} "}}
        for index in range(count - 5)
    ]
    usage = {"output_tokens": 9}
    payloads = [
        {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *words,
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    ]
    return [as_chunk(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode()) for each in payloads]


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Answers:
    """What the server sends in one protocol: a whole answer, and the pieces of a stream with their end."""

    def __init__(self, whole: object, pieces: list[bytes], tail: bytes) -> None:
        self.whole, self.pieces, self.tail = answer(json.dumps(whole).encode()), pieces, tail


class Stub(asyncio.Protocol):
    """A connection that reads whole requests and answers them in order."""

    def __init__(self, delay_s: float, gap_s: float, openai: Answers, anthropic: Answers) -> None:
        self.delay_s, self.gap_s = delay_s, gap_s
        self.openai, self.anthropic = openai, anthropic
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
        if b"forever" in body:
            return
        answers = self.anthropic if b"/messages " in head.partition(b"\r\n")[0] else self.openai
        if b'"stream":true' in body.replace(b" ", b""):
            self.stream(answers, 0)
        else:
            self.reply(answers)

    def reply(self, answers: Answers) -> None:
        if self.delay_s:
            asyncio.get_running_loop().call_later(self.delay_s, self.transport.write, answers.whole)
        else:
            self.transport.write(answers.whole)

    def stream(self, answers: Answers, index: int) -> None:
        """Send all events at once, or this one, and the next after a gap."""
        if not self.gap_s:
            self.transport.write(HEAD + b"".join(answers.pieces) + answers.tail)
            return
        self.transport.write((HEAD if index == 0 else b"") + answers.pieces[index])
        if index + 1 == len(answers.pieces):
            self.transport.write(answers.tail)
        else:
            asyncio.get_running_loop().call_later(self.gap_s, self.stream, answers, index + 1)


async def serve(delay_ms: float = 0.0, count: float = 200, gap_ms: float = 0.0) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    openai = Answers(COMPLETION, events(int(count)), as_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
    anthropic = Answers(MESSAGE, message_events(int(count)), b"0\r\n\r\n")
    server = await loop.create_server(
        lambda: Stub(delay_ms / 1000, gap_ms / 1000, openai, anthropic), "127.0.0.1", 0, backlog=4096
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
