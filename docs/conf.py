"""The site: ``sphinx-build -W -q -b html docs docs/_build``. The reference is built from the code."""

import ast
import inspect
import re
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version as version_of
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, get_args, get_overloads

import attrs
from docutils.nodes import Element
from sphinx.addnodes import desc_annotation, desc_sig_name
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.inspect import stringify_signature

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import llm_effects  # noqa: E402 - this checkout, not an installed version
from llm_effects import LLMError, StreamEvent  # noqa: E402

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "llm_effects"
release = version = version_of("llm-effects")
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "llm_effects"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sphinx = False
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100

PLACES: Final = {
    "plain": "LLM AsyncLLM LLMFailure EventStream AsyncEventStream RequestFields TurnFields",
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
}
"""The rooms, with all their names, and the modules beside them that users import from, with the names they need."""


@attrs.frozen
class Name:
    """A public name: where users import it from, and where it is defined."""

    name: str
    place: str
    home: str

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


def everyday(places: dict[str, list[Name]]) -> list[Name]:
    """Return the names of the package itself, each at its place."""
    by_name = {name.name: name for names in reversed(places.values()) for name in names}
    return [by_name[name] for name in sorted(llm_effects.__all__, key=str.lower)]


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


def table(names: list[Name]) -> str:
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
    return AUTO.format(name, "class" if inspect.isclass(name.value) else "function", members)


def signature_of(function: Callable[..., object]) -> str:
    """Return the name of a function with its signature, for a directive."""
    return function.__name__ + readable(stringify_signature(inspect.signature(function), unqualified_typehints=True))


def section(place: str, names: list[Name]) -> str:
    doc = inspect.getdoc(import_module(f"llm_effects.{place}")) or ""
    first = doc.partition("\n\n")[0].replace("``", "`")
    return "\n".join((f"## llm_effects.{place}\n", f"{first}\n", table(names), *map(entry, names)))


def reference() -> str:
    """Return the body of the reference page: the everyday names, then every place with its names."""
    places = placed()
    sections = (section(place, names) for place, names in places.items() if names)
    return "\n".join(("## llm_effects\n", table(everyday(places)), *sections))


def add_reference(_: "Sphinx", page: str, source: list[str]) -> None:
    if page == "reference":
        source[0] += "\n" + reference()


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
    if what == "function" and name.rpartition(".")[2].startswith("with_"):
        return f"(rest: {GENERATE})", GENERATE
    return (with_values(readable(signature), value), readable(returned or "")) if signature else None


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


def setup(app: "Sphinx") -> None:
    app.connect("source-read", add_reference)
    app.connect("autodoc-process-signature", shorten)
    app.connect("object-description-transform", shorten_property)
