"""A store with a fault fails the public check that is named for it; the rooms of the stores show that ours pass."""

import math
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import anyio
import pytest
from attrs import define, evolve, field
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Success

from llm_effects import Cost
from llm_effects.effects.effect import result_of
from llm_effects.limits.budgets import Hold
from llm_effects.limits.quotas import ActualUsage, Demand, Permit, Quota
from llm_effects.stores.cache.memory import MemoryCache
from llm_effects.stores.ledger.memory import MemoryLedger
from llm_effects.stores.limits.memory import MemoryLimits
from llm_effects.testing.store_checks import (
    CACHE_CHECKS,
    LEDGER_CHECKS,
    LIMITS_CHECKS,
)
from llm_effects.testing.virtual_time import Backend, run_in_virtual_time
from llm_effects.values.records import LedgerRow
from tests.fixtures.postgres_server import postgres_server
from tests.fixtures.redis_server import redis_server

__all__ = ["postgres_server", "redis_server"]


# Stores with one fault each, around one that works.


@define
class Around:
    """A store that behaves as another, but for what a subclass changes."""

    store: Any = field()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


class ForgetsTimes(Around):
    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> Any:
        return self.store.put(key, entry, None)


class KeepsNothingForEver(Around):
    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> Any:
        return self.store.put(key, entry, 0 if ttl_seconds == math.inf else ttl_seconds)


class CutsEntries(Around):
    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> Any:
        return self.store.put(key, entry[:1000], ttl_seconds)


class KeepsTheFirst(Around):
    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> Any:
        if self.store._items.get(key) is not None:
            return FutureResult.from_value(None)
        return self.store.put(key, entry, ttl_seconds)


class DeletesNothing(Around):
    def delete(self, key: str) -> Any:
        return FutureResult.from_value(True)


class CountsNothing(Around):
    def stats(self) -> Any:
        return MemoryCache().stats()


class ClearsNothing(Around):
    def clear(self) -> Any:
        return FutureResult.from_value(0)


class SharesKeys(Around):
    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> Any:
        return self.store.put(key[:1], entry, ttl_seconds)

    def get(self, key: str) -> Any:
        return self.store.get(key[:1])


CACHES = {
    ForgetsTimes: "an_entry_expires_after_its_time_to_live",
    KeepsNothingForEver: "an_infinite_time_to_live_is_for_ever",
    CutsEntries: "an_entry_is_returned_as_it_was_put",
    KeepsTheFirst: "a_second_put_replaces_the_first",
    DeletesNothing: "delete_returns_whether_there_was_an_entry",
    CountsNothing: "stats_count_hits_and_misses",
    ClearsNothing: "clear_deletes_all_entries",
    SharesKeys: "tasks_at_once_get_their_own_entries",
}


class DropsTags(Around):
    def record(self, row: LedgerRow) -> None:
        self.store.record(evolve(row, tags=()))


class RoundsCosts(Around):
    def record(self, row: LedgerRow) -> None:
        cost = Cost(Decimal(str(float(row.attempt.cost.usd or 0))))
        self.store.record(evolve(row, attempt=evolve(row.attempt, cost=cost)))


class IgnoresUntil(Around):
    def rows(self, since: Any = None, until: Any = None, **bounds: Any) -> Any:
        return self.store.rows(since, None, **bounds)


class IgnoresBefore(Around):
    def rows(self, since: Any = None, until: Any = None, *, before: Any = None, newest: Any = None) -> Any:
        one_page = before is None
        return self.store.rows(since, until, newest=newest if one_page else 0)


class RefusesNothing(Around):
    def reserve(self, hold: Hold) -> Any:
        return FutureResult.from_value(hold)


class KeepsTheEstimate(Around):
    async def commit(self, hold: Hold, cost: Decimal) -> None:
        await self.store.commit(hold, hold.amount)


class ReservesInSome(Around):
    def reserve(self, hold: Hold) -> Any:
        async def reserve() -> Any:
            for account in hold.accounts:
                result = await self.store.reserve(evolve(hold, id=hold.id + account.key, accounts=(account,)))
                if not is_successful(result):
                    return result._inner_value
            return (await FutureResult.from_value(hold))._inner_value

        return FutureResult(reserve())


class CountsInFloats(Around):
    def reserve(self, hold: Hold) -> Any:
        return self.store.reserve(evolve(hold, amount=Decimal(float(hold.amount))))


class CommitsWithoutAHold(Around):
    async def commit(self, hold: Hold, cost: Decimal) -> None:
        again = evolve(hold, id=f"{hold.id}.{id(object())}")
        await self.store.reserve(again)
        await self.store.commit(again, cost)


