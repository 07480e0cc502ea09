"""Erasing rows by owner and age, a batch at a time, so that no transaction keeps others waiting."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success
from sqlalchemy import Column, ColumnElement, Connection, and_, delete, exists, func, or_, select, text, tuple_, update

from llm_effects.effects.effect import result_of
from llm_effects.effects.lifecycle import APPROVALS_RUN, Chosen, Counts
from llm_effects.limits.budgets import account_endings, period_start
from llm_effects.stores.sql.database import Database
from llm_effects.stores.sql.searching import is_indexed
from llm_effects.stores.sql.tables import (
    BUDGETS,
    CONVERSATIONS,
    JOURNAL,
    LEDGER,
    MESSAGES,
    USAGE,
    USAGE_CALLS,
    USAGE_HOURS,
    lock_usage,
    timestamp,
)
from llm_effects.stores.sqlite_files import empty_log
from llm_effects.values.errors import LLMError, StorageFailed

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


def erase_journals(connection: Connection, chosen: Chosen, *, at: datetime) -> Result[Counts, LLMError]:
    """Erase entries of runs that are chosen as a whole, and approvals.

    A program from before journals had ages writes none: what it wrote counts as written now, ``at`` a time.
    """
    columns, whole = JOURNAL.c, list[ColumnElement[bool]]()
    if chosen.before is not None:
        connection.execute(update(JOURNAL).where(columns.at.is_(None)).values(at=timestamp(at)))
        newer = JOURNAL.alias()
        same = and_(newer.c.owner == columns.owner, newer.c.run == columns.run)
        whole = [~exists().where(same, newer.c.at >= timestamp(chosen.before))]
    chosen_rows = and_(*_chosen(columns.owner, columns.at, chosen, unowned=""))
    approvals = _erase_entries(connection, and_(chosen_rows, columns.run == APPROVALS_RUN))
    runs = select(columns.owner, columns.run).where(chosen_rows, columns.run != APPROVALS_RUN, *whole)
    found = [(row.owner, row.run) for row in connection.execute(runs.distinct().limit(CONVERSATIONS_AT_ONCE))]
    of_found = tuple_(columns.owner, columns.run).in_(found)
    # a step that is being written is waited for: its run is chosen by what it is then
    connection.execute(select(columns.place).where(of_found).order_by(columns.place).with_for_update())
    entries = connection.execute(delete(JOURNAL).where(of_found, *whole)).rowcount
    return Success({"journal_entries": entries, "approvals": approvals})


def _erase_entries(connection: Connection, condition: ColumnElement[bool]) -> int:
    places = select(JOURNAL.c.place).where(condition).limit(ROWS_AT_ONCE)
    # the condition twice: on a server, an entry may change in between
    return connection.execute(delete(JOURNAL).where(JOURNAL.c.place.in_(places), condition)).rowcount


def erase_rows(connection: Connection, chosen: Chosen) -> Result[Counts, LLMError]:
    """Erase the oldest rows of the ledger that are chosen, then what was spent: of these owners, in old periods."""
    lock_usage(connection)
    columns = LEDGER.c
    rows = select(columns.at, columns.id).where(*_chosen(columns.owner, columns.at, chosen, unowned=None))
    oldest = rows.order_by(columns.at, columns.id).limit(ROWS_AT_ONCE)
    erased = connection.execute(delete(LEDGER).where(tuple_(columns.at, columns.id).in_(oldest))).rowcount
    for sums in (USAGE, USAGE_CALLS):  # of hours that no longer count, as their rows are gone
        hourly = func.length(sums.c.hour) == len("2026-11-23T13")
        connection.execute(delete(sums).where(hourly, sums.c.hour.not_in(select(USAGE_HOURS.c.hour))))
    connection.execute(text(DROP_CHANGED_SPANS))
    budgets = _erase_budgets(connection, chosen) if erased < ROWS_AT_ONCE else 0
    return Success({"ledger_rows": erased, "budgets": budgets})


DROP_CHANGED_SPANS: Final = """DELETE FROM llm_usage WHERE hours IS NOT NULL AND hours <> (
    SELECT count(*) FROM llm_usage_hours AS h WHERE h.hour >= llm_usage.hour AND h.hour < llm_usage.hour || '~'
)"""
"""Drop the sums of days, and of ten days, of which hours no longer count."""

_LONGEST_PERIOD: Final = timedelta(days=31)

_STARTED: Final = {
    "sqlite": text("CASE WHEN key LIKE '[%' THEN json_extract(key, '$[2]') ELSE '' END < :start"),
    "postgresql": text("CASE WHEN key LIKE '[%' THEN CAST(key AS jsonb)->>2 ELSE '' END < :start COLLATE \"C\""),
}
"""The condition that an account is of a period that began before a time."""

_DIGEST_LENGTH: Final = 64
"""Of the keys that earlier versions made of long ones: they name nobody, and nothing reads them any more."""


def _erase_budgets(connection: Connection, chosen: Chosen) -> int:
    """Erase accounts: those whose keys name an owner, if chosen by age those of periods that have ended."""
    key, by_owner = BUDGETS.c.key, chosen.owners is not None
    named = chosen.spared if chosen.owners is None else chosen.owners
    endings = tuple(each for owner in named if owner is not None for each in account_endings(owner))
    digests = and_(func.length(key) == _DIGEST_LENGTH, ~key.startswith("["))
    query = select(key, digests)
    if by_owner:
        query = query.where(or_(digests, *(key.endswith(each, autoescape=True) for each in endings)))
    if chosen.before is not None:
        started = period_start(chosen.before.astimezone(UTC) - _LONGEST_PERIOD)
        query = query.where(_STARTED[connection.dialect.name].bindparams(start=started))
    similar = connection.execute(query).all()  # LIKE ignores case
    keys = [key for key, is_digest in similar if is_digest or key.endswith(endings) is by_owner][:ROWS_AT_ONCE]
    return connection.execute(delete(BUDGETS).where(key.in_(keys))).rowcount if keys else 0


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


# What is erased from a file is overwritten, except in two places: its log, and its index of words.


def erase_all(
    database: Database,
    operation: str,
    work: Callable[[Connection], Result[Counts, LLMError]],
    *last: Callable[[Connection], Result[bool, LLMError]],
) -> FutureResult[Counts, LLMError]:
    """Erase a batch; once nothing is left, do what is to be done ``last``, each step until it returns ``False``."""

    async def run() -> Result[Counts, LLMError]:
        erased = await result_of(database.write(operation, work))
        if not is_successful(erased) or any(erased.unwrap().values()):
            return erased
        for step in last:
            more: Result[bool, LLMError] = Success(True)
            while more.value_or(False):
                more = await result_of(database.write(operation, step))
            if not is_successful(more):
                return Failure(more.failure())
        return erased

    return FutureResult(run())


def merge_words(connection: Connection) -> Result[bool, LLMError]:
    """Merge a part of the index of words of a file, which drops words of erased messages; return whether more is left.

    An index of any size is merged in short transactions, so that others can write in between.
    """
    if connection.dialect.name != "sqlite" or not is_indexed(connection):
        return Success(False)
    changes = text("SELECT total_changes()")
    before = connection.execute(changes).scalar_one()
    connection.execute(text("INSERT INTO llm_search (llm_search, rank) VALUES ('merge', -500)"))  # pages
    return Success(connection.execute(changes).scalar_one() - before > 1)


_LOG_IN_USE: Final = StorageFailed(
    operation="erase",
    message="what was erased is still in the log of the file, which another program reads: erase again",
    transient=True,
)


def forget_log(connection: Connection) -> Result[bool, LLMError]:
    """Empty the log of a file; return ``False``: nothing is left then."""
    file = connection.connection.driver_connection
    if not isinstance(file, sqlite3.Connection):
        return Success(False)
    file.execute("COMMIT")  # no transaction may be open
    is_empty = empty_log(file)
    file.execute("BEGIN")
    return Success(False) if is_empty else Failure(_LOG_IN_USE)
