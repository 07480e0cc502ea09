"""Which model is asked, how often, and when it is left alone."""

from collections.abc import Mapping
from typing import Literal, TypeAlias, final, get_args

from attrs import field, frozen

from llm_effects.config.fields import orders, to_order, to_tasks
from llm_effects.values.validation import instance, instances, number, one_of

Strategy: TypeAlias = Literal["balanced", "cost", "performance"]
"""How candidates are ordered."""


@final
@frozen(kw_only=True)
class BreakerConfig:
    """When a failing model is left alone.

    It is, for ``open_seconds``, once ``failure_rate`` (0 to 1) of at least ``min_attempts`` attempts within
    ``window_seconds`` have failed by the network, by time or by the server's own fault.
    """

    enabled: bool = field(default=True, validator=instance(bool))
    window_seconds: float = field(default=60.0, validator=number(above=0))
    min_attempts: int = field(default=10, validator=number(at_least=1, whole=True))
    failure_rate: float = field(default=0.5, validator=number(above=0, at_most=1))
    open_seconds: float = field(default=30.0, validator=number(above=0))


@final
@frozen(kw_only=True)
class HedgingConfig:
    """When a slow attempt is raced by a second one: after the ``percentile`` (0 to 1) of the model's first content.

    At most a ``budget`` share of all calls (0 to 1) is hedged, and none before ``min_attempts`` are known.
    """

    enabled: bool = field(default=False, validator=instance(bool))
    percentile: float = field(default=0.95, validator=number(above=0, at_most=1))
    budget: float = field(default=0.05, validator=number(above=0, at_most=1))
    min_attempts: int = field(default=20, validator=number(at_least=1, whole=True))


@final
@frozen(kw_only=True)
class RetryBudgetConfig:
    """How many retries all calls may make together: a bucket of ``tokens`` that each retry takes from.

    One after a passing fault costs ``transient``, one after the server was too busy ``throttled``; a success gives 1
    back, or what its own retry cost. Figures as in the AWS SDKs' standard mode (rules of 2026).
    """

    tokens: int = field(default=500, validator=number(at_least=1, whole=True))
    transient: int = field(default=14, validator=number(at_least=0, whole=True))
    throttled: int = field(default=5, validator=number(at_least=0, whole=True))


@final
@frozen(kw_only=True)
class RoutingConfig:
    """Which model is asked first, and how often.

    ``tasks`` gives a task its own order of model names or families (``local``, ``gpt``, ``claude``, ``other``);
    ``fallback_order`` follows it; then come the models left, as configured. ``max_retries`` is for each
    candidate, ``max_attempts`` and ``timeout_ms`` (milliseconds) for the whole call. ``breaker``, ``hedging`` and
    ``retry_budget`` keep trouble small.
    """

    strategy: Strategy = field(default="balanced", validator=one_of(*get_args(Strategy)))
    fallback_order: tuple[str, ...] = field(default=(), converter=to_order, validator=instances(str))
    tasks: Mapping[str, tuple[str, ...]] = field(
        factory=dict[str, tuple[str, ...]], converter=to_tasks, validator=orders
    )
    max_retries: int = field(default=2, validator=number(at_least=0, whole=True))
    max_attempts: int = field(default=8, validator=number(at_least=1, whole=True))
    timeout_ms: float = field(default=300_000, validator=number(above=0))
    breaker: BreakerConfig = field(factory=BreakerConfig, validator=instance(BreakerConfig))
    hedging: HedgingConfig = field(factory=HedgingConfig, validator=instance(HedgingConfig))
    retry_budget: RetryBudgetConfig = field(factory=RetryBudgetConfig, validator=instance(RetryBudgetConfig))
