"""What becomes of a turn: what is stored of an answer, whole or broken off, and how it is told again."""

from typing import TypeAlias, final

from attrs import define, evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.calls import Sink
from llm_effects.conversations.contexts import Context
from llm_effects.conversations.summaries import provenance_of
from llm_effects.conversations.turn_taking import Asking
from llm_effects.env import LLMEnv
from llm_effects.errors import InvalidRequest, LLMError
from llm_effects.events import Restarted, Started, StreamEvent, TextDelta
from llm_effects.messages import Message, Part, Reasoning, Text
from llm_effects.responses import CANCELLED, Cost, FinishReason, LLMResponse, Usage, total_cost
from llm_effects.tokens import message_tokens
from llm_effects.turns import Provenance, StoredMessage, Turn, TurnState

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
class Heard:
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


def what_came(asking: Asking, answer: Result[Answer, LLMError] | None, heard: Heard, env: LLMEnv) -> Ending:
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


def _whole(asking: Asking, answer: Answer, env: LLMEnv) -> StoredMessage:
    response = answer.response
    parts = response.parts or (Text(response.content),)
    sealed = any(isinstance(part, Reasoning) and part.opaque for part in parts)
    return _stored(asking, parts, provenance_of(response, answer.context.prefix if sealed else None), env)


def _partial(asking: Asking, error: LLMError | None, heard: Heard, env: LLMEnv) -> StoredMessage:
    known = env.config.models.get(heard.model)
    source = Provenance(
        model=heard.model,
        provider="" if known is None else known.provider,
        usage=(error.usage if error is not None else None) or Usage(),
        cost=Cost.UNKNOWN if error is None else total_cost(each.cost for each in error.attempts),
    )
    return _stored(asking, (Text(heard.text),), source, env)


def _stored(asking: Asking, parts: tuple[Part, ...], source: Provenance, env: LLMEnv) -> StoredMessage:
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
