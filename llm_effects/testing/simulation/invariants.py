"""Invariants: what must hold at every step of a simulated run, and the services that watch each step."""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final, Literal, TypeAlias, final

import anyio
from attrs import define, evolve, field, frozen
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects.config.routing import BreakerConfig
from llm_effects.effects.call import Call
from llm_effects.effects.effect import result_of
from llm_effects.effects.env import Hedges, Ledger, Limits, LLMEnv, Prices, Retries
from llm_effects.limits.budgets import Account, Hold, accounts_of
from llm_effects.limits.circuit_breaker import BreakerPermit
from llm_effects.limits.quotas import NO_DEMAND, ActualUsage, Demand, Permit, Quota, quota_of
from llm_effects.policies.coalescing import flights_here
from llm_effects.stores.limits.memory import LEAST_S
from llm_effects.testing.scripted import EPOCH
from llm_effects.testing.simulation.world import Scenario
from llm_effects.values.errors import LLMError
from llm_effects.values.records import LedgerRow
from llm_effects.values.responses import Usage

Invariant: TypeAlias = Literal[
    "deadline",  # no call, and no attempt, outlives its deadline
    "reservation",  # no model is asked without a permit, an admission, and money held where a budget applies
    "budget",  # no budget is overspent, by the bills of the models
    "messages",  # no message of a conversation is lost, doubled or changed
    "events",  # a stream starts once, ends once, and has no event after its last
    "text",  # the pieces of a stream are its answer: none doubled, lost or left out
    "breaker",  # an open breaker admits only forced calls, a half-open one a single probe
    "limits",  # calls in flight, requests and tokens of any minute stay within the limits
    "cost",  # the cost of a call is the sum of its attempts, and each attempt is in the ledger once
    "released",  # every task, permit, hold and exchange is released
    "cache",  # an answer belongs to its question
    "tools",  # no tool call runs twice
    "healthy",  # a healthy model is found in time
    "defect",  # nothing raises
]
"""The name of an invariant."""

MINUTE_S: Final = 60.0
"""The stretch of time that limits of a minute count, in seconds."""

EPSILON: Final = 1e-6
"""How far two times may differ that are the same, in seconds."""

CALLER: Final[ContextVar[int]] = ContextVar("llm_effects_simulated_caller", default=-1)
"""The number of the caller that runs in this task."""


@final
@frozen
class Violation:
    """An invariant that was broken, ``at`` a time in seconds since the start, and what was seen."""

    invariant: Invariant
    at: float
    detail: str

    def __str__(self) -> str:
        return f"{self.invariant} at {self.at:.3f} s: {self.detail}"


NO_USAGE: Final = Usage(input_tokens=0, output_tokens=0)
"""What a server bills for a call that it rejects."""


@final
@define(eq=False)
class Exchange:
    """One call of a model, as its server sees it: ``usage`` is what the server bills."""

    call: Call
    caller: int
    began: float
    accounts: tuple[Account, ...] = ()
    ended: float | None = None
    sent: bool = True
    usage: Usage = NO_USAGE

    @property
    def model(self) -> str:
        """The model that was asked."""
        return self.call.model


@final
@define(eq=False)
class Admission:
    """A call that a circuit breaker admitted; ``probing`` while it is the probe of a half-open one."""

    model: str
    permit: BreakerPermit
    probing: bool


def simulated_now() -> datetime:
    """Return the wall time of a simulation, which goes with the clock of its event loop."""
    return EPOCH + timedelta(seconds=anyio.current_time())


