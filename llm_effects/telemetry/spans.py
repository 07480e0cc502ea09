"""Span attributes and measures of calls and attempts, by the conventions: pure functions from values.

No prompt, answer, key or owner is among them, unless ``TelemetryConfig.bodies`` adds the message bodies.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final, TypeAlias, assert_never
from urllib.parse import urlsplit

from returns.pipeline import is_successful
from returns.result import Result

from llm_effects.config import LLMConfig
from llm_effects.effects.call import Call, CallHistory
from llm_effects.providers.registry import cached_per_config, ready_targets
from llm_effects.providers.target import Target, key_headers
from llm_effects.telemetry import conventions as names
from llm_effects.telemetry.conventions import INPUT_MESSAGES, OUTPUT_MESSAGES, SYSTEM_INSTRUCTIONS, TOOL_DEFINITIONS
from llm_effects.values.errors import LLMError
from llm_effects.values.json import dump
from llm_effects.values.messages import Document, Image, Message, Part, Reasoning, Text, ToolCall, ToolResult
from llm_effects.values.records import Attributes, Measure
from llm_effects.values.requests import LLMRequest, request_messages
from llm_effects.values.responses import CANCELLED, SUCCESS, Attempt, Cost, FinishReason, LLMResponse, Usage, total_cost
from llm_effects.values.secrets import RotatingKey, scrub, secret_values
from llm_effects.values.validation import JSONObject

Outcome: TypeAlias = Result[LLMResponse, LLMError] | None
"""The result of a call or an attempt; ``None`` if it was cancelled or raised."""

_PORTS: Final = {"http": 80, "https": 443}

_SETTINGS: Final = {
    "max_tokens": names.REQUEST_MAX_TOKENS,
    "temperature": names.REQUEST_TEMPERATURE,
    "top_p": names.REQUEST_TOP_P,
    "stop": names.REQUEST_STOP,
    "seed": names.REQUEST_SEED,
}


@cached_per_config
def target_attributes(config: LLMConfig) -> Mapping[str, Attributes]:
    """Return the attributes of every attempt at a model, by its configured name.

    >>> from llm_effects import ModelConfig
    >>> studio = ModelConfig(provider="lm-studio", model="qwen", temperature=0.2)
    >>> for name, value in target_attributes(LLMConfig(models={"studio": studio}))["studio"].items():
    ...     print(name, value)
    gen_ai.operation.name chat
    gen_ai.provider.name lm-studio
    gen_ai.request.model qwen
    llm_effects.model studio
    server.address localhost
    server.port 1234
    gen_ai.request.temperature 0.2
    """
    return {name: _target(target) for name, target in ready_targets(config).items()}


def _target(target: Target) -> Attributes:
    provider = target.preset.name
    return {
        names.OPERATION: names.EMBEDDINGS if target.capabilities.embeddings else names.CHAT,
        names.PROVIDER: names.PROVIDERS.get(provider, provider),
        names.REQUEST_MODEL: target.wire_model or target.name,
        names.MODEL: target.name,
        **({} if target.preset.wire == "llama" else _server(target.endpoint)),
        **_settings(target.config),
    }


def _server(endpoint: str) -> Attributes:
    url = urlsplit(endpoint)
    return {names.SERVER_ADDRESS: url.hostname or "", names.SERVER_PORT: url.port or _PORTS[url.scheme]}


def _settings(source: object) -> Attributes:
    values = ((name, getattr(source, field, None)) for field, name in _SETTINGS.items())
    return {name: value for name, value in values if value is not None and value != ()}


def call_opening(call: Call) -> Attributes:
    """Return the attributes of a call that are known when it starts."""
    request = call.request
    return {names.CALL_ID: call.id, names.TASK_TYPE: str(request.task_type), **_conversation(call)}


def _conversation(call: Call) -> Attributes:
    return {} if call.turn is None else {names.CONVERSATION_ID: call.turn.conversation_id}


def call_ending(history: CallHistory, outcome: Outcome, kind: str) -> Attributes:
    """Return the attributes of a call's outcome, named ``kind``. Only its attempts have token counts."""
    attributes: Attributes = {
        names.OUTCOME: kind,
        names.ATTEMPTS: len(history.attempts),
        **_cost(total_cost(attempt.cost for attempt in history.attempts)),
    }
    if outcome is None or not is_successful(outcome):
        return attributes
    response = outcome.unwrap()
    return {**attributes, names.MODEL: response.model, names.CACHED: response.cached}


