"""Anthropic's Messages API: a request in its shape, and the record of its functions."""

from collections.abc import Mapping, Sequence
from typing import Final, cast

import msgspec
from returns.result import Failure, Result, Success

from llm_effects.errors import InvalidRequest, LLMError
from llm_effects.providers.anthropic_answers import decode, decode_event, finish
from llm_effects.providers.anthropic_settings import settings_of
from llm_effects.providers.anthropic_turns import Turn, final_answer, misplaced, moved_system, system_of, turns_of
from llm_effects.providers.base import Provider
from llm_effects.providers.failures import classify
from llm_effects.providers.headers import key_headers
from llm_effects.providers.targets import Target
from llm_effects.requests import LLMRequest
from llm_effects.secrets import Secret
from llm_effects.wire import WireRequest


def encode(target: Target, request: LLMRequest, stream: bool) -> Result[WireRequest, LLMError]:
    """Write a request for ``/v1/messages``; one that cannot be said there is an ``InvalidRequest``.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> claude = target_of("claude", ModelConfig(provider="anthropic", model="claude-opus-5-5", api_key="k")).unwrap()
    >>> encode(claude, LLMRequest(prompt="why?"), False).unwrap().body
    b'{"model":"claude-opus-5-5","max_tokens":8192,"messages":[{"role":"user","content":[{"type":"text","text":"why?"}]}]}'
    """
    problem = misplaced(request) or _unfit(target, request)
    if problem is not None:
        return Failure(_invalid(target, request, problem))
    turns = turns_of(target, request)
    if not turns:
        return Failure(_invalid(target, request, "messages: hold no text to be sent: end with a user's turn"))
    return _written(target, request, turns, stream=stream)


def _written(
    target: Target, request: LLMRequest, turns: Sequence[Turn], *, stream: bool
) -> Result[WireRequest, LLMError]:
    settings, warnings = settings_of(target, request)
    system = system_of(request)
    body = {
        "model": target.wire_model or target.name,
        **settings,
        **({} if system is None else {"system": system}),
        "messages": turns,
        **({"stream": True} if stream else {}),
    }
    try:
        text = msgspec.json.encode(body, enc_hook=_plain)
    except UnicodeEncodeError:
        return Failure(_invalid(target, request, "messages: a text holds half of a surrogate pair: repair it"))
    url, headers = f"{target.endpoint}/v1/messages", _headers(target)
    return Success(WireRequest(url=url, headers=headers, body=text, warnings=(*warnings, *moved_system(request))))


def _headers(target: Target) -> tuple[tuple[str, str | Secret], ...]:
    own = key_headers(target)
    usual = (("content-type", "application/json"), ("anthropic-version", target.config.wire_version))
    return (*(pair for pair in usual if pair[0] not in {name for name, _ in own}), *own)


def _unfit(target: Target, request: LLMRequest) -> str | None:
    if target.capabilities.prefill is False and final_answer(request):
        return "messages: the last one is an assistant's, which this model does not continue: end with a user's turn"
    return None


def _invalid(target: Target, request: LLMRequest, message: str) -> InvalidRequest:
    return InvalidRequest(model=target.name, provider=target.preset.name, message=message, request=request)


def _plain(value: object) -> object:
    """Write the mappings and sequences that a schema may be made of."""
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, object]", value))
    if isinstance(value, Sequence):
        return list(cast("Sequence[object]", value))
    msg = f"a schema holds JSON only, not {type(value).__name__}"
    raise TypeError(msg)


ANTHROPIC: Final = Provider(
    encode=encode,
    decode=decode,
    classify=classify,
    decode_event=decode_event,
    finish=finish,
)
"""The Messages API as plain functions."""
