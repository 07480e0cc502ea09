"""Answers under trouble: ``python -m tests.benchmarks.goodput [calls [at_once]]``.

Three models serve every call: one never answers, one rejects every request with a 429, and the last one is healthy.
Goodput is the share of the calls that are answered; at least 99.5 % must be. Half of the calls are streamed. The server
runs in another process.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from typing import Final

import anyio
from returns.pipeline import is_successful

from llm_effects import LLMConfig, LLMEnv, LLMRequest, ModelConfig, StreamEvent, generate, open_env, run, stream
from llm_effects.config import RoutingConfig
from tests.benchmarks.stub import child_server

LEAST: Final = 0.995
DEADLINE_MS: Final = 60_000
ANSWER_S: Final = 0.2

BODY: Final = json.dumps(
    {
        "id": "x",
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "because"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1},
    }
)
CHUNKS: Final = (
    'data: {"id":"x","model":"m","choices":[{"index":0,"delta":{"content":"because"},"finish_reason":null}]}\n\n'
    'data: {"id":"x","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)


async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection: the first part of the path names the model."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(int(line[15:]) for line in head.splitlines() if line.lower().startswith("content-length:"))
            body = await reader.readexactly(length)
            if "/stalls/" in head:
                await asyncio.sleep(3600)
            elif "/throttled/" in head:
                reply(writer, 429, '{"error":{"message":"slow down"}}', "application/json", "retry-after: 60\r\n")
            else:
                await asyncio.sleep(ANSWER_S)
                healthy(writer, streamed=b'"stream":true' in body)
            await writer.drain()
    writer.close()


def healthy(writer: asyncio.StreamWriter, *, streamed: bool) -> None:
    """Answer, whole or as a stream."""
    reply(writer, 200, CHUNKS if streamed else BODY, "text/event-stream" if streamed else "application/json")


def reply(writer: asyncio.StreamWriter, status: int, body: str, kind: str, more: str = "") -> None:
    """Write one response."""
    head = f"HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    writer.write((head + body).encode())


async def serve() -> None:
    """Serve until killed; print the port."""
    server = await asyncio.start_server(respond, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def config_of(base: str) -> LLMConfig:
    """Configure the three models, the healthy one last."""
    names = ("stalls", "throttled", "healthy")
    models = {
        name: ModelConfig(provider="openai-compatible", model=name, endpoint=f"{base}/{name}/v1") for name in names
    }
    return LLMConfig(models=models, routing=RoutingConfig(tasks={"general": names}, timeout_ms=DEADLINE_MS))


async def ignore(_: StreamEvent) -> None:
    """Drop an event."""


async def ask(number: int, env: LLMEnv, ends: Counter[str]) -> None:
    """Make one call, streamed or whole, and count its end."""
    request = LLMRequest(prompt=f"why? {number}", cache="bypass")
    result = await run(stream(request, ignore) if number % 2 else generate(request), env)
    ends[result.unwrap().model if is_successful(result) else result.failure().tag] += 1


async def measure(calls: int, at_once: int) -> None:
    """Make the calls, print the outcomes, and assert the goodput."""
    ends, began = Counter[str](), time.monotonic()
    with child_server("-m", "tests.benchmarks.goodput", "serve") as base:
        async with open_env(config_of(base)) as env, anyio.create_task_group() as group:
            limiter = anyio.CapacityLimiter(at_once)

            async def one(number: int) -> None:
                async with limiter:
                    await ask(number, env, ends)

            for number in range(calls):
                group.start_soon(one, number)
    goodput = ends["healthy"] / calls
    print(f"{calls} calls, {at_once} at once: goodput {goodput:.2%} in {time.monotonic() - began:.0f} s; {dict(ends)}")
    assert goodput >= LEAST


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
    else:
        anyio.run(measure, int((*sys.argv[1:], 10_000)[0]), int((*sys.argv[2:], 1_000)[0]))
