"""How often all calls together may ask again: a bucket of tokens for each server and key, full at first."""

from collections.abc import Hashable
from typing import final

from attrs import define, field

from llm_effects.config import RetryBudgetConfig


@final
@define
class MemoryRetries:
    """The budgets of this process: a client that storms is one process, so nobody shares them."""

    _left: dict[Hashable, int] = field(factory=dict[Hashable, int], init=False, repr=False)

    def afford(self, server: Hashable, budget: RetryBudgetConfig, cost: int) -> bool:
        """Take the cost of a retry, if there is as much.

        >>> retries, budget = MemoryRetries(), RetryBudgetConfig(tokens=20)
        >>> [retries.afford("server", budget, 14) for _ in range(2)]
        [True, False]
        """
        left = self._left.get(server, budget.tokens) - cost
        if left < 0:
            return False
        self._left[server] = left
        return True

    def repay(self, server: Hashable, budget: RetryBudgetConfig, amount: int) -> None:
        """Put some back, up to the full bucket."""
        if server in self._left:
            self._left[server] = min(budget.tokens, self._left[server] + amount)
