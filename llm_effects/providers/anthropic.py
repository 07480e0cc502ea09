"""Anthropic's Messages API."""

import base64
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import Final

import msgspec
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.providers.base import Provider
from llm_effects.providers.capabilities import ClaudeRules, claude_rules
from llm_effects.providers.draft import (
    NO_EVENTS,
    Draft,
    Events,
    Object,
    PartDraft,
    citations_of_passages,
    cite,
    decode_answer,
    flush_held,
    grow,
    grow_text,
    malformed,
    note_unread,
    reported_error,
    response_of,
)
from llm_effects.providers.error_mapping import classify
from llm_effects.providers.json_schema import anthropic_format, schema_problem
from llm_effects.providers.message_encoding import (
    NO_SETTINGS,
    Encoded,
    Settings,
    encode_arguments,
    invalid,
    is_same_model,
    merge_settings,
    message_problem,
    output_limit,
    sampling,
    tool_head,
)
from llm_effects.providers.plain_answers import anthropic_usage, block_delta, plain_message
from llm_effects.providers.prompt_caching import marked, with_breakpoints
from llm_effects.providers.sse import ServerEvent
from llm_effects.providers.target import Target, wire_request
from llm_effects.providers.wire import WireRequest, WireResponse
from llm_effects.values import caps
from llm_effects.values.errors import LLMError
from llm_effects.values.events import StreamEvent, ToolCallDelta
from llm_effects.values.json import Unreadable, as_count, as_list, as_object, as_string, json_text, parse
from llm_effects.values.messages import Document, Image, Part, Reasoning, Text, ToolCall, ToolResult
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import FinishReason, LLMResponse

# === Encoding requests


def encode(target: Target, request: LLMRequest, stream: bool) -> Result[WireRequest, LLMError]:
    """Encode a request for ``/v1/messages``.

    Settings that the model does not accept are dropped, with a warning; messages that cannot be sent are an error.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> claude = target_of("claude", ModelConfig(provider="anthropic", model="claude-opus-5-5", api_key="k")).unwrap()
    >>> encode(claude, LLMRequest(prompt="why?"), False).unwrap().body
    b'{"model":"claude-opus-5-5","max_tokens":8192,"messages":[{"role":"user","content":[{"type":"text","text":"why?"}]}]}'
    """
    turns = encode_messages(target, request)
    problem = message_problem(request, turns) or _unsupported(target, request)
    if problem is not None:
        return Failure(invalid(target, request, problem))
    settings, warnings = merge_settings(encoder(target, request) for encoder in _SETTINGS)
    system = _system_text(request)
    body: Mapping[str, object] = {
        "model": target.wire_model or target.name,
        **settings,
        **({} if system is None else {"system": system}),
        "messages": turns,
        **({"stream": True} if stream else {}),
    }
    body, notes = with_breakpoints(target, request, body)
    return Success(wire_request(target, "/v1/messages", body, (*warnings, *_moved_system(request), *notes)))


def _unsupported(target: Target, request: LLMRequest) -> str | None:
    if target.capabilities.prefill is False and _ends_with_answer(request):
        return "messages: the last one is an assistant's, which this model cannot continue: end with a user message"
    schema = None if target.capabilities.schema is False else request.response_schema
    return schema_problem(target, schema) or None if schema is not None else None


def _ends_with_answer(request: LLMRequest) -> bool:
    turns = [message for message in request.messages if message.role != "system"]
    return bool(turns) and turns[-1].role == "assistant" and bool(turns[-1].text.strip())


# --- Messages: one system text at the top, then turns of blocks, of which no two neighbours have the same role


def _system_text(request: LLMRequest) -> str | None:
    texts = (message.text for message in request.messages if message.role == "system")
    return "\n\n".join(filter(None, (request.system, *texts))) or None


