"""Real clients of OpenAI's protocol against the endpoint on a real server: the official one and three others.

They run in an environment of their own, whose interpreter ``LLM_EFFECTS_PEERS`` names: ``nox -s peers`` creates it.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from llm_effects import (
    BudgetExceeded,
    Cost,
    Image,
    LLMRequest,
    MalformedResponse,
    RateLimitExceeded,
    ToolCall,
    ToolResult,
    scripted_env,
)
from llm_effects.asgi import create_app
from llm_effects.config import RoutingConfig
from llm_effects.testing import Chunks, calling
from llm_effects.testing.scripted import ONE_MODEL, Reply
from tests.fixtures.endpoint import with_keys
from tests.fixtures.web import served

KEY: Final = "key-of-ada-1234567890"
WEATHER: Final = json.dumps({"city": "Oslo", "degrees": 3})


def reply(request: LLMRequest) -> Reply:
    """Answer by what a request asks for, as a model would."""
    last = request.messages[-1]
    words = last.text
    if any(isinstance(part, ToolResult) for part in last.parts):
        return Chunks(("It is ", "noon."))
    if words in FAILURES:
        return FAILURES[words]
    if request.response_schema is not None:
        return WEATHER
    if any(isinstance(part, Image) for part in last.parts):
        return "a picture"
    if request.tools:
        return calling(*(ToolCall(f"c{number}", request.tools[0].name, '{"city": "Oslo"}') for number in (1, 2)))
    return Chunks(("Lo", "gs."))


FAILURES: Final[dict[str, Reply]] = {
    "busy": RateLimitExceeded(retry_after=0.05),
    "spent": BudgetExceeded(budget="day", spent=Cost.ZERO, limit=Cost.ZERO),
    "cut": Chunks(("be",), then=MalformedResponse(message="cut")),
}


@pytest.fixture(scope="module")
def asked() -> list[LLMRequest]:
    return []


@pytest.fixture(scope="module")
def url(asked: list[LLMRequest]) -> Iterator[str]:
    from attrs import evolve

    def noted(request: LLMRequest) -> Reply:
        asked.append(request)
        return reply(request)

    config = evolve(with_keys(ONE_MODEL, ada=KEY), routing=RoutingConfig(max_retries=0))
    with served(create_app(scripted_env(noted, config=config))) as running:
        yield f"{running.url}/v1"


@pytest.fixture
def run_client(url: str) -> Callable[[str], Any]:
    """Return a function that runs a program with the clients, and returns the JSON that it prints last."""
    python = os.environ.get("LLM_EFFECTS_PEERS")
    if python is None:
        pytest.skip("the clients are not installed: run `nox -s peers`, and set LLM_EFFECTS_PEERS as it says")
    variables = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}

    def run(program: str) -> Any:
        command = [python, "-c", program]
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=180, check=False, env={**os.environ, **variables}
        )
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout.splitlines()[-1])

    return run


def test_the_official_client_reads_answers_streams_and_models(
    run_client: Callable[[str], Any], asked: list[LLMRequest]
) -> None:
    done = run_client("""
import json, openai
client = openai.OpenAI()
ask = {"model": "auto", "messages": [{"role": "user", "content": "why?"}]}
whole = client.chat.completions.create(**ask, metadata={"run": "7"}, extra_body={"llm_effects": {"tags": ["t"]}})
raw = client.chat.completions.with_raw_response.create(**ask, user="u1")
stream = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
with client.chat.completions.stream(**ask) as events:
    final = events.get_final_completion()
print(json.dumps({
    "content": whole.choices[0].message.content,
    "usage": whole.usage.total_tokens,
    "request_id": whole._request_id == whole.id,
    "extra": whole.llm_effects["cached"],
    "warning": raw.headers["x-llm-effects-warning"],
    "pieces": [chunk.choices[0].delta.content for chunk in stream if chunk.choices],
    "stream_usage": stream[-1].usage.completion_tokens,
    "finish": [chunk.choices[0].finish_reason for chunk in stream if chunk.choices][-1],
    "final": final.choices[0].message.content,
    "models": [model.id for model in client.models.list()],
    "model": client.models.retrieve("scripted").owned_by,
}))
""")
    assert done == {
        "content": "Logs.",
        "usage": 11,
        "request_id": True,
        "extra": False,
        "warning": "ignored: user",
        "pieces": ["", "Lo", "gs.", None],
        "stream_usage": 1,
        "finish": "stop",
        "final": "Logs.",
        "models": ["auto", "scripted"],
        "model": "lm-studio",
    }
    assert (asked[0].owner, asked[0].metadata, asked[0].tags) == ("ada", {"run": "7"}, ("t",))


def test_the_official_client_uses_tools_pictures_and_types(run_client: Callable[[str], Any]) -> None:
    done = run_client("""
import asyncio, json, openai, pydantic
class Weather(pydantic.BaseModel):
    city: str
    degrees: int
