"""One turn of a stored conversation: what is asked is stored, answered with all that was said before, and ended.

Nothing is lost on the way: the question is stored before any money is spent, and whatever comes of it after.
"""

import math
from functools import partial
from typing import Final, TypeAlias, final

import anyio
from attrs import define, evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.conversations.context import Context, context_of, provenance_of
from llm_effects.conversations.turn_lifecycle import StartedTurn, TurnRequest, begin, finish
from llm_effects.effects.call import Sink, TurnContext
from llm_effects.effects.effect import Effect, Generate, effect, run
from llm_effects.effects.env import LLMEnv
from llm_effects.effects.tasks import apart
from llm_effects.pipeline import deliver_ending, run_call, standard_pipeline
from llm_effects.providers.draft import events_of
from llm_effects.values.conversations import Provenance, StoredMessage, Turn, TurnState
from llm_effects.values.errors import ContextTooLarge, InvalidRequest, LLMError, RequestTimeout, checked
from llm_effects.values.events import Restarted, Started, StreamEvent, TextDelta
from llm_effects.values.messages import Message, Part, Reasoning, Text
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import CANCELLED, Cost, FinishReason, LLMResponse, Usage, total_cost
from llm_effects.values.tokens import message_tokens

# What becomes of a turn: what is stored of an answer, whole or broken off, and how it is told again.


Ending: TypeAlias = tuple[TurnState, tuple[StoredMessage, ...], str | None]
"""How a turn ended, what came of it, and the tag of what broke it off."""


@final
@frozen
class Answer:
    """A whole answer, and the prompt that it is one to."""

    response: LLMResponse
    context: Context


@final
@define
class RecordingSink:
    """A sink that remembers what its consumer was given: who answered, and the text.

    It is noted before it is delivered: a consumer that fails half-way may have shown it.
    """

    sink: Sink | None
    model: str = ""
    pieces: list[str] = field(factory=list[str])

    async def __call__(self, event: StreamEvent) -> None:
        """Take an event."""
        if isinstance(event, Started | Restarted):
            self.model = event.model
            self.pieces.clear()
        elif isinstance(event, TextDelta):
            self.pieces.append(event.text)
        if self.sink is not None:
            await self.sink(event)

    @property
    def text(self) -> str:
        """The text that the consumer has."""
        return "".join(self.pieces)


def turn_result(
    asking: TurnRequest, answer: Result[Answer, LLMError] | None, heard: RecordingSink, env: LLMEnv
) -> Ending:
    """Tell how a turn ends: with its answer, with what was seen of one, or with nothing.

    No ``answer`` means that the turn was cancelled, or that the consumer raised.
    """
    if answer is not None and is_successful(answer):
        return TurnState.FINISHED, (_whole(asking, answer.unwrap(), env),), None
    error = None if answer is None else answer.failure()
    tag = CANCELLED if error is None else error.tag
    if heard.text.strip():
        return TurnState.INTERRUPTED, (_partial(asking, error, heard, env),), tag
    return (TurnState.INTERRUPTED if error is None else TurnState.FAILED), (), tag


def _whole(asking: TurnRequest, answer: Answer, env: LLMEnv) -> StoredMessage:
    response = answer.response
    parts = response.parts or (Text(response.content),)
    sealed = any(isinstance(part, Reasoning) and part.opaque for part in parts)
    return _stored(asking, parts, provenance_of(response, answer.context.prefix if sealed else None), env)


def _partial(asking: TurnRequest, error: LLMError | None, heard: RecordingSink, env: LLMEnv) -> StoredMessage:
    known = env.config.models.get(heard.model)
    source = Provenance(
        model=heard.model,
        provider="" if known is None else known.provider,
        usage=(error.usage if error is not None else None) or Usage(),
        cost=Cost.UNKNOWN if error is None else total_cost(each.cost for each in error.attempts),
    )
    return _stored(asking, (Text(heard.text),), source, env)


def _stored(asking: TurnRequest, parts: tuple[Part, ...], source: Provenance, env: LLMEnv) -> StoredMessage:
    message = Message("assistant", parts)
    return StoredMessage(
        id=env.new_id(),
        message=message,
        at=env.now(),
        pinned=asking.pinned,
        tokens=message_tokens(message),
        provenance=source,
    )


def answer_again(turn: Turn) -> Result[LLMResponse, LLMError]:
    """Give the stored answer of a turn that has ended: as it was, from storage, at no cost.

    One that was interrupted is cut off (``FinishReason.LENGTH``), and says so.
    """
    last = next((each for each in reversed(turn.messages) if each.message.role == "assistant"), None)
    if last is None:
        return Failure(InvalidRequest(message=f"turn_id: {turn.id!r} was stored without an answer: take another one"))
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
    )
    if turn.state is TurnState.FINISHED:
        return Success(response)
    note = f"conversation: this answer was interrupted ({turn.error}); a new turn_id asks again"
    return Success(evolve(response, finish_reason=FinishReason.LENGTH, warnings=(note,)))


SQUEEZES: Final = 3
"""How often a turn is asked when servers say that it is too long, each time with less of the conversation."""

SQUEEZE: Final = 0.7
"""The share that is left of it each time."""

NOT_SAVED: Final = "conversation: this turn is not saved"
"""How the warning of an answer begins that could not be stored."""

