"""Runs: every caller of a scenario in virtual time, the report of many seeds, and the shortest scenario that fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from functools import partial
from itertools import count
from traceback import format_exception
from typing import TypeAlias, TypeVar, final

import anyio
from attrs import evolve, field, frozen
from returns.pipeline import is_successful

from llm_effects.config import LLMConfig
from llm_effects.conversations.operations import start_conversation
from llm_effects.effects.effect import Generate, run
from llm_effects.effects.env import LLMEnv
from llm_effects.effects.tasks import task_group
from llm_effects.pipeline import standard_pipeline
from llm_effects.stores.cache.memory import MemoryCache
from llm_effects.testing.scripted import scripted_env
from llm_effects.testing.simulation.callers import Actor, Seen, check_conversations
from llm_effects.testing.simulation.invariants import (
    Violation,
    Watch,
    WatchedLedger,
    WatchedLimits,
    check_released,
    simulated_now,
)
from llm_effects.testing.simulation.models import SimulatedClients
from llm_effects.testing.simulation.world import CONVERSATIONS, Caller, Fault, Scenario, World, drawn
from llm_effects.testing.virtual_time import living_tasks, run_seeded
from llm_effects.values.usage import Percentiles, percentiles

EnvOf: TypeAlias = Callable[[LLMConfig], LLMEnv]
"""Makes a fresh environment for a configuration, whose stores a run uses."""


def memory_env(config: LLMConfig) -> LLMEnv:
    """Build an environment with every store in memory, in virtual time."""
    cache = MemoryCache(config.cache.max_size, clock=anyio.current_time)
    return evolve(scripted_env(config=config), cache=cache)


@final
@frozen(kw_only=True)
class Outcome:
    """The outcome of one run: what its callers saw, what it cost (USD), how long it took, and what it broke.

    ``defect`` is the traceback of an exception that ended it.
    """

    scenario: Scenario
    seen: tuple[Seen, ...] = field(repr=False)
    violations: tuple[Violation, ...]
    cost_usd: Decimal
    seconds: float
    defect: str = field(default="", repr=False)


def run_scenario(scenario: Scenario, *, pipeline: Generate = standard_pipeline, env_of: EnvOf = memory_env) -> Outcome:
    """Run every caller of a scenario in virtual time, and check all invariants. Requires trio."""
    return run_seeded(scenario.seed, partial(_run, scenario, pipeline, env_of))


def _watched(plain: LLMEnv, watch: Watch) -> LLMEnv:
    """Return an environment with simulated models, in virtual time, whose services are watched."""
    numbers, draw = count(1), drawn(watch.scenario.seed, "draws")
    return evolve(
        plain,
        clients=SimulatedClients(watch),
        limits=WatchedLimits(plain.limits, watch),
        ledger=WatchedLedger(plain.ledger, watch),
        now=simulated_now,
        draw=draw.random,
        new_id=lambda: f"id-{next(numbers)}",
    )


async def _run(scenario: Scenario, pipeline: Generate, env_of: EnvOf) -> Outcome:
    plain = env_of(scenario.config)
    watch = Watch(scenario, plain.prices)
    env = _watched(plain, watch)
    for conversation in CONVERSATIONS:
        await run(start_conversation(conversation), env)
    seen = list[Seen]()

    async def act(actor: Actor) -> None:
        seen.append(await actor.act())

    tasks = living_tasks()
    async with task_group() as group:
        for caller in scenario.callers:
            group.start_soon(act, Actor(caller, env, pipeline, watch))
    watch.expect("released", living_tasks() == tasks, f"{living_tasks() - tasks} tasks are left")
    seconds = anyio.current_time()
    await check_conversations(seen, watch, env)
    await check_released(watch, env)
    cost = sum((row.attempt.cost.usd or Decimal(0) for row in watch.rows), Decimal(0))
    return Outcome(
        scenario=scenario, seen=tuple(seen), violations=tuple(watch.violations), cost_usd=cost, seconds=seconds
    )


_Value = TypeVar("_Value")

# Many seeds, and their report.


@final
@frozen(kw_only=True)
class BrokenSeed:
    """A seed that broke an invariant, and the shortest part of its scenario that still does.

    ``defect`` is the traceback of an exception, if one was raised. ``given`` are the arguments that were passed to
    ``simulate`` and that a replay needs too.
    """

    violation: Violation
    scenario: Scenario
    found_in: Scenario = field(repr=False)
    defect: str = field(default="", repr=False)
    given: tuple[str, ...] = ()

    @property
    def callers(self) -> tuple[int, ...]:
        """The numbers of the callers that are left."""
        return tuple(each.number for each in self.scenario.callers)

    @property
    def faults(self) -> tuple[int, ...]:
        """The places of the faults that are left, among those that the seed draws."""
        return tuple(self.found_in.faults.index(each) for each in self.scenario.faults)

    @property
    def replay(self) -> str:
        """The line that runs the scenario again."""
        if self.given:
            plain = ("config", "world") if "config" in self.given else ()
            first = "".join(f"{name}, " for name in self.given if name in plain)
            rest = "".join(f", {name}={name}" for name in self.given if name not in plain)
            return f"replay({first}seed={self.scenario.seed}, callers={self.callers}, faults={self.faults}{rest})"
        callers, faults = (",".join(map(str, each)) for each in (self.callers, self.faults))
        faults = f" --faults {faults or 'none'}"
        return f"python -m llm_effects.testing.simulation --seed {self.scenario.seed} --callers {callers}{faults}"

    def __str__(self) -> str:
        return "\n".join((f"{self.violation}", self.replay, *_story(self.scenario), *self.defect.splitlines()))


def _story(scenario: Scenario) -> Iterator[str]:
    """Yield a line for each model, fault and caller."""
    yield from (f"  {name}: {model!r}, {scenario.behaviour(name)}" for name, model in scenario.config.models.items())
    yield f"  {scenario.config.routing!r}"
    yield from (f"  {fault}" for fault in scenario.faults)
    yield from (f"  {caller}" for caller in scenario.callers)


@final
@frozen(kw_only=True)
class SimulationReport:
    """The report of some seeds: calls, the share that was answered (0 to 1), their cost (USD), and what was broken.

    Callers that left count in no share. ``latency_ms`` are the times of answered calls in milliseconds, and
    ``simulated_s`` is the time that passed in all runs together, in seconds.
    """

    seeds: int
    calls: int
    answered: float
    cost_usd: Decimal
    latency_ms: Percentiles | None
    simulated_s: float
    broken: tuple[BrokenSeed, ...] = ()

    def __str__(self) -> str:
        times = self.latency_ms
        took = "" if times is None else f"; p50 {times.p50:.0f} ms, p95 {times.p95:.0f} ms, p99 {times.p99:.0f} ms"
        paid, hours = f"${self.cost_usd:f}", f"{self.simulated_s / 3600:.1f} simulated hours"
        summary = f"{self.seeds} seeds, {self.calls} calls, {self.answered:.1%} answered, {paid}{took}; {hours}"
        return "\n\n".join((summary, *map(str, self.broken))) if self.broken else f"{summary}; no invariant is broken"


def simulate(
    config: LLMConfig | None = None,
    world: World = World(),  # noqa: B008 - frozen
    *,
    seeds: Iterable[int] = range(100),
    pipeline: Generate = standard_pipeline,
    env_of: EnvOf = memory_env,
    stop_after: int = 1,
) -> SimulationReport:
    """Run a scenario of the world for each seed, through the real pipeline, and check every invariant. Requires trio.

    Without a configuration each seed draws one. ``pipeline`` may have layers of your own; typed answers and batches go
    through the standard one. ``env_of`` makes the environment whose stores, prices and tokens each run uses. After
    ``stop_after`` seeds that broke an invariant no more are run; each is shrunk to the fewest callers and faults.

    >>> report = simulate(seeds=range(3))
    >>> report.seeds, report.broken
    (3, ())
    """
    trial = Trial(pipeline=pipeline, env_of=env_of)
    given = _given(config, world, trial)
    outcomes, broken, run_seeds = list[Outcome](), list[BrokenSeed](), 0
    for seed in seeds:
        run_seeds += 1
        outcome = trial.run(world.scenario(config, seed))
        outcomes.append(outcome)
        if outcome.violations:
            broken.append(shrink(outcome, trial, given=given))
        if len(broken) >= stop_after:
            break
    return _report(run_seeds, outcomes, tuple(broken))


def replay(
    config: LLMConfig | None = None,
    world: World = World(),  # noqa: B008 - frozen
    *,
    seed: int,
    callers: Iterable[int] | None = None,
    faults: Iterable[int] | None = None,
    pipeline: Generate = standard_pipeline,
    env_of: EnvOf = memory_env,
) -> Outcome:
    """Run the scenario of a seed again, with only some of its callers and faults: as a report says.

    >>> replay(seed=7).violations
    ()
    """
    return Trial(pipeline=pipeline, env_of=env_of).run(world.scenario(config, seed).keeping(callers, faults))


@final
@frozen(kw_only=True)
class Trial:
    """A way to run scenarios: through a pipeline, in fresh environments."""

    pipeline: Generate = standard_pipeline
    env_of: EnvOf = memory_env

    def run(self, scenario: Scenario) -> Outcome:
        """Run a scenario; an exception is a violation too."""
        try:
            return run_scenario(scenario, pipeline=self.pipeline, env_of=self.env_of)
        except Exception as defect:  # noqa: BLE001 - whatever it is, it is reported with its traceback
            violation = Violation("defect", 0.0, f"{type(defect).__name__}: {defect}")
            told = "".join(format_exception(defect))
            return Outcome(
                scenario=scenario, seen=(), violations=(violation,), cost_usd=Decimal(0), seconds=0.0, defect=told
            )


def _given(config: LLMConfig | None, world: World, trial: Trial) -> tuple[str, ...]:
    """Return the names of the arguments that differ from those of the command line."""
    differs = {
        "config": config is not None,
        "world": world != World(),
        "pipeline": trial.pipeline is not standard_pipeline,
        "env_of": trial.env_of is not memory_env,
    }
    return tuple(name for name, each in differs.items() if each)


def _report(seeds: int, outcomes: Sequence[Outcome], broken: tuple[BrokenSeed, ...]) -> SimulationReport:
    seen = [each for outcome in outcomes for each in outcome.seen if each.result is not None]
    answered = [each for each in seen if each.result is not None and is_successful(each.result)]
    return SimulationReport(
        seeds=seeds,
        calls=sum(len(outcome.seen) for outcome in outcomes),
        answered=len(answered) / max(len(seen), 1),
        cost_usd=sum((outcome.cost_usd for outcome in outcomes), Decimal(0)),
        latency_ms=percentiles((each.ended - each.began) * 1000 for each in answered),
        simulated_s=sum(outcome.seconds for outcome in outcomes),
        broken=broken,
    )


# Shrinking: fewer faults, fewer callers, simpler callers, as long as the same invariant breaks.


def shrink(outcome: Outcome, trial: Trial, *, given: tuple[str, ...] = ()) -> BrokenSeed:
    """Return the shortest part of a scenario that breaks the same invariant: one whose every part is needed."""
    invariant, newest = outcome.violations[0].invariant, outcome

    def fails(scenario: Scenario) -> bool:
        nonlocal newest
        tried = trial.run(scenario)
        failed = any(each.invariant == invariant for each in tried.violations)
        newest = tried if failed else newest
        return failed

    scenario, size = outcome.scenario, math.inf
    while len(scenario.callers) + len(scenario.faults) < size:
        size = len(scenario.callers) + len(scenario.faults)
        faults = _fewest(scenario.faults, partial(_fails_with_faults, fails, scenario))
        scenario = evolve(scenario, faults=faults)
        callers = _fewest(scenario.callers, partial(_fails_with_callers, fails, scenario))
        scenario = evolve(scenario, callers=callers)
    violation = next(each for each in newest.violations if each.invariant == invariant)
    return BrokenSeed(
        violation=violation, scenario=scenario, found_in=outcome.scenario, defect=newest.defect, given=given
    )


def _fails_with_faults(fails: Callable[[Scenario], bool], scenario: Scenario, faults: tuple[Fault, ...]) -> bool:
    return fails(evolve(scenario, faults=faults))


def _fails_with_callers(fails: Callable[[Scenario], bool], scenario: Scenario, callers: tuple[Caller, ...]) -> bool:
    return fails(evolve(scenario, callers=callers))


def _fewest(items: tuple[_Value, ...], fails: Callable[[tuple[_Value, ...]], bool]) -> tuple[_Value, ...]:
    """Return the items without those that are not needed to fail: first large parts are left out, then single ones."""
    size = len(items)
    while size:
        place = 0
        while place < len(items):
            fewer = items[:place] + items[place + size :]
            if fails(fewer):
                items = fewer
            else:
                place += size
        size //= 2
    return items
