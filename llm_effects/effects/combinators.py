"""Combinators for any effect: ``retry``, ``timeout``, ``fallback``, ``using``, ``gather``, ``race`` and ``hedge``.

They depend on nothing of LLMs but the errors. ``generate`` already retries: ``retry`` around it multiplies attempts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Generic, TypeAlias, TypeVar, final

import anyio
from attrs import define, evolve, field
from returns.context import RequiresContextFutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.effects.effect import Effect, effect, run
from llm_effects.effects.env import LLMEnv
from llm_effects.effects.mistakes import check_places
from llm_effects.effects.schedules import Schedule, Step, duration
from llm_effects.effects.tasks import in_parallel, task_group
from llm_effects.values.errors import Fallback, LLMError, RequestFailed, RequestTimeout, fallback_for, is_retryable
from llm_effects.values.validation import invalid, is_a, short_repr

_Value = TypeVar("_Value")
_Resource = TypeVar("_Resource")


def is_worth_repeating(error: LLMError) -> bool:
    """Return whether the effect that ended in this error may succeed when it runs again.

    A time limit of the effect itself is over by then, and of several errors one that passes is enough.

    >>> from llm_effects import AuthenticationFailed, NetworkError
    >>> is_worth_repeating(RequestTimeout(phase="total")), is_worth_repeating(AuthenticationFailed())
    (True, False)
    >>> is_worth_repeating(RequestFailed(errors=(AuthenticationFailed(), NetworkError())))
    True
    """
    if isinstance(error, RequestFailed):
        return any(is_worth_repeating(each) for each in error.errors)
    return is_retryable(error) or _is_over_time(error)


def _is_over_time(error: LLMError) -> bool:
    return isinstance(error, RequestTimeout) and error.phase == "total" and error.should_retry is not False


def retry(
    schedule: Schedule, operation: Effect[_Value], *, when: Callable[[LLMError], bool] = is_worth_repeating
) -> Effect[_Value]:
    """Run an effect again after an error for which ``when`` holds, as long as the schedule goes on.

    ``RequestFailed`` is repeated if any of its errors would be, and a time-out of the effect itself too. The error's
    ``retry_after`` (seconds) is the shortest pause. A pause at whose end the schedule would have stopped is
    not begun: ``within(10)`` starts nothing after 10 seconds. The last error is returned.

    >>> from returns.result import Success
    >>> from llm_effects import NetworkError, RateLimitExceeded, exponential, from_env, from_result, jittered, then
    >>> from llm_effects import up_to
    >>> from llm_effects import scripted_env
    >>> from llm_effects.testing import run_in_virtual_time
    >>> replies = iter([Failure(NetworkError()), Failure(NetworkError()), Success("because")])
    >>> flaky = then(from_env(lambda env: next(replies)), from_result)
    >>> run_in_virtual_time(run, retry(jittered(exponential(base=1.0)) & up_to(3), flaky), scripted_env())
    <Success: because>
    >>> no_money = from_result(Failure(RateLimitExceeded(quota=True)))
    >>> run_in_virtual_time(run, retry(up_to(3), no_money), scripted_env()).failure().tag
    'RateLimitExceeded'
    """
    check_places("retry(schedule, effect)", operation, schedule)
    if not is_a(schedule, Schedule):
        invalid("schedule", f"must be a Schedule, not {type(schedule).__name__}: write up_to(3)")

    async def retried(env: LLMEnv) -> Result[_Value, LLMError]:
        started, retries = anyio.current_time(), 0
        while True:
            result = await run(operation, env)
            if is_successful(result) or not when(result.failure()):
                return result
            retries += 1
            step = Step(retries, anyio.current_time() - started, env.draw())
            pause = _pause(schedule, step, result.failure().retry_after or 0.0)
            if pause is None:
                return result
            await anyio.sleep(pause)

    return effect(retried)


def _pause(schedule: Schedule, step: Step, requested: float) -> float | None:
    scheduled = schedule.pause(step)
    if scheduled is None:
        return None
    pause = max(scheduled, requested)
    return pause if schedule.pause(evolve(step, elapsed=step.elapsed + pause)) is not None else None


def timeout(seconds: float, operation: Effect[_Value]) -> Effect[_Value]:
    """Fail with a ``RequestTimeout`` of phase ``total`` when an effect takes longer; it is cancelled and awaited.

    With 0 seconds only an effect that need not wait succeeds. Of nested limits the tighter one wins.

    >>> from llm_effects import LLMRequest, generate, scripted_env
    >>> from llm_effects.testing import Delayed, run_in_virtual_time
    >>> question = generate(LLMRequest(prompt="why?")).map(lambda answer: answer.content)
    >>> run_in_virtual_time(run, timeout(5, question), scripted_env(Delayed(3, "because")))
    <Success: because>
    >>> run_in_virtual_time(run, timeout(2, question), scripted_env(Delayed(3, "because"))).failure().timeout_ms
    2000
    """
    check_places("timeout(5, effect)", operation, seconds)
    limit = duration("seconds", seconds)

    async def limited(env: LLMEnv) -> Result[_Value, LLMError]:
        with anyio.CancelScope(deadline=anyio.current_time() + limit):
            return await run(operation, env)
        return Failure(RequestTimeout(timeout_ms=limit * 1000, phase="total"))

    return effect(limited)


def fallback(first: Effect[_Value], *others: Effect[_Value]) -> Effect[_Value]:
    """Run effects in order until one succeeds, or fails in a way that no other would fix.

    It moves on where ``fallback_for`` returns ``ANY``, past a time-out of the effect itself, and past a
    ``RequestFailed`` that contains such an error. The last error is returned, with those before it in ``earlier``.

    >>> import anyio
    >>> from llm_effects import AuthenticationFailed, InvalidRequest, fail, scripted_env, succeed
    >>> anyio.run(run, fallback(fail(AuthenticationFailed()), succeed("as always")), scripted_env())
    <Success: as always>
    >>> hopeless = fallback(fail(InvalidRequest(message="prompt: blank")), succeed("as always"))
    >>> anyio.run(run, hopeless, scripted_env()).failure().tag
    'InvalidRequest'
    """

    async def first_success(env: LLMEnv) -> Result[_Value, LLMError]:
        result = await run(first, env)
        for operation in others:
            if is_successful(result) or not moves_on(result.failure()):
                return result
            result = (await run(operation, env)).alt(partial(_with_earlier, result.failure()))
        return result

    return effect(first_success)


def moves_on(error: LLMError) -> bool:
    """Return whether another effect may succeed where one ended in this error.

    >>> moves_on(RequestTimeout(phase="total")), moves_on(RequestTimeout(phase="sink"))
    (True, False)
    """
    if isinstance(error, RequestFailed):
        return any(moves_on(each) for each in error.errors)
    return fallback_for(error) is Fallback.ANY or _is_over_time(error)


def _with_earlier(before: LLMError, error: LLMError) -> LLMError:
    return evolve(error, earlier=(*before.earlier, before, *error.earlier))


def using(
    acquire: Effect[AbstractAsyncContextManager[_Resource]], use: Callable[[_Resource], Effect[_Value]]
) -> Effect[_Value]:
    """Run an effect with a resource that is released on success, error, defect and cancellation.

    ``acquire`` returns an async context manager that is not entered yet: ``from_env(lambda env: ...)`` for one made
    from the environment. As with any ``async with``, a release that awaits needs a shield against cancellation.

    >>> import anyio
    >>> from contextlib import asynccontextmanager
    >>> from llm_effects import from_env, scripted_env, succeed
    >>> @asynccontextmanager
    ... async def desk():
    ...     yield 7
    ...     print("tidied up")
    >>> anyio.run(run, using(from_env(lambda env: desk()), lambda number: succeed(number + 1)), scripted_env())
    tidied up
    <Success: 8>
    """

    async def use_and_release(env: LLMEnv) -> Result[_Value, LLMError]:
        acquired = await run(acquire, env)
        if not is_successful(acquired):
            return Failure(acquired.failure())
        async with acquired.unwrap() as resource:
            return await run(use(resource), env)

    return effect(use_and_release)


# Hedging: a second attempt starts when the first is slow, and only one of them goes on.


Claim: TypeAlias = Callable[[], Awaitable[None]]
"""Called by an attempt before it shows anything. It returns to one of the two only; the other is cancelled in it."""

Attempt: TypeAlias = Callable[[Claim], Awaitable[Result[_Value, LLMError]]]
"""One of the two attempts; a success claims by itself."""


async def run_hedged(
    attempt: Attempt[_Value], wait: Callable[[], Awaitable[object]], may_begin: Callable[[], bool] = lambda: True
) -> Result[_Value, LLMError]:
    """Make an attempt and, after a ``wait``, a second one if it ``may_begin`` then.

    The first to claim is awaited, however it ends; the other is cancelled and awaited. Without a claim both failed, and
    the first one's error is returned. If the first fails before the second begins, there is no second.
    """
    attempts = _HedgedAttempts(attempt)
    async with task_group() as group:
        group.start_soon(attempts.second, wait, may_begin)
        await attempts.first()  # in the caller's own task, as if there were no second
    return attempts.results[attempts.winner or 0]


@final
@define(eq=False, repr=False)
class _HedgedAttempts(Generic[_Value]):
    """Two attempts: number 0 begins at once, number 1 waits first."""

    attempt: Attempt[_Value]
    scopes: tuple[anyio.CancelScope, anyio.CancelScope] = field(
        factory=lambda: (anyio.CancelScope(), anyio.CancelScope())
    )
    results: dict[int, Result[_Value, LLMError]] = field(factory=dict[int, Result[_Value, LLMError]])
    waiting: bool = True
    winner: int | None = None

    async def first(self) -> None:
        with self.scopes[0]:
            await self._attempt(0)
        if self.waiting:
            self.scopes[1].cancel()

    async def second(self, wait: Callable[[], Awaitable[object]], may_begin: Callable[[], bool]) -> None:
        with self.scopes[1]:
            await wait()
            self.waiting = False
            if may_begin():
                await self._attempt(1)

    async def _attempt(self, mine: int) -> None:
        self.results[mine] = await self.attempt(partial(self._claim, mine))
        if is_successful(self.results[mine]):
            await self._claim(mine)

    async def _claim(self, mine: int) -> None:
        if self.winner is None:
            self.winner = mine
            self.scopes[1 - mine].cancel()
        if self.winner != mine:
            await anyio.sleep_forever()  # its scope is cancelled: this ends here


# Effects run at once: all of them, the first success, or a second one when the first is slow. Effects that are no
# longer needed are cancelled and awaited. Expected errors never arrive in an ``ExceptionGroup``; defects are raised as
# they are.


def gather(operations: Iterable[Effect[_Value]], limit: int | None = None) -> Effect[tuple[_Value, ...]]:
    """Run effects at once, at most ``limit`` of them, and return their values in order; the first error ends all.

    Of several errors the first in order is returned. Where one error must not cost the others, use ``generate_many``.

    >>> import anyio
    >>> from llm_effects import RequestTimeout, fail, scripted_env, succeed
    >>> anyio.run(run, gather([succeed(1), succeed(2)]), scripted_env())
    <Success: (1, 2)>
    >>> anyio.run(run, gather([succeed(1), fail(RequestTimeout())], limit=1), scripted_env()).failure().tag
    'TimeoutError'
    """
    if is_a(operations, RequiresContextFutureResult):
        msg = "gather needs several effects in one argument: write gather([first, second])"
        raise TypeError(msg)
    effects = tuple(operations)
    workers = len(effects) if limit is None else min(at_least_one("limit", limit), len(effects))

    async def gathered(env: LLMEnv) -> Result[tuple[_Value, ...], LLMError]:
        results: dict[int, Result[_Value, LLMError]] = {}

        async def one(number: int, operation: Effect[_Value]) -> bool:
            results[number] = result = await run(operation, env)
            return not is_successful(result)

        await in_parallel(effects, workers, one)
        return _all(results)

    return effect(gathered)


def at_least_one(name: str, number: int) -> int:
    """Return a number of concurrent workers, if it is a whole number from 1 on.

    >>> at_least_one("limit", 0)
    Traceback (most recent call last):
        ...
    llm_effects.values.validation.InvalidValue: limit: must be at least 1, not 0
    """
    if not is_a(number, int) or is_a(number, bool):
        invalid(name, f"must be a whole number, not {short_repr(number)}")
    if number < 1:
        invalid(name, f"must be at least 1, not {number!r}")
    return number


def _all(results: dict[int, Result[_Value, LLMError]]) -> Result[tuple[_Value, ...], LLMError]:
    ordered = [result for _, result in sorted(results.items())]
    failed = next((result for result in ordered if not is_successful(result)), None)
    if failed is not None:
        return Failure(failed.failure())
    return Success(tuple(result.unwrap() for result in ordered))


def race(*operations: Effect[_Value]) -> Effect[_Value]:
    """Run effects at once and return the first success; the others are cancelled. If all fail: ``RequestFailed``.

    Of several successes the first in order is returned. Every effect that was started may cost money.

    >>> import anyio
    >>> from llm_effects import RequestTimeout, fail, scripted_env, succeed
    >>> anyio.run(run, race(fail(RequestTimeout()), succeed("there")), scripted_env())
    <Success: there>
    >>> lost = anyio.run(run, race(fail(RequestTimeout()), fail(RequestTimeout())), scripted_env()).failure()
    >>> lost.tag, [error.tag for error in lost.errors]
    ('RequestFailed', ['TimeoutError', 'TimeoutError'])
    """
    if not operations:
        invalid("operations", "a race needs at least one effect")

    async def fastest(env: LLMEnv) -> Result[_Value, LLMError]:
        results: dict[int, Result[_Value, LLMError]] = {}

        async def one(number: int, operation: Effect[_Value]) -> bool:
            results[number] = result = await run(operation, env)
            return is_successful(result)

        await in_parallel(operations, len(operations), one)
        ordered = [result for _, result in sorted(results.items())]
        first = next((result for result in ordered if is_successful(result)), None)
        return Failure(_all_failed(tuple(result.failure() for result in ordered))) if first is None else first

    return effect(fastest)


def _all_failed(errors: tuple[LLMError, ...]) -> LLMError:
    if len(errors) == 1:
        return errors[0]
    hints = [error.retry_after for error in errors if error.retry_after is not None]
    return RequestFailed(errors=errors, retry_after=min(hints, default=None))


def hedge(operation: Effect[_Value], after: float) -> Effect[_Value]:
    """Run an effect a second time when it is not done ``after`` so many seconds, and return the first success.

    The other one is cancelled. An error before that is returned at once; if both fail, the first one's. Use it only for
    work that may happen twice: a model is paid twice, too. ``generate`` coalesces identical requests, except those that
    bypass the cache; its own hedging, with a budget, is ``HedgingConfig``.

    >>> from llm_effects import LLMRequest, generate, scripted_env
    >>> from llm_effects.testing import Delayed, run_in_virtual_time
    >>> question = generate(LLMRequest(prompt="why?", cache="bypass")).map(lambda answer: answer.content)
    >>> run_in_virtual_time(run, hedge(question, after=2), scripted_env(Delayed(60, "slow"), "quick"))
    <Success: quick>
    """
    check_places("hedge(effect, 5)", operation, after)
    delay = duration("after", after)

    async def hedged(env: LLMEnv) -> Result[_Value, LLMError]:
        async def attempt(_: Claim) -> Result[_Value, LLMError]:
            return await run(operation, env)

        return await run_hedged(attempt, partial(anyio.sleep, delay))

    return effect(hedged)
