"""Questions: ``ask`` streams an answer, ``explain`` shows which models would be asked."""

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Annotated, Self, final

import typer
from attrs import define, field
from rich.console import Group, RenderableType
from rich.status import Status

from llm_effects.cli.display import add_row, count, duration, money, new_table, shown
from llm_effects.cli.program import ConfigOption, JsonOption, OwnerOption, Session, open_session, program
from llm_effects.pipeline import explain as explain_request
from llm_effects.pipeline import generate, stream
from llm_effects.routing.candidates import Candidate, RoutingDecision
from llm_effects.values.errors import InvalidRequest, checked
from llm_effects.values.events import Restarted, StreamEvent, TextDelta
from llm_effects.values.requests import CachePolicy, LLMRequest, Preferences, TaskType
from llm_effects.values.responses import FinishReason, LLMResponse

PromptArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="PROMPT", help="The question; - stands for standard input.", show_default=False),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", metavar="NAME", help="Ask this configured model only.")
]
SystemOption = Annotated[str | None, typer.Option("--system", "-s", metavar="TEXT", help="The system prompt.")]
TaskOption = Annotated[
    str, typer.Option("--task", metavar="NAME", help="The type of task, which decides the order of models.")
]
MaxTokensOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="The longest answer, in tokens.")]
TemperatureOption = Annotated[float | None, typer.Option(min=0, max=2, metavar="T", help="From 0 to 2.")]
TimeoutOption = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="The longest time for the whole call, with retries.")
]
TagOption = Annotated[list[str] | None, typer.Option("--tag", metavar="NAME", help="A tag for the ledger; repeatable.")]


