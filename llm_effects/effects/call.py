"""One call on its way through the layers: ``Call``, its trail and its sink."""

import math
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypedDict, Unpack, final

from attrs import define, field, frozen

from llm_effects.limits.quotas import RateLimits
from llm_effects.values.errors import LLMError
from llm_effects.values.events import ReasoningDelta, Restarted, StreamEvent, TextDelta, ToolCallDelta
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import Attempt, Cost, LLMResponse

Sink: TypeAlias = Callable[[StreamEvent], Awaitable[None]]
"""Where the events of a stream go; each is awaited, so a slow sink slows the model."""


@final
@define
class CallHistory:
    """What has happened so far: the one mutable thing of a call, made by its outermost layer.

    It outlives every deadline and cancellation, so that no attempt is lost. ``errors`` are those of the
    attempts that failed, in order; ``contents`` counts the content events that the sink was given, ``pieces`` is the
    text of them since the last restart, and ``acted`` says that a tool call was among them. ``queued`` counts the
    attempts that wait for a turn at their model: a wait in our own line says nothing of it.
    """

    attempts: list[Attempt] = field(factory=list[Attempt])
    errors: list[LLMError] = field(factory=list[LLMError])
    contents: int = 0
    pieces: list[str] = field(factory=list[str])
    acted: bool = False
    queued: int = 0

    @property
    def partial(self) -> str:
        """The text that the consumer has."""
        return "".join(self.pieces)


@final
@define
class AttemptTiming:
    """How far an attempt got: in a queue ``since`` when, how long it ``waited`` there (seconds), when content came.

    One that never got through was not sent. ``content_at`` is when the first content of a stream reached the library.
    Times are on the clock of ``anyio.current_time()``. Clients without a queue, or without streams, leave theirs alone.
    """

    since: float | None = None
    waited: float = 0.0
    content_at: float | None = None


@final
@define
class Heard:
    """What the model's server said last of its limits, until somebody takes it."""

    limits: RateLimits | None = None

    def take(self) -> RateLimits | None:
        """Give what was said, once."""
        said, self.limits = self.limits, None
        return said


@final
@define
class Booked:
    """What one attempt cost, once it has been booked: nothing where it was never sent."""

    cost: Cost = Cost.UNKNOWN


@final
@frozen
class ResponseValidator:
    """What an answer must be: ``problems`` tells what is wrong with one, ``max_repairs`` how often a model is told so."""

    problems: Callable[[LLMResponse], tuple[str, ...]]
    max_repairs: int


@final
@frozen(kw_only=True, slots=False)
class Call:
    """A request under way.

    ``id`` names the call in the ledger; ``model`` is the candidate chosen by ``routed``, a name from the
    configuration; ``deadline`` is on the clock of ``anyio.current_time()``; ``wait_ms`` is the pause that came
    before this attempt and ``alternatives`` the number of candidates left after this one. ``before`` counts the
    content events that earlier candidates delivered; ``continues`` says that this one goes on where they stopped;
    ``key`` is the question's in the cache, once it has been made, of the request ``keyed``; ``timing`` is
    fresh for each attempt; ``heard`` is what its server says beside the answer, ``booked`` what it cost. Of a turn of a
    conversation ``conversation_id`` names it and ``last_model`` is who answered last in it. ``tokens`` is what the
    prompt takes, where that is known better than by an estimate; ``check`` is what the answer must pass.
    """

    id: str
    request: LLMRequest
    model: str = ""
    sink: Sink | None = field(default=None, repr=False)
    deadline: float = math.inf
    history: CallHistory = field(factory=CallHistory)
    wait_ms: float = 0.0
    alternatives: int = 0
    before: int = 0
    continues: bool = False
    key: str = ""
    keyed: LLMRequest | None = field(default=None, repr=False)
    timing: AttemptTiming = field(factory=AttemptTiming, repr=False)
    heard: Heard = field(factory=Heard, repr=False)
    booked: Booked = field(factory=Booked, repr=False)
    conversation_id: str | None = None
    last_model: str | None = None
    tokens: int | None = None
    check: ResponseValidator | None = field(default=None, repr=False)

    @property
    def committed(self) -> bool:
        """Whether this candidate's content has reached the sink: from then on nothing is tried unseen."""
        return self.history.contents > self.before


class _Changes(TypedDict, total=False):
    request: LLMRequest
    model: str
    sink: Sink | None
    deadline: float
    wait_ms: float
    alternatives: int
    before: int
    continues: bool
    key: str
    keyed: LLMRequest | None
    timing: AttemptTiming
    booked: Booked


def changed(call: Call, **changes: Unpack[_Changes]) -> Call:
    """Give a call with some fields changed: as ``attrs.evolve`` does, at a fifth of its cost, which every layer pays.

    >>> from llm_effects import LLMRequest
    >>> changed(Call(id="1", request=LLMRequest(prompt="why?")), model="studio").model
    'studio'
    """
    fresh = object.__new__(Call)
    fresh.__dict__.update(call.__dict__, **changes)
    return fresh


def committing(sink: Sink, history: CallHistory) -> Sink:
    """Let ``history`` know what ``sink`` was given: the first content commits the call.

    It is noted before it is delivered: a sink that fails half-way may have shown it.
    """

    async def deliver(event: StreamEvent) -> None:
        if isinstance(event, TextDelta):
            history.pieces.append(event.text)
            history.contents += 1
        elif isinstance(event, ReasoningDelta | ToolCallDelta):
            history.contents += 1
            history.acted = history.acted or isinstance(event, ToolCallDelta)
        elif isinstance(event, Restarted):
            history.pieces.clear()
            history.acted = False
        await sink(event)

    return deliver
