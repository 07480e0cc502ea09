"""Schedules: laws of ``&`` and ``|``, bounds of back-off and jitter."""

import math

from hypothesis import given
from hypothesis import strategies as st

from llm_effects import Schedule, Step, exponential, jittered, up_to, within

steps = st.builds(Step, st.integers(1, 200), st.floats(0, 1e4), st.floats(0, 1, exclude_max=True))
schedules = st.recursive(
    st.builds(exponential, st.floats(0, 10), st.floats(1, 3), st.floats(0, 100))
    | st.builds(up_to, st.integers(0, 10))
    | st.builds(within, st.floats(0, 1e4)),
    lambda inner: st.builds(Schedule.__and__, inner, inner) | st.builds(Schedule.__or__, inner, inner),
    max_leaves=4,
)


@given(schedules, schedules, steps)
def test_both_goes_on_while_both_do_and_takes_the_longer_pause(a: Schedule, b: Schedule, step: Step) -> None:
    pauses = (a.pause(step), b.pause(step))
    expected = None if None in pauses else max(pause for pause in pauses if pause is not None)
    assert (a & b).pause(step) == (b & a).pause(step) == expected


@given(schedules, schedules, steps)
def test_either_goes_on_while_one_does_and_takes_the_shorter_pause(a: Schedule, b: Schedule, step: Step) -> None:
    pauses = [pause for pause in (a.pause(step), b.pause(step)) if pause is not None]
    assert (a | b).pause(step) == (b | a).pause(step) == min(pauses, default=None)


@given(schedules, schedules, schedules, steps)
def test_combining_is_associative_and_idempotent(a: Schedule, b: Schedule, c: Schedule, step: Step) -> None:
    assert ((a & b) & c).pause(step) == (a & (b & c)).pause(step)
    assert ((a | b) | c).pause(step) == (a | (b | c)).pause(step)
    assert (a & a).pause(step) == (a | a).pause(step) == a.pause(step)


@given(st.floats(0, 100), st.floats(1, 10), st.floats(0, 1000), st.integers(1, 10_000))
def test_back_off_grows_to_its_cap_and_never_overflows(base: float, factor: float, cap: float, retry: int) -> None:
    schedule = exponential(base, factor, cap)
    now, later = schedule.pause(Step(retry)), schedule.pause(Step(retry + 1))
    assert now is not None
    assert later is not None
    assert 0 <= now <= later <= cap
    assert math.isfinite(now)


@given(schedules, steps)
def test_full_jitter_is_the_drawn_share_of_the_pause(schedule: Schedule, step: Step) -> None:
    longest, jitter = schedule.pause(step), jittered(schedule).pause(step)
    assert jitter == (None if longest is None else longest * step.drawn)
