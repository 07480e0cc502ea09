"""What services tell: how a model is, what is known of it, one booked attempt, what a cache did, a measure."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TypeAlias, final

from attrs import field, frozen

from llm_effects.values.requests import TaskType
from llm_effects.values.responses import Attempt
from llm_effects.values.secrets import hide_password


@final
@frozen(kw_only=True)
class ModelHealth:
    """How a model is: ``reachable`` says that its server answers, ``ready`` that it would answer a request now.

    ``loaded`` names what the server has in memory; ``context_length`` is tokens, ``latency_ms`` the time
    of the probe in milliseconds; ``message`` says what is missing and what to do.
    """

    model: str
    provider: str
    endpoint: str | None = field(default=None, repr=hide_password)
    reachable: bool = False
    ready: bool = False
    loaded: tuple[str, ...] = ()
    context_length: int | None = None
    latency_ms: float = 0.0
    message: str = ""


@final
@frozen(kw_only=True)
class Statistics:
    """What is known of a model: how many attempts told of it, and moving averages of how they went.

    Times are milliseconds: ``latency_ms`` of whole answers, ``first_content_ms`` of streams, ``failure_ms`` of attempts
    that failed; ``None`` where there was none. ``error_rate`` is from 0 to 1, and so is ``confidence``: how much weight
    all this had ``at`` the time of the last attempt, by ``env.now`` (``None``: it is as of now). ``calls`` is how many
    calls of any model had been routed then. ``cooldown_until`` is on the clock of ``anyio.current_time()``: until then
    the model asked for a pause.
    """

    attempts: int = 0
    error_rate: float = 0.0
    latency_ms: float | None = None
    first_content_ms: float | None = None
    failure_ms: float | None = None
    confidence: float = 1.0
    at: datetime | None = None
    calls: int = 0
    cooldown_until: float = -math.inf


@final
@frozen(kw_only=True)
class LedgerRow:
    """One attempt, as it is booked ``at`` a time of ``env.now``.

    ``id`` is the call's with the number of the attempt in it; ``served_model`` is what the provider says it ran.
    """

    id: str
    at: datetime
    call_id: str
    task_type: TaskType
    attempt: Attempt
    conversation_id: str | None = None
    served_model: str | None = None
    owner: str | None = None
    tags: tuple[str, ...] = ()


Attributes: TypeAlias = Mapping[str, str | bool | int | float | Sequence[str]]
"""What a span or a measure says of itself, by the names in ``conventions``."""


@final
@frozen
class Measure:
    """One figure of a metric: seconds or tokens."""

    metric: str
    value: float
    attributes: Attributes


@final
@frozen(kw_only=True)
class CacheStats:
    """What a cache holds and did: ``None`` where the store cannot tell cheaply.

    ``entries`` and ``bytes`` are all that the store holds, whoever put it there. ``hits``, ``misses`` and
    ``evictions`` (entries that had to make room before their time) are counted since this store was opened here, and so
    are ``failures``: what the store could not do, each of which was a miss or an answer not kept.
    """

    entries: int | None = None
    bytes: int | None = None
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    failures: int = 0
