"""The behaviour that all limits share: memory and Redis."""

from collections.abc import AsyncIterator

import pytest

from llm_effects.effects.env import Limits
from llm_effects.stores.limits.memory import MemoryLimits
from llm_effects.testing.store_checks import LIMITS_CHECKS, LimitsCheck
from tests.fixtures.limits_worker import opened
from tests.fixtures.redis_server import redis_server

__all__ = ["redis_server"]


@pytest.fixture(params=["memory", "redis"])
async def limits(request: pytest.FixtureRequest) -> AsyncIterator[Limits]:
    redis = request.param == "redis"
    store: Limits = opened(request.getfixturevalue("redis_server")) if redis else MemoryLimits()
    yield store
    await store.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("check", LIMITS_CHECKS, ids=lambda check: check.__name__)
async def test_the_limits_pass_the_check(limits: Limits, check: LimitsCheck) -> None:
    await check(limits)
