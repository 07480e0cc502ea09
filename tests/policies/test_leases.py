"""One call of many processes asks for a missing answer: with environments that share nothing but a Redis server."""

# ruff: noqa: ASYNC110 - a server does not announce its changes

import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from attrs import define, evolve, field
from redis import Redis
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects import (
    CachePolicy,
    LLMConfig,
    LLMEnv,
    LLMRequest,
    LLMResponse,
    ModelConfig,
    ModelUnavailable,
    StreamEvent,
    generate,
    run,
    scripted_env,
    stream,
)
from llm_effects.config import CacheConfig, RoutingConfig
from llm_effects.effects.call import Call
from llm_effects.effects.effect import Answer
from llm_effects.effects.env import Lease
from llm_effects.policies.cache import cache_key
from llm_effects.policies.leases import SHORTEST_S
from llm_effects.policies.redaction import Redaction
from llm_effects.stores.cache.memory import MemoryCache
from llm_effects.stores.cache.redis import RedisCache, open_redis
from llm_effects.testing import answer, scripted
from llm_effects.values.errors import LLMError
from llm_effects.values.placeholders import Finding
from llm_effects.values.records import ModelHealth
from llm_effects.values.requests import Preferences
from llm_effects.values.responses import FinishReason
from tests.fixtures.redis_server import free_port, redis_server, start

__all__ = ["redis_server"]

pytestmark = pytest.mark.anyio

LEASE_S = 0.6
LONG_S = 30.0


def config(lease: float = LEASE_S) -> LLMConfig:
    return LLMConfig(
        models={"one": ModelConfig(provider="lm-studio", model="m")},
        routing=RoutingConfig(max_retries=0),
        cache=CacheConfig(lease_seconds=lease),
    )


@define
class Model:
    """A model that many processes ask, which answers once its gate is open."""

    reply: Answer = field(factory=lambda: Success(answer("because")))
    gate: anyio.Event = field(factory=anyio.Event)
    asked: int = 0

    def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
        return FutureResult(self._answer(call))

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        return FutureResult.from_value(ModelHealth(model=name, provider=model.provider))

    async def _answer(self, call: Call) -> Answer:
        self.asked += 1
        await self.gate.wait()
        return self.reply


@asynccontextmanager
async def processes(model: Model, count: int, url: str, lease: float = LEASE_S) -> AsyncGenerator[list[LLMEnv]]:
    """Open environments, each with a connection of its own, as other processes have them."""
    caches = [open_redis(url, timeout_seconds=10).unwrap() for _ in range(count)]
    try:
        yield [evolve(scripted_env(config=config(lease), clients=model), cache=cache) for cache in caches]
    finally:
        for cache in caches:
            await cache.aclose()


def question(request: pytest.FixtureRequest, timeout_ms: float = 60_000) -> LLMRequest:
    return LLMRequest(prompt=request.node.nodeid, preferences=Preferences(timeout_ms=timeout_ms))


async def ask_all(envs: list[LLMEnv], ask: LLMRequest) -> list[Answer]:
    answers: list[Answer] = []

    async def one(env: LLMEnv) -> None:
        answers.append(await run(generate(ask), env))

    async with anyio.create_task_group() as group:
        for env in envs:
            group.start_soon(one, env)
    return answers


async def until(holds: Callable[[], object]) -> None:
    with anyio.fail_after(30):
        while not holds():
            await anyio.sleep(0.005)


async def test_fault_256_of_many_processes_that_miss_one_asks(
    redis_server: str, request: pytest.FixtureRequest
) -> None:
    model = Model()
    async with processes(model, 8, redis_server) as envs, anyio.create_task_group() as group:
        answers: list[Answer] = []

        async def ask() -> None:
            answers.extend(await ask_all(envs, question(request)))

        group.start_soon(ask)
        await until(lambda: model.asked)
        await anyio.sleep(2 * LEASE_S)  # it renews its lease
        assert model.asked == 1
        model.gate.set()
    assert [each.unwrap().content for each in answers] == ["because"] * 8
    assert sorted(each.unwrap().cached for each in answers) == [False] + [True] * 7
    assert model.asked == 1


