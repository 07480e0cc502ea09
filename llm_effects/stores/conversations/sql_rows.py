"""The rows of conversations in a database, and the values that they hold."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
from attrs import evolve
from sqlalchemy import Column, ColumnElement, Connection, Row, Select, bindparam, insert, select, text, update

from llm_effects.stores.sql.driver_errors import Refused
from llm_effects.stores.sql.tables import CONVERSATIONS, JOURNAL, MESSAGES, SUMMARIES, TURNS, insert_new, timestamp
from llm_effects.values.conversations import (
    UNREADABLE,
    UNREADABLE_TEXT,
    Conversation,
    JournalEntry,
    StoredMessage,
    Summary,
    Turn,
    TurnState,
)
from llm_effects.values.errors import StorageFailed
from llm_effects.values.json import dump
from llm_effects.values.messages import Message
from llm_effects.values.serialization import dump_value, load_value

_Value = TypeVar("_Value")
_TurnRow: TypeAlias = Row[Any, Any, Any]
_MessageRow: TypeAlias = Row[Any, Any, Any, Any]
_Queries: TypeAlias = tuple[Select[Any, Any, Any], Select[Any, Any, Any, Any]]

# A statement that is used often is built once: building takes as long as running it.


_UNKNOWN_TIME: Final = datetime.fromtimestamp(0, UTC)

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
        "updated_at": timestamp(conversation.updated_at),
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


def to_listed(row: Row[Any]) -> Conversation:
    """Return the conversation of a row; one that this version cannot read has its ids and counts, and a mark."""
    try:
        return to_conversation(row)
    except (Refused, ValueError):
        at = _time_of(row.updated_at)
        return Conversation(
            id=row.id,
            owner=row.owner or None,
            created_at=at,
            updated_at=at,
            version=row.version,
            turns=row.turns,
            last_model=row.last_model,
            unreadable=True,
        )


def _time_of(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return _UNKNOWN_TIME


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


def _reading(among: Callable[[Column[int]], ColumnElement[bool]]) -> _Queries:
    """Build the queries for some turns, and for their messages."""
    turns = select(TURNS.c.number, TURNS.c.id, TURNS.c.document).where(
        TURNS.c.conversation == bindparam("of"), among(TURNS.c.number)
    )
    columns = MESSAGES.c
    messages = select(columns.turn, columns.id, columns.pinned, columns.document).where(
        columns.conversation == bindparam("of"), among(columns.turn)
    )
    return turns.order_by(TURNS.c.number), messages.order_by(columns.turn, columns.place)


_ANY: Final = MESSAGES.alias()
_PINNED: Final = select(_ANY.c.turn).where(
    _ANY.c.conversation == bindparam("of"), _ANY.c.turn < bindparam("before"), _IS_PINNED
)

TURNS_BETWEEN: Final = _reading(lambda number: number.between(bindparam("first"), bindparam("last")))
PINNED_TURNS: Final = _reading(lambda number: number.in_(_PINNED))


def read_turns(connection: Connection, queries: _Queries, values: Mapping[str, int]) -> tuple[Turn, ...]:
    """Return turns with their messages, in order; those that this version cannot read are marked."""
    turns = connection.execute(queries[0], values).all()
    rows = connection.execute(queries[1], values).all() if turns else ()
    messages = {number: tuple(each) for number, each in groupby(rows, lambda row: row.turn)}
    return tuple(_to_turn(turn, messages.get(turn.number, ())) for turn in turns)


def _to_turn(row: _TurnRow, messages: Sequence[_MessageRow]) -> Turn:
    try:
        return evolve(_parse(row.document, Turn), messages=tuple(map(_to_message, messages)))
    except Refused:
        return _unreadable(row, messages)


def _unreadable(row: _TurnRow, messages: Sequence[_MessageRow]) -> Turn:
    """Return a turn in which something is unreadable, as one that failed: no prompt holds it."""
    turn = load_value(row.document, Turn) or Turn(id=row.id, begun_at=_UNKNOWN_TIME, lease_until=_UNKNOWN_TIME)
    return evolve(
        turn,
        number=row.number,
        state=TurnState.FAILED,
        error=UNREADABLE,
        messages=tuple(load_value(each.document, StoredMessage) or _mark(each, turn.begun_at) for each in messages),
    )


def _mark(row: _MessageRow, at: datetime) -> StoredMessage:
    return StoredMessage(id=row.id, message=Message("user", UNREADABLE_TEXT), at=at, pinned=bool(row.pinned))


def find_turn(connection: Connection, key: int, turn_id: str) -> tuple[Turn, str] | None:
    """Return a turn with its messages, and its document."""
    document = connection.execute(_FIND_TURN, {"of": key, "name": turn_id}).scalar_one_or_none()
    if document is None:
        return None
    turn = _parse(document, Turn)
    rows = connection.execute(TURNS_BETWEEN[1], {"of": key, "first": turn.number, "last": turn.number})
    return evolve(turn, messages=tuple(map(_to_message, rows))), document


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


def turn_document(turn: Turn, old: str = "{}") -> str:
    """Return a turn as its row holds it, without its messages; what only a newer version knows of ``old`` stays."""
    document = dump_value(evolve(turn, messages=()))
    fields, known = msgspec.json.decode(document), msgspec.json.decode(old)
    return document if known.keys() <= fields.keys() else dump({**known, **fields}).decode()


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


def _to_message(row: _MessageRow) -> StoredMessage:
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
    return None if document is None else load_value(document, Summary)  # an unreadable one is made anew


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
