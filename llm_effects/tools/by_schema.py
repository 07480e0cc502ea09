"""Tools for models that were not trained to call any: a schema limits what they write to calls and answers.

A layer around the pipeline, for ``run_tools(..., pipeline=tools_by_schema(standard_pipeline))``. It suits models under
a grammar, like those of llama.cpp, whose own templates silently leave tools out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from attrs import evolve
from returns.pipeline import is_successful

from llm_effects.effects.call import Call
from llm_effects.effects.effect import Answer, Generate, layer, run
from llm_effects.effects.env import LLMEnv
from llm_effects.providers.draft import events_of
from llm_effects.structured.schema import Definitions, Schema
from llm_effects.values.events import Started
from llm_effects.values.json import as_object, as_string, dump, parse
from llm_effects.values.messages import Part, Text, ToolCall, ToolResult
from llm_effects.values.requests import LLMRequest, Tool, request_messages
from llm_effects.values.responses import FinishReason, LLMResponse

_SYSTEM: Final = """\
You can use tools. Say one thing at a time, as JSON: {{"next": {{"tool": NAME, "arguments": {{...}}}}}} to use a tool,
or {{"next": {{"answer": TEXT}}}} once you know the answer. The tools:
{}"""


@layer
async def tools_by_schema(next: Generate, call: Call, env: LLMEnv) -> Answer:
    """Describe the tools in the system text, and read one call at a time from the JSON of the answer.

    A stream has its events at the end: what comes before is JSON that no consumer wants to see.

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
    if not call.request.tools:
        return await run(next(evolve(call, request=_in_words(call.request))), env)
    result = await run(next(evolve(call, request=_with_schema(call.request), sink=None)).map(_read), env)
    if call.sink is not None and is_successful(result):
        for event in (Started(result.unwrap().model), *events_of(result.unwrap())):
            await call.sink(event)
    return result


def _with_schema(request: LLMRequest) -> LLMRequest:
    """Return a request without tools, with a schema of the calls and answers that its tool choice permits."""
    allowed = tuple(tool for tool in request.tools if request.tool_choice in {None, "auto", "required", tool.name})
    # all tools in every step: a server reads a prompt faster if it begins like the previous one
    tools = "\n".join(dump([tool.name, tool.description, tool.parameters]).decode() for tool in request.tools)
    system = "\n\n".join(filter(None, (request.system, _SYSTEM.format(tools))))
    schema = _schema(allowed, answers=request.tool_choice in {None, "auto", "none"})
    return evolve(_in_words(request), system=system, tools=(), tool_choice=None, response_schema=schema)


def _schema(tools: Sequence[Tool], *, answers: bool) -> Schema:
    definitions = Definitions()
    options = [
        _object({"tool": {"enum": [tool.name]}, "arguments": definitions.embed(tool.name, dict(tool.parameters))})
        for tool in tools
    ]
    if answers:
        options.append(_object({"answer": {"type": "string"}}))
    return {**_object({"next": {"anyOf": options}}), "$defs": definitions.schemas}


def _object(properties: Mapping[str, object]) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _in_words(request: LLMRequest) -> LLMRequest:
    """Return the same conversation with calls and results of tools as text."""
    messages = tuple(
        evolve(message, role="user" if message.role == "tool" else message.role, parts=tuple(map(_text, message.parts)))
        for message in request_messages(request)
    )
    return evolve(request, prompt=None, messages=messages)


def _text(part: Part) -> Part:
    if isinstance(part, ToolCall):
        text = dump({"next": {"tool": part.name, "arguments": parse(part.arguments)}}).decode()
        return Text(text, stays=part.stays)
    return Text(f"The tool says: {part.content}", stays=part.stays) if isinstance(part, ToolResult) else part


def _read(response: LLMResponse) -> LLMResponse:
    """Read the call or the answer in a response; one that was cut off stays as it is."""
    step = as_object(as_object(parse(response.content)).get("next"))
    if "tool" in step:
        arguments = dump(step.get("arguments")).decode()
        call = ToolCall("call_0", as_string(step["tool"]), arguments, stays=response.stays)
        return evolve(response, content="", parts=(call,), finish_reason=FinishReason.TOOL_CALLS)
    text = as_string(step.get("answer"))
    return evolve(response, content=text, parts=(Text(text, stays=response.stays),)) if text else response
