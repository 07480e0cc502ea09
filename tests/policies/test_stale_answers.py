"""Answers past their time to live: returned at once within a bound, while a fresh one is fetched in a scope."""

# ruff: noqa: ASYNC110 - a server does not announce its changes

import logging
import re
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import anyio
import pytest
from attrs import define, evolve, field
from returns.future import FutureResult
from returns.result import Failure, Result, Success

from llm_effects import (
    LLM,
    AsyncLLM,
    CachePolicy,
    LLMConfig,
    LLMEnv,
    LLMRequest,
    LLMResponse,
    ModelConfig,
    ModelUnavailable,
    StreamEvent,
    generate,
    make_llm_manager,
    open_env,
    run,
    scripted_env,
    stream,
)
from llm_effects.config import CacheConfig, RoutingConfig
from llm_effects.effects.background import background_tasks
from llm_effects.effects.call import Call
from llm_effects.effects.effect import Answer, result_of
from llm_effects.effects.env import Cache, Lease
from llm_effects.policies.cache import REFRESH_PAUSE_S, REFRESH_TAG
from llm_effects.policies.redaction import Redaction
from llm_effects.stores.cache.memory import MemoryCache
from llm_effects.stores.cache.redis import RedisLeases, open_redis
from llm_effects.stores.cache.sqlite import SqliteCache
from llm_effects.telemetry.logs import log_refresh_defect
from llm_effects.testing import answer, scripted
from llm_effects.values.errors import LLMError
from llm_effects.values.placeholders import Finding
from llm_effects.values.records import ModelHealth
from llm_effects.values.serialization import Entry, dump_entry, load_entry
from tests.fixtures.redis_server import redis_server

__all__ = ["redis_server"]

pytestmark = pytest.mark.anyio

ASK = LLMRequest(prompt="why?", tags=("team-a",))
START = datetime(2026, 11, 29, tzinfo=UTC)
TTL_S, STALE_S = 60.0, 600.0
CONFIG = LLMConfig(
    models={"one": ModelConfig(provider="lm-studio", model="m")},
    routing=RoutingConfig(max_retries=0),
    cache=CacheConfig(ttl_seconds=TTL_S, stale_seconds=STALE_S),
)


@define
class Model:
    """Clients that number their answers, and wait or fail where a test wants it."""

    fails: bool = False
    defect: bool = False
    gate: anyio.Event | None = None
    cancelled: int = 0
    calls: list[Call] = field(factory=list[Call])

    def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
        return FutureResult(self._answer(call))

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        return FutureResult.from_value(ModelHealth(model=name, provider=model.provider))

    async def _answer(self, call: Call) -> Answer:
        self.calls.append(call)
        number = len(self.calls)
        try:
            if self.gate is not None:
                await self.gate.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        if self.defect:
            raise KeyError("a mistake")
        return Failure(ModelUnavailable(model="one", status=503)) if self.fails else Success(answer(f"{number}"))


@define
class World:
    """An environment whose clock stands still until a test moves it."""

    model: Model
    env: LLMEnv
    clock: list[float]

    async def ask(self, policy: CachePolicy = CachePolicy.USE) -> LLMResponse:
        return (await run(generate(evolve(ASK, cache=policy)), self.env)).unwrap()

    async def shown(self, policy: CachePolicy = CachePolicy.USE) -> tuple[str, bool, bool]:
        response = await self.ask(policy)
        return response.content, response.cached, response.stale


def world(cache: Cache | None = None) -> World:
    model, clock = Model(), [0.0]

    def now() -> datetime:
        return START + timedelta(seconds=clock[0])

    store = MemoryCache(100, clock=lambda: clock[0]) if cache is None else cache
    return World(model, evolve(scripted_env(config=CONFIG, clients=model), cache=store, now=now), clock)


@asynccontextmanager
async def scoped(here: World) -> AsyncGenerator[World]:
    async with background_tasks(log_refresh_defect) as tasks:
        yield World(here.model, evolve(here.env, background=tasks), here.clock)


