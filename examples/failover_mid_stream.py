"""A server disconnects in the middle of its answer: another model starts over, and nothing is shown twice.

The server listens on a loopback port of this program and always disconnects; the small local model takes over.
"""

import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import SocketAttribute, SocketStream
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects import (
    Completed,
    Failed,
    LLMConfig,
    LLMEnv,
    LLMError,
    LLMRequest,
    ModelConfig,
    Preferences,
    Recovery,
    Restarted,
    Started,
    TextDelta,
    describe,
    open_env,
    open_stream,
)
from llm_effects.config.loading import embedded_model

QUESTION = LLMRequest(
    prompt="Why do disks fill up? One sentence.",
    preferences=Preferences(max_tokens=40, temperature=0.0, seed=7),
    recovery=Recovery.RESTART,
)


async def main(env: LLMEnv) -> Result[str, LLMError]:
    """Keep the text that a reader sees: it is dropped when another model starts over."""
    shown, log = "", list[str]()
    async with open_stream(QUESTION)(env) as events:
        async for event in events:
            match event:
                case Started(model):
                    log.append(f"{model} starts")
                case TextDelta(text):
                    shown += text
                case Restarted(model):
                    log.append(f"dropped {shown!r}; {model} starts over")
                    shown = ""
                case Completed(response):
                    log.extend(f"attempt at {each.model}: {each.outcome}" for each in response.attempts)
                case Failed(error):
                    return Failure(error)
                case _:
                    continue
    return Success("\n".join([*log, f"shown at the end: {shown.strip()}"]))


def half_an_answer() -> bytes:
    """Build the beginning of an event stream."""
    words = [{"choices": [{"index": 0, "delta": {"content": word}}]} for word in ("Disks ", "fill ", "up ", "bec")]
    events = "".join(f"data: {json.dumps(word)}\n\n" for word in words)
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + events.encode()


async def disconnect(client: SocketStream) -> None:
    """Send half an answer and close the connection."""
    async with client:
        await client.receive()
        await client.send(half_an_answer())


@asynccontextmanager
async def flaky_server() -> AsyncGenerator[str]:
    """Listen on a free port of this machine, and return its URL."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, disconnect)
        yield f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}/v1"
        group.cancel_scope.cancel()


def config(flaky: str) -> LLMConfig:
    """Configure the flaky server first, then the in-process model."""
    small = ModelConfig(provider="llama", model_path=str(embedded_model() or "model.gguf"), last_resort=True)
    return LLMConfig(models={"flaky": ModelConfig(provider="llama-cpp", endpoint=flaky), "small": small})


async def live() -> Result[str, LLMError]:
    """Run against the flaky server."""
    async with flaky_server() as url, open_env(config(url)) as env:
        return await main(env)


if __name__ == "__main__":
    answer = anyio.run(live)
    print(answer.unwrap()) if is_successful(answer) else sys.exit(describe(answer.failure()))
