"""Services that live in the process: what is known of each model, and the ledger."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, final

from attrs import define, evolve, field
from returns.future import FutureResult

from llm_effects.env import LedgerRow, Statistics
from llm_effects.errors import LLMError
from llm_effects.responses import CANCELLED, Attempt

MEMORY_OF_LATENCY: Final = 0.2
"""Weight of the newest attempt in the moving averages: about the last nine count."""


def learn(known: Statistics, attempt: Attempt) -> Statistics:
    """Take an attempt into what is known; a cancelled one says nothing about the model.

    >>> from llm_effects.responses import SUCCESS
    >>> learn(Statistics(), Attempt(model="m", provider="p", outcome=SUCCESS, latency_ms=40.0)).latency_ms
    40.0
    """
    if attempt.outcome == CANCELLED:
        return known
    if not attempt.succeeded:
        return evolve(known, attempts=known.attempts + 1, failures=known.failures + 1)
    before = attempt.latency_ms if known.latency_ms is None else known.latency_ms
    latency = before + MEMORY_OF_LATENCY * (attempt.latency_ms - before)
    return evolve(known, attempts=known.attempts + 1, latency_ms=latency)


@final
@define
class MemoryHealth:
    """What is known of each model, in this process."""

    _known: dict[str, Statistics] = field(factory=dict[str, Statistics])

    def observe(self, attempt: Attempt) -> None:
        """Learn from an attempt."""
        self._known[attempt.model] = learn(self._known.get(attempt.model, Statistics()), attempt)

    def park(self, model: str, until: float) -> None:
        """Leave a model alone until a time on the clock of ``anyio.current_time()``."""
        self._known[model] = evolve(self._known.get(model, Statistics()), parked_until=until)

    def statistics(self) -> Mapping[str, Statistics]:
        """Give what is known, by model name."""
        return self._known


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
