"""Stored conversations: begin one, read it, add to it, list them, leave one at a message, drop one.

``converse`` in ``llm_effects.conversations.dialogues`` takes a turn. Every operation names an owner and sees that
owner's only: a conversation of another owner is one that is not there.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Final, cast, final

import anyio
import msgspec
from attrs import evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.conversations.turn_lifecycle import STORING_S, load, until_written
from llm_effects.effects.effect import Effect, effect, result_of, run
from llm_effects.effects.env import LLMEnv, NewId
from llm_effects.values.conversations import Conversation, History, StoredMessage, Summary, Turn, TurnState
from llm_effects.values.errors import InvalidRequest, LLMError, checked
from llm_effects.values.messages import Message
from llm_effects.values.responses import CANCELLED
from llm_effects.values.serialization import dump_value, parse_value
from llm_effects.values.tokens import message_tokens
from llm_effects.values.validation import invalid, is_a, to_tuple

# Copies of conversations: cut at a message, stored under another id, all of it or nothing.


def cut_at(history: History, message_id: str | None) -> Result[History, LLMError]:
    """Keep what came up to a message and the message itself, or all; turns under way are left out."""
    ended = tuple(turn for turn in history.turns if turn.state is not TurnState.PENDING)
    last = _newest(ended) if message_id is None else message_id
    place = next((at for at, turn in enumerate(ended) if last in {each.id for each in turn.messages}), None)
    if place is None and message_id is not None:
        remedy = f"message_id: {message_id!r} is no message of the conversation's turns that have ended"
        return Failure(InvalidRequest(message=remedy))
    kept = () if place is None else (*ended[:place], _cut(ended[place], last))
    source = (history.conversation.id, last)
    conversation = evolve(history.conversation, forked_from=source, last_model=last_model_of(kept))
    return Success(evolve(history, conversation=conversation, turns=kept, summary=_summary(history.summary, kept)))


def _newest(turns: tuple[Turn, ...]) -> str:
    return next((turn.messages[-1].id for turn in reversed(turns) if turn.messages), "")


def _cut(turn: Turn, last: str) -> Turn:
    """A turn that is cut in its middle is whole as it is: who left it there goes on from there."""
    ids = [each.id for each in turn.messages]
    kept = turn.messages[: ids.index(last) + 1]
    return turn if len(kept) == len(ids) else evolve(turn, messages=kept, state=TurnState.FINISHED, error=None)


def _summary(summary: Summary | None, kept: tuple[Turn, ...]) -> Summary | None:
    """A summary counts on if nothing of what it covers was cut off; turns get new numbers."""
    if summary is None or not kept or kept[-1].number <= summary.upto:
        return None
    return evolve(summary, upto=sum(turn.number <= summary.upto for turn in kept))


def last_model_of(turns: tuple[Turn, ...]) -> str | None:
    """Who answered last."""
    sources = (each.provenance for turn in reversed(turns) for each in reversed(turn.messages))
    return next((source.model for source in sources if source is not None), None)


def renamed(history: History, conversation_id: str, now: datetime) -> History:
    """Give a conversation another id, and the dates of one that is new."""
    conversation = evolve(history.conversation, id=conversation_id, created_at=now, updated_at=now)
    return evolve(history, conversation=conversation)


async def keep_copy(history: History, env: LLMEnv) -> Result[Conversation, LLMError]:
    """Store a whole conversation that is new; where that fails half-way, or is cancelled, nothing stays."""
    store, wanted = env.conversations, history.conversation
    started = await result_of(store.start(evolve(wanted, version=0, turns=0)))
    if not is_successful(started) or not history.turns:
        return started
    whole = False
    try:
        kept = await result_of(store.append(wanted.id, wanted.owner, started.unwrap().version, history.turns))
        whole = is_successful(kept)
    finally:
        if not whole:
            with anyio.move_on_after(STORING_S, shield=True):
                await result_of(store.delete(wanted.id, wanted.owner))
    if whole and history.summary is not None:  # a copy without it is a copy too: another one is made when it is needed
        await result_of(store.summarise(wanted.id, wanted.owner, history.summary))
    return kept


def start_conversation(
    conversation_id: str | None = None,
    *,
    system: str | None = None,
    metadata: Mapping[str, str] | None = None,
    owner: str | None = None,
) -> Effect[Conversation]:
    """Begin a conversation, with a fresh id if none is given; one that is there already is a ``ConversationConflict``.

    ``system`` goes before every prompt of it; ``metadata`` never reaches a model.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> env = scripted_env()
    >>> anyio.run(run, start_conversation("support-17", system="Be brief."), env).unwrap().system
    'Be brief.'
    >>> anyio.run(run, start_conversation("support-17"), env).failure().tag
    'ConversationConflict'
    """

    async def perform(env: LLMEnv) -> Result[Conversation, LLMError]:
        made = checked(
            Conversation,
            id=env.new_id() if conversation_id is None else conversation_id,
            created_at=(now := env.now()),
            updated_at=now,
            owner=owner,
            system=system,
            metadata=metadata or {},
        )
        return await result_of(env.conversations.start(made.unwrap())) if is_successful(made) else made

    return effect(perform)


def load_conversation(conversation_id: str, *, owner: str | None = None, newest: int | None = None) -> Effect[History]:
    """Read a conversation: its ``newest`` turns, or all, the oldest first."""

    async def perform(env: LLMEnv) -> Result[History, LLMError]:
        return await load(env, conversation_id, owner, newest)

    return effect(perform)


def list_conversations(
    *, owner: str | None = None, limit: int = 100, after: str | None = None
) -> Effect[tuple[Conversation, ...]]:
    """Give an owner's conversations by their ids: at most ``limit``, those that come ``after`` an id."""

    async def perform(env: LLMEnv) -> Result[tuple[Conversation, ...], LLMError]:
        return await result_of(env.conversations.page(owner, limit, after))

    return effect(perform)


