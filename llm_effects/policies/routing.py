"""The candidates, one after the other, until one answers."""

from functools import partial

import anyio
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Failure

from llm_effects.effects.call import Call, CallHistory, Sink, changed
from llm_effects.effects.effect import Answer, Effect, Generate, effect, run
from llm_effects.effects.env import LLMEnv
from llm_effects.providers.registry import target_of
from llm_effects.routing.candidates import RoutingContext
from llm_effects.routing.router import Ranked, left_after, order
from llm_effects.values.errors import Fallback, LLMError, RequestFailed, fallback_for
from llm_effects.values.events import StreamEvent, TextDelta
from llm_effects.values.messages import Message, Text
from llm_effects.values.requests import Allow, LLMRequest, Recovery, conversation
from llm_effects.values.responses import LLMResponse

# What the next candidate is asked when an answer broke off after its consumer had seen some of it.


def recovery_call(call: Call, model: str, env: LLMEnv) -> Call:
    """Give the next candidate its call: the same one before any content, else to resume or to begin again.

    Resuming needs a model that goes on from a given beginning, and a beginning that is only text.
    """
    history = call.history
    if not history.contents:
        return call
    resumable = history.partial.strip() and not history.acted and call.request.recovery is Recovery.RESUME
    if resumable and _can_prefill(model, env):
        sink = seamless(call.sink) if call.sink is not None and history.partial[-1].isspace() else call.sink
        request = prefilled(call.request, history.partial)
        return changed(call, request=request, sink=sink, before=history.contents, continues=True)
    return changed(call, before=history.contents)


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


def joined(attempt: Call, history: CallHistory, response: LLMResponse) -> LLMResponse:
    """The whole answer: what was delivered of it before this attempt, and this attempt's part."""
    if not attempt.continues:
        return response
    note = f"the beginning is another model's; {attempt.model} went on from there"
    parts = (Text(history.partial), *(part for part in response.parts if not isinstance(part, Text)))
    return evolve(response, content=history.partial, parts=parts, warnings=(*response.warnings, note))


def _can_prefill(model: str, env: LLMEnv) -> bool:
    target = target_of(model, env.config.models[model])
    return is_successful(target) and target.unwrap().capabilities.prefill is True


def golden(count: int) -> float:
    """Spread numbers over 0 to 1 more evenly than chance: the fractions of multiples of the golden ratio.

    The number changes with every call and with nothing else, so ``explain`` draws what ``generate`` will draw.

    >>> [round(golden(count), 2) for count in range(4)]
    [0.0, 0.62, 0.24, 0.85]
    """
    return count * 0.6180339887498949 % 1.0


def routing_context(
    request: LLMRequest,
    env: LLMEnv,
    last_model: str | None = None,
    tokens: int | None = None,
    *,
    streamed: bool = False,
) -> RoutingContext:
    """Gather what the environment knows now.

    ``last_model`` is who answered last in its conversation; ``tokens`` is what it takes, where that is known.
    """
    calls = env.health.calls()
    return RoutingContext(
        statistics=env.health.statistics(),
        prices=env.prices,
        tokens=env.tokens.estimate(request) if tokens is None else tokens,
        last_model=last_model,
        calls=calls,
        drawn=golden(calls),
        now=anyio.current_time(),
        at=env.now(),
        streamed=streamed,
        opened=env.limits.opened(),
    )


def with_routing(inner: Generate) -> Generate:
    """Ask the candidates in order; after an error those that ``fallback_for`` leaves.

    When all are spent, a single error is given as it is and several as ``RequestFailed`` with every one of them.
    """

    def try_candidates(call: Call) -> Effect[LLMResponse]:
        async def perform(env: LLMEnv) -> Answer:
            facts = routing_context(call.request, env, call.last_model, call.tokens, streamed=call.sink is not None)
            env.health.begin_call()
            found = order(call.request, env.config, facts)
            if not is_successful(found):
                return Failure(found.failure())
            return await _first_answer(inner, call, env, found.unwrap())

        return effect(perform)

    return try_candidates


async def _first_answer(inner: Generate, call: Call, env: LLMEnv, candidates: tuple[Ranked, ...]) -> Answer:
    chosen, *rest = candidates
    attempt = call
    while True:
        attempt = changed(attempt, model=chosen.model, alternatives=len(rest))
        result = await run(inner(attempt), env)
        if is_successful(result):
            return result.map(partial(joined, attempt, call.history))
        if call.committed and call.request.recovery is Recovery.FAIL:
            return result
        left = left_after(result.failure(), chosen, rest, call.request.allow)
        if not left or len(call.history.attempts) >= env.config.routing.max_attempts:
            return Failure(_final(result.failure(), call))
        chosen, *rest = left
        attempt = recovery_call(call, chosen.model, env)


def _final(error: LLMError, call: Call) -> LLMError:
    """All errors when all candidates failed; one that forbids going on, or the only one, speaks for itself."""
    fallback, errors = fallback_for(error), tuple(call.history.errors)
    not_allowed = fallback is Fallback.IF_ALLOWED and Allow.FALLBACK_ON_REFUSAL not in call.request.allow
    if fallback is Fallback.NEVER or not_allowed or len(errors) <= 1:
        return error
    hints = [each.retry_after for each in errors if each.retry_after is not None]
    return RequestFailed(errors=errors, retry_after=min(hints, default=None))
