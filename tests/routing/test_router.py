"""The router as pure functions: filter, order, fallback."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llm_effects import (
    Allow,
    BudgetExceeded,
    ConfigurationError,
    ContentRefused,
    ContextTooLarge,
    Cost,
    Image,
    InvalidRequest,
    LLMConfig,
    LLMRequest,
    Message,
    ModelConfig,
    NetworkError,
    Preferences,
    TaskType,
    Text,
    Usage,
    make_model_router,
)
from llm_effects.config import Capabilities, Price, PriceChange, RoutingConfig
from llm_effects.providers.registry import targets_of
from llm_effects.routing import RoutingDecision
from llm_effects.routing.candidates import Candidate, RoutingContext, fallbacks_after
from llm_effects.routing.prices import PriceList
from llm_effects.routing.router import available, expected_waits, route, trust
from llm_effects.routing.router import order as ordered
from llm_effects.routing.statistics import HALF_LIFE_S
from llm_effects.values import Statistics, Tool

GPT = ModelConfig(provider="openai-chat", model="gpt-6.1-terra", api_key="sk-test")
CLAUDE = ModelConfig(provider="anthropic", model="claude-sonnet-5-5", api_key="sk-test")
STUDIO = ModelConfig(provider="lm-studio")
RESORT = ModelConfig(provider="llama", model_path="small.gguf", last_resort=True)
DEFAULT = RoutingConfig()
MODELS = {"small": RESORT, "studio": STUDIO, "gpt": GPT, "claude": CLAUDE}


def order(
    request: LLMRequest,
    *,
    models: Mapping[str, ModelConfig] = MODELS,
    routing: RoutingConfig = DEFAULT,
    **context: object,
) -> list[str]:
    return [each.model for each in decision(request, models=models, routing=routing, **context).candidates]


def decision(
    request: LLMRequest,
    *,
    models: Mapping[str, ModelConfig] = MODELS,
    routing: RoutingConfig = DEFAULT,
    **context: object,
) -> RoutingDecision:
    inputs = RoutingContext(**{"statistics": {}, "prices": PriceList(), **context})  # type: ignore[arg-type]
    return route(request, LLMConfig(models=models, routing=routing), inputs).unwrap()


def ask(task: str = "general", **fields: object) -> LLMRequest:
    return LLMRequest(**{"prompt": "why?", "task_type": task, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (TaskType.ANALYSIS, ["claude", "gpt", "studio", "small"]),
        (TaskType.UI_GENERATION, ["gpt", "claude", "studio", "small"]),
        (TaskType.CONFIG_MANAGEMENT, ["studio", "gpt", "claude", "small"]),
        (TaskType.GENERAL, ["studio", "gpt", "claude", "small"]),
        (TaskType("triage"), ["studio", "gpt", "claude", "small"]),
    ],
)
def test_balanced_orders_by_task_and_the_last_resort_is_last(task: TaskType, expected: list[str]) -> None:
    assert order(ask(task)) == expected


def test_a_custom_task_is_ordered_by_names_and_families() -> None:
    routing = RoutingConfig(tasks={"triage": ("gpt", "local")})
    assert order(ask("triage"), routing=routing) == ["gpt", "studio", "claude", "small"]


def test_the_fallback_order_ranks_all_but_the_first() -> None:
    routing = RoutingConfig(fallback_order=("gpt", "studio"))
    assert order(ask(TaskType.ANALYSIS), routing=routing) == ["claude", "gpt", "studio", "small"]
    assert order(ask(TaskType.GENERAL), routing=routing) == ["studio", "gpt", "claude", "small"]


def test_cost_ranks_the_cheapest_first_and_unknown_costs_last() -> None:
    prices = PriceList({"studio": Price(input=0, output=0), "claude": Price(input=2, output=10)})
    routing = RoutingConfig(strategy="cost")
    assert order(ask(), routing=routing, prices=prices, tokens=100) == ["studio", "claude", "gpt", "small"]


def test_performance_weighs_latency_and_errors_and_tries_unmeasured_models_first() -> None:
    statistics = {
        "gpt": Statistics(attempts=10, latency_ms=900),
        "claude": Statistics(attempts=10, error_rate=0.8, latency_ms=500),
    }
    assert order(ask(), routing=RoutingConfig(strategy="performance"), statistics=statistics) == [
        "studio",
        "gpt",
        "claude",
        "small",
    ]


PERFORMANCE = RoutingConfig(strategy="performance")


def test_performance_explores_a_model_without_recent_attempts() -> None:
    at = datetime(2026, 11, 23, 12, tzinfo=UTC)
    statistics = {name: Statistics(attempts=50, latency_ms=100, at=at) for name in ("gpt", "claude")}
    statistics["studio"] = Statistics(attempts=5, latency_ms=400, at=at - timedelta(hours=3))
    known = {"routing": PERFORMANCE, "statistics": statistics, "at": at}
    assert order(ask(), **known, drawn=0.5)[:3] == ["gpt", "claude", "studio"]
    assert order(ask(), **known, drawn=0.97)[0] == "studio"
    fresh = {**known, "statistics": {**statistics, "studio": Statistics(attempts=5, latency_ms=400, at=at)}}
    assert order(ask(), **fresh, drawn=0.97)[0] == "gpt"  # there is nothing to explore


def test_calls_to_other_models_reduce_the_trust_in_measurements() -> None:
    known = {name: Statistics(attempts=50, latency_ms=100, calls=1000) for name in ("gpt", "claude")}
    known["studio"] = Statistics(attempts=5, latency_ms=400, calls=850)
    assert order(ask(), routing=PERFORMANCE, statistics=known, calls=1000, drawn=0.97)[0] == "studio"


def test_streams_are_ranked_by_first_content_and_whole_answers_by_latency() -> None:
    statistics = {
        "studio": Statistics(attempts=9, latency_ms=900, first_content_ms=800),
        "gpt": Statistics(attempts=9, latency_ms=4000, first_content_ms=100),
        "claude": Statistics(attempts=9, latency_ms=5000, first_content_ms=500),
    }
    assert order(ask(), routing=PERFORMANCE, statistics=statistics)[0] == "studio"
    assert order(ask(), routing=PERFORMANCE, statistics=statistics, streamed=True)[0] == "gpt"


def test_latencies_of_whole_answers_rank_streams_while_none_is_measured() -> None:
    statistics = {"gpt": Statistics(attempts=9, latency_ms=400), "claude": Statistics(attempts=9, latency_ms=200)}
    statistics["studio"] = Statistics(attempts=9, latency_ms=300)
    found = order(ask(), routing=PERFORMANCE, statistics=statistics, streamed=True)
    assert found[0] == "claude"


def test_slow_failures_weigh_more_than_immediate_ones() -> None:
    def wait(failure_ms: float | None, error_rate: float = 0.5) -> float:
        one = Candidate(
            model="m",
            provider="p",
            family="other",
            expected_latency_ms=1000,
            expected_failure_ms=failure_ms,
            error_rate=error_rate,
        )
        return expected_waits([one], streamed=False)[0]

    assert wait(None, 0.0) == 1000
    assert wait(1.0) == 2000
    assert wait(20_000.0) == 21_000
    assert wait(1.0, 1.0) > 1e9


def test_a_model_that_only_failed_is_assumed_as_slow_as_the_slowest() -> None:
    statistics = {"gpt": Statistics(attempts=9, latency_ms=400), "claude": Statistics(attempts=9, latency_ms=900)}
    statistics["studio"] = Statistics(attempts=1, error_rate=1.0, failure_ms=1.0)
    found = decision(ask(), routing=RoutingConfig(strategy="performance"), statistics=statistics)
    scores = {each.model: each.score for each in found.candidates}
    assert scores["gpt"] < scores["claude"] < scores["studio"] < 20 * scores["claude"]


def test_a_decision_shows_every_number_behind_it() -> None:
    at = datetime(2026, 11, 23, 12, tzinfo=UTC)
    statistics = {
        "gpt": Statistics(
            attempts=7,
            error_rate=0.5,
            latency_ms=800,
            first_content_ms=90,
            failure_ms=20,
            at=at - timedelta(seconds=HALF_LIFE_S),
            calls=3,
            cooldown_until=60.0,
        )
    }
    prices = PriceList({"gpt": Price(input=1, output=10)})
    routing = RoutingConfig(strategy="performance")
    found = decision(
        ask(preferences=Preferences(max_tokens=100)),
        routing=routing,
        statistics=statistics,
        prices=prices,
        tokens=50,
        calls=5,
        drawn=0.97,
        now=40.0,
        at=at,
        open_until={"gpt": 45.0, "claude": 30.0},
    )
    assert (found.exploring, found.drawn, found.streamed) == (True, 0.97, False)
    by_name = {each.model: each for each in found.candidates}
    gpt = by_name["gpt"]
    assert (gpt.expected_latency_ms, gpt.expected_first_content_ms, gpt.expected_failure_ms) == (800, 90, 20)
    assert (gpt.attempts, gpt.calls_since, gpt.confidence) == (7, 2, 0.5)
    assert gpt.error_rate == pytest.approx(0.5 * 0.5 / 0.6)
    assert (gpt.estimated_tokens, gpt.estimated_cost.usd, gpt.price_source) == (50, Decimal("0.00105"), "configuration")
    assert (gpt.cooled_down, gpt.cooldown_s, gpt.open, gpt.open_s) == (True, 20.0, True, 5.0)
    assert by_name["claude"].open is False
    wait = expected_waits([gpt], streamed=False)[0]
    assert gpt.score == pytest.approx(wait * trust(gpt.confidence, gpt.calls_since))


def test_a_model_with_an_open_breaker_is_ranked_last_until_it_closes() -> None:
    assert order(ask(), open_until={"studio": 50.0}, now=49.0) == ["gpt", "claude", "studio", "small"]
    assert order(ask(), open_until={"studio": 50.0}, now=50.0) == ["studio", "gpt", "claude", "small"]


@pytest.mark.parametrize("strategy", ["balanced", "performance"])
def test_strategies_other_than_cost_compute_no_prices(strategy: str) -> None:
    class NoPrices:
        def cost(self, model: str, usage: Usage, at: datetime) -> Cost:
            raise AssertionError(model)

        def source(self, model: str, at: datetime) -> str:
            raise AssertionError(model)

    config = LLMConfig(models=MODELS, routing=RoutingConfig(strategy=strategy))  # type: ignore[arg-type]
    context = RoutingContext(statistics={}, prices=NoPrices())
    assert {each.model for each in ordered(ask(), config, context).unwrap()} == set(MODELS)


def test_a_cooled_down_model_is_ranked_last_until_its_cooldown_ends() -> None:
    statistics = {"studio": Statistics(cooldown_until=50.0)}
    assert order(ask(), statistics=statistics, now=49.0) == ["gpt", "claude", "studio", "small"]
    assert order(ask(), statistics=statistics, now=50.0) == ["studio", "gpt", "claude", "small"]


def test_a_conversation_prefers_its_last_model() -> None:
    assert order(ask(TaskType.ANALYSIS), last_model="gpt") == ["gpt", "claude", "studio", "small"]


@pytest.mark.parametrize(
    ("lacking", "fields", "reason"),
    [
        (Capabilities(tools=False), {"tools": (Tool("look"),)}, "tools"),
        (Capabilities(schema=False), {"response_schema": {"type": "object"}}, "schema"),
        (Capabilities(context_length=60), {"preferences": Preferences(max_tokens=60)}, "about 70 tokens do not fit"),
        (
            Capabilities(images=False),
            {"prompt": None, "messages": (Message("user", (Text("see"), Image(url="https://x.test/a.png"))),)},
            "images",
        ),
    ],
)
def test_a_model_without_a_needed_capability_is_excluded_and_unknown_ones_pass(
    lacking: Capabilities, fields: dict[str, object], reason: str
) -> None:
    models = {"poor": ModelConfig(provider="lm-studio", capabilities=lacking), "studio": STUDIO}
    found = decision(ask(**fields), models=models, tokens=10)
    assert [each.model for each in found.candidates] == ["studio"]
    assert [each.model for each in found.excluded] == ["poor"]
    assert reason in found.excluded[0].reason


def test_a_prompt_too_large_for_every_window_reports_both_sizes() -> None:
    models = {name: ModelConfig(provider="lm-studio", context_length=size) for name, size in (("a", 100), ("b", 200))}
    result = route(ask(), LLMConfig(models=models), RoutingContext(statistics={}, prices=PriceList(), tokens=500))
    error = result.failure()
    assert isinstance(error, ContextTooLarge)
    assert (error.token_count, error.limit) == (500, 200)


def test_a_request_without_candidates_reports_each_reason() -> None:
    models = {"a": ModelConfig(provider="lm-studio", capabilities=Capabilities(tools=False))}
    error = make_model_router(LLMConfig(models=models))(ask(tools=(Tool("look"),))).failure()
    assert isinstance(error, InvalidRequest)
    assert "a: it does not support tools" in error.message


def test_a_pinned_model_is_found_by_its_configured_or_remote_name() -> None:
    assert order(ask(model="claude")) == ["claude"]
    assert order(ask(model="claude-sonnet-5-5")) == ["claude"]


def test_alternating_configurations_derive_their_targets_once() -> None:
    here, there = LLMConfig(models=MODELS), LLMConfig(models=MODELS)
    made = [targets_of(here), targets_of(there)]
    assert all(again is first for again, first in zip((targets_of(here), targets_of(there)), made, strict=True))


def test_a_configuration_without_models_is_an_error_with_the_remedy() -> None:
    error = make_model_router(LLMConfig(models={}))(ask()).failure()
    assert isinstance(error, ConfigurationError)
    assert "none is configured" in error.message


names = st.sampled_from(sorted(MODELS))
statistics = st.builds(
    Statistics,
    attempts=st.integers(1, 20),
    error_rate=st.floats(0, 1),
    latency_ms=st.none() | st.floats(1, 1e5),
    cooldown_until=st.floats(0, 100),
)


@given(
    st.sampled_from(["balanced", "cost", "performance"]),
    st.permutations(sorted(MODELS)),
    st.dictionaries(names, statistics),
    st.tuples(names, names),
    st.sampled_from(["analysis", "general", "mine"]),
)
def test_every_candidate_is_ranked_once_with_the_last_resort_last(
    strategy: str, names: list[str], known: dict[str, Statistics], first: tuple[str, str], task: str
) -> None:
    routing = RoutingConfig(strategy=strategy, fallback_order=first)  # type: ignore[arg-type]
    models = {name: MODELS[name] for name in names}
    ranked = order(ask(task), models=models, routing=routing, statistics=known, now=50.0)
    assert sorted(ranked) == sorted(MODELS)
    assert ranked[-1] == "small"
    context = RoutingContext(statistics=known, prices=PriceList(), now=50.0)
    asked = ordered(ask(task), LLMConfig(models=models, routing=routing), context).unwrap()
    assert ranked == [each.model for each in asked]  # the shown order is the one that is used


def candidate(model: str, *, window: int | None = None, usd: str | None = None) -> Candidate:
    cost = Cost(None if usd is None else Decimal(usd))
    return Candidate(model=model, provider="p", family="other", context_length=window, estimated_cost=cost)


def test_after_an_error_only_useful_fallbacks_remain() -> None:
    failed = candidate("failed", window=8000, usd="2")
    rest = (candidate("small", window=4000, usd="1"), candidate("large", window=9000, usd="3"), candidate("unknown"))

    def remaining(error: object, *allow: Allow) -> list[str]:
        return [each.model for each in fallbacks_after(error, failed, rest, frozenset(allow))]  # type: ignore[arg-type]

    assert remaining(NetworkError()) == ["small", "large", "unknown"]
    assert remaining(InvalidRequest(message="prompt: no")) == []
    assert remaining(ContextTooLarge()) == ["large", "unknown"]
    assert remaining(ContentRefused()) == []
    assert remaining(ContentRefused(), Allow.FALLBACK_ON_REFUSAL) == ["small", "large", "unknown"]
    broke = BudgetExceeded(budget="day", spent=Cost.ZERO, limit=Cost.ZERO)
    assert remaining(broke) == []
    assert remaining(broke, Allow.CHEAPER_MODEL) == ["small"]


# The order alone, of which each candidate is made when it is asked for.


@pytest.mark.parametrize("strategy", ["balanced", "cost", "performance"])
@pytest.mark.parametrize("twin", [False, True])
@pytest.mark.parametrize("fallback", [(), ("claude", "studio")])
@given(
    measured=st.dictionaries(
        st.sampled_from([*MODELS, "twin"]),
        st.builds(
            Statistics,
            attempts=st.just(3),
            latency_ms=st.none() | st.floats(1, 100),
            first_content_ms=st.none() | st.floats(1, 100),
            failure_ms=st.none() | st.floats(1, 100),
            error_rate=st.sampled_from([0.0, 0.5, 1.0]),
            confidence=st.sampled_from([0.2, 1.0]),
            cooldown_until=st.sampled_from([-1.0, 60.0]),
        ),
    ),
    task=st.sampled_from([TaskType.ANALYSIS, TaskType.GENERAL, TaskType("triage")]),
    drawn=st.sampled_from([0.5, 0.99]),
    wanted=st.sampled_from([{}, {"model": "gpt"}, {"model": "gpt-6.1-terra"}, {"tools": (Tool("f", "d", {}),)}]),
    streamed=st.booleans(),
    last_model=st.sampled_from([None, "gpt"]),
    in_flight=st.dictionaries(st.sampled_from(["gpt", "twin"]), st.integers(1, 3)),
)
def test_the_order_of_a_call_is_that_of_its_explanation(
    *,
    strategy: Any,
    twin: bool,
    fallback: tuple[str, ...],
    measured: dict[str, Statistics],
    task: TaskType,
    wanted: dict[str, Any],
    **known: Any,
) -> None:
    models = {**MODELS, "twin": GPT} if twin else MODELS
    config = _CONFIGS.setdefault(
        (strategy, twin, fallback),
        LLMConfig(models=models, routing=RoutingConfig(strategy=strategy, fallback_order=fallback)),
    )
    prices = PriceList({"claude": Price(input=3, output=15), "gpt": Price(input=2, output=8)})
    context = RoutingContext(statistics=measured, prices=prices, tokens=100, now=50.0, **known)
    ranking = ordered(ask(task, **wanted), config, context).unwrap()
    explained = route(ask(task, **wanted), config, context).unwrap().candidates
    assert [(each.model, each.score) for each in ranking] == [(each.model, each.score) for each in explained]
    assert [each.model for each in ranking[1:]] == [each.model for each in explained[1:]]
    assert [each.model for each in available(ranking)] == [each.model for each in explained if not each.cooled_down]


_CONFIGS: dict[object, LLMConfig] = {}


def test_a_window_of_the_same_size_is_no_fallback_for_a_prompt_that_was_too_large() -> None:
    failed, rest = candidate("failed", window=8000), (candidate("equal", window=8000), candidate("larger", window=8001))
    assert [each.model for each in fallbacks_after(ContextTooLarge(), failed, rest, frozenset())] == ["larger"]


def test_the_least_busy_of_equal_models_is_asked_first() -> None:
    equal = {"a": STUDIO, "b": STUDIO, "heavy": evolve(STUDIO, weight=4)}
    assert order(ask(), models=equal, in_flight={"a": 2, "b": 1, "heavy": 5}) == ["b", "heavy", "a"]


def test_what_is_kept_of_a_configuration_changes_no_order() -> None:
    config = LLMConfig(models={name: evolve(STUDIO, endpoint=f"http://{name}:1/v1") for name in "abc"})

    def first(**known: Any) -> str:
        context = RoutingContext(statistics={}, prices=PriceList(), **known)
        return ordered(ask(), config, context).unwrap()[0].model

    orders = [first(), first(in_flight={"a": 1}), first(last_model="c"), first(), first(open_until={"a": 1.0}), first()]
    assert orders == ["a", "b", "c", "a", "b", "a"]
    pinned = ordered(ask(model="b"), config, RoutingContext(statistics={}, prices=PriceList())).unwrap()
    assert ([each.model for each in pinned], first()) == (["b"], "a")


def test_the_order_by_cost_follows_prices_that_change() -> None:
    dear = Price(input=9, output=9, changes=[PriceChange(since="2026-11-24", input=1, output=1)])
    config = LLMConfig(models={"gpt": GPT, "claude": CLAUDE}, routing=RoutingConfig(strategy="cost"))
    prices = PriceList({"gpt": dear, "claude": Price(input=2, output=10)})
    days = [datetime(2026, 11, day, 23, 59, 59, tzinfo=UTC) for day in (22, 23)]
    midnight = datetime(2026, 11, 24, tzinfo=UTC)

    def first(at: datetime, prices: PriceList) -> str:
        context = RoutingContext(statistics={}, prices=prices, tokens=100, at=at)
        return ordered(ask(), config, context).unwrap()[0].model

    assert [first(at, prices) for at in (*days, midnight, *days)] == ["claude", "claude", "gpt", "claude", "claude"]
    assert first(midnight, PriceList({"claude": Price(input=2, output=10)})) == "claude"


def test_only_a_few_calls_at_once_try_a_model_without_measurements() -> None:
    known = {"studio": Statistics(attempts=9, latency_ms=500.0, confidence=1.0)}
    fast = RoutingConfig(strategy="performance")
    pair = {"studio": STUDIO, "gpt": GPT}
    assert order(ask(), models=pair, routing=fast, statistics=known, in_flight={"gpt": 2}) == ["gpt", "studio"]
    assert order(ask(), models=pair, routing=fast, statistics=known, in_flight={"gpt": 3}) == ["studio", "gpt"]
