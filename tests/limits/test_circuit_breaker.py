"""The circuit breaker as a pure state machine."""

from hypothesis import given
from hypothesis import strategies as st

from llm_effects.config.routing import BreakerConfig
from llm_effects.limits.circuit_breaker import (
    Breaker,
    BreakerPermit,
    Refusal,
    record_outcome,
    request_permit,
)

RULES = BreakerConfig(window_seconds=10, min_attempts=4, failure_rate=0.5, open_seconds=5)

STEPS = st.lists(
    st.tuples(st.floats(0, 4, width=32), st.sampled_from(["ask", "fails", "works", "cancelled"]), st.booleans()),
    max_size=80,
)


@given(STEPS)
def test_every_sequence_of_calls_keeps_the_invariants(steps: list[tuple[float, str, bool]]) -> None:
    breaker, now = Breaker(), 0.0
    permits: list[BreakerPermit] = []
    for wait, event, newest in steps:
        now += wait
        before = breaker
        if event == "ask":
            breaker, answer = request_permit(breaker, now, lease=1000, force=newest)
            if isinstance(answer, Refusal):
                assert before.open_until is not None
                assert answer.retry_after > 0
                continue
            permits.append(answer)
            probes = [each for each in permits if each.kind == "probe" and each.epoch == breaker.epoch]
            assert len(probes) <= 1  # one at a time
            assert (answer.kind == "counted") == (before.open_until is None)
            assert before.open_until is None or answer.kind == "forced" or now >= before.open_until
        elif permits:
            permit = permits.pop(0 if newest else -1)
            failed = {"fails": True, "works": False, "cancelled": None}[event]
            breaker = record_outcome(breaker, RULES, permit, now, failed=failed)
            if permit.epoch != before.epoch:
                assert breaker == before  # an outcome of another epoch
            if permit.kind == "probe" and permit.epoch == before.epoch:
                assert (breaker.open_until is None) == (failed is False)
                assert failed is None or breaker.epoch > before.epoch
                if failed is None:
                    assert request_permit(breaker, now, lease=1)[1] == BreakerPermit(
                        "probe", breaker.epoch
                    )  # available again
        if before.open_until is None and breaker.open_until is not None:
            assert breaker.open_until == now + RULES.open_seconds


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_it_opens_at_the_failure_rate_and_not_before(outcomes: list[bool]) -> None:
    breaker = Breaker()
    for count, failed in enumerate(outcomes, start=1):
        breaker = record_outcome(breaker, RULES, BreakerPermit(), 1.0, failed=failed)
        should_open = count >= 4 and sum(outcomes[:count]) / count >= 0.5 and failed
        assert (breaker.open_until is not None) == should_open
        if should_open:
            return


def test_failures_outside_the_window_do_not_count() -> None:
    breaker = Breaker()
    for now in (0.0, 1.0, 2.0, 14.0):
        breaker = record_outcome(breaker, RULES, BreakerPermit(), now, failed=True)
    assert breaker.open_until is None


def test_one_probe_goes_at_a_time_until_its_lease_ends() -> None:
    half_open = Breaker(open_until=30.0)
    probing, first = request_permit(half_open, 30.0, lease=60)
    assert isinstance(first, BreakerPermit)
    assert first.kind == "probe"
    assert request_permit(probing, 31.0, lease=60)[1] == Refusal(1.0)
    _, next_one = request_permit(probing, 90.0, lease=60)
    assert isinstance(next_one, BreakerPermit)
    assert next_one.kind == "probe"


def test_an_outcome_from_before_the_breaker_changed_is_ignored() -> None:
    opened = Breaker(open_until=30.0, epoch=1)
    late = BreakerPermit("counted", epoch=0)
    for failed in (True, False, None):
        assert record_outcome(opened, RULES, late, 10.0, failed=failed) is opened


def test_a_forced_call_that_fails_does_not_prolong_the_wait() -> None:
    opened = Breaker(open_until=30.0, epoch=1)
    forced = BreakerPermit("forced", epoch=1)
    assert record_outcome(opened, RULES, forced, 29.0, failed=True) is opened
    assert record_outcome(opened, RULES, forced, 29.0, failed=False).open_until is None
