"""What stands around the models: the cache, storage, limits, budgets, telemetry."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Final, Literal, TypeAlias, final, get_args

import attrs
from attrs import field, frozen

from llm_effects.config.fields import amount, dollars
from llm_effects.values.secrets import without_password
from llm_effects.values.validation import each_of, instance, invalid, number, one_of, shown, text, to_tuple

KEEPABLE: Final = ("stop", "length", "tool_calls")
"""Finish reasons of answers that may be kept; one that was filtered never is."""


def _keeping(given: Iterable[str]) -> tuple[str, ...]:
    return to_tuple("keep", given)


@final
@frozen(kw_only=True)
class CacheConfig:
    """Where answers are kept, for how long (seconds; ``None`` is for ever), how many and which.

    ``keep`` names the finish reasons of the answers worth keeping: ``stop``, and where it makes sense ``length`` (cut
    off at the limit) or ``tool_calls``.
    """

    enabled: bool = field(default=True, validator=instance(bool))
    ttl_seconds: float | None = field(default=3600, validator=number(at_least=0))
    max_size: int = field(default=1000, validator=number(at_least=1, whole=True))
    url: str = field(default="memory://", validator=text(), repr=without_password)
    keep: tuple[str, ...] = field(default=("stop",), converter=_keeping, validator=each_of(*KEEPABLE))


Window: TypeAlias = Literal["drop", "summarise", "fail"]
"""What becomes of a history that outgrows the model's window."""


@final
@frozen(kw_only=True)
class StorageConfig:
    """Where conversations and the ledger are kept, and how conversations behave.

    ``window`` says what becomes of a history that outgrows the model's window: whole exchanges are dropped from the
    oldest, or summarised by ``summary_model`` (``None``: by whichever suits), or the turn fails with
    ``ContextTooLarge``. ``lease_seconds`` is how long a turn without an end is taken to be under way.
    """

    url: str = field(default="memory://", validator=text(), repr=without_password)
    window: Window = field(default="drop", validator=one_of(*get_args(Window)))
    summary_model: str | None = field(default=None, validator=text())
    lease_seconds: float = field(default=600.0, validator=number(above=0))


@final
@frozen(kw_only=True)
class LimitsConfig:
    """Where limits and breakers are counted: in this process, or for many on a Redis server.

    ``queue_seconds`` is how long a call waits for its turn at the most, besides its own deadline: more than the 61
    that a minute may take to pass, so that who only has to wait for the next one is let in.
    """

    url: str = field(default="memory://", validator=text(), repr=without_password)
    queue_seconds: float = field(default=90.0, validator=number(above=0))


Period: TypeAlias = Literal["hour", "day", "month"]
"""How long a budget lasts: an hour, a day or a month of UTC."""

_KINDS: Final = ("owner", "task", "tag")


def _scope(_: object, attribute: "attrs.Attribute[Any]", given: str | None) -> None:
    kind, colon, name = (given or "owner:*").partition(":")
    if kind not in _KINDS or not colon or not name.strip():
        invalid(attribute.name, f"must be such as owner:alice, owner:* (each one) or tag:nightly, not {shown(given)}")


@final
@frozen(kw_only=True)
class BudgetConfig:
    """At most ``limit_usd`` US dollars in each ``period``, for a ``scope``, or for all.

    A scope names an ``owner:alice``, a ``task:analysis`` or a ``tag:nightly``; ``owner:*`` is each owner by itself.
    """

    name: str = field(validator=text())
    limit_usd: Decimal = field(converter=dollars, validator=amount)
    period: Period = field(default="day", validator=one_of(*get_args(Period)))
    scope: str | None = field(default=None, validator=[text(), _scope])


@final
@frozen(kw_only=True)
class TelemetryConfig:
    """What traces may tell: message bodies only if asked for."""

    enabled: bool = field(default=True, validator=instance(bool))
    bodies: bool = field(default=False, validator=instance(bool))
