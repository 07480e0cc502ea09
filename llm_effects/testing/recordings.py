"""Recordings: the exchanges with models in a file of JSON lines, replayed without models."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import ClassVar, Final, Literal, TypeAlias, TypeVar, final, get_args

import anyio
from anyio.lowlevel import checkpoint
from attrs import define, evolve, field
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config import LLMConfig
from llm_effects.config.models import ModelConfig
from llm_effects.effects.call import AttemptRecord, Call, Sink, opening_of
from llm_effects.effects.effect import Answer, result_of
from llm_effects.effects.env import Clients, Embedder, LLMEnv
from llm_effects.effects.tasks import Pacer
from llm_effects.providers.draft import events_of
from llm_effects.testing.exchanges import (
    Exchange,
    Json,
    Key,
    Outcome,
    Piece,
    Scrub,
    Timing,
    difference,
    load,
    masked,
    matches,
    request_of,
    save,
    scrubbed,
    scrubber,
)
from llm_effects.values.errors import ConfigurationError, LLMError, RequestTimeout
from llm_effects.values.events import ReasoningDelta, StreamEvent, TextDelta, ToolCallDelta
from llm_effects.values.records import ModelHealth
from llm_effects.values.responses import LLMResponse, Vectors
from llm_effects.values.validation import invalid, one_of

_Value = TypeVar("_Value", LLMResponse, Vectors, ModelHealth)

Mode: TypeAlias = Literal[
    "replay",  # ask no model: what the file does not hold is an error
    "record",  # ask the models, and write a new file
    "new",  # replay what the file holds, ask the models for the rest, and add it
    "refresh",  # ask the models again, and replace the file
]
"""The use of a recording."""


@contextmanager
def recorded(
    env: LLMEnv, path: str | os.PathLike[str], mode: Mode = "replay", *, gaps: bool = False
) -> Generator[LLMEnv]:
    """Return the environment with models that are recorded to a file, or replayed from it; all else runs for real.

    An exchange is found by its model, its request and its occurrence: the second of two equal requests has the second
    answer. Errors, streams with their pieces, embeddings and health checks are recorded too. One that is missing in
    ``replay`` is a ``ConfigurationError`` that names the first difference to the nearest one.

    With ``gaps`` a replay takes as long as the recording did, piece by piece, on the clock of the event loop: use
    ``run_in_virtual_time``. Without, the models answer at once, pauses between retries are real, and an attempt that
    was cancelled is a time-out.

    Keys, request ids and the ids of tool calls are masked or replaced before they are written. The file is written when
    the block is left.

    >>> import anyio, tempfile
    >>> from llm_effects import generate, run, scripted_env
    >>> path = Path(tempfile.mkdtemp(), "incident.jsonl")
    >>> with recorded(scripted_env("because"), path, "record") as env:
    ...     _ = anyio.run(run, generate("why?"), env)
    >>> with recorded(scripted_env(), path) as env:
    ...     anyio.run(run, generate("why?"), env).unwrap().content
    ...     anyio.run(run, generate("how?"), env).failure().message  # doctest: +ELLIPSIS
    'because'
    "incident.jsonl, line 2: messages[0].text: recorded 'why?', asked 'how?'...
    """
    recording = Recording.opened(env, Path(path), mode, gaps=gaps)
    whole = False
    try:
        yield evolve(env, clients=recording)
        whole = True
    finally:
        recording.save(whole=whole)


# The clients of an environment that is recorded or replayed.


@final
@define(eq=False, kw_only=True)
class Recording:
    """Clients that record their exchanges with ``clients``, or replay them; ``misses`` lists what was not found."""

    keeps_time: ClassVar[bool] = True  # below, for clients that do not

    path: Path
    mode: Mode = field(validator=one_of(*get_args(Mode)))
    clients: Clients = field(repr=False)
    config: LLMConfig = field(repr=False)
    gaps: bool = False
    misses: list[str] = field(factory=list[str])
    _mask: Scrub = field(alias="mask", repr=False)
    _known: dict[Key, Exchange] = field(factory=dict[Key, Exchange], repr=False)
    _added: dict[Key, Exchange] = field(factory=dict[Key, Exchange], repr=False)
    _asked: Counter[tuple[str, str]] = field(factory=Counter[tuple[str, str]], repr=False)
    _lock: Lock = field(factory=Lock, repr=False)

    @classmethod
    def opened(cls, env: LLMEnv, path: Path, mode: Mode, *, gaps: bool) -> Recording:
        """Return the recording of an environment, with what its file holds already."""
        mask = scrubber(env.config)
        recording = cls(path=path, mode=mode, clients=env.clients, config=env.config, gaps=gaps, mask=mask)
        if mode == "record" and path.exists():
            invalid(str(path), "is there already: replace it with mode='refresh', or add to it with mode='new'")
        if mode == "replay" or (mode == "new" and path.exists()):
            recording._known.update((each.key, each) for each in load(path))
        return recording

    def save(self, *, whole: bool) -> None:
        """Write the file, if anything is new: a refreshed one holds only that, unless the block was not ``whole``.

        What other tests or processes added to the file in the meantime is kept.
        """
        if self._added or (self.mode in {"record", "refresh"} and whole):
            save(self.path, self._added.values(), self._mask, keep=self.mode != "refresh" or not whole)

    def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
        """Return the recorded answer, or ask the model and record its answer."""
        return FutureResult(self.answer(call))

    async def answer(self, call: Call) -> Answer:
        """Return the recorded answer, or ask the model and record its answer, as ``complete`` does."""
        exchange = self._next(call.model, request_of(call.request))
        found = self._find(exchange)
        if found is not None:
            return await _Player(self, found, call).answer()
        if self.mode == "replay":
            return Failure(self._missing(exchange))
        tape = _Tape(call.attempt.record, call.sink)
        asked = call if call.sink is None else evolve(call, sink=tape)
        return await self._record(exchange, tape, lambda: _ask_in_time(self.clients, self.config, asked))

    def embed(self, call: Call, texts: tuple[str, ...], dimensions: int | None) -> FutureResult[Vectors, LLMError]:
        """Return the recorded vectors, or ask the model and record its vectors."""
        return FutureResult(self._embed(call, texts, dimensions))

    async def _embed(self, call: Call, texts: tuple[str, ...], dimensions: int | None) -> Result[Vectors, LLMError]:
        request: Json = {"texts": list(texts), **({} if dimensions is None else {"dimensions": dimensions})}
        exchange = self._next(call.model, request)
        found = self._find(exchange)
        if found is not None:
            return await _Player(self, found, call).result(Vectors)
        if self.mode == "replay":
            return Failure(self._missing(exchange))
        clients = self.clients
        if not isinstance(clients, Embedder):
            return Failure(ConfigurationError(model=call.model, message="the recorded clients cannot embed texts"))
        tape = _Tape(call.attempt.record)
        return await self._record(exchange, tape, lambda: result_of(clients.embed(call, texts, dimensions)))

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        """Return the recorded health, of which the last repeats, or check it and record it."""
        return FutureResult(self._probe(name, model))

    async def _probe(self, name: str, model: ModelConfig) -> Result[ModelHealth, LLMError]:
        exchange = self._next(name, {"health": model.provider})
        found = self._find(exchange) or self._last(exchange)
        if found is not None:
            return await _Player(self, found, None).result(ModelHealth)
        if self.mode == "replay":
            return Failure(self._missing(exchange))
        return await self._record(exchange, _Tape(AttemptRecord()), lambda: result_of(self.clients.probe(name, model)))

    async def aclose(self) -> None:
        """Close nothing: the clients belong to their environment."""

    def _next(self, model: str, request: Json) -> Exchange:
        """Return the exchange that is asked for now: its occurrence is counted when it begins."""
        exchange = Exchange(model=model, request=self._as_written(model, request))
        with self._lock:
            self._asked[exchange.key[:2]] += 1
            return evolve(exchange, occurrence=self._asked[exchange.key[:2]])

    def _as_written(self, model: str, request: Json) -> Json:
        """Return a request as the file holds it: requests that differ in their secrets only are equal there."""
        asked = Exchange(model=model, request=request)
        if asked.key in self._known:
            return request
        alike = (each.request for each in self._known.values() if matches(each, asked))
        return next(alike, None) or masked(request, self._mask)

    def _find(self, exchange: Exchange) -> Exchange | None:
        return self._known.get(exchange.key)

    def _last(self, exchange: Exchange) -> Exchange | None:
        """Return the last recorded occurrence of a health check: how often one runs may depend on the time."""
        same = (each for each in self._known.values() if each.key[:2] == exchange.key[:2])
        return max(same, key=lambda each: each.occurrence, default=None)

    def _missing(self, exchange: Exchange) -> ConfigurationError:
        alike = [each for each in self._known.values() if each.request.keys() & exchange.request.keys() & _SHAPES]
        where = difference(alike, exchange.model, exchange.request)
        self.misses.append(
            f"{self.path.name}, {self._mask(where)}: record it with mode='new', or pytest --llm-record=new"
        )
        return ConfigurationError(model=exchange.model, message=self.misses[-1])

    async def _record(
        self, exchange: Exchange, tape: _Tape, ask: Callable[[], Awaitable[Result[_Value, LLMError]]]
    ) -> Result[_Value, LLMError]:
        """Ask, and record how it ended: also if it was cancelled, or its consumer failed."""
        outcome: Outcome = None
        try:
            result = await ask()
            outcome = result.unwrap() if is_successful(result) else result.failure()
            return result
        finally:
            ended = scrubbed(tape.ended(evolve(exchange, outcome=outcome)))
            with self._lock:
                self._added[ended.key] = ended


_SHAPES: Final = frozenset({"messages", "texts", "health"})


async def _ask_in_time(clients: Clients, config: LLMConfig, call: Call) -> Answer:
    """Ask once, within the time of one attempt if the clients do not keep it themselves."""
    limit_ms = config.models[call.model].timeout_ms
    timed = call.sink is None and not getattr(clients, "keeps_time", False)
    with anyio.move_on_after(limit_ms / 1000 if timed else math.inf):
        direct: Callable[[Call], Awaitable[Answer]] | None = getattr(clients, "answer", None)
        return await (result_of(clients.complete(call)) if direct is None else direct(call))
    return Failure(RequestTimeout(model=call.model, timeout_ms=limit_ms, phase="attempt"))


@final
@define(eq=False)
class _Tape:
    """A sink that notes each piece of a stream with the time that the model took for it."""

    record: AttemptRecord
    sink: Sink | None = None
    _pieces: list[Piece] = field(factory=list[Piece])
    _since: float = field(factory=anyio.current_time)
    _waited: float = 0.0

    async def __call__(self, event: StreamEvent) -> None:
        self._waited += anyio.current_time() - self._since
        if isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta):
            self._pieces.append(Piece.of(event, self._waited_ms()))
            self._waited = 0.0
        try:
            if self.sink is not None:
                await self.sink(event)
        finally:
            self._since = anyio.current_time()

    def ended(self, exchange: Exchange) -> Exchange:
        """Return the exchange with its pieces and its times."""
        self._waited += anyio.current_time() - self._since
        unsent, queued_ms = self.record.queued_since is not None, round(self.record.queued_s * 1000, 3)
        timing = Timing(queued_ms=queued_ms, unsent=unsent, after_ms=self._waited_ms())
        limits = self.record.rate_limits
        return evolve(exchange, timing=timing, pieces=tuple(self._pieces), rate_limits=limits)

    def _waited_ms(self) -> float:
        queued_s = 0.0 if self._pieces else self.record.queued_s
        return round(max(0.0, self._waited - queued_s) * 1000, 3)


@final
@define(eq=False)
class _Player:
    """One exchange on its way to its caller; of a health check, without a call."""

    recording: Recording
    exchange: Exchange
    call: Call | None
    _opened: bool = False
    _pacer: Pacer = field(factory=Pacer)

    async def answer(self) -> Answer:
        """Replay a completion, piece by piece if there is a sink."""
        outcome, sink = self.exchange.outcome, None if self.call is None else self.call.sink
        await self._leave_queue()
        pieces = self.exchange.pieces
        if not pieces and sink is not None and isinstance(outcome, LLMResponse):
            pieces = tuple(Piece.of(event, 0.0) for event in events_of(outcome))
            await self._pause(self.exchange.timing.after_ms)
        for piece in pieces:
            await self._pause(piece.after_ms)
            await self._deliver(piece.event)
        if pieces == self.exchange.pieces:
            await self._pause(self.exchange.timing.after_ms)
        if isinstance(outcome, LLMResponse) and not self._opened:
            await self._deliver()
        return await self._end(LLMResponse)

    async def result(self, kind: type[_Value]) -> Result[_Value, LLMError]:
        """Replay an exchange without a stream."""
        await self._leave_queue()
        await self._pause(self.exchange.timing.after_ms)
        return await self._end(kind)

    async def _leave_queue(self) -> None:
        """Wait in the queue as the exchange did, and report the server's limits."""
        record = AttemptRecord() if self.call is None else self.call.attempt.record
        queued_ms = self.exchange.timing.queued_ms
        if self.exchange.timing.unsent or (queued_ms and self.recording.gaps):
            record.queued_since = anyio.current_time()
            await self._pause(queued_ms)
        if not self.exchange.timing.unsent:
            record.queued_since, record.sent_at = None, anyio.current_time()
            record.queued_s = queued_ms / 1000 if self.recording.gaps else 0.0
        limits = self.exchange.rate_limits
        record.rate_limits = None if limits is None else evolve(limits, at=anyio.current_time())

    async def _pause(self, milliseconds: float) -> None:
        await (anyio.sleep(milliseconds / 1000) if self.recording.gaps else checkpoint())

    async def _deliver(self, event: StreamEvent | None = None) -> None:
        """Send an event to the consumer, or only the opening of a stream without content."""
        if self.call is None or self.call.sink is None:
            return
        opening = None if self._opened else opening_of(self.call)
        if not self._opened:
            self._opened, self.call.attempt.record.content_at = True, anyio.current_time()
        for each in (opening, event):
            if each is not None:
                await self.call.sink(each)
        await self._pacer.step()

    async def _end(self, kind: type[_Value]) -> Result[_Value, LLMError]:
        outcome = self.exchange.outcome
        if isinstance(outcome, kind):
            return Success(outcome)
        if outcome is None:
            return Failure(await self._cancelled())
        if isinstance(outcome, LLMResponse | Vectors | ModelHealth):  # of another kind of request: never the same key
            return Failure(ConfigurationError(message=f"line {self.exchange.line} of the recording is out of place"))
        return Failure(outcome)

    async def _cancelled(self) -> LLMError:
        """Wait to be cancelled, as the exchange was; a time-out ends it where no caller does."""
        model = self.exchange.model
        limit_ms = self.recording.config.models[model].timeout_ms
        played_ms = self.exchange.timing.after_ms + sum(each.after_ms for each in self.exchange.pieces)
        await self._pause(max(0.0, limit_ms - played_ms))
        return RequestTimeout(model=model, timeout_ms=limit_ms, phase="attempt")
