"""Hedging: a slow attempt is raced by a second one at the same model, and the first content wins.

Until then the opening of each attempt is held back, so the consumer sees one answer. The loser is cancelled, awaited
and recorded like every attempt. See "The Tail at Scale" by Dean and Barroso (2013).
"""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial
from typing import final

import anyio
from attrs import define, evolve
from returns.result import Success

from llm_effects.effects.call import Call, CallHistory, Sink
from llm_effects.effects.combinators import Claim, run_hedged
from llm_effects.effects.effect import Answer, Generate, layer, proceed
from llm_effects.effects.env import LLMEnv
from llm_effects.providers.registry import ready_targets
from llm_effects.values.events import Restarted, Started, StreamEvent


@layer
def with_hedging(next: Generate, call: Call, env: LLMEnv) -> Awaitable[Answer]:
    """Ask the model a second time when it is slower than usual: by ``RoutingConfig.hedging``, off by default.

    Never after content was delivered, with tools, or for an in-process model, which has no second engine.
    """
    delay = _delay(call, env)
    return proceed(next, call, env) if delay is None else _hedged(next, call, env, delay)


def _delay(call: Call, env: LLMEnv) -> float | None:
    """Return after how many seconds a second attempt begins, or ``None`` where none may."""
    hedging = env.config.routing.hedging
    if not hedging.enabled:
        return None
    if not call.history.errors and not call.history.attempts:
        env.limits.hedges.earn(hedging.budget)  # once for each call, not for each candidate
    known = env.health.statistics().get(call.model)
    if known is None or known.attempts < hedging.min_attempts or not _is_hedgeable(call, env):
        return None
    usual_ms = env.health.latency(call.model, hedging.percentile, first_content=call.sink is not None)
    return None if usual_ms is None else usual_ms / 1000


def _is_hedgeable(call: Call, env: LLMEnv) -> bool:
    if call.history.contents or call.request.tools:
        return False
    target = ready_targets(env.config).get(call.model)
    return target is not None and target.preset.wire != "llama"


async def _hedged(next: Generate, call: Call, env: LLMEnv, delay: float) -> Answer:
    async def attempt(claim: Claim) -> Answer:
        call.history.racing += 1
        try:
            return await _attempt(next, call.again(call.attempt.wait_ms), env, claim)  # with a record of its own
        finally:
            call.history.racing -= 1

    call.history.current = None
    slow = partial(_slow, call.history, delay)
    return await run_hedged(attempt, slow, partial(_may_begin, call, len(call.history.errors), env))


async def _attempt(next: Generate, call: Call, env: LLMEnv, claim: Claim) -> Answer:
    if call.sink is None:
        return await proceed(next, call, env)
    opening = _Opening(call.sink, claim)
    result = await proceed(next, evolve(call, sink=opening), env)
    if isinstance(result, Success):
        await opening.show()  # an answer without content has only its opening
    return result


async def _slow(history: CallHistory, delay: float) -> None:
    """Wait until the attempt under way is slow, counted from when it was sent rather than queued."""
    while True:
        record, now = history.current, anyio.current_time()
        sent_at = None if record is None or record.queued_since is not None else record.sent_at
        left = delay if sent_at is None else sent_at + delay - now
        if left <= 0:
            return
        await anyio.sleep(left)


def _may_begin(call: Call, failed: int, env: LLMEnv) -> bool:
    """Return whether the second attempt may begin: not while the first one queues, nor once it has failed."""
    history = call.history
    waiting = len(history.errors) == failed and not history.queued
    kept = history.racing + call.attempt.alternatives  # each candidate that is left keeps an attempt
    allowed = len(history.attempts) + kept < env.config.routing.max_attempts
    return waiting and allowed and env.limits.hedges.spend()


@final
@define(eq=False, repr=False)
class _Opening:
    """A sink that holds back the opening of an attempt until its first content, and passes on only the winner."""

    sink: Sink
    claim: Claim
    held: StreamEvent | None = None
    shown: bool = False

    async def __call__(self, event: StreamEvent) -> None:
        if isinstance(event, Started | Restarted) and not self.shown:
            self.held = event
            return
        await self.show()
        await self.sink(event)

    async def show(self) -> None:
        """Claim the call and deliver what was held back; an attempt that lost ends here."""
        if self.shown:
            return
        await self.claim()
        self.shown = True
        if self.held is not None:
            await self.sink(self.held)
