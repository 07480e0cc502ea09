"""Fixtures for all tests: every async test runs on asyncio and on trio.

Tests with ``wire`` run over each HTTP library, too: their module or folder takes the event loop from it.
"""

import gc
import os
import shutil
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.fixtures.wires import WIRES, Wire

pytest_plugins = ["pytester", "llm_effects.testing.pytest_plugin"]

# No deadline, since a busy machine is not a failure; in CI a commit always runs the same examples.
settings.register_profile("house", deadline=None, max_examples=50, derandomize="CI" in os.environ)
settings.load_profile("house")

# A shell that runs this in the background has it ignore Ctrl-C; the programs that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A process that may not keep bytecode compiles the library anew, as do the hundreds that tests start.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

gc.disable()  # until all tests are collected


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """Return one worker more than there are cores: tests wait for a third of their time."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Give each worker tests that follow one another: it builds what a module shares, and other workers do not."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


def pytest_collection_finish() -> None:
    """Take modules and tests out of garbage collection, which would look through them thousands of times."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Permit calls: the models of these tests are servers on this machine, which the tests start themselves."""
    for item in items:
        item.add_marker("llm_real")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=WIRES, ids=str)
def wire(request: pytest.FixtureRequest) -> Wire:
    value: Wire = request.param
    return value


@pytest.fixture(scope="session")
def own_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a self-signed certificate, ``cert``, and its ``key``."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-keyout", folder / "key", "-out", folder / "cert"], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def own_authority(own_certificate: Path) -> ssl.SSLContext:
    """Return a TLS context with a self-signed certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own_certificate / "cert", own_certificate / "key")
    return context
