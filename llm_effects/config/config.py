"""The configuration as a frozen value: models in order, routing, and the services."""

from collections.abc import Iterable, Mapping
from typing import Any, final, get_args

import attrs
from attrs import evolve, field, frozen

from llm_effects.config.fields import unknown_names, valid_names
from llm_effects.config.models import Family, ModelConfig, entry_of
from llm_effects.config.routing import RoutingConfig
from llm_effects.config.services import (
    BudgetConfig,
    CacheConfig,
    LimitsConfig,
    ServeConfig,
    StorageConfig,
    TelemetryConfig,
    TransportKind,
)
from llm_effects.values.secrets import Secret
from llm_effects.values.validation import (
    InvalidValue,
    explain_arguments,
    instance,
    instances,
    invalid,
    join_path,
    one_of,
    short_repr,
    to_table,
    to_tuple,
)
from llm_effects.values.value import Value


def _models(value: Mapping[str, ModelConfig]) -> Mapping[str, ModelConfig]:
    """Freeze the models; an entry with several keys becomes one model for each."""
    models = dict[str, ModelConfig]()
    for name, model in to_table("models", value).items():
        keys: tuple[Secret, ...] = getattr(model, "api_keys", ())  # a wrong value is reported by the validators
        models |= {f"{name}#{number}": evolve(model, api_key=key, api_keys=()) for number, key in enumerate(keys, 1)}
        if not keys:
            models[name] = model
    return to_table("models", models)


def _budgets(value: Iterable[BudgetConfig]) -> tuple[BudgetConfig, ...]:
    return to_tuple("budgets", value)


def _valid_budgets(_: object, attribute: "attrs.Attribute[Any]", budgets: tuple[BudgetConfig, ...]) -> None:
    """Reject two budgets with the same name, because they would share their accounts."""
    instances(BudgetConfig)(None, attribute, budgets)
    names = [budget.name for budget in budgets]
    for name in set(names):
        if names.count(name) > 1:
            invalid(attribute.name, f"names must be unique, but {short_repr(name)} occurs more than once")


@final
@frozen(kw_only=True, eq=False, repr=False)
class LLMConfig(Value):
    """The configuration of an environment.

    ``transport`` is the library that carries requests: ``httpx``, aiohttp (``fast``), or aiohttp if it is installed and
    the event loop is asyncio's (``auto``).

    >>> LLMConfig(models={"mini": ModelConfig(provider="openai-chat", model="gpt-6-luna", api_key="sk-x")})
    LLMConfig(models={'mini': ModelConfig(provider='openai-chat', model='gpt-6-luna', api_key=Secret('***'))})
    """

    models: Mapping[str, ModelConfig] = field(converter=_models, validator=[valid_names, instances(ModelConfig)])
    routing: RoutingConfig = field(factory=RoutingConfig, validator=instance(RoutingConfig))
    cache: CacheConfig = field(factory=CacheConfig, validator=instance(CacheConfig))
    storage: StorageConfig = field(factory=StorageConfig, validator=instance(StorageConfig))
    limits: LimitsConfig = field(factory=LimitsConfig, validator=instance(LimitsConfig))
    budgets: tuple[BudgetConfig, ...] = field(default=(), converter=_budgets, validator=_valid_budgets)
    telemetry: TelemetryConfig = field(factory=TelemetryConfig, validator=instance(TelemetryConfig))
    serve: ServeConfig = field(factory=ServeConfig, validator=instance(ServeConfig))
    transport: TransportKind = field(default="auto", validator=one_of(*get_args(TransportKind)))

    def __attrs_post_init__(self) -> None:
        known = (*dict.fromkeys((*map(entry_of, self.models), *self.models)), *get_args(Family))
        orders = {join_path("routing.tasks", task): names for task, names in self.routing.tasks.items()}
        orders["routing.fallback_order"] = self.routing.fallback_order
        problems = [line for path, names in orders.items() for line in unknown_names(path, names, known)]
        if problems:
            raise InvalidValue("\n".join(problems))


explain_arguments(LLMConfig, 'LLMConfig(models={"local": ModelConfig(provider="lm-studio")})')
