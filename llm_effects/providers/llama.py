"""The protocol of the in-process model: chat completions without a URL or headers, and always as a stream.

The stream has no last event of its own: it ends when the engine returns, and is whole if it had a finish reason.
"""

from pathlib import PurePath
from typing import Final

import msgspec
from attrs import evolve
from returns.result import Result

from llm_effects.providers.base import Provider
from llm_effects.providers.draft import Draft
from llm_effects.providers.openai_chat import OPENAI_CHAT
from llm_effects.providers.target import Target
from llm_effects.providers.wire import WireRequest, WireResponse
from llm_effects.values.errors import LLMError
from llm_effects.values.json import as_object, parse
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


LLAMA: Final = Provider(
    encode=_encode,
    decode=_decode,
    classify=OPENAI_CHAT.classify,
    decode_event=OPENAI_CHAT.decode_event,
    finish=_finish,
)
"""The protocol of the in-process model, with the error objects of chat completions."""
