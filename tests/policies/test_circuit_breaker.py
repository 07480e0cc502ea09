"""The circuit breaker layer. Time is virtual."""

import anyio
import anyio.lowlevel
import pytest
from attrs import evolve

from llm_effects import (
    AuthenticationFailed,
    ContextTooLarge,
    InvalidRequest,
    LLMConfig,
    LLMError,
    LLMRequest,
    ModelConfig,
    ModelUnavailable,
    NetworkError,
    RateLimitExceeded,
    RequestFailed,
    explain,
    generate,
    run,
    scripted_env,
    stream,
)
from llm_effects.config import RoutingConfig
from llm_effects.config.routing import BreakerConfig
from llm_effects.effects.env import LLMEnv
from llm_effects.testing import Chunks, Delayed, failing, run_in_virtual_time, scripted

ASK = LLMRequest(prompt="why?")
RULES = BreakerConfig(window_seconds=10, min_attempts=4, failure_rate=0.5, open_seconds=5)
DEAD = NetworkError(phase="reset")


def config(*names: str, **routing: object) -> LLMConfig:
    models = {name: ModelConfig(provider="lm-studio", model=name) for name in names}
    settings = {"max_retries": 0, "breaker": RULES, "fallback_order": names, **routing}
    return LLMConfig(models=models, routing=RoutingConfig(**settings))  # type: ignore[arg-type]


def test_calls_skip_a_failing_model_until_it_recovers_and_explain_shows_its_breaker() -> None:
    dead = [DEAD] * 4
    model = scripted(*(reply for error in dead for reply in (error, "from b")), "from b", "from a")

    async def main() -> tuple[list[str], list[str], list[bool]]:
        env = scripted_env(clients=model, config=config("a", "b"))
        for _ in range(5):
            await run(generate(ASK), env)
        called = [call.model for call in model.calls]
        shown = (await run(explain(ASK), env)).unwrap().candidates
        await anyio.sleep(5)
        response = (await run(generate(ASK), env)).unwrap()
        return called, [each.model for each in shown] + [response.model], [each.open for each in shown]

    called, order, open_breakers = run_in_virtual_time(main)
    assert called == ["a", "b"] * 4 + ["b"]
    assert (order, open_breakers) == (["b", "a", "a"], [False, True])


async def trip(env: LLMEnv, model: str, times: int = 4) -> None:
    for _ in range(times):
        await run(generate(LLMRequest(prompt="why?", model=model)), env)


def test_an_open_breaker_is_an_error_with_retry_after_and_the_next_model_is_called() -> None:
    async def main() -> LLMError:
        env = scripted_env(clients=failing(DEAD), config=config("a", "b"))
        await trip(env, "b")
        await anyio.sleep(2)
        return (await run(generate(ASK), env)).failure()

    error = run_in_virtual_time(main)
    assert isinstance(error, RequestFailed)
    assert [each.tag for each in error.errors] == ["NetworkError", "ModelUnavailable"]
    assert error.errors[1] == ModelUnavailable(
        model="b",
        message="it failed too often recently: its circuit breaker is open for 3 s",
        reason="breaker_open",
        retry_after=3.0,
    )
    assert (error.retry_after, [each.model for each in error.attempts]) == (3.0, ["a"])


def test_if_every_breaker_is_open_the_last_candidate_is_called() -> None:
    model = scripted(*[DEAD] * 8, "alive")

    async def main() -> tuple[str, list[str]]:
        env = scripted_env(clients=model, config=config("a", "b"))
        await trip(env, "a")
        await trip(env, "b")
        first = (await run(generate(ASK), env)).unwrap()
        return first.model, [(await run(generate(ASK), env)).unwrap().model for _ in range(2)]

    first, then = run_in_virtual_time(main)
    assert first in {"a", "b"}
    assert then == [first] * 2  # the success closed its breaker


