"""First mistakes with effects, requests and environments: errors that name what was passed, and the remedy.

On import, the containers of ``returns`` learn a few names that they lack, such as ``content``: looking one up is an
``AttributeError`` as before, whose message names the remedy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial, wraps
from inspect import currentframe
from opcode import opmap, opname
from pathlib import Path
from types import FunctionType, MethodType, TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, ParamSpec, TypeVar, cast, final, get_args

from attrs import define, fields, frozen
from returns.context import RequiresContext, RequiresContextFutureResult
from returns.future import FutureResult
from returns.io import IO, IOResult
from returns.pipeline import is_successful
from returns.primitives.container import BaseContainer
from returns.result import Result

from llm_effects.config import LLMConfig
from llm_effects.effects.env import LLMEnv
from llm_effects.values.display import shown
from llm_effects.values.errors import LLMError, describe
from llm_effects.values.messages import Message
from llm_effects.values.requests import LLMRequest
from llm_effects.values.validation import is_list

_Value = TypeVar("_Value")
_Params = ParamSpec("_Params")

RUN_IT: Final = "run it with `await run(effect, env)` or `await manager.run(effect)`"
"""The remedy for an effect that was not run."""

OPEN_IT: Final = "open one with `async with open_env(config) as env`"
"""The remedy for a missing environment."""


# What was passed to ``run`` and to the operations.


def not_an_effect(value: object) -> TypeError:
    """Return the error of ``run`` for a value that is no effect.

    >>> print(not_an_effect(LLMRequest(prompt="why?")))
    run needs an effect, not LLMRequest: pass generate(request)
    """
    return TypeError(f"run needs an effect, not {_kind(value)}: {_effect_remedy(value)}")


def _effect_remedy(value: object) -> str:
    if isinstance(value, LLMRequest | str | Mapping | Message):
        return "pass generate(request)"
    if isinstance(value, Coroutine | FutureResult):
        return "await it, since it has its environment already"
    if isinstance(value, FunctionType | MethodType):
        return f"call {value.__name__} with its arguments"
    if isinstance(value, RequiresContext):
        return "open it with `async with open_stream(request)(env) as events`"
    if isinstance(value, LLMEnv) or _is_manager(value):
        return "the effect comes first, as in run(effect, env)"
    if isinstance(value, BaseContainer):
        return "it was run already, so read it with unwrap()"
    if is_list(value) and any(isinstance(each, RequiresContextFutureResult) for each in value):
        return "pass each effect by itself, as in race(first, second)"
    return "pass one, such as generate(request)"


def not_a_step(combinator: str, value: object) -> TypeError:
    """Return the error of ``then`` or ``rescue`` for a function that returned something else than an effect.

    >>> print(not_a_step("then", "Logs."))
    the function of then must return an effect, not str: write effect.map(f)
    """
    kind, remedy = _kind(value), "write effect.map(f)" if combinator == "then" else "return succeed(...) or fail(...)"
    if isinstance(value, Result):
        remedy = "write effect.bind_result(f)" if combinator == "then" else "return from_result(...)"
    if isinstance(value, FutureResult):
        remedy = "return the effect itself, such as generate(request), not what a manager returns"
    if isinstance(value, Coroutine):
        value.close()  # or Python warns that it was never awaited
        remedy = "return effect(work), where work is an async function of the environment"
    return TypeError(f"the function of {combinator} must return an effect, not {kind}: {remedy}")


def check_places(usage: str, effect: object, other: object) -> None:
    """Raise a ``TypeError`` for an effect in the place of another argument.

    >>> check_places("timeout(5, effect)", 5, RequiresContextFutureResult.from_value(1))
    Traceback (most recent call last):
        ...
    TypeError: the arguments are in another order: write timeout(5, effect)
    """
    if isinstance(other, RequiresContextFutureResult) and not isinstance(effect, RequiresContextFutureResult):
        msg = f"the arguments are in another order: write {usage}"
        raise TypeError(msg)


def not_an_env(value: object) -> TypeError:
    """Return the error of an effect for a value that is no environment.

    >>> print(not_an_env("config.toml"))
    an effect needs an LLMEnv, not str: open one with `async with open_env(config) as env`
    """
    return TypeError(f"an effect needs an LLMEnv, not {_kind(value)}: {_env_remedy(value)}")


def _env_remedy(value: object) -> str:
    if _is_manager(value):
        return "pass manager.env, or write `await manager.run(effect)`"
    if isinstance(value, RequiresContextFutureResult):
        return "the effect comes first, as in run(effect, env)"
    return f"write `{value.usage}`" if isinstance(value, Opening) else OPEN_IT


def _is_manager(value: object) -> bool:
    return isinstance(getattr(value, "env", None), LLMEnv)


def not_a_request(value: object) -> TypeError:
    """Return the error of an operation for a value that is no request.

    >>> print(not_a_request({"prompt": "why?"}))
    a request is a str or an LLMRequest, not dict: write LLMRequest(prompt=...)
    """
    return TypeError(f"a request is a str or an LLMRequest, not {_kind(value)}: {_request_remedy(value)}")


def check_config(value: object) -> None:
    """Raise a ``TypeError`` with the remedy for a value that is no ``LLMConfig``.

    >>> check_config("llm.toml")
    Traceback (most recent call last):
        ...
    TypeError: a configuration is an LLMConfig, not str: write load_config(...).unwrap()
    """
    if not isinstance(value, LLMConfig):
        is_source = isinstance(value, (Result, Mapping, str, Path))
        remedy = "load_config(...).unwrap()" if is_source else "LLMConfig(...)"
        msg = f"a configuration is an LLMConfig, not {_kind(value)}: write {remedy}"
        raise TypeError(msg)


def _request_remedy(value: object) -> str:
    if isinstance(value, Message):
        return "write LLMRequest(messages=(message,))"
    if isinstance(value, Mapping) and "role" not in value:
        names = [field.name for field in fields(LLMRequest) if field.name in value]
        return f"write LLMRequest({', '.join(f'{name}=...' for name in names or ['prompt'])})"
    if isinstance(value, Mapping | Sequence):
        many = (cast("object", value),) if isinstance(value, Mapping) else cast("Sequence[object]", value)
        if any(isinstance(each, Mapping) for each in many):
            return "write LLMRequest(messages=messages_from([...])) with llm_effects.values.messages_from"
        return 'write LLMRequest(messages=(Message("user", "..."), ...))'
    if isinstance(value, RequiresContextFutureResult):
        return f"it is an effect already, so {RUN_IT}"
    return "write LLMRequest(prompt=...)"


def _kind(value: object) -> str:
    """Return the name of a value's class; of a container, the name that people use for it."""
    if isinstance(value, Result | IOResult):
        return "Result" if isinstance(value, Result) else "IOResult"
    if isinstance(value, RequiresContextFutureResult):
        return "an effect"
    if isinstance(value, Opening):
        return "a context manager that was not entered"
    return "None" if value is None else type(value).__name__


