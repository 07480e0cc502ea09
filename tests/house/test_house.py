"""The rules of the house: layers, sizes, public names, docstrings, and an import that does almost nothing.

``python tests/house/test_house.py`` prints how long functions and modules are.
"""

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TypeAlias

import attrs
import pytest

import llm_effects

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "llm_effects"
MODULES = sorted(PACKAGE.rglob("*.py"))

LONGEST_MODULE = 660
LONGEST_BODY = 30
LONG_BODY = 10

# Each costs as much as all of the package, or may not be installed: loaded by the first use, never by the import.
HEAVY = ("httpx", "ssl", "msgspec", "cattrs", "sqlalchemy", "xllamacpp")

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(module: Path) -> str:
    return str(module.relative_to(ROOT))


def tree_of(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


def functions_of(module: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree_of(module)) if isinstance(node, Function))


def is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def body_lines(function: Function) -> int:
    """Lines of a function's body without its docstring."""
    body = function.body[1:] if is_text(function.body[0]) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def all_bodies() -> dict[str, int]:
    return {
        f"{name_of(module)}:{function.lineno} {function.name}": body_lines(function)
        for module in MODULES
        for function in functions_of(module)
    }


def all_lengths() -> dict[str, int]:
    """Lines of each module but the package's own, which is a table of names."""
    modules = (module for module in MODULES if module != PACKAGE / "__init__.py")
    return {name_of(module): len(module.read_text(encoding="utf-8").splitlines()) for module in modules}


def summary(sizes: dict[str, int]) -> str:
    """Median, p90 and the longest of some sizes."""
    ordered = sorted(sizes.values())
    longest = max(sizes, key=lambda name: sizes[name])
    p90 = statistics.quantiles(ordered, n=10)[-1]
    return f"{len(ordered)}, median {statistics.median(ordered):g}, p90 {p90:g}, longest {sizes[longest]} ({longest})"


def over(limit: int, sizes: dict[str, int]) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if size > limit}


def documented_names(module: Path) -> Iterator[str]:
    """Names at the top of a module that say what they are: in a docstring, or in a text right below a value."""
    body = tree_of(module).body
    for node, below in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(node, ast.ClassDef | Function) and ast.get_docstring(node):
            yield node.name
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and is_text(below):
            yield node.target.id


def run_python(program: str) -> str:
    """Run a program in a fresh interpreter and give what it prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout


def test_arrows_point_down_only() -> None:
    # In a process of its own: the linter sets up logging anew, and switches off every logger there is.
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_modules_are_short() -> None:
    assert not over(LONGEST_MODULE, all_lengths())


def test_function_bodies_are_short() -> None:
    assert not over(LONGEST_BODY, all_bodies())


def test_nearly_all_function_bodies_are_very_short() -> None:
    bodies = all_bodies()
    assert len(over(LONG_BODY, bodies)) <= len(bodies) / 10, summary(bodies)


def test_public_names_are_sorted_and_unique() -> None:
    assert list(llm_effects.__all__) == sorted(set(llm_effects.__all__))


def test_public_names_are_what_dir_shows() -> None:
    shown = run_python("import llm_effects; print(*(name for name in dir(llm_effects) if name[0] != '_'))")
    assert sorted(shown.split()) == [name for name in llm_effects.__all__ if name[0] != "_"]


def test_every_public_name_is_the_one_that_type_checkers_see() -> None:
    imports = [node for node in ast.walk(tree_of(PACKAGE / "__init__.py")) if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names if "llm_effects" in str(node.module)}
    assert sorted(seen) == llm_effects.__all__
    assert all(getattr(llm_effects, name) is getattr(import_module(str(home)), name) for name, home in seen.items())


def test_the_environment_has_these_services_and_no_others() -> None:
    services = "cache clients config conversations draw health ledger limits new_id now prices telemetry tokens"
    assert sorted(each.name for each in attrs.fields(llm_effects.LLMEnv)) == services.split()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="generat_"):
        llm_effects.generat_  # noqa: B018 - the look-up is the test


def test_every_public_name_says_what_it_is() -> None:
    documented = {name for module in MODULES for name in documented_names(module)}
    assert not {name for name in llm_effects.__all__ if not name.startswith("_")} - documented


def test_the_import_brings_in_nothing_heavy() -> None:
    loaded = run_python("import sys, llm_effects; print(*sys.modules)").split()
    assert not set(HEAVY) & set(loaded)


EXTRAS = ("genai_prices", "opentelemetry", "psycopg", "pydantic", "redis", "sqlalchemy", "xllamacpp")


def test_all_but_the_extras_works_without_them() -> None:
    answered = run_python(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {EXTRAS}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import anyio\n"
        "from llm_effects import *\nfrom llm_effects.config import RoutingConfig\n"
        "async def main():\n"
        "    unreachable = ModelConfig(provider='lm-studio', endpoint='http://127.0.0.1:9/v1')\n"
        "    async with open_env(LLMConfig(models={'a': unreachable}, routing=RoutingConfig(max_retries=0))) as env:\n"
        "        print((await run(generate(LLMRequest(prompt='?')), env)).failure().tag)\n"
        "anyio.run(main)"
    )
    assert answered.strip() == "NetworkError"


def test_the_import_reads_only_code_and_opens_no_socket() -> None:
    watched = run_python(
        "import sys; sys.dont_write_bytecode = True; seen = []\n"
        "sys.addaudithook(lambda event, args: seen.append((event, str(args[0]) if args else '')))\n"
        "import llm_effects\n"
        "watched = [(event, what) for event, what in seen if event.split('.')[0] in {'open', 'socket', 'subprocess'}]\n"
        "print([each for each in watched if not each[1].endswith(('.py', '.pyc', '.so'))])"
    )
    assert watched.strip() == "[]"


if __name__ == "__main__":
    print("function bodies:", summary(all_bodies()))
    print("modules:", summary(all_lengths()))
