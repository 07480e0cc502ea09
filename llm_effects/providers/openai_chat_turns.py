"""The messages of a request as chat completions write them."""

from base64 import b64encode
from collections.abc import Iterator
from typing import TypeAlias

from llm_effects.messages import Image, Message, Part, Text, ToolCall, ToolResult, text_of
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
    rest = tuple(part for part in message.parts if isinstance(part, Text | Image | ToolCall))
    if rest:
        yield _assistant(rest) if message.role == "assistant" else _speaker(message, rest)


def _speaker(message: Message, parts: tuple[Part, ...]) -> _Object:
    role = "system" if message.role == "system" else "user"
    if any(isinstance(part, Image) for part in parts):
        return {"role": role, "content": [_block(part) for part in parts if isinstance(part, Text | Image)]}
    return {"role": role, "content": text_of(parts)}


def _assistant(parts: tuple[Part, ...]) -> _Object:
    calls = [_call(part) for part in parts if isinstance(part, ToolCall)]
    text = text_of(parts)
    if not calls:
        return {"role": "assistant", "content": text}
    return {"role": "assistant", "content": text or None, "tool_calls": calls}


def _call(call: ToolCall) -> _Object:
    # a call without arguments may have come as an empty text, which servers refuse to read back
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments.strip() or "{}"},
    }


def _block(part: Text | Image) -> _Object:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": part.url or _data_url(part)}}


def _data_url(image: Image) -> str:
    return f"data:{image.media_type};base64,{b64encode(image.data or b'').decode()}"
