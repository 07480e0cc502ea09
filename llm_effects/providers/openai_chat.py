"""Chat completions, as OpenAI and every compatible server speak them: the request, and the protocol's record."""

import re
from collections.abc import Iterator
from itertools import count
from typing import Final, Literal, TypeAlias

import msgspec
from returns.result import Failure, Result, Success

from llm_effects.providers.base import Provider
from llm_effects.providers.draft import (
    Draft,
    PartDraft,
    Piece,
    add_text,
    compare_models,
    interrupted,
    malformed,
    of_annotations,
    of_sources,
    response_of,
    rest_of,
    sort_thinking,
    take_pieces,
)
from llm_effects.providers.error_mapping import classify, classify_error_object, filtered, request_id
from llm_effects.providers.json_schema import openai_format
from llm_effects.providers.message_encoding import (
    data_url,
    file_name,
    invalid,
    read_out,
    sent_arguments,
    shortened,
    unsendable,
)
from llm_effects.providers.sse import ServerEvent
from llm_effects.providers.target import Target, written
from llm_effects.providers.wire import WireRequest, WireResponse
from llm_effects.values.errors import LLMError
from llm_effects.values.events import StreamEvent, TextDelta, ToolCallDelta
from llm_effects.values.json import Unreadable, items, json_text, parse, record, string, whole
from llm_effects.values.messages import Document, Image, Message, Part, Text, ToolCall, ToolResult, text_of
from llm_effects.values.requests import LLMRequest, Tool, conversation
from llm_effects.values.responses import FinishReason, LLMResponse, Usage

# Tool calls of chat completions, put together from whatever deltas a server sends.


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


# What a message or a delta of chat completions says: text, thinking, tool calls, a refusal.


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


# The short way for nearly all events of a stream: a chunk that holds text and nothing else.
#
# The classes spell out such a chunk: a field of type ``None`` may be there, but must hold nothing. A chunk that
# says more does not fit them, and goes the long way.


class _Delta(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    content: str
    role: str | None = None
    refusal: None = None
    reasoning: None = None
    reasoning_content: None = None
    tool_calls: None = None
    function_call: None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta
    index: Literal[0] = 0
    finish_reason: None = None
    error: None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: tuple[_Choice]
    object: Literal["chat.completion.chunk"]
    usage: None = None
    x_groq: None = None
    error: None = None
    type: None = None


_CHUNK: Final = msgspec.json.Decoder(_Chunk)


def just_text(data: str) -> str:
    """Give the text of a chunk that holds nothing else, and an empty one for any other data.

    >>> just_text('{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hi"}}]}')
    'Hi'
    >>> just_text("[DONE]"), just_text('{"object":"chat.completion.chunk","choices":[{"delta":{"refusal":"No"}}]}')
    ('', '')
    """
    try:
        return _CHUNK.decode(data).choices[0].delta.content
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return ""


# Token counts of chat completions, from the many ways in which servers tell them.


_PROMPT: Final = ("prompt_tokens", "input_tokens")
_ANSWER: Final = ("completion_tokens", "output_tokens")
_READ: Final = ("cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens", "num_cached_tokens")
_WRITTEN: Final = ("cache_write_tokens", "cache_creation_input_tokens")


def usage_of(told: dict[str, object]) -> Usage:
    """Sort the counts into disjoint buckets; what is not told stays unknown.

    >>> usage_of({"prompt_tokens": 100, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 80}})
    Usage(input_tokens=20, cache_read_tokens=80, cache_write_tokens=0, output_tokens=5, reasoning_tokens=0, \
estimated=False)
    """
    prompt, answer = _first(told, _PROMPT), _first(told, _ANSWER)
    asked = {**told, **_numbers(told.get("prompt_tokens_details"))}
    thought = _first({**told, **_numbers(told.get("completion_tokens_details"))}, ("reasoning_tokens",)) or 0
    # some servers count more cached tokens than the prompt has, or thinking beyond the answer: buckets stay disjoint
    read = min(_first(asked, _READ) or 0, prompt or 0)
    written = min(_first(asked, _WRITTEN) or 0, (prompt or 0) - read)
    output = _with_thinking(told, prompt, answer, thought)
    return Usage(
        input_tokens=None if prompt is None else prompt - read - written,
        cache_read_tokens=read,
        cache_write_tokens=written,
        output_tokens=output,
        reasoning_tokens=min(thought, output or 0),
    )


def _with_thinking(told: dict[str, object], prompt: int | None, answer: int | None, thought: int) -> int | None:
    """Most servers count thinking among the answer's tokens; where the total says otherwise, it is added."""
    if prompt is None or answer is None:
        return answer
    return answer + thought if whole(told.get("total_tokens")) == prompt + answer + thought else answer


def _first(told: dict[str, object], names: tuple[str, ...]) -> int | None:
    counts = (whole(told.get(name)) for name in names)
    return next((number for number in counts if number is not None), None)


def _numbers(told: object) -> dict[str, object]:
    return {name: value for name, value in record(told).items() if value is not None}


# Reading chat completions: whole answers and event streams, both by way of one draft.


_Told: TypeAlias = Result[tuple[StreamEvent, ...], LLMError]
_NOTHING: Final[_Told] = Success(())
_DONE: Final = "[DONE]"

_ENDS: Final = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence"), FinishReason.STOP),
    **dict.fromkeys(("length", "max_tokens", "max_length", "model_length"), FinishReason.LENGTH),
    **dict.fromkeys(("tool_calls", "function_call", "tool_use"), FinishReason.TOOL_CALLS),
}
_REFUSALS: Final = ("content_filter", "refusal", "sensitive")
_BREAKDOWNS: Final = frozenset({"error", "abort", "insufficient_system_resource"})


