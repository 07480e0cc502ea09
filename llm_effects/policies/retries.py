"""Retries: this layer alone retries; clients and other layers never do."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Final

import anyio
from returns.result import Success

from llm_effects.effects.call import Call
from llm_effects.effects.effect import Answer, Generate, layer, proceed
from llm_effects.effects.env import LLMEnv
from llm_effects.effects.schedules import Schedule, Step, exponential, jittered
from llm_effects.values.errors import (
    AuthenticationFailed,
    LLMError,
    ModelUnavailable,
    NetworkError,
    RateLimitExceeded,
    RequestTimeout,
    retry_limit,
)
from llm_effects.values.secrets import RotatingKey

TRANSIENT: Final = jittered(exponential(base=0.1, cap=20.0))
"""Pauses after a transient fault (seconds)."""

LOADING: Final = exponential(base=0.5, cap=60.0)
"""Shortest pauses while a server loads the model (seconds): polling, which needs no jitter."""

THROTTLED: Final = jittered(exponential(base=1.0, cap=20.0))
"""Pauses after a server reported that it is overloaded (seconds)."""

LONGEST_WITH_OTHERS_S: Final = 2.0
"""Longest pause before a retry while other candidates are left (seconds)."""


@layer
async def with_retries(next: Generate, call: Call, env: LLMEnv) -> Answer:
    """Ask the same model again where that may help, after a pause, as often as the configuration allows.

    After a rejected key that rotates, the attempt is sent once more with a fresh one. The server's ``retry_after`` is
    the shortest pause. A pause that would pass the deadline is not begun: the error is returned at once. So it is
    after a time-out or before a pause above two seconds, while other candidates are left, and when all calls together
    have used up a server's ``RoutingConfig.retry_budget``.
    """
    attempt, retries, cost, renewed = call, 0, 0, False
    while True:
        result = await proceed(next, attempt, env)
        if isinstance(result, Success):
            _repay(call, env, cost)
            return result
        error = result.failure()
        if not renewed and _has_stale_key(error, call, env):
            renewed, attempt = True, call.again()
            continue
        retries += 1
        call.history.errors.append(error)
        pause, cost = _pause(error, call, env, retries), _cost(error, env)
        if pause is None or not _affords(call, env, cost):
            return result
        call.history.enter("pause", call.model, anyio.current_time())
        await anyio.sleep(pause)
        attempt = call.again(wait_ms=pause * 1000)


def _cost(error: LLMError, env: LLMEnv) -> int:
    """Return what another attempt costs the retry budget; polling a model that is loading is free."""
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
    """Return the pause before the next attempt in seconds, or ``None`` to give up on this model."""
    requested = error.retry_after or 0.0
    scheduled = _schedule(error).pause(Step(again, drawn=env.draw())) if _worth_it(error, call, env, again) else None
    pause = None if scheduled is None else max(scheduled, requested, _until_loaded(error, call, env))
    ends = min(call.deadline, call.attempt.first_content_by, anyio.current_time() + _longest_pause(call))
    return pause if pause is not None and anyio.current_time() + pause < ends else None


def _until_loaded(error: LLMError, call: Call, env: LLMEnv) -> float:
    """Return the pause with which the attempts that are left reach the deadline, each pause twice the one before."""
    if not _is_loading(error):
        return 0.0
    attempts_left = env.config.routing.max_attempts - len(call.history.attempts)
    return math.ldexp(call.deadline - anyio.current_time(), -attempts_left)


def _longest_pause(call: Call) -> float:
    """Return the longest pause worth sleeping, in seconds: while other candidates are left they are asked instead."""
    return LONGEST_WITH_OTHERS_S if call.attempt.alternatives else math.inf


def _worth_it(error: LLMError, call: Call, env: LLMEnv, again: int) -> bool:
    if call.committed:
        return False
    routing, history = env.config.routing, call.history
    racing = max(0, history.racing - 1)  # a hedge that is under way is an attempt too
    if len(history.attempts) + racing + call.attempt.alternatives >= routing.max_attempts:
        return False  # each candidate that is left keeps an attempt
    if call.attempt.alternatives == 0 and _is_loading(error):
        return True  # no other candidate is left: wait for it, up to the deadline
    if call.attempt.alternatives and _is_slow_or_absent(error):
        return False  # another candidate is the faster answer
    return again <= min(routing.max_retries, retry_limit(error))


def _has_stale_key(error: LLMError, call: Call, env: LLMEnv) -> bool:
    """Return whether a server rejected a key that its function can renew, and another attempt is allowed."""
    rejected = isinstance(error, AuthenticationFailed) and error.status == _UNAUTHORIZED and not call.committed
    fits = len(call.history.attempts) < env.config.routing.max_attempts
    return rejected and fits and isinstance(env.config.models[call.model].api_key, RotatingKey)


_UNAUTHORIZED: Final = 401


def _is_slow_or_absent(error: LLMError) -> bool:
    return isinstance(error, RequestTimeout) or (isinstance(error, NetworkError) and error.phase == "refused")


def _is_loading(error: LLMError) -> bool:
    return isinstance(error, ModelUnavailable) and error.reason == "loading"


def _schedule(error: LLMError) -> Schedule:
    if _is_loading(error):
        return LOADING
    return THROTTLED if _is_busy(error) else TRANSIENT


def _is_busy(error: LLMError) -> bool:
    too_much = isinstance(error, ModelUnavailable) and error.status in {503, 529}
    return too_much or isinstance(error, RateLimitExceeded)
