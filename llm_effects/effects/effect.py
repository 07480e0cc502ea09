"""``Effect``, the type of every operation, with the functions that build and run it; and the layers of a pipeline.

An ``Effect[T]`` is a value: nothing happens until it is given an environment, and it can be run as often as
you like. Straight lines are ``map``, ``then``, ``bind_result``, ``alt`` and ``rescue``; loops and branches are
plain Python inside ``effect``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial, reduce, update_wrapper
from types import FunctionType
from typing import Any, Generic, Never, TypeAlias, TypeVar, cast, final

import anyio
from anyio.lowlevel import current_token
from attrs import define
from returns.context import RequiresContextFutureResult
from returns.future import FutureResult
from returns.io import IO
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success
from returns.unsafe import unsafe_perform_io

from llm_effects.effects.call import Call, LookedUp
from llm_effects.effects.env import LLMEnv, new_id
from llm_effects.effects.mistakes import NEWEST, not_a_step, not_an_effect, not_an_env, operation_name, warn_if_dropped
from llm_effects.values.errors import LLMError
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import LLMResponse
from llm_effects.values.validation import is_a

_Value = TypeVar("_Value")
_Other = TypeVar("_Other")

Effect: TypeAlias = RequiresContextFutureResult[_Value, LLMError, LLMEnv]
"""A description of work that needs an ``LLMEnv`` and ends in a value or an ``LLMError``."""

Answer: TypeAlias = Result[LLMResponse, LLMError]
"""How a call ends: a response or an error."""

Generate: TypeAlias = Callable[[Call], Effect[LLMResponse]]
"""A function from a call to its answer: what every layer wraps, and what it returns."""

Policy: TypeAlias = Callable[[Generate], Generate]
"""One layer of the pipeline."""


def effect(work: Callable[[LLMEnv], Awaitable[Result[_Value, LLMError]]]) -> Effect[_Value]:
    """Build an effect from an async function of the environment that returns a ``Result``.

    >>> from returns.result import Success
    >>> async def models(env: LLMEnv) -> Result[int, LLMError]:
    ...     return Success(len(env.config.models))
    >>> count = effect(models)

    >>> import anyio
    >>> from llm_effects.testing import scripted_env
    >>> anyio.run(run, count, scripted_env())
    <Success: 1>
    """
    return RequiresContextFutureResult(_Operation(work))


@final
@define(eq=False, repr=False)
class _Work(Generic[_Value]):
    """The async function in an effect, which ``run`` awaits without a future around it.

    Each layer of each call makes one; freezing it would double its cost.
    """

    start: Callable[[LLMEnv], Awaitable[Result[_Value, LLMError]]]

    def __call__(self, env: LLMEnv) -> FutureResult[_Value, LLMError]:
        return FutureResult(self._begin(env))

    async def _begin(self, env: LLMEnv) -> Result[_Value, LLMError]:
        """Start once the future is awaited: a layer that is a plain function may hold something from its start on."""
        return await self.start(env)


@final
class _Operation(Generic[_Value]):
    """The async function of a whole operation: it checks its environment, and warns if it is dropped without being run.

    Written by hand, because every call makes one.
    """

    __slots__ = ("_ran", "_work")

    def __init__(self, work: Callable[[LLMEnv], Awaitable[Result[_Value, LLMError]]]) -> None:
        self._work = work
        self._ran = False
        NEWEST[0] = id(self)

    def start(self, env: object) -> Awaitable[Result[_Value, LLMError]]:
        """Begin the work in an environment; a value of another class is a ``TypeError`` that names the remedy."""
        if not isinstance(env, LLMEnv):
            raise not_an_env(env)
        self._ran = True
        return self._work(env)

    def __call__(self, env: LLMEnv) -> FutureResult[_Value, LLMError]:
        return FutureResult(self.start(env))

    def __repr__(self) -> str:
        return operation_name(self._work)

    def __del__(self) -> None:
        if not self._ran and NEWEST[0] == id(self):
            warn_if_dropped(repr(self))


def layer(handle: Callable[[Generate, Call, LLMEnv], Awaitable[Answer]]) -> Policy:
    """Make a layer of a pipeline from an async function of the rest of the pipeline, a call and the environment.

    A plain function that returns an awaitable will do, too: the layers of the library that a configuration leaves off
    are one, and return that of the rest.

    >>> from llm_effects import run
    >>> @layer
    ... async def with_politeness(next: Generate, call: Call, env: LLMEnv) -> Answer:
    ...     request = attrs.evolve(call.request, system="Be polite.")
    ...     return await run(next(attrs.evolve(call, request=request)), env)

    >>> import anyio, attrs
    >>> from llm_effects import LLMRequest, scripted_env
    >>> from llm_effects.pipeline import run_call, standard_pipeline
    >>> polite = with_politeness(standard_pipeline)
    >>> env = scripted_env(lambda request: f"({request.system})")
    >>> anyio.run(run, run_call(polite, LLMRequest(prompt="why?")), env).unwrap().content
    '(Be polite.)'
    """
    name = _layer_name(handle)

    def policy(rest: Generate) -> Generate:
        name_of_all = " ".join(filter(None, (name, pipeline_name(rest))))
        return _generate_by(partial(handle, rest), name_of_all)

    wrapped: Any = update_wrapper(policy, cast("Any", handle))
    del wrapped.__wrapped__  # help() shows the parameters of the policy, not of the function behind it
    return cast("Policy", wrapped)


def innermost(answer: Callable[[Call, LLMEnv], Awaitable[Answer]]) -> Generate:
    """Make the innermost function of a pipeline, which asks a model, from an async function of a call.

    >>> from llm_effects.testing import answer, scripted_env
    >>> async def echo(call: Call, env: LLMEnv) -> Answer:
    ...     return Success(answer(f"you asked: {call.request.prompt}"))

    >>> import anyio
    >>> from llm_effects import LLMRequest
    >>> from llm_effects.pipeline import run_call
    >>> anyio.run(run, run_call(innermost(echo), LLMRequest(prompt="why?")), scripted_env()).unwrap().content
    'you asked: why?'
    """
    wrapped: Any = update_wrapper(cast("Any", _generate_by(answer, _layer_name(answer))), cast("Any", answer))
    del wrapped.__wrapped__  # help() shows the parameters of a Generate, not of the function behind it
    return cast("Generate", wrapped)


def _generate_by(answer: Callable[[Call, LLMEnv], Awaitable[Answer]], name: str) -> Generate:
    def generate(call: Call) -> Effect[LLMResponse]:
        return RequiresContextFutureResult(_Work(partial(answer, call)))

    cast("Any", generate).answer = answer
    return _named(generate, name)


def proceed(rest: Generate, call: Call, env: LLMEnv) -> Awaitable[Answer]:
    """Answer a call by the rest of a pipeline, as ``run(rest(call), env)`` does: what a layer of the library awaits.

    It makes no effect on the way, which saves 2 of the 2.5 microseconds that passing through a layer takes.
    """
    answer: Callable[[Call, LLMEnv], Awaitable[Answer]] | None = getattr(rest, "answer", None)
    return run(rest(call), env) if answer is None else answer(call, env)


# An answer that is known at once: without the call, the deadline and the history that asking a model needs.


ReadyAnswer: TypeAlias = Callable[[LLMRequest, LLMEnv, str, float], LLMResponse | Awaitable[LookedUp] | None]
"""Returns a stored answer to a request, in an environment, for the layers of a pipeline and by a deadline.

