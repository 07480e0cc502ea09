"""The part of a history that goes into a prompt: whole exchanges, newest first, within a budget of tokens."""

from __future__ import annotations

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
"""Returns the tokens of a message."""

INTERRUPTED_NOTE: Final = "\n\n[This answer was interrupted here.]"
"""Appended to an interrupted answer, so that the next model does not take it for a complete one."""

SUMMARY_HEADING: Final = "[What was said before, in short]\n"
"""The beginning of a summary in a prompt."""


# Exchanges: which turns stay together, and which of them fit.


@final
@frozen(kw_only=True)
class Exchange:
    """Turns that stay together: a question, its answers, and the results of every tool that was called.

    ``upto`` is the number of its last turn.
    """

    upto: int
    messages: tuple[StoredMessage, ...]

    @property
    def kept(self) -> tuple[StoredMessage, ...]:
        """The messages that stay when it is dropped: the pinned ones, or all if one of those belongs to a tool call."""
        pinned = [each for each in self.messages if each.pinned]
        return self.messages if pinned and _calls(pinned) | _results(pinned) else tuple(pinned)


@final
@frozen(kw_only=True)
class Fitted:
    """The messages of a prompt, in order, their ``tokens``, and the exchanges that were dropped."""

    messages: tuple[StoredMessage, ...]
    dropped: tuple[Exchange, ...] = field(default=())
    tokens: int = 0


def exchanges_of(turns: Iterable[Turn]) -> tuple[Exchange, ...]:
    """Group turns that have ended into exchanges: the result of a tool stays with its call.

    The question of a failed turn is left out: it was not answered, and a model would answer two questions in a row
    both. So is a turn that is under way elsewhere.
    """
    groups: list[tuple[Turn, ...]] = []
    for turn in turns:
        if turn.settled:
            first = _first_related(groups, turn)
            groups[first:] = [(*chain.from_iterable(groups[first:]), turn)]
    return tuple(Exchange(upto=group[-1].number, messages=_visible(group)) for group in groups)


def _first_related(groups: Sequence[Sequence[Turn]], turn: Turn) -> int:
    """Return the index of the first group that a turn has results for, or of a new group."""
    missing, index = _results(turn.messages), len(groups)
    if missing:
        missing -= _calls(turn.messages)
    while missing and index:
        index -= 1
        missing -= {call for each in groups[index] for call in _calls(each.messages)}
    return len(groups) if missing else index


def _calls(messages: Iterable[StoredMessage]) -> set[str]:
    return {part.id for each in messages for part in each.message.parts if isinstance(part, ToolCall)}


def _results(messages: Iterable[StoredMessage]) -> set[str]:
    return {part.call_id for each in messages for part in each.message.parts if isinstance(part, ToolResult)}


def _visible(turns: Iterable[Turn]) -> tuple[StoredMessage, ...]:
    return tuple(each for turn in turns for each in _with_note(turn) if any(map(_has_content, each.message.parts)))


def _with_note(turn: Turn) -> tuple[StoredMessage, ...]:
    if turn.state is not TurnState.INTERRUPTED:
        return turn.messages
    *before, last = turn.messages
    return (*before, evolve(last, message=evolve(last.message, parts=(*last.message.parts, Text(INTERRUPTED_NOTE)))))


def _has_content(part: Part) -> bool:
    return not isinstance(part, Text) or bool(part.text.strip())


def pinned_before(turns: Iterable[Turn]) -> tuple[StoredMessage, ...]:
    """Return the messages of older turns that stay because they are pinned, if the turns have ended."""
    return tuple(each for exchange in exchanges_of(turns) for each in exchange.kept)


def fit(
    exchanges: Sequence[Exchange], measure: Measure, budget: float, before: tuple[StoredMessage, ...] = ()
) -> Fitted:
    """Keep the newest exchanges that fit into ``budget`` tokens, in order, and everything that is pinned.

    ``before`` is pinned and older than all of them. The newest exchange holds the question and always stays, so the
    ``tokens`` of the result may exceed the budget.
    """
    kept = [each.kept for each in exchanges]
    least = [sum(map(measure, messages)) for messages in kept]
    extras = [sum(map(measure, each.messages)) - size for each, size in zip(exchanges, least, strict=True)]
    sizes = list(accumulate(reversed(extras), initial=sum(map(measure, before)) + sum(least)))
    whole = max(len(list(takewhile(lambda size: size <= budget, sizes[1:]))), min(1, len(exchanges)))
    first = len(exchanges) - whole
    messages = chain(before, *kept[:first], *(each.messages for each in exchanges[first:]))
    return Fitted(messages=tuple(messages), dropped=tuple(exchanges[:first]), tokens=sizes[whole])


def with_summary(summary: Summary, exchanges: Sequence[Exchange], history: History) -> tuple[Exchange, ...]:
    """Replace the exchanges that a summary covers by the summary, and keep their pinned messages.

    The newest exchange is never covered: a question that is asked again has the number of its first time.
    """
    *older, newest = exchanges
    covered = [each for exchange in older if exchange.upto <= summary.upto for each in exchange.kept]
    opening = Exchange(upto=summary.upto, messages=(_summary_message(summary, history), *covered))
    return (opening, *(exchange for exchange in older if exchange.upto > summary.upto), newest)


def _summary_message(summary: Summary, history: History) -> StoredMessage:
    """Return a summary as a user's message: the words of users must not get the authority of the system text."""
    message = Message("user", Text(SUMMARY_HEADING + summary.text, stays=summary.stays))
    at = history.conversation.created_at
    return StoredMessage(id="summary", message=message, at=at, pinned=True, tokens=message_tokens(message))


# From stored messages to those of a prompt: thinking only where it may go back, every call with one result.


