"""Chat completions, as OpenAI and every compatible server speak them: the request, and the protocol's record."""

import re
from typing import Final, TypeAlias

from returns.result import Failure, Result

from llm_effects.errors import LLMError
from llm_effects.providers.answer_formats import openai_format
from llm_effects.providers.base import Provider
from llm_effects.providers.failures import classify
from llm_effects.providers.openai_bodies import written
from llm_effects.providers.openai_chat_answers import decode, decode_event, finish
from llm_effects.providers.openai_chat_turns import turns_of
from llm_effects.providers.sent_calls import shortened
from llm_effects.providers.targets import Target
from llm_effects.providers.turns import invalid, unsendable
from llm_effects.requests import LLMRequest, Tool
from llm_effects.wire import WireRequest

_Object: TypeAlias = dict[str, object]

_SAMPLING: Final = ("temperature", "top_p")
# Since GPT-5.4, OpenAI takes tools over chat completions only from a model that does not reason.
_TOOLS_OR_REASONING: Final = re.compile(r"gpt-(?:5\.[4-9]|[6-9])")


def encode(target: Target, request: LLMRequest, stream: bool) -> Result[WireRequest, LLMError]:
    """Write the request; what the model is known to refuse is left out, with a warning; what none takes is an error.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> target = target_of("mini", ModelConfig(provider="ollama", model="qwen3")).unwrap()
    >>> encode(target, LLMRequest(prompt="hi"), False).unwrap().body
    b'{"model":"qwen3","messages":[{"role":"user","content":"hi"}]}'
    """
    turns = turns_of(shortened(request) if target.preset.short_call_ids else request)
    problem = unsendable(request, turns)
    if problem is not None:
        return Failure(invalid(target, request, problem))
    settings, left_out = _settings(target, request)
    tools, changed = _tools(target, request)
    form, told = _answer_format(target, request)
    body: _Object = {
        **({"model": target.wire_model} if target.wire_model else {}),
        "messages": turns,
        **settings,
        **tools,
        **form,
        **(_streaming(target) if stream else {}),
    }
    return written(target, "/chat/completions", body, (*left_out, *changed, *told))


def _streaming(target: Target) -> _Object:
    asked = {"stream_options": {"include_usage": True}} if target.preset.stream_usage else {}
    return {"stream": True, **asked}


def _settings(target: Target, request: LLMRequest) -> tuple[_Object, tuple[str, ...]]:
    wanted, able = request.preferences, target.capabilities
    temperature = target.config.temperature if wanted.temperature is None else wanted.temperature
    given = {
        target.preset.limit_field: wanted.max_tokens or target.config.max_tokens,
        "temperature": temperature,
        "top_p": wanted.top_p,
        "stop": wanted.stop or None,
        target.preset.seed_field or "seed": wanted.seed,
        "reasoning_effort": wanted.reasoning_effort,
    }
    refused = (
        *(_SAMPLING if able.sampling is False else ()),
        *(("reasoning_effort",) if able.reasoning is False else ()),
        *(("seed",) if target.preset.seed_field is None else ()),
    )
    left_out = tuple(
        f"{name} was left out: {target.name} does not take it" for name in refused if given[name] is not None
    )
    return {name: value for name, value in given.items() if value is not None and name not in refused}, left_out


def _tools(target: Target, request: LLMRequest) -> tuple[_Object, tuple[str, ...]]:
    if not request.tools:
        return {}, ()
    choice, tools, warnings = _tool_choice(target, request)
    effort, quiet = _effort(target, request)
    return {"tools": [_tool(tool) for tool in tools], **choice, **effort}, (*warnings, *quiet)


def _tool_choice(target: Target, request: LLMRequest) -> tuple[_Object, tuple[Tool, ...], tuple[str, ...]]:
    chosen = request.tool_choice
    if chosen is None or chosen in {"auto", "none", "required"}:
        return ({} if chosen is None else {"tool_choice": chosen}), request.tools, ()
    if target.preset.named_tool_choice:
        return {"tool_choice": {"type": "function", "function": {"name": chosen}}}, request.tools, ()
    only = tuple(tool for tool in request.tools if tool.name == chosen)
    why = f"tool_choice {chosen!r} was sent as 'required', with this tool alone: {target.preset.name} takes no names"
    return {"tool_choice": "required"}, only, (why,)


def _effort(target: Target, request: LLMRequest) -> tuple[_Object, tuple[str, ...]]:
    model = target.wire_model or ""
    if target.preset.family != "gpt" or not _TOOLS_OR_REASONING.match(model):
        return {}, ()
    told = request.preferences.reasoning_effort not in {None, "none"}
    why = f"reasoning_effort was sent as 'none': over chat completions {model} takes tools only so"
    return {"reasoning_effort": "none"}, ((why,) if told else ())


def _tool(tool: Tool) -> _Object:
    described = {"description": tool.description} if tool.description else {}
    return {"type": "function", "function": {"name": tool.name, **described, "parameters": tool.parameters}}


def _answer_format(target: Target, request: LLMRequest) -> tuple[_Object, tuple[str, ...]]:
    if request.response_schema is None:
        return {}, ()
    form, told = openai_format(target, request.response_schema)
    return {"response_format": {"type": "json_schema", "json_schema": form}}, told


OPENAI_CHAT: Final = Provider(encode=encode, decode=decode, classify=classify, decode_event=decode_event, finish=finish)
"""The protocol of ``/chat/completions``."""
