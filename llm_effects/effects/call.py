"""One call on its way through the layers: ``Call``, the attempt under way, its timers, and its history."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Hashable
from functools import cache
from itertools import pairwise
from os import urandom
from time import time_ns
from typing import Final, TypeAlias, final

import anyio
from attrs import define, evolve, field, frozen
from returns.result import Result

from llm_effects.config import LLMConfig
from llm_effects.config.models import ModelConfig
from llm_effects.effects.tasks import loop_clock, running_loop
from llm_effects.limits.quotas import RateLimits
from llm_effects.values.display import shown
from llm_effects.values.errors import LLMError, RequestTimeout, TimeoutPhase
from llm_effects.values.events import ReasoningDelta, Restarted, Started, StreamEvent, TextDelta, ToolCallDelta
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import Attempt, Cost, LLMResponse
from llm_effects.values.validation import frozen_in_types, new_list
from llm_effects.values.value import Value

Sink: TypeAlias = Callable[[StreamEvent], Awaitable[None]]
"""Receives the events of a stream. Each is awaited, so a slow sink slows the model."""

LookedUp: TypeAlias = Result[LLMResponse | None, LLMError]
"""What a cache returned: an answer, ``None`` for a miss, or its failure."""


def new_id() -> str:
    """Return an id of 32 hexadecimal digits: 12 of the time, so that indexes grow at their end, and 20 random ones.

    >>> len(new_id()), new_id() == new_id()
    (32, False)
    """
    return f"{time_ns() // 1_000_000:012x}{urandom(10).hex()}"


def scope_until(deadline: float = math.inf) -> anyio.CancelScope:
    """Return ``anyio.CancelScope(deadline=deadline)`` without looking for the event loop's kind: 2 microseconds less.

    >>> async def main() -> bool:
    ...     with scope_until(anyio.current_time()) as scope:
    ...         await anyio.sleep_forever()
    ...     return scope.cancelled_caught
    >>> anyio.run(main)
    True
    """
    kind = anyio.CancelScope if running_loop() is None else _kind_on_asyncio()
    return kind(deadline=deadline)


@cache
def _kind_on_asyncio() -> type[anyio.CancelScope]:
    return type(anyio.CancelScope())


@final
@define
class AttemptRecord:
    """The history of the attempt under way, as far as it is known; kept when the attempt is cancelled.

    Clients write when the attempt joined their queue (``queued_since``, ``None`` once it was sent), how long it waited
    there (``queued_s``, seconds), when it was sent and its first content came, and the rate limits that the server
    reported. ``with_recording`` writes the cost, and ``sent_at`` for clients without a queue. Times are on the clock of
    ``anyio.current_time()``.
    """

    __repr__ = shown

    sent_at: float | None = None
    queued_since: float | None = None
    queued_s: float = 0.0
    content_at: float | None = None
    rate_limits: RateLimits | None = None
    cost: Cost = Cost.UNKNOWN


# The timers of one attempt: until its first content, between contents, and for all of it.
#
# Only waiting for the model counts: the timers are paused while the call is queued, and while the consumer handles
# events; plain code is not timed. Pings and other events without content do not reset them.
#
# A single cancel scope covers the whole attempt. Setting its deadline costs more than reading an event, so it is set a
# little late and then left alone for a while: a timer fires on time or up to a tenth of its limit later.

TIMER_SLACK: Final = 0.1
"""How late a timer may fire, as a share of its limit."""


@final
@define(eq=False, repr=False)
class Timers:
    """The timers of an attempt: ``phase`` is what it waits for, and ``scope`` ends the wait.

    No timer runs before ``start``. A response that is not ``streamed`` only has the limit of the attempt. ``share_by``
    is when the candidate's share of the time ends, queue included; a stream's first content ends it before.
    """

    config: ModelConfig
    record: AttemptRecord
    streamed: bool
    share_by: float = math.inf
    phase: TimeoutPhase = "queue"
    scope: anyio.CancelScope = field(factory=scope_until)
    _attempt_deadline: float = math.inf
    clock: Callable[[], float] = field(factory=loop_clock)
    _paused_at: float = 0.0
    _made_at: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._made_at = self.clock()
        self.record.queued_since = self.record.queued_since or self._made_at  # since it waits for a key, if it does
        self.scope.deadline = self.share_by

    def start(self) -> None:
        """Start the timers, because the call has left the queue."""
        now = self.clock()
        queued_since = now if self.record.queued_since is None else self.record.queued_since
        self.record.queued_s, self.record.queued_since = now - queued_since, None
        self.record.sent_at = now
        self._attempt_deadline = now + self.config.timeout_ms / 1000
        self.phase = "first_content" if self.streamed else "attempt"
        first_content = now + self.config.first_content_ms / 1000 if self.streamed else math.inf
        self.scope.deadline = min(first_content, self._attempt_deadline, self.share_by)

    def pause(self) -> None:
        """Pause the timers while the consumer has events."""
        self.phase, self._paused_at, self.share_by = "sink", self.clock(), math.inf

    def wait_for_consumer(self) -> None:
        """Start the consumer's own limit: it waits for something before it is done with an event."""
        limit = self.config.sink_ms / 1000
        self._set_deadline(self.clock() + limit, limit * TIMER_SLACK)

    def wait_for_model(self) -> None:
        """Resume the timers for the model's next content."""
        now = self.clock()
        if self.phase == "sink":
            self._attempt_deadline += now - self._paused_at
        self.phase = "between_content"
        limit, attempt = self.config.between_content_ms / 1000, self.config.timeout_ms / 1000
        if now + limit <= self._attempt_deadline:
            self._set_deadline(now + limit, limit * TIMER_SLACK)
        else:
            self._set_deadline(self._attempt_deadline, min(limit, attempt) * TIMER_SLACK)

    def _set_deadline(self, due: float, slack: float) -> None:
        if not due <= self.scope.deadline <= due + slack:
            self.scope.deadline = min(due + slack, self.share_by)

    def expired(self) -> RequestTimeout:
        """Return the error of the timer that fired."""
        if self.clock() >= self.share_by < self._attempt_deadline:
            return RequestTimeout(timeout_ms=(self.share_by - self._made_at) * 1000, phase="attempt")
        if self.phase != "sink" and self.clock() >= self._attempt_deadline:
            return RequestTimeout(timeout_ms=self.config.timeout_ms, phase="attempt")
        limits = {
            "sink": self.config.sink_ms,
            "first_content": self.config.first_content_ms,
            "between_content": self.config.between_content_ms,
        }
        return RequestTimeout(timeout_ms=limits.get(self.phase, self.config.timeout_ms), phase=self.phase)


