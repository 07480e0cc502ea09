"""The protocol of the in-process model: chat completions without a URL or headers, and always as a stream.

The stream has no last event of its own: it ends when the engine returns, and is whole if it had a finish reason.
"""

import re
import struct
from collections.abc import Iterator
from mmap import mmap
from pathlib import PurePath
from typing import Final, cast

import msgspec
from attrs import evolve
from returns.result import Result

from llm_effects.providers.base import Provider
from llm_effects.providers.draft import Draft
from llm_effects.providers.openai_chat import OPENAI_CHAT
from llm_effects.providers.target import Target
from llm_effects.providers.wire import WireRequest, WireResponse
from llm_effects.values.errors import LLMError
from llm_effects.values.json import as_list, as_object, dump, parse
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import LLMResponse

_FIELDS: Final = {
    "stream": True,
    "stream_options": {"include_usage": True},
    "cache_prompt": True,  # the next turn of a conversation processes only what is new
    "return_progress": True,  # so that a cancelled call can stop between two pieces of a long prompt
}


def _encode(target: Target, request: LLMRequest, _: bool) -> Result[WireRequest, LLMError]:
    return OPENAI_CHAT.encode(target, request, True).map(_for_engine)


def _for_engine(wire: WireRequest) -> WireRequest:
    body = {**as_object(parse(wire.body)), **_FIELDS}
    return evolve(wire, url="", headers=(), body=msgspec.json.encode(body))


def _decode(target: Target, response: WireResponse) -> Result[LLMResponse, LLMError]:
    return OPENAI_CHAT.decode(target, response).map(_without_path)


def _finish(draft: Draft) -> Result[LLMResponse, LLMError]:
    draft.served_model = _stem(draft.served_model)
    return OPENAI_CHAT.finish(draft)


def _without_path(response: LLMResponse) -> LLMResponse:
    return evolve(response, served_model=_stem(response.served_model))


def _stem(served: str | None) -> str | None:
    """Return the file name of the served model without its path, which stays private.

    >>> _stem("/home/me/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    'SmolLM2-135M-Instruct.Q4_1'
    """
    return PurePath(served).name.removesuffix(".gguf") if served else None


# Special tokens: the control tokens of a model, which its own template writes, and no text may.
#
# The engine parses them wherever they stand in the prompt. A space after the first character makes such a text an
# ordinary one, which the model still reads.

_CONTROL_KINDS: Final = frozenset({2, 3})  # unknown and control, of llama.cpp's llama_token_type
MARKUP: Final = r"<[|｜][^<>\s]{1,64}[|｜]>"  # noqa: RUF001 - how most models write them, and DeepSeek's
"""Texts that the engine takes for control tokens, whatever their kind in the file."""

_LENGTHS: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value in a GGUF file, by its type (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""

_STRING: Final = 8
_ARRAY: Final = 9

_TOKENS: Final = b"tokenizer.ggml.tokens"
_KINDS: Final = b"tokenizer.ggml.token_type"


def _number(data: mmap, form: str, at: int) -> int:
    number: int = struct.unpack_from("<" + form, data, at)[0]
    return number


def _string_end(data: mmap, at: int) -> int:
    return at + 8 + _number(data, "Q", at)


def _end(data: mmap, kind: int, at: int) -> int:
    """Return the end of a value."""
    if kind == _STRING:
        return _string_end(data, at)
    if kind != _ARRAY:
        return at + _LENGTHS[kind]
    items, count = _number(data, "I", at), _number(data, "Q", at + 4)
    if items in _LENGTHS:
        return at + 12 + count * _LENGTHS[items]
    at += 12
    for _ in range(count):
        at = _end(data, items, at)
    return at


def _arrays(data: mmap) -> dict[bytes, int]:
    """Return the positions of the tokens and of their kinds."""
    found, at = dict[bytes, int](), 24
    for _ in range(_number(data, "Q", 16)):
        start, at = at + 8, _string_end(data, at)
        name, kind = data[start:at], _number(data, "I", at)
        if name in {_TOKENS, _KINDS}:
            found[name] = at + 4
        if len(found) == 2:
            break
        at = _end(data, kind, at + 4)
    return found


def control_tokens(data: mmap) -> Iterator[str]:
    """Yield the control tokens of a GGUF file; anything else raises what ``struct`` does, or a ``ValueError``."""
    arrays = _arrays(data)
    at, kinds_at = arrays[_TOKENS] + 12, arrays[_KINDS]
    kinds = struct.unpack_from(f"<{_number(data, 'Q', kinds_at + 4)}i", data, kinds_at + 12)
    for kind in kinds:
        start, at = at + 8, _string_end(data, at)
        if kind in _CONTROL_KINDS:
            yield data[start:at].decode()


_TEXTS: Final = frozenset({"messages", "tools", "input"})


def as_plain_text(body: str, special: re.Pattern[str]) -> str:
    """Return a request in which no text is a special token.

    >>> as_plain_text('{"messages":[{"role":"user","content":"<|im_end|>"}]}', re.compile(MARKUP))
    '{"messages":[{"role":"user","content":"< |im_end|>"}]}'
    """
    if special.search(body) is None:
        return body
    fields = as_object(parse(body))
    texts = {name: _split_tokens(value, special) if name in _TEXTS else value for name, value in fields.items()}
    return dump(texts).decode()


def _split_tokens(value: object, special: re.Pattern[str]) -> object:
    if isinstance(value, str):
        while special.search(value):  # again, where one token overlaps another
            value = special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", value)
        return value
    if isinstance(value, list):
        return [_split_tokens(item, special) for item in as_list(cast("object", value))]
    fields: dict[str, object] = {key: _split_tokens(item, special) for key, item in as_object(value).items()}
    return fields or value


LLAMA: Final = Provider(
    encode=_encode,
    decode=_decode,
    classify=OPENAI_CHAT.classify,
    decode_event=OPENAI_CHAT.decode_event,
    finish=_finish,
    read_texts=OPENAI_CHAT.read_texts,
)
"""The protocol of the in-process model, with the error objects of chat completions."""
