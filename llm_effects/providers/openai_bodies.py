"""What OpenAI's protocols have in common on the way out: their headers, and when a schema may be strict."""

from collections.abc import Mapping
from typing import cast

from returns.result import Result, Success

from llm_effects.errors import LLMError
from llm_effects.providers.targets import Target
from llm_effects.providers.writing import wire_request
from llm_effects.values import JSONObject
from llm_effects.wire import WireRequest


def written(
    target: Target, path: str, body: Mapping[str, object], warnings: tuple[str, ...]
) -> Result[WireRequest, LLMError]:
    """Write a body for the operation at ``path``, with the headers of a stream where it asks for one."""
    accept = "text/event-stream" if body.get("stream") else "application/json"
    return Success(wire_request(target, path, body, warnings, accept))


def closed(schema: object) -> bool:
    """Whether each object names all its properties and requires them, without which OpenAI refuses strict mode.

    >>> closed({"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False})
    True
    >>> closed({"type": "object", "properties": {"a": {}}})
    False
    """
    if isinstance(schema, list | tuple):
        return all(map(closed, cast("list[object]", schema)))
    if not isinstance(schema, Mapping):
        return True
    rules = cast("JSONObject", schema)
    return _names_all(rules) and all(map(closed, rules.values()))


def _names_all(rules: JSONObject) -> bool:
    properties = rules.get("properties")
    if rules.get("type") != "object" and not isinstance(properties, Mapping):
        return True
    names = set(cast("JSONObject", properties or {}))
    return rules.get("additionalProperties") is False and names == set(cast("list[str]", rules.get("required") or []))
