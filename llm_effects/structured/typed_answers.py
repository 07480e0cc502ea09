"""Answers of a type: ``generate_as`` asks with the schema of the type, decodes strictly, and reports every problem."""

from __future__ import annotations

from functools import partial
from typing import Final, Generic, TypeVar, final, get_args, get_origin, overload

from attrs import evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.effects.call import ResponseValidator, Sink
from llm_effects.effects.effect import Answer, Effect, effect, from_env, from_result, run, then
from llm_effects.effects.env import LLMEnv
from llm_effects.effects.tasks import in_steps
from llm_effects.pipeline import check_request, deliver_ending, run_call, standard_pipeline
from llm_effects.structured.decoding import Decoded, Problems, decode_text
from llm_effects.structured.schema import TypeSchema, type_schema
from llm_effects.values.errors import InvalidRequest, LLMError, SchemaMismatch, request_of
from llm_effects.values.events import Restarted, Started, StreamEvent
from llm_effects.values.requests import CachePolicy, LLMRequest
from llm_effects.values.responses import FinishReason, LLMResponse

_Value = TypeVar("_Value")
_Value_co = TypeVar("_Value_co", covariant=True)


@final
@frozen
class Structured(Generic[_Value_co]):
    """A value of the requested type, and the response that it was read from.

    It may also be passed as the type: type checkers know what ``generate_as(request, Structured[Literal["low",
    "high"]])`` returns, which they do not for a bare ``Literal`` or union.
    """

    value: _Value_co
    response: LLMResponse


@overload
def generate_as(  # pyright: ignore[reportOverlappingOverload]
    request: str | LLMRequest, kind: type[Structured[_Value]], *, max_repairs: int = ..., sink: Sink | None = ...
) -> Effect[Structured[_Value]]: ...
@overload
def generate_as(
    request: str | LLMRequest, kind: type[_Value], *, max_repairs: int = ..., sink: Sink | None = ...
) -> Effect[Structured[_Value]]: ...
@overload
def generate_as(
    request: str | LLMRequest, kind: object, *, max_repairs: int = ..., sink: Sink | None = ...
) -> Effect[Structured[object]]: ...
def generate_as(
    request: str | LLMRequest, kind: object, *, max_repairs: int = 2, sink: Sink | None = None
) -> Effect[Structured[object]]:
    """Answer a request with a value of ``kind``: an attrs class, a dataclass, a ``Literal``, a union, a list of them...

    An answer that does not fit goes back to its model with all problems, at most ``max_repairs`` times; then the next
    candidate is asked. If none is left, the error is ``SchemaMismatch`` with the problems, the raw text and the total
    cost (USD), or ``RequestFailed`` with the error of each candidate. A type without a schema is an
    ``InvalidRequest`` before any model is asked. ``sink`` receives the events of the stream, where a new answer
    follows ``Restarted``.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> ask = generate_as("Two primes?", list[int], max_repairs=1)
    >>> anyio.run(run, ask, scripted_env("Two and three.", "[2, 3]")).unwrap().value
    [2, 3]
    >>> anyio.run(run, ask, scripted_env("Two and three.")).failure().problems
    ('$: is not JSON: invalid character (byte 0)',)
    """
    check_request(request)
    target = get_args(kind)[0] if get_origin(kind) is Structured else kind
    schema = then(from_env(lambda _: type_schema(target)), from_result)
    question = then(
        from_result(request_of(request)),
        lambda request: schema.bind_result(partial(_question, request, max_repairs, sink)),
    )
    structured = then(question, lambda question: _answer(question).bind_result(question.decode))

    async def answered(env: LLMEnv) -> Result[Structured[object], LLMError]:
        result = await run(structured, env)
        await deliver_ending(result.map(lambda each: each.response), sink)
        return result

    return effect(answered)


# The question: what is asked of a model, and what its answer must be.


_CUT_OFF: Final = (
    "$: was cut off at the limit of tokens: raise preferences.max_tokens, or limit the texts and lists of the type"
)


