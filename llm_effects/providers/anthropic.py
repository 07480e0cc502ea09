"""Anthropic's Messages API: a request in its shape, and the record of its functions."""

import base64
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import Final, TypeAlias, TypeVar

import msgspec
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.providers.base import Provider
from llm_effects.providers.capabilities import ClaudeRules, claude_rules
from llm_effects.providers.draft import Draft, PartDraft, interrupted, malformed, of_passages, response_of
from llm_effects.providers.error_mapping import classify, classify_error_object, request_id
from llm_effects.providers.json_schema import anthropic_format, misfit
from llm_effects.providers.message_encoding import invalid, sent_arguments, unsendable
from llm_effects.providers.sse import ServerEvent
from llm_effects.providers.target import Target, wire_request
from llm_effects.providers.wire import WireRequest, WireResponse
from llm_effects.values.errors import LLMError
from llm_effects.values.events import ReasoningDelta, StreamEvent, TextDelta, ToolCallDelta
from llm_effects.values.json import Unreadable, items, json_text, parse, record, string, whole
from llm_effects.values.messages import (
    Document,
    Image,
    Message,
    Origin,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
    text_of,
)
from llm_effects.values.requests import LLMRequest, conversation
from llm_effects.values.responses import FinishReason, LLMResponse, Usage

# The blocks of Anthropic's answers: each one opens a part of the draft, grows it and seals it.


Object: TypeAlias = dict[str, object]
"""A JSON object as it came."""

Told: TypeAlias = Result[tuple[StreamEvent, ...], LLMError]
"""What one event brought."""

NOTHING: Final[Told] = Success(())


def open_block(draft: Draft, index: int, block: Object) -> Told:
    """Take the beginning of a block, or a whole one; those of tools that the server runs itself tell nothing."""
    match block.get("type"):
        case "text":
            return Success(_open_text(draft, index, block))
        case "thinking":
            _new_part(draft, index, PartDraft(kind="reasoning", opaque=json_text(block)))
            return Success(_grow_thinking(draft, index, string(block.get("thinking"))))
        case "redacted_thinking":
            _new_part(draft, index, PartDraft(kind="reasoning", opaque=json_text(block)))
        case "tool_use":
            return _open_call(draft, index, block)
        case _:
            draft.slots.pop(index, None)
    return NOTHING


def _open_call(draft: Draft, index: int, block: Object) -> Told:
    name = string(block.get("name"))
    if not name.strip():
        return Failure(malformed(draft, "a tool call has no name"))
    place = sum(part.kind == "tool" for part in draft.parts)
    call = PartDraft(kind="tool", index=place, id=string(block.get("id")).strip() or f"toolu_{index}", name=name)
    arguments = json_text(block.get("input") or None)
    _new_part(draft, index, call)
    call.pieces.append(arguments)
    return Success((ToolCallDelta(place, call.id, call.name, arguments),))


def grow(draft: Draft, index: int, delta: Object) -> Told:
    """Take more of a block; a delta of a kind unknown tells nothing."""
    match delta.get("type"):
        case "text_delta":
            return Success(_grow_text(draft, index, string(delta.get("text"))))
        case "thinking_delta":
            return Success(_grow_thinking(draft, index, string(delta.get("thinking"))))
        case "signature_delta":
            _sign(draft, index, string(delta.get("signature")))
        case "citations_delta":
            _cite(draft, index, delta.get("citation"))
        case "input_json_delta":
            return Success(_grow_call(draft, index, string(delta.get("partial_json"))))
        case _:
            pass
    return NOTHING


def _open_text(draft: Draft, index: int, block: Object) -> tuple[StreamEvent, ...]:
    told = _grow_text(draft, index, "")
    part = draft.slots[index]
    part.passages.append((part.length, items(block.get("citations"))))
    return (*told, *_grow_text(draft, index, string(block.get("text"))))


def _cite(draft: Draft, index: int, citation: object) -> None:
    part = draft.slots.get(index)
    if part is not None and part.passages:
        part.passages[-1][1].append(citation)


