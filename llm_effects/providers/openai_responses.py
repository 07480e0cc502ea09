"""OpenAI's Responses."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Final

import msgspec
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.providers.base import Provider
from llm_effects.providers.capabilities import gpt_rules, nearest_effort
from llm_effects.providers.draft import (
    NO_EVENTS,
    Draft,
    Events,
    Object,
    PartDraft,
    PartKind,
    citations_of_annotations,
    cite,
    compare_models,
    complete,
    decode_answer,
    flush_held,
    grow,
    grow_text,
    malformed,
    may_think,
    not_json,
    note_unread,
    refuse,
    reported_error,
    response_of,
    runs_at_server,
    split_whole,
    thoughts_before,
)
from llm_effects.providers.error_mapping import classify, filtered_categories
from llm_effects.providers.json_schema import openai_format
from llm_effects.providers.message_encoding import (
    NO_SETTINGS,
    Encoded,
    Settings,
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
    tool_head,
)
from llm_effects.providers.plain_answers import (
    OutputDelta,
    Slot,
    output_delta,
    plain_output,
    responses_usage,
    with_tier,
)
from llm_effects.providers.prompt_caching import cache_key_of
from llm_effects.providers.sse import ServerEvent
from llm_effects.providers.target import Target, openai_request
from llm_effects.providers.wire import WireRequest, WireResponse
from llm_effects.values import caps
from llm_effects.values.errors import LLMError
from llm_effects.values.events import StreamEvent, ToolCallDelta
from llm_effects.values.json import Unreadable, as_list, as_object, as_string, has_error, json_text, parse
from llm_effects.values.messages import (
    Citation,
    Document,
    Image,
    Message,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
    text_of,
)
from llm_effects.values.requests import LLMRequest, ReasoningEffort, Tool
from llm_effects.values.responses import FinishReason, LLMResponse

# === Encoding requests


def encode(target: Target, request: LLMRequest, stream: bool) -> Result[WireRequest, LLMError]:
    """Encode a request for ``/responses``, one that the server does not store.

    Settings that the model does not accept are dropped, with a warning; messages that cannot be sent are an error.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> gpt = target_of("gpt", ModelConfig(provider="openai-responses", model="gpt-4.1", api_key="sk-x")).unwrap()
    >>> encode(gpt, LLMRequest(prompt="hi", system="Be brief."), False).unwrap().body
    b'{"model":"gpt-4.1","instructions":"Be brief.","input":[{"role":"user","content":"hi"}],"store":false}'
    """
    turns = encode_messages(target, request)
    problem = message_problem(request, turns)
    if problem is not None:
        return Failure(invalid(target, request, problem))
    settings, warnings = merge_settings(encoder(target, request) for encoder in _SETTINGS)
    body = {
        **({"model": target.wire_model} if target.wire_model else {}),
        **({"instructions": request.system} if request.system else {}),
        "input": turns,
        **settings,
        **(cache_key_of(target, request) if request.conversation else {}),
        "store": False,
        **({"stream": True} if stream else {}),
    }
    return Success(openai_request(target, "/responses", body, warnings))


# --- Messages, as input items: turns, tool calls, their results and sealed thinking


def encode_messages(target: Target, request: LLMRequest) -> list[Encoded]:
    """Encode every message; the request's system text is not an item but the ``instructions``.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> gpt = target_of("gpt", ModelConfig(provider="openai-responses", model="gpt-6-luna", api_key="sk-x")).unwrap()
    >>> encode_messages(gpt, LLMRequest(prompt="hi"))
    [{'role': 'user', 'content': 'hi'}]
    """
    if request.prompt:
        return [{"role": "user", "content": request.prompt}]
    return [item for message in request.messages for item in _input_items(target, message)]


def _input_items(target: Target, message: Message) -> list[Encoded]:
    if message.role != "assistant":
        return list(_user_items(message))
    answer = [item for part in message.parts for item in _assistant_items(target, part)]
    while answer and isinstance(answer[-1], msgspec.Raw):
        answer.pop()  # the server refuses thinking without the item that followed it
    return answer


def _user_items(message: Message) -> Iterator[Encoded]:
    """Yield an item for each tool result, then one for the rest of the message."""
    for part in message.parts:
        if isinstance(part, ToolResult):
            yield {"type": "function_call_output", "call_id": part.call_id, "output": part.content}
    role = "system" if message.role == "system" else "user"
    rest = [part for part in map(inline_document, message.parts) if isinstance(part, Text | Image | Document)]
    if any(isinstance(part, Image | Document) for part in rest):
        yield {"role": role, "content": [_block(part) for part in rest]}
    elif text := text_of(rest):
        yield {"role": role, "content": text}


def _block(part: Text | Image | Document) -> Mapping[str, object]:
    match part:
        case Text():
            return {"type": "input_text", "text": part.text}
        case Image():
            return {"type": "input_image", "image_url": data_url(part)}
        case Document(data=None, url=str() as url):
            return {"type": "input_file", "file_url": url}
        case Document():
            return {"type": "input_file", "filename": file_name(part), "file_data": data_url(part)}


def _assistant_items(target: Target, part: Part) -> Iterator[Encoded]:
    match part:
        case Text() if part.text:
            yield {"role": "assistant", "content": part.text}
        case ToolCall():
            arguments = encode_arguments(part.arguments)
            yield {"type": "function_call", "call_id": part.id, "name": part.name, "arguments": arguments}
        case Reasoning(opaque=str() as sealed) if part.origin == own_origin(target) and _is_thinking(sealed):
            yield msgspec.Raw(sealed.encode())
        case _:
            return


def _is_thinking(sealed: str) -> bool:
    return as_object(parse(sealed)).get("type") == "reasoning"


# --- Settings

_LEAST_LIMIT: Final = 16
_NO_REASONING: Final = (None, "none")


def _limit(target: Target, request: LLMRequest) -> Settings:
    limit = output_limit(target, request)
    if limit is None:
        return NO_SETTINGS
    if limit < _LEAST_LIMIT:
        warning = f"max_tokens: {limit} is sent as {_LEAST_LIMIT}, the least that the protocol accepts"
        return {"max_output_tokens": _LEAST_LIMIT}, (warning,)
    return {"max_output_tokens": limit}, ()


def _sampling(target: Target, request: LLMRequest) -> Settings:
    values, reason = sampling(target, request), _no_sampling(target, request)
    return (values, ()) if reason is None else ({}, tuple(f"{name}: dropped, {reason}" for name in values))


def _no_sampling(target: Target, request: LLMRequest) -> str | None:
    if target.capabilities.sampling is False:
        return f"{target.name} does not accept it"
    effort, _ = _effort(target, request)
    return None if effort in _NO_REASONING else "a model that reasons accepts no sampling settings"


def _unsupported(_: Target, request: LLMRequest) -> Settings:
    values = {"stop": request.preferences.stop or None, "seed": request.preferences.seed}
    return {}, tuple(f"{name}: dropped, Responses has none" for name, value in values.items() if value is not None)


def _reasoning(target: Target, request: LLMRequest) -> Settings:
    """Ask for a summary of requested thinking, and for sealed thinking: nothing is stored at the server to refer to."""
    sealed = {"include": ["reasoning.encrypted_content"]} if target.capabilities.reasoning is True else {}
    effort, warnings = _effort(target, request)
    if effort is None:
        return sealed, warnings
    summary = {} if effort in _NO_REASONING else {"summary": "auto"}
    return {"reasoning": {"effort": effort, **summary}, **sealed}, warnings


def _effort(target: Target, request: LLMRequest) -> tuple[ReasoningEffort | None, tuple[str, ...]]:
    """Return the requested effort, or the nearest one that the model accepts, preferring the next higher one."""
    effort = request.preferences.reasoning_effort
    if effort is None:
        return None, ()
    if target.capabilities.reasoning is False:
        return None, (f"reasoning_effort: dropped, {target.name} does not accept it",)
    accepted = gpt_rules(target.wire_model or "").efforts
    if effort in accepted:
        return effort, ()
    nearest = nearest_effort(effort, accepted)
    return nearest, (f"reasoning_effort: {effort} is sent as {nearest}",)


def _answer_format(target: Target, request: LLMRequest) -> Settings:
    if request.response_schema is None:
        return NO_SETTINGS
    form, warnings = openai_format(target, request.response_schema)
    return {"text": {"format": {"type": "json_schema", **form}}}, warnings


def _tools(_: Target, request: LLMRequest) -> Settings:
    if not request.tools:
        return NO_SETTINGS
    choice = request.tool_choice
    value = choice if choice in {None, "auto", "none", "required"} else {"type": "function", "name": choice}
    return {"tools": [_tool(tool) for tool in request.tools], **({"tool_choice": value} if value else {})}, ()


def _tool(tool: Tool) -> Mapping[str, object]:
    # Strict is the default there: it refuses many schemas and makes every argument a required one.
    return {"type": "function", **tool_head(tool), "parameters": tool.parameters, "strict": False}


_SETTINGS: Final[tuple[Callable[[Target, LLMRequest], Settings], ...]] = (
    _limit,
    _sampling,
    _unsupported,
    _reasoning,
    _answer_format,
    _tools,
)


# === Decoding whole answers


def decode(target: Target, response: WireResponse) -> Result[LLMResponse, LLMError]:
    """Decode a whole 2xx answer; an error inside it is classified by its own code."""
    plain = plain_output(target, response)
    return decode_answer(target, response, _read_answer) if plain is None else Success(plain)


def _read_answer(draft: Draft, answer: Object, response: WireResponse) -> Result[LLMResponse, LLMError]:
    if has_error(answer) or answer.get("status") == "failed":
        return Failure(_failure(draft, answer, response))
    if not isinstance(answer.get("output"), list):
        return Failure(malformed(draft, "the answer has no output: check the endpoint"))
    ended = _add_end(draft, answer, as_string(answer.get("status")))
    return finish(draft) if is_successful(ended) else Failure(ended.failure())


_NO_RESPONSE: Final = WireResponse(status=200)
_NO_REASON: Final = {"code": "server_error", "message": "the server failed without a reason"}


def _failure(draft: Draft, answer: Object, response: WireResponse = _NO_RESPONSE) -> LLMError:
    _add_metadata(draft, answer)
    error = answer.get("error") or (_NO_REASON if answer.get("status") == "failed" else answer)
    return reported_error(draft, error, response)


def _add_metadata(draft: Draft, response: Object) -> None:
    draft.served_model = as_string(response.get("model")) or draft.served_model
    draft.request_id = draft.request_id or as_string(response.get("id")) or None
    draft.served_tools = as_list(response.get("tools")) or draft.served_tools
    usage = as_object(response.get("usage"))
    if usage:
        draft.usage = with_tier(responses_usage(usage), draft.target, response.get("service_tier"))


def _add_end(draft: Draft, response: Object, status: str) -> Events:
    """Add the whole response at the end and return the events of what was not streamed."""
    if status == "failed" or response.get("error"):
        return Failure(_failure(draft, {**response, "status": "failed"}))
    _add_metadata(draft, response)
    events = _add_output(draft, as_list(response.get("output"))).map(lambda added: (*added, *flush_held(draft)))
    if is_successful(events):
        _set_finish_reason(draft, response, status)
    return events if draft.done else Failure(malformed(draft, f"the answer is {status!r}, not completed"))


def _set_finish_reason(draft: Draft, response: Object, status: str) -> None:
    if status not in {"", "completed", "incomplete"}:
        return
    reason = as_string(as_object(response.get("incomplete_details")).get("reason"))
    draft.done = True
    draft.finish_reason = FinishReason.LENGTH if status == "incomplete" else FinishReason.STOP
    if not status:
        draft.doubt("the server sent no status: 'completed' was assumed")
    if reason == "content_filter":
        draft.refusal = draft.refusal or _azure_categories(response) or reason
    elif status == "incomplete" and reason not in {"max_output_tokens", "max_tokens"}:
        draft.doubt(f"the answer is incomplete because of {reason!r}")


def _azure_categories(response: Object) -> str:
    """Return the categories in which Azure's filters struck."""
    filters = map(as_object, as_list(response.get("content_filters")))
    categories = (filtered_categories(each.get("content_filter_results")) for each in filters)
    return ", ".join(filter(None, categories))