# An effect that is dropped.

NEWEST: Final = [0]
"""The id of the newest operation: of the effects in one dropped expression only the outermost is reported."""


def operation_name(work: object) -> str:
    """Return the name of the operation whose effect does some work.

    >>> operation_name(check_config)
    'check_config'
    """
    while isinstance(work, partial):
        work = cast("partial[object]", work).func
    name: str = getattr(work, "__qualname__", type(work).__name__)
    return name.partition(".<locals>")[0].lstrip("_")


def warn_if_dropped(operation: str) -> None:
    """Warn of an effect that its collector drops, if that is a statement that makes an effect and does nothing with it.

    Only such a statement is surely a mistake: an effect that was stored or composed may rightly never run. It shows in
    the bytecode of the frame that drops it, which then executes the end of an expression statement.
    """
    here = currentframe()
    here = None if here is None else here.f_back  # of ``__del__``
    frame = None if here is None else here.f_back
    if frame is not None and _ends_a_statement(frame.f_code.co_code, frame.f_lasti):
        warnings.warn(f"effect {operation!r} was never run: {RUN_IT}", RuntimeWarning, stacklevel=3)


def _ends_a_statement(code: bytes, at: int) -> bool:
    """Return whether the instruction at a place drops the value of a statement, and not an exception after ``with``."""
    if code[at] != opmap["POP_TOP"]:
        return False
    before = at - 2
    while before > 0 and code[before] == opmap["CACHE"]:
        before -= 2
    return opname[code[before]] not in {"RERAISE", "POP_EXCEPT", "POP_TOP"}


# What is entered with ``async with``.


