"""An answer under construction, common to all protocols: streams and whole answers end in the same place."""

import re
from collections.abc import Iterable, Iterator
from itertools import count, pairwise
from typing import Final, Literal, TypeAlias, final

from attrs import define, evolve, field
from returns.result import Failure, Result, Success

from llm_effects.providers.target import Target, masked, masked_name
from llm_effects.values.errors import ContentRefused, LLMError, MalformedResponse
from llm_effects.values.events import ContentEvent, ReasoningDelta, TextDelta, ToolCallDelta
from llm_effects.values.json import items, json_text, record, string, whole
from llm_effects.values.messages import Citation, Origin, Part, Reasoning, Text, ToolCall
from llm_effects.values.responses import FinishReason, LLMResponse, Usage

# What an answer rests on, as each protocol tells it, and the passages of the answer that it belongs to.


Passage: TypeAlias = tuple[int, list[object]]
"""Where in a text a passage begins, and the citations told with it."""


def of_passages(passages: Iterable[Passage], length: int) -> tuple[Citation, ...]:
    """Read Anthropic's citations, which are told for a block of text: it ends where the next one begins.

    >>> of_passages([(0, []), (4, [{"type": "char_location", "cited_text": "the sky is blue"}])], 9)[0].quote
    'the sky is blue'
    """
    ended = pairwise([*passages, (length, list[object]())])
    return tuple(_of_block(start, end, record(told)) for (start, cited), (end, _) in ended for told in cited)


def _of_block(start: int, end: int, told: dict[str, object]) -> Citation:
    return Citation(
        start=start,
        end=end,
        quote=string(told.get("cited_text")),
        title=string(told.get("document_title")) or string(told.get("title")) or None,
        url=string(told.get("url")) or None,
        document=_counted(told.get("document_index")),
        source=json_text(told),
    )


def _counted(told: object) -> int | None:
    number = whole(told)
    return number if number is not None and number >= 0 else None


def of_annotations(told: object, offset: int = 0, length: int = 0) -> tuple[Citation, ...]:
    """Read OpenAI's annotations of a text that begins at ``offset`` and has ``length``; others than citations are none.

    Chat completions put what they say into an object of its own, Responses do not. A cited file has no passage but a
    place, from which its passage is taken to begin.

    >>> site = {"type": "url_citation", "start_index": 3, "end_index": 7, "url": "https://a.example"}
    >>> [(each.start, each.end, each.url) for each in of_annotations([site], offset=10, length=9)]
    [(13, 17, 'https://a.example')]
    """
    return tuple(_annotations(told, offset, length))


def _annotations(told: object, offset: int, length: int) -> Iterator[Citation]:
    for each in map(record, items(told)):
        kind = string(each.get("type"))
        if kind.endswith("citation"):
            yield _of_annotation(each, record(each.get(kind)) or each, offset, length)


def _of_annotation(told: dict[str, object], said: dict[str, object], offset: int, length: int) -> Citation:
    place = _counted(said.get("start_index", said.get("index"))) or 0
    end = _counted(said.get("end_index"))
    start = min(place, length)
    return Citation(
        start=offset + start,
        end=offset + (start if end is None else max(start, min(end, length))),
        title=string(said.get("title")) or string(said.get("filename")) or None,
        url=string(said.get("url")) or None,
        source=json_text(told),
    )


def of_sources(urls: Iterable[object], length: int) -> tuple[Citation, ...]:
    """Take a plain list of sources, as search servers give it: each for the whole text.

    >>> of_sources(["https://a.example"], 5)[0].end
    5
    """
    return tuple(Citation(start=0, end=length, url=string(url)) for url in urls if string(url))


Piece: TypeAlias = tuple[Literal["text", "reasoning"], str]
"""A piece of text or of thinking."""


@final
@define(kw_only=True)
class PartDraft:
    """One part under construction: ``pieces`` is its text, thinking or arguments so far.

    ``opaque`` is the provider's own block (JSON text), to be replayed byte for byte; ``index`` tells a tool call
    from the others. ``passages`` of a text are told by protocols that cite block by block, before the ``citations``
    can be read from them.
    """

    kind: Literal["text", "reasoning", "tool"]
    pieces: list[str] = field(factory=list[str])
    id: str = ""
    name: str = ""
    opaque: str | None = None
    index: int = 0
    passages: list[Passage] = field(factory=list[Passage])
    citations: tuple[Citation, ...] = ()

    @property
    def length(self) -> int:
        """How many characters there are so far."""
        return sum(map(len, self.pieces))


@final
@define(kw_only=True)
class Draft:
    """What one attempt has told so far.

    ``slots`` finds the part that the protocol's index or id speaks of. ``finish_reason`` is the protocol's own
    word for the end and ``done`` its terminal; ``refusal`` is set once the model or a filter declined. ``thinking``
    and ``held`` are for models that put their thinking in tags at the start of the text: where in it the text is,
    and what may be the beginning of a tag. What the server called itself and its work is kept as it came: it is
    masked on its way out, into a response or an error.
    """

    target: Target
    parts: list[PartDraft] = field(factory=list[PartDraft])
    slots: dict[int | str, PartDraft] = field(factory=dict[int | str, PartDraft])
    usage: Usage = field(factory=Usage)
    finish_reason: FinishReason | None = None
    done: bool = False
    refusal: str | None = None
    refusal_text: list[str] = field(factory=list[str])
    served_model: str | None = None
    request_id: str | None = None
    warnings: list[str] = field(factory=list[str])
    sources: list[object] = field(factory=list[object])
    thinking: Literal["unknown", "inside", "after", "over"] = "unknown"
    held: str = ""


