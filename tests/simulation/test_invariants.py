"""Each invariant can fail: a defect that breaks it is found within a few seeds."""

from collections.abc import Callable
from decimal import Decimal
from importlib import import_module
from typing import Any

import pytest
from attrs import evolve
from returns.pipeline import is_successful

from llm_effects import Completed, Cost, LLMEnv
from llm_effects.effects import Call
from llm_effects.effects.effect import Answer, Generate, proceed
from llm_effects.limits.circuit_breaker import BreakerPermit
from llm_effects.pipeline import (
    complete,
    layer,
    layered,
    standard_pipeline,
    with_budget,
    with_circuit_breaker,
    with_deadline,
    with_limits,
    with_recording,
    with_repair,
    with_retries,
    with_routing,
)
from llm_effects.testing.simulation import World, simulate
from llm_effects.testing.simulation.invariants import Invariant
from llm_effects.tools.tool_executor import run_tool

Break = Callable[[pytest.MonkeyPatch], Generate | None]


@layer
async def ending_early(next: Generate, call: Call, env: LLMEnv) -> Answer:
    answer = await proceed(next, call, env)
    if call.sink is not None and is_successful(answer):
        await call.sink(Completed(answer.unwrap()))
    return answer


@layer
async def raising(next: Generate, call: Call, env: LLMEnv) -> Answer:
    raise KeyError(call.id)


@layer
async def leaking(next: Generate, call: Call, env: LLMEnv) -> Answer:
    env.health.add_in_flight("ash", 1)
    return await proceed(next, call, env)


def without_deadline(_: pytest.MonkeyPatch) -> Generate:
    attempts = (with_retries, with_circuit_breaker, with_limits, with_budget, with_recording)
    return layered(with_routing, with_repair, *attempts, complete)


def running_twice(patch: pytest.MonkeyPatch) -> None:
    async def twice(*args: Any) -> Any:
        await run_tool(*args)
        return await run_tool(*args)

    patch.setattr("llm_effects.tools.tool_executor.run_tool", twice)


def set_name(name: str, value: object) -> Break:
    return lambda patch: patch.setattr(f"llm_effects.{name}", value)


def doubled_messages(patch: pytest.MonkeyPatch) -> None:
    converse: Any = import_module("llm_effects.conversations.converse")

    def twice(*args: Any) -> object:
        state, messages, tag = turn_result(*args)
        copies = (evolve(each, id=f"{each.id} again") for each in messages)
        return state, (*messages, *copies), tag

    turn_result: Callable[..., Any] = converse.turn_result
    patch.setattr(converse, "turn_result", twice)


def shapeless(patch: pytest.MonkeyPatch) -> None:
    cache: Any = import_module("llm_effects.policies.cache")
    shape: Callable[..., Any] = cache._shape
    patch.setattr(cache, "_shape", lambda request: {**shape(request), "owner": None, "system": None})


DEFECTS: dict[Invariant, Break] = {
    "deadline": without_deadline,
    "reservation": lambda _: layered(with_deadline, with_routing, with_circuit_breaker, with_recording, complete),
    "budget": set_name("policies.budget._spent", lambda hold, cost: Decimal(0)),
    "messages": doubled_messages,
    "events": lambda _: layered(ending_early, standard_pipeline),
    "breaker": set_name("stores.limits.memory.request_permit", lambda breaker, *_, **__: (breaker, BreakerPermit())),
    "limits": set_name("stores.limits.memory.has_free_slot", lambda *_: True),
    "cost": set_name("pipeline.total_cost", lambda costs: Cost.ZERO),
    "released": lambda _: layered(leaking, standard_pipeline),
    "cache": shapeless,
    "tools": running_twice,
    "healthy": set_name("policies.routing.fallbacks_after", lambda *_: ()),
    "defect": lambda _: layered(raising, standard_pipeline),
}


BUSY = World(callers=40, does=("generate", "stream"))  # callers enough to use a budget up


@pytest.mark.parametrize("invariant", DEFECTS)
def test_a_defect_breaks_its_invariant(invariant: Invariant, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = DEFECTS[invariant](monkeypatch) or standard_pipeline
    report = simulate(world=BUSY if invariant == "budget" else World(), seeds=range(150), pipeline=pipeline)
    assert [each.violation.invariant for each in report.broken] == [invariant], str(report)
