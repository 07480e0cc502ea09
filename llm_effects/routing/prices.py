"""Prices of tokens: the cost of a usage, configured prices, and the list of genai-prices."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, TypeAlias, TypedDict, final
from urllib.parse import urlsplit

from attrs import define, evolve, field, frozen

from llm_effects.config import LLMConfig
from llm_effects.config.models import Price, PriceTier, Rates
from llm_effects.effects.env import Prices
from llm_effects.providers.registry import is_on_this_machine, ready_targets
from llm_effects.values.responses import Cost, Usage
from llm_effects.values.value import Value

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

MILLION: Final = Decimal(1_000_000)

FREE: Final = Price(input=0, output=0)

PriceLookup: TypeAlias = Callable[[str, datetime], Price | None]
"""A lookup of a configured model's price, by name and date, in an external price list."""


def cost_of(price: Price | None, usage: Usage, at: datetime) -> Cost:
    """Return the cost of a usage ``at`` a time; unknown if the price or the usage is.

    Every token is in exactly one bucket (see ``Usage``), so nothing is paid twice.

    >>> price, at = Price(input="2", output="10", cache_read="0.1"), datetime(2026, 11, 23, tzinfo=UTC)
    >>> str(cost_of(price, Usage(input_tokens=500_000, output_tokens=1000), at))
    '$1.01'
    >>> cost_of(None, Usage(input_tokens=1, output_tokens=1), at).known
    False
    """
    if price is None:
        return Cost.UNKNOWN
    if price is FREE or (not price.input and price == FREE):  # comparing them takes a microsecond
        return Cost.ZERO
    prompt = usage.prompt_tokens
    if prompt is None or usage.output_tokens is None:
        return Cost.UNKNOWN
    usd = _total_usd(rates_of(price, prompt, at), usage, usage.input_tokens or 0, usage.output_tokens)
    return Cost(usd if usage.service_tier is None else usd * price.factor(usage.service_tier))


def rates_of(price: Price, prompt_tokens: int, at: datetime) -> Rates:
    """Return the rates on a day for a prompt length: the latest price change, and its highest tier that is exceeded.

    A tier applies to all tokens of the request, as OpenAI, Anthropic and Google bill long prompts.
    """
    if not price.changes and not price.tiers:
        return price
    today = at.astimezone(UTC).date()
    effective = (change for change in price.changes if change.since <= today)
    dated = max(effective, key=lambda change: change.since, default=price)
    exceeded = (tier for tier in dated.tiers if prompt_tokens > tier.above_tokens)
    return max(exceeded, key=lambda tier: tier.above_tokens, default=dated)


def _total_usd(rates: Rates, usage: Usage, fresh: int, output: int) -> Decimal:
    if fresh and output and not (usage.cache_read_tokens or usage.cache_write_tokens or usage.reasoning_tokens):
        return (fresh * rates.input + output * rates.output) / MILLION  # the usual: 0.5 microseconds instead of 2.5
    reasoning = min(usage.reasoning_tokens, output)
    for_an_hour = min(usage.cache_write_1h_tokens, usage.cache_write_tokens)
    buckets = (
        (fresh, rates.input),
        (usage.cache_read_tokens, rates.input if rates.cache_read is None else rates.cache_read),
        (usage.cache_write_tokens - for_an_hour, rates.input if rates.cache_write is None else rates.cache_write),
        (for_an_hour, 2 * rates.input if rates.cache_write_1h is None else rates.cache_write_1h),
        (output - reasoning, rates.output),
        (reasoning, rates.output if rates.reasoning is None else rates.reasoning),
    )
    return sum((tokens * rate for tokens, rate in buckets if tokens), Decimal(0)) / MILLION


def not_listed(model: str, at: datetime) -> Price | None:  # noqa: ARG001 - the signature of every lookup
    """Return no price: the empty price list."""
    return None


def saving_of(prices: Prices, model: str, usage: Usage, cost: Cost, at: datetime) -> Decimal:
    """Return what the provider's cache saved of a cost (USD): negative where writing took more, 0 for unknown.

    >>> at = datetime(2026, 11, 23, tzinfo=UTC)
    >>> usage = Usage(input_tokens=1, cache_read_tokens=999_999, output_tokens=0)
    >>> prices = PriceList({"mine": Price(input=2, output=10, cache_read="0.1")})
    >>> saving_of(prices, "mine", usage, prices.cost("mine", usage, at), at)
    Decimal('1.8999981')
    """
    if cost.usd is None or not (usage.cache_read_tokens or usage.cache_write_tokens):
        return Decimal(0)
    unsorted = evolve(usage, cache_read_tokens=0, cache_write_tokens=0, cache_write_1h_tokens=0)
    fresh = prices.cost(model, evolve(unsorted, input_tokens=usage.prompt_tokens), at).usd
    return Decimal(0) if fresh is None else fresh - cost.usd


def saving_of_reading(prices: Prices, model: str, tokens: int, at: datetime) -> Decimal:
    """Return what a request saves (USD) by reading so many tokens from the provider's cache; 0 for unknown."""
    read = Usage(input_tokens=0, cache_read_tokens=tokens, output_tokens=0)
    return saving_of(prices, model, read, prices.cost(model, read, at), at)


