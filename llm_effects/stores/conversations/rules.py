"""The rules of conversations, as pure functions that every store shares, and the ends of turns that wait."""

import re
from collections.abc import Callable, Container, Sequence
from datetime import datetime
from typing import Final, TypeAlias, final

from attrs import define, evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.values.conversations import Conversation, History, StoredMessage, Turn, TurnState
from llm_effects.values.errors import ConversationConflict, InvalidRequest, LLMError, checked
from llm_effects.values.messages import Message, Text
from llm_effects.values.validation import check_id
from llm_effects.values.value import Value


def begun(stored: Turn | None, conversation: Conversation, expected: int, turn: Turn) -> Result[Turn, LLMError]:
    """Return a turn that begins, as it is to be stored; ``stored`` itself means that nothing changes.

    The caller's clock decides whether a lease is over: it is ``turn.begun_at``.
    """
    if stored is not None and not _can_begin_again(stored, turn.begun_at):
        return Success(stored)
    if conversation.version != expected:
        return Failure(ConversationConflict(conversation_id=conversation.id))
    if stored is None:
        return Success(evolve(turn, number=conversation.turns + 1, state=TurnState.PENDING, error=None))
    return Success(
        evolve(stored, state=TurnState.PENDING, error=None, writer=turn.writer, lease_until=turn.lease_until)
    )


def _can_begin_again(stored: Turn, at: datetime) -> bool:
    return stored.lease_until <= at if stored.state is TurnState.PENDING else not stored.settled


def ended(
    stored: Turn, state: TurnState, answer: tuple[StoredMessage, ...], error: str | None
) -> Result[Turn, LLMError]:
    """Return a turn that ends, as it is to be stored; ``stored`` itself means that nothing changes.

    A failed turn keeps only its question. An answer that arrives after a failure is stored all the same.
    """
    if state is TurnState.PENDING:
        return Failure(InvalidRequest(message="state: a turn ends as finished, interrupted or failed"))
    messages = () if state is TurnState.FAILED else answer
    if stored.settled or (stored.state is not TurnState.PENDING and not messages):
        return Success(stored)
    return Success(evolve(stored, state=state, error=error, messages=(*stored.messages, *messages)))


def new_turns(turns: Sequence[Turn], known: Container[str]) -> tuple[Turn, ...]:
    """Return the turns whose ids are not known yet; of several with one id, the first."""
    firsts = {turn.id: turn for turn in reversed(turns)}
    return tuple(firsts[each] for each in dict.fromkeys(turn.id for turn in turns) if each not in known)


def added(conversation: Conversation, new: Sequence[Turn], expected: int) -> Result[tuple[Turn, ...], LLMError]:
    """Number whole turns that are appended; appending none never conflicts."""
    if new and conversation.version != expected:
        return Failure(ConversationConflict(conversation_id=conversation.id))
    return Success(tuple(evolve(turn, number=conversation.turns + n) for n, turn in enumerate(new, 1)))


def advanced(conversation: Conversation, turns: Sequence[Turn], new: int) -> Conversation:
    """Return the next version of a conversation, after ``turns`` were written, ``new`` of them for the first time."""
    messages = [each for turn in turns for each in turn.messages]
    times = (*(turn.begun_at for turn in turns), *(each.at for each in messages))
    models = [each.provenance.model for each in messages if each.provenance is not None]
    return evolve(
        conversation,
        version=conversation.version + 1,
        turns=conversation.turns + new,
        updated_at=max(conversation.updated_at, *times),
        last_model=models[-1] if models else conversation.last_model,
    )


def no_conversation(conversation_id: str) -> InvalidRequest:
    """Build the error of a conversation that this owner does not have, even if another owner has it."""
    return InvalidRequest(message=f"conversation_id: there is no conversation {conversation_id!r}")


def no_turn(turn_id: str) -> InvalidRequest:
    """Build the error of a turn that a conversation does not have."""
    return InvalidRequest(message=f"turn_id: the conversation has no turn {turn_id!r}")


def no_intent(key: str) -> InvalidRequest:
    """Build the error of a result whose intent the run has not recorded."""
    return InvalidRequest(message=f"key: the run has recorded no intent {key!r}")


DUPLICATE_MESSAGE_ID = InvalidRequest(message="messages: the id of a message is used once in a conversation")
"""The error of two messages with one id."""


def invalid_id(owner: str | None, **ids: str) -> LLMError | None:
    """Return the error of the first invalid id, by its name; ``None`` is a valid owner.

    >>> invalid_id(None, turn_id="1")
    >>> invalid_id("", turn_id="1").message
    'owner: must not be blank'
    """
    named = ids if owner is None else {"owner": owner, **ids}
    results = (checked(check_id, name, each) for name, each in named.items())
    return next((result.failure() for result in results if not is_successful(result)), None)


# Search: the words of a text, and where a page begins.


Place: TypeAlias = tuple[int, int, int]
"""The place of a message: the number of its conversation in the store, that of its turn, and its place there."""

_WORD: Final = r"[^\W_]+"

