"""A simulation of routing strategies under a virtual clock: ``python -m tests.simulation.routing [hours] [seed]``.

The oracle ranks by the true state of the models at that time. Regret is the mean time of a call minus the oracle's.
"""

import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from statistics import fmean
from time import perf_counter
from typing import Final, final

import anyio
from attrs import define, evolve, frozen
from returns.pipeline import is_successful

from llm_effects import Attempt, LLMConfig, LLMEnv, LLMRequest, ModelConfig, Preferences, generate, run
from llm_effects.config import Price, RoutingConfig
from llm_effects.config.routing import Strategy
from llm_effects.routing.statistics import PRIOR
from llm_effects.testing.scripted import EPOCH, scripted_env
from llm_effects.testing.virtual_time import run_in_virtual_time
from llm_effects.values import Statistics
from tests.simulation.worlds import HOUR, KINDS, Hour, World, WorldClients, hour_of, make_world

ATTEMPT_MS: Final = 20_000
"""Time-out of one attempt: the cost of a model that hangs."""

CALL_MS: Final = 30_000
"""Time-out of a whole call."""

PROVIDERS: Final = {"claude": "anthropic", "gpt": "openai-chat", "other": "openai-compatible", "studio": "lm-studio"}


@final
@frozen(kw_only=True)
class Outcome:
    """The results of the calls of a strategy."""

    seconds: tuple[float, ...]
    answered: int
    dollars: float

    @property
    def mean_s(self) -> float:
        """Mean time of a call, answered or not."""
        return fmean(self.seconds)

    @property
    def success(self) -> float:
        """Share of the calls that were answered."""
        return self.answered / len(self.seconds)

    def percentile(self, share: float) -> float:
        """Return the seconds within which that share of the calls ended."""
        return sorted(self.seconds)[int(share * (len(self.seconds) - 1))]


@final
@define
class OracleHealth:
    """A health that knows the true state of the models."""

    world: World

    def observe(self, attempt: Attempt, at: datetime) -> None:
        """Ignore an attempt: there is nothing to learn."""

    def cool_down(self, model: str, until: float) -> None:
        """Ignore a cooldown: the true state includes it."""

    def begin_call(self) -> None:
        """Count nothing: no call explores."""

    def add_in_flight(self, model: str, change: int) -> None:
        """Ignore a call in flight: the true state is known."""

    def in_flight(self) -> Mapping[str, int]:
        """Return nothing, as if every model were idle."""
        return {}

    def calls(self) -> int:
        """Return 0, so that no call explores."""
        return 0

    def latency(self, model: str, share: float, *, first_content: bool) -> float | None:
        """Return nothing: no call is hedged."""

    def statistics(self) -> Mapping[str, Statistics]:
        """Return the true state."""
        return {name: _true_statistics(hour_of(self.world, name, anyio.current_time())) for name in self.world}


def _true_statistics(hour: Hour) -> Statistics:
    failure_ms = min(hour.failure_s * 1000, ATTEMPT_MS)
    error_rate = hour.error_rate * (1 + PRIOR)  # compensates for the prior
    return Statistics(attempts=1, error_rate=error_rate, latency_ms=hour.answer_s * 1000, failure_ms=failure_ms)


def config_of(strategy: Strategy) -> LLMConfig:
    """Return a configuration of the models for a strategy, with a table for the fixed order."""
    models = {
        name: ModelConfig(
            provider=PROVIDERS[name],
            model=name,
            endpoint="https://models.test/v1",
            api_key="sk-simulated",
            timeout_ms=ATTEMPT_MS,
            price=Price(input=kind.dollars / 5, output=kind.dollars),
        )
        for name, kind in KINDS.items()
    }
    order = {"general": tuple(KINDS)}
    return LLMConfig(models=models, routing=RoutingConfig(strategy=strategy, tasks=order, fallback_order=tuple(KINDS)))


def simulate(strategy: Strategy, world: World, *, per_hour: int, seed: int, oracle: bool = False) -> Outcome:
    """Send calls through the whole pipeline, evenly spread over the hours of a world."""
    env = scripted_env(config=config_of(strategy), clients=WorldClients(world, seed))
    env = evolve(env, now=lambda: EPOCH + timedelta(seconds=anyio.current_time()))
    return run_in_virtual_time(_calls, evolve(env, health=OracleHealth(world)) if oracle else env, world, per_hour)


async def _calls(env: LLMEnv, world: World, per_hour: int) -> Outcome:
    seconds, answered, dollars = [], 0, Decimal(0)
    effect = generate(LLMRequest(prompt="why?", preferences=Preferences(timeout_ms=CALL_MS)))
    for call in range(per_hour * len(next(iter(world.values())))):
        await anyio.sleep_until(call * HOUR / per_hour)
        began = anyio.current_time()
        result = await run(effect, env)
        seconds.append(anyio.current_time() - began)
        if is_successful(result):
            answered, dollars = answered + 1, dollars + (result.unwrap().cost.usd or 0)
    return Outcome(seconds=tuple(seconds), answered=answered, dollars=float(dollars))


def compare(hours: int = 1000, seed: int = 1, per_hour: int = 6) -> Mapping[str, Outcome]:
    """Run every strategy in the same world."""
    world = make_world(hours, seed)
    runs: Mapping[str, tuple[Strategy, bool]] = {
        "fixed order": ("balanced", False),
        "cost": ("cost", False),
        "performance": ("performance", False),
        "oracle": ("performance", True),
    }
    return {
        name: simulate(strategy, world, per_hour=per_hour, seed=seed, oracle=oracle)
        for name, (strategy, oracle) in runs.items()
    }


def main(hours: int = 1000, seed: int = 1, per_hour: int = 6) -> None:
    """Print the comparison as a table."""
    began = perf_counter()
    outcomes = compare(hours, seed, per_hour)
    best = outcomes["oracle"].mean_s
    print("| strategy | mean s | regret s | p50 s | p99 s | answered | USD for 1,000 calls |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, each in outcomes.items():
        times = (
            f"{each.mean_s:.2f} | {each.mean_s - best:.2f} | {each.percentile(0.5):.2f} | {each.percentile(0.99):.1f}"
        )
        print(f"| {name} | {times} | {each.success:.2%} | {each.dollars / len(each.seconds) * 1000:.2f} |")
    print(f"{hours} hours, {per_hour} calls each, seed {seed}; {perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
