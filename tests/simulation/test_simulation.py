"""The simulation: two thousand seeds, and defects that it must find. A longer run: see docs/guides/simulation.md."""

import subprocess
import sys

import pytest
from attrs import evolve

from llm_effects import LLMEnv, StreamEvent
from llm_effects.effects import Call
from llm_effects.effects.effect import Answer, Generate, proceed
from llm_effects.pipeline import (
    layer,
    layered,
    standard_pipeline,
)
from llm_effects.testing.simulation import World, replay, simulate
from llm_effects.testing.simulation.runs import Trial, run_scenario
from llm_effects.values import events

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
    line = found.replay.replace("replay(", "replay(config=", 1).replace("config=config, world", "config, World()")
    assert line.startswith(f"replay(config, World(), seed={found.scenario.seed}, callers=({found.callers[0]},)")
    again = replay(config, seed=found.scenario.seed, callers=found.callers, faults=found.faults, pipeline=broken)
    assert found.violation in again.violations


def test_the_line_of_a_drawn_configuration_replays_it() -> None:
    trial = Trial(pipeline=layered(doubling, standard_pipeline))
    report = simulate(seeds=range(100), pipeline=trial.pipeline)
    python, *arguments = report.broken[0].replay.split()
    assert python == "python"
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")  # the library itself has no such defect
    assert done.stdout.startswith(f"caller {report.broken[0].callers[0]}, ")
