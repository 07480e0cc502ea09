"""The ledger of one process: its newest rows, and all budgets."""

from collections import deque
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from threading import Lock
from typing import Final, final

from attrs import define, evolve, field
from returns.future import FutureResult
from returns.result import Failure, Result, Success

from llm_effects.effects.lifecycle import Chosen, Counts
from llm_effects.limits.budgets import Hold, account_endings, check_budget
from llm_effects.values.errors import BudgetExceeded, LLMError
from llm_effects.values.records import LedgerRow

KEPT: Final = 10_000
"""How many rows are kept; a new row replaces the oldest one."""

_ACCOUNTS: Final = 1_000  # above so many, ended ones are dropped


@final
@define(eq=False, repr=False)
class MemoryLedger:
    """The newest rows and all budgets, for any number of event loops and threads."""

    _rows: deque[LedgerRow] = field(factory=lambda: deque[LedgerRow](maxlen=KEPT), init=False)
    _totals: dict[str, Decimal] = field(factory=dict[str, Decimal], init=False)  # spent and reserved
    _ends: dict[str, datetime] = field(factory=dict[str, datetime], init=False)
    _holds: dict[str, Hold] = field(factory=dict[str, Hold], init=False)
    _max_accounts: int = field(default=_ACCOUNTS, init=False)
    _lock: Lock = field(factory=Lock, init=False, repr=False)

    def record(self, row: LedgerRow) -> None:
        """Record a row; it replaces the oldest one when the ledger is full."""
        with self._lock:
            self._rows.append(row)

    def rows(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        before: LedgerRow | None = None,
        newest: int | None = None,
    ) -> FutureResult[Sequence[LedgerRow], LLMError]:
        """Return the rows from ``since`` up to ``until``, oldest first: all of them, or the ``newest``."""
        rows = sorted((row for row in self._rows.copy() if within(row, since, until)), key=lambda row: row.at)
        if before is not None:  # if it was dropped, so were all rows before it
            rows = rows[: next((index for index, row in enumerate(rows) if row.id == before.id), 0)]
        return FutureResult.from_value(rows if newest is None else rows[max(0, len(rows) - newest) :])

    def reserve(self, hold: Hold) -> FutureResult[Hold, LLMError]:
        """Reserve an amount in all accounts or in none."""

        async def run() -> Result[Hold, LLMError]:
            with self._lock:
                refused = self._refused(hold)
                if refused is not None:
                    return Failure(refused)
                self._holds[hold.id] = hold
                self._add(hold, hold.amount)
                return Success(hold)

        return FutureResult(run())

    async def commit(self, hold: Hold, cost: Decimal) -> None:
        """Spend the cost and release the hold, once."""
        with self._lock:
            held = self._holds.pop(hold.id, None)
            if held is not None:
                self._add(held, cost - held.amount)

    def erase_rows(self, chosen: Chosen) -> FutureResult[Counts, LLMError]:
        """Erase rows, and what the chosen owners have spent."""
        with self._lock:
            kept = [row for row in self._rows if not (chosen.of(row.owner) and chosen.at(row.at))]
            erased = len(self._rows) - len(kept)
            self._rows.clear()
            self._rows.extend(kept)
            budgets = self._erase_accounts(chosen)
        return FutureResult.from_value({"ledger_rows": erased, "budgets": budgets})

    def _erase_accounts(self, chosen: Chosen) -> int:
        named = chosen.spared if chosen.owners is None else chosen.owners
        endings = tuple(each for owner in named if owner is not None for each in account_endings(owner))
        accounts = {
            key
            for key, ends in self._ends.items()
            if chosen.at(ends) and key.endswith(endings) is (chosen.owners is not None)
        }
        for key in accounts:
            del self._totals[key], self._ends[key]
        for hold in tuple(self._holds.values()) if accounts else ():
            left = tuple(each for each in hold.accounts if each.key not in accounts)
            self._holds[hold.id] = evolve(hold, accounts=left)
        return len(accounts)

    async def aclose(self) -> None:
        """No-op: rows and budgets last as long as the ledger object."""

    def _refused(self, hold: Hold) -> BudgetExceeded | None:
        refusals = (check_budget(each, self._totals.get(each.key, Decimal(0)), hold.amount) for each in hold.accounts)
        return next((each for each in refusals if each is not None), None)

    def _add(self, hold: Hold, amount: Decimal) -> None:
        for account in hold.accounts:
            self._totals[account.key] = self._totals.get(account.key, Decimal(0)) + amount
            self._ends[account.key] = account.ends
        if len(self._totals) > self._max_accounts:
            self._drop_ended(hold.at)

    def _drop_ended(self, now: datetime) -> None:
        held = {account.key for hold in self._holds.values() for account in hold.accounts}
        self._ends = {key: ends for key, ends in self._ends.items() if ends > now or key in held}
        self._totals = {key: self._totals[key] for key in self._ends}
        self._max_accounts = 2 * len(self._totals) + _ACCOUNTS


def within(row: LedgerRow, since: datetime | None, until: datetime | None) -> bool:
    """Return whether a row's time is from ``since`` up to ``until``."""
    return (since is None or row.at >= since) and (until is None or row.at < until)
