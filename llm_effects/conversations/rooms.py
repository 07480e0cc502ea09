"""How much of a conversation a prompt has room for, and how much of it is read for that."""

import math
from collections.abc import Awaitable
from typing import Final, final

from attrs import field, frozen
from returns.pipeline import is_successful
from returns.result import Result, Success

from llm_effects.conversations.turn_taking import Begun, load
from llm_effects.env import LLMEnv
from llm_effects.errors import LLMError
from llm_effects.requests import LLMRequest, conversation
from llm_effects.routing.places import Ranked
from llm_effects.tokens import message_tokens
from llm_effects.turns import History, StoredMessage

ANSWER_ROOM: Final = 1024
"""Tokens kept free for an answer whose length nobody limits; at most a quarter of the window."""

SPARE: Final = 1.25
"""Turns read for each one that seems to fit."""


@final
@frozen(kw_only=True)
class Room:
    """What the messages of a prompt may take: ``budget`` tokens of ``model``, which counts ``ratio`` for one estimated.

    ``fixed`` is what the system text, the tools and the schema take besides, ``limit`` the whole window.
    """

    model: str
    ratio: float = 1.0
    budget: float = field(default=float("inf"))
    fixed: int = 0
    limit: int | None = None

    def measure(self, stored: StoredMessage) -> int:
        """Tokens of a message: as the model itself counted its answer, else estimated."""
        exact = _counted(stored, self.model)
        return round((stored.tokens or message_tokens(stored.message)) * self.ratio) if exact is None else exact


def _counted(stored: StoredMessage, model: str) -> int | None:
    """What a model counted for its answer, without the thinking that is not sent back."""
    source = stored.provenance
    if source is None or source.model != model or source.usage.estimated or source.usage.output_tokens is None:
        return None
    return source.usage.output_tokens - source.usage.reasoning_tokens


def room_for(asked: LLMRequest, first: Ranked, most: float, env: LLMEnv) -> Room:
    """Tell the room for a question and its history in the window of the model that is asked first.

    It is at most ``most`` tokens for the whole prompt; a window that is not known bounds nothing.
    """
    ratio, window = env.tokens.ratio(first.model), first.context_length
    question = sum(map(message_tokens, conversation(asked)))
    fixed = round((env.tokens.estimate(asked) - question) * ratio)
    default = env.config.models[first.model].max_tokens or min(ANSWER_ROOM, (window or 0) // 4)
    budget = most if window is None else min(most, window - (asked.preferences.max_tokens or default))
    return Room(model=first.model, ratio=ratio, budget=budget - fixed, fixed=fixed, limit=window)


async def read_enough(begun: Begun, room: Room, env: LLMEnv) -> Result[History, LLMError]:
    """Read on until the room is full, so that a turn costs the same after a million messages."""
    history = begun.history
    while not history.complete and (size := _size(history, room)) <= room.budget:
        more = await read_newest(begun, _more(len(history.turns), size, room), env)
        if not is_successful(more):
            return more
        history = more.unwrap()
    return Success(history)


def _more(read: int, size: int, room: Room) -> int:
    """How many turns fill the room if older ones are like these, with some to spare; at most four times as many."""
    return min(4 * read, math.ceil(SPARE * read * room.budget / size) + 1) if size and room.limit else 4 * read


def read_newest(begun: Begun, newest: int | None, env: LLMEnv) -> Awaitable[Result[History, LLMError]]:
    """Read so many turns of the conversation of a turn, or all."""
    return load(env, begun.asking.conversation_id, begun.asking.request.owner, newest)


def _size(history: History, room: Room) -> int:
    return sum(room.measure(each) for turn in history.turns if turn.settled for each in turn.messages)
