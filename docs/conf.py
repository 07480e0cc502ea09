"""The site: ``sphinx-build -W -q -b html docs docs/_build``. The reference is made of the modules as they are."""

import re
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from llm_effects import LLMError

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

ERROR = "~llm_effects.errors.LLMError"
ERRORS = " | ".join(f"~{error.__module__}.{error.__qualname__}" for error in get_args(LLMError))
EFFECT = re.compile(rf"~[\w.]+\.RequiresContextFutureResult\[(.*?), {ERROR}, ~llm_effects\.env\.LLMEnv\]")

SECTION = """
## {module}

```{{eval-rst}}
.. automodule:: {module}
   :members:
   :ignore-module-all:
```
"""


def modules() -> list[str]:
    """Every module that has something to say, in the order of the alphabet."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in paths if path.stem[:2] != "__"]


def add_modules(_: "Sphinx", page: str, source: list[str]) -> None:
    if page == "reference":
        source[0] += "".join(SECTION.format(module=module) for module in modules())


def shorten(*event: Any) -> tuple[str, str] | None:  # noqa: ANN401 - what Sphinx sends has no type
    """Show our two aliases by their names, and a default that is made anew each time as dots."""
    signature, returned = event[-2:]
    return (readable(signature), readable(returned or "")) if signature else None


def readable(text: str) -> str:
    return EFFECT.sub(r"~llm_effects.effects.Effect[\1]", text.replace(ERRORS, ERROR)).replace("NOTHING", "...")


def setup(app: "Sphinx") -> None:
    app.connect("source-read", add_modules)
    app.connect("autodoc-process-signature", shorten)
