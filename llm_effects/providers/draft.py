"""Answers under construction, the same for all protocols: streams and whole answers end as one ``Draft``."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count, islice, pairwise
from typing import Final, Literal, TypeAlias, final

from attrs import define, evolve, field
from returns.result import Failure, Result, Success

from llm_effects.providers.error_mapping import classify_error_object
from llm_effects.providers.response_headers import request_id
from llm_effects.providers.sse import ServerEvent
from llm_effects.providers.target import Target, hide_keys, redact, redact_name, same_model
from llm_effects.providers.wire import WireResponse
from llm_effects.values import caps
from llm_effects.values.display import shown
from llm_effects.values.errors import ContentRefused, LLMError, MalformedResponse
from llm_effects.values.events import ContentEvent, ReasoningDelta, StreamEvent, TextDelta, ToolCallDelta
from llm_effects.values.json import Unreadable, as_count, as_list, as_object, as_string, json_text, parse
from llm_effects.values.messages import Citation, Origin, Part, Reasoning, Text, ToolCall
from llm_effects.values.responses import NO_USAGE, FinishReason, LLMResponse, Usage
from llm_effects.values.validation import new_dict, new_list

Object: TypeAlias = dict[str, object]
"""A JSON object from a server."""

Events: TypeAlias = Result[tuple[StreamEvent, ...], LLMError]
"""The events to emit for one event of the server, or the error that ends the stream."""

NO_EVENTS: Final[Events] = Success(())

PartKind: TypeAlias = Literal["text", "reasoning", "tool"]

Passage: TypeAlias = tuple[int, list[object]]
"""The start of a passage in a text, and its citations as the server sent them."""


# --- The draft and its parts


@final
@define(kw_only=True)
class PartDraft:
    """One part under construction: ``pieces`` is its text, thinking or arguments so far.

    ``opaque`` is the provider's own block (JSON text), to be replayed byte for byte. ``index`` numbers the tool calls.
    ``passages`` collect the citations of protocols that cite block by block, until ``citations`` can be built.
    ``signature`` is what seals the thinking, until it is put into its block. ``checks`` counts how often the arguments
    were parsed.
    """

    __repr__ = shown

    kind: PartKind
    pieces: list[str] = field(factory=new_list)
    id: str = ""
    name: str = ""
    opaque: str | None = None
    index: int = 0
    passages: list[Passage] = field(factory=new_list)
    citations: tuple[Citation, ...] = ()
    checks: int = 0
    signature: list[str] = field(factory=new_list)
    _measured: tuple[int, int] = field(default=(0, 0), init=False)

    @property
    def length(self) -> int:
        """The number of characters so far; pieces that were counted before are not counted again."""
        pieces, length = self._measured if self._measured[0] <= len(self.pieces) else (0, 0)
        self._measured = len(self.pieces), length + sum(map(len, self.pieces[pieces:]))
        return self._measured[1]

    def replace(self, text: str) -> None:
        """Replace all pieces by one."""
        self.pieces[:] = [text]
        self._measured = (0, 0)


@final
@define(kw_only=True)
class Draft:
    """The content of one attempt so far.

    ``slots`` maps the protocol's index or id to a part. ``finish_reason`` is set by the protocol's reason to stop,
    ``done`` by its last event, ``refusal`` when the model or a filter declined. ``thinking`` and ``held`` serve models
    that put their thinking in tags at the start of the text: the state of the parser, and text that may be the
    beginning of a tag. Where a part of text exists before its pieces, ``first_text`` is the one that may begin with
    tags, and ``tagged`` the part of their thinking.
    ``sealed`` collects the fields of a message that its server wants back, and ``annotations`` the citations before any
    text. ``unread`` names the content that cannot be read, ``served_tools`` are the tools that the server reports.
    Names and ids from the server are stored unchanged and redacted when they enter a response or an error.
    """

    __repr__ = shown

    target: Target
    parts: list[PartDraft] = field(factory=new_list)
    calls: list[PartDraft] = field(factory=new_list)
    slots: dict[int | str, PartDraft] = field(factory=new_dict)
    usage: Usage = NO_USAGE
    finish_reason: FinishReason | None = None
    done: bool = False
    refusal: str | None = None
    refusal_text: list[str] = field(factory=new_list)
    served_model: str | None = None
    request_id: str | None = None
    warnings: list[str] = field(factory=new_list)
    doubtful: bool = False
    sources: list[object] = field(factory=new_list)
    annotations: list[object] = field(factory=new_list)
    sealed: dict[str, list[object]] = field(factory=new_dict)
    unread: list[str] = field(factory=new_list)
    served_tools: list[object] = field(factory=new_list)
    cited: int = 0
    thinking: Literal["unknown", "opened", "inside", "after", "over"] = "unknown"
    held: str = ""
    tagged: PartDraft | None = None
    first_text: PartDraft | None = None

    def doubt(self, warning: str) -> None:
        """Warn that the answer may be unfinished."""
        self.warnings.append(warning)
        self.doubtful = True

    def open(self, part: PartDraft) -> PartDraft:
        """Add a part after the others."""
        self.parts.append(part)
        if part.kind == "tool":
            self.calls.append(part)
        return part

    @property
    def text(self) -> str:
        """The text of the answer so far."""
        return "".join(piece for part in self.parts if part.kind == "text" for piece in part.pieces)


def grow(part: PartDraft, piece: str) -> tuple[StreamEvent, ...]:
    """Append a piece to a part and return its event; ignore an empty piece."""
    if not piece:
        return ()
    part.pieces.append(piece)
    return delta_of(part, piece)


def delta_of(part: PartDraft, piece: str) -> tuple[StreamEvent, ...]:
    """Return the event of a piece; a tool call has none until its name is known."""
    match part.kind:
        case "text":
            return (TextDelta(piece),)
        case "reasoning":
            return (ReasoningDelta(piece),)
        case "tool":
            return (ToolCallDelta(part.index, part.id, part.name, piece),) if part.name else ()


_DIFFERENT: Final = "the streamed pieces differ from the complete text, which replaced them"


def complete(draft: Draft, part: PartDraft, text: str) -> tuple[StreamEvent, ...]:
    """Set the complete text of a part and return the event of what was not streamed."""
    streamed = "".join(part.pieces) if text else ""
    if text == streamed:
        return ()
    part.replace(text)
    if text.startswith(streamed):
        return delta_of(part, text[len(streamed) :])
    if _DIFFERENT not in draft.warnings:
        draft.warnings.append(_DIFFERENT)
    return ()


Piece: TypeAlias = tuple[Literal["text", "reasoning"], str]
"""A piece of text or of thinking."""


def add_text(draft: Draft, kind: Literal["text", "reasoning"], *pieces: str) -> None:
    """Append to the last part, or start a new one where the kind changes."""
    if not draft.parts or draft.parts[-1].kind != kind:
        draft.open(PartDraft(kind=kind))
    draft.parts[-1].pieces.extend(pieces)


def add_pieces(draft: Draft, pieces: Iterable[Piece]) -> tuple[ContentEvent, ...]:
    """Add pieces of text and thinking to the draft and return their events; ignore empty ones."""
    events: list[ContentEvent] = []
    for kind, text in pieces:
        if text:
            add_text(draft, kind, text)
            events.append(TextDelta(text) if kind == "text" else ReasoningDelta(text))
    return tuple(events)


def note_unread(draft: Draft, kind: object) -> None:
    """Note the kind of some content that cannot be read, once."""
    name = as_string(kind) or "content without a type"
    if name not in draft.unread and len(draft.unread) < caps.EXCERPTS:
        draft.unread.append(name)


_CLIENT_TOOLS: Final = frozenset({"function", "custom"})


def runs_at_server(draft: Draft, name: str) -> bool:
    """Return whether a custom call is the server's own: it reports tools of its own, and none of ours by this name."""
    tools = [(as_string(tool.get("type")), as_string(tool.get("name"))) for tool in map(as_object, draft.served_tools)]
    ours = {each for kind, each in tools if kind in _CLIENT_TOOLS}
    return name not in ours and any(kind not in _CLIENT_TOOLS for kind, _ in tools)