``None`` is for no answer. A store that waits returns an awaitable.
"""


def answering_at_once(ready: ReadyAnswer, policy: Policy) -> Policy:
    """Return a layer that may have an answer that does not need the rest of the pipeline."""
    return _with_ready(policy, lambda _: ready)


def passing_ready(policy: Policy) -> Policy:
    """Return a layer that leaves an answer as it is which the rest of the pipeline has at once."""
    return _with_ready(policy, ready_of)


def ready_of(pipeline: Generate) -> ReadyAnswer | None:
    """Return how a pipeline answers at once: if there is a cache, and no layer before it changes its answers."""
    return getattr(pipeline, "ready", None)


def _with_ready(policy: Policy, find: Callable[[Generate], ReadyAnswer | None]) -> Policy:
    def marked(rest: Generate) -> Generate:
        generate = policy(rest)
        cast("Any", generate).ready = find(rest)
        return generate

    wrapped: Any = update_wrapper(marked, cast("Any", policy))
    del wrapped.__wrapped__
    return cast("Policy", wrapped)


def layered(*steps: *tuple[*tuple[Policy, ...], Generate]) -> Generate:
    """Compose layers, outermost first, around the function that asks a model.

    >>> from llm_effects.policies.complete import complete
    >>> from llm_effects.policies.deadline import with_deadline
    >>> from llm_effects.policies.routing import with_routing
    >>> short = layered(with_deadline, with_routing, complete)
    """
    *policies, innermost = steps
    return reduce(_wrap, reversed(policies), innermost)


def _wrap(rest: Generate, policy: Policy) -> Generate:
    return policy(rest)


def pipeline_name(pipeline: Generate) -> str:
    """Return the names of the layers that are not the library's own, or an empty text if all are.

    A layer that was made inside a function is named for this process only: the name cannot show what it was made with.

    >>> from llm_effects.pipeline import standard_pipeline
    >>> pipeline_name(standard_pipeline)
    ''
    """
    name: str | None = getattr(pipeline, "pipeline_name", None)
    return pipeline_name(_named(pipeline, _layer_name(pipeline))) if name is None else name


def _named(pipeline: Generate, name: str) -> Generate:
    try:
        cast("Any", pipeline).pipeline_name = name
    except AttributeError:  # an object without room for it
        return _named(partial(pipeline), name)
    return pipeline


def _layer_name(function: Callable[..., object]) -> str:
    module, name = (getattr(function, each, "") or "" for each in ("__module__", "__qualname__"))
    if not isinstance(function, FunctionType) or "<" in name:
        return f"{module}.{name}:{new_id()}"
    return "" if module.startswith("llm_effects.") else f"{module}.{name}"


def succeed(value: _Value) -> Effect[_Value]:
    """Build an effect that succeeds with ``value`` at once.

    >>> import anyio
    >>> from llm_effects.testing import scripted_env
    >>> anyio.run(run, succeed(1), scripted_env())
    <Success: 1>
    """
    return from_result(Success(value))


def fail(error: LLMError) -> Effect[Never]:
    """Build an effect that fails with ``error`` at once.

    >>> import anyio
    >>> from llm_effects.values.errors import RequestTimeout
    >>> from llm_effects.testing import scripted_env
    >>> anyio.run(run, fail(RequestTimeout()), scripted_env()).failure().tag
    'TimeoutError'
    """
    return from_result(Failure(error))


def from_result(result: Result[_Value, LLMError]) -> Effect[_Value]:
    """Build an effect from a result.

    >>> import anyio
    >>> from returns.result import Success
    >>> from llm_effects.testing import scripted_env
    >>> anyio.run(run, from_result(Success(2)), scripted_env())
    <Success: 2>
    """
    return RequiresContextFutureResult(_Work(partial(_finished, result)))


async def _finished(result: Result[_Value, LLMError], _: LLMEnv) -> Result[_Value, LLMError]:
    return result


def from_env(read: Callable[[LLMEnv], _Value]) -> Effect[_Value]:
    """Build an effect that reads from the environment.

    >>> import anyio
    >>> from llm_effects.testing import scripted_env
    >>> anyio.run(run, from_env(lambda env: env.config.routing.strategy), scripted_env())
    <Success: balanced>
    """
    return RequiresContextFutureResult(_Operation(partial(_read, read)))


async def _read(read: Callable[[LLMEnv], _Value], env: LLMEnv) -> Result[_Value, LLMError]:
    return Success(read(env))


def from_service(use: Callable[[LLMEnv], FutureResult[_Value, LLMError]]) -> Effect[_Value]:
    """Build an effect from one call to a service of the environment.

    >>> import anyio
    >>> from llm_effects.testing import scripted_env
    >>> anyio.run(run, from_service(lambda env: env.cache.clear()), scripted_env())
    <Success: 0>
    """
    return RequiresContextFutureResult(_Operation(partial(_served, use)))


async def _served(use: Callable[[LLMEnv], FutureResult[_Value, LLMError]], env: LLMEnv) -> Result[_Value, LLMError]:
    return await result_of(use(env))


def then(first: Effect[_Value], next_step: Callable[[_Value], Effect[_Other]]) -> Effect[_Other]:
    """Continue with the value of ``first`` (bind); an error skips the step.

    >>> import anyio
    >>> from llm_effects.testing import scripted_env
    >>> anyio.run(run, then(succeed(1), lambda one: succeed(one + 1)), scripted_env())
    <Success: 2>
    """

    async def both(env: LLMEnv) -> Result[_Other, LLMError]:
        result = await run(first, env)
        if not isinstance(result, Success):
            return Failure(result.failure())
        return await run(_step("then", next_step(result.unwrap())), env)

    return effect(both)


def rescue(first: Effect[_Value], handle: Callable[[LLMError], Effect[_Value]]) -> Effect[_Value]:
    """Continue with the error of ``first`` (lash); a value skips the step.

    >>> import anyio
    >>> from llm_effects.values.errors import RequestTimeout
    >>> from llm_effects.testing import scripted_env
    >>> anyio.run(run, rescue(fail(RequestTimeout()), lambda error: succeed(error.tag)), scripted_env())
    <Success: TimeoutError>
    """

    async def both(env: LLMEnv) -> Result[_Value, LLMError]:
        result = await run(first, env)
        return result if is_successful(result) else await run(_step("rescue", handle(result.failure())), env)

    return effect(both)


def _step(combinator: str, step: Effect[_Value]) -> Effect[_Value]:
    if not is_a(step, RequiresContextFutureResult):
        raise not_a_step(combinator, step)
    return step


async def run(operation: Effect[_Value], env: LLMEnv) -> Result[_Value, LLMError]:
    """Run an effect in an environment and return its plain ``Result``: for tests, scripts and branching code.

    Anything that is not an effect, or not an environment, is a ``TypeError`` that names the remedy.

    >>> import anyio
    >>> from llm_effects.testing import scripted_env
    >>> anyio.run(run, succeed("done"), scripted_env())
    <Success: done>
    """
    # In a deep pipeline most of the cost is the future around each layer, so what ``effect`` made is run without one.
    try:
        inner: object = operation._inner_value  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    except AttributeError:
        raise not_an_effect(operation) from None
    if isinstance(inner, _Work):
        return await cast("_Work[_Value]", inner).start(env)
    if isinstance(inner, _Operation):
        return await cast("_Operation[_Value]", inner).start(env)
    if not is_a(operation, RequiresContextFutureResult):
        raise not_an_effect(operation)
    return await result_of(operation(env))


async def result_of(future: FutureResult[_Value, LLMError]) -> Result[_Value, LLMError]:
    """Await the future of a service and return its plain ``Result``.

    >>> import anyio
    >>> anyio.run(result_of, FutureResult.from_value(3))
    <Success: 3>
    """
    return unsafe_perform_io(IO.from_ioresult(await future))


def run_sync(operation: Effect[_Value], env: LLMEnv) -> Result[_Value, LLMError]:
    """Run an effect to its end in an event loop of its own, and return its plain ``Result``.

    For scripts and the command line. Inside a running event loop, as in a notebook, it raises ``RuntimeError``: write
    ``await run(effect, env)`` there.

    >>> from llm_effects.testing import scripted_env
    >>> run_sync(succeed("done"), scripted_env())
    <Success: done>
    """
    if _in_event_loop():
        msg = "run_sync needs a thread without an event loop, and one runs here: write `await run(effect, env)`"
        raise RuntimeError(msg)
    return anyio.run(run, operation, env)


def _in_event_loop() -> bool:
    try:
        current_token()
    except anyio.NoEventLoopError:
        return False
    return True
