"""A simulated world of models whose speed changes and that fail and recover, the same for every strategy."""

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
    """A model's usual behaviour: the median time of its answers (seconds), and the rates of outages and slow days."""

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
"""``outages`` and ``slow_days`` are chances in an hour; ``dollars`` is the price of a million output tokens."""


@final
@frozen
class Hour:
    """A model's behaviour in an hour: seconds of an answer (median), error rate, seconds of a failure."""

    answer_s: float
    error_rate: float
    failure_s: float


World = Mapping[str, tuple[Hour, ...]]


def make_world(hours: int, seed: int) -> World:
    """Return the random behaviour of every model, hour by hour."""
    return {name: tuple(_hours_of(kind, hours, Random(f"{seed} {name}"))) for name, kind in KINDS.items()}


def _hours_of(kind: Kind, hours: int, draw: Random) -> list[Hour]:
    """Return the hours of a model.

    Its speed drifts a little each hour. A slow day lasts 6 to 24 hours, an outage 1 to 8, with hangs or with errors.
    """
    timeline: list[Hour] = []
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
        timeline.append(Hour(kind.usual_s * drift * slow, 0.9 if out else 0.01, 60.0 if out and hangs else 0.3))
    return timeline


@final
@frozen
class WorldClients:
    """Clients that behave as their world says; the random draw of a call does not depend on the strategy."""

    world: World
    seed: int

    def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
        """Answer or fail, after the time that the world says."""
        return FutureResult(self._complete(call))

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        """Report a healthy model."""
        return FutureResult.from_value(ModelHealth(model=name, provider=model.provider, reachable=True, ready=True))

    async def _complete(self, call: Call) -> Result[LLMResponse, LLMError]:
        hour = hour_of(self.world, call.model, anyio.current_time())
        draw = Random(f"{self.seed} {call.id} {call.model} {len(call.history.attempts)}")
        if draw.random() < hour.error_rate:
            await anyio.sleep(hour.failure_s)
            return Failure(ModelUnavailable(model=call.model, reason="overloaded"))
        await anyio.sleep(hour.answer_s * draw.lognormvariate(0.0, 0.35))
        return Success(answer("because", model=call.model))


def hour_of(world: World, model: str, now: float) -> Hour:
    """Return a model's behaviour at a time; calls after the end of the world get its last hour."""
    timeline = world[model]
    return timeline[min(int(now / HOUR), len(timeline) - 1)]
