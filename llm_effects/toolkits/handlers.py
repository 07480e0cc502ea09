"""The edge to the functions behind tools: whatever they do, the model is told, and nothing breaks."""

import inspect
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar, cast, final

import anyio
import msgspec
from anyio.lowlevel import checkpoint_if_cancelled
from attrs import frozen
from returns.context import RequiresContextFutureResult
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.decisions import describe
from llm_effects.effects import Effect, result_of, settle
from llm_effects.env import LLMEnv
from llm_effects.errors import LLMError
from llm_effects.exceptions import cause_of
from llm_effects.jsons import dump, mended
from llm_effects.telemetry.logs import LOGGER, unharmed
from llm_effects.toolkits import ToolFunction
from llm_effects.toolkits.signatures import Arguments, Handler
from llm_effects.toolkits.steps import ToolOutcome

_Made = TypeVar("_Made")


@final
@frozen
class Said:
    """What a model is told of a call, and what that stands for."""

    text: str
    outcome: ToolOutcome


async def said_by(function: ToolFunction, given: Arguments, env: LLMEnv) -> Said:
    """Run a tool and tell what came of it; only a cancellation gets out.

    A plain function runs in a thread. When its time is up the model is told so, but the thread goes on to its end:
    nobody can stop it.
    """
    with anyio.move_on_after(function.timeout_s):
        came = await _guarded(lambda: _value_of(function.function, given, env))
        return await _told(came)
    late = f"no result within {function.timeout_s:g} s: it may or may not have taken effect"
    return Said(late, ToolOutcome.TIMED_OUT)


async def _told(came: Result[Result[object, object], BaseException]) -> Said:
    if not is_successful(came):
        return Said(_named(came.failure()), ToolOutcome.FAILED)
    result = came.unwrap()
    outcome = ToolOutcome.DONE if is_successful(result) else ToolOutcome.FAILED
    value = result.unwrap() if is_successful(result) else _error(result.failure())
    text = await _guarded(partial(_written, value))
    if is_successful(text):
        return Said(text.unwrap(), outcome)
    return Said(f"the tool ran, but its result is no JSON: {_named(text.failure())}", ToolOutcome.FAILED)


async def _guarded(work: Callable[[], Awaitable[_Made]]) -> Result[_Made, BaseException]:
    """The one place where any exception becomes a value: what runs here is not ours, and a model can mend its call.

    A cancellation passes, unless it is one of the tool's own: of a future that it waited for, say. So ends a
    function that calls ``sys.exit``, as those of command lines do: it is not for a model to end the process.
    """
    try:
        return Success(await work())
    except anyio.get_cancelled_exc_class() as problem:
        await checkpoint_if_cancelled()
        return _raised(problem)
    except (Exception, SystemExit) as problem:  # noqa: BLE001 - see above
        return _raised(problem)


def _raised(problem: BaseException) -> Failure[BaseException]:
    unharmed(LOGGER.log, logging.DEBUG, "a tool raised", exc_info=problem)
    return Failure(problem)


def _named(problem: BaseException) -> str:
    try:
        cause = cause_of(problem)
    except Exception:  # noqa: BLE001 - what it says of itself is not ours either
        return type(problem).__name__
    return f"{cause.type}: {cause.message}" if cause.message else cause.type


async def _value_of(function: Handler, given: Arguments, env: LLMEnv) -> Result[object, object]:
    called = partial(function, **given)
    if _is_async(function):
        return await settled(called(), env)
    # a limiter of its own: a thread that hangs must not hold up the others
    value = await anyio.to_thread.run_sync(called, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))
    return await settled(value, env)


def _is_async(function: Handler) -> bool:
    inner = function.func if isinstance(function, partial) else function
    return any(map(inspect.iscoroutinefunction, (inner, type(inner).__call__)))


async def settled(value: object, env: LLMEnv) -> Result[object, object]:
    """Bring what a function gave to its end: an effect, a future, a result, something to await, or a plain value."""
    if isinstance(value, RequiresContextFutureResult):
        return await settle(cast("Effect[object]", value), env)
    if isinstance(value, FutureResult):
        return await result_of(cast("FutureResult[object, LLMError]", value))
    if inspect.isawaitable(value):
        return await settled(await value, env)
    return cast("Result[object, object]", value) if isinstance(value, Result) else Success(value)


def _error(problem: object) -> object:
    if isinstance(problem, Exception):
        return _named(problem)
    return describe(problem) if isinstance(problem, LLMError) else problem


async def _written(value: object) -> str:
    if isinstance(value, str):
        return mended(str.__str__(value))  # of an enumeration's member its value
    return dump(msgspec.to_builtins(value, str_keys=True, enc_hook=_plain)).decode()


def _plain(value: object) -> object:
    """Write pydantic's models as they would themselves."""
    own = getattr(value, "model_dump", None)
    if own is None:
        raise TypeError(f"{type(value).__name__} cannot be written as JSON")
    return own(mode="json")


def cut(text: str, most: int) -> str:
    r"""Cut what is too long for a model to read, and say so.

    >>> cut("x" * 100, 3)
    'xxx\n[The result was cut here: 3 of its 100 characters are shown.]'
    """
    length = len(text)
    return text if length <= most else f"{text[:most]}{_CUT.format(most, length)}"


_CUT: Final = "\n[The result was cut here: {} of its {} characters are shown.]"
