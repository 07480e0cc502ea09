"""``approvals``: calls of tools that wait for a decision, and the decision."""

from collections.abc import Sequence
from getpass import getuser
from typing import Annotated, Final

import typer
from rich.table import Table

from llm_effects.cli.display import add_row, moment, new_table
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
from llm_effects.tools import Approval, Approved, Refused, decide_approval, list_approvals
from llm_effects.tools.approvals import decision_text, visible
from llm_effects.values.errors import InvalidRequest

approvals: typer.Typer = typer.Typer(
    help="List, show, approve and refuse calls of tools that wait.", rich_markup_mode=None
)
program.add_typer(approvals, name="approvals", no_args_is_help=True)

IdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="The id of the approval, or its beginning.", show_default=False)
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
ByOption = Annotated[str | None, typer.Option(metavar="NAME", help="Who decides: by default the user of this machine.")]

SHORT_ID: Final = 12
"""How many characters of an id a table shows."""

MIN_ID: Final = 4
"""How many characters of an id a command needs."""

SHORT_ARGUMENTS: Final = 80
"""How many characters of the arguments a table shows."""


@approvals.command("list")
def list_waiting(
    ctx: typer.Context,
    *,
    decided: Annotated[bool, typer.Option("--all", help="Also those with a decision.")] = False,
    owner: OwnerOption = None,
    as_json: JsonOption = False,
    storage: StorageOption = None,
    config: ConfigOption = None,
) -> None:
    """List calls that wait for approval, oldest first."""
    session = open_session(ctx, config, storage)
    found = session.run(list_approvals(owner=owner, decided=decided))
    if as_json:
        session.write_json(found)
    elif found:
        session.show(_table(found))
    else:
        session.note(NOTHING_KEPT if is_in_memory(session.config.unwrap()) else "No call waits for approval.")


def _table(found: Sequence[Approval]) -> Table:
    table = new_table("id", "tool", "arguments", "reason", "asked", whole=["id", "asked"])
    for each in found:
        cut = "" if len(each.arguments) <= SHORT_ARGUMENTS else f"… ({len(each.arguments):,} characters)"
        arguments = f"{each.arguments[:SHORT_ARGUMENTS]}{cut}"
        reason = each.reason if each.decision is None else decision_text(each.decision)
        add_row(table, each.id[:SHORT_ID], visible(each.call.name), arguments, reason, _asked(each))
    return table


def _asked(approval: Approval) -> str:
    return "-" if approval.unreadable else moment(approval.asked_at)


@approvals.command()
def show(
    ctx: typer.Context,
    approval_id: IdArgument,
    *,
    owner: OwnerOption = None,
    as_json: JsonOption = False,
    storage: StorageOption = None,
    config: ConfigOption = None,
) -> None:
    """Show a call that waits, with all of its arguments.

    Characters that cannot be seen are shown as escapes.
    """
    session = open_session(ctx, config, storage)
    approval = _find(session, approval_id, owner)
    if as_json:
        session.write_json(approval)
    else:
        session.show(_details(approval))


def _details(approval: Approval) -> Table:
    decision = "waits" if approval.decision is None else decision_text(approval.decision)
    rows = {
        "id": approval.id,
        "tool": f"{visible(approval.call.name)} ({approval.risk})",
        "arguments": approval.arguments,
        "reason": approval.reason,
        "untrusted": ", ".join(map(visible, approval.untrusted)) or "-",
        "run": f"{visible(approval.run_id)}, step {approval.step}",
        "conversation": visible(approval.conversation_id or "-"),
        "asked": _asked(approval),
        "decision": decision,
    }
    table = new_table("", "", whole=[""])
    for name, text in rows.items():
        add_row(table, name, text)
    table.show_header = False
    return table


def _find(session: Session, approval_id: str, owner: str | None) -> Approval:
    """Return the one approval whose id begins so, or exit."""
    if len(approval_id) < MIN_ID:
        session.fail(InvalidRequest(message=f"approval: write at least {MIN_ID} characters of its id"))
    found = _beginning(session, approval_id, owner, decided=False)  # few
    found = found or _beginning(session, approval_id, owner, decided=True)
    if len(found) == 1:
        return found[0]
    problem = f"{len(found)} begin with {approval_id!r}" if found else f"there is no {approval_id!r}"
    remedy = "" if owner is not None or found else " without an owner: pass --owner"
    return session.fail(InvalidRequest(message=f"approval: {problem}{remedy}"))


def _beginning(session: Session, text: str, owner: str | None, *, decided: bool) -> list[Approval]:
    known = session.run(list_approvals(owner=owner, decided=decided))
    return [each for each in known if each.id.startswith(text)]


@approvals.command()
def approve(
    ctx: typer.Context,
    approval_id: IdArgument,
    *,
    yes: YesOption = False,
    by: ByOption = None,
    owner: OwnerOption = None,
    storage: StorageOption = None,
    config: ConfigOption = None,
) -> None:
    """Approve a call that waits.

    The call is shown first. It runs once its program continues the run. The first decision stays.
    """
    session = open_session(ctx, config, storage)
    approval = _find(session, approval_id, owner)
    session.show(_details(approval))
    confirm(session, f"Approve this call of {approval.call.name}?", yes=yes, otherwise="nothing was decided")
    session.run(decide_approval(approval.id, Approved(), owner=owner, by=by or _user()))
    session.note(f"approved: the run {approval.run_id} can go on")


@approvals.command()
def refuse(
    ctx: typer.Context,
    approval_id: IdArgument,
    *,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="The model sees this.")] = Refused().reason,
    by: ByOption = None,
    owner: OwnerOption = None,
    storage: StorageOption = None,
    config: ConfigOption = None,
) -> None:
    """Refuse a call that waits.

    It never runs; the model sees the reason and goes on. The first decision stays.
    """
    session = open_session(ctx, config, storage)
    approval = _find(session, approval_id, owner)
    if not reason.strip():
        session.fail(InvalidRequest(message="reason: must not be blank"))
    session.run(decide_approval(approval.id, Refused(reason), owner=owner, by=by or _user()))
    session.note(f"refused: the run {approval.run_id} can go on")


def _user() -> str | None:
    try:
        return getuser()
    except (OSError, KeyError, ImportError):  # a container without an entry for its user
        return None
