"""How long an event loop stands still while it handles 1 MB of anything: ``python -m tests.benchmarks.loop [names]``.

Another task ticks in the same loop. The longest gap between two of its ticks is measured by the clock, and by the
processor time of this process, which a busy machine changes little. A server in another process sends the answers.
"""

import asyncio
import contextlib
import gc
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Final, TypedDict, final

import anyio
from attrs import define, evolve, frozen
from returns.pipeline import is_successful
from returns.result import Result, Success

from llm_effects import (
    LLMConfig,
    LLMEnv,
    LLMError,
    LLMRequest,
    Message,
    ModelConfig,
    StreamEvent,
    Text,
    converse,
    embed,
    generate,
    open_env,
    open_stream,
    run,
    scripted_env,
    start_conversation,
    stream,
    usage_report,
)
from llm_effects.config import CacheConfig, Capabilities, StorageConfig
from llm_effects.conversations import append_messages
from llm_effects.effects.files import read_document, read_image
from llm_effects.structured import generate_as
from tests.benchmarks.stub import child_server
from tests.fixtures.typed_values import Open, Paid

MB: Final = 2**20
TICK_S: Final = 0.001
BOUND_MS: Final = 100


# What the server sends: each is the status line's rest, headers and body of one response, of about 1 MB.


@final
@frozen
class Reply:
    """A response of the server: its body in ``chunks`` of so many bytes, or in one piece."""

    body: bytes
    wire: str = "chat"
    status: int = 200
    headers: str = ""
    chunk: int | None = None

    def raw(self) -> bytes:
        head = f"HTTP/1.1 {self.status} X\r\n{self.headers}"
        if self.chunk is None:
            return f"{head}content-length: {len(self.body)}\r\n\r\n".encode() + self.body
        pieces = (self.body[at : at + self.chunk] for at in range(0, len(self.body), self.chunk))
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        return f"{head}transfer-encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n"


