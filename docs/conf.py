"""The site: ``sphinx-build -W -q -b html docs docs/_build``. ``docs/reference.py`` builds its reference."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]  # this checkout, not an installed version

project = "llm_effects"
release = version = version_of("llm-effects")
extensions = ["myst_parser", "sphinx.ext.autodoc", "reference"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "llm_effects"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
myst_enable_extensions = ["colon_fence", "deflist"]
myst_footnote_transition = False
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 200
toc_object_entries_show_parents = "hide"
