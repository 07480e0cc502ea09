"""Effects side by side: all of them, the first of them, or a second one when the first is slow.

What is not needed any more is cancelled and awaited; an expected error never comes in an ``ExceptionGroup``, and a
defect comes out as itself.
"""

from collections.abc import Iterable
from typing import TypeVar

from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.duels import Claim, duel
from llm_effects.effects import Effect, effect, settle
from llm_effects.env import LLMEnv
from llm_effects.errors import LLMError, RequestFailed
from llm_effects.schedules import duration
from llm_effects.tasks import in_parallel
from llm_effects.values import invalid, is_a, shown

_Value = TypeVar("_Value")


def gather(operations: Iterable[Effect[_Value]], limit: int | None = None) -> Effect[tuple[_Value, ...]]:
    """Run effects at once, at most ``limit`` of them, and give their values in order; the first error ends all.

    Of errors that are there by then the first in order is given. Where one error must not cost the others, see
    ``generate_many``.

    >>> import anyio
    >>> from llm_effects import fail, RequestTimeout, scripted_env, succeed
    >>> anyio.run(settle, gather([succeed(1), succeed(2)]), scripted_env())
    <Success: (1, 2)>
    >>> anyio.run(settle, gather([succeed(1), fail(RequestTimeout())], limit=1), scripted_env()).failure().tag
    'TimeoutError'
    """
    given = tuple(operations)
    workers = len(given) if limit is None else min(places("limit", limit), len(given))

    async def run(env: LLMEnv) -> Result[tuple[_Value, ...], LLMError]:
        results: dict[int, Result[_Value, LLMError]] = {}

        async def one(number: int, operation: Effect[_Value]) -> bool:
            results[number] = result = await settle(operation, env)
            return not is_successful(result)

        await in_parallel(given, workers, one)
        return _all(results)

    return effect(run)


def places(name: str, number: int) -> int:
    """Take a number of places for work under way at once.

    >>> places("limit", 0)
    Traceback (most recent call last):
        ...
    llm_effects.values.InvalidValue: limit: must be at least 1, not 0
    """
    if not is_a(number, int) or is_a(number, bool):
        invalid(name, f"must be a whole number, not {shown(number)}")
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
    """Run effects at once and give the first success; the others are cancelled. When all fail: ``RequestFailed``.

    Of successes that are there by then the first in order is given. Every effect that was begun may cost money.

    >>> import anyio
    >>> from llm_effects import fail, RequestTimeout, scripted_env, succeed
    >>> anyio.run(settle, race(fail(RequestTimeout()), succeed("there")), scripted_env())
    <Success: there>
    >>> lost = anyio.run(settle, race(fail(RequestTimeout()), fail(RequestTimeout())), scripted_env()).failure()
    >>> lost.tag, [error.tag for error in lost.errors]
    ('RequestFailed', ['TimeoutError', 'TimeoutError'])
    """
    if not operations:
        invalid("operations", "a race needs at least one effect")

    async def run(env: LLMEnv) -> Result[_Value, LLMError]:
        results: dict[int, Result[_Value, LLMError]] = {}

        async def one(number: int, operation: Effect[_Value]) -> bool:
            results[number] = result = await settle(operation, env)
            return is_successful(result)

        await in_parallel(operations, len(operations), one)
        ordered = [result for _, result in sorted(results.items())]
        first = next((result for result in ordered if is_successful(result)), None)
        return Failure(_lost(tuple(result.failure() for result in ordered))) if first is None else first

    return effect(run)


def _lost(errors: tuple[LLMError, ...]) -> LLMError:
    if len(errors) == 1:
        return errors[0]
    hints = [error.retry_after for error in errors if error.retry_after is not None]
    return RequestFailed(errors=errors, retry_after=min(hints, default=None))


def hedge(operation: Effect[_Value], after: float) -> Effect[_Value]:
    """Run an effect a second time when it is not done ``after`` so many seconds, and give the first success.

    The other one is cancelled. An error before that is given at once; when both fail, the first one's. Only for what
    may happen twice: a model is paid twice, too. ``generate`` shares what is asked twice at once, but for requests
    that bypass the cache; its own hedging, with a budget, is ``HedgingConfig``.

    >>> from llm_effects import LLMRequest, Late, generate, run_in_virtual_time, scripted_env
    >>> question = generate(LLMRequest(prompt="why?", cache="bypass")).map(lambda answer: answer.content)
    >>> run_in_virtual_time(settle, hedge(question, after=2), scripted_env(Late(60, "slow"), "quick"))
    <Success: quick>
    """
    patience = duration("after", after)

    async def run(env: LLMEnv) -> Result[_Value, LLMError]:
        async def attempt(_: Claim) -> Result[_Value, LLMError]:
            return await settle(operation, env)

        return await duel(attempt, patience)

    return effect(run)