def _moved_system(request: LLMRequest) -> tuple[str, ...]:
    """Return a warning for every system message after the start of the conversation."""
    start = next((at for at, each in enumerate(request.messages) if each.role != "system"), len(request.messages))
    late = (at for at, each in enumerate(request.messages) if each.role == "system" and at > start)
    return tuple(f"messages[{at}]: the system message was moved to the top of the conversation" for at in late)


def encode_messages(target: Target, request: LLMRequest) -> tuple[Mapping[str, object], ...]:
    """Encode every message but the system's; merge neighbours of one role, and skip empty ones."""
    if request.prompt is not None:
        text = {"type": "text", "text": request.prompt}
        return ({"role": "user", "content": [text]},) if request.prompt.strip() else ()
    blocks = (
        ("assistant" if message.role == "assistant" else "user", block)
        for message in request.messages
        if message.role != "system"
        for part in message.parts
        if (block := marked(part, _block(target, part))) is not None
    )
    turns = tuple((role, [block for _, block in group]) for role, group in groupby(blocks, lambda pair: pair[0]))
    return tuple({"role": role, "content": _results_first(content)} for role, content in _trim_prefill(turns))


def _trim_prefill(turns: tuple[tuple[str, list[Encoded]], ...]) -> Iterator[tuple[str, list[Encoded]]]:
    """Strip the end of an answer to be continued: the server refuses white space there."""
    for at, (role, blocks) in enumerate(turns):
        last = blocks[-1]
        if at == len(turns) - 1 and role == "assistant" and isinstance(last, Mapping) and "text" in last:
            yield role, [*blocks[:-1], {**last, "text": str(last["text"]).rstrip()}]
        else:
            yield role, blocks


def _results_first(blocks: list[Encoded]) -> list[Encoded]:
    """Move tool results to the front: they must directly follow their calls."""
    return sorted(blocks, key=lambda block: not (isinstance(block, Mapping) and block.get("type") == "tool_result"))


def _block(target: Target, part: Part) -> Encoded | None:
    match part:
        case Text():
            return {"type": "text", "text": part.text} if part.text.strip() else None
        case Image():
            return {"type": "image", "source": _source(part)}
        case Document():
            return _document(part)
        case Reasoning():
            return _replayed(target, part)
        case ToolCall():
            arguments = as_object(parse(encode_arguments(part.arguments)))
            return {"type": "tool_use", "id": _call_id(part.id), "name": part.name, "input": arguments}
        case ToolResult():
            result = {"type": "tool_result", "tool_use_id": _call_id(part.call_id), "content": part.content}
            return {**result, "is_error": True} if part.is_error else result


def _source(part: Image | Document) -> Mapping[str, object]:
    if part.data is not None:
        data = base64.b64encode(part.data).decode()
        return {"type": "base64", "media_type": part.media_type, "data": data}
    return {"type": "url", "url": part.url}


def _document(part: Document) -> Encoded:
    # Every kind of text is sent as plain text, the only kind that the server accepts.
    plain = {"type": "text", "media_type": "text/plain", "data": part.text}
    block = {"type": "document", "source": plain if part.plain else _source(part)}
    titled = {**block, "title": part.title} if part.title else block
    return {**titled, "citations": {"enabled": True}} if part.cite else titled


_THINKING: Final = {"thinking", "redacted_thinking"}


def _replayed(target: Target, part: Reasoning) -> Encoded | None:
    """Return thinking byte for byte if it comes from this model, and ``None`` for any other."""
    if part.opaque is None or part.origin is None or not is_same_model(part.origin, target):
        return None
    valid = as_object(parse(part.opaque)).get("type") in _THINKING
    return msgspec.Raw(part.opaque.encode()) if valid else None


