"""Commands about stored data: ``usage`` and ``backtest`` from the ledger, ``conversations``, and the ``cache``."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, TypeVar, cast

import typer
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success
from rich.console import Group, RenderableType
from rich.table import Table

from llm_effects.cli.display import add_row, bar, count, duration, moment, money, new_table, shown
from llm_effects.cli.program import (
    NOTHING_KEPT,
    ConfigOption,
    JsonOption,
    OwnerOption,
    Session,
    StorageOption,
    confirm,
    is_in_memory,
    open_session,
    program,
)
from llm_effects.config.loading import load_config
from llm_effects.conversations import (
    delete_conversation,
    export_conversation,
    list_conversations,
    load_conversation,
    search_conversations,
)
from llm_effects.effects.effect import Effect, from_env, from_result, then
from llm_effects.effects.env import LLMEnv
from llm_effects.policies.cache import cache_stats, clear
from llm_effects.reports import (
    Dimension,
    UsageReport,
    UsageRow,
    to_csv,
    usage_overview,
    usage_report,
)
from llm_effects.reports.backtests import backtest_page, figure_rows, remarks
from llm_effects.reports.html import usage_page
from llm_effects.values.conversations import Conversation, StoredMessage, Turn
from llm_effects.values.errors import InvalidRequest, LLMError
from llm_effects.values.messages import Part, Reasoning, Text, ToolCall, ToolResult
from llm_effects.values.secrets import reveal, shown_url

_Report = TypeVar("_Report")

# Usage.


@program.command()
def usage(
    ctx: typer.Context,
    *,
    by: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Group by model, provider, task, hour, day, owner, tag, left_machine, or several: day,model.",
        ),
    ] = "model",
    since: Annotated[
        str, typer.Option(metavar="TIME", help="From when on: 24h, 7d, 4w ago, a date such as 2026-11-01, or all.")
    ] = "30d",
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Up to when, written like --since.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Write CSV instead.")] = False,
    as_json: JsonOption = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with charts to this file instead.")
    ] = None,
    storage: StorageOption = None,
    config: ConfigOption = None,
) -> None:
    """Show calls, tokens, costs and latencies.

    They come from the ledger, the most expensive first. Days and dates are in UTC. Failed attempts count too: they may
    have cost something.
    """
    session = open_session(ctx, config, storage)
    if html is not None:
        overview = session.run(_in_period(since, until, lambda start, end: usage_overview(start, until=end)))
        write_file(session, html, usage_page(overview))
        return
    dimensions = cast("Sequence[Dimension]", [name.strip() for name in by.split(",")])  # the report checks them
    report = session.run(_in_period(since, until, lambda start, end: usage_report(start, dimensions, until=end)))
    if as_csv:
        session.write(to_csv(report))
    elif as_json:
        session.write_json(report)
    else:
        session.show(usage_view(report, ascii_only=session.out.options.ascii_only))
    if not report.total.attempts and is_in_memory(session.config.unwrap()):
        session.note(NOTHING_KEPT)


def _in_period(
    since: str, until: str | None, report: Callable[[datetime | None, datetime | None], Effect[_Report]]
) -> Effect[_Report]:
    """Return a report from one time up to another, each as a person wrote it."""

    def period(env: LLMEnv) -> Result[tuple[datetime | None, datetime | None], LLMError]:
        start, end = moment_of("since", since, env.now()), moment_of("until", until or "all", env.now())
        return start.map(lambda start: (start, end.unwrap())) if is_successful(end) else Failure(end.failure())

    return then(then(from_env(period), from_result), lambda times: report(*times))


@program.command()
def backtest(
    ctx: typer.Context,
    new: Annotated[Path, typer.Argument(metavar="FILE", help="The new configuration, a TOML file.")],
    *,
    since: Annotated[
        str, typer.Option(metavar="TIME", help="From when on: 24h, 7d, 4w ago, a date such as 2026-11-01, or all.")
    ] = "7d",
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Up to when, written like --since.")] = None,
    as_json: JsonOption = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with charts to this file instead.")
    ] = None,
    storage: StorageOption = None,
    config: ConfigOption = None,
) -> None:
    """Replay the calls of the ledger under another configuration.

    No model is asked: attempts end as the ledger says, in virtual time. Costs, latencies and answered calls are shown
    old against new, with 95 % confidence intervals, and with what no ledger knows.
    """
    from llm_effects.testing.backtest import backtest as replay_ledger  # which takes a while to import

    session = open_session(ctx, config, storage)
    if is_in_memory(session.config.unwrap()):
        session.note(NOTHING_KEPT)
    changed = session.value(load_config(new))
    result = session.run(_in_period(since, until, lambda start, end: replay_ledger(changed, start, until=end)))
    if html is not None:
        write_file(session, html, backtest_page(result))
    elif as_json:
        session.write_json(result)
    else:
        table = new_table("", "old", "new", "change")
        for row in figure_rows(result):
            add_row(table, *row)
        session.show(shown(f"{result.calls:,} calls, {new}:"), table, *map(shown, remarks(result)))


_AGO: Final = re.compile(r"(\d{1,6})\s*([mhdw])")
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def moment_of(option: str, text: str, now: datetime) -> Result[datetime | None, LLMError]:
    """Return the time that a text means: some time ago, a date or a time (in UTC), or none for ``all``.

    >>> now = datetime(2026, 11, 8, 12, tzinfo=UTC)
    >>> [str(moment_of("since", text, now).unwrap())[:16] for text in ("7d", "2026-11-01", "2026-11-01T06:00", "all")]
    ['2026-11-01 12:00', '2026-11-01 00:00', '2026-11-01 06:00', 'None']
    >>> moment_of("since", "yesterday", now).failure().message
    "since: 'yesterday' is no time: write 24h, 7d, 4w, a date such as 2026-11-01, or all"
    """
    if text.strip().lower() == "all":
        return Success(None)
    ago = _AGO.fullmatch(text.strip().lower())
    try:
        if ago is not None:
            return Success(now - timedelta(**{_UNITS[ago[2]]: int(ago[1])}))
        at = datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError):
        remedy = "is no time: write 24h, 7d, 4w, a date such as 2026-11-01, or all"
        return Failure(InvalidRequest(message=f"{option}: {text!r} {remedy}"))
    return Success(at if at.tzinfo is not None else at.replace(tzinfo=UTC))


BAR_WIDTH: Final = 10


def usage_view(report: UsageReport, *, ascii_only: bool = False) -> RenderableType:
    """Return a report as a table with a bar for each group's share of the cost, or of the tokens if all were free."""
    if not report.rows:
        return shown(f"No calls{_period(report)}.")
    numbers = ("calls", "failed", "in", "out", "cost", "p50", "p95")
    by_cost = report.total.cost_usd > 0
    table = new_table(*report.by, *numbers, "of cost" if by_cost else "of tokens", right=numbers)
    whole = _weight(report.total, by_cost=by_cost)
    for row in report.rows:
        share = float(_weight(row, by_cost=by_cost) / whole) if whole else 0.0
        groups = (group or "-" for group in row.group)
        add_row(table, *groups, *_numbers(row), bar(share, BAR_WIDTH, ascii_only=ascii_only))
    if len(report.rows) > 1:
        add_row(table, "total", *[""] * (len(report.by) - 1), *_numbers(report.total), "", style="bold")
    return Group(shown(f"Usage{_period(report)}:"), table, *_footnotes(report))


