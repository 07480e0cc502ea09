"""The loop of a model and its tools: it asks for some, is told what came of them, and goes on until it answers."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import anyio
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.calls import Sink
from llm_effects.effects import Effect, Generate, effect
from llm_effects.env import LLMEnv
from llm_effects.errors import BudgetExceeded, InvalidRequest, LLMError, RequestTimeout
from llm_effects.pipeline import LAST_WORD_S, ending, generate_call
from llm_effects.requests import LLMRequest
from llm_effects.responses import Cost, FinishReason, LLMResponse, total_cost
from llm_effects.tasks import apart
from llm_effects.toolkits import ToolFunction, Toolkit
from llm_effects.toolkits.asks import Asking, ask
from llm_effects.toolkits.calls import Workshop, carried_out, not_run
from llm_effects.toolkits.journals import open_journal
from llm_effects.toolkits.running import Running
from llm_effects.toolkits.steps import (
    Approve,
    ToolAnswer,
    ToolEnd,
    ToolLimits,
    ToolOutcome,
    ToolRun,
    ToolSink,
    ToolStep,
)
from llm_effects.toolkits.totals import attempts_of, run_of, with_earlier

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
    onion: Generate = generate_call,
) -> Effect[ToolRun]:
    """Answer a request with the help of tools, asking the model at most ``max_steps`` times.

    The calls of a whole answer run at once, up to ``limits.parallel``; what goes wrong with one is told to the model.
    Every call runs at most once. With a ``run_id`` also across a crash: the same run again, with the same request,
    goes on where it broke off, and stops with ``ToolEnd.UNKNOWN`` at a call that may or may not have happened. In a
    conversation each step is a turn of it. ``request.preferences.timeout_ms`` is for each step, ``limits.timeout_s``
    for all. An error of a model ends the run; it bears the attempts of all steps.

    >>> import anyio
    >>> from llm_effects import ToolCall, scripted_env, settle, toolkit
    >>> from llm_effects.testing import calling
    >>> def free_space(path: str) -> str:
    ...     '''Tell how much of a disk is free.'''
    ...     return "3 %"
    >>> env = scripted_env(calling(ToolCall("c1", "free_space", '{"path": "/"}')), "It is nearly full.")
    >>> run = anyio.run(settle, run_tools(LLMRequest(prompt="How is the disk?"), toolkit(free_space)), env).unwrap()
    >>> run.response.content, run.answers[0].result.content
    ('It is nearly full.', '3 %')
    >>> anyio.run(settle, run_tools(LLMRequest(prompt="?"), toolkit(), 0), env).failure().message
    'max_steps: must be at least 1, not 0'
    """
    offered = request if request.tools else evolve(request, tools=toolkit.tools)
    answers_at = max_steps if limits.answer_last else math.inf
    asking = Asking(request=offered, onion=onion, answers_at=answers_at, sink=sink, conversation_id=conversation_id)
    shop = Workshop(functions=_functions(offered, toolkit), limits=limits, approve=approve, on_event=on_event)

    async def work(env: LLMEnv) -> Result[ToolRun, LLMError]:
        problem = _unfit(offered, toolkit, shop, max_steps)
        if problem is not None:
            return Failure(InvalidRequest(message=problem, request=request))
        begun = await _begun(offered, limits, run_id, env)
        if not is_successful(begun):
            return Failure(begun.failure())
        return await _loop(asking, shop, begun.unwrap(), max_steps, env)

    async def run(env: LLMEnv) -> Result[ToolRun, LLMError]:
        result = await apart(partial(work, env))  # also asyncio's own cancellation lets it note what was done
        if sink is not None:
            with anyio.move_on_after(LAST_WORD_S):  # for a consumer that never returns
                await sink(ending(result.map(_response)))
        return result

    return effect(run)


def _response(run: ToolRun) -> LLMResponse:
    return run.response


def _functions(request: LLMRequest, toolkit: Toolkit) -> Mapping[str, ToolFunction]:
    """The functions that may run: of the tools that the model is told of."""
    names = set[str]() if request.tool_choice == "none" else {tool.name for tool in request.tools}
    return {each.tool.name: each for each in toolkit.functions if each.tool.name in names}


def _unfit(request: LLMRequest, toolkit: Toolkit, shop: Workshop, max_steps: int) -> str | None:
    strange = [tool.name for tool in request.tools if tool not in toolkit.tools]
    if strange:
        return f"tools: {strange[0]} is not in the toolkit: leave tools out, or name some of its own"
    dangerous = [name for name, function in shop.functions.items() if function.dangerous]
    if dangerous and shop.approve is None:
        return f"approve: {dangerous[0]} is dangerous: give a function that decides about its calls"
    return None if max_steps >= 1 else f"max_steps: must be at least 1, not {max_steps}"


async def _begun(request: LLMRequest, limits: ToolLimits, run_id: str | None, env: LLMEnv) -> Result[Running, LLMError]:
    started = anyio.current_time()
    journal = await open_journal(run_id, request.owner, env)
    if not is_successful(journal):
        return Failure(journal.failure())
    deadline = started + (math.inf if limits.timeout_s is None else limits.timeout_s)
    name = run_id or env.new_id()
    return Success(Running(journal=journal.unwrap(), run_id=run_id, name=name, started=started, deadline=deadline))


async def _loop(
    asking: Asking, shop: Workshop, running: Running, max_steps: int, env: LLMEnv
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
    shop: Workshop, running: Running, response: LLMResponse, env: LLMEnv
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
