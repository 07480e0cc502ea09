"""Retries: which errors are retried, how often, and after which pause."""

import anyio
import pytest
from attrs import evolve

from llm_effects import (
    AuthenticationFailed,
    ConfigurationError,
    ContentRefused,
    ContextTooLarge,
    InvalidRequest,
    LLMConfig,
    LLMError,
    LLMRequest,
    MalformedResponse,
    ModelConfig,
    ModelUnavailable,
    NetworkError,
    RateLimitExceeded,
    RequestTimeout,
    explain,
    generate,
    run,
    scripted_env,
    stream,
)
from llm_effects.config import RoutingConfig
from llm_effects.effects import Call
from llm_effects.testing import Chunks, Reply, failing, run_in_virtual_time, scripted
from tests.fixtures.models import scripted_models

pytestmark = pytest.mark.anyio


ASK = LLMRequest(prompt="why?")


def models(*names: str, **routing: object) -> LLMConfig:
    settings = {name: ModelConfig(provider="lm-studio", model=name) for name in names}
    return LLMConfig(models=settings, routing=RoutingConfig(**{"max_retries": 2, **routing}))  # type: ignore[arg-type]


ONE = models("one")


TWO = models("one", "two")


NO_RETRY = models("one", "two", max_retries=0)


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (ModelUnavailable(reason="overloaded"), 3),
        (ModelUnavailable(reason="unknown_model"), 1),
        (ModelUnavailable(reason="breaker_open"), 1),
        (RateLimitExceeded(retry_after=0.001), 3),
        (RateLimitExceeded(quota=True), 1),
        (NetworkError(phase="reset"), 3),
        (NetworkError(phase="refused"), 3),
        (RequestTimeout(phase="first_content"), 2),
        (MalformedResponse(), 2),
        (InvalidRequest(message="prompt: no"), 1),
        (AuthenticationFailed(), 1),
        (ConfigurationError(message="broken"), 1),
        (ContextTooLarge(), 1),
        (ContentRefused(), 1),
    ],
    ids=lambda value: value if isinstance(value, int) else f"{value.tag}-{getattr(value, 'reason', '')}",
)
async def test_a_model_is_retried_only_after_errors_that_may_pass(error: LLMError, asked: int) -> None:
    model = failing(error)
    env = evolve(scripted_env(clients=model, config=ONE), draw=lambda: 0.0)
    result = await run(generate(ASK), env)
    assert len(model.calls) == asked
    assert [attempt.outcome for attempt in result.failure().attempts] == [error.tag] * asked


async def test_retry_after_is_the_shortest_pause() -> None:
    model = scripted(RateLimitExceeded(retry_after=0.05), "ok")
    env = evolve(scripted_env(clients=model, config=ONE), draw=lambda: 0.0)
    started = anyio.current_time()
    response = (await run(generate(ASK), env)).unwrap()
    assert anyio.current_time() - started >= 0.05
    assert response.attempts[1].wait_ms == 50


def test_a_pause_past_the_deadline_is_not_begun() -> None:
    env = scripted_env(clients=scripted(RateLimitExceeded(retry_after=3600)), config=ONE)

    async def main() -> tuple[LLMError, float]:
        started = anyio.current_time()
        return (await run(generate(ASK), env)).failure(), anyio.current_time() - started

    error, took = run_in_virtual_time(main)
    assert (error.tag, error.retry_after, len(error.attempts), took) == ("RateLimitExceeded", 3600, 1, 0)


def test_no_long_pause_is_slept_while_another_model_is_left() -> None:
    model = scripted(RateLimitExceeded(retry_after=3.0), "from two")

    async def main() -> tuple[str, float]:
        env = scripted_env(clients=model, config=models("one", "two", candidate_share=1))
        started = anyio.current_time()
        return (await run(generate(ASK), env)).unwrap().model, anyio.current_time() - started

    assert run_in_virtual_time(main) == ("two", 0)


