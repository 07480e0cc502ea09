"""What the next candidate is asked when an answer broke off after its consumer had seen some of it."""

from attrs import evolve
from returns.pipeline import is_successful

from llm_effects.calls import Call, Sink, Trail, changed
from llm_effects.env import LLMEnv
from llm_effects.events import StreamEvent, TextDelta
from llm_effects.messages import Message, Text
from llm_effects.providers.registry import target_of
from llm_effects.requests import LLMRequest, Recovery, conversation
from llm_effects.responses import LLMResponse


def recovered(call: Call, model: str, env: LLMEnv) -> Call:
    """Give the next candidate its call: the same one before any content, else to resume or to begin again.

    Resuming needs a model that goes on from a given beginning, and a beginning that is only text.
    """
    trail = call.trail
    if not trail.contents:
        return call
    resumable = trail.partial.strip() and not trail.acted and call.request.recovery is Recovery.RESUME
    if resumable and _can_prefill(model, env):
        sink = seamless(call.sink) if call.sink is not None and trail.partial[-1].isspace() else call.sink
        request = prefilled(call.request, trail.partial)
        return changed(call, request=request, sink=sink, before=trail.contents, continues=True)
    return changed(call, before=trail.contents)


def prefilled(request: LLMRequest, beginning: str) -> LLMRequest:
    """The request, with the beginning of its answer; providers refuse one that ends in white space.

    >>> prefilled(LLMRequest(prompt="Count."), "one, two, ").messages[-1]
    Message(role='assistant', parts=(Text(text='one, two,'),))
    """
    turns = (*conversation(request), Message("assistant", (Text(beginning.rstrip()),)))
    return evolve(request, prompt=None, messages=turns)


def seamless(sink: Sink) -> Sink:
    """Drop the white space that a continuation begins with, where the beginning ended in some of its own."""
    begun = False

    async def deliver(event: StreamEvent) -> None:
        nonlocal begun
        if isinstance(event, TextDelta) and not begun:
            event = TextDelta(event.text.lstrip())
            begun = bool(event.text)
        if event != TextDelta(""):
            await sink(event)

    return deliver


def joined(attempt: Call, trail: Trail, response: LLMResponse) -> LLMResponse:
    """The whole answer: what was delivered of it before this attempt, and this attempt's part."""
    if not attempt.continues:
        return response
    note = f"the beginning is another model's; {attempt.model} went on from there"
    parts = (Text(trail.partial), *(part for part in response.parts if not isinstance(part, Text)))
    return evolve(response, content=trail.partial, parts=parts, warnings=(*response.warnings, note))


def _can_prefill(model: str, env: LLMEnv) -> bool:
    target = target_of(model, env.config.models[model])
    return is_successful(target) and target.unwrap().capabilities.prefill is True