@define
class CountedLeases:
    """Leases that are always free, and count how often they are renewed."""

    seconds: list[float] = field(factory=list)
    renewed: int = 0

    async def take(self, key: str, holder: str, seconds: float) -> Result[Lease, LLMError]:
        self.seconds.append(seconds)
        return Success(Lease.OURS)

    async def renew(self, key: str, holder: str, seconds: float) -> Result[bool, LLMError]:
        self.renewed += 1
        return Success(True)

    def end(self, key: str, holder: str, *, answered: bool) -> None: ...


async def test_a_tiny_lease_does_not_flood_the_store(request: pytest.FixtureRequest) -> None:
    model, cache = Model(), MemoryCache()
    leases = cache.leases = CountedLeases()  # type: ignore[attr-defined]
    env = evolve(scripted_env(config=config(1e-9), clients=model), cache=cache)
    async with anyio.create_task_group() as group:
        group.start_soon(run, generate(question(request)), env)
        await until(lambda: model.asked)
        await anyio.sleep(0.05)
        model.gate.set()
    assert leases.seconds == [SHORTEST_S]
    assert leases.renewed <= 1


async def test_a_lease_ends_with_its_call(redis_server: str, request: pytest.FixtureRequest) -> None:
    model, ask = Model(), question(request)
    model.gate.set()
    with Redis.from_url(redis_server) as client:
        async with processes(model, 1, redis_server, lease=LONG_S) as envs:
            (await run(generate(ask), envs[0])).unwrap()
            name = f"lease:{{llm_effects:cache:{cache_key(ask, envs[0].config)}}}"
            await until(lambda: not client.exists(name))


async def test_fault_257_when_the_one_that_asks_is_cancelled_another_asks(
    redis_server: str, request: pytest.FixtureRequest
) -> None:
    model, ask = Model(), question(request)
    async with processes(model, 3, redis_server, lease=LONG_S) as envs, anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as first:
                first.start_soon(ask_all, envs[:1], ask)
                await until(lambda: model.asked)
                answers: list[Answer] = []

                async def others() -> None:
                    answers.extend(await ask_all(envs[1:], ask))

                group.start_soon(others)
                await anyio.sleep(0.05)
                scope.cancel()
        await until(lambda: model.asked == 2)
        model.gate.set()
    assert [each.unwrap().content for each in answers] == ["because"] * 2
    assert model.asked == 2


DYING = """
import sys, anyio
from llm_effects.stores.cache.redis import open_redis

async def main():
    cache = open_redis(sys.argv[1], timeout_seconds=10).unwrap()
    print((await cache.leases.take(sys.argv[2], "dying", float(sys.argv[3]))).unwrap(), flush=True)
    await anyio.sleep_forever()

anyio.run(main)
"""


