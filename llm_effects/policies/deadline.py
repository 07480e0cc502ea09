"""The deadline of the whole call: it covers queueing, every retry and every fallback."""

from __future__ import annotations

import anyio
from returns.result import Failure

from llm_effects.effects.call import Call, limit_ms_of, scope_until
from llm_effects.effects.effect import Answer, Generate, layer, passing_ready, proceed
from llm_effects.effects.env import LLMEnv
from llm_effects.values.errors import RequestTimeout


@passing_ready
@layer
async def with_deadline(next: Generate, call: Call, env: LLMEnv) -> Answer:
    """End the call after ``Preferences.timeout_ms``, or else after ``RoutingConfig.timeout_ms``."""
    limit_ms, began = limit_ms_of(call.request, env.config), call.history.began
    deadline = min(call.deadline, (call.history.clock() if began is None else began) + limit_ms / 1000)
    with scope_until(deadline):
        return await proceed(next, call.with_deadline(deadline), env)
    model = call.history.stages[-1][2] if call.history.stages else None
    spent = call.history.time_spent(anyio.current_time())
    return Failure(RequestTimeout(model=model, timeout_ms=limit_ms, phase="total", message=spent))
