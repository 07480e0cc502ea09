"""Draw the rooms of the house from the imports of the code: ``python docs/rooms.py`` writes ``docs/rooms.svg``.

Arrows are real: one goes from each room to every room that it imports, unless other arrows already lead there. Where a
room stands is chosen by hand below; a room without a place, or an arrow that points up, is an error.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

import grimp

PICTURE = Path(__file__).with_name("rooms.svg")

TITLE = "The rooms of llm_effects and their imports"

Graph: TypeAlias = Mapping[str, frozenset[str]]

WIDTH, ROW, TOP, GAP = 1100, 84, 36, 26
BOX_WIDTH, BOX_HEIGHT = 148, 50


class Room(NamedTuple):
    """The place of a room: its centre from the left, its row from the top, and a word on what it holds."""

    x: int
    row: int
    holds: str


ROOMS = {
    "cli": Room(832, 0, "llm-effects"),
    "plain": Room(624, 1, "LLM, AsyncLLM"),
    "asgi": Room(810, 1, "OpenAI's endpoint"),
    "tools": Room(424, 2, "tool, run_tools"),
    "manager": Room(832, 2, "LLMManager"),
    "testing": Room(996, 1, "doubles, replay"),
    "reports": Room(104, 2, "usage, exports"),
    "embeddings": Room(264, 3, "embed"),
    "structured": Room(424, 3, "generate_as"),
    "conversations": Room(584, 3, "converse"),
    "batches": Room(744, 3, "generate_many"),
    "pipeline": Room(504, 4, "generate, stream"),
    "policies": Room(420, 5, "one layer a module"),
    "telemetry": Room(722, 6, "traces, logs"),
    "stores": Room(886, 6, "caches, ledgers"),
    "routing": Room(300, 7, "ranking, prices"),
    "clients": Room(996, 7, "HTTP, local engine"),
    "effects": Room(450, 8, "Effect, Call, LLMEnv"),
    "providers": Room(806, 8, "protocols, presets"),
    "limits": Room(550, 9, "quotas, breakers"),
    "config": Room(550, 10, "models, loading"),
    "values": Room(550, 11, "requests, errors"),
}


class Storey(NamedTuple):
    """A panel behind rooms: its title, its edges from the left, its first and last row."""

    title: str
    kind: str
    left: int
    right: int
    first: int
    last: int


STOREYS = (
    Storey("What people call", "call", 16, 1084, 0, 3),
    Storey("The centre", "centre", 16, 628, 4, 8),
    Storey("The edges", "edge", 640, 1084, 6, 8),
    Storey("The ground", "ground", 16, 1084, 9, 11),
)

STYLE = """
svg { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
.page { fill: #ffffff; }
.storey { stroke: none; }
.storey.call { fill: #eef4ff; } .storey.centre { fill: #fff4e6; }
.storey.edge { fill: #ecf9f1; } .storey.ground { fill: #f3f2f7; }
.title { font-size: 16px; font-weight: 600; fill: #5b6472; letter-spacing: .02em; }
.room { fill: #ffffff; stroke-width: 1.5; }
.room.call { stroke: #3b74d1; } .room.centre { stroke: #c9761a; }
.room.edge { stroke: #2f9460; } .room.ground { stroke: #77709a; }
.name { font-size: 16px; font-weight: 600; fill: #1b2330; text-anchor: middle; }
.holds { font-size: 12.5px; fill: #5b6472; text-anchor: middle; }
.arrow { fill: none; stroke: #8a93a3; stroke-width: 1.3; }
.tip { fill: #8a93a3; }
@media (prefers-color-scheme: dark) {
  .page { fill: #131416; }
  .storey.call { fill: #17202f; } .storey.centre { fill: #271f14; }
  .storey.edge { fill: #14241b; } .storey.ground { fill: #1d1b26; }
  .title, .holds { fill: #a3abb8; }
  .room { fill: #1a1c1e; }
  .room.call { stroke: #6f9fee; } .room.centre { stroke: #e09a4a; }
  .room.edge { stroke: #55bd86; } .room.ground { stroke: #9d95c4; }
  .name { fill: #eef1f5; }
  .arrow { stroke: #78818f; }
  .tip { fill: #78818f; }
}
"""


def imports() -> Graph:
    """Return the rooms that each room imports."""
    graph = grimp.build_graph("llm_effects", cache_dir=None, exclude_type_checking_imports=True)
    modules = graph.modules - {"llm_effects", "llm_effects.__main__"}  # which only starts the command line
    found: dict[str, set[str]] = {room_of(module): set() for module in modules}
    for module in modules:
        found[room_of(module)].update(map(room_of, graph.find_modules_directly_imported_by(module)))
    return {room: frozenset(others - {room, ""}) for room, others in found.items()}


def room_of(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def reachable(graph: Graph, room: str) -> frozenset[str]:
    """Return every room that a room imports, directly or by way of others."""
    return graph[room].union(*(reachable(graph, other) for other in graph[room]))


def reduced(graph: Graph) -> Graph:
    """Return the graph without the arrows that others imply."""
    return {
        room: frozenset(other for other in others if not any(other in reachable(graph, each) for each in others))
        for room, others in graph.items()
    }


def ports(others: Iterable[str]) -> dict[str, float]:
    """Spread the ends of arrows over the edge of a box, in the order of the rooms at their other ends."""
    ordered = sorted(others, key=lambda room: (ROOMS[room].x, room))
    step = min(26.0, (BOX_WIDTH - 30) / max(len(ordered), 1))
    return {room: (index - (len(ordered) - 1) / 2) * step for index, room in enumerate(ordered)}


def top_of(row: int) -> int:
    """Return where a row begins; panels below each other have a gap between them."""
    return TOP + row * ROW + GAP * len({each.last for each in STOREYS if each.last < row})


def arrow(room: str, other: str, start: float, end: float) -> str:
    """Draw an arrow as a curve that leaves downwards and arrives downwards."""
    if ROOMS[room].row >= ROOMS[other].row:
        message = f"{room} imports {other}, which does not stand below it in docs/rooms.py"
        raise ValueError(message)
    x1, y1 = ROOMS[room].x + start, top_of(ROOMS[room].row) + BOX_HEIGHT
    x2, y2 = ROOMS[other].x + end, top_of(ROOMS[other].row) - 7
    bend = (y2 - y1) * (0.5 if ROOMS[other].row - ROOMS[room].row < 3 else 0.4)
    curve = f"M{x1:g} {y1:g}C{x1:g} {y1 + bend:.0f} {x2:g} {y2 - bend:.0f} {x2:g} {y2:g}"
    return f'<path class="arrow" d="{curve}"/><path class="tip" d="M{x2 - 4:g} {y2:g}h8l-4 7z"/>'


def arrows(graph: Graph) -> Iterator[str]:
    importers = {room: [other for other in graph if room in graph[other]] for room in graph}
    starts = {room: ports(others) for room, others in graph.items()}
    ends = {room: ports(others) for room, others in importers.items()}
    for room in ROOMS:
        for other in sorted(graph[room]):
            yield arrow(room, other, starts[room][other], ends[other][room])


def panel(storey: Storey) -> str:
    top, bottom = top_of(storey.first) - 20, top_of(storey.last) + BOX_HEIGHT + 20
    size = f'x="{storey.left}" y="{top}" width="{storey.right - storey.left}" height="{bottom - top}" rx="12"'
    # In a corner where no room and no arrow is.
    x, anchor = (storey.right - 16, "end") if storey.kind == "edge" else (storey.left + 16, "start")
    y = bottom - 18 if storey.kind in {"centre", "edge"} else top + 26
    title = f'<text class="title" x="{x}" y="{y}" text-anchor="{anchor}">{storey.title}</text>'
    return f'<rect class="storey {storey.kind}" {size}/>{title}'


def kind_of(room: Room) -> str:
    return next(
        each.kind for each in STOREYS if each.first <= room.row <= each.last and each.left < room.x < each.right
    )


def box(name: str) -> str:
    room, top = ROOMS[name], top_of(ROOMS[name].row)
    size = f'x="{room.x - BOX_WIDTH / 2:g}" y="{top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8"'
    return (
        f'<rect class="room {kind_of(room)}" {size}/>'
        f'<text class="name" x="{room.x}" y="{top + 22}">{name}</text>'
        f'<text class="holds" x="{room.x}" y="{top + 40}">{room.holds}</text>'
    )


def drawing() -> str:
    """Return the picture as SVG: the same text for the same imports."""
    graph = imports()
    if set(graph) != set(ROOMS):
        message = f"docs/rooms.py must place exactly the rooms of the package; it differs in {set(graph) ^ set(ROOMS)}"
        raise ValueError(message)
    height = top_of(max(room.row for room in ROOMS.values())) + BOX_HEIGHT + 36
    lines = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{TITLE}">',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="12"/>',
        *map(panel, STOREYS),
        *arrows(reduced(graph)),
        *map(box, ROOMS),
        "</svg>",
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(drawing(), encoding="utf-8")
