"""The pictures in the docs show the imports and the layers of the code as they are."""

import importlib.util
import re
from types import ModuleType

import pytest

from tests.fixtures.house import ROOT


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_drawn_from_the_imports() -> None:
    drawn = (ROOT / "docs" / "rooms.svg").read_text(encoding="utf-8")
    assert drawn == program("rooms").drawing(), "draw it anew: nox -s picture"


def test_the_picture_of_the_pipeline_is_drawn_from_its_layers() -> None:
    drawn = (ROOT / "docs" / "pipeline.svg").read_text(encoding="utf-8")
    assert drawn == program("layers").drawing(), "draw it anew: nox -s picture"


def test_every_room_stands_in_the_picture() -> None:
    drawn = (ROOT / "docs" / "rooms.svg").read_text(encoding="utf-8")
    entries = {path.stem for path in (ROOT / "llm_effects").iterdir() if not path.name.startswith(("_", "py"))}
    assert set(re.findall(r'class="name"[^>]*>(\w+)<', drawn)) == entries


def test_an_arrow_that_points_up_is_an_error() -> None:
    with pytest.raises(ValueError, match="values imports manager"):
        program("rooms").arrow("values", "manager", 0, 0)
