"""One question of a run: to the models, with all that was said before, or as a turn of a stored conversation."""

import math
from collections.abc import Sequence
from functools import partial
from typing import final

import anyio
from attrs import evolve, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.caching import request_key
from llm_effects.calls import Call, Sink
from llm_effects.conversations.dialogues import NOT_SAVED, converse
from llm_effects.decisions import describe
from llm_effects.effects import Effect, Generate, settle
from llm_effects.env import LLMEnv
from llm_effects.errors import LLMError, StorageFailed
from llm_effects.events import Completed, Failed, StreamEvent
from llm_effects.messages import Message, Part, ToolCall
from llm_effects.pipeline import run_call
from llm_effects.requests import LLMRequest, conversation
from llm_effects.responses import LLMResponse
from llm_effects.toolkits.running import Running
from llm_effects.toolkits.totals import with_earlier


@final
@frozen(kw_only=True)
class Asking:
    """How the model is asked: with all that was said, or, where there is a conversation, by a turn of it a step.

    From the step ``answers_at`` on it may call no tool.
    """

    request: LLMRequest
    onion: Generate
    answers_at: float = math.inf
    sink: Sink | None = None
    conversation_id: str | None = None


async def ask(asking: Asking, running: Running, env: LLMEnv) -> Result[LLMResponse, LLMError]:
    """Ask the model what comes next, by the deadline; an answer is noted before anybody acts on it."""
    if asking.conversation_id is not None:  # a turn that has ended gives its answer again: that is its journal
        told = await settle(_turn(asking, asking.conversation_id, running, env), env)
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
    answer = await settle(run_call(told_apart(asking.onion), request, _within(asking.sink)), env)
    return await _kept(running, question, answer.unwrap()) if is_successful(answer) else answer


async def _kept(running: Running, question: str, answer: LLMResponse) -> Result[LLMResponse, LLMError]:
    """An answer without calls is worth more than its note; on one with calls nothing is done without it."""
    kept = await running.journal.keep_answer(running.step, question, answer)
    if is_successful(kept) or answer.tool_calls:
        return kept.alt(lambda error: with_earlier(error, (answer,)))
    note = f"tools: this answer is not in the journal: {describe(kept.failure())}"
    return Success(evolve(answer, warnings=(*answer.warnings, note)))


def _turn(asking: Asking, conversation_id: str, running: Running, env: LLMEnv) -> Effect[LLMResponse]:
    newest = running.steps[-1].messages[1:] if running.steps else conversation(asking.request)
    return converse(
        conversation_id,
        _saying(newest, asking, running, env),
        turn_id=f"{running.name}/{running.step}",
        sink=_within(asking.sink),
        onion=told_apart(asking.onion),
    )


def _saying(messages: Sequence[Message], asking: Asking, running: Running, env: LLMEnv) -> LLMRequest:
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


def _choice(asking: Asking, step: int) -> str | None:
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
