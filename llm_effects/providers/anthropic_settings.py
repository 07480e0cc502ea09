"""A request's settings in Anthropic's words; what a model refuses is dropped, each with a warning."""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from returns.pipeline import is_successful

from llm_effects.providers.answer_formats import anthropic_format
from llm_effects.providers.capabilities import ClaudeRules, claude_rules
from llm_effects.providers.targets import Target
from llm_effects.requests import LLMRequest

Setting: TypeAlias = tuple[Mapping[str, object], tuple[str, ...]]
"""Fields of the body, and what was dropped on the way to them."""

_NONE: Final[Setting] = ({}, ())
_DEFAULT_LIMIT: Final = 8192
_LEAST_BUDGET: Final = 1024
_BUDGETS: Final = {"minimal": 1024, "low": 1024, "medium": 4096, "high": 16_384, "xhigh": 32_768, "max": 65_536}
_CHOICES: Final = {"auto": "auto", "none": "none", "required": "any"}


def settings_of(target: Target, request: LLMRequest) -> Setting:
    """All settings in one."""
    told = tuple(setting(target, request) for setting in _SETTINGS)
    fields = {name: value for some, _ in told for name, value in some.items()}
    return fields, tuple(warning for _, warnings in told for warning in warnings)


def _limit(target: Target, request: LLMRequest) -> Setting:
    wanted = request.preferences.max_tokens or target.config.max_tokens
    limit = _max_tokens(target, request)
    capped = wanted is not None and limit < wanted
    warnings = (f"max_tokens: {wanted} is sent as {limit}, the most that the model gives",) if capped else ()
    return {"max_tokens": limit}, warnings


def _max_tokens(target: Target, request: LLMRequest) -> int:
    wanted = request.preferences.max_tokens or target.config.max_tokens or _DEFAULT_LIMIT
    return min(wanted, target.capabilities.max_output or wanted)


def _sampling(target: Target, request: LLMRequest) -> Setting:
    wanted = _wanted_sampling(target, request)
    refusal = _no_sampling(target, request)
    if refusal is not None:
        return {}, tuple(f"{name}: dropped, {refusal}" for name in wanted)
    if len(wanted) > 1:
        return {"temperature": _warmth(wanted)}, ("top_p: dropped, the model takes temperature or top_p, not both",)
    if wanted.get("temperature", 0) > 1:
        return {"temperature": 1.0}, (f"temperature: {wanted['temperature']:g} is sent as 1, the most it takes",)
    return wanted, ()


def _warmth(wanted: Mapping[str, float]) -> float:
    return min(wanted["temperature"], 1.0)


def _wanted_sampling(target: Target, request: LLMRequest) -> Mapping[str, float]:
    given = request.preferences.temperature
    temperature = target.config.temperature if given is None else given
    both = {"temperature": temperature, "top_p": request.preferences.top_p}
    return {name: value for name, value in both.items() if value is not None}


def _no_sampling(target: Target, request: LLMRequest) -> str | None:
    if target.capabilities.sampling is False:
        return "the model takes no sampling settings"
    return "a model that thinks takes no sampling settings" if _thinks(target, request) else None


def _stops(_: Target, request: LLMRequest) -> Setting:
    blank = tuple("stop: white space alone is dropped" for stop in request.preferences.stop if not stop.strip())
    stops = [stop for stop in request.preferences.stop if stop.strip()]
    return ({"stop_sequences": stops} if stops else {}), blank


def _seed(_: Target, request: LLMRequest) -> Setting:
    return _NONE if request.preferences.seed is None else ({}, ("seed: dropped, the provider takes none",))


def _thinking(target: Target, request: LLMRequest) -> Setting:
    effort, rules = request.preferences.reasoning_effort, _rules(target)
    if effort is None:
        return _NONE
    if effort == "none":
        return _thoughtless(rules)
    if rules.thinking == "never":
        return {}, ("reasoning_effort: dropped, the model does not think",)
    if _forced(request) and not rules.by_default:
        return {}, ("reasoning_effort: dropped, a tool is forced and the model thinks only where it may choose",)
    # Told in full, thinking is content: a stream that shows none would look stalled.
    shown = {"thinking": {"type": "adaptive", "display": "summarized"}}
    return _budgeted(target, request) if rules.thinking == "budget" else (shown, ())


def _thinks(target: Target, request: LLMRequest) -> bool:
    return request.preferences.reasoning_effort != "none" and "thinking" in _thinking(target, request)[0]


def _thoughtless(rules: ClaudeRules) -> Setting:
    if rules.off is None:
        return {}, ("reasoning_effort: none is dropped, the model always thinks",)
    return ({"thinking": {"type": rules.off}} if rules.by_default else {}), ()


def _budgeted(target: Target, request: LLMRequest) -> Setting:
    """Half of the answer's tokens at most are for thinking: the limit counts both."""
    limit = _max_tokens(target, request)
    if limit <= _LEAST_BUDGET:
        return {}, (f"reasoning_effort: dropped, thinking needs max_tokens above {_LEAST_BUDGET}",)
    wanted = _BUDGETS[request.preferences.reasoning_effort or "low"]
    return {"thinking": {"type": "enabled", "budget_tokens": min(wanted, max(_LEAST_BUDGET, limit // 2))}}, ()


def _output(target: Target, request: LLMRequest) -> Setting:
    effort, warnings = _effort(target, request)
    form, told = _format(target, request)
    config = {**effort, **form}
    return ({"output_config": config} if config else {}), (*warnings, *told)


def _format(target: Target, request: LLMRequest) -> Setting:
    if request.response_schema is None:
        return _NONE
    if target.capabilities.schema is False:
        return {}, ("response_schema: dropped, the model knows no structured output",)
    written = anthropic_format(request.response_schema)
    if not is_successful(written):
        return {}, (f"dropped: {written.failure()}",)
    form, told = written.unwrap()
    return {"format": form}, told


def _effort(target: Target, request: LLMRequest) -> Setting:
    effort, rules = request.preferences.reasoning_effort, _rules(target)
    if rules.thinking != "adaptive" or not _thinks(target, request):
        return _NONE
    if effort == "minimal":
        return {"effort": "low"}, ("reasoning_effort: minimal is sent as low",)
    if effort == "xhigh" and not rules.xhigh:
        return {"effort": "high"}, ("reasoning_effort: xhigh is sent as high",)
    return {"effort": effort}, ()


def _tools(target: Target, request: LLMRequest) -> Setting:
    if not request.tools:
        return _NONE
    tools = [
        {"name": tool.name, **({"description": tool.description} if tool.description else {})}
        | {"input_schema": tool.parameters}
        for tool in request.tools
    ]
    choice, warnings = _choice(target, request)
    return {"tools": tools, **choice}, warnings


def _choice(target: Target, request: LLMRequest) -> Setting:
    choice = request.tool_choice
    if choice is None:
        return _NONE
    if _forced(request) and not _rules(target).forced_choice:
        return {"tool_choice": {"type": "auto"}}, (
            f"tool_choice: {choice} is sent as auto, no tool can be forced on it",
        )
    named = {"type": "tool", "name": choice}
    return {"tool_choice": {"type": _CHOICES[choice]} if choice in _CHOICES else named}, ()


def _forced(request: LLMRequest) -> bool:
    return bool(request.tools) and request.tool_choice not in {None, "auto", "none"}


def _rules(target: Target) -> ClaudeRules:
    return claude_rules(target.wire_model or "")


_SETTINGS: Final[tuple[Callable[[Target, LLMRequest], Setting], ...]] = (
    _limit,
    _sampling,
    _stops,
    _seed,
    _thinking,
    _output,
    _tools,
)
