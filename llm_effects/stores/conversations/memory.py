"""Conversations in memory: they last as long as the store object."""

from bisect import bisect_right, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import islice
from threading import Lock
from typing import TypeAlias, TypeVar, final

from attrs import define, evolve, field
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.effects.env import Now, wall_clock
from llm_effects.effects.lifecycle import APPROVALS_RUN, Chosen, Counts
from llm_effects.stores.conversations.rules import (
    DUPLICATE_MESSAGE_ID,
    Place,
    added,
    advanced,
    begun,
    checked_search,
    cursor_of,
    ended,
    has_words,
    invalid_id,
    new_turns,
    no_conversation,
    no_intent,
    no_turn,
)
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
from llm_effects.values.errors import ConversationConflict, LLMError


@define(eq=False, repr=False)
class ConversationRecord:
    """A conversation, its turns by number, and indexes of them."""

    conversation: Conversation
    number: int = field(default=0, init=False)
    turns: list[Turn] = field(factory=list[Turn], init=False)
    index_by_id: dict[str, int] = field(factory=dict[str, int], init=False)
    message_ids: set[str] = field(factory=set[str], init=False)
    pinned: set[int] = field(factory=set[int], init=False)
    summary: Summary | None = field(default=None, init=False)

    def read(self, newest: int | None) -> History:
        """Return the conversation with its newest turns, or all."""
        first = 0 if newest is None else max(0, len(self.turns) - max(0, newest))
        return History(
            conversation=self.conversation,
            turns=tuple(self.turns[first:]),
            complete=first == 0,
            pinned=tuple(self.turns[index] for index in sorted(self.pinned) if index < first),
            summary=self.summary,
        )

    def find(self, turn_id: str) -> Turn | None:
        """Return the turn with an id."""
        index = self.index_by_id.get(turn_id)
        return None if index is None else self.turns[index]

    def begin(self, expected: int, turn: Turn) -> Result[Turn, LLMError]:
        """Begin a turn, or begin it again."""
        stored = self.find(turn.id)
        return self._update(stored, begun(stored, self.conversation, expected, turn))

    def finish(
        self, turn_id: str, state: TurnState, answer: tuple[StoredMessage, ...], error: str | None
    ) -> Result[Turn, LLMError]:
        """End a turn."""
        stored = self.find(turn_id)
        if stored is None:
            return Failure(no_turn(turn_id))
        return self._update(stored, ended(stored, state, answer, error))

    def append(self, expected: int, turns: tuple[Turn, ...]) -> Result[Conversation, LLMError]:
        """Append the turns that are not stored yet."""
        new = added(self.conversation, new_turns(turns, self.index_by_id), expected)
        if not is_successful(new):
            return Failure(new.failure())
        return self._store(new.unwrap(), len(new.unwrap())).map(lambda _: self.conversation)

    def summarise(self, summary: Summary) -> Result[None, LLMError]:
        """Store a summary, unless the stored one covers more turns."""
        if self.summary is None or summary.upto >= self.summary.upto:
            self.summary = summary
        return Success(None)

    def _update(self, stored: Turn | None, turn: Result[Turn, LLMError]) -> Result[Turn, LLMError]:
        if not is_successful(turn) or turn.unwrap() is stored:
            return turn
        return self._store((turn.unwrap(),), int(stored is None)).map(lambda _: turn.unwrap())

    def _store(self, turns: tuple[Turn, ...], new: int) -> Result[None, LLMError]:
        """Add or replace turns, all or none, and advance the conversation by a version."""
        messages = [(turn.number - 1, each) for turn in turns for each in turn.messages[self._stored(turn) :]]
        ids = {each.id for _, each in messages}
        if len(ids) < len(messages) or ids & self.message_ids:
            return Failure(DUPLICATE_MESSAGE_ID)
        for turn in turns:
            self.turns[turn.number - 1 : turn.number] = [turn]
            self.index_by_id[turn.id] = turn.number - 1
        self.message_ids |= ids
        self.pinned |= {index for index, each in messages if each.pinned}
        if turns:
            self.conversation = advanced(self.conversation, turns, new)
        return Success(None)

    def _stored(self, turn: Turn) -> int:
        """Return how many of a turn's messages are stored."""
        stored = self.find(turn.id)
        return 0 if stored is None else len(stored.messages)


