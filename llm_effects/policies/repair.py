"""An answer that does not fit what was wanted goes back to its model, with all that is wrong with it."""

from typing import Final

from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Failure, Success

from llm_effects.effects.call import Call, ResponseValidator, changed
from llm_effects.effects.effect import Answer, Effect, Generate, effect, run
from llm_effects.effects.env import LLMEnv
from llm_effects.values.errors import SchemaMismatch
from llm_effects.values.json import dump
from llm_effects.values.messages import Message, Text
from llm_effects.values.requests import LLMRequest, conversation
from llm_effects.values.responses import FinishReason, LLMResponse

SHOWN: Final = 20
"""Problems that a model is told of at once; the error has them all."""


def with_repair(inner: Generate) -> Generate:
    """Tell a model what is wrong with its answer, as often as the call's check allows; then ``SchemaMismatch``.

    It stands below ``routed``, which goes on to the next candidate, and below ``cached``, which so keeps only answers
    that fit. A stream restarts with the new answer. One that was cut off is not asked for again: it would be again.
    """

    def ask(call: Call) -> Effect[LLMResponse]:
        check = call.check
        if check is None or call.continues:  # the rest of an answer cannot be judged alone
            return inner(call)

        async def perform(env: LLMEnv) -> Answer:
            return await _until_it_fits(inner, call, check, env)

        return effect(perform)

    return ask


async def _until_it_fits(inner: Generate, call: Call, check: ResponseValidator, env: LLMEnv) -> Answer:
    told: tuple[str, ...] = ()
    attempt, asked = call, 0
    while True:
        result = await run(inner(attempt), env)
        if not is_successful(result):
            return result
        response = result.unwrap()
        problems = check.problems(response)
        if not problems:
            return Success(evolve(response, warnings=(*told, *response.warnings)) if told else response)
        told = (*told, f"{response.model} was asked again: {'; '.join(problems[:SHOWN])}")
        spent = len(call.history.attempts) >= env.config.routing.max_attempts
        if asked >= check.max_repairs or spent or response.finish_reason is FinishReason.LENGTH:
            return _given_up(call, response, problems)
        asked += 1
        attempt = changed(call, request=corrected(call.request, response, problems), before=call.history.contents)


def _given_up(call: Call, response: LLMResponse, problems: tuple[str, ...]) -> Answer:
    error = SchemaMismatch(
        problems=problems,
        raw=response.content,
        model=response.model,
        provider=response.provider,
        request_id=response.request_id,
    )
    call.history.errors.append(error)
    return Failure(error)


def corrected(request: LLMRequest, response: LLMResponse, problems: tuple[str, ...]) -> LLMRequest:
    """The request, with the answer to it and what is wrong with that; some servers never showed the model the schema.

    >>> from llm_effects.testing.scripted import answer
    >>> again = corrected(LLMRequest(prompt="How many?"), answer("many"), ("$: is no JSON",))
    >>> [message.role for message in again.messages]
    ['user', 'assistant', 'user']
    """
    said = (Message("assistant", (Text(response.content),)),) if response.content.strip() else ()
    turns = (*conversation(request), *said, Message("user", (Text(_correction(request, problems)),)))
    return evolve(request, prompt=None, messages=turns)


def _correction(request: LLMRequest, problems: tuple[str, ...]) -> str:
    more = [f"- and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    schema = "" if request.response_schema is None else f"\nIts JSON Schema:\n{dump(request.response_schema).decode()}"
    lines = "\n".join((*(f"- {problem}" for problem in problems[:SHOWN]), *more))
    return f"That answer does not fit:\n{lines}\nAnswer again, with the whole corrected JSON and nothing else.{schema}"