def _weight(row: UsageRow, *, by_cost: bool) -> Decimal:
    return row.cost_usd if by_cost else Decimal(_tokens_in(row) + row.output_tokens)


def _tokens_in(row: UsageRow) -> int:
    return row.input_tokens + row.cache_read_tokens + row.cache_write_tokens


def _numbers(row: UsageRow) -> tuple[str, ...]:
    failed = row.attempts - row.successes
    times = row.latency_ms
    return (
        count(row.requests),
        f"{failed / row.attempts:.0%}" if failed else "-",
        count(_tokens_in(row)),
        count(row.output_tokens),
        money(row.cost_usd) + "*" * (row.unknown_costs > 0),
        "-" if times is None else duration(times.p50),
        "-" if times is None else duration(times.p95),
    )


def _footnotes(report: UsageReport) -> list[RenderableType]:
    total = report.total
    unknown = f"* without {total.unknown_costs} of {total.attempts} attempts, whose cost is unknown"
    outcomes = ", ".join(f"{number} {outcome}" for outcome, number in total.failures.items())
    saved = total.cache_saved_usd
    prompt_caches = f"prompt caches saved {money(saved)}" if saved > 0 else f"prompt caches cost {money(-saved)} more"
    lines = (unknown, total.unknown_costs), (prompt_caches, saved), (f"failed attempts: {outcomes}", outcomes)
    return [shown(line) for line, is_known in lines if is_known]