async def test_fault_199_a_stale_answer_comes_at_once_and_the_next_caller_has_a_fresh_one() -> None:
    async with scoped(world()) as here:
        seen = [await here.shown()]
        here.clock[0] = TTL_S
        here.model.gate = anyio.Event()
        seen.append(await here.shown())
        here.model.gate.set()
        await anyio.wait_all_tasks_blocked()
        seen.append(await here.shown())
    assert seen == [("1", False, False), ("1", True, True), ("2", True, False)]


async def test_fault_199_the_caller_pays_nothing_and_the_ledger_has_the_refresh() -> None:
    async with scoped(world()) as here:
        first = await here.ask()
        here.clock[0] = TTL_S
        stale = await here.ask()
        await anyio.wait_all_tasks_blocked()
        rows = (await result_of(here.env.ledger.rows())).unwrap()
    assert (stale.attempts, stale.cost.usd, len(first.attempts)) == ((), 0, 1)
    assert [row.tags for row in rows] == [("team-a",), ("team-a", REFRESH_TAG)]
    assert rows[0].call_id != rows[1].call_id


async def test_fault_199_past_its_bound_a_stale_answer_is_a_miss() -> None:
    async with scoped(world()) as here:
        await here.ask()
        here.clock[0] = TTL_S + STALE_S
        assert await here.shown() == ("2", False, False)


async def test_fault_199_a_stream_replays_the_stale_answer() -> None:
    events = list[StreamEvent]()

    async def sink(event: StreamEvent) -> None:
        events.append(event)

    async with scoped(world()) as here:
        await here.ask()
        here.clock[0] = TTL_S
        response = (await run(stream(ASK, sink), here.env)).unwrap()
    assert (response.content, response.stale) == ("1", True)
    assert [type(event).__name__ for event in events] == ["Started", "TextDelta", "Completed"]


async def test_fault_199_other_policies_keep_their_meaning() -> None:
    async with scoped(world()) as here:
        await here.ask()
        here.clock[0] = TTL_S
        assert await here.shown(CachePolicy.ONLY) == ("1", True, True)
        await anyio.wait_all_tasks_blocked()
        assert len(here.model.calls) == 1
        assert await here.shown(CachePolicy.BYPASS) == ("2", False, False)
        assert await here.shown(CachePolicy.REFRESH) == ("3", False, False)
        assert await here.shown() == ("3", True, False)


async def test_fault_199_a_file_keeps_the_bound_too(tmp_path: Path) -> None:
    here = world()
    store = SqliteCache(tmp_path / "answers.db", here.env.now, timeout_seconds=30)
    async with scoped(World(here.model, evolve(here.env, cache=store), here.clock)) as kept:
        seen = [await kept.shown()]
        kept.clock[0] = TTL_S - 1
        seen.append(await kept.shown())
        kept.clock[0] = TTL_S + STALE_S - 1
        seen.append(await kept.shown())
        with anyio.fail_after(30):
            while not (seen[-1][1] and not seen[-1][2] and seen[-1][0] == "2"):
                await anyio.sleep(0.01)
                seen.append(await kept.shown())
    await store.aclose()
    assert seen[:3] == [("1", False, False), ("1", True, False), ("1", True, True)]


async def test_fault_200_a_question_has_one_refresh_at_a_time() -> None:
    async with scoped(world()) as here:
        await here.ask()
        here.clock[0] = TTL_S
        here.model.gate = anyio.Event()
        for _ in range(20):
            assert await here.shown() == ("1", True, True)
        await anyio.wait_all_tasks_blocked()
        assert len(here.model.calls) == 2
        here.model.gate.set()


async def test_fault_201_a_refresh_ends_with_its_environment() -> None:
    here = world()
    async with scoped(here) as inside:
        await inside.ask()
        here.clock[0] = TTL_S
        here.model.gate = anyio.Event()
        await inside.ask()
        await anyio.wait_all_tasks_blocked()
        assert (len(here.model.calls), here.model.cancelled) == (2, 0)
    assert here.model.cancelled == 1


async def test_fault_201_open_env_has_the_scope_where_the_cache_needs_it() -> None:
    for stale_s in (0, STALE_S):
        cache = CacheConfig(stale_seconds=stale_s)
        async with open_env(evolve(CONFIG, cache=cache)) as env:
            assert (env.background is not None) == bool(stale_s)
            if env.background is not None:
                assert env.background.start("forever", anyio.sleep_forever)
        if env.background is not None:
            assert not env.background.start("late", anyio.sleep_forever)


