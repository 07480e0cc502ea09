"""The messages of a request as chat completions write them."""

from collections.abc import Iterator
from typing import TypeAlias

from llm_effects.messages import Document, Image, Message, Part, Text, ToolCall, ToolResult, text_of
from llm_effects.providers.sent_calls import sent_arguments
from llm_effects.providers.shown import data_url, file_name, read_out
from llm_effects.requests import LLMRequest, conversation

_Object: TypeAlias = dict[str, object]


def turns_of(request: LLMRequest) -> list[_Object]:
    """Write the system text first, then every message; thinking is not sent back.

    >>> turns_of(LLMRequest(prompt="hi", system="Be brief."))
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'hi'}]
    """
    system: list[_Object] = [{"role": "system", "content": request.system}] if request.system else []
    return [*system, *(turn for message in conversation(request) for turn in _turns(message))]


def _turns(message: Message) -> Iterator[_Object]:
    """A message is one turn, but each tool's result stands alone, before what is said about it."""
    results = [part for part in message.parts if isinstance(part, ToolResult)]
    for result in results:
        yield {"role": "tool", "tool_call_id": result.call_id, "content": result.content}
    rest = tuple(read_out(part) for part in message.parts if isinstance(part, Text | Image | Document | ToolCall))
    if rest:
        yield _assistant(rest) if message.role == "assistant" else _speaker(message, rest)


def _speaker(message: Message, parts: tuple[Part, ...]) -> _Object:
    role = "system" if message.role == "system" else "user"
    if any(isinstance(part, Image | Document) for part in parts):
        return {"role": role, "content": [_block(part) for part in parts if isinstance(part, Text | Image | Document)]}
    return {"role": role, "content": text_of(parts)}


def _assistant(parts: tuple[Part, ...]) -> _Object:
    calls = [_call(part) for part in parts if isinstance(part, ToolCall)]
    text = text_of(parts)
    if not calls:
        return {"role": "assistant", "content": text}
    return {"role": "assistant", "content": text or None, "tool_calls": calls}


def _call(call: ToolCall) -> _Object:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": sent_arguments(call.arguments)},
    }


def _block(part: Text | Image | Document) -> _Object:
    match part:
        case Text():
            return {"type": "text", "text": part.text}
        case Image():
            return {"type": "image_url", "image_url": {"url": data_url(part)}}
        case Document():
            return {"type": "file", "file": {"filename": file_name(part), "file_data": data_url(part)}}
