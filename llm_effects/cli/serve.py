"""``serve``: the models behind an endpoint for any program that speaks OpenAI's chat completions."""

import logging
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final

import anyio
import typer

from llm_effects.cli import ExitCode
from llm_effects.cli.program import ConfigOption, Session, StorageOption, open_session, program
from llm_effects.config import LLMConfig
from llm_effects.manager import open_env
from llm_effects.providers.target import is_loopback
from llm_effects.values.errors import ConfigurationError
from llm_effects.values.extras import install_command
from llm_effects.values.validation import InvalidValue

if TYPE_CHECKING:
    from uvicorn import Server

    from llm_effects.effects.env import LLMEnv

GRACE_S: Final = 20
"""Seconds that requests under way have left when the program is asked to stop."""


@program.command()
def serve(
    ctx: typer.Context,
    *,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="The port; 0 is any free one.")] = 8000,
    allow_anyone: Annotated[
        bool, typer.Option("--allow-anyone", help="Serve other machines even if no key is configured.")
    ] = False,
    storage: StorageOption = None,
    config: ConfigOption = None,
) -> None:
    """Serve the models to programs that speak OpenAI's chat completions.

    They get routing, fallback, cache, limits and budgets. Keys are those of serve.keys in the configuration, or the one
    in LLM_SERVE_KEY; without any, only programs on this machine are served. Ctrl-C or SIGTERM lets requests under way
    end within 20 seconds.
    """
    session = open_session(ctx, config, storage, many_calls=True)
    loaded = session.value(session.config)
    if not (is_loopback(host) or loaded.serve.keys or allow_anyone):
        remedy = f"no key is configured, and other machines reach {host}: give each owner a key, or pass --allow-anyone"
        session.fail(ConfigurationError(message=f"serve.keys: {remedy}"))
    with _listening(session, host, port) as listening:
        try:
            anyio.run(partial(_serve, session, loaded, listening, allow_anyone=allow_anyone))
        except InvalidValue as problem:
            session.fail(ConfigurationError(message=str(problem)))


@contextmanager
def _listening(session: Session, host: str, port: int) -> Generator[socket.socket]:
    """Listen before anything else is opened, so that a port in use is the first thing to be known."""
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as problem:
        reason = f"{problem.strerror}".partition(" (")[0]  # which repeats the address
        session.err.print(f"Cannot listen on {host}, port {port}: {reason}", style="red", soft_wrap=True)
        raise typer.Exit(ExitCode.FAILED) from None
    with listening:
        yield listening


async def _serve(session: Session, config: LLMConfig, listening: socket.socket, *, allow_anyone: bool) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    async with open_env(config, check=True) as env:
        server = _server_of(session, env, allow_anyone=allow_anyone)
        host, port = listening.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        session.note(f"Serving {', '.join(('auto', *config.models))} at {url}; Ctrl-C stops it.")
        with _signals_handled():
            await server.serve([listening])


def _server_of(session: Session, env: "LLMEnv", *, allow_anyone: bool) -> "Server":
    try:
        from uvicorn import Config, Server

        from llm_effects.asgi import create_app
    except ModuleNotFoundError as problem:
        if problem.name not in {"starlette", "uvicorn"}:
            raise
        session.err.print(f"serve needs Starlette and uvicorn: {install_command('asgi')}", soft_wrap=True)
        raise typer.Exit(ExitCode.MISSING_EXTRA) from None
    app = create_app(env, allow_anyone=allow_anyone)
    settings = Config(
        app, log_config=None, access_log=False, proxy_headers=False, timeout_graceful_shutdown=GRACE_S, lifespan="on"
    )
    return Server(settings)


def _ignore(*_: object) -> None:
    pass


@contextmanager
def _signals_handled() -> Generator[None]:
    """Ignore the signals that uvicorn raises again after it has stopped for them: what it serves is still to close."""
    stopping = (signal.SIGINT, signal.SIGTERM)
    before = {each: signal.signal(each, _ignore) for each in stopping}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
