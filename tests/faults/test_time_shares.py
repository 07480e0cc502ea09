"""One slow or busy model never costs the call: each candidate but the last has a share of the time (virtual time)."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from attrs import evolve
from returns.result import Result

from llm_effects import (
    AuthenticationFailed,
    LLMConfig,
    LLMEnv,
    LLMError,
    LLMRequest,
    LLMResponse,
    ModelConfig,
    ModelUnavailable,
    NetworkError,
    Preferences,
    RateLimitExceeded,
    RequestTimeout,
    StreamEvent,
    ToolCall,
    describe,
    explain,
    generate,
    run,
    run_tools,
    scripted_env,
    stream,
    toolkit,
)
from llm_effects.config import RoutingConfig
from llm_effects.testing import Chunks, Delayed, Reply, calling, run_in_virtual_time
from llm_effects.tools import ToolLimits
from tests.fixtures.models import ScriptedModels, models_in_order, scripted_models

NEVER = Delayed(1e6, "too late")
BUSY = RateLimitExceeded(status=429, retry_after=60.0)
PINNABLE = RoutingConfig(tasks={"general": ("gpt", "b")})
ASK = LLMRequest(prompt="why?", cache="bypass")


def evolve_routing(config: LLMConfig, **changes: Any) -> LLMConfig:
    return evolve(config, routing=evolve(config.routing, **changes))


async def ignore(_: StreamEvent) -> None:
    """Drop an event."""


MODES: dict[str, Callable[[LLMEnv], Awaitable[Result[LLMResponse, LLMError]]]] = {
    "whole": lambda env: run(generate(ASK), env),
    "streamed": lambda env: run(stream(ASK, ignore), env),
}


def environment(config: LLMConfig, **replies: Reply | tuple[Reply, ...]) -> tuple[LLMEnv, ScriptedModels]:
    clients = scripted_models(**replies)
    return scripted_env(clients=clients, config=config), clients


@pytest.fixture(params=MODES)
def ask(request: pytest.FixtureRequest) -> Callable[[LLMEnv], Awaitable[Result[LLMResponse, LLMError]]]:
    return MODES[request.param]


Ask = Callable[[LLMEnv], Awaitable[Result[LLMResponse, LLMError]]]


def test_fault_139_a_stalled_model_leaves_time_for_the_next(ask: Ask) -> None:
    env, clients = environment(models_in_order("a", "b", timeout_ms=1_500), a=NEVER, b="because")

    async def main() -> list[str]:
        return [(await ask(env)).unwrap().model for _ in range(50)]

    assert run_in_virtual_time(main) == ["b"] * 50
    assert clients.asked.count("a") <= 12


def test_fault_139_a_stream_that_has_content_keeps_the_whole_deadline() -> None:
    slow = Chunks(("be", "cause"), pause=1.4)
    env, clients = environment(models_in_order("a", "b", timeout_ms=6_000), a=slow, b="never")
    assert run_in_virtual_time(MODES["streamed"], env).unwrap().content == "because"
    assert clients.asked == ["a"]


def test_fault_139_the_share_ends_an_attempt_as_an_error_value(ask: Ask) -> None:
    env, _ = environment(models_in_order("a", "b", timeout_ms=1_500), a=NEVER, b="because")
    response = run_in_virtual_time(ask, env).unwrap()
    assert [(each.model, each.outcome) for each in response.attempts] == [("a", "TimeoutError"), ("b", "success")]
    assert response.attempts[0].latency_ms == pytest.approx(750, abs=1)
    assert env.health.statistics()["a"].attempts == 1


@pytest.mark.parametrize("error", [AuthenticationFailed(status=401), NetworkError(phase="refused")], ids=describe)
def test_fault_139_a_model_that_cannot_answer_takes_no_time_from_the_others(ask: Ask, error: LLMError) -> None:
    config = models_in_order("a", "b", timeout_ms=10_000)
    env, clients = environment(config, a=Delayed(8, "because"), b=error)

    async def main() -> str:
        await run(generate(evolve(ASK, model="b")), env)  # b cools down
        return (await ask(env)).unwrap().model

    assert run_in_virtual_time(main) == "a"
    assert clients.asked.count("b") == 1 + (error.tag == "NetworkError") * 2


def test_fault_139_a_slow_model_keeps_its_usual_time_where_the_next_is_quick(ask: Ask) -> None:
    env, _ = environment(models_in_order("a", "b", timeout_ms=10_000), a=Delayed(6, "because"), b=Delayed(1, "b"))

    async def main() -> list[str]:
        for model in ("a", "b"):
            await run(generate(evolve(ASK, model=model)), env)
            await run(stream(evolve(ASK, model=model), ignore), env)
        return [(await ask(env)).unwrap().model for _ in range(3)]

    assert run_in_virtual_time(main) == ["a"] * 3


@pytest.mark.parametrize("usual_s", [0.6, 0.8])
def test_fault_139_a_stalled_model_leaves_the_next_one_the_time_that_it_usually_needs(ask: Ask, usual_s: float) -> None:
    env, clients = environment(models_in_order("a", "b", timeout_ms=1_500), a=NEVER, b=Delayed(usual_s, "because"))

    async def main() -> int:
        await run(stream(evolve(ASK, model="b"), ignore), env)
        results = [await ask(env) for _ in range(50)]
        return sum(result.map(lambda response: response.model).value_or("") == "b" for result in results)

    assert run_in_virtual_time(main) >= 49  # the first call does not know yet that the other model stalls
    assert clients.asked.count("a") <= 12


def test_fault_139_a_stalled_model_costs_rare_and_slow_calls_little(ask: Ask) -> None:
    env, clients = environment(models_in_order("a", "b", timeout_ms=30_000), a=NEVER, b=Delayed(8, "because"))

    async def main() -> list[str]:
        return [(await ask(env)).unwrap().model for _ in range(50)]

    assert run_in_virtual_time(main) == ["b"] * 50
    assert clients.asked.count("a") <= 15  # a time-out cools it down: so few calls a minute open no breaker


def test_fault_139_a_share_that_is_too_short_for_a_model_cools_it_down_for_none(ask: Ask) -> None:
    env, _ = environment(models_in_order("a", "b"), a=Delayed(4, "because"), b=Delayed(1, "because"))
    hurried = evolve(ASK, preferences=Preferences(timeout_ms=6_000))

    async def main() -> tuple[str, float]:
        for model in ("a", "b"):
            await run(generate(evolve(ASK, model=model)), env)
            await run(stream(evolve(ASK, model=model), ignore), env)
        await (run(generate(hurried), env) if ask is MODES["whole"] else run(stream(hurried, ignore), env))
        return (await ask(env)).unwrap().model, env.health.statistics()["a"].cooldown_until

    assert run_in_virtual_time(main) == ("a", float("-inf"))


def test_fault_139_a_model_that_used_to_answer_and_stalls_is_skipped(ask: Ask) -> None:
    replies = (Delayed(4, "because"),) * 3 + (NEVER,)
    env, clients = environment(models_in_order("a", "b", timeout_ms=10_000), a=replies, b=Delayed(2, "because"))

    async def main() -> list[str]:
        await run(stream(evolve(ASK, model="b"), ignore), env)
        return [(await ask(env)).unwrap().model for _ in range(50)]

    assert run_in_virtual_time(main) == ["a"] * 3 + ["b"] * 47
    assert clients.asked.count("a") <= 18


def test_fault_139_the_share_is_half_unless_configured() -> None:
    assert RoutingConfig().candidate_share == 0.5


def test_fault_140_a_long_pause_is_not_slept_while_another_candidate_is_left(ask: Ask) -> None:
    env, _ = environment(models_in_order("a", "b"), a=BUSY, b="because")

    async def main() -> tuple[set[str], float, float]:
        began = anyio.current_time()
        answered = set[str]()

        async def one() -> None:
            answered.add((await ask(env)).unwrap().model)

        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(one)
        took = anyio.current_time() - began
        *_, last = (await run(explain(ASK), env)).unwrap().candidates
        return answered, took, last.cooldown_s if last.model == "a" else 0.0

    answered, took, cooldown = run_in_virtual_time(main)
    assert answered == {"b"}
    assert took < 3
    assert cooldown > 50


@pytest.mark.parametrize("hint", [None, 60.0])
@pytest.mark.parametrize("error", [RateLimitExceeded(status=429), ModelUnavailable(reason="overloaded", status=503)])
def test_fault_141_a_busy_model_costs_seconds(ask: Ask, error: LLMError, hint: float | None) -> None:
    busy = evolve(error, retry_after=hint)
    env, _ = environment(models_in_order("a", "b", timeout_ms=240_000), a=busy, b="because")

    async def main() -> float:
        began = anyio.current_time()
        assert (await ask(env)).unwrap().model == "b"
        return anyio.current_time() - began

    assert run_in_virtual_time(main) < 5


def test_fault_141_a_time_out_is_not_retried_while_another_candidate_is_left(ask: Ask) -> None:
    config = models_in_order("a", "b", timeout_ms=240_000, a={"timeout_ms": 10_000.0})
    env, clients = environment(config, a=NEVER, b="because")
    assert run_in_virtual_time(ask, env).unwrap().model == "b"
    assert clients.asked == ["a", "b"]


def test_fault_141_a_stall_costs_seconds_with_the_default_times(ask: Ask) -> None:
    config = evolve(models_in_order("a", "b"), routing=RoutingConfig(tasks={"general": ("a", "b")}))
    env, _ = environment(config, a=(Delayed(1, "because"), NEVER), b="because")

    async def main() -> float:
        await ask(env)
        began = anyio.current_time()
        assert (await ask(env)).unwrap().model == "b"
        return anyio.current_time() - began

    assert run_in_virtual_time(main) <= 20.5


def test_fault_141_a_rate_limit_without_an_end_is_met_by_few_calls(ask: Ask) -> None:
    env, clients = environment(models_in_order("a", "b"), a=RateLimitExceeded(status=429), b=Delayed(0.1, "because"))

    async def main() -> set[str]:
        return {(await ask(env)).unwrap().model for _ in range(50)}

    assert run_in_virtual_time(main) == {"b"}
    assert clients.asked.count("a") <= 12


def test_fault_142_a_full_queue_is_left_for_the_next_candidate(ask: Ask) -> None:
    config = models_in_order("a", "b", timeout_ms=20_000, a={"concurrency": 1})
    env, _ = environment(config, a=Delayed(100, "late"), b="because")

    async def main() -> tuple[str, float]:
        async with anyio.create_task_group() as group:
            group.start_soon(ask, env)
            await anyio.sleep(0.1)
            began = anyio.current_time()
            model = (await ask(env)).unwrap().model
            took = anyio.current_time() - began
            group.cancel_scope.cancel()
            return model, took

    model, took = run_in_virtual_time(main)
    assert (model, took) == ("b", pytest.approx(10, abs=0.5))


@pytest.mark.parametrize(
    "error",
    [
        AuthenticationFailed(status=401),
        RateLimitExceeded(status=429, quota=True),
        ModelUnavailable(reason="unknown_model", status=404),
        NetworkError(phase="refused"),
    ],
    ids=lambda error: error.tag,
)
def test_fault_144_a_model_that_cannot_answer_is_asked_once(ask: Ask, error: LLMError) -> None:
    env, clients = environment(models_in_order("a", "b"), a=error, b="because")

    async def main() -> tuple[list[str], str]:
        answered = [(await ask(env)).unwrap().model for _ in range(20)]
        first = (await run(explain(ASK), env)).unwrap().candidates[0].model
        await anyio.sleep(600)
        await ask(env)
        return answered, first

    assert run_in_virtual_time(main) == (["b"] * 20, "b")
    assert clients.asked.count("a") == 2


def test_fault_149_the_retry_hint_is_the_newest_of_each_model() -> None:
    hints = tuple(RateLimitExceeded(status=429, retry_after=seconds) for seconds in (1.0, 1.0, 500.0))
    env, _ = environment(models_in_order("a", timeout_ms=10_000), a=hints)
    assert run_in_virtual_time(MODES["whole"], env).failure().retry_after == 500.0


def test_fault_149_the_retry_hint_is_the_least_of_the_newest_of_all_models() -> None:
    scripts = {"a": (1.0, 500.0), "b": (0.5, 30.0)}
    replies = {
        name: tuple(RateLimitExceeded(model=name, status=429, retry_after=seconds) for seconds in hints)
        for name, hints in scripts.items()
    }
    env, clients = environment(models_in_order("a", "b", timeout_ms=20_000), **replies)
    error = run_in_virtual_time(MODES["whole"], env).failure()
    assert clients.asked == ["a", "a", "b", "b"]
    assert error.retry_after == 30.0


def test_fault_150_a_probe_closes_the_breaker_at_its_first_content() -> None:
    down = ModelUnavailable(reason="overloaded", status=503)
    long = Chunks(("word ",) * 100, pause=1.0)
    works = False
    env, clients = environment(models_in_order("a", "b"), a=lambda _: long if works else down, b="because")

    async def main() -> list[str]:
        nonlocal works
        while not env.limits.opened():
            await MODES["whole"](env)
        await anyio.sleep(120)
        works = True
        async with anyio.create_task_group() as group:
            group.start_soon(MODES["streamed"], env)
            await anyio.sleep(10)
            clients.asked.clear()
            for _ in range(20):
                group.start_soon(MODES["streamed"], env)
            await anyio.sleep(1)
            group.cancel_scope.cancel()
        return clients.asked

    assert run_in_virtual_time(main) == ["a"] * 20


def test_fault_143_calls_at_once_do_not_all_explore_one_model(ask: Ask) -> None:
    config = evolve_routing(models_in_order("a", "b", timeout_ms=60_000), strategy="performance")
    env, clients = environment(config, a=NEVER, b=Delayed(0.1, "because"))

    async def main() -> None:
        await run(generate(evolve(ASK, model="b")), env)
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(ask, env)

    run_in_virtual_time(main)
    assert clients.asked.count("a") <= 12


@pytest.mark.parametrize(("weight", "concurrency", "share"), [(1.0, 4, 20), (3.0, None, 30)])
def test_fault_148_equal_models_share_the_load_by_weight(
    ask: Ask, weight: float, concurrency: int | None, share: int
) -> None:
    each = {"provider": "vllm", "model": "m", "concurrency": concurrency}
    config = LLMConfig(
        models={"one": ModelConfig(**each, weight=weight), "two": ModelConfig(**each)}  # type: ignore[arg-type]
    )
    env, clients = environment(config, one=Delayed(1, "because"), two=Delayed(1, "because"))

    async def main() -> None:
        limiter = anyio.CapacityLimiter(16)

        async def one() -> None:
            async with limiter:
                await ask(env)

        async with anyio.create_task_group() as group:
            for _ in range(40):
                group.start_soon(one)

    run_in_virtual_time(main)
    assert clients.asked.count("one") == pytest.approx(share, abs=3)


def test_fault_148_explain_shows_the_calls_in_flight() -> None:
    env, _ = environment(models_in_order("a", "b"), a=Delayed(5, "because"), b="because")

    async def main() -> list[int]:
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(MODES["whole"], env)
            await anyio.sleep(1)
            return [each.in_flight for each in (await run(explain(ASK), env)).unwrap().candidates]

    assert run_in_virtual_time(main) == [2, 0]


def test_fault_152_a_deadline_in_the_queue_names_the_queue_and_its_model(ask: Ask) -> None:
    config = models_in_order("a", timeout_ms=1_000, a={"concurrency": 1})
    env, _ = environment(config, a=Delayed(60, "late"))

    async def main() -> LLMError:
        async with anyio.create_task_group() as group:
            group.start_soon(run, generate(evolve(ASK, preferences=Preferences(timeout_ms=60_000))), env)
            await anyio.sleep(0.1)
            error = (await ask(env)).failure()
            group.cancel_scope.cancel()
            return error

    error = run_in_virtual_time(main)
    assert (error.tag, error.model) == ("TimeoutError", "a")
    assert "queue a 1000 ms" in describe(error)


def test_fault_152_a_deadline_says_where_the_time_went(ask: Ask) -> None:
    busy = ModelUnavailable(reason="overloaded", status=503, retry_after=10.0)
    env, _ = environment(models_in_order("a", timeout_ms=30_000), a=(Delayed(5, busy), NEVER))
    error = run_in_virtual_time(ask, env).failure()
    assert describe(error) == "TimeoutError (a): total timed out after 30000 ms: ask a 20000 ms, pause a 10000 ms"


def test_fault_152_a_time_out_of_a_tool_run_names_the_time_of_the_whole_run() -> None:
    env = scripted_env(calling(ToolCall("1", "wait")), NEVER, config=models_in_order("a"))

    async def wait() -> str:
        """Wait for nine seconds."""
        await anyio.sleep(9)
        return "done"

    run_of_ten = run_tools(ASK, toolkit(wait), limits=ToolLimits(timeout_s=10))
    error = run_in_virtual_time(run, run_of_ten, env).failure()
    assert isinstance(error, RequestTimeout)
    assert error.timeout_ms == pytest.approx(10_000)


def test_fault_148_several_keys_of_one_entry_share_the_load_and_cool_down_apart(ask: Ask) -> None:
    keyed = ModelConfig(provider="openai-chat", model="m", api_keys=("sk-one", "sk-two"))  # type: ignore[arg-type]
    config = LLMConfig(models={"gpt": keyed, "b": ModelConfig(provider="vllm")}, routing=PINNABLE)
    rejected = AuthenticationFailed(status=401)
    env, clients = environment(config, **{"gpt#1": Delayed(1, rejected), "gpt#2": Delayed(1, "because"), "b": "b"})

    async def main() -> list[str]:
        pinned = generate(evolve(ASK, model="gpt"))
        assert (await run(pinned, env)).unwrap().model == "gpt#2"
        clients.asked.clear()
        for _ in range(5):
            await ask(env)
        return [each.model for each in (await run(explain(ASK), env)).unwrap().candidates]

    assert run_in_virtual_time(main) == ["gpt#2", "b", "gpt#1"]
    assert clients.asked == ["gpt#2"] * 5
    assert "sk-one" not in repr(config)


def test_a_consumer_that_is_slow_at_the_opening_starts_once() -> None:
    env, _ = environment(models_in_order("a", "b", timeout_ms=10_000), a=Delayed(4, "because"), b="else")
    events: list[str] = []

    async def slow(event: StreamEvent) -> None:
        events.append(type(event).__name__)
        await anyio.sleep(2)

    async def main() -> str:
        return (await run(stream(ASK, slow), env)).unwrap().model

    assert run_in_virtual_time(main) == "a"
    assert events == ["Started", "TextDelta", "Completed"]


def test_retries_leave_an_attempt_for_each_candidate(ask: Ask) -> None:
    busy = ModelUnavailable(status=503)
    env, clients = environment(models_in_order("a", "b", "c", "d"), a=busy, b=busy, c=busy, d="because")

    async def main() -> str:
        return (await ask(env)).unwrap().model

    assert run_in_virtual_time(main) == "d"
    assert clients.asked == ["a", "a", "a", "b", "b", "b", "c", "d"]
