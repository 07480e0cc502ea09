"""What of a history goes into a prompt: whole exchanges from the newest on, inside a budget of tokens."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, chain, takewhile
from typing import Final, TypeAlias, final

import msgspec
from attrs import evolve, field, frozen

from llm_effects.values.conversations import History, StoredMessage, Summary, Turn, TurnState
from llm_effects.values.json import dump
from llm_effects.values.messages import Message, Part, Reasoning, Text, ToolCall, ToolResult
from llm_effects.values.requests import LLMRequest, Tool
from llm_effects.values.tokens import message_tokens

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


# From stored messages to those of a prompt: every call with one result, thinking only where it may go back.


NO_RESULT: Final = "The tool gave no result."
"""What stands for the result of a call that nobody answered."""


def messages_of(stored: Sequence[StoredMessage], opening: bytes, *, whole: bool) -> tuple[Message, ...]:
    """Make the messages of a prompt: what every provider's own form can be made of.

    ``opening`` is a digest of what stands before them; ``whole`` says that nothing was left out.
    """
    return merged(paired(replayable(stored, opening, whole=whole)))


def replayable(stored: Sequence[StoredMessage], opening: bytes, *, whole: bool) -> tuple[Message, ...]:
    """Strip thinking that may not go back: some models refuse it unless all before it is as it was.

    Where the digest of what was before an answer is known, it decides; else thinking stays while nothing was left out.
    What stays is as it came, byte for byte; which model may read it, its provider's encoder knows.
    """
    if not any(isinstance(part, Reasoning) for each in stored for part in each.message.parts):
        return tuple(each.message for each in stored)
    digest, kept = opening, list[Message]()
    for each in stored:
        then = each.provenance.prefix if each.provenance is not None else None
        same = whole if then is None else then == digest.hex()
        message = _thinking(each.message, stays=same)
        if message is not None:
            kept.append(message)
            digest = digested(digest, message)
    return tuple(kept)


def _thinking(message: Message, *, stays: bool) -> Message | None:
    """Nobody takes thinking back that its provider did not seal."""
    parts = tuple(each for each in message.parts if not isinstance(each, Reasoning) or (stays and each.opaque))
    return evolve(message, parts=parts) if parts else None


def opening_digest(request: LLMRequest) -> bytes:
    """Digest what stands before all messages: the system text and the tools."""
    return hashlib.sha256(dump([request.system, [_tool(each) for each in request.tools]])).digest()


def _tool(tool: Tool) -> tuple[str, str, object]:
    return tool.name, tool.description, tool.parameters


def digested(before: bytes, message: Message) -> bytes:
    """Digest one more message."""
    parts = [(type(part).__name__, msgspec.to_builtins(part)) for part in message.parts]
    return hashlib.sha256(before + dump([message.role, parts])).digest()


def prefix_digest(stored: Iterable[StoredMessage], opening: bytes, *, whole: bool) -> str:
    """Digest a whole prompt: what stands before its answer."""
    digest = opening
    for message in replayable(tuple(stored), opening, whole=whole):
        digest = digested(digest, message)
    return digest.hex()


def paired(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Put the one result of each call right behind it, as every provider wants them.

    A call without a result gets one that says so; a result without a call goes.

    >>> paired((Message("assistant", ToolCall("1", "time")), Message("user", "never mind")))[1].parts
    (ToolResult(call_id='1', content='The tool gave no result.', is_error=True),)
    """
    if not any(isinstance(part, ToolCall | ToolResult) for each in messages for part in each.parts):
        return tuple(messages)
    results = _tool_results(messages)
    told: list[Message] = []
    for place, message in enumerate(messages):
        rest = tuple(part for part in message.parts if not isinstance(part, ToolResult))
        if rest:
            told.append(message if len(rest) == len(message.parts) else evolve(message, parts=rest))
        calls = dict.fromkeys(part.id for part in rest if isinstance(part, ToolCall))
        if calls:
            told.append(Message("tool", tuple(results.get((place, call)) or _unanswered(call) for call in calls)))
    return tuple(told)


def _tool_results(messages: Sequence[Message]) -> dict[tuple[int, str], ToolResult]:
    """The first result of each call, by the place of the call: some servers use the same ids again and again."""
    waiting: dict[str, int] = {}
    found: dict[tuple[int, str], ToolResult] = {}
    for place, message in enumerate(messages):
        for part in message.parts:
            if isinstance(part, ToolCall):
                waiting[part.id] = place
            elif isinstance(part, ToolResult) and part.call_id in waiting:
                found[waiting.pop(part.call_id), part.call_id] = part
    return found


def _unanswered(call: str) -> ToolResult:
    return ToolResult(call, NO_RESULT, is_error=True)


def merged(messages: Sequence[Message]) -> tuple[Message, ...]:
    r"""Make one of neighbours of the user: the templates of many local models want roles that alternate.

    >>> merged((Message("user", "one"), Message("user", "two")))[0].text
    'one\n\ntwo'
    """
    told: list[Message] = []
    for message in messages:
        if told and told[-1].role == message.role == "user":
            told[-1] = evolve(message, parts=(*told[-1].parts, Text("\n\n"), *message.parts))
        else:
            told.append(message)
    return tuple(told)
