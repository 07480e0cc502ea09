"""A mutant: one small break of one module, and the tests that must catch it."""

from collections.abc import Callable
from pathlib import Path
from typing import final

from attrs import frozen

PACKAGE = "llm_effects"
ROOT = Path(__file__).parents[2]


class DoesNotApplyError(Exception):
    """The text of a mutant is not in its module exactly once."""


@final
@frozen
class Mutant:
    """A module of the package with ``text`` replaced by ``broken``; ``tests`` is the test file of the module.

    Paths are relative to ``llm_effects`` and to ``tests``.
    """

    name: str
    text: str
    broken: str
    module: str
    tests: str

    @property
    def room(self) -> str:
        """The folder of tests that must catch it."""
        return Path(self.tests).parent.as_posix()

    def test_files(self, root: Path = ROOT) -> tuple[list[Path], list[Path]]:
        """Return the tests of the module, in their file and in its docstrings, and the other tests of its room."""
        first = root / "tests" / self.tests
        others = sorted(each for each in first.parent.rglob("test_*.py") if each != first)
        return [first, root / PACKAGE / self.module], others

    def apply(self, root: Path = ROOT) -> str:
        """Return the source of the module with the break in it."""
        source = (root / PACKAGE / self.module).read_text("utf-8")
        found = source.count(self.text)
        if found != 1:
            msg = f"{self.name}: its text is {found} times in {PACKAGE}/{self.module}, not once: fit it to the code"
            raise DoesNotApplyError(msg)
        return source.replace(self.text, self.broken)


def of(module: str, tests: str) -> Callable[[str, str, str], Mutant]:
    """Return a function from a name, a text and its replacement to a mutant of a module."""
    return lambda name, text, broken: Mutant(name, text, broken, module, tests)