# The history of a call, and the call itself.


@final
@define
class CallHistory:
    """The history of a call: its only mutable part, created with it.

    It outlives deadlines and cancellation, so that no attempt is lost. ``errors`` are the errors of failed attempts, in
    order. ``contents`` counts the content events delivered to the sink, ``pieces`` is their text since the last
    restart, and ``acted`` is true once a tool call was among them. ``queued`` counts attempts that wait for a permit,
    ``racing`` those that race each other, and ``current`` is the record of the newest attempt that has a permit.
    ``stages`` lists when the call began to ``ask`` a model, to ``queue`` for its permit or to ``pause`` before asking
    it again. ``drain`` is set where events may wait for the consumer. ``traced`` is whether telemetry is active, once
    ``with_tracing`` has asked. ``clock`` is that of ``anyio.current_time()``. ``began`` is when the call looked into
    its cache, if that was before its layers, and ``looked_up`` what it found, until a layer has used it.
    """

    __repr__ = shown

    attempts: list[Attempt] = field(factory=new_list)
    errors: list[LLMError] = field(factory=new_list)
    contents: int = 0
    pieces: list[str] = field(factory=new_list)
    acted: bool = False
    queued: int = 0
    racing: int = 0
    current: AttemptRecord | None = None
    stages: list[tuple[float, str, str]] = field(factory=new_list)
    drain: Callable[[], Awaitable[None]] | None = field(default=None, repr=False)
    traced: bool | None = None
    clock: Callable[[], float] = field(default=anyio.current_time, repr=False, eq=False)
    began: float | None = None
    looked_up: LookedUp | None = None

    @property
    def partial(self) -> str:
        """The text that the consumer has."""
        return "".join(self.pieces)

    def note(self, error: LLMError, since: int) -> None:
        """Record an error, unless it is among those recorded after the first ``since``."""
        if not any(each is error for each in self.errors[since:]):
            self.errors.append(error)

    async def drained(self) -> None:
        """Wait until the consumer has all events so far: before an answer is begun again or continued."""
        if self.drain is not None:
            await self.drain()

    def enter(self, stage: str, model: str, now: float) -> None:
        """Record that the call began a stage at a model, at a time of ``anyio.current_time()``."""
        self.stages.append((now, stage, model))

    def time_spent(self, now: float) -> str:
        """Return where the time went, stage by stage.

        >>> history = CallHistory()
        >>> history.enter("queue", "a", 0.0)
        >>> history.enter("ask", "a", 12.0)
        >>> history.time_spent(30.0)
        'queue a 12000 ms, ask a 18000 ms'
        """
        spent = dict[tuple[str, str], float]()
        for (began, *stage), (ended, *_) in pairwise((*self.stages, (now, "", ""))):
            spent[stage[0], stage[1]] = spent.get((stage[0], stage[1]), 0.0) + ended - began
        return ", ".join(f"{stage} {model} {seconds * 1000:.0f} ms" for (stage, model), seconds in spent.items())


