"""Limits of each model: calls in flight, and requests and tokens in any minute.

A call reserves an estimate before it is sent; the reservation is replaced by the actual usage after it. A permit that
cannot come in time is an error at once, so that another model is asked and no call sleeps past its deadline.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from math import ceil, inf
from typing import Final

import anyio
from attrs import evolve
from returns.future import FutureResult
from returns.result import Failure, Result, Success

from llm_effects.config import LLMConfig
from llm_effects.effects.call import Call
from llm_effects.effects.effect import Answer, Generate, layer, proceed, result_of
from llm_effects.effects.env import LLMEnv
from llm_effects.limits.quotas import ActualUsage, Allowance, Demand, Permit, Quota, RateLimits, quota_of
from llm_effects.providers.registry import cached_per_config
from llm_effects.routing.candidates import EXPECTED_ANSWER_TOKENS
from llm_effects.values.errors import ContextTooLarge, LLMError, RateLimitExceeded, was_sent
from llm_effects.values.responses import LLMResponse, Usage

_ONE_REQUEST: Final = Demand()


@layer
def with_limits(next: Generate, call: Call, env: LLMEnv) -> Awaitable[Answer]:
    """Wait for a permit: by the model's ``concurrency``, ``requests_per_minute`` and ``tokens_per_minute``.

    The wait ends with ``LimitsConfig.queue_seconds`` or the call's deadline. Limits that the server reports count too,
    with or without limits of our own.
    """
    permit = _acquire(call, env, _quotas(env.config)[call.model])
    if isinstance(permit, Permit):
        return _send(next, call, env, permit)
    return _send_later(next, call, env, permit)


async def _send_later(next: Generate, call: Call, env: LLMEnv, permit: FutureResult[Permit, LLMError]) -> Answer:
    granted = await _queue(call, permit)
    if not isinstance(granted, Success):
        return Failure(granted.failure())
    return await _send(next, call, env, granted.unwrap())


@cached_per_config
def _quotas(config: LLMConfig) -> Mapping[str, Quota]:
    return {name: quota_of(model) for name, model in config.models.items()}


def expected_usage(call: Call, env: LLMEnv) -> Usage:
    """Estimate the usage of an attempt: its prompt in the model's tokens, and the longest answer it allows."""
    prompt = call.turn.tokens if call.turn is not None else None
    if prompt is None:
        prompt = ceil(env.tokens.estimate(call.request) * env.tokens.ratio(call.model))
    longest = call.request.preferences.max_tokens or env.config.models[call.model].max_tokens or EXPECTED_ANSWER_TOKENS
    return Usage(input_tokens=prompt, output_tokens=longest)


def _acquire(call: Call, env: LLMEnv, quota: Quota) -> Permit | FutureResult[Permit, LLMError]:
    demand = _ONE_REQUEST if quota.tokens is None else Demand(tokens=expected_usage(call, env).total_tokens or 0)
    if quota.tokens is not None and demand.tokens > quota.tokens:
        message = f"takes about {demand.tokens} tokens, more than all of a minute: lower max_tokens, or shorten it"
        error = ContextTooLarge(model=call.model, message=message, token_count=demand.tokens, limit=quota.tokens)
        return FutureResult.from_failure(error)
    return env.limits.acquire(call.model, quota, demand, _queue_seconds(call, env), call.deadline)


def _queue_seconds(call: Call, env: LLMEnv) -> float:
    """Return how long a call may queue: at most until the end of the candidate's share of the time."""
    if call.attempt.first_content_by == inf:
        return env.config.limits.queue_seconds
    share_s = call.attempt.first_content_by - call.history.clock()
    return min(env.config.limits.queue_seconds, max(0.0, share_s))


async def _queue(call: Call, permit: FutureResult[Permit, LLMError]) -> Result[Permit, LLMError]:
    call.history.queued += 1
    call.history.enter("queue", call.model, anyio.current_time())
    try:
        return await result_of(permit)
    finally:
        call.history.queued -= 1


async def _send(next: Generate, call: Call, env: LLMEnv, permit: Permit) -> Answer:
    if permit.wait_seconds:
        waited_ms = call.attempt.wait_ms + permit.wait_seconds * 1000
        call = call.with_attempt(evolve(call.attempt, wait_ms=waited_ms))
    usage: ActualUsage | None = None
    try:
        outcome = await proceed(next, call, env)
        usage = _actual_usage(permit, outcome)
    finally:
        if usage is None:  # the attempt was cut off: the model may have worked on it
            usage = ActualUsage(tokens=permit.demand.tokens)
        reported = usage.reported_limits or call.attempt.record.rate_limits
        await env.limits.release(permit, evolve(usage, reported_limits=reported) if reported is not None else usage)
    return outcome.map(lambda response: _with_warning(response, permit.warning)) if permit.warning else outcome


def _with_warning(response: LLMResponse, warning: str) -> LLMResponse:
    return evolve(response, warnings=(*response.warnings, warning))


def _actual_usage(permit: Permit, outcome: Answer) -> ActualUsage:
    if isinstance(outcome, Success):
        counted = outcome.unwrap().usage.total_tokens
        return ActualUsage(tokens=permit.demand.tokens if counted is None else counted)
    error = outcome.failure()
    if not was_sent(error):
        return ActualUsage(requests=0)
    counted = error.usage.total_tokens if error.usage else None
    rejected = 0 if (error.status or 0) >= 400 else permit.demand.tokens  # servers count rejected requests all the same
    return ActualUsage(tokens=counted or rejected, reported_limits=_requested_pause(error))


def _requested_pause(error: LLMError) -> RateLimits | None:
    """Return a 429 as a limit: its pause holds for every caller of the model."""
    if not isinstance(error, RateLimitExceeded) or error.quota or not error.retry_after:
        return None
    return RateLimits(requests=Allowance(remaining=0, reset=error.retry_after), at=anyio.current_time())
