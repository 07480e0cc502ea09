"""The loop of a model and its tools: ``run_tools`` asks, runs the calls of the answer, and repeats."""

from __future__ import annotations

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
from llm_effects.effects.effect import (
    Answer,
    Effect,
    Generate,
    effect,
    fail,
    from_env,
    from_result,
    layer,
    rescue,
    run,
    succeed,
    then,
)
from llm_effects.effects.env import LLMEnv
from llm_effects.effects.lifecycle import APPROVALS_RUN
from llm_effects.effects.tasks import in_own_task
from llm_effects.pipeline import check_request, deliver_ending, run_call, standard_pipeline
from llm_effects.policies.cache import request_key
from llm_effects.tools.approvals import ask_later, dangerous_calls, kept_run
from llm_effects.tools.journal import open_journal
from llm_effects.tools.steps import (
    ApprovalPolicy,
    Approve,
    KeptRun,
    ToolAnswer,
    ToolEnd,
    ToolLimits,
    ToolOutcome,
    ToolRun,
    ToolSink,
    ToolStep,
)
from llm_effects.tools.tool import ToolFunction, Toolkit, check_toolkit
from llm_effects.tools.tool_executor import NEEDS_RUN_ID, RunState, ToolExecutor, not_run
from llm_effects.values.errors import (
    BudgetExceeded,
    InvalidRequest,
    LLMError,
    RequestTimeout,
    StorageFailed,
    describe,
    request_of,
)
from llm_effects.values.events import Completed, Failed, StreamEvent
from llm_effects.values.messages import Message, Part, ToolCall
from llm_effects.values.requests import LLMRequest, request_messages
from llm_effects.values.responses import Attempt, Cost, FinishReason, LLMResponse, Usage, total_cost

MAX_STEPS: Final = 10
"""How often a model is asked in a run, unless the caller sets ``max_steps``."""

NO_LIMITS: Final = ToolLimits()
"""The limits of a run that sets none."""


def run_tools(
    request: str | LLMRequest,
    toolkit: Toolkit,
    max_steps: int = MAX_STEPS,
    *,
    limits: ToolLimits = NO_LIMITS,
    approve: Approve | None = None,
    needs_approval: ApprovalPolicy = dangerous_calls,
    run_id: str | None = None,
    conversation_id: str | None = None,
    sink: Sink | None = None,
    on_event: ToolSink | None = None,
    pipeline: Generate = standard_pipeline,
) -> Effect[ToolRun]:
    """Answer a request with the help of tools, asking the model at most ``max_steps`` times.

    The calls of a whole answer run at once, up to ``limits.parallel``; the model sees what goes wrong with one. Every
    call runs at most once. With a ``run_id`` that holds across a crash: the same run, with the same request, continues
    where it broke off, and stops with ``ToolEnd.UNKNOWN`` at a call that may or may not have happened. In a
    conversation each step is a turn. ``request.preferences.timeout_ms`` limits each step, ``limits.timeout_s`` all of
    them. An error of a model ends the run; it has the attempts of all steps.

    A call for which ``needs_approval`` returns a reason runs only if ``approve`` allows it. ``approve=ask_later`` ends
    the run with ``ToolEnd.WAITING``: ``decide_approval`` decides, and ``resume_tools`` continues the run.

    >>> import anyio
    >>> from llm_effects import ToolCall, run, scripted_env, toolkit
    >>> from llm_effects.testing.scripted import calling
    >>> def free_space(path: str) -> str:
    ...     '''Return how much of a disk is free.'''
    ...     return "3 %"
    >>> env = scripted_env(calling(ToolCall("c1", "free_space", '{"path": "/"}')), "It is nearly full.")
    >>> finished = anyio.run(run, run_tools("How is the disk?", toolkit(free_space)), env).unwrap()
    >>> finished.response.content, finished.answers[0].result.content
    ('It is nearly full.', '3 %')
    >>> anyio.run(run, run_tools("?", toolkit(), 0), env).failure().message
    'max_steps: must be at least 1, not 0'
    """
    check_request(request)
    check_toolkit(toolkit)

    def finish(asked: LLMRequest) -> Effect[ToolRun]:
        offered = asked if asked.tools else evolve(asked, tools=toolkit.tools)
        executor = ToolExecutor(
            functions=_functions(offered, toolkit),
            limits=limits,
            approve=approve,
            needs_approval=needs_approval,
            on_event=on_event,
        )
        kept = KeptRun(request=asked, max_steps=max_steps, limits=limits, conversation_id=conversation_id)
        problem = _conflict(offered, toolkit, executor, max_steps) or _without_id(executor, run_id)
        if problem is not None:
            return fail(InvalidRequest(message=problem, request=asked))
        last = max_steps if limits.answer_last else math.inf
        asker = StepAsker(
            request=offered, pipeline=pipeline, answers_at=last, sink=sink, conversation_id=conversation_id
        )
        return then(_start(kept, run_id), lambda state: _loop(asker, executor, state, max_steps))

    outcome = then(from_result(request_of(request)), finish)

    async def ended(env: LLMEnv) -> Result[ToolRun, LLMError]:
        result = await in_own_task(partial(run, outcome, env))  # results are stored even if asyncio itself cancels
        await deliver_ending(result.map(lambda finished: finished.response), sink)
        return result

    return effect(ended)


