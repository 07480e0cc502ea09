"""The candidates, one after the other, until one answers."""

from functools import partial

import anyio
from returns.pipeline import is_successful
from returns.result import Failure

from llm_effects.calls import Call, changed
from llm_effects.decisions import Fallback, fallback_for
from llm_effects.effects import Answer, Effect, Generate, effect, settle
from llm_effects.env import LLMEnv
from llm_effects.errors import LLMError, RequestFailed
from llm_effects.policies.recovery import joined, recovered
from llm_effects.requests import Allow, LLMRequest, Recovery
from llm_effects.responses import LLMResponse
from llm_effects.routing import left_after, order
from llm_effects.routing.candidates import Facts
from llm_effects.routing.places import Ranked


def golden(count: int) -> float:
    """Spread numbers over 0 to 1 more evenly than chance: the fractions of multiples of the golden ratio.

    The number changes with every call and with nothing else, so ``explain`` draws what ``generate`` will draw.

    >>> [round(golden(count), 2) for count in range(4)]
    [0.0, 0.62, 0.24, 0.85]
    """
    return count * 0.6180339887498949 % 1.0


def facts_of(
    request: LLMRequest,
    env: LLMEnv,
    last_model: str | None = None,
    tokens: int | None = None,
    *,
    streamed: bool = False,
) -> Facts:
    """Gather what the environment knows now.

    ``last_model`` is who answered last in its conversation; ``tokens`` is what it takes, where that is known.
    """
    calls = env.health.calls()
    return Facts(
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


def routed(inner: Generate) -> Generate:
    """Ask the candidates in order; after an error those that ``fallback_for`` leaves.

    When all are spent, a single error is given as it is and several as ``RequestFailed`` with every one of them.
    """

    def try_candidates(call: Call) -> Effect[LLMResponse]:
        async def run(env: LLMEnv) -> Answer:
            facts = facts_of(call.request, env, call.last_model, call.tokens, streamed=call.sink is not None)
            env.health.begin_call()
            found = order(call.request, env.config, facts)
            if not is_successful(found):
                return Failure(found.failure())
            return await _first_answer(inner, call, env, found.unwrap())

        return effect(run)

    return try_candidates


async def _first_answer(inner: Generate, call: Call, env: LLMEnv, candidates: tuple[Ranked, ...]) -> Answer:
    chosen, *rest = candidates
    attempt = call
    while True:
        attempt = changed(attempt, model=chosen.model, alternatives=len(rest))
        result = await settle(inner(attempt), env)
        if is_successful(result):
            return result.map(partial(joined, attempt, call.trail))
        if call.committed and call.request.recovery is Recovery.FAIL:
            return result
        left = left_after(result.failure(), chosen, rest, call.request.allow)
        if not left or len(call.trail.attempts) >= env.config.routing.max_attempts:
            return Failure(_final(result.failure(), call))
        chosen, *rest = left
        attempt = recovered(call, chosen.model, env)


def _final(error: LLMError, call: Call) -> LLMError:
    """All errors when all candidates failed; one that forbids going on, or the only one, speaks for itself."""
    fallback, errors = fallback_for(error), tuple(call.trail.errors)
    not_allowed = fallback is Fallback.IF_ALLOWED and Allow.FALLBACK_ON_REFUSAL not in call.request.allow
    if fallback is Fallback.NEVER or not_allowed or len(errors) <= 1:
        return error
    hints = [each.retry_after for each in errors if each.retry_after is not None]
    return RequestFailed(errors=errors, retry_after=min(hints, default=None))