def delete_conversation(conversation_id: str, *, owner: str | None = None) -> Effect[bool]:
    """Drop a conversation with all that it holds; says whether there was one."""

    async def perform(env: LLMEnv) -> Result[bool, LLMError]:
        return await result_of(env.conversations.delete(conversation_id, owner))

    return effect(perform)


def append_messages(
    conversation_id: str,
    messages: Iterable[Message],
    *,
    owner: str | None = None,
    turn_id: str | None = None,
    pinned: bool = False,
) -> Effect[Conversation]:
    """Add messages that are already there as one turn, all or none; the same ``turn_id`` again adds nothing.

    >>> import anyio
    >>> from llm_effects import Message, run, scripted_env, then
    >>> said = (Message("user", "I am Ada."), Message("assistant", "Hello Ada."))
    >>> both = then(start_conversation("c"), lambda _: append_messages("c", said))
    >>> anyio.run(run, both, scripted_env()).unwrap().turns
    1
    """

    async def perform(env: LLMEnv) -> Result[Conversation, LLMError]:
        turn = checked(_turn, messages, turn_id or env.new_id(), pinned, env)
        if not is_successful(turn):
            return Failure(turn.failure())
        return await until_written(lambda: _appended(conversation_id, owner, turn.unwrap(), env), env)

    return effect(perform)


def _turn(messages: Iterable[Message], turn_id: str, pinned: bool, env: LLMEnv) -> Turn:
    now = env.now()
    given = to_tuple("messages", messages)
    if not given or not all(is_a(each, Message) for each in given):
        invalid("messages", "must be one or more values of Message")
    stored = (
        StoredMessage(id=env.new_id(), message=each, at=now, pinned=pinned, tokens=message_tokens(each))
        for each in given
    )
    return Turn(id=turn_id, begun_at=now, lease_until=now, state=TurnState.FINISHED, messages=tuple(stored))


async def _appended(conversation_id: str, owner: str | None, turn: Turn, env: LLMEnv) -> Result[Conversation, LLMError]:
    found = await load(env, conversation_id, owner, 1)
    if not is_successful(found):
        return Failure(found.failure())
    version = found.unwrap().conversation.version
    return await result_of(env.conversations.append(conversation_id, owner, version, (turn,)))


def fork_conversation(
    conversation_id: str, message_id: str | None = None, *, new_id: str | None = None, owner: str | None = None
) -> Effect[Conversation]:
    """Begin a conversation that shares another's past: its turns up to and with a message, or all that have ended.

    The other one stays as it is. Turns and messages keep their ids; one that is under way is not taken along.

    >>> import anyio
    >>> from llm_effects import Message, run, scripted_env, then
    >>> said = (Message("user", "I am Ada."), Message("assistant", "Hello Ada."))
    >>> first = then(start_conversation("c"), lambda _: append_messages("c", said))
    >>> forked = then(first, lambda _: fork_conversation("c", new_id="d"))
    >>> anyio.run(run, forked, scripted_env()).unwrap().turns
    1
    """

    async def perform(env: LLMEnv) -> Result[Conversation, LLMError]:
        found = await load(env, conversation_id, owner, None)
        if not is_successful(found):
            return Failure(found.failure())
        cut = cut_at(found.unwrap(), message_id)
        if not is_successful(cut):
            return Failure(cut.failure())
        return await keep_copy(renamed(cut.unwrap(), new_id or env.new_id(), env.now()), env)

    return effect(perform)


