"""The program: the options that commands share, running an effect, and turning an error into an exit code."""

import errno
import os
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Final, Never, TypeVar, final

import anyio
import typer
from attrs import define, evolve, field
from returns.pipeline import is_successful
from returns.result import Result
from rich.console import Console, RenderableType
from typer.core import TyperGroup

from llm_effects.cli import ExitCode
from llm_effects.cli.display import new_console, pretty_json, shown
from llm_effects.config import LLMConfig
from llm_effects.config.loading import load_config
from llm_effects.effects.effect import Effect
from llm_effects.manager import Adapt, LLMManager
from llm_effects.values.errors import (
    AuthenticationFailed,
    ConfigurationError,
    InvalidRequest,
    LLMError,
    checked,
    describe,
)
from llm_effects.values.secrets import reveal
from llm_effects.values.serialization import dump_value

_Value = TypeVar("_Value")


ORDER: Final = (
    *("ask", "explain", "chat", "batch", "serve", "models", "config"),
    *("usage", "backtest", "conversations", "approvals", "cache", "storage"),
)
"""The commands as people meet them."""


@final
class Program(TyperGroup):
    """The group of all commands, which ends in order where its output cannot be written."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 - of typer's own copy of click
        """Return the commands in the order of ``--help``, whichever module was imported first."""
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Parse the arguments; some options write at once, such as ``--help``."""
        with guarded_output():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """Invoke the command and write what is left of its output."""
        with guarded_output():
            return super().invoke(ctx)


@contextmanager
def guarded_output() -> Generator[None]:
    """Exit where the output cannot be written: without a word if its reader has left, else with a line.

    What is left of the output is dropped, because Python would complain about it at exit.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        problem = error
    except BaseExceptionGroup as problems:  # of the tasks of a call, one of which was writing
        matched, others = problems.split(OSError)
        if matched is None or others is not None:
            raise
        problem = _first_of(matched)
    else:
        return
    if problem.errno not in _UNWRITABLE:
        raise problem
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if problem.errno == errno.EPIPE:
        raise typer.Exit(ExitCode.BROKEN_PIPE)
    sys.stderr.write(f"The output cannot be written: {problem.strerror}\n")
    raise typer.Exit(ExitCode.FAILED)


_UNWRITABLE: Final = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG})
"""Errors of a pipe without a reader, and of a file on a full or broken disk."""


def _first_of(problems: BaseExceptionGroup[OSError]) -> OSError:
    first = problems.exceptions[0]
    return first if isinstance(first, OSError) else _first_of(first)


program: typer.Typer = typer.Typer(
    name="llm-effects",
    cls=Program,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
"""The program, to which each module with commands adds its own."""

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Read the configuration from this TOML file.")
]
StorageOption = Annotated[
    str | None, typer.Option("--storage", metavar="URL", help="Where it is stored, such as sqlite:///llm.db.")
]
OwnerOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="The owner, where several share a ledger or a storage.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON instead.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"llm-effects {version('llm-effects')}\n")
        raise typer.Exit


HELP: Final = """Ask language models, keep conversations, and see what they cost.

Models come from environment variables or from a TOML file. Answers and tables go to standard output, all else to
standard error.

\b
Exit codes:
  0    done
  1    failed: a line on standard error says why
  2    wrong usage: an option, an argument or a request
  3    a wrong configuration, or a rejected key
  4    the extra [cli] is not installed, or [asgi] for serve
  5    a batch is done, but some of its requests failed
  130  interrupted (Ctrl-C)
  141  the reader of the output left (| head)
