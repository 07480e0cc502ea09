"""The candidates, one after the other, until one answers."""

import anyio
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.calls import Call
from llm_effects.decisions import Fallback, fallback_for
from llm_effects.effects import Effect, Generate, effect, settle
from llm_effects.env import LLMEnv
from llm_effects.errors import LLMError, RequestFailed
from llm_effects.requests import Allow, LLMRequest
from llm_effects.responses import LLMResponse
from llm_effects.routing import Facts, RoutingDecision, left_after, route


def decide(request: LLMRequest, env: LLMEnv) -> Result[RoutingDecision, LLMError]:
    """Route a request with what the environment knows now."""
    facts = Facts(
        statistics=env.health.statistics(),
        prices=env.prices,
        tokens=env.tokens.estimate(request),
        drawn=env.draw(),
        now=anyio.current_time(),
    )
    return route(request, env.config, facts)


def routed(inner: Generate) -> Generate:
    """Ask the candidates in order; after an error those that ``fallback_for`` leaves.

    When all are spent, a single error is given as it is and several as ``RequestFailed`` with every one of them.
    """

    def try_candidates(call: Call) -> Effect[LLMResponse]:
        async def run(env: LLMEnv) -> Result[LLMResponse, LLMError]:
            decision = decide(call.request, env)
            if not is_successful(decision):
                return Failure(decision.failure())
            return await _first_answer(inner, call, env, decision.unwrap())

        return effect(run)

    return try_candidates


async def _first_answer(
    inner: Generate, call: Call, env: LLMEnv, decision: RoutingDecision
) -> Result[LLMResponse, LLMError]:
    failed, *rest = decision.candidates
    while True:
        result = await settle(inner(evolve(call, model=failed.model, alternatives=len(rest))), env)
        if is_successful(result) or call.trail.committed:
            return result
        left = left_after(result.failure(), failed, rest, call.request.allow)
        if not left or len(call.trail.attempts) >= env.config.routing.max_attempts:
            return Failure(_final(result.failure(), call))
        failed, *rest = left


def _final(error: LLMError, call: Call) -> LLMError:
    """All errors when all candidates failed; one that forbids going on, or the only one, speaks for itself."""
    fallback = fallback_for(error)
    not_allowed = fallback is Fallback.IF_ALLOWED and Allow.FALLBACK_ON_REFUSAL not in call.request.allow
    alone = fallback is Fallback.NEVER or not_allowed or len(call.trail.errors) <= 1
    return error if alone else RequestFailed(errors=tuple(call.trail.errors))
