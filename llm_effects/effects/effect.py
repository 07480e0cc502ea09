"""The one type of every operation, ``Effect``, and the few words to build and run it.

An ``Effect[T]`` is a value: nothing happens until it is given an environment, and it can be run as often as
one likes. Linear steps are ``map``, ``then``, ``bind_result``, ``alt`` and ``rescue``; loops and branches are
plain Python inside ``effect``.
"""

from collections.abc import Awaitable, Callable
from typing import Generic, Never, TypeAlias, TypeVar, cast, final

import anyio
from attrs import define
from returns.context import RequiresContextFutureResult
from returns.future import FutureResult
from returns.io import IO
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success
from returns.unsafe import unsafe_perform_io

from llm_effects.effects.call import Call
from llm_effects.effects.env import LLMEnv
from llm_effects.values.errors import LLMError
from llm_effects.values.responses import LLMResponse

_Value = TypeVar("_Value")
_Other = TypeVar("_Other")

Effect: TypeAlias = RequiresContextFutureResult[_Value, LLMError, LLMEnv]
"""A description of work that needs an ``LLMEnv`` and ends in a value or an ``LLMError``."""

Answer: TypeAlias = Result[LLMResponse, LLMError]
"""What came of a call. It has a name since Python works out the annotations of an inner function at every call."""

Generate: TypeAlias = Callable[[Call], Effect[LLMResponse]]
"""From a call to its answer: what every layer wraps and is."""

Policy: TypeAlias = Callable[[Generate], Generate]
"""One layer of the onion."""


def effect(run: Callable[[LLMEnv], Awaitable[Result[_Value, LLMError]]]) -> Effect[_Value]:
    """Make an effect of an async function from the environment to a ``Result``.

    >>> from returns.result import Success
    >>> async def models(env: LLMEnv) -> Result[int, LLMError]:
    ...     return Success(len(env.config.models))
    >>> count = effect(models)

    >>> import anyio
    >>> from llm_effects.testing.scripted import scripted_env
    >>> anyio.run(run, count, scripted_env())
    <Success: 1>
    """
    return RequiresContextFutureResult(_Runner(run))


@final
@define(eq=False)
class _Runner(Generic[_Value]):
    """What an effect holds: its async function, which ``run`` may run without the wrapping of a future.

    One is made for each layer of each call, and to freeze it would cost as much again.
    """

    run: Callable[[LLMEnv], Awaitable[Result[_Value, LLMError]]]

    def __call__(self, env: LLMEnv) -> FutureResult[_Value, LLMError]:
        return FutureResult(self.run(env))


def succeed(value: _Value) -> Effect[_Value]:
    """Make an effect that gives ``value`` at once.

    >>> import anyio
    >>> from llm_effects.testing.scripted import scripted_env
    >>> anyio.run(run, succeed(1), scripted_env())
    <Success: 1>
    """
    return RequiresContextFutureResult(lambda _: FutureResult.from_value(value))


def fail(error: LLMError) -> Effect[Never]:
    """Make an effect that fails with ``error`` at once.

    >>> import anyio
    >>> from llm_effects.values.errors import RequestTimeout
    >>> from llm_effects.testing.scripted import scripted_env
    >>> anyio.run(run, fail(RequestTimeout()), scripted_env()).failure().tag
    'TimeoutError'
    """
    return RequiresContextFutureResult(lambda _: FutureResult.from_failure(error))


def from_result(result: Result[_Value, LLMError]) -> Effect[_Value]:
    """Make an effect of a result that is already there.

    >>> import anyio
    >>> from returns.result import Success
    >>> from llm_effects.testing.scripted import scripted_env
    >>> anyio.run(run, from_result(Success(2)), scripted_env())
    <Success: 2>
    """
    return RequiresContextFutureResult(lambda _: FutureResult.from_result(result))


def from_env(read: Callable[[LLMEnv], _Value]) -> Effect[_Value]:
    """Make an effect that reads something from the environment.

    >>> import anyio
    >>> from llm_effects.testing.scripted import scripted_env
    >>> anyio.run(run, from_env(lambda env: env.config.routing.strategy), scripted_env())
    <Success: balanced>
    """
    return RequiresContextFutureResult(lambda env: FutureResult.from_value(read(env)))


def then(first: Effect[_Value], next_step: Callable[[_Value], Effect[_Other]]) -> Effect[_Other]:
    """Go on with the value of ``first``; an error passes by.

    >>> import anyio
    >>> from llm_effects.testing.scripted import scripted_env
    >>> anyio.run(run, then(succeed(1), lambda one: succeed(one + 1)), scripted_env())
    <Success: 2>
    """

    async def perform(env: LLMEnv) -> Result[_Other, LLMError]:
        result = await run(first, env)
        return await run(next_step(result.unwrap()), env) if isinstance(result, Success) else Failure(result.failure())

    return effect(perform)


def rescue(first: Effect[_Value], handle: Callable[[LLMError], Effect[_Value]]) -> Effect[_Value]:
    """Go on with the error of ``first``; a value passes by.

    >>> import anyio
    >>> from llm_effects.values.errors import RequestTimeout
    >>> from llm_effects.testing.scripted import scripted_env
    >>> anyio.run(run, rescue(fail(RequestTimeout()), lambda error: succeed(error.tag)), scripted_env())
    <Success: TimeoutError>
    """

    async def perform(env: LLMEnv) -> Result[_Value, LLMError]:
        result = await run(first, env)
        return result if is_successful(result) else await run(handle(result.failure()), env)

    return effect(perform)


async def run(operation: Effect[_Value], env: LLMEnv) -> Result[_Value, LLMError]:
    """Run an effect in an environment: its plain ``Result``, for tests, scripts and branching code.

    >>> import anyio
    >>> from llm_effects.testing.scripted import scripted_env
    >>> anyio.run(run, succeed("done"), scripted_env())
    <Success: done>
    """
    # Of a deep onion most of the cost is the future around each layer; what ``effect`` made is run without one.
    inner: object = operation._inner_value  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    if isinstance(inner, _Runner):
        return await cast("_Runner[_Value]", inner).run(env)
    return await result_of(operation(env))


async def result_of(future: FutureResult[_Value, LLMError]) -> Result[_Value, LLMError]:
    """Await a service's future: its plain ``Result``.

    >>> import anyio
    >>> anyio.run(result_of, FutureResult.from_value(3))
    <Success: 3>
    """
    return unsafe_perform_io(IO.from_ioresult(await future))


def run_sync(operation: Effect[_Value], env: LLMEnv) -> Result[_Value, LLMError]:
    """Run an effect to its end in an event loop of its own, and return its plain ``Result``.

    For scripts and the command line; inside a running event loop ``await run(...)`` instead.

    >>> from llm_effects.testing import scripted_env
    >>> run_sync(succeed("done"), scripted_env())
    <Success: done>
    """
    return anyio.run(run, operation, env)
