"""From stored messages to those of a prompt: every call with one result, thinking only where it may go back."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from attrs import evolve

from llm_effects.jsons import dump
from llm_effects.messages import Message, Reasoning, Text, ToolCall, ToolResult
from llm_effects.requests import LLMRequest, Tool
from llm_effects.turns import StoredMessage

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
    results = _results(messages)
    told: list[Message] = []
    for place, message in enumerate(messages):
        rest = tuple(part for part in message.parts if not isinstance(part, ToolResult))
        if rest:
            told.append(message if len(rest) == len(message.parts) else evolve(message, parts=rest))
        calls = dict.fromkeys(part.id for part in rest if isinstance(part, ToolCall))
        if calls:
            told.append(Message("tool", tuple(results.get((place, call)) or _unanswered(call) for call in calls)))
    return tuple(told)


def _results(messages: Sequence[Message]) -> dict[tuple[int, str], ToolResult]:
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
