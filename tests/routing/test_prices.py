"""Prices of tokens: by bucket, prompt length and date, and from the list of genai-prices."""

import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from math import inf
from pathlib import Path
from typing import get_args

import pytest
from attrs import evolve
from genai_prices.types import ModelPrice, Tier, TieredPrices
from hypothesis import given
from hypothesis import strategies as st
from returns.pipeline import is_successful

from llm_effects import Cost, LLMConfig, ModelConfig, Usage, load_config
from llm_effects.config import Price, PriceChange, PriceTier
from llm_effects.providers.presets import PRESETS
from llm_effects.routing.prices import FREE, PriceList, cost_of, listed_prices, price_list, price_of, saving_of
from llm_effects.values.responses import ServiceTier

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
COUNTS = st.integers(0, 10**7)
BUCKETS = Usage(
    input_tokens=1_000_000,
    cache_read_tokens=1_000_000,
    cache_write_tokens=1_000_000,
    output_tokens=1_000_000,
    reasoning_tokens=400_000,
)


def usd(price: Price, usage: Usage, at: datetime = NOW) -> Decimal:
    cost = cost_of(price, usage, at).usd
    assert cost is not None
    return cost


def test_every_bucket_has_its_own_rate_and_is_paid_once() -> None:
    price = Price(input=1, output=10, cache_read="0.1", cache_write="1.25", reasoning=20)
    assert usd(price, BUCKETS) == 1 + Decimal("0.1") + Decimal("1.25") + 6 + 8


def test_a_bucket_without_a_rate_has_the_rate_of_input_or_output() -> None:
    assert usd(Price(input=1, output=10), BUCKETS) == 3 + 10


def test_fault_192_what_is_kept_for_an_hour_has_a_rate_of_its_own() -> None:
    written = Usage(input_tokens=0, cache_write_tokens=1_000_000, cache_write_1h_tokens=400_000, output_tokens=0)
    assert usd(Price(input=1, output=10, cache_write="1.25", cache_write_1h=3), written) == Decimal("1.95")
    assert usd(Price(input=1, output=10, cache_write="1.25"), written) == Decimal("1.55")  # twice the input
    more = evolve(written, cache_write_1h_tokens=10**9)
    assert usd(Price(input=1, output=10), more) == 2  # never more than was written


def test_fault_192_a_service_tier_multiplies_all_rates() -> None:
    price = Price(input=1, output=10, cache_read="0.1", cache_write="1.25", reasoning=20)
    usual = usd(price, BUCKETS)
    factors = {tier: usd(price, evolve(BUCKETS, service_tier=tier)) / usual for tier in get_args(ServiceTier)}
    assert factors == {"flex": Decimal("0.5"), "priority": 2, "batch": Decimal("0.5")}
    assert usd(evolve(price, priority="1.7"), evolve(BUCKETS, service_tier="priority")) == usual * Decimal("1.7")


def test_the_saving_of_a_cache_is_what_fresh_tokens_would_have_cost_more() -> None:
    prices = PriceList({"gpt": Price(input=2, output=10, cache_read="0.2", cache_write="2.5")})

    def saved(**tokens: object) -> Decimal:
        usage = Usage(**{"input_tokens": 0, "output_tokens": 1_000_000, **tokens})  # type: ignore[arg-type]
        return saving_of(prices, "gpt", usage, prices.cost("gpt", usage, NOW), NOW)

    assert saved(cache_read_tokens=1_000_000) == Decimal("1.8")
    assert saved(cache_write_tokens=1_000_000) == Decimal("-0.5")
    assert saved(cache_read_tokens=1_000_000, service_tier="flex") == Decimal("0.9")
    assert saved(input_tokens=1_000_000) == 0
    assert saving_of(prices, "other", Usage(cache_read_tokens=5), Cost.UNKNOWN, NOW) == 0


def test_reasoning_tokens_beyond_the_output_are_not_paid() -> None:
    price = Price(input=0, output=10, reasoning=20)
    assert usd(price, Usage(input_tokens=0, output_tokens=100, reasoning_tokens=900)) == Decimal("0.002")


def test_a_tier_applies_to_all_tokens_of_a_longer_prompt() -> None:
    price = Price(input=2, output=10, cache_read="0.1", tiers=[PriceTier(above_tokens=272_000, input=4, output=15)])
    assert usd(price, Usage(input_tokens=272_000, output_tokens=1_000_000)) == Decimal("10.544")
    long = Usage(input_tokens=72_001, cache_read_tokens=200_000, output_tokens=1_000_000)
    assert usd(price, long) == Decimal("16.088004")  # a tier without a rate for cache reads uses its input rate


