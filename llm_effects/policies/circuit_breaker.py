"""A model that fails too often is left alone for a while, so that calls go where they are answered."""

from returns.pipeline import is_successful
from returns.result import Failure

from llm_effects.effects.call import Call
from llm_effects.effects.effect import Answer, Effect, Generate, effect, result_of, run
from llm_effects.effects.env import LLMEnv
from llm_effects.limits.circuit_breaker import BreakerPermit, blames
from llm_effects.values.errors import is_retryable
from llm_effects.values.responses import LLMResponse


def with_circuit_breaker(inner: Generate) -> Generate:
    """Turn attempts away while the model's breaker is open: by ``RoutingConfig.breaker``.

    The last candidate of a call is asked anyway, once, if those before it are of no use to the call now: without a key,
    with a window too small, with an open breaker. So a breaker never takes the last usable model away.
    """

    def guard(call: Call) -> Effect[LLMResponse]:
        async def perform(env: LLMEnv) -> Answer:
            config = env.config.routing.breaker
            if not config.enabled:
                return await run(inner(call), env)
            passage = env.limits.admit(call.model, call.deadline, force=_is_last_hope(call))
            if isinstance(passage, BreakerPermit):
                return await _watched(inner, call, env, passage)
            told = await result_of(passage)
            if is_successful(told):
                return await _watched(inner, call, env, told.unwrap())
            call.history.errors.append(told.failure())
            return Failure(told.failure())

        return effect(perform)

    return guard


def _is_last_hope(call: Call) -> bool:
    """Whether this is the last candidate, and no other, nor itself, failed in a way that may pass by itself."""
    return call.alternatives == 0 and not any(map(is_retryable, call.history.errors))


async def _watched(inner: Generate, call: Call, env: LLMEnv, passage: BreakerPermit) -> Answer:
    failed: bool | None = None
    try:
        result = await run(inner(call), env)
        failed = _failed(result)
    finally:  # a cancelled attempt says nothing of the model; a cancelled probe is given back
        await env.limits.record(call.model, env.config.routing.breaker, passage, failed=failed)
    return result


def _failed(result: Answer) -> bool | None:
    """Whether the model failed, or ``None`` where the outcome says nothing of it."""
    return False if is_successful(result) else blames(result.failure()) or None
