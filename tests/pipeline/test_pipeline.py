"""The whole pipeline, as a caller of ``generate`` sees it."""

import math
from decimal import Decimal
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from attrs import Attribute, evolve, fields
from hypothesis import given
from hypothesis import strategies as st
from returns.pipeline import is_successful

from llm_effects import (
    AuthenticationFailed,
    Cost,
    Failed,
    FinishReason,
    InvalidRequest,
    LLMConfig,
    LLMRequest,
    LLMResponse,
    MalformedResponse,
    ModelConfig,
    NetworkError,
    RateLimitExceeded,
    StreamEvent,
    TaskType,
    Text,
    Usage,
    explain,
    generate,
    open_stream,
    run,
    scripted_env,
    stream,
)
from llm_effects.config import BudgetConfig, Price, RoutingConfig
from llm_effects.effects.effect import layered
from llm_effects.pipeline import run_call
from llm_effects.policies.cache import cache_stats
from llm_effects.policies.complete import complete
from llm_effects.policies.deadline import with_deadline
from llm_effects.policies.recording import with_recording
from llm_effects.policies.routing import with_routing
from llm_effects.routing.prices import PriceList
from llm_effects.stores.cache.memory import MemoryCache
from llm_effects.testing import Delayed, Scripted, failing, run_in_virtual_time, scripted
from llm_effects.values import CacheStats

pytestmark = pytest.mark.anyio


ASK = LLMRequest(prompt="why?")


def models(*names: str, **routing: object) -> LLMConfig:
    settings = {name: ModelConfig(provider="lm-studio", model=name) for name in names}
    return LLMConfig(models=settings, routing=RoutingConfig(**{"max_retries": 2, **routing}))  # type: ignore[arg-type]


ONE = models("one")


async def test_a_response_has_its_attempts_cost_and_latency() -> None:
    env = scripted_env("because")
    response = (await run(generate(ASK), env)).unwrap()
    assert (response.content, response.model, response.task_type) == ("because", "scripted", ASK.task_type)
    [attempt] = response.attempts
    assert (attempt.model, attempt.outcome, attempt.wait_ms) == ("scripted", "success", 0)
    assert response.latency_ms >= attempt.latency_ms >= 0
    assert response.usage.output_tokens == 1


async def test_an_effect_can_be_run_many_times() -> None:
    env, question = scripted_env("first", "second"), generate(ASK)
    assert [(await run(question, env)).unwrap().content for _ in range(2)] == ["first", "second"]


async def test_no_model_is_asked_before_the_effect_runs() -> None:
    model = scripted("ok")
    question = generate(ASK)
    assert model.calls == []
    await run(question, scripted_env(clients=model))
    assert len(model.calls) == 1


async def test_explain_returns_the_order_that_generate_follows() -> None:
    model = failing(AuthenticationFailed())
    env = scripted_env(clients=model, config=models("a", "b", "c"))
    decision = (await run(explain(ASK), env)).unwrap()
    assert model.calls == []
    error = (await run(generate(ASK), env)).failure()
    assert [attempt.model for attempt in error.attempts] == [each.model for each in decision.candidates]


async def test_a_defect_is_raised_unchanged() -> None:
    def broken(_: LLMRequest) -> str:
        raise KeyError("bug")

    with pytest.raises(KeyError, match="bug"):
        await run(generate(ASK), scripted_env(broken))


async def test_a_pipeline_works_without_a_layer() -> None:
    model = failing(NetworkError())
    pipeline = layered(with_deadline, with_routing, with_recording, complete)
    await run(run_call(pipeline, ASK), scripted_env(clients=model, config=ONE))
    assert len(model.calls) == 1


async def test_concurrent_calls_have_separate_histories() -> None:
    env = scripted_env(lambda request: Delayed(0.001, str(request.prompt)))
    contents: dict[int, tuple[str, int]] = {}

    async def one(number: int) -> None:
        response = (await run(generate(LLMRequest(prompt=f"q{number}")), env)).unwrap()
        contents[number] = (response.content, len(response.attempts))

    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(one, number)
    assert contents == {number: (f"q{number}", 1) for number in range(100)}


@given(st.lists(st.sampled_from(["ok", "net", "rate", "auth", "bad"]), min_size=1, max_size=8), st.integers(1, 3))
def test_every_script_ends_in_one_result_with_a_complete_history(script: list[str], candidates: int) -> None:
    replies = {
        "ok": "fine",
        "net": NetworkError(),
        "rate": RateLimitExceeded(retry_after=0.0),
        "auth": AuthenticationFailed(),
        "bad": InvalidRequest(message="prompt: no"),
    }
    model = scripted(*(replies[name] for name in script))
    config = models(*(f"m{number}" for number in range(candidates)))
    env = evolve(scripted_env(clients=model, config=config), draw=lambda: 0.0)
    result = anyio.run(run, generate(ASK), env)
    attempts = result.unwrap().attempts if is_successful(result) else result.failure().attempts
    assert len(attempts) == len(model.calls) <= 3 * candidates
    assert [each.model for each in attempts] == [call.model for call in model.calls]
    assert is_successful(result) == (attempts[-1].outcome == "success")
    assert all(math.isfinite(each.latency_ms) for each in attempts)


