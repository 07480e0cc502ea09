"""Reading Anthropic's answers: whole messages and event streams, both by way of one draft."""

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.errors import LLMError
from llm_effects.providers.anthropic_blocks import NOTHING, Object, Told, grow, open_block, seal
from llm_effects.providers.base import ServerEvent
from llm_effects.providers.citations import of_passages
from llm_effects.providers.drafts import Draft, interrupted, malformed, response_of
from llm_effects.providers.error_bodies import request_id
from llm_effects.providers.failures import classify_error_object
from llm_effects.providers.reading import Unreadable, items, parse, record, string, whole
from llm_effects.providers.targets import Target
from llm_effects.responses import FinishReason, LLMResponse, Usage
from llm_effects.wire import WireResponse

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
