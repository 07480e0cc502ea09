"""What tokens cost: from prices by bucket to a ``Cost``."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, TypeAlias, final

from attrs import field, frozen

from llm_effects.config import Price
from llm_effects.config.prices import Rates
from llm_effects.responses import Cost, Usage

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
