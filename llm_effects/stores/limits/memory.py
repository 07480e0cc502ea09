"""Limits and circuit breakers in this process.

Times are on the clock of an event loop, so each loop counts for itself.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping
from math import inf, isfinite
from threading import Event
from typing import Final, TypeAlias, final

import anyio
from anyio import NoEventLoopError
from anyio.lowlevel import checkpoint_if_cancelled
from attrs import define, evolve, field
from returns.future import FutureResult
from returns.result import Failure, Result, Success

from llm_effects.config.routing import BreakerConfig, RetryBudgetConfig
from llm_effects.effects.env import Hedges, Retries
from llm_effects.effects.tasks import loop_clock
from llm_effects.limits.circuit_breaker import (
    FIRST_PERMIT,
    Breaker,
    BreakerPermit,
    Refusal,
    closed_permit,
    record_outcome,
    request_permit,
)
from llm_effects.limits.quotas import (
    NO_DEMAND,
    ActualUsage,
    Demand,
    LimiterState,
    Permit,
    Quota,
    has_free_slot,
    lease_seconds,
    wait_time,
    with_actual_usage,
    with_reservation,
)
from llm_effects.stores.health import LoopLocal
from llm_effects.values.errors import LLMError, ModelUnavailable, RateLimitExceeded

# Budgets of hedges and retries: token buckets.


BURST: Final = 10.0
"""Hedges that may be saved up: a model that turns slow after a quiet hour is not hedged for an hour's worth."""

_ROUNDING: Final = 1e-9  # ten tenths add up to a little less than one


@final
@define(eq=False, repr=False)
class MemoryHedges:
    """A token bucket of hedges, empty at first: every call adds a little and every hedge removes one."""

    _saved: float = 0.0

    def earn(self, share: float) -> None:
        """Add a call's share of a hedge.

        >>> budget = MemoryHedges()
        >>> for _ in range(3):
        ...     budget.earn(0.5)
        >>> budget.spend(), budget.spend()
        (True, False)
        """
        self._saved = min(self._saved + share, BURST)

    def spend(self) -> bool:
        """Remove one hedge; return whether there was a whole one."""
        if self._saved < 1.0 - _ROUNDING:
            return False
        self._saved -= 1.0
        return True


@final
@define(eq=False, repr=False)
class MemoryRetries:
    """A token bucket of retries for each server and key, full at first.

    A retry storm is made by one process, so no process needs to share its buckets.
    """

    _left: dict[Hashable, int] = field(factory=dict[Hashable, int], init=False, repr=False)

    def afford(self, server: Hashable, budget: RetryBudgetConfig, cost: int) -> bool:
        """Remove the cost of a retry; return whether there was enough.

        >>> retries, budget = MemoryRetries(), RetryBudgetConfig(tokens=20)
        >>> [retries.afford("server", budget, 14) for _ in range(2)]
        [True, False]
        """
        left = self._left.get(server, budget.tokens) - cost
        if left < 0:
            return False
        self._left[server] = left
        return True

    def repay(self, server: Hashable, budget: RetryBudgetConfig, amount: int) -> None:
        """Add some tokens, up to the full bucket."""
        if self._left and server in self._left:
            self._left[server] = min(budget.tokens, self._left[server] + amount)


# The queue of calls that wait for one model.


TryEnter: TypeAlias = Callable[[Demand], Awaitable[Permit | float]]
"""Asks for a permit, behind the demand of the calls ahead.

The result is a permit, or the seconds until it is worth asking again: infinite if only a release helps. With calls
ahead it is never a permit, but the least time to wait.
"""

LEAST_S: Final = 0.001
"""The least time to wait, in seconds: a shorter one may round to zero on a clock of floats."""


@final
@define(eq=False, repr=False)
class _Waiter:
    demand: Demand
    wake: anyio.Event = field(factory=anyio.Event)


