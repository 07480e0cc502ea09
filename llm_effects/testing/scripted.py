"""An environment with everything in memory and nothing left to chance."""

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from math import hypot
from random import Random
from typing import Final, TypeAlias, Union, final

import anyio
from attrs import define, evolve, field, frozen
from returns.future import FutureResult
from returns.result import Failure, Result, Success

from llm_effects.clients.client import opening_of
from llm_effects.config import LLMConfig
from llm_effects.config.models import ModelConfig
from llm_effects.effects.call import Call
from llm_effects.effects.env import Clients, LLMEnv, NewId
from llm_effects.providers.draft import events_of
from llm_effects.routing.prices import PriceList, prices_of
from llm_effects.stores.conversations.memory import MemoryConversations
from llm_effects.stores.disabled import NoCache, NoTelemetry
from llm_effects.stores.health import MemoryHealth
from llm_effects.stores.ledger.memory import MemoryLedger
from llm_effects.stores.limits.memory import MemoryLimits
from llm_effects.values.errors import LLMError
from llm_effects.values.events import Restarted, Started, StreamEvent, TextDelta
from llm_effects.values.messages import Text, ToolCall
from llm_effects.values.records import ModelHealth
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import FinishReason, LLMResponse, Usage, Vector, Vectors
from llm_effects.values.tokens import EstimatedTokens, estimate_tokens

# Models that say what a test told them to.


@final
@frozen
class Delayed:
    """A reply that takes a while: ``seconds`` on the clock of the event loop."""

    seconds: float
    reply: "Reply"


@final
@frozen
class Chunks:
    """A reply told piece by piece, ``pause`` seconds apart; ``then`` is the error that breaks it off, if any."""

    pieces: tuple[str, ...]
    then: LLMError | None = None
    pause: float = 0.0


Reply: TypeAlias = Union[str, LLMResponse, LLMError, Delayed, Chunks, Callable[[LLMRequest], "Reply"]]  # noqa: UP007 - recursive
"""What a script may say: a text, a whole response, an error, pieces, a late one, or a function of the request."""


def answer(content: str, *, model: str = "scripted", provider: str = "scripted") -> LLMResponse:
    """Make a plain response.

    >>> answer("because").content
    'because'
    """
    usage = Usage(input_tokens=10, output_tokens=max(1, len(content.split())))
    return LLMResponse(content=content, parts=(Text(content),), model=model, provider=provider, usage=usage)


def calling(*calls: ToolCall) -> LLMResponse:
    """Make a response that asks for tools.

    >>> calling(ToolCall("c1", "clock")).finish_reason
    <FinishReason.TOOL_CALLS: 'tool_calls'>
    """
    return evolve(answer(""), parts=calls, finish_reason=FinishReason.TOOL_CALLS)


EMBEDDED: Final = 8
"""Numbers of a scripted vector where nobody says how many."""


def vector_of(text: str, dimensions: int = EMBEDDED) -> Vector:
    """Make up the vector of a text: the same every time, and another for another text, of length 1."""
    drawn = Random(text)  # noqa: S311 - no secret
    numbers = [drawn.gauss(0.0, 1.0) for _ in range(dimensions)]
    return Vector.of(each / hypot(*numbers) for each in numbers)


@final
@define
class Scripted:
    """Clients that follow a script. ``calls`` has every call that arrived, in order."""

    replies: tuple[Reply, ...]
    calls: list[Call] = field(factory=list[Call])

    @property
    def requests(self) -> tuple[LLMRequest, ...]:
        """The requests that arrived, in order."""
        return tuple(call.request for call in self.calls)

    def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
        """Give the next reply of the script; the last one is given again and again."""
        return FutureResult(self._complete(call))

    def embed(self, call: Call, texts: tuple[str, ...], dimensions: int | None) -> FutureResult[Vectors, LLMError]:
        """Give vectors that are the same for the same text; of the script's replies only errors and waits count."""
        return FutureResult(self._embed(call, texts, dimensions or EMBEDDED))

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        """Say that all is well."""
        return FutureResult.from_value(ModelHealth(model=name, provider=model.provider, reachable=True, ready=True))

    async def _next(self, call: Call) -> LLMResponse | LLMError | Chunks:
        reply = self.replies[min(len(self.calls), len(self.replies) - 1)]
        self.calls.append(call)
        return await _said(reply, call.request)

    async def _embed(self, call: Call, texts: tuple[str, ...], dimensions: int) -> Result[Vectors, LLMError]:
        said = await self._next(call)
        if not isinstance(said, LLMResponse | Chunks):
            return Failure(said if said.model else evolve(said, model=call.model))
        usage = Usage(input_tokens=estimate_tokens(call.request), output_tokens=0)
        return Success(Vectors(vectors=tuple(vector_of(text, dimensions) for text in texts), usage=usage))

    async def _complete(self, call: Call) -> Result[LLMResponse, LLMError]:
        said = await self._next(call)
        if isinstance(said, Chunks):
            events = tuple(TextDelta(piece) for piece in said.pieces)
            return await _told(call, events, said.then or answer("".join(said.pieces)), said.pause)
        return await _told(call, events_of(said) if isinstance(said, LLMResponse) else (), said)


