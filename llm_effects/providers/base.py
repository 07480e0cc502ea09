"""What a provider is: a record of pure functions from values to bytes and back."""

from collections.abc import Callable
from typing import final

from attrs import frozen
from returns.result import Result

from llm_effects.providers.draft import Draft
from llm_effects.providers.sse import ServerEvent as ServerEvent
from llm_effects.providers.target import Target
from llm_effects.providers.wire import WireRequest, WireResponse
from llm_effects.values.errors import LLMError
from llm_effects.values.events import StreamEvent
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import LLMResponse


@final
@frozen(kw_only=True)
class Provider:
    """A protocol as plain functions; none does any I/O.

    ``encode(target, request, stream)`` gives the bytes to send. ``decode(target, response)`` reads a whole
    2xx answer, ``classify(target, response)`` any other. For streams ``decode_event(draft, event)`` takes one event
    into the draft and gives what it tells; ``finish(draft)`` reads the draft when the stream has ended. Before that,
    ``thinking.rest_of(draft)`` tells what was held back, so that a listener has all of the answer.
    """

    encode: Callable[[Target, LLMRequest, bool], Result[WireRequest, LLMError]]
    decode: Callable[[Target, WireResponse], Result[LLMResponse, LLMError]]
    classify: Callable[[Target, WireResponse], LLMError]
    decode_event: Callable[[Draft, ServerEvent], Result[tuple[StreamEvent, ...], LLMError]]
    finish: Callable[[Draft], Result[LLMResponse, LLMError]]