def _functions(request: LLMRequest, toolkit: Toolkit) -> Mapping[str, ToolFunction]:
    """Return the functions that may run: those of the tools that the model sees."""
    names = set[str]() if request.tool_choice == "none" else {tool.name for tool in request.tools}
    return {each.tool.name: each for each in toolkit.functions if each.tool.name in names}


def _conflict(request: LLMRequest, toolkit: Toolkit, executor: ToolExecutor, max_steps: int) -> str | None:
    unknown = [tool.name for tool in request.tools if tool not in toolkit.tools]
    if unknown:
        return f"tools: {unknown[0]} is not in the toolkit: leave tools out, or name some of its own"
    dangerous = [name for name, function in executor.functions.items() if function.dangerous]
    if dangerous and executor.approve is None:
        return f"approve: {dangerous[0]} is dangerous: pass a function that decides about its calls, or ask_later"
    if executor.approve is None and executor.needs_approval is not dangerous_calls:
        return "approve: needs_approval is set: pass a function that decides about such calls, or ask_later"
    return None if max_steps >= 1 else f"max_steps: must be at least 1, not {max_steps}"


def _without_id(executor: ToolExecutor, run_id: str | None) -> str | None:
    if run_id == APPROVALS_RUN:
        return f"run_id: {run_id!r} names the journal of approvals: choose another one"
    return NEEDS_RUN_ID if executor.approve is ask_later and run_id is None else None


def _start(kept: KeptRun, run_id: str | None) -> Effect[RunState]:
    async def start(env: LLMEnv) -> Result[RunState, LLMError]:
        started, timeout = anyio.current_time(), kept.limits.timeout_s
        deadline = math.inf if timeout is None else started + timeout
        name = run_id or env.new_id()
        build = partial(RunState, kept=kept, run_id=run_id, name=name, started=started, deadline=deadline)
        return (await run(open_journal(run_id, kept.request.owner), env)).map(lambda journal: build(journal=journal))

    return effect(start)


def resume_tools(
    run_id: str,
    toolkit: Toolkit,
    *,
    owner: str | None = None,
    approve: Approve = ask_later,
    needs_approval: ApprovalPolicy = dangerous_calls,
    sink: Sink | None = None,
    on_event: ToolSink | None = None,
    pipeline: Generate = standard_pipeline,
) -> Effect[ToolRun]:
    """Continue a run that waits for approval, also in another process; its request and its limits are kept.

    It ends as ``WAITING`` again, and pays for nothing, while there is no decision. Approved calls run at most once, of
    refused ones the model sees the reason. A run that has never waited is an ``InvalidRequest``.

    >>> import anyio
    >>> from llm_effects import run, scripted_env, toolkit
    >>> anyio.run(run, resume_tools("nightly", toolkit()), scripted_env()).failure().message
    "run_id: no run 'nightly' of this owner has waited for approval: run_tools with this run_id continues any other run"
    """
    check_toolkit(toolkit)

    def resume(kept: KeptRun) -> Effect[ToolRun]:
        return run_tools(
            kept.request,
            toolkit,
            kept.max_steps,
            limits=kept.limits,
            approve=approve,
            needs_approval=needs_approval,
            run_id=run_id,
            conversation_id=kept.conversation_id,
            sink=sink,
            on_event=on_event,
            pipeline=pipeline,
        )

    return then(kept_run(run_id, owner), resume)


