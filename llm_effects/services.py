"""Every service that an effect may use, each behind a small Protocol."""

from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime
from typing import Protocol, runtime_checkable

from returns.future import FutureResult

from llm_effects.calls import Call
from llm_effects.config import ModelConfig
from llm_effects.errors import LLMError
from llm_effects.records import Attributes, CacheStats, Measure, ModelHealth, Statistics
from llm_effects.requests import LLMRequest
from llm_effects.responses import Attempt, Cost, LLMResponse, Usage
from llm_effects.turns import Conversation, History, JournalEntry, StoredMessage, Summary, Turn, TurnState
from llm_effects.vectors import Vectors


class Clients(Protocol):
    """The edge to the models."""

    def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
        """Ask ``call.model`` once; events go to ``call.sink`` where there is one."""
        ...

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        """See how a model is without asking it anything."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """What clients may be besides; those that are not embed no texts."""

    def embed(self, call: Call, texts: tuple[str, ...], dimensions: int | None) -> FutureResult[Vectors, LLMError]:
        """Ask ``call.model`` once for a vector of each text, of so many numbers where that is said."""
        ...


class Cache(Protocol):
    """Whole answers by key. What goes wrong is a ``StorageFailed``; an entry is opaque bytes.

    One that never waits may say so (``waits = False``): no time is set for it then, which saves much of what it costs.
    """

    def get(self, key: str) -> FutureResult[bytes | None, LLMError]:
        """Give the entry, or ``None`` where there is none or it is too old."""
        ...

    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> FutureResult[None, LLMError]:
        """Keep an entry for ``ttl_seconds``; ``None`` is for ever, 0 keeps nothing, also not what was there."""
        ...

    def delete(self, key: str) -> FutureResult[bool, LLMError]:
        """Drop an entry; says whether there was one that could have been given."""
        ...

    def clear(self) -> FutureResult[int | None, LLMError]:
        """Drop all entries and give how many they were, where the store can tell."""
        ...

    def stats(self) -> FutureResult[CacheStats, LLMError]:
        """Tell what the store holds and did."""
        ...

    def aclose(self) -> Awaitable[None]:
        """Let go of files, connections and threads; a second time does nothing."""
        ...


class Conversations(Protocol):
    """Stored conversations, append-only. Every operation names an owner and sees that owner's only.

    A conversation of another owner is one that is not there; ``None`` is an owner of its own. What is asked of one that
    is not there, or with an id that no store can keep, is an ``InvalidRequest``. What goes wrong with the store is a
    ``StorageFailed``. Each turn that begins or ends, and each ``append``, is one more version.
    """

    def start(self, conversation: Conversation) -> FutureResult[Conversation, LLMError]:
        """Keep a new conversation, at version 0; an id that the owner has already is a ``ConversationConflict``."""
        ...

    def load(
        self, conversation_id: str, owner: str | None, newest: int | None = None
    ) -> FutureResult[History | None, LLMError]:
        """Read a conversation at once: its ``newest`` turns, or all; ``None`` where there is none."""
        ...

    def page(
        self, owner: str | None, limit: int, after: str | None = None
    ) -> FutureResult[tuple[Conversation, ...], LLMError]:
        """Give an owner's conversations by their ids, at most ``limit`` of those that come ``after`` an id."""
        ...

    def begin_turn(
        self, conversation_id: str, owner: str | None, expected_version: int, turn: Turn
    ) -> FutureResult[Turn, LLMError]:
        """Store what is asked, before it is: the only place of conflict.

        A conversation that has moved on from ``expected_version`` is a ``ConversationConflict``. A turn whose id is
        there already is given as it stands, and nothing is stored. Only one that failed, was interrupted before
        anything came of it, or whose lease is over at ``turn.begun_at``, is taken up again: its messages stay, the
        ``writer`` and the lease are the new ones. Who is given its own ``writer`` back, pending, has the turn.
        """
        ...

    def finish_turn(
        self,
        conversation_id: str,
        owner: str | None,
        turn_id: str,
        state: TurnState,
        messages: tuple[StoredMessage, ...],
        *,
        error: str | None = None,
    ) -> FutureResult[Turn, LLMError]:
        """Store what came of a turn. It needs no version.

        A turn that ended with an answer, or a part of one, stays as it is and is given. One that failed keeps only what
        was asked, and takes an answer that arrives later.
        """
        ...

    def append(
        self, conversation_id: str, owner: str | None, expected_version: int, turns: tuple[Turn, ...]
    ) -> FutureResult[Conversation, LLMError]:
        """Store whole turns at once, all or none; those whose ids are there already are left as they are."""
        ...

    def summarise(self, conversation_id: str, owner: str | None, summary: Summary) -> FutureResult[None, LLMError]:
        """Keep a summary, unless there is one that reaches further."""
        ...

    def delete(self, conversation_id: str, owner: str | None) -> FutureResult[bool, LLMError]:
        """Drop a conversation with all that it holds; says whether there was one."""
        ...

    def intend(self, run_id: str, owner: str | None, key: str, intent: bytes) -> FutureResult[JournalEntry, LLMError]:
        """Note what a run is about to do; an entry that is there already is given as it stands, ``fresh`` no more."""
        ...

    def conclude(self, run_id: str, owner: str | None, key: str, result: bytes) -> FutureResult[None, LLMError]:
        """Note what came of a step; the first result stays."""
        ...

    def journal(self, run_id: str, owner: str | None) -> FutureResult[tuple[JournalEntry, ...], LLMError]:
        """Give all that a run noted, in order."""
        ...

    def aclose(self) -> Awaitable[None]:
        """Let go of files, connections and threads; a second time does nothing."""
        ...


