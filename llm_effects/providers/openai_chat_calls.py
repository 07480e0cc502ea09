"""Tool calls of chat completions, put together from whatever deltas a server sends."""

from itertools import count

from llm_effects.events import ToolCallDelta
from llm_effects.providers.drafts import Draft, PartDraft
from llm_effects.providers.reading import Unreadable, json_text, parse, record, string, whole


def take_call(draft: Draft, told: dict[str, object], place: int | None = None) -> ToolCallDelta | None:
    """Take one tool call, or a piece of one, into the draft; ``place`` stands in for the index of a whole one.

    A new id or name opens a new call, even at an index in use; without an index, pieces go to the call of their id
    or to the last one. Calls without an id, or with one that is taken, get ``call_0``, ``call_1``, ...
    """
    function = record(told.get("function")) or record(told.get("custom"))
    index = whole(told.get("index")) if place is None else place
    call_id, name = string(told.get("id")).strip(), string(function.get("name")).strip()
    piece = json_text(function.get("arguments", function.get("input")))
    if not (call_id or name or piece):
        return None
    part = _find(draft, index, call_id, name) or _open(draft, index, call_id)
    if name != part.name and not any(part.pieces):
        part.name += name
    part.pieces.append(piece)
    return ToolCallDelta(part.index, part.id, part.name, piece)


def _find(draft: Draft, index: int | None, call_id: str, name: str) -> PartDraft | None:
    current = _last(draft) if index is None else draft.slots.get(index)
    if call_id:
        known = draft.slots.get(_key(index, call_id))
        return known or (current if current and not name and not _named_by_server(draft, current) else None)
    if current is None or not name:
        return current
    return None if index is None or _begins_anew(current, name) else current


def _begins_anew(current: PartDraft, name: str) -> bool:
    """Whether a name, told again, is another call: names may come in pieces, but only before the arguments."""
    arguments = "".join(current.pieces)
    return bool(arguments) and (name != current.name or not isinstance(parse(arguments), Unreadable))


def _open(draft: Draft, index: int | None, call_id: str) -> PartDraft:
    calls = [part for part in draft.parts if part.kind == "tool"]
    part = PartDraft(kind="tool", id=_free_id(calls, call_id), index=len(calls))
    draft.parts.append(part)
    if index is not None:
        draft.slots[index] = part
    if call_id:
        draft.slots[_key(index, call_id)] = part
        draft.slots.setdefault(_key(None, call_id), part)
    return part


def _free_id(calls: list[PartDraft], call_id: str) -> str:
    taken = {part.id for part in calls}
    if call_id and call_id not in taken:
        return call_id
    return next(made for made in (f"call_{number}" for number in count(len(calls))) if made not in taken)


def _last(draft: Draft) -> PartDraft | None:
    return next((part for part in reversed(draft.parts) if part.kind == "tool"), None)


def _key(index: int | None, call_id: str) -> str:
    return f"{'' if index is None else index}:{call_id}"


def _named_by_server(draft: Draft, part: PartDraft) -> bool:
    return _key(None, part.id) in draft.slots
