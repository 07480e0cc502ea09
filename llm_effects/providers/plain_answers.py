"""Plain answers, of text and tool calls and nothing else, decoded in one pass; and the token counts of all answers.

Nearly all answers and nearly all events of a stream are plain. The classes spell out what such an answer may hold: a
field of type ``None`` may be present but must be null. Whatever does not match them is left to the tolerant readers
of the protocols. What does match gives the same result there, in three to five times the time, with one exception: in
fields that nothing reads, a number beyond the range of a float, or a depth of up to twice ``caps.NESTING`` in an event,
is no error here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, ClassVar, Final, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec
from attrs import evolve

from llm_effects.providers.response_headers import request_id
from llm_effects.providers.sse import ServerEvent
from llm_effects.providers.target import Target, hide_keys, redact_name, same_model
from llm_effects.providers.wire import WireResponse
from llm_effects.values import caps
from llm_effects.values.json import as_count, as_object, as_string, as_tokens, json_text
from llm_effects.values.messages import Text, ToolCall
from llm_effects.values.responses import NO_USAGE, FinishReason, LLMResponse, ServiceTier, Usage

# --- Token counts, under the many names that servers use

_PROMPT: Final = ("prompt_tokens", "input_tokens")
_OUTPUT: Final = ("completion_tokens", "output_tokens")
_CACHE_READ: Final = ("cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens", "num_cached_tokens")
_CACHE_WRITE: Final = ("cache_write_tokens", "cache_creation_input_tokens")
_THINKING: Final = ("reasoning_tokens",)


def openai_usage(
    usage: dict[str, object], asked: str = "prompt_tokens_details", answered: str = "completion_tokens_details"
) -> Usage:
    """Sort the counts into disjoint buckets; a missing count stays unknown.

    ``asked`` and ``answered`` name the tables of details, whose counts take precedence.

    >>> openai_usage({"prompt_tokens": 100, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 80}})
    Usage(input_tokens=20, cache_read_tokens=80, output_tokens=5)
    """
    prompt, output = _first_count(_PROMPT, usage), _first_count(_OUTPUT, usage)
    details = as_object(usage.get(asked))
    thinking = _first_count(_THINKING, as_object(usage.get(answered)), usage) or 0
    # Some servers count more cached tokens than the prompt has, or more thinking than output: keep buckets disjoint.
    read = min(_first_count(_CACHE_READ, details, usage) or 0, prompt or 0)
    written = min(_first_count(_CACHE_WRITE, details, usage) or 0, (prompt or 0) - read)
    output = _with_thinking(usage, prompt, output, thinking)
    return Usage(
        input_tokens=None if prompt is None else prompt - read - written,
        cache_read_tokens=read,
        cache_write_tokens=written,
        output_tokens=output,
        reasoning_tokens=min(thinking, output or 0),
    )


def _with_thinking(usage: dict[str, object], prompt: int | None, output: int | None, thinking: int) -> int | None:
    """Add the thinking where the total shows that the output does not include it, as it does on most servers."""
    if not thinking or prompt is None or output is None:
        return output
    return output + thinking if as_tokens(usage.get("total_tokens")) == prompt + output + thinking else output


def _first_count(names: tuple[str, ...], *tables: dict[str, object]) -> int | None:
    """Return the count under the first name that has one; of a name in several tables, only the first value counts."""
    for name in names:  # plain loops: a generator costs as much again, four times an answer
        for table in tables:
            value = table.get(name)
            if value is not None:
                number = as_tokens(value)
                if number is not None:
                    return number
                break
    return None


def responses_usage(usage: dict[str, object]) -> Usage:
    """Sort the counts of OpenAI's Responses, whose tables of details have other names.

    >>> responses_usage({"input_tokens": 9, "output_tokens": 5, "output_tokens_details": {"reasoning_tokens": 4}})
    Usage(input_tokens=9, output_tokens=5, reasoning_tokens=4)
    """
    return openai_usage(usage, "input_tokens_details", "output_tokens_details")


_TIERS: Final[Mapping[object, ServiceTier]] = {"flex": "flex", "priority": "priority", "fast": "priority"}


def with_tier(usage: Usage, target: Target, tier: object) -> Usage:
    """Return a usage with the service tier of the answer, if it is one that OpenAI prices.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> gpt = target_of("gpt", ModelConfig(provider="openai", model="gpt-6-luna", api_key="k")).unwrap()
    >>> with_tier(Usage(output_tokens=5), gpt, "fast").service_tier, with_tier(Usage(), gpt, "default").service_tier
    ('priority', None)
    """
    if not isinstance(tier, str) or tier not in _TIERS or target.preset.family != "gpt":
        return usage
    return evolve(usage, service_tier=_TIERS[tier])


def anthropic_usage(counts: dict[str, object], before: Usage = NO_USAGE) -> Usage:
    """Replace the counts that are present: they are cumulative. Input tokens exclude those of the cache.

    >>> anthropic_usage({"output_tokens": 15}, Usage(input_tokens=25, output_tokens=1))
    Usage(input_tokens=25, output_tokens=15)
    """
    thinking = as_object(counts.get("output_tokens_details")).get("thinking_tokens")
    written = _latest(before.cache_write_tokens, counts.get("cache_creation_input_tokens"))
    for_an_hour = as_object(counts.get("cache_creation")).get("ephemeral_1h_input_tokens")
    return Usage(
        input_tokens=_latest(before.input_tokens, counts.get("input_tokens")),
        cache_read_tokens=_latest(before.cache_read_tokens, counts.get("cache_read_input_tokens")),
        cache_write_tokens=written,
        cache_write_1h_tokens=min(written, _latest(before.cache_write_1h_tokens, for_an_hour)),
        service_tier="batch" if counts.get("service_tier") == "batch" else before.service_tier,
        output_tokens=_latest(before.output_tokens, counts.get("output_tokens")),
        reasoning_tokens=_latest(before.reasoning_tokens, thinking),
    )


_Count = TypeVar("_Count", bound=int | None)


def _latest(before: _Count, value: object) -> int | _Count:
    count = as_tokens(value)
    return before if count is None else count


# --- Whole answers

_Nothing: TypeAlias = Annotated[list[object], msgspec.Meta(max_length=0)] | None
_Object: TypeAlias = dict[str, object]
_Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=caps.NAME_CHARACTERS)]
_Answer = TypeVar("_Answer")


_PROBLEMS: Final = (msgspec.DecodeError, UnicodeError, RecursionError)


def _read_body(kind: type[_Answer], body: bytes) -> _Answer | None:
    """Return a body that matches a type, unless it is long or may be nested too deeply."""
    if len(body) > caps.STEP_BYTES or body.count(b"{") + body.count(b"[") > caps.NESTING:
        return None
    try:
        return msgspec.json.decode(body.decode(), type=kind)  # as a text: it does not check bytes that it skips
    except _PROBLEMS:
        return None


def _may_think(text: str) -> bool:
    """Return whether a text is empty or may begin with thinking in tags, after white space."""
    begins = text[:1]
    return not begins or begins == "<" or begins.isspace()


_shown: Final = lru_cache(maxsize=1024)(redact_name)  # of names, which recur: a microsecond and a half less


@lru_cache(maxsize=1024)
def _other_model(target: Target, served: str) -> bool:
    requested = target.wire_model
    return bool(served and requested and served != requested and not same_model(requested, served))


# Chat completions


class _Function(msgspec.Struct, gc=False):
    name: str
    arguments: str


class _FunctionCall(msgspec.Struct, gc=False):
    id: str
    function: _Function
    extra_content: None = None


class _Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    content: str | None = None
    role: str | None = None
    refusal: None = None
    annotations: _Nothing = None
    tool_calls: list[_FunctionCall] | None = None
    function_call: None = None
    audio: None = None
    reasoning: None = None
    reasoning_content: None = None


class _Choice(msgspec.Struct, gc=False):
    message: _Message
    finish_reason: Literal["stop", "length", "tool_calls"]
    index: Literal[0] | None = None
    error: None = None


class _Completion(msgspec.Struct, gc=False):
    choices: tuple[_Choice]
    object: Literal["chat.completion"]
    id: str = ""
    model: _Name = ""
    usage: _Object | None = None
    service_tier: str | None = None
    citations: None = None
    x_groq: None = None
    error: None = None
    type: None = None


_FINISH_REASONS: Final = {
    "stop": FinishReason.STOP,
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "tool_use": FinishReason.TOOL_CALLS,
}


def plain_completion(target: Target, response: WireResponse) -> LLMResponse | None:
    """Return the answer in a plain chat completion; ``None`` for any other body."""
    answer = _read_body(_Completion, response.body)
    if answer is None or _other_model(target, answer.model):
        return None
    message, reason = answer.choices[0].message, answer.choices[0].finish_reason
    calls = [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()]
    content = _Content(message.content or "", calls, "tool_calls" if calls and reason == "stop" else reason)
    usage = with_tier(openai_usage(answer.usage), target, answer.service_tier) if answer.usage else NO_USAGE
    return _response(target, content, usage, model=answer.model, exchange=request_id(response.headers) or answer.id)


class _Content(NamedTuple):
    """The text of an answer, the ids, names and arguments of its calls, and the reason why it ended."""

    text: str
    calls: Sequence[tuple[str, str, str]]
    reason: str


def _is_plain(target: Target, content: _Content) -> bool:
    """Return whether the text and the calls of an answer, at least one of them, need no further thought."""
    text, calls, _ = content
    if (text or not calls) and _may_think(text):
        return False
    return not calls or (len(calls) <= target.config.max_tool_calls and _are_named(calls))


def _are_named(calls: Sequence[tuple[str, str, str]]) -> bool:
    names = [name for call_id, name, _ in calls for name in (call_id, name)]
    return all(name and name == name.strip() for name in names) and len({*names[::2]}) == len(calls)


def _response(
    target: Target, content: _Content, usage: Usage, *, model: str, exchange: str | None
) -> LLMResponse | None:
    if not _is_plain(target, content):
        return None
    text, calls = hide_keys(target, content.text), tuple(_tool_calls(target, content))
    return LLMResponse(
        content=text,
        parts=(Text(text), *calls) if text else calls,
        model=target.name,
        served_model=_shown(target, model),
        provider=target.preset.name,
        finish_reason=_FINISH_REASONS[content.reason],
        usage=usage,
        request_id=redact_name(target, exchange),
    )


def _tool_calls(target: Target, content: _Content) -> Iterator[ToolCall]:
    for call_id, name, arguments in content.calls:
        yield ToolCall(hide_keys(target, call_id), hide_keys(target, name), hide_keys(target, arguments))


# Responses: thinking of which nothing is shown and nothing goes back leaves no part


class _OutputText(msgspec.Struct, gc=False):
    text: str
    type: Literal["output_text"]
    annotations: _Nothing = None


class _OutputMessage(msgspec.Struct, tag="message", gc=False):
    content: tuple[_OutputText]


class _OutputCall(msgspec.Struct, tag="function_call", gc=False):
    call_id: str
    name: str
    arguments: str


class _OutputThought(msgspec.Struct, tag="reasoning", gc=False):
    summary: _Nothing = None
    content: _Nothing = None
    encrypted_content: Literal[""] | None = None


class _Output(msgspec.Struct, gc=False):
    output: Annotated[list[_OutputMessage | _OutputCall | _OutputThought], msgspec.Meta(max_length=64)]
    status: Literal["completed"]
    object: Literal["response"]
    id: str = ""
    model: _Name = ""
    usage: _Object | None = None
    service_tier: str | None = None
    incomplete_details: None = None
    error: None = None
    type: None = None


def plain_output(target: Target, response: WireResponse) -> LLMResponse | None:
    """Return the answer in a plain body of Responses; ``None`` for any other body."""
    answer = _read_body(_Output, response.body)
    if answer is None or _other_model(target, answer.model):
        return None
    match [item for item in answer.output if not isinstance(item, _OutputThought)]:
        case [_OutputMessage(content=(block,)), *items]:
            text = block.text
        case items:
            text = ""
    calls = [(item.call_id, item.name, item.arguments) for item in items if isinstance(item, _OutputCall)]
    if len(calls) < len(items):  # a text after a call, or another one
        return None
    content = _Content(text, calls, "tool_calls" if calls else "stop")
    usage = with_tier(responses_usage(answer.usage), target, answer.service_tier) if answer.usage else NO_USAGE
    return _response(target, content, usage, model=answer.model, exchange=request_id(response.headers) or answer.id)


# Messages


class _TextBlock(msgspec.Struct, tag="text", gc=False):
    text: str
    citations: _Nothing = None


class _CallBlock(msgspec.Struct, tag="tool_use", gc=False):
    id: str
    name: str
    input: _Object | None = None


class _Claude(msgspec.Struct, gc=False):
    content: list[_TextBlock | _CallBlock]
    stop_reason: Literal["end_turn", "stop_sequence", "max_tokens", "tool_use"]
    type: Literal["message"]
    model: _Name = ""
    usage: _Object | None = None
    error: None = None


def plain_message(target: Target, response: WireResponse) -> LLMResponse | None:
    """Return the answer in a plain message of Claude's; ``None`` for any other body."""
    answer = _read_body(_Claude, response.body)
    if answer is None:
        return None
    match answer.content:
        case [_TextBlock(text=text), *blocks]:
            pass
        case blocks:
            text = ""
    calls = [
        (block.id, block.name, json_text(block.input or None) or "{}")
        for block in blocks
        if isinstance(block, _CallBlock)
    ]
    if len(calls) < len(blocks):  # a text after a call, or another one
        return None
    usage = anthropic_usage(answer.usage) if answer.usage else NO_USAGE
    content = _Content(text, calls, answer.stop_reason)
    return _response(target, content, usage, model=answer.model, exchange=request_id(response.headers))


