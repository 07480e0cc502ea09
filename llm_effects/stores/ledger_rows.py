"""Rows of the ledger in a database, written and read."""

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import msgspec
from attrs import frozen
from returns.result import Result, Success
from sqlalchemy import Connection, Select, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from llm_effects.errors import LLMError
from llm_effects.jsons import dump
from llm_effects.records import LedgerRow
from llm_effects.requests import TaskType
from llm_effects.responses import Attempt, Cost, Usage
from llm_effects.stores.ledger_schema import LEDGER

_MOST: Final = 2**63 - 1

_BUCKETS: Final = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")


@frozen(kw_only=True)
class Wanted:
    """Which rows are wanted: from a time up to another, before one, and how many of the newest."""

    since: datetime | None
    until: datetime | None
    before: LedgerRow | None
    newest: int | None


def stamp(at: datetime) -> str:
    """Write a time so that it sorts as a text.

    >>> stamp(datetime(2026, 11, 23, tzinfo=UTC))
    '2026-11-23T00:00:00.000000+00:00'
    """
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def insert_rows(connection: Connection, rows: Sequence[LedgerRow]) -> Result[None, LLMError]:
    """Keep rows, but for those that are there already."""
    add = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    if rows:
        connection.execute(add(LEDGER).on_conflict_do_nothing(), [_columns(row) for row in rows])
    return Success(None)


def read_rows(connection: Connection, wanted: Wanted) -> Result[tuple[LedgerRow, ...], LLMError]:
    """Give the rows that are wanted, oldest first."""
    found = connection.execute(_query(wanted)).all()
    return Success(tuple(_row(each) for each in reversed(found)))  # by place: by name it takes twice as long


def _query(wanted: Wanted) -> "Select[Any]":
    columns = LEDGER.c
    query = select(LEDGER).order_by(columns.at.desc(), columns.id.desc())
    if wanted.since is not None:
        query = query.where(columns.at >= stamp(wanted.since))
    if wanted.until is not None:
        query = query.where(columns.at < stamp(wanted.until))
    if wanted.before is not None:
        query = query.where(tuple_(columns.at, columns.id) < tuple_(*key_of(wanted.before)))
    return query if wanted.newest is None else query.limit(wanted.newest)


def key_of(row: LedgerRow) -> tuple[str, str]:
    """Give what a row is sorted by."""
    return stamp(row.at), row.id


def _columns(row: LedgerRow) -> dict[str, object]:
    attempt, usage = row.attempt, row.attempt.usage
    return {
        "at": stamp(row.at),
        "id": row.id,
        "call_id": row.call_id,
        "conversation_id": _clean(row.conversation_id),
        "owner": _clean(row.owner),
        "task": _clean(row.task_type),
        "tags": dump(list(row.tags)).decode(),
        "model": _clean(attempt.model),
        "provider": attempt.provider,
        "served_model": _clean(row.served_model),
        "outcome": attempt.outcome,
        "latency_ms": attempt.latency_ms,
        "first_content_ms": attempt.first_content_ms,
        "wait_ms": attempt.wait_ms,
        **{name: _whole(getattr(usage, name)) for name in _BUCKETS},
        "estimated": int(usage.estimated),
        "cost_usd": None if attempt.cost.usd is None else f"{attempt.cost.usd:f}",
    }


def _whole(tokens: int | None) -> int | None:
    """Keep a number that no database takes from costing the whole batch: whatever a server said."""
    return None if tokens is None else min(tokens, _MOST)


def _clean(text: str | None) -> str | None:
    """Mend what no database takes: letters NUL, and halves of letters."""
    return text and text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _row(values: Sequence[Any]) -> LedgerRow:
    at, name, call_id, conversation_id, owner, task, tags, served_model, *attempt = values
    return LedgerRow(
        id=name,
        at=datetime.fromisoformat(at),
        call_id=call_id,
        task_type=TaskType(task),
        attempt=_attempt(attempt),
        conversation_id=conversation_id,
        served_model=served_model,
        owner=owner,
        tags=() if tags == "[]" else tuple(msgspec.json.decode(tags, type=list[str])),
    )


def _attempt(values: Sequence[Any]) -> Attempt:
    model, provider, outcome, latency_ms, first_content_ms, wait_ms, cost_usd, *usage = values
    return Attempt(
        model=model,
        provider=provider,
        outcome=outcome,
        latency_ms=latency_ms,
        first_content_ms=first_content_ms,
        wait_ms=wait_ms,
        usage=_usage(usage),
        cost=Cost.UNKNOWN if cost_usd is None else Cost(Decimal(cost_usd)),
    )


def _usage(values: Sequence[Any]) -> Usage:
    fresh, read, written, output, reasoning, estimated = values
    return Usage(
        input_tokens=fresh,
        cache_read_tokens=read,
        cache_write_tokens=written,
        output_tokens=output,
        reasoning_tokens=reasoning,
        estimated=bool(estimated),
    )
