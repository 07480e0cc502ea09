"""Decoding takes time that grows with the length of its input: twice the input, about twice the work."""

from __future__ import annotations

import gzip
import inspect
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import CodeType, ModuleType
from typing import Annotated, Final, Literal, TypeGuard, get_args

import msgspec
import pytest
from attrs import field, frozen
from pydantic import BaseModel
from returns.pipeline import is_successful

from llm_effects import ModelConfig
from llm_effects.clients.transport.transport import _DECOMPRESSORS, Decoder
from llm_effects.providers import openai_embeddings, readiness, response_headers
from llm_effects.providers.draft import Draft
from llm_effects.providers.error_mapping import classify
from llm_effects.providers.readiness import PROBES, Probe
from llm_effects.providers.registry import provider_of, target_of
from llm_effects.providers.response_headers import rate_limits, retry_after
from llm_effects.providers.sse import EventParser, ServerEvent
from llm_effects.providers.target import Wire
from llm_effects.providers.wire import WireResponse
from llm_effects.structured.decoding import decode_text
from llm_effects.structured.schema import type_schema
from llm_effects.structured.shapes import Shape, shape_of
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
    assert_linear(decoder)


# Every decoder there is, taken from where it is registered, on inputs that repeat every name which its module reads.


def names_in(module: ModuleType) -> list[str]:
    """List the names of fields and headers in the code of a module."""

    def texts(code: CodeType) -> Iterator[str]:
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from texts(constant)
            else:
                yield from (
                    each for each in (constant if isinstance(constant, tuple) else (constant,)) if is_name(each)
                )

    source = inspect.getsource(module)
    return sorted(set(texts(compile(source, module.__name__, "exec"))))


def is_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9_.-]{1,50}", value) is not None


def named(wire: Wire) -> list[str]:
    """List the names that a protocol reads, but for those of errors, which end it."""
    target = WIRES[wire]
    return [name for name in names_in(inspect.getmodule(provider_of(target).decode) or inspect) if name != "error"]


MODELS: Final[Mapping[Wire, ModelConfig]] = {
    "openai-chat": ModelConfig(provider="openai-chat", model="m", api_key="sk-secret"),
    "openai-responses": ModelConfig(provider="openai-responses", model="m", api_key="sk-secret"),
    "anthropic": ModelConfig(provider="anthropic", model="m", api_key="sk-secret"),
    "llama": ModelConfig(provider="llama", model_path="/m.gguf"),
}
WIRES: Final = {wire: target_of("m", model).unwrap() for wire, model in MODELS.items()}

GROWTHS: Final[Mapping[str, Callable[[list[str], int], object]]] = {
    "texts": lambda names, n: dict.fromkeys(names, "a " * n),
    "lists": lambda names, n: {name: [{"text": "a", "type": name, name: "a"}] * n for name in names},
    "lists of texts": lambda names, n: dict.fromkeys(names, ["a"] * n),
    "numbers": lambda names, n: {**dict.fromkeys(names, 10**15), "x": [1] * n},
    "keys": lambda _, n: {f"k{number}": {} for number in range(10 * n)},
}


def test_every_protocol_is_tried() -> None:
    assert set(WIRES) == set(get_args(Wire))


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("growth", GROWTHS.values(), ids=GROWTHS)
@pytest.mark.parametrize("function", ["decode", "classify", "decode_event"])
def test_every_decoder_of_every_protocol_is_linear(
    wire: Wire, growth: Callable[[list[str], int], object], function: str
) -> None:
    target, names = WIRES[wire], named(wire)
    provider = provider_of(target)

    def work(size: int) -> Work:
        value = growth(names, size)
        wrapped = {
            "choices": [{"message": value, "delta": value}],
            "content": [value],
            "output": [value],
            "delta": value,
        }
        if function == "decode_event":
            kinds = ["", *(name for name in names if "." in name or name.endswith(("_start", "_delta", "_stop")))]
            events = [json.dumps({**wrapped, "type": kind}) for kind in kinds]

            def all_events() -> None:
                for data in events:
                    draft = Draft(target=target)
                    provider.decode_event(draft, ServerEvent("message", data))
                    provider.finish(draft)

            return all_events
        response = WireResponse(status=200 if function == "decode" else 500, body=json.dumps(wrapped).encode())
        return lambda: getattr(provider, function)(target, response)

    assert_linear(work, (10, 20))


def assert_linear(work: Callable[[int], Work], sizes: tuple[int, int] = (300, 600)) -> None:
    steps_of(work(8))  # caches
    small, large = (steps_of(work(size)) for size in sizes)
    assert large < 2.3 * small + 200