# The loop.


def _loop(asker: StepAsker, executor: ToolExecutor, state: RunState, max_steps: int) -> Effect[ToolRun]:
    """Ask and execute, step by step; an error that ends the run keeps the attempts of all steps."""

    async def loop(env: LLMEnv) -> Result[ToolRun, LLMError]:
        while True:
            answer = await run(asker.ask(state), env)
            if not is_successful(answer):
                return Failure(with_earlier(state.responses, answer.failure()))
            response = answer.unwrap()
            end = _end(response, last=state.step >= max_steps)
            results = Success(_not_run(response, end)) if end else await _execute(executor, state, response, env)
            if not is_successful(results):
                return Failure(with_earlier((*state.responses, response), results.failure()))
            step = ToolStep(number=state.step, response=response, answers=results.unwrap())
            state.steps.append(step)
            await executor.emit(step)
            end = end or _interruption(step)
            if end is not None:
                return Success(_finished_run(state, end))

    return effect(loop)


_COMPLETE: Final = (FinishReason.TOOL_CALLS, FinishReason.STOP)


def _end(response: LLMResponse, *, last: bool) -> ToolEnd | None:
    if response.finish_reason not in _COMPLETE:
        return ToolEnd.CUT_OFF
    if not response.tool_calls:
        return ToolEnd.ANSWERED
    return ToolEnd.OUT_OF_STEPS if last else None


_REASONS: Final = {ToolEnd.CUT_OFF: "the answer was cut off", ToolEnd.OUT_OF_STEPS: "there are no more steps"}


def _not_run(response: LLMResponse, end: ToolEnd) -> tuple[ToolAnswer, ...]:
    return tuple(not_run(call, _REASONS[end]) for call in response.tool_calls)


def _interruption(step: ToolStep) -> ToolEnd | None:
    """Return why a run cannot go on after its calls: one may have happened before, or waits."""
    outcomes = {each.outcome for each in step.answers}
    if ToolOutcome.UNKNOWN in outcomes:
        return ToolEnd.UNKNOWN
    return ToolEnd.WAITING if ToolOutcome.WAITING in outcomes else None


async def _execute(
    executor: ToolExecutor, state: RunState, response: LLMResponse, env: LLMEnv
) -> Result[tuple[ToolAnswer, ...], LLMError]:
    """Execute the calls of an answer, while there is money and time."""
    spent = _known_cost((*state.responses, response))
    limit = Cost(executor.limits.max_cost)
    if limit.usd is not None and spent.usd is not None and spent.usd >= limit.usd:
        return Failure(BudgetExceeded(budget="max_cost of the run", spent=spent, limit=limit))
    with anyio.CancelScope(deadline=state.deadline):
        return await executor.execute(response.tool_calls, state, env)
    return Failure(RequestTimeout(timeout_ms=(state.deadline - state.started) * 1000, phase="total"))


def _known_cost(responses: Sequence[LLMResponse]) -> Cost:
    """Return the sum of all known costs: an unknown price must not make the sum unknown."""
    return total_cost(each.cost for each in attempts_of(responses) if each.cost.known)


def _timeout_of_run(state: RunState, error: LLMError) -> LLMError:
    """Return the time-out of a step at the end of the run as the run's: with the time that all of it had."""
    if isinstance(error, RequestTimeout) and error.phase == "total" and anyio.current_time() >= state.deadline:
        return evolve(error, timeout_ms=(state.deadline - state.started) * 1000)
    return error


