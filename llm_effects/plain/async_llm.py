"""``AsyncLLM``: answers or ``LLMFailure`` for async code."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, final, overload

from returns.context import RequiresContext

from llm_effects.batches.journals import Journal, no_journal
from llm_effects.batches.provider_batches import BatchStatus, batch_status, cancel_batch, collect_batch, submit_batch
from llm_effects.batches.runs import Via, generate_many
from llm_effects.clients.health_checks import check_health
from llm_effects.config import LLMConfig
from llm_effects.conversations.converse import converse, open_converse
from llm_effects.conversations.erasure import apply_retention, erase_owner
from llm_effects.conversations.operations import (
    list_conversations,
    load_conversation,
    search_conversations,
    start_conversation,
)
from llm_effects.effects.effect import Effect
from llm_effects.effects.env import LLMEnv, Redact
from llm_effects.effects.lifecycle import Receipt
from llm_effects.embeddings import Embeddings, embed
from llm_effects.pipeline import explain, generate, open_stream
from llm_effects.plain.fields import (
    Request,
    RequestFields,
    Source,
    TurnFields,
    as_request,
    as_turn,
    explain_source,
    loaded,
    manager_of,
    plain_results,
    repr_of,
    value_of,
)
from llm_effects.plain.streams import AsyncEventStream, AsyncPartialStream
from llm_effects.reports.usage import UsageReport, usage_report
from llm_effects.routing.candidates import RoutingDecision
from llm_effects.structured.partial_answers import open_stream_as
from llm_effects.structured.typed_answers import Structured, generate_as
from llm_effects.tools.approvals import ask_later, dangerous_calls, decide_approval, list_approvals
from llm_effects.tools.run import MAX_STEPS, NO_LIMITS, resume_tools, run_tools
from llm_effects.tools.steps import Approval, ApprovalPolicy, Approve, ToolLimits, ToolRun, Verdict
from llm_effects.tools.tool import Toolkit
from llm_effects.values.conversations import Conversation, History, SearchHit
from llm_effects.values.errors import LLMError
from llm_effects.values.messages import Message, Stays
from llm_effects.values.records import ModelHealth
from llm_effects.values.requests import CachePolicy
from llm_effects.values.responses import LLMResponse
from llm_effects.values.usage import Dimension

_Value = TypeVar("_Value")


@final
@explain_source
class AsyncLLM:
    """Models for async code, on asyncio and trio: each method awaits an answer or raises ``LLMFailure``.

    ``source`` is a configuration, the path of a TOML file, or an environment, which stays open; without one, the
    environment variables are read. With ``check``, the first use fails with every problem that is known at once, as
    ``open_env`` describes; with ``redact``, a ``Redaction``, its calls are redacted. Use it with ``async with``, which
    keeps connections open between calls, or directly and close it with ``aclose()``.

    Fields of a request may be keywords of a call: ``model`` (your name or the provider's), ``system``, ``task_type``,
    ``owner``, ``tags``, ``cache``, ``stays``, ``preferences``, ``max_tokens``, ``temperature``, ``reasoning_effort``
    and ``timeout_ms`` (the whole call, in milliseconds).

    >>> import anyio
    >>> from llm_effects import scripted_env
    >>> async def main() -> str:
    ...     async with AsyncLLM(scripted_env("Logs.")) as llm:
    ...         return (await llm.generate("Why do disks fill up?")).content
    >>> anyio.run(main)
    'Logs.'
    """

    def __init__(self, source: Source = None, *, check: bool = False, redact: Redact | None = None) -> None:
        known = loaded(source)
        self._manager, self._unchecked = manager_of(known, redact), check and isinstance(known, LLMConfig)
        self._source = known

    def __repr__(self) -> str:
        return repr_of(self, self._source)

    async def run(self, effect: Effect[_Value]) -> _Value:
        """Run any effect and return its value."""
        await self._check()
        return value_of(await self._manager.run(effect))

    async def generate(self, request: Request, **fields: Unpack[RequestFields]) -> LLMResponse:
        """Answer a request with the model that suits it."""
        return await self.run(generate(as_request(request, fields)))

    def stream(self, request: Request, **fields: Unpack[RequestFields]) -> AsyncEventStream:
        """Answer a request as ``generate`` does, as an iterator of its events; the last one is ``Completed``."""
        return AsyncEventStream(partial(self._opened, open_stream(as_request(request, fields))))

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
        return await self.run(generate_as(as_request(request, fields), kind, max_repairs=max_repairs))

    @overload
    def stream_as(  # pyright: ignore[reportOverlappingOverload]
        self,
        request: Request,
        kind: type[Structured[_Value]],
        *,
        growing: bool = ...,
        **fields: Unpack[RequestFields],
    ) -> AsyncPartialStream[_Value]: ...
    @overload
    def stream_as(
        self, request: Request, kind: type[_Value], *, growing: bool = ..., **fields: Unpack[RequestFields]
    ) -> AsyncPartialStream[_Value]: ...
    def stream_as(
        self, request: Request, kind: type[_Value], *, growing: bool = False, **fields: Unpack[RequestFields]
    ) -> AsyncPartialStream[Any]:
        """Answer a request with a value of a type, as an iterator of what is sure of it; the last is ``Structured``."""
        answers = open_stream_as(as_request(request, fields), kind, growing=growing)
        return AsyncPartialStream(partial(self._opened, answers))

    async def generate_many(
        self,
        requests: Iterable[Request],
        concurrency: int = 8,
        *,
        cache: CachePolicy | str | None = None,
        journal: Journal = no_journal,
        via: Via = "calls",
    ) -> tuple[LLMResponse | LLMError, ...]:
        """Answer requests, at most ``concurrency`` at once; a request that fails is its ``LLMError``, not raised."""
        many = generate_many(requests, concurrency, cache=cache, journal=journal, via=via)
        return await self.run(many.map(plain_results))

    async def submit_batch(self, requests: Iterable[Request], journal: Journal) -> BatchStatus:
        """Submit requests as batches of their providers, at half price, each once."""
        return await self.run(submit_batch(requests, journal))

    async def batch_status(self, journal: Journal) -> BatchStatus:
        """Ask the providers for the state of a submitted batch."""
        return await self.run(batch_status(journal))

    async def collect_batch(self, requests: Iterable[Request], journal: Journal) -> tuple[LLMResponse | LLMError, ...]:
        """Return the results of a submitted batch in order; one that is not there is its ``LLMError``, not raised."""
        return await self.run(collect_batch(requests, journal).map(plain_results))

    async def cancel_batch(self, journal: Journal) -> BatchStatus:
        """Cancel what has not begun of a submitted batch."""
        return await self.run(cancel_batch(journal))

    async def run_tools(
        self,
        request: Request,
        toolkit: Toolkit,
        max_steps: int = MAX_STEPS,
        *,
        limits: ToolLimits = NO_LIMITS,
        approve: Approve | None = None,
        needs_approval: ApprovalPolicy = dangerous_calls,
        run_id: str | None = None,
        conversation_id: str | None = None,
        **fields: Unpack[RequestFields],
    ) -> ToolRun:
        """Answer a request with the help of tools, asking the model at most ``max_steps`` times."""
        tool_run = run_tools(
            as_request(request, fields),
            toolkit,
            max_steps,
            limits=limits,
            approve=approve,
            needs_approval=needs_approval,
            run_id=run_id,
            conversation_id=conversation_id,
        )
        return await self.run(tool_run)

    async def resume_tools(
        self,
        run_id: str,
        toolkit: Toolkit,
        *,
        owner: str | None = None,
        approve: Approve = ask_later,
        needs_approval: ApprovalPolicy = dangerous_calls,
    ) -> ToolRun:
        """Continue a run that waits for approval, also in another process."""
        resumed = resume_tools(run_id, toolkit, owner=owner, approve=approve, needs_approval=needs_approval)
        return await self.run(resumed)

    async def list_approvals(self, *, owner: str | None = None, decided: bool = False) -> tuple[Approval, ...]:
        """List an owner's calls that wait for approval, oldest first; with ``decided`` those with a decision too."""
        return await self.run(list_approvals(owner=owner, decided=decided))

    async def decide_approval(
        self, approval_id: str, verdict: Verdict, *, owner: str | None = None, by: str | None = None
    ) -> Approval:
        """Approve or refuse a call that waits; the first decision stays."""
        return await self.run(decide_approval(approval_id, verdict, owner=owner, by=by))

    async def converse(
        self, conversation_id: str, message: Request | Message, **fields: Unpack[TurnFields]
    ) -> LLMResponse:
        """Answer one turn of a stored conversation."""
        return await self.run(as_turn(converse, conversation_id, message, fields))

    def converse_stream(
        self, conversation_id: str, message: Request | Message, **fields: Unpack[TurnFields]
    ) -> AsyncEventStream:
        """Answer one turn as ``converse`` does, as an iterator of its events; a turn left early is interrupted."""
        turn = as_turn(open_converse, conversation_id, message, fields)
        return AsyncEventStream(partial(self._opened, turn))

    async def start_conversation(
        self,
        conversation_id: str | None = None,
        *,
        system: str | None = None,
        metadata: Mapping[str, str] | None = None,
        owner: str | None = None,
        stays: Stays | None = None,
    ) -> Conversation:
        """Create a conversation, with a new id if none is given."""
        return await self.run(
            start_conversation(conversation_id, system=system, metadata=metadata, owner=owner, stays=stays)
        )

    async def load_conversation(
        self, conversation_id: str, *, owner: str | None = None, newest: int | None = None
    ) -> History:
        """Read a conversation: its ``newest`` turns, or all."""
        return await self.run(load_conversation(conversation_id, owner=owner, newest=newest))

    async def list_conversations(
        self,
        *,
        owner: str | None = None,
        limit: int = 100,
        after: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> tuple[Conversation, ...]:
        """List an owner's conversations with all of ``metadata`` by id: at most ``limit``, ``after`` an id."""
        return await self.run(list_conversations(owner=owner, limit=limit, after=after, metadata=metadata))

    async def search_conversations(
        self, text: str, *, owner: str | None = None, limit: int = 20, after: str | None = None
    ) -> tuple[SearchHit, ...]:
        """Find an owner's messages that have every word of a text, the newest first."""
        return await self.run(search_conversations(text, owner=owner, limit=limit, after=after))

    async def erase_owner(self, owner: str) -> Receipt:
        """Erase everything of an owner in every store; the receipt counts it, and says what is left and why."""
        return await self.run(erase_owner(owner))

    async def apply_retention(self) -> Receipt:
        """Erase what is older than ``storage.retention`` keeps it."""
        return await self.run(apply_retention())

    async def embed(
        self,
        texts: Iterable[str],
        *,
        model: str | None = None,
        dimensions: int | None = None,
        cache: CachePolicy | str = CachePolicy.USE,
        stays: Stays | None = None,
    ) -> Embeddings:
        """Embed each text, with ``model`` or with the first configured model that embeds."""
        return await self.run(embed(texts, model=model, dimensions=dimensions, cache=cache, stays=stays))

    async def explain(
        self, request: Request, *, streamed: bool = False, **fields: Unpack[RequestFields]
    ) -> RoutingDecision:
        """Return which models ``generate`` would ask, in order, and why others are excluded."""
        return await self.run(explain(as_request(request, fields), streamed=streamed))

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
            value_of(await self._manager.check())
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
