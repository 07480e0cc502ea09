"""The limits of each model: calls under way at once, requests and tokens in any minute.

What a call needs is reserved before it is sent, by an estimate, and put right by what came of it. A turn that cannot
come in time is an error at once, so that another model is asked and nobody sleeps through a deadline.
"""

from math import ceil
from typing import Final

import anyio
from attrs import evolve
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.effects.call import Call, changed
from llm_effects.effects.effect import Answer, Effect, Generate, effect, result_of, run
from llm_effects.effects.env import LLMEnv
from llm_effects.limits.quotas import ActualUsage, Allowance, Demand, Permit, Quota, RateLimits, quota_of
from llm_effects.routing.candidates import EXPECTED_ANSWER
from llm_effects.values.errors import (
    BudgetExceeded,
    ConfigurationError,
    ContextTooLarge,
    InvalidRequest,
    LLMError,
    NetworkError,
    RateLimitExceeded,
    RequestTimeout,
    StorageFailed,
)
from llm_effects.values.responses import LLMResponse, Usage


def with_limits(inner: Generate) -> Generate:
    """Wait for a turn at the model: by its ``concurrency``, ``requests_per_minute``, ``tokens_per_minute``.

    The wait ends with ``LimitsConfig.queue_seconds`` or the call's deadline. What the server says of its limits counts
    too, with or without limits of our own.
    """

    def limit(call: Call) -> Effect[LLMResponse]:
        async def perform(env: LLMEnv) -> Answer:
            entered = _entered(call, env, quota_of(env.config.models[call.model]))
            if isinstance(entered, Permit):
                return await _inside(inner, call, env, entered)
            waited = await _waited(call, entered)
            if is_successful(waited):
                return await _inside(inner, call, env, waited.unwrap())
            call.history.errors.append(waited.failure())
            return Failure(waited.failure())

        return effect(perform)

    return limit


_ONE: Final = Demand()


def expected_usage(call: Call, env: LLMEnv) -> Usage:
    """Estimate what an attempt takes: its prompt as this model counts, and the longest answer that it permits."""
    prompt = call.tokens
    if prompt is None:
        prompt = ceil(env.tokens.estimate(call.request) * env.tokens.ratio(call.model))
    longest = call.request.preferences.max_tokens or env.config.models[call.model].max_tokens or EXPECTED_ANSWER
    return Usage(input_tokens=prompt, output_tokens=longest)


def _entered(call: Call, env: LLMEnv, quota: Quota) -> Permit | FutureResult[Permit, LLMError]:
    need = _ONE if quota.tokens is None else Demand(tokens=expected_usage(call, env).total_tokens or 0)
    if quota.tokens is not None and need.tokens > quota.tokens:
        message = f"takes about {need.tokens} tokens, more than all of a minute: lower max_tokens, or shorten it"
        error = ContextTooLarge(model=call.model, message=message, token_count=need.tokens, limit=quota.tokens)
        return FutureResult.from_failure(error)
    return env.limits.acquire(call.model, quota, need, env.config.limits.queue_seconds, call.deadline)


async def _waited(call: Call, turn: FutureResult[Permit, LLMError]) -> Result[Permit, LLMError]:
    call.history.queued += 1
    try:
        return await result_of(turn)
    finally:
        call.history.queued -= 1


async def _inside(inner: Generate, asked: Call, env: LLMEnv, ticket: Permit) -> Answer:
    call = changed(asked, wait_ms=asked.wait_ms + ticket.waited * 1000) if ticket.waited else asked
    bill: ActualUsage | None = None
    try:
        outcome = await run(inner(call), env)
        bill = _bill(ticket, outcome)
    finally:
        if bill is None:  # it was cut off: the model may have worked on it
            bill = ActualUsage(tokens=ticket.need.tokens)
        said = call.heard.take()
        await env.limits.release(ticket, bill if said is None or bill.said is not None else evolve(bill, said=said))
    return outcome.map(lambda answer: _noted(answer, ticket.note)) if ticket.note else outcome


def _noted(answer: LLMResponse, note: str) -> LLMResponse:
    return evolve(answer, warnings=(*answer.warnings, note))


def _bill(ticket: Permit, outcome: Answer) -> ActualUsage:
    if is_successful(outcome):
        told = outcome.unwrap().usage.total_tokens
        return ActualUsage(tokens=ticket.need.tokens if told is None else told)
    error = outcome.failure()
    if _never_sent(error):
        return ActualUsage(requests=0)
    told = error.usage.total_tokens if error.usage else None
    turned_away = 0 if (error.status or 0) >= 400 else ticket.need.tokens  # servers count such requests all the same
    return ActualUsage(tokens=told or turned_away, said=_told_to_wait(error))


def _never_sent(error: LLMError) -> bool:
    match error:
        case NetworkError():
            return error.phase in {"dns", "connect", "refused", "local"}
        case RequestTimeout():
            return error.phase in {"queue", "connect"}
        case InvalidRequest() | ConfigurationError():
            return error.status is None
        case BudgetExceeded() | StorageFailed():  # what stands inside the limits turned it away
            return True
        case _:
            return False


def _told_to_wait(error: LLMError) -> RateLimits | None:
    """Who was told to wait was told so for all: until then nobody need ask."""
    if not isinstance(error, RateLimitExceeded) or error.quota or not error.retry_after:
        return None
    return RateLimits(requests=Allowance(remaining=0, reset=error.retry_after), at=anyio.current_time())
