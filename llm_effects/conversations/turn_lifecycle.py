"""The beginning and the end of a turn in the store: its question is stored before a model is asked, its answer after.

Neither is lost to cancellation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Final, final

import anyio
from attrs import frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.conversations.operations import (
    STORE_TIMEOUT_S,
    load_conversation,
    retry_conflicts,
    staying_turn,
    stored_message,
)
from llm_effects.effects.effect import Effect, Generate, effect, from_env, from_service, result_of, run, then
from llm_effects.effects.env import LLMEnv
from llm_effects.values.conversations import History, StoredMessage, Turn, TurnState
from llm_effects.values.errors import (
    ConversationConflict,
    InvalidRequest,
    LLMError,
    StorageFailed,
    describe,
    is_retryable,
)
from llm_effects.values.messages import Part, ToolCall, ToolResult
from llm_effects.values.requests import LLMRequest, request_messages

NEWEST: Final = 32
"""Turns that are read at first; more are read only if the context window has room for them."""

_TOO_LONG: Final = f"no answer within {STORE_TIMEOUT_S:g} s"


@final
@frozen
class TurnRequest:
    """The question of a turn, with its messages and owner, and the ``pipeline`` that answers it.

    ``hide`` redacts what was received of the answer, before it is stored.
    """

    conversation_id: str
    turn_id: str
    question: LLMRequest
    pipeline: Generate
    pinned: bool = False
    hide: Callable[[str], str] = str

    @property
    def owner(self) -> str | None:
        """The owner of the conversation."""
        return self.question.owner


@final
@frozen(kw_only=True)
class StartedTurn:
    """A turn, and its conversation as it was just before; ``mine`` is true if this call has to answer it."""

    request: TurnRequest
    history: History
    turn: Turn
    mine: bool


def begin(request: TurnRequest) -> Effect[StartedTurn]:
    """Store the question of a turn; if another writer was faster, read the conversation and try again."""
    return then(from_env(lambda env: _new_turn(request, env)), lambda turn: retry_conflicts(_begin_once(request, turn)))


def _new_turn(request: TurnRequest, env: LLMEnv) -> Turn:
    now = env.now()
    messages = tuple(
        stored_message(each, now, request.pinned, env.new_id) for each in request_messages(request.question)
    )
    lease_until = now + timedelta(seconds=env.config.storage.lease_seconds)
    turn = Turn(id=request.turn_id, begun_at=now, lease_until=lease_until, writer=env.new_id(), messages=messages)
    return staying_turn(turn, request.question.stays)


def _begin_once(request: TurnRequest, new_turn: Turn) -> Effect[StartedTurn]:
    def with_known_calls(history: History) -> Result[History, LLMError]:
        problem = _result_without_call(history, new_turn)
        return Success(history) if problem is None else Failure(problem)

    history = load_conversation(request.conversation_id, owner=request.owner, newest=NEWEST)
    return then(history.bind_result(with_known_calls), lambda history: _store_question(request, history, new_turn))


def _store_question(request: TurnRequest, history: History, new_turn: Turn) -> Effect[StartedTurn]:
    version, new_turn = history.conversation.version, staying_turn(new_turn, history.conversation.stays)
    stored = from_service(
        lambda env: env.conversations.begin_turn(request.conversation_id, request.owner, version, new_turn)
    )
    claimed = then(stored, lambda turn: effect(partial(_claim, request, history, new_turn, turn)))

    async def store(env: LLMEnv) -> Result[StartedTurn, LLMError]:
        with anyio.move_on_after(STORE_TIMEOUT_S, shield=True):  # from here on the turn must be finished in any case
            return await run(claimed, env)
        return Failure(StorageFailed(operation="begin_turn", message=_TOO_LONG, transient=True))

    return effect(store)


async def _claim(
    request: TurnRequest, history: History, new_turn: Turn, turn: Turn, env: LLMEnv
) -> Result[StartedTurn, LLMError]:
    """Return the stored turn: it is ours, or has ended, or is a conflict because another writer works on it."""
    started = StartedTurn(request=request, history=history, turn=turn, mine=turn.writer == new_turn.writer)
    question = [each.message for each in new_turn.messages]
    if [each.message for each in turn.messages[: len(question)]] != question:
        if started.mine:
            await finish(started, TurnState.FAILED, (), InvalidRequest.tag, env)
        used = f"turn_id: {turn.id!r} was used for another message: a new message needs a new turn_id"
        return Failure(InvalidRequest(message=used))
    if not started.mine and not turn.settled:
        left = max(0.0, (turn.lease_until - new_turn.begun_at).total_seconds())
        return Failure(ConversationConflict(conversation_id=request.conversation_id, retry_after=left))
    return Success(started)


def _result_without_call(history: History, new_turn: Turn) -> LLMError | None:
    """Return an error if a tool result answers no call: every provider would refuse it, after it was stored."""
    results = [part.call_id for part in _parts(new_turn) if isinstance(part, ToolResult)]
    if not results or not history.complete:
        return None
    parts = (part for turn in (*history.turns, new_turn) for part in _parts(turn))
    calls = {part.id for part in parts if isinstance(part, ToolCall)}
    stray = next((call_id for call_id in results if call_id not in calls), None)
    problem = f"message: has a result for the tool call {stray!r}, which is not in the conversation"
    return None if stray is None else InvalidRequest(message=problem)


def _parts(turn: Turn) -> Iterator[Part]:
    return (part for each in turn.messages for part in each.message.parts)


async def finish(
    started: StartedTurn, state: TurnState, messages: tuple[StoredMessage, ...], error: str | None, env: LLMEnv
) -> str | None:
    """Store the end of a turn, even when cancelled, and return what went wrong; the answer is returned in any case."""
    request, problem = started.request, ""
    with anyio.move_on_after(STORE_TIMEOUT_S, shield=True):
        for _ in range(2):
            stored = await result_of(
                env.conversations.finish_turn(
                    request.conversation_id, request.owner, started.turn.id, state, messages, error=error
                )
            )
            if is_successful(stored):
                return None
            problem = describe(stored.failure())
            if not is_retryable(stored.failure()):
                break
    return problem or _TOO_LONG
