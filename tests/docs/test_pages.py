"""Every Python block of the README and of the documentation runs, page by page, in the order of reading.

Blocks of one page share their names. A failure shows the page and the line. ``<!-- skip: next -->`` leaves a block out.
What the pages list is compared with the code.
"""

import os
import re
from pathlib import Path
from typing import get_args

import attrs
import pytest
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

from llm_effects import Attempt, LLMError, LLMRequest, LLMResponse, Preferences, Usage, config
from llm_effects.providers.presets import PRESETS

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


def rows_of(page: str) -> list[str]:
    """The first cell of every row of a page's tables."""
    lines = (ROOT / page).read_text().splitlines()
    return [line.split("|")[1].strip() for line in lines if line.startswith("|")]


def named_in(page: str) -> set[str]:
    """All names that stand in code on a page."""
    return set(re.findall(r"[\w-]+", " ".join(re.findall(r"`([^`\n]+)`", (ROOT / page).read_text()))))


def fields(kind: type) -> set[str]:
    return {field.name for field in attrs.fields(kind)}


def test_the_guide_names_every_setting_and_every_variable() -> None:
    kinds = [kind for kind in vars(config).values() if isinstance(kind, type) and attrs.has(kind)]
    settings = set[str]().union(*map(fields, kinds)) - fields(config.PriceTier) - fields(config.PriceChange)
    texts = re.findall(r'"([A-Z_]+)"', (ROOT / "llm_effects/config/loading.py").read_text())
    variables = {text for text in texts if text.startswith(CONFIGURING)}
    assert (settings | variables | set(PRESETS)) - named_in("docs/guides/configuration.md") == set()


def test_the_guide_names_all_that_requests_and_answers_say() -> None:
    said = set[str]().union(*map(fields, (LLMRequest, Preferences, LLMResponse, Usage, Attempt)))
    assert said - named_in("docs/guides/requests.md") == set()


def test_the_ideas_tell_the_layers_in_their_order() -> None:
    source = (ROOT / "llm_effects/pipeline.py").read_text()
    [names] = re.findall(r"generate_call: Generate = layered\(([^)]*)\)", source)
    assert rows_of("docs/ideas.md")[2:] == [f"`{name.strip()}`" for name in names.split(",")]


def test_every_example_is_listed() -> None:
    examples = {f"`{path.name}`" for path in (ROOT / "examples").glob("*.py")}
    assert set(rows_of("docs/examples.md")[2:]) == examples


def test_every_tag_of_an_error_is_listed() -> None:
    tags = {kind.tag for kind in get_args(LLMError)}
    assert {re.findall(r"\w+", row)[0] for row in rows_of("docs/guides/errors.md")[2:]} == tags


def test_what_the_readme_points_at_is_there() -> None:
    named = re.findall(r"`([\w/.*]+(?:/|\.py|\.md))`", (ROOT / "README.md").read_text())
    assert named
    assert [name for name in named if not [*ROOT.glob(name), *(ROOT / "llm_effects").glob(name)]] == []
