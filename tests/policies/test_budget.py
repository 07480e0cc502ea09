"""Budgets: refused before a call, settled after it, whatever becomes of it, and never spent twice."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import anyio
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
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
    load_config,
    run,
    scripted_env,
    stream,
)
from llm_effects.config import BudgetConfig, Price, RoutingConfig
from llm_effects.config.routing import HedgingConfig
from llm_effects.effects.effect import result_of
from llm_effects.limits.budgets import Account, Hold, accounts_of, period_of
from llm_effects.stores.ledger.memory import MemoryLedger
from llm_effects.testing import Chunks, Delayed, Reply, run_in_virtual_time
from llm_effects.values import InvalidValue

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)

# One output token of a dear model costs a dollar, of a cheap one a cent; a prompt is free.
DEAR = ModelConfig(provider="openai-chat", model="dear", api_key="sk-test", price=Price(input=0, output=1_000_000))
CHEAP = evolve(DEAR, model="cheap", price=Price(input=0, output=10_000))
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
    """Answers have two words, so two tokens: they cost two dollars where ten were reserved."""
    budget = BudgetConfig(name="all", limit_usd=Decimal(str(limit)), scope=scope)
    config = LLMConfig(
        models=models or {"dear": DEAR}, budgets=(budget,), routing=routing or RoutingConfig(max_retries=0)
    )
    return scripted_env(*(replies or ("two words",)), config=config)


async def left(env: LLMEnv, request: LLMRequest = QUESTION) -> Decimal:
    """What the budget has left: the largest amount that can be reserved."""
    [account] = accounts_of(env.config.budgets, request, env.now())
    everything = Hold(id="probe", accounts=(account,), amount=account.limit * 2 + 1, at=NOON, expires_at=NOON)
    refused = (await result_of(env.ledger.reserve(everything))).failure()
    assert isinstance(refused, BudgetExceeded)
    assert refused.spent.usd is not None
    return account.limit - refused.spent.usd


# Which budgets a request falls under.


@pytest.mark.parametrize(
    ("scope", "request_", "subjects"),
    [
        (None, LLMRequest(prompt="?"), ["all"]),
        ("owner:alice", LLMRequest(prompt="?", owner="alice"), ["owner:alice"]),
        ("owner:alice", LLMRequest(prompt="?", owner="bob"), []),
        ("owner:alice", LLMRequest(prompt="?"), []),
        ("owner:*", LLMRequest(prompt="?", owner="bob"), ["owner:bob"]),
        ("owner:*", LLMRequest(prompt="?"), []),
        ("task:analysis", LLMRequest(prompt="?", task_type="analysis"), ["task:analysis"]),
        ("task:analysis", LLMRequest(prompt="?"), []),
        ("tag:nightly", LLMRequest(prompt="?", tags=("slow", "nightly", "nightly")), ["tag:nightly"]),
        ("tag:*", LLMRequest(prompt="?", tags=("b", "a", "a")), ["tag:a", "tag:b"]),
        ("owner:a:b", LLMRequest(prompt="?", owner="a:b"), ["owner:a:b"]),
    ],
)
def test_a_scope_names_who_a_budget_is_for(scope: str | None, request_: LLMRequest, subjects: list[str]) -> None:
    accounts = accounts_of((BudgetConfig(name="b", limit_usd=1, scope=scope),), request_, NOON)
    assert [account.key for account in accounts] == [f'["b","day","2026-11-23T00","{each}"]' for each in subjects]


@pytest.mark.parametrize("scope", ["alice", "owner:", "user:alice", "owner: "])
def test_a_scope_that_names_nobody_is_refused(scope: str) -> None:
    with pytest.raises(InvalidValue, match=r"^scope: must be such as owner:alice"):
        BudgetConfig(name="b", limit_usd=1, scope=scope)


def test_budgets_are_read_from_a_configuration_and_have_names_of_their_own() -> None:
    day = {"name": "day", "limit_usd": "0.10", "scope": "owner:*"}
    config = load_config({"models": {}, "budgets": [day]}, environ={}).unwrap()
    assert config.budgets == (BudgetConfig(name="day", limit_usd=Decimal("0.1"), scope="owner:*"),)
    twice = load_config({"models": {}, "budgets": [day, day]}, environ={}).failure()
    assert "budgets: names must be unique, but 'day' occurs more than once" in twice.message


@given(st.datetimes(timezones=st.timezones()), st.sampled_from(["hour", "day", "month"]))
def test_a_period_has_its_times_and_the_next_begins_where_it_ends(at: datetime, period: str) -> None:
    begins, ends = period_of(period, at)  # type: ignore[arg-type]
    assert begins <= at < ends
    assert period_of(period, ends)[0] == ends  # type: ignore[arg-type]
    assert period_of(period, ends - timedelta(microseconds=1)) == (begins, ends)  # type: ignore[arg-type]


def test_a_very_long_name_is_still_a_short_key() -> None:
    names = ("o" * 5000, "o" * 5001)
    budget = BudgetConfig(name="b", limit_usd=1, scope="owner:*")
    keys = {accounts_of((budget,), LLMRequest(prompt="?", owner=name), NOON)[0].key for name in names}
    assert len(keys) == 2
    assert max(map(len, keys)) < 100


# What is spent.


@pytest.mark.anyio
async def test_a_call_costs_a_budget_what_it_cost() -> None:
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
async def test_the_next_period_begins_anew() -> None:
    env = env_of(limit=10)
    assert is_successful(await run(generate(QUESTION), env))
    assert not is_successful(await run(generate(QUESTION), env))
    tomorrow = evolve(env, now=lambda: env.now() + timedelta(days=1))
    assert is_successful(await run(generate(QUESTION), tomorrow))


def test_a_call_over_midnight_costs_the_day_on_which_it_began() -> None:
    env, begun = env_of(Delayed(10.0, "two words"), limit=10), datetime(2026, 11, 23, 23, 59, 55, tzinfo=UTC)

    async def main() -> tuple[Decimal, Decimal]:
        started = anyio.current_time()
        passing = evolve(env, now=lambda: begun + timedelta(seconds=anyio.current_time() - started))
        assert is_successful(await run(generate(QUESTION), passing))
        return await left(evolve(env, now=lambda: begun)), await left(passing)

    assert run_in_virtual_time(main) == (8, 10)


@pytest.mark.anyio
async def test_owners_have_a_budget_each() -> None:
    env = env_of(limit=10, scope="owner:*")
    alice, bob = (evolve(QUESTION, owner=name) for name in ("alice", "bob"))
    assert is_successful(await run(generate(alice), env))
    assert not is_successful(await run(generate(alice), env))
    assert is_successful(await run(generate(bob), env))
    assert is_successful(await run(generate(QUESTION), env))  # nobody's is nobody's budget


@pytest.mark.anyio
async def test_a_free_model_needs_no_budget() -> None:
    env = env_of(limit=0, free=FREE)
    assert is_successful(await run(generate(QUESTION), env))


@pytest.mark.anyio
async def test_thinking_that_costs_more_than_saying_is_what_is_reserved() -> None:
    env = env_of(limit=15, dear=evolve(DEAR, price=Price(input=0, output=1_000_000, reasoning=2_000_000)))
    refused = (await run(generate(QUESTION), env)).failure()
    assert isinstance(refused, BudgetExceeded)
    assert str(refused.estimate) == "$20"


@pytest.mark.anyio
async def test_a_model_of_unknown_price_is_refused_by_any_budget() -> None:
    refused = (await run(generate(QUESTION), env_of(unpriced=UNPRICED))).failure()
    assert describe(refused) == "BudgetExceeded (unpriced): all: unknown of $100 spent, and this takes about unknown"


@pytest.mark.anyio
async def test_a_cheaper_model_answers_only_where_the_caller_allows_it() -> None:
    env = env_of(limit=5, dear=DEAR, cheap=CHEAP, routing=RoutingConfig(fallback_order=("dear", "cheap")))
    assert (await run(generate(QUESTION), env)).failure().tag == "BudgetExceeded"
    allowed = evolve(QUESTION, allow={Allow.CHEAPER_MODEL})
    assert (await run(generate(allowed), env)).unwrap().model == "cheap"
    dearer = env_of(limit=0.05, cheap=CHEAP, dear=DEAR)
    assert (await run(generate(allowed), dearer)).failure().tag == "BudgetExceeded"


# Whatever becomes of an attempt, its hold is settled.

OUTCOMES: dict[str, tuple[Reply, int]] = {
    "an answer": ("two words", 2),
    "a cut stream, of which nothing is told": (Chunks(("two",), then=NetworkError(phase="reset")), 10),
    "a time-out that the model may have worked through": (RequestTimeout(phase="first_content"), 10),
    "refused by the server": (RateLimitExceeded(status=429), 0),
    "never reached": (NetworkError(phase="refused"), 0),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", OUTCOMES)
async def test_what_is_booked_is_what_was_told_or_else_the_estimate(name: str) -> None:
    reply, spent = OUTCOMES[name]
    env = env_of(reply)
    await run(generate(QUESTION), env)
    assert await left(env) == 100 - spent


def test_fault_106_a_call_that_is_cut_off_keeps_its_estimate() -> None:
    env = env_of(Delayed(5.0, "too late"))

    async def main() -> Decimal:
        with anyio.move_on_after(1.0):
            await run(generate(QUESTION), env)
        impatient = evolve(QUESTION, preferences=evolve(QUESTION.preferences, timeout_ms=1000))
        assert (await run(generate(impatient), env)).failure().tag == "TimeoutError"
        return await left(env)

    assert run_in_virtual_time(main) == 80


def test_fault_109_the_loser_of_a_hedge_is_paid_for_too() -> None:
    hedging = HedgingConfig(enabled=True, budget=1.0, min_attempts=20)
    env = env_of(Delayed(60.0, "too late"), "two words", routing=RoutingConfig(hedging=hedging))
    usual = Attempt(model="dear", provider="openai-chat", outcome="success", latency_ms=100.0)
    for slower in range(30):
        env.health.observe(evolve(usual, latency_ms=100.0 + slower), env.now())
    answer = run_in_virtual_time(run, generate(QUESTION), env).unwrap()
    assert sorted(each.outcome for each in answer.attempts) == ["cancelled", "success"]
    assert run_in_virtual_time(left, env) == 88


def test_a_hedge_that_no_budget_has_room_for_leaves_the_first_attempt_alone() -> None:
    hedging = HedgingConfig(enabled=True, budget=1.0, min_attempts=20)
    env = env_of(Delayed(60.0, "two words"), limit=15, routing=RoutingConfig(hedging=hedging))
    for slower in range(30):
        usual = Attempt(model="dear", provider="openai-chat", outcome="success", latency_ms=100.0 + slower)
        env.health.observe(usual, env.now())
    answer = run_in_virtual_time(run, generate(QUESTION), env).unwrap()
    assert [each.outcome for each in answer.attempts] == ["success"]
    assert run_in_virtual_time(left, env) == 13


def test_each_retry_is_paid_for_by_itself() -> None:
    env = env_of(RequestTimeout(phase="attempt"), "two words", routing=RoutingConfig(max_retries=1))
    assert run_in_virtual_time(run, generate(QUESTION), env).unwrap().content == "two words"
    assert run_in_virtual_time(left, env) == 88


def test_money_is_not_held_in_a_queue() -> None:
    env = env_of(Delayed(5.0, "two words"), dear=evolve(DEAR, concurrency=1))

    async def main() -> Decimal:
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(run, generate(QUESTION), env)
            await anyio.sleep(1.0)
            return await left(env)

    assert run_in_virtual_time(main) == 90
    assert run_in_virtual_time(left, env) == 90


@pytest.mark.anyio
async def test_calls_at_once_never_reserve_more_than_there_is() -> None:
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
async def test_a_stream_is_paid_for_like_a_call() -> None:
    env = env_of(Chunks(("two ", "words")))

    async def nowhere(_: object) -> None:
        pass

    assert is_successful(await run(stream(QUESTION, nowhere), env))
    assert await left(env) == 98


@pytest.mark.anyio
async def test_what_the_conversation_is_known_to_take_is_what_is_reserved() -> None:
    env = env_of(dear=evolve(DEAR, price=Price(input=1_000_000, output=0)), limit=50)
    long = evolve(QUESTION, prompt="word " * 100)
    refused = (await run(generate(long), env)).failure()
    assert isinstance(refused, BudgetExceeded)
    assert refused.estimate is not None
    assert refused.estimate.usd == env.tokens.estimate(long)


# The accounts of one process.


def hold(name: str, amount: str, *keys: str, limit: str = "1", at: datetime = NOON) -> Hold:
    accounts = tuple(
        Account(budget=key, key=key, limit=Decimal(limit), ends=period_of("hour", at)[1]) for key in keys or ("all",)
    )
    return Hold(id=name, accounts=accounts, amount=Decimal(amount), at=at, expires_at=at + timedelta(seconds=60))


@pytest.mark.anyio
async def test_accounts_of_ended_periods_are_dropped() -> None:
    ledger = MemoryLedger()
    for number in range(3_000):
        each = hold(f"h{number}", "0.5", at=NOON + timedelta(hours=number))
        each = evolve(each, accounts=(evolve(each.accounts[0], key=str(number)),))
        await ledger.reserve(each)
        await ledger.commit(each, Decimal("0.5"))
    assert len(ledger._taken) <= 2_000
