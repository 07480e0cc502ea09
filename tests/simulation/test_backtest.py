"""Backtests: predictions against the truth, what a ledger cannot tell, and what is reported."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import anyio
import pytest
from attrs import evolve
from returns.pipeline import is_successful

from llm_effects import (
    Attempt,
    Cost,
    LLMConfig,
    LLMEnv,
    LLMRequest,
    ModelConfig,
    TaskType,
    Usage,
    generate,
    run,
    scripted_env,
)
from llm_effects.config import Price, RoutingConfig
from llm_effects.config.services import BudgetConfig
from llm_effects.effects.effect import result_of
from llm_effects.reports import Backtest
from llm_effects.reports.backtests import Estimate, Figures, backtest_page, figure_rows, remarks
from llm_effects.stores.ledger.memory import MemoryLedger
from llm_effects.testing import run_in_virtual_time
from llm_effects.testing.backtest import backtest
from llm_effects.testing.scripted import EPOCH
from llm_effects.values.records import LedgerRow
from tests.simulation.routing import config_of
from tests.simulation.worlds import HOUR, WorldClients, make_world

HOURS, CALLS = 50, 1_000
WORLD = make_world(HOURS, 5)

TIMES_WITHIN, COST_WITHIN, ANSWERED_WITHIN = 0.10, 0.03, 0.01
"""The stated error of a prediction: relative to the true times and costs, and in shares of the calls."""


def in_order(**tasks: tuple[str, ...]) -> LLMConfig:
    config = config_of("balanced")
    return evolve(config, routing=evolve(config.routing, tasks=tasks, fallback_order=(), timeout_ms=30_000))


OLD = in_order(general=("claude", "gpt", "other", "studio"), analysis=("other", "studio", "gpt", "claude"))
NEW = in_order(general=("other", "claude", "gpt", "studio"), analysis=("other", "claude", "gpt", "studio"))


def environment(config: LLMConfig, seed: int) -> LLMEnv:
    env = scripted_env(config=config, clients=WorldClients(WORLD, seed))
    return evolve(env, now=lambda: EPOCH + timedelta(seconds=anyio.current_time()))


async def traffic(env: LLMEnv) -> tuple[Sequence[LedgerRow], list[float]]:
    """Send calls of two tasks; return the rows of the ledger, and the milliseconds of the answers."""
    times = list[float]()
    for number in range(CALLS):
        await anyio.sleep_until(number * HOURS * HOUR / CALLS)
        began = anyio.current_time()
        task = TaskType.GENERAL if number % 2 else TaskType.ANALYSIS
        result = await run(generate(LLMRequest(prompt="why?", task_type=task)), env)
        if is_successful(result):
            times.append((anyio.current_time() - began) * 1000)
    return (await result_of(env.ledger.rows())).unwrap(), sorted(times)


def dollars(rows: Sequence[LedgerRow]) -> float:
    return float(sum((row.attempt.cost.usd or Decimal(0) for row in rows), Decimal(0)))


def kept(rows: Sequence[LedgerRow]) -> MemoryLedger:
    ledger = MemoryLedger()
    for row in rows:
        ledger.record(row)
    return ledger


def replayed(config: LLMConfig, rows: Sequence[LedgerRow], **period: datetime) -> Backtest:
    return anyio.run(run, backtest(config, ledger=kept(rows), **period), scripted_env()).unwrap()


@pytest.fixture(scope="module")
def past() -> tuple[Sequence[LedgerRow], list[float]]:
    return run_in_virtual_time(traffic, environment(OLD, 1))


def test_a_prediction_lies_within_its_stated_error_of_the_truth(past: tuple[Sequence[LedgerRow], list[float]]) -> None:
    rows, times = run_in_virtual_time(traffic, environment(NEW, 2))  # other draws of the same world
    result = replayed(NEW, past[0])
    for share, figure in ((0.5, result.new.p50_ms), (0.95, result.new.p95_ms)):
        assert figure is not None
        assert figure.value == pytest.approx(times[int(share * len(times))], rel=TIMES_WITHIN)
        assert figure.low <= figure.value <= figure.high
    assert result.new.answered.value == pytest.approx(len(times) / CALLS, abs=ANSWERED_WITHIN)
    assert result.new.cost_usd.value == pytest.approx(dollars(rows), rel=COST_WITHIN)
    assert result.old.cost_usd.value == pytest.approx(dollars(past[0]))
    assert result.old.answered.value == len(past[1]) / CALLS
    assert result.change.cost_usd.high < 0  # surely cheaper


def row(call: int, model: str, outcome: str = "success", ms: float = 1_000.0, at_s: float | None = None) -> LedgerRow:
    attempt = Attempt(
        model=model,
        provider="lm-studio",
        outcome=outcome,
        latency_ms=ms,
        usage=Usage(input_tokens=100, output_tokens=10),
        cost=Cost(Decimal("0.01")),
    )
    at = EPOCH + timedelta(seconds=call * 60 + ms / 1000 if at_s is None else at_s)
    return LedgerRow(id=f"{call}.{model}", at=at, call_id=f"{call}", task_type=TaskType.GENERAL, attempt=attempt)


def models(*names: str, usd: float = 1.0, **settings: object) -> LLMConfig:
    price = Price(input=usd, output=usd)
    each = {name: ModelConfig(provider="lm-studio", model=name, price=price, max_tokens=10) for name in names}
    return evolve(LLMConfig(models=each, routing=RoutingConfig(tasks={"general": names})), **settings)


def test_an_attempt_of_the_same_call_is_replayed_exactly() -> None:
    rows = [row(call, "a", ms=1_000.0 + call) for call in range(30)]
    result = replayed(models("a"), rows)
    assert result.old.p99_ms is not None
    assert result.change.p99_ms is not None
    assert result.old.p99_ms.value == 1_029.0
    assert result.change.p99_ms.low == pytest.approx(0.0, abs=0.001)
    assert result.change.p99_ms.high == pytest.approx(0.0, abs=0.001)
    assert result.new.cost_usd.value == pytest.approx(30 * 110e-6)


def test_nothing_is_predicted_for_a_model_that_was_never_tried() -> None:
    rows = [row(call, "a", "NetworkError" if call < 3 else "success") for call in range(10)]
    result = replayed(models("a", "b", routing=RoutingConfig(tasks={"general": ("a", "b")}, max_retries=0)), rows)
    assert (result.calls, result.left_out, result.untried) == (7, 3, ("b",))
    assert result.old.answered.value == result.new.answered.value == 1.0
    everything = replayed(models("b"), rows)
    assert (everything.calls, everything.left_out) == (0, 10)


def test_an_attempt_that_was_cut_off_ends_as_a_longer_one_near_it() -> None:
    cut = [row(5, "a", "TimeoutError", ms=2_000.0), row(5, "b", at_s=304.0)]
    rows = [*(row(call, "a", ms=8_000.0) for call in range(5)), *cut]
    result = replayed(models("a", "b"), rows)
    assert (result.cut_off, result.new.answered.value) == (1, 1.0)
    assert result.new.p99_ms is not None
    assert result.new.p99_ms.value == pytest.approx(8_000.0)


def test_few_calls_are_not_certain() -> None:
    rows = [
        row(call, "a", "NetworkError" if call in {0, 1, 7} else "success", ms=1_000.0 + 100 * call)
        for call in range(16)
    ]
    result = replayed(models("a"), rows)
    assert result.old.answered.low < result.old.answered.value < result.old.answered.high
    assert result.old.p50_ms is not None
    assert result.old.p50_ms.low < result.old.p50_ms.value < result.old.p50_ms.high
    assert any(each.startswith("16 calls are few") for each in remarks(result))


def test_the_figures_of_no_call_are_unknown() -> None:
    result = replayed(models("b"), [row(call, "a") for call in range(10)])
    assert {cell for _, *cells in figure_rows(result) for cell in cells} == {"unknown"}
    assert "100 %" not in backtest_page(result)
    assert "0 %" not in backtest_page(result).split("<body")[1].split("<h2>What limits it")[0]


def test_a_model_without_a_price_is_not_free() -> None:
    model = ModelConfig(provider="openai-compatible", model="a", endpoint="https://models.test/v1", api_key="sk-demo")
    unpriced = LLMConfig(models={"a": model})
    rows = [row(call, "a") for call in range(10)]
    result = replayed(unpriced, rows)
    assert result.unpriced == ("a",)
    assert "the cost of a is unknown, and missing in the sums: configure a price" in remarks(result)
    assert replayed(models("a"), rows).unpriced == ()


def test_a_change_of_nothing_has_no_sign() -> None:
    fixed = Estimate(-1e-9, -1e-9, 0.0)
    figures = Figures(answered=fixed, cost_usd=fixed, p50_ms=fixed)
    result = Backtest(since=EPOCH, until=EPOCH, calls=1, old=figures, new=figures, change=figures)
    assert figure_rows(result)[2][3] == "0 ms (0 ms to 0 ms)"


def test_a_budget_of_the_new_configuration_refuses_calls() -> None:
    budget = BudgetConfig(name="day", limit_usd="0.0005", period="day")
    result = replayed(models("a", budgets=(budget,)), [row(call, "a") for call in range(10)])
    assert (result.old.refused, result.new.refused and result.new.refused.value) == (None, 0.6)
    assert result.new.answered.value == pytest.approx(0.4)


def test_the_limits_of_the_new_configuration_hold() -> None:
    rows = [row(call, "a", at_s=call * 0.1 + 1) for call in range(20)]
    slow = models("a")
    limited = evolve(slow, models={"a": evolve(slow.models["a"], concurrency=1)})
    result = replayed(limited, rows)
    assert result.new.p50_ms is not None
    assert result.new.p50_ms.value > 5_000


def test_a_period_selects_calls() -> None:
    rows = [row(call, "a") for call in range(10)]
    assert replayed(models("a"), rows, since=EPOCH + timedelta(seconds=300)).calls == 5


@pytest.mark.parametrize(
    ("since", "problem"),
    [(datetime(2027, 1, 1, tzinfo=UTC), "no call in this period"), (EPOCH.replace(tzinfo=None), "time zone")],
)
def test_a_wrong_period_is_an_error(since: datetime, problem: str) -> None:
    rows = [row(1, "a")]
    error = anyio.run(run, backtest(models("a"), since, ledger=kept(rows)), scripted_env()).failure()
    assert error.tag == "InvalidRequest"
    assert problem in error.message


def test_an_incomplete_configuration_is_an_error() -> None:
    config = LLMConfig(models={"gpt": ModelConfig(provider="openai", model="gpt")})
    error = anyio.run(run, backtest(config, ledger=kept([row(1, "gpt")])), scripted_env()).failure()
    assert error.tag == "ConfigurationError"
