"""The site in a browser: what its pages report, load, and cannot show without scrolling sideways; what a search finds.

Of the reference there is one page of each kind, since all of it takes as long to build as all other pages together.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.browser import Browser, browser

__all__ = ["browser"]

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.glob("**/*.md") if "_build" not in path.parts)
REFERENCE = ["reference/tools", "reference/values", "reference/values/requests"]
"""The page of a room, of a large room, and of one module of a large room."""

SEARCHES = {
    "SSE": ("services", "Chats"),
    "FastAPI": ("services", "FastAPI"),
    "Django": ("services", "Django"),
    "notebook": ("plain-python", "Threads, notebooks and processes"),
    "sync": ("plain-python", None),
    "threads": ("plain-python", "Threads, notebooks and processes"),
    "retry": ("retries-timeouts-limits", None),
    "fallback": ("routing-and-fallback", None),
    "cost": ("costs-and-budgets", None),
    "LM Studio": ("local-models", "A server on this machine"),
    "Ollama": ("local-models", "A server on this machine"),
}
"""Words, with the guide that a search for each finds first, and the heading that the link leads to, or the top."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Path:
    """Return the folder of the pages."""
    pytest.importorskip("furo", reason='the site needs more packages: pip install -e ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    pages = f"reference_pages={','.join(['reference', *REFERENCE])}"
    command = [sys.executable, "-m", "sphinx", "-Q", "-b", "html", "-D", pages, "-d", folder / "doctrees"]
    subprocess.run([*command, DOCS, folder / "html"], check=True, cwd=ROOT)
    return folder / "html"


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS).with_suffix(""))


@pytest.mark.parametrize("page", [*map(name_of, PAGES), *REFERENCE])
def test_a_page_is_shown_without_faults(browser: Browser, site: Path, page: str) -> None:
    with browser.open(site / f"{page}.html", 1280) as tab:
        wide, two_sidebars, narrow = tab.look(1280), tab.look(1313), tab.look(360, dark=True)
    assert wide.is_clean_within(site), wide
    assert (wide.wide, two_sidebars.wide) == ((), ())
    assert narrow.is_clean_within(site), narrow


@pytest.mark.parametrize("page", ["genindex", "search"])
def test_a_page_of_the_theme_is_shown_without_faults(browser: Browser, site: Path, page: str) -> None:
    look = browser.look(site / f"{page}.html", 1280)
    assert look.is_clean_within(site), look


@pytest.mark.parametrize(("word", "guide", "heading"), [(word, *place) for word, place in SEARCHES.items()])
def test_a_search_finds_the_guide(browser: Browser, site: Path, word: str, guide: str, heading: str | None) -> None:
    search = f"Search._performSearch(...Search._parseQuery({json.dumps(word)})).at(-1).slice(0, 3)"
    with browser.open(site / "search.html", 1280) as tab:
        page, _, anchor = browser.value_of(search, tab.session)
    above, _, below = (site / f"{page}.html").read_text(encoding="utf-8").partition(f'id="{anchor[1:]}"')
    assert page == f"guides/{guide}"
    assert re.findall(r"<h2>(.*?)<", below)[0] == heading if heading else "<h2>" not in above


# The browser sees what it is meant to see.

MOVED = """<p>moved</p><script>
  const push = () => document.body.prepend(Object.assign(document.createElement('hr'), { style: 'height: 400px' }));
  requestAnimationFrame(() => requestAnimationFrame(push));
</script>"""


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        ("<script>missing()</script>", "problems"),
        ("<script>console.error('no')</script>", "problems"),
        ("<script>Promise.reject(new Error('no'))</script>", "problems"),
        ("<img src='http://host.invalid/pixel.png'>", "requests"),
        ("<link rel=stylesheet href='other.css'>", "requests"),
        ("<div style='width: 500px'>wide</div>", "overflow"),
        (f"<pre style='overflow: auto'>{'code ' * 100}</pre>", "wide"),
        (f"<div style='overflow: auto'><pre>{'code ' * 100}</pre></div>", "wide"),
        ("<p style='color: #888'>faint</p>", "faint"),
        ("<svg><text y=20 fill='#999'>faint</text></svg>", "faint"),
        ("<p style='color: #222'>faint in the dark</p>", "faint"),
        (MOVED, "shift"),
    ],
)
def test_a_browser_sees(browser: Browser, tmp_path: Path, body: str, seen: str) -> None:
    file = tmp_path / "page.html"
    head = "<meta charset=utf-8><meta name=color-scheme content='light dark'><meta name=viewport content='width=400'>"
    file.write_text(f"<!DOCTYPE html>{head}<title>page</title><body>{body}", encoding="utf-8")
    look = browser.look(file, 400, dark="dark" in body)
    assert getattr(look, seen), look


def test_a_browser_sees_no_faults_where_there_are_none(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("<!DOCTYPE html><title>page</title><p>plain<pre>code</pre>", encoding="utf-8")
    look = browser.look(file, 400)
    assert look.is_clean
    assert (look.wide, look.shift) == ((), 0)