def _call_id(call_id: str) -> str:
    """Replace the characters that Anthropic refuses in ids; another provider may have used them."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", call_id)


# --- Settings

_DEFAULT_LIMIT: Final = 8192
_LEAST_BUDGET: Final = 1024
_BUDGETS: Final = {"minimal": 1024, "low": 1024, "medium": 4096, "high": 16_384, "xhigh": 32_768, "max": 65_536}
_CHOICES: Final = {"auto": "auto", "none": "none", "required": "any"}


def _limit(target: Target, request: LLMRequest) -> Settings:
    requested, limit = output_limit(target, request), _max_tokens(target, request)
    if requested is None or limit >= requested:
        return {"max_tokens": limit}, ()
    return {"max_tokens": limit}, (f"max_tokens: {requested} is sent as {limit}, the most that the model can output",)


def _max_tokens(target: Target, request: LLMRequest) -> int:
    limit = output_limit(target, request) or _DEFAULT_LIMIT
    return min(limit, target.capabilities.max_output or limit)


def _sampling(target: Target, request: LLMRequest) -> Settings:
    values, reason = sampling(target, request), _no_sampling(target, request)
    if reason is not None:
        return {}, tuple(f"{name}: dropped, {reason}" for name in values)
    if len(values) > 1:
        warning = "top_p: dropped, the model accepts temperature or top_p, not both"
        return {"temperature": min(values["temperature"], 1.0)}, (warning,)
    if values.get("temperature", 0) > 1:
        return {"temperature": 1.0}, (f"temperature: {values['temperature']:g} is sent as 1, the most it accepts",)
    return values, ()


def _no_sampling(target: Target, request: LLMRequest) -> str | None:
    if target.capabilities.sampling is False:
        return "the model accepts no sampling settings"
    return "a model that reasons accepts no sampling settings" if _reasons(target, request) else None


def _stops(_: Target, request: LLMRequest) -> Settings:
    stops = [stop for stop in request.preferences.stop if stop.strip()]
    blank = len(request.preferences.stop) - len(stops)
    return ({"stop_sequences": stops} if stops else {}), ("stop: dropped, white space alone is refused",) * blank


def _seed(_: Target, request: LLMRequest) -> Settings:
    return NO_SETTINGS if request.preferences.seed is None else ({}, ("seed: dropped, the provider has none",))


def _reasoning(target: Target, request: LLMRequest) -> Settings:
    effort, rules = request.preferences.reasoning_effort, _rules(target)
    if effort is None:
        return NO_SETTINGS
    if effort == "none":
        return _reasoning_off(rules)
    if rules.thinking == "never":
        return {}, ("reasoning_effort: dropped, the model does not reason",)
    if _forces_tool(request) and not rules.by_default:
        return {}, ("reasoning_effort: dropped, the model does not reason when a tool is forced",)
    # Thinking must be visible: without it a stream would look stalled.
    visible = {"thinking": {"type": "adaptive", "display": "summarized"}}
    return _budget(target, request) if rules.thinking == "budget" else (visible, ())


def _reasons(target: Target, request: LLMRequest) -> bool:
    return request.preferences.reasoning_effort != "none" and "thinking" in _reasoning(target, request)[0]


def _reasoning_off(rules: ClaudeRules) -> Settings:
    if rules.off is None:
        return {}, ("reasoning_effort: none is dropped, the model always reasons",)
    return ({"thinking": {"type": rules.off}} if rules.by_default else {}), ()


def _budget(target: Target, request: LLMRequest) -> Settings:
    """Return a budget of at most half of the output tokens: the limit counts thinking and answer."""
    limit = _max_tokens(target, request)
    if limit <= _LEAST_BUDGET:
        return {}, (f"reasoning_effort: dropped, reasoning needs max_tokens above {_LEAST_BUDGET}",)
    budget = _BUDGETS[request.preferences.reasoning_effort or "low"]
    return {"thinking": {"type": "enabled", "budget_tokens": min(budget, max(_LEAST_BUDGET, limit // 2))}}, ()


def _output_config(target: Target, request: LLMRequest) -> Settings:
    config, warnings = merge_settings((_effort(target, request), _answer_format(target, request)))
    return ({"output_config": config} if config else {}), warnings


def _answer_format(target: Target, request: LLMRequest) -> Settings:
    if request.response_schema is None:
        return NO_SETTINGS
    if target.capabilities.schema is False:
        return {}, ("response_schema: dropped, the model has no structured output",)
    encoded = anthropic_format(request.response_schema)
    if not is_successful(encoded):
        return {}, (f"dropped: {encoded.failure()}",)
    form, warnings = encoded.unwrap()
    return {"format": form}, warnings


def _effort(target: Target, request: LLMRequest) -> Settings:
    effort, rules = request.preferences.reasoning_effort, _rules(target)
    if rules.thinking != "adaptive" or not _reasons(target, request):
        return NO_SETTINGS
    if effort == "minimal":
        return {"effort": "low"}, ("reasoning_effort: minimal is sent as low",)
    if effort == "xhigh" and not rules.xhigh:
        return {"effort": "high"}, ("reasoning_effort: xhigh is sent as high",)
    return {"effort": effort}, ()


def _tools(target: Target, request: LLMRequest) -> Settings:
    if not request.tools:
        return NO_SETTINGS
    tools = [{**tool_head(tool), "input_schema": tool.parameters} for tool in request.tools]
    return merge_settings((({"tools": tools}, ()), _tool_choice(target, request)))


def _tool_choice(target: Target, request: LLMRequest) -> Settings:
    choice = request.tool_choice
    if choice is None:
        return NO_SETTINGS
    if _forces_tool(request) and not _rules(target).forced_choice:
        warning = f"tool_choice: {choice} is sent as auto, the model cannot be forced"
        return {"tool_choice": {"type": "auto"}}, (warning,)
    named = {"type": "tool", "name": choice}
    return {"tool_choice": {"type": _CHOICES[choice]} if choice in _CHOICES else named}, ()


def _forces_tool(request: LLMRequest) -> bool:
    return bool(request.tools) and request.tool_choice not in {None, "auto", "none"}


def _rules(target: Target) -> ClaudeRules:
    return claude_rules(target.wire_model or "")


_SETTINGS: Final[tuple[Callable[[Target, LLMRequest], Settings], ...]] = (
    _limit,
    _sampling,
    _stops,
    _seed,
    _reasoning,
    _output_config,
    _tools,
)


# === Decoding whole answers


def decode(target: Target, response: WireResponse) -> Result[LLMResponse, LLMError]:
    """Decode a whole 2xx answer; an error inside it is classified by its own type."""
    plain = plain_message(target, response)
    return decode_answer(target, response, _read_message) if plain is None else Success(plain)


def _read_message(draft: Draft, message: Object, response: WireResponse) -> Result[LLMResponse, LLMError]:
    if message.get("error") or message.get("type") == "error":
        return Failure(reported_error(draft, message, response))
    _add_metadata(draft, message)
    for index, block in enumerate(as_list(message.get("content"))[: caps.PARTS + 1]):
        opened = open_block(draft, index, as_object(block))
        if not is_successful(opened):
            return Failure(opened.failure())
        flush_held(draft)
    for part in draft.parts:
        _close(part)
    _add_end(draft, message)
    draft.done = True
    return finish(draft)


# === Decoding streams


def decode_event(draft: Draft, event: ServerEvent) -> Events:
    """Add an event to the draft and return the events to emit; ignore unknown events and all after the end."""
    if draft.done or event.data == "[DONE]" or event.name == "ping":
        return NO_EVENTS
    block = block_delta(event)
    if block is not None:
        return Success(_GROW[block.delta.kind](draft, block.index, block.delta.piece))
    value = parse(event.data)
    if isinstance(value, Unreadable):
        return Failure(malformed(draft, f"an event is not JSON: {value.reason}"))
    body = as_object(value)
    kind = as_string(body.get("type")) or event.name
    if body.get("error") or kind == "error":
        return Failure(reported_error(draft, body))
    handle = _HANDLERS.get(kind)
    return NO_EVENTS if handle is None else handle(draft, body)


def finish(draft: Draft) -> Result[LLMResponse, LLMError]:
    """Read the draft at the end of the stream: only ``message_stop`` after a stop reason makes a whole answer."""
    if not draft.done:
        draft.finish_reason = None
    for part in draft.parts:
        if part.kind == "reasoning" or draft.finish_reason is not FinishReason.LENGTH:
            _close(part)
        cite(draft, part, citations_of_passages(part.passages, part.length))
    return response_of(draft)


def _on_message_start(draft: Draft, event: Object) -> Events:
    if draft.parts:  # a proxy lost its server half-way and spliced a second answer in: neither is whole
        return Failure(malformed(draft, "a second answer started before the first one ended"))
    _add_metadata(draft, as_object(event.get("message")))
    return NO_EVENTS


def _on_block_start(draft: Draft, event: Object) -> Events:
    return open_block(draft, _index(event), as_object(event.get("content_block")))


def _on_block_delta(draft: Draft, event: Object) -> Events:
    return grow_block(draft, _index(event), as_object(event.get("delta")))


def _on_block_stop(draft: Draft, event: Object) -> Events:
    part = draft.slots.get(_index(event))
    return NO_EVENTS if part is None else Success((*flush_held(draft), *_close(part)))


def _on_message_delta(draft: Draft, event: Object) -> Events:
    _add_end(draft, {"usage": event.get("usage"), **as_object(event.get("delta"))})
    return NO_EVENTS


def _on_message_stop(draft: Draft, _: Object) -> Events:
    draft.done = True
    return NO_EVENTS


def _index(event: Object) -> int:
    return as_count(event.get("index")) or 0


_HANDLERS: Final[Mapping[str, Callable[[Draft, Object], Events]]] = {
    "message_start": _on_message_start,
    "content_block_start": _on_block_start,
    "content_block_delta": _on_block_delta,
    "content_block_stop": _on_block_stop,
    "message_delta": _on_message_delta,
    "message_stop": _on_message_stop,
}


# === The content of answers, whole or streamed

_FINISH_REASONS: Final = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "compaction": FinishReason.STOP,
    "pause_turn": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
    "refusal": FinishReason.CONTENT_FILTER,
}


def _add_metadata(draft: Draft, message: Object) -> None:
    draft.served_model = as_string(message.get("model")) or draft.served_model
    draft.usage = anthropic_usage(as_object(message.get("usage")), draft.usage)


def _add_end(draft: Draft, message: Object) -> None:
    draft.usage = anthropic_usage(as_object(message.get("usage")), draft.usage)
    reason = as_string(message.get("stop_reason"))
    if not reason:
        return
    draft.finish_reason = _FINISH_REASONS.get(reason, FinishReason.STOP)
    if reason == "refusal":
        details = as_object(message.get("stop_details"))
        draft.refusal = as_string(details.get("category"))
        draft.refusal_text = [as_string(details.get("explanation"))]
    if reason == "pause_turn" or reason not in _FINISH_REASONS:
        draft.doubt(f"the model stopped because of {reason!r}: the answer may be unfinished")


# --- Blocks: each opens a part of the draft, grows it and closes it


def open_block(draft: Draft, index: int, block: Object) -> Events:
    """Add the start of a block, or a whole one; ignore the blocks of tools that the server runs itself."""
    match block.get("type"):
        case "text":
            return Success(_open_text(draft, index, block))
        case "thinking" | "redacted_thinking":
            _open_part(draft, index, PartDraft(kind="reasoning", opaque=json_text(block)))
            return Success(_grow_thinking(draft, index, as_string(block.get("thinking"))))
        case "tool_use":
            return _open_call(draft, index, block)
        case kind:
            note_unread(draft, kind)
            draft.slots.pop(index, None)
    return NO_EVENTS


def _open_text(draft: Draft, index: int, block: Object) -> tuple[StreamEvent, ...]:
    part = _text_part(draft, index)
    part.passages.append((part.length, as_list(block.get("citations"))))
    return grow_text(draft, part, as_string(block.get("text")))


def _open_call(draft: Draft, index: int, block: Object) -> Events:
    name = as_string(block.get("name"))
    if not name.strip():
        return Failure(malformed(draft, "a tool call has no name"))
    call_id, arguments = as_string(block.get("id")).strip() or f"toolu_{index}", json_text(block.get("input") or None)
    call = PartDraft(kind="tool", index=len(draft.calls), id=call_id, name=name, pieces=[arguments])
    _open_part(draft, index, call)
    return Success((ToolCallDelta(call.index, call.id, call.name, arguments),))


def _open_part(draft: Draft, index: int, part: PartDraft) -> PartDraft:
    draft.slots[index] = draft.open(part)
    return part


def grow_block(draft: Draft, index: int, delta: Object) -> Events:
    """Add a delta to a block; ignore unknown kinds."""
    match delta.get("type"):
        case "text_delta":
            return Success(_grow_text(draft, index, as_string(delta.get("text"))))
        case "thinking_delta":
            return Success(_grow_thinking(draft, index, as_string(delta.get("thinking"))))
        case "input_json_delta":
            return Success(_grow_arguments(draft, index, as_string(delta.get("partial_json"))))
        case "signature_delta":
            _sign(draft, index, as_string(delta.get("signature")))
        case "citations_delta":
            _cite(draft, index, delta.get("citation"))
        case _:
            pass
    return NO_EVENTS


def _grow_text(draft: Draft, index: int, piece: str) -> tuple[StreamEvent, ...]:
    return grow_text(draft, _text_part(draft, index), piece)


def _grow_arguments(draft: Draft, index: int, piece: str) -> tuple[StreamEvent, ...]:
    part = draft.slots.get(index)
    return grow(part, piece) if part is not None and part.kind == "tool" else ()


def _text_part(draft: Draft, index: int) -> PartDraft:
    """Return the part of a text block; successive text blocks share one, as citations cut a sentence into many."""
    part = draft.slots.get(index)
    if part is not None and part.kind == "text":
        return part
    if draft.parts and draft.parts[-1].kind == "text":
        draft.slots[index] = draft.parts[-1]
        return draft.parts[-1]
    return _open_part(draft, index, PartDraft(kind="text"))


def _cite(draft: Draft, index: int, citation: object) -> None:
    part = draft.slots.get(index)
    if part is not None and part.passages:
        part.passages[-1][1].append(citation)


def _grow_thinking(draft: Draft, index: int, piece: str) -> tuple[StreamEvent, ...]:
    part = draft.slots.get(index)
    if part is None or part.kind != "reasoning":
        part = _open_part(draft, index, PartDraft(kind="reasoning", opaque='{"type":"thinking"}'))
    return grow(part, piece)


_GROW: Final[Mapping[str, Callable[[Draft, int, str], tuple[StreamEvent, ...]]]] = {
    "text_delta": _grow_text,
    "thinking_delta": _grow_thinking,
    "input_json_delta": _grow_arguments,
}


def _sign(draft: Draft, index: int, piece: str) -> None:
    part = draft.slots.get(index)
    if part is not None and part.opaque is not None:
        part.signature.append(piece)


def _close(part: PartDraft) -> tuple[StreamEvent, ...]:
    """Complete a part: a call without arguments gets ``{}``; thinking without a signature cannot be replayed."""
    block = as_object(parse(part.opaque)) if part.opaque else {}
    if block.get("type") == "thinking":
        signature = as_string(block.get("signature")) + "".join(part.signature)
        part.opaque = (
            json_text({**block, "thinking": "".join(part.pieces), "signature": signature}) if signature else None
        )
        part.signature.clear()
    return grow(part, "{}") if part.kind == "tool" and not any(part.pieces) else ()


# === The record

ANTHROPIC: Final = Provider(encode=encode, decode=decode, classify=classify, decode_event=decode_event, finish=finish)
"""The protocol of ``/v1/messages``."""
