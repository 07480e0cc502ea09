"""Shared limits: never exceeded, freed of dead processes, and counted by each process alone without the server."""

import math
import time
from itertools import count, pairwise

import anyio
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis
from returns.future import FutureResult
from returns.pipeline import is_successful

from llm_effects import ConfigurationError, LLMConfig, LLMRequest, ModelConfig, generate, make_llm_manager
from llm_effects.config.routing import BreakerConfig
from llm_effects.config.services import LimitsConfig
from llm_effects.limits.circuit_breaker import CELLS, Breaker, BreakerPermit, Refusal, record_outcome, request_permit
from llm_effects.limits.quotas import (
    ActualUsage,
    Allowance,
    Demand,
    LimiterState,
    Permit,
    Quota,
    RateLimits,
    has_free_slot,
    wait_time,
    with_actual_usage,
    with_reservation,
)
from llm_effects.stores.limits.redis import ALONE, PREFIX, SCRIPTS
from llm_effects.testing import scripted
from llm_effects.values import caps
from tests.fixtures.futures import given_by
from tests.fixtures.limits_worker import QUOTA, by_four, opened, python
from tests.fixtures.redis_server import free_port, redis_server, start

__all__ = ["redis_server"]

ONE_AT_ONCE = Quota(concurrency=1)
ASK = LLMRequest(prompt="why?")


# The scripts agree with the pure functions.

STEPS = st.lists(
    st.tuples(
        st.integers(0, 20_000),
        st.sampled_from(["enter", "enter", "enter", "leave", "reported"]),
        st.integers(1, 6),
        st.integers(0, 6),
    ),
    max_size=40,
)
_NAMES = count()


@given(STEPS, st.integers(0, 3), st.integers(0, 5), st.sampled_from([0, 7, 12]))
@settings(max_examples=60)
def test_the_scripts_count_as_the_pure_quotas_do(
    redis_server: str, steps: list[tuple[int, str, int, int]], places: int, rpm: int, tpm: int
) -> None:
    quota = Quota(concurrency=places or None, requests=rpm or None, tokens=tpm or None)
    keys = [f"law:{next(_NAMES)}:{kind}" for kind in ("slots", "requests", "tokens", "reported")]
    with Redis.from_url(redis_server) as client:
        scripts = {name: client.register_script(text) for name, text in SCRIPTS.items()}
        state, now_ms, inside = LimiterState(), 1_000_000, list[Permit]()
        for wait, what, tokens, used in steps:
            now_ms += wait
            now, demand = now_ms / 1000, Demand(tokens=tokens)
            if what == "enter":
                delay = wait_time(state, quota, demand, now)
                reply = scripts["enter"](keys, [now_ms, f"id-{now_ms}-{tokens}", places, rpm, tpm, 10**9, 1, tokens])
                if delay or not has_free_slot(state, quota):
                    assert reply == [0, round(delay * 1000) if delay else -1]
                    continue
                assert reply == [1, int(now)]
                state = with_reservation(state, quota, demand, now)
                inside.append(Permit(model="m", quota=quota, demand=demand, cell=int(now), id=f"id-{now_ms}-{tokens}"))
                now_ms += 1  # so that every id is unique
            elif inside:
                permit, by = inside.pop(0), min(used, 1) - 1
                reported = (
                    RateLimits(requests=Allowance(limit=2, remaining=used, reset=3.0), at=now)
                    if what == "reported"
                    else None
                )
                state = with_actual_usage(
                    state, permit, ActualUsage(requests=1 + by, tokens=used, reported_limits=reported)
                )
                words = (0, 2, used, 3000, -1, -1, -1) if reported else (-1,) * 7
                scripts["leave"](keys, [now_ms, permit.id, permit.cell, by, used - permit.demand.tokens, *words])
        client.delete(*keys)


MOVES = st.lists(
    st.tuples(st.integers(0, 3000), st.sampled_from(["ask", "fails", "works", "cancelled"]), st.booleans()), max_size=60
)
RULES = BreakerConfig(window_seconds=10, min_attempts=3, failure_rate=0.5, open_seconds=5)


@given(MOVES)
@settings(max_examples=60)
def test_the_scripts_agree_with_the_pure_circuit_breaker(redis_server: str, moves: list[tuple[int, str, bool]]) -> None:
    keys = [f"machine:{next(_NAMES)}:{kind}" for kind in ("breaker", "tries", "faults")]
    with Redis.from_url(redis_server) as client:
        scripts = {name: client.register_script(text) for name, text in SCRIPTS.items()}
        breaker, now_ms, held = Breaker(), 1_000_000, list[BreakerPermit]()
        for wait, what, last in moves:
            now_ms += wait
            if what == "ask":
                breaker, answer = request_permit(breaker, now_ms / 1000, lease=7, force=last)
                reply = scripts["admit"](keys[:1], [now_ms, 7000, int(last), 1000])
                if isinstance(answer, Refusal):
                    assert reply[0] == b"refused"
                    assert reply[2] == pytest.approx(answer.retry_after * 1000, abs=1)
                else:
                    assert reply[:2] == [answer.kind.encode(), answer.epoch]
                    held.append(answer)
            elif held:
                permit = held.pop(0 if last else -1)
                failed = {"fails": True, "works": False, "cancelled": None}[what]
                breaker = record_outcome(breaker, RULES, permit, now_ms / 1000, failed=failed)
                became = -1 if failed is None else int(failed)
                args = [now_ms, permit.kind, permit.epoch, became, 10_000 / CELLS, CELLS, 3, 0.5, 5000]
                [open_ms] = scripts["record"](keys, args)
                if open_ms:
                    assert breaker.open_until == pytest.approx(now_ms / 1000 + 5)
        client.delete(*keys)


