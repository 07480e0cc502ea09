"""The pull form of a stream: an async iterator of its events, for ``async for``."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from attrs import define, evolve, field
from returns.context import RequiresContext
from returns.result import Failure, Result

from llm_effects.calls import Sink
from llm_effects.effects import Effect, effect, settle
from llm_effects.env import LLMEnv
from llm_effects.errors import LLMError
from llm_effects.events import Failed, Restarted, StreamEvent, TextDelta
from llm_effects.pipeline import ending, generate_call, run_call
from llm_effects.requests import LLMRequest
from llm_effects.responses import LLMResponse


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
        result = await settle(run_call(generate_call, request, send.send), env)
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