def refuse(draft: Draft, piece: str) -> None:
    """Add a piece of a refusal, of which no more is kept than an error shows."""
    draft.refusal = draft.refusal or "refusal"
    if len(draft.refusal_text) < caps.PARTS:
        draft.refusal_text.append(piece[: caps.ERROR_CHARACTERS])


# --- Reading bodies and events, and the errors in them

_NO_RESPONSE: Final = WireResponse(status=200)


AnswerReader: TypeAlias = Callable[[Draft, Object, WireResponse], Result[LLMResponse, LLMError]]
"""A function that adds the JSON object of a whole answer to a draft, and finishes it."""


def decode_answer(target: Target, response: WireResponse, read: AnswerReader) -> Result[LLMResponse, LLMError]:
    """Decode a whole answer: parse its JSON and ``read`` it into a draft."""
    draft = Draft(target=target, request_id=request_id(response.headers))
    value = parse(response.body)
    if isinstance(value, Unreadable):
        return Failure(malformed(draft, f"the answer is not JSON ({value.reason}): check the endpoint"))
    return read(draft, as_object(value), response)


def not_json(draft: Draft, event: ServerEvent, problem: Unreadable) -> Events:
    """Return the error of an event of OpenAI's protocols that is not JSON; ignore a blank one."""
    if event.name == "error":
        return Failure(reported_error(draft, event.data))
    return Failure(malformed(draft, f"an event is not JSON: {problem.reason}")) if event.data.strip() else NO_EVENTS


