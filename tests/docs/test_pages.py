"""Every Python block of the README and of the documentation runs, page by page, in reading order.

The blocks of one page share their names. A failure shows the page and the line. ``<!-- skip: next -->`` skips a block.
What the pages list is compared with the code.
"""

import os
import re
import runpy
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import get_args

import attrs
import pytest
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

import llm_effects
from llm_effects import Attempt, LLMError, LLMRequest, LLMResponse, Preferences, Usage, config
from llm_effects.providers.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = {"coming-from.md", "ray.md"}
"""Their blocks run in ``test_coming_from.py``, beside those of other libraries, and in ``tests/plain``, with Ray."""

PAGES = [
    ROOT / "README.md",
    *sorted(path for path in ROOT.glob("docs/**/*.md") if "_build" not in path.parts and path.name not in ELSEWHERE),
]
SYBIL = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()])

CONFIG_VARIABLES = ("OPENAI_", "CLAUDE_", "ANTHROPIC_", "LM_STUDIO_", "LLAMA_", "LLM_")

UNUSED_ENDPOINT = "http://127.0.0.1:9/v1"


def page_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=page_of)
def test_the_blocks_of_a_page_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(CONFIG_VARIABLES)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LM_STUDIO_ENDPOINT", UNUSED_ENDPOINT)
    monkeypatch.chdir(tmp_path)
    document = SYBIL.parse(path)
    document.namespace["__name__"] = path.stem  # Django asks each view for its module
    for block in document.examples():
        block.evaluate()


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def first_cells(page: str) -> list[str]:
    """Return the first cell of every row of a page's tables."""
    return [line.split("|")[1].strip() for line in read(page).splitlines() if line.startswith("|")]


def code_words(page: str) -> set[str]:
    """Return all names in inline code on a page."""
    return set(re.findall(r"[\w-]+", " ".join(re.findall(r"`([^`\n]+)`", read(page)))))


def fields(kind: type) -> set[str]:
    return {field.name for field in attrs.fields(kind)}


def test_the_configuration_guide_names_every_setting_and_every_variable() -> None:
    kinds = [kind for kind in vars(config).values() if isinstance(kind, type) and attrs.has(kind)]
    settings = set[str]().union(*map(fields, kinds)) - fields(config.PriceTier) - fields(config.PriceChange)
    texts = re.findall(r'"([A-Z_]+)"', read("llm_effects/config/loading.py"))
    variables = {text for text in texts if text.startswith(CONFIG_VARIABLES)}
    assert (settings | variables | set(PRESETS)) - code_words("docs/guides/configuration.md") == set()


def test_the_guide_names_every_field_of_requests_and_responses() -> None:
    names = set[str]().union(*map(fields, (LLMRequest, Preferences, LLMResponse, Usage, Attempt)))
    assert names - code_words("docs/guides/requests-and-responses.md") == set()


def test_the_ideas_list_the_layers_outermost_first() -> None:
    [names] = re.findall(r"standard_pipeline: Generate = layered\(([^)]*)\)", read("llm_effects/pipeline.py"))
    layers = [f"`{name.strip()}`" for name in names.split(",") if name.strip()]
    assert first_cells("docs/ideas.md")[2:] == layers


def test_every_example_is_listed() -> None:
    examples = {f"`{path.name}`" for path in (ROOT / "examples").glob("*.py")}
    assert set(first_cells("docs/examples.md")[2:]) == examples


def test_every_tag_of_an_error_is_listed() -> None:
    tags = {kind.tag for kind in get_args(LLMError)}
    listed = (row.strip() for row in first_cells("docs/guides/errors.md"))
    assert {re.findall(r"\w+", row)[0] for row in listed if row.startswith("`")} == tags


def test_every_path_in_the_readme_exists() -> None:
    paths = re.findall(r"`([\w/.*-]+(?:/|\.py|\.md))`", read("README.md"))
    assert paths
    assert [path for path in paths if not [*ROOT.glob(path), *(ROOT / "llm_effects").glob(path)]] == []


def test_every_page_is_reachable_from_the_index() -> None:
    listed = set(re.findall(r"^([\w/-]+)$", read("docs/index.md"), re.MULTILINE))
    guides = {f"guides/{path.stem}" for path in (ROOT / "docs/guides").glob("*.md")}
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert (guides | pages) - listed == set()


def new_names() -> list[str]:
    """Return the new side of every row of the changelog's table."""
    return [line.split("|")[2] for line in read("docs/changelog.md").splitlines() if line.startswith("| `")]


def test_every_new_import_in_the_changelog_works() -> None:
    imports = [found for new in new_names() for found in re.findall(r"from ([\w.]+) import (\w+)", new)]
    assert len(imports) > 100
    assert [f"{module}.{name}" for module, name in imports if not hasattr(import_module(module), name)] == []


def test_every_new_member_in_the_changelog_exists() -> None:
    members = {found for new in new_names() for found in re.findall(r"`([A-Z]\w+)\.(\w+)", new)}
    places = [import_module(f"llm_effects.{room}") for room in ("effects", "effects.call", "routing", "values")]
    owners = {name: vars(place)[name] for place in places for name in vars(place)}
    assert members
    assert [f"{owner}.{member}" for owner, member in members if not hasattr(owners[owner], member)] == []


def test_the_glossary_is_sorted() -> None:
    lines = read("docs/glossary.md").splitlines()
    terms = [term for term, below in pairwise(lines) if below.startswith(": ")]
    assert terms == sorted(terms, key=str.lower)


def test_the_reference_has_an_entry_for_every_public_name() -> None:
    pytest.importorskip("sphinx")
    reference = runpy.run_path(str(ROOT / "docs/reference.py"))
    written = "\n".join(reference["pages"]().values())
    names = set(re.findall(r"^\.\. (?:py|auto)[\w:]+:: (?:[\w.]+\.)?(\w+)", written, re.MULTILINE))
    rooms = [import_module(f"llm_effects.{path.parent.name}") for path in ROOT.glob("llm_effects/*/__init__.py")]
    public = {name for room in rooms for name in reference["imported"](room)} | set(llm_effects.__all__)
    assert public - names == set()


def test_every_claim_of_the_comparison_names_a_test() -> None:
    page = read("docs/comparison.md")
    named = re.findall(r"^\[\^(\d+)\]: `(tests/[\w/.]+)(?:::(\w+))?`$", page, re.MULTILINE)
    assert [number for number, _, _ in named] == re.findall(r"\[\^(\d+)\](?!:)", page)
    assert [test for _, file, test in named if test and not re.search(rf"def {test}\b", read(file))] == []
    assert [file for _, file, _ in named if not (ROOT / file).exists()] == []
