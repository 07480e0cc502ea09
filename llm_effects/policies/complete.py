"""The innermost function of the pipeline: ask the chosen model once."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

from anyio import CancelScope, current_time, move_on_after
from attrs import evolve
from returns.result import Failure, Success

from llm_effects.effects.call import Call, Sink
from llm_effects.effects.effect import Answer, innermost, result_of
from llm_effects.effects.env import LLMEnv
from llm_effects.effects.tasks import in_steps
from llm_effects.providers.registry import ready_targets
from llm_effects.values import caps
from llm_effects.values.errors import RequestTimeout
from llm_effects.values.events import StreamEvent
from llm_effects.values.messages import Document, Image, Message, Part, Reasoning, Text
from llm_effects.values.requests import LLMRequest, request_messages
from llm_effects.values.responses import LLMResponse, Usage, staying_answer
from llm_effects.values.tokens import CHARACTERS_PER_TOKEN, message_tokens
from llm_effects.values.validation import short_repr


@innermost
def complete(call: Call, env: LLMEnv) -> Awaitable[Answer]:
    """Ask ``call.model`` once, within the time of one attempt (``ModelConfig.timeout_ms``).

    The live clients keep that time themselves (``keeps_time``), since time in their queue is not the model's, and the
    candidate's share of the time (``keeps_share``); others are timed here. A stream is timed where it is read, so that
    the time of its consumer does not count.
    """
    shared = call.attempt.first_content_by < math.inf and not getattr(env.clients, "keeps_share", False)
    return _ask_within_share(call, env) if shared else _ask_in_time(call, env)


async def _ask_within_share(call: Call, env: LLMEnv) -> Answer:
    """Ask within the candidate's share of the time: without content by its end, the next one is asked instead."""
    started = current_time()
    with CancelScope(deadline=call.attempt.first_content_by) as share:
        shared = call if call.sink is None else evolve(call, sink=_ending_at(call.sink, share))
        return await _ask_in_time(shared, env)
    limit_ms = (call.attempt.first_content_by - started) * 1000
    return Failure(RequestTimeout(model=call.model, timeout_ms=limit_ms, phase="attempt"))


def _ending_at(sink: Sink, share: CancelScope) -> Sink:
    """Return a sink that ends the share with its first event: the opening, which comes with the first content."""

    async def deliver(event: StreamEvent) -> None:
        share.deadline = math.inf
        await sink(event)

    return deliver


def _ask_in_time(call: Call, env: LLMEnv) -> Awaitable[Answer]:
    keeps_time = call.sink is not None or getattr(env.clients, "keeps_time", False)
    return _ask(call, env) if keeps_time else _ask_timed(call, env)


async def _ask_timed(call: Call, env: LLMEnv) -> Answer:
    limit_ms = env.config.models[call.model].timeout_ms
    with move_on_after(limit_ms / 1000):
        return await _ask(call, env)
    return Failure(RequestTimeout(model=call.model, timeout_ms=limit_ms, phase="attempt"))


async def _ask(call: Call, env: LLMEnv) -> Answer:
    direct: Callable[[Call], Awaitable[Answer]] | None = getattr(env.clients, "answer", None)
    answer = await (result_of(env.clients.complete(call)) if direct is None else direct(call))
    if isinstance(answer, Success):
        response = answer.unwrap()
        checked = await calibrated(with_plausible_usage(response, call, env), call, env)
        checked = staying_answer(checked, call.request.stays)
        return answer if checked is response else Success(checked)
    error = answer.failure()
    usage = None if error.usage is None else _plausible(error.usage, (Text(error.partial),), call, env)
    return Failure(evolve(error, usage=usage)) if usage != error.usage else answer


# Implausible counts: a server that counts wrongly must not exhaust a budget or a quota.


def with_plausible_usage(response: LLMResponse, call: Call, env: LLMEnv) -> LLMResponse:
    """Replace counts that cannot be true by the estimate, with a warning: budgets and quotas are charged by them."""
    usage = _plausible(response.usage, response.parts, call, env)
    if usage is response.usage or usage == response.usage:
        return response
    counted = " and ".join(
        f"{short_repr(count)} {name} tokens"
        for name, count in (("prompt", response.usage.prompt_tokens), ("output", response.usage.output_tokens))
        if count is not None
    )
    warning = f"usage: the server counted {counted}, more than this call can have: the estimate is used instead"
    return evolve(response, usage=usage, warnings=(*response.warnings, warning))


