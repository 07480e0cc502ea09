"""What the provider's own count of a prompt tells: how good the estimate is, and whether the server cut the prompt."""

import re
from typing import Final

from attrs import evolve

from llm_effects.calls import Call
from llm_effects.env import LLMEnv
from llm_effects.messages import Document, Image, Message, Reasoning, Text
from llm_effects.requests import LLMRequest, conversation
from llm_effects.responses import LLMResponse, Usage
from llm_effects.tokens import message_tokens

SUSPICIOUS: Final = 0.5
"""Share of the expected tokens below which a server has probably cut the prompt off."""

LONG_PROMPT: Final = 1000
"""Estimated tokens below which no server cuts, and the estimate is too rough to say so."""

_WORD: Final = re.compile(r"\w+")


def counted(response: LLMResponse, call: Call, env: LLMEnv) -> LLMResponse:
    """Learn from the provider's count, warn where it is far too low, and count where it told nothing at all.

    Some local servers cut a prompt that is too long and say nothing (ollama#17889).
    """
    estimated, told = env.tokens.estimate(call.request), response.usage.prompt_tokens
    if told is None:
        return evolve(response, usage=_counted_here(response, estimated)) if response.usage == Usage() else response
    if not comparable(call.request):
        return response
    expected = estimated * env.tokens.ratio(call.model)
    if estimated >= LONG_PROMPT and told < expected * SUSPICIOUS and told < _words(call.request):
        return evolve(response, warnings=(*response.warnings, _cut(told, round(expected))))
    env.tokens.learn(call.model, estimated, told)
    return response


def comparable(request: LLMRequest) -> bool:
    """Whether the estimate can be held against a count: pictures vary widely, and thinking is often not sent back."""
    return not any(isinstance(part, Image | Document | Reasoning) for turn in request.messages for part in turn.parts)


def _words(request: LLMRequest) -> int:
    """Fewer tokens than words no tokenizer makes: none of them has a token across two words.

    So what is estimated badly, such as long lines of dashes, or a language after another one, is not held to be cut.
    """
    return sum(
        len(_WORD.findall(part.text)) for turn in conversation(request) for part in turn.parts if isinstance(part, Text)
    )


def _counted_here(response: LLMResponse, estimated: int) -> Usage:
    said = message_tokens(Message("assistant", response.parts)) if response.parts else 0
    return Usage(input_tokens=estimated, output_tokens=said, estimated=True)


def _cut(told: int, expected: int) -> str:
    return (
        f"prompt: the server read {told} tokens of about {expected}: it may have cut the prompt off silently; "
        "raise its context length, or set the model's context_length to what it has loaded"
    )
