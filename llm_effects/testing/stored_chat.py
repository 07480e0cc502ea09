"""A conversation in any store, with the assertions that the checks of stores are written in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar, final
from uuid import uuid4

from attrs import evolve, field, frozen
from returns.future import FutureResult
from returns.pipeline import is_successful

from llm_effects.effects.effect import result_of
from llm_effects.effects.env import Conversations
from llm_effects.values.conversations import Conversation, History, StoredMessage, Turn, TurnState
from llm_effects.values.errors import LLMError
from llm_effects.values.messages import Message, Role

_Value = TypeVar("_Value")

DAY: Final = datetime(2026, 1, 1, tzinfo=UTC)


def ensure(condition: object, message: str) -> None:
    """Raise ``AssertionError`` unless a condition holds."""
    if not condition:
        raise AssertionError(message)


def expect(actual: object, expected: object, what: str) -> None:
    """Raise ``AssertionError`` with both values unless they are equal."""
    ensure(actual == expected, f"{what}:\n  actual   {actual!r}\n  expected {expected!r}")


async def value_of(future: FutureResult[_Value, LLMError]) -> _Value:
    """Return the value of an operation that must succeed."""
    result = await result_of(future)
    ensure(is_successful(result), f"an operation failed: {result}")
    return result.unwrap()


async def expect_failure(future: FutureResult[_Value, LLMError], tag: str) -> None:
    """Await an operation that must fail with this tag."""
    result = await result_of(future)
    ensure(not is_successful(result), f"an operation must fail with {tag}, but returned {result}")
    expect(result.failure().tag, tag, "the failure")


def new_message(text: str, role: Role = "user", *, name: str | None = None, pinned: bool = False) -> StoredMessage:
    """Build a message to store; ``name`` is its id."""
    return StoredMessage(id=name or uuid4().hex, message=Message(role, text), at=DAY, pinned=pinned)


def new_turn(text: str, *, turn_id: str | None = None, writer: str = "writer", at: float = 0.0) -> Turn:
    """Build a turn that begins ``at`` seconds after ``DAY``, with a lease of one minute."""
    begun_at = DAY + timedelta(seconds=at)
    return Turn(
        id=turn_id or uuid4().hex,
        begun_at=begun_at,
        lease_until=begun_at + timedelta(seconds=60),
        writer=writer,
        messages=(new_message(text),),
    )


@final
@frozen
class Chat:
    """A new conversation of a new owner in a store; its operations must succeed."""

    store: Conversations
    id: str = field(factory=lambda: uuid4().hex)
    owner: str | None = field(factory=lambda: uuid4().hex)

    @property
    def initial(self) -> Conversation:
        """The conversation as it is started."""
        return Conversation(id=self.id, created_at=DAY, updated_at=DAY, owner=self.owner)

    async def start(self) -> Chat:
        """Start the conversation."""
        await value_of(self.store.start(self.initial))
        return self

    async def read(self, newest: int | None = None) -> History:
        """Load the conversation with its newest turns."""
        history = await value_of(self.store.load(self.id, self.owner, newest))
        if history is None:
            raise AssertionError("a conversation that was started is missing")
        return history

    async def version(self) -> int:
        """Load the current version."""
        return (await self.read(0)).conversation.version

    async def begin(self, turn: Turn) -> Turn:
        """Begin a turn at the current version."""
        return await value_of(self.store.begin_turn(self.id, self.owner, await self.version(), turn))

    async def finish(self, turn_id: str, text: str = "", state: TurnState = TurnState.FINISHED) -> Turn:
        """Finish a turn, with an answer if there is a text."""
        messages = (new_message(text, "assistant"),) if text else ()
        return await value_of(self.store.finish_turn(self.id, self.owner, turn_id, state, messages))

    async def add_turn(self, question: str, answer: str) -> Turn:
        """Begin and finish a turn."""
        return await self.finish((await self.begin(new_turn(question))).id, answer)

    def owned_by(self, owner: str | None) -> Chat:
        """Return the conversation of another owner with the same id."""
        return evolve(self, owner=owner)


def texts(history: History) -> list[str]:
    """Return the text of every message."""
    return [message.message.text for turn in history.turns for message in turn.messages]
