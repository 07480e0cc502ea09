"""Schedules: laws of ``&`` and ``|``, bounds of back-off and jitter."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_effects import exponential, jittered, within
from llm_effects.effects import Schedule, Step
from llm_effects.values import InvalidValue
from tests.fixtures.schedules import SCHEDULES, STEPS


@given(SCHEDULES, SCHEDULES, STEPS)
def test_both_goes_on_while_both_do_and_takes_the_longer_pause(a: Schedule, b: Schedule, step: Step) -> None:
    pauses = (a.pause(step), b.pause(step))
    expected = None if None in pauses else max(pause for pause in pauses if pause is not None)
    assert (a & b).pause(step) == (b & a).pause(step) == expected


@given(SCHEDULES, SCHEDULES, STEPS)
def test_either_goes_on_while_one_does_and_takes_the_shorter_pause(a: Schedule, b: Schedule, step: Step) -> None:
    pauses = [pause for pause in (a.pause(step), b.pause(step)) if pause is not None]
    assert (a | b).pause(step) == (b | a).pause(step) == min(pauses, default=None)


@given(SCHEDULES, SCHEDULES, SCHEDULES, STEPS)
def test_combining_is_associative_and_idempotent(a: Schedule, b: Schedule, c: Schedule, step: Step) -> None:
    assert ((a & b) & c).pause(step) == (a & (b & c)).pause(step)
    assert ((a | b) | c).pause(step) == (a | (b | c)).pause(step)
    assert (a & a).pause(step) == (a | a).pause(step) == a.pause(step)


@given(st.floats(0, 100), st.floats(1, 1e9), st.floats(0, 1000), st.integers(1, 10_000))
def test_back_off_grows_to_its_cap_and_never_overflows(base: float, factor: float, cap: float, retry: int) -> None:
    schedule = exponential(base, factor, cap)
    now, later = schedule.pause(Step(retry)), schedule.pause(Step(retry + 1))
    assert now is not None
    assert later is not None
    assert 0 <= now <= later <= cap
    assert math.isfinite(now)


@given(SCHEDULES, STEPS)
def test_full_jitter_is_the_drawn_share_of_the_pause(schedule: Schedule, step: Step) -> None:
    longest, jitter = schedule.pause(step), jittered(schedule).pause(step)
    assert jitter == (None if longest is None else longest * step.drawn)


@pytest.mark.parametrize(
    "make",
    [
        lambda: exponential(-1.0),
        lambda: exponential(cap=math.nan),
        lambda: exponential(factor=0.0),
        lambda: exponential(factor=math.inf),
        lambda: within(math.nan),
    ],
)
def test_a_schedule_that_no_clock_can_keep_is_refused_when_it_is_made(make: Callable[[], Schedule]) -> None:
    with pytest.raises(InvalidValue):
        make()
