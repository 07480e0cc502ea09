"""The reference: a page for each room, built from the code. An extension of Sphinx.

The pages of a large room are those of its modules. No file holds any of these pages: ``docs/reference.md`` is the text
of the first one, and stands for the others where Sphinx wants a path.
"""

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from enum import Enum
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, get_args, get_overloads

import attrs
from docutils.nodes import Element
from sphinx.addnodes import desc_annotation, desc_sig_name
from sphinx.project import Project
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.inspect import stringify_signature

import llm_effects
from llm_effects import LLMError, StreamEvent

if TYPE_CHECKING:
    from sphinx.application import Sphinx

INDEX: Final = "reference"
MANY: Final = 30
"""A room with more names than this has a page for each of its modules."""

PLACES: Final = {
    "plain": "LLM AsyncLLM LLMFailure EventStream AsyncEventStream PartialStream AsyncPartialStream RequestFields "
    "TurnFields",
    "plain.datasets": "COLUMNS dataset_progress generate_dataset",
    "asgi": "",
    "pipeline": "",
    "manager": "LLMManager create_default_llm_manager create_default_local_client make_llm_manager make_model_router "
    "check_setup open_env",
    "effects": "",
    "effects.call": "AttemptContext AttemptRecord ResponseValidator TurnContext",
    "effects.effect": "result_of",
    "values": "",
    "config": "",
    "config.loading": "load_config",
    "config.settings": "Setting config_settings",
    "conversations": "",
    "structured": "",
    "tools": "",
    "tools.mcp": "McpServer mcp_toolkit",
    "tools.mcp_tools": "McpListing McpTool",
    "batches": "",
    "embeddings": "Embeddings embed",
    "policies.cache": "cache_key cache_stats clear invalidate",
    "reports": "",
    "routing": "",
    "routing.prices": "cost_of",
    "limits": "",
    "limits.circuit_breaker": "Breaker BreakerPermit",
    "limits.quotas": "ActualUsage Demand Permit Quota RateLimits",
    "clients.health_checks": "check_health check_local_model_health",
    "stores.cache.memory": "MemoryCache",
    "stores.conversations.memory": "MemoryConversations",
    "telemetry.otel": "OpenTelemetry open_telemetry",
    "testing": "",
    "testing.simulation": "",
    "testing.backtest": "backtest",
    "testing.strategies": "answers errors requests streams",
}
"""The rooms, with all their names, and the modules beside them that users import from, with the names they need."""


@attrs.frozen
class Name:
    """A public name: where users import it from, and where it is defined."""

    name: str
    place: str
    home: str

    @property
    def room(self) -> str:
        return self.place.split(".")[1]

    @property
    def path(self) -> str:
        return f"{self.place}.{self.name}"

    @property
    def value(self) -> object:
        return getattr(import_module(self.place), self.name)

    @property
    def is_alias(self) -> bool:
        """Whether the documentation is the text below an assignment, as for a type alias."""
        return bool(self.alias_doc)

    @property
    def alias_doc(self) -> list[str]:
        return ModuleAnalyzer.for_module(self.home).find_attr_docs().get(("", self.name), [])

    @property
    def summary(self) -> str:
        """The first line of the documentation."""
        lines = self.alias_doc or (inspect.getdoc(self.value) or "").splitlines()
        return next(iter(lines), "").replace("|", "\\|")


def imported(module: ModuleType) -> dict[str, str]:
    """Return the names that a module imports, with the module each comes from."""
    nodes = ast.walk(ast.parse(inspect.getsource(module)))
    froms = [
        node for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llm_effects")
    ]
    return {alias.asname or alias.name: str(node.module) for node in froms for alias in node.names}


def names_of(place: str, names: str) -> list[Name]:
    """Return the public names of a place: those given, its ``__all__``, or what a room re-exports."""
    module = import_module(f"llm_effects.{place}")
    sources = imported(module)
    listed = names.split() or getattr(module, "__all__", [*sources])
    return [Name(name, module.__name__, origin(sources.get(name, module.__name__), name)) for name in listed]


