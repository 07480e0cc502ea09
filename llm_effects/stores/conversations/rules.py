"""The rules of conversations, as pure functions that every store shares."""

from collections.abc import Container, Sequence
from datetime import datetime

from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.values.conversations import Conversation, StoredMessage, Turn, TurnState
from llm_effects.values.errors import ConversationConflict, InvalidRequest, LLMError, checked
from llm_effects.values.validation import check_id


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
