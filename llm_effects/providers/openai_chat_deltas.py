"""What a message or a delta of chat completions says: text, thinking, tool calls, a refusal."""

from collections.abc import Iterator
from typing import TypeAlias

from llm_effects.events import StreamEvent
from llm_effects.providers.citations import of_annotations
from llm_effects.providers.drafts import Draft, Piece, take_pieces
from llm_effects.providers.openai_chat_calls import take_call
from llm_effects.providers.reading import items, json_text, record, string
from llm_effects.providers.thinking import sort_thinking

_Object: TypeAlias = dict[str, object]


def take_delta(draft: Draft, delta: _Object, *, whole: bool = False) -> tuple[StreamEvent, ...]:
    """Take a delta, or a ``whole`` message, into the draft and tell what it brought."""
    said = take_pieces(draft, _pieces(draft, delta))
    if delta.get("annotations"):
        _cite(draft, delta["annotations"])
    refusal = delta.get("refusal")
    if refusal and isinstance(refusal, str):
        draft.refusal = draft.refusal or "refusal"
        draft.refusal_text.append(refusal)
    calls = _calls(delta)
    return (*said, *_called(draft, calls, whole=whole)) if calls else said


def _cite(draft: Draft, annotations: object) -> None:
    text = next((part for part in reversed(draft.parts) if part.kind == "text"), None)
    if text is not None:
        text.citations += of_annotations(annotations, length=text.length)


def _called(draft: Draft, calls: list[_Object], *, whole: bool) -> Iterator[StreamEvent]:
    for place, told in enumerate(calls):
        call = take_call(draft, told, place if whole else None)
        if call is not None:
            yield call


def _pieces(draft: Draft, delta: _Object) -> Iterator[Piece]:
    thought = delta.get("reasoning_content") or delta.get("reasoning") or delta.get("reasoning_details")
    if thought:
        yield "reasoning", _thought(thought)
    content = delta.get("content")
    if isinstance(content, str):
        yield from sort_thinking(draft, content) if content else ()
    elif listed := items(content):
        yield from _parts(listed)
    elif record(content):  # the answer to a schema, already read
        yield "text", json_text(content)
    elif "audio" in delta:
        yield "text", string(record(delta["audio"]).get("transcript"))


def _parts(content: list[object]) -> Iterator[Piece]:
    for part in map(record, content):
        if part.get("type") == "thinking":
            yield "reasoning", _thought(part.get("thinking"))
        else:
            yield "text", string(part.get("text"))


def _thought(told: object) -> str:
    """Thinking comes as a text, or as parts with a text or a summary; sealed parts say nothing that can be read."""
    if isinstance(told, str):
        return told
    return "".join(string(part.get("text")) or string(part.get("summary")) for part in map(record, items(told)))


def _calls(delta: _Object) -> list[_Object]:
    calls = delta.get("tool_calls")
    told = [record(call) for call in items(calls)] if calls else []
    legacy = delta.get("function_call")
    return [*told, {"index": 0, "function": legacy}] if legacy else told
