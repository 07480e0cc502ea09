"""Events of a stream; the last one is ``Completed`` or ``Failed``."""

from collections.abc import Iterable
from typing import TypeAlias, final

from attrs import frozen

from llm_effects.values.errors import LLMError
from llm_effects.values.responses import LLMResponse
from llm_effects.values.value import Value


@final
@frozen(eq=False, repr=False)
class Started(Value):
    """A model began to answer. Always the first event, sent just before the first content."""

    model: str


@final
@frozen(eq=False, repr=False)
class TextDelta(Value):
    """More text of the answer."""

    text: str


@final
@frozen(eq=False, repr=False)
class ReasoningDelta(Value):
    """More of the model's reasoning."""

    text: str


@final
@frozen(eq=False, repr=False)
class ToolCallDelta(Value):
    """More of the tool call number ``index``; ``arguments`` is the next piece of its JSON text."""

    index: int
    id: str
    name: str
    arguments: str


@final
@frozen(eq=False, repr=False)
class Restarted(Value):
    """``model`` starts the answer again: discard the content received so far."""

    model: str


@final
@frozen(eq=False, repr=False)
class Completed(Value):
    """The whole answer, as ``generate`` returns it."""

    response: LLMResponse


@final
@frozen(eq=False, repr=False)
class Failed(Value):
    """The stream ended without a whole answer."""

    error: LLMError


ContentEvent: TypeAlias = TextDelta | ReasoningDelta | ToolCallDelta
"""Events with content; a stream is committed once the first one is delivered."""

StreamEvent: TypeAlias = Started | ContentEvent | Restarted | Completed | Failed
"""All events of a stream."""


def streamed_text(events: Iterable[StreamEvent]) -> str:
    """Return the text that a consumer of these events has: that of the last answer, if it was restarted.

    >>> streamed_text([Started("one"), TextDelta("Be"), Restarted("two"), TextDelta("Since")])
    'Since'
    """
    pieces = list[str]()
    for event in events:
        if isinstance(event, Restarted):
            pieces.clear()
        elif isinstance(event, TextDelta):
            pieces.append(event.text)
    return "".join(pieces)


def length_of(event: StreamEvent) -> int:
    """Return the length of an event's content, in characters.

    >>> length_of(TextDelta("why")), length_of(Started("gpt"))
    (3, 0)
    """
    if isinstance(event, TextDelta | ReasoningDelta):
        return len(event.text)
    return len(event.arguments) if isinstance(event, ToolCallDelta) else 0