def add_text(draft: Draft, kind: Literal["text", "reasoning"], piece: str) -> None:
    """Append to the last part, or begin a new one where the kind changes."""
    if not draft.parts or draft.parts[-1].kind != kind:
        draft.parts.append(PartDraft(kind=kind))
    draft.parts[-1].pieces.append(piece)


def take_pieces(draft: Draft, pieces: Iterable[Piece]) -> tuple[ContentEvent, ...]:
    """Take pieces of text and thinking into the draft and tell them; empty ones are nothing."""
    events: list[ContentEvent] = []
    for kind, text in pieces:
        if text:
            add_text(draft, kind, text)
            events.append(TextDelta(text) if kind == "text" else ReasoningDelta(text))
    return tuple(events)


def text_so_far(draft: Draft) -> str:
    """All text of the answer so far."""
    return "".join(piece for part in draft.parts if part.kind == "text" for piece in part.pieces)


def response_of(draft: Draft) -> Result[LLMResponse, LLMError]:
    """Read the finished draft: a whole answer, a refusal, or a stream that was cut."""
    if draft.refusal is not None:
        return Failure(_refused(draft, draft.refusal))
    if draft.finish_reason is None:
        return Failure(malformed(draft, "the answer ended before the protocol's own end"))
    said = [part for part in draft.parts if _says_something(part)]
    if any(part.kind == "tool" and not part.name for part in said):
        return Failure(malformed(draft, "the answer asks for a tool without its name"))
    if not said and not draft.usage.output_tokens:
        return Failure(malformed(draft, "the answer is empty"))
    return Success(_response(draft, tuple(_part(draft, part) for part in said), draft.finish_reason))


def malformed(draft: Draft, message: str) -> MalformedResponse:
    """What is wrong with the answer, with what it had told until then."""
    return MalformedResponse(
        model=draft.target.name,
        provider=draft.target.preset.name,
        message=masked(draft.target, message),
        partial=text_so_far(draft),
        usage=draft.usage,
        request_id=masked_name(draft.target, draft.request_id),
    )


def interrupted(draft: Draft, error: LLMError) -> LLMError:
    """The error that broke the answer off, with what it had told until then."""
    known = error.request_id or masked_name(draft.target, draft.request_id)
    return evolve(error, partial=text_so_far(draft), usage=draft.usage, request_id=known)


def _response(draft: Draft, parts: tuple[Part, ...], finish_reason: FinishReason) -> LLMResponse:
    return LLMResponse(
        content=text_so_far(draft),
        parts=parts,
        model=draft.target.name,
        served_model=masked_name(draft.target, draft.served_model),
        provider=draft.target.preset.name,
        finish_reason=finish_reason,
        usage=draft.usage,
        warnings=tuple(masked(draft.target, warning) for warning in draft.warnings),
        request_id=masked_name(draft.target, draft.request_id),
    )


def _says_something(part: PartDraft) -> bool:
    return bool(part.name) or part.opaque is not None or any(part.pieces)


def _part(draft: Draft, part: PartDraft) -> Part:
    text = "".join(part.pieces)
    if part.kind == "text":
        return Text(text, part.citations)
    if part.kind == "tool":
        return ToolCall(part.id, part.name, text)
    served = masked_name(draft.target, draft.served_model)
    origin = Origin(draft.target.preset.name, draft.target.wire_model or served or draft.target.name)
    return Reasoning(text, part.opaque, origin)


def _refused(draft: Draft, category: str) -> ContentRefused:
    return ContentRefused(
        model=draft.target.name,
        provider=draft.target.preset.name,
        message=masked(draft.target, "".join(draft.refusal_text)) or "the model declined to answer",
        category=masked_name(draft.target, category),
        partial=text_so_far(draft),
        usage=draft.usage,
        request_id=masked_name(draft.target, draft.request_id),
    )


def events_of(response: LLMResponse) -> tuple[ContentEvent, ...]:
    """Tell a whole answer as a stream would have, a part at a time."""
    calls = count()
    told = (_event(part, calls) for part in response.parts)
    return tuple(event for event in told if event is not None)


def _event(part: Part, calls: Iterator[int]) -> ContentEvent | None:
    match part:
        case Text():
            return TextDelta(part.text)
        case Reasoning():
            return ReasoningDelta(part.text) if part.text else None
        case ToolCall():
            return ToolCallDelta(next(calls), part.id, part.name, part.arguments)
        case _:
            return None


# Thinking that local models put in ``<think>`` tags at the start of their text, however it is cut.


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


# Whether the model that answered is the one that was asked: some servers answer with whatever they have.


_DATED: Final = re.compile(r"[-@:]?(\d{4}-?\d{2}-?\d{2}|\d{4}|latest)?", re.IGNORECASE)


def compare_models(draft: Draft) -> None:
    """Warn in the draft where another model answered."""
    asked, served = draft.target.wire_model, draft.served_model
    if asked and served and not same_model(asked, served):
        draft.warnings.append(f"{served!r} answered where {asked!r} was asked")


def same_model(asked: str, served: str) -> bool:
    """Whether the names differ at most by a path, a date or a word for the latest one or for the host.

    >>> same_model("gpt-4.1", "gpt-4.1-2025-04-14"), same_model("gpt-4.1", "gpt-4.1-mini")
    (True, False)
    """
    ours, theirs = (name.lower().rsplit("/", 1)[-1].removesuffix(".gguf") for name in (asked, served))
    ours = (ours if ":" in theirs else ours.partition(":")[0]).removesuffix("-latest")
    return theirs.startswith(ours) and _DATED.fullmatch(theirs[len(ours) :]) is not None
