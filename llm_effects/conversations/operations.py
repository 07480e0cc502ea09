"""Operations on stored conversations: create, load, list, delete, append, fork, export and import.

``converse`` in ``llm_effects.conversations.converse`` answers a turn. Every operation acts for one owner: a
conversation of another owner does not exist for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Final, TypeVar, cast, final

import anyio
import msgspec
from attrs import evolve, field, frozen
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.effects.effect import Effect, effect, from_env, from_result, from_service, run, then
from llm_effects.effects.env import LLMEnv, NewId
from llm_effects.effects.lifecycle import SearchableConversations
from llm_effects.values.conversations import (
    UNREADABLE,
    Conversation,
    History,
    SearchHit,
    StoredMessage,
    Summary,
    Turn,
    TurnState,
)
from llm_effects.values.errors import (
    ConfigurationError,
    ConversationConflict,
    InvalidRequest,
    LLMError,
    checked,
    retry_limit,
)
from llm_effects.values.messages import Message, Stays, staying
from llm_effects.values.responses import CANCELLED
from llm_effects.values.serialization import dump_value, parse_value
from llm_effects.values.tokens import message_tokens
from llm_effects.values.validation import invalid, is_a, to_tuple

MAX_WRITES: Final = 8
"""How often a write is tried while other writers are faster."""

PAUSE_S: Final = 0.01
"""Longest pause before the second try, in seconds; it doubles with each further try."""

STORE_TIMEOUT_S: Final = 5.0
"""Longest time for a write that cancellation does not interrupt, in seconds."""

_Value = TypeVar("_Value")


def start_conversation(
    conversation_id: str | None = None,
    *,
    system: str | None = None,
    metadata: Mapping[str, str] | None = None,
    owner: str | None = None,
    stays: Stays | None = None,
) -> Effect[Conversation]:
    """Create a conversation, with a new id if none is given; an id that exists is a ``ConversationConflict``.

    ``system`` goes before every prompt of it; ``metadata`` never reaches a model. With ``stays="machine"`` all of it
    stays on this machine: only models that run on it are asked.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> env = scripted_env()
    >>> anyio.run(run, start_conversation("support-17", system="Be brief."), env).unwrap().system
    'Be brief.'
    >>> anyio.run(run, start_conversation("support-17"), env).failure().tag
    'ConversationConflict'
    """

    def build(env: LLMEnv) -> Result[Conversation, LLMError]:
        return checked(
            Conversation,
            id=env.new_id() if conversation_id is None else conversation_id,
            created_at=(now := env.now()),
            updated_at=now,
            owner=owner,
            system=system,
            metadata=metadata or {},
            stays=stays,
        )

    return then(then(from_env(build), from_result), _store_new)


def _store_new(conversation: Conversation) -> Effect[Conversation]:
    return from_service(lambda env: env.conversations.start(conversation))


def load_conversation(conversation_id: str, *, owner: str | None = None, newest: int | None = None) -> Effect[History]:
    """Read a conversation: its ``newest`` turns, or all, the oldest first.

    >>> import anyio
    >>> from llm_effects import run, scripted_env, then
    >>> loaded = then(start_conversation("c"), lambda _: load_conversation("c"))
    >>> anyio.run(run, loaded, scripted_env()).unwrap().turns
    ()
    >>> anyio.run(run, load_conversation("c"), scripted_env()).failure().tag
    'InvalidRequest'
    """

    def existing(history: History | None) -> Result[History, LLMError]:
        remedy = f"conversation_id: there is no conversation {conversation_id!r}: create it with start_conversation"
        return Failure(InvalidRequest(message=remedy)) if history is None else Success(history)

    return from_service(lambda env: env.conversations.load(conversation_id, owner, newest)).bind_result(existing)


def list_conversations(
    *,
    owner: str | None = None,
    limit: int = 100,
    after: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Effect[tuple[Conversation, ...]]:
    """List an owner's conversations by id: at most ``limit``, beginning ``after`` an id, with all of ``metadata``.

    >>> import anyio
    >>> from llm_effects import run, scripted_env, then
    >>> started = then(start_conversation("c", metadata={"team": "a"}), lambda _: start_conversation("d"))
    >>> listed = then(started, lambda _: list_conversations(metadata={"team": "a"}))
    >>> [each.id for each in anyio.run(run, listed, scripted_env()).unwrap()]
    ['c']
    """
    if not metadata:
        return from_service(lambda env: env.conversations.page(owner, limit, after))
    return _from_index(lambda store: store.page_by_metadata(owner, metadata, limit, after))


def search_conversations(
    text: str, *, owner: str | None = None, limit: int = 20, after: str | None = None
) -> Effect[tuple[SearchHit, ...]]:
    """Find an owner's messages that have every word of a text, the newest first; ``after`` is the cursor of a hit.

    >>> import anyio
    >>> from llm_effects import Message, run, scripted_env, then
    >>> stored = then(start_conversation("c"), lambda _: append_messages("c", (Message("user", "Why is p99 up?"),)))
    >>> found = then(stored, lambda _: search_conversations("up P99"))
    >>> [each.message.message.text for each in anyio.run(run, found, scripted_env()).unwrap()]
    ['Why is p99 up?']
    """
    return _from_index(lambda store: store.search(owner, text, limit, after))


def _from_index(
    find: Callable[[SearchableConversations], FutureResult[_Value, LLMError]],
) -> Effect[_Value]:
    def found(env: LLMEnv) -> FutureResult[_Value, LLMError]:
        store = env.conversations
        if isinstance(store, SearchableConversations):
            return find(store)
        message = "conversations: this store has no way to find by words or metadata (SearchableConversations)"
        return FutureResult.from_failure(ConfigurationError(message=message))

    return from_service(found)


def delete_conversation(conversation_id: str, *, owner: str | None = None) -> Effect[bool]:
    """Delete a conversation and everything in it; the value is whether there was one."""
    return from_service(lambda env: env.conversations.delete(conversation_id, owner))


def append_messages(
    conversation_id: str,
    messages: Iterable[Message],
    *,
    owner: str | None = None,
    turn_id: str | None = None,
    pinned: bool = False,
) -> Effect[Conversation]:
    """Append existing messages as one turn, all or none; a ``turn_id`` that is already stored appends nothing.

    >>> import anyio
    >>> from llm_effects import Message, run, scripted_env, then
    >>> greeting = (Message("user", "I am Ada."), Message("assistant", "Hello Ada."))
    >>> appended = then(start_conversation("c"), lambda _: append_messages("c", greeting))
    >>> anyio.run(run, appended, scripted_env()).unwrap().turns
    1
    """
    turn = from_env(lambda env: checked(_finished_turn, messages, turn_id or env.new_id(), pinned, env))
    return then(then(turn, from_result), lambda turn: retry_conflicts(_append_turn(conversation_id, owner, turn)))


def _finished_turn(messages: Iterable[Message], turn_id: str, pinned: bool, env: LLMEnv) -> Turn:
    now = env.now()
    values = to_tuple("messages", messages)
    if not values or not all(is_a(each, Message) for each in values):
        invalid("messages", "must be one or more values of Message")
    stored = tuple(stored_message(each, now, pinned, env.new_id) for each in values)
    return Turn(id=turn_id, begun_at=now, lease_until=now, state=TurnState.FINISHED, messages=stored)


def staying_turn(turn: Turn, stays: Stays | None) -> Turn:
    """Return a turn of which each message has the label, if there is one."""
    if stays is None:
        return turn
    return evolve(turn, messages=tuple(evolve(each, message=staying(each.message, stays)) for each in turn.messages))


def stored_message(message: Message, at: datetime, pinned: bool, new_id: NewId) -> StoredMessage:
    """Return a message as it is stored, with a new id and its estimated tokens."""
    return StoredMessage(id=new_id(), message=message, at=at, pinned=pinned, tokens=message_tokens(message))


def _append_turn(conversation_id: str, owner: str | None, turn: Turn) -> Effect[Conversation]:
    def append(history: History) -> Effect[Conversation]:
        version, labelled = history.conversation.version, staying_turn(turn, history.conversation.stays)
        return from_service(lambda env: env.conversations.append(conversation_id, owner, version, (labelled,)))

    return then(load_conversation(conversation_id, owner=owner, newest=1), append)


def retry_conflicts(write: Effect[_Value]) -> Effect[_Value]:
    """Repeat a read and write while other writers are faster, at most ``MAX_WRITES`` times.

    A transient failure of the store is retried once: whatever it wrote is the same turn, not a second one.
    """

    async def write_until_stored(env: LLMEnv) -> Result[_Value, LLMError]:
        result = await run(write, env)
        for attempt in range(1, MAX_WRITES):
            if is_successful(result) or not _is_worth_retrying(result.failure(), attempt):
                break
            await anyio.sleep(env.draw() * PAUSE_S * 2**attempt)
            result = await run(write, env)
        return result

    return effect(write_until_stored)


def _is_worth_retrying(error: LLMError, attempt: int) -> bool:
    """Return whether a write may succeed soon; a turn under way elsewhere says when it expires (``retry_after``)."""
    if isinstance(error, ConversationConflict):
        return error.retry_after is None
    return attempt <= retry_limit(error)


def fork_conversation(
    conversation_id: str, message_id: str | None = None, *, new_id: str | None = None, owner: str | None = None
) -> Effect[Conversation]:
    """Copy a conversation up to and with a message, or all turns that have ended, into a new conversation.

    The original does not change. Turns and messages keep their ids; a turn under way is not copied. Whenever this is
    cancelled, the copy is stored whole or not at all.

    >>> import anyio
    >>> from llm_effects import Message, run, scripted_env, then
    >>> greeting = (Message("user", "I am Ada."), Message("assistant", "Hello Ada."))
    >>> original = then(start_conversation("c"), lambda _: append_messages("c", greeting))
    >>> forked = then(original, lambda _: fork_conversation("c", new_id="d"))
    >>> anyio.run(run, forked, scripted_env()).unwrap().turns
    1
    """
    past = load_conversation(conversation_id, owner=owner).bind_result(partial(cut_at, message_id=message_id))
    copy = then(past, lambda past: from_env(lambda env: _renamed(past, new_id or env.new_id(), env.now())))
    return then(copy, _store_copy)


def export_conversation(conversation_id: str, *, owner: str | None = None) -> Effect[str]:
    """Write a whole conversation as JSON: every turn, the origin of its answers, and sealed thinking byte for byte.

    A turn that this version cannot read is left out.

    >>> import anyio
    >>> from llm_effects import run, scripted_env, start_conversation, then
    >>> exported = then(start_conversation("c"), lambda _: export_conversation("c"))
    >>> anyio.run(run, exported, scripted_env()).unwrap()[:53]
    '{"format":"llm_effects.conversation","version":1,"con'
    """
    return load_conversation(conversation_id, owner=owner).map(_to_json)


def import_conversation(
    document: str | bytes, *, owner: str | None = None, new_id: str | None = None, fresh_ids: bool = False
) -> Effect[Conversation]:
    """Store what ``export_conversation`` wrote, for ``owner``, under its own id or a new one.

    With ``fresh_ids`` its turns and messages get new ids too. A document that is broken, or of a newer version, is an
    ``InvalidRequest`` that names each place, and nothing of it is stored. A turn that was under way has failed.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> anyio.run(run, import_conversation("{}"), scripted_env()).failure().message
    "document: must have 'format': 'llm_effects.conversation', as export_conversation writes it"
    """

    def adopt(archive: Archive) -> Effect[Result[History, LLMError]]:
        return from_env(lambda env: _adopted(archive, owner, new_id, fresh_ids, env))

    archive = then(from_env(lambda _: _archive_of(document)), from_result)
    return then(then(then(archive, adopt), from_result), _store_copy)


# Copies of conversations: cut at a message and stored under another id, completely or not at all.


def cut_at(history: History, message_id: str | None) -> Result[History, LLMError]:
    """Return a history up to and with a message, or all of it; turns under way or unreadable are left out."""
    ended = tuple(turn for turn in _readable(history).turns if turn.state is not TurnState.PENDING)
    last = _newest_message(ended) if message_id is None else message_id
    index = next((at for at, turn in enumerate(ended) if last in {each.id for each in turn.messages}), None)
    if index is None and message_id is not None:
        problem = f"message_id: no turn that has ended contains the message {message_id!r}"
        return Failure(InvalidRequest(message=problem))
    turns = () if index is None else (*ended[:index], _cut_turn(ended[index], last))
    origin = (history.conversation.id, last)
    conversation = evolve(history.conversation, forked_from=origin, last_model=_last_model(turns))
    return Success(evolve(history, conversation=conversation, turns=turns, summary=_summary(history.summary, turns)))


def _readable(history: History) -> History:
    """Return a history without the turns that this version cannot read, numbered anew if there are any."""
    kept = tuple(turn for turn in history.turns if turn.error != UNREADABLE)
    if len(kept) == len(history.turns):
        return history
    summary = _summary(history.summary, kept)
    numbered = tuple(evolve(turn, number=at) for at, turn in enumerate(kept, 1))
    return evolve(history, turns=numbered, summary=summary)


def _newest_message(turns: tuple[Turn, ...]) -> str:
    return next((turn.messages[-1].id for turn in reversed(turns) if turn.messages), "")


def _cut_turn(turn: Turn, last: str) -> Turn:
    """Return a turn up to a message; a turn cut in its middle counts as finished, so that the copy continues there."""
    ids = [each.id for each in turn.messages]
    kept = turn.messages[: ids.index(last) + 1]
    return turn if len(kept) == len(ids) else evolve(turn, messages=kept, state=TurnState.FINISHED, error=None)


def _summary(summary: Summary | None, turns: tuple[Turn, ...]) -> Summary | None:
    """Return a summary with the new turn numbers, if everything it covers was copied."""
    if summary is None or not turns or turns[-1].number <= summary.upto:
        return None
    return evolve(summary, upto=sum(turn.number <= summary.upto for turn in turns))


def _last_model(turns: tuple[Turn, ...]) -> str | None:
    sources = (each.provenance for turn in reversed(turns) for each in reversed(turn.messages))
    return next((source.model for source in sources if source is not None), None)


def _renamed(history: History, conversation_id: str, now: datetime) -> History:
    conversation = evolve(history.conversation, id=conversation_id, created_at=now, updated_at=now)
    return evolve(history, conversation=conversation)


def _store_copy(history: History) -> Effect[Conversation]:
    return from_service(lambda env: env.conversations.start_copy(history))


# Conversations as JSON: out of one store and into another, or the same, with nothing lost.


FORMAT: Final = "llm_effects.conversation"
"""Marks the documents that ``export_conversation`` writes."""

VERSION: Final = 1
"""Version of the documents written here; no other version is read."""


@final
@frozen(kw_only=True)
class Archive:
    """A whole conversation, as ``export_conversation`` writes it."""

    format: str = FORMAT
    version: int = VERSION
    conversation: Conversation
    turns: tuple[Turn, ...] = ()
    summary: Summary | None = field(default=None)


def _to_json(stored: History) -> str:
    history = _readable(stored)
    return dump_value(Archive(conversation=history.conversation, turns=history.turns, summary=history.summary))


def _archive_of(document: str | bytes) -> Result[Archive, LLMError]:
    return _parsed(document).alt(lambda problems: InvalidRequest(message="\n".join(problems)))


def _parsed(document: str | bytes) -> Result[Archive, tuple[str, ...]]:
    try:
        value = msgspec.json.decode(document)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as problem:
        return Failure((f"document: is not JSON: {problem}",))
    table = cast("dict[str, object]", value) if isinstance(value, dict) else dict[str, object]()
    if table.get("format") != FORMAT:
        return Failure((f"document: must have 'format': {FORMAT!r}, as export_conversation writes it",))
    if table.get("version") != VERSION:
        return Failure((f"version: must be {VERSION}: another release wrote this document",))
    archive = parse_value(table, Archive)
    return _validated(archive.unwrap()) if is_successful(archive) else archive


def _validated(archive: Archive) -> Result[Archive, tuple[str, ...]]:
    """Check what no type expresses: unique ids, turns in order, and dates with a time zone."""
    problems = tuple(_problems(archive))
    return Failure(problems) if problems else Success(evolve(archive, turns=tuple(map(_ended, archive.turns))))


def _problems(archive: Archive) -> Iterator[str]:
    first = {turn.id: at for at, turn in reversed(tuple(enumerate(archive.turns)))}
    repeated = (at for at, turn in enumerate(archive.turns) if first[turn.id] != at)
    yield from (f"turns[{at}].id: {archive.turns[at].id!r} is used twice" for at in repeated)
    yield from (
        f"turns[{at}].number: must be {at + 1}, the turn's place"
        for at, turn in enumerate(archive.turns)
        if turn.number != at + 1
    )
    yield from (f"{path}: must have a time zone" for path, date in _dates(archive) if date.tzinfo is None)
    if archive.summary is not None and not 0 <= archive.summary.upto < max(1, len(archive.turns)):
        yield "summary.upto: must be the number of a turn that is not the last"


def _dates(archive: Archive) -> Iterator[tuple[str, datetime]]:
    yield "conversation.created_at", archive.conversation.created_at
    yield "conversation.updated_at", archive.conversation.updated_at
    for at, turn in enumerate(archive.turns):
        yield f"turns[{at}].begun_at", turn.begun_at
        yield f"turns[{at}].lease_until", turn.lease_until
        for place, message in enumerate(turn.messages):
            yield f"turns[{at}].messages[{place}].at", message.at


def _ended(turn: Turn) -> Turn:
    return evolve(turn, state=TurnState.FAILED, error=CANCELLED) if turn.state is TurnState.PENDING else turn


def _adopted(
    archive: Archive, owner: str | None, new_id: str | None, fresh_ids: bool, env: LLMEnv
) -> Result[History, LLMError]:
    turns = tuple(_with_new_ids(turn, env.new_id) for turn in archive.turns) if fresh_ids else archive.turns
    name = new_id or (env.new_id() if fresh_ids else archive.conversation.id)
    adopted = checked(evolve, archive.conversation, id=name, owner=owner, last_model=_last_model(turns))
    return adopted.map(lambda conversation: History(conversation=conversation, turns=turns, summary=archive.summary))


def _with_new_ids(turn: Turn, new_id: NewId) -> Turn:
    return evolve(turn, id=new_id(), messages=tuple(evolve(each, id=new_id()) for each in turn.messages))