def decode(target: Target, response: WireResponse) -> Result[LLMResponse, LLMError]:
    """Read a whole 2xx answer; an error inside of it is what its own code says."""
    draft = Draft(target=target, request_id=request_id(response.headers))
    body = parse(response.body)
    if isinstance(body, Unreadable):
        return Failure(malformed(draft, f"the answer is not JSON ({body.reason}): is the endpoint right?"))
    answer = record(body)
    _note(draft, answer)
    if _tells_error(answer):
        error = classify_error_object(target, answer, headers=response.headers, received=response.received)
        return Failure(interrupted(draft, error))
    choice = _choice(answer)
    if choice is None:
        return Failure(malformed(draft, "the answer holds no choices: is the endpoint right?"))
    return _whole(draft, choice)


def _whole(draft: Draft, choice: _Object) -> Result[LLMResponse, LLMError]:
    take_delta(draft, record(choice.get("message")) or record(choice.get("delta")), whole=True)
    broken = _end(draft, choice)
    if broken is not None:
        return Failure(broken)
    if draft.finish_reason is None:  # the JSON is complete, so the answer is
        _assume_end(draft)
    return finish(draft)


def decode_event(draft: Draft, event: ServerEvent) -> _Told:
    """Take one event into the draft and tell what it brought; unknown ones, and all after the end, are ignored."""
    if draft.done:
        return _NOTHING
    text = just_text(event.data) if draft.thinking == "over" else ""
    if text:
        add_text(draft, "text", text)
        return Success((TextDelta(text),))
    return _anything(draft, event)


def _anything(draft: Draft, event: ServerEvent) -> _Told:
    if event.data.startswith(_DONE):
        draft.done = True
        return Success(rest_of(draft))
    chunk = parse(event.data)
    if isinstance(chunk, Unreadable):
        return _no_json(draft, event, chunk)
    told = record(chunk)
    _note(draft, told)
    if event.name == "error" or _tells_error(told):
        return Failure(interrupted(draft, classify_error_object(draft.target, told)))
    choice = _choice(told)
    return _NOTHING if choice is None else _taken(draft, choice)


def finish(draft: Draft) -> Result[LLMResponse, LLMError]:
    """Read the draft when the stream has ended: only a finish reason makes a whole answer.

    One that is missing is forgiven where the server counted its tokens and said that it is done.
    """
    rest_of(draft)
    if draft.finish_reason is None and draft.done and draft.usage.output_tokens is not None and draft.parts:
        _assume_end(draft)
    if draft.finish_reason is FinishReason.STOP and any(part.kind == "tool" and part.name for part in draft.parts):
        draft.finish_reason = FinishReason.TOOL_CALLS
    if draft.sources:
        for part in draft.parts:
            part.citations = part.citations or of_sources(draft.sources, part.length)
    compare_models(draft)
    return response_of(draft)


def _taken(draft: Draft, choice: _Object) -> _Told:
    delta = choice.get("delta")
    if delta is None and not draft.parts:  # some servers send the whole message as their only event
        delta = choice.get("message")
    events = take_delta(draft, record(delta))
    if not choice.get("finish_reason") and "error" not in choice:
        return Success(events) if events else _NOTHING
    broken = _end(draft, choice)
    return Success((*events, *rest_of(draft))) if broken is None else Failure(broken)