@final
@define(eq=False, repr=False)
class FairQueue:
    """A first-come, first-served queue: only the first waiter asks for a permit.

    ``poll`` is how many seconds pass until it asks again for a permit that only a release can free: where many
    processes share a limit, not every release wakes this queue.
    """

    poll: float = inf
    _waiters: OrderedDict[int, _Waiter] = field(factory=OrderedDict[int, _Waiter], init=False)
    _ahead: Demand = field(default=NO_DEMAND, init=False)

    @property
    def waiting(self) -> int:
        """The number of waiters."""
        return len(self._waiters)

    def wake_first(self) -> None:
        """Wake the first waiter, so that it asks again."""
        if self._waiters:
            next(iter(self._waiters.values())).wake.set()

    async def wait(self, demand: Demand, ask: TryEnter, timeout: float, deadline: float = inf) -> Permit | float:
        """Wait for a permit for up to ``timeout`` seconds, and not past ``deadline``.

        Return the permit, or how many seconds it would have taken: at once if that is known, infinite if it is not.
        """
        started, waiter = anyio.current_time(), _Waiter(demand)
        until = min(started + timeout, deadline)
        ahead = self._join(waiter)
        try:
            answer = await ask(ahead)
            if isinstance(answer, Permit) or until - started < answer < inf:
                return answer
            answer = await self._ask_when_first(waiter, ask, until, answer if ahead == NO_DEMAND else inf)
        finally:
            self._leave(waiter)
        return evolve(answer, wait_seconds=anyio.current_time() - started) if isinstance(answer, Permit) else answer

    async def _ask_when_first(self, waiter: _Waiter, ask: TryEnter, until: float, wait: float) -> Permit | float:
        while True:
            left = until - anyio.current_time()
            if left <= 0 or left < wait < inf:
                return wait
            with anyio.move_on_after(max(LEAST_S, min(wait, left, self.poll))):
                await waiter.wake.wait()
            await checkpoint_if_cancelled()  # a waiter cancelled on wake-up takes no permit
            waiter.wake = anyio.Event()  # before asking: a release meanwhile sets the new one
            wait = inf
            if next(iter(self._waiters.values())) is waiter:
                answer = await ask(NO_DEMAND)
                if isinstance(answer, Permit):
                    return answer
                wait = answer

    def _join(self, waiter: _Waiter) -> Demand:
        ahead = self._ahead
        self._waiters[id(waiter)] = waiter
        self._ahead = _plus(ahead, waiter.demand, 1)
        return ahead

    def _leave(self, waiter: _Waiter) -> None:
        del self._waiters[id(waiter)]
        self._ahead = _plus(self._ahead, waiter.demand, -1)
        self.wake_first()


def _plus(ahead: Demand, demand: Demand, sign: int) -> Demand:
    return evolve(ahead, requests=ahead.requests + sign * demand.requests, tokens=ahead.tokens + sign * demand.tokens)


# The state of each model in one event loop: its permits, its queue and its breaker.


_UNLIMITED: Final = LimiterState()
"""The state of a model without limits, whose server has reported none either."""


