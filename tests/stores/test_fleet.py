"""What a call does when the servers of a fleet are gone, and what is there when they are back."""

# ruff: noqa: ASYNC110 - a server does not announce its changes

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest
from attrs import evolve

from llm_effects import LLMConfig, LLMEnv, LLMRequest, converse, generate, open_env, run, start_conversation
from llm_effects.config import BudgetConfig, CacheConfig, LimitsConfig, ModelConfig, StorageConfig
from llm_effects.config.models import Price
from llm_effects.effects.effect import result_of
from llm_effects.stores.limits.redis import ALONE
from llm_effects.testing import scripted
from tests.fixtures.postgres_server import Postgres, postgres_server
from tests.fixtures.redis_server import free_port, start

__all__ = ["postgres_server"]

pytestmark = pytest.mark.anyio

MODEL = ModelConfig(provider="lm-studio", model="m", concurrency=2, price=Price(input=1, output=2))
BUDGET = BudgetConfig(name="all", limit_usd="5")


@asynccontextmanager
async def fleet(redis: str, postgres: str, *, budgets: bool = True) -> AsyncGenerator[LLMEnv]:
    config = LLMConfig(
        models={"one": MODEL},
        cache=CacheConfig(url=redis),
        limits=LimitsConfig(url=redis),
        storage=StorageConfig(url=postgres),
        budgets=(BUDGET,) if budgets else (),
    )
    async with open_env(config) as env:
        yield evolve(env, clients=scripted("because"))


async def test_fault_260_without_redis_calls_go_on_with_limits_of_their_own(postgres_server: Postgres) -> None:
    port = free_port()
    with start(port=port) as server:
        async with fleet(server.url(), postgres_server.new_url()) as env:
            assert (await run(generate("why?"), env)).unwrap().warnings == ()
            server.process.kill()
            server.process.wait()
            alone = (await run(generate("and then?"), env)).unwrap()
            assert alone.content == "because"
            assert ALONE in alone.warnings
            assert any("the cache could not be read" in each for each in alone.warnings)
            with start(port=port):
                with anyio.fail_after(30):
                    while (await run(generate(f"back? {anyio.current_time()}"), env)).unwrap().warnings:
                        await anyio.sleep(0.05)


async def test_fault_261_without_postgres_budgets_and_conversations_fail_by_name(postgres_server: Postgres) -> None:
    with start() as redis:
        async with fleet(redis.url(), postgres_server.new_url()) as env:
            conversation = (await run(start_conversation(), env)).unwrap().id
            with postgres_server.crashed():
                refused = (await run(generate("why?"), env)).failure()
                turn = (await run(converse(conversation, "why?"), env)).failure()
            assert {refused.tag, turn.tag} == {"StorageFailed"}
            with anyio.fail_after(30):
                while not (await run(converse(conversation, "why?"), env)).value_or(None):
                    await anyio.sleep(0.05)


async def test_fault_262_without_postgres_calls_go_on_and_the_ledger_catches_up(postgres_server: Postgres) -> None:
    with start() as redis:
        async with fleet(redis.url(), postgres_server.new_url(), budgets=False) as env:
            assert (await run(generate("why?"), env)).unwrap().content == "because"
            with postgres_server.crashed():
                for number in range(5):
                    assert (await run(generate(LLMRequest(prompt=f"{number}?")), env)).unwrap().content == "because"
            with anyio.fail_after(30):
                while len((await result_of(env.ledger.rows(newest=10))).value_or(())) < 6:
                    await anyio.sleep(0.05)
