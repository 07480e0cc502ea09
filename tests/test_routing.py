"""The ranking, as plain calls: filter, order, fallback."""

from collections.abc import Mapping
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_effects import (
    Allow,
    BudgetExceeded,
    Capabilities,
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
    Price,
    RoutingConfig,
    RoutingDecision,
    Statistics,
    TaskType,
    Text,
    Tool,
    make_model_router,
)
from llm_effects.prices import PriceList
from llm_effects.routing import Candidate, Facts, left_after, route

GPT = ModelConfig(provider="openai-chat", model="gpt-6.1-terra", api_key="sk-test")
CLAUDE = ModelConfig(provider="anthropic", model="claude-sonnet-5-5", api_key="sk-test")
STUDIO = ModelConfig(provider="lm-studio")
RESORT = ModelConfig(provider="llama", model_path="small.gguf", last_resort=True)
USUAL = RoutingConfig()
FLEET = {"small": RESORT, "studio": STUDIO, "gpt": GPT, "claude": CLAUDE}


def order(
    request: LLMRequest,
    *,
    fleet: Mapping[str, ModelConfig] = FLEET,
    routing: RoutingConfig = USUAL,
    **facts: object,
) -> list[str]:
    return [each.model for each in decision(request, fleet=fleet, routing=routing, **facts).candidates]


def decision(
    request: LLMRequest,
    *,
    fleet: Mapping[str, ModelConfig] = FLEET,
    routing: RoutingConfig = USUAL,
    **facts: object,
) -> RoutingDecision:
    known = Facts(**{"statistics": {}, "prices": PriceList(), **facts})  # type: ignore[arg-type]
    return route(request, LLMConfig(models=fleet, routing=routing), known).unwrap()


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
def test_balanced_goes_by_the_task_and_the_last_resort_is_last(task: TaskType, expected: list[str]) -> None:
    assert order(ask(task)) == expected


def test_a_task_can_have_an_order_of_its_own_by_name_or_family() -> None:
    routing = RoutingConfig(tasks={"triage": ("gpt", "local")})
    assert order(ask("triage"), routing=routing) == ["gpt", "studio", "claude", "small"]


def test_the_fallback_order_ranks_what_follows_the_first() -> None:
    routing = RoutingConfig(fallback_order=("gpt", "studio"))
    assert order(ask(TaskType.ANALYSIS), routing=routing) == ["claude", "gpt", "studio", "small"]
    assert order(ask(TaskType.GENERAL), routing=routing) == ["studio", "gpt", "claude", "small"]


def test_cost_asks_the_cheapest_first_and_the_unknown_last() -> None:
    prices = PriceList({"studio": Price(input=0, output=0), "claude": Price(input=2, output=10)})
    routing = RoutingConfig(strategy="cost")
    assert order(ask(), routing=routing, prices=prices, tokens=100) == ["studio", "claude", "gpt", "small"]


def test_performance_weighs_latency_and_errors_and_tries_the_unknown_first() -> None:
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


def test_performance_now_and_then_asks_the_model_with_the_fewest_attempts_first() -> None:
    statistics = {name: Statistics(attempts=50, latency_ms=100) for name in ("gpt", "claude")}
    statistics["studio"] = Statistics(attempts=1, error_rate=1.0)
    routing = RoutingConfig(strategy="performance")
    assert order(ask(), routing=routing, statistics=statistics, drawn=0.5)[:3] == ["gpt", "claude", "studio"]
    assert order(ask(), routing=routing, statistics=statistics, drawn=0.97)[0] == "studio"


def test_a_parked_model_is_asked_after_the_others_until_its_time_has_come() -> None:
    statistics = {"studio": Statistics(parked_until=50.0)}
    assert order(ask(), statistics=statistics, now=49.0) == ["gpt", "claude", "studio", "small"]
    assert order(ask(), statistics=statistics, now=50.0) == ["studio", "gpt", "claude", "small"]