@final
@frozen(eq=False)
class Opening(AbstractAsyncContextManager[_Value]):
    """An async context manager that was not entered; any other use raises its ``usage``."""

    __repr__ = shown

    usage: str
    _inner: AbstractAsyncContextManager[_Value]

    async def __aenter__(self) -> _Value:
        return await self._inner.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._inner.__aexit__(kind, error, traceback)

    if not TYPE_CHECKING:  # type checkers must go on to reject these

        def _refuse(self, *_: object) -> NoReturn:
            raise TypeError(f"it is not open yet: write `{self.usage}`")

        __enter__ = __exit__ = __aiter__ = __await__ = __iter__ = _refuse

        def __getattr__(self, name: str) -> NoReturn:
            raise AttributeError(f"it has no {name!r}, since it is not open yet: write `{self.usage}`")


def entered_by(
    usage: str,
) -> Callable[
    [Callable[_Params, AbstractAsyncContextManager[_Value]]], Callable[_Params, AbstractAsyncContextManager[_Value]]
]:
    """Return a decorator for a function that returns an async context manager; ``usage`` shows how to enter it."""

    def decorated(
        make: Callable[_Params, AbstractAsyncContextManager[_Value]],
    ) -> Callable[_Params, AbstractAsyncContextManager[_Value]]:
        @wraps(make)
        def opening(*args: _Params.args, **kwargs: _Params.kwargs) -> AbstractAsyncContextManager[_Value]:
            return Opening(usage, make(*args, **kwargs))

        return opening

    return decorated


# What is looked up on a container.


@final
@define(eq=False, repr=False)
class _Lacking:
    """A name that a container lacks: a descriptor whose look-up fails with the remedy."""

    name: str

    def __get__(self, owner: object, kind: type) -> NoReturn:
        remedy = "" if owner is None else _look_up_remedy(owner, self.name)
        msg = f"{kind.__name__!r} object has no attribute {self.name!r}"
        raise AttributeError(f"{msg}: {remedy}" if remedy else msg)


def _look_up_remedy(container: object, name: str) -> str:
    """Return the remedy, or an empty text where the value inside is of another library."""
    if isinstance(container, LLMEnv):
        return f"operations are functions: write `await run({name}(...), env)`"
    if isinstance(container, RequiresContextFutureResult):
        return f"an effect has no value before it is run; {RUN_IT}"
    if isinstance(container, FutureResult):
        return "it was not awaited; `await manager.run(effect)` returns a Result"
    if isinstance(container, IO | IOResult):
        return f"write `(await manager.run(effect)).unwrap().{name}`, since run returns a plain Result"
    if not isinstance(container, Result):
        return ""
    result = cast("Result[object, object]", container)
    if is_successful(result):
        return f"it holds the value, so write result.unwrap().{name}" if hasattr(result.unwrap(), name) else ""
    error = result.failure()
    if not isinstance(error, get_args(LLMError)):
        return ""
    return f"the call failed, so check is_successful(result). {describe(cast('LLMError', error))}"


_OF_A_RESPONSE: Final = ("content", "cost", "tool_calls", "usage")
_OF_A_RESULT: Final = ("unwrap", "failure")
_OF_A_MANAGER: Final = ("generate", "stream", "converse")


def _refusing(remedy: str) -> Callable[..., NoReturn]:
    def refuse(*_: object) -> NoReturn:
        raise TypeError(remedy)

    return refuse


def _explain_containers() -> None:
    """Add the remedies to the classes of ``returns``, which are final and made in its own code."""
    for kind in (Result, IO, IOResult, FutureResult, RequiresContextFutureResult):
        names = (*_OF_A_RESPONSE, *(_OF_A_RESULT if kind in {FutureResult, RequiresContextFutureResult} else ()))
        for name in names:
            setattr(kind, name, _Lacking(name))
    for name in _OF_A_MANAGER:
        setattr(LLMEnv, name, _Lacking(name))
    effects: Any = RequiresContextFutureResult
    effects.__await__ = _refusing(f"an effect cannot be awaited: {RUN_IT}")
    contexts: Any = RequiresContext
    remedy = "it needs an environment: write `async with open_stream(request)(env) as events`"
    contexts.__aenter__ = contexts.__aexit__ = contexts.__aiter__ = _refusing(remedy)


_explain_containers()
