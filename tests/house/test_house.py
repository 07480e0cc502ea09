"""The rules of the house: layers, sizes, single importers, duplicates, and what lies at the top of the checkout.

``python tests/house/test_house.py`` prints how long functions and modules are.
"""

import ast
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import grimp
import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.fixtures.house import MODULES, PACKAGE, ROOT, Definition, Function, name_of, tree_of, without_docstring

MOST_ENTRIES = 25
LONGEST_MODULE = 600
LONGEST_BODY = 30
P90_BODY = 12
MOST_SINGLE_IMPORTERS = 45

FACES = {f"llm_effects.plain.{name}" for name in ("fields", "async_llm", "llm")}

BY_IDENTITY = {
    "CurrentSpan",
    "Encryption",
    "KeptRates",
    "LiveBatches",
    "OpenTelemetry",
    "Opening",
    "ToolFunction",
    "_Signature",
    "_TrustingConstructor",
}
"""Frozen classes whose values hold functions or connections: each is equal to itself only."""

TESTS_BESIDE_ROOMS = {
    "benchmarks",
    "conformance",
    "docs",
    "examples",
    "faults",
    "fixtures",
    "house",
    "laws",
    "mutants",
    "simulation",
    "typesafety",
}

TOP_LEVEL = {
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "docs",
    "examples",
    "llm_effects",
    "mypy.ini",
    "noxfile.py",
    "pyproject.toml",
    "requirements.lock",
    "tests",
}


def functions_of(module: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree_of(module)) if isinstance(node, Function))


def body_lines(function: Function) -> int:
    """Return the lines of a function's body without its docstring."""
    body = without_docstring(function)
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def all_bodies() -> dict[str, int]:
    return {
        f"{name_of(module)}:{function.lineno} {function.name}": body_lines(function)
        for module in MODULES
        for function in functions_of(module)
    }


def all_lengths() -> dict[str, int]:
    """Return the lines of each module but the package's own, which is a table of names."""
    modules = (module for module in MODULES if module != PACKAGE / "__init__.py")
    return {name_of(module): len(module.read_text(encoding="utf-8").splitlines()) for module in modules}


def p90(sizes: dict[str, int]) -> float:
    return statistics.quantiles(sorted(sizes.values()), n=10)[-1]


def summary(sizes: dict[str, int]) -> str:
    """Return count, median, p90 and maximum of some sizes."""
    median = statistics.median(sizes.values())
    longest = max(sizes, key=lambda name: sizes[name])
    return f"{len(sizes)}, median {median:g}, p90 {p90(sizes):g}, longest {sizes[longest]} ({longest})"


def over(limit: int, sizes: dict[str, int]) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if size > limit}


def is_frozen(node: ast.AST, argument: str) -> TypeGuard[ast.ClassDef]:
    """Return whether a class is made by a decorator such as ``frozen`` with this argument."""
    made_by = [ast.unparse(each) for each in node.decorator_list] if isinstance(node, ast.ClassDef) else []
    return any("frozen" in each and argument in each for each in made_by)


def single_importers() -> dict[str, str]:
    """Return each module that only one other module imports.

    A package that exports a name is no importer of it, and neither is a face, which calls every operation.
    """
    graph = grimp.build_graph("llm_effects", cache_dir=None, exclude_type_checking_imports=True)
    packages = {module for module in graph.modules if graph.find_children(module)}
    importers = {module: graph.find_modules_that_directly_import(module) - packages - FACES for module in graph.modules}
    return {module: next(iter(found)) for module, found in sorted(importers.items()) if len(found) == 1}


def definitions() -> Iterator[tuple[str, Definition]]:
    """Yield the definitions at the top of each module that could stand in any other."""
    for module in MODULES:
        nodes = [node for node in tree_of(module).body if isinstance(node, Definition)]
        names = {node.name for node in nodes}
        yield from ((name_of(module), node) for node in nodes if not uses_its_module(node, names))


def source_of(definition: Definition) -> tuple[str, ...]:
    """Return what two copies of a definition have in common, wherever they stand and whatever their docstring."""
    head = ast.unparse(definition).partition("\n")[0]
    return (definition.name, head, *(ast.unparse(statement) for statement in without_docstring(definition)))


def uses_its_module(definition: Definition, names: set[str]) -> bool:
    """Return whether a definition means something else in another module, as it uses names of its own."""
    used = {node.id for node in ast.walk(definition) if isinstance(node, ast.Name)}
    return bool(used & names - {definition.name})


def test_imports_point_down_only() -> None:
    # In a process of its own: the linter configures logging anew and switches off every existing logger.
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_the_package_has_few_entries_at_its_top() -> None:
    entries = sorted(path.name for path in PACKAGE.iterdir() if path.name != "__pycache__")
    assert len(entries) <= MOST_ENTRIES, entries


def test_modules_are_short() -> None:
    assert over(LONGEST_MODULE, all_lengths()) == {}


def test_function_bodies_are_short() -> None:
    assert over(LONGEST_BODY, all_bodies()) == {}


def test_most_function_bodies_are_very_short() -> None:
    bodies = all_bodies()
    assert p90(bodies) <= P90_BODY, summary(bodies)


def test_few_modules_have_a_single_importer() -> None:
    found = single_importers()
    assert len(found) <= MOST_SINGLE_IMPORTERS, found


def test_no_definition_has_a_copy_in_another_module() -> None:
    places = defaultdict(set)
    for module, node in definitions():
        places[source_of(node)].add(f"{module} {node.name}")
    assert [sorted(copies) for copies in places.values() if len(copies) > 1] == []


def test_a_frozen_class_without_equality_of_its_own_has_that_of_values() -> None:
    frozen = [node for module in MODULES for node in ast.walk(tree_of(module)) if is_frozen(node, "eq=False")]
    values, bases = {"Value"}, {node.name: {ast.unparse(base) for base in node.bases} for node in frozen}
    for _ in bases:  # a base may come later
        values |= {name for name, those in bases.items() if those & values}
    assert bases.keys() - values == BY_IDENTITY


def test_tests_mirror_the_rooms() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir()}
    modules = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert (modules | folders) - rooms - TESTS_BESIDE_ROOMS == set()


def test_the_checkout_holds_nothing_else_at_its_top() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    top = {path.partition("/")[0] for path in listed.split("\0") if path and not path.startswith(".")}
    assert top - TOP_LEVEL == set()


if __name__ == "__main__":
    print("function bodies:", summary(all_bodies()))
    print("modules:", summary(all_lengths()))
    print("modules with a single importer:", len(single_importers()))