READERS: Final = [
    function
    for _, function in inspect.getmembers(response_headers, inspect.isfunction)
    if next(iter(inspect.signature(function).parameters)) == "headers" and not function.__name__.startswith("_")
]
HEADER_TEXTS: Final[Mapping[str, Callable[[int], str]]] = {
    "digits": lambda n: "1" * n,
    "durations": lambda n: "1h2m" * n,
    "dates": lambda n: "Mon, 01 Jan " * n,
    "fractions": lambda n: "1." * n,
    "spaces": lambda n: " " * n + "1",
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", HEADER_TEXTS.values(), ids=HEADER_TEXTS)
def test_every_reader_of_headers_is_linear(reader: Callable[..., object], text: Callable[[int], str]) -> None:
    names = names_in(response_headers)
    rest = {"received": None, "at": 0.0}
    more = {name: rest[name] for name in inspect.signature(reader).parameters if name in rest}
    assert_linear(lambda n: lambda: reader(dict.fromkeys(names, text(n)), **more))


@pytest.mark.parametrize("probe", [probe for probes in PROBES.values() for probe in probes], ids=lambda each: each.path)
@pytest.mark.parametrize("growth", GROWTHS.values(), ids=GROWTHS)
def test_every_reader_of_models_is_linear(probe: Probe, growth: Callable[[list[str], int], object]) -> None:
    names = names_in(readiness)

    def work(size: int) -> Work:
        value = growth(names, size)
        response = WireResponse(status=200, body=json.dumps({"data": [value] * 3, "models": [value] * 3}).encode())
        return lambda: readiness.read(probe, response, "m")

    assert_linear(work, (20, 40))


@frozen
class Leafy:
    kind: Literal["leafy"]
    count: int = 0


@frozen
class Branch:
    kind: Literal["branch"]
    inner: list[Leafy | Branch] = field(factory=list["Leafy | Branch"])


class Own(BaseModel):
    count: int


LEAFY: Final = {"kind": "leafy", "count": 1}
TYPES: Final[Mapping[str, tuple[object, object, object]]] = {
    "leaf": (list[int], 1, "x"),
    "array of arrays": (list[list[str]], ["a"], [1]),
    "set": (list[set[int]], [1], ["x"]),
    "fixed array": (list[tuple[int, str]], [1, "a"], [1, 2]),
    "table": (list[dict[str, int]], {"a": 1}, {"a": "x"}),
    "record": (list[Leafy], LEAFY, {"kind": "leafy", "count": "x"}),
    "own schema": (list[Own], {"count": 1}, {"count": "x"}),
    "constrained": (list[Annotated[list[int], msgspec.Meta(max_length=3)]], [1], [1, 2, 3, 4]),
    "union": (list[int | str | Leafy | Branch], {"kind": "branch", "inner": [LEAFY]}, {"kind": "branch", "inner": [1]}),
    "union of lists": (list[list[Leafy] | list[int]], [1], ["x"]),
    "union of records": (list[Leafy | Branch | Own], LEAFY, {"kind": "leafy", "other": 1}),
}


def shapes_in(shape: Shape) -> set[type]:
    inner = [getattr(shape, name, ()) for name in ("item", "items", "value", "options", "shape")]
    flat = [each for some in inner for each in (some if isinstance(some, tuple) else (some,))]
    return {type(shape)}.union(*map(shapes_in, flat))


def test_every_shape_of_a_type_is_tried() -> None:
    tried = set[type]().union(*(shapes_in(shape_of(kind)) for kind, _, _ in TYPES.values()))
    assert tried == set(get_args(Shape))


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("share", [0, 1, 2], ids=["right", "wrong", "wrong at the end"])
def test_every_type_is_decoded_in_linear_time(kind: tuple[object, object, object], share: int) -> None:
    target = type_schema(kind[0]).unwrap()

    def work(size: int) -> Work:
        items = [kind[2]] * size if share == 1 else [kind[1]] * size + [kind[2]] * (share == 2)
        return partial(decode_text, target, json.dumps({"value": items}))

    assert is_successful(decode_text(target, json.dumps({"value": [kind[1]]})))
    assert_linear(work)


@pytest.mark.parametrize("encoding", _DECOMPRESSORS)
def test_every_encoding_is_decompressed_in_linear_time(encoding: str) -> None:
    def work(size: int) -> Work:
        data = (gzip.compress if "gzip" in encoding else zlib.compress)(bytes(2**14) * size)
        return lambda: list(Decoder(encoding, 2**30).decode(data))

    assert_linear(work)
