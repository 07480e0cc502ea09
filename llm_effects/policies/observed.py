"""Every attempt leaves a trace: in the trail of its call, in what is known of the model, in the ledger."""

import anyio
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects.calls import Call
from llm_effects.effects import Effect, Generate, effect, settle
from llm_effects.env import LedgerRow, LLMEnv
from llm_effects.errors import LLMError, RequestTimeout
from llm_effects.responses import CANCELLED, SUCCESS, Attempt, Cost, LLMResponse, Usage

_Outcome = Result[LLMResponse, LLMError]


def observed(inner: Generate) -> Generate:
    """Record each attempt, in ``finally``: time-outs, lost hedges and cancellations are kept too."""

    def observe(call: Call) -> Effect[LLMResponse]:
        async def run(env: LLMEnv) -> _Outcome:
            started = anyio.current_time()
            outcome: _Outcome | None = None
            try:
                outcome = await settle(inner(call), env)
                return outcome
            finally:
                _book(env, call, _attempt(env, call, outcome, started), outcome)

        return effect(run)

    return observe


def _attempt(env: LLMEnv, call: Call, outcome: _Outcome | None, started: float) -> Attempt:
    now = anyio.current_time()
    usage = _usage(outcome)
    return Attempt(
        model=call.model,
        provider=env.config.models[call.model].provider,
        outcome=_tag(outcome, cut=now >= call.deadline),
        latency_ms=(now - started) * 1000,
        wait_ms=call.wait_ms,
        usage=usage or Usage(),
        cost=_cost(env, call, outcome, usage),
    )


def _tag(outcome: _Outcome | None, *, cut: bool) -> str:
    if outcome is None:
        return RequestTimeout.tag if cut else CANCELLED
    return SUCCESS if is_successful(outcome) else outcome.failure().tag


def _usage(outcome: _Outcome | None) -> Usage | None:
    if outcome is None:
        return None
    return outcome.unwrap().usage if is_successful(outcome) else outcome.failure().usage


def _cost(env: LLMEnv, call: Call, outcome: _Outcome | None, usage: Usage | None) -> Cost:
    """What the attempt cost: nothing if the provider turned it away, unknown if it may have worked on it."""
    if usage is not None:
        return env.prices.cost(call.model, usage)
    turned_away = outcome is not None and not isinstance(outcome.failure(), RequestTimeout)
    return Cost.ZERO if turned_away else env.prices.cost(call.model, Usage())


def _book(env: LLMEnv, call: Call, attempt: Attempt, outcome: _Outcome | None) -> None:
    call.trail.attempts.append(attempt)
    if outcome is not None and not is_successful(outcome):
        call.trail.errors.append(outcome.failure())
    env.health.observe(attempt)
    env.ledger.record(
        LedgerRow(
            at=env.now(),
            call_id=call.id,
            task_type=call.request.task_type,
            attempt=attempt,
            owner=call.request.owner,
            tags=call.request.tags,
        )
    )
