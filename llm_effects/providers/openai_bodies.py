"""What OpenAI's protocols have in common on the way out: their headers."""

from collections.abc import Mapping

from returns.result import Result, Success

from llm_effects.errors import LLMError
from llm_effects.providers.targets import Target
from llm_effects.providers.writing import wire_request
from llm_effects.wire import WireRequest


def written(
    target: Target, path: str, body: Mapping[str, object], warnings: tuple[str, ...]
) -> Result[WireRequest, LLMError]:
    """Write a body for the operation at ``path``, with the headers of a stream where it asks for one."""
    accept = "text/event-stream" if body.get("stream") else "application/json"
    return Success(wire_request(target, path, body, warnings, accept))