def malformed(draft: Draft, message: str) -> MalformedResponse:
    """Return the error of an unusable answer, with the content so far."""
    return MalformedResponse(
        model=draft.target.name,
        provider=draft.target.preset.name,
        message=redact(draft.target, message),
        partial=_text(draft),
        usage=draft.usage,
        request_id=redact_name(draft.target, draft.request_id),
    )


def excess_of(draft: Draft) -> MalformedResponse | None:
    """Return an error once an answer has more calls or more parts than are plausible."""
    calls = draft.target.config.max_tool_calls
    if len(draft.calls) > calls:
        return malformed(draft, f"the answer has more than {calls} tool calls: raise max_tool_calls if they are right")
    return malformed(draft, f"the answer has more than {caps.PARTS} parts") if len(draft.parts) > caps.PARTS else None


def interrupted(draft: Draft, error: LLMError) -> LLMError:
    """Add the content so far to the error that interrupted the answer."""
    exchange = error.request_id or redact_name(draft.target, draft.request_id)
    return evolve(error, partial=_text(draft), usage=draft.usage, request_id=exchange)


def reported_error(draft: Draft, error: object, response: WireResponse = _NO_RESPONSE) -> LLMError:
    """Classify an error that a 2xx answer or a stream reports, and add the content so far."""
    kind = classify_error_object(draft.target, error, headers=response.headers, received=response.received)
    return interrupted(draft, kind)


# --- From a draft to a response, and from a response to events


def response_of(draft: Draft) -> Result[LLMResponse, LLMError]:
    """Read the finished draft: a whole answer, a refusal, or a stream that was cut."""
    excess = excess_of(draft)
    if excess is not None:
        return Failure(excess)
    if draft.refusal is not None:
        return Failure(_refused(draft, draft.refusal))
    if draft.finish_reason is None:
        return Failure(malformed(draft, "the answer ended before the protocol's own end"))
    parts = [part for part in draft.parts if _has_content(part)]
    if any(part.kind == "tool" and not part.name for part in parts):
        return Failure(malformed(draft, "a tool call has no name"))
    if not parts and not draft.usage.output_tokens:
        return Failure(malformed(draft, "; ".join(("the answer is empty", *_unread(draft)))))
    return Success(_response(draft, tuple(_part(draft, part) for part in parts), draft.finish_reason))


