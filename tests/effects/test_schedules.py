"""Schedules: the pauses of ``&`` and ``|``, and the bounds of back-off and jitter."""

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
def test_and_continues_while_both_do_with_the_longer_pause(a: Schedule, b: Schedule, step: Step) -> None:
    pauses = (a.pause(step), b.pause(step))
    expected = None if None in pauses else max(pause for pause in pauses if pause is not None)
    assert (a & b).pause(step) == (b & a).pause(step) == expected


@given(SCHEDULES, SCHEDULES, STEPS)
def test_or_continues_while_one_does_with_the_shorter_pause(a: Schedule, b: Schedule, step: Step) -> None:
    pauses = [pause for pause in (a.pause(step), b.pause(step)) if pause is not None]
    assert (a | b).pause(step) == (b | a).pause(step) == min(pauses, default=None)


@given(st.floats(0, 100), st.floats(1, 1e9), st.floats(0, 1000), st.integers(1, 10_000))
def test_back_off_grows_up_to_its_cap_without_overflow(base: float, factor: float, cap: float, retry: int) -> None:
    schedule = exponential(base, factor, cap)
    pause, longer = schedule.pause(Step(retry)), schedule.pause(Step(retry + 1))
    assert pause is not None
    assert longer is not None
    assert 0 <= pause <= longer <= cap
    assert math.isfinite(pause)


@given(SCHEDULES, STEPS)
def test_full_jitter_is_the_drawn_share_of_the_pause(schedule: Schedule, step: Step) -> None:
    full, jitter = schedule.pause(step), jittered(schedule).pause(step)
    assert jitter == (None if full is None else full * step.drawn)


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
def test_an_invalid_schedule_is_refused_when_it_is_built(make: Callable[[], Schedule]) -> None:
    with pytest.raises(InvalidValue):
        make()
