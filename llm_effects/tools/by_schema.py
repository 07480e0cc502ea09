"""Tools for models that were never taught any: what they say next is held to a schema of calls and answers.

A layer around the onion, for ``run_tools(..., pipeline=tools_by_schema(standard_pipeline))``. It suits models under a grammar,
like those of llama.cpp, whose own templates leave tools out without a word.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects.effects.call import Call
from llm_effects.effects.effect import Effect, Generate, effect, run
from llm_effects.effects.env import LLMEnv
from llm_effects.providers.draft import events_of
from llm_effects.structured.schema import Definitions, Schema
from llm_effects.values.errors import LLMError
from llm_effects.values.events import Started
from llm_effects.values.json import dump, parse, record, string
from llm_effects.values.messages import Part, Text, ToolCall, ToolResult
from llm_effects.values.requests import LLMRequest, Tool, conversation
from llm_effects.values.responses import FinishReason, LLMResponse

_SYSTEM: Final = """\
You can use tools. Say one thing at a time, as JSON: {{"next": {{"tool": NAME, "arguments": {{...}}}}}} to use a tool,
or {{"next": {{"answer": TEXT}}}} once you know the answer. The tools:
{}"""


def tools_by_schema(inner: Generate) -> Generate:
    """Tell a model of the tools in words, and read its calls from the JSON of its answer, one at a time.

    A stream is told at its end: what comes before is JSON that nobody wants to see.

    >>> import anyio
    >>> from llm_effects import run, run_tools, scripted_env, toolkit
    >>> from llm_effects.pipeline import standard_pipeline
    >>> def uptime(host: str) -> str:
    ...     return f"{host}: 3 days"
    >>> call = '{"next": {"tool": "uptime", "arguments": {"host": "db"}}}'
    >>> env = scripted_env(call, '{"next": {"answer": "3 days"}}')
    >>> ask = run_tools(LLMRequest(prompt="?"), toolkit(uptime), pipeline=tools_by_schema(standard_pipeline))
    >>> run = anyio.run(run, ask, env).unwrap()
    >>> run.answers[0].result.content, run.response.content
    ('db: 3 days', '3 days')
    """

    def ask(call: Call) -> Effect[LLMResponse]:
        request = call.request
        if not request.tools:
            return inner(evolve(call, request=_in_words(request)))

        async def perform(env: LLMEnv) -> Result[LLMResponse, LLMError]:
            result = await run(inner(evolve(call, request=_held(request), sink=None)), env)
            read = result.map(_read)
            if call.sink is not None and is_successful(read):
                for event in (Started(read.unwrap().model), *events_of(read.unwrap())):
                    await call.sink(event)
            return read

        return effect(perform)

    return ask


def _held(request: LLMRequest) -> LLMRequest:
    chosen = tuple(tool for tool in request.tools if request.tool_choice in {None, "auto", "required", tool.name})
    # all of them in every step: a server reads a prompt faster that begins as the last one did
    tools = "\n".join(dump([tool.name, tool.description, tool.parameters]).decode() for tool in request.tools)
    system = "\n\n".join(filter(None, (request.system, _SYSTEM.format(tools))))
    schema = _schema(chosen, answers=request.tool_choice in {None, "auto", "none"})
    return evolve(_in_words(request), system=system, tools=(), tool_choice=None, response_schema=schema)


def _schema(tools: Sequence[Tool], *, answers: bool) -> Schema:
    book = Definitions()
    calls = [
        _object({"tool": {"enum": [tool.name]}, "arguments": book.embed(tool.name, dict(tool.parameters))})
        for tool in tools
    ]
    told = [_object({"answer": {"type": "string"}})] if answers else []
    return {**_object({"next": {"anyOf": [*calls, *told]}}), "$defs": book.schemas}


def _object(properties: Mapping[str, object]) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _in_words(request: LLMRequest) -> LLMRequest:
    """The same conversation without parts that only models with tools know."""
    messages = tuple(
        evolve(message, role="user" if message.role == "tool" else message.role, parts=tuple(map(_word, message.parts)))
        for message in conversation(request)
    )
    return evolve(request, prompt=None, messages=messages)


def _word(part: Part) -> Part:
    if isinstance(part, ToolCall):
        return Text(dump({"next": {"tool": part.name, "arguments": parse(part.arguments)}}).decode())
    return Text(f"The tool says: {part.content}") if isinstance(part, ToolResult) else part


def _read(response: LLMResponse) -> LLMResponse:
    """Read what was said; what is not of the schema, because it was cut off, stays as it is."""
    said = record(record(parse(response.content)).get("next"))
    if "tool" in said:
        call = ToolCall("call_0", string(said["tool"]), dump(said.get("arguments")).decode())
        return evolve(response, content="", parts=(call,), finish_reason=FinishReason.TOOL_CALLS)
    text = string(said.get("answer"))
    return evolve(response, content=text, parts=(Text(text),)) if text else response
