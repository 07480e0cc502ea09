"""Stores that hold what they keep encrypted: conversations, journals and cached answers, around any other store.

A value is encrypted by itself, under a key that it names, and bound to its place: its kind, its owner and its ids. What
cannot be decrypted is one unreadable message, one missing result or one miss. Values that were stored before encryption
was set stay readable, and so do those from before values were bound.
"""

from __future__ import annotations

import logging
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar, final

from attrs import evolve, frozen
from returns.future import FutureResult
from returns.result import Failure, Result, Success

from llm_effects.config.services import Encryption
from llm_effects.effects.env import Cache, Conversations
from llm_effects.effects.lifecycle import (
    Chosen,
    Counts,
    ErasableCache,
    ErasableConversations,
    SearchableConversations,
)
from llm_effects.values.conversations import (
    UNREADABLE,
    UNREADABLE_TEXT,
    Conversation,
    History,
    JournalEntry,
    SearchHit,
    StoredMessage,
    Summary,
    Turn,
    TurnState,
)
from llm_effects.values.errors import ConfigurationError, LLMError, StorageFailed
from llm_effects.values.json import dump
from llm_effects.values.messages import Message, Reasoning, Stays
from llm_effects.values.records import CacheStats
from llm_effects.values.serialization import dump_value, load_value
from llm_effects.values.validation import short_repr

LOGGER: Final = logging.getLogger("llm_effects")

_Value = TypeVar("_Value")

_GetWithin: TypeAlias = Callable[[str, float], Awaitable[Result[bytes | None, LLMError]]]

_MARK: Final = b"llm_effects.encrypted:"
_UNBOUND, _BOUND = b"1", b"2"  # the versions of an envelope
_STAYS: Final = b'"stays":"machine"'
"""The label of data that stays on this machine: it is not encrypted, so that a store elsewhere refuses the value."""

NO_SEARCH: Final = ConfigurationError(message="storage.encryption: is set: encrypted text cannot be searched")
"""The failure of a search in encrypted conversations."""

_NOT_ERASABLE: Final = ConfigurationError(message="the encrypted store has no way to erase by owner or age")


@final
class _EncryptionError(Exception):
    """A user's function has raised: nothing is stored."""


def _sealing(operation: str, store: Callable[[], FutureResult[_Value, LLMError]]) -> FutureResult[_Value, LLMError]:
    """Store what is encrypted on the way; a failure to encrypt is one of the store, and its text may hold a secret."""
    try:
        return store()
    except _EncryptionError as problem:
        message = f"encryption: encrypt raised {problem}"
        return FutureResult.from_failure(StorageFailed(operation=operation, message=message))


def context_of(kind: str, owner: str | None, *ids: str | int) -> bytes:
    """Return what a value is bound to: it can be decrypted in this place only.

    >>> context_of("message", "alice", "incident-7", "turn-1", "message-1")
    b'["message","alice","incident-7","turn-1","message-1"]'
    """
    return dump([kind, owner, *ids])


@final
@frozen
class _Envelope:
    """A version, the name of a key, and encrypted bytes."""

    version: bytes
    key: str
    data: bytes


def _envelope_of(stored: bytes) -> _Envelope:
    version, _, labelled = stored.removeprefix(_MARK).partition(b":")
    key, _, data = labelled.removeprefix(_STAYS + b":").partition(b":")
    return _Envelope(version, b64decode(key).decode(), data)


@final
@frozen
class Envelopes:
    """Bytes under a mark and the name of a key, and back."""

    encryption: Encryption

    def seal(self, plain: bytes, context: bytes) -> bytes:
        """Encrypt some bytes under the current key; where that is impossible, raise ``_EncryptionError``."""
        label = _STAYS + b":" if _STAYS in plain else b""
        try:
            key, data = self.encryption.encrypt(plain, context)
            return b"%s%s:%s%s:%s" % (_MARK, _BOUND, label, b64encode(key.encode()), data)
        except Exception as problem:
            raise _EncryptionError(type(problem).__name__) from problem

    def open(self, stored: bytes, context: bytes) -> bytes | None:
        """Decrypt some bytes; return those that are not encrypted as they are, and ``None`` where it is impossible."""
        if not stored.startswith(_MARK):
            return stored
        try:
            sealed = _envelope_of(stored)
            bound = {_UNBOUND: b"", _BOUND: context}[sealed.version]
            return self.encryption.decrypt(sealed.key, sealed.data, bound)
        except Exception as problem:  # noqa: BLE001 - whatever a user's function raises, this value is unreadable
            LOGGER.warning("a stored value cannot be decrypted: %s", type(problem).__name__)
            return None

    def seal_text(self, plain: str, context: bytes) -> str:
        """Encrypt a text as a text."""
        return b64encode(self.seal(plain.encode(), context)).decode()

    def open_text(self, stored: str, context: bytes) -> str | None:
        """Decrypt a text that ``seal_text`` returned."""
        try:
            plain = self.open(b64decode(stored, validate=True), context)
            return None if plain is None else plain.decode()
        except ValueError:  # the row is damaged
            return None


