"""The calls of one answer: each is read, approved, noted, run and told, several at once; none runs twice."""

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias, final

import anyio
from anyio.lowlevel import checkpoint_if_cancelled
from attrs import frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.env import LLMEnv
from llm_effects.errors import LLMError
from llm_effects.messages import ToolCall, ToolResult
from llm_effects.responses import CANCELLED
from llm_effects.tasks import in_parallel
from llm_effects.telemetry import conventions as names
from llm_effects.telemetry.logs import unharmed
from llm_effects.toolkits import ToolFunction
from llm_effects.toolkits.handlers import Said, cut, said_by, settled
from llm_effects.toolkits.running import Running
from llm_effects.toolkits.signatures import Arguments
from llm_effects.toolkits.steps import (
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
)
from llm_effects.values import suggestion

SHOWN: Final = 20
"""Problems with the arguments of a call that the model is told of at once."""

_Job: TypeAlias = tuple[ToolFunction, Arguments]


@final
@frozen(kw_only=True)
class Workshop:
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
    shop: Workshop, running: Running, calls: Sequence[ToolCall], env: LLMEnv
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


async def _answered(shop: Workshop, running: Running, call: ToolCall, env: LLMEnv) -> Result[ToolAnswer, LLMError]:
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


async def _permitted(shop: Workshop, running: Running, call: ToolCall, env: LLMEnv) -> Result[_Job, Said]:
    """Find and read what is to run, and have it approved where it is dangerous."""
    function = shop.functions.get(call.name)
    if function is None:
        remedy = suggestion(call.name, shop.functions, "the tools")
        return Failure(Said(f"there is no tool {call.name!r}: {remedy}", ToolOutcome.UNKNOWN_TOOL))
    read = function.read(call.arguments)
    if not is_successful(read):
        problems = "".join(f"\n- {problem}" for problem in read.failure()[:SHOWN])
        return Failure(Said(f"the arguments do not fit:{problems}", ToolOutcome.BAD_ARGUMENTS))
    refusal = await _refusal(shop, running, call, env) if function.dangerous else None
    return Success((function, read.unwrap())) if refusal is None else Failure(refusal)


async def _refusal(shop: Workshop, running: Running, call: ToolCall, env: LLMEnv) -> Said | None:
    """Anything but an approval refuses: also an effect that fails."""
    if shop.approve is None:
        return Said(Refused().reason, ToolOutcome.REFUSED)
    async with running.approving:  # whoever decides is asked one thing at a time
        verdict = await settled(shop.approve(call), env)
    decided = verdict.unwrap() if is_successful(verdict) else None
    if isinstance(decided, Approved):
        return None
    reason = decided.reason if isinstance(decided, Refused) else "nobody could be asked"
    return Said(f"refused: {reason}", ToolOutcome.REFUSED)


async def _done(shop: Workshop, running: Running, call: ToolCall, job: Result[_Job, Said], env: LLMEnv) -> ToolAnswer:
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


async def _followed(call: ToolCall, function: ToolFunction, given: Arguments, env: LLMEnv) -> Said:
    """Run a tool, with a span of its own where anybody listens."""
    if not env.telemetry.active:
        return await said_by(function, given, env)
    opening = {names.OPERATION: names.EXECUTE_TOOL, names.TOOL_NAME: call.name, names.TOOL_CALL_ID: call.id}
    span = unharmed(env.telemetry.begin, f"{names.EXECUTE_TOOL} {call.name}", opening)
    kind = CANCELLED
    try:
        said = await said_by(function, given, env)
        kind = said.outcome.value
    finally:
        if span is not None:
            error = None if kind in {CANCELLED, ToolOutcome.DONE.value} else kind
            unharmed(span.end, {names.OUTCOME: kind}, error)
    return said
