"""Statistics of each model, as measured by this process."""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, Generic, TypeAlias, TypeVar, final
from weakref import WeakKeyDictionary, ref

from anyio import NoEventLoopError
from anyio.lowlevel import RunVar
from attrs import define, evolve, field

from llm_effects.effects.tasks import running_loop
from llm_effects.routing.statistics import learn
from llm_effects.values.records import Statistics
from llm_effects.values.responses import Attempt

_Item = TypeVar("_Item")

KEPT: Final = 128
"""How many of a model's newest latencies are kept, to estimate percentiles."""


_UNKNOWN: Final = Statistics()

# A value for each event loop.


@final
class LoopLocal(Generic[_Item]):
    """A value for each event loop, made on its first use there.

    It ends with this object, or with the loop and the next use in another one.

    >>> import anyio
    >>> counts = LoopLocal(list[int])
    >>> async def main() -> list[int]:
    ...     counts.get().append(1)
    ...     return counts.get()
    >>> anyio.run(main), anyio.run(main)
    ([1], [1])
    """

    def __init__(self, make: Callable[[], _Item]) -> None:
        self._make = make
        self._newest: tuple[Callable[[], object], _Item] | None = None

    def get(self) -> _Item:
        """Return the value of this event loop; outside of any there is none, but a ``NoEventLoopError``."""
        loop, newest = running_loop(), self._newest
        if loop is not None and newest is not None and newest[0]() is loop:  # 0.6 microseconds instead of 1.2
            return newest[1]
        values = _values_here(loop)
        value: _Item | None = values.get(self)
        if value is None:
            value = values[self] = self._make()
        if loop is not None:
            self._newest = ref(loop), value
        return value


_Values: TypeAlias = WeakKeyDictionary[LoopLocal[Any], Any]

_LOOP_VALUES: Final[RunVar[_Values]] = RunVar("llm_effects_loop_values")

# The same by asyncio's loop: finding it takes 0.4 microseconds, a ``RunVar`` 1.8. Only the ``RunVar`` holds the values.
_KNOWN_LOOPS: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, ref[_Values]]] = WeakKeyDictionary()


def _values_here(loop: asyncio.AbstractEventLoop | None) -> _Values:
    """Return the values of the event loop that runs this code, ``loop`` if it is one of asyncio."""
    if loop is None:
        return _values_by_anyio()
    known = _KNOWN_LOOPS.get(loop)
    values = None if known is None else known()
    if values is None:
        values = _values_by_anyio()
        _KNOWN_LOOPS[loop] = ref(values)
    return values


def _values_by_anyio() -> _Values:
    try:
        return _LOOP_VALUES.get()
    except LookupError:
        values: _Values = WeakKeyDictionary()
        _LOOP_VALUES.set(values)
        return values


# The statistics.


@final
@define(eq=False, repr=False)
class MemoryHealth:
    """Statistics of each model. A cooldown is known only in the event loop whose clock it is on."""

    _known: dict[str, Statistics] = field(factory=dict[str, Statistics])
    _newest: dict[tuple[str, bool], deque[float]] = field(factory=dict[tuple[str, bool], deque[float]], repr=False)
    _calls: int = 0
    _in_flight: dict[str, int] = field(factory=dict[str, int])
    _cooldowns: LoopLocal[dict[str, float]] = field(factory=lambda: LoopLocal(dict[str, float]), repr=False)
    _cooled: bool = False  # any model, in any loop: until then no call looks for its loop's cooldowns

    def observe(self, attempt: Attempt, at: datetime) -> None:
        """Learn from an attempt that ended ``at``, a time of ``env.now``."""
        self._known[attempt.model] = learn(self._known.get(attempt.model, _UNKNOWN), attempt, at, self._calls)
        if attempt.succeeded:
            key = attempt.model, attempt.first_content_ms is not None
            newest = self._newest.get(key)
            if newest is None:
                newest = self._newest[key] = deque(maxlen=KEPT)
            newest.append(attempt.latency_ms if attempt.first_content_ms is None else attempt.first_content_ms)

    def cool_down(self, model: str, until: float) -> None:
        """Cool a model down until a time on the clock of ``anyio.current_time()``."""
        self._cooldowns.get()[model] = until
        self._cooled = True

    def statistics(self) -> Mapping[str, Statistics]:
        """Return the statistics by model name."""
        cooldowns = self._active_cooldowns() if self._cooled else None
        if not cooldowns:
            return self._known
        known = {name: self._known.get(name, _UNKNOWN) for name in {*self._known, *cooldowns}}
        return {
            name: evolve(each, cooldown_until=cooldowns.get(name, each.cooldown_until)) for name, each in known.items()
        }

    def begin_call(self) -> None:
        """Count a routed call."""
        self._calls += 1

    def add_in_flight(self, model: str, change: int) -> None:
        """Add 1 or -1 to the calls in flight at a model."""
        count = self._in_flight.get(model, 0) + change
        if count:
            self._in_flight[model] = count
        else:  # so that a mapping that is not empty means that load decides
            self._in_flight.pop(model, None)

    def in_flight(self) -> Mapping[str, int]:
        """Return the calls in flight by model."""
        return self._in_flight

    def calls(self) -> int:
        """Return how many calls were routed."""
        return self._calls

    def latency(self, model: str, share: float, *, first_content: bool) -> float | None:
        """Return a percentile of the newest latencies in milliseconds, or ``None``; ``share`` is from 0 to 1.

        At least one known latency must be longer: for 0.95 that takes 20 of them.
        """
        newest = sorted(self._newest.get((model, first_content), ()))
        place = math.ceil(share * len(newest))
        return newest[place - 1] if 0 < place < len(newest) else None

    def _active_cooldowns(self) -> Mapping[str, float]:
        try:
            return self._cooldowns.get()
        except NoEventLoopError:  # outside of a loop there is no clock, and no cooldown
            return {}
