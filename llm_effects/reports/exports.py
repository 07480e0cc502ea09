"""Reports and rows of the ledger as text for other programs: CSV and JSON lines. Money is decimal text, no float."""

import csv
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from io import StringIO
from typing import Final, TypeAlias

from llm_effects.reports.usage import Percentiles, UsageReport, UsageRow
from llm_effects.values.json import dump
from llm_effects.values.records import LedgerRow
from llm_effects.values.requests import TaskType
from llm_effects.values.responses import Attempt

Cell: TypeAlias = str | int | float | bool | Sequence[str] | Mapping[str, int] | None
"""A JSON value of an exported line; ``None`` is unknown."""

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def to_csv(what: UsageReport | Sequence[LedgerRow]) -> str:
    """Write a report, or rows of the ledger, as CSV with a heading (RFC 4180), also of nothing; unknown is empty.

    Lists and tables are JSON texts. A text that a spreadsheet would run as a formula has a ``'`` before it, since
    owners and tags may be what strangers typed; JSON lines have it as it is.

    >>> from llm_effects.reports.usage import UsageSums
    >>> to_csv(UsageSums(("model",)).report()).splitlines()[0][:44]
    'model,requests,attempts,successes,failures,i'
    """
    lines, text = lines_of(what), StringIO()
    names = list(lines[0] if lines else _any_line(what))
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows({name: _plain(cell) for name, cell in line.items()} for line in lines)
    return text.getvalue()


def _plain(cell: Cell) -> Cell:
    if isinstance(cell, str):
        return f"'{cell}" if cell.startswith(_FORMULA) else cell
    return dump(cell).decode() if isinstance(cell, Sequence | Mapping) else cell


def to_json_lines(what: UsageReport | Sequence[LedgerRow]) -> str:
    """Write a report, or rows of the ledger, as a JSON object a line.

    >>> to_json_lines(())
    ''
    """
    return "".join(f"{dump(dict(line)).decode()}\n" for line in lines_of(what))


def lines_of(what: UsageReport | Sequence[LedgerRow]) -> Sequence[Mapping[str, Cell]]:
    """Give flat tables of names and values, all with the same names."""
    if isinstance(what, UsageReport):
        return [_of_usage(what.by, row) for row in what.rows]
    return [_of_ledger(row) for row in what]


def _any_line(what: UsageReport | Sequence[LedgerRow]) -> Mapping[str, Cell]:
    if isinstance(what, UsageReport):
        return _of_usage(what.by, UsageRow(group=("",) * len(what.by)))
    attempt, at = Attempt(model="", provider="", outcome="", latency_ms=0.0), datetime.fromtimestamp(0, UTC)
    return _of_ledger(LedgerRow(id="", at=at, call_id="", task_type=TaskType.GENERAL, attempt=attempt))


def _of_usage(by: tuple[str, ...], row: UsageRow) -> dict[str, Cell]:
    return {
        **dict(zip(by, row.group, strict=True)),
        "requests": row.requests,
        "attempts": row.attempts,
        "successes": row.successes,
        "failures": row.failures,
        "input_tokens": row.input_tokens,
        "cache_read_tokens": row.cache_read_tokens,
        "cache_write_tokens": row.cache_write_tokens,
        "output_tokens": row.output_tokens,
        "reasoning_tokens": row.reasoning_tokens,
        "cost_usd": f"{row.cost_usd:f}",
        "unknown_costs": row.unknown_costs,
        **_times("latency_ms", row.latency_ms),
        **_times("first_content_ms", row.first_content_ms),
    }


def _times(name: str, times: Percentiles | None) -> dict[str, Cell]:
    return {f"{name}_{each}": getattr(times, each, None) for each in ("p50", "p95", "p99")}


def _of_ledger(row: LedgerRow) -> dict[str, Cell]:
    attempt, usage = row.attempt, row.attempt.usage
    return {
        "id": row.id,
        "at": row.at.isoformat(),
        "call_id": row.call_id,
        "conversation_id": row.conversation_id,
        "owner": row.owner,
        "task": str(row.task_type),
        "tags": list(row.tags),
        "model": attempt.model,
        "provider": attempt.provider,
        "served_model": row.served_model,
        "outcome": attempt.outcome,
        "latency_ms": attempt.latency_ms,
        "first_content_ms": attempt.first_content_ms,
        "wait_ms": attempt.wait_ms,
        "input_tokens": usage.input_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "output_tokens": usage.output_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "estimated": usage.estimated,
        "cost_usd": None if attempt.cost.usd is None else f"{attempt.cost.usd:f}",
    }
