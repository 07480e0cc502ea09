"""Commands about the configuration and whether it works: ``models``, ``config`` and ``config check``."""

import warnings
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from decimal import Decimal
from typing import Annotated, Final, cast

import typer
from attrs import evolve
from rich.console import Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from llm_effects.cli import ExitCode
from llm_effects.cli.display import add_row, duration, money, new_table, shown
from llm_effects.cli.program import ConfigOption, JsonOption, Session, StorageOption, open_session, program
from llm_effects.clients.health_checks import check_health
from llm_effects.config.settings import DEFAULT, Setting, config_settings
from llm_effects.effects.effect import from_env
from llm_effects.effects.env import LLMEnv
from llm_effects.manager import check_setup
from llm_effects.values.records import Check, ModelHealth
from llm_effects.values.responses import Cost, Usage
from llm_effects.values.secrets import shown_url

# Models.


@program.command()
def models(ctx: typer.Context, *, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Show which models are ready, their contexts and their prices.

    Contexts are tokens, prices US dollars for a million tokens, in and out. The exit code is 1 if no model is ready.
    """
    session = open_session(ctx, config)
    names = tuple(session.value(session.config).models)
    prices = session.run(from_env(lambda env: {name: _prices(env, name) for name in names}))
    found: dict[str, ModelHealth] = {}
    live = session.out.is_terminal and not as_json
    with Live(console=session.out, refresh_per_second=8) if live else nullcontext() as view:

        def note(health: ModelHealth) -> None:
            found[health.model] = health
            if view is not None:
                view.update(_models_view(names, found, prices))

        if view is not None:
            view.update(_models_view(names, found, prices))
        health = session.run(check_health(note))
    if as_json:
        session.write_json([_model_record(each, *prices[each.model]) for each in health])
    elif not live:
        session.show(_models_view(names, found, prices))
    if not any(each.ready for each in health):
        raise typer.Exit(ExitCode.FAILED)


def _prices(env: LLMEnv, name: str) -> tuple[Cost, Cost]:
    """Return the prices of a million tokens in and out, for prompts of usual length."""
    usages = (Usage(input_tokens=1_000, output_tokens=0), Usage(input_tokens=0, output_tokens=1_000))
    each_in, each_out = (env.prices.cost(name, usage, env.now()) for usage in usages)
    return _thousandfold(each_in), _thousandfold(each_out)


def _thousandfold(cost: Cost) -> Cost:
    return cost if cost.usd is None else Cost((cost.usd * 1_000).normalize() + Decimal(0))


def _models_view(
    names: Iterable[str], found: Mapping[str, ModelHealth], prices: Mapping[str, tuple[Cost, Cost]]
) -> RenderableType:
    table = new_table("model", "provider", "state", "context", "$/M in, out", "latency", right=("context", "latency"))
    for name in names:
        if name in found:
            _add_model(table, found[name], prices[name])
        else:
            table.add_row(shown(name), "", Spinner("dots"), "", "", "")
    remarks = [shown(_remark(each)) for name in names if (each := found.get(name)) and each.message]
    return Group(table, *remarks)


def _add_model(table: Table, health: ModelHealth, price: tuple[Cost, Cost]) -> None:
    state = "ready" if health.ready else "reachable" if health.reachable else "down"
    context = "?" if health.context_length is None else f"{health.context_length:,}"
    cost = "free" if price == (Cost.ZERO, Cost.ZERO) else ", ".join(map(money, price))
    add_row(table, health.model, health.provider, state, context, cost, duration(health.latency_ms))


def _remark(health: ModelHealth) -> str:
    """Return what a server said, with the name of its model once."""
    return f"{health.model}: {health.message.replace(f' ({health.model}): ', ': ', 1)}"


def _model_record(health: ModelHealth, price_in: Cost, price_out: Cost) -> dict[str, object]:
    return {
        "model": health.model,
        "provider": health.provider,
        "endpoint": health.endpoint and shown_url(health.endpoint),
        "reachable": health.reachable,
        "ready": health.ready,
        "loaded": health.loaded,
        "context_length": health.context_length,
        "usd_per_million_in": price_in.usd,
        "usd_per_million_out": price_out.usd,
        "latency_ms": health.latency_ms,
        "error": health.error,
        "message": health.message,
    }


# The configuration.

configuration: typer.Typer = typer.Typer(rich_markup_mode=None)
program.add_typer(configuration, name="config")

AllOption = Annotated[bool, typer.Option("--all", help="Also the settings of models that are defaults.")]


@configuration.callback(invoke_without_command=True)
def config_group(
    ctx: typer.Context,
    *,
    show_all: AllOption = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show the configuration in effect, or check it.

    Each value is shown with its origin: a default, a variable or a file. Secrets are hidden.
    """
    if ctx.invoked_subcommand is None:
        _show_settings(open_session(ctx, config), show_all=show_all, as_json=as_json)
    elif config is not None:
        ctx.obj = evolve(ctx.obj, config_file=config)


@configuration.command("show")
def config_show(
    ctx: typer.Context, *, show_all: AllOption = False, as_json: JsonOption = False, config: ConfigOption = None
) -> None:
    """Show the configuration in effect, as config alone does."""
    _show_settings(open_session(ctx, config), show_all=show_all, as_json=as_json)


def _show_settings(session: Session, *, show_all: bool, as_json: bool) -> None:
    with warnings.catch_warnings(action="ignore"):  # the session has shown them
        settings = session.value(config_settings(session.config_file))
    if as_json:
        session.write_json(settings)
        return
    listed = [each for each in settings if show_all or not _is_usual(each)]
    table = new_table("setting", "value", "from", whole=["setting"])
    for each in listed:
        add_row(table, each.place, _plain(each.value), each.origin, style="dim" if each.origin == DEFAULT else None)
    session.show(table)
    if len(listed) < len(settings):
        session.note(f"{len(settings) - len(listed)} settings of models are defaults: --all shows them")


def _is_usual(setting: Setting) -> bool:
    return setting.place.startswith("models.") and setting.origin == DEFAULT and not setting.place.endswith(_TELLING)


_TELLING: Final = (".provider", ".endpoint", ".model")
"""Settings of a model that are shown also where they are defaults."""


def _plain(value: object) -> str:
    """Return a value as a configuration file has it; nothing is shown as a dash."""
    match value:
        case None | []:
            return "-"
        case bool():
            return str(value).lower()
        case list():
            return ", ".join(map(str, cast("list[object]", value)))
        case float():
            return f"{value:.12g}"
        case _:
            return str(value)


@configuration.command()
def check(
    ctx: typer.Context, *, as_json: JsonOption = False, storage: StorageOption = None, config: ConfigOption = None
) -> None:
    """Check every model and every store, and show every problem.

    Servers are asked for their lists of models, which is free and shows a rejected key. A warning does not prevent
    answers, such as one model of several that is down. The exit code is 3 if there is a problem.
    """
    session = open_session(ctx, config, storage)
    checks = session.run(check_setup())
    if as_json:
        session.write_json(checks)
    else:
        session.show(_checks_view(checks))
    if any(each.state == "problem" for each in checks):
        raise typer.Exit(ExitCode.CONFIGURATION)


def _checks_view(checks: Iterable[Check]) -> Table:
    table = new_table("", "what", "found", whole=["", "what"])
    for each in checks:
        add_row(table, each.state, each.place, each.message or "ready", style=_STYLES.get(each.state))
    return table


_STYLES: Final = {"problem": "red", "warning": "yellow"}
