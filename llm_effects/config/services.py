"""The configuration of the services: cache, storage, limits, budgets, telemetry, endpoint, transport."""

import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from inspect import signature
from typing import Any, Final, Literal, TypeAlias, final, get_args

import attrs
from attrs import field, frozen

from llm_effects.config.fields import to_dollars, valid_amount
from llm_effects.values.secrets import Secret, hide_password, key_problem, to_url, valid_url
from llm_effects.values.validation import (
    check_id,
    each_of,
    explain_arguments,
    instance,
    instances,
    invalid,
    is_a,
    number,
    one_of,
    short_repr,
    text,
    to_table,
    to_tuple,
)
from llm_effects.values.value import Value

KEEPABLE: Final = ("stop", "length", "tool_calls")
"""Finish reasons of answers that the cache may store; filtered answers are never stored."""


def _optional_encryption(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    if value is not None and not isinstance(value, Encryption):
        invalid(attribute.name, "must be an Encryption: a pair of functions, set in code")


def _keep(value: Iterable[str]) -> tuple[str, ...]:
    return to_tuple("keep", value)


def _takes(*arguments: str) -> "Callable[[object, attrs.Attribute[Any], object], None]":
    """Return a validator: a function takes these arguments, by place."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if not callable(value):
            invalid(attribute.name, "must be a function, set in code")
        try:
            signature(value).bind(*arguments)
        except TypeError:
            invalid(attribute.name, f"must take {', '.join(arguments)}")
        except ValueError:  # a function of C may have no signature
            pass

    return check


@final
@frozen(eq=False)
class Encryption:
    """A pair of functions that encrypt and decrypt what is stored; set it in code, as a file cannot hold functions.

    ``encrypt(plain, context)`` returns the name of the key that it used, and the encrypted bytes; if it raises, nothing
    is stored, and that is a ``StorageFailed``. ``decrypt(key, data, context)`` gets them back; if it raises, or returns
    ``None``, this one value is unreadable. To rotate, let ``encrypt`` use a new key, and keep the old ones for
    ``decrypt``. Both run in the event loop: they must be fast and not wait.

    ``context`` is where the value belongs, a JSON array of its kind, its owner (or ``null``) and its ids. Pass it on as
    associated data, so that a value that was moved elsewhere cannot be decrypted there. It is empty for values that
    were stored before there was one.
    """

    encrypt: Callable[[bytes, bytes], tuple[str, bytes]] = field(repr=False, validator=_takes("plain", "context"))
    decrypt: Callable[[str, bytes, bytes], bytes | None] = field(repr=False, validator=_takes("key", "data", "context"))


@final
@frozen(kw_only=True, eq=False, repr=False)
class CacheConfig(Value):
    """Where the cache stores answers, for how long (seconds; ``None`` is without end), how many and which.

    For ``stale_seconds`` more, an answer is still returned, marked as stale, while a fresh one is fetched; 0 is never.

    ``keep`` lists the finish reasons of answers to store: ``stop``, and if wanted ``length`` (cut off at the limit) or
    ``tool_calls``. Configurations with different ``namespace`` share no entry; without one, those whose models have
    different headers share none.

    ``lease_seconds`` is for a cache that processes share on a Redis server: one of them at a time asks for a missing
    answer, and when it dies, another one does so after this time, of at least half a second; 0 lets each ask for
    itself.
    """

    enabled: bool = field(default=True, validator=instance(bool))
    ttl_seconds: float | None = field(default=3600, validator=number(at_least=0))
    stale_seconds: float = field(default=0.0, validator=number(at_least=0))
    lease_seconds: float = field(default=10.0, validator=number(at_least=0))
    max_size: int = field(default=1000, validator=number(at_least=1, whole=True))
    url: str | Secret = field(default="memory://", converter=to_url, validator=valid_url, repr=hide_password)
    keep: tuple[str, ...] = field(default=("stop",), converter=_keep, validator=each_of(*KEEPABLE))
    namespace: str | None = field(default=None, validator=text())
    encryption: Encryption | None = field(default=None, validator=_optional_encryption)


_DAYS: Final = number(above=0, at_most=365_000)  # a time that every calendar has


@final
@frozen(kw_only=True, eq=False, repr=False)
class RetentionConfig(Value):
    """For how many days data is kept, each kind by itself, at most 365,000; ``None`` is for ever.

    The age of a conversation is that of its newest turn, the age of a run's journal that of its newest step.
    """

    conversations_days: float | None = field(default=None, validator=_DAYS)
    journals_days: float | None = field(default=None, validator=_DAYS)
    ledger_days: float | None = field(default=None, validator=_DAYS)


_SCHEMA: Final = r"[a-z_][a-z0-9_]{0,62}"


def _valid_schema(_: object, attribute: "attrs.Attribute[Any]", value: str | None) -> None:
    if value is not None and not (is_a(value, str) and re.fullmatch(_SCHEMA, value)):
        invalid(attribute.name, f"must be lower-case letters, digits and underscores, not {short_repr(value)}")


def _owner_retention(value: Mapping[str, RetentionConfig]) -> Mapping[str, RetentionConfig]:
    """Copy the rules; a blank owner would stand for the owner ``None`` in some stores."""
    rules = to_table("owner_retention", value)
    for owner in rules:
        check_id(f"owner_retention: the owner {short_repr(owner)}", owner)
    return rules


Window: TypeAlias = Literal["drop", "summarise", "fail"]
"""How to shorten a history that outgrows the model's window."""


@final
@frozen(kw_only=True, eq=False, repr=False)
class StorageConfig(Value):
    """Where conversations and the ledger are stored, and how conversations behave.

    ``window`` applies to a history that outgrows the model's window: ``drop`` whole exchanges from the oldest,
    ``summarise`` them by ``summary_model`` (``None``: by the model that routing chooses), or ``fail`` the turn with
    ``ContextTooLarge``. ``lease_seconds`` is how long an unfinished turn counts as in progress.

    Postgres: ``schema`` holds the tables, up to ``connections`` are open, and one that is older than
    ``recycle_seconds`` is replaced. Operations that wait fail once none has succeeded for ``timeout_seconds``.

    Without ``migrate`` the library never creates or changes tables: apply ``llm-effects storage migrate --sql``.
    With ``read_only`` it writes nothing: open reports so.

    ``retention`` is what ``apply_retention`` erases by age; for an owner in ``owner_retention``, that rule stands in
    its place.
    """

    url: str | Secret = field(default="memory://", converter=to_url, validator=valid_url, repr=hide_password)
    window: Window = field(default="drop", validator=one_of(*get_args(Window)))
    summary_model: str | None = field(default=None, validator=text())
    lease_seconds: float = field(default=600.0, validator=number(above=0))
    schema: str | None = field(default=None, validator=_valid_schema)
    connections: int = field(default=12, validator=number(at_least=2, whole=True))
    timeout_seconds: float = field(default=20.0, validator=number(above=0))
    recycle_seconds: float | None = field(default=None, validator=number(above=0))
    encryption: Encryption | None = field(default=None, validator=_optional_encryption)
    migrate: bool = field(default=True, validator=instance(bool))
    read_only: bool = field(default=False, validator=instance(bool))
    retention: RetentionConfig = field(factory=RetentionConfig, validator=instance(RetentionConfig))
    owner_retention: Mapping[str, RetentionConfig] = field(
        factory=dict[str, RetentionConfig], converter=_owner_retention, validator=instances(RetentionConfig)
    )


@final
@frozen(kw_only=True, eq=False, repr=False)
class LimitsConfig(Value):
    """Where limits and breakers are counted: in this process, or for several processes on a Redis server.

    ``queue_seconds`` bounds how long a call queues, in addition to its own deadline. The default exceeds the 61 seconds
    until the next minute's quota, so that a call that only has to wait for that one succeeds.
    """

    url: str | Secret = field(default="memory://", converter=to_url, validator=valid_url, repr=hide_password)
    queue_seconds: float = field(default=90.0, validator=number(above=0))


Period: TypeAlias = Literal["hour", "day", "month"]
"""The period of a budget: an hour, a day or a month, in UTC."""

_KINDS: Final = ("owner", "task", "tag")


def _valid_scope(_: object, attribute: "attrs.Attribute[Any]", value: str | None) -> None:
    kind, colon, name = (value or "owner:*").partition(":")
    if kind not in _KINDS or not colon or not name.strip():
        invalid(
            attribute.name, f"must be such as owner:alice, owner:* (each owner) or tag:nightly, not {short_repr(value)}"
        )


@final
@frozen(kw_only=True, eq=False, repr=False)
class BudgetConfig(Value):
    """A limit of ``limit_usd`` US dollars in each ``period``, for a ``scope``, or for all requests.

    A scope is such as ``owner:alice``, ``task:analysis`` or ``tag:nightly``; ``owner:*`` limits each owner separately.
    """

    name: str = field(validator=text())
    limit_usd: Decimal = field(converter=to_dollars, validator=valid_amount)
    period: Period = field(default="day", validator=one_of(*get_args(Period)))
    scope: str | None = field(default=None, validator=[text(), _valid_scope])


explain_arguments(CacheConfig, 'CacheConfig(url="sqlite:///cache.db")', {"ttl": "write ttl_seconds=..."})
explain_arguments(StorageConfig, 'StorageConfig(url="sqlite:///talks.db")', {"path": "write url=..."})
explain_arguments(
    BudgetConfig,
    'BudgetConfig(name="all", limit_usd=5)',
    {"limit": "write limit_usd=...", **dict.fromkeys(("owner", "tenant", "user"), 'write scope="owner:..."')},
)


@final
@frozen(kw_only=True, eq=False, repr=False)
class TelemetryConfig(Value):
    """Whether calls are traced, and whether traces include message ``bodies``."""

    enabled: bool = field(default=True, validator=instance(bool))
    bodies: bool = field(default=False, validator=instance(bool))


def _owners(value: Mapping[str, str | Secret]) -> Mapping[str, Secret]:
    keys = to_table("keys", value)
    return {owner: Secret(key) if isinstance(key, str) else key for owner, key in keys.items()}


def _valid_keys(_: object, attribute: "attrs.Attribute[Any]", keys: Mapping[str, Secret]) -> None:
    """Reject an owner that no store could index, a key that no client could send, and a key of two owners."""
    for owner, key in keys.items():
        check_id(f"{attribute.name}: the owner {short_repr(owner)}", owner)
        problem = key_problem(key.reveal()) if is_a(key, Secret) else f"must be a text, not {type(key).__name__}"
        if problem:
            invalid(attribute.name, f"the key of {short_repr(owner)} {problem}")
    if len(set(keys.values())) < len(keys):
        invalid(attribute.name, "two owners have the same key: each needs one of its own")


@final
@frozen(kw_only=True, eq=False, repr=False)
class ServeConfig(Value):
    """The keys of an endpoint (``llm_effects.asgi``) by their owners, and its largest request in ``body_bytes``.

    The owner of a key is the owner of its requests, to whom budgets and the cache belong. Without a key the endpoint
    serves only programs on this machine.

    >>> ServeConfig(keys={"ada": "a-long-random-text"})
    ServeConfig(keys={'ada': Secret('***')})
    """

    keys: Mapping[str, Secret] = field(factory=dict[str, Secret], converter=_owners, validator=_valid_keys)
    body_bytes: int = field(default=32 * 2**20, validator=number(at_least=1, whole=True))


TransportKind: TypeAlias = Literal["auto", "httpx", "fast"]
"""The library that carries requests: ``httpx``, aiohttp (``fast``), or aiohttp where it can be (``auto``)."""
