"""What a model is shown of a conversation: as much of it as the window of the model that will be asked holds."""

import math
from typing import Final, final

from attrs import evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.conversations.prompts import messages_of, opening_digest, prefix_digest
from llm_effects.conversations.rooms import Room, read_enough, read_newest, room_for
from llm_effects.conversations.summaries import keep_summary, summarise
from llm_effects.conversations.turn_taking import Begun
from llm_effects.conversations.windows import Exchange, Fitted, after, exchanges_of, fit, pinned_before
from llm_effects.decisions import describe
from llm_effects.effects import settle
from llm_effects.env import LLMEnv
from llm_effects.errors import ContextTooLarge, LLMError
from llm_effects.policies.routed import facts_of
from llm_effects.requests import LLMRequest
from llm_effects.routing import order
from llm_effects.turns import History, StoredMessage, Summary, TurnState


@final
@frozen(kw_only=True)
class Context:
    """A prompt made of a conversation: what it holds, and what all of it takes.

    ``whole`` says that nothing was left out.
    """

    request: LLMRequest
    fitted: Fitted
    whole: bool
    tokens: int
    warnings: tuple[str, ...] = field(default=())

    @property
    def prefix(self) -> str:
        """A digest of all that stands before the answer."""
        return prefix_digest(self.fitted.messages, opening_digest(self.request), whole=self.whole)


async def context_of(begun: Begun, env: LLMEnv, most: float = math.inf) -> Result[Context, LLMError]:
    """Make the prompt of a turn, of at most ``most`` tokens; what does not fit is handled as ``storage.window`` says.

    The window is that of the model that routing would ask this question first: one that comes after it and has a
    smaller window is left out by routing itself.
    """
    asked = _question(begun)
    found = order(asked, env.config, facts_of(asked, env, begun.history.conversation.last_model))
    if not is_successful(found):
        return Failure(found.failure())
    room = room_for(asked, found.unwrap()[0], most, env)
    history = await read_enough(begun, room, env)
    if not is_successful(history):
        return Failure(history.failure())
    return await _windowed(begun, asked, history.unwrap(), room, env)


def _question(begun: Begun) -> LLMRequest:
    """The request of this turn alone; a system text of its own goes before the conversation's."""
    request, system = begun.asking.request, begun.history.conversation.system
    messages = tuple(each.message for each in begun.turn.messages)
    return evolve(request, prompt=None, messages=messages, system=request.system or system)


async def _windowed(
    begun: Begun, asked: LLMRequest, history: History, room: Room, env: LLMEnv
) -> Result[Context, LLMError]:
    policy, exchanges = env.config.storage.window, _exchanges(begun, history)
    fitted, warnings = fit(exchanges, room.measure, room.budget, _pinned(begun, history)), tuple[str, ...]()
    whole = history.complete and not fitted.dropped
    if not whole and policy == "summarise":
        fitted, warnings = await _summarised(begun, history, room, env)
    elif not whole:
        warnings = (f"conversation: its oldest turns were left out: {_too_much(room)}",)
    if fitted.tokens > room.budget or (not whole and policy == "fail"):
        return Failure(_too_large(fitted, exchanges, room))
    request = evolve(asked, messages=messages_of(fitted.messages, opening_digest(asked), whole=whole))
    tokens = fitted.tokens + room.fixed
    return Success(Context(request=request, fitted=fitted, whole=whole, tokens=tokens, warnings=warnings))


def _too_much(room: Room) -> str:
    return f"{room.model} has room for about {room.budget:.0f} tokens of it"


def _exchanges(begun: Begun, history: History) -> tuple[Exchange, ...]:
    """All that has come to an end, and the question of this turn, which stands last wherever it was first asked."""
    own = evolve(begun.turn, state=TurnState.FINISHED)
    return exchanges_of((*(turn for turn in history.turns if turn.id != own.id), own))


def _pinned(begun: Begun, history: History) -> tuple[StoredMessage, ...]:
    return pinned_before(turn for turn in history.pinned if turn.id != begun.turn.id)


def _too_large(fitted: Fitted, exchanges: tuple[Exchange, ...], room: Room) -> LLMError:
    whole = sum(room.measure(each) for one in exchanges for each in one.messages)
    remedy = "shorten the message, unpin older ones, or let storage.window drop or summarise them"
    return ContextTooLarge(
        model=room.model,
        token_count=room.fixed + max(whole, fitted.tokens),
        limit=room.limit,
        message=f"the conversation does not fit, {_too_much(room)}: {remedy}",
    )


async def _summarised(begun: Begun, history: History, room: Room, env: LLMEnv) -> tuple[Fitted, tuple[str, ...]]:
    """Put a summary in the place of the oldest exchanges: the stored one while the rest fits, else one that goes on.

    A new one leaves half of the room free, so that the next turns need none. Where none can be made the oldest
    exchanges are dropped, and the answer says so: it is worth more than none.
    """
    known = history.summary
    read = await read_newest(begun, _since(known, history), env)
    history = evolve(read.value_or(history), summary=known)
    fitted = _with(known, begun, history, room, 1.0)
    if known is not None and not fitted.dropped:
        return fitted, ()
    old = _old(_with(known, begun, history, room, 0.5), known, begun, history)
    made = await settle(summarise(begun, known, old, int(room.budget), begun.asking.onion), env)
    if not is_successful(made):
        return fitted, (f"conversation: its oldest turns were left out, not summarised: {describe(made.failure())}",)
    warnings = await keep_summary(begun, made.unwrap(), env)
    return _with(made.unwrap(), begun, history, room, 1.0), warnings


def _with(summary: Summary | None, begun: Begun, history: History, room: Room, share: float) -> Fitted:
    exchanges = _exchanges(begun, history)
    told = exchanges if summary is None else after(summary, exchanges, history)
    return fit(told, room.measure, room.budget * share, _pinned(begun, history))


def _since(known: Summary | None, history: History) -> int | None:
    """How many turns to read so that all that no summary covers are among them, with some that have just begun."""
    return None if known is None else history.conversation.turns - known.upto + _JUST_BEGUN


_JUST_BEGUN: Final = 16


def _old(fitted: Fitted, known: Summary | None, begun: Begun, history: History) -> tuple[Exchange, ...]:
    """The exchanges to be summed up: none that is summed up already, none after a turn that may still end."""
    first = known.upto if known is not None else 0
    under_way = (
        turn.number
        for turn in history.turns
        if turn.state is TurnState.PENDING and turn.id != begun.turn.id and turn.lease_until > begun.turn.begun_at
    )
    last = min(under_way, default=math.inf)
    return tuple(one for one in fitted.dropped if first < one.upto < last)
