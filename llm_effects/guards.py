"""The services that keep load and trouble small: limits and breakers, budgets of retries and of hedges."""

from collections.abc import Awaitable, Hashable, Mapping
from typing import Protocol

from returns.future import FutureResult

from llm_effects.config import BreakerConfig, RetryBudgetConfig
from llm_effects.errors import LLMError
from llm_effects.limits import Bill, Need, Quota, Ticket
from llm_effects.limits.breakers import Passage


class Hedges(Protocol):
    """How many second attempts may be made: a budget that every call earns a share of."""

    def earn(self, share: float) -> None:
        """Put in a call's share (0 to 1) of a hedge."""
        ...

    def spend(self) -> bool:
        """Take one hedge out, if there is a whole one."""
        ...


class Retries(Protocol):
    """How often all calls together may ask again: a budget for each server and key."""

    def afford(self, server: Hashable, budget: RetryBudgetConfig, cost: int) -> bool:
        """Take the cost of a retry, if there is as much."""
        ...

    def repay(self, server: Hashable, budget: RetryBudgetConfig, amount: int) -> None:
        """Put some back, after a success."""
        ...


class Limits(Protocol):
    """How much may be asked of each model, and whether at all. No cancellation cuts ``leave`` or ``record`` short.

    Most calls wait for nobody: what is known at once is given as it is, and only the rest as a future.
    """

    @property
    def retries(self) -> Retries:
        """The budgets of retries, of this process."""
        ...

    @property
    def hedges(self) -> Hedges:
        """The budget of second attempts, of this process."""
        ...

    def enter(
        self, model: str, quota: Quota, need: Need, patience: float, deadline: float
    ) -> Ticket | FutureResult[Ticket, LLMError]:
        """Take a turn, or wait for one, first come first served, for ``patience`` seconds at the most.

        A turn that cannot come in time is a ``RateLimitExceeded`` at once. Nobody waits past the call's ``deadline``,
        on the clock of ``anyio.current_time()``; a place that was not given back by then is free again soon.
        """
        ...

    def leave(self, ticket: Ticket, bill: Bill) -> Awaitable[None]:
        """Give a place back, put right what was reserved, and learn what the server said."""
        ...

    def admit(self, model: str, deadline: float, *, anyway: bool) -> Passage | FutureResult[Passage, LLMError]:
        """Ask the model's breaker to be let through; one that is open is a ``ModelUnavailable``, unless ``anyway``.

        A probe that nobody records is given up soon after its call's ``deadline``.
        """
        ...

    def record(self, model: str, config: BreakerConfig, passage: Passage, *, failed: bool | None) -> Awaitable[None]:
        """Tell the model's breaker what became of one: ``None`` says nothing of the model."""
        ...

    def opened(self) -> Mapping[str, float]:
        """Give the models that are left alone, as far as is known here, and until when.

        Times are on the clock of ``anyio.current_time()``.
        """
        ...

    def aclose(self) -> Awaitable[None]:
        """Let go of connections and threads; a second time does nothing."""
        ...