def test_a_conversation_prefers_the_model_it_used_last() -> None:
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
def test_what_a_model_cannot_do_leaves_it_out_and_the_unknown_passes(
    lacking: Capabilities, fields: dict[str, object], reason: str
) -> None:
    fleet = {"poor": ModelConfig(provider="lm-studio", capabilities=lacking), "studio": STUDIO}
    found = decision(ask(**fields), fleet=fleet, tokens=10)
    assert [each.model for each in found.candidates] == ["studio"]
    assert [each.model for each in found.left_out] == ["poor"]
    assert reason in found.left_out[0].reason


def test_a_prompt_that_fits_nobody_says_so_with_both_numbers() -> None:
    fleet = {name: ModelConfig(provider="lm-studio", context_length=size) for name, size in (("a", 100), ("b", 200))}
    result = route(ask(), LLMConfig(models=fleet), Facts(statistics={}, prices=PriceList(), tokens=500))
    error = result.failure()
    assert isinstance(error, ContextTooLarge)
    assert (error.token_count, error.limit) == (500, 200)


def test_a_request_that_nobody_can_take_names_each_reason() -> None:
    fleet = {"a": ModelConfig(provider="lm-studio", capabilities=Capabilities(tools=False))}
    error = make_model_router(LLMConfig(models=fleet))(ask(tools=(Tool("look"),))).failure()
    assert isinstance(error, InvalidRequest)
    assert "a: it does not take tools" in error.message


def test_a_pin_may_be_the_configured_or_the_provider_s_name() -> None:
    assert order(ask(model="claude")) == ["claude"]
    assert order(ask(model="claude-sonnet-5-5")) == ["claude"]


def test_without_any_model_the_error_says_what_to_do() -> None:
    error = make_model_router(LLMConfig(models={}))(ask()).failure()
    assert isinstance(error, ConfigurationError)
    assert "none is configured" in error.message


names = st.sampled_from(sorted(FLEET))
statistics = st.builds(
    Statistics,
    attempts=st.integers(1, 20),
    error_rate=st.floats(0, 1),
    latency_ms=st.none() | st.floats(1, 1e5),
    parked_until=st.floats(0, 100),
)


@given(
    st.sampled_from(["balanced", "cost", "performance"]),
    st.permutations(sorted(FLEET)),
    st.dictionaries(names, statistics),
    st.tuples(names, names),
    st.sampled_from(["analysis", "general", "mine"]),
)
def test_every_decision_ranks_each_suited_model_once_with_the_last_resort_last(
    strategy: str, names: list[str], known: dict[str, Statistics], first: tuple[str, str], task: str
) -> None:
    routing = RoutingConfig(strategy=strategy, fallback_order=first)  # type: ignore[arg-type]
    fleet = {name: FLEET[name] for name in names}
    ranked = order(ask(task), fleet=fleet, routing=routing, statistics=known, now=50.0)
    assert sorted(ranked) == sorted(FLEET)
    assert ranked[-1] == "small"
    assert ranked == order(ask(task), fleet=fleet, routing=routing, statistics=known, now=50.0)


def candidate(model: str, *, window: int | None = None, usd: str | None = None) -> Candidate:
    cost = Cost(None if usd is None else Decimal(usd))
    return Candidate(model=model, provider="p", family="other", context_length=window, estimated_cost=cost)


def test_after_an_error_only_those_remain_that_may_help() -> None:
    failed = candidate("failed", window=8000, usd="2")
    rest = (candidate("small", window=4000, usd="1"), candidate("large", window=9000, usd="3"), candidate("unknown"))

    def left(error: object, *allow: Allow) -> list[str]:
        return [each.model for each in left_after(error, failed, rest, frozenset(allow))]  # type: ignore[arg-type]

    assert left(NetworkError()) == ["small", "large", "unknown"]
    assert left(InvalidRequest(message="prompt: no")) == []
    assert left(ContextTooLarge()) == ["large", "unknown"]
    assert left(ContentRefused()) == []
    assert left(ContentRefused(), Allow.FALLBACK_ON_REFUSAL) == ["small", "large", "unknown"]
    broke = BudgetExceeded(budget="day", spent=Cost.ZERO, limit=Cost.ZERO)
    assert left(broke) == []
    assert left(broke, Allow.CHEAPER_MODEL) == ["small"]
