"""Which models can take a request at all: what is not known of a model passes."""

from typing import final

from attrs import evolve, frozen
from returns.result import Failure, Result, Success

from llm_effects.errors import ContextTooLarge, InvalidRequest, LLMError
from llm_effects.messages import Document, Image
from llm_effects.providers.answer_formats import misfit
from llm_effects.providers.showing import unshowable
from llm_effects.providers.targets import Target
from llm_effects.requests import LLMRequest


@final
@frozen
class LeftOut:
    """A configured model that may not answer, and why."""

    model: str
    reason: str


@final
@frozen
class Sieved:
    """Who may answer a request, in the order of the configuration, and who may not."""

    suited: tuple[Target, ...]
    left_out: tuple[LeftOut, ...]


@final
@frozen
class Needs:
    """What a request asks of a model: its prompt of so many tokens, and what is ``shown`` beside text."""

    request: LLMRequest
    tokens: int
    shown: tuple[Image | Document, ...]


def needs_of(request: LLMRequest, tokens: int) -> Needs:
    """Look a request through once, for however many models there are."""
    parts = (part for message in request.messages for part in message.parts)  # a mere prompt shows nothing
    return Needs(request, tokens, tuple(part for part in parts if isinstance(part, Image | Document)))


def sieved(request: LLMRequest, targets: tuple[Target, ...], tokens: int) -> Result[Sieved, LLMError]:
    """Tell the models that can take a request of so many tokens from the others; an error where there is none."""
    needs = needs_of(request, tokens)
    reasons = [(target, unsuited(needs, target)) for target in targets]
    suited = tuple(target for target, reason in reasons if not reason)
    left_out = tuple(LeftOut(target.name, reason) for target, reason in reasons if reason)
    return Success(Sieved(suited, left_out)) if suited else Failure(nobody(needs, targets, left_out))


def unsuited(needs: Needs, target: Target) -> str:
    """Say why a model cannot take a request, or nothing; what is not known of it passes."""
    request, can = needs.request, target.capabilities
    if request.model is not None and request.model not in {target.name, target.wire_model}:
        return f"the request is pinned to {request.model!r}"
    if can.embeddings:
        return "it gives embeddings, not answers"
    needed = needs.tokens + (request.preferences.max_tokens or 0)
    if can.context_length is not None and needed > can.context_length:
        return f"about {needed} tokens do not fit its window of {can.context_length}"
    if request.tools and can.tools is False:
        return "it does not take tools"
    hidden = next(filter(None, (unshowable(target, part) for part in needs.shown)), "") if needs.shown else ""
    if hidden or request.response_schema is None:
        return hidden
    return "it does not take a response schema" if can.schema is False else misfit(target, request.response_schema)


def nobody(needs: Needs, targets: tuple[Target, ...], left_out: tuple[LeftOut, ...]) -> LLMError:
    """Say why nobody can take a request: no such model, a window too small for all, or else each reason."""
    request = needs.request
    names = [target.name for target in targets]
    asked = [target for target in targets if request.model in {None, target.name, target.wire_model}]
    if not asked:
        remedy = f"model: {request.model!r} is not configured; configured are {', '.join(names)}"
        return InvalidRequest(message=remedy, request=request)
    reasons = "; ".join(
        f"{each.model}: {each.reason}" for each in left_out if each.model in {one.name for one in asked}
    )
    roomier = [target for target in asked if not unsuited(needs, _with_any_window(target))]
    if roomier:
        limit = max(target.capabilities.context_length or 0 for target in roomier)
        return ContextTooLarge(token_count=needs.tokens, limit=limit, message=reasons)
    return InvalidRequest(message=f"no configured model can take this request: {reasons}", request=request)


def _with_any_window(target: Target) -> Target:
    return evolve(target, capabilities=evolve(target.capabilities, context_length=None))