async def test_fault_201_another_loop_has_no_part_in_the_scope() -> None:
    async def start(env: LLMEnv) -> bool:
        assert env.background is not None
        return env.background.start("elsewhere", anyio.sleep_forever)

    async with scoped(world()) as here:
        assert not await anyio.to_thread.run_sync(anyio.run, start, here.env)


async def test_fault_202_a_refresh_that_fails_leaves_the_answer_and_pauses() -> None:
    async with scoped(world()) as here:
        await here.ask()
        here.clock[0] = TTL_S
        here.model.fails = True
        for _ in range(10):
            assert await here.shown() == ("1", True, True)
            await anyio.wait_all_tasks_blocked()
        assert len(here.model.calls) == 2
    assert REFRESH_PAUSE_S >= 1


async def test_fault_202_a_defect_of_a_refresh_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with scoped(world()) as here:
        await here.ask()
        here.clock[0] = TTL_S
        here.model.defect = True
        with caplog.at_level(logging.WARNING, "llm_effects"):
            await here.ask()
            await anyio.wait_all_tasks_blocked()
        here.model.defect = False
        assert await here.shown() == ("1", True, True)
    assert "refresh failed: KeyError" in caplog.text
    assert "a mistake" not in caplog.text


async def test_fault_203_without_a_scope_the_caller_refreshes() -> None:
    here = world()
    await here.ask()
    here.clock[0] = TTL_S
    assert await here.shown() == ("2", False, False)
    assert await here.shown() == ("2", True, False)


async def test_fault_203_without_a_scope_a_failure_returns_the_stale_answer_with_a_warning() -> None:
    here = world()
    await here.ask()
    here.clock[0], here.model.fails = TTL_S, True
    response = await here.ask()
    assert (response.content, response.cached, response.stale) == ("1", True, True)
    assert response.warnings == ("the stored answer is stale, and no fresh one could be fetched: ModelUnavailable",)
    assert [attempt.outcome for attempt in response.attempts] == ["ModelUnavailable"]
    here.clock[0] = TTL_S + STALE_S
    assert (await run(generate(ASK), here.env)).failure().tag == "ModelUnavailable"


def test_entries_without_a_bound_are_written_as_before() -> None:
    entry = Entry(response=answer("because"))
    assert b"stale" not in dump_entry(entry)
    assert b"fresh_until" not in dump_entry(entry)
    bounded = evolve(entry, fresh_until=12.5)
    assert load_entry(dump_entry(bounded)) == bounded


async def test_fault_201_a_scope_may_be_left_in_another_task() -> None:
    opened = open_env(CONFIG)
    background = (await opened.__aenter__()).background
    assert background is not None
    assert background.start("forever", anyio.sleep_forever)
    async with anyio.create_task_group() as group:
        group.start_soon(opened.__aexit__, None, None, None)
    assert not background.start("late", anyio.sleep_forever)


def changed(here: World) -> Callable[[LLMEnv], LLMEnv]:
    return lambda live: evolve(live, cache=here.env.cache, clients=here.model, now=here.env.now)


async def test_fault_199_a_manager_that_is_entered_returns_stale_answers_at_once() -> None:
    here = world()
    manager = make_llm_manager(CONFIG, changed(here))
    for opening in range(2):  # it can be entered again
        async with manager, manager:
            first = (await manager.run(generate(ASK))).unwrap()
            here.clock[0] += TTL_S
            here.model.gate = anyio.Event()
            stale = (await manager.run(generate(ASK))).unwrap()
            assert (stale.content, stale.stale) == (first.content, True)
            here.model.gate.set()
            await anyio.wait_all_tasks_blocked()
            fresh = (await manager.run(generate(ASK))).unwrap()
            assert (fresh.content, fresh.stale) == (f"{opening + 2}", False)
        assert manager.env.background is None


async def test_fault_199_async_llm_returns_stale_answers_at_once() -> None:
    here = world()
    async with AsyncLLM(here.env) as llm:
        assert (await llm.generate(ASK)).content == "1"
        here.clock[0] = TTL_S
        here.model.gate = anyio.Event()
        assert (await llm.generate(ASK)).stale
        await anyio.wait_all_tasks_blocked()
    assert (len(here.model.calls), here.model.cancelled) == (2, 1)


