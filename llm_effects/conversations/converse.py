"""One turn of a stored conversation: ``converse`` stores the question, builds the prompt, asks, and stores the end.

Nothing is lost: the question is stored before any money is spent, and the answer, or what was seen of it, afterwards.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Final, final

import anyio
from attrs import evolve, frozen
from returns.context import RequiresContext
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.conversations.context import Context, context_of, provenance_of
from llm_effects.conversations.turn_lifecycle import StartedTurn, TurnRequest, begin, finish
from llm_effects.effects.call import Sink, TurnContext
from llm_effects.effects.effect import Answer, Effect, Generate, effect, from_env, from_result, run, then
from llm_effects.effects.env import Asked, LLMEnv
from llm_effects.effects.tasks import in_own_task
from llm_effects.pipeline import ReceivedAnswer, deliver_ending, pulled, run_call, standard_pipeline
from llm_effects.providers.draft import events_of
from llm_effects.values.conversations import Provenance, StoredMessage, Turn, TurnState
from llm_effects.values.errors import ContextTooLarge, InvalidRequest, LLMError, RequestTimeout, checked
from llm_effects.values.events import Started, StreamEvent
from llm_effects.values.messages import Message, Part, Reasoning, Text, stays_of
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import CANCELLED, Cost, FinishReason, LLMResponse, Usage, total_cost
from llm_effects.values.tokens import message_tokens

MAX_TRIES: Final = 3
"""How often a turn is asked if servers reply that it is too long, each time with less of the conversation."""

SHRINK: Final = 0.7
"""The share of the prompt that each further try keeps."""

NOT_SAVED: Final = "conversation: this turn is not saved"
"""The beginning of the warning on an answer that could not be stored."""


def converse(
    conversation_id: str,
    message: str | Message | LLMRequest,
    *,
    owner: str | None = None,
    turn_id: str | None = None,
    sink: Sink | None = None,
    pinned: bool = False,
    pipeline: Generate = standard_pipeline,
) -> Effect[LLMResponse]:
    """Answer one turn of a stored conversation.

    The messages of a whole ``LLMRequest`` are the question; its other fields apply to this turn. The same ``turn_id``
    never stores a message twice: a turn that has ended returns its stored answer at no cost, and one that is under way
    elsewhere is a ``ConversationConflict`` whose ``retry_after`` (seconds) is when it expires. A ``pinned`` question
    and its answer stay in every later prompt. With a ``sink`` the answer is streamed as by ``stream``; a broken stream
    is stored as far as it was seen. An answer that could not be stored has a warning.

    >>> import anyio
    >>> from llm_effects import run, scripted_env, start_conversation, then
    >>> env = scripted_env(lambda request: f"I know {len(request.messages)} messages.")
    >>> first = then(start_conversation("c"), lambda _: converse("c", "I am Ada."))
    >>> anyio.run(run, then(first, lambda _: converse("c", "Who am I?")), env).unwrap().content
    'I know 3 messages.'
    >>> anyio.run(run, converse("d", "Who?"), env).failure().message
    "conversation_id: there is no conversation 'd': create it with start_conversation"
    """
    turn = _turn_request(conversation_id, message, owner, turn_id, pinned=pinned, pipeline=pipeline)

    async def answered(env: LLMEnv) -> Answer:
        received = ReceivedAnswer()
        consumer = Consumer(None if sink is None else _recording(sink, received), received)
        result = await run(then(turn, lambda request: _take_turn(request, consumer)), env)
        await deliver_ending(result, sink)
        return result

    return effect(answered)


def open_converse(
    conversation_id: str,
    message: str | Message | LLMRequest,
    *,
    owner: str | None = None,
    turn_id: str | None = None,
    pinned: bool = False,
    pipeline: Generate = standard_pipeline,
) -> RequiresContext[AbstractAsyncContextManager[AsyncIterator[StreamEvent]], LLMEnv]:
    """Answer one turn of a stored conversation as ``converse`` does, as an async iterator of its events.

    The model waits until the next event is asked for. The last event is ``Completed``, once the answer is stored, or
    ``Failed``. Leaving early closes the connection to the model and stores the turn as interrupted, with the text that
    was received. An exception of the consumer is raised as it is, not in a group.

    >>> import anyio
    >>> from llm_effects import run, scripted_env, start_conversation
    >>> async def main() -> list[str]:
    ...     env = scripted_env("Hello Ada.")
    ...     await run(start_conversation("c"), env)
    ...     async with open_converse("c", "I am Ada.")(env) as events:
    ...         return [type(event).__name__ async for event in events]
    >>> anyio.run(main)
    ['Started', 'TextDelta', 'Completed']
    """
    turn = _turn_request(conversation_id, message, owner, turn_id, pinned=pinned, pipeline=pipeline)
    return pulled(lambda sink, received: then(turn, lambda request: _take_turn(request, Consumer(sink, received))))


def _turn_request(
    conversation_id: str,
    message: str | Message | LLMRequest,
    owner: str | None,
    turn_id: str | None,
    *,
    pinned: bool,
    pipeline: Generate,
) -> Effect[TurnRequest]:
    def build(env: LLMEnv) -> Result[TurnRequest, LLMError]:
        request = partial(TurnRequest, conversation_id, turn_id or env.new_id(), pipeline=pipeline, pinned=pinned)
        return _question(message, owner).map(request)

    return then(from_env(build), from_result)


def _question(message: str | Message | LLMRequest, owner: str | None) -> Result[LLMRequest, LLMError]:
    if isinstance(message, LLMRequest):
        if message.owner is None:
            return checked(evolve, message, owner=owner)
        if owner not in {None, message.owner}:
            return Failure(InvalidRequest(message="owner: it differs from the owner of the request: name it once"))
        return Success(message)
    if isinstance(message, Message):
        return checked(LLMRequest, messages=(message,), owner=owner)
    return checked(LLMRequest, prompt=message, owner=owner)


@final
@frozen
class Consumer:
    """The consumer of a turn: where its events go, and what it has received of the answer."""

    sink: Sink | None
    received: ReceivedAnswer


def _recording(sink: Sink, received: ReceivedAnswer) -> Sink:
    """Return a sink that adds each event to ``received``.

    An event is added before it is delivered, since a sink that fails half-way may have shown it.
    """

    async def deliver(event: StreamEvent) -> None:
        received.add(event)
        await sink(event)

    return deliver


def _take_turn(request: TurnRequest, consumer: Consumer) -> Effect[LLMResponse]:
    """Begin a turn and answer it, or return its stored answer, within the time limit of the whole call.

    It runs in a task of its own, where even asyncio's own cancellation cannot keep it from storing its end. Where the
    environment redacts, the question is redacted before it is stored, and the answer is restored after that.
    """

    def take(asked: Asked, env: LLMEnv) -> Awaitable[Answer]:
        asked_turn = evolve(request, question=asked.request, hide=asked.hide)
        return in_own_task(partial(_take_in_time, asked_turn, evolve(consumer, sink=asked.sink), env))

    def taken(env: LLMEnv) -> Awaitable[Answer]:
        asked = Asked(request=request.question, sink=consumer.sink)
        if env.redact is None:
            return take(asked, env)
        return env.redact.answer(asked, env, take, request.conversation_id)

    return effect(taken)


async def _take_in_time(request: TurnRequest, consumer: Consumer, env: LLMEnv) -> Answer:
    limit_ms = request.question.preferences.timeout_ms or env.config.routing.timeout_ms
    with anyio.CancelScope(deadline=anyio.current_time() + limit_ms / 1000) as scope:
        return await run(then(begin(request), lambda started: _answer(started, consumer, scope)), env)
    partial_text = request.hide(consumer.received.visible_text(env))
    return Failure(RequestTimeout(timeout_ms=limit_ms, phase="total", partial=partial_text))


def _answer(started: StartedTurn, consumer: Consumer, scope: anyio.CancelScope) -> Effect[LLMResponse]:
    if started.mine:
        return effect(partial(_ask_and_finish, started, consumer, scope))
    return effect(lambda _: _replay(started.turn, consumer.sink))


async def _ask_and_finish(started: StartedTurn, consumer: Consumer, scope: anyio.CancelScope, env: LLMEnv) -> Answer:
    """Answer a turn and store its end in any case: also when cancelled, also when the consumer's sink raises."""
    ending: Result[AnswerInContext, LLMError] | None = None
    try:
        answer = ending = await _ask(started, consumer, scope, env)
    finally:
        problem = await finish(started, *turn_result(started.request, ending, consumer.received, env), env)
    response = answer.map(_response)
    return response if problem is None else response.map(partial(_with_warning, f"{NOT_SAVED}: {problem}"))


