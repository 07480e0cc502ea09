"""Embeddings, as OpenAI and every compatible server speak of them, and the in-process model too."""

import base64
import binascii
import struct

from attrs import evolve
from returns.result import Failure, Result, Success

from llm_effects.providers.error_mapping import classify, classify_error_object, request_id
from llm_effects.providers.openai_chat import usage_of
from llm_effects.providers.target import Target, wire_request
from llm_effects.providers.wire import WireRequest, WireResponse
from llm_effects.values.errors import InvalidRequest, LLMError, MalformedResponse
from llm_effects.values.json import items, parse, record, string, whole
from llm_effects.values.responses import Usage, Vector, Vectors


def encode(target: Target, texts: tuple[str, ...], dimensions: int | None) -> WireRequest:
    """Write the request; numbers are asked for packed (base64) where the server is known to take that.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> target = target_of("small", ModelConfig(provider="ollama", model="nomic-embed-text")).unwrap()
    >>> encode(target, ("a", "b"), None).body
    b'{"model":"nomic-embed-text","input":["a","b"]}'
    """
    body = {
        **({"model": target.wire_model} if target.wire_model else {}),
        "input": texts,
        **({} if dimensions is None else {"dimensions": dimensions}),
        **({"encoding_format": "base64"} if target.preset.packed_embeddings else {}),
    }
    return wire_request(target, "/embeddings", body, accept="application/json")


def decode(target: Target, response: WireResponse, count: int, dimensions: int | None) -> Result[Vectors, LLMError]:
    """Read an answer to ``count`` texts, whatever its status."""
    if not 200 <= response.status < 300:
        return Failure(classify(target, response))
    told = parse(response.body)
    if record(told).get("error"):
        error = classify_error_object(target, told, headers=response.headers, received=response.received)
        return Failure(error)
    named = read(target, told, count, dimensions)
    return named.map(lambda vectors: evolve(vectors, request_id=request_id(response.headers)))


def read(target: Target, told: object, count: int, dimensions: int | None) -> Result[Vectors, LLMError]:
    """Read the JSON of an answer: one finite vector for each text, in the order of the texts, all of one length."""
    answer = record(told)
    found = _in_order(items(answer.get("data")))
    vectors = tuple(_vector(record(each).get("embedding")) for each in found)
    whole_ones = tuple(vector for vector in vectors if vector is not None)
    if len(whole_ones) != count or len(vectors) != count:
        return Failure(_malformed(target, f"the answer has {len(whole_ones)} whole vectors for {count} texts"))
    problem = _wrong_length(target, {len(vector) for vector in whole_ones}, dimensions)
    if problem is not None:
        return Failure(problem)
    usage, served = _usage(record(answer.get("usage"))), string(answer.get("model")) or None
    return Success(Vectors(vectors=whole_ones, usage=usage, served_model=served))


def _in_order(data: list[object]) -> list[object]:
    """By their ``index``, where all have one of their own; some servers give none."""
    numbers = [whole(record(each).get("index")) for each in data]
    placed = {number: each for number, each in zip(numbers, data, strict=True) if number is not None}
    return [placed[number] for number in range(len(data))] if placed.keys() == set(range(len(data))) else data


def _vector(told: object) -> Vector | None:
    """From base64 or from a list: servers that do not know the one give the other."""
    try:
        if isinstance(told, str):
            vector = Vector(base64.b64decode(told, validate=True))
            return vector if vector.finite else None
        vector = Vector.of(each for each in items(told) if isinstance(each, int | float))
    except (binascii.Error, ValueError, OverflowError, struct.error):
        return None
    return vector if len(vector) == len(items(told)) and vector.finite else None


def _wrong_length(target: Target, lengths: set[int], dimensions: int | None) -> LLMError | None:
    if len(lengths) > 1:
        return _malformed(target, "the vectors of one answer have different lengths")
    if dimensions is None or lengths == {dimensions}:
        return None
    message = f"dimensions: {target.name} gave {lengths.pop()} for {dimensions}: leave it out, it is not heeded there"
    return InvalidRequest(model=target.name, provider=target.preset.name, message=message)


def _usage(told: dict[str, object]) -> Usage:
    """An embedding has no output."""
    usage = usage_of(told)
    return usage if usage.input_tokens is None else evolve(usage, output_tokens=0, reasoning_tokens=0)


def _malformed(target: Target, message: str) -> MalformedResponse:
    return MalformedResponse(model=target.name, provider=target.preset.name, message=message)