def _add_output(draft: Draft, output: list[object]) -> Events:
    """Add every item whole: complete the streamed ones, and put the parts into the order of the output."""
    events: list[StreamEvent] = []
    positions: dict[int, int] = {}
    for position, item in enumerate(map(as_object, output[: caps.PARTS + 1])):
        slot = _known_slot(draft, (as_string(item.get("id")), position, f"whole {position}"), positions)
        added = add_item(draft, slot, item)
        if not is_successful(added):
            return added
        events.extend(added.unwrap())
        if slot in draft.slots:
            positions[id(draft.slots[slot])] = position
        if draft.tagged is not None and item.get("type") == "message":
            positions.setdefault(id(draft.tagged), position)
    draft.parts.sort(key=lambda part: positions.get(id(part), len(positions)))
    return Success(tuple(events))


# === Decoding streams

_DONE: Final = "[DONE]"
_TERMINALS: Final = frozenset({"completed", "incomplete", "failed"})


def decode_event(draft: Draft, event: ServerEvent) -> Events:
    """Add an event to the draft and return the events to emit; ignore unknown events and all after the end."""
    if draft.done or event.data.startswith(_DONE):
        return NO_EVENTS
    piece = output_delta(event)
    if piece is not None and piece.type in _GROW:
        return Success(_GROW[piece.type](draft, piece))
    value = parse(event.data)
    if isinstance(value, Unreadable):
        return not_json(draft, event, value)
    body = as_object(value)
    if event.name == "error" or has_error(body):
        return Failure(_failure(draft, body))
    kind = as_string(body.get("type")) or as_string(body.get("object")) or event.name
    if kind in _GROW:
        return Success(_GROW[kind](draft, OutputDelta.of(kind, body)))
    handle = _HANDLERS.get(kind)
    return NO_EVENTS if handle is None else handle(draft, body)