def _period(report: UsageReport) -> str:
    since = "" if report.since is None else f" since {report.since:%Y-%m-%d %H:%M}"
    until = "" if report.until is None else f" until {report.until:%Y-%m-%d %H:%M}"
    return f"{since}{until} UTC" if since or until else ""


# Conversations.

conversations: typer.Typer = typer.Typer(
    help="List, find, show, export and delete stored conversations.", rich_markup_mode=None
)
program.add_typer(conversations, name="conversations", no_args_is_help=True)

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The id of the conversation.", show_default=False)]


@conversations.command("list")
def list_all(
    ctx: typer.Context,
    *,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many at most.")] = 100,
    after: Annotated[str | None, typer.Option(metavar="ID", help="Begin after this id.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", metavar="NAME=VALUE", help="Only those with this metadata.")
    ] = None,
    owner: OwnerOption = None,
    as_json: JsonOption = False,
    storage: StorageOption = None,
    config: ConfigOption = None,
) -> None:
    """List conversations by id."""
    session = open_session(ctx, config, storage)
    pairs = [each.partition("=") for each in metadata or ()]
    if not all(equals for _, equals, _ in pairs):
        session.fail(InvalidRequest(message="metadata: must be written as NAME=VALUE"))
    wanted = {name: value for name, _, value in pairs}
    found = session.run(list_conversations(owner=owner, limit=limit, after=after, metadata=wanted))
    if as_json:
        session.write_json([_summary(each) for each in found])
    elif found:
        session.show(_conversations_view(found))
        if len(found) == limit:
            session.note(f"there may be more: --after {found[-1].id}")
    else:
        session.note(NOTHING_KEPT if is_in_memory(session.config.unwrap()) else "No conversations.")


def _conversations_view(found: Sequence[Conversation]) -> Table:
    table = new_table("id", "turns", "last model", "updated", right=["turns"])
    for each in found:
        last = "unreadable" if each.unreadable else each.last_model or "-"
        add_row(table, each.id, str(each.turns), last, moment(each.updated_at))
    return table


def _summary(each: Conversation) -> dict[str, object]:
    return {
        "id": each.id,
        "owner": each.owner,
        "turns": each.turns,
        "last_model": each.last_model,
        "created_at": each.created_at.isoformat(),
        "updated_at": each.updated_at.isoformat(),
        "metadata": dict(each.metadata),
        "unreadable": each.unreadable,
    }


@conversations.command()
def search(
    ctx: typer.Context,
    text: Annotated[str, typer.Argument(metavar="WORDS", help="The words, in any order.", show_default=False)],
    *,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many at most.")] = 20,
    after: Annotated[str | None, typer.Option(metavar="CURSOR", help="Begin after this hit.")] = None,
    owner: OwnerOption = None,
    as_json: JsonOption = False,
    storage: StorageOption = None,
    config: ConfigOption = None,
) -> None:
    """Find messages that have every word, the newest first."""
    session = open_session(ctx, config, storage)
    hits = session.run(search_conversations(text, owner=owner, limit=limit, after=after))
    if as_json:
        session.write_json(hits)
        return
    for hit in hits:
        _show_message(session, f"{hit.conversation_id}, {_heading(hit.message)}", hit.message.message.text)
    if len(hits) == limit:
        session.note(f"there may be more: --after {hits[-1].cursor}")
    if not hits:
        session.note(NOTHING_KEPT if is_in_memory(session.config.unwrap()) else "No message has all of these words.")


@conversations.command()
def show(
    ctx: typer.Context,
    conversation_id: IdArgument,
    *,
    newest: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the newest turns.")] = None,
    owner: OwnerOption = None,
    storage: StorageOption = None,
    config: ConfigOption = None,
) -> None:
    """Show the messages of a conversation."""
    session = open_session(ctx, config, storage)
    history = session.run(load_conversation(conversation_id, owner=owner, newest=newest))
    if history.conversation.system:
        _show_message(session, "system", history.conversation.system)
    if not history.complete:
        session.note(f"({history.conversation.turns - len(history.turns)} earlier turns)")
    for turn in history.turns:
        _show_turn(session, turn)