def attempt_opening(call: Call, config: LLMConfig) -> Attributes:
    """Return the attributes of an attempt that are known when it starts."""
    request = call.request
    return {
        **target_attributes(config).get(call.model, {}),
        **({} if _embeds(call.model, config) else _settings(request.preferences)),
        **_conversation(call),
        **({} if call.sink is None else {names.REQUEST_STREAM: True}),
        **({} if request.response_schema is None else {names.OUTPUT_TYPE: "json"}),
        **(request_bodies(request, config) if config.telemetry.bodies else {}),
    }


def _embeds(model: str, config: LLMConfig) -> bool:
    return target_attributes(config).get(model, {}).get(names.OPERATION) == names.EMBEDDINGS


def attempt_ending(attempt: Attempt | None, outcome: Outcome, config: LLMConfig) -> Attributes:
    """Return the attributes of an attempt's outcome; ``None`` is an attempt that ended in a queue, unsent."""
    if attempt is None:
        return {names.SENT: False}
    attributes = {names.OUTCOME: attempt.outcome, names.WAIT_MS: attempt.wait_ms, **_usage(attempt.usage)}
    attributes |= _cost(attempt.cost)
    if attempt.first_content_ms is not None:
        attributes[names.RESPONSE_FIRST_CHUNK] = attempt.first_content_ms / 1000
    if outcome is None:
        return attributes
    result = _response(outcome.unwrap(), config) if is_successful(outcome) else _failure(outcome.failure())
    return {**attributes, **result}


def _response(response: LLMResponse, config: LLMConfig) -> Attributes:
    known = {names.RESPONSE_MODEL: response.served_model, names.RESPONSE_ID: response.request_id}
    attributes = {name: value for name, value in known.items() if value}
    if _embeds(response.model, config):
        return attributes
    return {
        names.RESPONSE_FINISH_REASONS: (response.finish_reason.value,),
        **attributes,
        **(response_body(response, config) if config.telemetry.bodies else {}),
    }


def _failure(error: LLMError) -> Attributes:
    return {} if error.status is None else {names.HTTP_STATUS: error.status}


def _usage(usage: Usage) -> Attributes:
    counted = {
        names.INPUT_TOKENS: usage.prompt_tokens,
        names.OUTPUT_TOKENS: usage.output_tokens,
        names.CACHE_READ_TOKENS: usage.cache_read_tokens or None,
        names.CACHE_WRITE_TOKENS: usage.cache_write_tokens or None,
        names.REASONING_TOKENS: usage.reasoning_tokens or None,
    }
    return {name: count for name, count in counted.items() if count is not None}


def _cost(cost: Cost) -> Attributes:
    return {} if cost.usd is None else {names.COST_USD: float(cost.usd)}


def error_type(kind: str) -> str | None:
    """Return a span's error type, ``None`` for a success or a cancellation.

    >>> error_type("cancelled"), error_type("NetworkError")
    (None, 'NetworkError')
    """
    return None if kind in {SUCCESS, CANCELLED} else kind


# Message bodies, as JSON, only where the configuration asks for them.
#
# Source: gen-ai-input-messages.json, gen-ai-output-messages.json and gen-ai-system-instructions.json of the
# conventions. Each text is masked before it becomes JSON. Attachments' bytes and opaque reasoning are left out.


_Mask: TypeAlias = Callable[[str], str]

_FINISH_REASONS: Final = {FinishReason.TOOL_CALLS: "tool_call"}


@cached_per_config
def mask_of(config: LLMConfig) -> _Mask:
    """Return a function that masks all secrets of a configuration in a text."""
    targets = ready_targets(config).values()
    secrets = {secret for target in targets for secret in secret_values(key_headers(target))}
    rotating = [target.config.api_key for target in targets if isinstance(target.config.api_key, RotatingKey)]
    return lambda text: scrub(text, *secrets, *(form for key in rotating for form in key.masks))