def finish(draft: Draft) -> Result[LLMResponse, LLMError]:
    """Read the draft at the end of the stream: only a terminal event makes a whole answer."""
    if draft.finish_reason is FinishReason.STOP and any(call.name for call in draft.calls):
        draft.finish_reason = FinishReason.TOOL_CALLS
    compare_models(draft)
    return response_of(draft)


def _slot(event: Object) -> Slot:
    return OutputDelta.of("", event).slot


def _known_slot(draft: Draft, slots: tuple[Slot, ...], taken: Mapping[int, int]) -> Slot:
    """Return the first slot of a part that is not taken, else the last slot."""
    known = (slot for slot in slots if slot in draft.slots and id(draft.slots[slot]) not in taken)
    return next(known, slots[-1])


def _on_start(draft: Draft, event: Object) -> Events:
    _add_metadata(draft, as_object(event.get("response")))
    return NO_EVENTS


def _on_item(draft: Draft, event: Object) -> Events:
    item = as_object(event.get("item"))
    item_id = as_string(item.get("id"))
    slot = _slot({"item_id": item_id, **event})
    events = add_item(draft, slot, item)
    if item_id and slot in draft.slots:
        draft.slots.setdefault(item_id, draft.slots[slot])
    return events


def _on_all_arguments(draft: Draft, event: Object) -> Events:
    arguments = as_string(event.get("arguments")) or as_string(event.get("input"))
    return Success(complete(draft, _part(draft, _slot(event), "tool"), arguments))