def origin(module: str, name: str) -> str:
    """Follow imports to the module that defines a name."""
    further = imported(import_module(module)).get(name)
    return module if further is None else origin(further, name)


def placed() -> dict[str, list[Name]]:
    """Return the names of each place. A name that several places export belongs to the first."""
    seen = set[tuple[str, str]]()
    places = dict[str, list[Name]]()
    for place, listed in PLACES.items():
        fresh = [name for name in names_of(place, listed) if (name.home, name.name) not in seen]
        seen.update((name.home, name.name) for name in fresh)
        places[place] = fresh
    return places


def everyday(rooms: dict[str, list[Name]]) -> dict[str, list[Name]]:
    """Return the names of the package itself, by room."""
    public = set(llm_effects.__all__)
    found = {room: [name for name in names if name.name in public] for room, names in rooms.items()}
    return {room: names for room, names in found.items() if names}


ROW = "| {{py:obj}}`{0.name} <{0.path}>` | {0.summary} |"

ALIAS = """```{{eval-rst}}
.. py:data:: {0.name}
   :module: {0.place}{1}

   {2}
```
"""

OVERLOADED = """```{{eval-rst}}
.. py:function:: {1}
   :module: {0.place}

   {2}
```
"""

AUTO = """```{{eval-rst}}
.. auto{1}:: {0.path}{2}
```
"""


def table(names: Iterable[Name]) -> str:
    return "\n".join(("| name | |", "| --- | --- |", *map(ROW.format, names), ""))


def entry(name: Name) -> str:
    """Return the documentation of one name."""
    if name.is_alias:
        canonical = "" if name.home == name.place else f"\n   :canonical: {name.home}.{name.name}"
        return ALIAS.format(name, canonical, "\n   ".join(name.alias_doc))
    overloads = get_overloads(name.value) if inspect.isfunction(name.value) else ()
    if overloads:
        doc = (inspect.getdoc(name.value) or "").splitlines()
        return OVERLOADED.format(name, f"\n{' ' * 17}".join(map(signature_of, overloads)), "\n   ".join(doc))
    members = "\n   :members:" if inspect.isclass(name.value) else ""
    members += "\n   :undoc-members:" if inspect.isclass(name.value) and issubclass(name.value, Enum) else ""
    return AUTO.format(name, "class" if inspect.isclass(name.value) else "function", members)


def signature_of(function: Callable[..., object]) -> str:
    """Return the name of a function with its signature, for a directive."""
    return function.__name__ + readable(stringify_signature(inspect.signature(function), unqualified_typehints=True))


def text_of(module: str) -> str:
    """Return the first paragraph of the documentation of a module."""
    return (inspect.getdoc(import_module(module)) or "").partition("\n\n")[0].replace("``", "`")


def grouped(names: Iterable[Name], key: Callable[[Name], str]) -> dict[str, list[Name]]:
    groups = dict[str, list[Name]]()
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return groups


def link(page: str) -> str:
    return f"{{doc}}`{page.rpartition('/')[2]} </{page}>`"


def toctree(pages: Iterable[str]) -> str:
    entries = (f"{page.rpartition('/')[2]} </{page}>" for page in pages)
    return "\n".join(("```{toctree}", ":hidden:", "", *entries, "```", ""))


def room_page(room: str, names: list[Name]) -> str:
    """Return the page of a room: a table and the entries of each module that users import from."""
    parts = [f"# Reference: {room}\n", f"{text_of(f'llm_effects.{room}')}\n"]
    for place, group in grouped(names, lambda name: name.place).items():
        if place != f"llm_effects.{room}":
            parts += [f"## {place}\n", f"{text_of(place)}\n"]
        parts += [table(group), *map(entry, group)]
    return "\n".join(parts)


def contents_page(room: str, parts: dict[str, list[Name]]) -> str:
    """Return the page of a large room: the table of each of its modules, whose names have pages of their own."""
    tables = (f"## {link(part)}\n\n{text_of(names[0].home)}\n\n{table(names)}" for part, names in parts.items())
    return "\n".join((f"# Reference: {room}\n", f"{text_of(f'llm_effects.{room}')}\n", *tables, toctree(parts)))


