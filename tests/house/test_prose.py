"""Docstrings begin with a plain imperative or a noun phrase."""

import ast
import re
from collections.abc import Iterator

from tests.fixtures.house import MODULES, Definition, name_of, tree_of

ODD_OPENING = re.compile(r"(Give|Tell|Say|Take|Let|What|Who|How)s?\b")


def first_lines() -> Iterator[tuple[str, str]]:
    for module in MODULES:
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.Module | Definition) and (text := ast.get_docstring(node)):
                yield f"{name_of(module)}:{getattr(node, 'lineno', 1)}", text.partition("\n")[0]


def test_docstrings_open_plainly() -> None:
    odd = {place: line for place, line in first_lines() if ODD_OPENING.match(line)}
    assert odd == {}
