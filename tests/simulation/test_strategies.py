"""A small version of ``python -m tests.simulation.routing``."""

import pytest

from tests.simulation.routing import Outcome, compare, config_of, simulate
from tests.simulation.worlds import KINDS, make_world


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    return dict(compare(hours=60, seed=2, per_hour=4))


def test_performance_beats_a_fixed_order_in_a_changing_world(outcomes: dict[str, Outcome]) -> None:
    best = outcomes["oracle"].mean_s
    regret = {name: each.mean_s - best for name, each in outcomes.items()}
    assert regret["performance"] < 0.5 * regret["fixed order"]
    assert outcomes["performance"].success >= outcomes["fixed order"].success


def test_the_cost_strategy_is_the_cheapest_and_the_oracle_the_fastest(outcomes: dict[str, Outcome]) -> None:
    assert min(outcomes, key=lambda name: outcomes[name].dollars) == "cost"
    assert min(outcomes, key=lambda name: outcomes[name].mean_s) == "oracle"


def test_the_same_seed_replays_exactly() -> None:
    world = make_world(4, 1)
    first, again = (simulate("performance", world, per_hour=20, seed=1) for _ in range(2))
    assert first == again
    assert world == make_world(4, 1) != make_world(4, 2)


def test_the_fixed_order_is_the_configured_table() -> None:
    assert config_of("balanced").routing.tasks["general"] == tuple(KINDS)
