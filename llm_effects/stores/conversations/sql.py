"""Conversations and journals in a database: a SQLite file or a Postgres server.

The store comes first, then its operations, each one transaction, then the rows that they read and write. Every value is
bound; none is part of a statement.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, partial
from itertools import groupby
from typing import Any, Final, TypeVar, final

from attrs import evolve, frozen
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success
from sqlalchemy import Column, ColumnElement, Connection, Row, Select, bindparam, delete, insert, select, text, update

from llm_effects.stores.conversations.rules import (
    DUPLICATE_MESSAGE_ID,
    added,
    advanced,
    begun,
    ended,
    invalid_id,
    new_turns,
    no_conversation,
    no_intent,
    no_turn,
)
from llm_effects.stores.sql.database import Database
from llm_effects.stores.sql.driver_errors import Refused
from llm_effects.stores.sql.tables import CONVERSATIONS, JOURNAL, MESSAGES, SUMMARIES, TURNS, insert_new
from llm_effects.values.conversations import (
    Conversation,
    History,
    JournalEntry,
    StoredMessage,
    Summary,
    Turn,
    TurnState,
)
from llm_effects.values.errors import ConversationConflict, LLMError, StorageFailed
from llm_effects.values.serialization import dump_value, load_value

_Value = TypeVar("_Value")


@final
@frozen
class SqlConversations:
    """Conversations and journals in a database; closing the store closes the database.

    Each operation is one transaction: once it has returned, what it wrote outlives this process and its machine.
    """

    database: Database

    def start(self, conversation: Conversation) -> FutureResult[Conversation, LLMError]:
        """Store a new conversation; an id that the owner already uses is a ``ConversationConflict``."""
        work = partial(start, conversation=evolve(conversation, version=0, turns=0))
        return self.database.write("start", work, repeatable=False)

    def start_copy(self, history: History) -> FutureResult[Conversation, LLMError]:
        """Store a new conversation with its turns and its summary, in one transaction."""
        work = partial(start_copy, history=history)
        return self.database.write("start_copy", work, repeatable=False, clash=DUPLICATE_MESSAGE_ID)

    def load(
        self, conversation_id: str, owner: str | None, newest: int | None = None
    ) -> FutureResult[History | None, LLMError]:
        """Read a conversation at one moment: its ``newest`` turns, or all."""
        work = partial(load, conversation_id=conversation_id, owner=owner, newest=newest)
        return self._read("load", work, owner, conversation_id=conversation_id)

    def page(
        self, owner: str | None, limit: int, after: str | None = None
    ) -> FutureResult[tuple[Conversation, ...], LLMError]:
        """Return an owner's conversations in the order of their ids, at most ``limit`` after an id."""
        work = partial(page, owner=owner, limit=limit, after=after)
        return self._read("page", work, owner, **({} if after is None else {"after": after}))

    def begin_turn(
        self, conversation_id: str, owner: str | None, expected_version: int, turn: Turn
    ) -> FutureResult[Turn, LLMError]:
        """Store the question of a turn, before it is sent."""
        work = partial(begin_turn, conversation_id=conversation_id, owner=owner, expected=expected_version, turn=turn)
        return self._write("begin_turn", work, owner, conversation_id=conversation_id)

    def finish_turn(
        self,
        conversation_id: str,
        owner: str | None,
        turn_id: str,
        state: TurnState,
        messages: tuple[StoredMessage, ...],
        *,
        error: str | None = None,
    ) -> FutureResult[Turn, LLMError]:
        """Store the end of a turn."""
        ending = (state, messages, error)
        work = partial(finish_turn, conversation_id=conversation_id, owner=owner, turn_id=turn_id, ending=ending)
        return self._write("finish_turn", work, owner, conversation_id=conversation_id, turn_id=turn_id)

    def append(
        self, conversation_id: str, owner: str | None, expected_version: int, turns: tuple[Turn, ...]
    ) -> FutureResult[Conversation, LLMError]:
        """Store whole turns, all or none."""
        work = partial(append, conversation_id=conversation_id, owner=owner, expected=expected_version, turns=turns)
        return self._write("append", work, owner, conversation_id=conversation_id)

    def summarise(self, conversation_id: str, owner: str | None, summary: Summary) -> FutureResult[None, LLMError]:
        """Store a summary, unless the stored one covers more turns."""
        work = partial(summarise, conversation_id=conversation_id, owner=owner, summary=summary)
        return self._write("summarise", work, owner, conversation_id=conversation_id)

    def delete(self, conversation_id: str, owner: str | None) -> FutureResult[bool, LLMError]:
        """Delete a conversation with all its rows; return whether there was one."""
        work = partial(delete_conversation, conversation_id=conversation_id, owner=owner)
        return self._write("delete", work, owner, repeatable=False, conversation_id=conversation_id)

    def intend(self, run_id: str, owner: str | None, key: str, intent: bytes) -> FutureResult[JournalEntry, LLMError]:
        """Record a step that a run is about to do."""
        work = partial(intend, run_id=run_id, owner=owner, key=key, intent=intent)
        return self._write("intend", work, owner, repeatable=False, run_id=run_id, key=key)

    def conclude(self, run_id: str, owner: str | None, key: str, result: bytes) -> FutureResult[None, LLMError]:
        """Record the result of a step; the first result stays."""
        work = partial(conclude, run_id=run_id, owner=owner, key=key, result=result)
        return self._write("conclude", work, owner, run_id=run_id, key=key)

    def journal(self, run_id: str, owner: str | None) -> FutureResult[tuple[JournalEntry, ...], LLMError]:
        """Return all entries of a run, in order."""
        return self._read("journal", partial(journal, run_id=run_id, owner=owner), owner, run_id=run_id)

    async def aclose(self) -> None:
        """Close the database."""
        await self.database.aclose()

    def _read(
        self, operation: str, work: Callable[[Connection], Result[_Value, LLMError]], owner: str | None, **ids: str
    ) -> FutureResult[_Value, LLMError]:
        invalid = invalid_id(owner, **ids)
        return self.database.read(operation, work) if invalid is None else FutureResult.from_failure(invalid)

    def _write(
        self,
        operation: str,
        work: Callable[[Connection], Result[_Value, LLMError]],
        owner: str | None,
        *,
        repeatable: bool = True,
        **ids: str,
    ) -> FutureResult[_Value, LLMError]:
        invalid = invalid_id(owner, **ids)
        if invalid is not None:
            return FutureResult.from_failure(invalid)
        return self.database.write(operation, work, repeatable=repeatable, clash=DUPLICATE_MESSAGE_ID)