def _response(draft: Draft, parts: tuple[Part, ...], finish_reason: FinishReason) -> LLMResponse:
    return LLMResponse(
        content=_text(draft),
        parts=parts,
        model=draft.target.name,
        served_model=redact_name(draft.target, draft.served_model),
        provider=draft.target.preset.name,
        finish_reason=finish_reason,
        usage=draft.usage,
        warnings=tuple(redact(draft.target, warning) for warning in (*draft.warnings, *_unread(draft))),
        doubtful=draft.doubtful,
        request_id=redact_name(draft.target, draft.request_id),
    )


def has_substance(draft: Draft) -> bool:
    """Return whether the draft has text or a tool call; thinking alone is no answer."""
    return bool(draft.text.strip()) or any(call.name for call in draft.calls)


def _unread(draft: Draft) -> tuple[str, ...]:
    """Return the warning of an answer that holds nothing but what cannot be read."""
    if not draft.unread or has_substance(draft):
        return ()
    return (f"the answer has no text: it holds only {', '.join(draft.unread)}, which cannot be read",)


def _has_content(part: PartDraft) -> bool:
    return bool(part.name) or part.opaque is not None or any(part.pieces)


def _text(draft: Draft) -> str:
    return hide_keys(draft.target, draft.text)


def _part(draft: Draft, part: PartDraft) -> Part:
    """Return a part as it is kept and shown: without a key of ours that the server repeats in it."""
    hide = partial(hide_keys, draft.target)
    text = hide("".join(part.pieces))
    if part.kind == "text":
        return Text(text, tuple(_without_keys(citation, hide) for citation in part.citations))
    if part.kind == "tool":
        return ToolCall(hide(part.id), hide(part.name), text)
    served = redact_name(draft.target, draft.served_model)
    origin = Origin(draft.target.preset.name, draft.target.wire_model or served or draft.target.name)
    return Reasoning(text, part.opaque and hide(part.opaque), origin)


def _without_keys(citation: Citation, hide: Callable[[str], str]) -> Citation:
    return evolve(
        citation,
        quote=hide(citation.quote),
        title=citation.title and hide(citation.title),
        url=citation.url and hide(citation.url),
        source=hide(citation.source),
    )


def _refused(draft: Draft, category: str) -> ContentRefused:
    return ContentRefused(
        model=draft.target.name,
        provider=draft.target.preset.name,
        message=redact(draft.target, "".join(draft.refusal_text)) or "the model declined to answer",
        category=redact_name(draft.target, category),
        partial=_text(draft),
        usage=draft.usage,
        request_id=redact_name(draft.target, draft.request_id),
    )


def events_of(response: LLMResponse) -> tuple[ContentEvent, ...]:
    """Return the events of a whole answer as a stream would emit them, one for each part."""
    calls = count()
    events = (_event(part, calls) for part in response.parts)
    return tuple(event for event in events if event is not None)


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


# --- Citations


def cite(draft: Draft, part: PartDraft, citations: Iterable[Citation]) -> None:
    """Add citations to a part; drop those beyond ``caps.CITATIONS`` of the answer, with a warning."""
    room = caps.CITATIONS - draft.cited
    added = tuple(islice(citations, room + 1))
    part.citations += added[:room]
    draft.cited += len(added[:room])
    warning = f"only the first {caps.CITATIONS} citations were kept"
    if len(added) > room and warning not in draft.warnings:
        draft.warnings.append(warning)