# Four processes.


def test_four_processes_never_exceed_any_limit(redis_server: str) -> None:
    with Redis.from_url(redis_server) as client:
        client.flushdb()
    visits = [
        (float(started), float(left), *map(int, rest)) for started, left, *rest in by_four("hammer", redis_server)
    ]
    kept = [visit for visit in visits if visit[4]]
    # All is within one minute: the counted usage, and the reservations of the running calls at any moment.
    assert sum(visit[3] for visit in kept) <= (QUOTA.tokens or 0)
    assert len(kept) <= (QUOTA.requests or 0)
    assert len(kept) >= 25  # and much of the quota was used
    most = 0
    for moment, *_ in visits:
        inside = [visit for visit in visits if visit[0] <= moment < visit[1]]
        over = [visit for visit in kept if visit[1] <= moment]
        most = max(most, len(inside))
        assert sum(visit[2] for visit in inside) + sum(visit[3] for visit in over) <= (QUOTA.tokens or 0)
        assert len(inside) + len(over) <= (QUOTA.requests or 0)
    assert 2 <= most <= (QUOTA.concurrency or 0)


def test_four_processes_share_one_breaker_and_one_probe(redis_server: str) -> None:
    with Redis.from_url(redis_server) as client:
        client.flushdb()
    passed = [
        (kind, int(epoch), float(started), float(left)) for kind, epoch, started, left in by_four("probe", redis_server)
    ]
    probes = sorted((started, left, epoch) for kind, epoch, started, left in passed if kind == "probe")
    assert len(probes) >= 2
    assert len({epoch for *_, epoch in probes}) == len(probes)
    assert all(later[0] - earlier[1] >= 0.25 for earlier, later in pairwise(probes))
    counted = [visit for visit in passed if visit[0] == "counted"]
    assert 8 <= len(counted) <= 8 + 16  # it opened once; calls that ran then changed nothing


def test_the_lease_of_a_killed_process_frees_its_permit(redis_server: str) -> None:
    with Redis.from_url(redis_server) as client:
        client.flushdb()
    holder = python("hold", redis_server, "0")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "in\n"
    taken = time.monotonic()
    holder.kill()
    holder.communicate()

    async def main() -> float:
        limits = opened(redis_server)
        await given_by(limits.acquire("m", ONE_AT_ONCE, Demand(), 10.0, math.inf))
        await limits.aclose()
        return time.monotonic() - taken

    assert 1.5 <= anyio.run(main) <= 8


def test_fault_153_calls_cancelled_by_asyncio_itself_leave_no_permit_and_no_probe(redis_server: str) -> None:
    with Redis.from_url(redis_server) as client:
        client.flushdb()

    async def main() -> tuple[list[Permit], BreakerPermit]:
        limits = opened(redis_server)
        for _ in range(RULES.min_attempts):
            await limits.record("m", RULES, await given_by(limits.admit("m", math.inf, force=True)), failed=True)
        await anyio.sleep(RULES.open_seconds + 0.05)  # now a probe is due
        processes = [python("abandon", redis_server, str(number)) for number in range(2)]
        for process in processes:
            assert process.stdout is not None
            assert await anyio.to_thread.run_sync(process.stdout.readline) == "done\n"
        await anyio.sleep(1.0)
        permits = [await given_by(limits.acquire("m", Quota(concurrency=3), Demand(), 0.0, math.inf)) for _ in range(3)]
        probe = await given_by(limits.admit("m", math.inf, force=False))
        for process in processes:
            process.kill()
            process.communicate()
        await limits.aclose()
        return permits, probe

    permits, probe = anyio.run(main)
    with Redis.from_url(redis_server) as client:
        client.flushdb()
    assert all(permit.shared_cell is not None for permit in permits)
    assert (probe.kind, probe.shared) == ("probe", True)


# One process.


@pytest.mark.anyio
@pytest.mark.parametrize("reset", [1e308, 9e9])
async def test_fault_165_no_report_of_a_server_stays_for_longer_than_a_day(redis_server: str, reset: float) -> None:
    limits, quota = opened(redis_server), Quota(requests=10)
    said = RateLimits(requests=Allowance(limit=10**30, remaining=10**30, reset=reset), at=anyio.current_time())
    for _ in range(2):
        permit = await given_by(limits.acquire("m", quota, Demand(), 1.0, math.inf))
        await limits.release(permit, ActualUsage(reported_limits=said))
    with Redis.from_url(redis_server) as client:
        keys = list(client.scan_iter(f"{PREFIX}*"))
        assert keys
        assert all(0 < client.pttl(key) <= (caps.PAUSE_S + 1) * 1000 for key in keys)
        client.delete(*keys)
    await limits.aclose()


