"""Scripted models, and an environment with everything in memory and nothing left to chance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import count
from math import hypot
from random import Random
from typing import Final, TypeAlias, Union, final, get_args

import anyio
from attrs import define, evolve, field, frozen
from returns.future import FutureResult
from returns.result import Failure, Result, Success

from llm_effects.config import LLMConfig
from llm_effects.config.models import ModelConfig, entry_of
from llm_effects.effects.call import AttemptContext, Call, opening_of
from llm_effects.effects.effect import result_of
from llm_effects.effects.env import Clients, LLMEnv, NewId, TakeResult
from llm_effects.effects.mistakes import check_config
from llm_effects.providers.draft import events_of
from llm_effects.routing.prices import PriceList, prices_of
from llm_effects.stores.conversations.memory import MemoryConversations
from llm_effects.stores.disabled import NoCache, NoTelemetry
from llm_effects.stores.health import MemoryHealth
from llm_effects.stores.ledger.memory import MemoryLedger
from llm_effects.stores.limits.memory import MemoryLimits
from llm_effects.values.errors import InvalidRequest, LLMError
from llm_effects.values.events import Restarted, Started, StreamEvent, TextDelta
from llm_effects.values.messages import Text, ToolCall
from llm_effects.values.records import BatchJob, BatchLine, ModelHealth
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import FinishReason, LLMResponse, Usage, Vector, Vectors
from llm_effects.values.tokens import EstimatedTokens, estimate_tokens
from llm_effects.values.validation import is_a, to_tuple


@final
@frozen
class Delayed:
    """A reply that arrives after ``seconds`` on the clock of the event loop."""

    seconds: float
    reply: Reply


@final
@frozen
class Chunks:
    """A reply in pieces, ``pause`` seconds apart; ``then`` is the error that interrupts it, if any."""

    pieces: tuple[str, ...]
    then: LLMError | None = None
    pause: float = 0.0


Reply: TypeAlias = Union[  # noqa: UP007 - recursive
    str, LLMResponse, LLMError, Delayed, Chunks, Callable[[LLMRequest], "Reply"], Mapping[str, "Reply"]
]
"""One reply of a script: a text, a response, an error, a delayed or chunked reply, a function of the request, or a
table of replies by the names of the models."""


def _replies(value: Iterable[Reply]) -> tuple[Reply, ...]:
    return to_tuple("replies", value)


def answer(content: str, *, model: str = "scripted", provider: str = "scripted") -> LLMResponse:
    """Build a plain response.

    >>> answer("because").content
    'because'
    """
    usage = Usage(input_tokens=10, output_tokens=max(1, len(content.split())))
    return LLMResponse(content=content, parts=(Text(content),), model=model, provider=provider, usage=usage)


def calling(*calls: ToolCall) -> LLMResponse:
    """Build a response that calls tools.

    >>> calling(ToolCall("c1", "clock")).finish_reason
    <FinishReason.TOOL_CALLS: 'tool_calls'>
    """
    return evolve(answer(""), parts=calls, finish_reason=FinishReason.TOOL_CALLS)


DIMENSIONS: Final = 8
"""The default length of a scripted vector."""


def vector_of(text: str, dimensions: int = DIMENSIONS) -> Vector:
    """Build a vector of norm 1 from a text: always the same, and different for different texts."""
    random = Random(text)  # noqa: S311 - no secret
    numbers = [random.gauss(0.0, 1.0) for _ in range(dimensions)]
    return Vector.of(number / hypot(*numbers) for number in numbers)


@final
@define
class Scripted:
    """Clients that follow a script. ``calls`` lists every call they received, in order."""

    replies: tuple[Reply, ...] = field(converter=_replies)
    calls: list[Call] = field(factory=list[Call])
    batches: ScriptedBatches = field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        self.batches = ScriptedBatches(self)

    @property
    def requests(self) -> tuple[LLMRequest, ...]:
        """The requests they received, in order."""
        return tuple(call.request for call in self.calls)

    def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
        """Return the next reply of the script; the last one repeats."""
        return FutureResult(self._complete(call))

    def embed(self, call: Call, texts: tuple[str, ...], dimensions: int | None) -> FutureResult[Vectors, LLMError]:
        """Return the same vector for the same text; only errors and delays of the script have an effect."""
        return FutureResult(self._embed(call, texts, dimensions or DIMENSIONS))

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        """Report a healthy model."""
        return FutureResult.from_value(ModelHealth(model=name, provider=model.provider, reachable=True, ready=True))

    async def _next(self, call: Call) -> LLMResponse | LLMError | Chunks:
        reply = self.replies[min(len(self.calls), len(self.replies) - 1)]
        self.calls.append(call)
        return await _resolve(reply, call)

    async def _embed(self, call: Call, texts: tuple[str, ...], dimensions: int) -> Result[Vectors, LLMError]:
        reply = await self._next(call)
        if not isinstance(reply, LLMResponse | Chunks):
            return Failure(_with_model(reply, call))
        usage = Usage(input_tokens=estimate_tokens(call.request), output_tokens=0)
        return Success(Vectors(vectors=tuple(vector_of(text, dimensions) for text in texts), usage=usage))

    async def _complete(self, call: Call) -> Result[LLMResponse, LLMError]:
        reply = await self._next(call)
        if isinstance(reply, Chunks):
            events = tuple(TextDelta(piece) for piece in reply.pieces)
            return await _deliver(call, events, reply.then or answer("".join(reply.pieces)), reply.pause)
        return await _deliver(call, events_of(reply) if isinstance(reply, LLMResponse) else (), reply)


@final
@define(eq=False, repr=False)
class ScriptedBatches:
    """Batches that end at once; the script answers their requests in order when the results are read."""

    model: Scripted
    submitted: dict[str, tuple[BatchJob, Sequence[BatchLine]]] = field(
        factory=dict[str, tuple[BatchJob, "Sequence[BatchLine]"]], init=False
    )

    def submit(self, model: str, lines: Sequence[BatchLine], submission: str) -> FutureResult[BatchJob, LLMError]:
        """Keep a batch, whose id is that of its submission."""
        job = BatchJob(id=submission, model=model, state="completed", requests=len(lines), succeeded=len(lines))
        self.submitted[submission] = job, lines
        return FutureResult.from_value(job)

    def find(
        self,
        model: str,  # noqa: ARG002 - the protocol, and below
        submission: str,
        requests: int,  # noqa: ARG002
        since: datetime,  # noqa: ARG002
    ) -> FutureResult[BatchJob | None, LLMError]:
        """Return the batch of a submission."""
        found: BatchJob | None = self.submitted[submission][0] if submission in self.submitted else None
        return FutureResult.from_value(found)

    def status(self, model: str, job_id: str) -> FutureResult[BatchJob, LLMError]:
        """Return a batch; an unknown one is an ``InvalidRequest``."""
        if job_id in self.submitted:
            return FutureResult.from_value(self.submitted[job_id][0])
        return FutureResult.from_failure(InvalidRequest(model=model, message="no such batch", status=404))

    def cancel(self, model: str, job_id: str) -> FutureResult[BatchJob, LLMError]:
        """Return a batch, which has ended."""
        return self.status(model, job_id)

    def results(
        self, job: BatchJob, requests: Mapping[str, LLMRequest], take: TakeResult
    ) -> FutureResult[None, LLMError]:
        """Answer the requests of a batch."""

        async def read() -> Result[None, LLMError]:
            for line in self.submitted[job.id][1]:
                if line.custom_id in requests:
                    context = AttemptContext(model=job.model)
                    call = Call(id=line.custom_id, request=requests[line.custom_id], attempt=context)
                    await take(line.custom_id, await result_of(self.model.complete(call)))
            return Success(None)

        return FutureResult(read())


async def _deliver(
    call: Call, events: tuple[StreamEvent, ...], end: LLMResponse | LLMError, pause: float = 0.0
) -> Result[LLMResponse, LLMError]:
    """Send the events to the sink, then return the end; an error without events sends no opening event either."""
    opening = opening_of(call)
    opens = opening is not None and (events or isinstance(end, LLMResponse))
    for event in (opening, *events) if opening is not None and opens else events:
        await anyio.sleep(pause)
        if call.sink is not None:
            _record_first_content(call, event)
            await call.sink(event)
    if not isinstance(end, LLMResponse):
        return Failure(_with_model(end, call))
    input_tokens = end.usage.input_tokens or estimate_tokens(call.request)
    return Success(evolve(end, model=call.model, usage=evolve(end.usage, input_tokens=input_tokens)))


def _with_model(error: LLMError, call: Call) -> LLMError:
    return evolve(error, model=error.model or call.model)  # a new value: each attempt has an error of its own


def _record_first_content(call: Call, event: StreamEvent) -> None:
    if call.attempt.record.content_at is None and not isinstance(event, Started | Restarted):
        call.attempt.record.content_at = anyio.current_time()


async def _resolve(reply: Reply, call: Call) -> LLMResponse | LLMError | Chunks:
    if isinstance(reply, Delayed):
        await anyio.sleep(reply.seconds)
        return await _resolve(reply.reply, call)
    if isinstance(reply, str):
        return answer(reply)
    if callable(reply):
        return await _resolve(reply(call.request), call)
    if isinstance(reply, Mapping):
        return await _resolve(_of_model(reply, call.model), call)
    if not any(is_a(reply, kind) for kind in (LLMResponse, Chunks, *get_args(LLMError))):
        msg = f"a reply is a text, an LLMResponse or an LLMError, not {type(reply).__name__}: pass replies one by one"
        raise TypeError(msg)
    return reply


def _of_model(replies: Mapping[str, Reply], model: str) -> Reply:
    for name in (model, entry_of(model)):
        if name in replies:
            return replies[name]
    known = ", ".join(replies)
    msg = f"the script has no reply of the model {model!r}, only of {known}: add it, or write json.dumps(...) for JSON"
    raise LookupError(msg)


def scripted(*replies: Reply) -> Scripted:
    """Build clients that answer with these replies in order, whichever model is called; the last one repeats.

    A reply may be a table by the names of the models, such as ``{"local": NetworkError(), "cloud": "Logs."}``.

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
    """Build clients that always fail.

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
    """Build an environment whose models follow a script, with sequential ids, fixed randomness and a fixed clock.

    It is always 1 January 2026, 0:00 UTC; ask ``env.now()`` for the beginning of a report. Replace any other service
    with ``attrs.evolve``.

    >>> import anyio
    >>> from llm_effects import LLMRequest, generate, run
    >>> env = scripted_env("first", "second")
    >>> [anyio.run(run, generate(LLMRequest(prompt="?")), env).unwrap().content for _ in range(2)]
    ['first', 'second']
    """
    check_config(config)
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
        new_id=_sequential_ids(),
    )


def _sequential_ids() -> NewId:
    numbers = count(1)
    return lambda: f"id-{next(numbers)}"
