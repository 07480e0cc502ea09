"""Budgets in a database: amounts reserved and spent, each step a transaction that locks the accounts it touches.

A hold that has expired is freed, not forgotten: whoever settles it late is booked all the same, and nobody twice.
"""

from collections.abc import Iterable
from datetime import timedelta
from decimal import Decimal
from typing import Final

from attrs import frozen
from returns.result import Failure, Result, Success
from sqlalchemy import Connection, delete, select, update

from llm_effects.budgets import Account, Hold, refusal
from llm_effects.errors import LLMError
from llm_effects.stores.ledger_rows import stamp
from llm_effects.stores.ledger_schema import BUDGETS, HOLDS
from llm_effects.stores.sql_rows import insert_new

FORGOTTEN_AFTER: Final = timedelta(days=1)
"""How long after its expiry a hold is still known, for one who settles it late."""

_FREED: Final = "0"


@frozen
class _Sums:
    """What is spent of an account and what is reserved, in US dollars."""

    spent: Decimal
    reserved: Decimal


def reserve(connection: Connection, hold: Hold) -> Result[Hold, LLMError]:
    """Reserve an amount in all accounts or in none; one that is reserved already stays as it is."""
    for account in _in_order(hold.accounts):
        sums = _locked(connection, account.key)
        if not _is_new(connection, account.key, hold):
            return Success(hold)  # by a try before this one, whose answer was lost
        reserved = sums.reserved - _freed(connection, account.key, hold)
        refused = refusal(account, sums.spent + reserved, hold.amount)
        if refused is not None:
            return Failure(refused)
        _keep(connection, account.key, _Sums(sums.spent, reserved + hold.amount))
    return Success(hold)


def _is_new(connection: Connection, key: str, hold: Hold) -> bool:
    row = {"key": key, "id": hold.id, "amount": str(hold.amount), "expires_at": stamp(hold.expires_at)}
    return insert_new(connection, HOLDS, row)


def settle_all(connection: Connection, settlements: Iterable[tuple[Hold, Decimal]]) -> Result[None, LLMError]:
    """Settle several holds."""
    for hold, cost in settlements:
        settle(connection, hold, cost)
    return Success(None)


def settle(connection: Connection, hold: Hold, cost: Decimal) -> None:
    """Spend what it came to and give the hold back; what is not held changes nothing."""
    for account in _in_order(hold.accounts):
        sums = _locked(connection, account.key)
        mine = (HOLDS.c.key == account.key) & (HOLDS.c.id == hold.id)
        amount = connection.execute(select(HOLDS.c.amount).where(mine)).scalar_one_or_none()
        if amount is not None:
            connection.execute(delete(HOLDS).where(mine))
            _keep(connection, account.key, _Sums(sums.spent + cost, sums.reserved - Decimal(amount)))


def _in_order(accounts: Iterable[Account]) -> list[Account]:
    """Lock accounts in one order everywhere, so that no two transactions wait for each other."""
    return sorted(accounts, key=lambda account: account.key)


def _locked(connection: Connection, key: str) -> _Sums:
    query = select(BUDGETS.c.spent, BUDGETS.c.reserved).where(BUDGETS.c.key == key).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        insert_new(connection, BUDGETS, {"key": key, "spent": "0", "reserved": "0"})
        row = connection.execute(query).one()
    return _Sums(Decimal(row.spent), Decimal(row.reserved))


def _freed(connection: Connection, key: str, hold: Hold) -> Decimal:
    """Free what the dead have reserved, and give its sum."""
    others = (HOLDS.c.key == key) & (HOLDS.c.id != hold.id)
    expired = others & (HOLDS.c.expires_at <= stamp(hold.at)) & (HOLDS.c.amount != _FREED)
    amounts = connection.execute(select(HOLDS.c.amount).where(expired)).scalars().all()
    if amounts:
        connection.execute(update(HOLDS).where(expired).values(amount=_FREED))
        forgotten = others & (HOLDS.c.expires_at <= stamp(hold.at - FORGOTTEN_AFTER))
        connection.execute(delete(HOLDS).where(forgotten))
    return sum(map(Decimal, amounts), Decimal(0))


def _keep(connection: Connection, key: str, sums: _Sums) -> None:
    connection.execute(
        update(BUDGETS).where(BUDGETS.c.key == key).values(spent=str(sums.spent), reserved=str(sums.reserved))
    )