# Operations, each in one transaction.


_MAX_LIMIT = 2**31
"""The largest limit that a query may have."""


def start(connection: Connection, conversation: Conversation) -> Result[Conversation, LLMError]:
    """Store a new conversation."""
    row = {"owner": _owner(conversation.owner), "id": conversation.id, "document": dump_value(conversation)}
    if insert_new(connection, CONVERSATIONS, {**row, **_changing_columns(conversation)}):
        return Success(conversation)
    return Failure(ConversationConflict(conversation_id=conversation.id))


def start_copy(connection: Connection, history: History) -> Result[Conversation, LLMError]:
    """Store a new conversation with its turns and its summary."""
    new = history.conversation
    started = start(connection, evolve(new, version=0, turns=0))
    stored = append(connection, new.id, new.owner, 0, history.turns) if is_successful(started) else started
    if is_successful(stored) and history.summary is not None:
        return summarise(connection, new.id, new.owner, history.summary).map(lambda _: stored.unwrap())
    return stored


def load(
    connection: Connection, conversation_id: str, owner: str | None, newest: int | None
) -> Result[History | None, LLMError]:
    """Read a conversation: its newest turns, or all."""
    row = _find_conversation(connection, conversation_id, owner)
    if row is None:
        return Success(None)
    key, conversation = row
    first = 1 if newest is None else max(0, conversation.turns - max(0, newest)) + 1
    return Success(
        History(
            conversation=conversation,
            turns=_read_turns(connection, _TURNS_BETWEEN, {"of": key, "first": first, "last": conversation.turns}),
            complete=first == 1,
            pinned=_read_turns(connection, _PINNED_TURNS, {"of": key, "before": first}) if first > 1 else (),
            summary=_read_summary(connection, key),
        )
    )


def page(
    connection: Connection, owner: str | None, limit: int, after: str | None
) -> Result[tuple[Conversation, ...], LLMError]:
    """Read conversations in the order of their ids."""
    columns = CONVERSATIONS.c
    query = select(CONVERSATIONS).where(columns.owner == _owner(owner))
    query = query if after is None else query.where(columns.id > after)
    rows = connection.execute(query.order_by(columns.id).limit(min(max(0, limit), _MAX_LIMIT)))
    return Success(tuple(map(_to_conversation, rows)))


def begin_turn(
    connection: Connection, conversation_id: str, owner: str | None, expected: int, turn: Turn
) -> Result[Turn, LLMError]:
    """Begin a turn, or begin it again."""
    row = _find_conversation(connection, conversation_id, owner, lock=True)
    if row is None:
        return Failure(no_conversation(conversation_id))
    stored = _find_turn(connection, row[0], turn.id)
    return _update_turn(connection, row, stored, begun(stored, row[1], expected, turn))


