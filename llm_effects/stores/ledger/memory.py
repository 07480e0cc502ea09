"""The ledger of one process: its newest rows, and what is left of the budgets."""

from collections import deque
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from threading import Lock
from typing import Final, final

from attrs import define, field
from returns.future import FutureResult
from returns.result import Failure, Result, Success

from llm_effects.limits.budgets import Hold, check_budget
from llm_effects.values.errors import BudgetExceeded, LLMError
from llm_effects.values.records import LedgerRow

KEPT: Final = 10_000
"""How many rows are kept; the oldest one makes room."""

_MANY: Final = 1_000


@final
@define(eq=False)
class MemoryLedger:
    """The newest rows and all budgets, for any number of event loops and threads."""

    _rows: deque[LedgerRow] = field(factory=lambda: deque[LedgerRow](maxlen=KEPT), init=False)
    _taken: dict[str, Decimal] = field(factory=dict[str, Decimal], init=False)
    _ends: dict[str, datetime] = field(factory=dict[str, datetime], init=False)
    _holds: dict[str, Hold] = field(factory=dict[str, Hold], init=False)
    _many: int = field(default=_MANY, init=False)
    _lock: Lock = field(factory=Lock, init=False, repr=False)

    def record(self, row: LedgerRow) -> None:
        """Book a row; the oldest one makes room."""
        self._rows.append(row)

    def rows(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        before: LedgerRow | None = None,
        newest: int | None = None,
    ) -> FutureResult[Sequence[LedgerRow], LLMError]:
        """Give the rows from a time up to another, oldest first: all of them, or the ``newest``."""
        rows = sorted((row for row in self._rows.copy() if within(row, since, until)), key=lambda row: row.at)
        if before is not None:  # one that is gone has taken all before it along
            rows = rows[: next((place for place, row in enumerate(rows) if row.id == before.id), 0)]
        return FutureResult.from_value(rows if newest is None else rows[max(0, len(rows) - newest) :])

    def reserve(self, hold: Hold) -> FutureResult[Hold, LLMError]:
        """Reserve an amount in all accounts or in none."""

        async def run() -> Result[Hold, LLMError]:
            with self._lock:
                refused = self._refused(hold)
                if refused is not None:
                    return Failure(refused)
                self._holds[hold.id] = hold
                self._take(hold, hold.amount)
                return Success(hold)

        return FutureResult(run())

    async def commit(self, hold: Hold, cost: Decimal) -> None:
        """Spend what it came to and give the hold back, once."""
        with self._lock:
            if self._holds.pop(hold.id, None) is not None:
                self._take(hold, cost - hold.amount)

    async def aclose(self) -> None:
        """Let go of nothing: what is kept lasts as long as the ledger."""

    def _refused(self, hold: Hold) -> BudgetExceeded | None:
        answers = (check_budget(each, self._taken.get(each.key, Decimal(0)), hold.amount) for each in hold.accounts)
        return next((each for each in answers if each is not None), None)

    def _take(self, hold: Hold, amount: Decimal) -> None:
        for account in hold.accounts:
            self._taken[account.key] = self._taken.get(account.key, Decimal(0)) + amount
            self._ends[account.key] = account.ends
        if len(self._taken) > self._many:
            self._drop_ended(hold.at)

    def _drop_ended(self, now: datetime) -> None:
        held = {account.key for hold in self._holds.values() for account in hold.accounts}
        self._ends = {key: ends for key, ends in self._ends.items() if ends > now or key in held}
        self._taken = {key: self._taken[key] for key in self._ends}
        self._many = 2 * len(self._taken) + _MANY


def within(row: LedgerRow, since: datetime | None, until: datetime | None) -> bool:
    """Whether a row is of a time from one up to another."""
    return (since is None or row.at >= since) and (until is None or row.at < until)