# The question of one step: to the models with all earlier messages, or as a turn of a stored conversation.


@final
@frozen(kw_only=True)
class StepAsker:
    """Asks the model for the next step; in a conversation, each step is a turn of it.

    From the step ``answers_at`` on the model may call no tool.
    """

    request: LLMRequest
    pipeline: Generate
    answers_at: float = math.inf
    sink: Sink | None = None
    conversation_id: str | None = None

    def ask(self, state: RunState) -> Effect[LLMResponse]:
        """Ask the model for the next step before the deadline; its answer is stored before its calls are run."""
        if self.conversation_id is not None:  # a turn that has ended returns its stored answer: that is its journal
            return then(self._step_request(state), partial(self._converse, self.conversation_id, state))
        question = request_key(evolve(self.request, tools=(), tool_choice=None))

        def ask_once(known: LLMResponse | None) -> Effect[LLMResponse]:
            if known is not None:
                return succeed(known)
            answer = then(self._step_request(state), partial(self._generate, state))
            return then(answer, partial(_store_answer, state, question))

        return then(state.journal.begin_answer(state.step, question), ask_once)

    def _generate(self, state: RunState, request: LLMRequest) -> Effect[LLMResponse]:
        answer = run_call(with_unique_call_ids(self.pipeline), request, _without_ending(self.sink))
        return answer.alt(partial(_timeout_of_run, state))

    def _converse(self, conversation_id: str, state: RunState, request: LLMRequest) -> Effect[LLMResponse]:
        return converse(
            conversation_id,
            request,
            turn_id=f"{state.name}/{state.step}",
            sink=_without_ending(self.sink),
            pipeline=with_unique_call_ids(self.pipeline),
        ).bind_result(_saved)

    def _step_request(self, state: RunState) -> Effect[LLMRequest]:
        return from_env(lambda env: self._build_request(state, env))

    def _build_request(self, state: RunState, env: LLMEnv) -> LLMRequest:
        """Build the request of a step, with no more time than the run has left."""
        request = self.request
        own_ms = request.preferences.timeout_ms or env.config.routing.timeout_ms
        left_ms = max(1.0, (state.deadline - anyio.current_time()) * 1000)
        return evolve(
            request,
            prompt=None,
            messages=self._messages(state),
            conversation=request.conversation or self.conversation_id or state.name,
            tool_choice=self._tool_choice(state.step),
            preferences=evolve(request.preferences, timeout_ms=min(own_ms, left_ms)),
        )

    def _messages(self, state: RunState) -> Sequence[Message]:
        if self.conversation_id is not None and state.steps:
            return state.steps[-1].messages[1:]  # the conversation has everything else
        return (*request_messages(self.request), *(message for step in state.steps for message in step.messages))

    def _tool_choice(self, step: int) -> str | None:
        """Return the tool choice of a step; a forced choice applies to the first step only, else no run would end."""
        choice = self.request.tool_choice
        if step >= self.answers_at and self.request.tools:
            return "none"
        return choice if step == 1 or choice == "none" else None


def _store_answer(state: RunState, question: str, answer: LLMResponse) -> Effect[LLMResponse]:
    """Store an answer in the journal; if that fails, an answer without calls is returned with a warning."""

    def without_journal(error: LLMError) -> Effect[LLMResponse]:
        if answer.tool_calls:
            return fail(with_earlier((answer,), error))
        warning = f"tools: this answer is not in the journal: {describe(error)}"
        return succeed(evolve(answer, warnings=(*answer.warnings, warning)))

    return rescue(state.journal.end_answer(state.step, question, answer), without_journal)


def _saved(answer: LLMResponse) -> Result[LLMResponse, LLMError]:
    """Fail if an answer with calls is not in the conversation, which could then not take their results."""
    warning = next((each for each in answer.warnings if each.startswith(NOT_SAVED)), None)
    if warning is None or not answer.tool_calls:
        return Success(answer)
    return Failure(with_earlier((answer,), StorageFailed(operation="finish_turn", message=warning)))


