"""The one owner of retries: clients never retry, other layers never retry."""

from collections.abc import Hashable
from typing import Final

import anyio
from returns.pipeline import is_successful

from llm_effects.effects.call import Call, changed
from llm_effects.effects.effect import Answer, Effect, Generate, effect, run
from llm_effects.effects.env import LLMEnv
from llm_effects.effects.schedules import Schedule, Step, exponential, jittered
from llm_effects.values.errors import LLMError, ModelUnavailable, NetworkError, RateLimitExceeded, retries_worth
from llm_effects.values.responses import LLMResponse

TRANSIENT: Final = jittered(exponential(base=0.1, cap=20.0))
"""Pauses after a passing fault (seconds)."""

LOADING: Final = exponential(base=0.5, cap=5.0)
"""Pauses while a server loads the model (seconds): a poll, which nobody has to spread."""

THROTTLED: Final = jittered(exponential(base=1.0, cap=20.0))
"""Pauses after a server said that it has too much to do (seconds)."""


def with_retries(inner: Generate) -> Generate:
    """Ask the same model again where that may help, after a pause, as often as the configuration says.

    What the server asks for (``retry_after``) is the least pause. A pause that would pass the deadline is not
    begun: the error goes on at once and the model is parked until then. When all calls together have asked a server
    again too often, by ``RoutingConfig.retry_budget``, the error goes on too.
    """

    def retry(call: Call) -> Effect[LLMResponse]:
        async def perform(env: LLMEnv) -> Answer:
            attempt, again, cost = call, 0, 0
            while True:
                result = await run(inner(attempt), env)
                if is_successful(result):
                    _repay(call, env, cost)
                    return result
                again += 1
                error = result.failure()
                pause, cost = _pause(error, call, env, again), _cost(error, env)
                if pause is None or not _affords(call, env, cost):
                    return result
                await anyio.sleep(pause)
                attempt = changed(call, wait_ms=pause * 1000)

        return effect(perform)

    return retry


def _cost(error: LLMError, env: LLMEnv) -> int:
    """What asking again costs; to look whether a model is loaded by now is no burden."""
    budget = env.config.routing.retry_budget
    return 0 if _is_loading(error) else budget.throttled if _is_busy(error) else budget.transient


def _affords(call: Call, env: LLMEnv, cost: int) -> bool:
    return env.limits.retries.afford(_server(call, env), env.config.routing.retry_budget, cost)


def _repay(call: Call, env: LLMEnv, cost: int) -> None:
    env.limits.retries.repay(_server(call, env), env.config.routing.retry_budget, max(cost, 1))


def _server(call: Call, env: LLMEnv) -> Hashable:
    model = env.config.models[call.model]
    return model.provider, model.endpoint, model.api_key


def _pause(error: LLMError, call: Call, env: LLMEnv, again: int) -> float | None:
    """How long to wait before the next try, in seconds, or ``None`` to give up on this model."""
    asked = error.retry_after or 0.0
    wanted = _schedule(error).pause(Step(again, drawn=env.draw())) if _worth_it(error, call, env, again) else None
    pause = None if wanted is None else max(wanted, asked)
    now = anyio.current_time()
    if pause is not None and now + pause < call.deadline:
        return pause
    if asked and not (_is_open(error) or _is_our_own(error)):
        env.health.cool_down(call.model, now + asked)
    return None


def _worth_it(error: LLMError, call: Call, env: LLMEnv, again: int) -> bool:
    if call.committed:
        return False
    if call.alternatives == 0 and _is_loading(error):
        return True  # nobody else is left to ask: wait for it, up to the deadline
    routing = env.config.routing
    refused = isinstance(error, NetworkError) and error.phase == "refused"
    tries_left = again <= min(routing.max_retries, retries_worth(error))
    return tries_left and len(call.history.attempts) < routing.max_attempts and not (refused and call.alternatives)


def _is_open(error: LLMError) -> bool:
    return isinstance(error, ModelUnavailable) and error.reason == "breaker_open"


def _is_our_own(error: LLMError) -> bool:
    """Whether our own limits turned this call away: another, with fewer tokens, may fit in all the same."""
    return isinstance(error, RateLimitExceeded) and error.status is None and error.should_retry is False


def _is_loading(error: LLMError) -> bool:
    return isinstance(error, ModelUnavailable) and error.reason == "loading"


def _schedule(error: LLMError) -> Schedule:
    if _is_loading(error):
        return LOADING
    return THROTTLED if _is_busy(error) else TRANSIENT


def _is_busy(error: LLMError) -> bool:
    too_much = isinstance(error, ModelUnavailable) and error.status in {503, 529}
    return too_much or isinstance(error, RateLimitExceeded)
