"""Routing: which candidate is asked next, and which errors end the call."""

import anyio
import pytest

from llm_effects import (
    Allow,
    AuthenticationFailed,
    ConfigurationError,
    ContentRefused,
    ContextTooLarge,
    InvalidRequest,
    LLMConfig,
    LLMRequest,
    ModelConfig,
    ModelUnavailable,
    NetworkError,
    RateLimitExceeded,
    RequestFailed,
    generate,
    run,
    scripted_env,
)
from llm_effects.config import RoutingConfig
from llm_effects.testing import Delayed, failing, run_in_virtual_time, scripted

pytestmark = pytest.mark.anyio


ASK = LLMRequest(prompt="why?")


def models(*names: str, **routing: object) -> LLMConfig:
    settings = {name: ModelConfig(provider="lm-studio", model=name) for name in names}
    return LLMConfig(models=settings, routing=RoutingConfig(**{"max_retries": 2, **routing}))  # type: ignore[arg-type]


ONE = models("one")


TWO = models("one", "two")


NO_RETRY = models("one", "two", max_retries=0)


async def test_when_all_candidates_fail_every_error_is_kept_in_order() -> None:
    model = scripted(AuthenticationFailed(message="no"), ModelUnavailable(reason="unknown_model"))
    error = (await run(generate(ASK), scripted_env(clients=model, config=NO_RETRY))).failure()
    assert error == RequestFailed(
        errors=(
            AuthenticationFailed(model="one", message="no"),
            ModelUnavailable(model="two", reason="unknown_model"),
        )
    )


async def test_the_same_error_of_two_candidates_is_kept_twice() -> None:
    refused = AuthenticationFailed(model="gateway", message="no")
    error = (await run(generate(ASK), scripted_env(refused, config=NO_RETRY))).failure()
    assert error == RequestFailed(errors=(refused, refused))


async def test_a_single_error_is_returned_as_it_is() -> None:
    error = (await run(generate(ASK), scripted_env(RateLimitExceeded(quota=True), config=ONE))).failure()
    assert error == RateLimitExceeded(model="one", quota=True)


async def test_an_invalid_request_has_no_fallback() -> None:
    model = failing(InvalidRequest(message="prompt: no"))
    error = (await run(generate(ASK), scripted_env(clients=model, config=TWO))).failure()
    assert (error.tag, len(model.calls)) == ("InvalidRequest", 1)


@pytest.mark.parametrize(("allow", "asked"), [((), 1), ((Allow.FALLBACK_ON_REFUSAL,), 2)])
async def test_a_refusal_falls_back_only_if_the_request_allows_it(allow: tuple[Allow, ...], asked: int) -> None:
    model = scripted(ContentRefused(category="bio"), "ok")
    request = LLMRequest(prompt="why?", allow=allow)
    await run(generate(request), scripted_env(clients=model, config=NO_RETRY))
    assert len(model.calls) == asked


async def test_a_context_that_is_too_large_falls_back_to_larger_windows_only() -> None:
    config = LLMConfig(
        models={
            name: ModelConfig(provider="lm-studio", model=name, context_length=window)
            for name, window in (("middle", 8000), ("small", 4000), ("large", 100_000))
        }
    )
    model = scripted(ContextTooLarge(), "ok")
    response = (await run(generate(ASK), scripted_env(clients=model, config=config))).unwrap()
    assert [each.model for each in response.attempts] == ["middle", "large"]


async def test_a_pinned_model_is_the_only_candidate() -> None:
    model = failing(AuthenticationFailed())
    request = LLMRequest(prompt="why?", model="two")
    error = (await run(generate(request), scripted_env(clients=model, config=TWO))).failure()
    assert [attempt.model for attempt in error.attempts] == ["two"]


async def test_an_unknown_model_fails_before_any_model_is_asked() -> None:
    model = scripted("ok")
    request = LLMRequest(prompt="why?", model="three")
    error = (await run(generate(request), scripted_env(clients=model, config=TWO))).failure()
    assert (error.tag, model.calls) == ("InvalidRequest", [])
    assert "'three' is not configured; configured are one, two" in str(error)


async def test_all_misconfigured_models_are_reported_at_once() -> None:
    broken = LLMConfig(models={"a": ModelConfig(provider="nobody"), "b": ModelConfig(provider="openai-chat")})
    error = (await run(generate(ASK), scripted_env(config=broken))).failure()
    assert isinstance(error, ConfigurationError)
    assert {line.split(".")[1] for line in error.message.splitlines()} == {"a", "b"}


def test_a_recovered_model_is_found_again() -> None:
    async def main() -> set[str]:
        replies = Delayed(0.1, NetworkError(phase="reset")), Delayed(0.1, "ok")
        env = scripted_env(*replies, config=models("a", "b", strategy="performance", max_retries=0))
        return {(await run(generate(ASK), env)).unwrap().model for _ in range(60)}

    assert run_in_virtual_time(main) == {"a", "b"}


def test_a_model_that_stalls_leaves_half_of_the_time_to_the_next() -> None:
    env = scripted_env(Delayed(1000, "late"), "from two", config=models("one", "two", timeout_ms=60_000))
    response = run_in_virtual_time(run, generate(ASK), env).unwrap()
    assert (response.model, response.latency_ms) == ("two", 30_000)


async def test_all_candidates_together_are_asked_at_most_max_attempts_times() -> None:
    model = failing(AuthenticationFailed())
    await run(generate(ASK), scripted_env(clients=model, config=models("one", "two", "three", max_attempts=2)))
    assert [call.model for call in model.calls] == ["one", "two"]


async def test_a_model_that_rejects_the_key_is_asked_last_for_a_while() -> None:
    model = scripted(AuthenticationFailed(), "from two", "from two again")
    env = scripted_env(clients=model, config=TWO)
    for _ in range(2):
        await run(generate(ASK), env)
    assert [call.model for call in model.calls] == ["one", "two", "two"]


def test_the_next_candidate_keeps_to_the_deadline_of_the_call() -> None:
    env = scripted_env(AuthenticationFailed(), RateLimitExceeded(retry_after=1000.0), config=TWO)

    async def main() -> tuple[str, float]:
        started = anyio.current_time()
        return (await run(generate(ASK), env)).failure().tag, anyio.current_time() - started

    assert run_in_virtual_time(main) == ("RequestFailed", 0)  # a pause past the deadline is not begun


async def test_a_call_that_ended_is_no_longer_in_flight() -> None:
    env = scripted_env(AuthenticationFailed(), "from two", config=TWO)
    await run(generate(ASK), env)
    assert not env.health.in_flight()