async def test_a_pause_past_the_deadline_falls_back_at_once_and_cools_the_model_down() -> None:
    model = scripted(RateLimitExceeded(retry_after=3600), "from two", "from two again")
    env = scripted_env(clients=model, config=TWO)
    assert (await run(generate(ASK), env)).unwrap().model == "two"
    assert [candidate.model for candidate in (await run(explain(ASK), env)).unwrap().candidates] == [
        "two",
        "one",
    ]
    assert (await run(generate(ASK), env)).unwrap().attempts[0].model == "two"


async def test_max_attempts_bounds_all_candidates_together() -> None:
    model = failing(NetworkError())
    env = evolve(scripted_env(clients=model, config=models("a", "b", "c", max_attempts=4)), draw=lambda: 0.0)
    error = (await run(generate(ASK), env)).failure()
    assert [attempt.model for attempt in error.attempts] == ["a", "a", "b", "c"]


async def test_a_refused_connection_is_not_retried_while_another_candidate_is_left() -> None:
    model = scripted(NetworkError(phase="refused"), "ok")
    response = (await run(generate(ASK), scripted_env(clients=model, config=TWO))).unwrap()
    assert [(each.model, each.outcome) for each in response.attempts] == [("one", "NetworkError"), ("two", "success")]


@pytest.mark.parametrize("backends", [("trio", "asyncio"), ("asyncio", "trio"), ("trio", "trio")])
def test_a_cooldown_counts_on_the_clock_of_its_own_event_loop(backends: tuple[str, str]) -> None:
    env = scripted_env(RateLimitExceeded(retry_after=3600), "from two", "ok", config=TWO)
    first, second = backends
    assert anyio.run(run, generate(ASK), env, backend=first).unwrap().model == "two"
    assert anyio.run(run, generate(ASK), env, backend=second).unwrap().model == "one"


@pytest.mark.parametrize("loads_s", [1, 20, 140])
def test_fault_160_a_loading_model_is_waited_for_within_the_attempts_of_a_call(loads_s: float) -> None:
    loading, began = ModelUnavailable(reason="loading"), list[float]()

    def reply(_: Call) -> Reply:
        began.append(anyio.current_time())
        return "ready" if anyio.current_time() >= began[0] + loads_s else loading

    env = scripted_env(clients=scripted_models(one=reply), config=models("one", max_retries=0))
    response = run_in_virtual_time(run, generate(ASK), env).unwrap()
    assert response.content == "ready"
    assert len(response.attempts) <= RoutingConfig().max_attempts
    assert loads_s * 1000 <= response.latency_ms <= max(2 * loads_s, 8) * 1000


def test_fault_160_a_model_that_never_loads_is_polled_until_the_deadline_within_the_attempts_of_a_call() -> None:
    env = scripted_env(*[ModelUnavailable(reason="loading")] * 9, config=models("one", max_retries=0))

    async def main() -> tuple[LLMError, float]:
        began = anyio.current_time()
        return (await run(generate(ASK), env)).failure(), anyio.current_time() - began

    error, took = run_in_virtual_time(main)
    assert len(error.attempts) == RoutingConfig().max_attempts
    assert took > RoutingConfig().timeout_ms / 1000 * 0.6


def test_a_loading_model_is_not_waited_for_while_another_is_left() -> None:
    two = scripted_env(ModelUnavailable(reason="loading"), "from two", config=NO_RETRY)
    assert run_in_virtual_time(run, generate(ASK), two).unwrap().model == "two"


async def test_errors_of_earlier_attempts_are_in_earlier() -> None:
    env = scripted_env(AuthenticationFailed(message="no"), InvalidRequest(message="prompt: no"), config=NO_RETRY)
    error = (await run(generate(ASK), env)).failure()
    assert (error.tag, error.earlier) == ("InvalidRequest", (AuthenticationFailed(model="one", message="no"),))


async def test_a_stream_that_breaks_after_content_is_not_asked_again() -> None:
    model = scripted(Chunks(("it ", "is"), then=NetworkError(phase="reset")), "because")
    env = evolve(scripted_env(clients=model, config=ONE), draw=lambda: 0.0)

    async def ignore(_: object) -> None: ...

    error = (await run(stream(ASK, ignore), env)).failure()
    assert (error.tag, error.partial, len(model.calls)) == ("NetworkError", "it is", 1)
