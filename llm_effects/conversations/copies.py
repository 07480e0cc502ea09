"""Copies of conversations: cut at a message, stored under another id, all of it or nothing."""

from datetime import datetime

import anyio
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.conversations.turn_taking import STORING_S
from llm_effects.effects import result_of
from llm_effects.env import LLMEnv
from llm_effects.errors import InvalidRequest, LLMError
from llm_effects.turns import Conversation, History, Summary, Turn, TurnState


def cut_at(history: History, message_id: str | None) -> Result[History, LLMError]:
    """Keep what came up to a message and the message itself, or all; turns under way are left out."""
    ended = tuple(turn for turn in history.turns if turn.state is not TurnState.PENDING)
    last = _newest(ended) if message_id is None else message_id
    place = next((at for at, turn in enumerate(ended) if last in {each.id for each in turn.messages}), None)
    if place is None and message_id is not None:
        remedy = f"message_id: {message_id!r} is no message of the conversation's turns that have ended"
        return Failure(InvalidRequest(message=remedy))
    kept = () if place is None else (*ended[:place], _cut(ended[place], last))
    source = (history.conversation.id, last)
    conversation = evolve(history.conversation, forked_from=source, last_model=last_model_of(kept))
    return Success(evolve(history, conversation=conversation, turns=kept, summary=_summary(history.summary, kept)))


def _newest(turns: tuple[Turn, ...]) -> str:
    return next((turn.messages[-1].id for turn in reversed(turns) if turn.messages), "")


def _cut(turn: Turn, last: str) -> Turn:
    """A turn that is cut in its middle is whole as it is: who left it there goes on from there."""
    ids = [each.id for each in turn.messages]
    kept = turn.messages[: ids.index(last) + 1]
    return turn if len(kept) == len(ids) else evolve(turn, messages=kept, state=TurnState.FINISHED, error=None)


def _summary(summary: Summary | None, kept: tuple[Turn, ...]) -> Summary | None:
    """A summary counts on if nothing of what it covers was cut off; turns get new numbers."""
    if summary is None or not kept or kept[-1].number <= summary.upto:
        return None
    return evolve(summary, upto=sum(turn.number <= summary.upto for turn in kept))


def last_model_of(turns: tuple[Turn, ...]) -> str | None:
    """Who answered last."""
    sources = (each.provenance for turn in reversed(turns) for each in reversed(turn.messages))
    return next((source.model for source in sources if source is not None), None)


def renamed(history: History, conversation_id: str, now: datetime) -> History:
    """Give a conversation another id, and the dates of one that is new."""
    conversation = evolve(history.conversation, id=conversation_id, created_at=now, updated_at=now)
    return evolve(history, conversation=conversation)


async def keep_copy(history: History, env: LLMEnv) -> Result[Conversation, LLMError]:
    """Store a whole conversation that is new; where that fails half-way, or is cancelled, nothing stays."""
    store, wanted = env.conversations, history.conversation
    started = await result_of(store.start(evolve(wanted, version=0, turns=0)))
    if not is_successful(started) or not history.turns:
        return started
    whole = False
    try:
        kept = await result_of(store.append(wanted.id, wanted.owner, started.unwrap().version, history.turns))
        whole = is_successful(kept)
    finally:
        if not whole:
            with anyio.move_on_after(STORING_S, shield=True):
                await result_of(store.delete(wanted.id, wanted.owner))
    if whole and history.summary is not None:  # a copy without it is a copy too: another one is made when it is needed
        await result_of(store.summarise(wanted.id, wanted.owner, history.summary))
    return kept
