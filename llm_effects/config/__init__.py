"""The configuration as frozen values: models in order, routing, cache, storage.

``llm_effects.config.sources`` reads it from environment variables, a mapping or TOML.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Final, Literal, TypeAlias, final, get_args

import attrs
from attrs import field, frozen

from llm_effects.config.fields import amount, dollars, hidden, named, orders, pairs, strangers, to_order, to_tasks
from llm_effects.secrets import Secret, to_secret, usable_headers, usable_key, without_password
from llm_effects.values import (
    InvalidValue,
    each_of,
    inside,
    instance,
    instances,
    number,
    one_of,
    text,
    to_table,
    to_tuple,
)

Strategy: TypeAlias = Literal["balanced", "cost", "performance"]
"""How candidates are ordered."""

Family: TypeAlias = Literal["local", "gpt", "claude", "other"]
"""Models that are told together in an order of models."""

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
    tools: bool | None = field(default=None, validator=instance(bool))
    images: bool | None = field(default=None, validator=instance(bool))
    schema: bool | None = field(default=None, validator=instance(bool))
    sampling: bool | None = field(default=None, validator=instance(bool))
    reasoning: bool | None = field(default=None, validator=instance(bool))
    prefill: bool | None = field(default=None, validator=instance(bool))


@final
@frozen(kw_only=True)
class Price:
    """US dollars for a million tokens, by bucket; a bucket without a price costs as fresh input does."""

    input: Decimal = field(converter=dollars, validator=amount)
    output: Decimal = field(converter=dollars, validator=amount)
    cache_read: Decimal | None = field(default=None, converter=attrs.converters.optional(dollars), validator=amount)
    cache_write: Decimal | None = field(default=None, converter=attrs.converters.optional(dollars), validator=amount)


@final
@frozen(kw_only=True, cache_hash=True)
class ModelConfig:
    """One model: where it is and how it is called.

    ``provider`` is a protocol (``openai-chat``, ``anthropic``, ``llama``) or a preset's name
    (``lm-studio``, ``ollama``, ...). ``model`` is the provider's own name for it; without one, local
    servers answer with whatever is loaded. Times are milliseconds: ``timeout_ms`` for one attempt,
    ``connect_ms`` to reach the server, ``first_content_ms`` until the first piece of the answer,
    ``between_content_ms`` from one piece to the next, ``sink_ms`` that a consumer of a stream may take over what came
    together. ``context_length`` is tokens, for each of the ``slots``
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
    sink_ms: float = field(default=30_000, validator=number(above=0))
    wire_version: WireVersion = field(default="2026-10-21", validator=one_of(*get_args(WireVersion)))
    capabilities: Capabilities = field(factory=Capabilities, validator=instance(Capabilities))
    price: Price | None = field(default=None, validator=instance(Price))
    headers: tuple[tuple[str, Secret], ...] = field(default=(), converter=hidden, validator=[pairs, usable_headers])
    last_resort: bool = field(default=False, validator=instance(bool))


@final
@frozen(kw_only=True)
class RoutingConfig:
    """Which model is asked first, and how often.

    ``tasks`` gives a task its own order of model names or families (``local``, ``gpt``, ``claude``, ``other``);
    ``fallback_order`` follows it; then come the models left, as configured. ``max_retries`` is for each
    candidate, ``max_attempts`` and ``timeout_ms`` (milliseconds) for the whole call.
    """

    strategy: Strategy = field(default="balanced", validator=one_of(*get_args(Strategy)))
    fallback_order: tuple[str, ...] = field(default=(), converter=to_order, validator=instances(str))
    tasks: Mapping[str, tuple[str, ...]] = field(
        factory=dict[str, tuple[str, ...]], converter=to_tasks, validator=orders
    )
    max_retries: int = field(default=2, validator=number(at_least=0, whole=True))
    max_attempts: int = field(default=8, validator=number(at_least=1, whole=True))
    timeout_ms: float = field(default=300_000, validator=number(above=0))


KEEPABLE: Final = ("stop", "length", "tool_calls")
"""Finish reasons of answers that may be kept; one that was filtered never is."""


def _keeping(given: Iterable[str]) -> tuple[str, ...]:
    return to_tuple("keep", given)


@final
@frozen(kw_only=True)
class CacheConfig:
    """Where answers are kept, for how long (seconds; ``None`` is for ever), how many and which.

    ``keep`` names the finish reasons of the answers worth keeping: ``stop``, and where it makes sense ``length`` (cut
    off at the limit) or ``tool_calls``.
    """

    enabled: bool = field(default=True, validator=instance(bool))
    ttl_seconds: float | None = field(default=3600, validator=number(at_least=0))
    max_size: int = field(default=1000, validator=number(at_least=1, whole=True))
    url: str = field(default="memory://", validator=text(), repr=without_password)
    keep: tuple[str, ...] = field(default=("stop",), converter=_keeping, validator=each_of(*KEEPABLE))


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
    limit_usd: Decimal = field(converter=dollars, validator=amount)
    period: Literal["hour", "day", "month"] = field(default="day", validator=one_of("hour", "day", "month"))
    scope: str | None = field(default=None, validator=text())


@final
@frozen(kw_only=True)
class TelemetryConfig:
    """What traces may tell: message bodies only if asked for."""

    enabled: bool = field(default=True, validator=instance(bool))
    bodies: bool = field(default=False, validator=instance(bool))


def _models(given: Mapping[str, ModelConfig]) -> Mapping[str, ModelConfig]:
    return to_table("models", given)


def _budgets(given: Iterable[BudgetConfig]) -> tuple[BudgetConfig, ...]:
    return to_tuple("budgets", given)


@final
@frozen(kw_only=True)
class LLMConfig:
    """Everything that an environment is made from.

    >>> LLMConfig(models={"mini": ModelConfig(provider="openai-chat", model="gpt-6-luna", api_key="sk-x")})
    ... # doctest: +ELLIPSIS
    LLMConfig(models={'mini': ModelConfig(provider='openai-chat', model='gpt-6-luna', ... api_key=Secret('***'), ...
    """

    models: Mapping[str, ModelConfig] = field(converter=_models, validator=[named, instances(ModelConfig)])
    routing: RoutingConfig = field(factory=RoutingConfig, validator=instance(RoutingConfig))
    cache: CacheConfig = field(factory=CacheConfig, validator=instance(CacheConfig))
    storage: StorageConfig = field(factory=StorageConfig, validator=instance(StorageConfig))
    budgets: tuple[BudgetConfig, ...] = field(default=(), converter=_budgets, validator=instances(BudgetConfig))
    telemetry: TelemetryConfig = field(factory=TelemetryConfig, validator=instance(TelemetryConfig))

    def __attrs_post_init__(self) -> None:
        known = (*self.models, *get_args(Family))
        asked = {inside("routing.tasks", task): names for task, names in self.routing.tasks.items()}
        asked["routing.fallback_order"] = self.routing.fallback_order
        lines = [line for path, names in asked.items() for line in strangers(path, names, known)]
        if lines:
            raise InvalidValue("\n".join(lines))
