"""A slow attempt is raced by a second one at the same model: the first content wins.

Until then the opening of each attempt is held back, so its consumer sees one answer. The loser is cancelled, awaited
and booked like every attempt. See "The Tail at Scale" by Dean and Barroso (2013).
"""

from functools import partial
from typing import final

from attrs import define
from returns.pipeline import is_successful

from llm_effects.effects.call import Call, CallHistory, Sink, changed
from llm_effects.effects.combinators import Claim, duel
from llm_effects.effects.effect import Answer, Effect, Generate, effect, run
from llm_effects.effects.env import LLMEnv
from llm_effects.providers.registry import target_of
from llm_effects.values.events import Restarted, Started, StreamEvent
from llm_effects.values.responses import LLMResponse


def with_hedging(inner: Generate) -> Generate:
    """Ask the model a second time when it is slower than usual: by ``RoutingConfig.hedging``, off unless enabled.

    Never once content was delivered, with tools, or for a model in this process, which has no second engine.
    """

    def hedge(call: Call) -> Effect[LLMResponse]:
        async def perform(env: LLMEnv) -> Answer:
            timeout = _patience(call, env)
            if timeout is None:
                return await run(inner(call), env)
            return await _hedged(inner, call, env, timeout)

        return effect(perform)

    return hedge


def _patience(call: Call, env: LLMEnv) -> float | None:
    """After how many seconds a second attempt is worth it; ``None`` where none may be made."""
    hedging = env.config.routing.hedging
    if not hedging.enabled:
        return None
    env.limits.hedges.earn(hedging.budget)
    known = env.health.statistics().get(call.model)
    if known is None or known.attempts < hedging.min_attempts or not _may_be_asked_twice(call, env):
        return None
    usual_ms = env.health.latency(call.model, hedging.percentile, first_content=call.sink is not None)
    return None if usual_ms is None else usual_ms / 1000


def _may_be_asked_twice(call: Call, env: LLMEnv) -> bool:
    if call.history.contents or call.request.tools:
        return False
    target = target_of(call.model, env.config.models[call.model])
    return is_successful(target) and target.unwrap().preset.wire != "llama"


async def _hedged(inner: Generate, call: Call, env: LLMEnv, timeout: float) -> Answer:
    async def attempt(claim: Claim) -> Answer:
        if call.sink is None:
            return await run(inner(call), env)
        opening = _Opening(call.sink, claim)
        result = await run(inner(changed(call, sink=opening)), env)
        if is_successful(result):
            await opening.show()  # an answer without content has only that
        return result

    return await duel(attempt, timeout, partial(_may_begin, call.history, len(call.history.errors), env))


def _may_begin(history: CallHistory, failed: int, env: LLMEnv) -> bool:
    """Not while the first one waits in our own line; after an error of its own it is for the retries to go on."""
    waiting = len(history.errors) == failed and not history.queued
    another = len(history.attempts) + 1 < env.config.routing.max_attempts  # the one under way is not in the trail yet
    return waiting and another and env.limits.hedges.spend()


@final
@define
class _Opening:
    """A sink that holds the opening of an attempt back until its first content, and lets only one attempt through."""

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
        """Claim the call and tell what was held; in the attempt that lost this is where it ends."""
        if self.shown:
            return
        await self.claim()
        self.shown = True
        if self.held is not None:
            await self.sink(self.held)
