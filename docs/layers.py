"""Draw the pipeline from its list of layers: ``python docs/layers.py`` writes ``docs/pipeline.svg``.

The layers and their order come from ``llm_effects/pipeline.py``, what each does from the table in ``docs/ideas.md``.
"""

import re
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parent
PICTURE = DOCS / "pipeline.svg"

TITLE = "The layers of the pipeline, from the request to the model and back"

WIDTH, ROW, TOP, LEFT, RIGHT = 860, 42, 56, 150, 790


class Scope(NamedTuple):
    """What the layers from one on act upon."""

    title: str
    first: str
    kind: str


SCOPES = (
    Scope("the whole call", "with_tracing", "call"),
    Scope("one candidate", "with_repair", "candidate"),
    Scope("one attempt", "with_circuit_breaker", "attempt"),
)

STYLE = """
svg { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
.page { fill: #ffffff; }
.layer { stroke-width: 1.5; }
.layer.call { fill: #eef4ff; stroke: #3b74d1; } .layer.candidate { fill: #fff4e6; stroke: #c9761a; }
.layer.attempt { fill: #ecf9f1; stroke: #2f9460; }
.name { font-size: 15px; font-weight: 600; fill: #1b2330; font-family: ui-monospace, "DejaVu Sans Mono", monospace; }
.does { font-size: 13.5px; fill: #434c59; }
.scope, .end { font-size: 14px; font-weight: 600; fill: #5b6472; }
.scope { text-anchor: end; } .end { text-anchor: middle; }
.way { fill: none; stroke: #8a93a3; stroke-width: 2; } .tip { fill: #8a93a3; }
@media (prefers-color-scheme: dark) {
  .page { fill: #131416; }
  .layer.call { fill: #17202f; stroke: #6f9fee; } .layer.candidate { fill: #271f14; stroke: #e09a4a; }
  .layer.attempt { fill: #14241b; stroke: #55bd86; }
  .name { fill: #eef1f5; } .does { fill: #c3c9d3; } .scope, .end { fill: #a3abb8; }
  .way { stroke: #78818f; } .tip { fill: #78818f; }
}
"""


def layers() -> tuple[str, ...]:
    """Return the names of the layers, outermost first."""
    source = (DOCS.parent / "llm_effects" / "pipeline.py").read_text(encoding="utf-8")
    [listed] = re.findall(r"standard_pipeline: Generate = layered\(([^)]*)\)", source)
    return tuple(re.findall(r"\w+", listed))


def purposes() -> dict[str, str]:
    """Return what each layer does."""
    rows = (DOCS / "ideas.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", rows, re.MULTILINE))


def scope_of(names: tuple[str, ...], name: str) -> Scope:
    return next(scope for scope in reversed(SCOPES) if names.index(scope.first) <= names.index(name))


def layer(names: tuple[str, ...], name: str, does: str) -> str:
    row = names.index(name)
    top, scope = TOP + row * ROW, scope_of(names, name)
    size = f'x="{LEFT}" y="{top}" width="{RIGHT - LEFT}" height="{ROW - 8}" rx="7"'
    return (
        f'<rect class="layer {scope.kind}" {size}/>'
        f'<text class="name" x="{LEFT + 14}" y="{top + 22}">{name}</text>'
        f'<text class="does" x="{LEFT + 224}" y="{top + 22}">{does}</text>'
        + (f'<text class="scope" x="{LEFT - 34}" y="{top + 22}">{scope.title}</text>' if name == scope.first else "")
    )


def ways(bottom: int) -> str:
    """Draw the way of the request down on the left, and of the answer up on the right."""
    down, up = LEFT - 16, RIGHT + 16
    return (
        f'<path class="way" d="M{down} {TOP - 14}V{bottom - 8}"/>'
        f'<path class="tip" d="M{down - 6} {bottom - 10}h12l-6 10z"/>'
        f'<path class="way" d="M{up} {bottom}V{TOP - 6}"/><path class="tip" d="M{up - 6} {TOP - 5}h12l-6 -10z"/>'
        f'<text class="end" x="{down}" y="{TOP - 24}">request</text>'
        f'<text class="end" x="{up}" y="{TOP - 24}">answer</text>'
        f'<text class="end" x="{(down + up) // 2}" y="{bottom + 44}">the model</text>'
        f'<path class="way" d="M{down} {bottom + 6}C{down} {bottom + 32} {up} {bottom + 32} {up} {bottom}" '
        'stroke-dasharray="3 5"/>'
    )


def drawing() -> str:
    """Return the picture as SVG: the same text for the same layers."""
    names, does = layers(), purposes()
    bottom = TOP + len(names) * ROW - 8
    height = bottom + 62
    lines = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{TITLE}">',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="12"/>',
        *(layer(names, name, does[name]) for name in names),
        ways(bottom),
        "</svg>",
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(drawing(), encoding="utf-8")
