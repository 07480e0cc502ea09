"""The calls of one answer: each is read, approved, noted, run and told, several at once; none runs twice."""

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, TypeAlias, TypeVar, cast, final

import anyio
import msgspec
from anyio.lowlevel import checkpoint_if_cancelled
from attrs import define, field, frozen
from returns.context import RequiresContextFutureResult
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.effects.effect import Effect, result_of, run
from llm_effects.effects.env import LLMEnv
from llm_effects.effects.tasks import in_parallel
from llm_effects.telemetry import conventions as names
from llm_effects.telemetry.logs import LOGGER, unharmed
from llm_effects.tools.journal import NoJournal, RunJournal
from llm_effects.tools.signatures import Arguments, Handler
from llm_effects.tools.steps import (
    Approve,
    Approved,
    Refused,
    ToolAnswer,
    ToolEvent,
    ToolFinished,
    ToolLimits,
    ToolOutcome,
    ToolSink,
    ToolStarted,
    ToolStep,
)
from llm_effects.tools.tool import ToolFunction
from llm_effects.values.errors import LLMError, cause_of, describe
from llm_effects.values.json import dump, repair_surrogates
from llm_effects.values.messages import ToolCall, ToolResult
from llm_effects.values.responses import CANCELLED, LLMResponse
from llm_effects.values.validation import suggestion

# The edge to the functions behind tools: whatever they do, the model is told, and nothing breaks.


_Made = TypeVar("_Made")


@final
@frozen
class ToolOutput:
    """What a model is told of a call, and what that stands for."""

    text: str
    outcome: ToolOutcome


async def output_of(function: ToolFunction, given: Arguments, env: LLMEnv) -> ToolOutput:
    """Run a tool and tell what came of it; only a cancellation gets out.

    A plain function runs in a thread. When its time is up the model is told so, but the thread goes on to its end:
    nobody can stop it.
    """
    with anyio.move_on_after(function.timeout_s):
        came = await _guarded(lambda: _value_of(function.function, given, env))
        return await _told(came)
    late = f"no result within {function.timeout_s:g} s: it may or may not have taken effect"
    return ToolOutput(late, ToolOutcome.TIMED_OUT)


async def _told(came: Result[Result[object, object], BaseException]) -> ToolOutput:
    if not is_successful(came):
        return ToolOutput(_named(came.failure()), ToolOutcome.FAILED)
    result = came.unwrap()
    outcome = ToolOutcome.DONE if is_successful(result) else ToolOutcome.FAILED
    value = result.unwrap() if is_successful(result) else _error(result.failure())
    text = await _guarded(partial(_written, value))
    if is_successful(text):
        return ToolOutput(text.unwrap(), outcome)
    return ToolOutput(f"the tool ran, but its result is no JSON: {_named(text.failure())}", ToolOutcome.FAILED)


async def _guarded(work: Callable[[], Awaitable[_Made]]) -> Result[_Made, BaseException]:
    """The one place where any exception becomes a value: what runs here is not ours, and a model can mend its call.

    A cancellation passes, unless it is one of the tool's own: of a future that it waited for, say. So ends a
    function that calls ``sys.exit``, as those of command lines do: it is not for a model to end the process.
    """
    try:
        return Success(await work())
    except anyio.get_cancelled_exc_class() as problem:
        await checkpoint_if_cancelled()
        return _raised(problem)
    except (Exception, SystemExit) as problem:  # noqa: BLE001 - see above
        return _raised(problem)


def _raised(problem: BaseException) -> Failure[BaseException]:
    unharmed(LOGGER.log, logging.DEBUG, "a tool raised", exc_info=problem)
    return Failure(problem)


def _named(problem: BaseException) -> str:
    try:
        cause = cause_of(problem)
    except Exception:  # noqa: BLE001 - what it says of itself is not ours either
        return type(problem).__name__
    return f"{cause.type}: {cause.message}" if cause.message else cause.type


async def _value_of(function: Handler, given: Arguments, env: LLMEnv) -> Result[object, object]:
    called = partial(function, **given)
    if _is_async(function):
        return await settled(called(), env)
    # a limiter of its own: a thread that hangs must not hold up the others
    value = await anyio.to_thread.run_sync(called, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))
    return await settled(value, env)


