"""The heart of the onion: ask the chosen model once."""

import re
from typing import Final

from anyio import move_on_after
from attrs import evolve
from returns.result import Failure, Success

from llm_effects.effects.call import Call
from llm_effects.effects.effect import Answer, Effect, effect, result_of
from llm_effects.effects.env import LLMEnv
from llm_effects.values.errors import RequestTimeout
from llm_effects.values.messages import Document, Image, Message, Reasoning, Text
from llm_effects.values.requests import LLMRequest, conversation
from llm_effects.values.responses import LLMResponse, Usage
from llm_effects.values.tokens import message_tokens

# What the provider's own count of a prompt tells: how good the estimate is, and whether the server cut the prompt.


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


def complete(call: Call) -> Effect[LLMResponse]:
    """Ask ``call.model`` once, within the time of one attempt (``ModelConfig.timeout_ms``).

    The live clients keep that time themselves (``keeps_time``), since a call's time in their queue is not the
    model's; others are timed here. A stream is timed where it is read: the time of its consumer does not count.
    """

    async def perform(env: LLMEnv) -> Answer:
        if call.sink is not None or getattr(env.clients, "keeps_time", False):
            return await _asked(call, env)
        limit_ms = env.config.models[call.model].timeout_ms
        with move_on_after(limit_ms / 1000):
            return await _asked(call, env)
        return Failure(RequestTimeout(model=call.model, timeout_ms=limit_ms, phase="attempt"))

    return effect(perform)


async def _asked(call: Call, env: LLMEnv) -> Answer:
    answer = await result_of(env.clients.complete(call))
    return Success(counted(answer.unwrap(), call, env)) if isinstance(answer, Success) else answer
