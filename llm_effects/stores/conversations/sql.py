"""Conversations and journals in a database: a SQLite file or a Postgres server.

The store comes first, then its operations, each one transaction. Every value is bound; none is part of a statement.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Any, Final, TypeVar, final

import anyio
from attrs import evolve, field, frozen
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success
from sqlalchemy import Connection, Row, delete, select, update

from llm_effects.effects.effect import result_of
from llm_effects.effects.env import Now, wall_clock
from llm_effects.effects.lifecycle import Chosen, Counts
from llm_effects.providers.wire import CLOSING_S
from llm_effects.stores.conversations.rules import (
    DUPLICATE_MESSAGE_ID,
    Ending,
    KeptEndings,
    Key,
    Place,
    added,
    advanced,
    begun,
    checked_search,
    cursor_of,
    has_words,
    invalid_id,
    new_turns,
    no_conversation,
    no_intent,
    no_turn,
)
from llm_effects.stores.conversations.sql_rows import (
    FoundTurn,
    changing_columns,
    find_turn,
    insert_turns,
    known_turns,
    lock_conversation,
    owner_column,
    put_summary,
    read_history,
    read_journal,
    store_turn,
    to_listed,
    update_conversation,
)
from llm_effects.stores.sql.database import Database
from llm_effects.stores.sql.erasing import erase_all, erase_conversations, erase_journals, forget_log, merge_words
from llm_effects.stores.sql.searching import find_messages, is_indexed, likely_messages, metadata_filter
from llm_effects.stores.sql.tables import CONVERSATIONS, JOURNAL, insert_new, timestamp
from llm_effects.values.conversations import (
    Conversation,
    History,
    JournalEntry,
    SearchHit,
    StoredMessage,
    Summary,
    Turn,
    TurnState,
)
from llm_effects.values.errors import ConfigurationError, ConversationConflict, LLMError, StorageFailed
from llm_effects.values.serialization import dump_value, load_value

LOGGER: Final = logging.getLogger("llm_effects")

_Value = TypeVar("_Value")


@final
@frozen
class SqlConversations:
    """Conversations and journals in a database; closing the store closes the database.

    Each operation is one transaction: once it has returned, what it wrote outlives this process and its machine. The
    end of a turn that cannot be written is kept, and written with the next operation or on closing.
    """

    database: Database
    now: Now = field(default=wall_clock, repr=False, eq=False)
    _kept: KeptEndings = field(factory=KeptEndings, init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        self.database.before_closing(self._write_the_rest)
        self.database.on_fork(self._kept.clear)

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
        history = self._read("load", work, owner, conversation_id=conversation_id)
        return history.map(lambda found: found and self._kept.applied(found))

    def page(
        self, owner: str | None, limit: int, after: str | None = None
    ) -> FutureResult[tuple[Conversation, ...], LLMError]:
        """Return an owner's conversations in the order of their ids, at most ``limit`` after an id."""
        work = partial(page, owner=owner, limit=limit, after=after)
        return self._read("page", work, owner, **({} if after is None else {"after": after}))

    def page_by_metadata(
        self, owner: str | None, metadata: Mapping[str, str], limit: int, after: str | None = None
    ) -> FutureResult[tuple[Conversation, ...], LLMError]:
        """Return an owner's conversations that have all of this metadata, as ``page`` does."""
        work = partial(page, owner=owner, limit=limit, after=after, metadata=metadata)
        return self._read("page", work, owner, **({} if after is None else {"after": after}))

    def search(
        self, owner: str | None, text: str, limit: int, after: str | None = None
    ) -> FutureResult[tuple[SearchHit, ...], LLMError]:
        """Return an owner's messages that have every word of a text, the newest first."""
        asked = checked_search(text, after)
        if not is_successful(asked):
            return FutureResult.from_failure(asked.failure())
        words, before = asked.unwrap()
        return self._read("search", partial(search, owner=owner, words=words, before=before, limit=limit), owner)

    def begin_turn(
        self, conversation_id: str, owner: str | None, expected_version: int, turn: Turn
    ) -> FutureResult[Turn, LLMError]:
        """Store the question of a turn, before it is sent."""
        work = partial(begin_turn, conversation_id=conversation_id, owner=owner, expected=expected_version, turn=turn)
        begin = partial(self._write, "begin_turn", work, owner, conversation_id=conversation_id)
        return FutureResult(self._begin((owner, conversation_id, turn.id), turn.writer, begin))

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
        ending = Ending(
            owner=owner, conversation_id=conversation_id, turn_id=turn_id, state=state, messages=messages, error=error
        )
        return FutureResult(self._finish(ending))

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
        work = partial(intend, run_id=run_id, owner=owner, key=key, intent=intent, at=self.now())
        return self._write("intend", work, owner, repeatable=False, run_id=run_id, key=key)

    def conclude(self, run_id: str, owner: str | None, key: str, result: bytes) -> FutureResult[None, LLMError]:
        """Record the result of a step; the first result stays."""
        work = partial(conclude, run_id=run_id, owner=owner, key=key, result=result, at=self.now())
        return self._write("conclude", work, owner, run_id=run_id, key=key)

    def journal(self, run_id: str, owner: str | None) -> FutureResult[tuple[JournalEntry, ...], LLMError]:
        """Return all entries of a run, in order."""
        return self._read("journal", partial(journal, run_id=run_id, owner=owner), owner, run_id=run_id)

    def erase_conversations(self, chosen: Chosen) -> FutureResult[Counts, LLMError]:
        """Erase a batch of conversations with their messages; those of any age also from what a file keeps beside."""
        if chosen.before is None:
            self._kept.forget_all(chosen.of)
        last = () if chosen.before is not None else (merge_words, forget_log)
        return erase_all(self.database, "erase_conversations", partial(erase_conversations, chosen=chosen), *last)

    def erase_journals(self, chosen: Chosen) -> FutureResult[Counts, LLMError]:
        """Erase a batch of whole runs, and of approvals."""
        last = () if chosen.before is not None else (forget_log,)
        work = partial(erase_journals, chosen=chosen, at=self.now())
        return erase_all(self.database, "erase_journals", work, *last)

    async def aclose(self) -> None:
        """Close the database."""
        await self.database.aclose()

    async def _begin(
        self, key: tuple[str | None, str, str], writer: str, begin: Callable[[], FutureResult[Turn, LLMError]]
    ) -> Result[Turn, LLMError]:
        """Begin a turn, unless its end waits to be written: then the answer is there already, or it must end first."""
        kept = self._kept.find(*key)
        if kept is not None and kept.answered:
            return await result_of(self._read("begin_turn", partial(ended_turn, ending=kept), kept.owner))
        if kept is not None and _is_unwritten(written := await self._finish(kept)):
            return written
        result = await result_of(begin())
        if is_successful(result) and result.unwrap().writer == writer:
            self._kept.remember(key, writer)
        return result

    async def _finish(self, ending: Ending) -> Result[Turn, LLMError]:
        """Write the end of a turn, or keep it, also if this is cancelled: then it may be written all the same."""
        result: Result[Turn, LLMError] | None = None
        try:
            work, (owner, name, turn_id) = partial(finish_turn, ending=ending), ending.key
            result = written = await result_of(
                self._write("finish_turn", work, owner, conversation_id=name, turn_id=turn_id)
            )
        finally:
            if result is None or _is_unwritten(result):
                self._kept.keep(ending)
            else:
                self._kept.forget(ending.key)
        return written.alt(_with_promise)

    def _write_kept(self) -> None:
        """Write the oldest end that waits, and then the next one, in a thread; without waiting for it."""
        waiting = self._kept.all()
        self._kept.writing = bool(waiting)  # before it begins: it may end before this thread goes on
        if waiting and not self.database.post(
            "finish_turn",
            partial(finish_turn, ending=waiting[0]),
            partial(self._on_written, waiting[0]),
            clash=DUPLICATE_MESSAGE_ID,
        ):
            self._kept.writing = False

    def _on_written(self, ending: Ending, result: Result[Turn, LLMError]) -> None:
        """Go on with the next end, unless the database still cannot be written; called in a thread."""
        if _is_unwritten(result):
            if _is_refused(result):
                self._kept.postpone(ending.key)
            self._kept.writing = False
        else:
            self._kept.forget(ending.key)
            self._write_kept()

    async def _write_the_rest(self) -> None:
        with anyio.move_on_after(CLOSING_S, shield=True):
            for ending in self._kept.all():
                written = await self._finish(ending)
                if _is_unwritten(written) and not _is_refused(written):
                    break
        if self._kept.all():
            LOGGER.warning("conversations were closed with %d turns whose end is not written", len(self._kept.all()))

    def _read(
        self, operation: str, work: Callable[[Connection], Result[_Value, LLMError]], owner: str | None, **ids: str
    ) -> FutureResult[_Value, LLMError]:
        invalid = invalid_id(owner, **ids)
        if invalid is not None:
            return FutureResult.from_failure(invalid)
        if self._kept.all() and not self._kept.writing:
            self._write_kept()
        return self.database.read(operation, work)

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
        if operation != "finish_turn" and self._kept.all() and not self._kept.writing:
            self._write_kept()
        return self.database.write(operation, work, repeatable=repeatable, clash=DUPLICATE_MESSAGE_ID)