# Conversations as JSON: out of one store and into another, or the same, with nothing lost.


FORMAT: Final = "llm_effects.conversation"
"""What a file of ours says that it is."""

VERSION: Final = 1
"""Of the files written here; of a newer one nothing is read."""


@final
@frozen(kw_only=True)
class Archive:
    """A whole conversation, as it is written."""

    format: str = FORMAT
    version: int = VERSION
    conversation: Conversation
    turns: tuple[Turn, ...] = ()
    summary: Summary | None = field(default=None)


def export_conversation(conversation_id: str, *, owner: str | None = None) -> Effect[str]:
    """Write a whole conversation as JSON: every turn with its answers' origin, and sealed thinking byte for byte.

    >>> import anyio
    >>> from llm_effects import run, scripted_env, start_conversation, then
    >>> exported = then(start_conversation("c"), lambda _: export_conversation("c"))
    >>> anyio.run(run, exported, scripted_env()).unwrap()[:53]
    '{"format":"llm_effects.conversation","version":1,"con'
    """

    async def perform(env: LLMEnv) -> Result[str, LLMError]:
        history = await run(load_conversation(conversation_id, owner=owner), env)
        return history.map(_written)

    return effect(perform)


def _written(history: History) -> str:
    return dump_value(Archive(conversation=history.conversation, turns=history.turns, summary=history.summary))


def import_conversation(
    document: str | bytes, *, owner: str | None = None, new_id: str | None = None, fresh_ids: bool = False
) -> Effect[Conversation]:
    """Store what ``export_conversation`` wrote, under its own id or a new one, for ``owner`` whoever had it before.

    With ``fresh_ids`` its turns and messages get new ids too. A document that is broken, or of a newer version, is an
    ``InvalidRequest`` that names each place; nothing of it is stored. A turn that was under way has failed.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> anyio.run(run, import_conversation("{}"), scripted_env()).failure().message
    "document: must say 'format': 'llm_effects.conversation', as export_conversation writes it"
    """

    async def perform(env: LLMEnv) -> Result[Conversation, LLMError]:
        read = _read(document)
        if not is_successful(read):
            return Failure(InvalidRequest(message="\n".join(read.failure())))
        archive = _with_ids(read.unwrap(), env.new_id) if fresh_ids else read.unwrap()
        name = new_id or (env.new_id() if fresh_ids else archive.conversation.id)
        conversation = checked(
            evolve, archive.conversation, id=name, owner=owner, last_model=last_model_of(archive.turns)
        )
        if not is_successful(conversation):
            return conversation
        history = History(conversation=conversation.unwrap(), turns=archive.turns, summary=archive.summary)
        return await keep_copy(history, env)

    return effect(perform)


def _read(document: str | bytes) -> Result[Archive, tuple[str, ...]]:
    try:
        plain = msgspec.json.decode(document)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as problem:
        return Failure((f"document: is no JSON: {problem}",))
    table = cast("dict[str, object]", plain) if isinstance(plain, dict) else dict[str, object]()
    if table.get("format") != FORMAT:
        return Failure((f"document: must say 'format': {FORMAT!r}, as export_conversation writes it",))
    if table.get("version") != VERSION:
        return Failure((f"version: must be {VERSION}: this file is of another release",))
    archive = parse_value(table, Archive)
    return _sound(archive.unwrap()) if is_successful(archive) else archive


def _sound(archive: Archive) -> Result[Archive, tuple[str, ...]]:
    """What no type tells: that ids are used once, that turns are in order, that every date has its zone."""
    problems = tuple(_problems(archive))
    return Failure(problems) if problems else Success(evolve(archive, turns=tuple(map(_ended, archive.turns))))


def _problems(archive: Archive) -> Iterator[str]:
    first = {turn.id: at for at, turn in reversed(tuple(enumerate(archive.turns)))}
    twice = (at for at, turn in enumerate(archive.turns) if first[turn.id] != at)
    yield from (f"turns[{at}].id: {archive.turns[at].id!r} is used twice" for at in twice)
    yield from (
        f"turns[{at}].number: must be {at + 1}, the turn's place"
        for at, turn in enumerate(archive.turns)
        if turn.number != at + 1
    )
    yield from (f"{place}: must have a time zone" for place, when in _dates(archive) if when.tzinfo is None)
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


def _with_ids(archive: Archive, new_id: NewId) -> Archive:
    turns = (
        evolve(turn, id=new_id(), messages=tuple(evolve(each, id=new_id()) for each in turn.messages))
        for turn in archive.turns
    )
    return evolve(archive, turns=tuple(turns))
