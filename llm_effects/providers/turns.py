"""What a turn of each role may hold, whatever the protocol, and the refusal of a request that holds anything else."""

from collections.abc import Mapping, Sequence
from typing import Final

from llm_effects.errors import InvalidRequest
from llm_effects.messages import Document, Image, Part, Reasoning, Role, Text, ToolCall, ToolResult
from llm_effects.providers.targets import Target
from llm_effects.requests import LLMRequest

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


def unsendable(request: LLMRequest, turns: Sequence[object]) -> str | None:
    """What is wrong with the messages of a request that became these turns, if anything is."""
    return misplaced(request) or (None if turns else "messages: hold nothing that can be sent: end with a user's turn")


def invalid(target: Target, request: LLMRequest, message: str) -> InvalidRequest:
    """The refusal of a request that cannot be written for this target."""
    return InvalidRequest(model=target.name, provider=target.preset.name, message=message, request=request)
