"""Simulation: seeded worlds of models and callers, run through the real pipeline in virtual time.

``simulate`` runs many seeds and checks every invariant. ``python -m llm_effects.testing.simulation`` does so with
drawn configurations.
"""

from llm_effects.testing.simulation.callers import Seen as Seen
from llm_effects.testing.simulation.invariants import Invariant as Invariant
from llm_effects.testing.simulation.invariants import Violation as Violation
from llm_effects.testing.simulation.runs import BrokenSeed as BrokenSeed
from llm_effects.testing.simulation.runs import Outcome as Outcome
from llm_effects.testing.simulation.runs import SimulationReport as SimulationReport
from llm_effects.testing.simulation.runs import memory_env as memory_env
from llm_effects.testing.simulation.runs import replay as replay
from llm_effects.testing.simulation.runs import simulate as simulate
from llm_effects.testing.simulation.world import Behaviour as Behaviour
from llm_effects.testing.simulation.world import Caller as Caller
from llm_effects.testing.simulation.world import CallerKind as CallerKind
from llm_effects.testing.simulation.world import Fault as Fault
from llm_effects.testing.simulation.world import FaultKind as FaultKind
from llm_effects.testing.simulation.world import Scenario as Scenario
from llm_effects.testing.simulation.world import World as World
