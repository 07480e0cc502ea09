"""The configured models, made ready all together."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import TypeVar
from urllib.parse import urlsplit

from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config import LLMConfig, Price
from llm_effects.errors import ConfigurationError, LLMError
from llm_effects.prices import FREE
from llm_effects.providers.registry import target_of
from llm_effects.providers.targets import Target, is_loopback

_Made = TypeVar("_Made")


def of_newest(make: Callable[[LLMConfig], _Made]) -> Callable[[LLMConfig], _Made]:
    """Make something of a configuration once, for as long as the same one is asked for: every call asks for it."""
    newest: tuple[LLMConfig, _Made] | None = None

    @wraps(make)
    def remembered(config: LLMConfig) -> _Made:
        nonlocal newest
        held = newest
        if held is None or held[0] is not config:
            newest = held = (config, make(config))
        return held[1]

    return remembered


@of_newest
def targets_of(config: LLMConfig) -> Result[tuple[Target, ...], LLMError]:
    """Make every configured model ready, or tell all that is wrong with them at once."""
    made = [target_of(name, model) for name, model in config.models.items()]
    problems = [each.failure() for each in made if not is_successful(each)]
    if problems:
        lines = [problem.message if isinstance(problem, ConfigurationError) else problem.tag for problem in problems]
        return Failure(ConfigurationError(message="\n".join(lines)))
    if not made:
        return Failure(ConfigurationError(message="models: none is configured: add one, or install the local model"))
    return Success(tuple(each.unwrap() for each in made))


def ready_targets(config: LLMConfig) -> Mapping[str, Target]:
    """Give the models that are rightly configured; what is wrong with the others, routing tells."""
    made = {name: target_of(name, model) for name, model in config.models.items()}
    return {name: target.unwrap() for name, target in made.items() if is_successful(target)}


def prices_of(config: LLMConfig) -> Mapping[str, Price]:
    """Give the configured prices; a local model without one is free."""
    local = {name: FREE for name, target in ready_targets(config).items() if target.preset.family == "local"}
    given = {name: model.price for name, model in config.models.items() if model.price is not None}
    return {**local, **given}


def is_here(target: Target) -> bool:
    """Whether a model runs on this machine: in this process, or behind a loopback address."""
    return target.preset.wire == "llama" or is_loopback(urlsplit(target.endpoint).hostname or "")
