"""Every Python block of the README and of the documentation runs, page by page, in the order of reading.

Blocks of one page share their names. A failure shows the page and the line. ``<!-- skip: next -->`` leaves a block out.
"""

import os
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(path for path in ROOT.glob("docs/**/*.md") if "_build" not in path.parts)]
SYBIL = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()])

CONFIGURING = ("OPENAI_", "CLAUDE_", "ANTHROPIC_", "LM_STUDIO_", "LLAMA_", "LLM_")

NOBODY = "http://127.0.0.1:9/v1"


def page_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=page_of)
def test_the_blocks_of_a_page_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(CONFIGURING)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LM_STUDIO_ENDPOINT", NOBODY)
    monkeypatch.chdir(tmp_path)
    for block in SYBIL.parse(path).examples():
        block.evaluate()