def _choice(answer: _Object) -> _Object | None:
    """The first choice: where several were asked for, the others are not ours."""
    for told in items(answer.get("choices")):
        choice = record(told)
        if not choice.get("index"):
            return choice
    return None


def _note(draft: Draft, told: _Object) -> None:
    if draft.served_model is None:
        draft.served_model = string(told.get("model")) or None
    if draft.request_id is None:
        draft.request_id = string(told.get("id")) or None
    if told.get("citations"):
        draft.sources = items(told["citations"])
    usage = told.get("usage")
    if usage is None and "x_groq" in told:
        usage = record(told["x_groq"]).get("usage")
    if usage:
        draft.usage = usage_of(record(usage))


def _end(draft: Draft, choice: _Object) -> LLMError | None:
    """Note the first word for the end; some words, and an error in the choice, are a failure instead."""
    word = string(choice.get("finish_reason"))
    if choice.get("error") or word in _BREAKDOWNS:
        told = choice.get("error") or {"message": f"the model stopped with {word!r}", "status": 500}
        return interrupted(draft, classify_error_object(draft.target, told))
    if word.startswith(_REFUSALS):
        draft.refusal = draft.refusal or filtered(choice.get("content_filter_results")) or word
    if word and draft.finish_reason is None:
        draft.finish_reason = _ENDS.get(word, FinishReason.STOP)
        if word not in _ENDS and not draft.refusal:
            draft.warnings.append(f"the finish reason {word!r} is not known and was read as 'stop'")
    return None


def _assume_end(draft: Draft) -> None:
    draft.finish_reason = FinishReason.STOP
    draft.warnings.append("the server gave no finish reason: it was taken as 'stop'")


def _no_json(draft: Draft, event: ServerEvent, why: Unreadable) -> _Told:
    if event.name == "error":
        return Failure(interrupted(draft, classify_error_object(draft.target, event.data)))
    return Failure(malformed(draft, f"an event is not JSON: {why.reason}")) if event.data.strip() else _NOTHING


def _tells_error(told: _Object) -> bool:
    return bool(told.get("error")) or told.get("object") == "error" or told.get("type") == "error"


# The messages of a request as chat completions write them.


def turns_of(request: LLMRequest) -> list[_Object]:
    """Write the system text first, then every message; thinking is not sent back.

    >>> turns_of(LLMRequest(prompt="hi", system="Be brief."))
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'hi'}]
    """
    system: list[_Object] = [{"role": "system", "content": request.system}] if request.system else []
    return [*system, *(turn for message in conversation(request) for turn in _turns(message))]


def _turns(message: Message) -> Iterator[_Object]:
    """A message is one turn, but each tool's result stands alone, before what is said about it."""
    results = [part for part in message.parts if isinstance(part, ToolResult)]
    for result in results:
        yield {"role": "tool", "tool_call_id": result.call_id, "content": result.content}
    rest = tuple(read_out(part) for part in message.parts if isinstance(part, Text | Image | Document | ToolCall))
    if rest:
        yield _assistant(rest) if message.role == "assistant" else _speaker(message, rest)


def _speaker(message: Message, parts: tuple[Part, ...]) -> _Object:
    role = "system" if message.role == "system" else "user"
    if any(isinstance(part, Image | Document) for part in parts):
        return {"role": role, "content": [_block(part) for part in parts if isinstance(part, Text | Image | Document)]}
    return {"role": role, "content": text_of(parts)}


def _assistant(parts: tuple[Part, ...]) -> _Object:
    calls = [_call(part) for part in parts if isinstance(part, ToolCall)]
    text = text_of(parts)
    if not calls:
        return {"role": "assistant", "content": text}
    return {"role": "assistant", "content": text or None, "tool_calls": calls}


def _call(call: ToolCall) -> _Object:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": sent_arguments(call.arguments)},
    }


def _block(part: Text | Image | Document) -> _Object:
    match part:
        case Text():
            return {"type": "text", "text": part.text}
        case Image():
            return {"type": "image_url", "image_url": {"url": data_url(part)}}
        case Document():
            return {"type": "file", "file": {"filename": file_name(part), "file_data": data_url(part)}}


_SAMPLING: Final = ("temperature", "top_p")
# Since GPT-5.4, OpenAI takes tools over chat completions only from a model that does not reason.
_TOOLS_OR_REASONING: Final = re.compile(r"gpt-(?:5\.[4-9]|[6-9])")


