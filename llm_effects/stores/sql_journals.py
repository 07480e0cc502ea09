"""The journal of runs in a database."""

from returns.result import Failure, Result, Success
from sqlalchemy import Connection, select, update

from llm_effects.errors import LLMError
from llm_effects.stores.sql_rows import insert_new, owner_of
from llm_effects.stores.sql_tables import JOURNAL
from llm_effects.stores.turn_rules import no_intent
from llm_effects.turns import JournalEntry


def intend(
    connection: Connection, run_id: str, owner: str | None, key: str, intent: bytes
) -> Result[JournalEntry, LLMError]:
    """Note an intent, or give the entry that is there."""
    row = {"owner": owner_of(owner), "run": run_id, "key": key, "intent": intent}
    if insert_new(connection, JOURNAL, row):
        return Success(JournalEntry(key=key, intent=intent, fresh=True))
    return Success(_entries(connection, run_id, owner, key)[0])


def conclude(connection: Connection, run_id: str, owner: str | None, key: str, result: bytes) -> Result[None, LLMError]:
    """Note a result, unless there is one."""
    entries = _entries(connection, run_id, owner, key)
    if not entries:
        return Failure(no_intent(key))
    columns = JOURNAL.c
    query = update(JOURNAL).where(columns.owner == owner_of(owner), columns.run == run_id, columns.key == key)
    connection.execute(query.where(columns.result.is_(None)).values(result=result))
    return Success(None)


def journal(connection: Connection, run_id: str, owner: str | None) -> Result[tuple[JournalEntry, ...], LLMError]:
    """Give all entries of a run, in order."""
    return Success(_entries(connection, run_id, owner))


def _entries(
    connection: Connection, run_id: str, owner: str | None, key: str | None = None
) -> tuple[JournalEntry, ...]:
    columns = JOURNAL.c
    query = select(columns.key, columns.intent, columns.result).where(
        columns.owner == owner_of(owner), columns.run == run_id
    )
    rows = connection.execute((query if key is None else query.where(columns.key == key)).order_by(columns.place))
    return tuple(JournalEntry(key=row.key, intent=row.intent, result=row.result) for row in rows)
