"""Statements that share a round trip to Postgres: what begins a transaction, and what returns nothing.

They are held, and sent with the next statement. A commit is sent by itself: the driver ends what it sends together with
a message of its own, and behind a pooler that message would occupy a connection after the end of the transaction.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy import Connection, CursorResult, Engine, Executable, event
from sqlalchemy.engine import ExecutionContext

if TYPE_CHECKING:
    from psycopg import Connection as Driver
    from psycopg import Cursor

_Values: TypeAlias = Mapping[str, object]
_Held: TypeAlias = list[tuple[str, _Values | None]]

_HELD: Final = "held"
_LATER: Final = {"later": True}

ALONE: Final = {"alone": True}
"""The execution options of a statement that sees one moment by itself, without a transaction."""


def share_round_trips(engine: Engine) -> None:
    """Send what is held on a connection together with its next statement."""
    event.listen(engine, "do_execute", _execute)
    event.listen(engine, "do_executemany", _execute_many)
    event.listen(engine, "do_execute_no_params", _run_script)


def hold(connection: Connection, *statements: str) -> None:
    """Hold what begins a transaction; one that begins by itself, with a statement, would not send it."""
    held: _Held = [(statement, None) for statement in statements]
    connection.execution_options(**{_HELD: held})


def execute_together(
    connection: Connection, *steps: tuple[Executable, _Values | Sequence[_Values]]
) -> CursorResult[Any]:
    """Execute statements in one round trip, or one by one on SQLite, and return the result of the last one."""
    for statement, values in steps[:-1]:
        connection.execute(statement, values, execution_options=_LATER)
    return connection.execute(*steps[-1])


def script_of(connection: Connection, statements: str) -> str:
    """Return a script that begins with what is held."""
    return ";".join((*(statement for statement, _ in _taken(connection.get_execution_options())), statements))


def _taken(options: Mapping[str, Any]) -> _Held:
    held: _Held = options.get(_HELD, [])
    taken = held.copy()
    held.clear()
    return taken


def _execute(cursor: "Cursor[Any]", statement: str, values: _Values, context: ExecutionContext) -> bool:
    with _sent(cursor, statement, (values,), context.execution_options) as now:
        if now:
            cursor.execute(statement.encode(), values)
    return True


def _execute_many(cursor: "Cursor[Any]", statement: str, values: Sequence[_Values], context: ExecutionContext) -> bool:
    with _sent(cursor, statement, values, context.execution_options) as now:
        if now:
            cursor.executemany(statement.encode(), values)
    return True


@contextmanager
def _sent(
    cursor: "Cursor[Any]", statement: str, values: Sequence[_Values], options: Mapping[str, Any]
) -> Generator[bool]:
    """Send what is held, and yield whether the statement is to be sent too; its result is there at the end."""
    from psycopg import Pipeline, ServerCursor

    held: _Held = options.get(_HELD, [])
    if options.get("later"):
        held.extend((statement, each) for each in values)
        yield False
    elif not held or (options.get("alone") and len(held) == 1):  # it is what begins the transaction
        yield True
    elif isinstance(cursor, ServerCursor) or not Pipeline.is_supported():
        _send(cursor.connection, _taken(options))
        yield True
    else:
        with cursor.connection.pipeline():
            _send(cursor.connection, _taken(options))
            yield True


def _send(driver: "Driver[Any]", held: _Held) -> None:
    for statement, values in held:
        driver.execute(statement.encode(), values)


def _run_script(cursor: "Cursor[Any]", script: str, _context: ExecutionContext) -> bool:
    """Execute several statements at once; the result is that of the first one that returns rows."""
    cursor.execute(script.encode())
    while cursor.description is None and cursor.nextset():
        pass
    return True
