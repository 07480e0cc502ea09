"""What a turn of each role may hold, whatever the protocol, and the refusal of a request that holds anything else."""

from collections.abc import Mapping, Sequence
from typing import Final

from llm_effects.errors import InvalidRequest
from llm_effects.messages import Document, Image, Part, Reasoning, Role, Text, ToolCall, ToolResult
from llm_effects.providers.targets import Target
from llm_effects.requests import LLMRequest
from llm_effects.values import shown

_PLACES: Final[Mapping[Role, tuple[type[Part], ...]]] = {
    "system": (Text,),
    "user": (Text, Image, Document, ToolResult),
    "tool": (Text, Image, Document, ToolResult),
    "assistant": (Text, Reasoning, ToolCall),
}


def misplaced(request: LLMRequest) -> str | None:
    """The first part that its turn cannot hold, and the remedy.

    >>> from llm_effects import Message
    >>> misplaced(LLMRequest(messages=(Message("user", (ToolCall("id", "weather"),)),)))
    "messages[0].parts[0]: a turn of role 'user' holds Text or Image or Document or ToolResult here"
    """
    for at, message in enumerate(request.messages):
        for place, part in enumerate(message.parts):
            if type(part) not in _PLACES[message.role]:
                kinds = " or ".join(kind.__name__ for kind in _PLACES[message.role])
                return f"messages[{at}].parts[{place}]: a turn of role {message.role!r} holds {kinds} here"
    return None


def unpaired(request: LLMRequest) -> str | None:
    """The first call of a tool without its result, or result without its call, and the remedy.

    Providers refuse the one, or answer it with nothing.

    >>> from llm_effects import Message
    >>> call = Message("assistant", (ToolCall("id", "weather"),))
    >>> unpaired(LLMRequest(messages=(Message("user", "hm?"), call, Message("user", "well?"))))
    "messages[1].parts[0]: the call 'id' has no result: give a ToolResult for it, or leave the call out"
    """
    waiting = dict[str, str]()
    for at, message in enumerate(request.messages):
        for place, part in enumerate(message.parts):
            here = f"messages[{at}].parts[{place}]"
            if isinstance(part, ToolCall):
                waiting[part.id] = here
            elif isinstance(part, ToolResult) and waiting.pop(part.call_id, None) is None:
                return f"{here}: no call {shown(part.call_id)} waits for a result before it: leave the result out"
    left = next(iter(waiting.items()), None)
    remedy = "give a ToolResult for it, or leave the call out"
    return None if left is None else f"{left[1]}: the call {shown(left[0])} has no result: {remedy}"


def unsendable(request: LLMRequest, turns: Sequence[object]) -> str | None:
    """What is wrong with the messages of a request that became these turns, if anything is."""
    nothing = None if turns else "messages: hold nothing that can be sent: end with a user's turn"
    return misplaced(request) or nothing or unpaired(request)


def invalid(target: Target, request: LLMRequest, message: str) -> InvalidRequest:
    """The refusal of a request that cannot be written for this target."""
    return InvalidRequest(model=target.name, provider=target.preset.name, message=message, request=request)
