"""An answer under construction, common to all protocols: streams and whole answers end in the same place."""

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Literal, TypeAlias, final

from attrs import define, evolve, field
from returns.result import Failure, Result, Success

from llm_effects.errors import ContentRefused, LLMError, MalformedResponse
from llm_effects.events import ContentEvent, ReasoningDelta, TextDelta, ToolCallDelta
from llm_effects.messages import Citation, Origin, Part, Reasoning, Text, ToolCall
from llm_effects.providers.citations import Passage
from llm_effects.providers.masking import masked, masked_name
from llm_effects.providers.targets import Target
from llm_effects.responses import FinishReason, LLMResponse, Usage

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