async def test_fault_257_when_the_one_that_asks_is_killed_another_asks(
    redis_server: str, request: pytest.FixtureRequest
) -> None:
    model, ask = Model(), question(request)
    model.gate.set()
    async with processes(model, 2, redis_server) as envs:
        command = [sys.executable, "-c", DYING, redis_server, cache_key(ask, envs[0].config), str(LEASE_S)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as dying:  # noqa: ASYNC220
            assert dying.stdout is not None
            assert dying.stdout.readline().strip() == "Lease.OURS"
            dying.send_signal(signal.SIGKILL)
        answers = await ask_all(envs, ask)
    assert [each.unwrap().content for each in answers] == ["because"] * 2
    assert model.asked == 1


@pytest.mark.parametrize(
    "reply",
    [
        Failure(ModelUnavailable(model="one", status=503)),
        Success(evolve(answer("cut"), finish_reason=FinishReason.LENGTH)),
    ],
    ids=["an error", "an answer that is not stored"],
)
async def test_fault_258_what_is_not_shared_makes_all_that_wait_ask_at_once(
    redis_server: str, request: pytest.FixtureRequest, reply: Answer
) -> None:
    model, ask = Model(reply), question(request)
    async with processes(model, 4, redis_server, lease=LONG_S) as envs, anyio.create_task_group() as group:
        group.start_soon(ask_all, envs, ask)
        await until(lambda: model.asked)
        await anyio.sleep(0.1)
        gate, model.gate = model.gate, anyio.Event()
        gate.set()
        await until(lambda: model.asked == 4)  # none of them waits for another
        model.gate.set()


async def test_fault_259_a_call_waits_for_half_of_its_time_at_most(
    redis_server: str, request: pytest.FixtureRequest
) -> None:
    model = Model()
    model.gate.set()
    async with processes(model, 1, redis_server) as envs:
        ask = question(request, timeout_ms=1000)
        holder: RedisCache = envs[0].cache  # type: ignore[assignment]
        key = cache_key(ask, envs[0].config)
        assert (await holder.leases.take(key, "another", LONG_S)).unwrap() is Lease.OURS
        assert (await run(generate(ask), envs[0])).unwrap().content == "because"
        assert (await holder.leases.take(key, "third", LONG_S)).unwrap() is Lease.STORED


async def test_a_stream_does_not_wait(redis_server: str, request: pytest.FixtureRequest) -> None:
    model = Model()
    model.gate.set()
    events: list[StreamEvent] = []

    async def sink(event: StreamEvent) -> None:
        events.append(event)

    async with processes(model, 1, redis_server) as envs:
        ask = question(request)
        holder: RedisCache = envs[0].cache  # type: ignore[assignment]
        await holder.leases.take(cache_key(ask, envs[0].config), "another", LONG_S)
        with anyio.fail_after(20):
            assert (await run(stream(ask, sink), envs[0])).unwrap().content == "because"


@pytest.mark.parametrize("policy", [CachePolicy.REFRESH, CachePolicy.BYPASS])
async def test_who_wants_a_fresh_answer_does_not_wait(
    redis_server: str, request: pytest.FixtureRequest, policy: CachePolicy
) -> None:
    model = Model()
    model.gate.set()
    async with processes(model, 1, redis_server) as envs:
        ask = evolve(question(request), cache=policy)
        holder: RedisCache = envs[0].cache  # type: ignore[assignment]
        await holder.leases.take(cache_key(ask, envs[0].config), "another", LONG_S)
        with anyio.fail_after(20):
            assert (await run(generate(ask), envs[0])).unwrap().content == "because"


async def test_without_leases_each_asks_for_itself(redis_server: str, request: pytest.FixtureRequest) -> None:
    model = Model()
    async with processes(model, 3, redis_server, lease=0) as envs, anyio.create_task_group() as group:
        group.start_soon(ask_all, envs, question(request))
        await until(lambda: model.asked == 3)
        model.gate.set()


async def test_fault_112_a_server_that_is_gone_keeps_no_one_from_asking(request: pytest.FixtureRequest) -> None:
    model, port = Model(), free_port()
    with start(port=port) as server:
        async with processes(model, 2, server.url()) as envs, anyio.create_task_group() as group:
            answers: list[Answer] = []

            async def ask() -> None:
                answers.extend(await ask_all(envs, question(request)))

            group.start_soon(ask)
            await until(lambda: model.asked)
            server.process.kill()
            await until(lambda: model.asked == 2)
            model.gate.set()
    assert [each.unwrap().content for each in answers] == ["because"] * 2


async def test_only_the_holder_renews_and_ends_a_lease(redis_server: str, request: pytest.FixtureRequest) -> None:
    cache, key = open_redis(redis_server, timeout_seconds=10).unwrap(), cache_key(question(request), config())
    take, renew = cache.leases.take, cache.leases.renew
    assert [(await take(key, name, LONG_S)).unwrap() for name in ("a", "a", "b")] == [
        Lease.OURS,
        Lease.OURS,
        Lease.THEIRS,
    ]
    assert [(await renew(key, name, LONG_S)).unwrap() for name in ("a", "b")] == [True, False]
    cache.leases.end(key, "b", answered=True)
    await anyio.sleep(0.05)
    assert (await take(key, "b", LONG_S)).unwrap() is Lease.THEIRS
    cache.leases.end(key, "a", answered=True)
    with anyio.fail_after(20):
        while (await take(key, "b", LONG_S)).unwrap() is not Lease.UNSHARED:
            await anyio.sleep(0.01)
    await cache.aclose()


@pytest.mark.parametrize("left", ["timed out", "cancelled"])
@pytest.mark.parametrize("known", [True, False], ids=["scripts known", "scripts unknown"])
async def test_fault_290_a_lease_whose_caller_has_left_is_free_at_once(left: str, known: bool) -> None:
    with start() as server:
        ours = open_redis(server.url(), timeout_seconds=0.2 if left == "timed out" else 10).unwrap()
        other = open_redis(server.url(), timeout_seconds=10).unwrap()
        for cache in (ours, other) if known else ():
            assert (await cache.leases.take("warm", "a", LONG_S)).unwrap() is Lease.OURS
            cache.leases.end("warm", "a", answered=False)
            while not is_successful(await cache.leases.renew("warm", "a", LONG_S)):
                await anyio.sleep(0.01)
        server.process.send_signal(signal.SIGSTOP)
        with anyio.move_on_after(0.2 if left == "cancelled" else 30):
            assert not is_successful(await ours.leases.take("key", "a", 10 * LONG_S))
        server.process.send_signal(signal.SIGCONT)
        with anyio.fail_after(LONG_S):
            while (await other.leases.take("key", "b", LONG_S)).unwrap() is not Lease.OURS:
                await anyio.sleep(0.01)
        await ours.aclose()
        await other.aclose()


# Together with other features.


@pytest.mark.parametrize("here", [True, False])
async def test_fault_213_what_stays_takes_no_lease_on_another_machine(
    redis_server: str, request: pytest.FixtureRequest, here: bool
) -> None:
    url = redis_server if here else redis_server.replace("127.0.0.1", "127.1")  # the same server, by no literal address
    model, private = Model(), evolve(question(request), stays="machine")
    model.gate.set()
    client = Redis.from_url(redis_server)
    before = set(client.keys())
    async with processes(model, 2, redis_server) as opened:
        envs = [evolve(env, config=evolve(env.config, cache=evolve(env.config.cache, url=url))) for env in opened]
        for asked, ask in ((1 if here else 2, private), (2 if here else 3, evolve(private, stays=None))):
            for env in envs:
                assert (await run(generate(ask), env)).unwrap().stays == ask.stays
            assert model.asked == asked
            known = [key for key in set(client.keys()) - before if cache_key(ask, envs[0].config).encode() in key]
            assert bool(known) is (here or ask.stays is None)
    client.close()


async def test_fault_256_owners_wait_for_their_own_answers_only(
    redis_server: str, request: pytest.FixtureRequest
) -> None:
    model, ask = Model(), question(request)
    async with processes(model, 4, redis_server) as envs, anyio.create_task_group() as group:
        for env, owner in zip(envs, ("ada", "ada", "bob", "bob"), strict=True):
            group.start_soon(ask_all, [env], evolve(ask, owner=owner))
        await until(lambda: model.asked == 2)
        model.gate.set()
    assert model.asked == 2


async def test_fault_256_processes_with_one_key_of_redaction_share_an_answer(
    redis_server: str, request: pytest.FixtureRequest
) -> None:
    def find(text: str) -> list[Finding]:
        return [Finding(text.index("Ada"), text.index("Ada") + 3, "NAME")]

    model = scripted(lambda request: f"<{request.prompt}>")
    ask = evolve(question(request), prompt=f"{request.node.nodeid} Ada")
    async with processes(Model(), 3, redis_server) as opened:
        envs = [evolve(env, clients=model, redact=Redaction(find, key="a key for these tests")) for env in opened]
        answers = [each.unwrap() for each in await ask_all(envs, ask)]
        stored = Redis.from_url(redis_server)
        values = [stored.get(key) for key in stored.scan_iter() if stored.type(key) == b"string"]
        stored.close()
    assert {each.content for each in answers} == {f"<{ask.prompt}>"}
    assert sorted(each.cached for each in answers) == [False, True, True]
    assert "Ada" not in repr(model.requests)
    assert not [each for each in values if each is not None and b" Ada" in each]