def test_fault_199_llm_returns_stale_answers_at_once() -> None:
    here = world()
    with LLM(here.env) as llm:
        assert llm.generate(ASK).content == "1"
        here.clock[0] = TTL_S
        assert llm.generate(ASK).stale
        deadline = time.monotonic() + 30
        while (answered := llm.generate(ASK)).content != "2" and time.monotonic() < deadline:
            time.sleep(0.01)
    assert (answered.content, answered.stale) == ("2", False)


# In a fleet: with environments that share nothing but a Redis server.


@asynccontextmanager
async def fleet(
    url: str, question: LLMRequest, *, scopes: bool = True, lease: float = 10.0
) -> AsyncGenerator[tuple[Model, list[World]]]:
    """Open eight environments with a stale answer to a question, each with a connection and a scope of its own."""
    model, clock = Model(), [0.0]
    config = evolve(CONFIG, cache=evolve(CONFIG.cache, lease_seconds=lease))
    async with AsyncExitStack() as stack:
        worlds = list[World]()
        for _ in range(8):
            cache = open_redis(url, timeout_seconds=10).unwrap()
            stack.push_async_callback(cache.aclose)
            tasks = await stack.enter_async_context(background_tasks(log_refresh_defect)) if scopes else None
            env = scripted_env(config=config, clients=model)
            env = evolve(env, cache=cache, background=tasks, now=lambda: START + timedelta(seconds=clock[0]))
            worlds.append(World(model, env, clock))
        assert (await run(generate(question), worlds[0].env)).unwrap().content == "1"
        clock[0] = TTL_S
        yield model, worlds


async def shown_by_all(worlds: list[World], question: LLMRequest) -> list[tuple[str, bool]]:
    shown = list[tuple[str, bool]]()

    async def one(here: World) -> None:
        response = (await run(generate(question), here.env)).unwrap()
        shown.append((response.content, response.stale))

    async with anyio.create_task_group() as group:
        for here in worlds:
            group.start_soon(one, here)
    return shown


async def until(holds: Callable[[], object]) -> None:
    with anyio.fail_after(30):
        while not holds():
            await anyio.sleep(0.005)


async def settled(worlds: list[World]) -> None:
    """Wait until no environment has a task in its scope."""
    await until(lambda: not any(here.env.background._keys for here in worlds if here.env.background))


async def test_fault_291_of_a_fleet_one_process_refreshes(redis_server: str, request: pytest.FixtureRequest) -> None:
    ask = LLMRequest(prompt=request.node.nodeid)
    async with fleet(redis_server, ask) as (model, worlds):
        model.gate = anyio.Event()
        for _ in range(2):
            assert await shown_by_all(worlds, ask) == [("1", True)] * 8
        await until(lambda: len(model.calls) == 2)
        model.gate.set()
        await settled(worlds)
        assert await shown_by_all(worlds, ask) == [("2", False)] * 8
        assert len(model.calls) == 2


