"""What can be said of any effect: try again, give up in time, use another one, let go of what was taken.

They know nothing of models but the errors. ``generate`` retries by itself: ``retry`` around it is a second owner,
which multiplies the attempts.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TypeVar

import anyio
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.decisions import Fallback, fallback_for, is_retryable
from llm_effects.effects import Effect, effect, settle
from llm_effects.env import LLMEnv
from llm_effects.errors import LLMError, RequestFailed, RequestTimeout
from llm_effects.schedules import Schedule, Step, duration

_Value = TypeVar("_Value")
_Resource = TypeVar("_Resource")


def retry(
    schedule: Schedule, operation: Effect[_Value], *, when: Callable[[LLMError], bool] = is_retryable
) -> Effect[_Value]:
    """Run an effect again after an error for which ``when`` holds, as long as the schedule goes on.

    The error's ``retry_after`` (seconds) is the least pause. A pause at whose end the schedule would have stopped is
    not begun: ``within(10)`` begins nothing after 10 seconds. The last error is given.

    >>> from returns.result import Success
    >>> from llm_effects import NetworkError, RateLimitExceeded, ask, from_result, exponential, jittered, up_to, then
    >>> from llm_effects import run_in_virtual_time, scripted_env
    >>> replies = iter([Failure(NetworkError()), Failure(NetworkError()), Success("because")])
    >>> flaky = then(ask(lambda env: next(replies)), from_result)
    >>> run_in_virtual_time(settle, retry(jittered(exponential(base=1.0)) & up_to(3), flaky), scripted_env())
    <Success: because>
    >>> no_money = from_result(Failure(RateLimitExceeded(quota=True)))
    >>> run_in_virtual_time(settle, retry(up_to(3), no_money), scripted_env()).failure().tag
    'RateLimitExceeded'
    """

    async def run(env: LLMEnv) -> Result[_Value, LLMError]:
        started, again = anyio.current_time(), 0
        while True:
            result = await settle(operation, env)
            if is_successful(result) or not when(result.failure()):
                return result
            again += 1
            step = Step(again, anyio.current_time() - started, env.draw())
            pause = _pause(schedule, step, result.failure().retry_after or 0.0)
            if pause is None:
                return result
            await anyio.sleep(pause)

    return effect(run)


def _pause(schedule: Schedule, step: Step, asked: float) -> float | None:
    wanted = schedule.pause(step)
    if wanted is None:
        return None
    pause = max(wanted, asked)
    return pause if schedule.pause(evolve(step, elapsed=step.elapsed + pause)) is not None else None


def timeout(seconds: float, operation: Effect[_Value]) -> Effect[_Value]:
    """Fail with a ``RequestTimeout`` of the phase ``total`` when an effect takes longer; it is cancelled, and awaited.

    With 0 seconds only what need not wait is given. Of nested limits the tighter one wins.

    >>> from llm_effects import LLMRequest, Late, generate, run_in_virtual_time, scripted_env
    >>> question = generate(LLMRequest(prompt="why?")).map(lambda answer: answer.content)
    >>> run_in_virtual_time(settle, timeout(5, question), scripted_env(Late(3, "because")))
    <Success: because>
    >>> run_in_virtual_time(settle, timeout(2, question), scripted_env(Late(3, "because"))).failure().timeout_ms
    2000
    """
    limit = duration("seconds", seconds)

    async def run(env: LLMEnv) -> Result[_Value, LLMError]:
        with anyio.CancelScope(deadline=anyio.current_time() + limit):
            return await settle(operation, env)
        return Failure(RequestTimeout(timeout_ms=limit * 1000, phase="total"))

    return effect(run)


def fallback(first: Effect[_Value], *others: Effect[_Value]) -> Effect[_Value]:
    """Run effects in order until one succeeds or fails in a way that another would not mend.

    It moves on where ``fallback_for`` says ``ANY``, and past a ``RequestFailed`` with such an error in it. The last
    error is given, with those before it in ``earlier``.

    >>> import anyio
    >>> from llm_effects import AuthenticationFailed, InvalidRequest, fail, scripted_env, succeed
    >>> anyio.run(settle, fallback(fail(AuthenticationFailed()), succeed("as always")), scripted_env())
    <Success: as always>
    >>> hopeless = fallback(fail(InvalidRequest(message="prompt: blank")), succeed("as always"))
    >>> anyio.run(settle, hopeless, scripted_env()).failure().tag
    'InvalidRequest'
    """

    async def run(env: LLMEnv) -> Result[_Value, LLMError]:
        result = await settle(first, env)
        for operation in others:
            if is_successful(result) or not _moves_on(result.failure()):
                return result
            after_it = partial(_after, result.failure())
            result = (await settle(operation, env)).alt(after_it)
        return result

    return effect(run)


def _moves_on(error: LLMError) -> bool:
    if isinstance(error, RequestFailed):
        return any(_moves_on(each) for each in error.errors)
    return fallback_for(error) is Fallback.ANY


def _after(before: LLMError, error: LLMError) -> LLMError:
    return evolve(error, earlier=(*before.earlier, before, *error.earlier))


def using(
    acquire: Effect[AbstractAsyncContextManager[_Resource]], use: Callable[[_Resource], Effect[_Value]]
) -> Effect[_Value]:
    """Run an effect with something that is let go of whatever happens: success, error, defect or cancellation.

    ``acquire`` gives an async context manager that nobody has entered: ``ask(lambda env: ...)`` for one made from the
    environment. As with any ``async with``, a release that awaits needs a shield against a cancellation.

    >>> import anyio
    >>> from contextlib import asynccontextmanager
    >>> from llm_effects import ask, scripted_env, succeed
    >>> @asynccontextmanager
    ... async def desk():
    ...     yield 7
    ...     print("tidied up")
    >>> anyio.run(settle, using(ask(lambda env: desk()), lambda number: succeed(number + 1)), scripted_env())
    tidied up
    <Success: 8>
    """

    async def run(env: LLMEnv) -> Result[_Value, LLMError]:
        acquired = await settle(acquire, env)
        if not is_successful(acquired):
            return Failure(acquired.failure())
        async with acquired.unwrap() as resource:
            return await settle(use(resource), env)

    return effect(run)