_END: Final[Place] = (2**62, 0, 0)


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case: letters and digits between anything else.

    >>> words_of("Why's p99 up: disk_full?")
    ['why', 's', 'p99', 'up', 'disk', 'full']
    """
    return re.findall(_WORD, text.lower())


def checked_search(text: str, after: str | None) -> Result[tuple[list[str], Place], LLMError]:
    """Return the words to search, and the place before which to search."""
    words = words_of(text)
    if not words:
        return Failure(InvalidRequest(message="text: has no word to search for: letters or digits"))
    if after is None:
        return Success((words, _END))
    numbers = [int(each) for each in after.split("-") if each.isdecimal() and len(each) < _MAX_DIGITS]
    if len(numbers) != len(_END) or cursor_of(place := (numbers[0], numbers[1], numbers[2])) != after:
        return Failure(InvalidRequest(message="after: is not the cursor of a hit"))
    return Success((words, place))


_MAX_DIGITS: Final = 19


def searched_text(message: Message) -> str:
    """Return what is searched of a message: its texts, up to a length."""
    return " ".join(part.text for part in message.parts if isinstance(part, Text))[:SEARCHED]


def has_words(message: Message, words: Sequence[str]) -> bool:
    """Return whether a message has every word."""
    return set(words) <= set(words_of(searched_text(message)))


SEARCHED: Final = 100_000
"""How many characters of a message are searched."""


def cursor_of(place: Place) -> str:
    """Return the cursor after a message."""
    return "-".join(map(str, place))


# The ends of turns that could not be written: a paid answer is kept until it can be.


MAX_KEPT: Final = 1_000
"""How many ends are kept; another one replaces the oldest."""

MAX_WRITERS: Final = 10_000
"""How many turns under way are remembered with their writer."""

Key: TypeAlias = tuple[str | None, str, str]
"""The owner, the conversation and the id of a turn."""


@final
@frozen(kw_only=True, eq=False, repr=False)
class Ending(Value):
    """The end of a turn. It has the ``writer`` of the turn, where this process has begun it."""

    owner: str | None
    conversation_id: str
    turn_id: str
    state: TurnState
    messages: tuple[StoredMessage, ...]
    error: str | None
    writer: str | None = None

    @property
    def key(self) -> Key:
        """The owner, conversation and turn: no two turns have the same."""
        return self.owner, self.conversation_id, self.turn_id

    @property
    def answered(self) -> bool:
        """Whether it holds an answer, whole or in part."""
        return bool(self.messages) and self.state is not TurnState.FAILED

    def of(self, stored: Turn) -> Result[Turn, LLMError]:
        """Return a turn with this end; one that another writer has begun again takes nothing but an answer."""
        if not self.answered and self.writer not in {None, stored.writer}:
            return Success(stored)
        return ended(stored, self.state, self.messages, self.error)


@final
@define(eq=False, repr=False)
class KeptEndings:
    """The ends of turns that wait to be written, for any number of threads: each step is one step of a dictionary."""

    writing: bool = field(default=False, init=False)
    _endings: dict[Key, Ending] = field(factory=dict[Key, Ending], init=False)
    _writers: dict[Key, str] = field(factory=dict[Key, str], init=False)

    def all(self) -> tuple[Ending, ...]:
        """Return the ends that wait, oldest first."""
        return tuple(self._endings.values())

    def find(self, owner: str | None, conversation_id: str, turn_id: str) -> Ending | None:
        """Return the end of a turn, if it waits."""
        return self._endings.get((owner, conversation_id, turn_id))

    def remember(self, key: Key, writer: str) -> None:
        """Remember the writer of a turn that this process has begun."""
        self._writers[key] = writer
        if len(self._writers) > MAX_WRITERS:
            self._writers.pop(next(iter(self._writers)), None)

    def keep(self, ending: Ending) -> None:
        """Keep an end until it is written."""
        self._endings[ending.key] = evolve(ending, writer=self._writers.get(ending.key))
        if len(self._endings) > MAX_KEPT:
            self._endings.pop(next(iter(self._endings)), None)

    def forget(self, key: Key) -> None:
        """Forget a turn whose end is stored, or can never be."""
        self._endings.pop(key, None)
        self._writers.pop(key, None)

    def postpone(self, key: Key) -> None:
        """Put the end of a turn after all others, so that they do not wait for one that is refused."""
        ending = self._endings.pop(key, None)
        if ending is not None:
            self._endings[key] = ending

    def forget_all(self, of: Callable[[str | None], bool]) -> None:
        """Forget the turns of some owners."""
        for key in [key for key in (*self._endings, *self._writers) if of(key[0])]:
            self.forget(key)

    def clear(self) -> None:
        """Forget all."""
        self.writing = False
        self._endings.clear()
        self._writers.clear()

    def applied(self, history: History) -> History:
        """Return a history with the ends that wait, as if they were stored."""
        conversation = history.conversation

        def whole(turn: Turn) -> Turn:
            kept = self.find(conversation.owner, conversation.id, turn.id)
            return turn if kept is None else kept.of(turn).value_or(turn)

        return evolve(history, turns=tuple(map(whole, history.turns)), pinned=tuple(map(whole, history.pinned)))
