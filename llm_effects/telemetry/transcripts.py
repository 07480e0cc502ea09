"""What was said, for traces that were asked to tell it: messages as the GenAI conventions write them, as JSON.

Source: gen-ai-input-messages.json, gen-ai-output-messages.json and gen-ai-system-instructions.json of the conventions.
Texts are masked one by one, before they become JSON. The bytes of attachments and opaque reasoning are left out.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, TypeAlias, assert_never

from llm_effects.attachments import Document, Image
from llm_effects.config import LLMConfig
from llm_effects.fleet import of_newest, ready_targets
from llm_effects.jsons import dump
from llm_effects.messages import Message, Part, Reasoning, Text, ToolCall, ToolResult
from llm_effects.providers.headers import key_headers
from llm_effects.records import Attributes
from llm_effects.requests import LLMRequest, conversation
from llm_effects.responses import FinishReason, LLMResponse
from llm_effects.secrets import revealed, scrub
from llm_effects.telemetry.conventions import INPUT_MESSAGES, OUTPUT_MESSAGES, SYSTEM_INSTRUCTIONS, TOOL_DEFINITIONS
from llm_effects.values import JSONObject

_Mask: TypeAlias = Callable[[str], str]

_FINISHED: Final = {FinishReason.TOOL_CALLS: "tool_call"}


@of_newest
def mask_of(config: LLMConfig) -> _Mask:
    """Make the mask of all that is secret in a configuration."""
    targets = ready_targets(config).values()
    secrets = {secret for target in targets for secret in revealed(key_headers(target))}
    return lambda text: scrub(text, *secrets)


def asked(request: LLMRequest, config: LLMConfig) -> Attributes:
    """Tell what a request says: its messages, system text and tools.

    >>> asked(LLMRequest(prompt="why?"), LLMConfig(models={}))
    {'gen_ai.input.messages': '[{"role":"user","parts":[{"type":"text","content":"why?"}]}]'}
    """
    mask = mask_of(config)
    told = {INPUT_MESSAGES: _json([_message(each, mask) for each in conversation(request)])}
    if request.system is not None:
        told[SYSTEM_INSTRUCTIONS] = _json([{"type": "text", "content": mask(request.system)}])
    if request.tools:
        told[TOOL_DEFINITIONS] = _json([{"type": "function", "name": tool.name} for tool in request.tools])
    return told


def answered(response: LLMResponse, config: LLMConfig) -> Attributes:
    """Tell what a model said.

    >>> from llm_effects.testing import answer
    >>> answered(answer("so"), LLMConfig(models={}))["gen_ai.output.messages"]
    '[{"role":"assistant","parts":[{"type":"text","content":"so"}],"finish_reason":"stop"}]'
    """
    reason = _FINISHED.get(response.finish_reason, response.finish_reason.value)
    said = {"role": "assistant", "parts": _parts(response.parts, mask_of(config)), "finish_reason": reason}
    return {OUTPUT_MESSAGES: _json([said])}


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
            return {"type": "tool_call", "id": part.id, "name": part.name, "arguments": mask(part.arguments)}
        case ToolResult():
            return {"type": "tool_call_response", "id": part.call_id, "response": mask(part.content)}
        case Image() | Document():
            kind = "image" if isinstance(part, Image) else "document"
            return {"type": kind, "mime_type": part.media_type, "uri": part.url and mask(part.url)}
        case _:
            assert_never(part)


def _json(said: object) -> str:
    return dump(said).decode()
