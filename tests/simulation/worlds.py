"""A world of models that get slower and faster, break down and are repaired: the same one for every strategy."""

from collections.abc import Mapping
from random import Random
from typing import Final, final

import anyio
from attrs import frozen
from returns.future import FutureResult
from returns.result import Failure, Result, Success

from llm_effects import LLMError, LLMResponse, ModelConfig, ModelUnavailable
from llm_effects.effects import Call
from llm_effects.testing import answer
from llm_effects.values import ModelHealth

HOUR: Final = 3600.0


@final
@frozen
class Kind:
    """What a model usually is: the median of its answers (seconds), and how often it breaks down or has a slow day."""

    usual_s: float
    outages: float
    slow_days: float
    dollars: float


KINDS: Final[Mapping[str, Kind]] = {
    "claude": Kind(usual_s=3.0, outages=0.010, slow_days=0.010, dollars=10.0),
    "gpt": Kind(usual_s=2.5, outages=0.008, slow_days=0.008, dollars=6.0),
    "other": Kind(usual_s=3.5, outages=0.010, slow_days=0.006, dollars=2.0),
    "studio": Kind(usual_s=7.0, outages=0.004, slow_days=0.002, dollars=0.0),
}
"""``outages`` and ``slow_days`` are the chances that one begins in an hour; ``dollars`` for a million tokens out."""


@final
@frozen
class Hour:
    """How a model is for an hour: seconds of an answer (median), chance of failing, seconds of a failure."""

    answer_s: float
    error_rate: float
    failure_s: float


World = Mapping[str, tuple[Hour, ...]]


def make_world(hours: int, seed: int) -> World:
    """Draw the fate of every model, hour by hour."""
    return {name: tuple(_fate(kind, hours, Random(f"{seed} {name}"))) for name, kind in KINDS.items()}


def _fate(kind: Kind, hours: int, draw: Random) -> list[Hour]:
    """Speed drifts a little each hour. A slow day lasts 6 to 24 hours, an outage 1 to 8, by hanging or by errors."""
    fate: list[Hour] = []
    drift, slow, slow_until, out_until, hangs = 1.0, 1.0, 0, 0, False
    for hour in range(hours):
        drift = min(max(drift * draw.lognormvariate(0.0, 0.08), 0.6), 1.7)
        if hour >= slow_until:
            slow = 1.0
            if draw.random() < kind.slow_days:
                slow, slow_until = draw.uniform(2.0, 6.0), hour + draw.randint(6, 24)
        if hour >= out_until and draw.random() < kind.outages:
            out_until, hangs = hour + draw.randint(1, 8), draw.random() < 0.5
        out = hour < out_until
        fate.append(Hour(kind.usual_s * drift * slow, 0.9 if out else 0.01, 60.0 if out and hangs else 0.3))
    return fate


@final
@frozen
class WorldClients:
    """Models as their world has them. The luck of a call is the same whichever strategy sends it."""

    world: World
    seed: int

    def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
        """Answer or fail, after a while."""
        return FutureResult(self._complete(call))

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        """Say that all is well."""
        return FutureResult.from_value(ModelHealth(model=name, provider=model.provider, reachable=True, ready=True))

    async def _complete(self, call: Call) -> Result[LLMResponse, LLMError]:
        hour = hour_of(self.world, call.model, anyio.current_time())
        luck = Random(f"{self.seed} {call.id} {call.model} {len(call.history.attempts)}")
        if luck.random() < hour.error_rate:
            await anyio.sleep(hour.failure_s)
            return Failure(ModelUnavailable(model=call.model, reason="overloaded"))
        await anyio.sleep(hour.answer_s * luck.lognormvariate(0.0, 0.35))
        return Success(answer("because", model=call.model))


def hour_of(world: World, model: str, now: float) -> Hour:
    """How a model is at a time; a call that outlasts the world finds its last hour."""
    fate = world[model]
    return fate[min(int(now / HOUR), len(fate) - 1)]
