"""A flight: one call under way, followed by everybody who asks the same meanwhile."""

import math
from collections.abc import Hashable
from enum import Enum, unique
from typing import Final, final

import anyio
from anyio.lowlevel import RunVar
from attrs import define, field
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects.calls import Call
from llm_effects.errors import BudgetExceeded, LLMError, RequestFailed, RequestTimeout
from llm_effects.events import Restarted, Started, StreamEvent
from llm_effects.requests import Recovery
from llm_effects.responses import LLMResponse

BUFFERED: Final = 10_000
"""Events of a flight that are kept for its followers; who is further behind waits for the end."""

HELD_S: Final = 1.0
"""How long a leader's consumer may hold up the others with one event, in seconds."""


@final
@unique
class Ask(Enum):
    """What a follower does when it got no answer from its flight."""

    AGAIN = "again"
    INSTEAD = "instead"
    ALONE = "alone"


@final
@define(eq=False)
class Flight:
    """What the model has told so far, and the end.

    ``events`` are the first ``BUFFERED`` of the ``noted`` ones. One that has ``ended`` without a ``result`` ended in
    what concerns only its leader, or in a ``defect``. ``held`` says that the leader's consumer has an event;
    ``deadline`` is the leader's and ``latest`` the followers' last.
    """

    deadline: float = math.inf
    events: list[StreamEvent] = field(factory=list[StreamEvent])
    noted: int = 0
    ended: bool = False
    defect: bool = False
    held: bool = False
    latest: float = -math.inf
    result: Result[LLMResponse, LLMError] | None = None
    _news: anyio.Event | None = None
    _landed: anyio.Event | None = None

    @property
    def opens(self) -> bool:
        """Whether its events begin at the beginning, and do not go on from what only its leader's consumer has."""
        return not self.events or isinstance(self.events[0], Started | Restarted)

    def note(self, event: StreamEvent) -> None:
        """Keep an event and wake those who wait for it."""
        self.noted += 1
        if len(self.events) < BUFFERED:
            self.events.append(event)
        if self._news is not None:
            self._news.set()
            self._news = None

    def land(self) -> None:
        """Wake everybody: it is over."""
        self.ended = True
        for event in (self._news, self._landed):
            if event is not None:
                event.set()

    async def more(self) -> None:
        """Wait for the next event, or the end."""
        if self.ended:
            return
        if self._news is None:
            self._news = anyio.Event()
        await self._news.wait()

    async def landed(self) -> None:
        """Wait for the end."""
        if self.ended:
            return
        if self._landed is None:
            self._landed = anyio.Event()
        await self._landed.wait()


_FLIGHTS: Final[RunVar[dict[Hashable, Flight]]] = RunVar("llm_effects_flights")


def flights_here() -> dict[Hashable, Flight]:
    """Give the flights of this event loop, by the services that they are for and the key of the question."""
    try:
        return _FLIGHTS.get()
    except LookupError:
        flights: dict[Hashable, Flight] = {}
        _FLIGHTS.set(flights)
        return flights


def concerns_only_its_leader(flight: Flight, call: Call) -> bool:
    """Whether the end of a flight is none of this follower's business, so that it asks again."""
    if flight.result is None or is_successful(flight.result):
        return False
    error = flight.result.failure()
    committed = bool(flight.events) and not call.trail.contents and call.request.recovery is Recovery.FAIL
    return committed or _its_own(error) or _out_of_its_time(error, flight, call)


def _its_own(error: LLMError) -> bool:
    if isinstance(error, RequestFailed):
        return any(map(_its_own, error.errors))
    return isinstance(error, BudgetExceeded) or (isinstance(error, RequestTimeout) and error.phase in {"total", "sink"})


def _out_of_its_time(error: LLMError, flight: Flight, call: Call) -> bool:
    """Whether the leader gave up because a pause would have passed its deadline, and this one has the time."""
    if error.retry_after is None:
        return False
    until = anyio.current_time() + error.retry_after
    return flight.deadline < until < call.deadline


def fitting(event: StreamEvent, call: Call) -> StreamEvent:
    """What opens an answer, for this consumer: a restart if it has content, else a start."""
    if isinstance(event, Started | Restarted):
        return Restarted(event.model) if call.trail.contents else Started(event.model)
    return event
