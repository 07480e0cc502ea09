"""Conversations in a database: a SQLite file or a Postgres server."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar, final

from attrs import evolve, frozen
from returns.future import FutureResult
from returns.result import Result
from sqlalchemy import Connection

from llm_effects.errors import LLMError
from llm_effects.stores import sql_journals, sql_turns
from llm_effects.stores.databases import Database
from llm_effects.stores.ids import wrong_id
from llm_effects.stores.turn_rules import CLASH
from llm_effects.turns import Conversation, History, JournalEntry, StoredMessage, Summary, Turn, TurnState

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
        work = partial(sql_turns.start, conversation=evolve(conversation, version=0, turns=0))
        return self.database.write("start", work, repeatable=False)

    def load(
        self, conversation_id: str, owner: str | None, newest: int | None = None
    ) -> FutureResult[History | None, LLMError]:
        """Read a conversation at one moment: its ``newest`` turns, or all."""
        work = partial(sql_turns.load, conversation_id=conversation_id, owner=owner, newest=newest)
        return self._read("load", work, owner, conversation_id=conversation_id)

    def page(
        self, owner: str | None, limit: int, after: str | None = None
    ) -> FutureResult[tuple[Conversation, ...], LLMError]:
        """Give an owner's conversations by their ids, at most ``limit`` after an id."""
        work = partial(sql_turns.page, owner=owner, limit=limit, after=after)
        return self._read("page", work, owner, **({} if after is None else {"after": after}))

    def begin_turn(
        self, conversation_id: str, owner: str | None, expected_version: int, turn: Turn
    ) -> FutureResult[Turn, LLMError]:
        """Store what is asked, before it is."""
        work = partial(
            sql_turns.begin_turn, conversation_id=conversation_id, owner=owner, expected=expected_version, turn=turn
        )
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
        work = partial(
            sql_turns.finish_turn, conversation_id=conversation_id, owner=owner, turn_id=turn_id, ending=ending
        )
        return self._write("finish_turn", work, owner, conversation_id=conversation_id, turn_id=turn_id)

    def append(
        self, conversation_id: str, owner: str | None, expected_version: int, turns: tuple[Turn, ...]
    ) -> FutureResult[Conversation, LLMError]:
        """Store whole turns at once, all or none."""
        work = partial(
            sql_turns.append, conversation_id=conversation_id, owner=owner, expected=expected_version, turns=turns
        )
        return self._write("append", work, owner, conversation_id=conversation_id)

    def summarise(self, conversation_id: str, owner: str | None, summary: Summary) -> FutureResult[None, LLMError]:
        """Keep a summary, unless there is one that reaches further."""
        work = partial(sql_turns.summarise, conversation_id=conversation_id, owner=owner, summary=summary)
        return self._write("summarise", work, owner, conversation_id=conversation_id)

    def delete(self, conversation_id: str, owner: str | None) -> FutureResult[bool, LLMError]:
        """Drop a conversation with all that it holds; says whether there was one."""
        work = partial(sql_turns.drop, conversation_id=conversation_id, owner=owner)
        return self._write("delete", work, owner, once=True, conversation_id=conversation_id)

    def intend(self, run_id: str, owner: str | None, key: str, intent: bytes) -> FutureResult[JournalEntry, LLMError]:
        """Note what a run is about to do."""
        work = partial(sql_journals.intend, run_id=run_id, owner=owner, key=key, intent=intent)
        return self._write("intend", work, owner, once=True, run_id=run_id, key=key)

    def conclude(self, run_id: str, owner: str | None, key: str, result: bytes) -> FutureResult[None, LLMError]:
        """Note what came of a step; the first result stays."""
        work = partial(sql_journals.conclude, run_id=run_id, owner=owner, key=key, result=result)
        return self._write("conclude", work, owner, run_id=run_id, key=key)

    def journal(self, run_id: str, owner: str | None) -> FutureResult[tuple[JournalEntry, ...], LLMError]:
        """Give all that a run noted, in order."""
        work = partial(sql_journals.journal, run_id=run_id, owner=owner)
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