async def test_a_cancelled_call_records_its_attempt() -> None:
    env = scripted_env(Delayed(60, "late"))
    with anyio.move_on_after(0.02) as scope:
        await run(generate(ASK), env)
    assert scope.cancelled_caught
    [row] = (await env.ledger.rows()).unwrap()._inner_value
    assert row.attempt.outcome == "cancelled"


async def test_a_text_is_the_prompt_of_a_request() -> None:
    env = scripted_env("because")
    for operation in (generate("why?"), stream("why?", ignore), explain("why?").map(lambda _: None)):
        assert is_successful(await run(operation, env))
    async with open_stream("why?")(env) as events:
        assert [type(event).__name__ async for event in events] == ["Started", "TextDelta", "Completed"]
    assert isinstance(env.clients, Scripted)
    assert env.clients.requests == (LLMRequest(prompt="why?"),) * 3


async def ignore(_: StreamEvent) -> None:
    pass


def test_a_value_of_another_class_is_a_type_error_with_the_remedy() -> None:
    mistaken: Any = {"prompt": "?"}
    for operation in (generate, partial(stream, sink=print), explain, open_stream):
        with pytest.raises(TypeError, match=r"^a request is a str or an LLMRequest, not dict: write LLMRequest"):
            operation(mistaken)


async def test_a_blank_text_is_an_invalid_request_with_the_remedy() -> None:
    request_, remedy = " ", "prompt: must not be blank: give some text, or leave it out"
    failed: list[StreamEvent] = []

    async def keep(event: StreamEvent) -> None:
        failed.append(event)

    for operation in (generate(request_), stream(request_, keep), explain(request_).map(lambda _: None)):
        assert (await run(operation, scripted_env())).failure() == InvalidRequest(message=remedy)
    assert failed == [Failed(InvalidRequest(message=remedy))]


async def test_the_answer_of_a_call_keeps_every_field_of_the_answer_of_its_model() -> None:
    full = LLMResponse(
        content="because",
        parts=(Text("because"),),
        model="scripted",
        served_model="served",
        provider="scripted",
        task_type=TaskType("other"),
        finish_reason=FinishReason.LENGTH,
        usage=Usage(input_tokens=3, output_tokens=1),
        cost=Cost.ZERO,
        latency_ms=-1.0,
        cached=True,
        stale=True,
        warnings=("old",),
        doubtful=True,
        skipped=("dear",),
        request_id="id",
        stays="machine",
    )
    assert not [each.name for each in fields(LLMResponse) if each.name != "attempts" and _is_default(full, each)]
    response = (await run(generate(LLMRequest(prompt="why?")), scripted_env(full))).unwrap()
    (attempt,) = response.attempts
    added = {"attempts": (attempt,), "cost": attempt.cost, "latency_ms": response.latency_ms}
    assert response == evolve(full, task_type=TaskType.GENERAL, **added)
    assert response.latency_ms >= 0


def _is_default(value: LLMResponse, field: "Attribute[Any]") -> bool:
    return bool(getattr(value, field.name) == field.default)


def test_a_call_that_waits_for_a_slot_holds_no_money() -> None:
    price = Price(input=0, output=1_000_000)
    limited = ModelConfig(provider="lm-studio", model="one", concurrency=1, max_tokens=60, price=price)
    budget = BudgetConfig(name="day", limit_usd=100)
    config = LLMConfig(models={"one": limited}, budgets=(budget,))
    env = scripted_env(Delayed(5, "because"), config=config)  # each costs 1 dollar, and may cost 60

    async def main() -> list[bool]:
        answered = list[bool]()

        async def one(number: int) -> None:
            answered.append(is_successful(await run(generate(LLMRequest(prompt=f"why? ({number})")), env)))

        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(one, number)
        return answered

    assert run_in_virtual_time(main) == [True] * 3


def test_identical_calls_under_way_look_into_the_cache_once() -> None:
    env = evolve(scripted_env(Delayed(5, "because")), cache=MemoryCache())

    async def main() -> CacheStats:
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(run, stream(ASK, lambda _: anyio.lowlevel.checkpoint()), env)
        return (await run(cache_stats(), env)).unwrap()

    stats = run_in_virtual_time(main)
    assert (stats.misses, stats.hits) == (1, 0)


async def test_a_response_costs_what_all_of_its_attempts_cost() -> None:
    billed = MalformedResponse(usage=Usage(input_tokens=1000, output_tokens=0))
    price = Price(input=3000, output=0)
    env = evolve(scripted_env(billed, "ok", config=models("one", max_retries=1)), prices=PriceList({"one": price}))
    response = (await run(generate(ASK), evolve(env, draw=lambda: 0.0))).unwrap()
    assert len(response.attempts) == 2
    assert response.cost.usd == Decimal("3.03")