async def test_fault_291_while_one_process_refreshes_another_asks_for_the_lease_once_a_second(
    redis_server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, taken, take = LLMRequest(prompt=request.node.nodeid), list[float](), RedisLeases.take

    async def noted(leases: RedisLeases, key: str, holder: str, seconds: float) -> Result[Lease, LLMError]:
        taken.append(time.monotonic())
        return await take(leases, key, holder, seconds)

    async with fleet(redis_server, ask) as (model, (first, second, *_)):
        model.gate = anyio.Event()
        await shown_by_all([first], ask)
        await until(lambda: len(model.calls) == 2)
        monkeypatch.setattr(RedisLeases, "take", noted)
        for _ in range(50):
            assert await shown_by_all([second], ask) == [("1", True)]
        await anyio.wait_all_tasks_blocked()
        assert taken
        assert all(after - before >= REFRESH_PAUSE_S for before, after in pairwise(taken))


async def test_fault_291_of_a_fleet_one_process_asks_again_after_a_failure(
    redis_server: str, request: pytest.FixtureRequest
) -> None:
    ask = LLMRequest(prompt=request.node.nodeid)
    async with fleet(redis_server, ask) as (model, worlds):
        model.fails = True
        assert await shown_by_all(worlds, ask) == [("1", True)] * 8
        await settled(worlds)
        assert len(model.calls) == 2
        model.fails = False
        shown = [("1", True)]
        with anyio.fail_after(30):
            while ("3", False) not in shown:
                shown = await shown_by_all(worlds, ask)
                await anyio.sleep(0.05)
        assert len(model.calls) == 3


async def test_fault_291_without_scopes_one_caller_of_a_fleet_waits(
    redis_server: str, request: pytest.FixtureRequest
) -> None:
    ask = LLMRequest(prompt=request.node.nodeid)
    async with fleet(redis_server, ask, scopes=False) as (model, worlds):
        shown = await shown_by_all(worlds, ask)
    assert {*shown} == {("1", True), ("2", False)}
    assert len(model.calls) == 2


async def test_fault_291_a_refresh_that_ends_with_its_process_is_taken_over(
    redis_server: str, request: pytest.FixtureRequest
) -> None:
    ask = LLMRequest(prompt=request.node.nodeid)
    async with fleet(redis_server, ask, lease=600) as (model, worlds):
        model.gate = anyio.Event()
        async with background_tasks(log_refresh_defect) as tasks:
            first = World(model, evolve(worlds[0].env, background=tasks), worlds[0].clock)
            await shown_by_all([first], ask)
            await until(lambda: len(model.calls) == 2)
        model.gate.set()
        with anyio.fail_after(30):
            while len(model.calls) < 3:
                await shown_by_all(worlds[1:], ask)
                await settled(worlds)
        assert model.cancelled == 1


async def test_without_leases_each_process_refreshes(redis_server: str, request: pytest.FixtureRequest) -> None:
    ask = LLMRequest(prompt=request.node.nodeid)
    async with fleet(redis_server, ask, lease=0) as (model, worlds):
        model.gate = anyio.Event()
        await shown_by_all(worlds, ask)
        await until(lambda: len(model.calls) == 9)


# Together with other features.

ADA = "ada@example.org"


def find(text: str) -> list[Finding]:
    return [Finding(each.start(), each.end(), "EMAIL") for each in re.finditer(r"\w+@example\.org", text)]


async def test_fault_214_a_stale_answer_and_its_refresh_hold_placeholders() -> None:
    model = scripted(lambda request: f"{len(model.calls)}: {request.prompt}")
    async with scoped(world()) as here:
        env = evolve(here.env, clients=model, redact=Redaction(find, key="a key for these tests"))
        seen = list[tuple[str, bool]]()
        for _ in range(3):
            response = (await run(generate(f"Mail {ADA}"), env)).unwrap()
            seen.append((response.content, response.stale))
            await anyio.wait_all_tasks_blocked()
            here.clock[0] += TTL_S
    assert seen == [(f"1: Mail {ADA}", False), (f"1: Mail {ADA}", True), (f"2: Mail {ADA}", True)]
    assert ADA not in repr(model.requests)
    assert len({request.prompt for request in model.requests}) == 1


async def test_fault_207_a_refresh_of_what_stays_asks_only_models_here() -> None:
    far = ModelConfig(provider="openai-chat", model="m", api_key="sk-12345678")
    routing = RoutingConfig(max_retries=0, tasks={"general": ("far", "one")})
    config = evolve(CONFIG, models={"far": far, **CONFIG.models}, routing=routing)
    model = scripted(answer("1"), ModelUnavailable(status=503), answer("3"))
    private = evolve(ASK, stays="machine")
    async with scoped(world()) as here:
        env = evolve(here.env, clients=model, config=config)
        for stale in (False, True, True):  # the second refresh comes after one that failed
            response = (await run(generate(private), env)).unwrap()
            assert (response.content, response.stale, response.stays) == ("1", stale, "machine")
            await anyio.wait_all_tasks_blocked()
            here.clock[0] += TTL_S
        assert (await run(generate(ASK), env)).unwrap().model == "far"
        rows = (await result_of(env.ledger.rows())).unwrap()
    assert [call.model for call in model.calls] == ["one", "one", "far"]
    assert [row.left_machine for row in rows] == [False, False, True]
