"""One model: where it is, how it is called, what it can do and what it costs."""

from collections.abc import Iterable
from datetime import date
from decimal import Decimal
from typing import Literal, TypeAlias, final, get_args

import attrs
from attrs import field, frozen

from llm_effects.config.fields import amount, day, dollars, hidden, is_day, pairs
from llm_effects.values.secrets import Secret, to_secret, usable_headers, usable_key, without_password
from llm_effects.values.validation import instance, instances, number, one_of, text, to_tuple

# What a model costs: by bucket, by the length of the prompt, by date.


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


Family: TypeAlias = Literal["local", "gpt", "claude", "other"]
"""Models that are told together in an order of models."""

WireVersion: TypeAlias = Literal["2023-06-01", "2026-10-21"]
"""The ``anthropic-version`` that is spoken."""


@final
@frozen(kw_only=True)
class Capabilities:
    """What a model can do; ``None`` is unknown and passes every filter.

    ``context_length`` and ``max_output`` are tokens. ``sampling`` says that ``temperature`` and ``top_p``
    are taken, ``prefill`` that an answer can be continued from its beginning, ``embeddings`` that the model turns texts
    into vectors and answers nobody.
    """

    context_length: int | None = field(default=None, validator=number(at_least=1, whole=True))
    max_output: int | None = field(default=None, validator=number(at_least=1, whole=True))
    tools: bool | None = field(default=None, validator=instance(bool))
    images: bool | None = field(default=None, validator=instance(bool))
    documents: bool | None = field(default=None, validator=instance(bool))
    schema: bool | None = field(default=None, validator=instance(bool))
    sampling: bool | None = field(default=None, validator=instance(bool))
    reasoning: bool | None = field(default=None, validator=instance(bool))
    prefill: bool | None = field(default=None, validator=instance(bool))
    embeddings: bool | None = field(default=None, validator=instance(bool))


@final
@frozen(kw_only=True, cache_hash=True)
class ModelConfig:
    """One model: where it is and how it is called.

    ``provider`` is a protocol (``openai-chat``, ``anthropic``, ``llama``) or a preset's name
    (``lm-studio``, ``ollama``, ...). ``model`` is the provider's own name for it; without one, local
    servers answer with whatever is loaded. Times are milliseconds: ``timeout_ms`` for one attempt,
    ``connect_ms`` to reach the server, ``first_content_ms`` until the first piece of the answer,
    ``between_content_ms`` from one piece to the next, ``sink_ms`` that a consumer of a stream may take over what came
    together. ``context_length`` is tokens, for each of the ``slots``
    requests that the in-process model serves at once. ``concurrency`` is how many calls may be under way at once,
    ``requests_per_minute`` and ``tokens_per_minute`` how much may be asked in a minute; ``None`` is without a limit of
    our own.
    """

    provider: str = field(validator=text())
    model: str | None = field(default=None, validator=text())
    endpoint: str | None = field(default=None, validator=text(), repr=without_password)
    api_key: Secret | None = field(default=None, converter=to_secret, validator=usable_key)
    model_path: str | None = field(default=None, validator=text())
    max_tokens: int | None = field(default=None, validator=number(at_least=1, whole=True))
    temperature: float | None = field(default=None, validator=number(at_least=0, at_most=2))
    context_length: int | None = field(default=None, validator=number(at_least=1, whole=True))
    threads: int | None = field(default=None, validator=number(at_least=1, whole=True))
    slots: int = field(default=4, validator=number(at_least=1, at_most=64, whole=True))
    timeout_ms: float = field(default=120_000, validator=number(above=0))
    connect_ms: float = field(default=5_000, validator=number(above=0))
    first_content_ms: float = field(default=60_000, validator=number(above=0))
    between_content_ms: float = field(default=30_000, validator=number(above=0))
    sink_ms: float = field(default=30_000, validator=number(above=0))
    wire_version: WireVersion = field(default="2026-10-21", validator=one_of(*get_args(WireVersion)))
    capabilities: Capabilities = field(factory=Capabilities, validator=instance(Capabilities))
    price: Price | None = field(default=None, validator=instance(Price))
    concurrency: int | None = field(default=None, validator=number(at_least=1, whole=True))
    requests_per_minute: int | None = field(default=None, validator=number(at_least=1, whole=True))
    tokens_per_minute: int | None = field(default=None, validator=number(at_least=1, whole=True))
    headers: tuple[tuple[str, Secret], ...] = field(default=(), converter=hidden, validator=[pairs, usable_headers])
    last_resort: bool = field(default=False, validator=instance(bool))