def _on_refusal(draft: Draft, event: Object) -> Events:
    refuse(draft, as_string(event.get("delta")))
    return NO_EVENTS


def _on_end(draft: Draft, event: Object) -> Events:
    response = as_object(event.get("response")) or event
    status = as_string(response.get("status"))
    named = as_string(event.get("type")).removeprefix("response.")
    return _add_end(draft, response, status if status in _TERMINALS else named)


_HANDLERS: Final[Mapping[str, Callable[[Draft, Object], Events]]] = {
    **dict.fromkeys(("response.created", "response.queued", "response.in_progress"), _on_start),
    **dict.fromkeys(("response.output_item.added", "response.output_item.done"), _on_item),
    "response.refusal.delta": _on_refusal,
    **dict.fromkeys(
        ("response.function_call_arguments.done", "response.custom_tool_call_input.done"), _on_all_arguments
    ),
    **dict.fromkeys(("response.completed", "response.incomplete", "response.failed", "response"), _on_end),
}


def _grow_text(draft: Draft, event: OutputDelta) -> tuple[StreamEvent, ...]:
    part, piece = _part(draft, event.slot, "text"), event.delta
    return grow_text(draft, part, piece) if may_think(draft, part, piece) else grow(part, piece)


def _grow_arguments(draft: Draft, event: OutputDelta) -> tuple[StreamEvent, ...]:
    return grow(_part(draft, event.slot, "tool"), event.delta)


