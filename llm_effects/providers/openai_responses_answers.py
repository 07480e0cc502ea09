"""Reading Responses: whole answers and event streams, both by way of one draft."""

from collections.abc import Callable, Mapping
from typing import Final

from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.errors import LLMError
from llm_effects.events import StreamEvent
from llm_effects.providers.base import ServerEvent
from llm_effects.providers.drafts import Draft, interrupted, malformed, response_of
from llm_effects.providers.error_bodies import filtered, request_id
from llm_effects.providers.failures import classify_error_object
from llm_effects.providers.openai_chat_usage import usage_of
from llm_effects.providers.openai_responses_parts import (
    NOTHING,
    Key,
    Object,
    Told,
    complete_call,
    grow_call,
    grow_text,
    grow_thinking,
    take_item,
)
from llm_effects.providers.reading import Unreadable, items, parse, record, string, whole
from llm_effects.providers.served_models import compare_models
from llm_effects.providers.targets import Target
from llm_effects.responses import FinishReason, LLMResponse
from llm_effects.wire import WireResponse

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
