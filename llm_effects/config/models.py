"""The configuration of one model: its server, its settings, its capabilities and its price."""

from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from typing import Any, Final, Literal, TypeAlias, final, get_args

import attrs
from attrs import field, frozen

from llm_effects.config.fields import (
    to_date,
    to_dollars,
    to_headers,
    to_optional_dollars,
    valid_amount,
    valid_date,
    valid_pairs,
)
from llm_effects.values import caps
from llm_effects.values.display import shown
from llm_effects.values.requests import PromptCache
from llm_effects.values.responses import ServiceTier
from llm_effects.values.secrets import (
    RotatingKey,
    Secret,
    hide_password,
    to_key,
    to_secret,
    valid_headers,
    valid_key,
    without_login,
)
from llm_effects.values.validation import (
    explain_arguments,
    instance,
    instances,
    invalid,
    number,
    one_of,
    text,
    to_tuple,
)
from llm_effects.values.value import Value

# Prices: by bucket, by the length of the prompt, by date.


@frozen(kw_only=True, eq=False, repr=False)
class Rates(Value):
    """US dollars for a million tokens, by bucket.

    Without a rate of their own, cache buckets cost as much as fresh input, except that ``cache_write_1h`` (what is kept
    for an hour) costs twice as much, and ``reasoning`` costs as much as other output.
    """

    input: Decimal = field(converter=to_dollars, validator=valid_amount)
    output: Decimal = field(converter=to_dollars, validator=valid_amount)
    cache_read: Decimal | None = field(default=None, converter=to_optional_dollars, validator=valid_amount)
    cache_write: Decimal | None = field(default=None, converter=to_optional_dollars, validator=valid_amount)
    cache_write_1h: Decimal | None = field(default=None, converter=to_optional_dollars, validator=valid_amount)
    reasoning: Decimal | None = field(default=None, converter=to_optional_dollars, validator=valid_amount)


@final
@frozen(kw_only=True, repr=False, eq=False)
class PriceTier(Rates):
    """The rates of all tokens of a request whose prompt is longer than ``above_tokens``."""

    above_tokens: int = field(validator=number(at_least=1, whole=True))


def _tiers(value: Iterable[PriceTier]) -> tuple[PriceTier, ...]:
    return to_tuple("tiers", value)


@final
@frozen(kw_only=True, repr=False, eq=False)
class PriceChange(Rates):
    """The rates from a day on; it begins at midnight UTC."""

    since: date = field(converter=to_date, validator=valid_date)
    tiers: tuple[PriceTier, ...] = field(default=(), converter=_tiers, validator=instances(PriceTier))


def _changes(value: Iterable[PriceChange]) -> tuple[PriceChange, ...]:
    return to_tuple("changes", value)


SERVICE_FACTORS: Final[Mapping[ServiceTier, Decimal]] = {
    "flex": Decimal("0.5"),
    "priority": Decimal(2),
    "batch": Decimal("0.5"),
}
"""What the service tiers cost, as multiples of the usual price."""


@final
@frozen(kw_only=True, repr=False, eq=False)
class Price(Rates):
    """The price of a model: its rates, those of long prompts (``tiers``), and those from a day on (``changes``).

    ``flex``, ``priority`` and ``batch`` are what these service tiers cost, as multiples of all rates: by default half,
    twice and half as much.

    >>> long = PriceTier(above_tokens=272_000, input=4, output=15)
    >>> Price(input=2, output=10, tiers=[long], changes=[PriceChange(since="2027-01-01", input=3, output=12)]).input
    Decimal('2')
    """

    tiers: tuple[PriceTier, ...] = field(default=(), converter=_tiers, validator=instances(PriceTier))
    changes: tuple[PriceChange, ...] = field(default=(), converter=_changes, validator=instances(PriceChange))
    flex: Decimal = field(default=SERVICE_FACTORS["flex"], converter=to_dollars, validator=valid_amount)
    priority: Decimal = field(default=SERVICE_FACTORS["priority"], converter=to_dollars, validator=valid_amount)
    batch: Decimal = field(default=SERVICE_FACTORS["batch"], converter=to_dollars, validator=valid_amount)

    def factor(self, tier: ServiceTier) -> Decimal:
        """Return what a service tier costs, as a multiple of the usual price."""
        return {"flex": self.flex, "priority": self.priority, "batch": self.batch}[tier]


Family: TypeAlias = Literal["local", "gpt", "claude", "other"]
"""A group of models that an order of models can name together."""

