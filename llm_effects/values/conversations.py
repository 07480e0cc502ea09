"""Stored conversations: their turns, messages and the provenance of each answer."""

from collections.abc import Mapping
from datetime import datetime
from enum import Enum, unique
from itertools import chain
from typing import Final, final

from attrs import field, frozen

from llm_effects.values.display import count
from llm_effects.values.messages import Message, Stays, stays_of, valid_stays
from llm_effects.values.responses import Cost, FinishReason, Usage
from llm_effects.values.validation import instance, text, to_metadata, valid_id, valid_owner
from llm_effects.values.value import Value


@final
@frozen(kw_only=True, eq=False, repr=False)
class Conversation(Value):
    """A stored conversation, without its messages.

    ``id`` is opaque; only its ``owner`` can read it. ``version`` increases with every turn that begins or ends.
    ``turns`` counts the turns, ``last_model`` is the configured model that answered last. ``forked_from`` is the
    original conversation and the message after which this one continues. All of a conversation that ``stays`` on this
    machine does. An ``unreadable`` one in a list is a row that this version cannot read: it has only ids and counts.
    """

    id: str = field(validator=valid_id)
    created_at: datetime
    updated_at: datetime
    owner: str | None = field(default=None, validator=valid_owner)
    system: str | None = field(default=None, validator=text())
    metadata: Mapping[str, str] = field(factory=dict[str, str], converter=to_metadata)
    version: int = 0
    turns: int = 0
    last_model: str | None = None
    forked_from: tuple[str, str] | None = None
    unreadable: bool = False
    stays: Stays | None = field(default=None, validator=valid_stays)


@final
@frozen(kw_only=True, eq=False, repr=False)
class Provenance(Value):
    """The origin and cost of an answer; ``model`` is the configured name, ``served_model`` the provider's.

    ``prefix`` is a digest of the prompt before the answer: some providers accept their reasoning blocks back only after
    the same prompt.
    """

    model: str
    provider: str
    served_model: str | None = None
    usage: Usage = field(factory=Usage)
    cost: Cost = Cost.UNKNOWN
    finish_reason: FinishReason | None = None
    prefix: str | None = None


@final
@frozen(kw_only=True, eq=False, repr=False)
class StoredMessage(Value):
    """A message with its stable ``id``; a ``pinned`` one is never dropped from the window.

    ``tokens`` is an estimate; only answers have a ``provenance``.
    """

    id: str = field(validator=valid_id)
    message: Message = field(validator=instance(Message))
    at: datetime
    pinned: bool = False
    tokens: int = 0
    provenance: Provenance | None = None


UNREADABLE: Final = "Unreadable"
"""The ``error`` of a turn whose row, or the row of one of its messages, this version cannot read."""

UNREADABLE_TEXT: Final = "[a message that this version cannot read]"


@final
@unique
class TurnState(Enum):
    """The state of a turn. ``INTERRUPTED`` keeps what the user saw, ``FAILED`` only the question."""

    PENDING = "pending"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@final
@frozen(kw_only=True, eq=False, repr=False)
class Turn(Value):
    """One exchange: the question and every message that followed, in order.

    ``id`` is the caller's, so that a repeated call continues the same turn. ``number`` is its place in the
    conversation, from 1. A pending turn belongs to its ``writer`` until ``lease_until``; after that it counts as
    abandoned. The ``writer`` is an opaque id, new for each attempt: if a store returns the turn with another id, then
    another writer has it. ``error`` is the tag of the error that ended the turn; ``UNREADABLE`` marks a turn that this
    version cannot read: it counts as failed, and ``UNREADABLE_TEXT`` stands for each message that is unreadable.
    """

    id: str = field(validator=valid_id)
    begun_at: datetime
    lease_until: datetime
    writer: str = ""
    number: int = 0
    state: TurnState = TurnState.PENDING
    messages: tuple[StoredMessage, ...] = ()
    error: str | None = None

    @property
    def answered(self) -> bool:
        """Whether a model has answered."""
        return any(each.message.role == "assistant" for each in self.messages)

    @property
    def settled(self) -> bool:
        """Whether the turn is final: it has an answer, or the part of one that the user saw."""
        return self.state is TurnState.FINISHED or (self.state is TurnState.INTERRUPTED and self.answered)


@final
@frozen(kw_only=True, eq=False, repr=False)
class Summary(Value):
    """A model's summary of the turns up to number ``upto``; it stays where one of them does."""

    upto: int
    text: str
    tokens: int = 0
    provenance: Provenance | None = None
    stays: Stays | None = field(default=None, validator=valid_stays)


@final
@frozen(kw_only=True, eq=False, repr=False)
class SearchHit(Value):
    """A message that a search has found, and where: its conversation, and the number of its turn.

    ``cursor`` is where the next page begins, after this one.
    """

    conversation_id: str
    turn: int
    message: StoredMessage
    cursor: str


@final
@frozen(kw_only=True, eq=False, repr=False)
class History(Value):
    """A consistent snapshot of a conversation: its newest turns, oldest first.

    ``complete`` means that there are no earlier turns. ``pinned`` holds the earlier turns with a pinned message. They
    are whole, to show whether they have ended and which results belong to which tool call.
    """

    conversation: Conversation
    turns: tuple[Turn, ...] = field(default=(), repr=count)
    complete: bool = True
    pinned: tuple[Turn, ...] = field(default=(), repr=count)
    summary: Summary | None = None

    @property
    def stays(self) -> Stays | None:
        """The label of its conversation, or of any part or summary that it holds."""
        known = (each.message.parts for turn in (*self.pinned, *self.turns) for each in turn.messages)
        summary = None if self.summary is None else self.summary.stays
        return self.conversation.stays or summary or stays_of(chain.from_iterable(known))


@final
@frozen(kw_only=True, eq=False, repr=False)
class JournalEntry(Value):
    """A step of a run that must not happen twice: its intent, and its result once known.

    ``fresh`` means that this call created the entry. An entry that is not fresh and has no ``result`` has an unknown
    outcome: the step may or may not have happened. ``unreadable`` says why the intent or the result cannot be read.
    """

    key: str
    intent: bytes = field(repr=False)
    result: bytes | None = field(default=None, repr=False)
    fresh: bool = False
    unreadable: str | None = None
