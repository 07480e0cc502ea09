"""Cost and latency by model and task: a table and a chart from the ledger.

``python examples/cost_report.py`` asks a few questions and reports on them; with a path such as ``chart.svg`` it also
draws the chart into that file. With ``LLM_STORAGE_URL=sqlite:///ledger.db`` the report covers earlier runs too.
"""

import sys
from collections.abc import Sequence
from html import escape

import anyio
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects import (
    Effect,
    LLMEnv,
    LLMError,
    LLMRequest,
    LLMResponse,
    Preferences,
    create_default_llm_manager,
    describe,
    effect,
    gather,
    generate,
    run,
    then,
    usage_report,
)
from llm_effects.reports import UsageReport, UsageRow

QUESTIONS = (
    ("analysis", "Why do disks fill up?"),
    ("analysis", "Why do certificates expire?"),
    ("config_management", "Write a log level as YAML."),
)

BAR = 24
"""The length of the longest bar, in characters."""


def ask(task: str, question: str) -> Effect[LLMResponse]:
    """Ask a question for a short answer, bypassing the cache."""
    preferences = Preferences(max_tokens=24, temperature=0.0, seed=7)
    request = LLMRequest(prompt=question, task_type=task, owner="example", preferences=preferences, cache="bypass")
    return generate(request)


def name_of(row: UsageRow) -> str:
    """Return the name of a group."""
    return " / ".join(row.group)


def latency_of(row: UsageRow) -> float:
    """Return the median latency, in milliseconds."""
    return row.latency_ms.p50 if row.latency_ms else 0.0


def table(report: UsageReport) -> str:
    """Format a line for each group, and one for the total."""
    columns = f"{'calls':>5} {'sent':>5} {'ok':>4} {'tokens':>7} {'cost':>12} {'p50 ms':>8} {'p95 ms':>8}"
    heading = f"{'model / task':34} {columns}"
    return "\n".join((heading, *(line(name_of(row), row) for row in report.rows), line("all", report.total)))


def line(name: str, row: UsageRow) -> str:
    """Format a line; a ``+`` marks a cost that is higher, because some costs are unknown."""
    cost = f"${row.cost_usd:f}{'+' if row.unknown_costs else ''}"
    p50, p95 = (f"{row.latency_ms.p50:.0f}", f"{row.latency_ms.p95:.0f}") if row.latency_ms else ("-", "-")
    tokens = row.input_tokens + row.output_tokens
    return f"{name:34} {row.requests:5} {row.attempts:5} {row.successes:4} {tokens:7} {cost:>12} {p50:>8} {p95:>8}"


def bars(title: str, rows: Sequence[UsageRow], values: Sequence[float]) -> str:
    """Draw a bar for each group, the longest for the largest value."""
    largest = max(values, default=0.0) or 1.0
    drawn = (
        f"{name_of(row):34} {'#' * round(BAR * value / largest)}".rstrip()
        for row, value in zip(rows, values, strict=True)
    )
    return "\n".join((title, *drawn))


def chart(report: UsageReport) -> str:
    """Draw cost and latency as text."""
    costs = [float(row.cost_usd) for row in report.rows]
    latencies = [latency_of(row) for row in report.rows]
    return f"{bars('cost', report.rows, costs)}\n\n{bars('latency (p50)', report.rows, latencies)}"


def svg(report: UsageReport) -> str:
    """Draw latency as an SVG image, with the cost beside each bar."""
    largest = max(map(latency_of, report.rows), default=0.0) or 1.0
    height = 28 * len(report.rows) + 8
    drawn = (
        f'<text x="4" y="{28 * place + 22}">{escape(name_of(row))}</text>'
        f'<rect x="300" y="{28 * place + 8}" width="{300 * latency_of(row) / largest:.0f}" height="18" fill="#4a7"/>'
        f'<text x="610" y="{28 * place + 22}">{latency_of(row):.0f} ms, ${row.cost_usd:f}</text>'
        for place, row in enumerate(report.rows)
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="800" height="{height}" font-family="monospace">'
    return "\n".join((head, *drawn, "</svg>\n"))


def ask_and_report() -> Effect[UsageReport]:
    """Ask all questions, then build a report from the ledger."""
    answers = gather((ask(task, question) for task, question in QUESTIONS), limit=1)
    return then(answers, lambda _: usage_report(by=("model", "task")))


async def main(env: LLMEnv) -> Result[str, LLMError]:
    """Ask the questions, and show the table and the chart."""
    return await run(ask_and_report().map(lambda report: f"{table(report)}\n\n{chart(report)}"), env)


async def draw(env: LLMEnv, path: str) -> Result[None, LLMError]:
    """Draw the whole ledger into a file."""
    report = await run(usage_report(by=("model", "task")), env)
    if is_successful(report):
        await anyio.Path(path).write_text(svg(report.unwrap()), encoding="utf-8")
    return report.map(lambda _: None)


async def live(paths: Sequence[str]) -> Result[str, LLMError]:
    """Run with the models of the environment variables."""
    async with create_default_llm_manager() as manager:
        shown = await manager.run(effect(main))
        drawn = [await draw(manager.env, path) for path in paths]
        return next((each.map(str) for each in drawn if not is_successful(each)), shown)


if __name__ == "__main__":
    result = anyio.run(live, sys.argv[1:])
    print(result.unwrap()) if is_successful(result) else sys.exit(describe(result.failure()))
