"""How a turn begins and ends in the store: what is asked is kept before it is, what came of it in any case."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final, TypeVar, final

import anyio
from attrs import frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.effects.effect import Generate, result_of
from llm_effects.effects.env import LLMEnv
from llm_effects.values.conversations import History, StoredMessage, Turn, TurnState
from llm_effects.values.errors import (
    ConversationConflict,
    InvalidRequest,
    LLMError,
    StorageFailed,
    describe,
    is_retryable,
    retry_limit,
)
from llm_effects.values.messages import ToolCall, ToolResult
from llm_effects.values.requests import LLMRequest, conversation
from llm_effects.values.tokens import message_tokens

TRIES: Final = 8
"""How often a turn is begun when other writers are faster."""

PAUSE_S: Final = 0.01
"""At most, before the second try, in seconds; it doubles with each."""

STORING_S: Final = 5.0
"""How long the store may take over the beginning or the end of a turn, in seconds; no cancellation cuts it short."""

NEWEST: Final = 32
"""Turns that are read at first; more only where the window has room for them."""


_Made = TypeVar("_Made")


@final
@frozen
class TurnRequest:
    """What a turn is asked with: ``request`` has the question as its messages, and the owner; ``pipeline`` answers it."""

    conversation_id: str
    turn_id: str
    request: LLMRequest
    pipeline: Generate
    pinned: bool = False


@final
@frozen(kw_only=True)
class StartedTurn:
    """A turn in its conversation, as that was just before; ``mine`` says that it is to be answered here."""

    asking: TurnRequest
    history: History
    turn: Turn
    mine: bool


async def load(env: LLMEnv, conversation_id: str, owner: str | None, newest: int | None) -> Result[History, LLMError]:
    """Read a conversation; one that the owner has not is an ``InvalidRequest``."""
    found = await result_of(env.conversations.load(conversation_id, owner, newest))
    if not is_successful(found):
        return Failure(found.failure())
    history = found.unwrap()
    remedy = f"conversation_id: there is no conversation {conversation_id!r}: begin it with start_conversation"
    return Failure(InvalidRequest(message=remedy)) if history is None else Success(history)


async def begin(asking: TurnRequest, env: LLMEnv) -> Result[StartedTurn, LLMError]:
    """Store what is asked; where another writer was faster, read again and begin again."""
    fresh = _turn(asking, env)
    return await until_written(lambda: _begin_once(asking, fresh, env), env)


async def until_written(
    write: Callable[[], Awaitable[Result[_Made, LLMError]]], env: LLMEnv
) -> Result[_Made, LLMError]:
    """Read and write again while other writers are faster: so many times, then it is a ``ConversationConflict``.

    A store that failed for a moment is asked once more: what it may have written is the same turn, not a second.
    """
    result = await write()
    for attempt in range(1, TRIES):
        if is_successful(result) or not _worth_another(result.failure(), attempt):
            break
        await anyio.sleep(env.draw() * PAUSE_S * 2**attempt)
        result = await write()
    return result


def _worth_another(error: LLMError, attempt: int) -> bool:
    """Somebody at work on the very turn says until when (``retry_after``): that is no matter of a moment."""
    if isinstance(error, ConversationConflict):
        return error.retry_after is None
    return attempt <= retry_limit(error)


def _turn(asking: TurnRequest, env: LLMEnv) -> Turn:
    now = env.now()
    asked = (
        StoredMessage(id=env.new_id(), message=each, at=now, pinned=asking.pinned, tokens=message_tokens(each))
        for each in conversation(asking.request)
    )
    lease = timedelta(seconds=env.config.storage.lease_seconds)
    return Turn(id=asking.turn_id, begun_at=now, lease_until=now + lease, writer=env.new_id(), messages=tuple(asked))


async def _begin_once(asking: TurnRequest, fresh: Turn, env: LLMEnv) -> Result[StartedTurn, LLMError]:
    owner = asking.request.owner
    found = await load(env, asking.conversation_id, owner, NEWEST)
    problem = found.failure() if not is_successful(found) else _stray_result(found.unwrap(), fresh)
    if problem is not None:
        return Failure(problem)
    history = found.unwrap()
    with anyio.move_on_after(STORING_S, shield=True):  # from here on the turn must be ended, whatever happens
        begun = await result_of(
            env.conversations.begin_turn(asking.conversation_id, owner, history.conversation.version, fresh)
        )
        return (
            await _taken(asking, history, fresh, begun.unwrap(), env)
            if is_successful(begun)
            else Failure(begun.failure())
        )
    return Failure(StorageFailed(operation="begin_turn", message=_TOO_LONG, transient=True))


_TOO_LONG: Final = f"no answer within {STORING_S:g} s"


async def _taken(
    asking: TurnRequest, history: History, fresh: Turn, turn: Turn, env: LLMEnv
) -> Result[StartedTurn, LLMError]:
    """Whose the turn is: ours, one that has ended, or one that somebody else is at work on."""
    begun = StartedTurn(asking=asking, history=history, turn=turn, mine=turn.writer == fresh.writer)
    asked = tuple(each.message for each in fresh.messages)
    if tuple(each.message for each in turn.messages[: len(asked)]) != asked:
        if begun.mine:
            await finish(begun, TurnState.FAILED, (), InvalidRequest.tag, env)
        used = f"turn_id: {turn.id!r} was used for another message: a new message needs a new turn_id"
        return Failure(InvalidRequest(message=used))
    if not begun.mine and not turn.settled:
        left = max(0.0, (turn.lease_until - fresh.begun_at).total_seconds())
        return Failure(ConversationConflict(conversation_id=asking.conversation_id, retry_after=left))
    return Success(begun)


def _stray_result(history: History, fresh: Turn) -> LLMError | None:
    """A result of a tool that nobody called would be refused by every provider, after it was stored."""
    given = [part.call_id for each in fresh.messages for part in each.message.parts if isinstance(part, ToolResult)]
    if not given or not history.complete:
        return None
    said = (part for turn in (*history.turns, fresh) for each in turn.messages for part in each.message.parts)
    called = {part.id for part in said if isinstance(part, ToolCall)}
    stray = next((call for call in given if call not in called), None)
    remedy = f"message: has a result for the tool call {stray!r}, which is not in the conversation"
    return None if stray is None else InvalidRequest(message=remedy)


async def finish(
    begun: StartedTurn, state: TurnState, came: tuple[StoredMessage, ...], error: str | None, env: LLMEnv
) -> str | None:
    """Store what came of a turn, also when cancelled; gives what went wrong, which loses nobody the answer."""
    asking, problem = begun.asking, ""
    with anyio.move_on_after(STORING_S, shield=True):
        for _ in range(2):
            done = await result_of(
                env.conversations.finish_turn(
                    asking.conversation_id, asking.request.owner, begun.turn.id, state, came, error=error
                )
            )
            if is_successful(done):
                return None
            problem = describe(done.failure())
            if not is_retryable(done.failure()):
                break
    return problem or _TOO_LONG