def _grow_text(draft: Draft, index: int, piece: str) -> tuple[StreamEvent, ...]:
    """Text of one block after another is one part: citations cut a sentence into many blocks."""
    last = draft.parts[-1] if draft.parts and draft.parts[-1].kind == "text" else None
    part = draft.slots.get(index)
    if part is None or part.kind != "text":
        part = _new_part(draft, index, PartDraft(kind="text")) if last is None else last
        draft.slots[index] = part
    return _grow(part, piece, (TextDelta(piece),))


def _grow_thinking(draft: Draft, index: int, piece: str) -> tuple[StreamEvent, ...]:
    part = draft.slots.get(index)
    if part is None or part.kind != "reasoning":
        part = _new_part(draft, index, PartDraft(kind="reasoning", opaque='{"type":"thinking"}'))
    return _grow(part, piece, (ReasoningDelta(piece),))


def _grow_call(draft: Draft, index: int, piece: str) -> tuple[StreamEvent, ...]:
    part = draft.slots.get(index)
    if part is None or part.kind != "tool":
        return ()
    return _grow(part, piece, (ToolCallDelta(part.index, part.id, part.name, piece),))


def _grow(part: PartDraft, piece: str, told: tuple[StreamEvent, ...]) -> tuple[StreamEvent, ...]:
    if not piece:
        return ()
    part.pieces.append(piece)
    return told


def _new_part(draft: Draft, index: int, part: PartDraft) -> PartDraft:
    draft.parts.append(part)
    draft.slots[index] = part
    return part


def _sign(draft: Draft, index: int, piece: str) -> None:
    part = draft.slots.get(index)
    if part is not None and part.opaque is not None:
        block = record(parse(part.opaque))
        part.opaque = json_text({**block, "signature": string(block.get("signature")) + piece})


def seal(part: PartDraft) -> tuple[StreamEvent, ...]:
    """Complete a part: a call without arguments has none, and thinking without a signature cannot be replayed."""
    block = record(parse(part.opaque or ""))
    if block.get("type") == "thinking":
        signed = {**block, "thinking": "".join(part.pieces)}
        part.opaque = json_text(signed) if block.get("signature") else None
    if part.kind == "tool" and not any(part.pieces):
        return _grow(part, "{}", (ToolCallDelta(part.index, part.id, part.name, "{}"),))
    return ()


# Reading Anthropic's answers: whole messages and event streams, both by way of one draft.


_Count = TypeVar("_Count", bound=int | None)

_ENDS: Final = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "compaction": FinishReason.STOP,
    "pause_turn": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
    "refusal": FinishReason.CONTENT_FILTER,
}


def decode(target: Target, response: WireResponse) -> Result[LLMResponse, LLMError]:
    """Read a whole 2xx answer; an error inside of it is what its own type says."""
    draft = Draft(target=target, request_id=request_id(response.headers))
    body = parse(response.body)
    if isinstance(body, Unreadable):
        return Failure(malformed(draft, f"the answer is not JSON ({body.reason}): is the endpoint right?"))
    message = record(body)
    if message.get("error") or message.get("type") == "error":
        error = classify_error_object(target, message, headers=response.headers, received=response.received)
        return Failure(interrupted(draft, error))
    _begin(draft, message)
    for index, block in enumerate(items(message.get("content"))):
        opened = open_block(draft, index, record(block))
        if not is_successful(opened):
            return Failure(opened.failure())
    for part in draft.parts:
        seal(part)
    _end(draft, message)
    draft.done = True
    return finish(draft)


def decode_event(draft: Draft, event: ServerEvent) -> Told:
    """Take one event into the draft and tell what it brought; unknown ones, and all after the end, are ignored."""
    if draft.done or event.data == "[DONE]" or event.name == "ping":
        return NOTHING
    body = parse(event.data)
    if isinstance(body, Unreadable):
        return Failure(malformed(draft, f"an event is not JSON: {body.reason}"))
    told = record(body)
    if told.get("error"):
        return _erred(draft, told)
    take = _EVENTS.get(string(told.get("type")) or event.name)
    return NOTHING if take is None else take(draft, told)


def finish(draft: Draft) -> Result[LLMResponse, LLMError]:
    """Read the draft when the stream has ended: only ``message_stop`` after a stop reason is a whole answer."""
    if not draft.done:
        draft.finish_reason = None
    for part in draft.parts:
        if part.kind == "reasoning" or draft.finish_reason is not FinishReason.LENGTH:
            seal(part)
        part.citations = of_passages(part.passages, part.length)
    return response_of(draft)