def test_an_only_model_is_called_despite_its_breaker_but_once_per_call() -> None:
    model = scripted(*[DEAD] * 4, DEAD, "alive")

    async def main() -> tuple[LLMError, str]:
        env = evolve(scripted_env(clients=model, config=config("a", max_retries=3)), draw=lambda: 0.0)
        await run(generate(ASK), env)  # opens it
        error = (await run(generate(ASK), env)).failure()
        return error, (await run(generate(ASK), env)).unwrap().content

    error, content = run_in_virtual_time(main)
    assert (len(error.attempts), error.retry_after, content) == (1, 5.0, "alive")


@pytest.mark.parametrize(
    ("first", "called"),
    [(AuthenticationFailed(status=401), ["a", "b"]), (RateLimitExceeded(quota=True), ["a", "b"]), (DEAD, ["a"])],
    ids=["no key", "no credit", "a transient fault"],
)
def test_an_unusable_model_does_not_exclude_the_last_usable_one(first: LLMError, called: list[str]) -> None:
    model = scripted(*[DEAD] * 4, first, "alive")

    async def main() -> list[str]:
        env = scripted_env(clients=model, config=config("a", "b"))
        await trip(env, "b")
        await run(generate(ASK), env)
        return [call.model for call in model.calls[4:]]

    assert run_in_virtual_time(main) == called


def test_there_is_one_probe_at_a_time_and_a_cancelled_one_is_released() -> None:
    model = scripted(*[DEAD] * 4, Delayed(3, "slow probe"), *["from b"] * 3, Delayed(3, "probe"))

    async def main() -> list[str]:
        env = scripted_env(clients=model, config=config("a", "b"))
        await trip(env, "a")
        await anyio.sleep(5)
        async with anyio.create_task_group() as group:
            group.start_soon(run, generate(ASK), env)
            await anyio.sleep(0.1)
            for number in range(3):
                await run(generate(LLMRequest(prompt=f"why? ({number})")), env)
            group.cancel_scope.cancel()
        await run(generate(ASK), env)
        return [call.model for call in model.calls[4:]]

    assert run_in_virtual_time(main) == ["a", "b", "b", "b", "a"]


def test_the_first_content_of_a_streamed_probe_closes_the_breaker() -> None:
    model = scripted(*[DEAD] * 4, Chunks(("one ", "two"), pause=2), "from a")

    async def main() -> str:
        env = scripted_env(clients=model, config=config("a", "b"))
        await trip(env, "a")
        await anyio.sleep(5)
        async with anyio.create_task_group() as group:
            group.start_soon(run, stream(ASK, lambda event: anyio.lowlevel.checkpoint()), env)
            await anyio.sleep(4.5)  # after the first content, while the stream goes on
            return (await run(generate(LLMRequest(prompt="how?")), env)).unwrap().model

    assert run_in_virtual_time(main) == "a"


@pytest.mark.parametrize(
    ("error", "opens"),
    [
        (DEAD, True),
        (ModelUnavailable(status=503), True),
        (InvalidRequest(message="prompt: too long", status=400), False),
        (AuthenticationFailed(status=401), False),
        (ContextTooLarge(status=413), False),
        (RateLimitExceeded(status=429), False),
    ],
    ids=lambda value: getattr(value, "status", value) or "reset",
)
def test_only_failures_of_a_server_open_its_breaker(error: LLMError, *, opens: bool) -> None:
    async def main() -> list[str]:
        env = scripted_env(clients=failing(error), config=config("a", "b"))
        await trip(env, "a", times=20)
        return [each.model for each in (await run(explain(ASK), env)).unwrap().candidates if each.open]

    assert run_in_virtual_time(main) == (["a"] if opens else [])


def test_a_breaker_can_be_disabled() -> None:
    model = failing(DEAD)
    off = config("a", "b", breaker=BreakerConfig(enabled=False, min_attempts=1))

    async def main() -> None:
        env = scripted_env(clients=model, config=off)
        for _ in range(20):
            await run(generate(ASK), env)

    run_in_virtual_time(main)
    assert len(model.calls) == 40
