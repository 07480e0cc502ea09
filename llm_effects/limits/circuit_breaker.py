"""A breaker as a pure state machine: a model that fails too often is left alone, and then tried by one call.

Closed, it counts. Open, it turns everybody away until its time is over. Then it is half open: one call, the probe, is
let through, and closes or opens it again. Every change of state begins a new ``epoch``; what was let through in an
older one says nothing of this one.
"""

from math import floor, inf
from typing import Final, Literal, TypeAlias, final

from attrs import evolve, frozen

from llm_effects.config.routing import BreakerConfig
from llm_effects.limits.quotas import Cells, added, fresh, total
from llm_effects.values.errors import LLMError, ModelUnavailable, NetworkError, RequestTimeout

CELLS: Final = 10
"""Cells of the rolling window."""

PROBING_S: Final = 1.0
"""When to ask again while a probe is under way, in seconds: nobody knows how long it takes."""

Kind: TypeAlias = Literal["counted", "probe", "anyway"]
"""Why one was let through: as always, to see whether it works again, or since nobody else was left to ask."""


@final
@frozen(kw_only=True)
class Breaker:
    """How it stands with one model: closed where ``open_until`` is ``None``. Times are seconds on any one clock."""

    tries: Cells = ()
    faults: Cells = ()
    open_until: float | None = None
    probing_until: float = -inf
    epoch: int = 0


@final
@frozen
class BreakerPermit:
    """What one was let through with, to be recorded once; ``shared`` by a breaker that others share."""

    kind: Kind = "counted"
    epoch: int = 0
    shared: bool = False


@final
@frozen
class Refusal:
    """Nobody is let through for so many ``seconds``."""

    seconds: float


def admitted(
    breaker: Breaker, now: float, lease: float, *, force: bool = False
) -> tuple[Breaker, BreakerPermit | Refusal]:
    """Ask to be let through; a probe that does not come back within its ``lease`` (seconds) is given up.

    >>> broken = Breaker(open_until=30.0)
    >>> admitted(broken, 10.0, lease=60)[1], admitted(broken, 30.0, lease=60)[1].kind
    (Refusal(seconds=20.0), 'probe')
    """
    if breaker.open_until is None:
        return breaker, BreakerPermit("counted", breaker.epoch)
    if breaker.open_until <= now and breaker.probing_until <= now:
        return evolve(breaker, probing_until=now + lease), BreakerPermit("probe", breaker.epoch)
    wait = breaker.open_until - now if breaker.open_until > now else PROBING_S
    return breaker, BreakerPermit("anyway", breaker.epoch) if force else Refusal(wait)


def recorded(
    breaker: Breaker, config: BreakerConfig, passage: BreakerPermit, now: float, *, failed: bool | None
) -> Breaker:
    """Tell what became of one: that the model failed or did not, or ``None`` where it says nothing of the model.

    >>> config = BreakerConfig(min_attempts=1, open_seconds=30)
    >>> recorded(Breaker(), config, BreakerPermit(), 10.0, failed=True).open_until
    40.0
    """
    if passage.epoch != breaker.epoch:
        return breaker
    if failed is None:
        return evolve(breaker, probing_until=-inf) if passage.kind == "probe" else breaker
    if passage.kind == "counted":
        return _counted(breaker, config, now, failed=failed)
    if not failed:
        return Breaker(epoch=breaker.epoch + 1)
    return _opened(breaker, config, now) if passage.kind == "probe" else breaker


def _opened(breaker: Breaker, config: BreakerConfig, now: float) -> Breaker:
    return Breaker(open_until=now + config.open_seconds, epoch=breaker.epoch + 1)


def _counted(breaker: Breaker, config: BreakerConfig, now: float, *, failed: bool) -> Breaker:
    cell = floor(now * CELLS / config.window_seconds)
    tries = added(fresh(breaker.tries, cell - CELLS), cell, 1)
    faults = fresh(breaker.faults, cell - CELLS)
    if failed:
        faults = added(faults, cell, 1)
        tried = total(tries)
        if tried >= config.min_attempts and total(faults) >= config.failure_rate * tried:
            return _opened(breaker, config, now)
    return Breaker(tries=tries, faults=faults, epoch=breaker.epoch)


def blames(error: LLMError) -> bool:
    """Whether an error says that the model does not work: the network, time, or the server's own fault.

    Not: what this process lacks, what a caller or a consumer cut short, a model that loads, a server that says slow
    down, and whatever lies in the request.

    >>> blames(NetworkError(phase="reset")), blames(NetworkError(phase="local")), blames(ModelUnavailable(status=503))
    (True, False, True)
    """
    match error:
        case NetworkError():
            return error.phase != "local"
        case RequestTimeout():
            return error.phase not in {"queue", "sink", "total"}
        case ModelUnavailable():
            return error.reason == "overloaded" and (error.status or 0) >= 500
        case _:
            return False
