"""``LLM``: answers or ``LLMFailure`` for code that is not async."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Self, TypeVar, Unpack, final, overload

from llm_effects.batches.journals import Journal, no_journal
from llm_effects.batches.provider_batches import BatchStatus, batch_status, cancel_batch, collect_batch, submit_batch
from llm_effects.batches.runs import Via, generate_many
from llm_effects.clients.health_checks import check_health
from llm_effects.conversations.converse import converse
from llm_effects.conversations.erasure import apply_retention, erase_owner
from llm_effects.conversations.operations import (
    list_conversations,
    load_conversation,
    search_conversations,
    start_conversation,
)
from llm_effects.effects.effect import Effect
from llm_effects.effects.env import Redact
from llm_effects.effects.lifecycle import Receipt
from llm_effects.effects.tasks import LoopStopped, LoopThread
from llm_effects.embeddings import Embeddings, embed
from llm_effects.pipeline import explain, generate
from llm_effects.plain.async_llm import AsyncLLM
from llm_effects.plain.fields import (
    CLOSED,
    LLMFailure,
    Request,
    RequestFields,
    Source,
    TurnFields,
    as_request,
    as_turn,
    explain_source,
    loaded,
    plain_results,
    repr_of,
)
from llm_effects.plain.streams import EventStream, PartialStream
from llm_effects.reports.usage import UsageReport, usage_report
from llm_effects.routing.candidates import RoutingDecision
from llm_effects.stores.worker_threads import leave_to_parent, renew_after_fork
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
class LLM:
    """Models for code that is not async: each method returns an answer or raises ``LLMFailure``.

    It has the methods of ``AsyncLLM`` with the same keywords, and takes the same ``source``; with ``check`` it is
    checked at once, and with ``redact`` its calls are redacted. Its event loop runs in a thread of its own, so it works
    in any thread, also where another event loop runs, and after a fork. Ctrl-C cancels the call. Use it with ``with``,
    or directly and close it with ``close()``; one that is not closed is closed when it is collected, or when the
    interpreter exits.

    >>> from llm_effects import scripted_env
    >>> LLM(scripted_env("Logs.")).generate("Why do disks fill up?").content
    'Logs.'
    """

    _loop: LoopThread | None = None

    def __init__(self, source: Source = None, *, check: bool = False, redact: Redact | None = None) -> None:
        self._source, self._check, self._redact = loaded(source), check, redact
        self._llm: AsyncLLM | None = None
        self._lock, self._closed = threading.Lock(), False
        renew_after_fork(self)
        if check:
            self._open()

    def __repr__(self) -> str:
        return repr_of(self, self._source)

    def run(self, effect: Effect[_Value]) -> _Value:
        """Run any effect and return its value."""
        return self._wait(partial(self._open()[0].run, effect))

    def generate(self, request: Request, **fields: Unpack[RequestFields]) -> LLMResponse:
        """Answer a request with the model that suits it."""
        return self.run(generate(as_request(request, fields)))

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
        return self.run(generate_as(as_request(request, fields), kind, max_repairs=max_repairs))

    @overload
    def stream_as(  # pyright: ignore[reportOverlappingOverload]
        self,
        request: Request,
        kind: type[Structured[_Value]],
        *,
        growing: bool = ...,
        **fields: Unpack[RequestFields],
    ) -> PartialStream[_Value]: ...
    @overload
    def stream_as(
        self, request: Request, kind: type[_Value], *, growing: bool = ..., **fields: Unpack[RequestFields]
    ) -> PartialStream[_Value]: ...
    def stream_as(
        self, request: Request, kind: type[_Value], *, growing: bool = False, **fields: Unpack[RequestFields]
    ) -> PartialStream[Any]:
        """Answer a request with a value of a type, as an iterator of what is sure of it; the last is ``Structured``."""
        return PartialStream(self._open()[0].stream_as(request, kind, growing=growing, **fields), self._wait)

    def generate_many(
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
        return self.run(many.map(plain_results))

    def submit_batch(self, requests: Iterable[Request], journal: Journal) -> BatchStatus:
        """Submit requests as batches of their providers, at half price, each once."""
        return self.run(submit_batch(requests, journal))

    def batch_status(self, journal: Journal) -> BatchStatus:
        """Ask the providers for the state of a submitted batch."""
        return self.run(batch_status(journal))

    def collect_batch(self, requests: Iterable[Request], journal: Journal) -> tuple[LLMResponse | LLMError, ...]:
        """Return the results of a submitted batch in order; one that is not there is its ``LLMError``, not raised."""
        return self.run(collect_batch(requests, journal).map(plain_results))

    def cancel_batch(self, journal: Journal) -> BatchStatus:
        """Cancel what has not begun of a submitted batch."""
        return self.run(cancel_batch(journal))

    def run_tools(
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
        return self.run(tool_run)

    def resume_tools(
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
        return self.run(resumed)

    def list_approvals(self, *, owner: str | None = None, decided: bool = False) -> tuple[Approval, ...]:
        """List an owner's calls that wait for approval, oldest first; with ``decided`` those with a decision too."""
        return self.run(list_approvals(owner=owner, decided=decided))

    def decide_approval(
        self, approval_id: str, verdict: Verdict, *, owner: str | None = None, by: str | None = None
    ) -> Approval:
        """Approve or refuse a call that waits; the first decision stays."""
        return self.run(decide_approval(approval_id, verdict, owner=owner, by=by))

    def converse(self, conversation_id: str, message: Request | Message, **fields: Unpack[TurnFields]) -> LLMResponse:
        """Answer one turn of a stored conversation."""
        return self.run(as_turn(converse, conversation_id, message, fields))

    def converse_stream(
        self, conversation_id: str, message: Request | Message, **fields: Unpack[TurnFields]
    ) -> EventStream:
        """Answer one turn as ``converse`` does, as an iterator of its events; a turn left early is interrupted."""
        turn = self._open()[0].converse_stream(conversation_id, message, **fields)
        return EventStream(turn, self._wait)

    def start_conversation(
        self,
        conversation_id: str | None = None,
        *,
        system: str | None = None,
        metadata: Mapping[str, str] | None = None,
        owner: str | None = None,
        stays: Stays | None = None,
    ) -> Conversation:
        """Create a conversation, with a new id if none is given."""
        return self.run(start_conversation(conversation_id, system=system, metadata=metadata, owner=owner, stays=stays))

    def load_conversation(
        self, conversation_id: str, *, owner: str | None = None, newest: int | None = None
    ) -> History:
        """Read a conversation: its ``newest`` turns, or all."""
        return self.run(load_conversation(conversation_id, owner=owner, newest=newest))

    def list_conversations(
        self,
        *,
        owner: str | None = None,
        limit: int = 100,
        after: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> tuple[Conversation, ...]:
        """List an owner's conversations with all of ``metadata`` by id: at most ``limit``, ``after`` an id."""
        return self.run(list_conversations(owner=owner, limit=limit, after=after, metadata=metadata))

    def search_conversations(
        self, text: str, *, owner: str | None = None, limit: int = 20, after: str | None = None
    ) -> tuple[SearchHit, ...]:
        """Find an owner's messages that have every word of a text, the newest first."""
        return self.run(search_conversations(text, owner=owner, limit=limit, after=after))

    def erase_owner(self, owner: str) -> Receipt:
        """Erase everything of an owner in every store; the receipt counts it, and says what is left and why."""
        return self.run(erase_owner(owner))

    def apply_retention(self) -> Receipt:
        """Erase what is older than ``storage.retention`` keeps it."""
        return self.run(apply_retention())

    def embed(
        self,
        texts: Iterable[str],
        *,
        model: str | None = None,
        dimensions: int | None = None,
        cache: CachePolicy | str = CachePolicy.USE,
        stays: Stays | None = None,
    ) -> Embeddings:
        """Embed each text, with ``model`` or with the first configured model that embeds."""
        return self.run(embed(texts, model=model, dimensions=dimensions, cache=cache, stays=stays))

    def explain(self, request: Request, *, streamed: bool = False, **fields: Unpack[RequestFields]) -> RoutingDecision:
        """Return which models ``generate`` would ask, in order, and why others are excluded."""
        return self.run(explain(as_request(request, fields), streamed=streamed))

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
                raise LLMFailure(CLOSED)
            if self._llm is None or self._loop is None:
                self._llm = AsyncLLM(self._source, check=self._check, redact=self._redact)
                self._loop = LoopThread(self._llm)
            return self._llm, self._loop

    def _wait(self, work: Callable[[], Awaitable[_Value]]) -> _Value:
        try:
            return self._open()[1].wait(work)
        except LoopStopped:
            raise LLMFailure(CLOSED) from None
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