LEDGERS = {
    DropsTags: "a_row_is_returned_as_it_was_recorded",
    RoundsCosts: "a_row_is_returned_as_it_was_recorded",
    IgnoresUntil: "times_of_any_zone_are_compared",
    IgnoresBefore: "rows_are_paged_in_the_order_of_time",
    RefusesNothing: "tasks_at_once_never_reserve_more_than_the_limit",
    KeepsTheEstimate: "a_reservation_counts_until_it_is_committed",
    ReservesInSome: "an_amount_is_reserved_in_all_accounts_or_in_none",
    CountsInFloats: "sums_are_exact",
    CommitsWithoutAHold: "committing_twice_or_without_a_reservation_spends_once",
}


class GrantsEverything(Around):
    def acquire(self, model: str, quota: Quota, demand: Demand, timeout: float, deadline: float) -> Any:
        return Permit(model=model, quota=quota, demand=demand)


class ForgetsMinutes(Around):
    def acquire(self, model: str, quota: Quota, demand: Demand, timeout: float, deadline: float) -> Any:
        return self.store.acquire(model, evolve(quota, requests=None), demand, timeout, deadline)


class KeepsReservedTokens(Around):
    async def release(self, permit: Permit, usage: ActualUsage) -> None:
        await self.store.release(permit, evolve(usage, tokens=permit.demand.tokens))


class ForgetsDeadlines(Around):
    def acquire(self, model: str, quota: Quota, demand: Demand, timeout: float, deadline: float) -> Any:
        return self.store.acquire(model, quota, demand, timeout, math.inf)


class ServesTheLastFirst(Around):
    waiting = 0

    def acquire(self, model: str, quota: Quota, demand: Demand, timeout: float, deadline: float) -> Any:
        async def poll() -> Any:
            self.waiting += 1
            pause = 1 / self.waiting
            while True:
                permit = self.store.acquire(model, quota, demand, 0.0, deadline)
                result = Success(permit) if isinstance(permit, Permit) else await result_of(permit)
                if is_successful(result) or not timeout:
                    return result
                await anyio.sleep(pause)

        return FutureResult(poll())


class NeverOpens(Around):
    async def record(self, model: str, config: Any, permit: Any, *, failed: bool | None) -> None:
        await self.store.record(model, config, permit, failed=False)


class OpensForCancelled(Around):
    async def record(self, model: str, config: Any, permit: Any, *, failed: bool | None) -> None:
        await self.store.record(model, config, permit, failed=failed is not False)


class PaysEverything(Around):
    @property
    def retries(self) -> Any:
        return self

    def afford(self, server: object, budget: object, cost: int) -> bool:
        return True


LIMITS = {
    GrantsEverything: "calls_in_flight_are_bounded",
    ForgetsMinutes: "requests_in_a_minute_are_bounded",
    KeepsReservedTokens: "actual_tokens_replace_the_reserved_ones",
    ForgetsDeadlines: "a_permit_that_cannot_come_in_time_is_refused_at_once",
    ServesTheLastFirst: "waiting_calls_are_served_in_their_order",
    NeverOpens: "a_circuit_breaker_opens_and_lets_one_probe_through",
    OpensForCancelled: "an_outcome_that_says_nothing_opens_no_circuit_breaker",
    PaysEverything: "retries_are_paid_from_a_budget",
}


FAULTY: list[tuple[type[Around], str, Callable[[], object], tuple[Callable[[Any], Awaitable[None]], ...]]] = [
    *((kind, name, MemoryCache, CACHE_CHECKS) for kind, name in CACHES.items()),
    *((kind, name, MemoryLedger, LEDGER_CHECKS) for kind, name in LEDGERS.items()),
    *((kind, name, MemoryLimits, LIMITS_CHECKS) for kind, name in LIMITS.items()),
]


@pytest.mark.parametrize(("kind", "name", "make", "checks"), FAULTY, ids=lambda each: getattr(each, "__name__", ""))
def test_a_faulty_store_fails_the_check_of_its_fault(
    kind: type[Around],
    name: str,
    make: Callable[[], object],
    checks: tuple[Callable[[Any], Awaitable[None]], ...],
    anyio_backend: Backend,
) -> None:
    [check] = [check for check in checks if check.__name__ == name]
    with pytest.raises(AssertionError):
        run_in_virtual_time(check, kind(make()), backend=anyio_backend)


def test_every_check_has_a_name_of_its_own() -> None:
    names = [check.__name__ for check in (*CACHE_CHECKS, *LEDGER_CHECKS, *LIMITS_CHECKS)]
    assert len(set(names)) == len(names)
