"""Conversations in a database: a SQLite file or a Postgres server."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, partial
from itertools import groupby
from typing import Any, Final, TypeVar, final

from attrs import evolve, frozen
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    bindparam,
    delete,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from llm_effects.stores.conversations.rules import (
    CLASH,
    added,
    begun,
    ended,
    moved,
    new_turns,
    no_conversation,
    no_intent,
    no_turn,
    wrong_id,
)
from llm_effects.stores.sql.database import Database
from llm_effects.stores.sql.driver_errors import Refused
from llm_effects.stores.sql.tables import CONVERSATIONS, JOURNAL, MESSAGES, SUMMARIES, TURNS
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

# Rows of conversations, read and written one by one. Every value is bound, none is part of a statement.


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


# The journal of runs in a database.


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


# Rows of turns and their messages. What is asked again and again is built once: that takes as long as asking.


_BATCH: Final = 500  # ids in one query

_IS_PINNED: Final = text("pinned = 1")  # word for word as its index has it


def _reading(among: Callable[[Column[int]], ColumnElement[bool]]) -> tuple[Select[str], Select[int, str]]:
    """Queries for turns, and for their messages, of some numbers."""
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

_READ: Final = _reading(lambda number: number.between(bindparam("first"), bindparam("last")))
_READ_PINNED: Final = _reading(lambda number: number.in_(_PINNED))

_FIND_TURN: Final = select(TURNS.c.document).where(
    TURNS.c.conversation == bindparam("of"), TURNS.c.id == bindparam("name")
)
_END_TURN: Final = update(TURNS).where(TURNS.c.conversation == bindparam("of"), TURNS.c.number == bindparam("at"))


def find_turn(connection: Connection, key: int, turn_id: str) -> Turn | None:
    """Give a turn by its id, with its messages."""
    document = connection.execute(_FIND_TURN, {"of": key, "name": turn_id}).scalar_one_or_none()
    if document is None:
        return None
    turn = read_value(document, Turn)
    said = connection.execute(_READ[1], {"of": key, "first": turn.number, "last": turn.number})
    return evolve(turn, messages=tuple(map(_message, said)))


def known_turns(connection: Connection, key: int, ids: Sequence[str]) -> set[str]:
    """Tell which of the ids are those of turns that are there."""
    batches = (ids[first : first + _BATCH] for first in range(0, len(ids), _BATCH))
    query = select(TURNS.c.id).where(TURNS.c.conversation == key)
    return {each for batch in batches for each in connection.execute(query.where(TURNS.c.id.in_(batch))).scalars()}


def read_turns(connection: Connection, key: int, first: int, last: int) -> tuple[Turn, ...]:
    """Give the turns of these numbers, with their messages, in order."""
    return _turns(connection, _READ, {"of": key, "first": first, "last": last})


def read_pinned(connection: Connection, key: int, before: int) -> tuple[Turn, ...]:
    """Give the turns before a number that have something pinned."""
    return _turns(connection, _READ_PINNED, {"of": key, "before": before})


def _turns(
    connection: Connection, queries: tuple[Select[str], Select[int, str]], values: Mapping[str, int]
) -> tuple[Turn, ...]:
    turns = [read_value(each, Turn) for each in connection.execute(queries[0], values).scalars()]
    rows = connection.execute(queries[1], values).all() if turns else ()
    said = {number: tuple(map(_message, each)) for number, each in groupby(rows, lambda row: row.turn)}
    return tuple(evolve(turn, messages=said.get(turn.number, ())) for turn in turns)


def _message(row: Row[Any, Any]) -> StoredMessage:
    return read_value(row.document, StoredMessage)


def insert_turns(connection: Connection, key: int, turns: Sequence[Turn]) -> None:
    """Keep new turns with their messages."""
    rows = [{"conversation": key, "number": turn.number, "id": turn.id, "document": _bare(turn)} for turn in turns]
    connection.execute(insert(TURNS), rows)
    _insert_messages(connection, [row for turn in turns for row in _message_rows(key, turn, 0)])


def update_turn(connection: Connection, key: int, turn: Turn, known: int) -> None:
    """Keep what became of a turn, and its messages beyond those ``known``."""
    connection.execute(_END_TURN, {"of": key, "at": turn.number, "document": _bare(turn)})
    _insert_messages(connection, _message_rows(key, turn, known))


def _bare(turn: Turn) -> str:
    return dump_value(evolve(turn, messages=()))


def _message_rows(key: int, turn: Turn, known: int) -> list[dict[str, object]]:
    return [
        {
            "conversation": key,
            "turn": turn.number,
            "place": place,
            "id": each.id,
            "pinned": int(each.pinned),
            "document": dump_value(each),
        }
        for place, each in enumerate(turn.messages[known:], known)
    ]


def _insert_messages(connection: Connection, rows: list[dict[str, object]]) -> None:
    if rows:
        connection.execute(insert(MESSAGES), rows)


# What is done to conversations in a database, each as one transaction.


_MOST = 2**31
"""What a query may be told as a limit."""


def start(connection: Connection, conversation: Conversation) -> Result[Conversation, LLMError]:
    """Keep a new conversation."""
    if insert_conversation(connection, conversation):
        return Success(conversation)
    return Failure(ConversationConflict(conversation_id=conversation.id))


def load(
    connection: Connection, conversation_id: str, owner: str | None, newest: int | None
) -> Result[History | None, LLMError]:
    """Read a conversation: its newest turns, or all."""
    found = find_conversation(connection, conversation_id, owner)
    if found is None:
        return Success(None)
    key, conversation = found
    first = 1 if newest is None else max(0, conversation.turns - max(0, newest)) + 1
    return Success(
        History(
            conversation=conversation,
            turns=read_turns(connection, key, first, conversation.turns),
            complete=first == 1,
            pinned=read_pinned(connection, key, first) if first > 1 else (),
            summary=read_summary(connection, key),
        )
    )


def page(
    connection: Connection, owner: str | None, limit: int, after: str | None
) -> Result[tuple[Conversation, ...], LLMError]:
    """Give conversations by their ids."""
    columns = CONVERSATIONS.c
    query = select(CONVERSATIONS).where(columns.owner == owner_of(owner))
    query = query if after is None else query.where(columns.id > after)
    found = connection.execute(query.order_by(columns.id).limit(min(max(0, limit), _MOST)))
    return Success(tuple(to_conversation(row) for row in found))


def begin_turn(
    connection: Connection, conversation_id: str, owner: str | None, expected: int, turn: Turn
) -> Result[Turn, LLMError]:
    """Begin a turn, or take it up again."""
    found = find_conversation(connection, conversation_id, owner, lock=True)
    if found is None:
        return Failure(no_conversation(conversation_id))
    there = find_turn(connection, found[0], turn.id)
    return _written(connection, found, there, begun(there, found[1], expected, turn))


def finish_turn(
    connection: Connection,
    conversation_id: str,
    owner: str | None,
    turn_id: str,
    ending: tuple[TurnState, tuple[StoredMessage, ...], str | None],
) -> Result[Turn, LLMError]:
    """End a turn."""
    found = find_conversation(connection, conversation_id, owner, lock=True)
    if found is None:
        return Failure(no_conversation(conversation_id))
    there = find_turn(connection, found[0], turn_id)
    return Failure(no_turn(turn_id)) if there is None else _written(connection, found, there, ended(there, *ending))


def _written(
    connection: Connection, found: tuple[int, Conversation], there: Turn | None, made: Result[Turn, LLMError]
) -> Result[Turn, LLMError]:
    if not is_successful(made) or made.unwrap() is there:
        return made
    (key, conversation), turn = found, made.unwrap()
    if there is None:
        insert_turns(connection, key, (turn,))
    else:
        update_turn(connection, key, turn, len(there.messages))
    update_conversation(connection, key, moved(conversation, (turn,), int(there is None)))
    return made


def append(
    connection: Connection, conversation_id: str, owner: str | None, expected: int, turns: tuple[Turn, ...]
) -> Result[Conversation, LLMError]:
    """Add the turns that are not there."""
    found = find_conversation(connection, conversation_id, owner, lock=True)
    if found is None:
        return Failure(no_conversation(conversation_id))
    key, conversation = found
    known = known_turns(connection, key, [turn.id for turn in turns])
    made = added(conversation, new_turns(turns, known), expected)
    if not is_successful(made):
        return Failure(made.failure())
    if not made.unwrap():
        return Success(conversation)
    insert_turns(connection, key, made.unwrap())
    after = moved(conversation, made.unwrap(), len(made.unwrap()))
    update_conversation(connection, key, after)
    return Success(after)


def summarise(
    connection: Connection, conversation_id: str, owner: str | None, summary: Summary
) -> Result[None, LLMError]:
    """Keep a summary: of several, the one that reaches furthest is given."""
    found = find_conversation(connection, conversation_id, owner, lock=True)
    if found is None:
        return Failure(no_conversation(conversation_id))
    put_summary(connection, found[0], summary)
    return Success(None)


def drop(connection: Connection, conversation_id: str, owner: str | None) -> Result[bool, LLMError]:
    """Drop a conversation with all that refers to it."""
    columns = CONVERSATIONS.c
    query = delete(CONVERSATIONS).where(columns.owner == owner_of(owner), columns.id == conversation_id)
    return Success(connection.execute(query).rowcount > 0)


_Made = TypeVar("_Made")


@final
@frozen
class SqlConversations:
    """Conversations and journals in a database, which it closes in the end.

    Each operation is one transaction: once it has answered, what it wrote outlives this process and its machine.
    """

    database: Database

    def start(self, conversation: Conversation) -> FutureResult[Conversation, LLMError]:
        """Keep a new conversation; an id that the owner has already is a ``ConversationConflict``."""
        work = partial(start, conversation=evolve(conversation, version=0, turns=0))
        return self.database.write("start", work, repeatable=False)

    def load(
        self, conversation_id: str, owner: str | None, newest: int | None = None
    ) -> FutureResult[History | None, LLMError]:
        """Read a conversation at one moment: its ``newest`` turns, or all."""
        work = partial(load, conversation_id=conversation_id, owner=owner, newest=newest)
        return self._read("load", work, owner, conversation_id=conversation_id)

    def page(
        self, owner: str | None, limit: int, after: str | None = None
    ) -> FutureResult[tuple[Conversation, ...], LLMError]:
        """Give an owner's conversations by their ids, at most ``limit`` after an id."""
        work = partial(page, owner=owner, limit=limit, after=after)
        return self._read("page", work, owner, **({} if after is None else {"after": after}))

    def begin_turn(
        self, conversation_id: str, owner: str | None, expected_version: int, turn: Turn
    ) -> FutureResult[Turn, LLMError]:
        """Store what is asked, before it is."""
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
        """Store what came of a turn."""
        ending = (state, messages, error)
        work = partial(finish_turn, conversation_id=conversation_id, owner=owner, turn_id=turn_id, ending=ending)
        return self._write("finish_turn", work, owner, conversation_id=conversation_id, turn_id=turn_id)

    def append(
        self, conversation_id: str, owner: str | None, expected_version: int, turns: tuple[Turn, ...]
    ) -> FutureResult[Conversation, LLMError]:
        """Store whole turns at once, all or none."""
        work = partial(append, conversation_id=conversation_id, owner=owner, expected=expected_version, turns=turns)
        return self._write("append", work, owner, conversation_id=conversation_id)

    def summarise(self, conversation_id: str, owner: str | None, summary: Summary) -> FutureResult[None, LLMError]:
        """Keep a summary, unless there is one that reaches further."""
        work = partial(summarise, conversation_id=conversation_id, owner=owner, summary=summary)
        return self._write("summarise", work, owner, conversation_id=conversation_id)

    def delete(self, conversation_id: str, owner: str | None) -> FutureResult[bool, LLMError]:
        """Drop a conversation with all that it holds; says whether there was one."""
        work = partial(drop, conversation_id=conversation_id, owner=owner)
        return self._write("delete", work, owner, once=True, conversation_id=conversation_id)

    def intend(self, run_id: str, owner: str | None, key: str, intent: bytes) -> FutureResult[JournalEntry, LLMError]:
        """Note what a run is about to do."""
        work = partial(intend, run_id=run_id, owner=owner, key=key, intent=intent)
        return self._write("intend", work, owner, once=True, run_id=run_id, key=key)

    def conclude(self, run_id: str, owner: str | None, key: str, result: bytes) -> FutureResult[None, LLMError]:
        """Note what came of a step; the first result stays."""
        work = partial(conclude, run_id=run_id, owner=owner, key=key, result=result)
        return self._write("conclude", work, owner, run_id=run_id, key=key)

    def journal(self, run_id: str, owner: str | None) -> FutureResult[tuple[JournalEntry, ...], LLMError]:
        """Give all that a run noted, in order."""
        work = partial(journal, run_id=run_id, owner=owner)
        return self._read("journal", work, owner, run_id=run_id)

    async def aclose(self) -> None:
        """Close the database."""
        await self.database.aclose()

    def _read(
        self, operation: str, work: Callable[[Connection], Result[_Made, LLMError]], owner: str | None, **ids: str
    ) -> FutureResult[_Made, LLMError]:
        wrong = wrong_id(owner, **ids)
        return self.database.read(operation, work) if wrong is None else FutureResult.from_failure(wrong)

    def _write(
        self,
        operation: str,
        work: Callable[[Connection], Result[_Made, LLMError]],
        owner: str | None,
        *,
        once: bool = False,
        **ids: str,
    ) -> FutureResult[_Made, LLMError]:
        wrong = wrong_id(owner, **ids)
        if wrong is not None:
            return FutureResult.from_failure(wrong)
        return self.database.write(operation, work, repeatable=not once, clash=CLASH)
