"""What is told of a call and of each attempt: pure functions from values to the attributes of the conventions.

No prompt, answer, key or owner is among them; ``TelemetryConfig.bodies`` adds what ``transcripts`` tells.
"""

from collections.abc import Mapping
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from returns.pipeline import is_successful
from returns.result import Result

from llm_effects.calls import Call, Trail
from llm_effects.config import LLMConfig
from llm_effects.errors import LLMError
from llm_effects.fleet import of_newest, ready_targets
from llm_effects.providers.targets import Target
from llm_effects.records import Attributes
from llm_effects.responses import CANCELLED, SUCCESS, Attempt, Cost, LLMResponse, Usage, total_cost
from llm_effects.telemetry import conventions as names
from llm_effects.telemetry.transcripts import answered, asked

Outcome: TypeAlias = Result[LLMResponse, LLMError] | None
"""What came of a call or an attempt; ``None`` where it was cut off."""

_PORTS: Final = {"http": 80, "https": 443}

_SETTINGS: Final = {
    "max_tokens": names.REQUEST_MAX_TOKENS,
    "temperature": names.REQUEST_TEMPERATURE,
    "top_p": names.REQUEST_TOP_P,
    "stop": names.REQUEST_STOP,
    "seed": names.REQUEST_SEED,
}


@of_newest
def places_of(config: LLMConfig) -> Mapping[str, Attributes]:
    """Give what every attempt at a model says of it, by its configured name.

    >>> from llm_effects import ModelConfig
    >>> studio = ModelConfig(provider="lm-studio", model="qwen", temperature=0.2)
    >>> for name, value in places_of(LLMConfig(models={"studio": studio}))["studio"].items():
    ...     print(name, value)
    gen_ai.operation.name chat
    gen_ai.provider.name lm-studio
    gen_ai.request.model qwen
    llm_effects.model studio
    server.address localhost
    server.port 1234
    gen_ai.request.temperature 0.2
    """
    return {name: _place(target) for name, target in ready_targets(config).items()}


def _place(target: Target) -> Attributes:
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


def _settings(given: object) -> Attributes:
    values = ((name, getattr(given, field, None)) for field, name in _SETTINGS.items())
    return {name: value for name, value in values if value is not None and value != ()}


def call_opening(call: Call) -> Attributes:
    """Tell of a whole call what is known when it begins."""
    request = call.request
    return {names.CALL_ID: call.id, names.TASK_TYPE: str(request.task_type), **_conversation(call)}


def _conversation(call: Call) -> Attributes:
    return {} if call.conversation_id is None else {names.CONVERSATION_ID: call.conversation_id}


def call_ending(trail: Trail, outcome: Outcome, kind: str) -> Attributes:
    """Tell of a whole call what came of it; ``kind`` is its outcome's name. Tokens are told by its attempts alone."""
    told: Attributes = {
        names.OUTCOME: kind,
        names.ATTEMPTS: len(trail.attempts),
        **_cost(total_cost(attempt.cost for attempt in trail.attempts)),
    }
    if outcome is None or not is_successful(outcome):
        return told
    response = outcome.unwrap()
    return {**told, names.MODEL: response.model, names.CACHED: response.cached}


def attempt_opening(call: Call, config: LLMConfig) -> Attributes:
    """Tell of an attempt what is known when it begins."""
    request = call.request
    return {
        **places_of(config).get(call.model, {}),
        **({} if _embeds(call.model, config) else _settings(request.preferences)),
        **_conversation(call),
        **({} if call.sink is None else {names.REQUEST_STREAM: True}),
        **({} if request.response_schema is None else {names.OUTPUT_TYPE: "json"}),
        **(asked(request, config) if config.telemetry.bodies else {}),
    }


def _embeds(model: str, config: LLMConfig) -> bool:
    return places_of(config).get(model, {}).get(names.OPERATION) == names.EMBEDDINGS


def attempt_ending(attempt: Attempt | None, outcome: Outcome, config: LLMConfig) -> Attributes:
    """Tell of an attempt what came of it; of one that stood in a queue to its end, that it was not sent."""
    if attempt is None:
        return {names.SENT: False}
    told = {names.OUTCOME: attempt.outcome, names.WAIT_MS: attempt.wait_ms, **_usage(attempt.usage)}
    told |= _cost(attempt.cost)
    if attempt.first_content_ms is not None:
        told[names.RESPONSE_FIRST_CHUNK] = attempt.first_content_ms / 1000
    if outcome is None:
        return told
    return {**told, **(_answer(outcome.unwrap(), config) if is_successful(outcome) else _failure(outcome.failure()))}


def _answer(response: LLMResponse, config: LLMConfig) -> Attributes:
    known = {names.RESPONSE_MODEL: response.served_model, names.RESPONSE_ID: response.request_id}
    told = {name: value for name, value in known.items() if value}
    if _embeds(response.model, config):
        return told
    return {
        names.RESPONSE_FINISH_REASONS: (response.finish_reason.value,),
        **told,
        **(answered(response, config) if config.telemetry.bodies else {}),
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


def error_of(kind: str) -> str | None:
    """Give what a span calls an error: not a success, and not what somebody no longer wanted.

    >>> error_of("cancelled"), error_of("NetworkError")
    (None, 'NetworkError')
    """
    return None if kind in {SUCCESS, CANCELLED} else kind