class Health(Protocol):
    """What routing and retries know of each model."""

    def observe(self, attempt: Attempt, at: datetime) -> None:
        """Learn from an attempt that ended ``at`` a time of ``env.now``."""
        ...

    def park(self, model: str, until: float) -> None:
        """Leave a model alone until a time on the clock of ``anyio.current_time()``."""
        ...

    def statistics(self) -> Mapping[str, Statistics]:
        """Give what is known, by model name."""
        ...

    def begin_call(self) -> None:
        """Count a call that is routed now."""
        ...

    def calls(self) -> int:
        """Tell how many calls were routed: the draws that decide about exploring go by it."""
        ...

    def latency(self, model: str, share: float, *, first_content: bool) -> float | None:
        """Give the milliseconds within which that share (0 to 1) of the newest answers came, or ``None``.

        Of streams the time of their ``first_content``, else that of whole answers; ``None`` where too few are known.
        """
        ...


class Prices(Protocol):
    """What tokens cost."""

    def cost(self, model: str, usage: Usage, at: datetime) -> Cost:
        """Price some usage of a model ``at`` a time of ``env.now``; unknown where the price or the usage is."""
        ...

    def source(self, model: str, at: datetime) -> str:
        """Say where the price of a model comes from; nothing where there is none."""
        ...


class Tokens(Protocol):
    """How long a text is for a model."""

    def estimate(self, request: LLMRequest) -> int:
        """Estimate the tokens of the prompt: messages, system, tools and schema."""
        ...

    def ratio(self, model: str) -> float:
        """Give the tokens that a configured model counts for each one estimated."""
        ...

    def learn(self, model: str, estimated: int, told: int) -> None:
        """Learn from a prompt that was estimated and then counted by its provider."""
        ...


class Span(Protocol):
    """A piece of work that is being followed."""

    def end(self, attributes: Attributes, error: str | None = None) -> None:
        """Tell what came of it; ``error`` is the tag of an error, or the class of a defect."""
        ...


class Telemetry(Protocol):
    """Traces and metrics. What it raises is logged, and never reaches the call that it follows."""

    @property
    def active(self) -> bool:
        """Whether anybody listens: where nobody does, nothing is gathered."""
        ...

    def begin(self, name: str, attributes: Attributes, *, client: bool = False) -> Span:
        """Follow a piece of work; what begins before it ends, in the same task or one below, is a part of it.

        It ends in the task in which it began. ``client`` says that another process does the work.
        """
        ...

    def record(self, measures: Sequence[Measure]) -> None:
        """Take the figures of what is current."""
        ...
