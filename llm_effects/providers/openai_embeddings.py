"""Embeddings in the protocol of OpenAI, of every compatible server and of the in-process model."""

import base64
import binascii
import struct

from attrs import evolve
from returns.result import Failure, Result, Success

from llm_effects.providers.error_mapping import classify, classify_error_object
from llm_effects.providers.plain_answers import openai_usage
from llm_effects.providers.response_headers import request_id
from llm_effects.providers.target import Target, redact_name, wire_request
from llm_effects.providers.wire import WireRequest, WireResponse
from llm_effects.values import caps
from llm_effects.values.errors import InvalidRequest, LLMError, MalformedResponse
from llm_effects.values.json import as_count, as_list, as_object, as_string, parse
from llm_effects.values.responses import Usage, Vector, Vectors


def encode(target: Target, texts: tuple[str, ...], dimensions: int | None) -> WireRequest:
    """Encode a request; ask for packed numbers (base64) where the server is known to support that.

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
    """Decode an answer to ``count`` texts, whatever its status."""
    if not 200 <= response.status < 300:
        return Failure(classify(target, response))
    body = parse(response.body, values=caps.JSON_VALUES + count * caps.DIMENSIONS)
    if as_object(body).get("error"):
        error = classify_error_object(target, body, headers=response.headers, received=response.received)
        return Failure(error)
    decoded = read(target, body, count, dimensions)
    return decoded.map(lambda vectors: evolve(vectors, request_id=redact_name(target, request_id(response.headers))))


def read(target: Target, body: object, count: int, dimensions: int | None) -> Result[Vectors, LLMError]:
    """Read the JSON of an answer: one finite vector for each text, in the order of the texts, all of one length."""
    answer = as_object(body)
    data = _in_order(as_list(answer.get("data")))
    decoded = tuple(_vector(as_object(each).get("embedding")) for each in data)
    vectors = tuple(vector for vector in decoded if vector is not None)
    if len(vectors) != count or len(decoded) != count:
        return Failure(_malformed(target, f"the answer has {len(vectors)} valid vectors for {count} texts"))
    problem = _length_problem(target, {len(vector) for vector in vectors}, dimensions)
    if problem is not None:
        return Failure(problem)
    usage, served = _usage(as_object(answer.get("usage"))), redact_name(target, as_string(answer.get("model")))
    return Success(Vectors(vectors=vectors, usage=usage, served_model=served))


def _in_order(data: list[object]) -> list[object]:
    """Sort by ``index`` if every vector has its own; some servers send none."""
    numbers = [as_count(as_object(each).get("index")) for each in data]
    placed = {number: each for number, each in zip(numbers, data, strict=True) if number is not None}
    return [placed[number] for number in range(len(data))] if placed.keys() == set(range(len(data))) else data


def _vector(value: object) -> Vector | None:
    """Decode base64 or a list: servers that do not know the one send the other."""
    try:
        if isinstance(value, str):
            vector = Vector(base64.b64decode(value, validate=True))
            return vector if vector.finite else None
        vector = Vector.of(each for each in as_list(value) if isinstance(each, int | float))
    except (binascii.Error, ValueError, OverflowError, struct.error):
        return None
    return vector if len(vector) == len(as_list(value)) and vector.finite else None


def _length_problem(target: Target, lengths: set[int], dimensions: int | None) -> LLMError | None:
    if len(lengths) > 1:
        return _malformed(target, "the vectors of one answer have different lengths")
    if dimensions is None or lengths == {dimensions}:
        return None
    message = f"dimensions: {target.name} returned {lengths.pop()}, not {dimensions}: remove it, the server ignores it"
    return InvalidRequest(model=target.name, provider=target.preset.name, message=message)


def _usage(counts: dict[str, object]) -> Usage:
    """Set the output to 0 tokens: an embedding has none."""
    usage = openai_usage(counts)
    return usage if usage.input_tokens is None else evolve(usage, output_tokens=0, reasoning_tokens=0)


def _malformed(target: Target, message: str) -> MalformedResponse:
    return MalformedResponse(model=target.name, provider=target.preset.name, message=message)