async def _told(
    call: Call, events: tuple[StreamEvent, ...], end: LLMResponse | LLMError, pause: float = 0.0
) -> Result[LLMResponse, LLMError]:
    opening = opening_of(call)
    begins = opening is not None and (events or isinstance(end, LLMResponse))
    for event in (opening, *events) if opening is not None and begins else events:
        await anyio.sleep(pause)
        if call.sink is not None:
            _note(call, event)
            await call.sink(event)
    if not isinstance(end, LLMResponse):
        return Failure(end if end.model else evolve(end, model=call.model))
    input_tokens = end.usage.input_tokens or estimate_tokens(call.request)
    return Success(evolve(end, model=call.model, usage=evolve(end.usage, input_tokens=input_tokens)))


def _note(call: Call, event: StreamEvent) -> None:
    if call.attempt.record.content_at is None and not isinstance(event, Started | Restarted):
        call.attempt.record.content_at = anyio.current_time()


async def _said(reply: Reply, request: LLMRequest) -> LLMResponse | LLMError | Chunks:
    if isinstance(reply, Delayed):
        await anyio.sleep(reply.seconds)
        return await _said(reply.reply, request)
    if isinstance(reply, str):
        return answer(reply)
    return await _said(reply(request), request) if callable(reply) else reply


def scripted(*replies: Reply) -> Scripted:
    """Make clients that answer in order; the last reply is given again and again.

    >>> import anyio
    >>> from llm_effects import LLMRequest, generate, run
    >>> from llm_effects.testing.scripted import scripted_env
    >>> model = scripted(lambda request: f"you asked: {request.prompt}")
    >>> anyio.run(run, generate(LLMRequest(prompt="why?")), scripted_env(clients=model)).unwrap().content
    'you asked: why?'
    >>> [request.prompt for request in model.requests]
    ['why?']
    """
    return Scripted(replies or ("ok",))


def failing(error: LLMError) -> Scripted:
    """Make clients that always fail.

    >>> import anyio
    >>> from llm_effects import AuthenticationFailed, LLMRequest, generate, run
    >>> from llm_effects.testing.scripted import scripted_env
    >>> broken = scripted_env(clients=failing(AuthenticationFailed()))
    >>> anyio.run(run, generate(LLMRequest(prompt="why?")), broken).failure().tag
    'AuthenticationFailed'
    """
    return Scripted((error,))


ONE_MODEL: Final = LLMConfig(models={"scripted": ModelConfig(provider="lm-studio", model="scripted")})

EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)


def scripted_env(*replies: Reply, config: LLMConfig = ONE_MODEL, clients: Clients | None = None) -> LLMEnv:
    """Make an environment whose models follow a script: fixed ids, fixed randomness, a fixed clock.

    Swap any other service with ``attrs.evolve``.

    >>> import anyio
    >>> from llm_effects import LLMRequest, generate, run
    >>> env = scripted_env("first", "second")
    >>> [anyio.run(run, generate(LLMRequest(prompt="?")), env).unwrap().content for _ in range(2)]
    ['first', 'second']
    """
    return LLMEnv(
        config=config,
        clients=clients or scripted(*replies),
        cache=NoCache(),
        conversations=MemoryConversations(),
        ledger=MemoryLedger(),
        health=MemoryHealth(),
        limits=MemoryLimits(),
        prices=PriceList(prices_of(config)),
        tokens=EstimatedTokens(),
        telemetry=NoTelemetry(),
        now=lambda: EPOCH,
        draw=lambda: 0.5,
        new_id=_ids(),
    )


def _ids() -> NewId:
    numbers = count(1)
    return lambda: f"id-{next(numbers)}"
