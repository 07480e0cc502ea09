"""Servers fail in several ways; every question is answered all the same, and each attempt is shown.

Two servers listen on loopback ports of this program. The first one reports an overload, resets a connection, answers,
then fails for good, and the second one takes over.
"""

import json
import socket
import struct
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import chain, repeat
from typing import TypeAlias

import anyio
from anyio.abc import SocketAttribute, SocketStream
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects import (
    Attempt,
    Effect,
    LLMConfig,
    LLMEnv,
    LLMError,
    LLMRequest,
    LLMResponse,
    ModelConfig,
    describe,
    exponential,
    gather,
    generate,
    open_env,
    retry,
    run,
    timeout,
    up_to,
)
from llm_effects.config import RoutingConfig

QUESTIONS = ("Why do disks fill up?", "Why do certificates expire?")

Script: TypeAlias = Iterator[str]
"""The responses of a server, in order: status and text, or an empty text for a connection reset."""


def line(attempt: Attempt) -> str:
    """Format an attempt."""
    after = f", after a wait of {attempt.wait_ms:.0f} ms" if attempt.wait_ms >= 1 else ""
    return f"  {attempt.model}: {attempt.outcome} in {attempt.latency_ms:.0f} ms{after}"


def report(answer: LLMResponse) -> str:
    """Format an answer with its attempts."""
    return "\n".join((*map(line, answer.attempts), f"  {answer.model} answers: {answer.content.strip()}"))


def ask_with_retries(question: str) -> Effect[str]:
    """Limit each call to ten seconds, and retry it twice after a transient error."""
    call = timeout(10, generate(LLMRequest(prompt=question)))
    return retry(exponential(base=0.2) & up_to(2), call).map(lambda answer: f"{question}\n{report(answer)}")


async def main(env: LLMEnv) -> Result[str, LLMError]:
    """Ask one question after the other; an error would end the run."""
    return (await run(gather(map(ask_with_retries, QUESTIONS), limit=1), env)).map("\n".join)


def answer(status: str, text: str) -> bytes:
    """Build a response in OpenAI's protocol."""
    message = {"role": "assistant", "content": text}
    content = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}], "error": {"message": text}}
    body = json.dumps({key: content[key] for key in (["choices"] if status == "200 OK" else ["error"])}).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return f"{head}retry-after-ms: 100\r\nconnection: close\r\n\r\n".encode() + body


async def behave(script: Script, client: SocketStream) -> None:
    """Send the next response of the script."""
    async with client:
        received = b""
        while not received.endswith(b"}"):
            received += await client.receive()
        status, _, text = next(script).partition(": ")
        if text:
            await client.send(answer(status, text))
        else:
            raw = client.extra(SocketAttribute.raw_socket)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing sends a reset


@asynccontextmanager
async def serving(script: Script) -> AsyncGenerator[str]:
    """Listen on a free port of this machine, and return its URL."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, partial(behave, script))
        yield f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}/v1"
        group.cancel_scope.cancel()


FLAKY = ("503 Service Unavailable: too busy", "", "200 OK: They are full of logs.")
BROKEN = "500 Internal Server Error: out of order"
STEADY = "200 OK: The renewal failed."


def config(flaky: str, steady: str) -> LLMConfig:
    """Configure the flaky server first, with two retries, then the steady one."""
    models = {"flaky": flaky, "steady": steady}
    return LLMConfig(
        models={name: ModelConfig(provider="llama-cpp", endpoint=url) for name, url in models.items()},
        routing=RoutingConfig(max_retries=2),
    )


async def live() -> Result[str, LLMError]:
    """Run against both servers."""
    flaky_server, steady_server = serving(chain(FLAKY, repeat(BROKEN))), serving(repeat(STEADY))
    async with flaky_server as flaky, steady_server as steady, open_env(config(flaky, steady)) as env:
        return await main(env)


if __name__ == "__main__":
    result = anyio.run(live)
    print(result.unwrap()) if is_successful(result) else sys.exit(describe(result.failure()))
