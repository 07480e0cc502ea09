"""The rows of conversations in a database, and the values that they hold."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import groupby
from typing import Any, Final, TypeVar

from attrs import evolve
from sqlalchemy import Column, ColumnElement, Connection, Row, Select, bindparam, insert, select, text, update

from llm_effects.stores.sql.driver_errors import Refused
from llm_effects.stores.sql.tables import CONVERSATIONS, JOURNAL, MESSAGES, SUMMARIES, TURNS, insert_new
from llm_effects.values.conversations import Conversation, JournalEntry, StoredMessage, Summary, Turn
from llm_effects.values.errors import StorageFailed
from llm_effects.values.serialization import dump_value, load_value

_Value = TypeVar("_Value")

# A statement that is used often is built once: building takes as long as running it.


_FIND: Final = select(CONVERSATIONS).where(
    CONVERSATIONS.c.owner == bindparam("of"), CONVERSATIONS.c.id == bindparam("name")
)
_FIND_AND_LOCK: Final = _FIND.with_for_update()
_ADVANCE: Final = update(CONVERSATIONS).where(CONVERSATIONS.c.key == bindparam("this"))


def find_conversation(
    connection: Connection, conversation_id: str, owner: str | None, *, lock: bool = False
) -> tuple[int, Conversation] | None:
    """Return an owner's conversation with its key; ``lock`` keeps other writers out until the transaction ends."""
    ids = {"of": owner_column(owner), "name": conversation_id}
    row = connection.execute(_FIND_AND_LOCK if lock else _FIND, ids).one_or_none()
    return None if row is None else (row.key, to_conversation(row))


def update_conversation(connection: Connection, key: int, conversation: Conversation) -> None:
    """Store what changes of a conversation."""
    connection.execute(_ADVANCE, {"this": key, **changing_columns(conversation)})


def changing_columns(conversation: Conversation) -> dict[str, object]:
    """Return the columns of what changes of a conversation."""
    return {
        "version": conversation.version,
        "turns": conversation.turns,
        "updated_at": conversation.updated_at.isoformat(),
        "last_model": conversation.last_model,
    }


def to_conversation(row: Row[Any]) -> Conversation:
    """Return the conversation of a row."""
    return evolve(
        _parse(row.document, Conversation),
        version=row.version,
        turns=row.turns,
        updated_at=datetime.fromisoformat(row.updated_at),
        last_model=row.last_model,
    )


def owner_column(owner: str | None) -> str:
    """Return the owner as a column stores it; ``None`` is the empty text, which is no valid owner."""
    return owner or ""


# Rows of turns and their messages.


_IDS_PER_QUERY: Final = 500

_IS_PINNED: Final = text("pinned = 1")  # spelled as in its index, or the index is not used

_FIND_TURN: Final = select(TURNS.c.document).where(
    TURNS.c.conversation == bindparam("of"), TURNS.c.id == bindparam("name")
)
UPDATE_TURN: Final = update(TURNS).where(TURNS.c.conversation == bindparam("of"), TURNS.c.number == bindparam("at"))


def _reading(among: Callable[[Column[int]], ColumnElement[bool]]) -> tuple[Select[str], Select[int, str]]:
    """Build the queries for some turns, and for their messages."""
    turns = select(TURNS.c.document).where(TURNS.c.conversation == bindparam("of"), among(TURNS.c.number))
    columns = MESSAGES.c
    messages = select(columns.turn, columns.document).where(
        columns.conversation == bindparam("of"), among(columns.turn)
    )
    return turns.order_by(TURNS.c.number), messages.order_by(columns.turn, columns.place)


_ANY: Final = MESSAGES.alias()
_PINNED: Final = select(_ANY.c.turn).where(
    _ANY.c.conversation == bindparam("of"), _ANY.c.turn < bindparam("before"), _IS_PINNED
)

TURNS_BETWEEN: Final = _reading(lambda number: number.between(bindparam("first"), bindparam("last")))
PINNED_TURNS: Final = _reading(lambda number: number.in_(_PINNED))


def read_turns(
    connection: Connection, queries: tuple[Select[str], Select[int, str]], values: Mapping[str, int]
) -> tuple[Turn, ...]:
    """Return turns with their messages, in order."""
    turns = [_parse(each, Turn) for each in connection.execute(queries[0], values).scalars()]
    rows = connection.execute(queries[1], values).all() if turns else ()
    messages = {number: tuple(map(_to_message, each)) for number, each in groupby(rows, lambda row: row.turn)}
    return tuple(evolve(turn, messages=messages.get(turn.number, ())) for turn in turns)


