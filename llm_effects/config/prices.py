"""What a model costs: by bucket, by the length of the prompt, by date."""

from collections.abc import Iterable
from datetime import date
from decimal import Decimal
from typing import final

import attrs
from attrs import field, frozen

from llm_effects.config.fields import amount, day, dollars, is_day
from llm_effects.values import instances, number, to_tuple


@frozen(kw_only=True)
class Rates:
    """US dollars for a million tokens, by bucket.

    A cache bucket without a rate costs as fresh input does, ``reasoning`` without one as the rest of the output.
    """

    input: Decimal = field(converter=dollars, validator=amount)
    output: Decimal = field(converter=dollars, validator=amount)
    cache_read: Decimal | None = field(default=None, converter=attrs.converters.optional(dollars), validator=amount)
    cache_write: Decimal | None = field(default=None, converter=attrs.converters.optional(dollars), validator=amount)
    reasoning: Decimal | None = field(default=None, converter=attrs.converters.optional(dollars), validator=amount)


@final
@frozen(kw_only=True)
class PriceTier(Rates):
    """The rates of all tokens of a request whose whole prompt is longer than ``above_tokens``."""

    above_tokens: int = field(validator=number(at_least=1, whole=True))


def _tiers(given: Iterable[PriceTier]) -> tuple[PriceTier, ...]:
    return to_tuple("tiers", given)


@final
@frozen(kw_only=True)
class PriceChange(Rates):
    """The rates ``since`` a day, which begins at midnight UTC."""

    since: date = field(converter=day, validator=is_day)
    tiers: tuple[PriceTier, ...] = field(default=(), converter=_tiers, validator=instances(PriceTier))


def _changes(given: Iterable[PriceChange]) -> tuple[PriceChange, ...]:
    return to_tuple("changes", given)


@final
@frozen(kw_only=True)
class Price(Rates):
    """What a model costs: its rates, those of long prompts (``tiers``), and those from a day on (``changes``).

    >>> long = PriceTier(above_tokens=272_000, input=4, output=15)
    >>> Price(input=2, output=10, tiers=[long], changes=[PriceChange(since="2027-01-01", input=3, output=12)]).input
    Decimal('2')
    """

    tiers: tuple[PriceTier, ...] = field(default=(), converter=_tiers, validator=instances(PriceTier))
    changes: tuple[PriceChange, ...] = field(default=(), converter=_changes, validator=instances(PriceChange))