_Answer = Result[LLMResponse, LLMError]


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
    """Take one turn of a stored conversation.

    A whole ``LLMRequest`` says how to ask besides: its messages are the question, everything else counts for this
    turn. The same ``turn_id`` again never stores the message twice: a turn that has ended gives its stored answer at
    no cost, one that is under way elsewhere is a ``ConversationConflict`` whose ``retry_after`` (seconds) is when it
    counts as given up. What is ``pinned`` stays in every later prompt. With a ``sink`` the answer is streamed as by
    ``stream``; what broke off is stored as far as it was seen. An answer that could not be stored says so in its
    ``warnings``.

    >>> import anyio
    >>> from llm_effects import run, scripted_env, start_conversation, then
    >>> env = scripted_env(lambda request: f"I know {len(request.messages)} messages.")
    >>> first = then(start_conversation("c"), lambda _: converse("c", "I am Ada."))
    >>> anyio.run(run, then(first, lambda _: converse("c", "Who am I?")), env).unwrap().content
    'I know 3 messages.'
    >>> anyio.run(run, converse("d", "Who?"), env).failure().message
    "conversation_id: there is no conversation 'd': begin it with start_conversation"
    """

    async def perform(env: LLMEnv) -> _Answer:
        request = _request(message, owner)
        asking = request.map(
            partial(TurnRequest, conversation_id, turn_id or env.new_id(), pipeline=pipeline, pinned=pinned)
        )
        if is_successful(asking):
            result = await apart(partial(_turn, asking.unwrap(), env, sink))
        else:
            result = Failure(asking.failure())
        await deliver_ending(result, sink)
        return result

    return effect(perform)


def _request(message: str | Message | LLMRequest, owner: str | None) -> Result[LLMRequest, LLMError]:
    if isinstance(message, LLMRequest):
        if message.owner is None:
            return checked(evolve, message, owner=owner)
        if owner not in {None, message.owner}:
            return Failure(InvalidRequest(message="owner: the request has another one: give it once"))
        return Success(message)
    if isinstance(message, Message):
        return checked(LLMRequest, messages=(message,), owner=owner)
    return checked(LLMRequest, prompt=message, owner=owner)


async def _turn(asking: TurnRequest, env: LLMEnv, sink: Sink | None) -> _Answer:
    limit_ms = asking.request.preferences.timeout_ms or env.config.routing.timeout_ms
    deadline = anyio.current_time() + limit_ms / 1000
    heard = RecordingSink(sink)
    with anyio.CancelScope(deadline=deadline) as scope:
        begun = await begin(asking, env)
        if not is_successful(begun):
            return Failure(begun.failure())
        if not begun.unwrap().mine:
            return await _told_again(begun.unwrap().turn, sink)
        return await _answered(begun.unwrap(), heard, scope, env)
    return Failure(RequestTimeout(timeout_ms=limit_ms, phase="total", partial=heard.text))


async def _answered(begun: StartedTurn, heard: RecordingSink, scope: anyio.CancelScope, env: LLMEnv) -> _Answer:
    """Answer a turn and end it in any case: also when cancelled, also when the consumer's sink raises."""
    came: Result[Answer, LLMError] | None = None
    try:
        answer = came = await _asked(begun, heard, scope, env)
    finally:
        problem = await finish(begun, *turn_result(begun.asking, came, heard, env), env)
    if problem is None:
        return answer.map(_response)
    note = f"{NOT_SAVED}: {problem}"
    return answer.map(lambda told: evolve(told.response, warnings=(*told.response.warnings, note)))


def _response(answer: Answer) -> LLMResponse:
    return answer.response


async def _asked(
    begun: StartedTurn, heard: RecordingSink, scope: anyio.CancelScope, env: LLMEnv
) -> Result[Answer, LLMError]:
    """Ask with as much of the conversation as there is room for; less of it where a server knows better."""
    deadline, most, left = scope.deadline, math.inf, SQUEEZES
    while True:
        scope.deadline, left = deadline, left - 1
        made = await context_of(begun, env, most)
        if not is_successful(made):
            return Failure(made.failure())
        scope.deadline = math.inf  # the call keeps the time itself, and tells what became of each attempt
        answer = await _called(begun, made.unwrap(), heard, deadline, env)
        if is_successful(answer) or not (left and _may_shorten(answer.failure(), made.unwrap(), env)):
            return answer
        most = SQUEEZE * min(made.unwrap().tokens, _limit(answer.failure()))


async def _called(
    begun: StartedTurn, context: Context, heard: RecordingSink, deadline: float, env: LLMEnv
) -> Result[Answer, LLMError]:
    conversation = begun.history.conversation
    turn = TurnContext(conversation.id, conversation.last_model, context.tokens)
    sink = None if heard.sink is None else heard
    result = await run(run_call(begun.asking.pipeline, context.request, sink, deadline=deadline, turn=turn), env)
    return result.map(lambda told: Answer(evolve(told, warnings=told.warnings + context.warnings), context))


def _may_shorten(error: LLMError, context: Context, env: LLMEnv) -> bool:
    older = len(context.fitted.messages) > 1
    return isinstance(error, ContextTooLarge) and older and env.config.storage.window != "fail"


def _limit(error: LLMError) -> float:
    return (isinstance(error, ContextTooLarge) and error.limit) or math.inf


async def _told_again(turn: Turn, sink: Sink | None) -> _Answer:
    """Give the stored answer of a turn that has ended."""
    answer = answer_again(turn)
    if sink is not None and is_successful(answer):
        await sink(Started(answer.unwrap().model))
        for event in events_of(answer.unwrap()):
            await sink(event)
    return answer
