"""Where exceptions become values."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from returns.result import Failure, Result, Success

from llm_effects.errors import Cause, InvalidRequest, LLMError
from llm_effects.secrets import scrub
from llm_effects.values import InvalidValue


def cause_of(exception: BaseException, *secrets: str) -> Cause:
    """Keep what an exception says and drop the exception, whose attributes may hold keys."""
    return Cause(type(exception).__name__, scrub(str(exception), *secrets)[:500])


_Made = TypeVar("_Made")
_Given = ParamSpec("_Given")


def checked(make: Callable[_Given, _Made], *args: _Given.args, **kwargs: _Given.kwargs) -> Result[_Made, LLMError]:
    """Make a value from data of outside: a broken rule is an ``InvalidRequest``, not an exception.

    >>> from llm_effects import LLMRequest
    >>> checked(LLMRequest, prompt="why?").map(lambda request: request.prompt)
    <Success: why?>
    >>> checked(LLMRequest, prompt=" ").failure().message
    'prompt: must not be blank: give some text, or leave it out'
    """
    try:
        return Success(make(*args, **kwargs))
    except InvalidValue as problem:
        return Failure(InvalidRequest(message=str(problem)))