"""


@program.callback(help=HELP)
def options(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            envvar="LLM_CONFIG",
            help="Read the configuration from this TOML file, not from variables. Every command takes this too.",
        ),
    ] = None,
    _: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Prepare what every command shares."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character shows another one
    if not isinstance(ctx.obj, Surroundings):
        ctx.obj = Surroundings()
    ctx.obj.config_file = config


@final
@define
class Surroundings:
    """The surroundings of a command: the configuration file named before it, and services that tests replace."""

    adapt: Adapt | None = None
    config_file: Path | None = None


@final
@define(eq=False)
class Session:
    """One command at work: its configuration, its manager, and the consoles for output and for everything else."""

    config: Result[LLMConfig, LLMError]
    manager: LLMManager
    config_file: Path | None = None
    out: Console = field(factory=new_console)
    err: Console = field(factory=lambda: new_console(stderr=True))

    def run(self, effect: Effect[_Value]) -> _Value:
        """Run an effect with every connection kept until its end; an error ends the program with its exit code."""
        return self.value(anyio.run(self._run, effect))

    async def _run(self, effect: Effect[_Value]) -> Result[_Value, LLMError]:
        async with self.manager:
            return await self.manager.run(effect)

    def value(self, result: Result[_Value, LLMError]) -> _Value:
        """Return the value of a result; an error ends the program with its exit code."""
        return result.unwrap() if is_successful(result) else self.fail(result.failure())

    def fail(self, error: LLMError) -> Never:
        """Write an error to standard error and exit."""
        self.complain(error)
        raise typer.Exit(exit_code(error))

    def complain(self, error: LLMError) -> None:
        """Write an error to standard error: in one line, or a list of problems with a line for each."""
        match error:
            case ConfigurationError() | InvalidRequest() if "\n" in error.message:
                text = f"{error.tag}: {error.message}"
            case _:
                text = describe(error)
        self.err.print(shown(text), style="red", soft_wrap=True)

    def note(self, text: str) -> None:
        """Write a remark to standard error."""
        self.err.print(shown(text), style="dim", soft_wrap=True)

    def warn(self, text: str) -> None:
        """Write a warning to standard error."""
        self.err.print(shown(f"warning: {text}"), style="yellow", soft_wrap=True)

    def show(self, *parts: RenderableType) -> None:
        """Write tables and texts to standard output."""
        if self.out.is_terminal:
            self.out.print(*parts, sep="\n")
            return
        with self.out.capture() as captured:
            self.out.print(*parts, sep="\n")
        self.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))

    def write_json(self, value: object) -> None:
        """Write a value to standard output as JSON: on one line, or indented in a terminal."""
        self.write(pretty_json(dump_value(value), indent=self.out.is_terminal))

    def write(self, text: str) -> None:
        """Write a text to standard output at once, without what steers a terminal if it is one."""
        self.out.file.write(str(shown(text)) if self.out.is_terminal else text)
        self.out.file.flush()


def open_session(
    ctx: typer.Context, config: Path | None = None, storage: str | None = None, *, many_calls: bool = False
) -> Session:
    """Load the configuration for a command: its own file, or the one named before it, or the variables.

    A command without ``many_calls`` uses httpx unless another transport is chosen: aiohttp takes longer to import.
    """
    surroundings = ctx.obj if isinstance(ctx.obj, Surroundings) else Surroundings()
    file = config or surroundings.config_file
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = load_config(file)
    configured = loaded if storage is None else _with_storage(loaded, storage)
    used = configured if many_calls else configured.map(_with_httpx)
    session = Session(configured, LLMManager(used, surroundings.adapt), file)
    for each in caught:
        session.warn(str(each.message))
    return session


def _with_httpx(config: LLMConfig) -> LLMConfig:
    return evolve(config, transport="httpx") if config.transport == "auto" else config


def _with_storage(loaded: Result[LLMConfig, LLMError], url: str) -> Result[LLMConfig, LLMError]:
    if not is_successful(loaded):
        return loaded
    config = loaded.unwrap()
    return checked(evolve, config.storage, url=url).map(lambda storage: evolve(config, storage=storage))


def exit_code(error: LLMError) -> ExitCode:
    """Return the exit code of an error.

    >>> from llm_effects import NetworkError
    >>> exit_code(InvalidRequest(message="prompt: is blank")).name, exit_code(NetworkError()).name
    ('USAGE', 'FAILED')
    """
    match error:
        case InvalidRequest():
            return ExitCode.USAGE
        case ConfigurationError() | AuthenticationFailed():
            return ExitCode.CONFIGURATION
        case _:
            return ExitCode.FAILED


def confirm(session: Session, question: str, *, yes: bool, otherwise: str = "nothing was deleted") -> None:
    """Ask on the terminal, and exit unless the answer is yes; elsewhere only ``yes`` goes on."""
    if yes:
        return
    if not sys.stdin.isatty():
        session.fail(InvalidRequest(message="yes: standard input is no terminal to ask on: pass --yes"))
    try:
        agreed = typer.confirm(str(shown(question)), err=True)
    except typer.Abort:  # Ctrl-C, or Ctrl-D
        session.note("")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    if not agreed:
        session.note(otherwise)
        raise typer.Exit(ExitCode.FAILED)


NOTHING_KEPT: Final = "The storage is in memory: nothing is kept. Set LLM_STORAGE_URL, storage.url or --storage."


def is_in_memory(config: LLMConfig) -> bool:
    """Return whether conversations and the ledger end with this process."""
    return reveal(config.storage.url).lower().startswith("memory")