@final
@define(eq=False)
class Watch:
    """All that was seen of a run, and the invariants that it broke."""

    scenario: Scenario
    prices: Prices
    violations: list[Violation] = field(factory=list[Violation])
    exchanges: list[Exchange] = field(factory=list[Exchange])
    rows: list[LedgerRow] = field(factory=list[LedgerRow])
    open: Counter[str] = field(factory=Counter[str])
    permits: Counter[str] = field(factory=Counter[str])
    admitted: dict[int, Admission] = field(factory=dict[int, "Admission"])
    holds: dict[str, Hold] = field(factory=dict[str, Hold])
    closed_since: dict[str, float] = field(factory=dict[str, float])
    _asked: Counter[str] = field(factory=Counter[str])
    _billed: Counter[str] = field(factory=Counter[str])  # nanodollars by account
    _minutes: defaultdict[str, deque[Exchange]] = field(factory=lambda: defaultdict[str, deque[Exchange]](deque))

    def report(self, invariant: Invariant, detail: str) -> None:
        """Record a broken invariant."""
        self.violations.append(Violation(invariant, anyio.current_time(), detail))

    def expect(self, invariant: Invariant, holds: object, detail: str) -> None:
        """Record a broken invariant, unless it holds."""
        if not holds:
            self.report(invariant, detail)

    def begin(self, call: Call) -> Exchange:
        """Check all that must hold when a model is asked."""
        now, config = anyio.current_time(), self.scenario.config
        exchange = Exchange(call, CALLER.get(), now, accounts_of(config.budgets, call.request, simulated_now()))
        self.expect("deadline", now <= call.deadline + EPSILON, f"{call.model} was asked after the deadline")
        self._check_reservations(exchange)
        self._check_limits(exchange, now)
        self.exchanges.append(exchange)
        self.open[call.model] += 1
        self._asked[call.id] += 1
        asked, most = self._asked[call.id], config.routing.max_attempts
        self.expect("limits", asked <= most, f"a call made {asked} attempts, of at most {most}")
        return exchange

    def _check_reservations(self, exchange: Exchange) -> None:
        model = exchange.call.model
        needed = self.open[model] + 1
        self.expect("reservation", self.permits[model] >= needed, f"{model} was asked without a permit")
        if self.scenario.config.routing.breaker.enabled:
            admitted = sum(each.model == model for each in self.admitted.values())
            self.expect("reservation", admitted >= needed, f"{model} was asked past its circuit breaker")
        if self.is_free(model):
            return
        for account in exchange.accounts:
            held = sum(account in hold.accounts for hold in self.holds.values())
            charged = [each for each in self.running() if account in each.accounts and not self.is_free(each.model)]
            enough = held > len(charged)
            self.expect("reservation", enough, f"{model} was asked with no money held in {account.budget}")

    def is_free(self, model: str) -> bool:
        """Return whether a model costs nothing, so that no budget holds money for it."""
        return self.prices.cost(model, Usage(input_tokens=1, output_tokens=1), simulated_now()).usd == 0

    def running(self) -> Iterator[Exchange]:
        """Yield the exchanges that have not ended."""
        return (each for each in reversed(self.exchanges) if each.ended is None)

    def _check_limits(self, exchange: Exchange, now: float) -> None:
        model, minute = exchange.call.model, self._minutes[exchange.call.model]
        quota = quota_of(self.scenario.config.models[model])
        while minute and minute[0].began <= now - MINUTE_S:
            minute.popleft()
        minute.append(exchange)
        tokens = sum(each.usage.total_tokens or 0 for each in minute)
        counts = ((self.open[model] + 1, quota.concurrency), (len(minute), quota.requests), (tokens, quota.tokens))
        for (count, limit), what in zip(counts, ("calls in flight", "requests", "tokens"), strict=True):
            self.expect("limits", limit is None or count <= limit, f"{model} has {count} {what}, of at most {limit}")

    def end(self, exchange: Exchange) -> None:
        """Check all that must hold when a model has answered, failed, or was cancelled."""
        call, now = exchange.call, anyio.current_time()
        exchange.ended = now
        self.open[call.model] -= 1
        self.expect("deadline", now <= call.deadline + EPSILON, f"an attempt at {call.model} outlived its deadline")
        if not exchange.sent:
            self._minutes[call.model].remove(exchange)
        bill = self.prices.cost(call.model, exchange.usage, simulated_now()).usd or Decimal(0)
        for account in exchange.accounts:
            self._billed[account.key] += int(bill * _NANO)
            spent = self._billed[account.key] / _NANO
            self.expect("budget", spent <= account.limit, f"{account.budget}: {spent} of {account.limit} were billed")

    def admit(self, model: str, permit: BreakerPermit, until: float | None, *, force: bool) -> None:
        """Check an admission by a breaker that was open ``until`` a time, or closed (``None``)."""
        probes = self._probes(model)
        allowed = {
            "counted": until is None,
            "probe": until is not None and until <= anyio.current_time() and not probes,
            "forced": force and until is not None,
        }
        state = "closed" if until is None else f"open until {until:g} s"
        self.expect("breaker", allowed[permit.kind], f"{model}: its breaker, {state}, admitted a {permit.kind} call")
        self.admitted[id(permit)] = Admission(model, permit, probing=permit.kind == "probe")

    def leave(self, model: str, permit: BreakerPermit) -> None:
        """Release an admission; the probe of a stream is recorded at its first content, and again at its end."""
        admission = self.admitted.get(id(permit))
        if admission is None:
            return
        mine = (each.call for each in self.running() if each.caller == CALLER.get())
        if admission.probing and any(each.sink is not None and each.model == model for each in mine):
            admission.probing = False
        else:
            del self.admitted[id(permit)]

    def _probes(self, model: str) -> int:
        return sum(each.model == model and each.probing for each in self.admitted.values())

    def refuse(self, model: str, until: float | None) -> None:
        """Check a refusal by a breaker."""
        closed = until is None or (until <= anyio.current_time() and not self._probes(model))
        self.expect("breaker", not closed, f"{model}: its breaker refused a call without a reason")