def test_the_highest_exceeded_tier_applies_in_any_order() -> None:
    tiers = [PriceTier(above_tokens=size, input=rate, output=0) for size, rate in ((200, 3), (100, 2), (300, 4))]
    price = Price(input=1, output=0, tiers=tiers)
    paid = [usd(price, Usage(input_tokens=size, output_tokens=0)) * 1_000_000 / size for size in (100, 101, 201, 301)]
    assert paid == [1, 2, 3, 4]


def test_a_price_change_applies_from_its_day_in_utc() -> None:
    price = Price(input=2, output=10, changes=[PriceChange(since="2026-12-01", input=3, output=15)])
    ask, midnight = Usage(input_tokens=1_000_000, output_tokens=0), datetime(2026, 12, 1, tzinfo=UTC)
    assert usd(price, ask, midnight - timedelta(seconds=1)) == 2
    assert usd(price, ask, midnight) == 3
    west = timezone(timedelta(hours=-8))
    assert usd(price, ask, datetime(2026, 11, 30, 17, tzinfo=west)) == 3  # it is December in UTC


def test_unknown_prices_and_usages_cost_unknown_and_local_is_free() -> None:
    known = Usage(input_tokens=1, output_tokens=1)
    assert cost_of(None, known, NOW) == Cost.UNKNOWN
    assert cost_of(Price(input=1, output=1), Usage(), NOW) == Cost.UNKNOWN
    assert cost_of(Price(input=1, output=1), Usage(input_tokens=1), NOW) == Cost.UNKNOWN
    assert cost_of(FREE, Usage(), NOW) == Cost.ZERO


@given(st.builds(Usage, input_tokens=COUNTS, cache_read_tokens=COUNTS, output_tokens=COUNTS), st.integers(1, 100))
def test_with_a_single_rate_the_cost_is_that_of_the_total(usage: Usage, rate: int) -> None:
    assert usage.total_tokens is not None
    assert usd(Price(input=rate, output=rate), usage) == Decimal(usage.total_tokens * rate) / 1_000_000


TOML = """
[models.gpt]
provider = "openai-chat"
model = "gpt-6-luna"
api_key = "sk-x"

[models.gpt.price]
input = 2
output = "10.5"
tiers = [{ above_tokens = 272_000, input = 4, output = 15 }]
changes = [{ since = 2026-12-01, input = 3, output = 15, tiers = [{ above_tokens = 1000, input = 6, output = 30 }] }]
"""


def test_a_price_is_read_from_toml(tmp_path: Path) -> None:
    (tmp_path / "llm.toml").write_text(TOML, encoding="utf-8")
    price = load_config(tmp_path / "llm.toml", environ={}).unwrap().models["gpt"].price
    later = PriceChange(
        since=date(2026, 12, 1), input=3, output=15, tiers=[PriceTier(above_tokens=1000, input=6, output=30)]
    )
    tiers = [PriceTier(above_tokens=272_000, input=4, output=15)]
    assert price == Price(input=2, output="10.5", tiers=tiers, changes=[later])


@pytest.mark.parametrize(
    ("price", "problem"),
    [
        ({"changes": [{"since": "soon", "input": 1, "output": 1}]}, "price.changes[0].since: must be a day such as"),
        ({"changes": [{"since": 5, "input": 1, "output": 1}]}, "price.changes[0].since: must be a day such as"),
        ({"changes": [{"since": NOW, "input": 1, "output": 1}]}, "price.changes[0].since: must be a day such as"),
        ({"changes": [{"input": 1, "output": 1}]}, "price.changes[0].since: is missing"),
        ({"tiers": [{"above_tokens": 0, "input": 1, "output": 1}]}, "price.tiers[0].above_tokens: must be at least 1"),
        ({"tiers": [{"above_tokens": 9, "input": -1, "output": 1}]}, "price.tiers[0].input: must be an amount"),
    ],
)
def test_an_invalid_price_is_reported_with_its_path(price: Mapping[str, object], problem: str) -> None:
    shape = {"models": {"gpt": {"provider": "openai", "price": {"input": 1, "output": 1, **price}}}}
    result = load_config(shape, environ={})
    assert not is_successful(result)
    assert f"models.gpt.{problem}" in result.failure().message


