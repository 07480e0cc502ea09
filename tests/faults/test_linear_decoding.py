"""Decoding takes time that grows with the length of its input: twice the input, about twice the work."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from typing import Final

import pytest
from returns.pipeline import is_successful

from llm_effects import ModelConfig
from llm_effects.clients.transport.transport import Decoder
from llm_effects.providers import openai_embeddings
from llm_effects.providers.draft import Draft
from llm_effects.providers.error_mapping import classify
from llm_effects.providers.registry import provider_of, target_of
from llm_effects.providers.response_headers import rate_limits, retry_after
from llm_effects.providers.sse import EventParser
from llm_effects.providers.wire import WireResponse
from llm_effects.values.json import parse
from llm_effects.values.requests import LLMRequest
from tests.fixtures.steps import Work, steps_of

TARGETS: Final = {
    "chat": target_of("m", ModelConfig(provider="openai-chat", model="m", api_key="sk-secret")).unwrap(),
    "anthropic": target_of("m", ModelConfig(provider="anthropic", model="m", api_key="sk-secret")).unwrap(),
    "responses": target_of("m", ModelConfig(provider="openai-responses", model="m", api_key="sk-secret")).unwrap(),
}


def whole(protocol: str, content: object) -> Work:
    """Decode a whole answer."""
    target = TARGETS[protocol]
    response = WireResponse(status=200, body=json.dumps(content).encode())
    return lambda: provider_of(target, LLMRequest(prompt="?")).decode(target, response)


def streamed(protocol: str, events: list[object]) -> Work:
    """Decode a stream from its bytes to its answer."""
    target, lines = TARGETS[protocol], b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in events)

    def work() -> None:
        provider, draft = provider_of(target, LLMRequest(prompt="?")), Draft(target=target)
        for event in EventParser(limit=2**24).feed(lines):
            if not is_successful(provider.decode_event(draft, event)):
                return
        provider.finish(draft)

    return work


def chat(**message: object) -> Work:
    return whole("chat", {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", **message}}]})


def deltas(*delta: dict[str, object]) -> Work:
    return streamed("chat", [{"choices": [{"index": 0, "delta": each}]} for each in delta])


def blocks(*content: object) -> Work:
    return whole("anthropic", {"type": "message", "stop_reason": "end_turn", "content": list(content)})


def grown(start: dict[str, object], *delta: dict[str, object]) -> Work:
    first = {"type": "content_block_start", "index": 0, "content_block": start}
    more = [{"type": "content_block_delta", "index": 0, "delta": each} for each in delta]
    return streamed("anthropic", [first, *more, {"type": "content_block_stop", "index": 0}])


def items(*output: object) -> Work:
    return whole("responses", {"status": "completed", "output": list(output)})


def fed(*chunks: bytes) -> Work:
    parser = EventParser()
    return lambda: [parser.feed(chunk) for chunk in chunks]


def decompressed(data: bytes) -> Work:
    decoder = Decoder("gzip", 2**30)
    return lambda: list(decoder.decode(data))


def call(number: int, **fields: object) -> dict[str, object]:
    return {"id": f"c{number}", "function": {"name": "f", "arguments": "{}"}, **fields}


SITE: Final = {"type": "url_citation", "start_index": 0, "end_index": 1, "url": "https://a.example"}
MESSAGE: Final = {"type": "message", "content": [{"type": "output_text", "text": "a", "annotations": [SITE]}]}
NAMED: Final = {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "[}"}}]}
UNNAMED: Final = {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}}"}}]}

DECODERS: Mapping[str, Callable[[int], Work]] = {
    "chat text": lambda n: chat(content="a" * 40 * n),
    "chat blocks": lambda n: chat(content=[{"type": "text", "text": "a"}] * n),
    "chat thinking": lambda n: chat(content="<think>" + "a " * n + "</think>" * n),
    "chat calls": lambda n: chat(tool_calls=[call(number) for number in range(n)]),
    "chat calls of one id": lambda n: chat(tool_calls=[call(0)] * n),
    "chat calls without ids": lambda n: chat(tool_calls=[call(0, id="")] * n),
    "chat citations": lambda n: chat(content="a", annotations=[SITE] * n),
    "chat choices": lambda n: whole("chat", {"choices": [{"index": 1}] * n}),
    "chat deltas": lambda n: deltas(*[{"content": "a"}] * n),
    "chat blank deltas": lambda n: deltas(*[{"content": " "}] * n),
    "chat thinking deltas": lambda n: deltas({"content": "<think>"}, *[{"content": "</thin"}] * n),
    "chat kinds in turn": lambda n: deltas(*[{"content": "a"}, {"reasoning": "b"}] * n),
    "chat call deltas": lambda n: deltas(*[NAMED] * n),
    "chat repeated names": lambda n: deltas(*[UNNAMED] * n),
    "chat cited deltas": lambda n: deltas({"content": "a"}, *[{"content": "a", "annotations": [SITE]}] * n),
    "anthropic blocks": lambda n: blocks(*[{"type": "text", "text": "a", "citations": [{"cited_text": "a"}]}] * n),
    "anthropic calls": lambda n: blocks(*[{"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}] * n),
    "anthropic thoughts": lambda n: blocks(*[{"type": "thinking", "thinking": "a", "signature": "b"}] * n),
    "anthropic deltas": lambda n: grown({"type": "text"}, *[{"type": "text_delta", "text": "a"}] * n),
    "anthropic signatures": lambda n: grown({"type": "thinking"}, *[{"type": "signature_delta", "signature": "a"}] * n),
    "anthropic citations": lambda n: grown(
        {"type": "text"}, *[{"type": "citations_delta", "citation": {"cited_text": "a"}}] * n
    ),
    "anthropic arguments": lambda n: grown(
        {"type": "tool_use", "name": "f"}, *[{"type": "input_json_delta", "partial_json": "1"}] * n
    ),
    "responses messages": lambda n: items(*[MESSAGE] * n),
    "responses calls": lambda n: items(*[{"type": "function_call", "name": "f", "arguments": "{}"}] * n),
    "responses thoughts": lambda n: items(*[{"type": "reasoning", "summary": [{"text": "a"}], "content": []}] * n),
    "responses deltas": lambda n: streamed(
        "responses", [{"type": "response.output_text.delta", "output_index": 0, "delta": "a"}] * n
    ),
    "responses repeated items": lambda n: streamed(
        "responses", [{"type": "response.output_item.done", "output_index": 0, "item": MESSAGE}] * n
    ),
    "embeddings": lambda n: (
        lambda: openai_embeddings.decode(
            TARGETS["chat"],
            WireResponse(status=200, body=json.dumps({"data": [{"index": 0, "embedding": [0.5]}] * n}).encode()),
            n,
            None,
        )
    ),
    "events": lambda n: lambda: EventParser().feed(b"data: a\n\n" * n),
    "lines of one event": lambda n: lambda: EventParser().feed(b"data:a\n" * n),
    "names and comments": lambda n: lambda: EventParser().feed(b"event: a\n: b\r\r\n" * n),
    "bytes one by one": lambda n: fed(*[b"a"] * n),
    "gzip": lambda n: decompressed(gzip.compress(bytes(2**14) * n)),
    "members of gzip": lambda n: decompressed(gzip.compress(b"a") * n),
    "json": lambda n: lambda: parse('"' + "\\ud83d \\u00e9" * n + '"'),
    "json values": lambda n: lambda: parse("[" + "[{}]," * n + "1]", n),
    "hint": lambda n: lambda: retry_after({}, "try again in " + "1" * n + " try again in " + "1s" * n),
    "headers": lambda n: lambda: rate_limits({"x-ratelimit-reset-requests": "1" * n}, None, 0.0),
    "error page": lambda n: (
        lambda: classify(TARGETS["chat"], WireResponse(status=500, body=b"<script>" * n + b"<!--" * n + b"<a" * n))
    ),
}


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_twice_the_input_takes_about_twice_the_work(decoder: Callable[[int], Work]) -> None:
    steps_of(decoder(8))  # caches
    small, large = (steps_of(decoder(size)) for size in (300, 600))
    assert large < 2.3 * small + 200
