"""Rate limits as plain values: calls in flight, usage of the last minute, and how long a call must wait.

A call reserves an estimate of its usage before it is sent; the actual usage replaces the estimate afterwards. Limits
that a server reports count too, because they include other users of the same key.
"""

from math import floor, inf
from typing import Final, TypeAlias, final

from attrs import evolve, field, frozen

from llm_effects.config.models import ModelConfig
from llm_effects.values import caps
from llm_effects.values.validation import frozen_in_types
from llm_effects.values.value import Value

# A rolling window, counted in cells of time.
#
# A window of ``count`` cells holds the current cell and the ``count`` full ones before it, so any stretch of ``count``
# cells is counted whole. The window is exact to one cell and never allows too much.


Cells: TypeAlias = tuple[tuple[int, int], ...]
"""Amounts by cell number, oldest first."""

SECONDS: Final = 60
"""Cells in the window of a minute, one second each."""


def drop_before(cells: Cells, oldest: int) -> Cells:
    """Drop the cells before ``oldest``.

    >>> drop_before(((1, 5), (7, 2)), 7)
    ((7, 2),)
    """
    if not cells or cells[0][0] >= oldest:
        return cells
    return tuple(each for each in cells if each[0] >= oldest)


def total(cells: Cells) -> int:
    """Return the sum of all amounts."""
    return sum(amount for _, amount in cells)


def add(cells: Cells, cell: int, amount: int) -> Cells:
    """Add an amount to a cell; a negative amount is a correction, which a cell outside the window ignores.

    >>> add(((1, 5),), 7, 2), add(((1, 5),), 1, -3), add(((7, 2),), 1, -3)
    (((1, 5), (7, 2)), ((1, 2),), ((7, 2),))
    """
    if not cells or cells[-1][0] < cell:
        return (*cells, (cell, amount)) if amount > 0 else cells
    if cells[-1][0] == cell:  # the usual case: no need to copy every cell
        return (*cells[:-1], (cell, max(0, cells[-1][1] + amount)))
    return tuple((number, max(0, used + amount) if number == cell else used) for number, used in cells)


def seconds_until_fits(cells: Cells, limit: int, amount: int, now: float) -> float:
    """Return in how many seconds an amount fits into the minute without further calls; infinite if it never does.

    >>> seconds_until_fits(((0, 3), (10, 2)), limit=5, amount=1, now=20.5)
    40.5
    >>> seconds_until_fits((), limit=5, amount=6, now=0.0)
    inf
    """
    if amount > limit:
        return inf
    cells = drop_before(cells, floor(now) - SECONDS)
    used, wait = total(cells), 0.0
    for cell, cell_used in cells:
        if used + amount <= limit:
            break
        used -= cell_used
        wait = cell + SECONDS + 1 - now
    return wait


def seconds_until_all_fit(cells: Cells, limit: int, amount: int, now: float) -> float:
    """Return the least wait in seconds for an amount that may need several minutes, each filled to its limit.

    >>> seconds_until_all_fit((), limit=5, amount=11, now=0.0)
    120.0
    """
    minutes, rest = divmod(amount - 1, limit)
    return minutes * float(SECONDS) + seconds_until_fits(cells, limit, rest + 1, now)


# Values.


@final
@frozen(kw_only=True, eq=False, repr=False)
class Quota(Value):
    """The limits of a model: calls in flight, requests and tokens in any minute; ``None`` is unlimited."""

    concurrency: int | None = None
    requests: int | None = None
    tokens: int | None = None

    @property
    def unlimited(self) -> bool:
        """Whether there is no limit at all."""
        return self.concurrency is None and self.requests is None and self.tokens is None


@final
@frozen(kw_only=True, eq=False, repr=False)
class Allowance(Value):
    """A limit that a server reports for requests or tokens: its size, what remains, and seconds until it resets."""

    limit: int | None = None
    remaining: int | None = None
    reset: float | None = None


_NOT_REPORTED: Final = Allowance()


@final
@frozen(kw_only=True, eq=False, repr=False)
class RateLimits(Value):
    """The limits that a server reports with an answer, and when, on the clock of ``anyio.current_time()``."""

    requests: Allowance = field(factory=Allowance)
    tokens: Allowance = field(factory=Allowance)
    at: float = 0.0


@final
@frozen(kw_only=True, eq=False, repr=False)
class Demand(Value):
    """The estimated usage of a call, or of all calls ahead of it in a queue."""

    requests: int = 1
    tokens: int = 0


NO_DEMAND: Final = Demand(requests=0)


@final
@frozen(kw_only=True, eq=False, repr=False)
class Meter(Value):
    """Usage of requests or of tokens: our own window of a minute, and the allowance that the server reported.

    ``limit`` and ``remaining`` are the server's; ``remaining`` counts until ``resets_at``. ``reported_at`` is the time
    of the newest report.
    """

    cells: Cells = ()
    limit: int | None = None
    remaining: int = 0
    resets_at: float = -inf
    reported_at: float = -inf


@final
@frozen(kw_only=True, eq=False, repr=False)
class LimiterState(Value):
    """The state of one model's limiter; ``in_flight`` counts calls only where their number is limited."""

    in_flight: int = 0
    requests: Meter = Meter()
    tokens: Meter = Meter()


@final
@frozen(kw_only=True, eq=False, repr=False)
class Permit(Value):
    """A permit to call a model; release it once.

    ``demand`` is what it reserved, in the second ``cell``, after ``wait_seconds`` in the queue. With limits that
    processes share, ``id`` identifies the holder and ``shared_cell`` is the second on the shared clock. ``warning``
    describes a problem, such as a server of shared limits that does not answer.
    """

    model: str
    quota: Quota
    demand: Demand
    cell: int = 0
    id: str = ""
    shared_cell: int | None = None
    wait_seconds: float = 0.0
    warning: str = ""


