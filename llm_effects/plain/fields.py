"""Sources and requests with keywords for the plain faces, and the exception that they raise."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from types import NoneType
from typing import Any, Final, TypeAlias, TypedDict, TypeVar, cast, final

from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Result, Success

from llm_effects.config import LLMConfig
from llm_effects.config.loading import load_config
from llm_effects.effects.effect import Answer
from llm_effects.effects.env import LLMEnv, Redact
from llm_effects.manager import LLMManager
from llm_effects.pipeline import check_request
from llm_effects.values.errors import ConfigurationError, LLMError, checked, describe, request_of
from llm_effects.values.messages import Message, Stays
from llm_effects.values.requests import CachePolicy, LLMRequest, Preferences, ReasoningEffort
from llm_effects.values.responses import LLMResponse

_Value = TypeVar("_Value")

Source: TypeAlias = LLMConfig | LLMEnv | Mapping[str, object] | str | os.PathLike[str] | None
"""Where an ``LLM`` finds its models: a configuration, the path of a TOML file, an environment, or the variables."""

Request: TypeAlias = str | LLMRequest
"""What a model is asked: a text, or a whole request."""

CLOSED: Final = ConfigurationError(message="this LLM is closed: make another one")


@final
class LLMFailure(Exception):  # noqa: N818 - an error is the value that it holds
    """The exception of ``LLM`` and ``AsyncLLM``: ``error`` is the ``LLMError``, its text is ``describe(error)``.

    >>> from llm_effects import ConfigurationError
    >>> print(LLMFailure(ConfigurationError(message="models: none is configured")))
    ConfigurationError: models: none is configured
    """

    def __init__(self, error: LLMError) -> None:
        super().__init__(error)
        self.error = error

    def __str__(self) -> str:
        return describe(self.error)


class RequestFields(TypedDict, total=False):
    """The fields of a request that may be keywords of a call; ``timeout_ms`` is the whole call in milliseconds."""

    model: str | None
    system: str | None
    task_type: str
    cache: CachePolicy | str
    preferences: Preferences
    max_tokens: int | None
    temperature: float | None
    reasoning_effort: ReasoningEffort | None
    timeout_ms: float | None
    stays: Stays | None
    owner: str | None
    tags: Sequence[str]


class TurnFields(RequestFields, total=False):
    """The keywords of ``converse``: fields of a request, and of the turn."""

    turn_id: str | None
    pinned: bool


_PREFERENCES: Final = frozenset({"max_tokens", "temperature", "reasoning_effort", "timeout_ms"})
_OF_TURN: Final = frozenset({"owner", "turn_id", "pinned"})


def as_request(request: Request | Message, fields: RequestFields) -> LLMRequest:
    """Return a request with some fields replaced; an unknown field is a ``TypeError``."""
    if not isinstance(request, Message):
        check_request(request)
    known = checked(LLMRequest, messages=(request,)) if isinstance(request, Message) else request_of(request)
    return value_of(checked(_with_fields, value_of(known), fields)) if fields else value_of(known)


def _with_fields(request: LLMRequest, fields: RequestFields) -> LLMRequest:
    others: dict[str, Any] = dict(fields)
    preferences = {name: others.pop(name) for name in fields if name in _PREFERENCES}
    try:
        changed = evolve(request, **others)
    except TypeError as problem:
        raise TypeError(_of_a_call(str(problem))) from None
    return evolve(changed, preferences=evolve(changed.preferences, **preferences))


def _of_a_call(problem: str) -> str:
    """Return what is wrong with the arguments of a request as those of a call, where preferences are arguments too."""
    for name in _PREFERENCES:
        problem = problem.replace(f"preferences=Preferences({name}=...)", f"{name}=...")
    return problem.replace("LLMRequest has no", "a call has no")


def as_turn(
    take: Callable[..., _Value], conversation_id: str, message: Request | Message, fields: TurnFields
) -> _Value:
    """Return what a turn of a conversation asks for, from the keywords of a call."""
    of_turn = {name: value for name, value in fields.items() if name in _OF_TURN}
    of_request = {name: value for name, value in fields.items() if name not in _OF_TURN}
    return take(conversation_id, as_request(message, cast("RequestFields", of_request)), **of_turn)


def plain_results(results: tuple[Answer, ...]) -> tuple[LLMResponse | LLMError, ...]:
    """Return each response or error as it is, without its container."""
    return tuple(each.unwrap() if isinstance(each, Success) else each.failure() for each in results)


def value_of(result: Result[_Value, LLMError]) -> _Value:
    """Return a value, or raise ``LLMFailure`` of the error."""
    if is_successful(result):
        return result.unwrap()
    raise LLMFailure(result.failure())


def manager_of(source: LLMConfig | LLMEnv, redact: Redact | None = None) -> LLMManager:
    """Return a manager; that of an environment has nothing of its own to open or close."""

    def adapted(env: LLMEnv) -> LLMEnv:
        known = env if isinstance(source, LLMConfig) else source
        return known if redact is None else evolve(known, redact=redact)

    return LLMManager(Success(source if isinstance(source, LLMConfig) else LLMConfig(models={})), adapted)


def loaded(source: Source) -> LLMConfig | LLMEnv:
    """Return the configuration or environment of a source; raise ``LLMFailure`` where it cannot be read."""
    kinds = (LLMConfig, LLMEnv, Mapping, str, os.PathLike, NoneType)
    if not isinstance(cast("object", source), kinds):
        msg = f"an LLM needs an LLMConfig, the path of a TOML file or an LLMEnv, not {type(source).__name__}"
        raise TypeError(msg)
    return source if isinstance(source, LLMConfig | LLMEnv) else value_of(load_config(source))


_Face = TypeVar("_Face", bound=type)


def explain_source(face: _Face) -> _Face:
    """Make the constructor of a plain face say what to write for the arguments of other clients."""
    construct: Callable[..., None] = vars(face)["__init__"]

    @wraps(construct)
    def constructed(self: object, *args: object, **named: object) -> None:
        for name in (each for each in named if each not in {"source", "check", "redact"}):
            msg = f"{face.__name__} has no argument {name!r}: {_source_remedy(face.__name__, name)}"
            raise TypeError(msg)
        construct(self, *args, **named)

    setattr(face, "__init__", constructed)  # noqa: B010 - type checkers go on to see the constructor
    return face


def _source_remedy(face: str, name: str) -> str:
    if name not in _OF_A_MODEL:
        return "its arguments are source, check, redact"
    known, variable = _OF_A_MODEL[name]
    model = '"model": ...' if known == "model" else f'"model": ..., "{known}": ...'
    return f'write {face}({{"models": {{"gpt": {{"provider": "openai", {model}}}}}}}), or set {variable}'


_OF_A_MODEL: Final[Mapping[str, tuple[str, str]]] = {
    "model": ("model", "OPENAI_MODEL or CLAUDE_MODEL"),
    "api_key": ("api_key", "OPENAI_API_KEY or CLAUDE_API_KEY"),
    **dict.fromkeys(("base_url", "api_base", "endpoint"), ("endpoint", "OPENAI_BASE_URL")),
}
"""Arguments of other clients: the field of a model, and the variables that set it."""


def repr_of(face: object, source: LLMConfig | LLMEnv) -> str:
    """Return how a face is shown: with the names of its models, without anything secret."""
    config = source if isinstance(source, LLMConfig) else source.config
    return f"{type(face).__name__}({', '.join(config.models)})"
