"""The configuration as frozen values: models in order, routing, cache, storage.

``llm_effects.config.sources`` reads it from environment variables, a mapping or TOML.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, TypeAlias, final, get_args

import attrs
from attrs import field, frozen

from llm_effects.secrets import Secret, to_headers, to_secret, usable_headers, usable_key, without_password
from llm_effects.values import instances, invalid, number, one_of, text, to_tuple

Strategy: TypeAlias = Literal["balanced", "cost", "performance"]
"""How candidates are ordered."""

WireVersion: TypeAlias = Literal["2023-06-01", "2026-10-21"]
"""The ``anthropic-version`` that is spoken."""


@final
@frozen(kw_only=True)
class Capabilities:
    """What a model can do; ``None`` is unknown and passes every filter.

    ``context_length`` and ``max_output`` are tokens. ``sampling`` says that ``temperature`` and ``top_p``
    are taken, ``prefill`` that an answer can be continued from its beginning.
    """

    context_length: int | None = field(default=None, validator=number(at_least=1, whole=True))
    max_output: int | None = field(default=None, validator=number(at_least=1, whole=True))
    tools: bool | None = None
    images: bool | None = None
    schema: bool | None = None
    sampling: bool | None = None
    reasoning: bool | None = None
    prefill: bool | None = None


def dollars(given: Decimal | str | float) -> Decimal:
    """Take an amount as it is written: 0.1 is a tenth, not the nearest binary fraction."""
    try:
        return Decimal(str(given))
    except InvalidOperation:
        return Decimal("nan")  # for _amount to refuse, which knows the field's name


def _amount(_: object, attribute: "attrs.Attribute[Any]", amount: Decimal | None) -> None:
    if amount is not None and not (amount.is_finite() and amount >= 0):
        invalid(attribute.name, f"must be an amount of US dollars such as 0.15, 0 or more, not {amount}")


@final
@frozen(kw_only=True)
class Price:
    """US dollars for a million tokens, by bucket; a bucket without a price costs as fresh input does."""

    input: Decimal = field(converter=dollars, validator=_amount)
    output: Decimal = field(converter=dollars, validator=_amount)
    cache_read: Decimal | None = field(default=None, converter=attrs.converters.optional(dollars), validator=_amount)
    cache_write: Decimal | None = field(default=None, converter=attrs.converters.optional(dollars), validator=_amount)


@final
@frozen(kw_only=True, cache_hash=True)
class ModelConfig:
    """One model: where it is and how it is called.

    ``provider`` is a protocol (``openai-chat``, ``anthropic``, ``llama``) or a preset's name
    (``lm-studio``, ``ollama``, ...). ``model`` is the provider's own name for it; without one, local
    servers answer with whatever is loaded. Times are milliseconds: ``timeout_ms`` for one attempt,
    ``connect_ms`` to reach the server, ``first_content_ms`` until the first piece of the answer,
    ``between_content_ms`` from one piece to the next. ``context_length`` is tokens, for each of the ``slots``
    requests that the in-process model serves at once.
    """

    provider: str = field(validator=text())
    model: str | None = field(default=None, validator=text())
    endpoint: str | None = field(default=None, validator=text(), repr=without_password)
    api_key: Secret | None = field(default=None, converter=to_secret, validator=usable_key)
    model_path: str | None = field(default=None, validator=text())
    max_tokens: int | None = field(default=None, validator=number(at_least=1, whole=True))
    temperature: float | None = field(default=None, validator=number(at_least=0, at_most=2))
    context_length: int | None = field(default=None, validator=number(at_least=1, whole=True))
    threads: int | None = field(default=None, validator=number(at_least=1, whole=True))
    slots: int = field(default=4, validator=number(at_least=1, at_most=64, whole=True))
    timeout_ms: float = field(default=120_000, validator=number(above=0))
    connect_ms: float = field(default=5_000, validator=number(above=0))
    first_content_ms: float = field(default=60_000, validator=number(above=0))
    between_content_ms: float = field(default=30_000, validator=number(above=0))
    wire_version: WireVersion = field(default="2026-10-21", validator=one_of(*get_args(WireVersion)))
    capabilities: Capabilities = field(factory=Capabilities)
    price: Price | None = None
    headers: tuple[tuple[str, Secret], ...] = field(default=(), converter=to_headers, validator=usable_headers)
    last_resort: bool = False


def _names(given: Iterable[str]) -> tuple[str, ...]:
    return to_tuple(given)


def _tasks(given: Mapping[str, Iterable[str]]) -> Mapping[str, tuple[str, ...]]:
    return {task: to_tuple(names) for task, names in given.items()}


@final
@frozen(kw_only=True)
class RoutingConfig:
    """Which model is asked first, and how often.

    ``tasks`` gives a task its own order of model names or families (``local``, ``gpt``, ``claude``);
    ``fallback_order`` follows it; then come the models left, as configured. ``max_retries`` is for each
    candidate, ``max_attempts`` and ``timeout_ms`` (milliseconds) for the whole call.
    """

    strategy: Strategy = field(default="balanced", validator=one_of(*get_args(Strategy)))
    fallback_order: tuple[str, ...] = field(default=(), converter=_names, validator=instances(str))
    tasks: Mapping[str, tuple[str, ...]] = field(factory=dict[str, tuple[str, ...]], converter=_tasks)
    max_retries: int = field(default=2, validator=number(at_least=0, whole=True))
    max_attempts: int = field(default=8, validator=number(at_least=1, whole=True))
    timeout_ms: float = field(default=300_000, validator=number(above=0))


@final
@frozen(kw_only=True)
class CacheConfig:
    """Where answers are kept, for how long (seconds; ``None`` is for ever) and how many."""

    enabled: bool = True
    ttl_seconds: float | None = field(default=3600, validator=number(at_least=0))
    max_size: int = field(default=1000, validator=number(at_least=1, whole=True))
    url: str = field(default="memory://", validator=text(), repr=without_password)


@final
@frozen(kw_only=True)
class StorageConfig:
    """Where conversations and the ledger are kept."""

    url: str = field(default="memory://", validator=text(), repr=without_password)


@final
@frozen(kw_only=True)
class BudgetConfig:
    """At most ``limit_usd`` US dollars in each ``period``, for one ``scope`` such as ``owner:alice``."""

    name: str = field(validator=text())
    limit_usd: Decimal = field(converter=dollars, validator=_amount)
    period: Literal["hour", "day", "month"] = field(default="day", validator=one_of("hour", "day", "month"))
    scope: str | None = field(default=None, validator=text())


@final
@frozen(kw_only=True)
class TelemetryConfig:
    """What traces may tell: message bodies only if asked for."""

    enabled: bool = True
    bodies: bool = False


def _models(given: Mapping[str, ModelConfig]) -> Mapping[str, ModelConfig]:
    return dict(given)  # a copy of our own, in the same order


def _named_models(_: object, attribute: "attrs.Attribute[Any]", models: Mapping[str, object]) -> None:
    for name, model in models.items():
        if not name.strip():
            invalid(attribute.name, "each model needs a name that is not blank")
        if not isinstance(model, ModelConfig):
            invalid(f"{attribute.name}[{name!r}]", f"must be ModelConfig, not {type(model).__name__}")


def _budgets(given: Iterable[BudgetConfig]) -> tuple[BudgetConfig, ...]:
    return to_tuple(given)


@final
@frozen(kw_only=True)
class LLMConfig:
    """Everything that an environment is made from.

    >>> LLMConfig(models={"mini": ModelConfig(provider="openai-chat", model="gpt-6-luna", api_key="sk-x")})
    ... # doctest: +ELLIPSIS
    LLMConfig(models={'mini': ModelConfig(provider='openai-chat', model='gpt-6-luna', ... api_key=Secret('***'), ...
    """

    models: Mapping[str, ModelConfig] = field(converter=_models, validator=_named_models)
    routing: RoutingConfig = field(factory=RoutingConfig)
    cache: CacheConfig = field(factory=CacheConfig)
    storage: StorageConfig = field(factory=StorageConfig)
    budgets: tuple[BudgetConfig, ...] = field(default=(), converter=_budgets, validator=instances(BudgetConfig))
    telemetry: TelemetryConfig = field(factory=TelemetryConfig)
