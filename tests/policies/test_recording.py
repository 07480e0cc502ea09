"""Recording: costs, the ledger and the history of attempts."""

from decimal import Decimal

import anyio
import pytest
from attrs import evolve

from llm_effects import (
    Cost,
    LLMConfig,
    LLMEnv,
    LLMError,
    LLMRequest,
    MalformedResponse,
    ModelConfig,
    ModelUnavailable,
    NetworkError,
    RequestTimeout,
    Usage,
    generate,
    run,
    scripted_env,
)
from llm_effects.config import Price, RoutingConfig
from llm_effects.effects import Call, Generate
from llm_effects.effects.effect import Answer
from llm_effects.pipeline import complete, layer, layered, run_call, with_recording, with_routing
from llm_effects.routing.prices import PriceList
from llm_effects.testing import Chunks, Delayed, answer, run_in_virtual_time

pytestmark = pytest.mark.anyio


ASK = LLMRequest(prompt="why?")


def models(*names: str, **routing: object) -> LLMConfig:
    settings = {name: ModelConfig(provider="lm-studio", model=name) for name in names}
    return LLMConfig(models=settings, routing=RoutingConfig(**{"max_retries": 2, **routing}))  # type: ignore[arg-type]


TWO = models("one", "two")


NO_RETRY = models("one", "two", max_retries=0)


async def test_the_cost_is_the_sum_of_all_attempts() -> None:
    price = Price(input="1000", output="2000")
    prices = PriceList({"one": price, "two": price})
    billed = MalformedResponse(usage=Usage(input_tokens=1000, output_tokens=0))
    success = evolve(answer("ok"), usage=Usage(input_tokens=1000, output_tokens=500))
    env = evolve(scripted_env(billed, success, config=NO_RETRY), prices=prices)
    response = (await run(generate(ASK), env)).unwrap()
    assert [each.cost.usd for each in response.attempts] == [Decimal(1), Decimal(2)]
    assert response.cost == Cost(Decimal(3))


async def test_an_attempt_that_may_have_been_billed_makes_the_cost_unknown() -> None:
    prices = PriceList({"one": Price(input=1, output=1), "two": Price(input=1, output=1)})
    env = evolve(scripted_env(RequestTimeout(), "ok", config=NO_RETRY), prices=prices)
    response = (await run(generate(ASK), env)).unwrap()
    assert (response.cost.known, response.attempts[1].cost.known) == (False, True)


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (NetworkError(phase="refused"), True),
        (NetworkError(phase="refused", usage=Usage()), True),
        (NetworkError(phase="reset"), False),
        (NetworkError(phase="reset", usage=Usage()), False),
    ],
)
async def test_an_attempt_is_free_only_if_no_provider_can_have_worked_on_it(error: LLMError, known: bool) -> None:
    prices = PriceList({"one": Price(input=1, output=1), "two": Price(input=1, output=1)})
    env = evolve(scripted_env(error, "ok", config=NO_RETRY), prices=prices)
    assert (await run(generate(ASK), env)).unwrap().attempts[0].cost.known is known


async def test_a_defect_is_recorded_under_its_class_name() -> None:
    def broken(_: LLMRequest) -> str:
        raise KeyError("bug")

    env = scripted_env(broken)
    with pytest.raises(KeyError):
        await run(generate(ASK), env)
    [row] = (await env.ledger.rows()).unwrap()._inner_value
    assert row.attempt.outcome == "KeyError"


async def test_every_attempt_is_in_the_ledger_with_its_call() -> None:
    env = scripted_env(NetworkError(phase="refused"), "ok", config=TWO)
    request = LLMRequest(prompt="why?", owner="alice", tags=("nightly",), task_type="triage")
    await run(generate(request), env)
    rows = (await env.ledger.rows()).unwrap()._inner_value
    assert [(row.call_id, row.owner, row.tags, row.task_type, row.attempt.outcome) for row in rows] == [
        ("id-1", "alice", ("nightly",), "triage", "NetworkError"),
        ("id-1", "alice", ("nightly",), "triage", "success"),
    ]


def test_an_attempt_that_a_layer_repeats_is_timed_anew() -> None:
    @layer
    async def with_warm_up(next: Generate, call: Call, env: LLMEnv) -> Answer:
        await run(next(call), env)
        return await run(next(call), env)

    async def ignore(_: object) -> None: ...

    pipeline = layered(with_routing, with_warm_up, with_recording, complete)
    env = scripted_env(Chunks(("a", "b"), pause=1.0), config=NO_RETRY)
    response = run_in_virtual_time(run, run_call(pipeline, ASK, ignore), env).unwrap()
    assert [(each.first_content_ms, each.latency_ms) for each in response.attempts] == [(2000, 3000)] * 2


def test_time_in_the_queue_of_a_client_is_wait_and_not_latency() -> None:
    @layer
    async def queueing(next: Generate, call: Call, env: LLMEnv) -> Answer:
        record = call.attempt.record
        record.queued_since = anyio.current_time()
        await anyio.sleep(2)
        record.queued_s, record.queued_since = 2.0, None
        return await run(next(call), env)

    env = scripted_env(Delayed(1, "ok"), config=NO_RETRY)
    pipeline = layered(with_routing, with_recording, queueing, complete)
    [attempt] = run_in_virtual_time(run, run_call(pipeline, ASK), env).unwrap().attempts
    assert (attempt.latency_ms, attempt.wait_ms) == (1000, 2000)


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(ModelUnavailable(reason="unsupported", status=404), 0), (ModelUnavailable(status=503), 1)],
    ids=["the request", "the model"],
)
async def test_statistics_learn_nothing_from_a_request_that_a_model_cannot_take(error: LLMError, attempts: int) -> None:
    env = scripted_env(error, "ok", config=NO_RETRY)
    await run(generate(ASK), env)
    known = env.health.statistics().get("one")
    assert (0 if known is None else known.attempts) == attempts


async def test_a_cancelled_attempt_has_an_unknown_cost() -> None:
    prices = PriceList({"one": Price(input=1, output=1), "two": Price(input=1, output=1)})
    env = evolve(scripted_env(Delayed(60, "late"), config=NO_RETRY), prices=prices)
    with anyio.move_on_after(0.01):
        await run(generate(ASK), env)
    [row] = (await env.ledger.rows()).unwrap()._inner_value
    assert (row.attempt.outcome, row.attempt.cost) == ("cancelled", Cost.UNKNOWN)