def _response(answer: AnswerInContext) -> LLMResponse:
    return answer.response


def _with_warning(warning: str, response: LLMResponse) -> LLMResponse:
    return evolve(response, warnings=(*response.warnings, warning))


async def _ask(
    started: StartedTurn, consumer: Consumer, scope: anyio.CancelScope, env: LLMEnv
) -> Result[AnswerInContext, LLMError]:
    """Ask with as much of the conversation as fits; with less if a server replies that it is too long."""
    deadline, limit, tries = scope.deadline, math.inf, 0
    while True:
        scope.deadline, tries = deadline, tries + 1
        context = await run(context_of(started, limit), env)
        if not is_successful(context):
            return Failure(context.failure())
        consumer.received.stays = consumer.received.stays or context.unwrap().request.stays
        scope.deadline = math.inf  # the call keeps the deadline itself, and reports what became of each attempt
        answer = await run(_call(started, context.unwrap(), consumer.sink, deadline), env)
        if is_successful(answer) or tries == MAX_TRIES or not _may_shorten(answer.failure(), context.unwrap(), env):
            return answer
        limit = SHRINK * min(context.unwrap().tokens, _limit(answer.failure()))


def _call(started: StartedTurn, context: Context, sink: Sink | None, deadline: float) -> Effect[AnswerInContext]:
    conversation = started.history.conversation
    turn = TurnContext(conversation.id, conversation.last_model, context.tokens)
    response = run_call(started.request.pipeline, context.request, sink, deadline=deadline, turn=turn)
    return response.map(partial(_in_context, context))