def _show_turn(session: Session, turn: Turn) -> None:
    for message in turn.messages:
        _show_message(session, _heading(message), "\n".join(filter(None, map(_part_text, message.message.parts))))
    if turn.error is not None or not turn.answered:
        session.note(f"({turn.state.value}{f': {turn.error}' if turn.error else ''})")


def _show_message(session: Session, heading: str, text: str) -> None:
    session.out.print(shown(heading), style="bold", soft_wrap=True)
    session.out.print(shown(text), "", sep="\n", soft_wrap=True)


def _heading(message: StoredMessage) -> str:
    source = message.provenance
    return f"{message.message.role} ({source.model}, {moment(message.at)})" if source else message.message.role


def _part_text(part: Part) -> str:
    match part:
        case Text():
            return part.text
        case Reasoning():
            return ""
        case ToolCall():
            return f"[calls {part.name} with {part.arguments}]"
        case ToolResult():
            return f"[result: {part.content}]"
        case _:
            return f"[{type(part).__name__.lower()}]"


@conversations.command()
def export(
    ctx: typer.Context,
    conversation_id: IdArgument,
    *,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to this file.")] = None,
    owner: OwnerOption = None,
    storage: StorageOption = None,
    config: ConfigOption = None,
) -> None:
    """Write a whole conversation as JSON."""
    session = open_session(ctx, config, storage)
    document = session.run(export_conversation(conversation_id, owner=owner)) + "\n"
    if output is None:
        session.write(document)
    else:
        write_file(session, output, document)


def write_file(session: Session, path: Path, text: str) -> None:
    """Write a file, or exit with the reason why not."""
    try:
        path.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        session.fail(InvalidRequest(message=f"output: {path}: {reason}"))


@conversations.command()
def delete(
    ctx: typer.Context,
    conversation_id: IdArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    owner: OwnerOption = None,
    storage: StorageOption = None,
    config: ConfigOption = None,
) -> None:
    """Delete a conversation with everything in it."""
    session = open_session(ctx, config, storage)
    session.run(load_conversation(conversation_id, owner=owner, newest=1))  # so that a wrong id is an error
    confirm(session, f"Delete the conversation {conversation_id!r} for ever?", yes=yes)
    session.run(delete_conversation(conversation_id, owner=owner))


# The cache.

cache: typer.Typer = typer.Typer(help="Show what the cache of answers holds, or clear it.", rich_markup_mode=None)
program.add_typer(cache, name="cache", no_args_is_help=True)


@cache.command()
def stats(ctx: typer.Context, *, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Show where the cache is and how much it holds."""
    session = open_session(ctx, config)
    held = session.run(cache_stats())
    settings = session.config.unwrap().cache
    url = shown_url(settings.url)
    if as_json:
        session.write_json({"enabled": settings.enabled, "url": url, "entries": held.entries, "bytes": held.bytes})
        return
    table = new_table("", "")
    add_row(table, "cache", url if settings.enabled else "off")
    add_row(table, "entries", "not counted" if held.entries is None else f"{held.entries:,}")
    add_row(table, "bytes", "not counted" if held.bytes is None else f"{held.bytes:,}")
    table.show_header = False
    session.show(table)
    _remark_on_memory(session)


@cache.command("clear")
def clear_all(
    ctx: typer.Context,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: ConfigOption = None,
) -> None:
    """Delete every stored answer."""
    session = open_session(ctx, config)
    settings = session.value(session.config).cache
    confirm(session, f"Delete every answer in {shown_url(settings.url)}?", yes=yes)
    deleted = session.run(clear())
    session.note("cleared" if deleted is None else f"deleted {deleted:,} answers")
    _remark_on_memory(session)


def _remark_on_memory(session: Session) -> None:
    settings = session.config.unwrap().cache
    if settings.enabled and reveal(settings.url).lower().startswith("memory"):
        session.note("The cache is in memory: it ends with each command. Set LLM_CACHE_URL or cache.url to keep it.")
