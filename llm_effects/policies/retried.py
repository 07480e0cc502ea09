"""The one owner of retries: clients never retry, other layers never retry."""

from typing import Final

import anyio
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects.calls import Call
from llm_effects.decisions import retries_worth
from llm_effects.effects import Effect, Generate, effect, settle
from llm_effects.env import LLMEnv
from llm_effects.errors import LLMError, ModelUnavailable, NetworkError, RateLimitExceeded
from llm_effects.responses import LLMResponse
from llm_effects.schedules import Schedule, Step, exponential, jittered

TRANSIENT: Final = jittered(exponential(base=0.1, cap=20.0))
"""Pauses after a passing fault (seconds)."""

LOADING: Final = exponential(base=0.5, cap=5.0)
"""Pauses while a server loads the model (seconds): a poll, which nobody has to spread."""

THROTTLED: Final = jittered(exponential(base=1.0, cap=20.0))
"""Pauses after a server said that it has too much to do (seconds)."""


def retried(inner: Generate) -> Generate:
    """Ask the same model again where that may help, after a pause, as often as the configuration says.

    What the server asks for (``retry_after``) is the least pause. A pause that would pass the deadline is not
    begun: the error goes on at once and the model is parked until then.
    """

    def retry(call: Call) -> Effect[LLMResponse]:
        async def run(env: LLMEnv) -> Result[LLMResponse, LLMError]:
            attempt, again = call, 0
            while True:
                result = await settle(inner(attempt), env)
                again += 1
                pause = None if is_successful(result) else _pause(result.failure(), call, env, again)
                if pause is None:
                    return result
                await anyio.sleep(pause)
                attempt = evolve(call, wait_ms=pause * 1000)

        return effect(run)

    return retry


def _pause(error: LLMError, call: Call, env: LLMEnv, again: int) -> float | None:
    """How long to wait before the next try, in seconds, or ``None`` to give up on this model."""
    asked = error.retry_after or 0.0
    wanted = _schedule(error).pause(Step(again, drawn=env.draw())) if _worth_it(error, call, env, again) else None
    pause = None if wanted is None else max(wanted, asked)
    now = anyio.current_time()
    if pause is not None and now + pause < call.deadline:
        return pause
    if asked:
        env.health.park(call.model, now + asked)
    return None


def _worth_it(error: LLMError, call: Call, env: LLMEnv, again: int) -> bool:
    if call.committed:
        return False
    if call.alternatives == 0 and _is_loading(error):
        return True  # nobody else is left to ask: wait for it, up to the deadline
    routing = env.config.routing
    refused = isinstance(error, NetworkError) and error.phase == "refused"
    tries_left = again <= min(routing.max_retries, retries_worth(error))
    return tries_left and len(call.trail.attempts) < routing.max_attempts and not (refused and call.alternatives)


def _is_loading(error: LLMError) -> bool:
    return isinstance(error, ModelUnavailable) and error.reason == "loading"


def _schedule(error: LLMError) -> Schedule:
    if _is_loading(error):
        return LOADING
    busy = isinstance(error, RateLimitExceeded) or (isinstance(error, ModelUnavailable) and error.status in {503, 529})
    return THROTTLED if busy else TRANSIENT