def citations_of_passages(passages: Iterable[Passage], length: int) -> Iterator[Citation]:
    """Read Anthropic's citations, which belong to a block of text: it ends where the next one starts.

    >>> cited = [(0, []), (4, [{"type": "char_location", "cited_text": "the sky is blue"}])]
    >>> [each.quote for each in citations_of_passages(cited, 9)]
    ['the sky is blue']
    """
    ranges = pairwise([*passages, (length, list[object]())])
    return (
        _block_citation(start, end, as_object(citation)) for (start, cited), (end, _) in ranges for citation in cited
    )


def _block_citation(start: int, end: int, citation: Object) -> Citation:
    return Citation(
        start=start,
        end=end,
        quote=as_string(citation.get("cited_text")),
        title=as_string(citation.get("document_title")) or as_string(citation.get("title")) or None,
        url=as_string(citation.get("url")) or None,
        document=as_count(citation.get("document_index")),
        source=json_text(citation),
    )


def citations_of_annotations(annotations: object, offset: int = 0, length: int = 0) -> Iterator[Citation]:
    """Read OpenAI's annotations of a text that starts at ``offset`` and has ``length``; skip those that cite nothing.

    Chat completions wrap the fields in an object of their own, Responses do not. A cited file has a position instead
    of a passage: its passage is empty there.

    >>> site = {"type": "url_citation", "start_index": 3, "end_index": 7, "url": "https://a.example"}
    >>> [(each.start, each.end, each.url) for each in citations_of_annotations([site], offset=10, length=9)]
    [(13, 17, 'https://a.example')]
    """
    for annotation in map(as_object, as_list(annotations)):
        kind = as_string(annotation.get("type"))
        if kind.endswith("citation"):
            yield _annotation_citation(annotation, as_object(annotation.get(kind)) or annotation, offset, length)


def _annotation_citation(annotation: Object, fields: Object, offset: int, length: int) -> Citation:
    start = min(as_count(fields.get("start_index", fields.get("index"))) or 0, length)
    end = as_count(fields.get("end_index"))
    return Citation(
        start=offset + start,
        end=offset + (start if end is None else max(start, min(end, length))),
        title=as_string(fields.get("title")) or as_string(fields.get("filename")) or None,
        url=as_string(fields.get("url")) or None,
        source=json_text(annotation),
    )


def citations_of_sources(urls: Iterable[object], length: int) -> Iterator[Citation]:
    """Read the plain list of sources that search servers send: each cites the whole text.

    >>> [each.end for each in citations_of_sources(["https://a.example"], 5)]
    [5]
    """
    return (Citation(start=0, end=length, url=as_string(url)) for url in urls if as_string(url))


# --- Thinking that local models put in ``<think>`` tags at the start of their text, however it is cut


_OPEN: Final = "<think>"
_CLOSE: Final = "</think>"


def split_thinking(draft: Draft, piece: str) -> tuple[Piece, ...]:
    """Sort the next piece into text and thinking; hold back in the draft what may be the beginning of a tag.

    Tags count only at the very start: a later ``<think>`` is text. White space next to the tags is removed.
    """
    if draft.thinking == "over":
        return (("text", piece),)
    draft.held += piece
    return _STEPS[draft.thinking](draft)


def split_whole(text: str) -> tuple[str, str]:
    r"""Split a whole text by the same rule into its thinking and the rest.

    >>> split_whole("<think>\nhm</think>\n\nYes."), split_whole(" Why <think>?")
    (('hm', 'Yes.'), ('', ' Why <think>?'))
    """
    start = text.lstrip()
    if not start.startswith(_OPEN):
        return "", text
    thought, _, rest = start.removeprefix(_OPEN).partition(_CLOSE)
    return thought.lstrip(), rest.lstrip()


