"""What of a history goes into a prompt: whole exchanges from the newest on, inside a budget of tokens."""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, chain, takewhile
from typing import Final, TypeAlias, final

from attrs import evolve, field, frozen

from llm_effects.messages import Message, Part, Text, ToolCall, ToolResult
from llm_effects.tokens import message_tokens
from llm_effects.turns import History, StoredMessage, Summary, Turn, TurnState

Measure: TypeAlias = Callable[[StoredMessage], int]
"""How many tokens a message takes."""

CUT_OFF: Final = "\n\n[This answer was interrupted here.]"
"""What follows an answer that broke off, so that the next model does not take it for a whole one."""

SUMMED_UP: Final = "[What was said before, in short]\n"
"""What a summary begins with in a prompt."""


@final
@frozen(kw_only=True)
class Exchange:
    """Turns that stay together: a question and what came of it, with the results of every tool that was called.

    ``upto`` is the number of its last turn.
    """

    upto: int
    messages: tuple[StoredMessage, ...]

    @property
    def kept(self) -> tuple[StoredMessage, ...]:
        """What stays of it when it is dropped: what is pinned, and all of it where that has to do with tools."""
        pinned = [each for each in self.messages if each.pinned]
        return self.messages if pinned and _calls(pinned) | _results(pinned) else tuple(pinned)


@final
@frozen(kw_only=True)
class Fitted:
    """What goes into a prompt, in order, and what was dropped; ``tokens`` is what all ``messages`` take."""

    messages: tuple[StoredMessage, ...]
    dropped: tuple[Exchange, ...] = field(default=())
    tokens: int = 0


def exchanges_of(turns: Iterable[Turn]) -> tuple[Exchange, ...]:
    """Put turns that have come to an end into exchanges: a tool's result stays with its call.

    A question that failed is left out: it was not answered, whoever asked it asks again or gave it up, and two
    questions in a row would both be answered. So is one that is under way elsewhere.
    """
    groups: list[tuple[Turn, ...]] = []
    for turn in turns:
        if turn.settled:
            first = _where_it_belongs(groups, turn)
            groups[first:] = [(*chain.from_iterable(groups[first:]), turn)]
    return tuple(Exchange(upto=group[-1].number, messages=_shown(group)) for group in groups)


def _where_it_belongs(groups: Sequence[Sequence[Turn]], turn: Turn) -> int:
    """The first of the exchanges that this turn has results for, or a new one."""
    missing, place = _results(turn.messages), len(groups)
    if missing:
        missing -= _calls(turn.messages)
    while missing and place:
        place -= 1
        missing -= {call for each in groups[place] for call in _calls(each.messages)}
    return len(groups) if missing else place


def _calls(messages: Iterable[StoredMessage]) -> set[str]:
    return {part.id for each in messages for part in each.message.parts if isinstance(part, ToolCall)}


def _results(messages: Iterable[StoredMessage]) -> set[str]:
    return {part.call_id for each in messages for part in each.message.parts if isinstance(part, ToolResult)}


def _shown(turns: Iterable[Turn]) -> tuple[StoredMessage, ...]:
    return tuple(each for turn in turns for each in _told(turn) if not _says_nothing(each))


def _told(turn: Turn) -> tuple[StoredMessage, ...]:
    if turn.state is not TurnState.INTERRUPTED:
        return turn.messages
    *before, last = turn.messages
    return (*before, evolve(last, message=evolve(last.message, parts=(*last.message.parts, Text(CUT_OFF)))))


def _says_nothing(stored: StoredMessage) -> bool:
    return not any(map(_says_something, stored.message.parts))


def _says_something(part: Part) -> bool:
    return not isinstance(part, Text) or bool(part.text.strip())


def pinned_before(turns: Iterable[Turn]) -> tuple[StoredMessage, ...]:
    """Give what stays of older turns because it is pinned, of those that have come to an end."""
    return tuple(each for one in exchanges_of(turns) for each in one.kept)


def fit(
    exchanges: Sequence[Exchange], measure: Measure, budget: float, before: tuple[StoredMessage, ...] = ()
) -> Fitted:
    """Keep the newest exchanges that fit ``budget`` tokens, all in order; what is pinned stays in any case.

    ``before`` is pinned and older than all. The newest exchange stays too: it bears the question. So the result may be
    larger than the budget, which its ``tokens`` tell.
    """
    kept = [one.kept for one in exchanges]
    least = [sum(map(measure, each)) for each in kept]
    extras = [sum(map(measure, one.messages)) - size for one, size in zip(exchanges, least, strict=True)]
    sizes = list(accumulate(reversed(extras), initial=sum(map(measure, before)) + sum(least)))
    whole = max(len(list(takewhile(lambda size: size <= budget, sizes[1:]))), min(1, len(exchanges)))
    first = len(exchanges) - whole
    stays = chain(before, *kept[:first], *(one.messages for one in exchanges[first:]))
    return Fitted(messages=tuple(stays), dropped=tuple(exchanges[:first]), tokens=sizes[whole])


def after(summary: Summary, exchanges: Sequence[Exchange], history: History) -> tuple[Exchange, ...]:
    """Put a summary in the place of the exchanges that it covers; of them stays what is pinned.

    The newest one is never covered: a question that is taken up again has the number of its first time.
    """
    *older, newest = exchanges
    covered = [each for one in older if one.upto <= summary.upto for each in one.kept]
    opening = Exchange(upto=summary.upto, messages=(spoken(summary, history), *covered))
    return (opening, *(one for one in older if one.upto > summary.upto), newest)


def spoken(summary: Summary, history: History) -> StoredMessage:
    """Tell a summary as the user would: what users said must not gain the standing of the system's text."""
    message = Message("user", SUMMED_UP + summary.text)
    at = history.conversation.created_at
    return StoredMessage(id="summary", message=message, at=at, pinned=True, tokens=message_tokens(message))
