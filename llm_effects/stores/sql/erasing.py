"""Erasing rows by owner and age, a batch at a time, so that no transaction keeps others waiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from returns.result import Result, Success
from sqlalchemy import Column, ColumnElement, Connection, and_, delete, exists, func, or_, select, tuple_

from llm_effects.effects.lifecycle import APPROVALS_RUN, Chosen, Counts
from llm_effects.limits.budgets import account_ending
from llm_effects.stores.sql.tables import (
    BUDGETS,
    CONVERSATIONS,
    JOURNAL,
    LEDGER,
    MESSAGES,
    USAGE,
    USAGE_CALLS,
    USAGE_HOURS,
    timestamp,
)
from llm_effects.values.errors import LLMError

CONVERSATIONS_AT_ONCE: Final = 100
"""How many conversations one transaction erases."""

ROWS_AT_ONCE: Final = 5_000
"""How many rows of journals, or of the ledger, one transaction erases."""


def erase_conversations(connection: Connection, chosen: Chosen) -> Result[Counts, LLMError]:
    """Erase the oldest conversations that are chosen, with everything that refers to them."""
    columns = CONVERSATIONS.c
    updated = in_c(connection, columns.updated_at)
    query = select(columns.key).where(*_chosen(columns.owner, updated, chosen, unowned=""))
    # a turn that is being written is waited for: its conversation is chosen by what it is then
    query = query.order_by(updated).limit(CONVERSATIONS_AT_ONCE).with_for_update()
    keys = connection.execute(query).scalars().all()
    count = select(func.count()).select_from(MESSAGES).where(MESSAGES.c.conversation.in_(keys))
    messages = connection.execute(count).scalar_one() if keys else 0
    connection.execute(delete(CONVERSATIONS).where(columns.key.in_(keys)))
    return Success({"conversations": len(keys), "messages": messages})


def erase_journals(connection: Connection, chosen: Chosen) -> Result[Counts, LLMError]:
    """Erase entries of runs that are chosen as a whole, and approvals."""
    columns = JOURNAL.c
    chosen_rows = and_(*_chosen(columns.owner, columns.at, chosen, unowned=""))
    approvals = _erase_entries(connection, and_(chosen_rows, columns.run == APPROVALS_RUN))
    runs = select(columns.owner, columns.run).where(chosen_rows, columns.run != APPROVALS_RUN)
    if chosen.before is not None:
        newer = JOURNAL.alias()
        same = and_(newer.c.owner == columns.owner, newer.c.run == columns.run)
        runs = runs.where(~exists().where(same, newer.c.at >= timestamp(chosen.before)))
    found = [(row.owner, row.run) for row in connection.execute(runs.distinct().limit(CONVERSATIONS_AT_ONCE))]
    entries = connection.execute(delete(JOURNAL).where(tuple_(columns.owner, columns.run).in_(found))).rowcount
    return Success({"journal_entries": entries, "approvals": approvals})


def _erase_entries(connection: Connection, condition: ColumnElement[bool]) -> int:
    places = select(JOURNAL.c.place).where(condition).limit(ROWS_AT_ONCE)
    return connection.execute(delete(JOURNAL).where(JOURNAL.c.place.in_(places))).rowcount


def erase_rows(connection: Connection, chosen: Chosen) -> Result[Counts, LLMError]:
    """Erase the oldest rows of the ledger that are chosen; those of all ages with what their owners have spent."""
    columns = LEDGER.c
    rows = select(columns.at, columns.id).where(*_chosen(columns.owner, columns.at, chosen, unowned=None))
    oldest = rows.order_by(columns.at, columns.id).limit(ROWS_AT_ONCE)
    erased = connection.execute(delete(LEDGER).where(tuple_(columns.at, columns.id).in_(oldest))).rowcount
    for sums in (USAGE, USAGE_CALLS):  # of hours that no longer count, as their rows are gone
        connection.execute(delete(sums).where(sums.c.hour.not_in(select(USAGE_HOURS.c.hour))))
    owners = chosen.owners if chosen.before is None else None
    return Success({"ledger_rows": erased, "budgets": _erase_budgets(connection, owners or ())})


def _erase_budgets(connection: Connection, owners: Sequence[str | None]) -> int:
    """Erase the accounts whose keys name an owner; a key that is too long to be stored is a digest, and names none."""
    erased = 0
    for ending in (account_ending(owner) for owner in owners if owner is not None):
        similar = select(BUDGETS.c.key).where(BUDGETS.c.key.endswith(ending, autoescape=True))
        keys = [key for key in connection.execute(similar).scalars() if key.endswith(ending)]  # LIKE ignores case
        erased += connection.execute(delete(BUDGETS).where(BUDGETS.c.key.in_(keys))).rowcount if keys else 0
    return erased


def _chosen(
    owner: Column[str], changed: ColumnElement[Any], chosen: Chosen, *, unowned: str | None
) -> list[ColumnElement[bool]]:
    """Return the conditions of a choice; ``unowned`` is how a column stores the owner ``None``."""
    conditions = list[ColumnElement[bool]]()
    if chosen.owners is not None:
        names = [each for each in chosen.owners if each is not None]
        without = owner.is_(None) if unowned is None else owner == unowned
        conditions.append(or_(owner.in_(names), without) if None in chosen.owners else owner.in_(names))
    elif chosen.spared:
        conditions.append(or_(owner.is_(None), owner.not_in(chosen.spared)))
    if chosen.before is not None:
        conditions.append(changed < timestamp(chosen.before))
    return conditions


def in_c(connection: Connection, column: Column[str]) -> ColumnElement[str]:
    """Return a column that compares by code point, also where its type does not say so."""
    return column.collate("C") if connection.dialect.name == "postgresql" else column