def _grow_summary(draft: Draft, event: OutputDelta) -> tuple[StreamEvent, ...]:
    return _grow_paragraph(draft, event, f"{event.slot}/summary {event.summary_index}")


def _grow_thinking(draft: Draft, event: OutputDelta) -> tuple[StreamEvent, ...]:
    return _grow_paragraph(draft, event, f"{event.slot}/content {event.content_index}")


def _grow_paragraph(draft: Draft, event: OutputDelta, place: str) -> tuple[StreamEvent, ...]:
    """Append a piece of thinking, with a blank line before a new paragraph."""
    part = _part(draft, event.slot, "reasoning")
    if not event.delta:
        return ()
    starts = bool(part.pieces) and place not in draft.slots
    draft.slots[place] = part
    return grow(part, _BLANK_LINE + event.delta if starts else event.delta)


_GROW: Final[Mapping[str, Callable[[Draft, OutputDelta], tuple[StreamEvent, ...]]]] = {
    "response.output_text.delta": _grow_text,
    "response.function_call_arguments.delta": _grow_arguments,
    "response.custom_tool_call_input.delta": _grow_arguments,
    "response.reasoning_summary_text.delta": _grow_summary,
    "response.reasoning_text.delta": _grow_thinking,
}


# === The items of answers, whole or streamed: each is a part of the draft

_BLANK_LINE: Final = "\n\n"


def add_item(draft: Draft, slot: Slot, item: Object) -> Events:
    """Add an item as far as it goes; adding it again adds what is new. Ignore the items of other tools."""
    match item.get("type"):
        case "message":
            _add_refusal(draft, item)
            part = _part(draft, slot, "text")
            _cite(draft, part, item)
            return Success(_complete_text(draft, part, "".join(_texts(item, "output_text", "text"))))
        case "reasoning":
            part = _part(draft, slot, "reasoning")
            if item.get("encrypted_content") or item.get("content"):  # otherwise there is nothing to send back
                part.opaque = json_text(item)
            return Success(complete(draft, part, _BLANK_LINE.join(filter(None, _thoughts(item)))))
        case "function_call" | "custom_tool_call":
            return _add_call(draft, slot, item)
        case kind:
            note_unread(draft, kind)
            return NO_EVENTS


