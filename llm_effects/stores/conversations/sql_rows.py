"""The rows of conversations in a database, and the values that they hold."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby
from typing import Any, Final, TypeAlias, TypeVar, final

import msgspec
from attrs import evolve, frozen
from sqlalchemy import Connection, Row, TextClause, bindparam, insert, select, text, update

from llm_effects.stores.conversations.rules import Key, advanced
from llm_effects.stores.sql.driver_errors import Refused
from llm_effects.stores.sql.round_trips import ALONE, execute_together
from llm_effects.stores.sql.tables import CONVERSATIONS, JOURNAL, MESSAGES, SUMMARIES, TURNS, insert_new, timestamp
from llm_effects.values.conversations import (
    UNREADABLE,
    UNREADABLE_TEXT,
    Conversation,
    History,
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
_FoundRow: TypeAlias = Row[Any]

# A statement that is used often is built once: building takes as long as running it.


_UNKNOWN_TIME: Final = datetime.fromtimestamp(0, UTC)

_IS_THIS: Final = (CONVERSATIONS.c.owner == bindparam("of")) & (CONVERSATIONS.c.id == bindparam("name"))
_FIND_AND_LOCK: Final = select(CONVERSATIONS).where(_IS_THIS).with_for_update()
_LOCK: Final = select(CONVERSATIONS.c.key).where(_IS_THIS).with_for_update()
_ADVANCE: Final = update(CONVERSATIONS).where(CONVERSATIONS.c.key == bindparam("this"))


def lock_conversation(
    connection: Connection, conversation_id: str, owner: str | None
) -> tuple[int, Conversation] | None:
    """Return an owner's conversation with its key, and keep other writers out until the transaction ends."""
    row = connection.execute(_FIND_AND_LOCK, _ids(owner, conversation_id)).one_or_none()
    return None if row is None else (row.key, to_conversation(row))


def _ids(owner: str | None, conversation_id: str) -> dict[str, object]:
    return {"of": owner_column(owner), "name": conversation_id}


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
    return _to_conversation(row.document, row.version, row.turns, row.updated_at, row.last_model)