def part_page(room: str, page: str, names: list[Name]) -> str:
    """Return the page of one module of a large room."""
    title = f"# Reference: {room}, {page.rpartition('/')[2]}\n"
    return "\n".join((title, f"{text_of(names[0].home)}\n", table(names), *map(entry, names)))


def index_page(rooms: dict[str, list[Name]]) -> str:
    """Return what follows the text of the first page: the rooms, then the everyday names of each."""
    rows = (f"| {link(f'{INDEX}/{room}')} | {text_of(f'llm_effects.{room}')} |" for room in rooms)
    tables = (f"### From {room}\n\n{table(names)}" for room, names in everyday(rooms).items())
    return "\n".join(
        (
            "## Rooms\n",
            "| room | |\n| --- | --- |",
            *rows,
            "\n## Everyday names\n",
            "These can be imported from `llm_effects` itself.\n",
            *tables,
            toctree(f"{INDEX}/{room}" for room in rooms),
        )
    )


def pages() -> dict[str, str]:
    """Return the text of every page of the reference, by the name of its document."""
    rooms = grouped([name for names in placed().values() for name in names], lambda name: name.room)
    written = {INDEX: index_page(rooms)}
    for room, names in rooms.items():
        if len(names) <= MANY:
            written[f"{INDEX}/{room}"] = room_page(room, names)
            continue
        parts = grouped(names, lambda name: f"{INDEX}/{name.room}/{name.home.rpartition('.')[2]}")
        written[f"{INDEX}/{room}"] = contents_page(room, parts)
        written |= {page: part_page(room, page, group) for page, group in parts.items()}
    return written


class SiteProject(Project):
    """The documents of the site, among them those of the reference that no file holds."""

    generated: dict[str, str]

    def discover(self, exclude_paths: Iterable[str] = (), include_paths: Iterable[str] = ("**",)) -> set[str]:
        found = super().discover(exclude_paths, include_paths)
        found.update(self.generated)
        return found

    def doc2path(self, docname: str, absolute: bool) -> Any:  # noqa: ANN401 - as Sphinx calls it
        return super().doc2path(INDEX if docname in self.generated else docname, absolute)


def add_pages(app: "Sphinx") -> None:
    """Add the pages of the reference to the documents, or only those that ``reference_pages`` lists."""
    wanted = app.config.reference_pages
    project = SiteProject(app.srcdir, app.config.source_suffix)
    project.restore(app.project)
    project.generated = {name: text for name, text in pages().items() if not wanted or name in wanted}
    app.project = app.env.project = project


def write_page(app: "Sphinx", page: str, source: list[str]) -> None:
    generated = app.project.generated if isinstance(app.project, SiteProject) else {}
    if page in generated:
        app.env.note_dependency(__file__)
        source[0] = f"{source[0]}\n{generated[page]}" if page == INDEX else generated[page]


def reference_to(module: str, name: str) -> str:
    return f"~llm_effects.{module}.{name}"


def union_of(alias: object) -> str:
    return " | ".join(f"~{kind.__module__}.{kind.__qualname__}" for kind in get_args(alias))


ERROR: Final = reference_to("values.errors", "LLMError")
EVENT: Final = reference_to("values.events", "StreamEvent")
SINK: Final = reference_to("effects.call", "Sink")
EFFECT: Final = reference_to("effects.effect", "Effect")
GENERATE: Final = reference_to("effects.effect", "Generate")
POLICY: Final = reference_to("effects.effect", "Policy")
ENV: Final = reference_to("effects.env", "LLMEnv")
CALL: Final = reference_to("effects.call", "Call")
RESPONSE: Final = reference_to("values.responses", "LLMResponse")
FUNCTION: Final = "~collections.abc.Callable"

