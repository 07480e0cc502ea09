"""Tracing: one span for the whole call with one below it for each attempt, and log records of what went wrong.

Telemetry never breaks a call: ``unharmed`` catches what a telemetry service raises, at every use of it.
"""

from __future__ import annotations

import logging
from typing import Final

import anyio
from returns.result import Success

from llm_effects.effects.call import Call
from llm_effects.effects.effect import Answer, Generate, layer, passing_ready, proceed
from llm_effects.effects.env import LLMEnv, Span
from llm_effects.providers.registry import hide_all_keys
from llm_effects.telemetry import conventions as names
from llm_effects.telemetry.logs import LOGGER, log_attempt, log_failure, log_fallback, unharmed
from llm_effects.telemetry.spans import (
    Outcome,
    attempt_ending,
    attempt_opening,
    call_ending,
    call_opening,
    error_type,
    measures_of,
)
from llm_effects.values.errors import describe
from llm_effects.values.responses import CANCELLED, SUCCESS, Attempt

_EXPECTED: Final = frozenset({SUCCESS, CANCELLED})


@passing_ready
@layer
async def with_tracing(next: Generate, call: Call, env: LLMEnv) -> Answer:
    """Trace the call to its end: a response, an error, a cancellation or a defect."""
    span = begin_call(call, env)
    try:
        outcome = await proceed(next, call, env)
    except BaseException as problem:
        end_call(call, env, span, None, _exception_tag(problem))
        raise
    end_call(call, env, span, outcome, SUCCESS if isinstance(outcome, Success) else outcome.failure().tag)
    return outcome


def _exception_tag(problem: BaseException) -> str:
    return CANCELLED if isinstance(problem, anyio.get_cancelled_exc_class()) else type(problem).__name__


def begin_call(call: Call, env: LLMEnv) -> Span | None:
    """Open the span of a whole call, if telemetry is active."""
    call.history.traced = env.telemetry.active
    return unharmed(env.telemetry.begin, names.GENERATE, call_opening(call)) if call.history.traced else None


def end_call(call: Call, env: LLMEnv, span: Span | None, outcome: Outcome, kind: str) -> None:
    """Close the span of a call, and log a failure or a fallback."""
    if kind == SUCCESS and outcome is not None:
        if _fell_back(call, outcome.unwrap().model):
            log_fallback(call, outcome.unwrap().model)
    elif kind != CANCELLED:
        log_failure(call, kind, kind if outcome is None else hide_all_keys(env.config, describe(outcome.failure())))
    if span is not None:
        unharmed(span.end, call_ending(call.history, outcome, kind), error_type(kind))


def _fell_back(call: Call, model: str) -> bool:
    return bool(call.history.attempts) and call.history.attempts[0].model != model


def begin_attempt(call: Call, env: LLMEnv) -> Span | None:
    """Open the span of one attempt, below its call's, if telemetry is active."""
    traced = call.history.traced
    if not (env.telemetry.active if traced is None else traced):  # asking takes 3 microseconds
        return None
    opening = attempt_opening(call, env.config)
    name = f"{opening.get(names.OPERATION, names.CHAT)} {opening.get(names.REQUEST_MODEL, call.model)}"
    return unharmed(env.telemetry.begin, name, opening, client=names.SERVER_ADDRESS in opening)


def end_attempt(call: Call, env: LLMEnv, span: Span | None, attempt: Attempt | None, outcome: Outcome) -> None:
    """Close the span of an attempt and record its measures; a call that never left the queue has no attempt."""
    if attempt is not None and (attempt.outcome not in _EXPECTED or LOGGER.isEnabledFor(logging.DEBUG)):
        log_attempt(call, attempt)
    if span is None:
        return
    if attempt is not None:
        unharmed(env.telemetry.record, measures_of(attempt, env.config))
    unharmed(span.end, attempt_ending(attempt, outcome, env.config), error_type(_outcome_tag(attempt, outcome)))


def _outcome_tag(attempt: Attempt | None, outcome: Outcome) -> str:
    if attempt is not None:
        return attempt.outcome
    return CANCELLED if outcome is None or isinstance(outcome, Success) else outcome.failure().tag
