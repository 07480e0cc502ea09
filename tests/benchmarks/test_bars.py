"""What decides whether a case is too slow."""

from collections.abc import Sequence

import pytest
from attrs import evolve

from tests.benchmarks.bars import (
    BARE_CALL_S,
    Case,
    Figures,
    Sample,
    figure,
    multiple,
    slowness,
    too_slow,
)

CALL = Case(key="call", title="one call", bars=(1.0, 0.5))
SECONDS = Case(key="first", title="import", unit="s", bars=(0.25, 0.25))


def samples(*processor_s: float) -> Sequence[Sample]:
    """Return samples whose elapsed time is ten times the processor time."""
    return [Sample(each, 10 * each) for each in processor_s]


def calls(ours_us: float, bare_us: float = 100) -> Figures:
    return {"call": {"bare": samples(bare_us * 1e-6), "httpx": samples(ours_us * 1e-6)}}


def test_a_ratio_is_the_median_of_the_ratios_of_each_round() -> None:
    taken = {"bare": samples(1, 10, 100), "httpx": samples(2, 5, 150)}
    assert figure(CALL, "httpx", taken) == 1.5


def test_a_client_with_fewer_rounds_is_compared_in_those() -> None:
    taken = {"bare": samples(1, 1, 7), "openai": samples(3), "aiohttp": samples(0.5, 100)}
    assert figure(CALL, "openai", taken) == 3
    assert multiple(CALL, "openai", taken) == 6


def test_what_was_not_measured_has_no_figure() -> None:
    assert figure(CALL, "aiohttp", {"bare": samples(1)}) is None
    assert multiple(CALL, "litellm", {"aiohttp": samples(1)}) is None


def test_seconds_are_of_the_clock_that_is_chosen() -> None:
    taken = {"httpx": samples(0.2)}
    assert (figure(SECONDS, "httpx", taken), figure(SECONDS, "httpx", taken, "processor")) == (2.0, 0.2)


def test_a_case_that_measures_itself_has_its_own_figure() -> None:
    case = evolve(SECONDS, itself=True)
    assert figure(case, "httpx", {"httpx": [Sample(1, 1, number) for number in (4.0, 6.0, 5.0)]}) == 5.0


@pytest.mark.parametrize(("ours_us", "slow"), [(99, False), (149, False), (151, True)])
def test_a_figure_is_too_slow_above_half_more_than_its_bar(ours_us: float, slow: bool) -> None:
    assert (too_slow(calls(ours_us), [CALL]) != {}) is slow


def test_the_message_names_the_case_the_transport_the_figure_and_the_bar() -> None:
    expected = "one call, over httpx: 1.60; its bar is 1.00, and CI accepts 1.50"
    assert too_slow(calls(160), [CALL]) == {"call": expected}


def test_seconds_are_judged_by_the_speed_of_the_machine() -> None:
    first: Figures = {"first": {"httpx": samples(0.7)}}
    busy: Figures = {"call": {"bare": samples(2 * BARE_CALL_S)}}
    assert too_slow(first, [SECONDS]) != {}
    assert too_slow({**first, **busy}, [SECONDS]) == {}


def test_a_faster_machine_makes_nothing_too_slow() -> None:
    assert slowness({"call": {"bare": samples(BARE_CALL_S / 3)}}) == 1.0


def test_a_ratio_is_not_judged_by_the_speed_of_the_machine() -> None:
    assert too_slow(calls(30 * 160, bare_us=30 * 100), [CALL]) != {}