def _started(draft: Draft, told: Object) -> Told:
    if draft.parts:  # a proxy lost its server half-way and spliced a second answer in: neither is whole
        return Failure(malformed(draft, "a second answer began before the first one had ended"))
    _begin(draft, record(told.get("message")))
    return NOTHING


def _begin(draft: Draft, message: Object) -> None:
    draft.served_model = string(message.get("model")) or draft.served_model
    draft.usage = _counted(draft.usage, record(message.get("usage")))


def _opened(draft: Draft, told: Object) -> Told:
    return open_block(draft, whole(told.get("index")) or 0, record(told.get("content_block")))


def _grown(draft: Draft, told: Object) -> Told:
    return grow(draft, whole(told.get("index")) or 0, record(told.get("delta")))


def _closed(draft: Draft, told: Object) -> Told:
    part = draft.slots.get(whole(told.get("index")) or 0)
    return NOTHING if part is None else Success(seal(part))


def _ending(draft: Draft, told: Object) -> Told:
    _end(draft, {"usage": told.get("usage"), **record(told.get("delta"))})
    return NOTHING


def _end(draft: Draft, message: Object) -> None:
    draft.usage = _counted(draft.usage, record(message.get("usage")))
    reason = string(message.get("stop_reason"))
    if not reason:
        return
    draft.finish_reason = _ENDS.get(reason, FinishReason.STOP)
    if reason == "refusal":
        details = record(message.get("stop_details"))
        draft.refusal = string(details.get("category"))
        draft.refusal_text = [string(details.get("explanation"))]
    if reason == "pause_turn" or reason not in _ENDS:
        draft.warnings.append(f"the model stopped for {reason!r}: the answer may be unfinished")


def _stopped(draft: Draft, _: Object) -> Told:
    draft.done = True
    return NOTHING


def _counted(usage: Usage, told: Object) -> Usage:
    """Counts are cumulative, so the last one told is the one that holds; the input is told without the cache's."""
    thought = record(told.get("output_tokens_details")).get("thinking_tokens")
    return evolve(
        usage,
        input_tokens=_latest(usage.input_tokens, told.get("input_tokens")),
        cache_read_tokens=_latest(usage.cache_read_tokens, told.get("cache_read_input_tokens")),
        cache_write_tokens=_latest(usage.cache_write_tokens, told.get("cache_creation_input_tokens")),
        output_tokens=_latest(usage.output_tokens, told.get("output_tokens")),
        reasoning_tokens=_latest(usage.reasoning_tokens, thought),
    )


def _latest(before: _Count, told: object) -> int | _Count:
    count = whole(told)
    return before if count is None else count


def _erred(draft: Draft, told: Object) -> Told:
    return Failure(interrupted(draft, classify_error_object(draft.target, told)))


_EVENTS: Final[Mapping[str, Callable[[Draft, Object], Told]]] = {
    "message_start": _started,
    "content_block_start": _opened,
    "content_block_delta": _grown,
    "content_block_stop": _closed,
    "message_delta": _ending,
    "message_stop": _stopped,
    "error": _erred,
}


# A request's settings in Anthropic's words; what a model refuses is dropped, each with a warning.


Setting: TypeAlias = tuple[Mapping[str, object], tuple[str, ...]]
"""Fields of the body, and what was dropped on the way to them."""

_NONE: Final[Setting] = ({}, ())
_DEFAULT_LIMIT: Final = 8192
_LEAST_BUDGET: Final = 1024
_BUDGETS: Final = {"minimal": 1024, "low": 1024, "medium": 4096, "high": 16_384, "xhigh": 32_768, "max": 65_536}
_CHOICES: Final = {"auto": "auto", "none": "none", "required": "any"}


def settings_of(target: Target, request: LLMRequest) -> Setting:
    """All settings in one."""
    told = tuple(setting(target, request) for setting in _SETTINGS)
    fields = {name: value for some, _ in told for name, value in some.items()}
    return fields, tuple(warning for _, warnings in told for warning in warnings)


