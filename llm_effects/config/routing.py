"""The configuration of routing: order of models, retries, circuit breakers, hedging."""

from collections.abc import Mapping
from typing import Literal, TypeAlias, final, get_args

from attrs import field, frozen

from llm_effects.config.fields import to_fallback_order, to_tasks, valid_orders
from llm_effects.values.validation import instance, instances, number, one_of
from llm_effects.values.value import Value

Strategy: TypeAlias = Literal["balanced", "cost", "performance"]
"""The order of candidates: by task, by estimated cost, or by measured performance."""


@final
@frozen(kw_only=True, eq=False, repr=False)
class BreakerConfig(Value):
    """When the circuit breaker of a model opens.

    It opens for ``open_seconds`` once ``failure_rate`` (0 to 1) of at least ``min_attempts`` attempts within
    ``window_seconds`` failed by a network error, a time-out or a server error.
    """

    enabled: bool = field(default=True, validator=instance(bool))
    window_seconds: float = field(default=60.0, validator=number(above=0))
    min_attempts: int = field(default=10, validator=number(at_least=1, whole=True))
    failure_rate: float = field(default=0.5, validator=number(above=0, at_most=1))
    open_seconds: float = field(default=30.0, validator=number(above=0))


@final
@frozen(kw_only=True, eq=False, repr=False)
class HedgingConfig(Value):
    """When a second attempt starts beside a slow one: after the ``percentile`` (0 to 1) of times to first content.

    At most a ``budget`` share (0 to 1) of all calls is hedged, and none before ``min_attempts`` attempts were measured.
    """

    enabled: bool = field(default=False, validator=instance(bool))
    percentile: float = field(default=0.95, validator=number(above=0, at_most=1))
    budget: float = field(default=0.05, validator=number(above=0, at_most=1))
    min_attempts: int = field(default=20, validator=number(at_least=1, whole=True))


@final
@frozen(kw_only=True, eq=False, repr=False)
class RetryBudgetConfig(Value):
    """A limit on the retries of all calls together: a bucket of ``tokens``.

    A retry after a transient error costs ``transient`` tokens, one after a throttling error ``throttled``. A success
    returns 1 token, or what its own retry cost. Figures as in the AWS SDKs' standard mode (rules of 2026).
    """

    tokens: int = field(default=500, validator=number(at_least=1, whole=True))
    transient: int = field(default=14, validator=number(at_least=0, whole=True))
    throttled: int = field(default=5, validator=number(at_least=0, whole=True))


@final
@frozen(kw_only=True, eq=False, repr=False)
class RoutingConfig(Value):
    """Which models a call tries, in which order, and how often.

    ``tasks`` gives a task its own order of model names or families (``local``, ``gpt``, ``claude``, ``other``);
    ``fallback_order`` follows it, then the remaining models as configured. ``max_retries`` is for each candidate,
    ``max_attempts`` and ``timeout_ms`` (milliseconds) for the whole call.
    While others are left, a candidate has ``candidate_share`` (0 to 1; 1 sets no limit) of the remaining time until its
    first content.
    """

    strategy: Strategy = field(default="balanced", validator=one_of(*get_args(Strategy)))
    fallback_order: tuple[str, ...] = field(default=(), converter=to_fallback_order, validator=instances(str))
    tasks: Mapping[str, tuple[str, ...]] = field(
        factory=dict[str, tuple[str, ...]], converter=to_tasks, validator=valid_orders
    )
    max_retries: int = field(default=2, validator=number(at_least=0, whole=True))
    max_attempts: int = field(default=8, validator=number(at_least=1, whole=True))
    timeout_ms: float = field(default=300_000, validator=number(above=0))
    breaker: BreakerConfig = field(factory=BreakerConfig, validator=instance(BreakerConfig))
    hedging: HedgingConfig = field(factory=HedgingConfig, validator=instance(HedgingConfig))
    candidate_share: float = field(default=0.5, validator=number(above=0, at_most=1))
    retry_budget: RetryBudgetConfig = field(factory=RetryBudgetConfig, validator=instance(RetryBudgetConfig))
