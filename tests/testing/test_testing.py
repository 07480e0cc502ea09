"""The room of test doubles: its names are loaded when they are used, and are functions, not modules."""

import pytest

from llm_effects import testing
from tests.fixtures.house import run_python


@pytest.mark.parametrize(
    "program",
    [
        "from llm_effects.testing import scripted",
        "import llm_effects.testing.scripted; from llm_effects.testing import scripted",
        "from llm_effects.testing import Chunks, scripted",
        "from llm_effects import scripted_env; from llm_effects.testing import scripted",
    ],
)
def test_scripted_is_the_function_however_its_module_was_imported(program: str) -> None:
    assert run_python(f"{program}; print(scripted('a').replies)").strip() == "('a',)"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="scriptd"):
        testing.scriptd  # noqa: B018 - the look-up is the test


def test_the_plugin_loads_no_other_room() -> None:
    plugin = "llm_effects.testing.pytest_plugin"
    loaded = run_python(f"import sys, {plugin}; print(*sys.modules)").split()
    ours = {name for name in loaded if name.startswith("llm_effects.")}
    assert ours == {"llm_effects.testing", plugin}
    assert {"httpx", "anyio", "attrs", "returns", "hypothesis"} & set(loaded) == set()
