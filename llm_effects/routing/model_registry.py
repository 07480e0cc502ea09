"""The configured models, made ready all together."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Final, TypeVar
from urllib.parse import urlsplit

from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config import LLMConfig
from llm_effects.config.models import Price
from llm_effects.providers.registry import target_of
from llm_effects.providers.target import Target, is_loopback
from llm_effects.routing.prices import FREE, GENAI_PRICES, PriceList, listed_prices
from llm_effects.values.errors import ConfigurationError, LLMError

_Made = TypeVar("_Made")

NEWEST: Final = 16
"""For how many configurations that are in use at once their models are kept ready."""


def of_newest(make: Callable[[LLMConfig], _Made]) -> Callable[[LLMConfig], _Made]:
    """Make something of a configuration once: every call asks for it. So it is kept for the ``NEWEST`` of them."""
    made: dict[int, tuple[LLMConfig, _Made]] = {}  # an id is nobody else's while its owner is held

    @wraps(make)
    def remembered(config: LLMConfig) -> _Made:
        held = made.get(id(config))
        if held is None:
            if len(made) >= NEWEST:
                made.clear()
            held = made[id(config)] = (config, make(config))
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


def addresses_of(config: LLMConfig) -> Mapping[str, tuple[str, str]]:
    """Where to look for the prices of the other models: the address of each one's server, and its name there."""
    priced = prices_of(config)
    asked = {name: target for name, target in ready_targets(config).items() if name not in priced}
    return {name: (target.endpoint, target.wire_model) for name, target in asked.items() if target.wire_model}


def price_list(config: LLMConfig) -> PriceList:
    """Make the prices of a configuration, with what genai-prices tells of the others where it is installed."""
    return PriceList(prices_of(config), listed_prices(addresses_of(config)), GENAI_PRICES)


def is_here(target: Target) -> bool:
    """Whether a model runs on this machine: in this process, or behind a loopback address."""
    return target.preset.wire == "llama" or is_loopback(urlsplit(target.endpoint).hostname or "")