WireVersion: TypeAlias = Literal["2023-06-01", "2026-10-21"]
"""The ``anthropic-version`` header to send."""


@final
@frozen(kw_only=True)
class Capabilities:
    """The capabilities of a model; ``None`` is unknown and passes every filter.

    ``context_length`` and ``max_output`` are tokens. ``sampling`` means that the model accepts ``temperature`` and
    ``top_p``, ``prefill`` that it can continue an answer from its beginning, ``embeddings`` that it turns texts into
    vectors and does not answer prompts.
    """

    __repr__ = shown

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


def _keys(value: Iterable[str | Secret]) -> tuple[Secret, ...]:
    return tuple(to_secret("api_keys", key) if isinstance(key, str) else key for key in to_tuple("api_keys", value))


def _valid_keys(model: "ModelConfig | None", attribute: "attrs.Attribute[Any]", keys: tuple[Secret, ...]) -> None:
    """Reject keys that no server accepts, and a single key beside a list; loading checks the list alone first."""
    for key in keys:
        valid_key(model, attribute, key)
    if keys and model is not None and model.api_key is not None:
        invalid(attribute.name, "use api_key for one key or api_keys for several, not both")


def entry_of(name: str) -> str:
    """Return the entry of the configuration that a model comes from: one with several keys makes several models.

    >>> entry_of("gpt#2"), entry_of("gpt")
    ('gpt', 'gpt')
    """
    return name.partition("#")[0]


@final
@frozen(kw_only=True, cache_hash=True)
class ModelConfig:
    """One model: its server and its settings.

    ``provider`` is a protocol (``openai-chat``, ``anthropic``, ``llama``) or a preset's name (``lm-studio``,
    ``ollama``, ...). ``model`` is the provider's name for the model; without one, local servers use whatever is loaded.

    ``api_key`` is the key itself (only ``load_config`` reads ``"env:NAME"``), or a function, sync or async, that
    returns the key, or the key and its lifetime in seconds: it is called when a key is needed and the last one has run
    out or was rejected (see ``RotatingKey``).

    Several ``api_keys`` turn an entry ``gpt`` into the equal models ``gpt#1``, ``gpt#2`` and so on, each with its own
    limits and cooldown; ``gpt`` still names all of them.

    Times are milliseconds: ``timeout_ms`` for one attempt, ``connect_ms`` to reach the server, ``first_content_ms``
    until the first piece of the answer, ``between_content_ms`` from one piece to the next, ``sink_ms`` for a stream's
    consumer to handle the pieces that arrived together.

    ``context_length`` is tokens, for each of the ``slots`` requests that the in-process model serves at once.
    ``concurrency`` limits the calls in flight, ``requests_per_minute`` and ``tokens_per_minute`` the rates; ``None`` is
    unlimited. Equal models (same provider, model and price) share the calls by ``weight``: one of weight 2 has twice as
    many in flight as one of weight 1. An answer with more tool calls than ``max_tool_calls`` is malformed.
    ``prompt_cache`` is how long the provider keeps the prefix of a conversation, where that is for the request to say.
    """

    __repr__ = shown

    provider: str = field(validator=text())
    model: str | None = field(default=None, validator=text())
    endpoint: str | None = field(default=None, converter=without_login, validator=text(), repr=hide_password)
    api_key: Secret | RotatingKey | None = field(default=None, converter=to_key, validator=valid_key)
    api_keys: tuple[Secret, ...] = field(default=(), converter=_keys, validator=_valid_keys)
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
    weight: float = field(default=1.0, validator=number(above=0))
    headers: tuple[tuple[str, Secret], ...] = field(
        default=(), converter=to_headers, validator=[valid_pairs, valid_headers]
    )
    max_tool_calls: int = field(default=caps.TOOL_CALLS, validator=number(at_least=1, whole=True))
    prompt_cache: PromptCache = field(default="5m", validator=one_of(*get_args(PromptCache)))
    last_resort: bool = field(default=False, validator=instance(bool))


explain_arguments(
    ModelConfig,
    'ModelConfig(provider="lm-studio")',
    {
        **dict.fromkeys(("key", "apikey"), "write api_key=..."),
        **dict.fromkeys(("url", "base_url", "api_base", "host"), "write endpoint=..."),
        **dict.fromkeys(("timeout", "timeout_s"), "write timeout_ms=..., in milliseconds"),
        **dict.fromkeys(("max_retries", "num_retries"), "it belongs to all models: RoutingConfig(max_retries=...)"),
        "path": "write model_path=...",
    },
)
