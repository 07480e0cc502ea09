"""The budget layer: it rejects an attempt before it is sent, charges it afterwards, and never charges twice."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import anyio
import pytest
from attrs import evolve
from returns.pipeline import is_successful

from llm_effects import (
    Allow,
    Attempt,
    BudgetExceeded,
    LLMConfig,
    LLMEnv,
    LLMRequest,
    ModelConfig,
    NetworkError,
    Preferences,
    RateLimitExceeded,
    RequestTimeout,
    describe,
    generate,
    run,
    scripted_env,
    stream,
)
from llm_effects.config import BudgetConfig, Price, RoutingConfig
from llm_effects.config.routing import HedgingConfig
from llm_effects.effects.effect import result_of
from llm_effects.limits.budgets import Hold, accounts_of
from llm_effects.stores.ledger.memory import MemoryLedger
from llm_effects.testing import Chunks, Delayed, Reply, run_in_virtual_time
from tests.fixtures.holds import NOON, hold

# An output token costs a dollar on the expensive model and a cent on the cheap one; prompts are free.
EXPENSIVE = ModelConfig(provider="openai-chat", model="dear", api_key="sk-test", price=Price(input=0, output=1_000_000))
CHEAP = evolve(EXPENSIVE, model="cheap", price=Price(input=0, output=10_000))
FREE = ModelConfig(provider="lm-studio", model="free")
UNPRICED = ModelConfig(provider="openai-compatible", model="m", endpoint="https://host.test/v1", api_key="sk-test")

QUESTION = LLMRequest(prompt="why?", preferences=Preferences(max_tokens=10), cache="bypass")


def env_of(
    *replies: Reply,
    limit: float = 100,
    routing: RoutingConfig | None = None,
    scope: str | None = None,
    **models: ModelConfig,
) -> LLMEnv:
    """Return an environment whose answers have two tokens: they cost two dollars, after a reservation of ten."""
    budget = BudgetConfig(name="all", limit_usd=Decimal(str(limit)), scope=scope)
    config = LLMConfig(
        models=models or {"dear": EXPENSIVE}, budgets=(budget,), routing=routing or RoutingConfig(max_retries=0)
    )
    return scripted_env(*(replies or ("two words",)), config=config)


async def left(env: LLMEnv, request: LLMRequest = QUESTION) -> Decimal:
    """Return what the budget has left, by an attempt to reserve too much."""
    [account] = accounts_of(env.config.budgets, request, env.now())
    everything = Hold(id="probe", accounts=(account,), amount=account.limit * 2 + 1, at=NOON, expires_at=NOON)
    refused = (await result_of(env.ledger.reserve(everything))).failure()
    assert isinstance(refused, BudgetExceeded)
    assert refused.spent.usd is not None
    return account.limit - refused.spent.usd


@pytest.mark.anyio
async def test_a_budget_is_charged_the_actual_cost() -> None:
    env = env_of(limit=12)
    assert (await run(generate(QUESTION), env)).unwrap().cost.usd == 2
    assert await left(env) == 10
    assert is_successful(await run(generate(QUESTION), env))
    refused = (await run(generate(QUESTION), env)).failure()
    assert isinstance(refused, BudgetExceeded)
    assert (refused.budget, refused.model, str(refused.spent), str(refused.limit)) == ("all", "dear", "$4", "$12")
    assert describe(refused) == "BudgetExceeded (dear): all: $4 of $12 spent, and this takes about $10"
    assert len((await result_of(env.ledger.rows())).unwrap()) == 2
    assert refused.attempts == ()


@pytest.mark.anyio
async def test_the_next_period_starts_with_the_full_budget() -> None:
    env = env_of(limit=10)
    assert is_successful(await run(generate(QUESTION), env))
    assert not is_successful(await run(generate(QUESTION), env))
    tomorrow = evolve(env, now=lambda: env.now() + timedelta(days=1))
    assert is_successful(await run(generate(QUESTION), tomorrow))


def test_a_call_over_midnight_is_charged_to_the_day_it_started() -> None:
    env, started_at = env_of(Delayed(10.0, "two words"), limit=10), datetime(2026, 11, 23, 23, 59, 55, tzinfo=UTC)

    async def main() -> tuple[Decimal, Decimal]:
        started = anyio.current_time()
        moving = evolve(env, now=lambda: started_at + timedelta(seconds=anyio.current_time() - started))
        assert is_successful(await run(generate(QUESTION), moving))
        return await left(evolve(env, now=lambda: started_at)), await left(moving)

    assert run_in_virtual_time(main) == (8, 10)


@pytest.mark.anyio
async def test_each_owner_has_a_separate_budget() -> None:
    env = env_of(limit=10, scope="owner:*")
    alice, bob = (evolve(QUESTION, owner=name) for name in ("alice", "bob"))
    assert is_successful(await run(generate(alice), env))
    assert not is_successful(await run(generate(alice), env))
    assert is_successful(await run(generate(bob), env))
    assert is_successful(await run(generate(QUESTION), env))  # a request without an owner has no budget


@pytest.mark.anyio
async def test_a_free_model_needs_no_budget() -> None:
    env = env_of(limit=0, free=FREE)
    assert is_successful(await run(generate(QUESTION), env))


@pytest.mark.anyio
async def test_the_reservation_uses_the_higher_rate_of_reasoning() -> None:
    env = env_of(limit=15, dear=evolve(EXPENSIVE, price=Price(input=0, output=1_000_000, reasoning=2_000_000)))
    refused = (await run(generate(QUESTION), env)).failure()
    assert isinstance(refused, BudgetExceeded)
    assert str(refused.estimate) == "$20"


@pytest.mark.anyio
async def test_a_model_with_an_unknown_price_exceeds_every_budget() -> None:
    refused = (await run(generate(QUESTION), env_of(unpriced=UNPRICED))).failure()
    assert describe(refused) == "BudgetExceeded (unpriced): all: unknown of $100 spent, and this takes about unknown"


@pytest.mark.anyio
async def test_a_cheaper_model_answers_only_if_the_request_allows_it() -> None:
    env = env_of(limit=5, dear=EXPENSIVE, cheap=CHEAP, routing=RoutingConfig(fallback_order=("dear", "cheap")))
    assert (await run(generate(QUESTION), env)).failure().tag == "BudgetExceeded"
    allowed = evolve(QUESTION, allow={Allow.CHEAPER_MODEL})
    assert (await run(generate(allowed), env)).unwrap().model == "cheap"
    dearer = env_of(limit=0.05, cheap=CHEAP, dear=EXPENSIVE)
    assert (await run(generate(allowed), dearer)).failure().tag == "BudgetExceeded"


@pytest.mark.anyio
async def test_fault_162_an_answer_of_a_cheaper_model_shows_what_the_budget_did_not_permit() -> None:
    env = env_of(limit=5, dear=EXPENSIVE, cheap=CHEAP, routing=RoutingConfig(fallback_order=("dear", "cheap")))
    response = (await run(generate(evolve(QUESTION, allow={Allow.CHEAPER_MODEL})), env)).unwrap()
    assert (response.model, response.skipped) == ("cheap", ("dear",))
    assert response.warnings == ("dear was skipped: the budget 'all' has too little left",)
    direct = (await run(generate(evolve(QUESTION, model="cheap")), env)).unwrap()
    assert (direct.skipped, direct.warnings) == ((), ())


# Every outcome of an attempt commits its hold.

OUTCOMES: dict[str, tuple[Reply, int]] = {
    "an answer": ("two words", 2),
    "a cut stream without usage": (Chunks(("two",), then=NetworkError(phase="reset")), 10),
    "a time-out, after which the model may have worked on": (RequestTimeout(phase="first_content"), 10),
    "rejected by the server": (RateLimitExceeded(status=429), 0),
    "never sent": (NetworkError(phase="refused"), 0),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", OUTCOMES)
async def test_an_attempt_is_charged_the_reported_usage_or_else_the_estimate(name: str) -> None:
    reply, spent = OUTCOMES[name]
    env = env_of(reply)
    await run(generate(QUESTION), env)
    assert await left(env) == 100 - spent


def test_fault_106_a_cancelled_call_is_charged_its_estimate() -> None:
    env = env_of(Delayed(5.0, "too late"))

    async def main() -> Decimal:
        with anyio.move_on_after(1.0):
            await run(generate(QUESTION), env)
        impatient = evolve(QUESTION, preferences=evolve(QUESTION.preferences, timeout_ms=1000))
        assert (await run(generate(impatient), env)).failure().tag == "TimeoutError"
        return await left(env)

    assert run_in_virtual_time(main) == 80


def test_fault_109_the_losing_hedge_is_charged_too() -> None:
    hedging = HedgingConfig(enabled=True, budget=1.0, min_attempts=20)
    env = env_of(Delayed(60.0, "too late"), "two words", routing=RoutingConfig(hedging=hedging))
    typical = Attempt(model="dear", provider="openai-chat", outcome="success", latency_ms=100.0)
    for slower in range(30):
        env.health.observe(evolve(typical, latency_ms=100.0 + slower), env.now())
    answer = run_in_virtual_time(run, generate(QUESTION), env).unwrap()
    assert sorted(each.outcome for each in answer.attempts) == ["cancelled", "success"]
    assert run_in_virtual_time(left, env) == 88


def test_a_hedge_beyond_the_budget_does_not_affect_the_first_attempt() -> None:
    hedging = HedgingConfig(enabled=True, budget=1.0, min_attempts=20)
    env = env_of(Delayed(60.0, "two words"), limit=15, routing=RoutingConfig(hedging=hedging))
    for slower in range(30):
        typical = Attempt(model="dear", provider="openai-chat", outcome="success", latency_ms=100.0 + slower)
        env.health.observe(typical, env.now())
    answer = run_in_virtual_time(run, generate(QUESTION), env).unwrap()
    assert [each.outcome for each in answer.attempts] == ["success"]
    assert run_in_virtual_time(left, env) == 13


def test_each_retry_is_charged_separately() -> None:
    env = env_of(RequestTimeout(phase="attempt"), "two words", routing=RoutingConfig(max_retries=1))
    assert run_in_virtual_time(run, generate(QUESTION), env).unwrap().content == "two words"
    assert run_in_virtual_time(left, env) == 88


def test_a_queued_call_reserves_no_money() -> None:
    env = env_of(Delayed(5.0, "two words"), dear=evolve(EXPENSIVE, concurrency=1))

    async def main() -> Decimal:
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(run, generate(QUESTION), env)
            await anyio.sleep(1.0)
            return await left(env)

    assert run_in_virtual_time(main) == 90
    assert run_in_virtual_time(left, env) == 90


@pytest.mark.anyio
async def test_concurrent_calls_never_reserve_more_than_the_budget() -> None:
    env = env_of(Delayed(0.01, "two words"), limit=35)
    tags: list[str] = []

    async def call() -> None:
        result = await run(generate(QUESTION), env)
        tags.append("answered" if is_successful(result) else result.failure().tag)

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(call)
    assert sorted(tags) == ["BudgetExceeded"] * 7 + ["answered"] * 3


@pytest.mark.anyio
async def test_a_stream_is_charged_like_a_call() -> None:
    env = env_of(Chunks(("two ", "words")))

    async def discard(_: object) -> None:
        pass

    assert is_successful(await run(stream(QUESTION, discard), env))
    assert await left(env) == 98


@pytest.mark.anyio
async def test_the_reservation_includes_the_estimated_prompt() -> None:
    env = env_of(dear=evolve(EXPENSIVE, price=Price(input=1_000_000, output=0)), limit=50)
    long = evolve(QUESTION, prompt="word " * 100)
    refused = (await run(generate(long), env)).failure()
    assert isinstance(refused, BudgetExceeded)
    assert refused.estimate is not None
    assert refused.estimate.usd == env.tokens.estimate(long)


# The in-memory ledger.


@pytest.mark.anyio
async def test_the_in_memory_ledger_drops_accounts_of_ended_periods() -> None:
    ledger = MemoryLedger()
    for number in range(3_000):
        each = hold(f"h{number}", "0.5", at=NOON + timedelta(hours=number))
        each = evolve(each, accounts=(evolve(each.accounts[0], key=str(number)),))
        await ledger.reserve(each)
        await ledger.commit(each, Decimal("0.5"))
    assert len(ledger._totals) <= 2_000
