"""The price list of genai-prices (extra ``prices``), for the models without a price in the configuration.

A server's address says whose prices hold, so a proxy or a gateway of one's own has none. The list is the one in the
installed package. Nothing is fetched here; who runs that package's own ``UpdatePrices`` gets its newer list.
"""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, TypedDict, final
from urllib.parse import urlsplit

from attrs import define, field

from llm_effects.config import Price, PriceTier
from llm_effects.prices import Listed, not_listed

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

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
