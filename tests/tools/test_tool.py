"""Tools made of functions: what a model sees of them, how its arguments are read, and what is rejected."""

from enum import Enum
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st
from returns.pipeline import is_successful

from llm_effects import Toolkit, tool, toolkit
from llm_effects.tools import tool_with_schema
from llm_effects.values import InvalidValue, Tool


class Unit(Enum):
    PERCENT = "%"
    GIGABYTES = "GB"


@frozen
class Window:
    """From when to when, in minutes ago."""

    since: int
    until: int = 0


def load(
    host: str,
    window: Window,
    unit: Unit = Unit.PERCENT,
    tags: list[str] = ["all"],  # noqa: B006 - a default as people write it
    share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5,
    _note: str | None = None,
) -> float:
    """Return the load of a machine.

    It is the mean over the window.

    Args:
        host: a name of the catalogue,
            without a domain
        window (Window): over which time

    Returns:
        The load.
    """
    return 0.5


def properties(made: Any) -> dict[str, Any]:
    return made.tool.parameters["properties"]


def test_the_schema_comes_from_the_types_and_the_description_from_the_docstring() -> None:
    made = tool(load)
    assert (made.tool.name, made.tool.description) == (
        "load",
        "Return the load of a machine.\n\nIt is the mean over the window.",
    )
    definitions: Any = made.tool.parameters["$defs"]
    assert made.tool.parameters["required"] == ["host", "window"]
    assert properties(made)["host"] == {"type": "string", "description": "a name of the catalogue, without a domain"}
    assert properties(made)["unit"]["default"] == "%"
    assert definitions["Unit"]["enum"] == ["%", "GB"]
    assert properties(made)["share"] == {"type": "number", "minimum": 0, "maximum": 1, "default": 0.5}
    assert made.tool.parameters["additionalProperties"] is False


def test_arguments_are_converted_to_the_types_of_the_function() -> None:
    read = tool(load).read('{"host": "db", "window": {"since": 5}, "unit": "GB"}').unwrap()
    assert read == {
        "host": "db",
        "window": Window(5),
        "unit": Unit.GIGABYTES,
        "tags": ["all"],
        "share": 0.5,
        "_note": None,
    }


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ('{"host": "db"', "$: is not JSON"),
        ("", "$.host: is missing"),
        ("[]", "$: expected an object"),
        ('{"host": 3, "window": {"since": "x"}}', "$.host: expected `str`"),
        ('{"host": "db", "window": {"since": "x"}}', "$.window.since: expected `int`"),
        ('{"host": "db", "window": {"since": 1}, "minutes": 3}', "$.minutes: is unknown"),
        ('{"host": "db", "window": {"since": 1}, "share": 3}', "$.share"),
        ('{"host": "\ud800', "$: is not JSON"),
    ],
)
def test_problems_with_arguments_have_their_place(arguments: str, problem: str) -> None:
    assert tool(load).read(arguments).failure()[0].startswith(problem)


@given(st.text())
def test_reading_arguments_never_raises(arguments: str) -> None:
    tool(load).read(arguments)
    tool_with_schema(Tool("echo"), str).read(arguments)


def clock() -> str:
    return "noon"


@pytest.mark.parametrize("arguments", ["", " ", "{}", "null"])
def test_a_function_without_parameters_accepts_any_form_of_no_arguments(arguments: str) -> None:
    assert is_successful(tool(clock).read(arguments))


def untyped(host) -> None:  # type: ignore[no-untyped-def]
    ...


def starred(*hosts: str) -> None: ...


def by_place(host: str, /) -> None: ...


def unreadable(host: complex) -> None: ...


def unnamed(host: "Nowhere") -> None:  # type: ignore[name-defined]  # noqa: F821
    ...


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (untyped, "untyped.host: needs a type"),
        (starred, "starred.hosts: a model passes arguments by name"),
        (by_place, "by_place.host: a model passes arguments by name"),
        (unreadable, "no JSON Schema can be made"),
        (unnamed, "'Nowhere' is not defined"),
        (dict.get, "get.self: it is a method"),
        (lambda: 1, "set one with name="),
    ],
)
def test_a_function_that_no_model_can_call_is_rejected_with_the_remedy(function: Any, problem: str) -> None:
    with pytest.raises(InvalidValue, match=problem):
        tool(function)


class Desk:
    def find(self, query: str) -> str:
        """Find it."""
        return query

    async def __call__(self, query: str) -> str:
        """Find it later."""
        return query


def test_methods_partials_and_callable_objects_can_be_tools() -> None:
    assert tool(Desk().find).tool.description == "Find it."
    assert tool(Desk(), name="desk").tool.description == "Find it later."
    bound = tool(partial(load, host="db"))
    assert (bound.tool.name, bound.tool.description[:6]) == ("load", "Return")
    assert bound.read('{"window": {"since": 1}}').unwrap()["host"] == "db"


def test_the_decorator_accepts_options_and_keeps_the_function() -> None:
    @tool(name="wipe", description="Wipe it.", dangerous=True, timeout_s=3)
    def erase(disk: Literal["a", "b"]) -> str:
        return disk

    assert (erase.tool.name, erase.tool.description, erase.dangerous, erase.timeout_s) == ("wipe", "Wipe it.", True, 3)
    assert erase.function("a") == "a"


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "naïve", "a.b"])
def test_a_name_that_not_every_provider_accepts_is_rejected(name: str) -> None:
    with pytest.raises(InvalidValue, match="at most 64 letters"):
        tool_with_schema(Tool(name or " x"), str)


def test_toolkits_merge_and_reject_repeated_names() -> None:
    both = toolkit(load) | toolkit(tool(clock))
    assert [each.name for each in both.tools] == ["load", "clock"]
    with pytest.raises(InvalidValue, match="a name of its own"):
        _ = both | toolkit(clock)
    with pytest.raises(InvalidValue, match="must be ToolFunction"):
        Toolkit((load,))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
