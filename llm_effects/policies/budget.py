"""Budgets: the expected cost of an attempt is reserved before it is sent, and replaced by the actual cost after it.

The budget is the last thing an attempt waits for, so that no money is held while it queues.
"""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import datetime, timedelta
from decimal import Decimal

import anyio
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.effects.call import Call
from llm_effects.effects.effect import Answer, Generate, layer, proceed, result_of
from llm_effects.effects.env import LLMEnv
from llm_effects.limits.budgets import Account, Hold, accounts_of
from llm_effects.limits.quotas import lease_seconds
from llm_effects.policies.limits import expected_usage
from llm_effects.values.errors import BudgetExceeded, LLMError
from llm_effects.values.responses import Cost, ServiceTier


@layer
def with_budget(next: Generate, call: Call, env: LLMEnv) -> Awaitable[Answer]:
    """Refuse an attempt that a budget cannot cover: by ``LLMConfig.budgets``.

    Any budget refuses a model whose price is unknown; no budget refuses one that is free. An attempt whose cost stays
    unknown, such as a cancelled one, is charged its estimate.
    """
    return _within_budget(next, call, env) if env.config.budgets else proceed(next, call, env)


async def _within_budget(next: Generate, call: Call, env: LLMEnv) -> Answer:
    now = env.now()
    accounts = accounts_of(env.config.budgets, call.request, now)
    estimate = expected_cost(call, env, now) if accounts else Cost.ZERO
    if estimate == Cost.ZERO:
        return await proceed(next, call, env)
    reserved = await _reserve(call, env, accounts, estimate, now)
    if not is_successful(reserved):
        return Failure(reserved.failure())
    hold = reserved.unwrap()
    try:
        return await proceed(next, call, env)
    finally:
        await env.ledger.commit(hold, _spent(hold, call.attempt.record.cost))


def _spent(hold: Hold, cost: Cost) -> Decimal:
    return hold.amount if cost.usd is None else cost.usd


def expected_cost(call: Call, env: LLMEnv, at: datetime, tier: ServiceTier | None = None) -> Cost:
    """Estimate the cost of an attempt: its prompt and the longest answer it allows, as text or as reasoning."""
    answered = evolve(expected_usage(call, env), service_tier=tier)
    reasoned = evolve(answered, reasoning_tokens=answered.output_tokens or 0)
    costs = (env.prices.cost(call.model, usage, at) for usage in (answered, reasoned))
    return max(costs, key=lambda cost: cost.usd or Decimal(0))


async def _reserve(
    call: Call, env: LLMEnv, accounts: tuple[Account, ...], estimate: Cost, now: datetime
) -> Result[Hold, LLMError]:
    if estimate.usd is None:
        return Failure(unknown_price(call.model, accounts[0]))
    expires_at = now + timedelta(seconds=lease_seconds(call.deadline, anyio.current_time()))
    hold = Hold(id=env.new_id(), accounts=accounts, amount=estimate.usd, at=now, expires_at=expires_at)
    reserved = await result_of(env.ledger.reserve(hold))
    return reserved.alt(lambda error: evolve(error, model=call.model))


def unknown_price(model: str, account: Account) -> BudgetExceeded:
    """Return the error of a model whose price is unknown: no budget covers it."""
    limit = Cost(account.limit)
    return BudgetExceeded(model=model, budget=account.budget, spent=Cost.UNKNOWN, limit=limit, estimate=Cost.UNKNOWN)