def _is_async(function: Handler) -> bool:
    inner = function.func if isinstance(function, partial) else function
    return any(map(inspect.iscoroutinefunction, (inner, type(inner).__call__)))


async def settled(value: object, env: LLMEnv) -> Result[object, object]:
    """Bring what a function gave to its end: an effect, a future, a result, something to await, or a plain value."""
    if isinstance(value, RequiresContextFutureResult):
        return await run(cast("Effect[object]", value), env)
    if isinstance(value, FutureResult):
        return await result_of(cast("FutureResult[object, LLMError]", value))
    if inspect.isawaitable(value):
        return await settled(await value, env)
    return cast("Result[object, object]", value) if isinstance(value, Result) else Success(value)


def _error(problem: object) -> object:
    if isinstance(problem, Exception):
        return _named(problem)
    return describe(problem) if isinstance(problem, LLMError) else problem


async def _written(value: object) -> str:
    if isinstance(value, str):
        return repair_surrogates(str.__str__(value))  # of an enumeration's member its value
    return dump(msgspec.to_builtins(value, str_keys=True, enc_hook=_plain)).decode()


def _plain(value: object) -> object:
    """Write pydantic's models as they would themselves."""
    own = getattr(value, "model_dump", None)
    if own is None:
        raise TypeError(f"{type(value).__name__} cannot be written as JSON")
    return own(mode="json")


def cut(text: str, most: int) -> str:
    r"""Cut what is too long for a model to read, and say so.

    >>> cut("x" * 100, 3)
    'xxx\n[The result was cut here: 3 of its 100 characters are shown.]'
    """
    length = len(text)
    return text if length <= most else f"{text[:most]}{_CUT.format(most, length)}"


_CUT: Final = "\n[The result was cut here: {} of its {} characters are shown.]"


# How far a run has come: the one thing in it that changes.


@final
@define(kw_only=True)
class RunState:
    """A run under way. ``name`` is its id, or one that was made up; times are on the clock of the event loop.

    ``troubles`` gathers what the caller is warned of; ``approving`` is held by the one call that is being decided on.
    """

    journal: RunJournal | NoJournal
    run_id: str | None
    name: str
    started: float
    deadline: float
    steps: list[ToolStep] = field(factory=list[ToolStep])
    troubles: list[str] = field(factory=list[str])
    approving: anyio.Lock = field(factory=anyio.Lock)

    @property
    def step(self) -> int:
        """The number of the step that is being taken."""
        return len(self.steps) + 1

    @property
    def responses(self) -> tuple[LLMResponse, ...]:
        """The answers of the steps that were taken."""
        return tuple(step.response for step in self.steps)


SHOWN: Final = 20
"""Problems with the arguments of a call that the model is told of at once."""

_Job: TypeAlias = tuple[ToolFunction, Arguments]


@final
@frozen(kw_only=True)
class ToolExecutor:
    """What all calls of a run share: the functions by their names, and what the caller of the run says of them."""

    functions: Mapping[str, ToolFunction]
    limits: ToolLimits
    approve: Approve | None
    on_event: ToolSink | None

    async def tell(self, event: ToolEvent) -> None:
        """Tell an event to whoever listens."""
        if self.on_event is not None:
            await self.on_event(event)


async def carried_out(
    shop: ToolExecutor, running: RunState, calls: Sequence[ToolCall], env: LLMEnv
) -> Result[tuple[ToolAnswer, ...], LLMError]:
    """Carry out the calls of an answer; none of them, if one may or may not have happened already.

    What fails is the journal alone: then those under way are waited for all the same.
    """
    before = [running.journal.recall(running.step, call) for call in calls]
    if any(each is not None and each.outcome is ToolOutcome.UNKNOWN for each in before):
        pairs = zip(calls, before, strict=True)
        return Success(tuple(known or not_run(call, _WAITS) for call, known in pairs))
    done: dict[int, Result[ToolAnswer, LLMError]] = {}

    async def work(place: int, call: ToolCall) -> bool:
        done[place] = await _answered(shop, running, call, env)
        return False

    await in_parallel(calls, min(shop.limits.parallel, len(calls)), work)
    failed = next((each.failure() for each in done.values() if not is_successful(each)), None)
    return Failure(failed) if failed is not None else Success(tuple(done[place].unwrap() for place in sorted(done)))