_NANO: Final = 10**9


# The services: each passes everything on, and lets the watch see it.


@final
@define(eq=False)
class WatchedLimits:
    """Limits that are watched."""

    inner: Limits
    watch: Watch
    _failures: dict[str, Outcomes] = field(factory=dict[str, "Outcomes"])

    @property
    def retries(self) -> Retries:
        """The retry budgets."""
        return self.inner.retries

    @property
    def hedges(self) -> Hedges:
        """The budget of hedges."""
        return self.inner.hedges

    def acquire(
        self, model: str, quota: Quota, demand: Demand, timeout: float, deadline: float
    ) -> Permit | FutureResult[Permit, LLMError]:
        """Acquire a permit, or wait for one."""
        answer = self.inner.acquire(model, quota, demand, timeout, deadline)
        if isinstance(answer, Permit):
            return self._granted(answer)
        return FutureResult(self._wait(answer, min(deadline, anyio.current_time() + timeout)))

    async def _wait(self, answer: FutureResult[Permit, LLMError], until: float) -> Result[Permit, LLMError]:
        permit = await result_of(answer)
        late = anyio.current_time() > until + LEAST_S + EPSILON
        self.watch.expect("deadline", not late, "a call waited for a permit past its time")
        return permit.map(self._granted)

    def _granted(self, permit: Permit) -> Permit:
        self.watch.permits[permit.model] += 1
        return permit

    async def release(self, permit: Permit, usage: ActualUsage) -> None:
        """Release a permit."""
        self.watch.permits[permit.model] -= 1
        self.watch.expect("released", self.watch.permits[permit.model] >= 0, f"{permit.model}: released twice")
        await self.inner.release(permit, usage)

    def admit(
        self, model: str, deadline: float, *, force: bool
    ) -> BreakerPermit | FutureResult[BreakerPermit, LLMError]:
        """Ask the breaker for admission."""
        until = self.inner.opened().get(model)
        answer = self.inner.admit(model, deadline, force=force)
        if isinstance(answer, BreakerPermit):
            own = evolve(answer)  # an object of its own, by which its record is found
            self.watch.admit(model, own, until, force=force)
            return own
        self.watch.refuse(model, until)
        return answer

    async def record(self, model: str, config: BreakerConfig, permit: BreakerPermit, *, failed: bool | None) -> None:
        """Record an outcome with the breaker."""
        self.watch.leave(model, permit)
        was_open = model in self.inner.opened()
        await self.inner.record(model, config, permit, failed=failed)
        until = self.inner.opened().get(model)
        is_open = until is not None
        if until is not None and not was_open:
            left = until - anyio.current_time()
            self.watch.expect("breaker", left >= config.open_seconds - EPSILON, f"{model}: open for {left:g} s only")
        if was_open and not is_open:
            self.watch.closed_since[model] = anyio.current_time()
        seen = self._failures.setdefault(model, Outcomes())
        due = seen.note(config, permit, anyio.current_time(), failed=failed)
        self.watch.expect("breaker", is_open or not due, f"{model}: {config.min_attempts} failures open no breaker")

    def opened(self) -> Mapping[str, float]:
        """Return the open breakers."""
        return self.inner.opened()

    def aclose(self) -> Awaitable[None]:
        """Close the limits."""
        return self.inner.aclose()


