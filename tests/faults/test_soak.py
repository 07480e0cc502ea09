"""Small versions of the soak test and of the cancellations in tests/benchmarks."""

import pytest

from tests.benchmarks.cancels import cancels
from tests.benchmarks.soak import soak
from tests.fixtures.chaos import Chaos
from tests.fixtures.wires import Wire

pytestmark = pytest.mark.anyio


async def test_105_under_all_kinds_of_faults_every_call_ends_in_time_and_nothing_leaks() -> None:
    report = await soak(calls=200, in_flight=100, rounds=2, longest_s=0.5)
    report.check()
    assert report.ends["success"]


async def test_104_cancellations_under_contention_leak_no_slot(chaos: Chaos, anyio_backend: str) -> None:
    wire = Wire(anyio_backend, "fast" if anyio_backend == "asyncio" else "httpx")
    assert (await cancels(300, chaos, wire)).cancelled >= 300