@program.command()
def ask(
    ctx: typer.Context,
    prompt: PromptArgument = None,
    *,
    model: ModelOption = None,
    system: SystemOption = None,
    task: TaskOption = TaskType.GENERAL,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    timeout: TimeoutOption = None,
    owner: OwnerOption = None,
    tag: TagOption = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor fill the cache.")] = False,
    explained: Annotated[bool, typer.Option("--explain", help="First show which models are asked, and why.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Ask one question and stream the answer.

    Without a prompt, the question is read from standard input. Several words are one question, and - among them stands
    for standard input: git diff | llm-effects ask "Review this:" -
    """
    session = open_session(ctx, config)
    request = session.value(
        checked(
            LLMRequest,
            prompt=text_of(session, prompt),
            model=model,
            system=system,
            task_type=TaskType(task),
            preferences=preferences_of(session, max_tokens, temperature, timeout),
            owner=owner,
            tags=tag or (),
            cache=CachePolicy.BYPASS if no_cache else CachePolicy.USE,
        )
    )
    if explained:
        session.err.print(decision_view(session.run(explain_request(request, streamed=not as_json))))
    if as_json:
        session.write_json(session.run(generate(request)))
        return
    with AnswerPrinter(session) as printer:
        response = session.run(stream(request, printer))
    remark_on(session, response, always=explained)


@program.command()
def explain(
    ctx: typer.Context,
    prompt: PromptArgument = None,
    *,
    model: ModelOption = None,
    system: SystemOption = None,
    task: TaskOption = TaskType.GENERAL,
    max_tokens: MaxTokensOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show which models would be asked, and why.

    No model is asked. The cost is that of this question with an answer of --max-tokens, or of 512 tokens.
    """
    session = open_session(ctx, config)
    preferences = preferences_of(session, max_tokens, None, None)
    text, kind = text_of(session, prompt), TaskType(task)
    request = session.value(
        checked(LLMRequest, prompt=text, model=model, system=system, task_type=kind, preferences=preferences)
    )
    decision = session.run(explain_request(request, streamed=True))
    if as_json:
        session.write_json(decision)
    else:
        session.show(decision_view(decision))


def preferences_of(
    session: Session, max_tokens: int | None, temperature: float | None, timeout: float | None
) -> Preferences:
    """Return the preferences that options name; ``timeout`` is seconds."""
    timeout_ms = None if timeout is None else timeout * 1000
    return session.value(checked(Preferences, max_tokens=max_tokens, temperature=temperature, timeout_ms=timeout_ms))


def text_of(session: Session, words: Sequence[str] | None) -> str:
    """Return the question in some words, with standard input in place of ``-`` or if there are none."""
    if not words and sys.stdin.isatty():
        session.fail(InvalidRequest(message="prompt: give a question, or pipe it to standard input"))
    runs = groupby(words or ("-",), "-".__eq__)
    return "\n\n".join(_standard_input(session) if is_input else " ".join(run) for is_input, run in runs)


def _standard_input(session: Session) -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").strip()
    except UnicodeDecodeError as problem:
        session.fail(InvalidRequest(message=f"prompt: standard input is not UTF-8 text (byte {problem.start + 1})"))


# Answers.


@final
@define(eq=False)
class AnswerPrinter:
    """Writes the pieces of an answer as they arrive; until the first one, a terminal shows that it waits."""

    session: Session
    _waiting: Status | None = field(default=None, init=False)
    _written: str = field(default="\n", init=False)

    def __enter__(self) -> Self:
        if self.session.err.is_terminal:
            self._waiting = self.session.err.status("waiting for the model")
            self._waiting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_waiting()
        if not self._written.endswith("\n"):
            self._write("\n")

    async def __call__(self, event: StreamEvent) -> None:
        """Write what an event adds to the answer."""
        if isinstance(event, TextDelta):
            self._write(event.text)
        elif isinstance(event, Restarted):
            self._write("\n\n")

    def _write(self, text: str) -> None:
        self._stop_waiting()
        self._written = text or self._written
        self.session.write(text)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.stop()
            self._waiting = None


def remark_on(session: Session, response: LLMResponse, *, always: bool = False) -> None:
    """Write the warnings of an answer; in a terminal, or always, also which model answered, for how much."""
    for warning in response.warnings:
        session.warn(warning)
    if always or (session.err.is_terminal and session.out.is_terminal):
        usage = response.usage
        parts = (
            response.model,
            f"{count(usage.prompt_tokens)} + {count(usage.output_tokens)} tokens",
            "from the cache" if response.cached else money(response.cost),
            duration(response.latency_ms),
            "cut off at the token limit" if response.finish_reason is FinishReason.LENGTH else "",
        )
        session.note(", ".join(filter(None, parts)))


# Routing decisions.


def decision_view(decision: RoutingDecision) -> RenderableType:
    """Return a decision as a table: the candidates in order, and why others are left out."""
    table = new_table("", "model", "cost", "latency", "errors", "why here", right=("cost", "latency", "errors"))
    for place, each in enumerate(decision.candidates, 1):
        add_row(table, *_candidate_cells(place, each, decision))
    out = [shown(f"not {each.model}: {each.reason}") for each in decision.excluded]
    warnings = [shown(f"warning: {each}") for each in decision.warnings]
    return Group(shown(_heading(decision)), table, *out, *warnings)


def _heading(decision: RoutingDecision) -> str:
    exploring = ", trying a model that may have improved first" if decision.exploring else ""
    return f"Task {decision.task_type}, strategy {decision.strategy}{exploring}:"


def _candidate_cells(place: int, each: Candidate, decision: RoutingDecision) -> tuple[str, ...]:
    latency = each.expected_first_content_ms if decision.streamed else each.expected_latency_ms
    return (
        f"{place}.",
        each.model,
        money(each.estimated_cost),
        duration(latency),
        f"{each.error_rate:.0%} of {each.attempts}" if each.attempts else "none yet",
        ", ".join(_reasons(each)),
    )


def _reasons(each: Candidate) -> Iterator[str]:
    yield f"{each.family} model"
    if each.cooled_down:
        yield f"pauses for {each.cooldown_s:.0f} s"
    if each.open:
        yield f"fails too often: closed for {each.open_s:.0f} s"
    if each.in_flight:
        yield f"{each.in_flight} calls in flight"
    if each.last_resort:
        yield "last resort"