def filled(size: int, *items: object) -> list[object]:
    """Repeat some values until their JSON has this size."""
    each = sum(len(json.dumps(item)) + 2 for item in items)
    return list(islice(cycle(items), len(items) * max(1, size // each)))


def chat(message: Mapping[str, object], **more: object) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    return json.dumps({"id": "1", "object": "chat.completion", "model": "m", "choices": [choice], **more}).encode()


def anthropic(*content: object) -> bytes:
    head = {"type": "message", "role": "assistant", "id": "1", "model": "m", "stop_reason": "end_turn"}
    usage = {"input_tokens": 1, "output_tokens": 1}
    return json.dumps({**head, "content": content, "usage": usage}).encode()


def responses(*output: object) -> bytes:
    usage = {"input_tokens": 1, "output_tokens": 1}
    return json.dumps({"id": "1", "model": "m", "status": "completed", "output": output, "usage": usage}).encode()


def events(*each: object, size: int = MB, first: Iterable[object] = (), last: Iterable[object] = ()) -> bytes:
    """Build a stream of events of about this size."""
    lines = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in each]
    many = b"".join(islice(cycle(lines), len(lines) * max(1, size // sum(map(len, lines)))))
    ends = [b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in some) for some in (first, last)]
    return ends[0] + many + ends[1] + b"data: [DONE]\n\n"


def delta(**fields: object) -> object:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": fields}]}


STOP: Final = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
CLAUDE_START: Final = (
    {"type": "message_start", "message": {"id": "1", "model": "m", "usage": {"input_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
)
CLAUDE_STOP: Final = (
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
    {"type": "message_stop"},
)
DONE: Final = {"type": "response.completed", "response": {"id": "1", "status": "completed", "output": []}}
SITE: Final = {"type": "url_citation", "start_index": 0, "end_index": 1, "url": "https://a.example"}
PROSE: Final = "Light is scattered by air, blue most of all. "


def text_delta(text: str) -> object:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}


def output_delta(text: str) -> object:
    return {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": text}


def call(number: int, size: int) -> object:
    arguments = json.dumps({"cells": [PROSE] * (size // len(PROSE))})
    return {"id": f"c{number}", "type": "function", "function": {"name": "f", "arguments": arguments}}


def calling(number: int, size: int) -> object:
    return {"type": "tool_use", "id": f"c{number}", "name": "f", "input": {"cells": [1] * (size // 3)}}


TINY: Final = events(delta(content="a"), last=[STOP])

REPLIES: Final[Mapping[str, Callable[[], Reply]]] = {
    "chat: a long text": lambda: Reply(chat({"content": PROSE * (MB // len(PROSE))})),
    "chat: a text of escapes": lambda: Reply(chat({"content": "\u00e9\U0001f600" * (MB // 18)})),
    "chat: 128 tool calls": lambda: Reply(
        chat({"content": None, "tool_calls": [call(n, MB // 128) for n in range(128)]})
    ),
    "chat: 4,000 blocks": lambda: Reply(chat({"content": filled(MB // 2, {"type": "text", "text": "a" * 90})[:4000]})),
    "chat: citations": lambda: Reply(chat({"content": "a" * 99, "annotations": filled(MB, SITE)})),
    "chat: arrays of numbers": lambda: Reply(chat({"content": "a"}, x=[[1, 2, 3]] * 24_000)),
    "chat: nested arrays": lambda: Reply(chat({"content": "a"}, x=filled(MB // 2, json.loads("[" * 90 + "]" * 90)))),
    "chat: sealed thinking": lambda: Reply(chat({"content": "a", "reasoning_details": filled(MB, {"text": "a" * 60})})),
    "chat: 64 kB, 1 byte in each chunk": lambda: Reply(chat({"content": "a" * (MB // 16)}), chunk=1),
    "anthropic: a long text": lambda: Reply(anthropic({"type": "text", "text": PROSE * (MB // 45)}), "anthropic"),
    "anthropic: cited blocks": lambda: Reply(
        anthropic(*filled(MB, {"type": "text", "text": "a" * 200, "citations": [{"cited_text": "a" * 99}]})[:4000]),
        "anthropic",
    ),
    "anthropic: tool calls": lambda: Reply(anthropic(*[calling(n, MB // 400) for n in range(100)]), "anthropic"),
    "responses: a long text": lambda: Reply(
        responses({"type": "message", "content": [{"type": "output_text", "text": PROSE * (MB // 45)}]}), "responses"
    ),
    "responses: 4,000 items": lambda: Reply(
        responses(*filled(MB, {"type": "message", "content": [{"type": "output_text", "text": "a" * 180}]})[:4000]),
        "responses",
    ),
    "error: a page": lambda: Reply(b"<html>" + b"<p class='a'>oh no, sk-0123456789</p>" * (MB // 38), status=500),
    "error: a JSON": lambda: Reply(
        json.dumps({"error": {"message": "oh no " * (MB // 6)}}).encode(), "chat", 429, "retry-after: 0\r\n"
    ),
    "error: a JSON of lists": lambda: Reply(json.dumps({"error": filled(MB // 4, [{}])}).encode(), status=400),
    "stream: chat, tiny events": lambda: Reply(TINY),
    "stream: chat, tiny events in tiny chunks": lambda: Reply(TINY, chunk=7),
    "stream: 64 kB, 1 byte in each chunk": lambda: Reply(
        events(delta(content="a"), size=MB // 16, last=[STOP]), chunk=1
    ),
    "stream: chat, large events": lambda: Reply(events(delta(content=PROSE * 11_000), last=[STOP])),
    "stream: chat, ignored events": lambda: Reply(events({}, last=[delta(content="a"), STOP])),
    "stream: chat, pieces of tool calls": lambda: Reply(
        events(
            delta(tool_calls=[{"index": 0, "function": {"arguments": "1,"}}]),
            first=[delta(tool_calls=[{"index": 0, "id": "c", "function": {"name": "f", "arguments": "["}}])],
            last=[STOP],
        )
    ),
    "stream: chat, thinking in turns": lambda: Reply(
        events(*[delta(content="a")] * 99, delta(reasoning="b"), size=MB // 4, last=[STOP])
    ),
    "stream: chat, blank lines": lambda: Reply(b"\n" * MB + TINY[-400:]),
    "stream: chat, comments": lambda: Reply(b":\n" * (MB // 2) + TINY[-400:]),
    "stream: chat, blank events": lambda: Reply(b"data:\n\n" * (MB // 7) + TINY[-400:]),
    "stream: chat, lines of one event": lambda: Reply(b"data:\n" * (MB // 6) + b"\n" + TINY[-400:]),
    "stream: chat, not JSON": lambda: Reply(b"data: a\n\n" * (MB // 9)),
    "stream: chat, errors after the end": lambda: Reply(
        events(delta(content=PROSE), size=MB // 2, last=[STOP])[:-14] + b"data: x\n\n" * (MB // 18)
    ),
    "stream: anthropic, tiny events": lambda: Reply(
        events(text_delta("a"), first=CLAUDE_START, last=CLAUDE_STOP), "anthropic"
    ),
    "stream: anthropic, large events": lambda: Reply(
        events(text_delta(PROSE * 11_000), first=CLAUDE_START, last=CLAUDE_STOP), "anthropic"
    ),
    "stream: responses, tiny events": lambda: Reply(events(output_delta("a"), last=[DONE]), "responses"),
    "stream: responses, large events": lambda: Reply(events(output_delta(PROSE * 11_000), last=[DONE]), "responses"),
    "gzip: an answer": lambda: Reply(gzip.compress(chat({"content": PROSE * (MB // 45)})), headers=GZIP),
    "gzip: a stream": lambda: Reply(gzip.compress(TINY), headers=GZIP),
    "gzip: empty members": lambda: Reply(gzip.compress(b"") * (MB // 20), headers=GZIP),
    "gzip: 64 MB in 64 kB": lambda: Reply(gzip.compress(bytes(64 * MB)), headers=GZIP),
    "headers: 60 kB": lambda: Reply(chat({"content": "a"}), headers="".join(f"x-{n}: {n}\r\n" for n in range(5_000))),
}

GZIP: Final = "content-encoding: gzip\r\n"


# The work, and the gaps it leaves.


@final
@define
class Gap:
    """The longest time without a tick, in milliseconds: by the clock and by the processor; and how the work ended."""

    wall_ms: float = 0.0
    cpu_ms: float = 0.0
    end: str = ""


async def longest_gap(work: Callable[[], Awaitable[Result[object, LLMError]]]) -> Gap:
    """Do some work while another task ticks; return the longest gap between two ticks."""
    gap = Gap()

    async def tick() -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        while True:
            await anyio.sleep(TICK_S)
            now, spent = time.perf_counter(), time.process_time()
            gap.wall_ms, gap.cpu_ms = max(gap.wall_ms, (now - wall) * 1e3), max(gap.cpu_ms, (spent - cpu) * 1e3)
            wall, cpu = now, spent

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await anyio.sleep(5 * TICK_S)
        result = await work()
        gap.end = "success" if is_successful(result) else result.failure().tag
        await anyio.sleep(2 * TICK_S)
        group.cancel_scope.cancel()
    return gap


async def ignore(_: StreamEvent) -> None:
    """Drop an event."""


def config_of(base: str, name: str, wire: str, **services: object) -> LLMConfig:
    provider = {"chat": "openai-compatible", "anthropic": "anthropic", "responses": "openai-responses"}[wire]
    number = list(SERVED).index(name)
    model = ModelConfig(provider=provider, model="m", endpoint=f"{base}/{number}/v1", api_key="sk-benchmark")
    return evolve(LLMConfig(models={"m": model}), **services)


async def ask(name: str, base: str, *, streamed: bool) -> Gap:
    """Read a reply of the server, whole or streamed."""
    request = LLMRequest(prompt="?", cache="bypass")
    config = config_of(base, name, REPLIES[name]().wire)
    retries = evolve(config.routing, max_retries=0)
    async with open_env(evolve(config, routing=retries)) as env:
        return await longest_gap(partial(run, stream(request, ignore) if streamed else generate(request), env))


async def left(name: str, base: str) -> Gap:
    """Leave a stream after its first events, while the rest of it is already here."""

    async def leave(env: LLMEnv) -> Result[object, LLMError]:
        async with open_stream(LLMRequest(prompt="?", cache="bypass"))(env) as events:
            return Success(await anext(events))

    async with open_env(config_of(base, name, "chat")) as env:
        return await longest_gap(partial(leave, env))


@frozen
class Num:
    value: float


@frozen
class Add:
    left: "Add | Mul | Num"
    right: "Add | Mul | Num"


@frozen
class Mul:
    times: "Add | Mul | Num"
    by: "Add | Mul | Num"


@frozen
class Order:
    number: str
    state: Paid | Open
    notes: list[str]
    total: float = 0.0


class Row(TypedDict):
    name: str
    count: int


SUM: Final = {"left": {"value": 1}, "right": {"times": {"value": 2}, "by": {"value": 3}}}
ORDER: Final = {"number": "1", "state": {"kind": "paid", "at": "2026-01-01T00:00:00Z"}, "notes": ["a"], "total": 1}
TYPED: Final[Mapping[str, tuple[object, object]]] = {
    "numbers": (list[int], 12),
    "texts": (list[str], PROSE),
    "one long text": (str, None),
    "classes": (list[Num], {"value": 1}),
    "wrong classes": (list[Num], {"value": "x"}),
    "half-wrong classes": (list[Num | Open], {"value": "x"}),
    "orders": (list[Order], ORDER),
    "unions": (list[Add | Mul | Num], SUM),
    "wrong unions": (list[Add | Mul | Num], {**SUM, "left": {"value": "x"}}),
    "numbers or texts": (list[int | str | Num], "a"),
    "typed dicts": (list[Row], {"name": "a", "count": 1}),
    "tables": (dict[str, list[Num]], [{"value": 1}] * 5),
    "tuples": (list[tuple[int, str]], [1, "a"]),
}


def typed_text(item: object, size: int) -> str:
    """Write an answer of this size."""
    if item is None:
        return json.dumps({"value": PROSE * (size // len(PROSE))})
    marks = sum(map(json.dumps(item).count, "[{,")) + 1
    items = filled(size, item)[: 99_000 // marks]  # as many as an answer may hold
    table = isinstance(item, list) and len(item) == 5
    return json.dumps({str(n): each for n, each in enumerate(items)} if table else {"value": items})


async def typed(kind: object, item: object, _: str) -> Gap:
    text = typed_text(item, MB)
    ask = generate_as(LLMRequest(prompt="?"), kind, max_repairs=0)
    return await longest_gap(partial(run, ask, scripted_env(text)))


async def sent(request: Callable[[], LLMRequest], base: str) -> Gap:
    async with open_env(config_of(base, "short", "chat")) as env:
        return await longest_gap(lambda: run(generate(request()), env))


async def read(path: str, data: bytes, _: str) -> Gap:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, path)
        file.write_bytes(data)  # noqa: ASYNC240 - nothing else runs yet
        reader = read_image if path.endswith("g") else read_document
        return await longest_gap(partial(run, reader(file), scripted_env()))


async def cached(url: str, name: str, streamed: bool, again: bool, base: str) -> Gap:
    """Store an answer of 1 MB, or read it again."""
    with tempfile.TemporaryDirectory() as folder:
        cache = CacheConfig(url=url.format(folder))
        async with open_env(config_of(base, name, "chat", cache=cache)) as env:
            request = LLMRequest(prompt="?")
            effect = stream(request, ignore) if streamed else generate(request)
            if again:
                await run(effect, env)
            return await longest_gap(partial(run, effect, env))


async def conversed(url: str, turns: int, base: str) -> Gap:
    """Take a turn of a conversation that has 1 MB already."""
    with tempfile.TemporaryDirectory() as folder:
        storage = StorageConfig(url=url.format(folder))
        async with open_env(config_of(base, "short", "chat", storage=storage)) as env:
            started = (await run(start_conversation(), env)).unwrap()
            text = "a word or two " * (MB // turns // 14 // 2)
            for _ in range(turns):
                exchange = (Message("user", text), Message("assistant", (Text(text),)))
                (await run(append_messages(started.id, exchange), env)).unwrap()
            return await longest_gap(partial(run, converse(started.id, "and?"), env))


async def reported(url: str, calls: int, base: str) -> Gap:
    """Report on a ledger page of about 1 MB."""
    with tempfile.TemporaryDirectory() as folder:
        storage = StorageConfig(url=url.format(folder))
        async with open_env(config_of(base, "short", "chat", storage=storage)) as env:
            for number in range(calls):
                await run(generate(LLMRequest(prompt=f"? {number}", cache="bypass", tags=("a" * 40,))), env)
            return await longest_gap(partial(run, usage_report(), env))


async def embedded(base: str) -> Gap:
    config = config_of(base, "vectors", "chat")
    model = evolve(config.models["m"], capabilities=Capabilities(embeddings=True))
    async with open_env(evolve(config, models={"m": model})) as env:
        return await longest_gap(partial(run, embed([f"{n}" for n in range(VECTORS)]), env))


VECTORS: Final = 16

SERVED: Final[Mapping[str, Callable[[], Reply]]] = {
    **REPLIES,
    "short": lambda: Reply(chat({"content": "because"})),
    "vectors": lambda: Reply(
        json.dumps(
            {"object": "list", "data": [{"index": n, "embedding": [0.12] * 8192} for n in range(VECTORS)]}
        ).encode()
    ),
}

LONG: Final = PROSE * (MB // len(PROSE))
PNG: Final = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0\0\0\1\0" + bytes(MB)

CASES: Final[Mapping[str, Callable[[str], Awaitable[Gap]]]] = {
    **{name: partial(ask, name, streamed=name.startswith(("stream", "gzip: a s"))) for name in REPLIES},
    "stream: left early": partial(left, "stream: chat, tiny events in tiny chunks"),
    **{f"typed: {name}": partial(typed, *kind) for name, kind in TYPED.items()},
    "sent: a prompt": partial(sent, lambda: LLMRequest(prompt=LONG)),
    "sent: a prompt outside ASCII": partial(sent, lambda: LLMRequest(prompt="\u00e9\U0001f600\u4e2d" * (MB // 9))),
    "sent: 2,000 messages": partial(
        sent, lambda: LLMRequest(messages=tuple(Message(role, "a" * 500) for role in ("user", "assistant") * 1_000))
    ),
    "sent: an image": partial(sent, lambda: LLMRequest(messages=(Message("user", (image(),)),))),
    "read: an image": partial(read, "a.png", PNG),
    "read: a JPEG of markers": partial(read, "a.jpg", b"\xff\xd8" + b"\xff\xd0" * (MB // 2)),
    "read: a document": partial(read, "a.txt", LONG.encode()),
    "read: a PDF": partial(read, "a.pdf", b"%PDF-" + b"/Type /Page " * (MB // 12)),
    **{
        f"cache: {what}, {kind}, {'streamed' if streamed else 'whole'}": partial(cached, url, name, streamed, again)
        for kind, url in {"memory": "memory://", "SQLite": "sqlite:///{}/cache"}.items()
        for what, again in {"put": False, "get": True}.items()
        for streamed, name in {False: "chat: a long text", True: "stream: chat, tiny events"}.items()
    },
    **{
        f"conversation: {turns} turns, {kind}": partial(conversed, url, turns)
        for kind, url in {"memory": "memory://", "SQLite": "sqlite:///{}/store"}.items()
        for turns in (2, 500)
    },
    "ledger: 1,500 rows, memory": partial(reported, "memory://", 1_500),
    "ledger: 1,500 rows, SQLite": partial(reported, "sqlite:///{}/store", 1_500),
    "embeddings: 16 vectors": embedded,
}


def image() -> object:
    from llm_effects import Image

    return Image(PNG, "image/png")


# The server.


async def serve() -> None:
    """Send to any request the reply whose number is the first part of its path."""
    made = list(SERVED.values())
    raw: dict[int, bytes] = {}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]
                await reader.readexactly(int(length or 0))
                number = int(head.split(b"/", 2)[1])
                if number not in raw:
                    raw[number] = made[number]().raw()
                writer.write(raw[number])
                await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main(*names: str) -> None:
    """Print the gaps of the cases whose names begin with one of these, or of all: the median of three rounds."""
    print(f"{'1 MB of':45} {'gap, ms':>9} {'of it CPU':>10} {'all, ms':>9}")
    with child_server("-m", "tests.benchmarks.loop", "serve") as base:
        for name, case in CASES.items():
            if names and not name.startswith(names):
                continue
            rounds: list[tuple[Gap, float]] = []
            for _ in range(3):
                gc.collect()
                began = time.perf_counter()
                rounds.append((anyio.run(case, base), (time.perf_counter() - began) * 1e3))
            gap, took = sorted(rounds, key=lambda each: each[0].cpu_ms)[1]
            over = "  *" if gap.cpu_ms > BOUND_MS / 2 else ""
            print(f"{name:45} {gap.wall_ms:9.1f} {gap.cpu_ms:10.1f} {took:9.0f}  {gap.end}{over}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
    else:
        main(*sys.argv[1:])
