"""OpenAI's Responses: the request, and the protocol's record."""

from typing import Final

from returns.result import Failure, Result

from llm_effects.errors import LLMError
from llm_effects.providers.base import Provider
from llm_effects.providers.failures import classify
from llm_effects.providers.openai_bodies import written
from llm_effects.providers.openai_responses_answers import decode, decode_event, finish
from llm_effects.providers.openai_responses_items import items_of
from llm_effects.providers.openai_responses_settings import settings_of
from llm_effects.providers.targets import Target
from llm_effects.providers.turns import invalid, unsendable
from llm_effects.requests import LLMRequest
from llm_effects.wire import WireRequest


def encode(target: Target, request: LLMRequest, stream: bool) -> Result[WireRequest, LLMError]:
    """Write a request for ``/responses``, of which the server keeps nothing; what cannot be sent is told.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> gpt = target_of("gpt", ModelConfig(provider="openai-responses", model="gpt-4.1", api_key="sk-x")).unwrap()
    >>> encode(gpt, LLMRequest(prompt="hi", system="Be brief."), False).unwrap().body
    b'{"model":"gpt-4.1","instructions":"Be brief.","input":[{"role":"user","content":"hi"}],"store":false}'
    """
    turns = items_of(target, request)
    problem = unsendable(request, turns)
    if problem is not None:
        return Failure(invalid(target, request, problem))
    settings, warnings = settings_of(target, request)
    body = {
        **({"model": target.wire_model} if target.wire_model else {}),
        **({"instructions": request.system} if request.system else {}),
        "input": turns,
        **settings,
        "store": False,
        **({"stream": True} if stream else {}),
    }
    return written(target, "/responses", body, warnings)


OPENAI_RESPONSES: Final = Provider(
    encode=encode, decode=decode, classify=classify, decode_event=decode_event, finish=finish
)
"""The protocol of ``/responses``."""