@final
@frozen_in_types(kw_only=True, eq=False, repr=False)
class ActualUsage(Value):
    """The usage of a finished call: whether the request counts, its tokens, and the limits that the server reported."""

    requests: int = 1
    tokens: int = 0
    reported_limits: RateLimits | None = None


GRACE_S: Final = 1.0
"""Seconds after a call's deadline at which an unreleased permit expires."""

LONGEST_S: Final = 3600.0
"""Seconds after which an unreleased permit expires if the call has no deadline."""


def lease_seconds(deadline: float, now: float) -> float:
    """Return for how many seconds a call may hold its permit: until its deadline, and a little longer.

    >>> lease_seconds(10.0, now=4.0), lease_seconds(inf, now=4.0)
    (7.0, 3600.0)
    """
    return max(deadline - now, 0.0) + GRACE_S if deadline < inf else LONGEST_S


def quota_of(model: ModelConfig) -> Quota:
    """Return the quota that a model's configuration sets.

    >>> quota_of(ModelConfig(provider="lm-studio", concurrency=2))
    Quota(concurrency=2)
    """
    return Quota(concurrency=model.concurrency, requests=model.requests_per_minute, tokens=model.tokens_per_minute)


# The rules: check, reserve, correct by the actual usage.


def has_free_slot(state: LimiterState, quota: Quota) -> bool:
    """Return whether one more call may be in flight."""
    return quota.concurrency is None or state.in_flight < quota.concurrency


def wait_time(state: LimiterState, quota: Quota, demand: Demand, now: float, ahead: Demand = NO_DEMAND) -> float:
    """Return how many seconds the rates make a call wait behind those ``ahead`` of it; infinite is never.

    >>> full = with_reservation(LimiterState(), Quota(requests=1), Demand(), now=0.5)
    >>> wait_time(full, Quota(requests=1), Demand(), now=10.5), wait_time(full, Quota(requests=2), Demand(), now=10.5)
    (50.5, 0.0)
    """
    return max(
        _wait_time(state.requests, quota.requests, demand.requests, ahead.requests, now),
        _wait_time(state.tokens, quota.tokens, demand.tokens, ahead.tokens, now),
    )


def _wait_time(meter: Meter, limit: int | None, amount: int, ahead: int, now: float) -> float:
    exhausted = now < meter.resets_at and (meter.remaining <= 0 or amount + ahead > meter.remaining)
    until_reset = meter.resets_at - now if exhausted else 0.0
    if limit is None or amount == 0:
        return until_reset
    if meter.limit is not None:  # never below the amount itself: the server rejects what exceeds its whole limit
        limit = min(limit, max(meter.limit, amount))
    if amount > limit:
        return inf
    return max(until_reset, seconds_until_all_fit(meter.cells, limit, amount + ahead, now))


def with_reservation(state: LimiterState, quota: Quota, demand: Demand, now: float) -> LimiterState:
    """Reserve a slot and the demand of a call. Requires ``has_free_slot`` and a ``wait_time`` of 0."""
    return LimiterState(
        in_flight=state.in_flight + (quota.concurrency is not None),
        requests=_reserve(state.requests, quota.requests, demand.requests, now),
        tokens=_reserve(state.tokens, quota.tokens, demand.tokens, now),
    )


def _reserve(meter: Meter, limit: int | None, amount: int, now: float) -> Meter:
    reported = now < meter.resets_at
    if limit is None and not reported:
        return meter
    cells = meter.cells if limit is None else add(drop_before(meter.cells, floor(now) - SECONDS), floor(now), amount)
    return evolve(meter, cells=cells, remaining=meter.remaining - amount if reported else meter.remaining)


def with_actual_usage(state: LimiterState, permit: Permit, usage: ActualUsage) -> LimiterState:
    """Release a permit: free its slot, replace the estimate in the second of the reservation, note reported limits.

    >>> permit = Permit(model="m", quota=Quota(tokens=100), demand=Demand(tokens=80), cell=5)
    >>> before = with_reservation(LimiterState(), permit.quota, permit.demand, now=5.5)
    >>> with_actual_usage(before, permit, ActualUsage(tokens=30)).tokens.cells
    ((5, 30),)
    """
    requests = _correct(state.requests, permit.cell, usage.requests - permit.demand.requests)
    tokens = _correct(state.tokens, permit.cell, usage.tokens - permit.demand.tokens)
    if (reported := usage.reported_limits) is not None:
        requests = with_reported_limits(requests, reported.requests, reported.at)
        tokens = with_reported_limits(tokens, reported.tokens, reported.at)
    in_flight = state.in_flight - (permit.quota.concurrency is not None)
    return LimiterState(in_flight=in_flight, requests=requests, tokens=tokens)


def _correct(meter: Meter, cell: int, difference: int) -> Meter:
    return evolve(meter, cells=add(meter.cells, cell, difference)) if difference and meter.cells else meter


def with_reported_limits(meter: Meter, reported: Allowance, at: float) -> Meter:
    """Note what a server reported at a time, for a day at most; a report older than the last one is ignored.

    >>> with_reported_limits(Meter(), Allowance(limit=50, remaining=0, reset=2.0), at=10.0).resets_at
    12.0
    """
    if at < meter.reported_at or reported == _NOT_REPORTED:
        return meter
    limit, remaining, reset = reported.limit or meter.limit, reported.remaining, reported.reset
    if remaining is None or reset is None:
        return evolve(meter, limit=limit, reported_at=at)
    return evolve(meter, limit=limit, remaining=remaining, resets_at=at + min(reset, caps.PAUSE_S), reported_at=at)
