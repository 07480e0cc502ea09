"""Thinking that local models put in ``<think>`` tags at the start of their text, however it is cut."""

from typing import Final, Literal

from llm_effects.events import ContentEvent
from llm_effects.providers.drafts import Draft, Piece, take_pieces

_OPEN: Final = "<think>"
_CLOSE: Final = "</think>"


def sort_thinking(draft: Draft, piece: str) -> tuple[Piece, ...]:
    """Say what the next piece of text is; what may be the beginning of a tag is held back in the draft.

    Tags count only at the very start: a later ``<think>`` is text. White space next to the tags goes with them.
    """
    if draft.thinking == "over":
        return (("text", piece),)
    draft.held += piece
    return _STEPS[draft.thinking](draft)


def rest_of(draft: Draft) -> tuple[ContentEvent, ...]:
    """Take what is still held back into the draft and tell it, now that nothing more comes; it is told once.

    Who tells a stream's events to somebody tells these before the draft is finished: all of its text is told then.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> draft = Draft(target=target_of("m", ModelConfig(provider="lm-studio")).unwrap())
    >>> sort_thinking(draft, "<thi"), rest_of(draft), rest_of(draft)
    ((), (TextDelta(text='<thi'),), ())
    """
    return take_pieces(draft, _release(draft))


def _release(draft: Draft) -> tuple[Piece, ...]:
    held, draft.held = draft.held, ""
    if not held or draft.thinking == "after":
        return ()
    return (("reasoning" if draft.thinking == "inside" else "text", held),)


def _unknown(draft: Draft) -> tuple[Piece, ...]:
    start = draft.held.lstrip()
    if start.startswith(_OPEN):
        draft.thinking, draft.held = "inside", start[len(_OPEN) :]
        return _inside(draft)
    if _OPEN.startswith(start):
        return ()
    draft.thinking = "over"
    return _release(draft)


def _inside(draft: Draft) -> tuple[Piece, ...]:
    begun = bool(draft.parts) and draft.parts[-1].kind == "reasoning"
    held = draft.held if begun else draft.held.lstrip()
    thought, closed, rest = held.partition(_CLOSE)
    if closed:
        draft.thinking, draft.held = "after", rest
        return (*_some("reasoning", thought), *_after(draft))
    kept = _cut_tag(thought)
    draft.held = thought[len(thought) - kept :]
    return _some("reasoning", thought[: len(thought) - kept])


def _after(draft: Draft) -> tuple[Piece, ...]:
    text, draft.held = draft.held.lstrip(), ""
    if text:
        draft.thinking = "over"
    return _some("text", text)


_STEPS: Final = {"unknown": _unknown, "inside": _inside, "after": _after}


def _some(kind: Literal["text", "reasoning"], text: str) -> tuple[Piece, ...]:
    return ((kind, text),) if text else ()


def _cut_tag(text: str) -> int:
    """How many letters at the end of the text may be the beginning of the closing tag."""
    return next((size for size in range(len(_CLOSE) - 1, 0, -1) if text.endswith(_CLOSE[:size])), 0)