# --- Events of a stream


_SHORT: Final = 4 * caps.NESTING
"""Characters of an event that is not checked for its depth, which takes half a microsecond: it has few levels."""


def _read_event(decoder: msgspec.json.Decoder[_Answer], data: str) -> _Answer | None:
    """Return an event that matches the type of the decoder, unless it is long or may be nested too deeply."""
    if len(data) > _SHORT and (len(data) > caps.STEP_BYTES or data.count("{") + data.count("[") > caps.NESTING):
        return None
    try:
        return decoder.decode(data)
    except _PROBLEMS:
        return None


_Index: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=caps.COUNT)]


# Chat completions


class ChunkDelta(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A piece of text, of tool calls, or of the thinking that is in a field of its own."""

    content: str | None = None
    reasoning_content: str | None = None
    role: str | None = None
    refusal: None = None
    reasoning: None = None
    tool_calls: list[_Object] | None = None
    function_call: None = None


class _ChunkChoice(msgspec.Struct, gc=False):
    delta: ChunkDelta
    index: Literal[0] = 0
    finish_reason: None = None
    error: None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: tuple[_ChunkChoice]
    object: Literal["chat.completion.chunk"]
    usage: None = None
    citations: None = None
    x_groq: None = None
    error: None = None
    type: None = None


_CHUNK_DECODER: Final = msgspec.json.Decoder(_Chunk)


def chunk_delta(event: ServerEvent) -> ChunkDelta | None:
    """Return the piece in a chunk that holds nothing else; ``None`` for any other event.

    >>> data = '{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hi"}}]}'
    >>> chunk_delta(ServerEvent("message", data)).content
    'Hi'
    >>> chunk_delta(ServerEvent("message", "[DONE]"))
    """
    chunk = None if event.name == "error" else _read_event(_CHUNK_DECODER, event.data)
    return None if chunk is None else chunk.choices[0].delta


def plain_texts(events: Iterable[ServerEvent]) -> list[str]:
    """Return the texts of the chunks that hold nothing else, up to the first other event.

    >>> data = '{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hi"}}]}'
    >>> plain_texts([ServerEvent("message", each) for each in (data, data, "[DONE]", data)])
    ['Hi', 'Hi']
    """
    texts = list[str]()
    try:
        for event in events:
            if event.name == "error" or len(event.data) > _SHORT:
                break
            delta = _CHUNK_DECODER.decode(event.data).choices[0].delta
            if not delta.content or delta.reasoning_content is not None or delta.tool_calls:
                break
            texts.append(delta.content)
    except _PROBLEMS:
        pass  # no chunk, or one that holds more
    return texts


# Responses


Slot: TypeAlias = int | str
"""The index of an item in the answer, or its id where the server sends no index."""


class OutputDelta(msgspec.Struct, gc=False):
    """A piece of one item of the output: text, thinking or arguments, by the type of the event."""

    type: str
    delta: str
    output_index: _Index | None = None
    item_id: str = ""
    summary_index: _Index | None = None
    content_index: _Index | None = None
    object: None = None
    error: None = None

    @classmethod
    def of(cls, kind: str, event: _Object) -> OutputDelta:
        """Return what an event of this kind holds; whatever is missing or malformed counts as empty."""
        names = ("output_index", "summary_index", "content_index")
        output, summary, content = (as_count(event.get(name)) for name in names)
        piece, item = as_string(event.get("delta")), as_string(event.get("item_id"))
        return cls(kind, piece, output, item, summary, content)

    @property
    def slot(self) -> Slot:
        """The index of the item, or its id without an index: some servers change ids from event to event."""
        return self.item_id if self.output_index is None else self.output_index


_DELTA_DECODER: Final = msgspec.json.Decoder(OutputDelta)


def output_delta(event: ServerEvent) -> OutputDelta | None:
    """Return an event of Responses that holds a piece of the output; ``None`` for any other.

    >>> output_delta(ServerEvent("message", '{"type":"response.output_text.delta","delta":"Hi"}')).delta
    'Hi'
    >>> output_delta(ServerEvent("message", "[DONE]"))
    """
    if event.name.endswith(".delta") or event.name == "message":  # the default, where a server names no events
        return _read_event(_DELTA_DECODER, event.data)
    return None


# Messages


class _TextPiece(msgspec.Struct, tag="text_delta", rename={"piece": "text"}, gc=False):
    kind: ClassVar[str] = "text_delta"
    piece: str


class _ThinkingPiece(msgspec.Struct, tag="thinking_delta", rename={"piece": "thinking"}, gc=False):
    kind: ClassVar[str] = "thinking_delta"
    piece: str


class _ArgumentsPiece(msgspec.Struct, tag="input_json_delta", rename={"piece": "partial_json"}, gc=False):
    kind: ClassVar[str] = "input_json_delta"
    piece: str


class BlockDelta(msgspec.Struct, gc=False):
    """A piece of one block of a message."""

    type: Literal["content_block_delta"]
    delta: _TextPiece | _ThinkingPiece | _ArgumentsPiece
    index: _Index
    error: None = None


_BLOCK_DECODER: Final = msgspec.json.Decoder(BlockDelta)


def block_delta(event: ServerEvent) -> BlockDelta | None:
    """Return an event of the Messages API that holds a piece of a block; ``None`` for any other.

    >>> data = '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}}'
    >>> block_delta(ServerEvent("content_block_delta", data)).delta.piece
    'Hi'
    """
    return _read_event(_BLOCK_DECODER, event.data) if event.name == "content_block_delta" else None
