"""Rows of turns and their messages. What is asked again and again is built once: that takes as long as asking."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from attrs import evolve
from sqlalchemy import Column, ColumnElement, Connection, Row, Select, bindparam, insert, select, text, update

from llm_effects.codecs import dump_value
from llm_effects.stores.sql_rows import read_value
from llm_effects.stores.sql_tables import MESSAGES, TURNS
from llm_effects.turns import StoredMessage, Turn

_BATCH: Final = 500  # ids in one query

_IS_PINNED: Final = text("pinned = 1")  # word for word as its index has it


def _reading(among: Callable[[Column[int]], ColumnElement[bool]]) -> tuple[Select[str], Select[int, str]]:
    """Queries for turns, and for their messages, of some numbers."""
    turns = select(TURNS.c.document).where(TURNS.c.conversation == bindparam("of"), among(TURNS.c.number))
    columns = MESSAGES.c
    messages = select(columns.turn, columns.document).where(
        columns.conversation == bindparam("of"), among(columns.turn)
    )
    return turns.order_by(TURNS.c.number), messages.order_by(columns.turn, columns.place)


_ANY: Final = MESSAGES.alias()
_PINNED: Final = select(_ANY.c.turn).where(
    _ANY.c.conversation == bindparam("of"), _ANY.c.turn < bindparam("before"), _IS_PINNED
)

_READ: Final = _reading(lambda number: number.between(bindparam("first"), bindparam("last")))
_READ_PINNED: Final = _reading(lambda number: number.in_(_PINNED))

_FIND_TURN: Final = select(TURNS.c.document).where(
    TURNS.c.conversation == bindparam("of"), TURNS.c.id == bindparam("name")
)
_END_TURN: Final = update(TURNS).where(TURNS.c.conversation == bindparam("of"), TURNS.c.number == bindparam("at"))


def find_turn(connection: Connection, key: int, turn_id: str) -> Turn | None:
    """Give a turn by its id, with its messages."""
    document = connection.execute(_FIND_TURN, {"of": key, "name": turn_id}).scalar_one_or_none()
    if document is None:
        return None
    turn = read_value(document, Turn)
    said = connection.execute(_READ[1], {"of": key, "first": turn.number, "last": turn.number})
    return evolve(turn, messages=tuple(map(_message, said)))


def known_turns(connection: Connection, key: int, ids: Sequence[str]) -> set[str]:
    """Tell which of the ids are those of turns that are there."""
    batches = (ids[first : first + _BATCH] for first in range(0, len(ids), _BATCH))
    query = select(TURNS.c.id).where(TURNS.c.conversation == key)
    return {each for batch in batches for each in connection.execute(query.where(TURNS.c.id.in_(batch))).scalars()}


def read_turns(connection: Connection, key: int, first: int, last: int) -> tuple[Turn, ...]:
    """Give the turns of these numbers, with their messages, in order."""
    return _turns(connection, _READ, {"of": key, "first": first, "last": last})


def read_pinned(connection: Connection, key: int, before: int) -> tuple[Turn, ...]:
    """Give the turns before a number that have something pinned."""
    return _turns(connection, _READ_PINNED, {"of": key, "before": before})


def _turns(
    connection: Connection, queries: tuple[Select[str], Select[int, str]], values: Mapping[str, int]
) -> tuple[Turn, ...]:
    turns = [read_value(each, Turn) for each in connection.execute(queries[0], values).scalars()]
    rows = connection.execute(queries[1], values).all() if turns else ()
    said = {number: tuple(map(_message, each)) for number, each in groupby(rows, lambda row: row.turn)}
    return tuple(evolve(turn, messages=said.get(turn.number, ())) for turn in turns)


def _message(row: Row[Any, Any]) -> StoredMessage:
    return read_value(row.document, StoredMessage)


def insert_turns(connection: Connection, key: int, turns: Sequence[Turn]) -> None:
    """Keep new turns with their messages."""
    rows = [{"conversation": key, "number": turn.number, "id": turn.id, "document": _bare(turn)} for turn in turns]
    connection.execute(insert(TURNS), rows)
    _insert_messages(connection, [row for turn in turns for row in _message_rows(key, turn, 0)])


def update_turn(connection: Connection, key: int, turn: Turn, known: int) -> None:
    """Keep what became of a turn, and its messages beyond those ``known``."""
    connection.execute(_END_TURN, {"of": key, "at": turn.number, "document": _bare(turn)})
    _insert_messages(connection, _message_rows(key, turn, known))


def _bare(turn: Turn) -> str:
    return dump_value(evolve(turn, messages=()))


def _message_rows(key: int, turn: Turn, known: int) -> list[dict[str, object]]:
    return [
        {
            "conversation": key,
            "turn": turn.number,
            "place": place,
            "id": each.id,
            "pinned": int(each.pinned),
            "document": dump_value(each),
        }
        for place, each in enumerate(turn.messages[known:], known)
    ]


def _insert_messages(connection: Connection, rows: list[dict[str, object]]) -> None:
    if rows:
        connection.execute(insert(MESSAGES), rows)
