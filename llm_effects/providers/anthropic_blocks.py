"""The blocks of Anthropic's answers: each one opens a part of the draft, grows it and seals it."""

from typing import Final, TypeAlias

from returns.result import Failure, Result, Success

from llm_effects.errors import LLMError
from llm_effects.events import ReasoningDelta, StreamEvent, TextDelta, ToolCallDelta
from llm_effects.providers.drafts import Draft, PartDraft, malformed
from llm_effects.providers.reading import items, json_text, parse, record, string

Object: TypeAlias = dict[str, object]
"""A JSON object as it came."""

Told: TypeAlias = Result[tuple[StreamEvent, ...], LLMError]
"""What one event brought."""

NOTHING: Final[Told] = Success(())


def open_block(draft: Draft, index: int, block: Object) -> Told:
    """Take the beginning of a block, or a whole one; those of tools that the server runs itself tell nothing."""
    match block.get("type"):
        case "text":
            return Success(_open_text(draft, index, block))
        case "thinking":
            _new_part(draft, index, PartDraft(kind="reasoning", opaque=json_text(block)))
            return Success(_grow_thinking(draft, index, string(block.get("thinking"))))
        case "redacted_thinking":
            _new_part(draft, index, PartDraft(kind="reasoning", opaque=json_text(block)))
        case "tool_use":
            return _open_call(draft, index, block)
        case _:
            draft.slots.pop(index, None)
    return NOTHING


def _open_call(draft: Draft, index: int, block: Object) -> Told:
    name = string(block.get("name"))
    if not name.strip():
        return Failure(malformed(draft, "a tool call has no name"))
    place = sum(part.kind == "tool" for part in draft.parts)
    call = PartDraft(kind="tool", index=place, id=string(block.get("id")).strip() or f"toolu_{index}", name=name)
    arguments = json_text(block.get("input") or None)
    _new_part(draft, index, call)
    call.pieces.append(arguments)
    return Success((ToolCallDelta(place, call.id, call.name, arguments),))


def grow(draft: Draft, index: int, delta: Object) -> Told:
    """Take more of a block; a delta of a kind unknown tells nothing."""
    match delta.get("type"):
        case "text_delta":
            return Success(_grow_text(draft, index, string(delta.get("text"))))
        case "thinking_delta":
            return Success(_grow_thinking(draft, index, string(delta.get("thinking"))))
        case "signature_delta":
            _sign(draft, index, string(delta.get("signature")))
        case "citations_delta":
            _cite(draft, index, delta.get("citation"))
        case "input_json_delta":
            return Success(_grow_call(draft, index, string(delta.get("partial_json"))))
        case _:
            pass
    return NOTHING


def _open_text(draft: Draft, index: int, block: Object) -> tuple[StreamEvent, ...]:
    told = _grow_text(draft, index, "")
    part = draft.slots[index]
    part.passages.append((part.length, items(block.get("citations"))))
    return (*told, *_grow_text(draft, index, string(block.get("text"))))


def _cite(draft: Draft, index: int, citation: object) -> None:
    part = draft.slots.get(index)
    if part is not None and part.passages:
        part.passages[-1][1].append(citation)


def _grow_text(draft: Draft, index: int, piece: str) -> tuple[StreamEvent, ...]:
    """Text of one block after another is one part: citations cut a sentence into many blocks."""
    last = draft.parts[-1] if draft.parts and draft.parts[-1].kind == "text" else None
    part = draft.slots.get(index)
    if part is None or part.kind != "text":
        part = _new_part(draft, index, PartDraft(kind="text")) if last is None else last
        draft.slots[index] = part
    return _grow(part, piece, (TextDelta(piece),))


def _grow_thinking(draft: Draft, index: int, piece: str) -> tuple[StreamEvent, ...]:
    part = draft.slots.get(index)
    if part is None or part.kind != "reasoning":
        part = _new_part(draft, index, PartDraft(kind="reasoning", opaque='{"type":"thinking"}'))
    return _grow(part, piece, (ReasoningDelta(piece),))


def _grow_call(draft: Draft, index: int, piece: str) -> tuple[StreamEvent, ...]:
    part = draft.slots.get(index)
    if part is None or part.kind != "tool":
        return ()
    return _grow(part, piece, (ToolCallDelta(part.index, part.id, part.name, piece),))


def _grow(part: PartDraft, piece: str, told: tuple[StreamEvent, ...]) -> tuple[StreamEvent, ...]:
    if not piece:
        return ()
    part.pieces.append(piece)
    return told


def _new_part(draft: Draft, index: int, part: PartDraft) -> PartDraft:
    draft.parts.append(part)
    draft.slots[index] = part
    return part


def _sign(draft: Draft, index: int, piece: str) -> None:
    part = draft.slots.get(index)
    if part is not None and part.opaque is not None:
        block = record(parse(part.opaque))
        part.opaque = json_text({**block, "signature": string(block.get("signature")) + piece})


def seal(part: PartDraft) -> tuple[StreamEvent, ...]:
    """Complete a part: a call without arguments has none, and thinking without a signature cannot be replayed."""
    block = record(parse(part.opaque or ""))
    if block.get("type") == "thinking":
        signed = {**block, "thinking": "".join(part.pieces)}
        part.opaque = json_text(signed) if block.get("signature") else None
    if part.kind == "tool" and not any(part.pieces):
        return _grow(part, "{}", (ToolCallDelta(part.index, part.id, part.name, "{}"),))
    return ()
