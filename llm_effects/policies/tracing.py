"""One span for the whole call, with each attempt below; a call that failed, or fell back, is in the log."""

import anyio
from returns.pipeline import is_successful

from llm_effects.effects.call import Call
from llm_effects.effects.effect import Answer, Effect, Generate, effect, run
from llm_effects.effects.env import LLMEnv, Span
from llm_effects.telemetry import conventions as names
from llm_effects.telemetry.logs import log_attempt, log_failure, log_fallback, unharmed
from llm_effects.telemetry.spans import (
    Outcome,
    attempt_ending,
    attempt_opening,
    call_ending,
    call_opening,
    error_of,
    measures_of,
)
from llm_effects.values.responses import CANCELLED, SUCCESS, Attempt, LLMResponse

# What is told to telemetry and to the log while a call and its attempts are under way.
#
# Nothing here breaks a call: what a service raises is caught by ``unharmed``, at every single use of it.


def begin_call(call: Call, env: LLMEnv) -> Span | None:
    """Follow a whole call, where anybody listens."""
    return unharmed(env.telemetry.begin, names.GENERATE, call_opening(call)) if env.telemetry.active else None


def end_call(call: Call, span: Span | None, outcome: Outcome, kind: str) -> None:
    """Tell what came of a call: in its span, and in the log where something went wrong."""
    if kind == SUCCESS and outcome is not None:
        log_fallback(call, outcome.unwrap().model)
    elif kind != CANCELLED:
        log_failure(call, kind)
    if span is not None:
        unharmed(span.end, call_ending(call.history, outcome, kind), error_of(kind))


def begin_attempt(call: Call, env: LLMEnv) -> Span | None:
    """Follow one attempt, below its call, where anybody listens."""
    if not env.telemetry.active:
        return None
    opening = attempt_opening(call, env.config)
    name = f"{opening.get(names.OPERATION, names.CHAT)} {opening.get(names.REQUEST_MODEL, call.model)}"
    return unharmed(env.telemetry.begin, name, opening, client=names.SERVER_ADDRESS in opening)


def end_attempt(call: Call, env: LLMEnv, span: Span | None, attempt: Attempt | None, outcome: Outcome) -> None:
    """Tell what came of an attempt; there is none where the call got no further than a queue."""
    if attempt is not None:
        log_attempt(call, attempt)
    if span is None:
        return
    if attempt is not None:
        unharmed(env.telemetry.record, measures_of(attempt, outcome, env.config))
    unharmed(span.end, attempt_ending(attempt, outcome, env.config), error_of(_followed_kind(attempt, outcome)))


def _followed_kind(attempt: Attempt | None, outcome: Outcome) -> str:
    if attempt is not None:
        return attempt.outcome
    return CANCELLED if outcome is None or is_successful(outcome) else outcome.failure().tag


def with_tracing(inner: Generate) -> Generate:
    """Follow the call to its end, whatever it is: an answer, an error, a cancellation or a defect."""

    def trace(call: Call) -> Effect[LLMResponse]:
        async def perform(env: LLMEnv) -> Answer:
            span = begin_call(call, env)
            try:
                outcome = await run(inner(call), env)
            except BaseException as problem:
                end_call(call, span, None, _kind(problem))
                raise
            end_call(call, span, outcome, SUCCESS if is_successful(outcome) else outcome.failure().tag)
            return outcome

        return effect(perform)

    return trace


def _kind(problem: BaseException) -> str:
    return CANCELLED if isinstance(problem, anyio.get_cancelled_exc_class()) else type(problem).__name__