@final
@frozen(eq=False, repr=False)
class PriceList(Value):
    """Prices by configured model name, with a fallback to an external price list.

    >>> at = datetime(2026, 11, 23, tzinfo=UTC)
    >>> PriceList({"mine": FREE}).cost("mine", Usage(), at), PriceList({"mine": FREE}).source("mine", at)
    (Cost(usd=Decimal('0')), 'local')
    """

    prices: Mapping[str, Price] = field(factory=dict[str, Price])
    listed: PriceLookup = not_listed
    list_name: str = ""

    def cost(self, model: str, usage: Usage, at: datetime) -> Cost:
        """Return the cost of a usage ``at`` a time; unknown if the price or the usage is."""
        return cost_of(self._price(model, at), usage, at)

    def load(self) -> None:
        """Load the external price list, which takes some tenths of a second the first time."""
        self.listed("", datetime.now(UTC))

    def source(self, model: str, at: datetime) -> str:
        """Return the source of a model's price, or an empty string if there is none."""
        if model in self.prices:
            return "local" if self.prices[model] is FREE else "configuration"
        return "" if self.listed(model, at) is None else self.list_name

    def rates(self, models: Sequence[str], at: datetime) -> "KeptRates":
        """Return the rates of some models in the minute of ``at``."""
        since = at.replace(second=0, microsecond=0)
        found = [self._price(model, at) for model in models]
        rates = [None if price is None else rates_of(price, 0, at) for price in found]
        known = (rate for each in rates if each is not None for rate in (each.input, each.output))
        unit = math.lcm(*(rate.as_integer_ratio()[1] for rate in known))
        return KeptRates(
            prices=self,
            since=since,
            until=since + timedelta(minutes=1),
            inputs=tuple(0 if each is None else _units(each.input, unit) for each in rates),
            outputs=tuple(math.inf if each is None else _units(each.output, unit) for each in rates),
            unit=unit * int(MILLION),
            most_tokens=min((tier.above_tokens for price in found for tier in _tiers_of(price)), default=math.inf),
        )

    def _price(self, model: str, at: datetime) -> Price | None:
        return self.prices[model] if model in self.prices else self.listed(model, at)


def _units(rate: Decimal, unit: int) -> int:
    number, part = rate.as_integer_ratio()
    return number * unit // part


def _tiers_of(price: Price | None) -> Sequence[PriceTier]:
    if price is None:
        return ()
    return (*price.tiers, *(tier for change in price.changes for tier in change.tiers))


@final
@frozen(eq=False, repr=False, kw_only=True)
class KeptRates:
    """The rates of some models for a minute, so that 100 estimates of a cost take 10 microseconds and not 200.

    They are exact: whole numbers of the ``unit``-th part of a dollar for a token, 0 and infinite for a model without a
    price. They hold for prompts of at most ``most_tokens``.
    """

    prices: PriceList
    since: datetime
    until: datetime
    inputs: Sequence[int]
    outputs: Sequence[float]
    unit: int
    most_tokens: float

    def hold(self, prices: Prices, at: datetime) -> bool:
        """Return whether these are the rates of some prices ``at`` a time."""
        return prices is self.prices and self.since <= at < self.until

    def usd(self, tokens: int, answers: Iterable[int]) -> list[float]:
        """Return the cost of a prompt of so many tokens and of each model's answer; infinite if it is unknown."""
        unit, rates = self.unit, zip(self.inputs, self.outputs, answers, strict=False)
        return [(tokens * fresh + answer * output) / unit for fresh, output, answer in rates]


# The price list of genai-prices (extra ``prices``), for models without a configured price.
#
# The address of the server decides whose prices apply, so a private proxy or gateway has none. The list is the one in
# the installed package: nothing is fetched here, but a list that the package's own ``UpdatePrices`` fetched is used.


GENAI_PRICES: Final = "genai-prices"


def listed_prices(models: Mapping[str, tuple[str, str]]) -> PriceLookup:
    """Return the lookup of configured models, each given by its server address and remote name.

    The first lookup imports the package, which takes some tenths of a second (see ``PriceList.load``); later ones take
    microseconds.

    >>> from datetime import UTC
    >>> lookup = listed_prices({"mine": ("http://localhost:1234/v1", "gpt-6-luna")})
    >>> lookup("mine", datetime(2026, 11, 23, tzinfo=UTC)) is None
    True
    """
    return _GenaiPrices(models) if models and find_spec("genai_prices") else not_listed