def _limit(target: Target, request: LLMRequest) -> Setting:
    wanted = request.preferences.max_tokens or target.config.max_tokens
    limit = _max_tokens(target, request)
    capped = wanted is not None and limit < wanted
    warnings = (f"max_tokens: {wanted} is sent as {limit}, the most that the model gives",) if capped else ()
    return {"max_tokens": limit}, warnings


def _max_tokens(target: Target, request: LLMRequest) -> int:
    wanted = request.preferences.max_tokens or target.config.max_tokens or _DEFAULT_LIMIT
    return min(wanted, target.capabilities.max_output or wanted)


def _sampling(target: Target, request: LLMRequest) -> Setting:
    wanted = _wanted_sampling(target, request)
    refusal = _no_sampling(target, request)
    if refusal is not None:
        return {}, tuple(f"{name}: dropped, {refusal}" for name in wanted)
    if len(wanted) > 1:
        return {"temperature": _warmth(wanted)}, ("top_p: dropped, the model takes temperature or top_p, not both",)
    if wanted.get("temperature", 0) > 1:
        return {"temperature": 1.0}, (f"temperature: {wanted['temperature']:g} is sent as 1, the most it takes",)
    return wanted, ()


def _warmth(wanted: Mapping[str, float]) -> float:
    return min(wanted["temperature"], 1.0)


def _wanted_sampling(target: Target, request: LLMRequest) -> Mapping[str, float]:
    given = request.preferences.temperature
    temperature = target.config.temperature if given is None else given
    both = {"temperature": temperature, "top_p": request.preferences.top_p}
    return {name: value for name, value in both.items() if value is not None}


def _no_sampling(target: Target, request: LLMRequest) -> str | None:
    if target.capabilities.sampling is False:
        return "the model takes no sampling settings"
    return "a model that thinks takes no sampling settings" if _thinks(target, request) else None


def _stops(_: Target, request: LLMRequest) -> Setting:
    blank = tuple("stop: white space alone is dropped" for stop in request.preferences.stop if not stop.strip())
    stops = [stop for stop in request.preferences.stop if stop.strip()]
    return ({"stop_sequences": stops} if stops else {}), blank


def _seed(_: Target, request: LLMRequest) -> Setting:
    return _NONE if request.preferences.seed is None else ({}, ("seed: dropped, the provider takes none",))


def _thinking(target: Target, request: LLMRequest) -> Setting:
    effort, rules = request.preferences.reasoning_effort, _rules(target)
    if effort is None:
        return _NONE
    if effort == "none":
        return _thoughtless(rules)
    if rules.thinking == "never":
        return {}, ("reasoning_effort: dropped, the model does not think",)
    if _forced(request) and not rules.by_default:
        return {}, ("reasoning_effort: dropped, a tool is forced and the model thinks only where it may choose",)
    # Told in full, thinking is content: a stream that shows none would look stalled.
    shown = {"thinking": {"type": "adaptive", "display": "summarized"}}
    return _budgeted(target, request) if rules.thinking == "budget" else (shown, ())


def _thinks(target: Target, request: LLMRequest) -> bool:
    return request.preferences.reasoning_effort != "none" and "thinking" in _thinking(target, request)[0]


def _thoughtless(rules: ClaudeRules) -> Setting:
    if rules.off is None:
        return {}, ("reasoning_effort: none is dropped, the model always thinks",)
    return ({"thinking": {"type": rules.off}} if rules.by_default else {}), ()


