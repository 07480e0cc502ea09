"""What any store of conversations must do, as checks that can be run on a new one.

A check takes a store, which may hold anything: each works for an owner of its own. What the store does wrong is an
``AssertionError``.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias, TypeVar, final
from uuid import uuid4

from attrs import evolve, field, frozen
from returns.future import FutureResult
from returns.pipeline import is_successful

from llm_effects.effects import result_of
from llm_effects.errors import LLMError
from llm_effects.messages import Message, Role
from llm_effects.services import Conversations
from llm_effects.turns import Conversation, History, StoredMessage, Turn, TurnState

_Value = TypeVar("_Value")

Check: TypeAlias = Callable[[Conversations], Awaitable[None]]
"""One thing that a store must do."""

DAY: Final = datetime(2026, 1, 1, tzinfo=UTC)


def must(condition: object, what: str) -> None:
    """Say what a store does wrong."""
    if not condition:
        raise AssertionError(what)


def same(given: object, wanted: object, what: str) -> None:
    """Say what a store gives in the place of what."""
    must(given == wanted, f"{what}:\n  given  {given!r}\n  wanted {wanted!r}")


async def made(future: FutureResult[_Value, LLMError]) -> _Value:
    """Give what an operation gives that must not fail."""
    result = await result_of(future)
    must(is_successful(result), f"an operation failed: {result}")
    return result.unwrap()


async def refused(future: FutureResult[_Value, LLMError], tag: str) -> None:
    """See an operation fail as it must."""
    result = await result_of(future)
    must(not is_successful(result), f"an operation must fail with {tag} and gave {result}")
    same(result.failure().tag, tag, "the failure")


def said(text: str, role: Role = "user", *, name: str | None = None, pinned: bool = False) -> StoredMessage:
    """Make a message to store."""
    return StoredMessage(id=name or uuid4().hex, message=Message(role, text), at=DAY, pinned=pinned)


def asked(text: str, *, turn_id: str | None = None, writer: str = "writer", at: float = 0.0) -> Turn:
    """Make a turn that begins ``at`` so many seconds and holds its lease for a minute."""
    begun_at = DAY + timedelta(seconds=at)
    return Turn(
        id=turn_id or uuid4().hex,
        begun_at=begun_at,
        lease_until=begun_at + timedelta(seconds=60),
        writer=writer,
        messages=(said(text),),
    )


@final
@frozen
class Talk:
    """A new conversation of a new owner in a store."""

    store: Conversations
    id: str = field(factory=lambda: uuid4().hex)
    owner: str | None = field(factory=lambda: uuid4().hex)

    @property
    def new(self) -> Conversation:
        """The conversation as it starts."""
        return Conversation(id=self.id, created_at=DAY, updated_at=DAY, owner=self.owner)

    async def started(self) -> "Talk":
        """Start it."""
        await made(self.store.start(self.new))
        return self

    async def read(self, newest: int | None = None) -> History:
        """Read it."""
        history = await made(self.store.load(self.id, self.owner, newest))
        if history is None:
            raise AssertionError("a conversation that was started is not there")
        return history

    async def version(self) -> int:
        """Read how far it has come."""
        return (await self.read(0)).conversation.version

    async def begun(self, turn: Turn) -> Turn:
        """Begin a turn where it has got to."""
        return await made(self.store.begin_turn(self.id, self.owner, await self.version(), turn))

    async def ended(self, turn_id: str, text: str = "", state: TurnState = TurnState.FINISHED) -> Turn:
        """End a turn."""
        came = (said(text, "assistant"),) if text else ()
        return await made(self.store.finish_turn(self.id, self.owner, turn_id, state, came))

    async def turned(self, question: str, answer: str) -> Turn:
        """Have a whole turn."""
        return await self.ended((await self.begun(asked(question))).id, answer)

    def of(self, owner: str | None) -> "Talk":
        """The conversation of somebody else with the same id."""
        return evolve(self, owner=owner)


def texts(history: History) -> list[str]:
    """Give all that was said."""
    return [each.message.text for turn in history.turns for each in turn.messages]
