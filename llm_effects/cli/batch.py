"""Many questions from a file of JSON lines, in a run that can be stopped and resumed."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Annotated, Final, Self, cast, final

import msgspec
import typer
from attrs import define, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from llm_effects.batches import Progress, Via, file_journal, generate_each
from llm_effects.batches.journals import no_journal
from llm_effects.cli import ExitCode
from llm_effects.cli.ask import ModelOption
from llm_effects.cli.display import money
from llm_effects.cli.program import ConfigOption, Session, open_session, program
from llm_effects.effects.effect import Answer
from llm_effects.values.errors import InvalidRequest, LLMError, describe
from llm_effects.values.requests import CachePolicy, LLMRequest
from llm_effects.values.serialization import dump_value, parse_value

MOST_PROBLEMS: Final = 20
"""How many wrong lines of the input are listed."""


@program.command()
def batch(
    ctx: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="A file of JSON lines; - is standard input.", show_default=False)
    ],
    target: Annotated[
        str, typer.Argument(metavar="[OUTPUT]", help="Where the answers go; - is standard output.")
    ] = "-",
    *,
    concurrency: Annotated[int, typer.Option(min=1, metavar="N", help="How many requests run at once.")] = 8,
    journal: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What is answered, for the next run: by default OUTPUT.journal."),
    ] = None,
    model: ModelOption = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Answer equal requests one by one, without the cache.")
    ] = False,
    via: Annotated[
        Via,
        typer.Option(help="provider: submit batches at half price, and wait for them, up to a day."),
    ] = "calls",
    config: ConfigOption = None,
) -> None:
    """Answer many requests from a file, in a run that can be resumed.

    Each line of INPUT is a JSON text, which is the prompt, or an object with the fields of LLMRequest and any "id".
    Each line of OUTPUT has the number of its request from 0, the id, and a response or an error, in the order of INPUT.

    Run the same command again to resume: answers in the journal are not paid for twice, and failed requests are sent
    again.
    """
    session = open_session(ctx, config, many_calls=True)
    items = session.value(read_items(_lines_of(session, source), model))
    path = Path(f"{target}.journal") if journal is None and target != "-" else journal
    if via == "provider" and path is None:
        session.fail(InvalidRequest(message="journal: --via provider needs one: name an OUTPUT, or use --journal"))
    _check_target(session, source, target)
    run = generate_each(
        [item.request for item in items],
        writer := OrderedWriter(items, None if target == "-" else Path(target), session.out.file),
        concurrency,
        cache=CachePolicy.BYPASS if no_cache else None,
        journal=no_journal if path is None else file_journal(path),
        progress=(bar := ProgressBar(session, len(items), target)).update,
        via=via,
    )
    try:
        with writer, bar:
            progress = session.run(run)
    except KeyboardInterrupt:
        session.note("stopped" if path is None else f"stopped; run the same command again to resume from {path}")
        raise
    session.note(summary(progress))
    if progress.failed:
        raise typer.Exit(ExitCode.PARTLY_FAILED)


# Input.


@final
@frozen
class Item:
    """A request of the input, and the id that its line gave."""

    request: LLMRequest
    id: object = None


def read_items(lines: Iterable[str], model: str | None = None) -> Result[tuple[Item, ...], LLMError]:
    """Read all lines before anything is sent; a failure names every wrong line, up to a limit.

    >>> items = read_items(['"why?"', '{"id": 7, "prompt": "how?", "tags": ["night"]}']).unwrap()
    >>> [(item.id, item.request.prompt) for item in items]
    [(None, 'why?'), (7, 'how?')]
    >>> print(read_items(["oops", '{"promt": "how?"}']).failure().message)
    input: 2 lines are wrong, and nothing was sent
    line 1: is not JSON: JSON is malformed: invalid character (byte 0)
    line 2: Extra fields in constructor for LLMRequest: promt
    """
    read = [(number, _item(line, model)) for number, line in enumerate(lines, 1) if line.strip()]
    wrong = [f"line {number}: {each.failure()}" for number, each in read if not is_successful(each)]
    if not wrong:
        return Success(tuple(each.unwrap() for _, each in read))
    more = [f"and {len(wrong) - MOST_PROBLEMS} more"] if len(wrong) > MOST_PROBLEMS else []
    heading = f"input: {len(wrong)} {'line is' if len(wrong) == 1 else 'lines are'} wrong, and nothing was sent"
    return Failure(InvalidRequest(message="\n".join((heading, *wrong[:MOST_PROBLEMS], *more))))


def _item(line: str, model: str | None) -> Result[Item, str]:
    try:
        value: object = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as problem:
        return Failure(f"is not JSON: {problem}")
    fields = {"prompt": value} if isinstance(value, str) else value
    if not isinstance(fields, dict):
        return Failure("must be a text or an object")
    table = {**({} if model is None else {"model": model}), **cast("Mapping[str, object]", fields)}
    given_id = table.pop("id", None)
    request = parse_value(table, LLMRequest)
    return request.map(lambda request: Item(request, given_id)).alt("; ".join)


def _lines_of(session: Session, source: str) -> Iterator[str]:
    try:
        text = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        return iter(text.decode("utf-8-sig").splitlines())
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        session.fail(InvalidRequest(message=f"input: {source}: {reason}"))


# Output.


def _check_target(session: Session, source: str, target: str) -> None:
    """Exit if the answers cannot be written, before any is paid for; what the file holds stays for now."""
    path = Path(target)
    try:
        if target != "-":
            path.open("a", encoding="utf-8").close()
        same = "-" not in {source, target} and path.samefile(source)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        session.fail(InvalidRequest(message=f"output: {target}: {reason}"))
    if same:
        session.fail(InvalidRequest(message="output: it is the input too: name another file"))


@final
@define(eq=False)
class OrderedWriter:
    """Writes answers in the order of their requests: one that comes early waits for those before it.

    A file at ``path`` is replaced when the first answer is there, not before the journal is known to be free.
    """

    items: tuple[Item, ...]
    path: Path | None
    output: IO[str]
    _early: dict[int, Answer] = field(factory=dict[int, Answer], init=False)
    _next: int = field(default=0, init=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.path is not None and self._next:
            self.output.close()

    def __call__(self, number: int, answer: Answer) -> None:
        """Accept the answer to a request, and write every answer whose turn it is."""
        self._early[number] = answer
        while self._next in self._early:
            if self.path is not None and self._next == 0:
                self.output = self.path.open("w", encoding="utf-8")
            self.output.write(dump_value(_line(self._next, self.items[self._next], self._early.pop(self._next))) + "\n")
            self._next += 1
        self.output.flush()


def _line(number: int, item: Item, answer: Answer) -> dict[str, object]:
    head = {"number": number} if item.id is None else {"number": number, "id": item.id}
    if is_successful(answer):
        return {**head, "response": answer.unwrap()}
    error = answer.failure()
    return {**head, "error": {"tag": error.tag, "model": error.model, "message": describe(error)}}


# Progress.


@final
class ProgressBar:
    """A bar on standard error while a run is on, if that is a terminal and the answers go elsewhere."""

    def __init__(self, session: Session, total: int, target: str) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        shares_terminal = target == "-" and session.out.is_terminal
        disable = shares_terminal or not session.err.is_terminal
        self._bars = RichProgress(*columns, console=session.err, disable=disable, transient=True)
        self._task = self._bars.add_task("", total=total)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def update(self, now: Progress) -> None:
        """Show how far the run is."""
        self._bars.update(self._task, completed=now.done, description=f"{now.failed} failed, {money(now.cost)}")


def summary(progress: Progress) -> str:
    """Return what a run did, in one line.

    >>> summary(Progress(done=3, failed=1, total=3, resumed=1))
    '3 of 3 done, 1 failed, 1 from the journal, $0'
    """
    parts = (
        f"{progress.done} of {progress.total} done",
        f"{progress.failed} failed",
        f"{progress.resumed} from the journal" if progress.resumed else "",
        f"{progress.changed} changed since" if progress.changed else "",
        money(progress.cost),
    )
    return ", ".join(filter(None, parts))
