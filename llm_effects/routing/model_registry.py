"""The targets and prices of the configured models, cached per configuration."""

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

_T = TypeVar("_T")

MAX_CACHED_CONFIGS: Final = 16
"""Configurations in use at once whose derived values are cached."""


def cached_per_config(derive: Callable[[LLMConfig], _T]) -> Callable[[LLMConfig], _T]:
    """Cache what a function derives from a configuration, which every call needs again."""
    cache: dict[int, tuple[LLMConfig, _T]] = {}  # holding the configuration keeps its id unique

    @wraps(derive)
    def cached(config: LLMConfig) -> _T:
        entry = cache.get(id(config))
        if entry is None:
            if len(cache) >= MAX_CACHED_CONFIGS:
                cache.clear()
            entry = cache[id(config)] = (config, derive(config))
        return entry[1]

    return cached


@cached_per_config
def targets_of(config: LLMConfig) -> Result[tuple[Target, ...], LLMError]:
    """Return the target of every configured model, or one error with all problems."""
    targets = [target_of(name, model) for name, model in config.models.items()]
    problems = [each.failure() for each in targets if not is_successful(each)]
    if problems:
        lines = [problem.message if isinstance(problem, ConfigurationError) else problem.tag for problem in problems]
        return Failure(ConfigurationError(message="\n".join(lines)))
    if not targets:
        return Failure(ConfigurationError(message="models: none is configured: add one, or install the local model"))
    return Success(tuple(each.unwrap() for each in targets))


def ready_targets(config: LLMConfig) -> Mapping[str, Target]:
    """Return the targets of the valid models by name; routing reports the problems of the others."""
    targets = {name: target_of(name, model) for name, model in config.models.items()}
    return {name: target.unwrap() for name, target in targets.items() if is_successful(target)}


def prices_of(config: LLMConfig) -> Mapping[str, Price]:
    """Return the configured prices by model; a local model without one is free."""
    local = {name: FREE for name, target in ready_targets(config).items() if target.preset.family == "local"}
    configured = {name: model.price for name, model in config.models.items() if model.price is not None}
    return {**local, **configured}


def addresses_of(config: LLMConfig) -> Mapping[str, tuple[str, str]]:
    """Return the server address and the remote name of each model without a configured price."""
    priced = prices_of(config)
    unpriced = {name: target for name, target in ready_targets(config).items() if name not in priced}
    return {name: (target.endpoint, target.wire_model) for name, target in unpriced.items() if target.wire_model}


def price_list(config: LLMConfig) -> PriceList:
    """Build the price list of a configuration, which looks up other models in genai-prices if that is installed."""
    return PriceList(prices_of(config), listed_prices(addresses_of(config)), GENAI_PRICES)


def is_on_this_machine(target: Target) -> bool:
    """Return whether a model runs on this machine: in this process, or at a loopback address."""
    return target.preset.wire == "llama" or is_loopback(urlsplit(target.endpoint).hostname or "")
