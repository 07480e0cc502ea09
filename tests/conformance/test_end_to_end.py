"""Every recorded stream through the whole library, cut at random: the emitted events equal the answer."""

import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from llm_effects import (
    Completed,
    Failed,
    LLMConfig,
    LLMEnv,
    LLMRequest,
    ModelConfig,
    ReasoningDelta,
    Restarted,
    StreamEvent,
    TextDelta,
    ToolCallDelta,
    open_env,
    run,
    stream,
)
from llm_effects.clients.transport.transport import Transport
from llm_effects.config import RoutingConfig
from llm_effects.values.messages import Reasoning

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"
FILES = {
    "openai_chat_stream": "openai-chat",
    "local_openai_compatible": "openai-compatible",
    "openai_responses_stream": "openai-responses",
    "anthropic_messages_stream": "anthropic",
}
# Its deltas were shortened by hand, so that they differ from its last event.
CONTRADICTORY = {"0c12a6497ab5"}

Row = dict[str, Any]


class Cut(httpx.AsyncByteStream):
    """A body cut into chunks at random."""

    def __init__(self, body: bytes, seed: str) -> None:
        self.body, self.random = body, random.Random(seed)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        rest = self.body
        while rest:
            size = self.random.choice((1, 2, 7, 40, 500, 5000))
            yield rest[:size]
            rest = rest[size:]


def rows(name: str) -> list[Row]:
    if not (CORPUS / f"{name}.jsonl").exists():
        pytest.skip(f"the recorded traffic is not on this machine: {CORPUS}")
    every = [json.loads(line) for line in (CORPUS / f"{name}.jsonl").read_text().splitlines()]
    return [row for row in every if row["stream"] and row["endpoint"] in {"chat", "responses", "messages"}]


def replaying(current: list[Row]) -> Transport:
    def answer(_: httpx.Request) -> httpx.Response:
        stream_events = current[-1]["response"]
        kind = {key.lower(): value for key, value in stream_events["headers"].items()}.get(
            "content-type", "text/event-stream"
        )
        body = Cut(stream_events["body"].encode(), current[-1]["id"])
        return httpx.Response(stream_events["status"], headers={"content-type": kind}, stream=body)

    return Transport(make_pool=lambda _: httpx.MockTransport(answer))


async def stream_events(env: LLMEnv) -> list[StreamEvent]:
    events: list[StreamEvent] = []

    async def sink(event: StreamEvent) -> None:
        events.append(event)

    await run(stream(LLMRequest(prompt="?"), sink), env)
    return events


def check(row: Row, events: list[StreamEvent]) -> None:
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert not any(isinstance(event, Restarted) for event in events)
    last = events[-1]
    assert isinstance(last, Completed | Failed)
    if isinstance(last, Failed):
        assert last.error.partial == text
        return
    response = last.response
    assert response.content == text
    thought = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    assert bool(thought) == any(part.text for part in response.parts if isinstance(part, Reasoning))
    calls: dict[int, list[ToolCallDelta]] = {}
    for event in events:
        if isinstance(event, ToolCallDelta):
            calls.setdefault(event.index, []).append(event)
    joined = [("".join(each.arguments for each in pieces)) for _, pieces in sorted(calls.items())]
    assert sorted(joined) == sorted(call.arguments for call in response.tool_calls)


@pytest.mark.parametrize("name", FILES)
def test_every_recorded_stream_arrives_complete(name: str) -> None:
    recorded = rows(name)

    async def replay_all() -> dict[str, int]:
        current: list[Row] = []
        model = ModelConfig(provider=FILES[name], model="m", endpoint="http://localhost:9/v1", api_key="sk-test-key-1")
        config = LLMConfig(models={"m": model}, routing=RoutingConfig(max_retries=0))
        counts: dict[str, int] = {}
        async with open_env(config, transport=lambda: replaying(current)) as env:
            for row in recorded:
                current.append(row)
                events = await stream_events(env)
                if row["id"] not in CONTRADICTORY:
                    check(row, events)
                counts[type(events[-1]).__name__] = counts.get(type(events[-1]).__name__, 0) + 1
        return counts

    counts = anyio.run(replay_all)
    print(name, len(recorded), counts)
    assert sum(counts.values()) == len(recorded) > 0
    assert counts["Completed"] >= 0.9 * len(recorded)
