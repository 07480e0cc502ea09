"""``storage``: the tables of a database, and erasing what an owner left or what is too old."""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Annotated, Final

import typer
from attrs import evolve
from returns.result import Success
from rich.table import Table

from llm_effects.cli import ExitCode
from llm_effects.cli.display import add_row, new_table
from llm_effects.cli.program import ConfigOption, JsonOption, Session, StorageOption, confirm, open_session, program
from llm_effects.conversations import apply_retention, erase_owner
from llm_effects.effects.effect import from_service
from llm_effects.effects.lifecycle import Receipt
from llm_effects.manager import LLMManager
from llm_effects.values.errors import ConfigurationError, InvalidRequest
from llm_effects.values.extras import install_command

storage: typer.Typer = typer.Typer(help="Migrate tables, and erase stored data by owner or age.", rich_markup_mode=None)
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


NO_TABLES: Final = "storage.url: the storage is in memory, and has no tables: name a database"

DialectOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="sqlite or postgresql: by default that of the storage.")
]


@storage.command()
def status(
    ctx: typer.Context,
    *,
    as_json: JsonOption = False,
    storage: StorageOption = None,
    config: ConfigOption = None,
) -> None:
    """Show the version of the tables, and which steps are pending.

    Nothing is created or changed. It ends with 1 if a step is pending.
    """
    session = open_session(ctx, config, storage)
    version, newest, pending = _versions(session)
    if as_json:
        session.write_json({"version": version, "newest": newest, "pending": pending})
    else:
        session.write(f"version {version} of {newest}\n" + "".join(f"pending: {name}\n" for name in pending))
    if pending:
        raise typer.Exit(ExitCode.FAILED)


@storage.command()
def migrate(
    ctx: typer.Context,
    *,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL, and apply nothing.")] = False,
    dialect: DialectOption = None,
    first: Annotated[
        int | None, typer.Option("--from", min=0, metavar="VERSION", help="From this version: by default its own.")
    ] = None,
    storage: StorageOption = None,
    config: ConfigOption = None,
) -> None:
    """Bring the tables to the newest version, or print the SQL that does.

    With --dialect nothing is asked of a database: the SQL begins at --from, or at nothing.
    """
    session = open_session(ctx, config, storage)
    if sql:
        session.write(_script(session, dialect, first))
        return
    settings = session.value(session.config).storage
    opened = evolve(session.value(session.config), storage=evolve(settings, migrate=True, read_only=False))
    if _scripts(session).dialect_of(settings) is None:
        session.fail(ConfigurationError(message=NO_TABLES))
    with_tables = evolve(session, config=Success(opened), manager=LLMManager(Success(opened)))
    with_tables.run(from_service(lambda env: env.ledger.rows(env.now(), newest=1)))
    session.note("the tables are of the newest version")


@storage.command()
def grants(
    ctx: typer.Context,
    role: Annotated[str, typer.Argument(metavar="ROLE", help="The role of Postgres.", show_default=False)],
    *,
    conversations: Annotated[bool, typer.Option("--conversations", help="Let it read conversations too.")] = False,
    config: ConfigOption = None,
) -> None:
    """Print the SQL that lets a role of Postgres read reports, and write nothing."""
    session = open_session(ctx, config)
    schema = session.value(session.config).storage.schema
    session.write(_scripts(session).grants_script(role, schema=schema, conversations=conversations))


def _scripts(session: Session) -> ModuleType:
    try:
        return import_module("llm_effects.stores.sql.scripts")
    except ModuleNotFoundError:
        session.fail(ConfigurationError(message=f"SQLAlchemy is not installed: {install_command('sql')}"))


def _versions(session: Session) -> tuple[int, int, tuple[str, ...]]:
    settings, scripts = session.value(session.config).storage, _scripts(session)
    if scripts.dialect_of(settings) is None:
        session.fail(ConfigurationError(message=NO_TABLES))
    version: int = session.value(scripts.stored_version(settings))
    return version, scripts.NEWEST, scripts.pending_steps(version)


def _script(session: Session, dialect: str | None, first: int | None) -> str:
    settings, scripts = session.value(session.config).storage, _scripts(session)
    if dialect not in {None, "sqlite", "postgresql"}:
        session.fail(InvalidRequest(message="dialect: must be sqlite or postgresql"))
    if first is not None and first > scripts.NEWEST:
        session.fail(InvalidRequest(message=f"from: there is no version {first}: name one from 0 to {scripts.NEWEST}"))
    if dialect is None:
        dialect, first = scripts.dialect_of(settings), _versions(session)[0] if first is None else first
    write: Callable[..., str] = scripts.migration_script
    return write(dialect, first or 0, schema=settings.schema)


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