def find_turn(connection: Connection, key: int, turn_id: str) -> Turn | None:
    """Return a turn with its messages."""
    document = connection.execute(_FIND_TURN, {"of": key, "name": turn_id}).scalar_one_or_none()
    if document is None:
        return None
    turn = _parse(document, Turn)
    rows = connection.execute(TURNS_BETWEEN[1], {"of": key, "first": turn.number, "last": turn.number})
    return evolve(turn, messages=tuple(map(_to_message, rows)))


def known_turns(connection: Connection, key: int, ids: Sequence[str]) -> set[str]:
    """Return those of the ids that are ids of stored turns."""
    batches = (ids[first : first + _IDS_PER_QUERY] for first in range(0, len(ids), _IDS_PER_QUERY))
    query = select(TURNS.c.id).where(TURNS.c.conversation == key)
    return {each for batch in batches for each in connection.execute(query.where(TURNS.c.id.in_(batch))).scalars()}


def insert_turns(connection: Connection, key: int, turns: Sequence[Turn]) -> None:
    """Insert turns with their messages."""
    rows = [
        {"conversation": key, "number": turn.number, "id": turn.id, "document": turn_document(turn)} for turn in turns
    ]
    connection.execute(insert(TURNS), rows)
    insert_messages(connection, [row for turn in turns for row in message_rows(key, turn, 0)])


def turn_document(turn: Turn) -> str:
    """Return a turn as its row holds it, without its messages."""
    return dump_value(evolve(turn, messages=()))


def message_rows(key: int, turn: Turn, first: int) -> list[dict[str, object]]:
    """Return the rows of a turn's messages from the ``first`` one that is new."""
    return [
        {
            "conversation": key,
            "turn": turn.number,
            "place": place,
            "id": each.id,
            "pinned": int(each.pinned),
            "document": dump_value(each),
        }
        for place, each in enumerate(turn.messages[first:], first)
    ]


def insert_messages(connection: Connection, rows: list[dict[str, object]]) -> None:
    """Insert rows of messages, if there are any."""
    if rows:
        connection.execute(insert(MESSAGES), rows)


def _to_message(row: Row[Any, Any]) -> StoredMessage:
    return _parse(row.document, StoredMessage)


# Rows of summaries and journals.


_LATEST_SUMMARY: Final = (
    select(SUMMARIES.c.document)
    .where(SUMMARIES.c.conversation == bindparam("of"))
    .order_by(SUMMARIES.c.upto.desc())
    .limit(1)
)


def read_summary(connection: Connection, key: int) -> Summary | None:
    """Return the summary that covers the most turns."""
    document = connection.execute(_LATEST_SUMMARY, {"of": key}).scalar_one_or_none()
    return None if document is None else _parse(document, Summary)


def put_summary(connection: Connection, key: int, summary: Summary) -> None:
    """Store a summary, in place of one that covers as many turns."""
    row = {"conversation": key, "upto": summary.upto, "document": dump_value(summary)}
    if not insert_new(connection, SUMMARIES, row):
        query = update(SUMMARIES).where(SUMMARIES.c.conversation == key, SUMMARIES.c.upto == summary.upto)
        connection.execute(query.values(document=row["document"]))


def read_journal(
    connection: Connection, run_id: str, owner: str | None, key: str | None = None
) -> tuple[JournalEntry, ...]:
    """Return the entries of a run in order, or the one of a key."""
    columns = JOURNAL.c
    query = select(columns.key, columns.intent, columns.result).where(
        columns.owner == owner_column(owner), columns.run == run_id
    )
    rows = connection.execute((query if key is None else query.where(columns.key == key)).order_by(columns.place))
    return tuple(JournalEntry(key=row.key, intent=row.intent, result=row.result) for row in rows)


# Documents: values as JSON.


_CACHED_LENGTH: Final = 4 * 2**10  # in characters: the cache of parsed documents stays below 20 MB of them


def _parse(document: str, kind: type[_Value]) -> _Value:
    """Parse a document, or roll the transaction back with an error. The newest small documents are parsed once."""
    parse: Callable[[str, type[_Value]], _Value] = _parse_once if len(document) <= _CACHED_LENGTH else _parse_value
    return parse(document, kind)


def _parse_value(document: str, kind: type[_Value]) -> _Value:
    value = load_value(document, kind)
    if value is None:
        message = f"a row holds no {kind.__name__} that this version can read"
        raise Refused(StorageFailed(operation="read", message=message))
    return value


_parse_once: Final[Callable[..., Any]] = lru_cache(maxsize=4096)(_parse_value)
