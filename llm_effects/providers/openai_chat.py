"""Chat completions, the protocol of OpenAI and of every compatible server."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Final

from returns.result import Failure, Result, Success

from llm_effects.providers.base import Provider
from llm_effects.providers.draft import (
    NO_EVENTS,
    Draft,
    Events,
    Object,
    PartDraft,
    Piece,
    add_pieces,
    add_text,
    citations_of_annotations,
    citations_of_sources,
    cite,
    compare_models,
    decode_answer,
    flush_held,
    malformed,
    not_json,
    note_unread,
    refuse,
    reported_error,
    response_of,
    split_thinking,
)
from llm_effects.providers.error_mapping import classify, filtered_categories
from llm_effects.providers.message_encoding import (
    NO_SETTINGS,
    Sealed,
    Settings,
    collect_sealed,
    data_url,
    encode_arguments,
    file_name,
    inline_document,
    invalid,
    merge_settings,
    message_problem,
    output_limit,
    own_origin,
    sampling,
    seal_call,
    seal_message,
    shorten_call_ids,
    tool_head,
    unseal,
)
from llm_effects.providers.plain_answers import (
    ChunkDelta,
    chunk_delta,
    openai_usage,
    plain_completion,
    plain_texts,
    with_tier,
)
from llm_effects.providers.prompt_caching import cache_key_of
from llm_effects.providers.sse import ServerEvent
from llm_effects.providers.target import Target, openai_request
from llm_effects.providers.wire import WireRequest, WireResponse
from llm_effects.values import caps
from llm_effects.values.errors import LLMError
from llm_effects.values.events import ReasoningDelta, StreamEvent, TextDelta, ToolCallDelta
from llm_effects.values.json import Unreadable, as_count, as_list, as_object, as_string, has_error, json_text, parse
from llm_effects.values.messages import Document, Image, Message, Origin, Part, Text, ToolCall, ToolResult, text_of
from llm_effects.values.requests import LLMRequest, Tool
from llm_effects.values.responses import FinishReason, LLMResponse

# === Encoding requests


def encode(target: Target, request: LLMRequest, stream: bool) -> Result[WireRequest, LLMError]:
    """Encode a request for ``/chat/completions``.

    Settings that the model does not accept are dropped, with a warning; messages that cannot be sent are an error.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> target = target_of("mini", ModelConfig(provider="ollama", model="qwen3")).unwrap()
    >>> encode(target, LLMRequest(prompt="hi"), False).unwrap().body
    b'{"model":"qwen3","messages":[{"role":"user","content":"hi"}]}'
    """
    shortened = shorten_call_ids(request) if target.preset.short_call_ids else request
    turns = encode_messages(shortened, own_origin(target))
    problem = message_problem(request, turns)
    if problem is not None:
        return Failure(invalid(target, request, problem))
    settings, warnings = merge_settings(encoder(target, request) for encoder in (_preferences, _tools, _answer_format))
    body = {
        **({"model": target.wire_model} if target.wire_model else {}),
        "messages": turns,
        **settings,
        **(cache_key_of(target, request) if request.conversation else {}),
        **(_streaming(target) if stream else {}),
    }
    return Success(openai_request(target, "/chat/completions", body, warnings))


def _streaming(target: Target) -> Object:
    return {"stream": True, **({"stream_options": {"include_usage": True}} if target.preset.stream_usage else {})}


# --- Messages


def encode_messages(request: LLMRequest, origin: Origin | None = None) -> list[Object]:
    """Encode the system text, then every message; only the sealed thinking of the ``origin`` is sent back, to itself.

    >>> encode_messages(LLMRequest(prompt="hi", system="Be brief."))
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'hi'}]
    """
    system: list[Object] = [{"role": "system", "content": request.system}] if request.system else []
    if request.prompt is not None:
        return [*system, {"role": "user", "content": request.prompt}]
    return [*system, *(turn for message in request.messages for turn in _turns(message, origin))]


def _turns(message: Message, origin: Origin | None) -> Iterator[Object]:
    """Yield a turn for each tool result, then one for the rest of the message."""
    only = message.parts[0] if len(message.parts) == 1 else None
    if isinstance(only, Text):  # as nearly every message: 0.5 microseconds instead of 2.5
        yield {"role": message.role if message.role in {"assistant", "system"} else "user", "content": only.text}
        return
    for part in message.parts:
        if isinstance(part, ToolResult):
            yield {"role": "tool", "tool_call_id": part.call_id, "content": part.content}
    rest = tuple(
        inline_document(part) for part in message.parts if isinstance(part, Text | Image | Document | ToolCall)
    )
    if rest and message.role == "assistant":
        yield _assistant_turn(rest, *unseal(message.parts, origin))
    elif rest:
        yield _user_turn(message, rest)


def _user_turn(message: Message, parts: tuple[Part, ...]) -> Object:
    role = "system" if message.role == "system" else "user"
    if any(isinstance(part, Image | Document) for part in parts):
        return {"role": role, "content": [_block(part) for part in parts if isinstance(part, Text | Image | Document)]}
    return {"role": role, "content": text_of(parts)}


def _block(part: Text | Image | Document) -> Object:
    match part:
        case Text():
            return {"type": "text", "text": part.text}
        case Image():
            return {"type": "image_url", "image_url": {"url": data_url(part)}}
        case Document():
            return {"type": "file", "file": {"filename": file_name(part), "file_data": data_url(part)}}


def _assistant_turn(parts: tuple[Part, ...], sealed: Sealed, of_calls: Mapping[str, Sealed]) -> Object:
    calls = [{**_call(part), **of_calls.get(part.id, {})} for part in parts if isinstance(part, ToolCall)]
    text = text_of(parts)
    if not calls:
        return {"role": "assistant", "content": text, **sealed}
    return {"role": "assistant", "content": text or None, "tool_calls": calls, **sealed}


def _call(call: ToolCall) -> Object:
    function = {"name": call.name, "arguments": encode_arguments(call.arguments)}
    return {"id": call.id, "type": "function", "function": function}


# --- Settings

# Since GPT-5.4, OpenAI accepts tools over chat completions only from a model that does not reason.
_TOOLS_OR_REASONING: Final = re.compile(r"gpt-(?:5\.[4-9]|[6-9])")


def _preferences(target: Target, request: LLMRequest) -> Settings:
    preferences, capabilities, preset = request.preferences, target.capabilities, target.preset
    values = {
        preset.limit_field: output_limit(target, request),
        **sampling(target, request),
        "stop": preferences.stop or None,
        preset.seed_field or "seed": preferences.seed,
        "reasoning_effort": preferences.reasoning_effort,
    }
    refused = (
        *(("temperature", "top_p") if capabilities.sampling is False else ()),
        *(("reasoning_effort",) if capabilities.reasoning is False else ()),
        *(("seed",) if preset.seed_field is None else ()),
    )
    dropped = (name for name in refused if values.get(name) is not None)
    fields = {name: value for name, value in values.items() if value is not None and name not in refused}
    return fields, tuple(f"{name}: dropped, {target.name} does not accept it" for name in dropped)


def _tools(target: Target, request: LLMRequest) -> Settings:
    if not request.tools:
        return NO_SETTINGS
    choice, tools, choice_warnings = _tool_choice(target, request)
    effort, effort_warnings = _reasoning_off(target, request)
    return {"tools": [_tool(tool) for tool in tools], **choice, **effort}, (*choice_warnings, *effort_warnings)


def _tool(tool: Tool) -> Object:
    return {"type": "function", "function": {**tool_head(tool), "parameters": tool.parameters}}


def _tool_choice(target: Target, request: LLMRequest) -> tuple[Object, tuple[Tool, ...], tuple[str, ...]]:
    choice = request.tool_choice
    if choice is None or choice in {"auto", "none", "required"}:
        return ({} if choice is None else {"tool_choice": choice}), request.tools, ()
    if target.preset.named_tool_choice:
        return {"tool_choice": {"type": "function", "function": {"name": choice}}}, request.tools, ()
    only = tuple(tool for tool in request.tools if tool.name == choice)
    reason = f"{target.preset.name} does not accept the name of a tool"
    return (
        {"tool_choice": "required"},
        only,
        (f"tool_choice: {choice!r} is sent as 'required' with this tool, {reason}",),
    )


def _reasoning_off(target: Target, request: LLMRequest) -> Settings:
    model = target.wire_model or ""
    if target.preset.family != "gpt" or not _TOOLS_OR_REASONING.match(model):
        return NO_SETTINGS
    effort = request.preferences.reasoning_effort
    reason = f"{model} accepts tools over chat completions only without reasoning"
    warnings = () if effort in {None, "none"} else (f"reasoning_effort: {effort} is sent as none, {reason}",)
    return {"reasoning_effort": "none"}, warnings


def _answer_format(target: Target, request: LLMRequest) -> Settings:
    if request.response_schema is None:
        return NO_SETTINGS
    from llm_effects.providers.json_schema import openai_format  # 3 ms, for requests of typed answers alone

    form, warnings = openai_format(target, request.response_schema)
    return {"response_format": {"type": "json_schema", "json_schema": form}}, warnings


# === Decoding whole answers


def decode(target: Target, response: WireResponse) -> Result[LLMResponse, LLMError]:
    """Decode a whole 2xx answer; an error inside it is classified by its own code."""
    plain = plain_completion(target, response)
    return decode_answer(target, response, _read_answer) if plain is None else Success(plain)


def _read_answer(draft: Draft, answer: Object, response: WireResponse) -> Result[LLMResponse, LLMError]:
    _add_metadata(draft, answer)
    if has_error(answer):
        return Failure(reported_error(draft, answer, response))
    choice = _first_choice(answer)
    if choice is None:
        return Failure(malformed(draft, "the answer has no choices: check the endpoint"))
    _add_content(draft, as_object(choice.get("message")) or as_object(choice.get("delta")), complete=True)
    error = _add_end(draft, choice)
    if error is not None:
        return Failure(error)
    if draft.finish_reason is None:  # the JSON is complete, so the answer is too
        _assume_end(draft)
    return finish(draft)


# === Decoding streams

_DONE: Final = "[DONE]"


def read_texts(draft: Draft, events: Iterable[ServerEvent]) -> list[str]:
    """Add the events to the draft that hold text and nothing else, up to the first other one; return their texts.

    Most events do. This takes 0.5 microseconds for each, half of the time of ``decode_event``.
    """
    plain = draft.thinking == "over" and draft.served_model and draft.request_id and not draft.done
    texts = plain_texts(events) if plain else []
    if texts:
        add_text(draft, "text", *texts)
    return texts


def decode_event(draft: Draft, event: ServerEvent) -> Events:
    """Add an event to the draft and return the events to emit; ignore unknown events and all after the end."""
    if draft.done:
        return NO_EVENTS
    delta = chunk_delta(event) if draft.served_model and draft.request_id else None  # else the event may have them
    events = None if delta is None else _add_piece(draft, delta)
    return _decode_any_event(draft, event) if events is None else Success(events)


def _add_piece(draft: Draft, delta: ChunkDelta) -> tuple[StreamEvent, ...] | None:
    """Add a piece of one kind and return its events; leave several kinds, and text that may hold tags, undone."""
    text, thought, calls = delta.content, delta.reasoning_content, delta.tool_calls  # ``match`` takes thrice as long
    if text:
        if thought is not None or calls or draft.thinking != "over":
            return None
        add_text(draft, "text", text)
        return (TextDelta(text),)
    if calls:
        return None if thought is not None or draft.held else tuple(_add_calls(draft, calls, complete=False))
    if thought:
        draft.sealed.setdefault("reasoning_content", []).append(thought)
        add_text(draft, "reasoning", thought)
        return (ReasoningDelta(thought),)
    return None


def _decode_any_event(draft: Draft, event: ServerEvent) -> Events:
    if event.data.startswith(_DONE):
        draft.done = True
        return Success(flush_held(draft))
    value = parse(event.data)
    if isinstance(value, Unreadable):
        return not_json(draft, event, value)
    chunk = as_object(value)
    _add_metadata(draft, chunk)
    if event.name == "error" or has_error(chunk):
        return Failure(reported_error(draft, chunk))
    choice = _first_choice(chunk)
    return NO_EVENTS if choice is None else _decode_choice(draft, choice)


def _decode_choice(draft: Draft, choice: Object) -> Events:
    delta = choice.get("delta")
    if delta is None and not draft.parts:  # some servers send the whole message as their only event
        delta = choice.get("message")
    events = _add_content(draft, as_object(delta))
    if not choice.get("finish_reason") and "error" not in choice:
        return Success(events) if events else NO_EVENTS
    error = _add_end(draft, choice)
    return Success((*events, *flush_held(draft))) if error is None else Failure(error)


def finish(draft: Draft) -> Result[LLMResponse, LLMError]:
    """Read the draft at the end of the stream: only a finish reason makes a whole answer.

    A missing one is forgiven if the server counted its tokens and sent its last event.
    """
    flush_held(draft)
    if draft.finish_reason is None and draft.done and draft.usage.output_tokens is not None and draft.parts:
        _assume_end(draft)
    if draft.finish_reason is FinishReason.STOP and any(call.name for call in draft.calls):
        draft.finish_reason = FinishReason.TOOL_CALLS
    _seal(draft)
    _add_citations(draft)
    compare_models(draft)
    return response_of(draft)


# === The content of answers, whole or streamed

_FINISH_REASONS: Final = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence"), FinishReason.STOP),
    **dict.fromkeys(("length", "max_tokens", "max_length", "model_length"), FinishReason.LENGTH),
    **dict.fromkeys(("tool_calls", "function_call", "tool_use"), FinishReason.TOOL_CALLS),
}
_REFUSALS: Final = ("content_filter", "refusal", "sensitive")
_BREAKDOWNS: Final = frozenset({"error", "abort", "insufficient_system_resource"})


def _first_choice(answer: Object) -> Object | None:
    """Return the first choice; the library never requests others."""
    for value in as_list(answer.get("choices")):
        choice = as_object(value)
        if not choice.get("index"):
            return choice
    return None


def _add_metadata(draft: Draft, answer: Object) -> None:
    if draft.served_model is None:
        draft.served_model = as_string(answer.get("model")) or None
    if draft.request_id is None:
        draft.request_id = as_string(answer.get("id")) or None
    if answer.get("citations"):
        draft.sources = as_list(answer["citations"])
    usage = answer.get("usage")
    if usage is None and "x_groq" in answer:
        usage = as_object(answer["x_groq"]).get("usage")
    if usage:
        draft.usage = with_tier(openai_usage(as_object(usage)), draft.target, answer.get("service_tier"))


def _add_end(draft: Draft, choice: Object) -> LLMError | None:
    """Store the first finish reason; return the error that some reasons, and an error in the choice, stand for."""
    reason = as_string(choice.get("finish_reason"))
    if choice.get("error") or reason in _BREAKDOWNS:
        error = choice.get("error") or {"message": f"the model stopped with {reason!r}", "status": 500}
        return reported_error(draft, error)
    if reason.startswith(_REFUSALS):
        draft.refusal = draft.refusal or filtered_categories(choice.get("content_filter_results")) or reason
    if reason and draft.finish_reason is None:
        draft.finish_reason = _FINISH_REASONS.get(reason, FinishReason.STOP)
        if reason not in _FINISH_REASONS and not draft.refusal:
            draft.doubt(f"the finish reason {reason!r} is unknown and was read as 'stop'")
    return None


def _assume_end(draft: Draft) -> None:
    draft.finish_reason = FinishReason.STOP
    draft.doubt("the server sent no finish reason: 'stop' was assumed")


def _add_content(draft: Draft, delta: Object, *, complete: bool = False) -> tuple[StreamEvent, ...]:
    """Add a delta, or a ``complete`` message, to the draft and return its events."""
    collect_sealed(draft.sealed, delta, complete=complete)
    events = add_pieces(draft, _pieces(draft, delta))
    if delta.get("annotations"):
        _cite(draft, delta["annotations"])
    refusal = delta.get("refusal")
    if refusal and isinstance(refusal, str):
        refuse(draft, refusal)
    calls = _calls(delta)
    return (*events, *flush_held(draft), *_add_calls(draft, calls, complete=complete)) if calls else events


def _cite(draft: Draft, annotations: object) -> None:
    """Store annotations with the last text, or for the first one: their positions are only known when it is whole."""
    text = next((part for part in reversed(draft.parts) if part.kind == "text"), None)
    if text is None:
        draft.annotations.extend(as_list(annotations))
    else:
        text.passages.append((0, as_list(annotations)))


def _add_citations(draft: Draft) -> None:
    for part in (part for part in draft.parts if part.kind == "text"):
        early, draft.annotations = draft.annotations, []
        for annotations in (early, *(cited for _, cited in part.passages)):
            cite(draft, part, citations_of_annotations(annotations, length=part.length))
        part.passages.clear()
        if not part.citations:
            cite(draft, part, citations_of_sources(draft.sources, part.length))


def _seal(draft: Draft) -> None:
    """Put what must go back to the server into parts of reasoning: that of a call directly before the call."""
    opaque = seal_message(draft.sealed, calls=bool(draft.calls))
    draft.sealed.clear()
    if opaque is not None:
        thought = next((part for part in draft.parts if part.kind == "reasoning"), None)
        if thought is None:
            thought = PartDraft(kind="reasoning")
            draft.parts.insert(0, thought)
        thought.opaque = opaque
    draft.parts = [each for part in draft.parts for each in _with_seal(part)]


def _with_seal(part: PartDraft) -> Iterator[PartDraft]:
    if part.kind == "tool" and part.opaque is not None:
        yield PartDraft(kind="reasoning", opaque=seal_call(part.id, part.opaque))
        part.opaque = None
    yield part


def _pieces(draft: Draft, delta: Object) -> Iterator[Piece]:
    thinking = delta.get("reasoning_content") or delta.get("reasoning") or delta.get("reasoning_details")
    if thinking:
        yield "reasoning", _thinking_text(thinking)
    content = delta.get("content")
    if isinstance(content, str):
        yield from split_thinking(draft, content) if content else ()
    elif blocks := as_list(content):
        yield from _block_pieces(draft, blocks)
    elif as_object(content):  # the answer to a schema, already parsed
        yield "text", json_text(content)
    elif delta.get("audio"):
        note_unread(draft, "audio")
        yield "text", as_string(as_object(delta["audio"]).get("transcript"))
    if delta.get("images"):
        note_unread(draft, "images")


def _block_pieces(draft: Draft, blocks: list[object]) -> Iterator[Piece]:
    for block in map(as_object, blocks):
        if block.get("type") == "thinking":
            yield "reasoning", _thinking_text(block.get("thinking"))
        elif "text" in block:
            yield "text", as_string(block["text"])
        else:
            note_unread(draft, block.get("type"))


def _thinking_text(value: object) -> str:
    """Return the readable thinking: a text, or parts with a text or a summary; sealed parts have neither."""
    if isinstance(value, str):
        return value
    return "".join(
        as_string(part.get("text")) or as_string(part.get("summary")) for part in map(as_object, as_list(value))
    )


# --- Tool calls, assembled from whatever deltas a server sends


def _calls(delta: Object) -> list[Object]:
    value = delta.get("tool_calls")
    calls = [as_object(call) for call in as_list(value)] if value else []
    legacy = delta.get("function_call")
    return [*calls, {"index": 0, "function": legacy}] if legacy else calls


def _add_calls(draft: Draft, calls: list[Object], *, complete: bool) -> Iterator[StreamEvent]:
    for position, call in enumerate(calls[: draft.target.config.max_tool_calls + 1]):
        event = _add_call(draft, call, position if complete else None)
        if event is not None:
            yield event


def _add_call(draft: Draft, call: Object, position: int | None) -> ToolCallDelta | None:
    """Add a tool call, or a piece of one, to the draft; ``position`` replaces the index of a complete one.

    A new id or name opens a new call, even at an index in use. Without an index, a piece belongs to the call of its
    id or to the last one. Calls without an id, or with one that is taken, get ``call_0``, ``call_1``, ...
    """
    function = as_object(call.get("function")) or as_object(call.get("custom"))
    index = as_count(call.get("index")) if position is None else position
    call_id, name = as_string(call.get("id")).strip(), as_string(function.get("name")).strip()
    piece = json_text(function.get("arguments", function.get("input")))
    extra = as_object(call.get("extra_content"))
    part = _find_call(draft, index, call_id, name)
    if part is not None and extra:
        part.opaque = json_text(extra)
    if not (call_id or name or piece):
        return None
    part = part or _open_call(draft, index, call_id)
    part.opaque = json_text(extra) if extra else part.opaque
    if name != part.name and not any(part.pieces):
        part.name += name
    part.pieces.append(piece)
    return ToolCallDelta(part.index, part.id, part.name, piece)


def _find_call(draft: Draft, index: int | None, call_id: str, name: str) -> PartDraft | None:
    current = _last_call(draft) if index is None else draft.slots.get(index)
    if call_id:
        known = draft.slots.get(_slot(index, call_id))
        return known or (current if current and not name and not _has_server_id(draft, current) else None)
    if current is None or not name:
        return current
    return None if index is None or _starts_anew(current, name) else current


def _last_call(draft: Draft) -> PartDraft | None:
    return draft.calls[-1] if draft.calls else None


def _starts_anew(current: PartDraft, name: str) -> bool:
    """Return whether a repeated name starts another call: names may come in pieces, but only before the arguments."""
    if name != current.name or not current.pieces:
        return any(current.pieces)
    if current.checks >= caps.NAME_CHECKS or not current.pieces[-1].rstrip().endswith("}"):
        return False
    current.checks += 1
    return not isinstance(parse("".join(current.pieces)), Unreadable)


def _has_server_id(draft: Draft, part: PartDraft) -> bool:
    return _slot(None, part.id) in draft.slots


def _open_call(draft: Draft, index: int | None, call_id: str) -> PartDraft:
    calls = draft.calls
    part = draft.open(PartDraft(kind="tool", id=_free_id(calls, call_id), index=len(calls)))
    if index is not None:
        draft.slots[index] = part
    if call_id:
        draft.slots[_slot(index, call_id)] = part
        draft.slots.setdefault(_slot(None, call_id), part)
    return part


def _free_id(calls: list[PartDraft], call_id: str) -> str:
    taken = {part.id for part in calls}
    if call_id and call_id not in taken:
        return call_id
    return next(new for new in (f"call_{number}" for number in count(len(calls))) if new not in taken)


def _slot(index: int | None, call_id: str) -> str:
    return f"{'' if index is None else index}:{call_id}"


# === The record

OPENAI_CHAT: Final = Provider(
    encode=encode, decode=decode, classify=classify, decode_event=decode_event, finish=finish, read_texts=read_texts
)
"""The protocol of ``/chat/completions``."""
