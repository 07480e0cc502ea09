"""The room of test doubles: its names are loaded when they are used, and are functions, not modules."""

from typing import Any

import anyio
import pytest

from llm_effects import (
    Effect,
    LLMConfig,
    LLMResponse,
    ModelConfig,
    NetworkError,
    gather,
    generate,
    run,
    scripted_env,
    testing,
    usage_report,
)
from llm_effects.config import RoutingConfig
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


def test_its_names_are_listed_before_they_are_loaded() -> None:
    assert {"Chunks", "calling", "recorded", "scripted", "run_in_virtual_time"} <= set(dir(testing))


LOCAL_AND_CLOUD = LLMConfig(
    models={
        "local": ModelConfig(provider="lm-studio"),
        "cloud": ModelConfig(provider="openai", model="m", api_keys=("sk-1", "sk-2")),
    },
    routing=RoutingConfig(max_retries=0, tasks={"general": ("local", "cloud")}),
)


def test_a_reply_may_depend_on_the_model_however_calls_overlap() -> None:
    env = scripted_env({"local": NetworkError(phase="refused"), "cloud": "From the cloud."}, config=LOCAL_AND_CLOUD)
    asked: list[Effect[LLMResponse]] = [generate(f"Why {number}?") for number in range(5)]
    answers = anyio.run(run, gather(asked, limit=3), env).unwrap()
    assert {each.content for each in answers} == {"From the cloud."}
    assert {each.model for each in answers} <= {"cloud#1", "cloud#2"}
    assert [attempt.outcome for attempt in answers[0].attempts] == ["NetworkError", "success"]


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        ({"cloud": "x"}, LookupError, "no reply of the model 'scripted', only of cloud: add it, or write json.dumps"),
        (["a", "b"], TypeError, "not list: pass replies one by one"),
        (ValueError("late"), TypeError, "a reply is a text, an LLMResponse or an LLMError, not ValueError"),
        (lambda _: 3, TypeError, "not int"),
    ],
)
def test_what_is_no_reply_is_an_exception_that_names_the_remedy(
    reply: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        anyio.run(run, generate("Why?"), scripted_env(reply))


def test_a_single_text_as_the_replies_is_rejected() -> None:
    model = testing.scripted("a")
    with pytest.raises(ValueError, match=r"^replies: must be several values, not the single text 'All is well\.'"):
        model.replies = "All is well."  # type: ignore[assignment] # pyright: ignore[reportAttributeAccessIssue]
    model.replies = ["a", "b"]  # type: ignore[assignment] # pyright: ignore[reportAttributeAccessIssue]
    assert model.replies == ("a", "b")


def test_a_report_since_the_beginning_of_a_test_has_its_rows() -> None:
    env = scripted_env("x")
    start = env.now()
    anyio.run(run, generate("Why?"), env)
    assert anyio.run(run, usage_report(start), env).unwrap().total.requests == 1


def test_the_plugin_loads_no_other_room() -> None:
    plugin = "llm_effects.testing.pytest_plugin"
    loaded = run_python(f"import sys, {plugin}; print(*sys.modules)").split()
    ours = {name for name in loaded if name.startswith("llm_effects.")}
    assert ours == {"llm_effects.testing", plugin}
    assert {"httpx", "anyio", "attrs", "returns", "hypothesis"} & set(loaded) == set()