def _cite(draft: Draft, part: PartDraft, item: Object) -> None:
    """Replace the citations of a message, if the item has any."""
    citations = list(islice(_citations(item), caps.CITATIONS + 1))
    if citations:
        draft.cited -= len(part.citations)
        part.citations = ()
        cite(draft, part, citations)


def _add_refusal(draft: Draft, item: Object) -> None:
    refusals = list(_texts(item, "refusal", "refusal"))
    if refusals:
        draft.refusal, draft.refusal_text = "refusal", refusals


def _texts(item: Object, kind: str, field: str) -> Iterator[str]:
    for block in map(as_object, as_list(item.get("content"))):
        if block.get("type") == kind:
            yield as_string(block.get(field))


def _citations(item: Object) -> Iterator[Citation]:
    """Yield the citations of a message, in which each block counts its own characters."""
    offset = 0
    for block in map(as_object, as_list(item.get("content"))):
        length = len(as_string(block.get("text"))) if block.get("type") == "output_text" else 0
        yield from citations_of_annotations(block.get("annotations"), offset, length)
        offset += length


def _thoughts(item: Object) -> Iterator[str]:
    """Yield the summaries of the thinking, and the thinking itself where the server shows it."""
    for block in map(as_object, (*as_list(item.get("summary")), *as_list(item.get("content")))):
        yield as_string(block.get("text"))


def _add_call(draft: Draft, slot: Slot, item: Object) -> Events:
    name = as_string(item.get("name")).strip()
    if not name:
        return Failure(malformed(draft, "a tool call has no name"))
    if item.get("type") == "custom_tool_call" and runs_at_server(draft, name):
        return _skip_call(draft, slot, name)
    part = _part(draft, slot, "tool")
    opened = _name_call(part, name, as_string(item.get("call_id")).strip() or as_string(item.get("id")).strip())
    arguments = json_text(item.get("arguments", item.get("input")))
    return Success((*opened, *complete(draft, part, arguments)))


def _skip_call(draft: Draft, slot: Slot, name: str) -> Events:
    """Turn a call that the server ran into a warning; its pieces go into a part outside of the answer."""
    known = draft.slots.get(slot)
    if known is not None and known.kind == "tool":
        known.name, known.pieces = "", []
    draft.slots[slot] = PartDraft(kind="tool")
    draft.warnings = list(dict.fromkeys((*draft.warnings, f"{name}: the server ran this tool itself")))
    return NO_EVENTS


def _name_call(part: PartDraft, name: str, call_id: str) -> tuple[StreamEvent, ...]:
    if part.name:
        return ()
    part.name, part.id = name, call_id or f"call_{part.index}"
    return (ToolCallDelta(part.index, part.id, name, "".join(part.pieces)),)


def _part(draft: Draft, slot: Slot, kind: PartKind) -> PartDraft:
    """Return the part of a slot; open a new one if there is none of this kind."""
    part = draft.slots.get(slot)
    if part is None or part.kind != kind:
        part = draft.open(PartDraft(kind=kind, index=len(draft.calls)))
        draft.slots[slot] = part
    return part


def _complete_text(draft: Draft, part: PartDraft, whole: str) -> tuple[StreamEvent, ...]:
    """Set the complete text of a part, with the thinking in tags in a part before it."""
    if not whole:
        return ()
    draft.held = ""
    thought, text = split_whole(whole) if may_think(draft, part, whole) else ("", whole)
    thinking = complete(draft, thoughts_before(draft, part), thought) if thought else ()
    return (*thinking, *complete(draft, part, text))


# === The record

OPENAI_RESPONSES: Final = Provider(
    encode=encode, decode=decode, classify=classify, decode_event=decode_event, finish=finish
)
"""The protocol of ``/responses``."""