@pytest.mark.anyio
async def test_every_key_expires_and_reveals_no_model(redis_server: str) -> None:
    limits = opened(redis_server)
    quota = Quota(concurrency=3, requests=10, tokens=100)
    reported = RateLimits(requests=Allowance(limit=9, remaining=5, reset=1.0), at=anyio.current_time())
    for _ in range(2):
        permit = await given_by(limits.acquire("m", quota, Demand(tokens=5), 1.0, math.inf))
        await limits.release(permit, ActualUsage(tokens=3, reported_limits=reported))
    await given_by(limits.acquire("m", quota, Demand(tokens=5), 1.0, math.inf))
    for _ in range(9):
        await limits.record("m", RULES, await given_by(limits.admit("m", math.inf, force=True)), failed=True)
    with Redis.from_url(redis_server) as client:
        keys = list(client.scan_iter(f"{PREFIX}*"))
        assert len(keys) >= 4
        assert all(0 < client.pttl(key) <= 2 * 3600_000 for key in keys)
        assert not any(b"lm-studio" in key for key in keys)
        client.delete(*keys)
    assert list(limits.opened()) == ["m"]
    await limits.aclose()


@pytest.mark.anyio
async def test_fault_104_cancelled_calls_leave_no_permit_on_the_server(redis_server: str) -> None:
    limits, quota = opened(redis_server), Quota(concurrency=2)

    async def one(number: int) -> None:
        with anyio.move_on_after(0.001 * (number % 20)):
            permit = await given_by(limits.acquire("m", quota, Demand(), 30.0, math.inf))
            try:
                await anyio.sleep(0.001)
            finally:
                await limits.release(permit, ActualUsage())

    async with anyio.create_task_group() as group:
        for number in range(300):
            group.start_soon(one, number)
    permits = [await given_by(limits.acquire("m", quota, Demand(), 0.0, math.inf)) for _ in range(2)]
    assert all(permit.shared_cell is not None for permit in permits)
    for permit in permits:
        await limits.release(permit, ActualUsage())
    await limits.aclose()


@pytest.mark.anyio
async def test_without_the_server_each_process_counts_alone_and_warns() -> None:
    config = LLMConfig(
        models={"m": ModelConfig(provider="lm-studio", model="m", requests_per_minute=2)},
        limits=LimitsConfig(url=f"redis://:hunter2@127.0.0.1:{free_port()}", queue_seconds=1),
    )
    async with make_llm_manager(config, lambda env: evolve(env, clients=scripted("ok"))) as manager:
        answers = [(await manager.run(generate(LLMRequest(prompt=f"{number}")))) for number in range(3)]
    assert [answer.unwrap().warnings for answer in answers[:2]] == [(ALONE,)] * 2
    assert answers[2].failure().tag == "RateLimitExceeded"
    assert "hunter2" not in repr(answers)


@pytest.mark.anyio
async def test_permits_are_released_when_the_server_goes_away() -> None:
    with start() as server:
        limits = opened(server.url(), timeout_seconds=0.5)
        permit = await given_by(limits.acquire("m", ONE_AT_ONCE, Demand(), 1.0, math.inf))
        assert permit.shared_cell is not None
        server.process.kill()
        server.process.wait()
        await limits.release(permit, ActualUsage())
        again = await given_by(limits.acquire("m", ONE_AT_ONCE, Demand(), 1.0, math.inf))
        assert again.warning == ALONE
        full = limits.acquire("m", ONE_AT_ONCE, Demand(), 0.0, math.inf)
        assert isinstance(full, FutureResult)
        assert not is_successful(await full)  # this process counts
        await limits.release(again, ActualUsage())
        await limits.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("url", ["redis://localhost:port", "ftp://x", "nothing", "redis://h?surprise=1"])
async def test_a_wrong_url_fails_every_call(url: str) -> None:
    config = LLMConfig(models={"m": ModelConfig(provider="lm-studio", model="m")}, limits=LimitsConfig(url=url))
    async with make_llm_manager(config, lambda env: evolve(env, clients=scripted("ok"))) as manager:
        error = (await manager.run(generate(ASK))).failure()
    assert isinstance(error, ConfigurationError)
    assert error.message.startswith("limits.url: ")


@pytest.mark.anyio
async def test_a_model_without_limits_does_not_use_the_server() -> None:
    limits = opened(f"redis://127.0.0.1:{free_port()}")
    permit = await given_by(limits.acquire("m", Quota(), Demand(), 0.0, math.inf))
    await limits.release(permit, ActualUsage())
    assert (permit.id, permit.warning) == ("", "")
    await limits.aclose()
