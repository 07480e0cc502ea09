"""The pages for contributors say what is there: paths, links, rooms, and the way of a call."""

import re
from pathlib import Path

import pytest

from llm_effects import pipeline
from tests.fixtures.house import PACKAGE, ROOT

PAGES = [
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "docs" / "architecture.md",
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
    *sorted((ROOT / "docs" / "decisions").glob("*.md")),
]

# What the tutorials tell a reader to write.
MADE_BY_READERS = ("parrot", "working_hours", "shelf")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_in_code_are_there(page: Path) -> None:
    paths = re.findall(r"`((?:[\w.-]+/)*[\w.-]+(?:/|\.(?:py|md|svg|toml|lock)))`", page.read_text(encoding="utf-8"))
    near = (ROOT, PACKAGE, PACKAGE / "clients" / "transport")
    missing = [path for path in paths if not any((folder / path).exists() for folder in near)]
    assert [path for path in missing if not any(name in path for name in MADE_BY_READERS)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_map_shows_every_room() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(\w+(?:/|\.py))`", contributing.partition("## The map")[2].partition("\n## ")[0]))
    rooms = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in PACKAGE.iterdir()
        if path.name[:2] not in {"__", "py"}
    }
    assert rooms - listed == set()


def test_the_way_of_a_call_follows_the_pipeline() -> None:
    source = Path(pipeline.__file__).read_text(encoding="utf-8")
    [names] = re.findall(r"^standard_pipeline[^=]*= layered\(([^)]*)\)", source, re.MULTILINE)
    layers = [name.strip().removeprefix("with_") for name in names.split(",") if name.strip()]
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `policies/(\w+)\.py`", architecture, re.MULTILINE) == layers


def test_every_decision_has_its_three_parts() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("2*.md"))
    assert pages
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert re.findall(r"^## (.*)", text, re.MULTILINE) == ["Context", "Decision", "Consequences"], page
        assert page.name[:10] in text, page
