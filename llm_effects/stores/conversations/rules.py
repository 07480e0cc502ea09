"""What becomes of a conversation, as functions of values: the same rules for every store."""

from collections.abc import Container, Sequence
from datetime import datetime

from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.values.conversations import Conversation, StoredMessage, Turn, TurnState, check_id
from llm_effects.values.errors import ConversationConflict, InvalidRequest, LLMError, checked


def begun(there: Turn | None, conversation: Conversation, expected: int, turn: Turn) -> Result[Turn, LLMError]:
    """Decide on a turn that begins: as it is to be stored, or ``there`` itself where nothing is.

    Whether a lease is over is judged by the clock of the caller, who says when the turn begins.
    """
    if there is not None and not _free(there, turn.begun_at):
        return Success(there)
    if conversation.version != expected:
        return Failure(ConversationConflict(conversation_id=conversation.id))
    if there is None:
        return Success(evolve(turn, number=conversation.turns + 1, state=TurnState.PENDING, error=None))
    return Success(evolve(there, state=TurnState.PENDING, error=None, writer=turn.writer, lease_until=turn.lease_until))


def _free(there: Turn, at: datetime) -> bool:
    return there.lease_until <= at if there.state is TurnState.PENDING else not there.settled


def ended(there: Turn, state: TurnState, came: tuple[StoredMessage, ...], error: str | None) -> Result[Turn, LLMError]:
    """Decide on a turn that ends: as it is to be stored, or ``there`` itself where nothing is.

    A turn that failed leaves only what was asked. An answer that arrives after a failure is kept all the same.
    """
    if state is TurnState.PENDING:
        return Failure(InvalidRequest(message="state: a turn ends as finished, interrupted or failed"))
    kept = () if state is TurnState.FAILED else came
    if there.settled or (there.state is not TurnState.PENDING and not kept):
        return Success(there)
    return Success(evolve(there, state=state, error=error, messages=(*there.messages, *kept)))


def new_turns(turns: Sequence[Turn], known: Container[str]) -> tuple[Turn, ...]:
    """Give the turns whose ids are not known yet; of two with one id the first."""
    firsts = {turn.id: turn for turn in reversed(turns)}
    return tuple(firsts[each] for each in dict.fromkeys(turn.id for turn in turns) if each not in known)


def added(
    conversation: Conversation, new: Sequence[Turn], expected: int
) -> Result[tuple[Turn, ...], ConversationConflict]:
    """Number whole turns that are to follow; none is always right."""
    if new and conversation.version != expected:
        return Failure(ConversationConflict(conversation_id=conversation.id))
    return Success(tuple(evolve(turn, number=conversation.turns + n) for n, turn in enumerate(new, 1)))


def moved(conversation: Conversation, turns: Sequence[Turn], new: int) -> Conversation:
    """Move a conversation on by one version: ``turns`` were written, of which so many are ``new``."""
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
    """Say that the owner has no conversation with this id: also where somebody else has."""
    return InvalidRequest(message=f"conversation_id: there is no conversation {conversation_id!r}")


def no_turn(turn_id: str) -> InvalidRequest:
    """Say that a conversation has no turn with this id."""
    return InvalidRequest(message=f"turn_id: the conversation has no turn {turn_id!r}")


def no_intent(key: str) -> InvalidRequest:
    """Say that a run has noted no intent under this key."""
    return InvalidRequest(message=f"key: the run has noted no intent {key!r}")


CLASH = InvalidRequest(message="messages: the id of a message is used once in a conversation")
"""Two messages with one id."""


# Ids that come from outside, checked before any store sees them.


def wrong_id(owner: str | None, **ids: str) -> LLMError | None:
    """Give what is wrong with an owner or with one of the ids, by its name; nobody is an owner too.

    >>> wrong_id(None, turn_id="1")
    >>> wrong_id("", turn_id="1").message
    'owner: must not be blank'
    """
    given = ids if owner is None else {"owner": owner, **ids}
    results = (checked(check_id, name, each) for name, each in given.items())
    return next((result.failure() for result in results if not is_successful(result)), None)
