"""The program over scripted models, and a loopback server for the program as a process."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.chaos import Chaos, chaos_server
from tests.fixtures.cli import Cli


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture(scope="session")
def chaos() -> Iterator[Chaos]:
    with chaos_server() as server:
        yield server