@final
@define(eq=False, repr=False)
class ModelState:
    """The state of one model. ``shut_until`` is what this process knows of a breaker that processes share.

    ``opened`` is set once a breaker has opened, and never cleared.
    """

    model: str
    queue: FairQueue
    opened: Event
    limiter: LimiterState = field(default=_UNLIMITED, init=False)
    breaker: Breaker = field(factory=Breaker, init=False)
    shut_until: float | None = field(default=None, init=False)
    _unlimited: Permit | None = field(default=None, init=False)
    _clock: Callable[[], float] = field(factory=loop_clock, init=False)

    def ask(self, quota: Quota, demand: Demand, ahead: Demand = NO_DEMAND) -> Permit | float:
        """Ask for a permit, as ``TryEnter`` does; nothing is awaited between taking and returning it."""
        if self.limiter is _UNLIMITED and quota.unlimited:
            return self._unlimited_permit(quota, demand)
        now = self._clock()
        wait = wait_time(self.limiter, quota, demand, now, ahead)
        if wait or ahead.requests or not has_free_slot(self.limiter, quota):
            return wait or inf
        self.limiter = with_reservation(self.limiter, quota, demand, now)
        return Permit(model=self.model, quota=quota, demand=demand, cell=int(now // 1))

    def _unlimited_permit(self, quota: Quota, demand: Demand) -> Permit:
        """Return a permit that counts for nothing: the same one for every call, as making one takes a microsecond."""
        known = self._unlimited
        if known is None or known.quota is not quota or known.demand is not demand:
            known = self._unlimited = Permit(model=self.model, quota=quota, demand=demand)
        return known

    def undo(self, permit: Permit) -> None:
        """Return an unused permit, as if it had never been acquired."""
        self.limiter = with_actual_usage(self.limiter, permit, ActualUsage(requests=0))

    def release(self, permit: Permit, usage: ActualUsage) -> None:
        """Release a permit, correct what was reserved, and wake the first waiter."""
        self.limiter = with_actual_usage(self.limiter, permit, usage)
        self.queue.wake_first()

    def admit(self, deadline: float, *, force: bool) -> BreakerPermit | Refusal:
        """Ask this process's breaker for a permit."""
        if self.breaker.open_until is None:
            return closed_permit(self.breaker)
        now = self._clock()
        self.breaker, answer = request_permit(self.breaker, now, lease_seconds(deadline, now), force=force)
        return answer

    def record(self, config: BreakerConfig, permit: BreakerPermit, *, failed: bool | None) -> None:
        """Record the outcome of a permitted call in this process's breaker."""
        self.breaker = record_outcome(self.breaker, config, permit, self._clock(), failed=failed)
        if self.breaker.open_until is not None:
            self.opened.set()

    def shut(self, seconds: float) -> None:
        """Note for how long a shared breaker stays open; 0 is closed."""
        self.shut_until = self._clock() + seconds if seconds else None
        if seconds:
            self.opened.set()


_NONE_OPEN: Final[Mapping[str, float]] = {}


@final
@define(eq=False, repr=False)
class ModelStates:
    """The state of each model, created on first use; each event loop has its own."""

    poll: float = inf
    _opened: Event = field(factory=Event, init=False)  # in any loop: until then no call looks for its loop's states
    _states: LoopLocal[dict[str, ModelState]] = field(
        factory=lambda: LoopLocal(dict[str, ModelState]), init=False, repr=False
    )

    def of(self, model: str) -> ModelState:
        """Return the state of a model."""
        states = self._states.get()
        state = states.get(model)
        if state is None:
            state = states[model] = ModelState(model, FairQueue(self.poll), self._opened)
        return state

    @property
    def any_opened(self) -> bool:
        """Whether any breaker has ever opened, in any loop."""
        return self._opened.is_set()

    def release(self, permit: Permit, usage: ActualUsage) -> None:
        """Release a permit, if it counts for anything."""
        if usage.reported_limits is not None or not permit.quota.unlimited:
            self.of(permit.model).release(permit, usage)

    def opened(self) -> Mapping[str, float]:
        """Return until when each open breaker stays open, by model."""
        if not self.any_opened:
            return _NONE_OPEN
        try:
            states = self._states.get()
        except NoEventLoopError:  # outside of a loop there is no clock, and no breaker is open
            return {}
        known = {name: state.shut_until or state.breaker.open_until for name, state in states.items()}
        return {name: until for name, until in known.items() if until is not None}


# The service.


@final
@define(eq=False, repr=False)
class MemoryLimits:
    """Limits and breakers of this process. No holder can die alone, so permits need no lease."""

    _states: ModelStates = field(factory=ModelStates, init=False, repr=False)
    retries: Retries = field(factory=MemoryRetries, init=False, repr=False)
    hedges: Hedges = field(factory=MemoryHedges, init=False, repr=False)

    def acquire(
        self, model: str, quota: Quota, demand: Demand, timeout: float, deadline: float
    ) -> Permit | FutureResult[Permit, LLMError]:
        """Acquire a permit, or wait for one."""
        return acquire_local(self._states.of(model), quota, demand, timeout, deadline)

    async def release(self, permit: Permit, usage: ActualUsage) -> None:
        """Release a permit, and correct what was reserved."""
        self._states.release(permit, usage)

    def admit(
        self, model: str, deadline: float, *, force: bool
    ) -> BreakerPermit | FutureResult[BreakerPermit, LLMError]:
        """Ask the model's breaker for a permit."""
        if not self._states.any_opened:
            return FIRST_PERMIT
        answer = self._states.of(model).admit(deadline, force=force)
        return FutureResult.from_failure(breaker_open(model, answer)) if isinstance(answer, Refusal) else answer

    async def record(self, model: str, config: BreakerConfig, permit: BreakerPermit, *, failed: bool | None) -> None:
        """Record the outcome of a permitted call in the model's breaker."""
        self._states.of(model).record(config, permit, failed=failed)

    def opened(self) -> Mapping[str, float]:
        """Return until when each open breaker stays open, by model."""
        return self._states.opened()

    async def aclose(self) -> None:
        """No-op."""


def acquire_local(
    state: ModelState, quota: Quota, demand: Demand, timeout: float, deadline: float
) -> Permit | FutureResult[Permit, LLMError]:
    """Acquire a permit that this process counts, or wait for one."""
    answer = 0.0 if state.queue.waiting else state.ask(quota, demand)
    return answer if isinstance(answer, Permit) else FutureResult(_wait(state, quota, demand, timeout, deadline))


async def _wait(
    state: ModelState, quota: Quota, demand: Demand, timeout: float, deadline: float
) -> Result[Permit, LLMError]:
    async def ask(ahead: Demand) -> Permit | float:
        return state.ask(quota, demand, ahead)

    answer = await state.queue.wait(demand, ask, timeout, deadline)
    if isinstance(answer, Permit):
        return Success(answer)
    return Failure(rate_limit_exceeded(state.model, quota, demand, answer))


# Errors of rejected calls. Nothing was sent, and retrying the same model does not help.


def rate_limit_exceeded(model: str, quota: Quota, demand: Demand, wait: float) -> RateLimitExceeded:
    """Build the error of a permit that comes too late: in ``wait`` seconds, infinite if unknown.

    >>> rate_limit_exceeded("gpt", Quota(requests=1), Demand(), 40.0).message
    'our own limits (1 request a minute) have room for 1 request in 40 s'
    """
    size = f" of about {_count(demand.tokens, 'token')}" if demand.tokens else ""
    request = _count(demand.requests, "request") + size
    when = f"in {wait:.3g} s" if isfinite(wait) else "in the time that there is"
    no = "" if isfinite(wait) else "no "
    return RateLimitExceeded(
        model=model,
        message=f"our own limits ({_describe(quota)}) have {no}room for {request} {when}",
        retry_after=wait if isfinite(wait) else None,
        should_retry=False,
    )


def breaker_open(model: str, refusal: Refusal) -> ModelUnavailable:
    """Build the error of a call that an open breaker rejects.

    >>> breaker_open("gpt", Refusal(12.0)).message
    'it failed too often recently: its circuit breaker is open for 12 s'
    """
    message = f"it failed too often recently: its circuit breaker is open for {refusal.retry_after:.3g} s"
    return ModelUnavailable(model=model, message=message, reason="breaker_open", retry_after=refusal.retry_after)


def _describe(quota: Quota) -> str:
    limits = (
        (quota.concurrency, "call", "at once"),
        (quota.requests, "request", "a minute"),
        (quota.tokens, "token", "a minute"),
    )
    described = ", ".join(f"{_count(number, unit)} {how}" for number, unit, how in limits if number is not None)
    return described or "as reported by the server"


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'}"
