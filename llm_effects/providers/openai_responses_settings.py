"""A request's settings in the words of Responses; what the model or the protocol refuses is dropped, with a warning."""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from llm_effects.providers.answer_formats import openai_format
from llm_effects.providers.capabilities import EFFORTS, gpt_rules
from llm_effects.providers.targets import Target
from llm_effects.requests import LLMRequest, ReasoningEffort, Tool

Setting: TypeAlias = tuple[Mapping[str, object], tuple[str, ...]]
"""Fields of the body, and what was dropped or changed on the way to them."""

_NONE: Final[Setting] = ({}, ())
_LEAST_LIMIT: Final = 16


def settings_of(target: Target, request: LLMRequest) -> Setting:
    """All settings in one."""
    told = tuple(setting(target, request) for setting in _SETTINGS)
    fields = {name: value for some, _ in told for name, value in some.items()}
    return fields, tuple(warning for _, warnings in told for warning in warnings)


def _limit(target: Target, request: LLMRequest) -> Setting:
    wanted = request.preferences.max_tokens or target.config.max_tokens
    if wanted is None:
        return _NONE
    if wanted < _LEAST_LIMIT:
        why = f"max_tokens: {wanted} is sent as {_LEAST_LIMIT}, the least that the protocol takes"
        return {"max_output_tokens": _LEAST_LIMIT}, (why,)
    return {"max_output_tokens": wanted}, ()


def _sampling(target: Target, request: LLMRequest) -> Setting:
    given = request.preferences.temperature
    temperature = target.config.temperature if given is None else given
    both = {"temperature": temperature, "top_p": request.preferences.top_p}
    wanted = {name: value for name, value in both.items() if value is not None}
    refusal = _no_sampling(target, request)
    return (wanted, ()) if refusal is None else ({}, tuple(f"{name}: dropped, {refusal}" for name in wanted))


def _no_sampling(target: Target, request: LLMRequest) -> str | None:
    if target.capabilities.sampling is False:
        return f"{target.name} does not take it"
    return "a model that thinks takes no sampling settings" if _effort(target, request)[0] not in _QUIET else None


def _unknown(_: Target, request: LLMRequest) -> Setting:
    given = {"stop": request.preferences.stop or None, "seed": request.preferences.seed}
    return {}, tuple(f"{name}: dropped, Responses takes none" for name, value in given.items() if value is not None)


_QUIET: Final = (None, "none")


def _reasoning(target: Target, request: LLMRequest) -> Setting:
    """Thinking is told in summary where it was asked for, and comes back sealed: nothing is stored to refer to."""
    sealed = {"include": ["reasoning.encrypted_content"]} if target.capabilities.reasoning is True else {}
    effort, warnings = _effort(target, request)
    if effort is None:
        return sealed, warnings
    told = {} if effort in _QUIET else {"summary": "auto"}
    return {"reasoning": {"effort": effort, **told}, **sealed}, warnings


def _effort(target: Target, request: LLMRequest) -> tuple[ReasoningEffort | None, tuple[str, ...]]:
    """The wanted effort, or the nearest one that the model takes, the next higher one first."""
    wanted = request.preferences.reasoning_effort
    if wanted is None:
        return None, ()
    if target.capabilities.reasoning is False:
        return None, (f"reasoning_effort: dropped, {target.name} does not take it",)
    taken = gpt_rules(target.wire_model or "").efforts
    if wanted in taken:
        return wanted, ()
    nearest = _nearest(wanted, taken)
    return nearest, (f"reasoning_effort: {wanted} is sent as {nearest}",)


def _nearest(wanted: ReasoningEffort, taken: tuple[ReasoningEffort, ...]) -> ReasoningEffort:
    for effort in taken:
        if EFFORTS.index(effort) > EFFORTS.index(wanted):
            return effort
    return taken[-1]


def _format(target: Target, request: LLMRequest) -> Setting:
    if request.response_schema is None:
        return _NONE
    form, told = openai_format(target, request.response_schema)
    return {"text": {"format": {"type": "json_schema", **form}}}, told


def _tools(_: Target, request: LLMRequest) -> Setting:
    if not request.tools:
        return _NONE
    chosen = request.tool_choice
    plain = chosen in {"auto", "none", "required"}
    choice = {} if chosen is None else {"tool_choice": chosen if plain else {"type": "function", "name": chosen}}
    return {"tools": [_tool(tool) for tool in request.tools], **choice}, ()


def _tool(tool: Tool) -> Mapping[str, object]:
    described = {"description": tool.description} if tool.description else {}
    # left out, strict would be on: it refuses many a schema, and makes every argument a required one
    return {"type": "function", "name": tool.name, **described, "parameters": tool.parameters, "strict": False}


_SETTINGS: Final[tuple[Callable[[Target, LLMRequest], Setting], ...]] = (
    _limit,
    _sampling,
    _unknown,
    _reasoning,
    _format,
    _tools,
)
