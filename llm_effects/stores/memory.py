"""Services that live in the process: what is known of each model, and the ledger."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, final

from anyio import NoEventLoopError
from anyio.lowlevel import RunVar
from attrs import define, evolve, field
from returns.future import FutureResult

from llm_effects.env import LedgerRow, Statistics
from llm_effects.errors import (
    AuthenticationFailed,
    LLMError,
    MalformedResponse,
    ModelUnavailable,
    NetworkError,
    RateLimitExceeded,
    RequestTimeout,
    SchemaMismatch,
)
from llm_effects.responses import SUCCESS, Attempt

NEWEST: Final = 0.2
"""Weight of the newest attempt in the moving averages: about the last nine count."""

BLAMED: Final = frozenset(
    error.tag for error in (ModelUnavailable, RateLimitExceeded, AuthenticationFailed, RequestTimeout, NetworkError)
) | {MalformedResponse.tag, SchemaMismatch.tag, SUCCESS}
"""Outcomes that say something of the model; others are the request's, the caller's, or a defect."""


def learn(known: Statistics, attempt: Attempt) -> Statistics:
    """Take an attempt into what is known.

    >>> learn(Statistics(), Attempt(model="m", provider="p", outcome=SUCCESS, latency_ms=40.0)).latency_ms
    40.0
    """
    if attempt.outcome not in BLAMED:
        return known
    failed = 0.0 if attempt.succeeded else 1.0
    return evolve(
        known,
        attempts=known.attempts + 1,
        error_rate=known.error_rate + NEWEST * (failed - known.error_rate),
        latency_ms=_moved(known.latency_ms, attempt.latency_ms) if attempt.succeeded else known.latency_ms,
    )


def _moved(average: float | None, newest: float) -> float:
    return newest if average is None else average + NEWEST * (newest - average)


@final
@define
class MemoryHealth:
    """What is known of each model, in this process. A pause is known in the event loop whose clock it is on."""

    _known: dict[str, Statistics] = field(factory=dict[str, Statistics])
    _parked: RunVar[dict[str, float]] = field(factory=lambda: RunVar("llm_effects_parked"), repr=False)

    def observe(self, attempt: Attempt) -> None:
        """Learn from an attempt."""
        self._known[attempt.model] = learn(self._known.get(attempt.model, Statistics()), attempt)

    def park(self, model: str, until: float) -> None:
        """Leave a model alone until a time on the clock of ``anyio.current_time()``."""
        self._parked.set({**self._parked.get({}), model: until})

    def statistics(self) -> Mapping[str, Statistics]:
        """Give what is known, by model name."""
        parked = self._pauses()
        if not parked:
            return self._known
        known = {name: self._known.get(name, Statistics()) for name in {*self._known, *parked}}
        return {name: evolve(each, parked_until=parked.get(name, each.parked_until)) for name, each in known.items()}

    def _pauses(self) -> Mapping[str, float]:
        try:
            return self._parked.get({})
        except NoEventLoopError:  # asked from outside: no clock, no pauses
            return {}


@final
@define
class MemoryLedger:
    """The newest rows, in this process."""

    _rows: deque[LedgerRow] = field(factory=lambda: deque[LedgerRow](maxlen=10_000))

    def record(self, row: LedgerRow) -> None:
        """Book a row; the oldest one makes room."""
        self._rows.append(row)

    def rows(self) -> FutureResult[Sequence[LedgerRow], LLMError]:
        """Give the rows, oldest first."""
        return FutureResult.from_value(tuple(self._rows))
