"""Conversations in this process: they last as long as the store does."""

from bisect import bisect_right, insort
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import TypeAlias, TypeVar, final

from attrs import define, evolve, field
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

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
from llm_effects.values.conversations import (
    Conversation,
    History,
    JournalEntry,
    StoredMessage,
    Summary,
    Turn,
    TurnState,
)
from llm_effects.values.errors import ConversationConflict, LLMError

# One conversation in memory, with all that it holds.


@define(eq=False)
class ConversationRecord:
    """A conversation, its turns by number, and what finds them quickly."""

    conversation: Conversation
    turns: list[Turn] = field(factory=list[Turn], init=False)
    places: dict[str, int] = field(factory=dict[str, int], init=False)
    messages: set[str] = field(factory=set[str], init=False)
    pinned: set[int] = field(factory=set[int], init=False)
    summary: Summary | None = field(default=None, init=False)

    def read(self, newest: int | None) -> History:
        """Give the newest turns, or all."""
        first = 0 if newest is None else max(0, len(self.turns) - max(0, newest))
        return History(
            conversation=self.conversation,
            turns=tuple(self.turns[first:]),
            complete=first == 0,
            pinned=tuple(self.turns[place] for place in sorted(self.pinned) if place < first),
            summary=self.summary,
        )

    def find(self, turn_id: str) -> Turn | None:
        """Give the turn with an id."""
        place = self.places.get(turn_id)
        return None if place is None else self.turns[place]

    def begin(self, expected: int, turn: Turn) -> Result[Turn, LLMError]:
        """Begin a turn, or take it up again."""
        there = self.find(turn.id)
        return self._written(there, begun(there, self.conversation, expected, turn))

    def finish(
        self, turn_id: str, state: TurnState, came: tuple[StoredMessage, ...], error: str | None
    ) -> Result[Turn, LLMError]:
        """End a turn."""
        there = self.find(turn_id)
        if there is None:
            return Failure(no_turn(turn_id))
        return self._written(there, ended(there, state, came, error))

    def append(self, expected: int, turns: tuple[Turn, ...]) -> Result[Conversation, LLMError]:
        """Add the turns that are not there."""
        new = added(self.conversation, new_turns(turns, self.places), expected)
        if not is_successful(new):
            return Failure(new.failure())
        return self._kept(new.unwrap(), len(new.unwrap())).map(lambda _: self.conversation)

    def summarise(self, summary: Summary) -> Result[None, LLMError]:
        """Keep a summary that reaches as far as the one that is there."""
        if self.summary is None or summary.upto >= self.summary.upto:
            self.summary = summary
        return Success(None)

    def _written(self, there: Turn | None, made: Result[Turn, LLMError]) -> Result[Turn, LLMError]:
        if not is_successful(made) or made.unwrap() is there:
            return made
        return self._kept((made.unwrap(),), int(there is None)).map(lambda _: made.unwrap())

    def _kept(self, turns: tuple[Turn, ...], new: int) -> Result[None, LLMError]:
        """Store turns, new ones or in the place of what they were, and move on; all or none."""
        fresh = [(turn.number - 1, each) for turn in turns for each in turn.messages[self._known(turn) :]]
        ids = {each.id for _, each in fresh}
        if len(ids) < len(fresh) or ids & self.messages:
            return Failure(CLASH)
        for turn in turns:
            self.turns[turn.number - 1 : turn.number] = [turn]
            self.places[turn.id] = turn.number - 1
        self.messages |= ids
        self.pinned |= {place for place, each in fresh if each.pinned}
        if turns:
            self.conversation = moved(self.conversation, turns, new)
        return Success(None)

    def _known(self, turn: Turn) -> int:
        there = self.find(turn.id)
        return 0 if there is None else len(there.messages)


_Made = TypeVar("_Made")
_Owner: TypeAlias = str | None
_Key: TypeAlias = tuple[_Owner, str]


