"""A batch waits for its limits and fails none of its requests (virtual time)."""

import anyio
import pytest
from returns.pipeline import is_successful

from llm_effects import (
    LLMConfig,
    LLMEnv,
    LLMRequest,
    NetworkError,
    Preferences,
    RateLimitExceeded,
    generate_many,
    run,
    scripted_env,
)
from llm_effects.testing import Delayed, Reply, run_in_virtual_time
from tests.fixtures.models import models_in_order, scripted_models


def environment(config: LLMConfig, **replies: Reply | tuple[Reply, ...]) -> LLMEnv:
    return scripted_env(clients=scripted_models(**replies), config=config)


def answered(env: LLMEnv, count: int, concurrency: int = 8, **preferences: float) -> tuple[int, float]:
    """Return how many of some requests were answered, and after how many seconds."""
    settings = Preferences(**preferences)  # type: ignore[arg-type]
    requests = [LLMRequest(prompt=f"{number}?", preferences=settings) for number in range(count)]

    async def main() -> tuple[int, float]:
        began = anyio.current_time()
        results = (await run(generate_many(requests, concurrency), env)).unwrap()
        return sum(map(is_successful, results)), anyio.current_time() - began

    return run_in_virtual_time(main)


def test_fault_145_a_batch_waits_for_its_requests_per_minute() -> None:
    env = environment(models_in_order("a", a={"requests_per_minute": 5}), a="because")
    count, took = answered(env, 200)
    assert count == 200
    assert 39 * 60 <= took <= 45 * 60


@pytest.mark.parametrize("concurrency", [8, 40])
def test_fault_145_a_batch_waits_for_a_free_slot(concurrency: int) -> None:
    env = environment(models_in_order("a", a={"concurrency": 1}), a=Delayed(15, "because"))
    count, took = answered(env, 40, concurrency)
    assert count == 40
    assert 600 <= took <= 700


def test_fault_145_a_deadline_that_passes_in_the_queue_costs_no_request() -> None:
    env = environment(models_in_order("a", a={"concurrency": 1}), a=Delayed(15, "because"))
    assert answered(env, 20, timeout_ms=110_000)[0] == 20


def test_fault_145_a_batch_waits_for_the_first_of_several_limited_models() -> None:
    limits: dict[str, object] = {"requests_per_minute": 5}
    env = environment(models_in_order("a", "b", a=limits, b=limits), a="because", b="because")
    count, took = answered(env, 200, concurrency=60)
    assert count == 200
    assert took <= 25 * 60


def test_fault_145_a_batch_waits_for_a_server_that_asks_for_pauses() -> None:
    busy = RateLimitExceeded(status=429, retry_after=60.0)
    env = environment(models_in_order("a"), a=(*(busy,) * 20, "because"))
    assert answered(env, 8)[0] == 8


@pytest.mark.parametrize(
    "error",
    [
        RateLimitExceeded(status=429, quota=True),
        RateLimitExceeded(status=429, retry_after=60.0),
        RateLimitExceeded(status=429, retry_after=86_400.0),
        NetworkError(phase="reset"),
    ],
)
def test_fault_145_a_batch_does_not_wait_for_ever(error: Reply) -> None:
    count, took = answered(environment(models_in_order("a"), a=error), 8)
    assert count == 0
    assert took <= 3_600


def test_fault_145_equal_requests_to_a_stalled_model_wait_once() -> None:
    env = environment(models_in_order("a"), a=Delayed(1e6, "too late"))
    requests = [LLMRequest(prompt="the same?", preferences=Preferences(timeout_ms=10_000))] * 8

    async def main() -> float:
        began = anyio.current_time()
        results = (await run(generate_many(requests, 8), env)).unwrap()
        assert not any(map(is_successful, results))
        return anyio.current_time() - began

    assert run_in_virtual_time(main) <= 21