def _lost(stored: bytes) -> str:
    """Return why a value is unreadable."""
    try:
        return f"it cannot be decrypted with its key {short_repr(_envelope_of(stored).key)}"
    except ValueError:
        return "it is damaged"


@final
@frozen
class EncryptedConversations:
    """Conversations and journals; the other store sees only ids, times, counts, metadata and system prompts."""

    store: Conversations
    envelopes: Envelopes

    def start(self, conversation: Conversation) -> FutureResult[Conversation, LLMError]:
        """Store a new conversation."""
        return self.store.start(conversation)

    def start_copy(self, history: History) -> FutureResult[Conversation, LLMError]:
        """Store a new conversation with its turns and its summary."""
        return _sealing("start_copy", lambda: self.store.start_copy(self._sealed_history(history)))

    def load(
        self, conversation_id: str, owner: str | None, newest: int | None = None
    ) -> FutureResult[History | None, LLMError]:
        """Read a conversation; a turn with a message that cannot be decrypted is unreadable, and no other."""
        return self.store.load(conversation_id, owner, newest).map(
            lambda found: found and self._history(found, owner, conversation_id)
        )

    def page(
        self, owner: str | None, limit: int, after: str | None = None
    ) -> FutureResult[tuple[Conversation, ...], LLMError]:
        """Return an owner's conversations in the order of their ids."""
        return self.store.page(owner, limit, after)

    def page_by_metadata(
        self, owner: str | None, metadata: Mapping[str, str], limit: int, after: str | None = None
    ) -> FutureResult[tuple[Conversation, ...], LLMError]:
        """Return an owner's conversations that have all of this metadata, which is not encrypted."""
        if isinstance(self.store, SearchableConversations):
            return self.store.page_by_metadata(owner, metadata, limit, after)
        return FutureResult.from_failure(NO_SEARCH)

    def search(
        self,
        owner: str | None,  # noqa: ARG002
        text: str,  # noqa: ARG002
        limit: int,  # noqa: ARG002
        after: str | None = None,  # noqa: ARG002
    ) -> FutureResult[tuple[SearchHit, ...], LLMError]:
        """Fail: encrypted text cannot be searched."""
        return FutureResult.from_failure(NO_SEARCH)

    def begin_turn(
        self, conversation_id: str, owner: str | None, expected_version: int, turn: Turn
    ) -> FutureResult[Turn, LLMError]:
        """Store the question of a turn, before it is sent."""

        def begin() -> FutureResult[Turn, LLMError]:
            [sealed] = self._sealed_turns((turn,), owner, conversation_id)
            begun = self.store.begin_turn(conversation_id, owner, expected_version, sealed)
            return begun.map(partial(self._turn, owner, conversation_id))

        return _sealing("begin_turn", begin)

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
        """Store the end of a turn."""

        def finish() -> FutureResult[Turn, LLMError]:
            sealed = tuple(self._sealed(each, owner, conversation_id, turn_id) for each in messages)
            finished = self.store.finish_turn(conversation_id, owner, turn_id, state, sealed, error=error)
            return finished.map(partial(self._turn, owner, conversation_id))

        return _sealing("finish_turn", finish)

    def append(
        self, conversation_id: str, owner: str | None, expected_version: int, turns: tuple[Turn, ...]
    ) -> FutureResult[Conversation, LLMError]:
        """Store whole turns, all or none."""

        def append() -> FutureResult[Conversation, LLMError]:
            sealed = self._sealed_turns(turns, owner, conversation_id)
            return self.store.append(conversation_id, owner, expected_version, sealed)

        return _sealing("append", append)

    def summarise(self, conversation_id: str, owner: str | None, summary: Summary) -> FutureResult[None, LLMError]:
        """Store a summary, unless a stored one reaches further."""

        def summarise() -> FutureResult[None, LLMError]:
            return self.store.summarise(conversation_id, owner, self._sealed_summary(summary, owner, conversation_id))

        return _sealing("summarise", summarise)

    def delete(self, conversation_id: str, owner: str | None) -> FutureResult[bool, LLMError]:
        """Delete a conversation; return whether there was one."""
        return self.store.delete(conversation_id, owner)

    def intend(self, run_id: str, owner: str | None, key: str, intent: bytes) -> FutureResult[JournalEntry, LLMError]:
        """Record a step that a run is about to do; a stored one that cannot be decrypted is a ``StorageFailed``."""

        def intend() -> FutureResult[JournalEntry, LLMError]:
            sealed = self.envelopes.seal(intent, context_of("intent", owner, run_id, key))
            stored = self.store.intend(run_id, owner, key, sealed)
            return stored.bind_result(lambda entry: _readable(self._entry(run_id, owner, entry)))

        return _sealing("intend", intend)

    def conclude(self, run_id: str, owner: str | None, key: str, result: bytes) -> FutureResult[None, LLMError]:
        """Record the result of a step; the first result stays."""

        def conclude() -> FutureResult[None, LLMError]:
            sealed = self.envelopes.seal(result, context_of("result", owner, run_id, key))
            return self.store.conclude(run_id, owner, key, sealed)

        return _sealing("conclude", conclude)

    def journal(self, run_id: str, owner: str | None) -> FutureResult[tuple[JournalEntry, ...], LLMError]:
        """Return the entries of a run; a result that cannot be decrypted is missing, so that its outcome is unknown."""
        entries = self.store.journal(run_id, owner)
        return entries.map(lambda stored: tuple(self._entry(run_id, owner, each) for each in stored))

    def erase_conversations(self, chosen: Chosen) -> FutureResult[Counts, LLMError]:
        """Erase a batch of conversations."""
        if isinstance(self.store, ErasableConversations):
            return self.store.erase_conversations(chosen)
        return FutureResult.from_failure(_NOT_ERASABLE)

    def erase_journals(self, chosen: Chosen) -> FutureResult[Counts, LLMError]:
        """Erase a batch of journals."""
        if isinstance(self.store, ErasableConversations):
            return self.store.erase_journals(chosen)
        return FutureResult.from_failure(_NOT_ERASABLE)

    def aclose(self) -> Awaitable[None]:
        """Close the other store."""
        return self.store.aclose()

    def _sealed(self, stored: StoredMessage, owner: str | None, conversation_id: str, turn_id: str) -> StoredMessage:
        plain = dump_value(stored.message)
        stays: Stays | None = "machine" if _STAYS.decode() in plain else None
        context = context_of("message", owner, conversation_id, turn_id, stored.id)
        sealed = Reasoning("", opaque=self.envelopes.seal_text(plain, context), stays=stays)  # no index reads its text
        return evolve(stored, message=Message(stored.message.role, sealed))

    def _sealed_turns(self, turns: tuple[Turn, ...], owner: str | None, conversation_id: str) -> tuple[Turn, ...]:
        return tuple(
            evolve(turn, messages=tuple(self._sealed(each, owner, conversation_id, turn.id) for each in turn.messages))
            for turn in turns
        )

    def _sealed_history(self, history: History) -> History:
        owner, name = history.conversation.owner, history.conversation.id
        summary = history.summary and self._sealed_summary(history.summary, owner, name)
        return evolve(history, turns=self._sealed_turns(history.turns, owner, name), summary=summary)

    def _sealed_summary(self, summary: Summary, owner: str | None, conversation_id: str) -> Summary:
        context = context_of("summary", owner, conversation_id, summary.upto)
        return evolve(summary, text=_SEALED_TEXT + self.envelopes.seal_text(summary.text, context))

    def _history(self, stored: History, owner: str | None, conversation_id: str) -> History:
        summary = stored.summary and self._summary(stored.summary, owner, conversation_id)
        turns, pinned = (
            tuple(self._turn(owner, conversation_id, each) for each in part) for part in (stored.turns, stored.pinned)
        )
        return evolve(stored, turns=turns, pinned=pinned, summary=summary)

    def _summary(self, stored: Summary, owner: str | None, conversation_id: str) -> Summary | None:
        if not stored.text.startswith(_SEALED_TEXT):
            return stored
        context = context_of("summary", owner, conversation_id, stored.upto)
        plain = self.envelopes.open_text(stored.text.removeprefix(_SEALED_TEXT), context)
        return None if plain is None else evolve(stored, text=plain)  # an unreadable one is made anew

    def _turn(self, owner: str | None, conversation_id: str, stored: Turn) -> Turn:
        contexts = (context_of("message", owner, conversation_id, stored.id, each.id) for each in stored.messages)
        opened = [self._opened(each, context) for each, context in zip(stored.messages, contexts, strict=True)]
        messages = tuple(each or _unreadable(sealed) for each, sealed in zip(opened, stored.messages, strict=True))
        if None in opened:
            return evolve(stored, state=TurnState.FAILED, error=UNREADABLE, messages=messages)
        return evolve(stored, messages=messages)

    def _opened(self, stored: StoredMessage, context: bytes) -> StoredMessage | None:
        [part, *others] = stored.message.parts
        if others or not isinstance(part, Reasoning) or not part.opaque or not part.opaque.startswith(_SEALED):
            return stored
        plain = self.envelopes.open_text(part.opaque, context)
        message = None if plain is None else load_value(plain, Message)
        return None if message is None else evolve(stored, message=message)

    def _entry(self, run_id: str, owner: str | None, stored: JournalEntry) -> JournalEntry:
        intent = self.envelopes.open(stored.intent, context_of("intent", owner, run_id, stored.key))
        if intent is None:
            return evolve(stored, intent=b"", result=None, unreadable=_lost(stored.intent))
        if stored.result is None:
            return evolve(stored, intent=intent)
        result = self.envelopes.open(stored.result, context_of("result", owner, run_id, stored.key))
        return evolve(stored, intent=intent, result=result, unreadable=_lost(stored.result) if result is None else None)


