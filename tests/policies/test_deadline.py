"""Deadlines of the call and of one attempt."""

import pytest
from attrs import evolve

from llm_effects import (
    LLMConfig,
    LLMRequest,
    ModelConfig,
    NetworkError,
    Preferences,
    RequestTimeout,
    generate,
    run,
    scripted_env,
)
from llm_effects.config import RoutingConfig
from llm_effects.testing import Delayed

pytestmark = pytest.mark.anyio


ASK = LLMRequest(prompt="why?")


def models(*names: str, **routing: object) -> LLMConfig:
    settings = {name: ModelConfig(provider="lm-studio", model=name) for name in names}
    return LLMConfig(models=settings, routing=RoutingConfig(**{"max_retries": 2, **routing}))  # type: ignore[arg-type]


ONE = models("one")


async def test_the_deadline_ends_the_call_and_keeps_its_attempt() -> None:
    env = scripted_env(NetworkError(), Delayed(60, "too late"), config=ONE)
    request = LLMRequest(prompt="why?", preferences=Preferences(timeout_ms=400))
    error = (await run(generate(request), evolve(env, draw=lambda: 0.0))).failure()
    assert error == RequestTimeout(model="one", timeout_ms=400, phase="total")
    assert [attempt.outcome for attempt in error.attempts] == ["NetworkError", "TimeoutError"]


async def test_one_attempt_has_its_own_timeout() -> None:
    slow = ModelConfig(provider="lm-studio", model="slow", timeout_ms=20)
    config = LLMConfig(models={"slow": slow, "fast": ModelConfig(provider="lm-studio", model="fast")})
    env = scripted_env(Delayed(60, "late"), "in time", config=config)
    response = (await run(generate(ASK), env)).unwrap()
    assert [(each.model, each.outcome) for each in response.attempts] == [
        ("slow", "TimeoutError"),
        ("fast", "success"),
    ]
