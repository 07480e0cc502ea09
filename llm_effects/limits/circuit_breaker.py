"""Circuit breakers as a pure state machine: calls to a model that fails too often are rejected for a while.

A closed breaker counts attempts and failures. An open one rejects every call until its time is over. Then it is half
open: a single call, the probe, goes through and closes the breaker or opens it again. Every change of state begins a
new ``epoch``; outcomes of calls from an earlier epoch are ignored.
"""

from math import floor, inf
from typing import Final, Literal, TypeAlias, final

from attrs import evolve, frozen

from llm_effects.config.routing import BreakerConfig
from llm_effects.limits.quotas import Cells, add, drop_before, total
from llm_effects.values.validation import frozen_in_types
from llm_effects.values.value import Value

CELLS: Final = 10
"""Cells of the rolling window."""

PROBE_WAIT_S: Final = 1.0
"""Seconds after which a call that a running probe rejects may try again; how long the probe takes is unknown."""

PermitKind: TypeAlias = Literal["counted", "probe", "forced"]
"""Why a call may go: the breaker is closed, the call probes a half-open one, or no other model is left."""


@final
@frozen_in_types(kw_only=True, eq=False, repr=False)
class Breaker(Value):
    """The state of one model's breaker, closed if ``open_until`` is ``None``. Times are seconds on any one clock."""

    attempts: Cells = ()
    failures: Cells = ()
    open_until: float | None = None
    probing_until: float = -inf
    epoch: int = 0


@final
@frozen(eq=False, repr=False)
class BreakerPermit(Value):
    """A permit to make a call; record its outcome once. ``shared`` permits come from a breaker that processes share."""

    kind: PermitKind = "counted"
    epoch: int = 0
    shared: bool = False


@final
@frozen(eq=False, repr=False)
class Refusal(Value):
    """A rejected call, which may try again after ``retry_after`` seconds."""

    retry_after: float


FIRST_PERMIT: Final = BreakerPermit()
"""The permit of a breaker that has never opened."""


def closed_permit(breaker: Breaker) -> BreakerPermit:
    """Return the permit of a closed breaker: until it first opens the same one for every call."""
    return BreakerPermit("counted", breaker.epoch) if breaker.epoch else FIRST_PERMIT


def request_permit(
    breaker: Breaker, now: float, lease: float, *, force: bool = False
) -> tuple[Breaker, BreakerPermit | Refusal]:
    """Request a permit; a probe without an outcome expires after its ``lease`` (seconds).

    >>> broken = Breaker(open_until=30.0)
    >>> request_permit(broken, 10.0, lease=60)[1], request_permit(broken, 30.0, lease=60)[1].kind
    (Refusal(retry_after=20.0), 'probe')
    """
    if breaker.open_until is None:
        return breaker, closed_permit(breaker)
    if breaker.open_until <= now and breaker.probing_until <= now:
        return evolve(breaker, probing_until=now + lease), BreakerPermit("probe", breaker.epoch)
    wait = breaker.open_until - now if breaker.open_until > now else PROBE_WAIT_S
    return breaker, BreakerPermit("forced", breaker.epoch) if force else Refusal(wait)


def record_outcome(
    breaker: Breaker, config: BreakerConfig, permit: BreakerPermit, now: float, *, failed: bool | None
) -> Breaker:
    """Record whether the model failed, or ``None`` if the outcome says nothing about the model.

    >>> config = BreakerConfig(min_attempts=1, open_seconds=30)
    >>> record_outcome(Breaker(), config, BreakerPermit(), 10.0, failed=True).open_until
    40.0
    """
    if permit.epoch != breaker.epoch:
        return breaker
    if failed is None:
        return evolve(breaker, probing_until=-inf) if permit.kind == "probe" else breaker
    if permit.kind == "counted":
        return _count(breaker, config, now, failed=failed)
    if not failed:
        return Breaker(epoch=breaker.epoch + 1)
    return _open(breaker, config, now) if permit.kind == "probe" else breaker


def _open(breaker: Breaker, config: BreakerConfig, now: float) -> Breaker:
    return Breaker(open_until=now + config.open_seconds, epoch=breaker.epoch + 1)


def _count(breaker: Breaker, config: BreakerConfig, now: float, *, failed: bool) -> Breaker:
    cell = floor(now * CELLS / config.window_seconds)
    attempts = add(drop_before(breaker.attempts, cell - CELLS), cell, 1)
    failures = drop_before(breaker.failures, cell - CELLS)
    if failed:
        failures = add(failures, cell, 1)
        attempted = total(attempts)
        if attempted >= config.min_attempts and total(failures) >= config.failure_rate * attempted:
            return _open(breaker, config, now)
    return Breaker(attempts=attempts, failures=failures, epoch=breaker.epoch)
