"""Fixtures for all tests: every async test runs on asyncio and on trio."""

import os

import pytest
from hypothesis import settings

# A busy machine is no failure of the law under test; in CI the same commit always tries the same examples.
settings.register_profile("house", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("house")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)
