"""The service that knows what was spent, and how much more may be."""

from collections.abc import Awaitable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Protocol

from returns.future import FutureResult

from llm_effects.budgets import Hold
from llm_effects.errors import LLMError
from llm_effects.records import LedgerRow


class Ledger(Protocol):
    """What was spent: one row an attempt, and what is left of the budgets."""

    def record(self, row: LedgerRow) -> None:
        """Book a row without waiting. No two rows have the same time and ``id``."""
        ...

    def rows(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        before: LedgerRow | None = None,
        newest: int | None = None,
    ) -> FutureResult[Sequence[LedgerRow], LLMError]:
        """Give the rows from a time up to another, oldest first: all of them, or the ``newest``.

        For page after page, each has the rows that come ``before`` the first one of the page before it.
        """
        ...

    def reserve(self, hold: Hold) -> FutureResult[Hold, LLMError]:
        """Reserve an amount in all accounts or in none, whoever else does at the same time.

        What is too much for one of them is a ``BudgetExceeded``. Who is cancelled meanwhile has reserved nothing.
        """
        ...

    def settle(self, hold: Hold, cost: Decimal) -> Awaitable[None]:
        """Spend what it came to (US dollars) and give the hold back, once. No cancellation cuts it short."""
        ...

    def aclose(self) -> Awaitable[None]:
        """Write what is not written yet, and let go of connections and threads; a second time does nothing."""
        ...
