"""Repair: an answer that fails its validator goes back to its model with everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial
from typing import Final

from attrs import evolve
from returns.result import Failure, Success

from llm_effects.effects.call import Call, ResponseValidator
from llm_effects.effects.effect import Answer, Generate, layer, proceed
from llm_effects.effects.env import LLMEnv
from llm_effects.effects.tasks import in_steps
from llm_effects.values.errors import SchemaMismatch
from llm_effects.values.json import dump
from llm_effects.values.messages import Message, Text
from llm_effects.values.requests import LLMRequest, is_growing, request_messages
from llm_effects.values.responses import FinishReason, LLMResponse

SHOWN: Final = 20
"""Most problems shown to a model at once; the error lists all of them."""


@layer
def with_repair(next: Generate, call: Call, env: LLMEnv) -> Awaitable[Answer]:
    """Send an invalid answer back to its model, at most ``max_repairs`` times; then fail with ``SchemaMismatch``.

    It stands inside ``with_routing``, which moves on to the next candidate, and inside ``with_cache``, which therefore
    stores valid answers only. A stream restarts with the new answer. An answer that was cut off is not repaired: it
    would be cut off again.
    """
    validator = call.validator
    if validator is None or call.attempt.continues:  # the rest of an answer cannot be judged alone
        return proceed(next, call, env)
    return _until_valid(next, call, validator, env)


async def _until_valid(next: Generate, call: Call, validator: ResponseValidator, env: LLMEnv) -> Answer:
    warnings: tuple[str, ...] = ()
    attempt, repairs = call, 0
    while True:
        result = await proceed(next, attempt, env)
        if not isinstance(result, Success):
            return result
        response = result.unwrap()
        problems = await in_steps(partial(validator.problems, response), len(response.content))
        if not problems:
            return Success(evolve(response, warnings=(*warnings, *response.warnings)) if warnings else response)
        warnings = (*warnings, f"{response.model} was asked again: {'; '.join(problems[:SHOWN])}")
        spent = len(call.history.attempts) + call.attempt.alternatives >= env.config.routing.max_attempts
        if repairs >= validator.max_repairs or spent or response.finish_reason is FinishReason.LENGTH:
            return Failure(_mismatch(response, problems))
        repairs += 1
        await call.history.drained()
        attempt = _repair_call(call, corrected(call.request, response, problems))


def _repair_call(call: Call, request: LLMRequest) -> Call:
    again = call.again(call.attempt.wait_ms)
    return evolve(again, request=request, attempt=evolve(again.attempt, delivered=call.history.contents))


def _mismatch(response: LLMResponse, problems: tuple[str, ...]) -> SchemaMismatch:
    return SchemaMismatch(
        problems=problems,
        raw=response.content,
        model=response.model,
        provider=response.provider,
        request_id=response.request_id,
    )


def corrected(request: LLMRequest, response: LLMResponse, problems: tuple[str, ...]) -> LLMRequest:
    """Return the request with the answer and its problems appended, and the schema, which not every server shows.

    >>> from llm_effects.testing import answer
    >>> again = corrected(LLMRequest(prompt="How many?"), answer("many"), ("$: is not JSON",))
    >>> [message.role for message in again.messages]
    ['user', 'assistant', 'user']
    """
    answered = (Message("assistant", (Text(response.content),)),) if response.content.strip() else ()
    turns = (*request_messages(request), *answered, Message("user", (Text(_correction(request, problems)),)))
    marked = is_growing(request) or any(getattr(part, "cache", False) for each in turns for part in each.parts)
    prompt_cache = request.prompt_cache or (None if marked else "off")  # nothing after this reads what would be written
    return evolve(request, prompt=None, messages=turns, prompt_cache=prompt_cache)


def _correction(request: LLMRequest, problems: tuple[str, ...]) -> str:
    more = [f"- and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    schema = "" if request.response_schema is None else f"\nIts JSON Schema:\n{dump(request.response_schema).decode()}"
    lines = "\n".join((*(f"- {problem}" for problem in problems[:SHOWN]), *more))
    return f"That answer does not fit:\n{lines}\nAnswer again, with the whole corrected JSON and nothing else.{schema}"
