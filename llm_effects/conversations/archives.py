"""Conversations as JSON: out of one store and into another, or the same, with nothing lost."""

from collections.abc import Iterator
from datetime import datetime
from typing import Final, cast, final

import msgspec
from attrs import evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.codecs import dump_value, parsed
from llm_effects.conversations import load_conversation
from llm_effects.conversations.copies import keep_copy, last_model_of
from llm_effects.effects import Effect, effect, settle
from llm_effects.env import LLMEnv, NewId
from llm_effects.errors import InvalidRequest, LLMError
from llm_effects.exceptions import checked
from llm_effects.responses import CANCELLED
from llm_effects.turns import Conversation, History, Summary, Turn, TurnState

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
    >>> from llm_effects import scripted_env, settle, start_conversation, then
    >>> exported = then(start_conversation("c"), lambda _: export_conversation("c"))
    >>> anyio.run(settle, exported, scripted_env()).unwrap()[:53]
    '{"format":"llm_effects.conversation","version":1,"con'
    """

    async def run(env: LLMEnv) -> Result[str, LLMError]:
        history = await settle(load_conversation(conversation_id, owner=owner), env)
        return history.map(_written)

    return effect(run)


def _written(history: History) -> str:
    return dump_value(Archive(conversation=history.conversation, turns=history.turns, summary=history.summary))


def import_conversation(
    document: str | bytes, *, owner: str | None = None, new_id: str | None = None, fresh_ids: bool = False
) -> Effect[Conversation]:
    """Store what ``export_conversation`` wrote, under its own id or a new one, for ``owner`` whoever had it before.

    With ``fresh_ids`` its turns and messages get new ids too. A document that is broken, or of a newer version, is an
    ``InvalidRequest`` that names each place; nothing of it is stored. A turn that was under way has failed.

    >>> import anyio
    >>> from llm_effects import scripted_env, settle
    >>> anyio.run(settle, import_conversation("{}"), scripted_env()).failure().message
    "document: must say 'format': 'llm_effects.conversation', as export_conversation writes it"
    """

    async def run(env: LLMEnv) -> Result[Conversation, LLMError]:
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

    return effect(run)


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
    archive = parsed(table, Archive)
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