@final
@define(eq=False, repr=False)
class _GenaiPrices:
    """A lookup that finds each model and converts each price once per snapshot of the list."""

    models: Mapping[str, tuple[str, str]]
    _get_snapshot: "Callable[[], DataSnapshot] | None" = None
    _snapshot_in_use: "DataSnapshot | None" = None
    _models_found: "dict[str, ModelInfo | None]" = field(factory=dict[str, "ModelInfo | None"])
    _converted: "dict[int, Price | None]" = field(factory=dict[int, Price | None])

    def __call__(self, name: str, at: datetime) -> Price | None:
        newest = self._newest_snapshot()
        if newest is not self._snapshot_in_use:
            self._converted = {}
            self._models_found = {each: _find_model(newest, *address) for each, address in self.models.items()}
            self._snapshot_in_use = newest  # last: until then another thread does the same work
        model = self._models_found.get(name)
        return None if model is None else self._price(model.get_prices(at))  # prices can depend on the day and the hour

    def _newest_snapshot(self) -> "DataSnapshot":
        if self._get_snapshot is None:
            from genai_prices.data_snapshot import get_snapshot

            self._get_snapshot = get_snapshot
        return self._get_snapshot()

    def _price(self, listed: "ModelPrice") -> Price | None:
        if id(listed) not in self._converted:  # ids stay unique: the snapshot in use holds its prices
            self._converted[id(listed)] = price_of(listed)
        return self._converted[id(listed)]


def _find_model(newest: "DataSnapshot", endpoint: str, model: str) -> "ModelInfo | None":
    url = _normalised(endpoint)
    owner = next((each for each in newest.providers if _matches_host(each.api_pattern, url)), None)
    return None if owner is None else owner.find_model(model, all_providers=newest.providers)


def _normalised(endpoint: str) -> str:
    """Return an address for matching hosts, without dots in its path: a gateway's path may contain a host name."""
    url = urlsplit(endpoint)
    return f"{url.scheme}://{url.hostname or ''}{url.path.replace('.', '_')}"


def _matches_host(pattern: str, url: str) -> bool:
    """Return whether a pattern of the list matches a whole host, not only its beginning.

    A pattern with an open last label (``api.moonshot.``) matches any single label.
    """
    match = re.match(pattern, url)
    if match is None:
        return False
    rest = url[match.end() :].partition("/")[0]
    whole = not rest or url[match.end() - 1] == "/"
    return whole or (url[match.end() - 1] == "." and "." not in rest)


def price_of(listed: "ModelPrice") -> Price | None:
    """Convert a price of the list; return ``None`` if it charges for more than tokens.

    The list has no prices of batches and service tiers: they are the usual multiples (see ``Price``).
    """
    if listed.input_mtok is None or listed.requests_kcount is not None:
        return None
    if listed.output_mtok is None and set(vars(listed)) != {"input_mtok"}:  # embeddings have no output
        return None
    tiers = tuple(PriceTier(above_tokens=start, **_rates(listed, start)) for start in _starts(listed))
    return Price(**_rates(listed, 0), tiers=tiers)


def _starts(listed: "ModelPrice") -> list[int]:
    tiered = (listed.input_mtok, listed.output_mtok, listed.cache_read_mtok, listed.cache_write_mtok)
    return sorted({tier.start for price in tiered if not isinstance(price, Decimal | None) for tier in price.tiers})


class _Buckets(TypedDict):
    input: Decimal
    output: Decimal
    cache_read: Decimal | None
    cache_write: Decimal | None
    cache_write_1h: Decimal | None
    reasoning: Decimal | None


def _rates(listed: "ModelPrice", start: int) -> _Buckets:
    return _Buckets(
        input=_rate(listed.input_mtok, start) or Decimal(0),
        output=_rate(listed.output_mtok, start) or Decimal(0),
        cache_read=_rate(listed.cache_read_mtok, start),
        cache_write=_rate(listed.cache_write_mtok, start),
        cache_write_1h=_rate(listed.cache_write_1h_mtok, start),
        reasoning=_rate(listed.output_reasoning_mtok, start),
    )


def _rate(price: "Decimal | TieredPrices | None", start: int) -> Decimal | None:
    """Return the rate of the highest tier that starts at or below ``start``."""
    if isinstance(price, Decimal | None):
        return price
    return next((tier.price for tier in reversed(price.tiers) if tier.start <= start), price.base)


# The prices of a configuration.


def prices_of(config: LLMConfig) -> Mapping[str, Price]:
    """Return the configured prices by model; a local model without one is free."""
    local = {name: FREE for name, target in ready_targets(config).items() if target.preset.family == "local"}
    configured = {name: model.price for name, model in config.models.items() if model.price is not None}
    return {**local, **configured}


def addresses_of(config: LLMConfig) -> Mapping[str, tuple[str, str]]:
    """Return the server address and the remote name of each model without a configured price.

    A server on this machine is in no list, and without others the list is not imported, which takes 0.1 s.
    """
    priced = prices_of(config)
    unpriced = {name: target for name, target in ready_targets(config).items() if name not in priced}
    listed = {name: target for name, target in unpriced.items() if not is_on_this_machine(target)}
    return {name: (target.endpoint, target.wire_model) for name, target in listed.items() if target.wire_model}


def price_list(config: LLMConfig) -> PriceList:
    """Build the price list of a configuration, which looks up other models in genai-prices if that is installed."""
    return PriceList(prices_of(config), listed_prices(addresses_of(config)), GENAI_PRICES)