def _plausible(usage: Usage, parts: tuple[Part, ...], call: Call, env: LLMEnv) -> Usage:
    prompt, output = usage.prompt_tokens or 0, usage.output_tokens or 0
    if max(prompt, output) <= _SMALL_TOKENS:
        return usage
    target = ready_targets(env.config).get(call.model)
    most = (None if target is None else target.capabilities.context_length) or caps.TOKENS
    if max(prompt, output) <= min(most, caps.PROMPT_SLACK_TOKENS):
        return usage
    estimated = env.tokens.estimate(call.request)
    if prompt > min(most, _most_tokens(call.request, estimated)):
        unsorted = evolve(usage, cache_read_tokens=0, cache_write_tokens=0, cache_write_1h_tokens=0)
        usage = evolve(unsorted, input_tokens=estimated, estimated=True)
    if output > most:
        usage = evolve(usage, output_tokens=_answered(parts), reasoning_tokens=0, estimated=True)
    return usage


_SMALL_TOKENS: Final = 2048  # as many fit into every model's window


def _most_tokens(request: LLMRequest, estimated: int) -> float:
    """Return the most tokens that a prompt can have: one for each byte sent, and a server's own additions."""
    parts = (part for turn in request.messages for part in turn.parts)
    if any(isinstance(part, Image | Document) and part.url is not None for part in parts):
        return math.inf
    return estimated * CHARACTERS_PER_TOKEN * _MAX_BYTES + caps.PROMPT_SLACK_TOKENS


_MAX_BYTES: Final = 4  # of one character in UTF-8


def _answered(parts: tuple[Part, ...]) -> int:
    return message_tokens(Message("assistant", parts)) if parts else 0


# Token counts: the provider's own count calibrates the estimate and reveals a truncated prompt.

SUSPICIOUS: Final = 0.5
"""Share of the expected tokens below which a server has probably truncated the prompt."""

LONG_PROMPT: Final = 1000
"""Estimated tokens below which servers do not truncate, and the estimate is too rough to tell."""

_WORD: Final = re.compile(r"\w+")


async def calibrated(response: LLMResponse, call: Call, env: LLMEnv) -> LLMResponse:
    """Calibrate the token estimate by the provider's count, warn if that is far too low, and count if it is missing.

    Some local servers truncate a prompt that is too long without an error (ollama#17889).
    """
    estimated, counted = env.tokens.estimate(call.request), response.usage.prompt_tokens
    if counted is None:
        return evolve(response, usage=_estimated_usage(response, estimated)) if response.usage == Usage() else response
    if not comparable(call.request):
        return response
    expected = estimated * env.tokens.ratio(call.model)
    if estimated >= LONG_PROMPT and counted < expected * SUSPICIOUS and await _has_more_words(call.request, counted):
        warnings = (*response.warnings, _truncation_warning(counted, round(expected)))
        return evolve(response, warnings=warnings, doubtful=True)
    env.tokens.learn(call.model, estimated, counted)
    return response


def comparable(request: LLMRequest) -> bool:
    """Return whether estimate and count are comparable: images vary widely, and reasoning is often not sent back."""
    if not request.messages:
        return True
    parts = (part for turn in request.messages for part in turn.parts)
    return not any(isinstance(part, Image | Document | Reasoning) for part in parts)


async def _has_more_words(request: LLMRequest, counted: int) -> bool:
    """Return whether a prompt has more words than so many: no tokenizer makes fewer tokens, as none spans two words.

    So a bad estimate, as for long rows of dashes or an unusual language, raises no truncation warning.
    """
    texts = [part.text for turn in request_messages(request) for part in turn.parts if isinstance(part, Text)]
    return await in_steps(partial(has_more_words, texts, counted), sum(map(len, texts)))


_PIECE: Final = 4096  # characters: the words of 1 MB take 25 ms to count, and a server that truncates reports few


def has_more_words(texts: Iterable[str], limit: int) -> bool:
    """Return whether texts have more than so many words, without counting the rest.

    >>> has_more_words(["a b", "c"], 2), has_more_words(["a b", "c"], 3)
    (True, False)
    """
    words = 0
    for text in texts:
        for start in range(0, len(text), _PIECE):
            words += len(_WORD.findall(text, start, start + _PIECE))
            words -= start > 0 and _WORD.fullmatch(text, start - 1, start + 1) is not None  # a word cut in two
            if words > limit:
                return True
    return False


def _estimated_usage(response: LLMResponse, estimated: int) -> Usage:
    return Usage(input_tokens=estimated, output_tokens=_answered(response.parts), estimated=True)


def _truncation_warning(counted: int, expected: int) -> str:
    return (
        f"prompt: the server read {counted} tokens of about {expected}: it may have truncated the prompt silently; "
        "raise its context length, or set the model's context_length to what it has loaded"
    )
