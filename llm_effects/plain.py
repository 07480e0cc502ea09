"""The plain face of the library: ``LLM`` and ``AsyncLLM`` return an answer or raise ``LLMFailure``."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import datetime
from functools import partial
from types import NoneType, TracebackType
from typing import Any, Final, Protocol, Self, TypeAlias, TypedDict, TypeVar, Unpack, cast, final, overload

from attrs import evolve
from returns.context import RequiresContext
from returns.pipeline import is_successful
from returns.result import Result, Success

from llm_effects.batches.runs import generate_many
from llm_effects.clients.health_checks import check_health
from llm_effects.config import LLMConfig
from llm_effects.config.loading import load_config
from llm_effects.conversations.converse import converse, open_converse
from llm_effects.conversations.operations import list_conversations, load_conversation, start_conversation
from llm_effects.effects.effect import Answer, Effect
from llm_effects.effects.env import LLMEnv
from llm_effects.effects.tasks import HeldItems, LoopStopped, LoopThread
from llm_effects.embeddings import Embeddings, embed
from llm_effects.manager import LLMManager
from llm_effects.pipeline import check_request, explain, generate, open_stream
from llm_effects.reports.usage import Dimension, UsageReport, usage_report
from llm_effects.routing.candidates import RoutingDecision
from llm_effects.stores.worker_threads import leave_to_parent, renew_after_fork
from llm_effects.structured.partial_answers import Answers, Partial, open_stream_as
from llm_effects.structured.typed_answers import Structured, generate_as
from llm_effects.tools.run import MAX_STEPS, NO_LIMITS, run_tools
from llm_effects.tools.steps import Approve, ToolLimits, ToolRun
from llm_effects.tools.tool import Toolkit
from llm_effects.values.conversations import Conversation, History
from llm_effects.values.errors import ConfigurationError, LLMError, checked, describe, request_of
from llm_effects.values.events import Completed, StreamEvent
from llm_effects.values.messages import Message
from llm_effects.values.records import ModelHealth
from llm_effects.values.requests import CachePolicy, LLMRequest, Preferences, ReasoningEffort
from llm_effects.values.responses import LLMResponse

_Value = TypeVar("_Value")

Source: TypeAlias = LLMConfig | LLMEnv | Mapping[str, object] | str | os.PathLike[str] | None
"""Where an ``LLM`` finds its models: a configuration, the path of a TOML file, an environment, or the variables."""

Request: TypeAlias = str | LLMRequest
"""What a model is asked: a text, or a whole request."""

_CLOSED: Final = ConfigurationError(message="this LLM is closed: make another one")


@final
class LLMFailure(Exception):  # noqa: N818 - an error is the value that it holds
    """The exception of ``LLM`` and ``AsyncLLM``: ``error`` is the ``LLMError``, its text is ``describe(error)``.

    >>> from llm_effects import ConfigurationError
    >>> print(LLMFailure(ConfigurationError(message="models: none is configured")))
    ConfigurationError: models: none is configured
    """

    def __init__(self, error: LLMError) -> None:
        super().__init__(error)
        self.error = error

    def __str__(self) -> str:
        return describe(self.error)


class RequestFields(TypedDict, total=False):
    """The fields of a request that may be keywords of a call; ``timeout_ms`` is the whole call in milliseconds."""

    model: str | None
    system: str | None
    task_type: str
    cache: CachePolicy | str
    preferences: Preferences
    max_tokens: int | None
    temperature: float | None
    reasoning_effort: ReasoningEffort | None
    timeout_ms: float | None


class TurnFields(RequestFields, total=False):
    """The keywords of ``converse``: fields of a request, and of the turn."""

    owner: str | None
    turn_id: str | None
    pinned: bool


_PREFERENCES: Final = frozenset({"max_tokens", "temperature", "reasoning_effort", "timeout_ms"})
_OF_TURN: Final = frozenset({"owner", "turn_id", "pinned"})


def _asked(request: Request | Message, fields: RequestFields) -> LLMRequest:
    """Return a request with some fields replaced; an unknown field is a ``TypeError``."""
    if not isinstance(request, Message):
        check_request(request)
    known = checked(LLMRequest, messages=(request,)) if isinstance(request, Message) else request_of(request)
    return _value(checked(_with_fields, _value(known), fields)) if fields else _value(known)


def _with_fields(request: LLMRequest, fields: RequestFields) -> LLMRequest:
    others: dict[str, Any] = dict(fields)
    preferences = {name: others.pop(name) for name in fields if name in _PREFERENCES}
    changed = evolve(request, **others)
    return evolve(changed, preferences=evolve(changed.preferences, **preferences))


def _turn(take: Callable[..., _Value], conversation_id: str, message: Request | Message, fields: TurnFields) -> _Value:
    of_turn = {name: value for name, value in fields.items() if name in _OF_TURN}
    of_request = {name: value for name, value in fields.items() if name not in _OF_TURN}
    return take(conversation_id, _asked(message, cast("RequestFields", of_request)), **of_turn)


def _plain(results: tuple[Answer, ...]) -> tuple[LLMResponse | LLMError, ...]:
    return tuple(each.unwrap() if isinstance(each, Success) else each.failure() for each in results)


def _value(result: Result[_Value, LLMError]) -> _Value:
    if is_successful(result):
        return result.unwrap()
    raise LLMFailure(result.failure())


def _manager_of(source: LLMConfig | LLMEnv) -> LLMManager:
    """Return a manager; that of an environment has nothing of its own to open or close."""
    if isinstance(source, LLMConfig):
        return LLMManager(Success(source))
    return LLMManager(Success(LLMConfig(models={})), lambda _: source)


def _known(source: Source) -> LLMConfig | LLMEnv:
    kinds = (LLMConfig, LLMEnv, Mapping, str, os.PathLike, NoneType)
    if not isinstance(cast("object", source), kinds):
        msg = f"an LLM needs an LLMConfig, the path of a TOML file or an LLMEnv, not {type(source).__name__}"
        raise TypeError(msg)
    return source if isinstance(source, LLMConfig | LLMEnv) else _value(load_config(source))


def _shown(face: object, source: LLMConfig | LLMEnv) -> str:
    config = source if isinstance(source, LLMConfig) else source.config
    return f"{type(face).__name__}({', '.join(config.models)})"


# Streams, which may be left in any way.

_Events: TypeAlias = AbstractAsyncContextManager[AsyncIterator[StreamEvent]]


@final
class AsyncEventStream(HeldItems[StreamEvent]):
    """The events of a stream, for ``async for``; a stream that fails raises ``LLMFailure``.

    It begins with the first event that is asked for. Leaving it early, in any way, closes its connection; ``aclose()``,
    or the end of ``async with``, waits for that.
    """

    def __init__(self, open_events: Callable[[], _Events]) -> None:
        super().__init__(open_events, (Completed,), LLMFailure)


@final
class AsyncPartialStream(HeldItems[Partial[_Value] | Structured[_Value]]):
    """The partial values of an answer, then the whole one as ``Structured``; it is left as an ``AsyncEventStream``."""

    def __init__(self, open_values: Callable[[], AbstractAsyncContextManager[Answers[_Value]]]) -> None:
        super().__init__(open_values, (Structured,), LLMFailure)


class _Wait(Protocol):
    def __call__(self, work: Callable[[], Awaitable[_Value]], /) -> _Value: ...


class _Blocking(Iterator[_Value]):
    def __init__(self, items: HeldItems[_Value], wait: _Wait) -> None:
        self._items, self._wait = items, wait

    def __next__(self) -> _Value:
        try:
            return self._wait(self._items.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """End the stream and close its connection; closing twice is fine."""
        with suppress(LLMFailure):  # it ended with its LLM
            self._wait(self._items.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@final
class EventStream(_Blocking[StreamEvent]):
    """The events of a stream, for ``for``; a stream that fails raises ``LLMFailure``.

    It begins with the first event that is asked for. Leaving it early, in any way, closes its connection; ``close()``,
    or the end of ``with``, waits for that.
    """


@final
class PartialStream(_Blocking[Partial[_Value] | Structured[_Value]]):
    """The partial values of an answer, then the whole one as ``Structured``; it is left as an ``EventStream``."""


# The two faces.


@final
class AsyncLLM:
    """Models for async code, on asyncio and trio: each method awaits an answer or raises ``LLMFailure``.

    ``source`` is a configuration, the path of a TOML file, or an environment, which stays open; without one, the
    environment variables are read. With ``check``, the first use fails with every problem that is known at once, as
    ``open_env`` describes. Use it with ``async with``, which keeps connections open between calls, or directly and
    close it with ``aclose()``. Fields of a request, such as ``max_tokens``, may be keywords of a call.

    >>> import anyio
    >>> from llm_effects import scripted_env
    >>> async def main() -> str:
    ...     async with AsyncLLM(scripted_env("Logs.")) as llm:
    ...         return (await llm.generate("Why do disks fill up?")).content
    >>> anyio.run(main)
    'Logs.'
    """

    def __init__(self, source: Source = None, *, check: bool = False) -> None:
        known = _known(source)
        self._manager, self._unchecked = _manager_of(known), check and isinstance(known, LLMConfig)
        self._source = known

    def __repr__(self) -> str:
        return _shown(self, self._source)

    async def run(self, effect: Effect[_Value]) -> _Value:
        """Run any effect and return its value."""
        await self._check()
        return _value(await self._manager.run(effect))

    async def generate(self, request: Request, **fields: Unpack[RequestFields]) -> LLMResponse:
        """Answer a request with the model that suits it."""
        return await self.run(generate(_asked(request, fields)))

    def stream(self, request: Request, **fields: Unpack[RequestFields]) -> AsyncEventStream:
        """Answer a request as ``generate`` does, as an iterator of its events; the last one is ``Completed``."""
        return AsyncEventStream(partial(self._opened, open_stream(_asked(request, fields))))

    @overload
    async def generate_as(  # pyright: ignore[reportOverlappingOverload]
        self,
        request: Request,
        kind: type[Structured[_Value]],
        *,
        max_repairs: int = ...,
        **fields: Unpack[RequestFields],
    ) -> Structured[_Value]: ...
    @overload
    async def generate_as(
        self, request: Request, kind: type[_Value], *, max_repairs: int = ..., **fields: Unpack[RequestFields]
    ) -> Structured[_Value]: ...
    @overload
    async def generate_as(
        self, request: Request, kind: object, *, max_repairs: int = ..., **fields: Unpack[RequestFields]
    ) -> Structured[object]: ...
    async def generate_as(
        self, request: Request, kind: object, *, max_repairs: int = 2, **fields: Unpack[RequestFields]
    ) -> Structured[object]:
        """Answer a request with a value of a type, and the response that it was read from."""
        return await self.run(generate_as(_asked(request, fields), kind, max_repairs=max_repairs))

    def stream_as(
        self, request: Request, kind: type[_Value], *, growing: bool = False, **fields: Unpack[RequestFields]
    ) -> AsyncPartialStream[_Value]:
        """Answer a request with a value of a type, as an iterator of what is sure of it; the last is ``Structured``."""
        answers = open_stream_as(_asked(request, fields), kind, growing=growing)
        return AsyncPartialStream(partial(self._opened, answers))

    async def generate_many(
        self, requests: Iterable[Request], concurrency: int = 8, *, cache: CachePolicy | str | None = None
    ) -> tuple[LLMResponse | LLMError, ...]:
        """Answer requests, at most ``concurrency`` at once; a request that fails is its ``LLMError``, not raised."""
        return await self.run(generate_many(requests, concurrency, cache=cache).map(_plain))

    async def run_tools(
        self,
        request: Request,
        toolkit: Toolkit,
        max_steps: int = MAX_STEPS,
        *,
        limits: ToolLimits = NO_LIMITS,
        approve: Approve | None = None,
        run_id: str | None = None,
        **fields: Unpack[RequestFields],
    ) -> ToolRun:
        """Answer a request with the help of tools, asking the model at most ``max_steps`` times."""
        asked = _asked(request, fields)
        return await self.run(run_tools(asked, toolkit, max_steps, limits=limits, approve=approve, run_id=run_id))

    async def converse(
        self, conversation_id: str, message: Request | Message, **fields: Unpack[TurnFields]
    ) -> LLMResponse:
        """Answer one turn of a stored conversation."""
        return await self.run(_turn(converse, conversation_id, message, fields))

    def converse_stream(
        self, conversation_id: str, message: Request | Message, **fields: Unpack[TurnFields]
    ) -> AsyncEventStream:
        """Answer one turn as ``converse`` does, as an iterator of its events; a turn left early is interrupted."""
        turn = _turn(open_converse, conversation_id, message, fields)
        return AsyncEventStream(partial(self._opened, turn))

    async def start_conversation(
        self, conversation_id: str | None = None, *, system: str | None = None, owner: str | None = None
    ) -> Conversation:
        """Create a conversation, with a new id if none is given."""
        return await self.run(start_conversation(conversation_id, system=system, owner=owner))

    async def load_conversation(
        self, conversation_id: str, *, owner: str | None = None, newest: int | None = None
    ) -> History:
        """Read a conversation: its ``newest`` turns, or all."""
        return await self.run(load_conversation(conversation_id, owner=owner, newest=newest))

    async def list_conversations(
        self, *, owner: str | None = None, limit: int = 100, after: str | None = None
    ) -> tuple[Conversation, ...]:
        """List an owner's conversations by id: at most ``limit``, beginning ``after`` an id."""
        return await self.run(list_conversations(owner=owner, limit=limit, after=after))

    async def embed(
        self,
        texts: Iterable[str],
        *,
        model: str | None = None,
        dimensions: int | None = None,
        cache: CachePolicy | str = CachePolicy.USE,
    ) -> Embeddings:
        """Embed each text, with ``model`` or with the first configured model that embeds."""
        return await self.run(embed(texts, model=model, dimensions=dimensions, cache=cache))

    async def explain(
        self, request: Request, *, streamed: bool = False, **fields: Unpack[RequestFields]
    ) -> RoutingDecision:
        """Return which models ``generate`` would ask, in order, and why others are excluded."""
        return await self.run(explain(_asked(request, fields), streamed=streamed))

    async def check_health(self) -> tuple[ModelHealth, ...]:
        """Check each configured model without asking it anything."""
        return await self.run(check_health())

    async def usage_report(
        self,
        since: datetime | None = None,
        by: Dimension | Sequence[Dimension] = "model",
        *,
        until: datetime | None = None,
    ) -> UsageReport:
        """Sum up tokens, cost (USD), latency (milliseconds) and outcomes from ``since`` up to ``until``."""
        return await self.run(usage_report(since, by, until=until))

    async def aclose(self) -> None:
        """Close every connection and free the models in this process; closing twice is fine."""
        await self._manager.aclose()

    async def _check(self) -> None:
        if self._unchecked:
            _value(await self._manager.check())
            self._unchecked = False

    @asynccontextmanager
    async def _opened(
        self, items: RequiresContext[AbstractAsyncContextManager[_Value], LLMEnv]
    ) -> AsyncGenerator[_Value]:
        await self._check()
        async with items(self._manager.env) as opened:
            yield opened

    async def __aenter__(self) -> Self:
        await self._manager.__aenter__()
        try:
            await self._check()
        except BaseException:
            await self._manager.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._manager.__aexit__(kind, error, traceback)


