"""Retry schedules: pure values that combine with ``&`` and ``|``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

from attrs import frozen

from llm_effects.values.validation import invalid
from llm_effects.values.value import Value


@final
@frozen(eq=False, repr=False)
class Step(Value):
    """The state of a retry loop: the number of the next retry (from 1), seconds since the start, a random number."""

    retry: int
    elapsed: float = 0.0
    drawn: float = 1.0


@final
@frozen(eq=False, repr=False)
class Schedule(Value):
    """A function from a step to the pause before its retry in seconds, or ``None`` to stop.

    ``a & b`` continues while both do, with the longer pause; ``a | b`` while either does, with the shorter.

    >>> patient = exponential(0.5) & up_to(3)
    >>> [patient.pause(Step(retry)) for retry in (1, 2, 3, 4)]
    [0.5, 1.0, 2.0, None]
    """

    pause: Callable[[Step], float | None]

    def __and__(self, other: Schedule) -> Schedule:
        def both(step: Step) -> float | None:
            mine, theirs = self.pause(step), other.pause(step)
            return None if mine is None or theirs is None else max(mine, theirs)

        return Schedule(both)

    def __or__(self, other: Schedule) -> Schedule:
        def either(step: Step) -> float | None:
            pauses = [pause for pause in (self.pause(step), other.pause(step)) if pause is not None]
            return min(pauses, default=None)

        return Schedule(either)


def duration(name: str, seconds: float) -> float:
    """Return a number of seconds, if it is 0 or more; it may be infinite.

    >>> duration("after", math.nan)
    Traceback (most recent call last):
        ...
    llm_effects.values.validation.InvalidValue: after: must be a number of seconds from 0 on, not nan
    """
    if math.isnan(seconds) or seconds < 0:
        invalid(name, f"must be a number of seconds from 0 on, not {seconds!r}")
    return seconds


def exponential(base: float = 0.1, factor: float = 2.0, cap: float = 20.0) -> Schedule:
    """Pause ``base`` seconds, then ``factor`` times longer each time, at most ``cap`` seconds.

    >>> [exponential(1, cap=3).pause(Step(retry)) for retry in (1, 2, 3)]
    [1.0, 2.0, 3.0]
    """
    first, longest = duration("base", base), duration("cap", cap)
    if not 0 < factor < math.inf:
        invalid("factor", f"must be a number above 0, not {factor!r}")
    most = 700 / math.log(max(factor, math.e))  # a larger power would overflow a float
    return Schedule(lambda step: min(float(longest), first * factor ** min(step.retry - 1, most)))


def jittered(schedule: Schedule) -> Schedule:
    """Add full jitter: a random pause between 0 and that of ``schedule``.

    It spreads callers that failed together; see "Exponential Backoff And Jitter" in the AWS Architecture Blog (2015).

    >>> jittered(exponential(4.0)).pause(Step(1, drawn=0.25))
    1.0
    """

    def pause(step: Step) -> float | None:
        longest = schedule.pause(step)
        return None if longest is None else longest * step.drawn

    return Schedule(pause)


def up_to(retries: int) -> Schedule:
    """Continue for that many retries, without a pause.

    >>> up_to(1).pause(Step(1)), up_to(1).pause(Step(2))
    (0.0, None)
    """
    return Schedule(lambda step: 0.0 if step.retry <= retries else None)


def within(seconds: float) -> Schedule:
    """Continue while less than that many seconds have passed since the start.

    >>> within(2.0).pause(Step(9, elapsed=1.0)), within(2.0).pause(Step(1, elapsed=2.0))
    (0.0, None)
    """
    limit = duration("seconds", seconds)
    return Schedule(lambda step: 0.0 if step.elapsed < limit else None)