def encode(target: Target, request: LLMRequest, stream: bool) -> Result[WireRequest, LLMError]:
    """Write the request; what the model is known to refuse is left out, with a warning; what none takes is an error.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> target = target_of("mini", ModelConfig(provider="ollama", model="qwen3")).unwrap()
    >>> encode(target, LLMRequest(prompt="hi"), False).unwrap().body
    b'{"model":"qwen3","messages":[{"role":"user","content":"hi"}]}'
    """
    turns = turns_of(shortened(request) if target.preset.short_call_ids else request)
    problem = unsendable(request, turns)
    if problem is not None:
        return Failure(invalid(target, request, problem))
    settings, excluded = _settings(target, request)
    tools, changed = _tools(target, request)
    form, told = _answer_format(target, request)
    body: _Object = {
        **({"model": target.wire_model} if target.wire_model else {}),
        "messages": turns,
        **settings,
        **tools,
        **form,
        **(_streaming(target) if stream else {}),
    }
    return written(target, "/chat/completions", body, (*excluded, *changed, *told))


def _streaming(target: Target) -> _Object:
    asked = {"stream_options": {"include_usage": True}} if target.preset.stream_usage else {}
    return {"stream": True, **asked}


def _settings(target: Target, request: LLMRequest) -> tuple[_Object, tuple[str, ...]]:
    wanted, able = request.preferences, target.capabilities
    temperature = target.config.temperature if wanted.temperature is None else wanted.temperature
    given = {
        target.preset.limit_field: wanted.max_tokens or target.config.max_tokens,
        "temperature": temperature,
        "top_p": wanted.top_p,
        "stop": wanted.stop or None,
        target.preset.seed_field or "seed": wanted.seed,
        "reasoning_effort": wanted.reasoning_effort,
    }
    refused = (
        *(_SAMPLING if able.sampling is False else ()),
        *(("reasoning_effort",) if able.reasoning is False else ()),
        *(("seed",) if target.preset.seed_field is None else ()),
    )
    excluded = tuple(
        f"{name} was left out: {target.name} does not take it" for name in refused if given[name] is not None
    )
    return {name: value for name, value in given.items() if value is not None and name not in refused}, excluded


def _tools(target: Target, request: LLMRequest) -> tuple[_Object, tuple[str, ...]]:
    if not request.tools:
        return {}, ()
    choice, tools, warnings = _tool_choice(target, request)
    effort, quiet = _effort(target, request)
    return {"tools": [_tool(tool) for tool in tools], **choice, **effort}, (*warnings, *quiet)


def _tool_choice(target: Target, request: LLMRequest) -> tuple[_Object, tuple[Tool, ...], tuple[str, ...]]:
    chosen = request.tool_choice
    if chosen is None or chosen in {"auto", "none", "required"}:
        return ({} if chosen is None else {"tool_choice": chosen}), request.tools, ()
    if target.preset.named_tool_choice:
        return {"tool_choice": {"type": "function", "function": {"name": chosen}}}, request.tools, ()
    only = tuple(tool for tool in request.tools if tool.name == chosen)
    why = f"tool_choice {chosen!r} was sent as 'required', with this tool alone: {target.preset.name} takes no names"
    return {"tool_choice": "required"}, only, (why,)


def _effort(target: Target, request: LLMRequest) -> tuple[_Object, tuple[str, ...]]:
    model = target.wire_model or ""
    if target.preset.family != "gpt" or not _TOOLS_OR_REASONING.match(model):
        return {}, ()
    told = request.preferences.reasoning_effort not in {None, "none"}
    why = f"reasoning_effort was sent as 'none': over chat completions {model} takes tools only so"
    return {"reasoning_effort": "none"}, ((why,) if told else ())


def _tool(tool: Tool) -> _Object:
    described = {"description": tool.description} if tool.description else {}
    return {"type": "function", "function": {"name": tool.name, **described, "parameters": tool.parameters}}


def _answer_format(target: Target, request: LLMRequest) -> tuple[_Object, tuple[str, ...]]:
    if request.response_schema is None:
        return {}, ()
    form, told = openai_format(target, request.response_schema)
    return {"response_format": {"type": "json_schema", "json_schema": form}}, told


OPENAI_CHAT: Final = Provider(encode=encode, decode=decode, classify=classify, decode_event=decode_event, finish=finish)
"""The protocol of ``/chat/completions``."""