NO_RESULT: Final = "The tool gave no result."
"""Stands in for the missing result of a call."""


def prompt_messages(stored: Sequence[StoredMessage], opening: bytes, *, whole: bool) -> tuple[Message, ...]:
    """Return the messages of a prompt, in a form that suits every provider.

    ``opening`` is a digest of what comes before them; ``whole`` is true if nothing was left out.
    """
    return merge_user_messages(pair_results(without_stale_thinking(stored, opening, whole=whole)))


def without_stale_thinking(stored: Sequence[StoredMessage], opening: bytes, *, whole: bool) -> tuple[Message, ...]:
    """Strip thinking that may not go back: some models refuse it if anything before it has changed.

    If the digest of what came before an answer is known, it decides; else thinking stays while nothing was left out.
    What stays is unchanged, byte for byte; the encoder of each provider knows which models can read it.
    """
    if not any(isinstance(part, Reasoning) for each in stored for part in each.message.parts):
        return tuple(each.message for each in stored)
    digest, kept = opening, list[Message]()
    for each in stored:
        prefix = each.provenance.prefix if each.provenance is not None else None
        unchanged = whole if prefix is None else prefix == digest.hex()
        message = _with_thinking(each.message, keep=unchanged)
        if message is not None:
            kept.append(message)
            digest = extend_digest(digest, message)
    return tuple(kept)


def _with_thinking(message: Message, *, keep: bool) -> Message | None:
    """Return a message with the thinking that its provider sealed, or with none; no provider accepts any other.

    Thinking that depends on everything before it is left out unless ``keep``.
    """
    parts = tuple(
        each
        for each in message.parts
        if not isinstance(each, Reasoning) or (each.opaque and (keep or each.opaque.startswith(_INDEPENDENT)))
    )
    return evolve(message, parts=parts) if parts else None


# What DeepSeek, GLM, Qwen and Gemini want back, whatever came before it.
_INDEPENDENT: Final = ('{"reasoning_content":', '{"extra_content":', '{"tool_call_id":')


def opening_digest(request: LLMRequest) -> bytes:
    """Return a digest of what comes before all messages: the system text and the tools."""
    return hashlib.sha256(dump([request.system, [_tool(each) for each in request.tools]])).digest()


def _tool(tool: Tool) -> tuple[str, str, object]:
    return tool.name, tool.description, tool.parameters


def extend_digest(digest: bytes, message: Message) -> bytes:
    """Return the digest of a prompt with one more message."""
    parts = [(type(part).__name__, _unmarked(msgspec.to_builtins(part))) for part in message.parts]
    return hashlib.sha256(digest + dump([message.role, parts])).digest()


def _unmarked(fields: dict[str, object]) -> dict[str, object]:
    fields.pop("cache", None)
    fields.pop("stays", None)
    return fields


def prefix_digest(stored: Iterable[StoredMessage], opening: bytes, *, whole: bool) -> str:
    """Return the digest of a whole prompt: everything before its answer."""
    digest = opening
    for message in without_stale_thinking(tuple(stored), opening, whole=whole):
        digest = extend_digest(digest, message)
    return digest.hex()


LATE_RESULTS: Final = "The results of the tool calls above are there now: continue with them."
"""Stands where the results of earlier calls came."""


def pair_results(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Put exactly one result directly after each call, as every provider requires.

    A missing result becomes one that says so; a result without a call is dropped. Where results came only after another
    answer, a message of the user takes their place: a prompt that ends with an answer would ask for nothing.

    >>> pair_results((Message("assistant", ToolCall("1", "time")), Message("user", "never mind")))[1].parts
    (ToolResult(call_id='1', content='The tool gave no result.', is_error=True),)
    """
    if not any(isinstance(part, ToolCall | ToolResult) for each in messages for part in each.parts):
        return tuple(messages)
    results = _results_by_place(messages)
    used = set(map(id, results.values()))
    paired: list[Message] = []
    for place, message in enumerate(messages):
        rest = tuple(part for part in message.parts if not isinstance(part, ToolResult))
        if rest:
            paired.append(message if len(rest) == len(message.parts) else evolve(message, parts=rest))
        calls = dict.fromkeys(part.id for part in rest if isinstance(part, ToolCall))
        if calls:
            paired.append(Message("tool", tuple(results.get((place, call)) or _missing_result(call) for call in calls)))
        if not rest and paired and paired[-1].role == "assistant" and used.intersection(map(id, message.parts)):
            paired.append(Message("user", LATE_RESULTS))
    return tuple(paired)


def _results_by_place(messages: Sequence[Message]) -> dict[tuple[int, str], ToolResult]:
    """Return the first result of each call, by the place and id of the call: some servers reuse the same ids."""
    waiting: dict[str, int] = {}
    results: dict[tuple[int, str], ToolResult] = {}
    for place, message in enumerate(messages):
        for part in message.parts:
            if isinstance(part, ToolCall):
                waiting[part.id] = place
            elif isinstance(part, ToolResult) and part.call_id in waiting:
                results[waiting.pop(part.call_id), part.call_id] = part
    return results


def _missing_result(call_id: str) -> ToolResult:
    return ToolResult(call_id, NO_RESULT, is_error=True)


def merge_user_messages(messages: Sequence[Message]) -> tuple[Message, ...]:
    r"""Merge adjacent messages of the user: the templates of many local models require alternating roles.

    >>> merge_user_messages((Message("user", "one"), Message("user", "two")))[0].text
    'one\n\ntwo'
    """
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1].role == message.role == "user":
            merged[-1] = evolve(message, parts=(*merged[-1].parts, Text("\n\n"), *message.parts))
        else:
            merged.append(message)
    return tuple(merged)
