"""One chaos server for all cases of a run, a check that no key is logged, and the library that carries requests.

On asyncio that is aiohttp, on trio httpx, as by default. Modules about the wire also use httpx on asyncio: they take
their event loop from ``wire``, and ``carried``.
"""

import logging
from collections.abc import Iterator

import pytest

from llm_effects.clients.transport import transport
from tests.fixtures.chaos import CANARY, Chaos, chaos_server
from tests.fixtures.wires import Wire


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


@pytest.fixture
def carried(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``auto`` choose the library of a wire."""
    monkeypatch.setattr(transport, "is_httpx_itself", lambda: wire.kind == "fast")
