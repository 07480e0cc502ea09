"""Stored conversations: begin one, read it, add to it, list them, leave one at a message, drop one.

``converse`` in ``llm_effects.conversations.dialogues`` takes a turn. Every operation names an owner and sees that
owner's only: a conversation of another owner is one that is not there.
"""

from collections.abc import Iterable, Mapping

from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.conversations.copies import cut_at, keep_copy, renamed
from llm_effects.conversations.turn_taking import load, until_written
from llm_effects.effects import Effect, effect, result_of
from llm_effects.env import LLMEnv
from llm_effects.errors import LLMError
from llm_effects.exceptions import checked
from llm_effects.messages import Message
from llm_effects.tokens import message_tokens
from llm_effects.turns import Conversation, History, StoredMessage, Turn, TurnState
from llm_effects.values import invalid, is_a, to_tuple


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
    >>> from llm_effects import scripted_env, settle
    >>> env = scripted_env()
    >>> anyio.run(settle, start_conversation("support-17", system="Be brief."), env).unwrap().system
    'Be brief.'
    >>> anyio.run(settle, start_conversation("support-17"), env).failure().tag
    'ConversationConflict'
    """

    async def run(env: LLMEnv) -> Result[Conversation, LLMError]:
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

    return effect(run)


def load_conversation(conversation_id: str, *, owner: str | None = None, newest: int | None = None) -> Effect[History]:
    """Read a conversation: its ``newest`` turns, or all, the oldest first."""

    async def run(env: LLMEnv) -> Result[History, LLMError]:
        return await load(env, conversation_id, owner, newest)

    return effect(run)


def list_conversations(
    *, owner: str | None = None, limit: int = 100, after: str | None = None
) -> Effect[tuple[Conversation, ...]]:
    """Give an owner's conversations by their ids: at most ``limit``, those that come ``after`` an id."""

    async def run(env: LLMEnv) -> Result[tuple[Conversation, ...], LLMError]:
        return await result_of(env.conversations.page(owner, limit, after))

    return effect(run)


def delete_conversation(conversation_id: str, *, owner: str | None = None) -> Effect[bool]:
    """Drop a conversation with all that it holds; says whether there was one."""

    async def run(env: LLMEnv) -> Result[bool, LLMError]:
        return await result_of(env.conversations.delete(conversation_id, owner))

    return effect(run)


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
    >>> from llm_effects import Message, scripted_env, settle, then
    >>> said = (Message("user", "I am Ada."), Message("assistant", "Hello Ada."))
    >>> both = then(start_conversation("c"), lambda _: append_messages("c", said))
    >>> anyio.run(settle, both, scripted_env()).unwrap().turns
    1
    """

    async def run(env: LLMEnv) -> Result[Conversation, LLMError]:
        turn = checked(_turn, messages, turn_id or env.new_id(), pinned, env)
        if not is_successful(turn):
            return Failure(turn.failure())
        return await until_written(lambda: _appended(conversation_id, owner, turn.unwrap(), env), env)

    return effect(run)


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
    >>> from llm_effects import Message, scripted_env, settle, then
    >>> said = (Message("user", "I am Ada."), Message("assistant", "Hello Ada."))
    >>> first = then(start_conversation("c"), lambda _: append_messages("c", said))
    >>> forked = then(first, lambda _: fork_conversation("c", new_id="d"))
    >>> anyio.run(settle, forked, scripted_env()).unwrap().turns
    1
    """

    async def run(env: LLMEnv) -> Result[Conversation, LLMError]:
        found = await load(env, conversation_id, owner, None)
        if not is_successful(found):
            return Failure(found.failure())
        cut = cut_at(found.unwrap(), message_id)
        if not is_successful(cut):
            return Failure(cut.failure())
        return await keep_copy(renamed(cut.unwrap(), new_id or env.new_id(), env.now()), env)

    return effect(run)