ALIASES: Final = (
    (re.escape(union_of(LLMError)), ERROR),
    (re.escape(union_of(StreamEvent)), EVENT),
    (rf"~[\w.]+\.RequiresContextFutureResult\[(.*?), {re.escape(ERROR)}, {re.escape(ENV)}\]", rf"{EFFECT}[\1]"),
    (re.escape(f"{FUNCTION}[[{EVENT}], ~collections.abc.Awaitable[None]]"), SINK),
    (re.escape(f"{FUNCTION}[[{CALL}], {EFFECT}[{RESPONSE}]]"), GENERATE),
    (re.escape(f"{FUNCTION}[[{GENERATE}], {GENERATE}]"), POLICY),
    (r"~(?:typing\.~)?(?=_)", ""),
    (r"\bNOTHING\b|\bEllipsis\b", "..."),
)
"""What a type alias stands for, and the alias. A later row may use an earlier one."""


def readable(text: str) -> str:
    """Show type aliases by their names, and defaults from a factory as dots."""
    for pattern, alias in ALIASES:
        text = re.sub(pattern, alias, text)
    return text


def shorten(_: "Sphinx", what: str, name: str, value: object, *event: Any) -> tuple[str, str] | None:  # noqa: ANN401
    """Make a signature readable. A layer shows what it is: a policy."""
    signature, returned = event[-2:]
    if isinstance(value, type) and value in get_args(LLMError):
        return with_values(own_fields(value), value), ""
    if (
        what == "class"
        and isinstance(value, type)
        and (getattr(value, "_is_protocol", False) or issubclass(value, Enum))
    ):
        return "", ""
    if what == "function" and name.rpartition(".")[2].startswith("with_"):
        return f"(rest: {GENERATE})", GENERATE
    return (with_values(readable(signature), value), readable(returned or "")) if signature else None


def own_fields(error: type) -> str:
    """Return the signature of an error without the fields that all errors share."""
    shared = set.intersection(*({field.name for field in attrs.fields(kind)} for kind in get_args(LLMError)))
    signature = inspect.signature(error)
    own = [parameter for name, parameter in signature.parameters.items() if name not in shared]
    common = inspect.Parameter("common", inspect.Parameter.VAR_KEYWORD)
    signature = signature.replace(parameters=[*own, common], return_annotation=inspect.Signature.empty)
    return readable(stringify_signature(signature, unqualified_typehints=True))


def with_values(signature: str, value: object) -> str:
    """Show the values of defaults that are plain constants, or defaults of fields."""
    constants = vars(sys.modules.get(getattr(value, "__module__", ""), object))
    plain = {name: repr(constant) for name, constant in constants.items() if isinstance(constant, int | float | str)}
    signature = re.sub(r"(?<== )[A-Z_]+\b", lambda match: plain.get(match[0], match[0]), signature)
    fields = attrs.fields_dict(value) if isinstance(value, type) and attrs.has(value) else {}
    signature = re.sub(r"attr_dict\['(\w+)'\]\.default", lambda match: repr(fields[match[1]].default), signature)
    return re.sub(r"<(\w+\.\w+): [^>]*>", r"\1", signature)  # a member of an enumeration


def shorten_property(_: "Sphinx", _domain: str, kind: str, content: Element) -> None:
    """Show the union of all errors by its name in the type of a property, which has no signature."""
    first, last = (error.__name__ for error in (get_args(LLMError)[0], get_args(LLMError)[-1]))
    for annotation in content.parent.findall(desc_annotation) if kind == "property" else ():
        texts = [child.astext() for child in annotation]
        if first in texts and last in texts:
            start, end = texts.index(first), texts.index(last)
            annotation[start : end + 1] = [desc_sig_name("", "LLMError")]


def setup(app: "Sphinx") -> dict[str, bool]:
    app.add_config_value("reference_pages", [], "env", list)
    app.connect("builder-inited", add_pages)
    app.connect("source-read", write_page)
    app.connect("autodoc-process-signature", shorten)
    app.connect("object-description-transform", shorten_property)
    return {"parallel_read_safe": True}
