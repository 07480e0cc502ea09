"""Which models can take a request at all: what is not known of a model passes."""

from typing import final

from attrs import evolve, frozen

from llm_effects.errors import ContextTooLarge, InvalidRequest, LLMError
from llm_effects.messages import Image
from llm_effects.providers.targets import Target
from llm_effects.requests import LLMRequest, conversation


@final
@frozen
class LeftOut:
    """A configured model that may not answer, and why."""

    model: str
    reason: str


def unsuited(request: LLMRequest, target: Target, tokens: int) -> str:
    """Say why a model cannot take a request, or nothing; what is not known of it passes."""
    can = target.capabilities
    needed = tokens + (request.preferences.max_tokens or 0)
    has_images = any(isinstance(part, Image) for message in conversation(request) for part in message.parts)
    checks = (
        (request.model not in {None, target.name, target.wire_model}, f"the request is pinned to {request.model!r}"),
        (can.context_length is not None and needed > can.context_length, _too_long(needed, can.context_length)),
        (bool(request.tools) and can.tools is False, "it does not take tools"),
        (has_images and can.images is False, "it does not take images"),
        (request.response_schema is not None and can.schema is False, "it does not take a response schema"),
    )
    return next((reason for failed, reason in checks if failed), "")


def _too_long(needed: int, window: int | None) -> str:
    return f"about {needed} tokens do not fit its window of {window}"


def nobody(request: LLMRequest, targets: tuple[Target, ...], tokens: int, left_out: tuple[LeftOut, ...]) -> LLMError:
    """Say why nobody can take a request: no such model, a window too small for all, or else each reason."""
    names = [target.name for target in targets]
    asked = [target for target in targets if request.model in {None, target.name, target.wire_model}]
    if not asked:
        remedy = f"model: {request.model!r} is not configured; configured are {', '.join(names)}"
        return InvalidRequest(message=remedy, request=request)
    reasons = "; ".join(
        f"{each.model}: {each.reason}" for each in left_out if each.model in {one.name for one in asked}
    )
    roomier = [target for target in asked if not unsuited(request, _with_any_window(target), tokens)]
    if roomier:
        limit = max(target.capabilities.context_length or 0 for target in roomier)
        return ContextTooLarge(token_count=tokens, limit=limit, message=reasons)
    return InvalidRequest(message=f"no configured model can take this request: {reasons}", request=request)


def _with_any_window(target: Target) -> Target:
    return evolve(target, capabilities=evolve(target.capabilities, context_length=None))
