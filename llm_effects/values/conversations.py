"""What a stored conversation holds: its turns, their messages, and where each answer came from."""

from collections.abc import Mapping
from datetime import datetime
from enum import Enum, unique
from typing import Any, Final, final

import attrs
from attrs import field, frozen

from llm_effects.values.messages import Message
from llm_effects.values.responses import Cost, FinishReason, Usage
from llm_effects.values.validation import instance, invalid, text, to_table

MAX_ID_BYTES: Final = 512
"""How long an id or an owner may be, in bytes of UTF-8: what an index of any store takes."""


def check_id(name: str, given: object) -> None:
    """Refuse what not every store can keep apart as an id; anything else is opaque and kept letter by letter.

    >>> check_id("id", "../../x'; DROP TABLE messages")
    >>> check_id("id", "a" * 513)
    Traceback (most recent call last):
        ...
    llm_effects.values.validation.InvalidValue: id: must be at most 512 bytes long
    """
    if not isinstance(given, str):
        invalid(name, f"must be a text, not {type(given).__name__}")
    if not given.strip():
        invalid(name, "must not be blank")
    if "\0" in given or any("\ud800" <= letter <= "\udfff" for letter in given):
        invalid(name, "must be Unicode without the letter NUL")
    if len(given.encode()) > MAX_ID_BYTES:
        invalid(name, f"must be at most {MAX_ID_BYTES} bytes long")


def _id(_: object, attribute: "attrs.Attribute[Any]", given: object) -> None:
    check_id(attribute.name, given)


_OWNER: Final = attrs.validators.optional(_id)


def _metadata(given: Mapping[str, str]) -> Mapping[str, str]:
    return to_table("metadata", given)


@final
@frozen(kw_only=True)
class Conversation:
    """A stored conversation, without its messages.

    ``id`` is opaque, ``owner`` the only one who sees it. ``version`` grows with every turn that begins or ends.
    ``turns`` counts the turns, ``last_model`` is the configured model that answered last. ``forked_from`` names the
    conversation and the message at which this one left it.
    """

    id: str = field(validator=_id)
    created_at: datetime
    updated_at: datetime
    owner: str | None = field(default=None, validator=_OWNER)
    system: str | None = field(default=None, validator=text())
    metadata: Mapping[str, str] = field(factory=dict[str, str], converter=_metadata)
    version: int = 0
    turns: int = 0
    last_model: str | None = None
    forked_from: tuple[str, str] | None = None


@final
@frozen(kw_only=True)
class Provenance:
    """Where an answer came from and what it took; ``model`` is the configured name, ``served_model`` the provider's.

    ``prefix`` is a digest of all that stood before the answer in its prompt: some thinking may go back only after the
    same.
    """

    model: str
    provider: str
    served_model: str | None = None
    usage: Usage = field(factory=Usage)
    cost: Cost = Cost.UNKNOWN
    finish_reason: FinishReason | None = None
    prefix: str | None = None


@final
@frozen(kw_only=True)
class StoredMessage:
    """A message with its stable ``id``. One that is ``pinned`` is never dropped from the window.

    ``tokens`` is what it was estimated to take; ``provenance`` is known of an answer only.
    """

    id: str = field(validator=_id)
    message: Message = field(validator=instance(Message))
    at: datetime
    pinned: bool = False
    tokens: int = 0
    provenance: Provenance | None = None


@final
@unique
class TurnState(Enum):
    """How far a turn has come. ``INTERRUPTED`` keeps what the user saw, ``FAILED`` only what was asked."""

    PENDING = "pending"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@final
@frozen(kw_only=True)
class Turn:
    """One exchange: what was asked, and all that came of it, in order.

    ``id`` is the caller's: the same turn again is the same turn. ``number`` is its place in the conversation, from 1.
    A pending turn belongs to its ``writer`` until ``lease_until``; after that nobody is at work on it any more. The
    ``writer`` is an opaque id, new for each attempt at the turn: who begins one and is given another's name back has
    not got it. ``error`` is the tag of what broke the turn off.
    """

    id: str = field(validator=_id)
    begun_at: datetime
    lease_until: datetime
    writer: str = ""
    number: int = 0
    state: TurnState = TurnState.PENDING
    messages: tuple[StoredMessage, ...] = ()
    error: str | None = None

    @property
    def answered(self) -> bool:
        """Whether a model has said something."""
        return any(each.message.role == "assistant" for each in self.messages)

    @property
    def settled(self) -> bool:
        """Whether it has come to an end that stays: with an answer, or with the part of one that the user saw."""
        return self.state is TurnState.FINISHED or (self.state is TurnState.INTERRUPTED and self.answered)


@final
@frozen(kw_only=True)
class Summary:
    """What the turns up to the number ``upto`` came to, in a model's words."""

    upto: int
    text: str
    tokens: int = 0
    provenance: Provenance | None = None


@final
@frozen(kw_only=True)
class History:
    """A conversation as it was read at once: its newest turns, the oldest of them first.

    ``complete`` says that no turn came before them. ``pinned`` has the older turns with a pinned message, whole: only
    then is it known whether they have ended, and which results belong to a call.
    """

    conversation: Conversation
    turns: tuple[Turn, ...] = ()
    complete: bool = True
    pinned: tuple[Turn, ...] = ()
    summary: Summary | None = None


@final
@frozen(kw_only=True)
class JournalEntry:
    """A step of a run that must not happen twice: what was meant to be done, and what came of it.

    ``fresh`` says that it was noted just now. One that is not, and has no ``result``, has an unknown outcome: it may
    or may not have happened.
    """

    key: str
    intent: bytes = field(repr=False)
    result: bytes | None = field(default=None, repr=False)
    fresh: bool = False
