"""Answers of a type: asked for by its schema, read strictly, and asked for again with all that is wrong with them."""

from typing import Final, Generic, TypeVar, final, get_args, get_origin, overload

from attrs import evolve, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.effects.call import ResponseValidator, Sink
from llm_effects.effects.effect import Effect, effect, run
from llm_effects.effects.env import LLMEnv
from llm_effects.pipeline import deliver_ending, run_call, standard_pipeline
from llm_effects.structured.decoding import Decoded, decode_text
from llm_effects.structured.schema import Target, target_type
from llm_effects.values.errors import InvalidRequest, LLMError, SchemaMismatch
from llm_effects.values.events import Restarted, Started, StreamEvent
from llm_effects.values.requests import CachePolicy, LLMRequest
from llm_effects.values.responses import FinishReason, LLMResponse

_Value = TypeVar("_Value")
_Value_co = TypeVar("_Value_co", covariant=True)


@final
@frozen
class Structured(Generic[_Value_co]):
    """A value of the type that was asked for, and the response that it was read from.

    As a type it also stands for the question: ``generate_as(request, Structured[Literal["low", "high"]])`` tells the
    type checkers what comes back where a bare ``Literal`` or union cannot.
    """

    value: _Value_co
    response: LLMResponse


@overload
def generate_as(  # pyright: ignore[reportOverlappingOverload]
    request: LLMRequest, kind: type[Structured[_Value]], *, max_repairs: int = ..., sink: Sink | None = ...
) -> Effect[Structured[_Value]]: ...
@overload
def generate_as(
    request: LLMRequest, kind: type[_Value], *, max_repairs: int = ..., sink: Sink | None = ...
) -> Effect[Structured[_Value]]: ...
@overload
def generate_as(
    request: LLMRequest, kind: object, *, max_repairs: int = ..., sink: Sink | None = ...
) -> Effect[Structured[object]]: ...
def generate_as(
    request: LLMRequest, kind: object, *, max_repairs: int = 2, sink: Sink | None = None
) -> Effect[Structured[object]]:
    """Answer a request with a value of ``kind``: an attrs class, a dataclass, a ``Literal``, a union, a list of them...

    An answer that does not fit goes back to its model with all problems, at most ``max_repairs`` times; then the next
    candidate is asked. When none is left the failure is ``SchemaMismatch`` with the problems, the raw text and the cost
    of all (US dollars), or ``RequestFailed`` with that of each. A type of which no schema can be made is an
    ``InvalidRequest``, before any model is asked. ``sink`` takes the events of the stream, where a new answer comes
    after ``Restarted``.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> ask = generate_as(LLMRequest(prompt="Two primes?"), list[int], max_repairs=1)
    >>> anyio.run(run, ask, scripted_env("Two and three.", "[2, 3]")).unwrap().value
    [2, 3]
    >>> anyio.run(run, ask, scripted_env("Two and three.")).failure().problems
    ('$: is no JSON: invalid character (byte 0)',)
    """
    asked_for = get_args(kind)[0] if get_origin(kind) is Structured else kind

    async def perform(env: LLMEnv) -> Result[Structured[object], LLMError]:
        question = _question(request, asked_for, max_repairs, sink)
        result = await _answered(question.unwrap(), env) if is_successful(question) else Failure(question.failure())
        await deliver_ending(result.map(lambda structured: structured.response), sink)
        return result

    return effect(perform)


_CUT_OFF: Final = (
    "$: was cut off at the most tokens: raise preferences.max_tokens, or bound the texts and lists of the type"
)


@final
@frozen
class _Question:
    request: LLMRequest
    wanted: Target
    max_repairs: int
    sink: Sink | None

    def read(self, response: LLMResponse) -> Decoded:
        """Read an answer; one that was cut off is told to be."""
        read = decode_text(self.wanted, response.content)
        if is_successful(read) or response.finish_reason is not FinishReason.LENGTH:
            return read
        return Failure((_CUT_OFF, *read.failure()))

    def problems(self, response: LLMResponse) -> tuple[str, ...]:
        """Tell what is wrong with an answer."""
        read = self.read(response)
        return () if is_successful(read) else read.failure()


def _question(request: LLMRequest, kind: object, max_repairs: int, sink: Sink | None) -> Result[_Question, LLMError]:
    made = target_type(kind)
    if not is_successful(made):
        return Failure(made.failure())
    wanted = made.unwrap()
    problem = _unfit(request, wanted)
    if problem is not None:
        return Failure(InvalidRequest(message=problem, request=request))
    return Success(_Question(evolve(request, response_schema=wanted.schema), wanted, max_repairs, sink))


def _unfit(request: LLMRequest, wanted: Target) -> str | None:
    if request.response_schema is not None and request.response_schema != wanted.schema:
        return "response_schema: leave it out: the type gives it"
    if request.tools and request.tool_choice != "none":
        return "tools: an answer of a type calls none: leave them out, or set tool_choice to none"
    return None


async def _answered(question: _Question, env: LLMEnv) -> Result[Structured[object], LLMError]:
    result = await _asked(question, env)
    if not is_successful(result):
        return Failure(result.failure())
    first = result.unwrap()
    if question.request.cache is not CachePolicy.ONLY and question.problems(first):
        result = await _asked_anew(question, env, first)
    return _structured(question, result.unwrap()) if is_successful(result) else Failure(result.failure())


async def _asked(question: _Question, env: LLMEnv) -> Result[LLMResponse, LLMError]:
    validator = ResponseValidator(question.problems, question.max_repairs)
    return await run(run_call(standard_pipeline, question.request, question.sink, validator=validator), env)


async def _asked_anew(question: _Question, env: LLMEnv, first: LLMResponse) -> Result[LLMResponse, LLMError]:
    """Ask once more where the answer came from elsewhere, unchecked: out of the cache, or shared, or joined."""
    used = question.request.cache
    fresh = evolve(question.request, cache=CachePolicy.REFRESH if used is CachePolicy.USE else used)
    sink = None if question.sink is None else _restarting(question.sink)
    result = await _asked(evolve(question, request=fresh, sink=sink), env)
    if not is_successful(result):
        return Failure(evolve(result.failure(), attempts=(*first.attempts, *result.failure().attempts)))
    second = result.unwrap()
    why = f"an answer that was not asked for here did not fit: {'; '.join(question.problems(first))}"
    return Success(
        evolve(
            second,
            attempts=(*first.attempts, *second.attempts),
            cost=first.cost + second.cost,
            latency_ms=first.latency_ms + second.latency_ms,
            warnings=(why, *second.warnings),
        )
    )


def _restarting(sink: Sink) -> Sink:
    """The consumer has an answer already: what follows takes its place."""

    async def deliver(event: StreamEvent) -> None:
        await sink(Restarted(event.model) if isinstance(event, Started) else event)

    return deliver


def _structured(question: _Question, response: LLMResponse) -> Result[Structured[object], LLMError]:
    read = question.read(response)
    if is_successful(read):
        return Success(Structured(read.unwrap(), response))
    return Failure(
        SchemaMismatch(
            problems=read.failure(),
            raw=response.content,
            model=response.model,
            provider=response.provider,
            attempts=response.attempts,
        )
    )