@final
@frozen_in_types(kw_only=True)
class AttemptContext:
    """One attempt of a call: its ``model`` (a name from the configuration) and why it is made.

    ``alternatives`` counts the candidates left after this one, ``wait_ms`` is the pause before this attempt (and the
    wait for its permit), ``delivered`` counts the content events that earlier candidates delivered, and ``continues``
    is true where this one resumes their answer. ``first_content_by`` is when its share of the time ends: its first
    content must have come by then, on the clock of ``anyio.current_time()``.
    """

    __repr__ = shown

    model: str = ""
    alternatives: int = 0
    wait_ms: float = 0.0
    delivered: int = 0
    continues: bool = False
    first_content_by: float = math.inf
    record: AttemptRecord = field(factory=AttemptRecord, repr=False)


@final
@frozen(eq=False, repr=False)
class TurnContext(Value):
    """The conversation that a call belongs to.

    ``last_model`` answered the previous turn; ``tokens`` is the measured length of the prompt.
    """

    conversation_id: str
    last_model: str | None = None
    tokens: int | None = None


@final
@frozen(eq=False, repr=False)
class ResponseValidator(Value):
    """The conditions on an answer: ``problems`` lists what is wrong; a model may repair it ``max_repairs`` times.

    Validators with the same ``name`` and ``max_repairs`` are the same; one without a name is equal to itself only.
    """

    problems: Callable[[LLMResponse], tuple[str, ...]]
    max_repairs: int
    name: Hashable = None

    @property
    def identity(self) -> Hashable:
        """The key under which equal validators are the same."""
        return (id(self) if self.name is None else self.name, self.max_repairs)


@final
@frozen(kw_only=True)
class Call:
    """A request under way.

    ``id`` names the call in the ledger, and ``deadline`` is on the clock of ``anyio.current_time()``. ``turn`` is set
    for a turn of a conversation, and ``validator`` where the answer must satisfy more than its protocol. ``layers``
    names the layers of the pipeline that are not the library's own. All of these belong to the whole call; ``attempt``
    is what belongs to the current attempt.
    """

    __repr__ = shown

    id: str
    request: LLMRequest
    sink: Sink | None = field(default=None, repr=False)
    deadline: float = math.inf
    history: CallHistory = field(factory=CallHistory)
    turn: TurnContext | None = None
    validator: ResponseValidator | None = field(default=None, repr=False)
    layers: str = field(default="", repr=False)
    attempt: AttemptContext = field(factory=AttemptContext)

    @property
    def model(self) -> str:
        """The candidate that routing chose, a name from the configuration."""
        return self.attempt.model

    @property
    def committed(self) -> bool:
        """Whether content of this candidate has reached the sink: from then on nothing is tried unseen."""
        return self.history.contents > self.attempt.delivered

    def with_attempt(self, attempt: AttemptContext) -> Call:
        """Return the same call with another attempt."""
        return self._copy(self.deadline, attempt)

    def with_deadline(self, deadline: float) -> Call:
        """Return the same call with another deadline."""
        return self._copy(deadline, self.attempt)

    def _copy(self, deadline: float, attempt: AttemptContext) -> Call:
        """Copy as ``evolve`` does in half of its time: 1 microsecond instead of 2, twice a call."""
        return Call(
            id=self.id,
            request=self.request,
            sink=self.sink,
            deadline=deadline,
            history=self.history,
            turn=self.turn,
            validator=self.validator,
            layers=self.layers,
            attempt=attempt,
        )

    def again(self, wait_ms: float = 0.0) -> Call:
        """Return the same call for another attempt at the same model, after a pause of ``wait_ms`` milliseconds.

        >>> first = Call(id="1", request=LLMRequest(prompt="why?"), attempt=AttemptContext(model="studio"))
        >>> first.again(wait_ms=20.0).attempt
        AttemptContext(model='studio', wait_ms=20.0)
        """
        return self.with_attempt(evolve(self.attempt, wait_ms=wait_ms, record=AttemptRecord()))


def opening_of(call: Call) -> StreamEvent | None:
    """Return the event before the first content: a start, a restart after another model's content, or none."""
    if call.attempt.continues:
        return None
    return Restarted(call.model) if call.history.contents else Started(call.model)


def committing(sink: Sink, history: CallHistory) -> Sink:
    """Return a sink that records what ``sink`` receives in ``history``: the first content commits the call.

    An event is recorded before it is delivered, since a sink that fails half-way may have shown it.
    """

    def deliver(event: StreamEvent) -> Awaitable[None]:  # a coroutine of its own would cost as much again
        if isinstance(event, TextDelta):
            history.pieces.append(event.text)
            history.contents += 1
        elif isinstance(event, ReasoningDelta | ToolCallDelta):
            history.contents += 1
            history.acted = history.acted or isinstance(event, ToolCallDelta)
        elif isinstance(event, Restarted):
            history.pieces.clear()
            history.acted = False
        return sink(event)

    return deliver


def limit_ms_of(request: LLMRequest, config: LLMConfig) -> float:
    """Return how long the whole call may take, in milliseconds."""
    return request.preferences.timeout_ms or config.routing.timeout_ms
