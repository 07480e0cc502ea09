"""A conversation in Anthropic's shape: a system text at the top, then turns of blocks that alternate."""

import base64
import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Final, TypeAlias

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
from llm_effects.providers.targets import Target
from llm_effects.requests import LLMRequest, conversation

Block: TypeAlias = Mapping[str, object] | msgspec.Raw
"""A block of a turn; a raw one goes out byte for byte as it once came."""

Turn: TypeAlias = Mapping[str, object]
"""One turn, ready to be written as JSON."""

_ALIAS: Final = re.compile(r"(?:-0|-latest|-20\d{6})$")
_REPLAYED: Final = {"thinking", "redacted_thinking"}


def system_of(request: LLMRequest) -> str | None:
    """All system texts in one: there is no other place for them."""
    turns = (message.text for message in request.messages if message.role == "system")
    return "\n\n".join(filter(None, (request.system, *turns))) or None


def moved_system(request: LLMRequest) -> tuple[str, ...]:
    """A warning for every system message that stood after the conversation had begun."""
    begun = next((at for at, each in enumerate(request.messages) if each.role != "system"), len(request.messages))
    late = (at for at, each in enumerate(request.messages) if each.role == "system" and at > begun)
    return tuple(f"messages[{at}]: the system message was moved to the top of the conversation" for at in late)


def turns_of(target: Target, request: LLMRequest) -> tuple[Turn, ...]:
    """The turns without the system's, neighbours of one role merged, empty ones left out."""
    told = (
        (_role(message), block)
        for message in conversation(request)
        if message.role != "system"
        for block in _blocks(target, message)
    )
    grouped = tuple((role, [block for _, block in group]) for role, group in groupby(told, lambda pair: pair[0]))
    return tuple({"role": role, "content": _ordered(blocks)} for role, blocks in _trimmed(grouped))


def _role(message: Message) -> str:
    return "assistant" if message.role == "assistant" else "user"


def _trimmed(turns: tuple[tuple[str, list[Block]], ...]) -> Iterator[tuple[str, list[Block]]]:
    """An answer to be continued must not end in white space."""
    for at, (role, blocks) in enumerate(turns):
        last = blocks[-1]
        if at == len(turns) - 1 and role == "assistant" and isinstance(last, Mapping) and "text" in last:
            yield role, [*blocks[:-1], {**last, "text": str(last["text"]).rstrip()}]
        else:
            yield role, blocks


def _ordered(blocks: list[Block]) -> list[Block]:
    """Results of tools come first: nothing may stand between them and their calls."""
    return sorted(blocks, key=lambda block: not (isinstance(block, Mapping) and block.get("type") == "tool_result"))


def _blocks(target: Target, message: Message) -> Iterator[Block]:
    for part in message.parts:
        block = _block(target, part)
        if block is not None:
            yield block


def _block(target: Target, part: Part) -> Block | None:
    match part:
        case Text():
            return {"type": "text", "text": part.text} if part.text.strip() else None
        case Image():
            return {"type": "image", "source": _source(part)}
        case Document():
            return _document(part)
        case Reasoning():
            return _replayed(target, part)
        case ToolCall():
            given = record(parse(sent_arguments(part.arguments)))
            return {"type": "tool_use", "id": _id(part.id), "name": part.name, "input": given}
        case ToolResult():
            said = {"type": "tool_result", "tool_use_id": _id(part.call_id), "content": part.content}
            return {**said, "is_error": True} if part.is_error else said


def _source(part: Image | Document) -> Mapping[str, object]:
    if part.data is not None:
        data = base64.b64encode(part.data).decode()
        return {"type": "base64", "media_type": part.media_type, "data": data}
    return {"type": "url", "url": part.url}


def _document(part: Document) -> Block | None:
    """Text is told as plain text, whatever its kind: no other is known there."""
    plain = {"type": "text", "media_type": "text/plain", "data": part.text}
    block = {"type": "document", "source": plain if part.plain else _source(part)}
    titled = {**block, "title": part.title} if part.title else block
    return {**titled, "citations": {"enabled": True}} if part.cite else titled


def _replayed(target: Target, part: Reasoning) -> Block | None:
    """Thinking goes back, byte for byte, to the model that thought it, and to no other."""
    if part.opaque is None or part.origin is None or not _same(part.origin, target):
        return None
    sound = record(parse(part.opaque)).get("type") in _REPLAYED
    return msgspec.Raw(part.opaque.encode()) if sound else None


def _same(origin: Origin, target: Target) -> bool:
    """A dated name and its alias are one model: the answer bears the dated one."""
    wanted = _ALIAS.sub("", target.wire_model or target.name)
    return origin.provider == target.preset.name and _ALIAS.sub("", origin.model) == wanted


def _id(given: str) -> str:
    """An id of another provider may hold what is refused here; call and result change alike."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", given)


def final_answer(request: LLMRequest) -> bool:
    """Whether the conversation ends with an answer that is to be continued."""
    turns = [message for message in request.messages if message.role != "system"]
    return bool(turns) and turns[-1].role == "assistant" and bool(text_of(turns[-1].parts).strip())