@final
@define(eq=False)
class MemoryConversations:
    """Conversations and journals in memory, for any number of event loops and threads.

    >>> import anyio
    >>> from datetime import UTC, datetime
    >>> async def main() -> None:
    ...     store, now = MemoryConversations(), datetime.now(UTC)
    ...     await store.start(Conversation(id="c", created_at=now, updated_at=now, owner="alice"))
    ...     print(await store.load("c", owner="bob"))
    >>> anyio.run(main)
    <IOResult: <Success: None>>
    """

    _books: dict[_Key, ConversationRecord] = field(factory=dict[_Key, ConversationRecord], init=False, repr=False)
    _ids: dict[_Owner, list[str]] = field(factory=dict[_Owner, list[str]], init=False, repr=False)
    _journal: dict[_Key, dict[str, JournalEntry]] = field(
        factory=dict[_Key, dict[str, JournalEntry]], init=False, repr=False
    )
    _lock: Lock = field(factory=Lock, init=False, repr=False)

    def start(self, conversation: Conversation) -> FutureResult[Conversation, LLMError]:
        """Keep a new conversation; an id that the owner has already is a ``ConversationConflict``."""
        return self._done(None, partial(self._start, evolve(conversation, version=0, turns=0)))

    def load(
        self, conversation_id: str, owner: str | None, newest: int | None = None
    ) -> FutureResult[History | None, LLMError]:
        """Read a conversation: its ``newest`` turns, or all."""

        def work() -> Result[History | None, LLMError]:
            book = self._books.get((owner, conversation_id))
            return Success(None if book is None else book.read(newest))

        return self._done(owner, work, conversation_id=conversation_id)

    def page(
        self, owner: str | None, limit: int, after: str | None = None
    ) -> FutureResult[tuple[Conversation, ...], LLMError]:
        """Give an owner's conversations by their ids, at most ``limit`` after an id."""

        def work() -> Result[tuple[Conversation, ...], LLMError]:
            ids = self._ids.get(owner, [])
            first = 0 if after is None else bisect_right(ids, after)
            return Success(tuple(self._books[owner, each].conversation for each in ids[first : first + max(0, limit)]))

        return self._done(owner, work, **({} if after is None else {"after": after}))

    def begin_turn(
        self, conversation_id: str, owner: str | None, expected_version: int, turn: Turn
    ) -> FutureResult[Turn, LLMError]:
        """Store what is asked, before it is."""
        return self._on(conversation_id, owner, lambda book: book.begin(expected_version, turn))

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
        return self._on(
            conversation_id, owner, lambda book: book.finish(turn_id, state, messages, error), turn_id=turn_id
        )

    def append(
        self, conversation_id: str, owner: str | None, expected_version: int, turns: tuple[Turn, ...]
    ) -> FutureResult[Conversation, LLMError]:
        """Store whole turns at once, all or none."""
        return self._on(conversation_id, owner, lambda book: book.append(expected_version, turns))

    def summarise(self, conversation_id: str, owner: str | None, summary: Summary) -> FutureResult[None, LLMError]:
        """Keep a summary, unless there is one that reaches further."""
        return self._on(conversation_id, owner, lambda book: book.summarise(summary))

    def delete(self, conversation_id: str, owner: str | None) -> FutureResult[bool, LLMError]:
        """Drop a conversation; says whether there was one."""

        def work() -> Result[bool, LLMError]:
            there = self._books.pop((owner, conversation_id), None) is not None
            if there:
                self._ids[owner].remove(conversation_id)
            return Success(there)

        return self._done(owner, work, conversation_id=conversation_id)

    def intend(self, run_id: str, owner: str | None, key: str, intent: bytes) -> FutureResult[JournalEntry, LLMError]:
        """Note what a run is about to do."""

        def work() -> Result[JournalEntry, LLMError]:
            run = self._journal.setdefault((owner, run_id), {})
            if key in run:
                return Success(run[key])
            run[key] = JournalEntry(key=key, intent=intent)
            return Success(evolve(run[key], fresh=True))

        return self._done(owner, work, run_id=run_id, key=key)

    def conclude(self, run_id: str, owner: str | None, key: str, result: bytes) -> FutureResult[None, LLMError]:
        """Note what came of a step; the first result stays."""

        def work() -> Result[None, LLMError]:
            run = self._journal.get((owner, run_id), {})
            if key not in run:
                return Failure(no_intent(key))
            if run[key].result is None:
                run[key] = evolve(run[key], result=result)
            return Success(None)

        return self._done(owner, work, run_id=run_id, key=key)

    def journal(self, run_id: str, owner: str | None) -> FutureResult[tuple[JournalEntry, ...], LLMError]:
        """Give all that a run noted, in order."""

        def work() -> Result[tuple[JournalEntry, ...], LLMError]:
            return Success(tuple(self._journal.get((owner, run_id), {}).values()))

        return self._done(owner, work, run_id=run_id)

    async def aclose(self) -> None:
        """Let go of nothing: what is kept lasts as long as the store."""

    def _start(self, conversation: Conversation) -> Result[Conversation, LLMError]:
        key = (conversation.owner, conversation.id)
        if key in self._books:
            return Failure(ConversationConflict(conversation_id=conversation.id))
        self._books[key] = ConversationRecord(conversation)
        insort(self._ids.setdefault(conversation.owner, []), conversation.id)
        return Success(conversation)

    def _on(
        self,
        conversation_id: str,
        owner: str | None,
        work: Callable[[ConversationRecord], Result[_Made, LLMError]],
        **ids: str,
    ) -> FutureResult[_Made, LLMError]:
        def on_book() -> Result[_Made, LLMError]:
            book = self._books.get((owner, conversation_id))
            return Failure(no_conversation(conversation_id)) if book is None else work(book)

        return self._done(owner, on_book, conversation_id=conversation_id, **ids)

    def _done(
        self, owner: str | None, work: Callable[[], Result[_Made, LLMError]], **ids: str
    ) -> FutureResult[_Made, LLMError]:
        async def run() -> Result[_Made, LLMError]:
            wrong = wrong_id(owner, **ids)
            if wrong is not None:
                return Failure(wrong)
            with self._lock:
                return work()

        return FutureResult(run())
