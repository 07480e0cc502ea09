"""Models that say what a test told them to."""

from collections.abc import Callable
from typing import TypeAlias, Union, final

import anyio
from attrs import define, evolve, field, frozen
from returns.future import FutureResult
from returns.result import Failure, Result, Success

from llm_effects.calls import Call
from llm_effects.config import ModelConfig
from llm_effects.env import ModelHealth
from llm_effects.errors import LLMError
from llm_effects.events import StreamEvent, TextDelta
from llm_effects.exchanges import opening_of
from llm_effects.messages import Text
from llm_effects.providers.drafts import events_of
from llm_effects.requests import LLMRequest
from llm_effects.responses import LLMResponse, Usage
from llm_effects.tokens import estimate_tokens


@final
@frozen
class Late:
    """A reply that takes a while: ``seconds`` on the clock of the event loop."""

    seconds: float
    reply: "Reply"


@final
@frozen
class Pieces:
    """A reply told piece by piece, ``pause`` seconds apart; ``then`` is the error that breaks it off, if any."""

    pieces: tuple[str, ...]
    then: LLMError | None = None
    pause: float = 0.0


Reply: TypeAlias = Union[str, LLMResponse, LLMError, Late, Pieces, Callable[[LLMRequest], "Reply"]]  # noqa: UP007 - recursive
"""What a script may say: a text, a whole response, an error, pieces, a late one, or a function of the request."""


def answer(content: str, *, model: str = "scripted", provider: str = "scripted") -> LLMResponse:
    """Make a plain response.

    >>> answer("because").content
    'because'
    """
    usage = Usage(input_tokens=10, output_tokens=max(1, len(content.split())))
    return LLMResponse(content=content, parts=(Text(content),), model=model, provider=provider, usage=usage)


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

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        """Say that all is well."""
        return FutureResult.from_value(ModelHealth(model=name, provider=model.provider, reachable=True, ready=True))

    async def _complete(self, call: Call) -> Result[LLMResponse, LLMError]:
        reply = self.replies[min(len(self.calls), len(self.replies) - 1)]
        self.calls.append(call)
        said = await _said(reply, call.request)
        if isinstance(said, Pieces):
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
            await call.sink(event)
    if not isinstance(end, LLMResponse):
        return Failure(end if end.model else evolve(end, model=call.model))
    input_tokens = end.usage.input_tokens or estimate_tokens(call.request)
    return Success(evolve(end, model=call.model, usage=evolve(end.usage, input_tokens=input_tokens)))


async def _said(reply: Reply, request: LLMRequest) -> LLMResponse | LLMError | Pieces:
    if isinstance(reply, Late):
        await anyio.sleep(reply.seconds)
        return await _said(reply.reply, request)
    if isinstance(reply, str):
        return answer(reply)
    return await _said(reply(request), request) if callable(reply) else reply


def scripted(*replies: Reply) -> Scripted:
    """Make clients that answer in order; the last reply is given again and again.

    >>> import anyio
    >>> from llm_effects import LLMRequest, generate, settle
    >>> from llm_effects.testing import scripted_env
    >>> model = scripted(lambda request: f"you asked: {request.prompt}")
    >>> anyio.run(settle, generate(LLMRequest(prompt="why?")), scripted_env(clients=model)).unwrap().content
    'you asked: why?'
    >>> [request.prompt for request in model.requests]
    ['why?']
    """
    return Scripted(replies or ("ok",))


def failing(error: LLMError) -> Scripted:
    """Make clients that always fail.

    >>> import anyio
    >>> from llm_effects import AuthenticationFailed, LLMRequest, generate, settle
    >>> from llm_effects.testing import scripted_env
    >>> broken = scripted_env(clients=failing(AuthenticationFailed()))
    >>> anyio.run(settle, generate(LLMRequest(prompt="why?")), broken).failure().tag
    'AuthenticationFailed'
    """
    return Scripted((error,))
