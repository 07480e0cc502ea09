"""The command line, ``llm-effects``: questions, chats, reports and checks, over the public operations.

It needs the extra ``[cli]`` (typer and rich), which nothing else imports.
"""

import gc
import os
import sys
from collections.abc import Mapping
from enum import IntEnum, unique
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import typer

COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    "ask": ("ask", "explain"),
    "chat": ("chat",),
    "batch": ("batch",),
    "setup": ("models", "config"),
    "approvals": ("approvals",),
    "serve": ("serve",),
    "storage": ("storage",),
    "stored": ("usage", "backtest", "conversations", "cache"),
}
"""The commands of each module."""


@unique
class ExitCode(IntEnum):
    """The exit codes of the program."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    CONFIGURATION = 3
    MISSING_EXTRA = 4
    PARTLY_FAILED = 5
    INTERRUPTED = 130
    BROKEN_PIPE = 141


def main() -> None:
    """Run the program with the arguments of this process, and exit."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whatever started the program
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - for as long as the program runs
    try:
        gc.disable()  # nothing of the program is garbage, and looking for some takes 50 of the 400 ms of a start
        program = load_program(*sys.argv[1:2])
        gc.freeze()
        gc.enable()
    except ModuleNotFoundError as problem:
        if problem.name not in {"typer", "rich"}:
            raise
        command: str = import_module("llm_effects.values.extras").install_command("cli")
        sys.stderr.write(f"The command line needs typer and rich: {command}\n")
        sys.exit(ExitCode.MISSING_EXTRA)
    program(prog_name="llm-effects")


def load_program(command: str = "") -> "typer.Typer":
    """Return the program with all its commands; without the extra this is a ``ModuleNotFoundError``.

    For a known ``command`` it imports only the module of that, which saves about 60 ms.
    """
    program: typer.Typer = import_module("llm_effects.cli.program").program
    needed = [module for module, commands in COMMANDS.items() if command in commands]
    for module in needed or COMMANDS:
        import_module(f"llm_effects.cli.{module}")
    return program
