"""The record of pure functions that a protocol consists of."""

from collections.abc import Callable, Iterable
from typing import final

from attrs import frozen
from returns.result import Result

from llm_effects.providers.draft import Draft, Events
from llm_effects.providers.sse import ServerEvent
from llm_effects.providers.target import Target
from llm_effects.providers.wire import WireRequest, WireResponse
from llm_effects.values.errors import LLMError
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import LLMResponse
from llm_effects.values.value import Value


@final
@frozen(kw_only=True, eq=False, repr=False)
class Provider(Value):
    """A protocol as plain functions; none of them does any I/O.

    - ``encode(target, request, stream)`` returns the HTTP request.
    - ``decode(target, response)`` reads a whole 2xx answer.
    - ``classify(target, response)`` turns any other answer into an error.
    - ``decode_event(draft, event)`` adds one event of a stream to the draft and returns the events to emit.
    - ``read_texts(draft, events)`` adds the events that hold text and nothing else to the draft, up to the first other
      one, and returns their texts. It is a short cut: all events may be left to ``decode_event``.
    - ``finish(draft)`` reads the draft at the end of the stream. Call ``draft.flush_held`` first: it emits the text
      that was held back.
    """

    encode: Callable[[Target, LLMRequest, bool], Result[WireRequest, LLMError]]
    decode: Callable[[Target, WireResponse], Result[LLMResponse, LLMError]]
    classify: Callable[[Target, WireResponse], LLMError]
    decode_event: Callable[[Draft, ServerEvent], Events]
    finish: Callable[[Draft], Result[LLMResponse, LLMError]]
    read_texts: Callable[[Draft, Iterable[ServerEvent]], list[str]] = lambda _, __: []
