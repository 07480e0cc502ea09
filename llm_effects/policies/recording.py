"""Recording: every attempt goes to the history of its call, the statistics of its model, the ledger and telemetry."""

from __future__ import annotations

import math
from datetime import datetime
from decimal import Decimal
from typing import Final

import anyio
from returns.result import Success

from llm_effects.effects.call import AttemptRecord, Call
from llm_effects.effects.effect import Answer, Generate, layer, proceed
from llm_effects.effects.env import LLMEnv
from llm_effects.policies.tracing import begin_attempt, end_attempt
from llm_effects.providers.registry import is_proxied, models_here
from llm_effects.routing.prices import saving_of
from llm_effects.values.errors import Blame, LLMError, RequestTimeout, blame_for, was_sent
from llm_effects.values.records import LedgerRow, Statistics
from llm_effects.values.responses import CANCELLED, SUCCESS, Attempt, Cost, Usage

_UNKNOWN: Final = Statistics()


@layer
async def with_recording(next: Generate, call: Call, env: LLMEnv) -> Answer:
    """Record each attempt, however it ends: time-outs, lost hedges and cancellations too."""
    _clear(call.attempt.record)
    span = begin_attempt(call, env)
    started = call.attempt.record.sent_at = call.history.clock()
    call.history.current = call.attempt.record
    call.history.enter("ask", call.model, started)
    try:
        outcome = await proceed(next, call, env)
    except BaseException as problem:
        attempt = _record(env, call, started, _interruption(problem, call), None)
        end_attempt(call, env, span, attempt, None)
        raise
    tag = SUCCESS if isinstance(outcome, Success) else _tag(outcome.failure())
    end_attempt(call, env, span, _record(env, call, started, tag, outcome), outcome)
    return outcome


def _clear(record: AttemptRecord) -> None:
    """Forget an earlier sending of the same attempt: a custom layer may repeat one without ``Call.again``."""
    record.queued_since = record.content_at = record.rate_limits = None
    record.queued_s, record.cost = 0.0, Cost.UNKNOWN


def _tag(error: LLMError) -> str:
    """Return the outcome of a failed attempt; a consumer that never returned is a cancellation."""
    return CANCELLED if isinstance(error, RequestTimeout) and error.phase == "sink" else error.tag


def _interruption(problem: BaseException, call: Call) -> str:
    """Return what cut an attempt short: the deadline, a cancellation, or the class of a defect."""
    if not isinstance(problem, anyio.get_cancelled_exc_class()):
        return type(problem).__name__
    return RequestTimeout.tag if anyio.current_time() >= call.deadline else CANCELLED


def _record(env: LLMEnv, call: Call, started: float, tag: str, outcome: Answer | None) -> Attempt | None:
    if call.attempt.record.queued_since is not None:
        call.attempt.record.cost = Cost.ZERO
        return None  # it was never sent
    at = env.now()
    call.attempt.record.cost = _cost(env, call, outcome, at)
    attempt = _attempt(env, call, started, tag, outcome)
    call.history.attempts.append(attempt)
    if _is_evidence(outcome) and not (_is_hurried(outcome, call) and _too_soon(attempt, env)):
        env.health.observe(attempt, at)
    env.ledger.record(_row(call, attempt, at, outcome, env))
    return attempt


def _is_evidence(outcome: Answer | None) -> bool:
    """Return whether an outcome may say something about the model."""
    if outcome is None or isinstance(outcome, Success):
        return True
    return blame_for(outcome.failure()) in {Blame.SERVER, Blame.MODEL}


def _is_hurried(outcome: Answer | None, call: Call) -> bool:
    """Return whether the caller ended the attempt: by a cancellation, a deadline or the end of a share of the time."""
    if outcome is None:
        return True
    error = None if isinstance(outcome, Success) else outcome.failure()
    shared = call.attempt.first_content_by < math.inf
    return shared and isinstance(error, RequestTimeout) and error.phase == "attempt"


def _too_soon(attempt: Attempt, env: LLMEnv) -> bool:
    """Return whether the attempt ended before the model usually answers: a hurried caller says nothing about it."""
    known = env.health.statistics().get(attempt.model, _UNKNOWN)
    usual = (ms for ms in (known.latency_ms, known.first_content_ms) if ms is not None)
    return attempt.latency_ms < min(usual, default=0.0)


def _row(call: Call, attempt: Attempt, at: datetime, outcome: Answer | None, env: LLMEnv) -> LedgerRow:
    served = None if outcome is None or not isinstance(outcome, Success) else outcome.unwrap().served_model
    return LedgerRow(
        id=f"{call.id}.{len(call.history.attempts)}",
        at=at,
        call_id=call.id,
        task_type=call.request.task_type,
        attempt=attempt,
        conversation_id=None if call.turn is None else call.turn.conversation_id,
        served_model=served,
        owner=call.request.owner,
        tags=call.request.tags,
        left_machine=call.model not in models_here(env.config, proxied=is_proxied(env.clients)),
        cache_saved_usd=_cache_saved(env, attempt, at),
    )


def _cache_saved(env: LLMEnv, attempt: Attempt, at: datetime) -> Decimal | None:
    usage = attempt.usage
    if not (usage.cache_read_tokens or usage.cache_write_tokens):
        return None
    return saving_of(env.prices, attempt.model, usage, attempt.cost, at)


def _attempt(env: LLMEnv, call: Call, started: float, tag: str, outcome: Answer | None) -> Attempt:
    record = call.attempt.record
    sent_at, content_at = started + record.queued_s, record.content_at
    return Attempt(
        model=call.model,
        provider=env.config.models[call.model].provider,
        outcome=tag,
        latency_ms=(call.history.clock() - sent_at) * 1000,
        first_content_ms=None if content_at is None else (content_at - sent_at) * 1000,
        wait_ms=call.attempt.wait_ms + record.queued_s * 1000,
        usage=_usage(outcome) or Usage(),
        cost=record.cost,
    )


def _usage(outcome: Answer | None) -> Usage | None:
    if outcome is None:
        return None
    return outcome.unwrap().usage if isinstance(outcome, Success) else outcome.failure().usage


def _cost(env: LLMEnv, call: Call, outcome: Answer | None, at: datetime) -> Cost:
    """Return the cost of an attempt: zero if it was rejected, unknown if the provider may have worked on it."""
    usage = _usage(outcome)
    rejected = outcome is not None and not isinstance(outcome, Success) and _is_unbilled(outcome.failure())
    if rejected and (usage is None or usage == Usage()):
        return Cost.ZERO
    return env.prices.cost(call.model, usage or Usage(), at)


def _is_unbilled(error: LLMError) -> bool:
    return not was_sent(error) or (error.status or 0) >= 400
