"""How much may be asked of a model, as plain values: what is under way, what the last minute took, how long to wait.

What one is about to ask is reserved before, by an estimate, and put right after. A server's own word on what is left
is heeded besides: it counts what others use of the same key.
"""

from math import floor, inf
from typing import Final, TypeAlias, final

from attrs import evolve, field, frozen

from llm_effects.config.models import ModelConfig

# What happened lately, counted in cells of time: a rolling window that is exact to one cell and never too generous.
#
# A window of ``count`` cells holds the cell of now and ``count`` full ones before it: whatever lies within any stretch of
# ``count`` cells is counted together.


Cells: TypeAlias = tuple[tuple[int, int], ...]
"""Amounts by the number of their cell, oldest first."""

SECONDS: Final = 60
"""Cells of one second in the window of a minute."""


def fresh(cells: Cells, oldest: int) -> Cells:
    """Drop what lies before a cell.

    >>> fresh(((1, 5), (7, 2)), 7)
    ((7, 2),)
    """
    if not cells or cells[0][0] >= oldest:
        return cells
    return tuple(each for each in cells if each[0] >= oldest)


def total(cells: Cells) -> int:
    """Add all amounts up."""
    return sum(amount for _, amount in cells)


def added(cells: Cells, cell: int, amount: int) -> Cells:
    """Count an amount, or take some back with a negative one; of a cell that is gone there is nothing to take.

    >>> added(((1, 5),), 7, 2), added(((1, 5),), 1, -3), added(((7, 2),), 1, -3)
    (((1, 5), (7, 2)), ((1, 2),), ((7, 2),))
    """
    if not cells or cells[-1][0] < cell:
        return (*cells, (cell, amount)) if amount > 0 else cells
    if cells[-1][0] == cell:  # nearly always: spares going through them all
        return (*cells[:-1], (cell, max(0, cells[-1][1] + amount)))
    return tuple((at, max(0, held + amount) if at == cell else held) for at, held in cells)


def until_it_fits(cells: Cells, limit: int, amount: int, now: float) -> float:
    """Tell in how many seconds an amount fits into the minute, if nobody else comes; infinite where it never does.

    >>> until_it_fits(((0, 3), (10, 2)), limit=5, amount=1, now=20.5)
    40.5
    >>> until_it_fits((), limit=5, amount=6, now=0.0)
    inf
    """
    if amount > limit:
        return inf
    cells = fresh(cells, floor(now) - SECONDS)
    used, wait = total(cells), 0.0
    for cell, held in cells:
        if used + amount <= limit:
            break
        used -= held
        wait = cell + SECONDS + 1 - now
    return wait


def until_all_fit(cells: Cells, limit: int, amount: int, now: float) -> float:
    """Tell the least time for more than a minute can take: what is too much for one comes a minute later, and so on.

    >>> until_all_fit((), limit=5, amount=11, now=0.0)
    120.0
    """
    minutes, rest = divmod(amount - 1, limit)
    return minutes * float(SECONDS) + until_it_fits(cells, limit, rest + 1, now)


@final
@frozen(kw_only=True)
class Quota:
    """How much is allowed: calls at once, requests and tokens in any minute; ``None`` is without a limit."""

    concurrency: int | None = None
    requests: int | None = None
    tokens: int | None = None

    @property
    def free(self) -> bool:
        """Whether there is no limit at all."""
        return self.concurrency is None and self.requests is None and self.tokens is None


@final
@frozen(kw_only=True)
class Allowance:
    """What a server said of requests or of tokens: its limit, what is left of it, and for how many seconds."""

    limit: int | None = None
    remaining: int | None = None
    reset: float | None = None


@final
@frozen(kw_only=True)
class RateLimits:
    """What a server said of its limits beside an answer, and when, on the clock of ``anyio.current_time()``."""

    requests: Allowance = field(factory=Allowance)
    tokens: Allowance = field(factory=Allowance)
    at: float = 0.0


@final
@frozen(kw_only=True)
class Demand:
    """What is asked for, or what all those ask for who came before."""

    requests: int = 1
    tokens: int = 0


NOTHING: Final = Demand(requests=0)


@final
@frozen(kw_only=True)
class Meter:
    """What the last minute took of one thing, and what a server said of it: so much ``left``, ``until`` then."""

    cells: Cells = ()
    limit: int | None = None
    left: int = 0
    until: float = -inf
    reported: float = -inf


@final
@frozen(kw_only=True)
class LimiterState:
    """How things stand with one model; ``running`` are those calls whose number is limited."""

    running: int = 0
    requests: Meter = Meter()
    tokens: Meter = Meter()


@final
@frozen(kw_only=True)
class Permit:
    """What one got in with, to be given back once: what it reserved, in which second, after ``waited`` seconds.

    Where others share the count, ``id`` is who is in and ``cell_there`` the second by their clock. ``note`` tells that
    something was not as it should be.
    """

    model: str
    quota: Quota
    need: Demand
    cell: int = 0
    id: str = ""
    cell_there: int | None = None
    waited: float = 0.0
    note: str = ""