def finish_turn(
    connection: Connection,
    conversation_id: str,
    owner: str | None,
    turn_id: str,
    ending: tuple[TurnState, tuple[StoredMessage, ...], str | None],
) -> Result[Turn, LLMError]:
    """End a turn."""
    row = _find_conversation(connection, conversation_id, owner, lock=True)
    if row is None:
        return Failure(no_conversation(conversation_id))
    stored = _find_turn(connection, row[0], turn_id)
    return (
        Failure(no_turn(turn_id)) if stored is None else _update_turn(connection, row, stored, ended(stored, *ending))
    )


def _update_turn(
    connection: Connection, row: tuple[int, Conversation], stored: Turn | None, turn: Result[Turn, LLMError]
) -> Result[Turn, LLMError]:
    """Store a turn that differs from the ``stored`` one, and advance its conversation."""
    if not is_successful(turn) or turn.unwrap() is stored:
        return turn
    (key, conversation), new = row, turn.unwrap()
    if stored is None:
        _insert_turns(connection, key, (new,))
    else:
        connection.execute(_UPDATE_TURN, {"of": key, "at": new.number, "document": _turn_document(new)})
        _insert_messages(connection, _message_rows(key, new, len(stored.messages)))
    _update_conversation(connection, key, advanced(conversation, (new,), int(stored is None)))
    return turn


def append(
    connection: Connection, conversation_id: str, owner: str | None, expected: int, turns: tuple[Turn, ...]
) -> Result[Conversation, LLMError]:
    """Append the turns that are not stored yet."""
    row = _find_conversation(connection, conversation_id, owner, lock=True)
    if row is None:
        return Failure(no_conversation(conversation_id))
    key, conversation = row
    known = _known_turns(connection, key, [turn.id for turn in turns])
    new = added(conversation, new_turns(turns, known), expected)
    if not is_successful(new):
        return Failure(new.failure())
    if not new.unwrap():
        return Success(conversation)
    _insert_turns(connection, key, new.unwrap())
    after = advanced(conversation, new.unwrap(), len(new.unwrap()))
    _update_conversation(connection, key, after)
    return Success(after)


def summarise(
    connection: Connection, conversation_id: str, owner: str | None, summary: Summary
) -> Result[None, LLMError]:
    """Store a summary; reading returns the one that covers the most turns."""
    row = _find_conversation(connection, conversation_id, owner, lock=True)
    if row is None:
        return Failure(no_conversation(conversation_id))
    _put_summary(connection, row[0], summary)
    return Success(None)


def delete_conversation(connection: Connection, conversation_id: str, owner: str | None) -> Result[bool, LLMError]:
    """Delete a conversation with all rows that refer to it."""
    columns = CONVERSATIONS.c
    query = delete(CONVERSATIONS).where(columns.owner == _owner(owner), columns.id == conversation_id)
    return Success(connection.execute(query).rowcount > 0)


def intend(
    connection: Connection, run_id: str, owner: str | None, key: str, intent: bytes
) -> Result[JournalEntry, LLMError]:
    """Record an intent, or return the entry that is stored."""
    row = {"owner": _owner(owner), "run": run_id, "key": key, "intent": intent}
    if insert_new(connection, JOURNAL, row):
        return Success(JournalEntry(key=key, intent=intent, fresh=True))
    return Success(_read_journal(connection, run_id, owner, key)[0])


def conclude(connection: Connection, run_id: str, owner: str | None, key: str, result: bytes) -> Result[None, LLMError]:
    """Record a result, unless there is one."""
    if not _read_journal(connection, run_id, owner, key):
        return Failure(no_intent(key))
    columns = JOURNAL.c
    query = update(JOURNAL).where(columns.owner == _owner(owner), columns.run == run_id, columns.key == key)
    connection.execute(query.where(columns.result.is_(None)).values(result=result))
    return Success(None)


def journal(connection: Connection, run_id: str, owner: str | None) -> Result[tuple[JournalEntry, ...], LLMError]:
    """Read all entries of a run, in order."""
    return Success(_read_journal(connection, run_id, owner))


# Rows of conversations. A statement that is used often is built once: building takes as long as running it.


_FIND: Final = select(CONVERSATIONS).where(
    CONVERSATIONS.c.owner == bindparam("of"), CONVERSATIONS.c.id == bindparam("name")
)
_FIND_AND_LOCK: Final = _FIND.with_for_update()
_ADVANCE: Final = update(CONVERSATIONS).where(CONVERSATIONS.c.key == bindparam("this"))


def _find_conversation(
    connection: Connection, conversation_id: str, owner: str | None, *, lock: bool = False
) -> tuple[int, Conversation] | None:
    """Return an owner's conversation with its key; ``lock`` keeps other writers out until the transaction ends."""
    ids = {"of": _owner(owner), "name": conversation_id}
    row = connection.execute(_FIND_AND_LOCK if lock else _FIND, ids).one_or_none()
    return None if row is None else (row.key, _to_conversation(row))


