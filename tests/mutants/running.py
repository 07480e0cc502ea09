"""Runs a mutant: in a copy of the repository, never in the checkout, by the tests of its room in one process."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import final

from attrs import frozen

from tests.mutants.mutant import PACKAGE, ROOT, Mutant

LIMIT_S = 300.0
"""How long the tests of a mutant may run, in seconds: one that hangs is caught."""

_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@final
@frozen
class Ending:
    """How the tests of a mutant ended: ``caught_by`` is the first test that failed, or ``None``."""

    mutant: Mutant
    caught_by: str | None
    seconds: float

    @property
    def caught(self) -> bool:
        """Whether a test failed."""
        return self.caught_by is not None

    @property
    def line(self) -> str:
        """A row of the table."""
        return f"{self.mutant.name:58} {self.caught_by or 'NOT CAUGHT':90} {self.seconds:6.1f} s"


@contextmanager
def copied() -> Iterator[Path]:
    """Copy the package, its tests and their settings into a temporary folder."""
    with TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        for each in (PACKAGE, "tests"):
            shutil.copytree(ROOT / each, folder / each, ignore=shutil.ignore_patterns("__pycache__"))
        for each in ("pyproject.toml", "mypy.ini"):
            shutil.copy(ROOT / each, folder)
        yield folder


def run(mutant: Mutant, folder: Path) -> Ending:
    """Break the copy, run the tests of the room until one fails, and mend the copy."""
    module, broken = folder / PACKAGE / mutant.module, mutant.apply(folder)
    whole, started = module.read_text("utf-8"), monotonic()
    _write(module, broken)
    try:
        caught_by = _first_failure(mutant, folder)
    finally:
        _write(module, whole)
    return Ending(mutant, caught_by, monotonic() - started)


def _write(module: Path, source: str) -> None:
    module.write_text(source, "utf-8")
    for stale in (module.parent / "__pycache__").glob(f"{module.stem}.*"):  # a write in the same second is not seen
        stale.unlink()


def _first_failure(mutant: Mutant, folder: Path) -> str | None:
    own, others = mutant.test_files(folder)
    return _run_tests(mutant, own, folder) or _run_tests(mutant, others, folder)


_OPTIONS = ("-x", "-q", "--tb=no", "--no-header", "-rfE", "-p", "no:cacheprovider")
_PLUGINS = ("-o", "addopts=--import-mode=importlib", "-p", "anyio", "-p", "pytest_httpx")  # others cost a second


def _run_tests(mutant: Mutant, files: Sequence[Path], folder: Path) -> str | None:
    """Return the first of the tests that fails, if one does."""
    if not files:
        return None
    environment = {**os.environ, "PYTHONPATH": str(folder), "CI": "true", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = (sys.executable, "-m", "pytest", *_OPTIONS, *_PLUGINS, *(str(each.relative_to(folder)) for each in files))
    try:
        ended = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"the time limit of {LIMIT_S:g} s"
    failed = _FAILED.search(ended.stdout)
    if ended.returncode not in (0, 1) or bool(ended.returncode) != bool(failed):
        sys.exit(f"{mutant.name}: pytest ended with {ended.returncode}\n{ended.stdout[-3000:]}{ended.stderr[-3000:]}")
    return failed[1].removeprefix("tests/") if failed else None
