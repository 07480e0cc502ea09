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

_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", re.MULTILINE)


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
        caught_by = "NOT CAUGHT" if self.caught_by is None else self.caught_by.removeprefix("tests/")
        return f"{self.mutant.name:55} {self.seconds:5.1f} s  {caught_by}"


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
    """Return the first test that fails, and fails again: on a busy machine a test may fail once for no reason."""
    unsteady = list[str]()
    while True:
        runs = (_run_tests(files, folder, unsteady) for files in mutant.test_files(folder))
        failed = next(filter(None, runs), None)
        if failed in (None, _TOO_LONG) or _run_tests([folder / failed.partition("[")[0]], folder):
            return failed
        unsteady.append(failed)


_TOO_LONG = f"the time limit of {LIMIT_S:g} s"

# Other plugins take a second to load, and no room needs them.
_OPTIONS = (
    *("-x", "-q", "--tb=no", "--no-header", "-rfE", "-p", "no:cacheprovider", "-p", "anyio", "-p", "pytest_httpx"),
    *("-o", "addopts=--import-mode=importlib --doctest-modules"),
)
_ENVIRONMENT = {"CI": "true", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # in CI, hypothesis tries the same examples


def _run_tests(tests: Sequence[Path], folder: Path, left_out: Sequence[str] = ()) -> str | None:
    """Return the first of the tests that fails, if one does."""
    names = [str(each.relative_to(folder)) for each in tests]
    options = (*_OPTIONS, *(f"--deselect={each}" for each in left_out))
    environment = {**os.environ, **_ENVIRONMENT, "PYTHONPATH": str(folder)}
    try:
        ended = subprocess.run(
            (sys.executable, "-m", "pytest", *options, *names),
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _TOO_LONG
    failed = _FAILED.search(ended.stdout)
    if ended.returncode not in (0, 1) or bool(ended.returncode) != bool(failed):
        sys.exit(f"pytest ended with {ended.returncode}\n{ended.stdout[-3000:]}{ended.stderr[-3000:]}")
    return failed[1] if failed else None