def _is_unwritten(result: Result[Any, LLMError]) -> bool:
    """Return whether the store has failed, and not the operation."""
    return not is_successful(result) and isinstance(result.failure(), StorageFailed | ConfigurationError)


def _is_refused(result: Result[Any, LLMError]) -> bool:
    """Return whether the database may not store this, such as data that stays, whatever becomes of the others."""
    return not is_successful(result) and isinstance(result.failure(), ConfigurationError)


def _with_promise(error: LLMError) -> LLMError:
    if not isinstance(error, StorageFailed):
        return error
    return evolve(error, message=f"{error.message}; the end of the turn is kept, and written with the next operation")


# Operations, each in one transaction.


_MAX_LIMIT = 2**31
"""The largest limit that a query may have."""


def start(connection: Connection, conversation: Conversation) -> Result[Conversation, LLMError]:
    """Store a new conversation."""
    row = {"owner": owner_column(conversation.owner), "id": conversation.id, "document": dump_value(conversation)}
    if insert_new(connection, CONVERSATIONS, {**row, **changing_columns(conversation)}):
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
    return Success(read_history(connection, conversation_id, owner, newest))


def page(
    connection: Connection,
    owner: str | None,
    limit: int,
    after: str | None,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> Result[tuple[Conversation, ...], LLMError]:
    """Read conversations in the order of their ids."""
    columns = CONVERSATIONS.c
    query = select(CONVERSATIONS).where(columns.owner == owner_column(owner))
    query = query.where(metadata_filter(connection, owner_column(owner), metadata)) if metadata else query
    query = query if after is None else query.where(columns.id > after)
    rows = connection.execute(query.order_by(columns.id).limit(min(max(0, limit), _MAX_LIMIT)))
    return Success(tuple(map(to_listed, rows)))


def search(
    connection: Connection, owner: str | None, words: Sequence[str], before: Place, limit: int
) -> Result[tuple[SearchHit, ...], LLMError]:
    """Read messages that have every word; one that this version cannot read is left out."""
    count = min(max(0, limit), _MAX_LIMIT)
    if is_indexed(connection):
        return Success(tuple(_hits(find_messages(connection, owner_column(owner), words, before, count))))
    hits = _hits(likely_messages(connection, owner_column(owner), words, before))
    return Success(tuple(islice((hit for hit in hits if has_words(hit.message.message, words)), count)))


def _hits(rows: Iterable[Row[Any]]) -> Iterator[SearchHit]:
    for row in rows:
        message = load_value(row.document, StoredMessage)
        if message is not None:
            cursor = cursor_of((row.conversation, row.turn, row.place))
            yield SearchHit(conversation_id=row.id, turn=row.turn, message=message, cursor=cursor)


def begin_turn(
    connection: Connection, conversation_id: str, owner: str | None, expected: int, turn: Turn
) -> Result[Turn, LLMError]:
    """Begin a turn, or begin it again."""

    def change(found: FoundTurn) -> Result[Turn, LLMError]:
        return begun(found.turn, found.conversation, expected, turn)

    return _change_turn(connection, (owner, conversation_id, turn.id), change)


def finish_turn(connection: Connection, ending: Ending) -> Result[Turn, LLMError]:
    """End a turn."""
    return _change_turn(connection, ending.key, partial(_ended, ending))


def ended_turn(connection: Connection, ending: Ending) -> Result[Turn, LLMError]:
    """Read a turn as it is once its end is stored."""
    found = find_turn(connection, ending.key)
    return Failure(no_conversation(ending.conversation_id)) if found is None else _ended(ending, found)


def _ended(ending: Ending, found: FoundTurn) -> Result[Turn, LLMError]:
    return Failure(no_turn(ending.turn_id)) if found.turn is None else ending.of(found.turn)


def _change_turn(
    connection: Connection, key: Key, change: Callable[[FoundTurn], Result[Turn, LLMError]]
) -> Result[Turn, LLMError]:
    """Store what a turn becomes, if it differs from what is stored."""
    found = find_turn(connection, key, lock=True)
    if found is None:
        return Failure(no_conversation(key[1]))
    turn = change(found)
    if is_successful(turn) and turn.unwrap() is not found.turn:
        store_turn(connection, found, turn.unwrap())
    return turn


def append(
    connection: Connection, conversation_id: str, owner: str | None, expected: int, turns: tuple[Turn, ...]
) -> Result[Conversation, LLMError]:
    """Append the turns that are not stored yet."""
    row = lock_conversation(connection, conversation_id, owner)
    if row is None:
        return Failure(no_conversation(conversation_id))
    key, conversation = row
    known = known_turns(connection, key, [turn.id for turn in turns])
    new = added(conversation, new_turns(turns, known), expected)
    if not is_successful(new):
        return Failure(new.failure())
    if not new.unwrap():
        return Success(conversation)
    insert_turns(connection, key, new.unwrap())
    after = advanced(conversation, new.unwrap(), len(new.unwrap()))
    update_conversation(connection, key, after)
    return Success(after)


def summarise(
    connection: Connection, conversation_id: str, owner: str | None, summary: Summary
) -> Result[None, LLMError]:
    """Store a summary; reading returns the one that covers the most turns."""
    row = lock_conversation(connection, conversation_id, owner)
    if row is None:
        return Failure(no_conversation(conversation_id))
    put_summary(connection, row[0], summary)
    return Success(None)


def delete_conversation(connection: Connection, conversation_id: str, owner: str | None) -> Result[bool, LLMError]:
    """Delete a conversation with all rows that refer to it."""
    columns = CONVERSATIONS.c
    query = delete(CONVERSATIONS).where(columns.owner == owner_column(owner), columns.id == conversation_id)
    return Success(connection.execute(query).rowcount > 0)


def intend(
    connection: Connection, run_id: str, owner: str | None, key: str, intent: bytes, *, at: datetime
) -> Result[JournalEntry, LLMError]:
    """Record an intent, or return the entry that is stored."""
    row = {"owner": owner_column(owner), "run": run_id, "key": key, "intent": intent, "at": timestamp(at)}
    if insert_new(connection, JOURNAL, row):
        return Success(JournalEntry(key=key, intent=intent, fresh=True))
    return Success(read_journal(connection, run_id, owner, key)[0])


def conclude(
    connection: Connection, run_id: str, owner: str | None, key: str, result: bytes, *, at: datetime
) -> Result[None, LLMError]:
    """Record a result, unless there is one."""
    columns = JOURNAL.c
    query = update(JOURNAL).where(columns.owner == owner_column(owner), columns.run == run_id, columns.key == key)
    concluded = connection.execute(query.where(columns.result.is_(None)).values(result=result, at=timestamp(at)))
    if concluded.rowcount or read_journal(connection, run_id, owner, key):
        return Success(None)
    return Failure(no_intent(key))


def journal(connection: Connection, run_id: str, owner: str | None) -> Result[tuple[JournalEntry, ...], LLMError]:
    """Read all entries of a run, in order."""
    return Success(read_journal(connection, run_id, owner))