def _readable(entry: JournalEntry) -> Result[JournalEntry, LLMError]:
    if entry.unreadable is None:
        return Success(entry)
    return Failure(StorageFailed(operation="journal", message=f"the step {entry.key!r}: {entry.unreadable}"))


_SEALED: Final = b64encode(_MARK[:-1]).decode()  # so much is a multiple of three bytes long
_SEALED_TEXT: Final = "llm_effects.encrypted:"


def _unreadable(sealed: StoredMessage) -> StoredMessage:
    return evolve(sealed, message=Message("user", UNREADABLE_TEXT))


@final
@frozen
class EncryptedCache:
    """A cache whose other store sees keys, sizes and times only."""

    cache: Cache
    envelopes: Envelopes

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - what the other cache may have: of its own types
        if name == "get_within":
            return partial(self._get_within, getattr(self.cache, name))
        if name in {"leases", "waits"}:
            return getattr(self.cache, name)
        msg = f"{type(self).__name__} has no attribute {name!r}"
        raise AttributeError(msg)

    async def _get_within(self, within: _GetWithin, key: str, seconds: float) -> Result[bytes | None, LLMError]:
        return (await within(key, seconds)).map(partial(self._opened, key))

    def get(self, key: str) -> FutureResult[bytes | None, LLMError]:
        """Return the entry; one that cannot be decrypted is a miss."""
        return self.cache.get(key).map(partial(self._opened, key))

    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> FutureResult[None, LLMError]:
        """Store an entry for ``ttl_seconds``."""
        context = context_of("cache", None, key)
        return _sealing("put", lambda: self.cache.put(key, self.envelopes.seal(entry, context), ttl_seconds))

    def delete(self, key: str) -> FutureResult[bool, LLMError]:
        """Delete an entry; return whether there was one."""
        return self.cache.delete(key)

    def delete_all(self, prefix: str) -> FutureResult[int, LLMError]:
        """Delete the entries whose keys begin with a prefix."""
        if isinstance(self.cache, ErasableCache):
            return self.cache.delete_all(prefix)
        return FutureResult.from_failure(_NOT_ERASABLE)

    def clear(self) -> FutureResult[int | None, LLMError]:
        """Delete all entries."""
        return self.cache.clear()

    def stats(self) -> FutureResult[CacheStats, LLMError]:
        """Return what the other cache holds."""
        return self.cache.stats()

    def aclose(self) -> Awaitable[None]:
        """Close the other cache."""
        return self.cache.aclose()

    def _opened(self, key: str, stored: bytes | None) -> bytes | None:
        return None if stored is None else self.envelopes.open(stored, context_of("cache", None, key))
