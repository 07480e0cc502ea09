"""A rough estimate of a prompt's tokens, accurate enough to avoid a context window that is too small."""

from math import ceil
from typing import Final, final
from weakref import ref

from attrs import define, field

from llm_effects.values.json import dump
from llm_effects.values.messages import (
    Document,
    Image,
    Message,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
    dimensions_of,
    page_count,
)
from llm_effects.values.requests import LLMRequest

CHARACTERS_PER_TOKEN: Final = 4
"""A rule of thumb for English text and code in current tokenizers."""

MESSAGE_OVERHEAD: Final = 4
"""Tokens that a chat template adds to each message."""

IMAGE_TOKENS: Final = 1_000
"""About what vendors count for a picture of unknown size."""

MAX_IMAGE_TOKENS: Final = 1_600
"""About what vendors count at most, because they shrink larger pictures."""

PIXELS_PER_TOKEN: Final = 750
"""Pixels of a picture, by Anthropic's vision guide; other vendors count about as many for common sizes."""

PAGE_TOKENS: Final = 2_000
"""About what vendors count for a page of a PDF, as text and picture."""

MIN_RATIO: Final = 0.5
"""Counted tokens per estimated one; a lower ratio is ignored."""

MAX_RATIO: Final = 3.0
"""Counted tokens per estimated one; a higher ratio is ignored."""

NEWEST_WEIGHT: Final = 0.3
"""Weight of the newest prompt in the moving average of ratios."""

FULL_WEIGHT_TOKENS: Final = 400
"""Estimated tokens from which a prompt has its full weight."""


def estimate_tokens(request: LLMRequest) -> int:
    """Estimate the tokens of the prompt: messages, system, tools and schema.

    >>> estimate_tokens(LLMRequest(prompt="x" * 400))
    104
    """
    characters = len(request.system or "")
    for tool in request.tools:
        characters += len(tool.name) + len(tool.description) + len(dump(tool.parameters))
    if request.response_schema:
        characters += len(dump(request.response_schema))
    return ceil(characters / CHARACTERS_PER_TOKEN) + _prompt_tokens(request)


def _prompt_tokens(request: LLMRequest) -> int:
    if request.prompt is not None:
        return MESSAGE_OVERHEAD + ceil(len(request.prompt) / CHARACTERS_PER_TOKEN)
    return sum(map(message_tokens, request.messages))


def message_tokens(message: Message) -> int:
    """Estimate the tokens of one message.

    >>> message_tokens(Message("user", "x" * 40))
    14
    """
    return MESSAGE_OVERHEAD + sum(map(_part_tokens, message.parts))


def _part_tokens(part: Part) -> int:
    match part:
        case Text():  # first, because long conversations have mostly text
            return ceil(len(part.text) / CHARACTERS_PER_TOKEN)
        case Image():
            return _image_tokens(part)
        case Document(plain=False):
            return PAGE_TOKENS * page_count(part.data or b"")
        case _:
            return ceil(_characters(part) / CHARACTERS_PER_TOKEN)


def _image_tokens(image: Image) -> int:
    size = dimensions_of(image.data or b"")
    return IMAGE_TOKENS if size is None else min(ceil(size[0] * size[1] / PIXELS_PER_TOKEN), MAX_IMAGE_TOKENS)


def _characters(part: Document | Reasoning | ToolCall | ToolResult) -> int:
    match part:
        case Document():
            return len(part.text)
        case Reasoning():
            return max(len(part.text), len(part.opaque or ""))
        case ToolCall():
            return len(part.name) + len(part.arguments)
        case ToolResult():
            return len(part.content)


def updated_ratio(ratio: float, estimated: int, counted: int) -> float:
    """Return the moving average of a model's counted tokens per estimated one, updated by one prompt.

    Short prompts have less weight, because most of their tokens are the chat template's. A count that is far off is
    ignored: some servers omit cached tokens, or truncate the prompt.

    >>> round(updated_ratio(1.0, 1000, 1500), 2), round(updated_ratio(1.0, 40, 60), 3), updated_ratio(1.0, 1000, 10)
    (1.15, 1.015, 1.0)
    """
    newest = counted / max(estimated, 1)
    if not MIN_RATIO <= newest <= MAX_RATIO:
        return ratio
    return ratio + NEWEST_WEIGHT * min(1.0, estimated / FULL_WEIGHT_TOKENS) * (newest - ratio)


@final
@define(eq=False, repr=False)
class EstimatedTokens:
    """The estimate as a service, with a correction for each model learned from its provider's counts."""

    _ratios: dict[str, float] = field(factory=dict[str, float])
    _newest: tuple[ref[LLMRequest], int] | None = None

    def estimate(self, request: LLMRequest) -> int:
        """Estimate the tokens of the prompt: messages, system, tools and schema."""
        newest = self._newest  # each call asks twice: for its route, and to learn from the provider's count
        if newest is not None and newest[0]() is request:
            return newest[1]
        tokens = estimate_tokens(request)
        self._newest = ref(request), tokens
        return tokens

    def ratio(self, model: str) -> float:
        """Return how many tokens a configured model counts per estimated one."""
        return self._ratios.get(model, 1.0)

    def learn(self, model: str, estimated: int, counted: int) -> None:
        """Update the ratio by a prompt that was estimated and then counted by its provider."""
        self._ratios[model] = updated_ratio(self.ratio(model), estimated, counted)
