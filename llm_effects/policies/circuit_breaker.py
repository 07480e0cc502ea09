"""Circuit breakers: a model that keeps failing is skipped for a while, so that calls go where they are answered."""

from __future__ import annotations

import math
from collections.abc import Awaitable

from attrs import evolve
from returns.future import FutureResult
from returns.result import Failure, Success

from llm_effects.effects.call import Call, Sink
from llm_effects.effects.effect import Answer, Generate, layer, proceed, result_of
from llm_effects.effects.env import LLMEnv
from llm_effects.limits.circuit_breaker import BreakerPermit
from llm_effects.routing.statistics import ended_too_soon
from llm_effects.values.errors import Blame, LLMError, blame_for, is_retryable
from llm_effects.values.events import ReasoningDelta, StreamEvent, TextDelta, ToolCallDelta


@layer
def with_circuit_breaker(next: Generate, call: Call, env: LLMEnv) -> Awaitable[Answer]:
    """Reject attempts while the model's breaker is open, as ``RoutingConfig.breaker`` says.

    The last candidate of a call is tried anyway, once, if none of the errors before it may pass by itself: a missing
    key, a window that is too small, an open breaker. So a breaker never removes the last usable model.
    """
    return _guarded(next, call, env) if env.config.routing.breaker.enabled else proceed(next, call, env)


def _guarded(next: Generate, call: Call, env: LLMEnv) -> Awaitable[Answer]:
    permit = env.limits.admit(call.model, call.deadline, force=_is_last_hope(call))
    if isinstance(permit, BreakerPermit):
        return _observed(next, call, env, permit)
    return _admitted(next, call, env, permit)


async def _admitted(next: Generate, call: Call, env: LLMEnv, permit: FutureResult[BreakerPermit, LLMError]) -> Answer:
    admitted = await result_of(permit)
    if not isinstance(admitted, Success):
        return Failure(admitted.failure())
    return await _observed(next, call, env, admitted.unwrap())


def _is_last_hope(call: Call) -> bool:
    """Return whether this is the last candidate and no error so far, its own included, may pass by itself."""
    return call.attempt.alternatives == 0 and not any(map(is_retryable, call.history.errors))


async def _observed(next: Generate, call: Call, env: LLMEnv, permit: BreakerPermit) -> Answer:
    failed: bool | None = None
    if permit.kind == "probe" and call.sink is not None:
        call = evolve(call, sink=_closing(call.sink, call.model, env, permit))
    try:
        result = await proceed(next, call, env)
        failed = _failed(result, call, env)
    finally:  # a cancelled attempt says nothing about the model; a cancelled probe is returned
        await env.limits.record(call.model, env.config.routing.breaker, permit, failed=failed)
    return result


def _closing(sink: Sink, model: str, env: LLMEnv, permit: BreakerPermit) -> Sink:
    """Return a sink that closes the breaker at the probe's first content, rather than at the end of a long stream."""
    closed = False

    async def deliver(event: StreamEvent) -> None:
        nonlocal closed
        if not closed and isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta):
            closed = True
            await env.limits.record(model, env.config.routing.breaker, permit, failed=False)
        await sink(event)

    return deliver


def _failed(result: Answer, call: Call, env: LLMEnv) -> bool | None:
    """Return whether the model failed, or ``None`` where the outcome says nothing about it."""
    if isinstance(result, Success):
        return False
    error = result.failure()
    return None if blame_for(error) is not Blame.SERVER or _was_cut_short(error, call, env) else True


def _was_cut_short(error: LLMError, call: Call, env: LLMEnv) -> bool:
    """Return whether a share of the time ended too soon for a model that usually answers."""
    if call.attempt.first_content_by == math.inf:
        return False
    return ended_too_soon(error, env.health.statistics().get(call.model), streamed=call.sink is not None)
