"""A stored conversation in the terminal, which any later ``chat`` continues."""

import shlex
import sys
from contextlib import suppress
from typing import Annotated

import anyio
import typer
from returns.pipeline import is_successful

from llm_effects.cli.ask import (
    AnswerPrinter,
    MaxTokensOption,
    ModelOption,
    SystemOption,
    TaskOption,
    TemperatureOption,
    TimeoutOption,
    preferences_of,
    remark_on,
)
from llm_effects.cli.program import (
    ConfigOption,
    OwnerOption,
    Session,
    StorageOption,
    exit_code,
    is_in_memory,
    open_session,
    program,
)
from llm_effects.conversations import converse, load_conversation, start_conversation
from llm_effects.effects.effect import Effect, fail, rescue
from llm_effects.manager import warm_up
from llm_effects.values.conversations import Conversation
from llm_effects.values.errors import InvalidRequest, LLMError, checked
from llm_effects.values.requests import LLMRequest, Preferences, TaskType
from llm_effects.values.secrets import shown_url

GREETING = "Ctrl-C stops an answer, Ctrl-D ends the chat."


@program.command()
def chat(
    ctx: typer.Context,
    *,
    conversation: Annotated[
        str | None,
        typer.Option("--conversation", "-c", metavar="ID", help="Continue this conversation, or begin it."),
    ] = None,
    model: ModelOption = None,
    system: SystemOption = None,
    task: TaskOption = TaskType.GENERAL,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    timeout: TimeoutOption = None,
    owner: OwnerOption = None,
    storage: StorageOption = None,
    config: ConfigOption = None,
) -> None:
    """Hold a conversation that is stored and can be continued.

    Ctrl-C stops an answer: what you saw of it is stored, and the chat goes on. Ctrl-D ends the chat, which then prints
    how to continue it. --system is for a new conversation. Without a terminal, every line of standard input is a
    message.
    """
    session = open_session(ctx, config, storage)
    preferences = preferences_of(session, max_tokens, temperature, timeout)
    talk = session.value(anyio.run(session.manager.run, _open(conversation, system, owner)))
    anyio.run(warm_up, session.manager.env)
    try:
        _introduce(session, talk)
        _talk(session, talk, model, TaskType(task), preferences)
    finally:
        anyio.run(session.manager.aclose)
        session.note(_farewell(session, talk, storage))


def _open(conversation_id: str | None, system: str | None, owner: str | None) -> Effect[Conversation]:
    """Return the stored conversation of an id, or a new one."""
    start = start_conversation(conversation_id, system=system, owner=owner)

    def start_if_missing(error: LLMError) -> Effect[Conversation]:
        return start if isinstance(error, InvalidRequest) else fail(error)

    if conversation_id is None:
        return start
    stored = load_conversation(conversation_id, owner=owner, newest=1).map(lambda history: history.conversation)
    return rescue(stored, start_if_missing)


def _introduce(session: Session, talk: Conversation) -> None:
    known = f"Continuing {talk.id!r} after {talk.turns} turns." if talk.turns else f"A new conversation, {talk.id!r}."
    session.note(f"{known} {GREETING}" if sys.stdin.isatty() else known)


def _talk(session: Session, talk: Conversation, model: str | None, task: TaskType, preferences: Preferences) -> None:
    """Answer messages until there are no more; in a terminal, an error or Ctrl-C ends only its turn."""
    interactive = sys.stdin.isatty()
    while (message := _next_message(interactive)) is not None:
        if not message.strip():
            continue
        question = session.value(
            checked(LLMRequest, prompt=message, model=model, task_type=task, preferences=preferences, owner=talk.owner)
        )
        try:
            error = _turn(session, talk, question)
        except KeyboardInterrupt:
            if not interactive:
                raise
            session.note("(stopped)")
            continue
        if error is not None and not interactive:
            raise typer.Exit(exit_code(error))


def _next_message(interactive: bool) -> str | None:
    """Return the next message, or ``None`` after the last one."""
    if not interactive:
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None
    with suppress(ModuleNotFoundError):
        import readline  # noqa: F401  # pyright: ignore[reportUnusedImport] - lets input() edit the line
    try:
        return input("\n> ")
    except (EOFError, KeyboardInterrupt) as end:
        sys.stdout.write("\n")
        if isinstance(end, KeyboardInterrupt):
            raise
        return None


def _turn(session: Session, talk: Conversation, question: LLMRequest) -> LLMError | None:
    """Answer one message as it arrives, and return the error if there was one."""
    with AnswerPrinter(session) as printer:
        result = anyio.run(session.manager.run, converse(talk.id, question, sink=printer))
    if is_successful(result):
        remark_on(session, result.unwrap())
        return None
    session.complain(result.failure())
    return result.failure()


def _farewell(session: Session, talk: Conversation, storage: str | None) -> str:
    """Return how to continue a conversation."""
    config = session.config.unwrap()
    if is_in_memory(config):
        return "Not stored: set LLM_STORAGE_URL, storage.url or --storage, such as --storage sqlite:///llm.db"
    words = ["llm-effects", "chat", "--conversation", talk.id]
    words += [] if session.config_file is None else ["--config", str(session.config_file)]
    words += [] if storage is None else ["--storage", shown_url(storage)]
    words += [] if talk.owner is None else ["--owner", talk.owner]
    return f"Continue with: {shlex.join(words)}"
