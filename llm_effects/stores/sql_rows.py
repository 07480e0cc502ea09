"""Rows of conversations, read and written one by one. Every value is bound, none is part of a statement."""

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, TypeVar

from attrs import evolve
from sqlalchemy import Connection, Row, Table, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from llm_effects.codecs import dump_value, load_value
from llm_effects.errors import StorageFailed
from llm_effects.stores.sql_problems import Refused
from llm_effects.stores.sql_tables import CONVERSATIONS, SUMMARIES
from llm_effects.turns import Conversation, Summary

_Value = TypeVar("_Value")

_SMALL: Final = 4 * 2**10  # letters: what is remembered apart from the store stays below 20 MB of them


def read_value(document: str, kind: type[_Value]) -> _Value:
    """Read a value of ours; what holds none breaks the transaction off. The newest small ones are parsed once."""
    read: Callable[[str, type[_Value]], _Value] = _parsed_once if len(document) <= _SMALL else _parsed
    return read(document, kind)


def _parsed(document: str, kind: type[_Value]) -> _Value:
    value = load_value(document, kind)
    if value is None:
        message = f"a row holds no {kind.__name__} that this version can read"
        raise Refused(StorageFailed(operation="read", message=message))
    return value


_parsed_once: Final[Callable[..., Any]] = lru_cache(maxsize=4096)(_parsed)


def insert_new(connection: Connection, table: Table, values: Mapping[str, object]) -> bool:
    """Insert a row, unless its key is there; says whether it did."""
    add = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = add(table).values(**values).on_conflict_do_nothing()
    return connection.execute(statement, execution_options={"preserve_rowcount": True}).rowcount == 1


# Conversations.


def owner_of(owner: str | None) -> str:
    """Name an owner in a row; nobody is the empty text, which no owner is."""
    return owner or ""


def insert_conversation(connection: Connection, conversation: Conversation) -> bool:
    """Keep a new conversation; says whether it is one."""
    row = {"owner": owner_of(conversation.owner), "id": conversation.id, "document": dump_value(conversation)}
    return insert_new(connection, CONVERSATIONS, {**row, **_moving(conversation)})


def _moving(conversation: Conversation) -> dict[str, object]:
    return {
        "version": conversation.version,
        "turns": conversation.turns,
        "updated_at": conversation.updated_at.isoformat(),
        "last_model": conversation.last_model,
    }


def to_conversation(row: Row[Any]) -> Conversation:
    """Read a conversation from its row."""
    return evolve(
        read_value(row.document, Conversation),
        version=row.version,
        turns=row.turns,
        updated_at=datetime.fromisoformat(row.updated_at),
        last_model=row.last_model,
    )


_FIND: Final = select(CONVERSATIONS).where(
    CONVERSATIONS.c.owner == bindparam("of"), CONVERSATIONS.c.id == bindparam("name")
)
_FIND_AND_LOCK: Final = _FIND.with_for_update()
_MOVE: Final = update(CONVERSATIONS).where(CONVERSATIONS.c.key == bindparam("this"))


def find_conversation(
    connection: Connection, conversation_id: str, owner: str | None, *, lock: bool = False
) -> tuple[int, Conversation] | None:
    """Give an owner's conversation with its key; ``lock`` keeps other writers out until the end of the transaction."""
    ids = {"of": owner_of(owner), "name": conversation_id}
    row = connection.execute(_FIND_AND_LOCK if lock else _FIND, ids).one_or_none()
    return None if row is None else (row.key, to_conversation(row))


def update_conversation(connection: Connection, key: int, conversation: Conversation) -> None:
    """Keep where a conversation has got to."""
    connection.execute(_MOVE, {"this": key, **_moving(conversation)})


# Summaries.

_FURTHEST: Final = (
    select(SUMMARIES.c.document)
    .where(SUMMARIES.c.conversation == bindparam("of"))
    .order_by(SUMMARIES.c.upto.desc())
    .limit(1)
)


def read_summary(connection: Connection, key: int) -> Summary | None:
    """Give the summary that reaches furthest."""
    document = connection.execute(_FURTHEST, {"of": key}).scalar_one_or_none()
    return None if document is None else read_value(document, Summary)


def put_summary(connection: Connection, key: int, summary: Summary) -> None:
    """Keep a summary in the place of one that reaches as far."""
    row = {"conversation": key, "upto": summary.upto, "document": dump_value(summary)}
    if not insert_new(connection, SUMMARIES, row):
        query = update(SUMMARIES).where(SUMMARIES.c.conversation == key, SUMMARIES.c.upto == summary.upto)
        connection.execute(query.values(document=row["document"]))
