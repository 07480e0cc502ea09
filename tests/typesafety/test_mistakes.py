"""Mypy and pyright report each first mistake, and each effect that is dropped, in one run of each."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.house import ROOT
from tests.fixtures.mistakes import ALL, DROPPED, SETTINGS

HEAD = """\
from llm_effects import *
def disk_space(disk: str) -> str: return disk
async def main(
    request: LLMRequest, env: LLMEnv, spent: LLMEnv, manager: LLMManager, config: LLMConfig, llm: LLM
) -> None:
"""
MISTAKES = {each.code: each.checked for each in ALL} | DROPPED


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Write every mistake in a line of its own, below a head of five lines."""
    path = tmp_path / "mistaken.py"
    path.write_text(HEAD + "".join(f"    {code}\n" for code in MISTAKES), encoding="utf-8")
    (tmp_path / "mypy.ini").write_text(SETTINGS["mypy"] + "plugins = returns.contrib.mypy.returns_plugin\n")
    (tmp_path / "pyproject.toml").write_text(SETTINGS["pyright"])
    return path


def output(path: Path, *command: str) -> str:
    environment = {"MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT), "PATH": str(Path(sys.executable).parent)}
    done = subprocess.run(
        [sys.executable, "-m", *command, path.name],
        capture_output=True,
        text=True,
        check=False,
        cwd=path.parent,
        env=environment,
    )
    return done.stdout


def missing(said: dict[int, str], expected: list[str]) -> dict[str, str]:
    """Return the mistakes of which the checker did not say what is expected, with what it said."""
    lines = zip(MISTAKES, expected, range(6, len(MISTAKES) + 6), strict=True)
    return {code: said.get(number, "") for code, words, number in lines if words not in said.get(number, "")}


def test_mypy_reports_every_mistake(program: Path) -> None:
    shown = output(program, "mypy", "--cache-dir", str(ROOT / ".mypy_cache"))
    said = dict[int, str]()
    for number, text in re.findall(r"^mistaken\.py:(\d+): (.*)$", shown, re.MULTILINE):
        said[int(number)] = f"{said.get(int(number), '')}\n{text}"
    assert missing(said, [each.mypy for each in MISTAKES.values()]) == {}


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is in the extra dev")
def test_pyright_reports_every_mistake(program: Path) -> None:
    report = json.loads(output(program, "pyright", "--outputjson", "--pythonpath", sys.executable))
    said = dict[int, str]()
    for each in report["generalDiagnostics"]:
        number = each["range"]["start"]["line"] + 1
        said[number] = f"{said.get(number, '')}\n{each['message']} ({each.get('rule', '')})"
    assert missing(said, [each.pyright for each in MISTAKES.values()]) == {}