function = {"name": "clock", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
tools = [{"type": "function", "function": function}]
question = [{"role": "user", "content": "What time is it?"}]
picture = {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGODlh"}}
async def main():
    client = openai.AsyncOpenAI()
    called = await client.chat.completions.create(model="scripted", messages=question, tools=tools)
    async with client.chat.completions.stream(model="auto", messages=question, tools=tools) as events:
        streamed = await events.get_final_completion()
    calls = called.choices[0].message.tool_calls
    results = [{"role": "tool", "tool_call_id": call.id, "content": "noon"} for call in calls]
    after = await client.chat.completions.create(
        model="auto", messages=[*question, called.choices[0].message, *results], tools=tools)
    typed = await client.chat.completions.parse(model="auto", messages=question, response_format=Weather)
    seen = await client.chat.completions.create(model="auto", messages=[{"role": "user", "content": [picture]}])
    print(json.dumps({
        "calls": [(call.id, call.function.name, call.function.arguments) for call in calls],
        "streamed": [(call.id, call.function.name, call.function.arguments)
            for call in streamed.choices[0].message.tool_calls],
        "after": after.choices[0].message.content,
        "typed": typed.choices[0].message.parsed.degrees,
        "seen": seen.choices[0].message.content,
    }))
asyncio.run(main())
""")
    calls = [["c1", "clock", '{"city": "Oslo"}'], ["c2", "clock", '{"city": "Oslo"}']]
    assert done == {"calls": calls, "streamed": calls, "after": "It is noon.", "typed": 3, "seen": "a picture"}


def test_fault_250_the_official_client_raises_the_right_errors_and_retries_only_where_asked(
    run_client: Callable[[str], Any], asked: list[LLMRequest]
) -> None:
    before = len(asked)
    done = run_client("""
import json, openai
client = openai.OpenAI()
def failure(content, client=client, model="auto", **fields):
    try:
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": content}], **fields)
        return "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    except openai.APIError as error:
        return [type(error).__name__, getattr(error, "status_code", None), error.code]
print(json.dumps([
    failure("busy"),
    failure("spent"),
    failure("spent", stream=True),
    failure("cut", stream=True),
    failure("why?", n=2),
    failure("why?", model="gpt-4"),
    failure("why?", client=openai.OpenAI(api_key="wrong")),
]))
""")
    assert done == [
        ["RateLimitError", 429, "rate_limit_exceeded"],
        ["RateLimitError", 429, "insufficient_quota"],
        ["RateLimitError", 429, "insufficient_quota"],
        ["APIError", None, "MalformedResponse"],
        ["BadRequestError", 400, None],
        ["NotFoundError", 404, "model_not_found"],
        ["AuthenticationError", 401, "invalid_api_key"],
    ]
    assert [request.messages[0].text for request in asked[before:]] == ["busy", "busy", "busy", "spent", "spent", "cut"]


def test_litellm(run_client: Callable[[str], Any]) -> None:
    done = run_client("""
import json, litellm
ask = {"model": "openai/auto", "messages": [{"role": "user", "content": "why?"}]}
whole = litellm.completion(**ask)
stream = litellm.completion(**ask, stream=True, stream_options={"include_usage": True})
function = {"name": "clock", "parameters": {"type": "object", "properties": {}}}
called = litellm.completion(**ask, tools=[{"type": "function", "function": function}])
try:
    litellm.completion(**{**ask, "messages": [{"role": "user", "content": "spent"}]})
except litellm.RateLimitError as error:
    failed = error.status_code
print(json.dumps([
    whole.choices[0].message.content,
    whole.usage.total_tokens,
    "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices),
    called.choices[0].message.tool_calls[0].function.name,
    failed,
]))
""")
    assert done == ["Logs.", 11, "Logs.", "clock", 429]


def test_langchain(run_client: Callable[[str], Any]) -> None:
    done = run_client("""
import json, pydantic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
class Weather(pydantic.BaseModel):
    city: str
    degrees: int
def clock(city: str) -> str:
    "Return the time."
model = ChatOpenAI(model="auto", stream_usage=True)
stream = list(model.stream("why?"))
bound = model.bind_tools([clock], parallel_tool_calls=False)
called = bound.invoke("What time is it?")
pieces = None
for piece in bound.stream("What time is it?"):
    pieces = piece if pieces is None else pieces + piece
results = [ToolMessage("noon", tool_call_id=call["id"]) for call in called.tool_calls]
print(json.dumps([
    model.invoke("why?").content,
    "".join(piece.content for piece in stream),
    max(piece.usage_metadata["output_tokens"] for piece in stream if piece.usage_metadata),
    [[call["id"], call["name"], call["args"]] for call in pieces.tool_calls],
    bound.invoke([HumanMessage("What time is it?"), called, *results]).content,
    model.with_structured_output(Weather).invoke("How is it?").degrees,
]))
""")
    calls = [["c1", "clock", {"city": "Oslo"}], ["c2", "clock", {"city": "Oslo"}]]
    assert done == ["Logs.", "Logs.", 1, calls, "It is noon.", 3]


def test_pydantic_ai(run_client: Callable[[str], Any]) -> None:
    done = run_client("""
import asyncio, json
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
class Weather(BaseModel):
    city: str
    degrees: int
agent = Agent(OpenAIChatModel("auto"))
@agent.tool_plain
def clock(city: str) -> str:
    "Return the time."
    return "noon"
typed = Agent(OpenAIChatModel("auto"), output_type=NativeOutput(Weather))
async def main():
    async with agent.run_stream("What time is it?") as result:
        streamed = await result.get_output()
    whole = (await agent.run("What time is it?")).output
    print(json.dumps([whole, streamed, (await typed.run("How is it?")).output.degrees]))
asyncio.run(main())
""")
    assert done == ["It is noon.", "It is noon.", 3]