@final
@define(eq=False)
class Outcomes:
    """The newest outcomes of a model, while its breaker is closed."""

    epoch: int = -1
    newest: list[tuple[float, bool]] = field(factory=list[tuple[float, bool]])

    def note(self, config: BreakerConfig, permit: BreakerPermit, now: float, *, failed: bool | None) -> bool:
        """Record an outcome; return whether there are now enough failures in a row to open the breaker."""
        if permit.epoch > self.epoch:
            self.epoch, self.newest = permit.epoch, []
        if permit.kind != "counted" or permit.epoch < self.epoch or failed is None:
            return False
        self.newest.append((now, failed))
        longest = 2 * config.window_seconds  # cells make the window a little longer
        self.newest = [each for each in self.newest if each[0] > now - longest]
        recent = [at for at, _ in self.newest if at > now - config.window_seconds]
        return len(recent) >= config.min_attempts and all(each for _, each in self.newest)


@final
@define(eq=False)
class WatchedLedger:
    """A ledger that is watched."""

    inner: Ledger
    watch: Watch

    def record(self, row: LedgerRow) -> None:
        """Record a row."""
        self.watch.rows.append(row)
        self.inner.record(row)

    def rows(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        before: LedgerRow | None = None,
        newest: int | None = None,
    ) -> FutureResult[Sequence[LedgerRow], LLMError]:
        """Return rows."""
        return self.inner.rows(since, until, before=before, newest=newest)

    def reserve(self, hold: Hold) -> FutureResult[Hold, LLMError]:
        """Reserve money."""

        async def reserve() -> Result[Hold, LLMError]:
            reserved = await result_of(self.inner.reserve(hold))
            if is_successful(reserved):
                self.watch.holds[hold.id] = hold
            return reserved

        return FutureResult(reserve())

    async def commit(self, hold: Hold, cost: Decimal) -> None:
        """Replace a hold by the actual cost."""
        released = self.watch.holds.pop(hold.id, None)
        self.watch.expect("released", released is not None, f"the hold {hold.id} was committed twice, or never made")
        await self.inner.commit(hold, cost)

    def aclose(self) -> Awaitable[None]:
        """Close the ledger."""
        return self.inner.aclose()


# The end of a run: nothing may be left.

LATER_S: Final = 2 * 86_400.0
"""How long after a run the limits are tried once more, in seconds: by then every pause of a server is over."""


async def check_released(watch: Watch, env: LLMEnv) -> None:
    """Check that nothing is held any more, and that every slot of every model can be taken again."""
    left = {
        "exchanges": sum(watch.open.values()),
        "permits": sum(watch.permits.values()),
        "admissions": len(watch.admitted),
        "holds": len(watch.holds),
        "calls in flight": sum(env.health.in_flight().values()),
        "flights": len(flights_here()),
    }
    for what, count in left.items():
        watch.expect("released", not count, f"{count} {what} are left")
    watch.expect("cost", len(watch.rows) == len(watch.exchanges), _uncounted(watch))
    await anyio.sleep(LATER_S)
    for name, model in env.config.models.items():
        quota = Quota(concurrency=model.concurrency or 1)
        for _ in range(quota.concurrency or 1):
            permit = env.limits.acquire(name, quota, NO_DEMAND, 0.0, math.inf)
            free = isinstance(permit, Permit) or is_successful(await result_of(permit))
            watch.expect("released", free, f"{name}: a slot is lost")


def _uncounted(watch: Watch) -> str:
    return f"{len(watch.exchanges)} attempts were made, and {len(watch.rows)} are in the ledger"