def record_of(history: History) -> Result[ConversationRecord, LLMError]:
    """Return the record of a new conversation that begins with turns and a summary."""
    record = ConversationRecord(evolve(history.conversation, version=0, turns=0))
    stored = record.append(0, history.turns)
    record.summary = history.summary
    return stored.map(lambda _: record)


_Value = TypeVar("_Value")
_Owner: TypeAlias = str | None
_Key: TypeAlias = tuple[_Owner, str]


@final
@define(eq=False, repr=False)
class MemoryConversations:
    """Conversations and journals in memory, for any number of event loops and threads; ``now`` dates the journals.

    >>> import anyio
    >>> from datetime import UTC, datetime
    >>> async def main() -> None:
    ...     store, now = MemoryConversations(), datetime.now(UTC)
    ...     await store.start(Conversation(id="c", created_at=now, updated_at=now, owner="alice"))
    ...     print(await store.load("c", owner="bob"))
    >>> anyio.run(main)
    <IOResult: <Success: None>>
    """

    _now: Now = field(default=wall_clock, repr=False)
    _records: dict[_Key, ConversationRecord] = field(factory=dict[_Key, ConversationRecord], init=False, repr=False)
    _ids: dict[_Owner, list[str]] = field(factory=dict[_Owner, list[str]], init=False, repr=False)
    _journal: dict[_Key, dict[str, JournalEntry]] = field(
        factory=dict[_Key, dict[str, JournalEntry]], init=False, repr=False
    )
    _noted_at: dict[tuple[_Owner, str, str], datetime] = field(
        factory=dict[tuple[_Owner, str, str], datetime], init=False, repr=False
    )
    _started: int = field(default=0, init=False, repr=False)
    _lock: Lock = field(factory=Lock, init=False, repr=False)

    def start(self, conversation: Conversation) -> FutureResult[Conversation, LLMError]:
        """Store a new conversation; an id that the owner already uses is a ``ConversationConflict``."""
        return self._run(None, partial(self._start, evolve(conversation, version=0, turns=0)))

    def start_copy(self, history: History) -> FutureResult[Conversation, LLMError]:
        """Store a new conversation with its turns and its summary: all of it, or nothing."""
        return self._run(None, partial(self._start_copy, history))

    def load(
        self, conversation_id: str, owner: str | None, newest: int | None = None
    ) -> FutureResult[History | None, LLMError]:
        """Read a conversation: its ``newest`` turns, or all."""

        def work() -> Result[History | None, LLMError]:
            record = self._records.get((owner, conversation_id))
            return Success(None if record is None else record.read(newest))

        return self._run(owner, work, conversation_id=conversation_id)

    def page(
        self, owner: str | None, limit: int, after: str | None = None
    ) -> FutureResult[tuple[Conversation, ...], LLMError]:
        """Return an owner's conversations in the order of their ids, at most ``limit`` after an id."""

        def work() -> Result[tuple[Conversation, ...], LLMError]:
            ids = self._ids.get(owner, [])
            first = 0 if after is None else bisect_right(ids, after)
            page = ids[first : first + max(0, limit)]
            return Success(tuple(self._records[owner, each].conversation for each in page))

        return self._run(owner, work, **({} if after is None else {"after": after}))

    def page_by_metadata(
        self, owner: str | None, metadata: Mapping[str, str], limit: int, after: str | None = None
    ) -> FutureResult[tuple[Conversation, ...], LLMError]:
        """Return an owner's conversations that have all of this metadata, as ``page`` does."""

        def work() -> Result[tuple[Conversation, ...], LLMError]:
            ids = self._ids.get(owner, [])
            found = (
                self._records[owner, each].conversation
                for each in ids[0 if after is None else bisect_right(ids, after) :]
                if metadata.items() <= self._records[owner, each].conversation.metadata.items()
            )
            return Success(tuple(islice(found, max(0, limit))))

        return self._run(owner, work, **({} if after is None else {"after": after}))

    def search(
        self, owner: str | None, text: str, limit: int, after: str | None = None
    ) -> FutureResult[tuple[SearchHit, ...], LLMError]:
        """Return an owner's messages that have every word of a text, the newest first; every message is read."""

        def work() -> Result[tuple[SearchHit, ...], LLMError]:
            return checked_search(text, after).map(
                lambda asked: tuple(islice(self._hits(owner, *asked), max(0, limit)))
            )

        return self._run(owner, work)

    def _hits(self, owner: _Owner, words: Sequence[str], before: Place) -> Iterator[SearchHit]:
        owned = [self._records[owner, each] for each in self._ids.get(owner, [])]
        for record in sorted(owned, key=lambda record: -record.number):
            for turn in reversed(record.turns):
                for place, message in reversed(tuple(enumerate(turn.messages))):
                    at = (record.number, turn.number, place)
                    if at < before and has_words(message.message, words):
                        yield SearchHit(
                            conversation_id=record.conversation.id,
                            turn=turn.number,
                            message=message,
                            cursor=cursor_of(at),
                        )

    def begin_turn(
        self, conversation_id: str, owner: str | None, expected_version: int, turn: Turn
    ) -> FutureResult[Turn, LLMError]:
        """Store the question of a turn, before it is sent."""
        return self._on_record(conversation_id, owner, lambda record: record.begin(expected_version, turn))

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
        return self._on_record(
            conversation_id, owner, lambda record: record.finish(turn_id, state, messages, error), turn_id=turn_id
        )

    def append(
        self, conversation_id: str, owner: str | None, expected_version: int, turns: tuple[Turn, ...]
    ) -> FutureResult[Conversation, LLMError]:
        """Store whole turns, all or none."""
        return self._on_record(conversation_id, owner, lambda record: record.append(expected_version, turns))

    def summarise(self, conversation_id: str, owner: str | None, summary: Summary) -> FutureResult[None, LLMError]:
        """Store a summary, unless the stored one covers more turns."""
        return self._on_record(conversation_id, owner, lambda record: record.summarise(summary))

    def delete(self, conversation_id: str, owner: str | None) -> FutureResult[bool, LLMError]:
        """Delete a conversation; return whether there was one."""

        def work() -> Result[bool, LLMError]:
            exists = (owner, conversation_id) in self._records
            if exists:
                self._remove((owner, conversation_id))
            return Success(exists)

        return self._run(owner, work, conversation_id=conversation_id)

    def intend(self, run_id: str, owner: str | None, key: str, intent: bytes) -> FutureResult[JournalEntry, LLMError]:
        """Record a step that a run is about to do."""

        def work() -> Result[JournalEntry, LLMError]:
            run = self._journal.setdefault((owner, run_id), {})
            if key in run:
                return Success(run[key])
            run[key] = JournalEntry(key=key, intent=intent)
            self._noted_at[owner, run_id, key] = self._now()
            return Success(evolve(run[key], fresh=True))

        return self._run(owner, work, run_id=run_id, key=key)

    def conclude(self, run_id: str, owner: str | None, key: str, result: bytes) -> FutureResult[None, LLMError]:
        """Record the result of a step; the first result stays."""

        def work() -> Result[None, LLMError]:
            run = self._journal.get((owner, run_id), {})
            if key not in run:
                return Failure(no_intent(key))
            if run[key].result is None:
                run[key] = evolve(run[key], result=result)
                self._noted_at[owner, run_id, key] = self._now()
            return Success(None)

        return self._run(owner, work, run_id=run_id, key=key)

    def journal(self, run_id: str, owner: str | None) -> FutureResult[tuple[JournalEntry, ...], LLMError]:
        """Return all entries of a run, in order."""

        def work() -> Result[tuple[JournalEntry, ...], LLMError]:
            return Success(tuple(self._journal.get((owner, run_id), {}).values()))

        return self._run(owner, work, run_id=run_id)

    def erase_conversations(self, chosen: Chosen) -> FutureResult[Counts, LLMError]:
        """Erase conversations with their messages."""

        def work() -> Result[Counts, LLMError]:
            doomed = [
                key
                for key, record in self._records.items()
                if chosen.of(key[0]) and chosen.at(record.conversation.updated_at)
            ]
            messages = sum(len(self._records[key].message_ids) for key in doomed)
            for key in doomed:
                self._remove(key)
            return Success({"conversations": len(doomed), "messages": messages})

        return self._run(None, work)

    def erase_journals(self, chosen: Chosen) -> FutureResult[Counts, LLMError]:
        """Erase whole runs, and approvals one by one."""

        def work() -> Result[Counts, LLMError]:
            doomed = [each for key in self._journal if chosen.of(key[0]) for each in self._old_entries(key, chosen)]
            for owner, run_id, key in doomed:
                del self._noted_at[owner, run_id, key], self._journal[owner, run_id][key]
                if not self._journal[owner, run_id]:
                    del self._journal[owner, run_id]
            approvals = sum(run_id == APPROVALS_RUN for _, run_id, _ in doomed)
            return Success({"journal_entries": len(doomed) - approvals, "approvals": approvals})

        return self._run(None, work)

    def _old_entries(self, run: _Key, chosen: Chosen) -> list[tuple[_Owner, str, str]]:
        entries = [(*run, key) for key in self._journal[run]]
        old = [each for each in entries if chosen.at(self._noted_at[each])]
        return old if run[1] == APPROVALS_RUN or len(old) == len(entries) else []

    async def aclose(self) -> None:
        """No-op: conversations last as long as the store object."""

    def _start(self, conversation: Conversation) -> Result[Conversation, LLMError]:
        key = (conversation.owner, conversation.id)
        if key in self._records:
            return Failure(ConversationConflict(conversation_id=conversation.id))
        self._add(key, ConversationRecord(conversation))
        insort(self._ids.setdefault(conversation.owner, []), conversation.id)
        return Success(conversation)

    def _start_copy(self, history: History) -> Result[Conversation, LLMError]:
        record = record_of(history)
        if not is_successful(record):
            return Failure(record.failure())
        started = self._start(record.unwrap().conversation)
        if is_successful(started):
            self._add((history.conversation.owner, history.conversation.id), record.unwrap())
        return started

    def _add(self, key: _Key, record: ConversationRecord) -> None:
        self._started += 1
        record.number = self._started
        self._records[key] = record

    def _remove(self, key: _Key) -> None:
        del self._records[key]
        owner, name = key
        self._ids[owner].remove(name)
        if not self._ids[owner]:
            del self._ids[owner]

    def _on_record(
        self,
        conversation_id: str,
        owner: str | None,
        work: Callable[[ConversationRecord], Result[_Value, LLMError]],
        **ids: str,
    ) -> FutureResult[_Value, LLMError]:
        def on_record() -> Result[_Value, LLMError]:
            record = self._records.get((owner, conversation_id))
            return Failure(no_conversation(conversation_id)) if record is None else work(record)

        return self._run(owner, on_record, conversation_id=conversation_id, **ids)

    def _run(
        self, owner: str | None, work: Callable[[], Result[_Value, LLMError]], **ids: str
    ) -> FutureResult[_Value, LLMError]:
        async def run() -> Result[_Value, LLMError]:
            invalid = invalid_id(owner, **ids)
            if invalid is not None:
                return Failure(invalid)
            with self._lock:
                return work()

        return FutureResult(run())
