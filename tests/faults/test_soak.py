"""The soak and the cancels of tests/benchmarks, small: ``python -m tests.benchmarks.soak`` is the full one."""

import pytest

from tests.benchmarks.cancels import cancels
from tests.benchmarks.soak import soak
from tests.fixtures.chaos import Chaos

pytestmark = pytest.mark.anyio


async def test_105_under_faults_of_all_kinds_every_call_ends_in_time_and_nothing_is_left() -> None:
    report = await soak(calls=200, in_flight=100, rounds=2, longest_s=0.5)
    report.check()
    assert report.ends["success"]


async def test_104_cancels_under_contention_leave_no_place_taken(chaos: Chaos) -> None:
    assert (await cancels(300, chaos)).cancelled >= 300
