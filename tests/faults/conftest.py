"""One chaos server for all cases of a run, and a check that no key is logged."""

import logging
from collections.abc import Iterator

import pytest

from tests.fixtures.chaos import CANARY, Chaos, chaos_server


@pytest.fixture(scope="session")
def chaos() -> Iterator[Chaos]:
    with chaos_server() as server:
        yield server


@pytest.fixture(autouse=True)
def no_key_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check that no logger shows the key, at any level."""
    caplog.set_level(logging.DEBUG)
    yield
    logged = [f"{record.getMessage()} {vars(record)}" for record in caplog.get_records("call")]
    assert [line for line in logged if CANARY in line] == []