@final
@frozen(kw_only=True)
class ActualUsage:
    """What came of it: whether the request counts, how many tokens it took, and what the server said of its limits."""

    requests: int = 1
    tokens: int = 0
    said: RateLimits | None = None


GRACE_S: Final = 1.0
"""How long after its call's deadline a place is free again if nobody gave it back, in seconds."""

LONGEST_S: Final = 3600.0
"""The same for a call without a deadline."""


def lease(deadline: float, now: float) -> float:
    """Tell for how many seconds a call may hold what it takes now: as long as it may last, and a little more.

    >>> lease(10.0, now=4.0), lease(inf, now=4.0)
    (7.0, 3600.0)
    """
    return max(deadline - now, 0.0) + GRACE_S if deadline < inf else LONGEST_S


def quota_of(model: ModelConfig) -> Quota:
    """Give what a model's configuration allows.

    >>> quota_of(ModelConfig(provider="lm-studio", concurrency=2))
    Quota(concurrency=2, requests=None, tokens=None)
    """
    return Quota(concurrency=model.concurrency, requests=model.requests_per_minute, tokens=model.tokens_per_minute)


def has_place(standing: LimiterState, quota: Quota) -> bool:
    """Whether one more may be under way."""
    return quota.concurrency is None or standing.running < quota.concurrency


def pause(standing: LimiterState, quota: Quota, need: Demand, now: float, ahead: Demand = NOTHING) -> float:
    """Tell how many seconds the rates make one wait behind those who are ``ahead``; infinite is never.

    >>> full = reserved(LimiterState(), Quota(requests=1), Demand(), now=0.5)
    >>> pause(full, Quota(requests=1), Demand(), now=10.5), pause(full, Quota(requests=2), Demand(), now=10.5)
    (50.5, 0.0)
    """
    return max(
        _pause(standing.requests, quota.requests, need.requests, ahead.requests, now),
        _pause(standing.tokens, quota.tokens, need.tokens, ahead.tokens, now),
    )


def _pause(meter: Meter, limit: int | None, amount: int, ahead: int, now: float) -> float:
    spent = now < meter.until and (meter.left <= 0 or amount + ahead > meter.left)
    told = meter.until - now if spent else 0.0
    if limit is None or amount == 0:
        return told
    if meter.limit is not None:  # what is too much for it altogether, the server itself will refuse
        limit = min(limit, max(meter.limit, amount))
    return inf if amount > limit else max(told, until_all_fit(meter.cells, limit, amount + ahead, now))


def reserved(standing: LimiterState, quota: Quota, need: Demand, now: float) -> LimiterState:
    """Take a place and what is needed: only where ``has_place``, and after no ``pause``."""
    return LimiterState(
        running=standing.running + (quota.concurrency is not None),
        requests=_taken(standing.requests, quota.requests, need.requests, now),
        tokens=_taken(standing.tokens, quota.tokens, need.tokens, now),
    )


def _taken(meter: Meter, limit: int | None, amount: int, now: float) -> Meter:
    told = now < meter.until
    if limit is None and not told:
        return meter
    cells = meter.cells if limit is None else added(fresh(meter.cells, floor(now) - SECONDS), floor(now), amount)
    return evolve(meter, cells=cells, left=meter.left - amount if told else meter.left)


def with_actual_usage(standing: LimiterState, ticket: Permit, bill: ActualUsage) -> LimiterState:
    """Give a place back, put the estimate right in the second in which it was made, and heed the server's word.

    >>> ticket = Permit(model="m", quota=Quota(tokens=100), need=Demand(tokens=80), cell=5)
    >>> before = reserved(LimiterState(), ticket.quota, ticket.need, now=5.5)
    >>> with_actual_usage(before, ticket, ActualUsage(tokens=30)).tokens.cells
    ((5, 30),)
    """
    requests = _put_right(standing.requests, ticket.cell, bill.requests - ticket.need.requests)
    tokens = _put_right(standing.tokens, ticket.cell, bill.tokens - ticket.need.tokens)
    if bill.said is not None:
        requests = with_reported_limits(requests, bill.said.requests, bill.said.at)
        tokens = with_reported_limits(tokens, bill.said.tokens, bill.said.at)
    running = standing.running - (ticket.quota.concurrency is not None)
    return LimiterState(running=running, requests=requests, tokens=tokens)


def _put_right(meter: Meter, cell: int, by: int) -> Meter:
    return evolve(meter, cells=added(meter.cells, cell, by)) if by and meter.cells else meter


def with_reported_limits(meter: Meter, said: Allowance, at: float) -> Meter:
    """Take in what a server said at a time; older words than the last say nothing.

    >>> with_reported_limits(Meter(), Allowance(limit=50, remaining=0, reset=2.0), at=10.0).until
    12.0
    """
    if at < meter.reported or said == _SILENCE:
        return meter
    if said.remaining is None or said.reset is None:
        return evolve(meter, limit=said.limit or meter.limit, reported=at)
    return evolve(meter, limit=said.limit or meter.limit, left=said.remaining, until=at + said.reset, reported=at)


_SILENCE: Final = Allowance()