# The list of genai-prices, compared with the providers' own pages as of November 2026: input, write, read, output.
OPENAI = PRESETS["openai"].endpoint or ""
ANTHROPIC = PRESETS["anthropic"].endpoint or ""
PUBLISHED = [
    (OPENAI, "gpt-6-astra", "10 12.5 1 50", {272_000: "20 25 2 75"}),
    (OPENAI, "gpt-6.1-sol", "2 2.5 0.10 10", {272_000: "4 5 0.2 15"}),
    (OPENAI, "gpt-6-luna", "0.10 0.125 0.01 0.50", {272_000: "0.2 0.25 0.02 0.75"}),
    (OPENAI, "gpt-5.6-sol", "4 5 0.4 20", {272_000: "8 10 0.8 30"}),
    (OPENAI, "gpt-5.5", "5 - 0.5 30", {272_000: "10 - 1 45"}),
    (OPENAI, "gpt-5.4", "2.5 - 0.25 15", {272_000: "5 - 0.5 22.5"}),
    (OPENAI, "gpt-5.4-mini", "0.75 - 0.075 4.5", {}),
    (OPENAI, "gpt-4.1", "2 - 0.5 8", {}),
    (ANTHROPIC, "claude-fable-5-2", "8 10 0.20 40", {}),
    (ANTHROPIC, "claude-opus-5-5", "4 5 0.20 20", {}),
    (ANTHROPIC, "claude-sonnet-5-5", "2 2.5 0.10 10", {}),
    (ANTHROPIC, "claude-haiku-5-5", "0.10 0.125 0.01 0.50", {100_000: "0.5 0.625 0.05 2.5"}),
    (ANTHROPIC, "claude-opus-5", "5 6.25 0.50 25", {}),
    (ANTHROPIC, "claude-haiku-4-5", "1 1.25 0.1 5", {}),
]


def rates(text: str, endpoint: str) -> dict[str, object]:
    amounts = [None if amount == "-" else amount for amount in text.split()]
    by_name = dict(zip(("input", "cache_write", "cache_read", "output"), amounts, strict=True))
    for_an_hour = {"cache_write_1h": 2 * Decimal(amounts[0] or 0)} if endpoint == ANTHROPIC else {}
    return {**by_name, **for_an_hour}


@pytest.mark.parametrize(("endpoint", "model", "base", "tiers"), PUBLISHED, ids=[row[1] for row in PUBLISHED])
def test_the_list_has_the_published_prices(endpoint: str, model: str, base: str, tiers: dict[int, str]) -> None:
    found = listed_prices({"it": (endpoint, model)})("it", NOW)
    higher = [PriceTier(above_tokens=size, **rates(text, endpoint)) for size, text in tiers.items()]  # type: ignore[arg-type]
    assert found == Price(**rates(base, endpoint), tiers=higher)  # type: ignore[arg-type]


def test_the_list_has_prices_by_date() -> None:
    look_up = listed_prices({"sol": (OPENAI, "gpt-5.6-sol")})
    before, after = (look_up("sol", datetime(2026, 8, day, tzinfo=UTC)) for day in (20, 21))
    assert before is not None
    assert after is not None
    assert (before.output, after.output) == (30, 20)


def test_the_list_has_prices_by_hour_of_the_day() -> None:
    look_up = listed_prices({"deepseek": (PRESETS["deepseek"].endpoint or "", "deepseek-v4-pro")})
    day = datetime(2026, 11, 23, tzinfo=UTC)
    assert len({look_up("deepseek", day + timedelta(hours=hour)) for hour in range(24)}) > 1


@pytest.mark.parametrize(
    ("endpoint", "model"),
    [
        (OPENAI, "gpt-99"),
        ("https://gateway.test/v1", "gpt-6-luna"),  # only the owner of a gateway knows its prices
        ("http://localhost:1234/v1", "gpt-6-luna"),
        ("https://api.openai.com.evil.test/v1", "gpt-6-luna"),  # another host with the same beginning
        ("https://api.openai.com@evil.test/v1", "gpt-6-luna"),
        ("https://api.moonshot.evil.test/v1", "kimi-k2"),
        ("https://gateway.test/proxy/generativelanguage.googleapis.com/v1beta", "gemini-2.5-pro"),
        ("https://router.huggingface.co/cerebras-of-ours/v1", "openai/gpt-oss-120b"),
    ],
)
def test_an_unlisted_model_has_an_unknown_price(endpoint: str, model: str) -> None:
    assert listed_prices({"it": (endpoint, model)})("it", NOW) is None
    assert listed_prices({"it": (endpoint, model)})("another", NOW) is None


@pytest.mark.parametrize(
    ("endpoint", "model"),
    [
        ("https://API.openai.com:443/v1", "gpt-6-luna"),
        ("https://api.moonshot.cn/v1", "kimi-k2"),  # the list leaves the last label open
        ("https://generativelanguage.googleapis.com/v1beta/openai", "gemini-2.5-pro"),
        ("https://mine.openai.azure.com/openai/v1", "gpt-4.1"),
        ("https://router.huggingface.co/cerebras/v1", "openai/gpt-oss-120b"),
    ],
)
def test_a_host_is_recognised_in_any_spelling(endpoint: str, model: str) -> None:
    assert listed_prices({"it": (endpoint, model)})("it", NOW) is not None


