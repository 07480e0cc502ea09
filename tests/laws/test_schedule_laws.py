"""The lattice of schedules: with "stop" as an infinite pause, ``&`` is the maximum and ``|`` the minimum."""

from hypothesis import given
from hypothesis import strategies as st

from llm_effects.effects.schedules import Schedule, Step, up_to, within
from tests.fixtures.schedules import SCHEDULES, STEPS

NEVER = up_to(0)
AT_ONCE = within(float("inf"))


@given(SCHEDULES, SCHEDULES, STEPS)
def test_both_operators_are_commutative(a: Schedule, b: Schedule, step: Step) -> None:
    assert (a & b).pause(step) == (b & a).pause(step)
    assert (a | b).pause(step) == (b | a).pause(step)


@given(SCHEDULES, SCHEDULES, SCHEDULES, STEPS)
def test_both_operators_are_associative(a: Schedule, b: Schedule, c: Schedule, step: Step) -> None:
    assert ((a & b) & c).pause(step) == (a & (b & c)).pause(step)
    assert ((a | b) | c).pause(step) == (a | (b | c)).pause(step)


@given(SCHEDULES, STEPS)
def test_both_operators_are_idempotent(a: Schedule, step: Step) -> None:
    assert (a & a).pause(step) == (a | a).pause(step) == a.pause(step)


@given(SCHEDULES, SCHEDULES, STEPS)
def test_each_operator_absorbs_the_other(a: Schedule, b: Schedule, step: Step) -> None:
    assert (a & (a | b)).pause(step) == (a | (a & b)).pause(step) == a.pause(step)


@given(SCHEDULES, SCHEDULES, SCHEDULES, STEPS)
def test_each_operator_distributes_over_the_other(a: Schedule, b: Schedule, c: Schedule, step: Step) -> None:
    assert (a & (b | c)).pause(step) == ((a & b) | (a & c)).pause(step)
    assert (a | (b & c)).pause(step) == ((a | b) & (a | c)).pause(step)


@given(SCHEDULES, STEPS)
def test_never_and_at_once_are_the_bounds(a: Schedule, step: Step) -> None:
    assert (a & AT_ONCE).pause(step) == (a | NEVER).pause(step) == a.pause(step)
    assert (a & NEVER).pause(step) is None
    assert (a | AT_ONCE).pause(step) == 0.0


@given(st.integers(0, 20), st.integers(0, 20), STEPS)
def test_retry_counts_combine_to_minimum_and_maximum(n: int, m: int, step: Step) -> None:
    assert (up_to(n) & up_to(m)).pause(step) == up_to(min(n, m)).pause(step)
    assert (up_to(n) | up_to(m)).pause(step) == up_to(max(n, m)).pause(step)


@given(st.floats(0, 1e4), st.floats(0, 1e4), STEPS)
def test_windows_combine_to_minimum_and_maximum(near: float, far: float, step: Step) -> None:
    assert (within(near) & within(far)).pause(step) == within(min(near, far)).pause(step)
    assert (within(near) | within(far)).pause(step) == within(max(near, far)).pause(step)
