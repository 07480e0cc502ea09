"""Values that services return or record: health, statistics, ledger rows, measurements, cache statistics."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Literal, TypeAlias, final

from attrs import field, frozen

from llm_effects.values.display import milliseconds, table
from llm_effects.values.requests import LLMRequest, TaskType
from llm_effects.values.responses import Attempt
from llm_effects.values.secrets import hide_password
from llm_effects.values.value import Value


@final
@frozen(kw_only=True, eq=False, repr=False)
class ModelHealth(Value):
    """The health of a model: ``reachable`` if its server answers, ``ready`` if it would answer a request now.

    ``loaded`` lists the models that the server has in memory; ``context_length`` is tokens, ``latency_ms`` the duration
    of the probe in milliseconds; ``message`` names the problem and the remedy. ``error`` is the tag of the error that a
    request would surely end in, such as ``AuthenticationFailed`` for a rejected key; ``None`` if it may succeed.
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
    error: str | None = None

    def _repr_markdown_(self) -> str:
        state = "ready" if self.ready else "reachable" if self.reachable else "not reachable"
        row = (self.model, self.provider, state, ", ".join(self.loaded), milliseconds(self.latency_ms), self.message)
        return table(("model", "provider", "state", "loaded", "latency", "message"), [row])


CheckState: TypeAlias = Literal["ok", "warning", "problem"]
"""A ``problem`` must be solved; a ``warning`` does not prevent answers, such as one model of several that is down."""


@final
@frozen(eq=False, repr=False)
class Check(Value):
    """A checked part of an environment: its ``place`` in the configuration, its state, and what was found there."""

    place: str
    state: CheckState
    message: str = ""


@final
@frozen(kw_only=True, eq=False, repr=False)
class Statistics(Value):
    """Measurements of a model: the number of its attempts, and moving averages over them.

    Times are milliseconds: ``latency_ms`` of whole answers, ``first_content_ms`` of streams, ``failure_ms`` of failed
    attempts; ``None`` if there was none. ``error_rate`` is from 0 to 1, and so is ``confidence``: the weight of these
    figures ``at`` the time of the last attempt, by ``env.now`` (``None`` means now). ``calls`` is the number of calls
    routed to any model until then. ``cooldown_until`` is the end of the pause that the model asked for, on the clock of
    ``anyio.current_time()``.
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
@frozen(kw_only=True, eq=False, repr=False)
class LedgerRow(Value):
    """One attempt in the ledger, ``at`` a time of ``env.now``.

    ``id`` is the id of the call and the number of the attempt in it; ``served_model`` is the model that the provider
    reports. ``left_machine`` is whether the attempt was sent to another machine; ``None`` where that is not known.
    ``cache_saved_usd`` is what the provider's prompt cache saved of the cost (USD) at the prices of that time, negative
    where writing took more than reading saved; ``None`` lets a report compute it at the prices it knows.
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
    left_machine: bool | None = None
    cache_saved_usd: Decimal | None = None


Attributes: TypeAlias = Mapping[str, str | bool | int | float | Sequence[str]]
"""Attributes of a span or a measurement, by their names in the OpenTelemetry conventions."""


@final
@frozen(eq=False, repr=False)
class Measure(Value):
    """One measurement of a metric, in seconds or tokens."""

    metric: str
    value: float
    attributes: Attributes


@final
@frozen(kw_only=True, eq=False, repr=False)
class CacheStats(Value):
    """The size and the counters of a cache; ``None`` if the store cannot count cheaply.

    ``entries`` and ``bytes`` cover the whole store, including the entries of other processes. ``hits``, ``misses``,
    ``evictions`` (entries removed early to make room) and ``failures`` are counted since this process opened the store.
    Each failure was a miss, or an answer that was not stored.
    """

    entries: int | None = None
    bytes: int | None = None
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    failures: int = 0


# Batches at a provider.


@final
@frozen(eq=False, repr=False)
class BatchLine(Value):
    """A request of a batch, encoded for its provider: the ``path`` of the operation, and the ``body`` in JSON."""

    custom_id: str
    request: LLMRequest = field(repr=False)
    path: str
    body: bytes = field(repr=False)


BatchState: TypeAlias = Literal[
    "validating", "in_progress", "finalizing", "cancelling", "completed", "expired", "cancelled", "failed"
]
"""The state of a batch; from ``completed`` on it has ended. A ``failed`` one was refused, and nothing of it ran."""


@final
@frozen(kw_only=True, eq=False, repr=False)
class BatchJob(Value):
    """A batch at a provider, with the ``model`` from the configuration that its requests were encoded for.

    ``requests`` counts all, ``succeeded`` and ``failed`` those that ended, as far as the provider says.
    ``created_at`` and ``expires_at`` are by its clock. ``files`` hold its results, ``code`` and ``message`` say why it
    failed. ``submission`` is the id under which it was submitted, if the provider reports that.
    """

    id: str
    model: str
    state: BatchState = "in_progress"
    requests: int = 0
    succeeded: int = 0
    failed: int = 0
    created_at: datetime | None = None
    expires_at: datetime | None = None
    files: tuple[str, ...] = field(default=(), repr=False)
    code: str = ""
    message: str = ""
    submission: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing of it will run any more."""
        return self.state in {"completed", "expired", "cancelled", "failed"}
