"""The example of a dataset: on Ray, where that is installed, and with the command that installs it elsewhere."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.test_examples import unconfigured
from tests.fixtures.examples import EXAMPLES
from tests.fixtures.ray_programs import RAY, ray_program

EXAMPLE = str(EXAMPLES / "dataset.py")


@pytest.mark.skipif(sys.executable == RAY, reason="Ray is installed")
def test_without_ray_the_example_names_the_command() -> None:
    command = [sys.executable, "-W", "error", EXAMPLE]
    done = subprocess.run(command, env=unconfigured(), capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("this example needs ray: pip install ")
    assert "[ray]" in done.stderr


def test_the_example_resumes_on_ray(tmp_path: Path) -> None:
    folder = str(tmp_path / "answers")
    first, second = (ray_program(EXAMPLE, folder, variables=unconfigured()) for _ in range(2))
    assert first == second
    assert [line.partition(":")[0] for line in first.splitlines()[:6]] == [
        "a cache",
        "a disk",
        "a lock",
        "a log file",
        "a queue",
        "a timeout",
    ]
    assert first.splitlines()[6:] == ["first start: 6 rows, 0 failed, $0", "second start: 6 rows, 0 failed, $0"]
