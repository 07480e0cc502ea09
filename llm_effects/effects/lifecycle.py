"""Optional abilities of stores: find data by metadata and words, erase it by owner and age, with a receipt.

Stores need not implement these protocols. A search of one that does not is an error, and what it cannot erase is in the
receipt.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final, Protocol, TypeAlias, final, runtime_checkable

from attrs import field, frozen
from returns.future import FutureResult

from llm_effects.values.conversations import Conversation, SearchHit
from llm_effects.values.errors import LLMError
from llm_effects.values.value import Value

Counts: TypeAlias = Mapping[str, int]
"""How many rows or entries were erased, by what they are."""

APPROVALS_RUN: Final = "llm_effects.approvals"
"""The journal in which the approvals of an owner are kept; no run may have this id."""


@final
@frozen(kw_only=True, eq=False, repr=False)
class Chosen(Value):
    """A choice of stored data: of some ``owners``, or of all but the ``spared`` ones, last changed ``before`` a time.

    >>> Chosen(owners=("alice",)).of("bob"), Chosen(spared=("alice",)).of(None)
    (False, True)
    """

    owners: tuple[str | None, ...] | None = None
    spared: tuple[str, ...] = ()
    before: datetime | None = None

    def of(self, owner: str | None) -> bool:
        """Return whether the data of an owner is chosen, if it is old enough."""
        return owner not in self.spared if self.owners is None else owner in self.owners

    def at(self, changed: datetime) -> bool:
        """Return whether data that was last changed at a time is old enough."""
        return self.before is None or changed < self.before


@runtime_checkable
class ErasableConversations(Protocol):
    """Conversations and journals that can be erased by owner and age.

    Each call erases at most a batch, in one step, so that others can write in between: the value counts what it erased,
    and counts that are all 0 mean that nothing is left.
    """

    def erase_conversations(self, chosen: Chosen) -> FutureResult[Counts, LLMError]:
        """Erase ``conversations`` with their ``messages``, by the time of their newest turn."""
        ...

    def erase_journals(self, chosen: Chosen) -> FutureResult[Counts, LLMError]:
        """Erase the ``journal_entries`` of whole runs, by their newest entry, and ``approvals`` one by one."""
        ...


@runtime_checkable
class SearchableConversations(Protocol):
    """Conversations that can be found by their metadata, and messages by their words."""

    def page_by_metadata(
        self, owner: str | None, metadata: Mapping[str, str], limit: int, after: str | None = None
    ) -> FutureResult[tuple[Conversation, ...], LLMError]:
        """Return an owner's conversations that have all of this metadata, as ``page`` does."""
        ...

    def search(
        self, owner: str | None, text: str, limit: int, after: str | None = None
    ) -> FutureResult[tuple[SearchHit, ...], LLMError]:
        """Return an owner's messages that have every word of a text, in any order and case.

        The newest conversation comes first, and in it the newest message; ``after`` is the cursor of a hit. A text
        without a word, or a cursor of no hit, is an ``InvalidRequest``.
        """
        ...


@runtime_checkable
class ErasableLedger(Protocol):
    """A ledger whose rows can be erased by owner and age, in batches as conversations are."""

    def erase_rows(self, chosen: Chosen) -> FutureResult[Counts, LLMError]:
        """Erase ``ledger_rows``, and ``budgets``: what these owners have spent of budgets by owner.

        Chosen by age, only what was spent in periods that ended before; of all owners, that of every budget.
        """
        ...


@runtime_checkable
class ErasableCache(Protocol):
    """A cache that can delete all entries whose keys begin alike: those of one owner do."""

    def delete_all(self, prefix: str) -> FutureResult[int, LLMError]:
        """Delete the entries whose keys begin with a prefix; the value is their number."""
        ...


@final
@frozen(eq=False, repr=False)
class Kept(Value):
    """A ``store`` in which something could not be erased, and the ``reason``."""

    store: str
    reason: str


OUTSIDE: Final = (
    "journals and output files of generate_many, recordings and exports: files whose paths only their program knows",
    "what was sent to providers, and their prompt caches, batches and logs",
    "the memory of running programs, their traces and logs, and backups of the stores",
)
"""Where the library keeps no data itself, and so erases none."""


@final
@frozen(kw_only=True, eq=False, repr=False)
class Receipt(Value):
    """The counts of what was erased ``at`` a time, by what it was, and what was ``kept`` although it was to be erased.

    ``owner`` is the one whose data was erased, or ``None`` if it was chosen by age. ``outside`` lists where data may be
    that no store of the library holds.
    """

    at: datetime
    erased: Counts
    kept: tuple[Kept, ...] = ()
    owner: str | None = None
    outside: tuple[str, ...] = field(default=OUTSIDE, repr=False)

    @property
    def complete(self) -> bool:
        """Whether everything was erased that was to be."""
        return not self.kept
