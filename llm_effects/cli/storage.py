"""``storage``: erase what an owner left, or what is too old."""

from typing import Annotated

import typer
from rich.table import Table

from llm_effects.cli import ExitCode
from llm_effects.cli.display import add_row, new_table
from llm_effects.cli.program import ConfigOption, JsonOption, Session, StorageOption, confirm, open_session, program
from llm_effects.conversations import apply_retention, erase_owner
from llm_effects.effects.lifecycle import Receipt

storage: typer.Typer = typer.Typer(help="Erase stored data by owner or age.", rich_markup_mode=None)
program.add_typer(storage, name="storage", no_args_is_help=True)

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@storage.command("erase-owner")
def erase(
    ctx: typer.Context,
    owner: Annotated[str, typer.Argument(metavar="OWNER", help="The owner to erase.", show_default=False)],
    *,
    yes: YesOption = False,
    as_json: JsonOption = False,
    storage: StorageOption = None,
    config: ConfigOption = None,
) -> None:
    """Erase everything of an owner, in every store.

    Conversations, journals, approvals, ledger rows, budgets and cached answers. It ends with 1 if something is left.
    """
    session = open_session(ctx, config, storage)
    confirm(session, f"Erase everything of the owner {owner!r} for ever?", yes=yes)
    _show(session, session.run(erase_owner(owner)), as_json=as_json)


@storage.command()
def prune(
    ctx: typer.Context,
    *,
    as_json: JsonOption = False,
    storage: StorageOption = None,
    config: ConfigOption = None,
) -> None:
    """Erase what is older than the configuration keeps it.

    The rules are in storage.retention and storage.owner_retention. It ends with 1 if something is left.
    """
    session = open_session(ctx, config, storage)
    _show(session, session.run(apply_retention()), as_json=as_json)


def _show(session: Session, receipt: Receipt, *, as_json: bool) -> None:
    if as_json:
        session.write_json(receipt)
    elif receipt.erased:
        session.show(_table(receipt))
    else:
        session.note("nothing is kept for a limited time: set storage.retention")
    for each in receipt.kept:
        session.warn(f"{each.store}: not erased: {each.reason}")
    if not receipt.complete:
        raise typer.Exit(ExitCode.FAILED)


def _table(receipt: Receipt) -> Table:
    table = new_table("erased", "", right=[""])
    for name, number in receipt.erased.items():
        add_row(table, name.replace("_", " "), f"{number:,}")
    return table