def _update_conversation(connection: Connection, key: int, conversation: Conversation) -> None:
    connection.execute(_ADVANCE, {"this": key, **_changing_columns(conversation)})


def _changing_columns(conversation: Conversation) -> dict[str, object]:
    return {
        "version": conversation.version,
        "turns": conversation.turns,
        "updated_at": conversation.updated_at.isoformat(),
        "last_model": conversation.last_model,
    }


def _to_conversation(row: Row[Any]) -> Conversation:
    return evolve(
        _parse(row.document, Conversation),
        version=row.version,
        turns=row.turns,
        updated_at=datetime.fromisoformat(row.updated_at),
        last_model=row.last_model,
    )


def _owner(owner: str | None) -> str:
    """Return the owner as a column stores it; ``None`` is the empty text, which is not a valid owner."""
    return owner or ""


# Rows of turns and their messages.


_IDS_PER_QUERY: Final = 500

_IS_PINNED: Final = text("pinned = 1")  # spelled as in its index, or the index is not used

_FIND_TURN: Final = select(TURNS.c.document).where(
    TURNS.c.conversation == bindparam("of"), TURNS.c.id == bindparam("name")
)
_UPDATE_TURN: Final = update(TURNS).where(TURNS.c.conversation == bindparam("of"), TURNS.c.number == bindparam("at"))


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

_TURNS_BETWEEN: Final = _reading(lambda number: number.between(bindparam("first"), bindparam("last")))
_PINNED_TURNS: Final = _reading(lambda number: number.in_(_PINNED))


def _read_turns(
    connection: Connection, queries: tuple[Select[str], Select[int, str]], values: Mapping[str, int]
) -> tuple[Turn, ...]:
    """Return turns with their messages, in order."""
    turns = [_parse(each, Turn) for each in connection.execute(queries[0], values).scalars()]
    rows = connection.execute(queries[1], values).all() if turns else ()
    messages = {number: tuple(map(_to_message, each)) for number, each in groupby(rows, lambda row: row.turn)}
    return tuple(evolve(turn, messages=messages.get(turn.number, ())) for turn in turns)


def _find_turn(connection: Connection, key: int, turn_id: str) -> Turn | None:
    """Return a turn with its messages."""
    document = connection.execute(_FIND_TURN, {"of": key, "name": turn_id}).scalar_one_or_none()
    if document is None:
        return None
    turn = _parse(document, Turn)
    rows = connection.execute(_TURNS_BETWEEN[1], {"of": key, "first": turn.number, "last": turn.number})
    return evolve(turn, messages=tuple(map(_to_message, rows)))


def _known_turns(connection: Connection, key: int, ids: Sequence[str]) -> set[str]:
    """Return those of the ids that are ids of stored turns."""
    batches = (ids[first : first + _IDS_PER_QUERY] for first in range(0, len(ids), _IDS_PER_QUERY))
    query = select(TURNS.c.id).where(TURNS.c.conversation == key)
    return {each for batch in batches for each in connection.execute(query.where(TURNS.c.id.in_(batch))).scalars()}


def _insert_turns(connection: Connection, key: int, turns: Sequence[Turn]) -> None:
    rows = [
        {"conversation": key, "number": turn.number, "id": turn.id, "document": _turn_document(turn)} for turn in turns
    ]
    connection.execute(insert(TURNS), rows)
    _insert_messages(connection, [row for turn in turns for row in _message_rows(key, turn, 0)])


def _turn_document(turn: Turn) -> str:
    return dump_value(evolve(turn, messages=()))


def _message_rows(key: int, turn: Turn, first: int) -> list[dict[str, object]]:
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


def _insert_messages(connection: Connection, rows: list[dict[str, object]]) -> None:
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


def _read_summary(connection: Connection, key: int) -> Summary | None:
    """Return the summary that covers the most turns."""
    document = connection.execute(_LATEST_SUMMARY, {"of": key}).scalar_one_or_none()
    return None if document is None else _parse(document, Summary)


def _put_summary(connection: Connection, key: int, summary: Summary) -> None:
    """Store a summary, in place of one that covers as many turns."""
    row = {"conversation": key, "upto": summary.upto, "document": dump_value(summary)}
    if not insert_new(connection, SUMMARIES, row):
        query = update(SUMMARIES).where(SUMMARIES.c.conversation == key, SUMMARIES.c.upto == summary.upto)
        connection.execute(query.values(document=row["document"]))


def _read_journal(
    connection: Connection, run_id: str, owner: str | None, key: str | None = None
) -> tuple[JournalEntry, ...]:
    columns = JOURNAL.c
    query = select(columns.key, columns.intent, columns.result).where(
        columns.owner == _owner(owner), columns.run == run_id
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
