"""What is done to conversations in a database, each as one transaction."""

from returns.pipeline import is_successful
from returns.result import Failure, Result, Success
from sqlalchemy import Connection, delete, select

from llm_effects.errors import ConversationConflict, LLMError
from llm_effects.stores import sql_rows as rows
from llm_effects.stores import sql_turn_rows as turn_rows
from llm_effects.stores.sql_tables import CONVERSATIONS
from llm_effects.stores.turn_rules import added, begun, ended, moved, new_turns, no_conversation, no_turn
from llm_effects.turns import Conversation, History, StoredMessage, Summary, Turn, TurnState

_MOST = 2**31
"""What a query may be told as a limit."""


def start(connection: Connection, conversation: Conversation) -> Result[Conversation, LLMError]:
    """Keep a new conversation."""
    if rows.insert_conversation(connection, conversation):
        return Success(conversation)
    return Failure(ConversationConflict(conversation_id=conversation.id))


def load(
    connection: Connection, conversation_id: str, owner: str | None, newest: int | None
) -> Result[History | None, LLMError]:
    """Read a conversation: its newest turns, or all."""
    found = rows.find_conversation(connection, conversation_id, owner)
    if found is None:
        return Success(None)
    key, conversation = found
    first = 1 if newest is None else max(0, conversation.turns - max(0, newest)) + 1
    return Success(
        History(
            conversation=conversation,
            turns=turn_rows.read_turns(connection, key, first, conversation.turns),
            complete=first == 1,
            pinned=turn_rows.read_pinned(connection, key, first) if first > 1 else (),
            summary=rows.read_summary(connection, key),
        )
    )


def page(
    connection: Connection, owner: str | None, limit: int, after: str | None
) -> Result[tuple[Conversation, ...], LLMError]:
    """Give conversations by their ids."""
    columns = CONVERSATIONS.c
    query = select(CONVERSATIONS).where(columns.owner == rows.owner_of(owner))
    query = query if after is None else query.where(columns.id > after)
    found = connection.execute(query.order_by(columns.id).limit(min(max(0, limit), _MOST)))
    return Success(tuple(rows.to_conversation(row) for row in found))


def begin_turn(
    connection: Connection, conversation_id: str, owner: str | None, expected: int, turn: Turn
) -> Result[Turn, LLMError]:
    """Begin a turn, or take it up again."""
    found = rows.find_conversation(connection, conversation_id, owner, lock=True)
    if found is None:
        return Failure(no_conversation(conversation_id))
    there = turn_rows.find_turn(connection, found[0], turn.id)
    return _written(connection, found, there, begun(there, found[1], expected, turn))


def finish_turn(
    connection: Connection,
    conversation_id: str,
    owner: str | None,
    turn_id: str,
    ending: tuple[TurnState, tuple[StoredMessage, ...], str | None],
) -> Result[Turn, LLMError]:
    """End a turn."""
    found = rows.find_conversation(connection, conversation_id, owner, lock=True)
    if found is None:
        return Failure(no_conversation(conversation_id))
    there = turn_rows.find_turn(connection, found[0], turn_id)
    return Failure(no_turn(turn_id)) if there is None else _written(connection, found, there, ended(there, *ending))


def _written(
    connection: Connection, found: tuple[int, Conversation], there: Turn | None, made: Result[Turn, LLMError]
) -> Result[Turn, LLMError]:
    if not is_successful(made) or made.unwrap() is there:
        return made
    (key, conversation), turn = found, made.unwrap()
    if there is None:
        turn_rows.insert_turns(connection, key, (turn,))
    else:
        turn_rows.update_turn(connection, key, turn, len(there.messages))
    rows.update_conversation(connection, key, moved(conversation, (turn,), int(there is None)))
    return made


def append(
    connection: Connection, conversation_id: str, owner: str | None, expected: int, turns: tuple[Turn, ...]
) -> Result[Conversation, LLMError]:
    """Add the turns that are not there."""
    found = rows.find_conversation(connection, conversation_id, owner, lock=True)
    if found is None:
        return Failure(no_conversation(conversation_id))
    key, conversation = found
    known = turn_rows.known_turns(connection, key, [turn.id for turn in turns])
    made = added(conversation, new_turns(turns, known), expected)
    if not is_successful(made):
        return Failure(made.failure())
    if not made.unwrap():
        return Success(conversation)
    turn_rows.insert_turns(connection, key, made.unwrap())
    after = moved(conversation, made.unwrap(), len(made.unwrap()))
    rows.update_conversation(connection, key, after)
    return Success(after)


def summarise(
    connection: Connection, conversation_id: str, owner: str | None, summary: Summary
) -> Result[None, LLMError]:
    """Keep a summary: of several, the one that reaches furthest is given."""
    found = rows.find_conversation(connection, conversation_id, owner, lock=True)
    if found is None:
        return Failure(no_conversation(conversation_id))
    rows.put_summary(connection, found[0], summary)
    return Success(None)


def drop(connection: Connection, conversation_id: str, owner: str | None) -> Result[bool, LLMError]:
    """Drop a conversation with all that refers to it."""
    columns = CONVERSATIONS.c
    query = delete(CONVERSATIONS).where(columns.owner == rows.owner_of(owner), columns.id == conversation_id)
    return Success(connection.execute(query).rowcount > 0)
