"""What tokens cost: from prices by bucket to a ``Cost``."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Final, final

from attrs import field, frozen

from llm_effects.config import Price
from llm_effects.responses import Cost, Usage

MILLION: Final = Decimal(1_000_000)

FREE: Final = Price(input=0, output=0)


def cost_of(price: Price | None, usage: Usage) -> Cost:
    """Price some usage; unknown where the price or the usage is.

    >>> str(cost_of(Price(input="2", output="10", cache_read="0.1"), Usage(input_tokens=500_000, output_tokens=1000)))
    '$1.01'
    >>> cost_of(None, Usage(input_tokens=1, output_tokens=1)).known
    False
    """
    if price is None:
        return Cost.UNKNOWN
    if price == FREE:
        return Cost.ZERO
    if usage.input_tokens is None or usage.output_tokens is None:
        return Cost.UNKNOWN
    read = price.input if price.cache_read is None else price.cache_read
    written = price.input if price.cache_write is None else price.cache_write
    spent = usage.input_tokens * price.input + usage.output_tokens * price.output
    return Cost((spent + usage.cache_read_tokens * read + usage.cache_write_tokens * written) / MILLION)


@final
@frozen
class PriceList:
    """Prices by configured model name.

    >>> PriceList({"mine": FREE}).cost("mine", Usage())
    Cost(usd=Decimal('0'))
    """

    prices: Mapping[str, Price] = field(factory=dict[str, Price])

    def cost(self, model: str, usage: Usage) -> Cost:
        """Price the usage of a configured model; unknown where the price or the usage is."""
        return cost_of(self.prices.get(model), usage)
