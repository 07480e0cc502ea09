"""Reading chat completions: whole answers and event streams, both by way of one draft."""

from typing import Final, TypeAlias

from returns.result import Failure, Result, Success

from llm_effects.errors import LLMError
from llm_effects.events import StreamEvent, TextDelta
from llm_effects.providers.base import ServerEvent
from llm_effects.providers.citations import of_sources
from llm_effects.providers.drafts import Draft, add_text, interrupted, malformed, response_of
from llm_effects.providers.error_bodies import filtered, request_id
from llm_effects.providers.failures import classify_error_object
from llm_effects.providers.openai_chat_deltas import take_delta
from llm_effects.providers.openai_chat_text import just_text
from llm_effects.providers.openai_chat_usage import usage_of
from llm_effects.providers.reading import Unreadable, items, parse, record, string
from llm_effects.providers.served_models import compare_models
from llm_effects.providers.targets import Target
from llm_effects.providers.thinking import rest_of
from llm_effects.responses import FinishReason, LLMResponse
from llm_effects.wire import WireResponse

_Object: TypeAlias = dict[str, object]
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