def _in_context(context: Context, response: LLMResponse) -> AnswerInContext:
    return AnswerInContext(evolve(response, warnings=response.warnings + context.warnings), context)


def _may_shorten(error: LLMError, context: Context, env: LLMEnv) -> bool:
    has_older = len(context.fitted.messages) > 1
    return isinstance(error, ContextTooLarge) and has_older and env.config.storage.window != "fail"


def _limit(error: LLMError) -> float:
    return (isinstance(error, ContextTooLarge) and error.limit) or math.inf


async def _replay(turn: Turn, sink: Sink | None) -> Answer:
    """Return the stored answer of a turn that has ended, streamed to the sink if there is one."""
    answer = stored_answer(turn)
    if sink is not None and is_successful(answer):
        await sink(Started(answer.unwrap().model))
        for event in events_of(answer.unwrap()):
            await sink(event)
    return answer


# The end of a turn: what is stored of an answer, whole or partial, and how it is read again.


@final
@frozen
class AnswerInContext:
    """A whole answer, and the prompt that it answers."""

    response: LLMResponse
    context: Context


def turn_result(
    request: TurnRequest, answer: Result[AnswerInContext, LLMError] | None, received: ReceivedAnswer, env: LLMEnv
) -> tuple[TurnState, tuple[StoredMessage, ...], str | None]:
    """Return how a turn ends: its state, the messages to store, and the tag of the error that broke it off.

    ``answer`` is ``None`` if the turn was cancelled, or if the consumer raised.
    """
    if answer is not None and is_successful(answer):
        return TurnState.FINISHED, (_whole_answer(request, answer.unwrap(), env),), None
    error = None if answer is None else answer.failure()
    tag = CANCELLED if error is None else error.tag
    if received.visible_text(env).strip():
        return TurnState.INTERRUPTED, (_partial_answer(request, error, received, env),), tag
    return (TurnState.INTERRUPTED if error is None else TurnState.FAILED), (), tag


def _whole_answer(request: TurnRequest, answer: AnswerInContext, env: LLMEnv) -> StoredMessage:
    response = answer.response
    parts = response.parts or (Text(response.content, stays=response.stays),)
    sealed = any(isinstance(part, Reasoning) and part.opaque for part in parts)
    return _stored(request, parts, provenance_of(response, answer.context.prefix if sealed else None), env)


def _partial_answer(
    request: TurnRequest, error: LLMError | None, received: ReceivedAnswer, env: LLMEnv
) -> StoredMessage:
    model = env.config.models.get(received.model)
    source = Provenance(
        model=received.model,
        provider="" if model is None else model.provider,
        usage=(error.usage if error is not None else None) or Usage(),
        cost=Cost.UNKNOWN if error is None else total_cost(each.cost for each in error.attempts),
    )
    return _stored(request, (Text(request.hide(received.visible_text(env)), stays=received.stays),), source, env)


def _stored(request: TurnRequest, parts: tuple[Part, ...], source: Provenance, env: LLMEnv) -> StoredMessage:
    message = Message("assistant", parts)
    return StoredMessage(
        id=env.new_id(),
        message=message,
        at=env.now(),
        pinned=request.pinned,
        tokens=message_tokens(message),
        provenance=source,
    )


def stored_answer(turn: Turn) -> Result[LLMResponse, LLMError]:
    """Return the stored answer of a turn that has ended, at no cost.

    An interrupted answer has ``FinishReason.LENGTH`` and a warning.
    """
    last = next((each for each in reversed(turn.messages) if each.message.role == "assistant"), None)
    if last is None:
        return Failure(InvalidRequest(message=f"turn_id: {turn.id!r} was stored without an answer: use another one"))
    source = last.provenance or Provenance(model="", provider="")
    response = LLMResponse(
        content=last.message.text,
        parts=last.message.parts,
        model=source.model,
        served_model=source.served_model,
        provider=source.provider,
        finish_reason=source.finish_reason or FinishReason.STOP,
        usage=source.usage,
        cost=Cost.ZERO,
        cached=True,
        stays=stays_of(last.message.parts),
    )
    if turn.state is TurnState.FINISHED:
        return Success(response)
    note = f"conversation: this answer was interrupted ({turn.error}); a new turn_id asks again"
    return Success(evolve(response, finish_reason=FinishReason.LENGTH, warnings=(note,)))