def _to_conversation(document: str, version: int, turns: int, updated_at: str, last_model: str | None) -> Conversation:
    return evolve(
        _parse(document, Conversation),
        version=version,
        turns=turns,
        updated_at=datetime.fromisoformat(updated_at),
        last_model=last_model,
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


# A conversation with some of its turns, read by one statement, which needs no transaction to see one moment. Its rows
# are of several kinds: that of the conversation has its key, version, turns, time and model in the columns of a turn's
# or a message's numbers and id.


_IDS_PER_QUERY: Final = 500

_ALL: Final = 2**62
"""More turns than a conversation has."""

_ITSELF, _TURN, _MESSAGE, _OLDER_TURN, _OLDER_MESSAGE, _SUMMARY = range(6)

_THIS: Final = "WITH this AS (SELECT * FROM llm_conversations WHERE owner = :of AND id = :name)"

_FIND_ITSELF: Final = f"""
    SELECT {_ITSELF} AS part, key AS number, version AS place, turns AS extra, updated_at AS id,
        last_model AS model, document
    FROM this
"""  # noqa: S608 - our own numbers

_FIND_TURNS: Final = """
    UNION ALL SELECT {part}, t.number, 0, 0, t.id, NULL, t.document
    FROM {this} JOIN llm_turns AS t ON t.conversation = this.key AND {turns}
    UNION ALL SELECT {part} + 1, m.turn, m.place, m.pinned, m.id, NULL, m.document
    FROM {this} JOIN llm_messages AS m ON m.conversation = this.key AND {messages}
"""

_FIND_ONE: Final = _FIND_TURNS.format(
    part=_TURN,
    this="this",
    turns="t.id = :turn",
    messages="m.turn = (SELECT number FROM llm_turns WHERE conversation = this.key AND llm_turns.id = :turn)",
)

_FIND_NEWEST: Final = _FIND_TURNS.format(
    part=_TURN, this="this", turns="t.number > this.turns - :newest", messages="m.turn > this.turns - :newest"
)

_PINNED: Final = """, pinned AS (
    SELECT DISTINCT key, turn FROM this JOIN llm_messages AS m
    ON m.conversation = this.key AND m.turn <= this.turns - :newest AND m.pinned = 1
)"""

_FIND_PINNED: Final = _FIND_TURNS.format(
    part=_OLDER_TURN, this="pinned AS this", turns="t.number = this.turn", messages="m.turn = this.turn"
)

_FIND_SUMMARY: Final = f"""
    UNION ALL SELECT {_SUMMARY}, latest.* FROM (
        SELECT s.upto, 0, 0, '', NULL, s.document FROM this JOIN llm_summaries AS s ON s.conversation = this.key
        ORDER BY s.upto DESC LIMIT 1
    ) AS latest
"""  # noqa: S608 - our own numbers


def _query(*parts: str) -> TextClause:
    query = " ".join(" ".join((*parts, "ORDER BY part, number, place")).split())
    return text(query).execution_options(**ALONE)


_FIND_TURN: Final = _query(_THIS, _FIND_ITSELF, _FIND_ONE)
_FIND_HISTORY: Final = _query(_THIS, _PINNED, _FIND_ITSELF, _FIND_NEWEST, _FIND_PINNED, _FIND_SUMMARY)


@final
@frozen
class FoundTurn:
    """A conversation with its key, and a turn of it with its document, if it is stored."""

    key: int
    conversation: Conversation
    turn: Turn | None
    document: str


def find_turn(connection: Connection, key: Key, *, lock: bool = False) -> FoundTurn | None:
    """Return a conversation, and one of its turns if it has it; ``lock`` keeps other writers out meanwhile."""
    owner, conversation_id, turn_id = key
    ids = _ids(owner, conversation_id)
    locking = [(_LOCK, ids)] if lock and connection.dialect.name == "postgresql" else []  # a file is locked as a whole
    found = _by_part(execute_together(connection, *locking, (_FIND_TURN, {**ids, "turn": turn_id})))
    if not found:
        return None
    [row], rows = found[_ITSELF], found.get(_TURN, ())
    document, messages = (rows[0].document if rows else None), tuple(map(_to_message, found.get(_MESSAGE, ())))
    turn = None if document is None else evolve(_parse(document, Turn), messages=messages)
    return FoundTurn(row.number, _found(row), turn, document or "{}")


def read_history(connection: Connection, conversation_id: str, owner: str | None, newest: int | None) -> History | None:
    """Return a conversation with its newest turns, or all; turns that this version cannot read are marked."""
    limit = _ALL if newest is None else min(max(0, newest), _ALL)
    found = _by_part(connection.execute(_FIND_HISTORY, {**_ids(owner, conversation_id), "newest": limit}))
    if not found:
        return None
    conversation = _found(found[_ITSELF][0])
    summary = found.get(_SUMMARY)
    return History(
        conversation=conversation,
        turns=_to_turns(found.get(_TURN, ()), found.get(_MESSAGE, ())),
        complete=conversation.turns <= limit,
        pinned=_to_turns(found.get(_OLDER_TURN, ()), found.get(_OLDER_MESSAGE, ())),
        summary=None if summary is None else load_value(summary[0].document, Summary),  # if unreadable, it is made anew
    )


def _by_part(rows: Iterable[_FoundRow]) -> Mapping[int, Sequence[_FoundRow]]:
    return {part: tuple(each) for part, each in groupby(rows, lambda row: row.part)}


def _found(row: _FoundRow) -> Conversation:
    return _to_conversation(row.document, row.place, row.extra, row.id, row.model)


def _to_turns(turns: Sequence[_FoundRow], rows: Sequence[_FoundRow]) -> tuple[Turn, ...]:
    messages = {number: tuple(each) for number, each in groupby(rows, lambda row: row.number)}
    return tuple(_to_turn(turn, messages.get(turn.number, ())) for turn in turns)


def _to_turn(row: _FoundRow, messages: Sequence[_FoundRow]) -> Turn:
    try:
        return evolve(_parse(row.document, Turn), messages=tuple(map(_to_message, messages)))
    except Refused:
        return _unreadable(row, messages)


def _unreadable(row: _FoundRow, messages: Sequence[_FoundRow]) -> Turn:
    """Return a turn in which something is unreadable, as one that failed: no prompt holds it."""
    turn = load_value(row.document, Turn) or Turn(id=row.id, begun_at=_UNKNOWN_TIME, lease_until=_UNKNOWN_TIME)
    return evolve(
        turn,
        number=row.number,
        state=TurnState.FAILED,
        error=UNREADABLE,
        messages=tuple(load_value(each.document, StoredMessage) or _mark(each, turn.begun_at) for each in messages),
    )


def _mark(row: _FoundRow, at: datetime) -> StoredMessage:
    return StoredMessage(id=row.id, message=Message("user", UNREADABLE_TEXT), at=at, pinned=bool(row.extra))


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
    connection.execute(_INSERT_TURN, rows)
    messages = [row for turn in turns for row in message_rows(key, turn, 0)]
    if messages:
        connection.execute(_INSERT_MESSAGES, messages)


_INSERT_TURN: Final = insert(TURNS)
_UPDATE_TURN: Final = update(TURNS).where(TURNS.c.conversation == bindparam("of"), TURNS.c.number == bindparam("at"))
_INSERT_MESSAGES: Final = insert(MESSAGES)


def store_turn(connection: Connection, found: FoundTurn, turn: Turn) -> None:
    """Store a turn that has begun or ended, and advance its conversation."""
    key, document, stored = found.key, turn_document(turn, found.document), found.turn
    row = {"conversation": key, "number": turn.number, "id": turn.id, "document": document}
    update_row = {"of": key, "at": turn.number, "document": document}
    new = message_rows(key, turn, 0 if stored is None else len(stored.messages))
    conversation = advanced(found.conversation, (turn,), int(stored is None))
    execute_together(
        connection,
        (_INSERT_TURN, row) if stored is None else (_UPDATE_TURN, update_row),
        *([(_INSERT_MESSAGES, new)] if new else ()),
        (_ADVANCE, {"this": key, **changing_columns(conversation)}),
    )


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


def _to_message(row: _FoundRow) -> StoredMessage:
    return _parse(row.document, StoredMessage)


# Rows of summaries and journals.


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
