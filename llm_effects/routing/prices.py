"""What tokens cost: from prices by bucket to a ``Cost``."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, TypeAlias, TypedDict, final
from urllib.parse import urlsplit

from attrs import define, field, frozen

from llm_effects.config.models import Price, PriceTier, Rates
from llm_effects.values.responses import Cost, Usage

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

MILLION: Final = Decimal(1_000_000)

FREE: Final = Price(input=0, output=0)

Listed: TypeAlias = Callable[[str, datetime], Price | None]
"""The price of a configured model, by its name, in a list that others keep."""


def cost_of(price: Price | None, usage: Usage, at: datetime) -> Cost:
    """Price some usage ``at`` a time; unknown where the price or the usage is.

    Every token is in one bucket only, so nothing is paid twice: see ``Usage``.

    >>> price, at = Price(input="2", output="10", cache_read="0.1"), datetime(2026, 11, 23, tzinfo=UTC)
    >>> str(cost_of(price, Usage(input_tokens=500_000, output_tokens=1000), at))
    '$1.01'
    >>> cost_of(None, Usage(input_tokens=1, output_tokens=1), at).known
    False
    """
    if price is None:
        return Cost.UNKNOWN
    if price is FREE or price == FREE:
        return Cost.ZERO
    prompt = usage.prompt_tokens
    if prompt is None or usage.output_tokens is None:
        return Cost.UNKNOWN
    return Cost(_dollars(rates_of(price, prompt, at), usage, usage.input_tokens or 0, usage.output_tokens))


def rates_of(price: Price, prompt_tokens: int, at: datetime) -> Rates:
    """The rates of a day for a prompt of this length: the newest change, and in it the highest tier that is passed.

    A tier holds for all tokens of the request, as OpenAI, Anthropic and Google bill long prompts.
    """
    if not price.changes and not price.tiers:
        return price
    today = at.astimezone(UTC).date()
    changed = (change for change in price.changes if change.since <= today)
    dated = max(changed, key=lambda change: change.since, default=price)
    passed = (tier for tier in dated.tiers if prompt_tokens > tier.above_tokens)
    return max(passed, key=lambda tier: tier.above_tokens, default=dated)


def _dollars(rates: Rates, usage: Usage, fresh: int, output: int) -> Decimal:
    thought = min(usage.reasoning_tokens, output)
    buckets = (
        (fresh, rates.input),
        (usage.cache_read_tokens, rates.input if rates.cache_read is None else rates.cache_read),
        (usage.cache_write_tokens, rates.input if rates.cache_write is None else rates.cache_write),
        (output - thought, rates.output),
        (thought, rates.output if rates.reasoning is None else rates.reasoning),
    )
    return sum((tokens * rate for tokens, rate in buckets if tokens), Decimal(0)) / MILLION


def not_listed(model: str, at: datetime) -> Price | None:  # noqa: ARG001 - as every list is asked
    """The list that has no price."""
    return None


@final
@frozen
class PriceList:
    """Prices by configured model name: those that were given, and for the others a list that others keep.

    >>> at = datetime(2026, 11, 23, tzinfo=UTC)
    >>> PriceList({"mine": FREE}).cost("mine", Usage(), at), PriceList({"mine": FREE}).source("mine", at)
    (Cost(usd=Decimal('0')), 'local')
    """

    prices: Mapping[str, Price] = field(factory=dict[str, Price])
    listed: Listed = not_listed
    list_name: str = ""

    def cost(self, model: str, usage: Usage, at: datetime) -> Cost:
        """Price the usage of a configured model ``at`` a time; unknown where the price or the usage is."""
        return cost_of(self._price(model, at), usage, at)

    def load(self) -> None:
        """Read the list that others keep, which may take some tenths of a second the first time."""
        self.listed("", datetime.now(UTC))

    def source(self, model: str, at: datetime) -> str:
        """Say where the price of a model comes from; nothing where there is none."""
        if model in self.prices:
            return "local" if self.prices[model] is FREE else "configuration"
        return "" if self.listed(model, at) is None else self.list_name

    def _price(self, model: str, at: datetime) -> Price | None:
        return self.prices[model] if model in self.prices else self.listed(model, at)


# The price list of genai-prices (extra ``prices``), for the models without a price in the configuration.
#
# A server's address says whose prices hold, so a proxy or a gateway of one's own has none. The list is the one in the
# installed package. Nothing is fetched here; who runs that package's own ``UpdatePrices`` gets its newer list.


GENAI_PRICES: Final = "genai-prices"


def listed_prices(models: Mapping[str, tuple[str, str]]) -> Listed:
    """Make the look-up of configured models, each by the address of its server and its name there.

    The package is imported by the first look-up, which takes some tenths of a second (see ``PriceList.load``); later
    ones take microseconds.

    >>> from datetime import UTC
    >>> look_up = listed_prices({"mine": ("http://localhost:1234/v1", "gpt-6-luna")})
    >>> look_up("mine", datetime(2026, 11, 23, tzinfo=UTC)) is None
    True
    """
    return _LookUp(models) if models and find_spec("genai_prices") else not_listed


@final
@define
class _LookUp:
    """Finds each model and reads each price once, for as long as the package has the same list."""

    models: Mapping[str, tuple[str, str]]
    _newest: "Callable[[], DataSnapshot] | None" = None
    _list: "DataSnapshot | None" = None
    _found: "dict[str, ModelInfo | None]" = field(factory=dict[str, "ModelInfo | None"])
    _read: "dict[int, Price | None]" = field(factory=dict[int, Price | None])

    def __call__(self, name: str, at: datetime) -> Price | None:
        newest = self._snapshot()
        if newest is not self._list:
            self._read = {}
            self._found = {each: _find(newest, *address) for each, address in self.models.items()}
            self._list = newest  # last: until then another thread does the same
        found = self._found.get(name)
        return None if found is None else self._price(found.get_prices(at))  # which knows days, and hours of the day

    def _snapshot(self) -> "DataSnapshot":
        if self._newest is None:
            from genai_prices.data_snapshot import get_snapshot

            self._newest = get_snapshot
        return self._newest()

    def _price(self, listed: "ModelPrice") -> Price | None:
        if id(listed) not in self._read:  # the list holds its prices for as long as we hold the list
            self._read[id(listed)] = price_of(listed)
        return self._read[id(listed)]


def _find(newest: "DataSnapshot", endpoint: str, model: str) -> "ModelInfo | None":
    url = _plain(endpoint)
    owner = next((each for each in newest.providers if _covers(each.api_pattern, url)), None)
    return None if owner is None else owner.find_model(model, all_providers=newest.providers)


def _plain(endpoint: str) -> str:
    """An address as its host is compared. A path keeps no dots: no host is read out of a gateway's path."""
    url = urlsplit(endpoint)
    return f"{url.scheme}://{url.hostname or ''}{url.path.replace('.', '_')}"


