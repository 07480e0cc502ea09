"""What is known of each model, in this process."""

import math
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import Final, final

from anyio import NoEventLoopError
from anyio.lowlevel import RunVar
from attrs import define, evolve, field

from llm_effects.routing.statistics import learn
from llm_effects.values.records import Statistics
from llm_effects.values.responses import Attempt

KEPT: Final = 128
"""How many of a model's newest answers are kept to tell in what time they came."""


@final
@define
class MemoryHealth:
    """What is known of each model, in this process. A pause is known in the event loop whose clock it is on."""

    _known: dict[str, Statistics] = field(factory=dict[str, Statistics])
    _newest: dict[tuple[str, bool], deque[float]] = field(factory=dict[tuple[str, bool], deque[float]], repr=False)
    _calls: int = 0
    _parked: RunVar[dict[str, float]] = field(factory=lambda: RunVar("llm_effects_parked"), repr=False)

    def observe(self, attempt: Attempt, at: datetime) -> None:
        """Learn from an attempt that ended ``at`` a time of ``env.now``."""
        self._known[attempt.model] = learn(self._known.get(attempt.model, Statistics()), attempt, at, self._calls)
        if attempt.succeeded:
            streamed = attempt.first_content_ms is not None
            newest = self._newest.setdefault((attempt.model, streamed), deque(maxlen=KEPT))
            newest.append(attempt.latency_ms if attempt.first_content_ms is None else attempt.first_content_ms)

    def cool_down(self, model: str, until: float) -> None:
        """Leave a model alone until a time on the clock of ``anyio.current_time()``."""
        self._parked.set({**self._parked.get({}), model: until})

    def statistics(self) -> Mapping[str, Statistics]:
        """Give what is known, by model name."""
        cooled_down = self._pauses()
        if not cooled_down:
            return self._known
        known = {name: self._known.get(name, Statistics()) for name in {*self._known, *cooled_down}}
        return {
            name: evolve(each, cooldown_until=cooled_down.get(name, each.cooldown_until))
            for name, each in known.items()
        }

    def begin_call(self) -> None:
        """Count a call that is routed now."""
        self._calls += 1

    def calls(self) -> int:
        """Tell how many calls were routed."""
        return self._calls

    def latency(self, model: str, share: float, *, first_content: bool) -> float | None:
        """Give the milliseconds within which that share (0 to 1) of the newest answers came, or ``None``.

        At least one answer in those that are known must have taken longer: for 0.95 it takes 20.
        """
        newest = sorted(self._newest.get((model, first_content), ()))
        place = math.ceil(share * len(newest))
        return newest[place - 1] if 0 < place < len(newest) else None

    def _pauses(self) -> Mapping[str, float]:
        try:
            return self._parked.get({})
        except NoEventLoopError:  # asked from outside: no clock, no pauses
            return {}
