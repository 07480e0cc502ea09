"""Pyright (strict) reports exactly the lines marked ``# rejected``, and knows the type of every public name."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is in the extra dev")

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("pyright_*.py"))


def pyright(*options: object) -> Any:
    """Run pyright for this interpreter, and return its report."""
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, *map(str, options)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)


def rejected_in(file: Path) -> set[str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return {f"{file.name}:{number}" for number, line in enumerate(lines, start=1) if line.endswith("# rejected")}


def test_exactly_the_marked_lines_are_rejected() -> None:
    expected = {line for file in FILES for line in rejected_in(file)}
    reported = {
        f"{Path(each['file']).name}:{each['range']['start']['line'] + 1}": each["message"]
        for each in pyright(*FILES)["generalDiagnostics"]
    }
    assert set(reported) == expected, {line: reported.get(line) for line in set(reported) ^ expected}


def test_every_public_name_has_a_known_type() -> None:
    completeness = pyright("--verifytypes", "llm_effects", "--ignoreexternal")["typeCompleteness"]
    unknown = [symbol["name"] for symbol in completeness["symbols"] if not symbol["isTypeKnown"]]
    assert completeness["completenessScore"] == 1, unknown
