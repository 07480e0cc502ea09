"""Rate limits as pure rules."""

import math

from hypothesis import given
from hypothesis import strategies as st

from llm_effects.limits.quotas import (
    ActualUsage,
    Allowance,
    Demand,
    LimiterState,
    Meter,
    Permit,
    Quota,
    has_free_slot,
    wait_time,
    with_actual_usage,
    with_reported_limits,
    with_reservation,
)

STEPS = st.lists(
    st.tuples(st.floats(0, 30, width=32), st.integers(1, 6), st.floats(0, 1), st.booleans()), min_size=1, max_size=60
)


@given(STEPS, st.integers(1, 4), st.integers(6, 12))
def test_no_minute_exceeds_its_quota(steps: list[tuple[float, int, float, bool]], rpm: int, tpm: int) -> None:
    """After its ``wait_time``, a call fits into every window of a minute, also when actual usages replace estimates."""
    quota, now, state = Quota(requests=rpm, tokens=tpm), 0.0, LimiterState()
    reserved: list[list[float]] = []  # when, requests, tokens
    for wait, tokens, share, at_once in steps:
        now += wait
        demand = Demand(tokens=tokens)
        now += wait_time(state, quota, demand, now)
        while wait_time(state, quota, demand, now):  # float rounding
            now = math.nextafter(now, math.inf)
        state = with_reservation(state, quota, demand, now)
        reserved.append([now, 1, tokens])
        minute = [each for each in reserved if each[0] > now - 60]
        assert sum(each[1] for each in minute) <= rpm
        assert sum(each[2] for each in minute) <= tpm
        if at_once:
            used = round(tokens * share)
            permit = Permit(model="m", quota=quota, demand=demand, cell=int(now // 1))
            state = with_actual_usage(state, permit, ActualUsage(requests=1 if share else 0, tokens=used))
            reserved[-1][1:] = [1 if share else 0, used]


@given(st.integers(1, 50), st.integers(1, 50), st.floats(0, 1000, width=32))
def test_a_refunded_reservation_leaves_no_trace(limit: int, tokens: int, now: float) -> None:
    quota, demand = Quota(concurrency=1, requests=limit, tokens=50), Demand(tokens=tokens)
    before = LimiterState()
    during = with_reservation(before, quota, demand, now)
    assert not has_free_slot(during, quota)
    after = with_actual_usage(
        during, Permit(model="m", quota=quota, demand=demand, cell=int(now // 1)), ActualUsage(requests=0)
    )
    assert has_free_slot(after, quota)
    assert wait_time(after, quota, Demand(tokens=50), now) == 0


@given(st.integers(0, 80))
def test_actual_usage_replaces_the_estimate_even_if_it_is_higher(used: int) -> None:
    quota, demand = Quota(tokens=100), Demand(tokens=40)
    during = with_reservation(LimiterState(), quota, demand, 0.0)
    after = with_actual_usage(during, Permit(model="m", quota=quota, demand=demand), ActualUsage(tokens=used))
    assert wait_time(after, quota, Demand(tokens=100 - used), 0.0) == 0
    assert wait_time(after, quota, Demand(tokens=101 - used), 0.0) > 0


def test_limits_that_a_server_reports_count_too() -> None:
    meter = with_reported_limits(Meter(), Allowance(limit=3, remaining=1, reset=10.0), at=5.0)
    state, free = LimiterState(requests=meter), Quota()
    assert wait_time(state, free, Demand(), 6.0) == 0
    assert wait_time(with_reservation(state, free, Demand(), 6.0), free, Demand(), 6.0) == 9.0
    assert wait_time(with_reservation(state, free, Demand(), 6.0), free, Demand(), 15.0) == 0
    assert with_reported_limits(meter, Allowance(remaining=50, reset=1.0), at=4.0) == meter  # an older report
    wide = Quota(requests=100)
    for _ in range(3):
        state = with_reservation(state, wide, Demand(), 20.0)
    assert wait_time(state, wide, Demand(), 20.5) == 60.5  # the reported limit is lower than ours


def test_a_call_waits_behind_those_ahead_of_it() -> None:
    quota = Quota(requests=2)
    assert wait_time(LimiterState(), quota, Demand(), now=0.0, ahead=Demand(requests=1)) == 0
    assert wait_time(LimiterState(), quota, Demand(), now=0.0, ahead=Demand(requests=2)) == 60
