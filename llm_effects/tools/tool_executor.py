"""The calls of one answer: each is checked, approved, noted in the journal and run; several at once, none twice.

One that waits for approval is kept, and does not run.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar, cast, final

import anyio
import msgspec
from anyio.lowlevel import checkpoint_if_cancelled
from attrs import define, evolve, field, frozen
from returns.context import RequiresContextFutureResult
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.conversations.operations import load_conversation
from llm_effects.effects.effect import Effect, result_of, run
from llm_effects.effects.env import LLMEnv
from llm_effects.effects.tasks import in_daemon_thread, in_parallel
from llm_effects.telemetry import conventions as names
from llm_effects.telemetry.logs import LOGGER, unharmed
from llm_effects.tools.approvals import (
    approval_of,
    ask,
    dangerous_calls,
    has_asked,
    shown_arguments,
    untrusted_tools,
)
from llm_effects.tools.journal import NoJournal, RunJournal, in_time
from llm_effects.tools.signatures import Arguments, Handler
from llm_effects.tools.steps import (
    Approval,
    ApprovalPolicy,
    Approve,
    Approved,
    KeptRun,
    ProposedCall,
    Refused,
    ToolAnswer,
    ToolEvent,
    ToolFinished,
    ToolLimits,
    ToolOutcome,
    ToolSink,
    ToolStarted,
    ToolStep,
    Verdict,
    Waiting,
)
from llm_effects.tools.tool import ToolFunction
from llm_effects.values.errors import InvalidRequest, LLMError, cause_of, describe
from llm_effects.values.json import dump, repair_surrogates
from llm_effects.values.messages import Message, Stays, Text, ToolCall, ToolResult
from llm_effects.values.requests import request_messages
from llm_effects.values.responses import CANCELLED, LLMResponse
from llm_effects.values.validation import suggestion

MAX_PROBLEMS: Final = 20
"""Most problems with the arguments of a call that the model sees at once."""

_Value = TypeVar("_Value")


@final
@define(kw_only=True)
class RunState:
    """The state of a run: the only mutable part of it. Times are on the clock of ``anyio.current_time()``.

    ``name`` is the id of the run, or a made-up one, ``kept`` what it is continued from if it waits. ``warnings`` are
    for the caller. ``approval_lock`` is held while the caller decides about a call. ``earlier`` are the messages of the
    conversation before this run, once they are needed.
    """

    journal: RunJournal | NoJournal
    kept: KeptRun
    run_id: str | None
    name: str
    started: float
    deadline: float
    steps: list[ToolStep] = field(factory=list[ToolStep])
    warnings: list[str] = field(factory=list[str])
    approval_lock: anyio.Lock = field(factory=anyio.Lock)
    earlier: tuple[Message, ...] | None = None

    @property
    def step(self) -> int:
        """The number of the current step."""
        return len(self.steps) + 1

    @property
    def responses(self) -> tuple[LLMResponse, ...]:
        """The answers of the finished steps."""
        return tuple(step.response for step in self.steps)


@final
@frozen
class ToolOutput:
    """The text that the model sees of a call, the outcome behind it, and the label of what the tool returned."""

    text: str
    outcome: ToolOutcome
    stays: Stays | None = None


@final
@frozen
class _Job:
    """A function to run, with its arguments."""

    function: ToolFunction
    arguments: Arguments


@final
@frozen(kw_only=True)
class _Clearance:
    """Whether a call may run: it has no ``refusal``, and its ``approval``, if it needs one, has a decision."""

    refusal: ToolOutput | None = None
    approval: Approval | None = None

    @property
    def waits(self) -> bool:
        """Whether the call waits for a decision."""
        return self.approval is not None and self.approval.decision is None


@final
@frozen(kw_only=True)
class ToolExecutor:
    """Executes the calls of a run: the functions by their names, and the options of the run."""

    functions: Mapping[str, ToolFunction]
    limits: ToolLimits
    approve: Approve | None
    needs_approval: ApprovalPolicy
    on_event: ToolSink | None

    async def emit(self, event: ToolEvent) -> None:
        """Pass an event to the listener, if there is one."""
        if self.on_event is not None:
            await self.on_event(event)

    async def execute(
        self, calls: Sequence[ToolCall], state: RunState, env: LLMEnv
    ) -> Result[tuple[ToolAnswer, ...], LLMError]:
        """Execute the calls of an answer, or none of them if one may have happened already.

        Only the journal can fail; the calls under way are awaited in any case.
        """
        earlier = [state.journal.recall(state.step, call) for call in calls]
        if any(each is not None and each.outcome is ToolOutcome.UNKNOWN for each in earlier):
            pairs = zip(calls, earlier, strict=True)
            return Success(tuple(answer or not_run(call, "the run stopped before it") for call, answer in pairs))
        answers: dict[int, Result[ToolAnswer, LLMError]] = {}

        async def work(place: int, call: ToolCall) -> bool:
            answers[place] = await self._execute_once(call, state, env)
            return False

        await in_parallel(calls, min(self.limits.parallel, len(calls)), work)
        error = next((each.failure() for each in answers.values() if not is_successful(each)), None)
        return Success(tuple(answers[at].unwrap() for at in sorted(answers))) if error is None else Failure(error)

    async def _execute_once(self, call: ToolCall, state: RunState, env: LLMEnv) -> Result[ToolAnswer, LLMError]:
        """Execute a call, unless the journal has its result."""
        answer = state.journal.recall(state.step, call)
        if answer is None:
            job = self._prepare(call)
            cleared = await self._clear(call, job.unwrap(), state, env) if is_successful(job) else Success(_Clearance())
            if not is_successful(cleared):
                return Failure(cleared.failure())
            clearance = cleared.unwrap()
            if clearance.waits:
                return Success(_waiting(call, clearance))
            await checkpoint_if_cancelled()  # nothing more runs after a cancellation
            noted = await run(state.journal.begin_call(state.step, call), env)
            if not is_successful(noted):
                return Failure(noted.failure())
            answer = noted.unwrap() or await self._run_job(call, job, clearance, state, env)
        answer = self._staying(answer)  # one from the journal too, which the caller may have resolved
        await self.emit(ToolFinished(state.step, answer))
        return Success(answer)

    def _staying(self, answer: ToolAnswer) -> ToolAnswer:
        """Return an answer whose result stays on this machine if its tool or its call does."""
        function = self.functions.get(answer.call.name)
        stays = answer.call.stays or (None if function is None else function.stays)
        return answer if stays is None else evolve(answer, result=evolve(answer.result, stays=stays))

    def _prepare(self, call: ToolCall) -> Result[_Job, ToolOutput]:
        """Find the function of a call, and read its arguments."""
        function = self.functions.get(call.name)
        if function is None:
            remedy = suggestion(call.name, self.functions, "the tools")
            return Failure(ToolOutput(f"there is no tool {call.name!r}: {remedy}", ToolOutcome.UNKNOWN_TOOL))
        if function.leaves_machine and call.stays is not None:
            return Failure(ToolOutput(_MUST_STAY, ToolOutcome.REFUSED))
        arguments = function.read(call.arguments)
        if not is_successful(arguments):
            problems = "".join(f"\n- {problem}" for problem in arguments.failure()[:MAX_PROBLEMS])
            return Failure(ToolOutput(f"the arguments do not fit:{problems}", ToolOutcome.BAD_ARGUMENTS))
        return Success(_Job(function, arguments.unwrap()))

    async def _clear(self, call: ToolCall, job: _Job, state: RunState, env: LLMEnv) -> Result[_Clearance, LLMError]:
        """Have a call approved if it needs that: by the caller, or by a decision that is kept."""
        if self.needs_approval is dangerous_calls and not job.function.dangerous:
            return Success(_Clearance())
        earlier = await _earlier_messages(state, env)
        if not is_successful(earlier):
            return Failure(earlier.failure())
        seen = (*earlier.unwrap(), *(message for step in state.steps for message in step.messages))
        proposed = ProposedCall(call=call, risk=job.function.risk, untrusted=untrusted_tools(seen))
        reason = self.needs_approval(proposed)
        return Success(_Clearance()) if reason is None else await self._decide(proposed, job, reason, state, env)

    async def _decide(
        self, proposed: ProposedCall, job: _Job, reason: str, state: RunState, env: LLMEnv
    ) -> Result[_Clearance, LLMError]:
        """Return the kept decision about a call that waited before; about any other ask the caller."""
        shown = shown_arguments(job.function, job.arguments)
        build = partial(approval_of, proposed, shown, step=state.step, kept=state.kept, env=env)
        journal = state.journal
        verdict: Verdict = Waiting()
        if isinstance(journal, NoJournal) or not has_asked(journal, build(reason, journal=journal)):
            verdict = await self._verdict(proposed.call, state, env)
        if not isinstance(verdict, Waiting):
            return Success(_clearance_by(verdict))
        if isinstance(journal, NoJournal):
            return Failure(InvalidRequest(message=NEEDS_RUN_ID))
        approval = build(verdict.reason or reason, journal=journal)
        return (await run(ask(journal, approval, state.kept), env)).map(_clearance_of)

    async def _verdict(self, call: ToolCall, state: RunState, env: LLMEnv) -> Verdict:
        """Return the verdict of the caller; anything but a verdict refuses, even an effect that fails."""
        if self.approve is None:
            return Refused()
        async with state.approval_lock:
            result = await resolve(self.approve(call), env)
        verdict = result.unwrap() if is_successful(result) else None
        if isinstance(verdict, Approved | Refused | Waiting):
            return verdict
        how = f"returned {type(verdict).__name__}" if is_successful(result) else "failed"
        remedy = "return Approved(), Refused(reason) or Waiting()"
        state.warnings.append(f"tools: {call.name} was refused, because approve {how}: {remedy}")
        return Refused("the approval failed")

    async def _run_job(
        self, call: ToolCall, job: Result[_Job, ToolOutput], clearance: _Clearance, state: RunState, env: LLMEnv
    ) -> ToolAnswer:
        """Run a prepared call and write its result to the journal."""
        started, trusted = anyio.current_time(), True
        output = clearance.refusal if is_successful(job) else job.failure()
        if output is None:
            await self.emit(ToolStarted(state.step, call))
            function, trusted = job.unwrap().function, job.unwrap().function.trusted
            output = await _run_traced(call, function, job.unwrap().arguments, env)
        text, is_error = truncate(output.text, self.limits.result_chars), output.outcome is not ToolOutcome.DONE
        answer = ToolAnswer(
            call=call,
            result=ToolResult(call.id, text, is_error=is_error, trusted=trusted, stays=output.stays),
            outcome=output.outcome,
            latency_ms=(anyio.current_time() - started) * 1000,
            approval=clearance.approval,
        )
        answer = self._staying(answer)
        stored = await run(state.journal.end_call(state.step, answer), env)
        if not is_successful(stored):
            problem = describe(stored.failure())
            state.warnings.append(f"tools: the result of {call.name} is not in the journal: {problem}")
        return answer


_MUST_STAY: Final = (
    "refused: this tool sends its arguments to another machine, and they are made of content that stays on this one"
)

NEEDS_RUN_ID: Final = "run_id: a run whose calls can wait for approval needs an id, by which it is continued"


async def _earlier_messages(state: RunState, env: LLMEnv) -> Result[tuple[Message, ...], LLMError]:
    """Return the messages before this run: of its request, and all of its conversation, which is read once."""
    name, request = state.kept.conversation_id, state.kept.request
    if state.earlier is None and name is not None:
        history = await run(in_time(load_conversation(name, owner=request.owner), "reading the conversation"), env)
        if not is_successful(history):
            return Failure(history.failure())
        state.earlier = tuple(each.message for turn in history.unwrap().turns for each in turn.messages)
    return Success((*request_messages(request), *(state.earlier or ())))


def _clearance_by(verdict: Approved | Refused) -> _Clearance:
    if isinstance(verdict, Approved):
        return _Clearance()
    return _Clearance(refusal=ToolOutput(f"refused: {verdict.reason}", ToolOutcome.REFUSED))


def _clearance_of(approval: Approval) -> _Clearance:
    """Return whether a call may run that waits, or waited."""
    decision = approval.decision
    if decision is None or decision.approved:
        return _Clearance(approval=approval)
    return evolve(_clearance_by(Refused(decision.reason)), approval=approval)


def _waiting(call: ToolCall, clearance: _Clearance) -> ToolAnswer:
    result = ToolResult(call.id, "This was not run: it waits for approval.", is_error=True)
    return ToolAnswer(call=call, result=result, outcome=ToolOutcome.WAITING, approval=clearance.approval)


def not_run(call: ToolCall, reason: str) -> ToolAnswer:
    """Return the result of a call that did not run: every call needs one before the conversation can continue."""
    result = ToolResult(call.id, f"This was not run: {reason}.", is_error=True)
    return ToolAnswer(call=call, result=result, outcome=ToolOutcome.NOT_RUN)


async def _run_traced(call: ToolCall, function: ToolFunction, arguments: Arguments, env: LLMEnv) -> ToolOutput:
    """Run a tool in a span of its own, if telemetry is active."""
    if not env.telemetry.active:
        return await run_tool(function, arguments, env)
    opening = {names.OPERATION: names.EXECUTE_TOOL, names.TOOL_NAME: call.name, names.TOOL_CALL_ID: call.id}
    span = unharmed(env.telemetry.begin, f"{names.EXECUTE_TOOL} {call.name}", opening)
    outcome = CANCELLED
    try:
        output = await run_tool(function, arguments, env)
        outcome = output.outcome.value
    finally:
        if span is not None:
            error = None if outcome in {CANCELLED, ToolOutcome.DONE.value} else outcome
            unharmed(span.end, {names.OUTCOME: outcome}, error)
    return output


# The edge to the functions behind tools: whatever they do becomes a text for the model, and nothing breaks.


async def run_tool(function: ToolFunction, arguments: Arguments, env: LLMEnv) -> ToolOutput:
    """Run a tool and return its output; only a cancellation passes through.

    A plain function runs in a thread. After its time limit the model sees a time-out, but the thread runs to its end,
    or to that of the process: nothing can stop it.
    """
    with anyio.move_on_after(function.timeout_s):
        return await _output_of(await _catching(lambda: _call(function.function, arguments, env)))
    text = f"no result within {function.timeout_s:g} s: it may or may not have taken effect"
    return ToolOutput(text, ToolOutcome.TIMED_OUT)


async def _call(function: Handler, arguments: Arguments, env: LLMEnv) -> Result[object, object]:
    call = partial(function, **arguments)
    if _is_async(function):
        return await resolve(call(), env)
    return await resolve(await in_daemon_thread(call), env)


def _is_async(function: Handler) -> bool:
    inner = function.func if isinstance(function, partial) else function
    return any(map(inspect.iscoroutinefunction, (inner, type(inner).__call__)))


async def resolve(value: object, env: LLMEnv) -> Result[object, object]:
    """Return the result behind what a function returned: an effect, a future, a result, an awaitable, or a value."""
    if isinstance(value, RequiresContextFutureResult):
        return await run(cast("Effect[object]", value), env)
    if isinstance(value, FutureResult):
        return await result_of(cast("FutureResult[object, LLMError]", value))
    if inspect.isawaitable(value):
        return await resolve(await value, env)
    return cast("Result[object, object]", value) if isinstance(value, Result) else Success(value)


async def _catching(work: Callable[[], Awaitable[_Value]]) -> Result[_Value, BaseException]:
    """Turn any exception into a value; only here, since a tool is not our code and a model can correct its call.

    A cancellation passes, unless it is the tool's own, as of a future that it waited for. ``sys.exit``, which functions
    of command lines call, is caught too: a model must not end the process.
    """
    try:
        return Success(await work())
    except anyio.get_cancelled_exc_class() as problem:
        await checkpoint_if_cancelled()
        return _failure(problem)
    except (Exception, SystemExit) as problem:  # noqa: BLE001 - see above
        return _failure(problem)


def _failure(problem: BaseException) -> Failure[BaseException]:
    unharmed(LOGGER.log, logging.DEBUG, "a tool raised", exc_info=problem)
    return Failure(problem)


async def _output_of(result: Result[Result[object, object], BaseException]) -> ToolOutput:
    if not is_successful(result):
        return ToolOutput(_exception_text(result.failure()), ToolOutcome.FAILED)
    returned = result.unwrap()
    outcome = ToolOutcome.DONE if is_successful(returned) else ToolOutcome.FAILED
    value = returned.unwrap() if is_successful(returned) else _error_value(returned.failure())
    text = await _catching(partial(_text_of, value))
    stays = value.stays if isinstance(value, Text | LLMResponse) else None
    if is_successful(text):
        return ToolOutput(text.unwrap(), outcome, stays)
    problem = f"the tool ran, but its result is not JSON: {_exception_text(text.failure())}"
    return ToolOutput(problem, ToolOutcome.FAILED, stays)


def _exception_text(problem: BaseException) -> str:
    try:
        cause = cause_of(problem)
    except Exception:  # noqa: BLE001 - its __str__ is not our code either
        return type(problem).__name__
    return f"{cause.type}: {cause.message}" if cause.message else cause.type


def _error_value(error: object) -> object:
    if isinstance(error, Exception):
        return _exception_text(error)
    return describe(error) if isinstance(error, LLMError) else error


async def _text_of(value: object) -> str:
    if isinstance(value, Text):
        value = value.text
    if isinstance(value, str):
        return repair_surrogates(str.__str__(value))  # the value of an enumeration's member
    return dump(msgspec.to_builtins(value, str_keys=True, enc_hook=_to_builtins)).decode()


def _to_builtins(value: object) -> object:
    """Return a model of pydantic as plain data."""
    model_dump = getattr(value, "model_dump", None)
    if model_dump is None:
        raise TypeError(f"{type(value).__name__} cannot be written as JSON")
    return model_dump(mode="json")


def truncate(text: str, length: int) -> str:
    r"""Cut a text that is too long for a model, with a note.

    >>> truncate("x" * 100, 3)
    'xxx\n[The result was cut here: 3 of its 100 characters are shown.]'
    """
    if len(text) <= length:
        return text
    return f"{text[:length]}\n[The result was cut here: {length} of its {len(text)} characters are shown.]"
