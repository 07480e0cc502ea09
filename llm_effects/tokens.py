"""How many tokens a prompt has, roughly: enough to keep it away from a window that is too small."""

from math import ceil
from typing import Final, final

from attrs import frozen

from llm_effects.jsons import dump
from llm_effects.messages import Image, Message, Part, Reasoning, Text, ToolCall, ToolResult
from llm_effects.requests import LLMRequest, conversation

CHARACTERS_PER_TOKEN: Final = 4
"""A rule of thumb for English text and code in current tokenizers."""

MESSAGE_OVERHEAD: Final = 4
"""Tokens that a chat template spends on each message."""

IMAGE_TOKENS: Final = 1_000
"""About what vendors count for one picture of ordinary size."""


def estimate_tokens(request: LLMRequest) -> int:
    """Estimate the tokens of the prompt: messages, system, tools and schema.

    >>> estimate_tokens(LLMRequest(prompt="x" * 400))
    104
    """
    extras = [request.system or "", *(tool.name + tool.description for tool in request.tools)]
    schemas = [tool.parameters for tool in request.tools] + (
        [request.response_schema] if request.response_schema else []
    )
    letters = sum(map(len, extras)) + sum(len(dump(schema)) for schema in schemas)
    return ceil(letters / CHARACTERS_PER_TOKEN) + sum(map(_message_tokens, conversation(request)))


def _message_tokens(message: Message) -> int:
    return MESSAGE_OVERHEAD + sum(map(_part_tokens, message.parts))


def _part_tokens(part: Part) -> int:
    return IMAGE_TOKENS if isinstance(part, Image) else ceil(_letters(part) / CHARACTERS_PER_TOKEN)


def _letters(part: Text | Reasoning | ToolCall | ToolResult) -> int:
    match part:
        case Text():
            return len(part.text)
        case Reasoning():
            return max(len(part.text), len(part.opaque or ""))
        case ToolCall():
            return len(part.name) + len(part.arguments)
        case ToolResult():
            return len(part.content)


@final
@frozen
class EstimatedTokens:
    """The estimate as a service."""

    def estimate(self, request: LLMRequest) -> int:
        """Estimate the tokens of the prompt: messages, system, tools and schema."""
        return estimate_tokens(request)