def _budgeted(target: Target, request: LLMRequest) -> Setting:
    """Half of the answer's tokens at most are for thinking: the limit counts both."""
    limit = _max_tokens(target, request)
    if limit <= _LEAST_BUDGET:
        return {}, (f"reasoning_effort: dropped, thinking needs max_tokens above {_LEAST_BUDGET}",)
    wanted = _BUDGETS[request.preferences.reasoning_effort or "low"]
    return {"thinking": {"type": "enabled", "budget_tokens": min(wanted, max(_LEAST_BUDGET, limit // 2))}}, ()


def _output(target: Target, request: LLMRequest) -> Setting:
    effort, warnings = _effort(target, request)
    form, told = _format(target, request)
    config = {**effort, **form}
    return ({"output_config": config} if config else {}), (*warnings, *told)


def _format(target: Target, request: LLMRequest) -> Setting:
    if request.response_schema is None:
        return _NONE
    if target.capabilities.schema is False:
        return {}, ("response_schema: dropped, the model knows no structured output",)
    written = anthropic_format(request.response_schema)
    if not is_successful(written):
        return {}, (f"dropped: {written.failure()}",)
    form, told = written.unwrap()
    return {"format": form}, told


def _effort(target: Target, request: LLMRequest) -> Setting:
    effort, rules = request.preferences.reasoning_effort, _rules(target)
    if rules.thinking != "adaptive" or not _thinks(target, request):
        return _NONE
    if effort == "minimal":
        return {"effort": "low"}, ("reasoning_effort: minimal is sent as low",)
    if effort == "xhigh" and not rules.xhigh:
        return {"effort": "high"}, ("reasoning_effort: xhigh is sent as high",)
    return {"effort": effort}, ()


def _tools(target: Target, request: LLMRequest) -> Setting:
    if not request.tools:
        return _NONE
    tools = [
        {"name": tool.name, **({"description": tool.description} if tool.description else {})}
        | {"input_schema": tool.parameters}
        for tool in request.tools
    ]
    choice, warnings = _choice(target, request)
    return {"tools": tools, **choice}, warnings


def _choice(target: Target, request: LLMRequest) -> Setting:
    choice = request.tool_choice
    if choice is None:
        return _NONE
    if _forced(request) and not _rules(target).forced_choice:
        return {"tool_choice": {"type": "auto"}}, (
            f"tool_choice: {choice} is sent as auto, no tool can be forced on it",
        )
    named = {"type": "tool", "name": choice}
    return {"tool_choice": {"type": _CHOICES[choice]} if choice in _CHOICES else named}, ()


def _forced(request: LLMRequest) -> bool:
    return bool(request.tools) and request.tool_choice not in {None, "auto", "none"}


def _rules(target: Target) -> ClaudeRules:
    return claude_rules(target.wire_model or "")


_SETTINGS: Final[tuple[Callable[[Target, LLMRequest], Setting], ...]] = (
    _limit,
    _sampling,
    _stops,
    _seed,
    _thinking,
    _output,
    _tools,
)


# A conversation in Anthropic's shape: a system text at the top, then turns of blocks that alternate.


Block: TypeAlias = Mapping[str, object] | msgspec.Raw
"""A block of a turn; a raw one goes out byte for byte as it once came."""

Turn: TypeAlias = Mapping[str, object]
"""One turn, ready to be written as JSON."""

_ALIAS: Final = re.compile(r"(?:-0|-latest|-20\d{6})$")
_REPLAYED: Final = {"thinking", "redacted_thinking"}


def system_of(request: LLMRequest) -> str | None:
    """All system texts in one: there is no other place for them."""
    turns = (message.text for message in request.messages if message.role == "system")
    return "\n\n".join(filter(None, (request.system, *turns))) or None


def moved_system(request: LLMRequest) -> tuple[str, ...]:
    """A warning for every system message that stood after the conversation had begun."""
    begun = next((at for at, each in enumerate(request.messages) if each.role != "system"), len(request.messages))
    late = (at for at, each in enumerate(request.messages) if each.role == "system" and at > begun)
    return tuple(f"messages[{at}]: the system message was moved to the top of the conversation" for at in late)


def turns_of(target: Target, request: LLMRequest) -> tuple[Turn, ...]:
    """The turns without the system's, neighbours of one role merged, empty ones left out."""
    told = (
        (_role(message), block)
        for message in conversation(request)
        if message.role != "system"
        for block in _blocks(target, message)
    )
    grouped = tuple((role, [block for _, block in group]) for role, group in groupby(told, lambda pair: pair[0]))
    return tuple({"role": role, "content": _ordered(blocks)} for role, blocks in _trimmed(grouped))


def _role(message: Message) -> str:
    return "assistant" if message.role == "assistant" else "user"


def _trimmed(turns: tuple[tuple[str, list[Block]], ...]) -> Iterator[tuple[str, list[Block]]]:
    """An answer to be continued must not end in white space."""
    for at, (role, blocks) in enumerate(turns):
        last = blocks[-1]
        if at == len(turns) - 1 and role == "assistant" and isinstance(last, Mapping) and "text" in last:
            yield role, [*blocks[:-1], {**last, "text": str(last["text"]).rstrip()}]
        else:
            yield role, blocks


def _ordered(blocks: list[Block]) -> list[Block]:
    """Results of tools come first: nothing may stand between them and their calls."""
    return sorted(blocks, key=lambda block: not (isinstance(block, Mapping) and block.get("type") == "tool_result"))


def _blocks(target: Target, message: Message) -> Iterator[Block]:
    for part in message.parts:
        block = _block(target, part)
        if block is not None:
            yield block


def _block(target: Target, part: Part) -> Block | None:
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
            given = record(parse(sent_arguments(part.arguments)))
            return {"type": "tool_use", "id": _id(part.id), "name": part.name, "input": given}
        case ToolResult():
            said = {"type": "tool_result", "tool_use_id": _id(part.call_id), "content": part.content}
            return {**said, "is_error": True} if part.is_error else said


def _source(part: Image | Document) -> Mapping[str, object]:
    if part.data is not None:
        data = base64.b64encode(part.data).decode()
        return {"type": "base64", "media_type": part.media_type, "data": data}
    return {"type": "url", "url": part.url}


def _document(part: Document) -> Block | None:
    """Text is told as plain text, whatever its kind: no other is known there."""
    plain = {"type": "text", "media_type": "text/plain", "data": part.text}
    block = {"type": "document", "source": plain if part.plain else _source(part)}
    titled = {**block, "title": part.title} if part.title else block
    return {**titled, "citations": {"enabled": True}} if part.cite else titled


def _replayed(target: Target, part: Reasoning) -> Block | None:
    """Thinking goes back, byte for byte, to the model that thought it, and to no other."""
    if part.opaque is None or part.origin is None or not _same(part.origin, target):
        return None
    sound = record(parse(part.opaque)).get("type") in _REPLAYED
    return msgspec.Raw(part.opaque.encode()) if sound else None


def _same(origin: Origin, target: Target) -> bool:
    """A dated name and its alias are one model: the answer bears the dated one."""
    wanted = _ALIAS.sub("", target.wire_model or target.name)
    return origin.provider == target.preset.name and _ALIAS.sub("", origin.model) == wanted


def _id(given: str) -> str:
    """An id of another provider may hold what is refused here; call and result change alike."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", given)


def final_answer(request: LLMRequest) -> bool:
    """Whether the conversation ends with an answer that is to be continued."""
    turns = [message for message in request.messages if message.role != "system"]
    return bool(turns) and turns[-1].role == "assistant" and bool(text_of(turns[-1].parts).strip())


def encode(target: Target, request: LLMRequest, stream: bool) -> Result[WireRequest, LLMError]:
    """Write a request for ``/v1/messages``; one that cannot be said there is an ``InvalidRequest``.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> claude = target_of("claude", ModelConfig(provider="anthropic", model="claude-opus-5-5", api_key="k")).unwrap()
    >>> encode(claude, LLMRequest(prompt="why?"), False).unwrap().body
    b'{"model":"claude-opus-5-5","max_tokens":8192,"messages":[{"role":"user","content":[{"type":"text","text":"why?"}]}]}'
    """
    turns = turns_of(target, request)
    problem = unsendable(request, turns) or _unfit(target, request)
    if problem is not None:
        return Failure(invalid(target, request, problem))
    settings, warnings = settings_of(target, request)
    system = system_of(request)
    body = {
        "model": target.wire_model or target.name,
        **settings,
        **({} if system is None else {"system": system}),
        "messages": turns,
        **({"stream": True} if stream else {}),
    }
    return Success(wire_request(target, "/v1/messages", body, (*warnings, *moved_system(request))))


def _unfit(target: Target, request: LLMRequest) -> str | None:
    if target.capabilities.prefill is False and final_answer(request):
        return "messages: the last one is an assistant's, which this model does not continue: end with a user's turn"
    schema = None if target.capabilities.schema is False else request.response_schema
    return misfit(target, schema) or None if schema is not None else None


ANTHROPIC: Final = Provider(
    encode=encode,
    decode=decode,
    classify=classify,
    decode_event=decode_event,
    finish=finish,
)
"""The Messages API as plain functions."""
