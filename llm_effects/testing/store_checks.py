"""Checks that every cache, every ledger and all limits must pass.

Each check takes a store, which may already hold anything, and uses names of its own; only one of a cache clears it. A
store that misbehaves fails it with an ``AssertionError``.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from hashlib import sha256
from typing import Final, TypeAlias
from uuid import uuid4

import anyio
from anyio.lowlevel import checkpoint
from attrs import evolve
from returns.future import FutureResult
from returns.pipeline import is_successful

from llm_effects.config.routing import BreakerConfig, RetryBudgetConfig
from llm_effects.effects.effect import result_of
from llm_effects.effects.env import Cache, Ledger, Limits
from llm_effects.effects.lifecycle import Chosen, ErasableCache, ErasableLedger
from llm_effects.limits.budgets import Account, Hold
from llm_effects.limits.circuit_breaker import BreakerPermit
from llm_effects.limits.quotas import ActualUsage, Demand, Permit, Quota
from llm_effects.testing.lifecycle_checks import all_of
from llm_effects.testing.stored_chat import ensure, expect, expect_failure, value_of
from llm_effects.values.errors import BudgetExceeded, LLMError, RateLimitExceeded
from llm_effects.values.records import LedgerRow
from llm_effects.values.requests import TaskType
from llm_effects.values.responses import Attempt, Cost, Usage

CacheCheck: TypeAlias = Callable[[Cache], Awaitable[None]]
"""A check of one behaviour of a cache."""

LedgerCheck: TypeAlias = Callable[[Ledger], Awaitable[None]]
"""A check of one behaviour of a ledger."""

LimitsCheck: TypeAlias = Callable[[Limits], Awaitable[None]]
"""A check of one behaviour of limits."""

# Caches.


def _key() -> str:
    return sha256(uuid4().bytes).hexdigest()


async def an_entry_is_returned_as_it_was_put(cache: Cache) -> None:
    """Check entries with every byte, and empty ones."""
    one, two = _key(), _key()
    expect(await value_of(cache.get(one)), None, "an entry that was not put")
    await value_of(cache.put(one, bytes(range(256)) * 100, 60))
    await value_of(cache.put(two, b"", None))
    expect(await value_of(cache.get(one)), bytes(range(256)) * 100, "the entry")
    expect(await value_of(cache.get(two)), b"", "the empty entry")


async def a_second_put_replaces_the_first(cache: Cache) -> None:
    """Check that the time to live is replaced too."""
    key = _key()
    await value_of(cache.put(key, b"old", 0.05))
    await value_of(cache.put(key, b"new", 3600))
    await anyio.sleep(0.2)
    expect(await value_of(cache.get(key)), b"new", "the entry")


async def an_entry_expires_after_its_time_to_live(cache: Cache) -> None:
    """Check a time to live of less than a second; without one an entry stays."""
    short, long = _key(), _key()
    await value_of(cache.put(short, b"1", 0.05))
    await value_of(cache.put(long, b"2", None))
    await anyio.sleep(0.2)
    expect(await value_of(cache.get(short)), None, "the entry after its time")
    expect(await value_of(cache.delete(short)), False, "whether an expired entry was there to be deleted")
    expect(await value_of(cache.get(long)), b"2", "the entry that does not expire")


async def no_time_to_live_stores_nothing_and_deletes_the_old_entry(cache: Cache) -> None:
    """Check times to live of zero, below zero, and no number."""
    for nothing in (0, -1, math.nan):
        key = _key()
        await value_of(cache.put(key, b"old", 60))
        await value_of(cache.put(key, b"new", nothing))
        expect(await value_of(cache.get(key)), None, f"an entry put for {nothing} seconds")


async def an_infinite_time_to_live_is_for_ever(cache: Cache) -> None:
    """Check that infinity is accepted."""
    key = _key()
    await value_of(cache.put(key, b"1", math.inf))
    expect(await value_of(cache.get(key)), b"1", "the entry")


async def delete_returns_whether_there_was_an_entry(cache: Cache) -> None:
    """Check that an entry is deleted once."""
    key = _key()
    await value_of(cache.put(key, b"1", 60))
    expect(await value_of(cache.delete(key)), True, "whether the entry was there")
    expect(await value_of(cache.delete(key)), False, "whether it was there the second time")
    expect(await value_of(cache.get(key)), None, "the deleted entry")


async def stats_count_hits_and_misses(cache: Cache) -> None:
    """Check that each look-up is counted once."""
    before, key = await value_of(cache.stats()), _key()
    await value_of(cache.put(key, b"123", 60))
    for each in (key, _key(), key):
        await value_of(cache.get(each))
    after = await value_of(cache.stats())
    expect((after.hits - before.hits, after.misses - before.misses), (2, 1), "hits and misses")


async def tasks_at_once_get_their_own_entries(cache: Cache) -> None:
    """Check sixty tasks, each with its own entry."""
    entries = {_key(): f"{number}".encode() * 100 for number in range(60)}
    found = dict[str, bytes | None]()

    async def use(key: str) -> None:
        await value_of(cache.put(key, entries[key], 60))
        await checkpoint()
        found[key] = await value_of(cache.get(key))

    async with anyio.create_task_group() as tasks:
        for key in entries:
            tasks.start_soon(use, key)
    expect(found, entries, "the entries")


async def a_cancelled_caller_leaves_the_cache_usable(cache: Cache) -> None:
    """Check that operations work after others were cancelled in their midst."""
    key = _key()
    for _ in range(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(value_of, cache.put(key, b"1", 60))
            tasks.start_soon(value_of, cache.get(key))
            await checkpoint()
            tasks.cancel_scope.cancel()
    ensure(await value_of(cache.get(key)) in {b"1", None}, "a cancelled put stored something else")
    other = _key()  # a server may carry out a put after its caller was cancelled
    await value_of(cache.put(other, b"2", 60))
    expect(await value_of(cache.get(other)), b"2", "the entry")


async def clear_deletes_all_entries(cache: Cache) -> None:
    """Check that nothing is left, of other users neither."""
    keys = [_key() for _ in range(20)]
    for key in keys:
        await value_of(cache.put(key, b"x", 60))
    number = await value_of(cache.clear())
    ensure(number is None or number >= len(keys), f"{number} entries were cleared, of at least {len(keys)}")
    expect([await value_of(cache.get(key)) for key in keys], [None] * len(keys), "the entries")
    ensure(await value_of(cache.clear()) in {0, None}, "a second clear found entries")


async def entries_whose_keys_begin_alike_are_deleted_together(cache: Cache) -> None:
    """Check that all of them are gone and no other is, whatever characters the prefix has; a cache may lack this."""
    if not isinstance(cache, ErasableCache):
        return
    for prefix in (f"{_key()[:32]}:", f"{_key()[:8]}*:", f"{_key()[:8]}[a]?%_"):
        keys = [f"{prefix}{_key()}" for _ in range(20)]
        others = [_key(), prefix[:-1], f"{prefix[:-1]}x"]
        for key in (*keys, *others):
            await value_of(cache.put(key, b"x", 60))
        expect(await value_of(cache.delete_all(prefix)), 20, "how many entries were deleted")
        expect([await value_of(cache.get(key)) for key in keys], [None] * 20, "the entries")
        expect([await value_of(cache.get(key)) for key in others], [b"x"] * 3, "other entries")


CACHE_CHECKS: Final[tuple[CacheCheck, ...]] = (
    an_entry_is_returned_as_it_was_put,
    a_second_put_replaces_the_first,
    an_entry_expires_after_its_time_to_live,
    no_time_to_live_stores_nothing_and_deletes_the_old_entry,
    an_infinite_time_to_live_is_for_ever,
    delete_returns_whether_there_was_an_entry,
    stats_count_hits_and_misses,
    tasks_at_once_get_their_own_entries,
    a_cancelled_caller_leaves_the_cache_usable,
    clear_deletes_all_entries,
    entries_whose_keys_begin_alike_are_deleted_together,
)
"""Every check of a cache; the last one clears it."""

# Ledgers: rows, each check in hours of its own, far from now.


def _hour() -> datetime:
    return datetime(2100, 1, 1, tzinfo=UTC) + timedelta(hours=uuid4().int % 5_000_000)


def _rows(began: datetime, count: int) -> list[LedgerRow]:
    attempt = Attempt(model="m", provider="lm-studio", outcome="cancelled", latency_ms=0.0)
    calls = [uuid4().hex for _ in range(count)]
    return [
        LedgerRow(
            id=f"{call}.1",
            at=began + timedelta(seconds=number),
            call_id=call,
            task_type=TaskType.GENERAL,
            attempt=attempt,
        )
        for number, call in enumerate(calls)
    ]


_USAGE: Final = Usage(
    input_tokens=1, cache_read_tokens=2, cache_write_tokens=3, output_tokens=2**40, reasoning_tokens=5, estimated=True
)

_ATTEMPT: Final = Attempt(
    model="gpt",
    provider="openai",
    outcome="success",
    latency_ms=1234.5678901234567,
    first_content_ms=0.1,
    wait_ms=2.5,
    usage=_USAGE,
    cost=Cost(Decimal("0.00000003750000000000000001")),
)


async def _found(ledger: Ledger, began: datetime) -> list[LedgerRow]:
    return list(await value_of(ledger.rows(since=began, until=began + timedelta(hours=1))))


async def a_row_is_returned_as_it_was_recorded(ledger: Ledger) -> None:
    """Check every field, times to the microsecond, costs to the last digit."""
    [empty] = _rows(began := _hour(), 1)
    full = evolve(
        empty,
        id=f"{empty.call_id}.2",
        at=began + timedelta(seconds=1, microseconds=123_456),
        task_type=TaskType("triage"),
        attempt=_ATTEMPT,
        conversation_id="incident-7",
        served_model="gpt-6-luna-2026-10-01",
        owner="alice",
        tags=("nightly", 'a "quoted" one', "sp\u00e4t"),
        left_machine=True,
    )
    ledger.record(full)
    ledger.record(empty)
    expect(await _found(ledger, began), [empty, full], "the rows")


async def rows_are_paged_in_the_order_of_time(ledger: Ledger) -> None:
    """Check the bounds of a page, and pages from the newest to the oldest."""
    began = _hour()
    rows = _rows(began, 90)
    for row in rows:
        ledger.record(row)
    expect(await _found(ledger, began), rows, "all rows")
    since, until = began + timedelta(seconds=10), began + timedelta(seconds=80)
    pages, first = list[LedgerRow](), None
    while page := await value_of(ledger.rows(since, until, before=first, newest=30)):
        pages[:0] = page
        first = page[0]
    expect(pages, rows[10:80], "the pages")
    expect(list(await value_of(ledger.rows(since, until, newest=0))), [], "no rows")


async def times_of_any_zone_are_compared(ledger: Ledger) -> None:
    """Check that a time of another zone selects the same rows."""
    [row] = _rows(began := _hour(), 1)
    ledger.record(row)
    there = began.astimezone(timezone(timedelta(hours=9)))
    expect(await _found(ledger, there), [row], "the rows since")
    expect(list(await value_of(ledger.rows(there - timedelta(hours=1), there))), [], "the rows until")


async def texts_and_counts_that_a_database_rejects_lose_no_row(ledger: Ledger) -> None:
    """Check texts with zero characters and half surrogates, and counts beyond 64 bits."""
    one, two = _rows(began := _hour(), 2)
    ledger.record(evolve(one, owner="a\0b\ud800", tags=("c\0\ud800",), served_model="\0"))
    ledger.record(evolve(two, attempt=evolve(two.attempt, usage=Usage(input_tokens=2**70, output_tokens=1))))
    expect([row.id for row in await _found(ledger, began)], [one.id, two.id], "the ids of the rows")


# Ledgers: budgets, each check with accounts of its own.


def _accounts(limit: str, count: int = 1) -> tuple[Account, ...]:
    ends = datetime(2100, 1, 1, tzinfo=UTC)
    return tuple(Account(budget=key, key=key, limit=Decimal(limit), ends=ends) for key in _names(count))


def _names(count: int) -> list[str]:
    return [uuid4().hex for _ in range(count)]


def _hold(amount: str, accounts: Iterable[Account]) -> Hold:
    noon = datetime(2099, 1, 1, 12, tzinfo=UTC)
    expires = noon + timedelta(seconds=60)
    return Hold(id=uuid4().hex, accounts=tuple(accounts), amount=Decimal(amount), at=noon, expires_at=expires)


async def _reserved(ledger: Ledger, hold: Hold) -> bool:
    result = await result_of(ledger.reserve(hold))
    if not is_successful(result):
        ensure(isinstance(result.failure(), BudgetExceeded), f"a reservation failed: {result}")
    return is_successful(result)


async def a_reservation_counts_until_it_is_committed(ledger: Ledger) -> None:
    """Check that the actual cost replaces the amount reserved."""
    accounts = _accounts("1")
    first = _hold("0.7", accounts)
    ensure(await _reserved(ledger, first), "an empty account refused a reservation")
    ensure(not await _reserved(ledger, _hold("0.4", accounts)), "more than the limit was reserved")
    await ledger.commit(first, Decimal("0.6"))
    ensure(await _reserved(ledger, _hold("0.4", accounts)), "what a commit left over was refused")
    ensure(not await _reserved(ledger, _hold("0.000000001", accounts)), "more than the limit was reserved")


async def an_amount_is_reserved_in_all_accounts_or_in_none(ledger: Ledger) -> None:
    """Check that a refusal names the account without room, and reserves nothing in the others."""
    one, full, other = _accounts("1", 3)
    ensure(await _reserved(ledger, _hold("0.9", [full])), "an empty account refused a reservation")
    refused = (await result_of(ledger.reserve(_hold("0.5", [one, full, other])))).failure()
    full_account = BudgetExceeded(budget=full.budget, spent=Cost(Decimal("0.9")), limit=Cost(full.limit))
    expect(refused, full_account, "the refusal of a full account")
    ensure(await _reserved(ledger, _hold("1", [one, other])), "a refused reservation left something reserved")


async def committing_twice_or_without_a_reservation_spends_once(ledger: Ledger) -> None:
    """Check that a hold is settled once."""
    accounts = _accounts("1")
    first = _hold("0.5", accounts)
    await ledger.commit(first, Decimal("0.5"))
    ensure(await _reserved(ledger, first), "a commit without a reservation was counted")
    await ledger.commit(first, Decimal("0.5"))
    await ledger.commit(first, Decimal("0.5"))
    ensure(await _reserved(ledger, _hold("0.5", accounts)), "a second commit was counted")


async def sums_are_exact(ledger: Ledger) -> None:
    """Check that ten tenths are one."""
    accounts = _accounts("1")
    for _ in range(10):
        each = _hold("0.1", accounts)
        ensure(await _reserved(ledger, each), "ten tenths were more than one")
        await ledger.commit(each, Decimal("0.1"))
    ensure(not await _reserved(ledger, _hold("0.0000000000000000001", accounts)), "ten tenths were less than one")


async def tasks_at_once_never_reserve_more_than_the_limit(ledger: Ledger) -> None:
    """Check twenty tasks at an account with room for ten."""
    [shared] = _accounts("1")
    won = list[bool]()

    async def take() -> None:
        won.append(await _reserved(ledger, _hold("0.1", (shared, *_accounts("1")))))

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(take)
    expect(sum(won), 10, "how many of the tasks reserved an amount")


async def rows_are_erased_by_owner_and_age(ledger: Ledger) -> None:
    """Check that only chosen rows are gone, also of those just recorded; a ledger may lack this."""
    if not isinstance(ledger, ErasableLedger):
        return
    owner, other = uuid4().hex, uuid4().hex
    began = datetime(2099, 1, 1, tzinfo=UTC)
    rows = [evolve(row, owner=each) for row in _rows(began, 2) for each in (owner, other)]
    rows = [evolve(row, id=f"{uuid4().hex}.1") for row in rows]
    for row in rows:
        ledger.record(row)
    chosen = Chosen(owners=(owner,), before=rows[2].at)
    expect((await all_of(ledger.erase_rows, chosen))["ledger_rows"], 1, "how many rows are older")
    expect((await all_of(ledger.erase_rows, Chosen(owners=(owner,))))["ledger_rows"], 1, "how many rows are left")
    stored = {row.id for row in await value_of(ledger.rows())}
    expect([row.id in stored for row in rows], [False, True, False, True], "the rows")


async def what_an_owner_has_spent_is_erased(ledger: Ledger) -> None:
    """Check that a budget of the owner begins anew, and another does not; a late commit spends nothing."""
    if not isinstance(ledger, ErasableLedger):
        return
    names = [uuid4().hex for _ in range(2)]
    mine, other = (evolve(_accounts("1")[0], key=f'["each","{name}","owner:{name}"]') for name in names)
    late = _hold("0.9", [mine, other])
    ensure(await _reserved(ledger, late), "an empty account refused a reservation")
    expect((await all_of(ledger.erase_rows, Chosen(owners=(names[0],))))["budgets"], 1, "how many budgets")
    await ledger.commit(late, Decimal("0.9"))
    ensure(await _reserved(ledger, _hold("1", [mine])), "the budget of an erased owner is not empty")
    ensure(not await _reserved(ledger, _hold("0.2", [other])), "the budget of another owner begins anew")


LEDGER_CHECKS: Final[tuple[LedgerCheck, ...]] = (
    a_row_is_returned_as_it_was_recorded,
    rows_are_paged_in_the_order_of_time,
    times_of_any_zone_are_compared,
    texts_and_counts_that_a_database_rejects_lose_no_row,
    a_reservation_counts_until_it_is_committed,
    an_amount_is_reserved_in_all_accounts_or_in_none,
    committing_twice_or_without_a_reservation_spends_once,
    sums_are_exact,
    tasks_at_once_never_reserve_more_than_the_limit,
    rows_are_erased_by_owner_and_age,
    what_an_owner_has_spent_is_erased,
)
"""Every check of a ledger."""

# Limits, each check with a model of its own.


async def _permit(limits: Limits, model: str, quota: Quota, tokens: int = 0, timeout: float = 0.0) -> Permit:
    permit = limits.acquire(model, quota, Demand(tokens=tokens), timeout, math.inf)
    return await value_of(permit) if isinstance(permit, FutureResult) else permit


async def _refusal(limits: Limits, model: str, quota: Quota, tokens: int = 0) -> LLMError:
    permit = limits.acquire(model, quota, Demand(tokens=tokens), 0.0, math.inf)
    result = await result_of(permit) if isinstance(permit, FutureResult) else None
    if result is None or is_successful(result):
        raise AssertionError(f"a permit beyond {quota} was granted")
    return result.failure()


async def calls_in_flight_are_bounded(limits: Limits) -> None:
    """Check that a released permit, and only that, makes room."""
    model, quota = uuid4().hex, Quota(concurrency=2)
    permits = [await _permit(limits, model, quota) for _ in range(2)]
    expect((await _refusal(limits, model, quota)).tag, RateLimitExceeded.tag, "the third call")
    await _permit(limits, uuid4().hex, quota)
    await limits.release(permits[0], ActualUsage())
    permits[0] = await _permit(limits, model, quota)
    for permit in permits:
        await limits.release(permit, ActualUsage())


async def waiting_calls_are_served_in_their_order(limits: Limits) -> None:
    """Check that the first in the queue is the first to go."""
    model, quota, served = uuid4().hex, Quota(concurrency=1), list[int]()
    first = await _permit(limits, model, quota)

    async def visit(number: int) -> None:
        permit = await _permit(limits, model, quota, timeout=60.0)
        served.append(number)
        await limits.release(permit, ActualUsage())

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(visit, number)
            await anyio.sleep(0.02)
        await limits.release(first, ActualUsage())
    expect(served, [*range(5)], "the order of the calls")


async def a_cancelled_call_leaves_its_place_in_the_queue(limits: Limits) -> None:
    """Check that no permit goes to a call that is gone."""
    model, quota = uuid4().hex, Quota(concurrency=1)
    first = await _permit(limits, model, quota)
    for _ in range(5):
        with anyio.move_on_after(0.01):
            await _permit(limits, model, quota, timeout=60.0)
            raise AssertionError("a second permit was granted")
    await limits.release(first, ActualUsage())
    await limits.release(await _permit(limits, model, quota, timeout=30.0), ActualUsage())


async def requests_in_a_minute_are_bounded(limits: Limits) -> None:
    """Check that a released permit makes no room, and that the refusal says when there is some."""
    model, quota = uuid4().hex, Quota(requests=2)
    for _ in range(2):
        await limits.release(await _permit(limits, model, quota), ActualUsage(requests=1))
    refusal = await _refusal(limits, model, quota)
    ensure(refusal.retry_after is not None and 0 < refusal.retry_after <= 61, f"retry_after: {refusal.retry_after}")


async def actual_tokens_replace_the_reserved_ones(limits: Limits) -> None:
    """Check that a short answer makes room for the next call."""
    model, quota = uuid4().hex, Quota(tokens=100)
    first = await _permit(limits, model, quota, tokens=90)
    await _refusal(limits, model, quota, tokens=20)
    await limits.release(first, ActualUsage(requests=1, tokens=10))
    await limits.release(await _permit(limits, model, quota, tokens=90), ActualUsage(requests=1, tokens=90))
    await _refusal(limits, model, quota, tokens=1)


async def a_permit_that_cannot_come_in_time_is_refused_at_once(limits: Limits) -> None:
    """Check a call whose deadline is before the end of the minute."""
    model, quota = uuid4().hex, Quota(requests=1)
    await limits.release(await _permit(limits, model, quota), ActualUsage(requests=1))
    late = limits.acquire(model, quota, Demand(), 3600.0, anyio.current_time() + 30)
    with anyio.move_on_after(20) as scope:
        ensure(isinstance(late, FutureResult), "a permit beyond the quota was granted")
        if isinstance(late, FutureResult):
            await expect_failure(late, RateLimitExceeded.tag)
    ensure(not scope.cancelled_caught, "a call waits for a permit that cannot come in time")


_RULES: Final = BreakerConfig(window_seconds=60, min_attempts=3, failure_rate=0.5, open_seconds=0.3)


async def _admit(limits: Limits, model: str, *, force: bool = False) -> BreakerPermit:
    permit = limits.admit(model, math.inf, force=force)
    return await value_of(permit) if isinstance(permit, FutureResult) else permit


async def _is_refused(limits: Limits, model: str) -> bool:
    permit = limits.admit(model, math.inf, force=False)
    return isinstance(permit, FutureResult) and not is_successful(await result_of(permit))


async def a_circuit_breaker_opens_and_lets_one_probe_through(limits: Limits) -> None:
    """Check that failures open it, that then one call probes the model, and that its success closes it."""
    model = uuid4().hex
    for _ in range(_RULES.min_attempts):
        await limits.record(model, _RULES, await _admit(limits, model), failed=True)
    ensure(await _is_refused(limits, model), "the breaker is closed after failures")
    ensure(model in limits.opened(), "an open breaker is not listed")
    ensure(not await _is_refused(limits, uuid4().hex), "the breaker of another model is open")
    await _admit(limits, model, force=True)
    await anyio.sleep(_RULES.open_seconds + 0.1)
    probe = await _admit(limits, model)
    ensure(await _is_refused(limits, model), "a second probe was let through")
    await limits.record(model, _RULES, probe, failed=False)
    ensure(not await _is_refused(limits, model), "the breaker is open after a successful probe")


async def an_outcome_that_says_nothing_opens_no_circuit_breaker(limits: Limits) -> None:
    """Check cancelled calls, and calls that failed by their own fault."""
    model = uuid4().hex
    for _ in range(3 * _RULES.min_attempts):
        await limits.record(model, _RULES, await _admit(limits, model), failed=None)
    ensure(not await _is_refused(limits, model), "the breaker is open")


async def retries_are_paid_from_a_budget(limits: Limits) -> None:
    """Check that a budget is empty at some time, and that refunds fill it again."""
    server, budget = uuid4().hex, RetryBudgetConfig()
    paid = sum(limits.retries.afford(server, budget, 5) for _ in range(10_000))
    ensure(0 < paid < 10_000, f"{paid} of 10,000 retries were paid")
    ensure(limits.retries.afford(uuid4().hex, budget, 5), "another server has no budget of its own")
    limits.retries.repay(server, budget, 5)
    ensure(limits.retries.afford(server, budget, 5), "a refund is lost")


LIMITS_CHECKS: Final[tuple[LimitsCheck, ...]] = (
    calls_in_flight_are_bounded,
    waiting_calls_are_served_in_their_order,
    a_cancelled_call_leaves_its_place_in_the_queue,
    requests_in_a_minute_are_bounded,
    actual_tokens_replace_the_reserved_ones,
    a_permit_that_cannot_come_in_time_is_refused_at_once,
    a_circuit_breaker_opens_and_lets_one_probe_through,
    an_outcome_that_says_nothing_opens_no_circuit_breaker,
    retries_are_paid_from_a_budget,
)
"""Every check of limits."""