@final
@frozen
class _Question:
    request: LLMRequest
    target: TypeSchema
    max_repairs: int
    sink: Sink | None
    _newest: dict[str, Decoded] = field(factory=dict[str, Decoded], init=False, eq=False, repr=False)

    def read(self, response: LLMResponse) -> Decoded:
        """Read the value of an answer; the problems of an answer that was cut off begin with that."""
        value = self._decode_once(response.content)
        cut_off = response.finish_reason is FinishReason.LENGTH
        return value.alt(lambda problems: (_CUT_OFF, *problems)) if cut_off else value

    def _decode_once(self, text: str) -> Decoded:
        """Decode an answer once: its validator, and what follows it, read the same text."""
        decoded = self._newest.get(text)
        if decoded is None:
            decoded = decode_text(self.target, text)
            self._newest.clear()
            self._newest[text] = decoded
        return decoded

    def problems(self, response: LLMResponse) -> Problems:
        """List what is wrong with an answer."""
        value = self.read(response)
        return () if is_successful(value) else value.failure()

    def decode(self, response: LLMResponse) -> Result[Structured[object], LLMError]:
        """Read the value of an answer; an answer that does not fit is a ``SchemaMismatch``."""
        value = self.read(response)
        return value.map(lambda value: Structured(value, response)).alt(partial(_mismatch, response))


def _question(
    request: LLMRequest, max_repairs: int, sink: Sink | None, target: TypeSchema
) -> Result[_Question, LLMError]:
    problem = _conflict(request, target)
    if problem is not None:
        return Failure(InvalidRequest(message=problem, request=request))
    return Success(_Question(evolve(request, response_schema=target.schema), target, max_repairs, sink))


def _conflict(request: LLMRequest, target: TypeSchema) -> str | None:
    if request.response_schema is not None and request.response_schema != target.schema:
        return "response_schema: leave it out: it comes from the type"
    if request.tools and request.tool_choice != "none":
        return "tools: an answer of a type cannot call tools: leave them out, or set tool_choice to none"
    return None


def _mismatch(response: LLMResponse, problems: Problems) -> LLMError:
    return SchemaMismatch(
        problems=problems,
        raw=response.content,
        model=response.model,
        provider=response.provider,
        attempts=response.attempts,
    )


# The answer: repaired by the pipeline, and asked for once more if it comes from elsewhere and does not fit.


def _answer(question: _Question) -> Effect[LLMResponse]:
    async def answered(env: LLMEnv) -> Answer:
        answer = await run(_ask(question), env)
        if not is_successful(answer):
            return answer
        response = answer.unwrap()
        problems = await in_steps(partial(question.problems, response), len(response.content))
        if question.request.cache is CachePolicy.ONLY or not problems:
            return answer
        return await run(_ask_again(question, response), env)

    return effect(answered)


def _ask(question: _Question) -> Effect[LLMResponse]:
    validator = ResponseValidator(question.problems, question.max_repairs, name=id(question.target))
    return run_call(standard_pipeline, question.request, question.sink, validator=validator)


def _ask_again(question: _Question, first: LLMResponse) -> Effect[LLMResponse]:
    """Replace an answer that no validator has seen: one from the cache."""
    policy = question.request.cache
    request = evolve(question.request, cache=CachePolicy.REFRESH if policy is CachePolicy.USE else policy)
    sink = None if question.sink is None else _restarting(question.sink)
    second = _ask(evolve(question, request=request, sink=sink))
    return second.map(partial(_with_first, question, first)).alt(partial(_error_with_first, first))


def _with_first(question: _Question, first: LLMResponse, second: LLMResponse) -> LLMResponse:
    warning = f"a cached answer did not fit: {'; '.join(question.problems(first))}"
    return evolve(
        second,
        attempts=(*first.attempts, *second.attempts),
        cost=first.cost + second.cost,
        latency_ms=first.latency_ms + second.latency_ms,
        warnings=(warning, *second.warnings),
    )


def _error_with_first(first: LLMResponse, error: LLMError) -> LLMError:
    return evolve(error, attempts=(*first.attempts, *error.attempts))


def _restarting(sink: Sink) -> Sink:
    """Return a sink that announces a new answer as ``Restarted``: the consumer has one already."""

    async def deliver(event: StreamEvent) -> None:
        await sink(Restarted(event.model) if isinstance(event, Started) else event)

    return deliver
