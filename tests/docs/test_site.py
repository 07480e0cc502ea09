"""The browser of the tests sees what it is meant to see."""

from pathlib import Path

import pytest

from tests.fixtures.browser import Browser, browser

__all__ = ["browser"]

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
