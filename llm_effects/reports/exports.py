"""Exports of reports and ledger rows: CSV and JSON lines. Money is decimal text, not a float."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from io import StringIO
from typing import Final, TypeAlias

from llm_effects.reports.usage import UsageReport, UsageRow
from llm_effects.values.json import dump
from llm_effects.values.records import LedgerRow
from llm_effects.values.requests import TaskType
from llm_effects.values.responses import Attempt
from llm_effects.values.usage import Percentiles
from llm_effects.values.validation import printable

Cell: TypeAlias = str | int | float | bool | Sequence[str] | Mapping[str, int] | None
"""A JSON value in an exported line; ``None`` is unknown."""

_FORMULA_PREFIXES: Final = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "\t", "\r")  # noqa: RUF001 - read as ASCII by some


def to_csv(source: UsageReport | Sequence[LedgerRow]) -> str:
    """Encode a report, or rows of the ledger, as CSV (RFC 4180), always with a header; unknown values are empty.

    Lists and mappings are encoded as JSON. Owners, tags and names of models may be written by users and servers: a text
    that a spreadsheet would run as a formula is prefixed with ``'``, and control characters become spaces. JSON lines
    contain such a text unchanged.

    >>> to_csv(UsageReport(by=("model",))).splitlines()[0][:44]
    'model,requests,attempts,successes,failures,i'
    """
    lines, text = _lines(source), StringIO()
    names = list(lines[0] if lines else _empty_line(source))
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows({name: _csv_cell(cell) for name, cell in line.items()} for line in lines)
    return text.getvalue()


def _csv_cell(cell: Cell) -> Cell:
    if isinstance(cell, str):
        shown = printable(cell)
        is_formula = any(text.startswith(_FORMULA_PREFIXES) for text in (cell, shown.lstrip()))
        return f"'{shown}" if is_formula else shown
    return printable(dump(cell).decode()) if isinstance(cell, Sequence | Mapping) else cell


def to_json_lines(source: UsageReport | Sequence[LedgerRow]) -> str:
    """Encode a report, or rows of the ledger, as one JSON object a line.

    >>> to_json_lines(())
    ''
    """
    return "".join(f"{dump(dict(line)).decode()}\n" for line in _lines(source))


def _lines(source: UsageReport | Sequence[LedgerRow]) -> Sequence[Mapping[str, Cell]]:
    """Return flat mappings, all with the same names."""
    if isinstance(source, UsageReport):
        return [_usage_line(source.by, row) for row in source.rows]
    return [_ledger_line(row) for row in source]


def _empty_line(source: UsageReport | Sequence[LedgerRow]) -> Mapping[str, Cell]:
    if isinstance(source, UsageReport):
        return _usage_line(source.by, UsageRow(group=("",) * len(source.by)))
    attempt, at = Attempt(model="", provider="", outcome="", latency_ms=0.0), datetime.fromtimestamp(0, UTC)
    return _ledger_line(LedgerRow(id="", at=at, call_id="", task_type=TaskType.GENERAL, attempt=attempt))


def _usage_line(by: tuple[str, ...], row: UsageRow) -> dict[str, Cell]:
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
        "cache_saved_usd": f"{row.cache_saved_usd:f}",
        **_percentile_cells("latency_ms", row.latency_ms),
        **_percentile_cells("first_content_ms", row.first_content_ms),
    }


def _percentile_cells(name: str, times: Percentiles | None) -> dict[str, Cell]:
    return {f"{name}_{share}": getattr(times, share, None) for share in ("p50", "p95", "p99")}


def _ledger_line(row: LedgerRow) -> dict[str, Cell]:
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
        "cache_write_1h_tokens": usage.cache_write_1h_tokens,
        "service_tier": usage.service_tier,
        "left_machine": row.left_machine,
        "cache_saved_usd": None if row.cache_saved_usd is None else f"{row.cache_saved_usd:f}",
    }
