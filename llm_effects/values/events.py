"""What a stream tells, event by event; it ends with ``Completed`` or ``Failed``."""

from typing import TypeAlias, final

from attrs import frozen

from llm_effects.values.errors import LLMError
from llm_effects.values.responses import LLMResponse


@final
@frozen
class Started:
    """A model began to answer: always first, told with the first content."""

    model: str


@final
@frozen
class TextDelta:
    """More text of the answer."""

    text: str


@final
@frozen
class ReasoningDelta:
    """More of the model's thinking."""

    text: str


@final
@frozen
class ToolCallDelta:
    """More of a tool call: ``index`` tells the calls apart; ``arguments`` is the next piece of JSON text."""

    index: int
    id: str
    name: str
    arguments: str


@final
@frozen
class Restarted:
    """Drop what you have: ``model`` begins again from the start."""

    model: str


@final
@frozen
class Completed:
    """The whole answer, as ``generate`` would give it."""

    response: LLMResponse


@final
@frozen
class Failed:
    """The end without a whole answer."""

    error: LLMError


ContentEvent: TypeAlias = TextDelta | ReasoningDelta | ToolCallDelta
"""Events that carry content: the first one delivered commits a stream."""

StreamEvent: TypeAlias = Started | ContentEvent | Restarted | Completed | Failed
"""All events of a stream."""
