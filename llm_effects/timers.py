"""The clocks of one attempt: until its first content, between contents, and for all of it.

Only waiting for the model counts: while the call stands in a queue, and while the consumer has an event, the clocks
stand still. Pings and other events without content do not set them back.
"""

import math
from collections.abc import Awaitable, Callable
from typing import TypeVar, final

import anyio
from attrs import define, field

from llm_effects.calls import Queueing
from llm_effects.config import ModelConfig
from llm_effects.errors import RequestTimeout, TimeoutPhase

_Value = TypeVar("_Value")


@final
@define
class Timers:
    """Deadlines on the clock of ``anyio.current_time()``, and which of them comes first; none before ``start``.

    An answer that comes whole (not ``streamed``) has only the time of the attempt.
    """

    config: ModelConfig
    queueing: Queueing = field(factory=Queueing)
    streamed: bool = True
    attempt_by: float = math.inf
    content_by: float = math.inf
    phase: TimeoutPhase = "first_content"
    _waiting: anyio.CancelScope | None = None

    def __attrs_post_init__(self) -> None:
        self.queueing.since = anyio.current_time()

    def start(self) -> None:
        """Start all clocks: from now on the model has the call."""
        now = anyio.current_time()
        self.queueing.waited, self.queueing.since = now - (self.queueing.since or now), None
        self.attempt_by = now + self.config.timeout_ms / 1000
        if self.streamed:
            self.content_by = now + self.config.first_content_ms / 1000
        if self._waiting is not None:
            self._waiting.deadline = self._first()

    async def wait(self, read: Callable[[], Awaitable[_Value]]) -> "_Value | RequestTimeout":
        """Wait for the model, as long as the first of the clocks allows; they may start meanwhile."""
        with anyio.CancelScope(deadline=self._first()) as self._waiting:
            return await read()
        return self._overdue()

    def resume(self, left_at: float, *, content: bool) -> None:
        """Go on after the consumer was busy since ``left_at``; ``content`` says that it had some."""
        now = anyio.current_time()
        self.attempt_by += now - left_at
        self.content_by += now - left_at
        if content:
            self.phase, self.content_by = "between_content", now + self.config.between_content_ms / 1000

    def _first(self) -> float:
        return min(self.content_by, self.attempt_by)

    def _overdue(self) -> RequestTimeout:
        if self.attempt_by <= self.content_by:
            return RequestTimeout(timeout_ms=self.config.timeout_ms, phase="attempt")
        first = self.phase == "first_content"
        limit = self.config.first_content_ms if first else self.config.between_content_ms
        return RequestTimeout(timeout_ms=limit, phase=self.phase)