@final
class LLM:
    """Models for code that is not async: each method returns an answer or raises ``LLMFailure``.

    It has the methods of ``AsyncLLM``, and takes the same ``source``; with ``check`` it is checked at once. Its event
    loop runs in a thread of its own, so it works in any thread, also where another event loop runs, and after a fork.
    Ctrl-C cancels the call. Use it with ``with``, or directly and close it with ``close()``; one that is not closed is
    closed when it is collected, or when the interpreter exits.

    >>> from llm_effects import scripted_env
    >>> LLM(scripted_env("Logs.")).generate("Why do disks fill up?").content
    'Logs.'
    """

    _loop: LoopThread | None = None

    def __init__(self, source: Source = None, *, check: bool = False) -> None:
        self._source, self._check = _known(source), check
        self._llm: AsyncLLM | None = None
        self._lock, self._closed = threading.Lock(), False
        renew_after_fork(self)
        if check:
            self._open()

    def __repr__(self) -> str:
        return _shown(self, self._source)

    def run(self, effect: Effect[_Value]) -> _Value:
        """Run any effect and return its value."""
        return self._wait(partial(self._open()[0].run, effect))

    def generate(self, request: Request, **fields: Unpack[RequestFields]) -> LLMResponse:
        """Answer a request with the model that suits it."""
        return self.run(generate(_asked(request, fields)))

    def stream(self, request: Request, **fields: Unpack[RequestFields]) -> EventStream:
        """Answer a request as ``generate`` does, as an iterator of its events; the last one is ``Completed``."""
        return EventStream(self._open()[0].stream(request, **fields), self._wait)

    @overload
    def generate_as(  # pyright: ignore[reportOverlappingOverload]
        self,
        request: Request,
        kind: type[Structured[_Value]],
        *,
        max_repairs: int = ...,
        **fields: Unpack[RequestFields],
    ) -> Structured[_Value]: ...
    @overload
    def generate_as(
        self, request: Request, kind: type[_Value], *, max_repairs: int = ..., **fields: Unpack[RequestFields]
    ) -> Structured[_Value]: ...
    @overload
    def generate_as(
        self, request: Request, kind: object, *, max_repairs: int = ..., **fields: Unpack[RequestFields]
    ) -> Structured[object]: ...
    def generate_as(
        self, request: Request, kind: object, *, max_repairs: int = 2, **fields: Unpack[RequestFields]
    ) -> Structured[object]:
        """Answer a request with a value of a type, and the response that it was read from."""
        return self.run(generate_as(_asked(request, fields), kind, max_repairs=max_repairs))

    def stream_as(
        self, request: Request, kind: type[_Value], *, growing: bool = False, **fields: Unpack[RequestFields]
    ) -> PartialStream[_Value]:
        """Answer a request with a value of a type, as an iterator of what is sure of it; the last is ``Structured``."""
        return PartialStream(self._open()[0].stream_as(request, kind, growing=growing, **fields), self._wait)

    def generate_many(
        self, requests: Iterable[Request], concurrency: int = 8, *, cache: CachePolicy | str | None = None
    ) -> tuple[LLMResponse | LLMError, ...]:
        """Answer requests, at most ``concurrency`` at once; a request that fails is its ``LLMError``, not raised."""
        return self.run(generate_many(requests, concurrency, cache=cache).map(_plain))

    def run_tools(
        self,
        request: Request,
        toolkit: Toolkit,
        max_steps: int = MAX_STEPS,
        *,
        limits: ToolLimits = NO_LIMITS,
        approve: Approve | None = None,
        run_id: str | None = None,
        **fields: Unpack[RequestFields],
    ) -> ToolRun:
        """Answer a request with the help of tools, asking the model at most ``max_steps`` times."""
        asked = _asked(request, fields)
        return self.run(run_tools(asked, toolkit, max_steps, limits=limits, approve=approve, run_id=run_id))

    def converse(self, conversation_id: str, message: Request | Message, **fields: Unpack[TurnFields]) -> LLMResponse:
        """Answer one turn of a stored conversation."""
        return self.run(_turn(converse, conversation_id, message, fields))

    def converse_stream(
        self, conversation_id: str, message: Request | Message, **fields: Unpack[TurnFields]
    ) -> EventStream:
        """Answer one turn as ``converse`` does, as an iterator of its events; a turn left early is interrupted."""
        turn = self._open()[0].converse_stream(conversation_id, message, **fields)
        return EventStream(turn, self._wait)

    def start_conversation(
        self, conversation_id: str | None = None, *, system: str | None = None, owner: str | None = None
    ) -> Conversation:
        """Create a conversation, with a new id if none is given."""
        return self.run(start_conversation(conversation_id, system=system, owner=owner))

    def load_conversation(
        self, conversation_id: str, *, owner: str | None = None, newest: int | None = None
    ) -> History:
        """Read a conversation: its ``newest`` turns, or all."""
        return self.run(load_conversation(conversation_id, owner=owner, newest=newest))

    def list_conversations(
        self, *, owner: str | None = None, limit: int = 100, after: str | None = None
    ) -> tuple[Conversation, ...]:
        """List an owner's conversations by id: at most ``limit``, beginning ``after`` an id."""
        return self.run(list_conversations(owner=owner, limit=limit, after=after))

    def embed(
        self,
        texts: Iterable[str],
        *,
        model: str | None = None,
        dimensions: int | None = None,
        cache: CachePolicy | str = CachePolicy.USE,
    ) -> Embeddings:
        """Embed each text, with ``model`` or with the first configured model that embeds."""
        return self.run(embed(texts, model=model, dimensions=dimensions, cache=cache))

    def explain(self, request: Request, *, streamed: bool = False, **fields: Unpack[RequestFields]) -> RoutingDecision:
        """Return which models ``generate`` would ask, in order, and why others are excluded."""
        return self.run(explain(_asked(request, fields), streamed=streamed))

    def check_health(self) -> tuple[ModelHealth, ...]:
        """Check each configured model without asking it anything."""
        return self.run(check_health())

    def usage_report(
        self,
        since: datetime | None = None,
        by: Dimension | Sequence[Dimension] = "model",
        *,
        until: datetime | None = None,
    ) -> UsageReport:
        """Sum up tokens, cost (USD), latency (milliseconds) and outcomes from ``since`` up to ``until``."""
        return self.run(usage_report(since, by, until=until))

    def close(self) -> None:
        """Cancel what runs, close every connection and free the models in this process; closing twice is fine."""
        with self._lock:
            self._closed = True
        if self._loop is not None:
            self._loop.stop()
            self._loop.join()

    def after_fork(self) -> None:
        """Begin anew: a forked process has no thread of its parent."""
        leave_to_parent(self._loop, self._llm)
        self._loop, self._llm, self._lock = None, None, threading.Lock()

    def _open(self) -> tuple[AsyncLLM, LoopThread]:
        with self._lock:
            if self._closed:
                raise LLMFailure(_CLOSED)
            if self._llm is None or self._loop is None:
                self._llm = AsyncLLM(self._source, check=self._check)
                self._loop = LoopThread(self._llm)
            return self._llm, self._loop

    def _wait(self, work: Callable[[], Awaitable[_Value]]) -> _Value:
        try:
            return self._open()[1].wait(work)
        except LoopStopped:
            raise LLMFailure(_CLOSED) from None
        except LLMFailure as failure:
            raise failure.with_traceback(None) from None  # without the frames of the other thread

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._loop is not None:
            self._loop.stop()
