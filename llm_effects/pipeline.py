"""The onion: one file that shows every layer between a request and its answer.

A layer takes a ``Generate`` and gives a ``Generate``. To leave one out or to add your own, build another:

>>> from llm_effects.policies import layered

>>> from llm_effects.policies.complete import complete

>>> from llm_effects.policies.deadline import with_deadline

>>> from llm_effects.policies.recording import with_recording

>>> from llm_effects.policies.retries import with_retries

>>> from llm_effects.policies.routing import with_routing
>>> without_retries = layered(complete, with_recording, with_routing, with_deadline)
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from attrs import define, evolve, field
from returns.context import RequiresContext
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.effects.call import Call, CallHistory, Sink, committing
from llm_effects.effects.effect import Answer, Effect, Generate, effect, run
from llm_effects.effects.env import LLMEnv
from llm_effects.policies import layered
from llm_effects.policies.budget import with_budget
from llm_effects.policies.cache import with_cache
from llm_effects.policies.circuit_breaker import with_circuit_breaker
from llm_effects.policies.coalescing import with_coalescing
from llm_effects.policies.complete import complete
from llm_effects.policies.deadline import with_deadline
from llm_effects.policies.hedging import with_hedging
from llm_effects.policies.limits import with_limits
from llm_effects.policies.recording import with_recording
from llm_effects.policies.repair import with_repair
from llm_effects.policies.retries import with_retries
from llm_effects.policies.routing import routing_context, with_routing
from llm_effects.policies.tracing import with_tracing
from llm_effects.routing.candidates import RoutingDecision
from llm_effects.routing.router import route
from llm_effects.values.errors import LLMError
from llm_effects.values.events import Completed, Failed, Restarted, StreamEvent, TextDelta
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import LLMResponse, total_cost

# Inner to outer. The model is chosen by ``with_routing``: what stands before it acts on one attempt or one candidate,
# what stands after it on the whole call. ``with_coalescing`` stands outside ``with_cache``, so that who comes after a flight
# finds its answer stored.
standard_pipeline: Generate = layered(
    complete,
    with_recording,
    with_budget,
    with_limits,
    with_circuit_breaker,
    with_retries,
    with_hedging,
    with_repair,
    with_routing,
    with_cache,
    with_coalescing,
    with_deadline,
    with_tracing,
)


LAST_WORD_S: Final = 30.0
"""How long a consumer may take over the last event of a stream, in seconds."""


def generate(request: LLMRequest) -> Effect[LLMResponse]:
    """Answer a request with the model that suits it, through every layer.

    Gives the answer with its usage, cost (USD), latency (milliseconds) and attempts, or an ``LLMError``.

    >>> import anyio
    >>> from llm_effects import RateLimitExceeded, run, scripted_env
    >>> anyio.run(run, generate(LLMRequest(prompt="why?")), scripted_env("because")).unwrap().content
    'because'
    >>> refused = scripted_env(RateLimitExceeded(quota=True))
    >>> anyio.run(run, generate(LLMRequest(prompt="why?")), refused).failure().tag
    'RateLimitExceeded'
    """
    return run_call(standard_pipeline, request)


def stream(request: LLMRequest, sink: Sink) -> Effect[LLMResponse]:
    """Answer a request as ``generate`` does, with every event awaited into ``sink`` as it comes.

    The last event is ``Completed`` or ``Failed``; a cancelled stream tells neither. Until the first content other
    models may be tried unseen; after it ``request.recovery`` decides.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> async def show(event: object) -> None:
    ...     print(type(event).__name__)
    >>> done = anyio.run(run, stream(LLMRequest(prompt="why?"), show), scripted_env("because"))
    Started
    TextDelta
    Completed
    """

    async def perform(env: LLMEnv) -> Answer:
        result = await run(run_call(standard_pipeline, request, sink), env)
        with anyio.move_on_after(LAST_WORD_S):  # for a consumer that never returns
            await sink(ending(result))
        return result

    return effect(perform)


def ending(result: Answer) -> StreamEvent:
    """Give the last event of a stream."""
    return Completed(result.unwrap()) if is_successful(result) else Failed(result.failure())


def explain(request: LLMRequest, *, streamed: bool = False) -> Effect[RoutingDecision]:
    """Tell which models ``generate`` would ask, in order, and why others are left out, without asking any.

    Every number that decided is in it. ``streamed`` asks for ``stream`` instead, where the first content counts.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> decision = anyio.run(run, explain(LLMRequest(prompt="why?")), scripted_env()).unwrap()
    >>> [candidate.model for candidate in decision.candidates]
    ['scripted']
    """

    async def perform(env: LLMEnv) -> Result[RoutingDecision, LLMError]:
        return route(request, env.config, routing_context(request, env, streamed=streamed))

    return effect(perform)


def as_it_is(call: Call) -> Call:
    """Change nothing."""
    return call


def run_call(
    pipeline: Generate, request: LLMRequest, sink: Sink | None = None, adapt: Callable[[Call], Call] = as_it_is
) -> Effect[LLMResponse]:
    """Send a request through an onion and put what its trail tells into the answer, or into the error.

    ``adapt`` puts into the call what its maker knows besides: its conversation, a deadline.
    """

    async def perform(env: LLMEnv) -> Answer:
        history = CallHistory()
        told = None if sink is None else committing(sink, history)
        call = adapt(Call(id=env.new_id(), request=request, sink=told, history=history))
        started = anyio.current_time()
        result = await run(pipeline(call), env)
        if is_successful(result):
            return Success(_told(result.unwrap(), call, (anyio.current_time() - started) * 1000))
        return Failure(_error_told(result.failure(), call))

    return effect(perform)


def _told(response: LLMResponse, call: Call, latency_ms: float) -> LLMResponse:
    attempts = tuple(call.history.attempts)
    return evolve(
        response,
        task_type=call.request.task_type,
        attempts=attempts,
        cost=total_cost(attempt.cost for attempt in attempts),
        latency_ms=latency_ms,
    )


def _error_told(error: LLMError, call: Call) -> LLMError:
    history = call.history
    partial = error.partial if call.sink is None else history.partial
    earlier = tuple(each for each in history.errors if each is not error)
    return evolve(error, attempts=tuple(history.attempts), partial=partial, earlier=earlier)


# The pull form of a stream: an async iterator of its events, for ``async for``.


def open_stream(
    request: LLMRequest,
) -> RequiresContext[AbstractAsyncContextManager[AsyncIterator[StreamEvent]], LLMEnv]:
    """Answer a request as ``stream`` does, to be pulled: the model waits while nobody asks for the next event.

    The last event is ``Completed`` or ``Failed``. Leaving early ends the call and closes its connection; an exception
    of the consumer comes out as itself.

    >>> from llm_effects import scripted_env
    >>> async def main() -> list[str]:
    ...     async with open_stream(LLMRequest(prompt="why?"))(scripted_env("because")) as events:
    ...         return [type(event).__name__ async for event in events]
    >>> anyio.run(main)
    ['Started', 'TextDelta', 'Completed']
    """
    return RequiresContext(lambda env: _opened(request, env))


@asynccontextmanager
async def _opened(request: LLMRequest, env: LLMEnv) -> AsyncGenerator[AsyncIterator[StreamEvent]]:
    send, receive = anyio.create_memory_object_stream[StreamEvent](0)
    pulled, raised = _Pulled(receive), list[BaseException]()
    try:
        async with receive, anyio.create_task_group() as group:
            group.start_soon(_produce, request, env, send, pulled)
            try:
                yield pulled
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as problem:  # noqa: BLE001 - kept out of the group, and raised below as it is
                raised.append(problem)
            group.cancel_scope.cancel()
    except* Exception as problems:  # noqa: BLE001 - a defect beneath, which comes out without the group, too
        raised.extend(problems.exceptions)
    if raised:
        raise raised[0]


@final
@define(eq=False, repr=False)
class _Pulled(AsyncIterator[StreamEvent]):
    """The consumer's end. It knows what was taken; of a piece that was only offered, the call cannot tell."""

    _events: MemoryObjectReceiveStream[StreamEvent]
    _taken: list[str] = field(factory=list[str], init=False)

    async def __anext__(self) -> StreamEvent:
        event = await anext(self._events)
        if isinstance(event, TextDelta):
            self._taken.append(event.text)
        elif isinstance(event, Restarted):
            self._taken.clear()
        return event

    def so_far(self, error: LLMError) -> LLMError:
        """The error that ended the stream, with the text that the consumer has."""
        return evolve(error, partial="".join(self._taken))


async def _produce(
    request: LLMRequest, env: LLMEnv, send: MemoryObjectSendStream[StreamEvent], pulled: _Pulled
) -> None:
    async with send:
        result = await run(run_call(standard_pipeline, request, send.send), env)
        # for as long as it takes: nobody waits for a consumer that has not left
        await send.send(ending(result.alt(pulled.so_far)))


def refused(error: LLMError, sink: Sink) -> Effect[LLMResponse]:
    """A stream that cannot begin: its only event is ``Failed``."""

    async def run(_: LLMEnv) -> Result[LLMResponse, LLMError]:
        await sink(Failed(error))
        return Failure(error)

    return effect(run)


@asynccontextmanager
async def only(event: StreamEvent) -> AsyncGenerator[AsyncIterator[StreamEvent]]:
    """The pull form of a stream of one event."""
    send, receive = anyio.create_memory_object_stream[StreamEvent](1)
    async with receive:
        async with send:
            await send.send(event)
        yield receive
