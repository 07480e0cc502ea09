"""The deadline of the whole call: queueing, every retry and every fallback are inside it."""

import anyio
from returns.result import Failure

from llm_effects.effects.call import Call, changed
from llm_effects.effects.effect import Answer, Effect, Generate, effect, run
from llm_effects.effects.env import LLMEnv
from llm_effects.values.errors import RequestTimeout
from llm_effects.values.responses import LLMResponse


def with_deadline(inner: Generate) -> Generate:
    """End the call after ``Preferences.timeout_ms``, or else ``RoutingConfig.timeout_ms``."""

    def bound(call: Call) -> Effect[LLMResponse]:
        async def perform(env: LLMEnv) -> Answer:
            limit_ms = call.request.preferences.timeout_ms or env.config.routing.timeout_ms
            deadline = min(call.deadline, anyio.current_time() + limit_ms / 1000)
            with anyio.CancelScope(deadline=deadline):
                return await run(inner(changed(call, deadline=deadline)), env)
            return Failure(RequestTimeout(timeout_ms=limit_ms, phase="total"))

        return effect(perform)

    return bound
