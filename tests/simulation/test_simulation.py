"""The simulation: two thousand seeds, and defects that it must find. A longer run: see docs/guides/simulation.md."""

import subprocess
import sys

import pytest
from attrs import evolve

from llm_effects import LLMConfig, LLMEnv, ModelConfig, StreamEvent
from llm_effects.effects import Call
from llm_effects.effects.effect import Answer, Generate, proceed
from llm_effects.pipeline import (
    layer,
    layered,
    standard_pipeline,
)
from llm_effects.testing.simulation import Behaviour, World, replay, simulate
from llm_effects.testing.simulation.runs import Trial, run_scenario, shrink
from llm_effects.values import events
from llm_effects.values.validation import InvalidValue

SEEDS, PARTS = 2_000, 8


@pytest.mark.parametrize("part", range(PARTS))
def test_no_seed_breaks_an_invariant(part: int) -> None:
    report = simulate(seeds=range(part, SEEDS, PARTS))
    assert report.broken == (), str(report)
    assert report.seeds == SEEDS // PARTS
    assert report.answered > 0.5


def test_a_seed_replays_exactly() -> None:
    for seed in range(5):
        first, again = (run_scenario(World().scenario(None, seed)) for _ in range(2))
        assert [(each.caller, each.result, each.ended) for each in first.seen] == [
            (each.caller, each.result, each.ended) for each in again.seen
        ]
        assert [each.events for each in first.seen] == [each.events for each in again.seen]


@layer
async def doubling(next: Generate, call: Call, env: LLMEnv) -> Answer:
    """Deliver the first piece of every stream twice."""
    if call.sink is None:
        return await proceed(next, call, env)
    sink, doubled = call.sink, False

    async def twice(event: StreamEvent) -> None:
        nonlocal doubled
        await sink(event)
        if isinstance(event, events.TextDelta) and not doubled:
            doubled = True
            await sink(event)

    return await proceed(next, evolve(call, sink=twice), env)


def test_a_known_defect_is_found_shrunk_and_replayed_by_one_line() -> None:
    broken = layered(doubling, standard_pipeline)
    config = World().scenario(None, 3).config
    report = simulate(config, seeds=range(100), pipeline=broken)
    (found,) = report.broken
    assert found.violation.invariant == "text"
    assert len(found.scenario.callers) == 1 < len(found.found_in.callers)
    assert found.faults == ()
    again = eval(found.replay, {"replay": replay, "config": config, "pipeline": broken})
    assert found.violation in again.violations


def test_the_line_has_all_that_a_replay_needs() -> None:
    world, pipeline = World(callers=5), layered(doubling, standard_pipeline)
    (found,) = simulate(None, world, seeds=range(100), pipeline=pipeline).broken
    again = eval(found.replay, {"replay": replay, "world": world, "pipeline": pipeline})
    assert found.violation in again.violations


def test_the_line_of_a_drawn_configuration_replays_it() -> None:
    trial = Trial(pipeline=layered(doubling, standard_pipeline))
    outcome = next(each for each in (trial.run(World().scenario(None, seed)) for seed in range(100)) if each.violations)
    found = shrink(outcome, trial)
    python, *arguments = found.replay.split()
    assert python == "python"
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")  # the library itself has no such defect
    assert done.stdout.startswith(f"caller {found.callers[0]}, ")


def test_a_number_that_the_seed_does_not_draw_is_an_error() -> None:
    with pytest.raises(InvalidValue, match="callers: this seed draws no 99"):
        replay(seed=3, callers=(99,))
    with pytest.raises(InvalidValue, match="faults: this seed draws no 77"):
        replay(seed=3, faults=(77,))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (LLMConfig(models={"gpt": ModelConfig(provider="openai", model="gpt-6-luna")}), "config: .*api_key"),
        (LLMConfig(models={}), "config: .*none is configured"),
        (LLMConfig(models={"house": ModelConfig(provider="lm-studio")}), "models: 'huose' .*did you mean house"),
    ],
)
def test_a_configuration_in_which_no_call_could_fail_is_an_error(config: LLMConfig, problem: str) -> None:
    with pytest.raises(InvalidValue, match=problem):
        simulate(config, World(models={"huose": Behaviour()}), seeds=range(2))


@pytest.mark.parametrize("name", ["kinds", "does"])
def test_an_unknown_name_in_a_world_is_an_error(name: str) -> None:
    with pytest.raises(InvalidValue, match=rf"{name}\[0\]: must be one of"):
        World(**{name: ("typo",)})


def test_a_world_without_callers_is_an_error() -> None:
    with pytest.raises(InvalidValue, match="callers: must be"):
        World(callers=0)
