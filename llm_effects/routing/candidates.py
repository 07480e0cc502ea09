"""What a routing decision is made of, and the decision: values that show every number."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, final

from attrs import field, frozen

from llm_effects.config import Strategy
from llm_effects.records import Statistics
from llm_effects.requests import TaskType
from llm_effects.responses import Cost
from llm_effects.routing.suitability import LeftOut
from llm_effects.services import Prices

EXPECTED_ANSWER: Final = 512
"""Tokens of an answer when nobody says, for comparing costs."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@final
@frozen(kw_only=True)
class Candidate:
    """A model that may answer, with what its place was decided by. A lower ``score`` is asked earlier.

    Times are milliseconds: expected of a whole answer, of the first content of a stream, and of an attempt that fails;
    ``None`` where none is known. ``error_rate`` and ``confidence`` (from 0 to 1) are of what ``attempts`` attempts
    told, faded by the time since; ``calls_since`` counts the calls that were routed since, to whatever model. The cost
    is this request's estimate, by the price of ``price_source``. ``context_length`` is tokens. A model that is
    ``parked`` asked for a pause of ``parked_s`` seconds more; one that is ``open`` is left alone by its breaker, for
    ``open_s`` seconds more.
    """

    model: str
    provider: str
    family: str
    score: float = 0.0
    estimated_tokens: int = 0
    estimated_cost: Cost = Cost.UNKNOWN
    price_source: str = ""
    expected_latency_ms: float | None = None
    expected_first_content_ms: float | None = None
    expected_failure_ms: float | None = None
    error_rate: float = 0.0
    confidence: float = 0.0
    attempts: int = 0
    calls_since: int = 0
    context_length: int | None = None
    parked_s: float = 0.0
    open_s: float = 0.0
    last_resort: bool = field(default=False, repr=False)

    @property
    def parked(self) -> bool:
        """Whether the model asked for a pause that is not over."""
        return self.parked_s > 0

    @property
    def open(self) -> bool:
        """Whether its breaker leaves the model alone."""
        return self.open_s > 0


@final
@frozen(kw_only=True)
class RoutingDecision:
    """The candidates in the order in which they are asked, and the models left out.

    ``drawn`` is the number that decided whether this call is ``exploring``: whether it asks first who may have become
    better since it was last heard of.
    """

    task_type: TaskType
    strategy: Strategy
    candidates: tuple[Candidate, ...]
    left_out: tuple[LeftOut, ...] = ()
    drawn: float = 0.0
    exploring: bool = False
    streamed: bool = False


@final
@frozen(kw_only=True)
class Facts:
    """What a decision is made of besides the request and the configuration.

    ``tokens`` is the estimate of the prompt, ``last_model`` the one a conversation used last, ``calls`` how many were
    routed before, ``drawn`` a number from 0 up to 1 that decides about exploring. ``opened`` tells until when breakers
    leave models alone: like ``Statistics.parked_until`` a time on the clock of ``now``. ``at`` is the date, for prices
    and for fading.
    """

    statistics: Mapping[str, Statistics]
    prices: Prices
    tokens: int = 0
    last_model: str | None = None
    calls: int = 0
    drawn: float = 0.0
    now: float = 0.0
    at: datetime = EPOCH
    streamed: bool = False
    opened: Mapping[str, float] = field(factory=dict[str, float])