IMPORT_PROGRAM = """
import sys, threading, anyio
from llm_effects import LLMConfig, ModelConfig, open_env

class Watching:
    def find_spec(self, name, path=None, target=None):
        if name == "genai_prices.data_snapshot":
            print(threading.current_thread() is threading.main_thread())

async def main():
    models = {"gpt": ModelConfig(provider="openai", model="gpt-6-luna", api_key="sk-x")}
    async with open_env(LLMConfig(models=models)):
        print("genai_prices.data_snapshot" in sys.modules)

sys.meta_path.insert(0, Watching())
anyio.run(main)
"""


def test_opening_an_environment_reads_the_list_in_a_thread() -> None:
    run = subprocess.run([sys.executable, "-c", IMPORT_PROGRAM], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True"]


def test_a_listed_price_is_converted_once() -> None:
    look_up = listed_prices({"it": (OPENAI, "gpt-6-luna")})
    assert look_up("it", NOW) is look_up("it", NOW)


def test_a_price_for_more_than_tokens_is_not_used_in_part() -> None:
    assert price_of(ModelPrice(input_mtok=Decimal(1), output_mtok=Decimal(2), requests_kcount=Decimal(5))) is None
    assert price_of(ModelPrice(input_mtok=Decimal(1), output_image_mtok=Decimal(2))) is None
    assert price_of(ModelPrice(audio_hours=Decimal(1))) is None
    assert price_of(ModelPrice(input_mtok=Decimal(1))) == Price(input=1, output=0)  # an embedding


def test_each_bucket_can_have_its_own_tiers() -> None:
    tiered = TieredPrices(base=Decimal(1), tiers=[Tier(start=200, price=Decimal(3)), Tier(start=100, price=Decimal(2))])
    listed = ModelPrice(input_mtok=tiered, output_mtok=TieredPrices(Decimal(5), [Tier(150, Decimal(6))]))
    assert price_of(listed) == Price(
        input=1,
        output=5,
        tiers=[
            PriceTier(above_tokens=100, input=2, output=5),
            PriceTier(above_tokens=150, input=2, output=6),
            PriceTier(above_tokens=200, input=3, output=6),
        ],
    )


def test_configured_prices_precede_local_ones_and_the_list() -> None:
    gpt = ModelConfig(provider="openai", model="gpt-6-luna", api_key="sk-x")
    models = {
        "mine": ModelConfig(provider="openai", model="gpt-6-luna", api_key="sk-x", price=Price(input=7, output=7)),
        "studio": ModelConfig(provider="lm-studio", model="gpt-6-luna"),
        "gpt": gpt,
        "strange": ModelConfig(provider="openai", model="gpt-99", api_key="sk-x"),
    }
    prices = price_list(LLMConfig(models=models))
    asked = Usage(input_tokens=100_000, output_tokens=0)
    shown = {name: (prices.source(name, NOW), prices.cost(name, asked, NOW).usd) for name in models}
    assert shown == {
        "mine": ("configuration", Decimal("0.7")),
        "studio": ("local", 0),
        "gpt": ("genai-prices", Decimal("0.01")),
        "strange": ("", None),
    }


def test_without_the_package_prices_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    assert listed_prices({"it": (OPENAI, "gpt-6-luna")})("it", NOW) is None


def test_an_unconfigured_model_has_no_price() -> None:
    assert PriceList().cost("it", Usage(input_tokens=1, output_tokens=1), NOW) == Cost.UNKNOWN
    assert PriceList().source("it", NOW) == ""


RATES = st.decimals(0, 1000, places=6)
RATED = st.builds(
    lambda rates, tier, tiered: Price(
        input=rates[0],
        output=rates[1],
        tiers=[PriceTier(above_tokens=tier, input=rates[2], output=rates[0])] if tiered else (),
    ),
    st.tuples(RATES, RATES, RATES),
    st.integers(10, 1000),
    st.booleans(),
)


@given(st.dictionaries(st.sampled_from("abcde"), RATED), st.integers(0, 10**6), st.integers(1, 10**6))
def test_kept_rates_give_the_same_costs(priced: dict[str, Price], tokens: int, answer: int) -> None:
    prices = PriceList(priced)
    rates = prices.rates("abcde", NOW)
    assert rates.most_tokens == min((tier.above_tokens for each in priced.values() for tier in each.tiers), default=inf)
    asked = min(tokens, int(min(rates.most_tokens, 10**6)))
    usage = Usage(input_tokens=asked, output_tokens=answer)
    costs = [prices.cost(name, usage, NOW).usd for name in "abcde"]
    assert rates.usd(asked, [answer] * 5) == [inf if usd is None else float(usd) for usd in costs]


def test_rates_are_kept_for_a_minute_of_one_list() -> None:
    prices = PriceList({"it": FREE})
    rates = prices.rates(["it"], NOW + timedelta(seconds=20))
    held = [rates.hold(prices, NOW + timedelta(seconds=at)) for at in (-1, 0, 59, 60)]
    assert (held, rates.hold(PriceList({"it": FREE}), NOW)) == ([False, True, True, False], False)
