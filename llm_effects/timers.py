"""The clocks of one attempt: until its first content, between contents, and for all of it.

Only waiting for the model counts: while the call stands in a queue, and while the consumer has an event, the clocks
stand still. Pings and other events without content do not set them back.

One cancel scope stands around the whole attempt. Setting its deadline costs more than reading an event does, so it is
set a little late and then left alone for a while: a clock strikes at its time or up to a tenth later.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Final, final

import anyio
from anyio.lowlevel import current_token
from attrs import define, field

from llm_effects.calls import Queueing
from llm_effects.config import ModelConfig
from llm_effects.errors import RequestTimeout, TimeoutPhase

LATE: Final = 0.1
"""How late a clock may strike, as a share of its time."""


def loop_clock() -> Callable[[], float]:
    """Give the clock behind ``anyio.current_time()``, where it can be had without asking for the backend each time."""
    loop = current_token().native_token
    return loop.time if isinstance(loop, asyncio.AbstractEventLoop) else anyio.current_time


def spare(deadline: float) -> float:
    """How long (seconds) an answer that is all there may wait for what comes after it: half of the time left.

    A call must not run out over a server that keeps its connection open after the last word.
    """
    return (deadline - anyio.current_time()) / 2


@final
@define
class Timers:
    """Who is waited for (``phase``) and until when; ``scope`` ends the wait. No clock runs before ``start``.

    An answer that comes whole (not ``streamed``) has only the time of the attempt.
    """

    config: ModelConfig
    queueing: Queueing = field(factory=Queueing)
    streamed: bool = True
    phase: TimeoutPhase = "queue"
    attempt_by: float = math.inf
    scope: anyio.CancelScope = field(factory=anyio.CancelScope)
    _clock: Callable[[], float] = field(factory=loop_clock)
    _left_at: float = 0.0

    def __attrs_post_init__(self) -> None:
        self.queueing.since = self._clock()

    def start(self) -> None:
        """Start all clocks: from now on the model has the call."""
        now = self._clock()
        self.queueing.waited, self.queueing.since = now - self._queued_at(now), None
        self.attempt_by = now + self.config.timeout_ms / 1000
        self.phase = "first_content" if self.streamed else "attempt"
        first = now + self.config.first_content_ms / 1000 if self.streamed else math.inf
        self.scope.deadline = min(first, self.attempt_by)

    def _queued_at(self, now: float) -> float:
        return now if self.queueing.since is None else self.queueing.since

    def consumer(self) -> None:
        """The consumer has content now: the clocks stand still, and only its own limit holds."""
        now, limit = self._clock(), self.config.sink_ms / 1000
        if self.phase != "sink":
            self.phase, self._left_at = "sink", now
        self._strike(now + limit, limit * LATE)

    def model(self) -> None:
        """The consumer is done: wait for the model's next content."""
        now = self._clock()
        self.phase = "between_content"
        self.attempt_by += now - self._left_at
        limit, attempt = self.config.between_content_ms / 1000, self.config.timeout_ms / 1000
        if now + limit <= self.attempt_by:
            self._strike(now + limit, limit * LATE)
        else:
            self._strike(self.attempt_by, min(limit, attempt) * LATE)

    def _strike(self, due: float, late: float) -> None:
        if not due <= self.scope.deadline <= due + late:
            self.scope.deadline = due + late

    def overdue(self) -> RequestTimeout:
        """Say whose time was up."""
        if self.phase != "sink" and self._clock() >= self.attempt_by:
            return RequestTimeout(timeout_ms=self.config.timeout_ms, phase="attempt")
        limits = {
            "sink": self.config.sink_ms,
            "first_content": self.config.first_content_ms,
            "between_content": self.config.between_content_ms,
        }
        return RequestTimeout(timeout_ms=limits.get(self.phase, self.config.timeout_ms), phase=self.phase)
