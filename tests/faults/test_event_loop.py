"""Whatever a server sends, other tasks run after every few steps, also where nothing has to be waited for."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import groupby, repeat
from typing import Final, final

import anyio
import anyio.lowlevel
import httpx
import pytest
from attrs import define, evolve, field
from returns.pipeline import is_successful

from llm_effects import (
    LLMConfig,
    LLMEnv,
    LLMRequest,
    LLMResponse,
    ModelConfig,
    StreamEvent,
    generate,
    open_stream,
    run,
    stream,
)
from llm_effects.clients import client
from llm_effects.clients.client import LATE_ERRORS, LiveClients
from llm_effects.clients.transport.transport import Transport
from llm_effects.providers.registry import provider_of
from llm_effects.providers.target import Target
from llm_effects.providers.wire import WireResponse
from llm_effects.testing import Chunks, scripted_env
from llm_effects.values import caps
from tests.fixtures.cached import remembering

pytestmark = pytest.mark.anyio

FEW: Final = 2 * caps.STEP_ITEMS + 2
"""The most steps between two turns of another task; trio runs the tasks of one turn in any order."""

ASK: Final = LLMRequest(prompt="why?", cache="bypass")
EVENT: Final = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
STOP: Final = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE: Final = b"data: [DONE]\n\n"
WHOLE: Final = json.dumps({"choices": [{"finish_reason": "stop", "message": {"content": "because"}}]}).encode()


@final
@define(eq=False)
class Turns:
    """A count of the turns that another task had, and the number of each step at which it was noted."""

    count: int = 0
    noted: list[int] = field(factory=list[int])

    def note(self) -> None:
        self.noted.append(self.count)

    @property
    def longest(self) -> int:
        """The most steps in a row without a turn of the other task."""
        return max(len(list(group)) for _, group in groupby(self.noted))

    async def run(self) -> None:
        while True:
            self.count += 1
            await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def counting() -> AsyncGenerator[Turns]:
    turns = Turns()
    async with anyio.create_task_group() as group:
        group.start_soon(turns.run)
        yield turns
        group.cancel_scope.cancel()


@final
class Ready(httpx.AsyncByteStream):
    """A body that never waits; a ``stubborn`` one ignores that it is closed."""

    def __init__(self, chunks: Iterable[bytes], turns: Turns, *, stubborn: bool = False) -> None:
        self.chunks, self.turns, self.stubborn = iter(chunks), turns, stubborn

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self.turns.note()
        for chunk in self.chunks:
            return chunk
        raise StopAsyncIteration

    async def aclose(self) -> None:
        if not self.stubborn:
            self.chunks = iter(())


def env_of(chunks: Iterable[bytes], turns: Turns) -> LLMEnv:
    """Build an environment whose server has its whole answer ready, in these chunks."""
    return env_with(Ready(chunks, turns))


def env_with(body: Ready) -> LLMEnv:
    class Pool(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, stream=body)

    config = LLMConfig(models={"m": ModelConfig(provider="lm-studio", model="m")})
    clients = LiveClients(config=config, transport=Transport(make_pool=lambda _: Pool()))
    return scripted_env(clients=clients, config=config)


async def ignore(_: StreamEvent) -> None:
    """Drop an event."""


def bytes_of(data: bytes) -> list[bytes]:
    return [bytes((each,)) for each in data]


async def test_a_stream_in_many_chunks_lets_other_tasks_run() -> None:
    async with counting() as turns:
        answer = await run(stream(ASK, ignore), env_of([EVENT] * 1_000 + [STOP, DONE], turns))
    assert answer.unwrap().content == "a" * 1_000
    assert turns.longest <= FEW


async def test_a_stream_in_chunks_of_one_byte_lets_other_tasks_run() -> None:
    async with counting() as turns:
        answer = await run(stream(ASK, ignore), env_of(bytes_of(EVENT * 20 + STOP + DONE), turns))
    assert answer.unwrap().content == "a" * 20
    assert turns.longest <= FEW


async def test_a_whole_answer_in_chunks_of_one_byte_lets_other_tasks_run() -> None:
    async with counting() as turns:
        answer = await run(generate(ASK), env_of(bytes_of(b" " * 1_000 + WHOLE), turns))
    assert answer.unwrap().content == "because"
    assert turns.longest <= FEW


async def test_a_stream_that_is_left_early_is_closed_in_steps() -> None:
    async with counting() as turns:
        body = Ready([EVENT] * 1_000, turns, stubborn=True)
        async with open_stream(ASK)(env_with(body)) as events:
            await anext(events)
    assert len(turns.noted) > 1_000
    assert turns.longest <= FEW


async def test_events_in_one_chunk_let_other_tasks_run() -> None:
    async with counting() as turns:
        events = Turns()

        async def sink(_: StreamEvent) -> None:
            events.noted.append(turns.count)

        await run(stream(ASK, sink), env_of([EVENT * 1_000 + STOP + DONE], turns))
    assert len(events.noted) > 1_000
    assert events.longest <= FEW


QUIET: Final = {
    "blank lines": b"\n",
    "comments": b":\n",
    "blank events": b"data:\n\n",
    "empty objects": b"data: {}\n\n",
}


@pytest.mark.parametrize("line", QUIET.values(), ids=QUIET)
async def test_lines_without_content_let_other_tasks_run(line: bytes) -> None:
    data = EVENT + line * (400_000 // len(line)) + STOP + DONE
    async with counting() as turns:
        answer = await run(stream(ASK, ignore), env_of([data], turns))
    assert answer.unwrap().content == "a"
    assert turns.count > len(data) // caps.STEP_EVENT_BYTES // 2


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("long", [True, False], ids=["long", "short"])
async def test_only_a_long_answer_is_decoded_in_a_thread(
    monkeypatch: pytest.MonkeyPatch, *, long: bool, streamed: bool
) -> None:
    threads: list[int] = []

    def noting(target: Target, request: LLMRequest) -> object:
        provider = provider_of(target, request)

        def decode(target: Target, response: WireResponse) -> object:
            threads.append(threading.get_ident())
            return provider.decode(target, response)

        return evolve(provider, decode=decode)

    monkeypatch.setattr(client, "provider_of", noting)
    body = WHOLE + b" " * (caps.STEP_BYTES if long else 1)
    await run(stream(ASK, ignore) if streamed else generate(ASK), env_of([body], Turns()))
    assert (threads == [threading.get_ident()]) is not long


async def test_an_endless_row_of_errors_after_the_end_is_not_read() -> None:
    turns = Turns()
    chunks = [EVENT, STOP, *repeat(b"data: x\n\n", 10_000)]
    answer = await run(stream(ASK, ignore), env_of(chunks, turns))
    assert answer.unwrap().content == "a"
    assert "reported an error" in answer.unwrap().warnings[0]
    assert len(turns.noted) < 4 * LATE_ERRORS


async def test_token_counts_after_an_error_after_the_end_are_read() -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5}}\n\n'
    answer = await run(stream(ASK, ignore), env_of([EVENT, STOP, b"data: x\n\n" * 2, usage, DONE], Turns()))
    assert answer.unwrap().usage.output_tokens == 5


def noting_sink(turns: Turns, events: Turns) -> Callable[[StreamEvent], Awaitable[None]]:
    async def sink(_: StreamEvent) -> None:
        events.noted.append(turns.count)

    return sink


async def test_a_stored_stream_is_replayed_in_steps() -> None:
    env, _ = remembering(Chunks(("a",) * 1_000))
    await run(stream(LLMRequest(prompt="why?"), ignore), env)
    async with counting() as turns:
        events = Turns()
        answer: LLMResponse = (await run(stream(LLMRequest(prompt="why?"), noting_sink(turns, events)), env)).unwrap()
    assert answer.cached
    assert len(events.noted) > 1_000
    assert events.longest <= FEW


async def test_a_follower_receives_a_burst_of_events_in_steps() -> None:
    env, _ = remembering(Chunks(("a",) * 1_000))
    events = Turns()
    async with counting() as turns, anyio.create_task_group() as group:
        group.start_soon(run, stream(LLMRequest(prompt="why?"), ignore), env)
        await anyio.lowlevel.checkpoint()
        answer = await run(stream(LLMRequest(prompt="why?"), noting_sink(turns, events)), env)
    assert is_successful(answer)
    assert len(events.noted) > 1_000
    assert events.longest <= FEW
