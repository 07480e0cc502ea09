"""OpenAI's Responses: the request, and the protocol's record."""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal, TypeAlias

import msgspec
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.providers.base import Provider
from llm_effects.providers.capabilities import EFFORTS, gpt_rules
from llm_effects.providers.draft import (
    Draft,
    PartDraft,
    compare_models,
    interrupted,
    malformed,
    of_annotations,
    response_of,
)
from llm_effects.providers.error_mapping import classify, classify_error_object, filtered, request_id
from llm_effects.providers.json_schema import openai_format
from llm_effects.providers.message_encoding import data_url, file_name, invalid, read_out, sent_arguments, unsendable
from llm_effects.providers.openai_chat import usage_of
from llm_effects.providers.sse import ServerEvent
from llm_effects.providers.target import Target, written
from llm_effects.providers.wire import WireRequest, WireResponse
from llm_effects.values.errors import LLMError
from llm_effects.values.events import ReasoningDelta, StreamEvent, TextDelta, ToolCallDelta
from llm_effects.values.json import Unreadable, items, json_text, parse, record, string, whole
from llm_effects.values.messages import (
    Citation,
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
from llm_effects.values.requests import LLMRequest, ReasoningEffort, Tool, conversation
from llm_effects.values.responses import FinishReason, LLMResponse

# The items of Responses' answers: each is a part of the draft, grown by deltas and completed by what is told whole.


Object: TypeAlias = dict[str, object]
"""A JSON object as it came."""

Told: TypeAlias = Result[tuple[StreamEvent, ...], LLMError]
"""What one event brought."""

Key: TypeAlias = int | str
"""Where in the answer an item stands, or its id where a server does not say."""

NOTHING: Final[Told] = Success(())
_APART: Final = "\n\n"


def take_item(draft: Draft, key: Key, item: Object) -> Told:
    """Take an item as far as it is told; taking it again adds what is new. Those of other tools tell nothing."""
    match item.get("type"):
        case "message":
            _take_refusal(draft, item)
            part = _part(draft, key, "text")
            part.citations = tuple(_cited(item)) or part.citations
            return Success(_complete(draft, part, "".join(_said(item, "output_text", "text"))))
        case "reasoning":
            part = _part(draft, key, "reasoning")
            if item.get("encrypted_content") or item.get("content"):  # else there is nothing to be sent back
                part.opaque = json_text(item)
            return Success(_complete(draft, part, _APART.join(filter(None, _thoughts(item)))))
        case "function_call" | "custom_tool_call":
            return _take_call(draft, key, item)
        case _:
            return NOTHING


def _take_refusal(draft: Draft, item: Object) -> None:
    refused = list(_said(item, "refusal", "refusal"))
    if refused:
        draft.refusal, draft.refusal_text = "refusal", refused


def _said(item: Object, kind: str, field: str) -> Iterator[str]:
    for told in map(record, items(item.get("content"))):
        if told.get("type") == kind:
            yield string(told.get(field))


def _cited(item: Object) -> Iterator[Citation]:
    """Each piece of a message counts its own characters."""
    offset = 0
    for told in map(record, items(item.get("content"))):
        length = len(string(told.get("text"))) if told.get("type") == "output_text" else 0
        yield from of_annotations(told.get("annotations"), offset, length)
        offset += length


def _thoughts(item: Object) -> Iterator[str]:
    """The summary of the thinking, and the thinking itself where a server shows it."""
    for told in map(record, (*items(item.get("summary")), *items(item.get("content")))):
        yield string(told.get("text"))


def _take_call(draft: Draft, key: Key, item: Object) -> Told:
    name = string(item.get("name")).strip()
    if not name:
        return Failure(malformed(draft, "a tool call has no name"))
    part = _part(draft, key, "tool")
    begun = _named(part, name, string(item.get("call_id")).strip() or string(item.get("id")).strip())
    whole = json_text(item.get("arguments", item.get("input")))
    return Success((*begun, *_complete(draft, part, whole)))


def _named(part: PartDraft, name: str, call_id: str) -> tuple[StreamEvent, ...]:
    if part.name:
        return ()
    part.name, part.id = name, call_id or f"call_{part.index}"
    return (ToolCallDelta(part.index, part.id, name, "".join(part.pieces)),)


def grow_text(draft: Draft, key: Key, piece: str) -> tuple[StreamEvent, ...]:
    """Take more text of a message."""
    return _grow(_part(draft, key, "text"), piece)


def grow_call(draft: Draft, key: Key, piece: str) -> tuple[StreamEvent, ...]:
    """Take more of a call's arguments; until its name is known they are kept and not told."""
    return _grow(_part(draft, key, "tool"), piece)


def grow_thinking(draft: Draft, key: Key, paragraph: str, piece: str) -> tuple[StreamEvent, ...]:
    """Take more thinking; a blank line stands between its paragraphs."""
    part, place = _part(draft, key, "reasoning"), f"{key}/{paragraph}"
    if not piece:
        return ()
    begins = bool(part.pieces) and place not in draft.slots
    draft.slots[place] = part
    return _grow(part, _APART + piece if begins else piece)


def complete_call(draft: Draft, key: Key, arguments: str) -> tuple[StreamEvent, ...]:
    """Take a call's arguments whole."""
    return _complete(draft, _part(draft, key, "tool"), arguments)


def _part(draft: Draft, key: Key, kind: Literal["text", "reasoning", "tool"]) -> PartDraft:
    part = draft.slots.get(key)
    if part is None or part.kind != kind:
        part = PartDraft(kind=kind, index=sum(each.kind == "tool" for each in draft.parts))
        draft.parts.append(part)
        draft.slots[key] = part
    return part


def _grow(part: PartDraft, piece: str) -> tuple[StreamEvent, ...]:
    if not piece:
        return ()
    part.pieces.append(piece)
    return _event(part, piece)


def _complete(draft: Draft, part: PartDraft, whole: str) -> tuple[StreamEvent, ...]:
    """Make a part what it is told to be as a whole, and tell what of it was not told yet."""
    told = "".join(part.pieces)
    if not whole or whole == told:
        return ()
    part.pieces[:] = [whole]
    if whole.startswith(told):
        return _event(part, whole[len(told) :])
    draft.warnings.append("what the stream told piece by piece is not what it told as a whole, which was taken")
    return ()


def _event(part: PartDraft, piece: str) -> tuple[StreamEvent, ...]:
    match part.kind:
        case "text":
            return (TextDelta(piece),)
        case "reasoning":
            return (ReasoningDelta(piece),)
        case "tool":
            return (ToolCallDelta(part.index, part.id, part.name, piece),) if part.name else ()


# Reading Responses: whole answers and event streams, both by way of one draft.


_UNHEARD: Final = WireResponse(status=200)
_SPEECHLESS: Final = {"code": "server_error", "message": "the server gave up without a word"}
_TERMINALS: Final = frozenset({"completed", "incomplete", "failed"})
_DONE: Final = "[DONE]"


def decode(target: Target, response: WireResponse) -> Result[LLMResponse, LLMError]:
    """Read a whole 2xx answer; an error inside of it is what its own code says."""
    draft = Draft(target=target, request_id=request_id(response.headers))
    body = parse(response.body)
    if isinstance(body, Unreadable):
        return Failure(malformed(draft, f"the answer is not JSON ({body.reason}): is the endpoint right?"))
    answer = record(body)
    if _tells_error(answer) or answer.get("status") == "failed":
        return Failure(_failed(draft, answer, response))
    if not isinstance(answer.get("output"), list):
        return Failure(malformed(draft, "the answer holds no output: is the endpoint right?"))
    ended = _end(draft, answer, string(answer.get("status")))
    return finish(draft) if is_successful(ended) else Failure(ended.failure())


def decode_event(draft: Draft, event: ServerEvent) -> Told:
    """Take one event into the draft and tell what it brought; unknown ones, and all after the end, are ignored."""
    if draft.done or event.data.startswith(_DONE):
        return NOTHING
    body = parse(event.data)
    if isinstance(body, Unreadable):
        return _no_json(draft, event, body)
    told = record(body)
    if event.name == "error" or _tells_error(told):
        return Failure(_failed(draft, told))
    take = _EVENTS.get(string(told.get("type")) or string(told.get("object")) or event.name)
    return NOTHING if take is None else take(draft, told)


def finish(draft: Draft) -> Result[LLMResponse, LLMError]:
    """Read the draft when the stream has ended: only a terminal event makes a whole answer."""
    if draft.finish_reason is FinishReason.STOP and any(part.kind == "tool" for part in draft.parts):
        draft.finish_reason = FinishReason.TOOL_CALLS
    compare_models(draft)
    return response_of(draft)


def _tells_error(told: Object) -> bool:
    return bool(told.get("error")) or told.get("type") == "error" or told.get("object") == "error"


def _failed(draft: Draft, told: Object, heard: WireResponse = _UNHEARD) -> LLMError:
    _note(draft, told)
    error = told.get("error") or (_SPEECHLESS if told.get("status") == "failed" else told)
    kind = classify_error_object(draft.target, error, headers=heard.headers, received=heard.received)
    return interrupted(draft, kind)


def _no_json(draft: Draft, event: ServerEvent, why: Unreadable) -> Told:
    if event.name == "error":
        return Failure(interrupted(draft, classify_error_object(draft.target, event.data)))
    return Failure(malformed(draft, f"an event is not JSON: {why.reason}")) if event.data.strip() else NOTHING


def _note(draft: Draft, response: Object) -> None:
    draft.served_model = string(response.get("model")) or draft.served_model
    draft.request_id = draft.request_id or string(response.get("id")) or None
    told = record(response.get("usage"))
    if told:
        details = {"prompt_tokens_details": told.get("input_tokens_details")}
        draft.usage = usage_of({**told, **details, "completion_tokens_details": told.get("output_tokens_details")})


def _begun(draft: Draft, told: Object) -> Told:
    _note(draft, record(told.get("response")))
    return NOTHING


def _item(draft: Draft, told: Object) -> Told:
    item = record(told.get("item"))
    named = string(item.get("id"))
    key = _key({"item_id": named, **told})
    taken = take_item(draft, key, item)
    if named and key in draft.slots:
        draft.slots.setdefault(named, draft.slots[key])
    return taken


def _key(told: Object) -> Key:
    """Where an item stands, or its id where the place is not told: some servers change ids from event to event."""
    place = whole(told.get("output_index"))
    return string(told.get("item_id")) if place is None else place


def _text(draft: Draft, told: Object) -> Told:
    return Success(grow_text(draft, _key(told), string(told.get("delta"))))


def _arguments(draft: Draft, told: Object) -> Told:
    return Success(grow_call(draft, _key(told), string(told.get("delta"))))


def _all_arguments(draft: Draft, told: Object) -> Told:
    return Success(complete_call(draft, _key(told), string(told.get("arguments")) or string(told.get("input"))))


def _summary(draft: Draft, told: Object) -> Told:
    paragraph = f"summary {whole(told.get('summary_index'))}"
    return Success(grow_thinking(draft, _key(told), paragraph, string(told.get("delta"))))


def _thinking(draft: Draft, told: Object) -> Told:
    paragraph = f"content {whole(told.get('content_index'))}"
    return Success(grow_thinking(draft, _key(told), paragraph, string(told.get("delta"))))


def _refusal(draft: Draft, told: Object) -> Told:
    draft.refusal = draft.refusal or "refusal"
    draft.refusal_text.append(string(told.get("delta")))
    return NOTHING


def _ended(draft: Draft, told: Object) -> Told:
    response = record(told.get("response")) or told
    status = string(response.get("status"))
    named = string(told.get("type")).removeprefix("response.")
    return _end(draft, response, status if status in _TERMINALS else named)


def _end(draft: Draft, response: Object, status: str) -> Told:
    if status == "failed" or response.get("error"):
        return Failure(_failed(draft, {**response, "status": "failed"}))
    _note(draft, response)
    told = _take_all(draft, items(response.get("output")))
    if is_successful(told):
        _set_end(draft, response, status)
    return told if draft.done else Failure(malformed(draft, f"the answer is {status!r}, not completed"))


def _take_all(draft: Draft, output: list[object]) -> Told:
    """Take every item whole: what was told piece by piece is completed, and brought into this order."""
    events: list[StreamEvent] = []
    places: dict[int, int] = {}
    for place, item in enumerate(map(record, output)):
        key = _key_among(draft, (string(item.get("id")), place, f"whole {place}"), places)
        told = take_item(draft, key, item)
        if not is_successful(told):
            return told
        events.extend(told.unwrap())
        if key in draft.slots:
            places[id(draft.slots[key])] = place
    draft.parts.sort(key=lambda part: places.get(id(part), len(places)))
    return Success(tuple(events))


def _key_among(draft: Draft, keys: tuple[Key, ...], taken: Mapping[int, int]) -> Key:
    """The first key by which a part is known that is not taken, else the last one."""
    known = (key for key in keys if key in draft.slots and id(draft.slots[key]) not in taken)
    return next(known, keys[-1])


def _set_end(draft: Draft, response: Object, status: str) -> None:
    if status not in {"", "completed", "incomplete"}:
        return
    reason = string(record(response.get("incomplete_details")).get("reason"))
    draft.done = True
    draft.finish_reason = FinishReason.LENGTH if status == "incomplete" else FinishReason.STOP
    if not status:
        draft.warnings.append("the server gave no status: it was taken as 'completed'")
    if reason == "content_filter":
        draft.refusal = draft.refusal or _struck(response) or reason
    elif status == "incomplete" and reason not in {"max_output_tokens", "max_tokens"}:
        draft.warnings.append(f"the answer is incomplete for {reason!r}")


def _struck(response: Object) -> str:
    """The categories in which the filters of Azure struck."""
    filters = map(record, items(response.get("content_filters")))
    return ", ".join(filter(None, (filtered(each.get("content_filter_results")) for each in filters)))


_EVENTS: Final[Mapping[str, Callable[[Draft, Object], Told]]] = {
    **dict.fromkeys(("response.created", "response.queued", "response.in_progress"), _begun),
    **dict.fromkeys(("response.output_item.added", "response.output_item.done"), _item),
    "response.output_text.delta": _text,
    "response.refusal.delta": _refusal,
    **dict.fromkeys(("response.function_call_arguments.delta", "response.custom_tool_call_input.delta"), _arguments),
    **dict.fromkeys(("response.function_call_arguments.done", "response.custom_tool_call_input.done"), _all_arguments),
    "response.reasoning_summary_text.delta": _summary,
    "response.reasoning_text.delta": _thinking,
    **dict.fromkeys(("response.completed", "response.incomplete", "response.failed", "response"), _ended),
}


# The messages of a request as items of input: turns, calls of tools, their results, and sealed thinking.


Item: TypeAlias = Mapping[str, object] | msgspec.Raw
"""An item of input; a raw one goes out byte for byte as it once came."""


def items_of(target: Target, request: LLMRequest) -> list[Item]:
    """Write every message; the request's system text is no item, but the ``instructions``.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> gpt = target_of("gpt", ModelConfig(provider="openai-responses", model="gpt-6-luna", api_key="sk-x")).unwrap()
    >>> items_of(gpt, LLMRequest(prompt="hi"))
    [{'role': 'user', 'content': 'hi'}]
    """
    return [item for message in conversation(request) for item in _items(target, message)]


def _items(target: Target, message: Message) -> list[Item]:
    if message.role != "assistant":
        return list(_asked(message))
    answer = [item for part in message.parts for item in _answered(target, part)]
    while answer and isinstance(answer[-1], msgspec.Raw):
        answer.pop()  # thinking is refused without what it led to
    return answer


def _asked(message: Message) -> Iterator[Item]:
    """A result stands alone, before what is said about it."""
    for part in message.parts:
        if isinstance(part, ToolResult):
            yield {"type": "function_call_output", "call_id": part.call_id, "output": part.content}
    role = "system" if message.role == "system" else "user"
    told = map(read_out, message.parts)
    shown = [part for part in told if isinstance(part, Text | Image | Document)]
    if any(isinstance(part, Image | Document) for part in shown):
        yield {"role": role, "content": [_block(part) for part in shown]}
    elif text := text_of(shown):
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


def _answered(target: Target, part: Part) -> Iterator[Item]:
    match part:
        case Text() if part.text:
            yield {"role": "assistant", "content": part.text}
        case ToolCall():
            arguments = sent_arguments(part.arguments)
            yield {"type": "function_call", "call_id": part.id, "name": part.name, "arguments": arguments}
        case Reasoning(opaque=str() as sealed) if part.origin == _here(target) and _is_thinking(sealed):
            yield msgspec.Raw(sealed.encode())
        case _:
            return


def _here(target: Target) -> Origin | None:
    """Thinking goes back to the very model that thought it, and to no other."""
    return None if target.wire_model is None else Origin(target.preset.name, target.wire_model)


def _is_thinking(sealed: str) -> bool:
    return record(parse(sealed)).get("type") == "reasoning"


# A request's settings in the words of Responses; what the model or the protocol refuses is dropped, with a warning.


Setting: TypeAlias = tuple[Mapping[str, object], tuple[str, ...]]
"""Fields of the body, and what was dropped or changed on the way to them."""

_NONE: Final[Setting] = ({}, ())
_LEAST_LIMIT: Final = 16


def settings_of(target: Target, request: LLMRequest) -> Setting:
    """All settings in one."""
    told = tuple(setting(target, request) for setting in _SETTINGS)
    fields = {name: value for some, _ in told for name, value in some.items()}
    return fields, tuple(warning for _, warnings in told for warning in warnings)


def _limit(target: Target, request: LLMRequest) -> Setting:
    wanted = request.preferences.max_tokens or target.config.max_tokens
    if wanted is None:
        return _NONE
    if wanted < _LEAST_LIMIT:
        why = f"max_tokens: {wanted} is sent as {_LEAST_LIMIT}, the least that the protocol takes"
        return {"max_output_tokens": _LEAST_LIMIT}, (why,)
    return {"max_output_tokens": wanted}, ()


def _sampling(target: Target, request: LLMRequest) -> Setting:
    given = request.preferences.temperature
    temperature = target.config.temperature if given is None else given
    both = {"temperature": temperature, "top_p": request.preferences.top_p}
    wanted = {name: value for name, value in both.items() if value is not None}
    refusal = _no_sampling(target, request)
    return (wanted, ()) if refusal is None else ({}, tuple(f"{name}: dropped, {refusal}" for name in wanted))


def _no_sampling(target: Target, request: LLMRequest) -> str | None:
    if target.capabilities.sampling is False:
        return f"{target.name} does not take it"
    return "a model that thinks takes no sampling settings" if _effort(target, request)[0] not in _QUIET else None


def _unknown(_: Target, request: LLMRequest) -> Setting:
    given = {"stop": request.preferences.stop or None, "seed": request.preferences.seed}
    return {}, tuple(f"{name}: dropped, Responses takes none" for name, value in given.items() if value is not None)


_QUIET: Final = (None, "none")


def _reasoning(target: Target, request: LLMRequest) -> Setting:
    """Thinking is told in summary where it was asked for, and comes back sealed: nothing is stored to refer to."""
    sealed = {"include": ["reasoning.encrypted_content"]} if target.capabilities.reasoning is True else {}
    effort, warnings = _effort(target, request)
    if effort is None:
        return sealed, warnings
    told = {} if effort in _QUIET else {"summary": "auto"}
    return {"reasoning": {"effort": effort, **told}, **sealed}, warnings


def _effort(target: Target, request: LLMRequest) -> tuple[ReasoningEffort | None, tuple[str, ...]]:
    """The wanted effort, or the nearest one that the model takes, the next higher one first."""
    wanted = request.preferences.reasoning_effort
    if wanted is None:
        return None, ()
    if target.capabilities.reasoning is False:
        return None, (f"reasoning_effort: dropped, {target.name} does not take it",)
    taken = gpt_rules(target.wire_model or "").efforts
    if wanted in taken:
        return wanted, ()
    nearest = _nearest(wanted, taken)
    return nearest, (f"reasoning_effort: {wanted} is sent as {nearest}",)


def _nearest(wanted: ReasoningEffort, taken: tuple[ReasoningEffort, ...]) -> ReasoningEffort:
    for effort in taken:
        if EFFORTS.index(effort) > EFFORTS.index(wanted):
            return effort
    return taken[-1]


def _format(target: Target, request: LLMRequest) -> Setting:
    if request.response_schema is None:
        return _NONE
    form, told = openai_format(target, request.response_schema)
    return {"text": {"format": {"type": "json_schema", **form}}}, told


def _tools(_: Target, request: LLMRequest) -> Setting:
    if not request.tools:
        return _NONE
    chosen = request.tool_choice
    plain = chosen in {"auto", "none", "required"}
    choice = {} if chosen is None else {"tool_choice": chosen if plain else {"type": "function", "name": chosen}}
    return {"tools": [_tool(tool) for tool in request.tools], **choice}, ()


def _tool(tool: Tool) -> Mapping[str, object]:
    described = {"description": tool.description} if tool.description else {}
    # left out, strict would be on: it refuses many a schema, and makes every argument a required one
    return {"type": "function", "name": tool.name, **described, "parameters": tool.parameters, "strict": False}


_SETTINGS: Final[tuple[Callable[[Target, LLMRequest], Setting], ...]] = (
    _limit,
    _sampling,
    _unknown,
    _reasoning,
    _format,
    _tools,
)


def encode(target: Target, request: LLMRequest, stream: bool) -> Result[WireRequest, LLMError]:
    """Write a request for ``/responses``, of which the server keeps nothing; what cannot be sent is told.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> gpt = target_of("gpt", ModelConfig(provider="openai-responses", model="gpt-4.1", api_key="sk-x")).unwrap()
    >>> encode(gpt, LLMRequest(prompt="hi", system="Be brief."), False).unwrap().body
    b'{"model":"gpt-4.1","instructions":"Be brief.","input":[{"role":"user","content":"hi"}],"store":false}'
    """
    turns = items_of(target, request)
    problem = unsendable(request, turns)
    if problem is not None:
        return Failure(invalid(target, request, problem))
    settings, warnings = settings_of(target, request)
    body = {
        **({"model": target.wire_model} if target.wire_model else {}),
        **({"instructions": request.system} if request.system else {}),
        "input": turns,
        **settings,
        "store": False,
        **({"stream": True} if stream else {}),
    }
    return written(target, "/responses", body, warnings)


OPENAI_RESPONSES: Final = Provider(
    encode=encode, decode=decode, classify=classify, decode_event=decode_event, finish=finish
)
"""The protocol of ``/responses``."""
