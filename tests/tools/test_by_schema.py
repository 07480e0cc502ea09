"""Tools for models that cannot call any: a schema limits what they write."""

from typing import Any

import pytest
from attrs import evolve, frozen

from llm_effects import (
    FinishReason,
    Message,
    StreamEvent,
    TextDelta,
    run,
    run_tools,
    scripted_env,
    toolkit,
)
from llm_effects.pipeline import standard_pipeline
from llm_effects.testing import scripted
from llm_effects.testing.scripted import answer
from llm_effects.tools import (
    ToolEnd,
    tools_by_schema,
)
from tests.fixtures.tool_calls import QUESTION, CountingTool, finished_run

pytestmark = pytest.mark.anyio

# Models that know no tools


@frozen
class Place:
    """A place on a disk."""

    path: str


async def look(place: Place, other: Place | None = None) -> str:
    """Look at places."""
    return place.path


LOOKS = '{"next": {"tool": "look", "arguments": {"place": {"path": "/var"}}}}'


async def test_a_model_without_tools_gets_a_schema_and_descriptions() -> None:
    seen: list[StreamEvent] = []

    async def sink(event: StreamEvent) -> None:
        seen.append(event)

    model = scripted(LOOKS, '{"next": {"answer": "Full."}}')
    options: dict[str, Any] = {"sink": sink, "pipeline": tools_by_schema(standard_pipeline)}
    finished = await finished_run(scripted_env(clients=model), look, **options)
    assert (finished.answers[0].result.content, finished.response.content) == ("/var", "Full.")
    first, second = model.requests
    assert (first.tools, second.messages[-1]) == ((), Message("user", "The tool says: /var"))
    assert "Look at places." in (first.system or "")
    assert [event.text for event in seen if isinstance(event, TextDelta)] == ["Full."]


@pytest.mark.parametrize(("choice", "answers"), [("required", False), ("look", False), ("auto", True)])
async def test_the_schema_follows_the_tool_choice(choice: str, answers: bool) -> None:
    model, kit = scripted(LOOKS, '{"next": {"answer": "Full."}}'), toolkit(look, CountingTool().free)
    request = evolve(QUESTION, tools=kit.tools, tool_choice=choice)
    await run(run_tools(request, kit, pipeline=tools_by_schema(standard_pipeline)), scripted_env(clients=model))
    schema: Any = model.requests[0].response_schema
    options = schema["properties"]["next"]["anyOf"]
    named = [each["properties"]["tool"]["enum"][0] for each in options if "tool" in each["properties"]]
    assert named == (["look"] if choice == "look" else ["look", "free"])
    assert ("answer" in options[-1]["properties"]) is answers


async def test_an_answer_that_does_not_fit_the_schema_stays_as_it_is() -> None:
    cut = evolve(answer('{"next": {"tool": "lo'), finish_reason=FinishReason.LENGTH)
    finished = await finished_run(scripted_env(cut), look, pipeline=tools_by_schema(standard_pipeline))
    assert (finished.response.content, finished.end) == (cut.content, ToolEnd.CUT_OFF)


async def test_tool_choice_none_allows_only_an_answer() -> None:
    model, kit = scripted('{"next": {"answer": "Full."}}'), toolkit(look)
    request = evolve(QUESTION, tools=kit.tools, tool_choice="none")
    by_schema = tools_by_schema(standard_pipeline)
    finished = (await run(run_tools(request, kit, pipeline=by_schema), scripted_env(clients=model))).unwrap()
    schema: Any = model.requests[0].response_schema
    assert [list(each["properties"]) for each in schema["properties"]["next"]["anyOf"]] == [["answer"]]
    assert (finished.response.content, model.requests[0].tool_choice) == ("Full.", None)
