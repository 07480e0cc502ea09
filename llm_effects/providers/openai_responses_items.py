"""The messages of a request as items of input: turns, calls of tools, their results, and sealed thinking."""

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import msgspec

from llm_effects.messages import (
    Document,
    Image,
    Message,
    Origin,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
    text_of,
)
from llm_effects.providers.reading import parse, record
from llm_effects.providers.sent_calls import sent_arguments
from llm_effects.providers.shown import data_url, file_name, read_out
from llm_effects.providers.targets import Target
from llm_effects.requests import LLMRequest, conversation

Item: TypeAlias = Mapping[str, object] | msgspec.Raw
"""An item of input; a raw one goes out byte for byte as it once came."""


def items_of(target: Target, request: LLMRequest) -> list[Item]:
    """Write every message; the request's system text is no item, but the ``instructions``.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> gpt = target_of("gpt", ModelConfig(provider="openai-responses", model="gpt-6-luna", api_key="sk-x")).unwrap()
    >>> items_of(gpt, LLMRequest(prompt="hi"))
    [{'role': 'user', 'content': 'hi'}]
    """
    return [item for message in conversation(request) for item in _items(target, message)]


def _items(target: Target, message: Message) -> list[Item]:
    if message.role != "assistant":
        return list(_asked(message))
    answer = [item for part in message.parts for item in _answered(target, part)]
    while answer and isinstance(answer[-1], msgspec.Raw):
        answer.pop()  # thinking is refused without what it led to
    return answer


def _asked(message: Message) -> Iterator[Item]:
    """A result stands alone, before what is said about it."""
    for part in message.parts:
        if isinstance(part, ToolResult):
            yield {"type": "function_call_output", "call_id": part.call_id, "output": part.content}
    role = "system" if message.role == "system" else "user"
    told = map(read_out, message.parts)
    shown = [part for part in told if isinstance(part, Text | Image | Document)]
    if any(isinstance(part, Image | Document) for part in shown):
        yield {"role": role, "content": [_block(part) for part in shown]}
    elif text := text_of(shown):
        yield {"role": role, "content": text}


def _block(part: Text | Image | Document) -> Mapping[str, object]:
    match part:
        case Text():
            return {"type": "input_text", "text": part.text}
        case Image():
            return {"type": "input_image", "image_url": data_url(part)}
        case Document(data=None, url=str() as url):
            return {"type": "input_file", "file_url": url}
        case Document():
            return {"type": "input_file", "filename": file_name(part), "file_data": data_url(part)}


def _answered(target: Target, part: Part) -> Iterator[Item]:
    match part:
        case Text() if part.text:
            yield {"role": "assistant", "content": part.text}
        case ToolCall():
            arguments = sent_arguments(part.arguments)
            yield {"type": "function_call", "call_id": part.id, "name": part.name, "arguments": arguments}
        case Reasoning(opaque=str() as sealed) if part.origin == _here(target) and _is_thinking(sealed):
            yield msgspec.Raw(sealed.encode())
        case _:
            return


def _here(target: Target) -> Origin | None:
    """Thinking goes back to the very model that thought it, and to no other."""
    return None if target.wire_model is None else Origin(target.preset.name, target.wire_model)


def _is_thinking(sealed: str) -> bool:
    return record(parse(sealed)).get("type") == "reasoning"
