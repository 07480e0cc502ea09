"""The site: ``sphinx-build -W -q -b html docs docs/_build``. The reference is made of the code as it is."""

import inspect
import re
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sphinx.pycode import ModuleAnalyzer

import llm_effects
from llm_effects import LLMError, pipeline

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "llm_effects"
release = version = version_of("llm-effects")
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "llm_effects"
html_show_copyright = False
html_show_sphinx = False
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100

PACKAGE = Path(__file__).parents[1] / "llm_effects"

ERROR = "~llm_effects.values.errors.LLMError"
ERRORS = " | ".join(f"~{error.__module__}.{error.__qualname__}" for error in get_args(LLMError))
EFFECT = re.compile(rf"~[\w.]+\.RequiresContextFutureResult\[(.*?), {ERROR}, ~llm_effects\.effects\.env\.LLMEnv\]")

ROW = "| {{py:obj}}`{name} <{place}>` | {line} |"

SECTION = """
## {module}

```{{eval-rst}}
.. automodule:: {module}
   :members:
   :ignore-module-all:
```
"""

BESIDES = (
    "llm_effects.limits.circuit_breaker",
    "llm_effects.pipeline",
    "llm_effects.routing.prices",
    "llm_effects.stores.cache.memory",
    "llm_effects.stores.conversations.memory",
    "llm_effects.telemetry.otel",
    "llm_effects.testing.conversation_checks",
)
"""Modules that the guides use and that are home to no public name."""

LAYERS = [getattr(pipeline, name).__module__ for name in pipeline.__all__]


def below(module: str) -> dict[str, str]:
    """The texts that stand below the names of a module, such as those of aliases: the first line of each."""
    told = ModuleAnalyzer.for_module(module).find_attr_docs()
    return {name: lines[0] for (owner, name), lines in told.items() if not owner}


def written_at(name: str) -> str:
    """The module in which a public name is written down, which may be deeper in a package than its home."""
    module: str = getattr(getattr(llm_effects, name), "__module__", "")
    if module.startswith("llm_effects"):
        return module
    home = PACKAGE / llm_effects._HOME[name].replace(".", "/")  # noqa: SLF001 - aliases do not know their homes
    paths = [home.with_suffix(".py")] if home.with_suffix(".py").exists() else sorted(home.glob("*.py"))
    candidates = (".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in paths)
    return next(module for module in candidates if name in below(module))


def modules() -> list[str]:
    """The modules in which public names live, and those that the guides use, in the order of the alphabet."""
    return sorted({*map(written_at, llm_effects.__all__), *BESIDES, *LAYERS})


def line_of(name: str, module: str) -> str:
    """What a public name is, in a line: of an alias the text below it, else its docstring's first line."""
    line = below(module).get(name) or (inspect.getdoc(getattr(llm_effects, name)) or "").partition("\n")[0]
    return line.replace("|", "\\|")


def names() -> str:
    """A table of all public names."""
    places = {name: written_at(name) for name in sorted(llm_effects.__all__, key=str.lower)}
    rows = (ROW.format(name=name, place=f"{at}.{name}", line=line_of(name, at)) for name, at in places.items())
    return "\n".join(("\n| name | |", "| --- | --- |", *rows, ""))


def add_modules(_: "Sphinx", page: str, source: list[str]) -> None:
    if page == "reference":
        source[0] += names() + "".join(SECTION.format(module=module) for module in modules())


def shorten(*event: Any) -> tuple[str, str] | None:  # noqa: ANN401 - what Sphinx sends has no type
    """Show our two aliases by their names, and a default that is made anew each time as dots."""
    signature, returned = event[-2:]
    return (readable(signature), readable(returned or "")) if signature else None


def readable(text: str) -> str:
    return EFFECT.sub(r"~llm_effects.effects.effect.Effect[\1]", text.replace(ERRORS, ERROR)).replace("NOTHING", "...")


def setup(app: "Sphinx") -> None:
    app.connect("source-read", add_modules)
    app.connect("autodoc-process-signature", shorten)
