"""The loop of a model and its tools: it asks for some, is told what came of them, and goes on until it answers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final, final

import anyio
from attrs import evolve, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.conversations.converse import NOT_SAVED, converse
from llm_effects.effects.call import Call, Sink
from llm_effects.effects.effect import Effect, Generate, effect, run
from llm_effects.effects.env import LLMEnv
from llm_effects.effects.tasks import apart
from llm_effects.pipeline import deliver_ending, run_call, standard_pipeline
from llm_effects.policies.cache import request_key
from llm_effects.tools.journal import open_journal
from llm_effects.tools.steps import Approve, ToolAnswer, ToolEnd, ToolLimits, ToolOutcome, ToolRun, ToolSink, ToolStep
from llm_effects.tools.tool import ToolFunction, Toolkit
from llm_effects.tools.tool_executor import RunState, ToolExecutor, carried_out, not_run
from llm_effects.values.errors import BudgetExceeded, InvalidRequest, LLMError, RequestTimeout, StorageFailed, describe
from llm_effects.values.events import Completed, Failed, StreamEvent
from llm_effects.values.messages import Message, Part, ToolCall
from llm_effects.values.requests import LLMRequest, conversation
from llm_effects.values.responses import Attempt, Cost, FinishReason, LLMResponse, Usage, total_cost

# What a whole run came to: the sums over its steps, in its last answer or in its error.


_NOTES: Final = {
    ToolEnd.CUT_OFF: "tools: the last answer is not whole: nothing of it was run",
    ToolEnd.OUT_OF_STEPS: "tools: max_steps is reached: what the last answer asks for was not run",
    ToolEnd.UNKNOWN: "tools: a call may or may not have happened before: see ToolRun.unknown",
}


def run_of(running: RunState, end: ToolEnd) -> ToolRun:
    """End a run: its last answer bears the sums, and what there was to warn of."""
    responses = running.responses
    warnings = (*(each for one in responses for each in one.warnings), *running.troubles)
    note = (_NOTES[end],) if end in _NOTES else ()
    response = evolve(
        responses[-1],
        attempts=attempts_of(responses),
        usage=total_usage(one.usage for one in responses),
        cost=total_cost(one.cost for one in responses),
        latency_ms=(anyio.current_time() - running.started) * 1000,
        cached=all(one.cached for one in responses),
        warnings=(*dict.fromkeys(warnings), *note),
    )
    return ToolRun(response=response, steps=tuple(running.steps), end=end, run_id=running.run_id)


def attempts_of(responses: Iterable[LLMResponse]) -> tuple[Attempt, ...]:
    """Give all attempts behind some answers, in order."""
    return tuple(attempt for one in responses for attempt in one.attempts)


def with_earlier(error: LLMError, responses: Iterable[LLMResponse]) -> LLMError:
    """Put the attempts of the answers before an error into it."""
    return evolve(error, attempts=(*attempts_of(responses), *error.attempts))


def total_usage(usages: Iterable[Usage]) -> Usage:
    """Add tokens up, bucket by bucket; one unknown number makes its sum unknown.

    >>> told = total_usage((Usage(input_tokens=3, output_tokens=1), Usage(input_tokens=5)))
    >>> told.input_tokens, told.output_tokens
    (8, None)
    """
    told = tuple(usages)
    return Usage(
        input_tokens=_sum(each.input_tokens for each in told),
        cache_read_tokens=sum(each.cache_read_tokens for each in told),
        cache_write_tokens=sum(each.cache_write_tokens for each in told),
        output_tokens=_sum(each.output_tokens for each in told),
        reasoning_tokens=sum(each.reasoning_tokens for each in told),
        estimated=any(each.estimated for each in told),
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    known = tuple(counts)
    return None if None in known else sum(each for each in known if each is not None)


# One question of a run: to the models, with all that was said before, or as a turn of a stored conversation.


@final
@frozen(kw_only=True)
class StepRequest:
    """How the model is asked: with all that was said, or, where there is a conversation, by a turn of it a step.

    From the step ``answers_at`` on it may call no tool.
    """

    request: LLMRequest
    pipeline: Generate
    answers_at: float = math.inf
    sink: Sink | None = None
    conversation_id: str | None = None


async def ask(asking: StepRequest, running: RunState, env: LLMEnv) -> Result[LLMResponse, LLMError]:
    """Ask the model what comes next, by the deadline; an answer is noted before anybody acts on it."""
    if asking.conversation_id is not None:  # a turn that has ended gives its answer again: that is its journal
        told = await run(_turn(asking, asking.conversation_id, running, env), env)
        return _saved(told.unwrap()) if is_successful(told) else told
    question = request_key(evolve(asking.request, tools=(), tool_choice=None))
    begun = await running.journal.begin_answer(running.step, question)
    if not is_successful(begun):
        return Failure(begun.failure())
    known = begun.unwrap()
    if known is not None:
        return Success(known)
    said = (*conversation(asking.request), *(message for each in running.steps for message in each.messages))
    request = _saying(said, asking, running, env)
    answer = await run(run_call(told_apart(asking.pipeline), request, _within(asking.sink)), env)
    return await _kept(running, question, answer.unwrap()) if is_successful(answer) else answer


async def _kept(running: RunState, question: str, answer: LLMResponse) -> Result[LLMResponse, LLMError]:
    """An answer without calls is worth more than its note; on one with calls nothing is done without it."""
    kept = await running.journal.keep_answer(running.step, question, answer)
    if is_successful(kept) or answer.tool_calls:
        return kept.alt(lambda error: with_earlier(error, (answer,)))
    note = f"tools: this answer is not in the journal: {describe(kept.failure())}"
    return Success(evolve(answer, warnings=(*answer.warnings, note)))


def _turn(asking: StepRequest, conversation_id: str, running: RunState, env: LLMEnv) -> Effect[LLMResponse]:
    newest = running.steps[-1].messages[1:] if running.steps else conversation(asking.request)
    return converse(
        conversation_id,
        _saying(newest, asking, running, env),
        turn_id=f"{running.name}/{running.step}",
        sink=_within(asking.sink),
        pipeline=told_apart(asking.pipeline),
    )


def _saying(messages: Sequence[Message], asking: StepRequest, running: RunState, env: LLMEnv) -> LLMRequest:
    """The request of a step, with no more time than the run has left."""
    request = asking.request
    own_ms = request.preferences.timeout_ms or env.config.routing.timeout_ms
    left_ms = max(1.0, (running.deadline - anyio.current_time()) * 1000)
    return evolve(
        request,
        prompt=None,
        messages=messages,
        tool_choice=_choice(asking, running.step),
        preferences=evolve(request.preferences, timeout_ms=min(own_ms, left_ms)),
    )


def _saved(answer: LLMResponse) -> Result[LLMResponse, LLMError]:
    """Calls that are not in the conversation must not run: it could not take their results, nor tell them again."""
    lost = next((each for each in answer.warnings if each.startswith(NOT_SAVED)), None)
    if lost is None or not answer.tool_calls:
        return Success(answer)
    return Failure(with_earlier(StorageFailed(operation="finish_turn", message=lost), (answer,)))


def _choice(asking: StepRequest, step: int) -> str | None:
    """A choice of tool holds for the first step alone: who must always call one never comes to an end."""
    chosen = asking.request.tool_choice
    if step >= asking.answers_at and asking.request.tools:
        return "none"
    return chosen if step == 1 or chosen == "none" else None


def _within(sink: Sink | None) -> Sink | None:
    """Leave the last event to the run: each of its steps would have one."""
    if sink is None:
        return None

    async def deliver(event: StreamEvent) -> None:
        if not isinstance(event, Completed | Failed):
            await sink(event)

    return deliver


def told_apart(inner: Generate) -> Generate:
    """Give every call of an answer an id of its own in all that was said: results and journals go by it.

    Some servers number those of each answer anew, and others refuse a conversation that uses an id twice.
    """

    def ask(call: Call) -> Effect[LLMResponse]:
        return inner(call).map(partial(_apart, call.request))

    return ask


def _apart(request: LLMRequest, response: LLMResponse) -> LLMResponse:
    said = (part for message in request.messages for part in message.parts)
    taken = {part.id for part in said if isinstance(part, ToolCall)}
    parts: list[Part] = []
    for part in response.parts:
        if isinstance(part, ToolCall):
            part = evolve(part, id=_free(part.id, taken))  # noqa: PLW2901 - the part, with its new id
            taken.add(part.id)
        parts.append(part)
    return evolve(response, parts=tuple(parts))


def _free(given: str, taken: set[str]) -> str:
    return next(each for each in (given, *(f"{given}_{at}" for at in range(1, len(taken) + 2))) if each not in taken)


MOST_STEPS: Final = 10
"""How often a model is asked in a run, unless the caller says otherwise."""

NO_LIMITS: Final = ToolLimits()
"""The bounds of a run that says nothing of them."""

_WHOLE: Final = (FinishReason.TOOL_CALLS, FinishReason.STOP)


def run_tools(
    request: LLMRequest,
    toolkit: Toolkit,
    max_steps: int = MOST_STEPS,
    *,
    limits: ToolLimits = NO_LIMITS,
    approve: Approve | None = None,
    run_id: str | None = None,
    conversation_id: str | None = None,
    sink: Sink | None = None,
    on_event: ToolSink | None = None,
    pipeline: Generate = standard_pipeline,
) -> Effect[ToolRun]:
    """Answer a request with the help of tools, asking the model at most ``max_steps`` times.

    The calls of a whole answer run at once, up to ``limits.parallel``; what goes wrong with one is told to the model.
    Every call runs at most once. With a ``run_id`` also across a crash: the same run again, with the same request,
    goes on where it broke off, and stops with ``ToolEnd.UNKNOWN`` at a call that may or may not have happened. In a
    conversation each step is a turn of it. ``request.preferences.timeout_ms`` is for each step, ``limits.timeout_s``
    for all. An error of a model ends the run; it bears the attempts of all steps.

    >>> import anyio
    >>> from llm_effects import ToolCall, run, scripted_env, toolkit
    >>> from llm_effects.testing.scripted import calling
    >>> def free_space(path: str) -> str:
    ...     '''Tell how much of a disk is free.'''
    ...     return "3 %"
    >>> env = scripted_env(calling(ToolCall("c1", "free_space", '{"path": "/"}')), "It is nearly full.")
    >>> done = anyio.run(run, run_tools(LLMRequest(prompt="How is the disk?"), toolkit(free_space)), env).unwrap()
    >>> done.response.content, done.answers[0].result.content
    ('It is nearly full.', '3 %')
    >>> anyio.run(run, run_tools(LLMRequest(prompt="?"), toolkit(), 0), env).failure().message
    'max_steps: must be at least 1, not 0'
    """
    offered = request if request.tools else evolve(request, tools=toolkit.tools)
    answers_at = max_steps if limits.answer_last else math.inf
    asking = StepRequest(
        request=offered, pipeline=pipeline, answers_at=answers_at, sink=sink, conversation_id=conversation_id
    )
    shop = ToolExecutor(functions=_functions(offered, toolkit), limits=limits, approve=approve, on_event=on_event)

    async def work(env: LLMEnv) -> Result[ToolRun, LLMError]:
        problem = _unfit(offered, toolkit, shop, max_steps)
        if problem is not None:
            return Failure(InvalidRequest(message=problem, request=request))
        begun = await _begun(offered, limits, run_id, env)
        if not is_successful(begun):
            return Failure(begun.failure())
        return await _loop(asking, shop, begun.unwrap(), max_steps, env)

    async def perform(env: LLMEnv) -> Result[ToolRun, LLMError]:
        result = await apart(partial(work, env))  # also asyncio's own cancellation lets it note what was done
        await deliver_ending(result.map(_response), sink)
        return result

    return effect(perform)


def _response(run: ToolRun) -> LLMResponse:
    return run.response


def _functions(request: LLMRequest, toolkit: Toolkit) -> Mapping[str, ToolFunction]:
    """The functions that may run: of the tools that the model is told of."""
    names = set[str]() if request.tool_choice == "none" else {tool.name for tool in request.tools}
    return {each.tool.name: each for each in toolkit.functions if each.tool.name in names}


def _unfit(request: LLMRequest, toolkit: Toolkit, shop: ToolExecutor, max_steps: int) -> str | None:
    strange = [tool.name for tool in request.tools if tool not in toolkit.tools]
    if strange:
        return f"tools: {strange[0]} is not in the toolkit: leave tools out, or name some of its own"
    dangerous = [name for name, function in shop.functions.items() if function.dangerous]
    if dangerous and shop.approve is None:
        return f"approve: {dangerous[0]} is dangerous: give a function that decides about its calls"
    return None if max_steps >= 1 else f"max_steps: must be at least 1, not {max_steps}"


async def _begun(
    request: LLMRequest, limits: ToolLimits, run_id: str | None, env: LLMEnv
) -> Result[RunState, LLMError]:
    started = anyio.current_time()
    journal = await open_journal(run_id, request.owner, env)
    if not is_successful(journal):
        return Failure(journal.failure())
    deadline = started + (math.inf if limits.timeout_s is None else limits.timeout_s)
    name = run_id or env.new_id()
    return Success(RunState(journal=journal.unwrap(), run_id=run_id, name=name, started=started, deadline=deadline))


async def _loop(
    asking: StepRequest, shop: ToolExecutor, running: RunState, max_steps: int, env: LLMEnv
) -> Result[ToolRun, LLMError]:
    """Ask and carry out, step by step; what an error ends keeps the attempts of all steps."""
    while True:
        asked = await ask(asking, running, env)
        if not is_successful(asked):
            return Failure(with_earlier(asked.failure(), running.responses))
        response = asked.unwrap()
        end = _end(response, last=running.step >= max_steps)
        came = Success(_unrun(response, end)) if end else await _worked(shop, running, response, env)
        if not is_successful(came):
            return Failure(with_earlier(came.failure(), (*running.responses, response)))
        step = ToolStep(number=running.step, response=response, answers=came.unwrap())
        running.steps.append(step)
        await shop.tell(step)
        end = end or (ToolEnd.UNKNOWN if _unknown(step) else None)
        if end is not None:
            return Success(run_of(running, end))


def _end(response: LLMResponse, *, last: bool) -> ToolEnd | None:
    if response.finish_reason not in _WHOLE:
        return ToolEnd.CUT_OFF
    if not response.tool_calls:
        return ToolEnd.ANSWERED
    return ToolEnd.OUT_OF_STEPS if last else None


_WHY: Final = {ToolEnd.CUT_OFF: "the answer was cut off", ToolEnd.OUT_OF_STEPS: "there are no more steps"}


def _unrun(response: LLMResponse, end: ToolEnd) -> tuple[ToolAnswer, ...]:
    return tuple(not_run(call, _WHY[end]) for call in response.tool_calls)


def _unknown(step: ToolStep) -> bool:
    return any(each.outcome is ToolOutcome.UNKNOWN for each in step.answers)


async def _worked(
    shop: ToolExecutor, running: RunState, response: LLMResponse, env: LLMEnv
) -> Result[tuple[ToolAnswer, ...], LLMError]:
    """Carry out what an answer asks for, while there is money and time."""
    spent = _spent((*running.responses, response))
    limit = Cost(shop.limits.max_cost)
    if limit.usd is not None and spent.usd is not None and spent.usd >= limit.usd:
        return Failure(BudgetExceeded(budget="max_cost of the run", spent=spent, limit=limit))
    with anyio.CancelScope(deadline=running.deadline):
        return await carried_out(shop, running, response.tool_calls, env)
    return Failure(RequestTimeout(timeout_ms=(running.deadline - running.started) * 1000, phase="total"))


def _spent(responses: Sequence[LLMResponse]) -> Cost:
    """What is known to be spent: an unknown price must not make it nothing."""
    return total_cost(each.cost for each in attempts_of(responses) if each.cost.known)
