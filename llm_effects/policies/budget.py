"""Budgets: what an attempt is expected to cost is reserved before it is sent, and put right by what it cost.

Money is the last thing that an attempt waits for, so that none is held while it stands in a queue.
"""

from datetime import datetime, timedelta
from decimal import Decimal

import anyio
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.effects.call import Booked, Call, changed
from llm_effects.effects.effect import Answer, Effect, Generate, effect, result_of, run
from llm_effects.effects.env import LLMEnv
from llm_effects.limits.budgets import Account, Hold, accounts_of
from llm_effects.limits.quotas import lease
from llm_effects.policies.limits import expected_usage
from llm_effects.values.errors import BudgetExceeded, LLMError
from llm_effects.values.responses import Cost, LLMResponse


def with_budget(inner: Generate) -> Generate:
    """Refuse an attempt that a budget has not enough left for: by ``LLMConfig.budgets``.

    A model whose price is unknown is refused too, by any budget; one that is free never is. An attempt whose cost
    nobody knows in the end, such as one that was cancelled, is taken to have cost its estimate.
    """

    def spend(call: Call) -> Effect[LLMResponse]:
        async def perform(env: LLMEnv) -> Answer:
            now = env.now()
            accounts = accounts_of(env.config.budgets, call.request, now) if env.config.budgets else ()
            estimate = expected_cost(call, env, now) if accounts else Cost.ZERO
            if estimate == Cost.ZERO:
                return await run(inner(call), env)
            held = await _held(call, env, accounts, estimate, now)
            if is_successful(held):
                return await _inside(inner, call, env, held.unwrap())
            call.history.errors.append(held.failure())
            return Failure(held.failure())

        return effect(perform)

    return spend


def expected_cost(call: Call, env: LLMEnv, at: datetime) -> Cost:
    """Estimate what an attempt costs: its prompt, and the longest answer that it permits, said or thought."""
    said = expected_usage(call, env)
    thought = evolve(said, reasoning_tokens=said.output_tokens or 0)
    costs = (env.prices.cost(call.model, usage, at) for usage in (said, thought))
    return max(costs, key=lambda cost: cost.usd or Decimal(0))


async def _held(
    call: Call, env: LLMEnv, accounts: tuple[Account, ...], estimate: Cost, now: datetime
) -> Result[Hold, LLMError]:
    if estimate.usd is None:
        first = accounts[0]
        return Failure(
            BudgetExceeded(
                model=call.model, budget=first.budget, spent=Cost.UNKNOWN, limit=Cost(first.limit), estimate=estimate
            )
        )
    expires_at = now + timedelta(seconds=lease(call.deadline, anyio.current_time()))
    hold = Hold(id=env.new_id(), accounts=accounts, amount=estimate.usd, at=now, expires_at=expires_at)
    held = await result_of(env.ledger.reserve(hold))
    return held.alt(lambda error: evolve(error, model=call.model))


async def _inside(inner: Generate, asked: Call, env: LLMEnv, hold: Hold) -> Answer:
    call = changed(asked, booked=Booked())
    try:
        return await run(inner(call), env)
    finally:
        await env.ledger.commit(hold, _spent(hold, call.booked.cost))


def _spent(hold: Hold, cost: Cost) -> Decimal:
    return hold.amount if cost.usd is None else cost.usd
