"""The items of Responses' answers: each is a part of the draft, grown by deltas and completed by what is told whole."""

from collections.abc import Iterator
from typing import Final, Literal, TypeAlias

from returns.result import Failure, Result, Success

from llm_effects.errors import LLMError
from llm_effects.events import ReasoningDelta, StreamEvent, TextDelta, ToolCallDelta
from llm_effects.messages import Citation
from llm_effects.providers.citations import of_annotations
from llm_effects.providers.drafts import Draft, PartDraft, malformed
from llm_effects.providers.reading import items, json_text, record, string

Object: TypeAlias = dict[str, object]
"""A JSON object as it came."""

Told: TypeAlias = Result[tuple[StreamEvent, ...], LLMError]
"""What one event brought."""

Key: TypeAlias = int | str
"""Where in the answer an item stands, or its id where a server does not say."""

NOTHING: Final[Told] = Success(())
_APART: Final = "\n\n"


def take_item(draft: Draft, key: Key, item: Object) -> Told:
    """Take an item as far as it is told; taking it again adds what is new. Those of other tools tell nothing."""
    match item.get("type"):
        case "message":
            _take_refusal(draft, item)
            part = _part(draft, key, "text")
            part.citations = tuple(_cited(item)) or part.citations
            return Success(_complete(draft, part, "".join(_said(item, "output_text", "text"))))
        case "reasoning":
            part = _part(draft, key, "reasoning")
            if item.get("encrypted_content") or item.get("content"):  # else there is nothing to be sent back
                part.opaque = json_text(item)
            return Success(_complete(draft, part, _APART.join(filter(None, _thoughts(item)))))
        case "function_call" | "custom_tool_call":
            return _take_call(draft, key, item)
        case _:
            return NOTHING


def _take_refusal(draft: Draft, item: Object) -> None:
    refused = list(_said(item, "refusal", "refusal"))
    if refused:
        draft.refusal, draft.refusal_text = "refusal", refused


def _said(item: Object, kind: str, field: str) -> Iterator[str]:
    for told in map(record, items(item.get("content"))):
        if told.get("type") == kind:
            yield string(told.get(field))


def _cited(item: Object) -> Iterator[Citation]:
    """Each piece of a message counts its own characters."""
    offset = 0
    for told in map(record, items(item.get("content"))):
        length = len(string(told.get("text"))) if told.get("type") == "output_text" else 0
        yield from of_annotations(told.get("annotations"), offset, length)
        offset += length


def _thoughts(item: Object) -> Iterator[str]:
    """The summary of the thinking, and the thinking itself where a server shows it."""
    for told in map(record, (*items(item.get("summary")), *items(item.get("content")))):
        yield string(told.get("text"))


def _take_call(draft: Draft, key: Key, item: Object) -> Told:
    name = string(item.get("name")).strip()
    if not name:
        return Failure(malformed(draft, "a tool call has no name"))
    part = _part(draft, key, "tool")
    begun = _named(part, name, string(item.get("call_id")).strip() or string(item.get("id")).strip())
    whole = json_text(item.get("arguments", item.get("input")))
    return Success((*begun, *_complete(draft, part, whole)))


def _named(part: PartDraft, name: str, call_id: str) -> tuple[StreamEvent, ...]:
    if part.name:
        return ()
    part.name, part.id = name, call_id or f"call_{part.index}"
    return (ToolCallDelta(part.index, part.id, name, "".join(part.pieces)),)


def grow_text(draft: Draft, key: Key, piece: str) -> tuple[StreamEvent, ...]:
    """Take more text of a message."""
    return _grow(_part(draft, key, "text"), piece)


def grow_call(draft: Draft, key: Key, piece: str) -> tuple[StreamEvent, ...]:
    """Take more of a call's arguments; until its name is known they are kept and not told."""
    return _grow(_part(draft, key, "tool"), piece)


def grow_thinking(draft: Draft, key: Key, paragraph: str, piece: str) -> tuple[StreamEvent, ...]:
    """Take more thinking; a blank line stands between its paragraphs."""
    part, place = _part(draft, key, "reasoning"), f"{key}/{paragraph}"
    if not piece:
        return ()
    begins = bool(part.pieces) and place not in draft.slots
    draft.slots[place] = part
    return _grow(part, _APART + piece if begins else piece)


def complete_call(draft: Draft, key: Key, arguments: str) -> tuple[StreamEvent, ...]:
    """Take a call's arguments whole."""
    return _complete(draft, _part(draft, key, "tool"), arguments)


def _part(draft: Draft, key: Key, kind: Literal["text", "reasoning", "tool"]) -> PartDraft:
    part = draft.slots.get(key)
    if part is None or part.kind != kind:
        part = PartDraft(kind=kind, index=sum(each.kind == "tool" for each in draft.parts))
        draft.parts.append(part)
        draft.slots[key] = part
    return part


def _grow(part: PartDraft, piece: str) -> tuple[StreamEvent, ...]:
    if not piece:
        return ()
    part.pieces.append(piece)
    return _event(part, piece)


def _complete(draft: Draft, part: PartDraft, whole: str) -> tuple[StreamEvent, ...]:
    """Make a part what it is told to be as a whole, and tell what of it was not told yet."""
    told = "".join(part.pieces)
    if not whole or whole == told:
        return ()
    part.pieces[:] = [whole]
    if whole.startswith(told):
        return _event(part, whole[len(told) :])
    draft.warnings.append("what the stream told piece by piece is not what it told as a whole, which was taken")
    return ()


def _event(part: PartDraft, piece: str) -> tuple[StreamEvent, ...]:
    match part.kind:
        case "text":
            return (TextDelta(piece),)
        case "reasoning":
            return (ReasoningDelta(piece),)
        case "tool":
            return (ToolCallDelta(part.index, part.id, part.name, piece),) if part.name else ()