def not_run(call: ToolCall, why: str) -> ToolAnswer:
    """Tell that a call was not carried out: every call needs a result before the conversation can go on."""
    result = ToolResult(call.id, f"This was not run: {why}.", is_error=True)
    return ToolAnswer(call=call, result=result, outcome=ToolOutcome.NOT_RUN)


_WAITS: Final = "the run stopped before it"


async def _answered(shop: ToolExecutor, running: RunState, call: ToolCall, env: LLMEnv) -> Result[ToolAnswer, LLMError]:
    answer = running.journal.recall(running.step, call)
    if answer is None:
        job = await _permitted(shop, running, call, env)
        await checkpoint_if_cancelled()  # whoever gave up wants nothing more to be done
        begun = await running.journal.begin_call(running.step, call)
        if not is_successful(begun):
            return Failure(begun.failure())
        answer = begun.unwrap() or await _done(shop, running, call, job, env)
    await shop.tell(ToolFinished(running.step, answer))
    return Success(answer)


async def _permitted(shop: ToolExecutor, running: RunState, call: ToolCall, env: LLMEnv) -> Result[_Job, ToolOutput]:
    """Find and read what is to run, and have it approved where it is dangerous."""
    function = shop.functions.get(call.name)
    if function is None:
        remedy = suggestion(call.name, shop.functions, "the tools")
        return Failure(ToolOutput(f"there is no tool {call.name!r}: {remedy}", ToolOutcome.UNKNOWN_TOOL))
    read = function.read(call.arguments)
    if not is_successful(read):
        problems = "".join(f"\n- {problem}" for problem in read.failure()[:SHOWN])
        return Failure(ToolOutput(f"the arguments do not fit:{problems}", ToolOutcome.BAD_ARGUMENTS))
    refusal = await _refusal(shop, running, call, env) if function.dangerous else None
    return Success((function, read.unwrap())) if refusal is None else Failure(refusal)


async def _refusal(shop: ToolExecutor, running: RunState, call: ToolCall, env: LLMEnv) -> ToolOutput | None:
    """Anything but an approval refuses: also an effect that fails."""
    if shop.approve is None:
        return ToolOutput(Refused().reason, ToolOutcome.REFUSED)
    async with running.approving:  # whoever decides is asked one thing at a time
        verdict = await settled(shop.approve(call), env)
    decided = verdict.unwrap() if is_successful(verdict) else None
    if isinstance(decided, Approved):
        return None
    reason = decided.reason if isinstance(decided, Refused) else "nobody could be asked"
    return ToolOutput(f"refused: {reason}", ToolOutcome.REFUSED)


async def _done(
    shop: ToolExecutor, running: RunState, call: ToolCall, job: Result[_Job, ToolOutput], env: LLMEnv
) -> ToolAnswer:
    started = anyio.current_time()
    if is_successful(job):
        await shop.tell(ToolStarted(running.step, call))
        said = await _followed(call, *job.unwrap(), env)
    else:
        said = job.failure()
    answer = ToolAnswer(
        call=call,
        result=ToolResult(
            call.id, cut(said.text, shop.limits.result_chars), is_error=said.outcome is not ToolOutcome.DONE
        ),
        outcome=said.outcome,
        latency_ms=(anyio.current_time() - started) * 1000,
    )
    problem = await running.journal.end_call(running.step, answer)
    if problem is not None:
        running.troubles.append(f"tools: the result of {call.name} is not in the journal: {problem}")
    return answer


async def _followed(call: ToolCall, function: ToolFunction, given: Arguments, env: LLMEnv) -> ToolOutput:
    """Run a tool, with a span of its own where anybody listens."""
    if not env.telemetry.active:
        return await output_of(function, given, env)
    opening = {names.OPERATION: names.EXECUTE_TOOL, names.TOOL_NAME: call.name, names.TOOL_CALL_ID: call.id}
    span = unharmed(env.telemetry.begin, f"{names.EXECUTE_TOOL} {call.name}", opening)
    kind = CANCELLED
    try:
        said = await output_of(function, given, env)
        kind = said.outcome.value
    finally:
        if span is not None:
            error = None if kind in {CANCELLED, ToolOutcome.DONE.value} else kind
            unharmed(span.end, {names.OUTCOME: kind}, error)
    return said
