"""Anthropic's Messages API: a request in its shape, and the record of its functions."""

from typing import Final

from returns.result import Failure, Result, Success

from llm_effects.errors import LLMError
from llm_effects.providers.answer_formats import misfit
from llm_effects.providers.anthropic_answers import decode, decode_event, finish
from llm_effects.providers.anthropic_settings import settings_of
from llm_effects.providers.anthropic_turns import final_answer, moved_system, system_of, turns_of
from llm_effects.providers.base import Provider
from llm_effects.providers.failures import classify
from llm_effects.providers.targets import Target
from llm_effects.providers.turns import invalid, unsendable
from llm_effects.providers.writing import wire_request
from llm_effects.requests import LLMRequest
from llm_effects.wire import WireRequest


def encode(target: Target, request: LLMRequest, stream: bool) -> Result[WireRequest, LLMError]:
    """Write a request for ``/v1/messages``; one that cannot be said there is an ``InvalidRequest``.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> claude = target_of("claude", ModelConfig(provider="anthropic", model="claude-opus-5-5", api_key="k")).unwrap()
    >>> encode(claude, LLMRequest(prompt="why?"), False).unwrap().body
    b'{"model":"claude-opus-5-5","max_tokens":8192,"messages":[{"role":"user","content":[{"type":"text","text":"why?"}]}]}'
    """
    turns = turns_of(target, request)
    problem = unsendable(request, turns) or _unfit(target, request)
    if problem is not None:
        return Failure(invalid(target, request, problem))
    settings, warnings = settings_of(target, request)
    system = system_of(request)
    body = {
        "model": target.wire_model or target.name,
        **settings,
        **({} if system is None else {"system": system}),
        "messages": turns,
        **({"stream": True} if stream else {}),
    }
    return Success(wire_request(target, "/v1/messages", body, (*warnings, *moved_system(request))))


def _unfit(target: Target, request: LLMRequest) -> str | None:
    if target.capabilities.prefill is False and final_answer(request):
        return "messages: the last one is an assistant's, which this model does not continue: end with a user's turn"
    schema = None if target.capabilities.schema is False else request.response_schema
    return misfit(target, schema) or None if schema is not None else None


ANTHROPIC: Final = Provider(
    encode=encode,
    decode=decode,
    classify=classify,
    decode_event=decode_event,
    finish=finish,
)
"""The Messages API as plain functions."""