def _covers(pattern: str, url: str) -> bool:
    """Whether a pattern of the list holds for all of a host, and not only for how it begins.

    One that leaves the last label open (``api.moonshot.``) holds for any single one.
    """
    found = re.match(pattern, url)
    if found is None:
        return False
    rest = url[found.end() :].partition("/")[0]
    whole = not rest or url[found.end() - 1] == "/"
    return whole or (url[found.end() - 1] == "." and "." not in rest)


def price_of(listed: "ModelPrice") -> Price | None:
    """Read a price of the list, or none where it asks for more than tokens.

    Batches and service tiers have prices of their own there, which are not read: we ask for neither.
    """
    if listed.input_mtok is None or listed.requests_kcount is not None:
        return None
    if listed.output_mtok is None and set(vars(listed)) != {"input_mtok"}:  # an embedding has no output to pay
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
    reasoning: Decimal | None


def _rates(listed: "ModelPrice", start: int) -> _Buckets:
    return _Buckets(
        input=_rate(listed.input_mtok, start) or Decimal(0),
        output=_rate(listed.output_mtok, start) or Decimal(0),
        cache_read=_rate(listed.cache_read_mtok, start),
        cache_write=_rate(listed.cache_write_mtok, start),
        reasoning=_rate(listed.output_reasoning_mtok, start),
    )


def _rate(price: "Decimal | TieredPrices | None", start: int) -> Decimal | None:
    """The rate of the highest tier that begins at or below ``start``."""
    if isinstance(price, Decimal | None):
        return price
    return next((tier.price for tier in reversed(price.tiers) if tier.start <= start), price.base)