def grow_text(draft: Draft, part: PartDraft, piece: str) -> tuple[StreamEvent, ...]:
    """Append a piece to a text part; its thinking in tags grows a part before it."""
    if draft.thinking == "over":
        return grow(part, piece)
    return tuple(
        event
        for kind, text in split_thinking(draft, piece)
        for event in grow(part if kind == "text" else thoughts_before(draft, part), text)
    )


def may_think(draft: Draft, part: PartDraft, piece: str) -> bool:
    """Return whether thinking in tags may be in a text: only the first one that is not blank may begin with it."""
    if draft.first_text is None and piece.strip():
        draft.first_text = part
    return draft.first_text is None or draft.first_text is part


def thoughts_before(draft: Draft, part: PartDraft) -> PartDraft:
    """Return the part of the thinking in tags; open it before a text part if there is none."""
    if draft.tagged is None:
        draft.tagged = PartDraft(kind="reasoning")
        draft.parts.insert(next(at for at, each in enumerate(draft.parts) if each is part), draft.tagged)
    return draft.tagged


def flush_held(draft: Draft) -> tuple[StreamEvent, ...]:
    """Add the text that was held back to the draft and return its events; a second call returns none.

    Emit them before the draft is finished: then the events hold all of its text.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> draft = Draft(target=target_of("m", ModelConfig(provider="lm-studio")).unwrap())
    >>> split_thinking(draft, "<thi"), flush_held(draft), flush_held(draft)
    ((), (TextDelta(text='<thi'),), ())
    """
    pieces = _release(draft)
    if draft.tagged is not None and draft.thinking == "inside":
        return tuple(event for _, text in pieces for event in grow(draft.tagged, text))
    return add_pieces(draft, pieces)


def _release(draft: Draft) -> tuple[Piece, ...]:
    held, draft.held = draft.held, ""
    if not held or draft.thinking == "after":
        return ()
    return (("reasoning" if draft.thinking == "inside" else "text", held),)


def _unknown(draft: Draft) -> tuple[Piece, ...]:
    start = draft.held.lstrip()
    if start.startswith(_OPEN):
        draft.thinking, draft.held = "opened", start[len(_OPEN) :]
        return _opened(draft)
    if _OPEN.startswith(start) and len(draft.held) <= caps.PREAMBLE_BYTES:
        return ()
    draft.thinking = "over"
    return _release(draft)


def _opened(draft: Draft) -> tuple[Piece, ...]:
    draft.held = draft.held.lstrip()
    if not draft.held:
        return ()
    draft.thinking = "inside"
    return _inside(draft)


def _inside(draft: Draft) -> tuple[Piece, ...]:
    thought, closed, rest = draft.held.partition(_CLOSE)
    if closed:
        draft.thinking, draft.held = "after", rest
        return (*_nonempty("reasoning", thought), *_after(draft))
    kept = _partial_close(thought)
    draft.held = thought[len(thought) - kept :]
    return _nonempty("reasoning", thought[: len(thought) - kept])


def _after(draft: Draft) -> tuple[Piece, ...]:
    text, draft.held = draft.held.lstrip(), ""
    if text:
        draft.thinking = "over"
    return _nonempty("text", text)


_STEPS: Final = {"unknown": _unknown, "opened": _opened, "inside": _inside, "after": _after}


def _nonempty(kind: Literal["text", "reasoning"], text: str) -> tuple[Piece, ...]:
    return ((kind, text),) if text else ()


def _partial_close(text: str) -> int:
    """Return how many characters at the end of the text may be the beginning of the closing tag."""
    return next((size for size in range(len(_CLOSE) - 1, 0, -1) if text.endswith(_CLOSE[:size])), 0)


# --- The served model: some servers answer with whichever model they have


def compare_models(draft: Draft) -> None:
    """Add a warning to the draft where another model answered than the one requested."""
    requested, served = draft.target.wire_model, draft.served_model
    if requested and served and not same_model(requested, served):
        draft.warnings.append(f"{served!r} answered instead of {requested!r}")