def _without_ending(sink: Sink | None) -> Sink | None:
    """Return a sink that drops the last event of each step; the run delivers one of its own."""
    if sink is None:
        return None

    async def deliver(event: StreamEvent) -> None:
        if not isinstance(event, Completed | Failed):
            await sink(event)

    return deliver


@layer
async def with_unique_call_ids(next: Generate, call: Call, env: LLMEnv) -> Answer:
    """Make the id of every call unique in its conversation: results and journals refer to it.

    Some servers number the calls of each answer anew, and others refuse a conversation that uses an id twice.
    """
    return await run(next(call).map(partial(_with_unique_ids, call.request)), env)


def _with_unique_ids(request: LLMRequest, response: LLMResponse) -> LLMResponse:
    earlier = (part for message in request.messages for part in message.parts)
    taken = {part.id for part in earlier if isinstance(part, ToolCall)}
    parts: list[Part] = []
    for part in response.parts:
        if isinstance(part, ToolCall):
            part = evolve(part, id=_free_id(part.id, taken))  # noqa: PLW2901 - the part, with its new id
            taken.add(part.id)
        parts.append(part)
    return evolve(response, parts=tuple(parts))


def _free_id(call_id: str, taken: set[str]) -> str:
    candidates = (call_id, *(f"{call_id}_{at}" for at in range(1, len(taken) + 2)))
    return next(each for each in candidates if each not in taken)


# The totals of a run: the sums over its steps, in its last answer or in its error.


_NOTES: Final = {
    ToolEnd.CUT_OFF: "tools: the last answer is not whole: nothing of it was run",
    ToolEnd.OUT_OF_STEPS: "tools: max_steps is reached: the calls of the last answer were not run",
    ToolEnd.WAITING: "tools: the run waits for approval: see ToolRun.waiting",
    ToolEnd.UNKNOWN: "tools: a call may or may not have happened before: see ToolRun.unknown",
}


def _finished_run(state: RunState, end: ToolEnd) -> ToolRun:
    """Return a run that has ended: its last answer has the totals and the warnings of all steps."""
    responses = state.responses
    warnings = (*(warning for each in responses for warning in each.warnings), *state.warnings)
    note = (_NOTES[end],) if end in _NOTES else ()
    response = evolve(
        responses[-1],
        attempts=attempts_of(responses),
        usage=total_usage(each.usage for each in responses),
        cost=total_cost(each.cost for each in responses),
        latency_ms=(anyio.current_time() - state.started) * 1000,
        cached=all(each.cached for each in responses),
        warnings=(*dict.fromkeys(warnings), *note),
    )
    return ToolRun(response=response, steps=tuple(state.steps), end=end, run_id=state.run_id)


def attempts_of(responses: Iterable[LLMResponse]) -> tuple[Attempt, ...]:
    """Return all attempts behind some answers, in order."""
    return tuple(attempt for each in responses for attempt in each.attempts)


def with_earlier(responses: Iterable[LLMResponse], error: LLMError) -> LLMError:
    """Return an error with the attempts of the answers before it."""
    return evolve(error, attempts=(*attempts_of(responses), *error.attempts))


def total_usage(usages: Iterable[Usage]) -> Usage:
    """Add usages up, bucket by bucket; an unknown number makes its sum unknown.

    >>> total = total_usage((Usage(input_tokens=3, output_tokens=1), Usage(input_tokens=5)))
    >>> total.input_tokens, total.output_tokens
    (8, None)
    """
    every = tuple(usages)
    return Usage(
        input_tokens=_sum(each.input_tokens for each in every),
        cache_read_tokens=sum(each.cache_read_tokens for each in every),
        cache_write_tokens=sum(each.cache_write_tokens for each in every),
        output_tokens=_sum(each.output_tokens for each in every),
        reasoning_tokens=sum(each.reasoning_tokens for each in every),
        estimated=any(each.estimated for each in every),
        cache_write_1h_tokens=sum(each.cache_write_1h_tokens for each in every),
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    known = tuple(counts)
    return None if None in known else sum(each for each in known if each is not None)