def request_bodies(request: LLMRequest, config: LLMConfig) -> Attributes:
    """Return the attributes with a request's messages, system text and tools; none of what stays on this machine.

    >>> request_bodies(LLMRequest(prompt="why?"), LLMConfig(models={}))
    {'gen_ai.input.messages': '[{"role":"user","parts":[{"type":"text","content":"why?"}]}]'}
    """
    if request.stays is not None:
        return {}
    mask = mask_of(config)
    attributes = {INPUT_MESSAGES: _json([_message(each, mask) for each in request_messages(request)])}
    if request.system is not None:
        attributes[SYSTEM_INSTRUCTIONS] = _json([{"type": "text", "content": mask(request.system)}])
    if request.tools:
        attributes[TOOL_DEFINITIONS] = _json([{"type": "function", "name": tool.name} for tool in request.tools])
    return attributes


def response_body(response: LLMResponse, config: LLMConfig) -> Attributes:
    """Return the attribute with a model's answer, unless that stays on this machine.

    >>> from llm_effects.testing.scripted import answer
    >>> response_body(answer("so"), LLMConfig(models={}))["gen_ai.output.messages"]
    '[{"role":"assistant","parts":[{"type":"text","content":"so"}],"finish_reason":"stop"}]'
    """
    if response.stays is not None:
        return {}
    reason = _FINISH_REASONS.get(response.finish_reason, response.finish_reason.value)
    message = {"role": "assistant", "parts": _parts(response.parts, mask_of(config)), "finish_reason": reason}
    return {OUTPUT_MESSAGES: _json([message])}


def _message(message: Message, mask: _Mask) -> JSONObject:
    return {"role": message.role, "parts": _parts(message.parts, mask)}


def _parts(parts: Iterable[Part], mask: _Mask) -> list[JSONObject]:
    return list(map(partial(_part, mask=mask), parts))


def _part(part: Part, mask: _Mask) -> JSONObject:
    match part:
        case Text():
            return {"type": "text", "content": mask(part.text)}
        case Reasoning():
            return {"type": "reasoning", "content": mask(part.text)}
        case ToolCall():
            return {
                "type": "tool_call",
                "id": mask(part.id),
                "name": mask(part.name),
                "arguments": mask(part.arguments),
            }
        case ToolResult():
            return {"type": "tool_call_response", "id": mask(part.call_id), "response": mask(part.content)}
        case Image() | Document():
            kind = "image" if isinstance(part, Image) else "document"
            return {"type": kind, "mime_type": part.media_type, "uri": part.url and mask(part.url)}
        case _:
            assert_never(part)


def _json(value: object) -> str:
    return dump(value).decode()


# Measures of an attempt: its duration, the time to its first content, and its tokens.


_MEASURED: Final = (
    names.OPERATION,
    names.PROVIDER,
    names.REQUEST_MODEL,
    names.SERVER_ADDRESS,
    names.SERVER_PORT,
)
"""The attributes of measures: from the configuration, never from a server, for every combination is a time series."""


def measures_of(attempt: Attempt, config: LLMConfig) -> tuple[Measure, ...]:
    """Return the known measures of an attempt, in seconds and tokens.

    Token counts that the provider did not report are left out, as the conventions require.

    >>> from llm_effects.testing.scripted import ONE_MODEL
    >>> attempt = Attempt(model="scripted", provider="lm-studio", outcome="NetworkError", latency_ms=1500.0)
    >>> [(each.metric, each.value, each.attributes["error.type"]) for each in measures_of(attempt, ONE_MODEL)]
    [('gen_ai.client.operation.duration', 1.5, 'NetworkError')]
    """
    target = target_attributes(config).get(attempt.model, {})
    common = {name: target[name] for name in _MEASURED if name in target}
    return (*_times(attempt, common), *_tokens(attempt.usage, common))


def _times(attempt: Attempt, common: Attributes) -> Iterable[Measure]:
    error = error_type(attempt.outcome)
    ended = {**common, names.OUTCOME: attempt.outcome, **({} if error is None else {names.ERROR_TYPE: error})}
    yield Measure(names.DURATION, attempt.latency_ms / 1000, ended)
    if attempt.first_content_ms is not None:
        yield Measure(names.FIRST_CHUNK, attempt.first_content_ms / 1000, common)


def _tokens(usage: Usage, common: Attributes) -> Iterable[Measure]:
    for kind, count in (("input", usage.prompt_tokens), ("output", usage.output_tokens)):
        if count is not None and not usage.estimated:
            yield Measure(names.TOKEN_USAGE, count, {**common, names.TOKEN_TYPE: kind})
