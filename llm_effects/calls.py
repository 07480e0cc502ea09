"""One call on its way through the layers: ``Call``, its trail and its sink."""

import math
from collections.abc import Awaitable, Callable
from typing import TypeAlias, final

from attrs import define, field, frozen

from llm_effects.errors import LLMError
from llm_effects.events import ReasoningDelta, StreamEvent, TextDelta, ToolCallDelta
from llm_effects.requests import LLMRequest
from llm_effects.responses import Attempt

Sink: TypeAlias = Callable[[StreamEvent], Awaitable[None]]
"""Where the events of a stream go; each is awaited, so a slow sink slows the model."""


@final
@define
class Trail:
    """What has happened so far: the one mutable thing of a call, made by its outermost layer.

    It outlives every deadline and cancellation, so that no attempt is lost. ``errors`` are those of the
    attempts that failed, in order; ``committed`` says that content reached the sink, and ``partial`` is its text.
    """

    attempts: list[Attempt] = field(factory=list[Attempt])
    errors: list[LLMError] = field(factory=list[LLMError])
    committed: bool = False
    pieces: list[str] = field(factory=list[str])

    @property
    def partial(self) -> str:
        """The text that the sink was given."""
        return "".join(self.pieces)


@final
@frozen(kw_only=True)
class Call:
    """A request under way.

    ``id`` names the call in the ledger; ``model`` is the candidate chosen by ``routed``, a name from the
    configuration; ``deadline`` is on the clock of ``anyio.current_time()``; ``wait_ms`` is the pause that came
    before this attempt and ``alternatives`` the number of candidates left after this one.
    """

    id: str
    request: LLMRequest
    model: str = ""
    sink: Sink | None = field(default=None, repr=False)
    deadline: float = math.inf
    trail: Trail = field(factory=Trail)
    wait_ms: float = 0.0
    alternatives: int = 0


def committing(sink: Sink, trail: Trail) -> Sink:
    """Let ``trail`` know what ``sink`` was given: the first content commits the call.

    The commit is marked before the event is delivered: a sink that fails half-way may have shown it.
    """

    async def deliver(event: StreamEvent) -> None:
        if isinstance(event, TextDelta):
            trail.pieces.append(event.text)
        if isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta):
            trail.committed = True
        await sink(event)

    return deliver
