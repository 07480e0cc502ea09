"""The onion, layer by layer, from the outside: what a caller of ``generate`` may rely on."""

import math
from decimal import Decimal

import anyio
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from returns.pipeline import is_successful

from llm_effects import (
    Allow,
    AuthenticationFailed,
    ConfigurationError,
    ContentRefused,
    ContextTooLarge,
    Cost,
    InvalidRequest,
    LLMConfig,
    LLMError,
    LLMRequest,
    MalformedResponse,
    ModelConfig,
    ModelUnavailable,
    NetworkError,
    Preferences,
    RateLimitExceeded,
    RequestFailed,
    RequestTimeout,
    Usage,
    explain,
    generate,
    run,
    scripted_env,
)
from llm_effects.config import Price, RoutingConfig
from llm_effects.effects.effect import layered
from llm_effects.pipeline import run_call
from llm_effects.policies.complete import complete
from llm_effects.policies.deadline import with_deadline
from llm_effects.policies.recording import with_recording
from llm_effects.policies.routing import with_routing
from llm_effects.routing.prices import PriceList
from llm_effects.testing import Delayed, answer, failing, run_in_virtual_time, scripted

pytestmark = pytest.mark.anyio

ASK = LLMRequest(prompt="why?")


def models(*names: str, **routing: object) -> LLMConfig:
    settings = {name: ModelConfig(provider="lm-studio", model=name) for name in names}
    return LLMConfig(models=settings, routing=RoutingConfig(**{"max_retries": 2, **routing}))  # type: ignore[arg-type]


ONE = models("one")
TWO = models("one", "two")
NO_RETRY = models("one", "two", max_retries=0)


async def test_an_answer_tells_how_it_came_about() -> None:
    env = scripted_env("because")
    response = (await run(generate(ASK), env)).unwrap()
    assert (response.content, response.model, response.task_type) == ("because", "scripted", ASK.task_type)
    [attempt] = response.attempts
    assert (attempt.model, attempt.outcome, attempt.wait_ms) == ("scripted", "success", 0)
    assert response.latency_ms >= attempt.latency_ms >= 0
    assert response.usage.output_tokens == 1


async def test_an_effect_can_be_run_again_and_again() -> None:
    env, question = scripted_env("first", "second"), generate(ASK)
    assert [(await run(question, env)).unwrap().content for _ in range(2)] == ["first", "second"]


async def test_nothing_is_asked_before_the_effect_is_run() -> None:
    model = scripted("ok")
    question = generate(ASK)
    assert model.calls == []
    await run(question, scripted_env(clients=model))
    assert len(model.calls) == 1


# --- retried


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
async def test_the_same_model_is_asked_again_only_where_that_may_help(error: LLMError, asked: int) -> None:
    model = failing(error)
    env = evolve(scripted_env(clients=model, config=ONE), draw=lambda: 0.0)
    result = await run(generate(ASK), env)
    assert len(model.calls) == asked
    assert [attempt.outcome for attempt in result.failure().attempts] == [error.tag] * asked


async def test_what_the_server_asks_for_is_the_least_pause() -> None:
    model = scripted(RateLimitExceeded(retry_after=0.05), "ok")
    env = evolve(scripted_env(clients=model, config=ONE), draw=lambda: 0.0)
    started = anyio.current_time()
    response = (await run(generate(ASK), env)).unwrap()
    assert anyio.current_time() - started >= 0.05
    assert response.attempts[1].wait_ms == 50


async def test_a_pause_beyond_the_deadline_fails_over_at_once_and_parks_the_model() -> None:
    model = scripted(RateLimitExceeded(retry_after=3600), "from two", "from two again")
    env = scripted_env(clients=model, config=TWO)
    assert (await run(generate(ASK), env)).unwrap().model == "two"
    assert [candidate.model for candidate in (await run(explain(ASK), env)).unwrap().candidates] == [
        "two",
        "one",
    ]
    assert (await run(generate(ASK), env)).unwrap().attempts[0].model == "two"


async def test_the_number_of_attempts_is_bounded_over_all_candidates() -> None:
    model = failing(NetworkError())
    env = evolve(scripted_env(clients=model, config=models("a", "b", "c", max_attempts=4)), draw=lambda: 0.0)
    error = (await run(generate(ASK), env)).failure()
    assert [attempt.model for attempt in error.attempts] == ["a", "a", "a", "b"]


# --- routed


async def test_a_refused_connection_is_not_retried_while_another_model_is_left() -> None:
    model = scripted(NetworkError(phase="refused"), "ok")
    response = (await run(generate(ASK), scripted_env(clients=model, config=TWO))).unwrap()
    assert [(each.model, each.outcome) for each in response.attempts] == [("one", "NetworkError"), ("two", "success")]


async def test_when_all_fail_every_error_is_kept_in_order() -> None:
    model = scripted(AuthenticationFailed(message="no"), ModelUnavailable(reason="unknown_model"))
    error = (await run(generate(ASK), scripted_env(clients=model, config=NO_RETRY))).failure()
    assert error == RequestFailed(
        errors=(
            AuthenticationFailed(model="one", message="no"),
            ModelUnavailable(model="two", reason="unknown_model"),
        )
    )


async def test_a_single_error_comes_as_itself() -> None:
    error = (await run(generate(ASK), scripted_env(RateLimitExceeded(quota=True), config=ONE))).failure()
    assert error == RateLimitExceeded(model="one", quota=True)


async def test_an_invalid_request_is_not_taken_to_other_models() -> None:
    model = failing(InvalidRequest(message="prompt: no"))
    error = (await run(generate(ASK), scripted_env(clients=model, config=TWO))).failure()
    assert (error.tag, len(model.calls)) == ("InvalidRequest", 1)


@pytest.mark.parametrize("backends", [("trio", "asyncio"), ("asyncio", "trio"), ("trio", "trio")])
def test_a_pause_counts_on_the_clock_of_its_own_event_loop_only(backends: tuple[str, str]) -> None:
    env = scripted_env(RateLimitExceeded(retry_after=3600), "from two", "ok", config=TWO)
    first, second = backends
    assert anyio.run(run, generate(ASK), env, backend=first).unwrap().model == "two"
    assert anyio.run(run, generate(ASK), env, backend=second).unwrap().model == "one"


@pytest.mark.parametrize(("allow", "asked"), [((), 1), ((Allow.FALLBACK_ON_REFUSAL,), 2)])
async def test_a_refusal_falls_over_only_where_the_caller_permits(allow: tuple[Allow, ...], asked: int) -> None:
    model = scripted(ContentRefused(category="bio"), "ok")
    request = LLMRequest(prompt="why?", allow=allow)
    await run(generate(request), scripted_env(clients=model, config=NO_RETRY))
    assert len(model.calls) == asked


async def test_an_outgrown_window_falls_over_to_larger_ones_only() -> None:
    config = LLMConfig(
        models={
            name: ModelConfig(provider="lm-studio", model=name, context_length=window)
            for name, window in (("middle", 8000), ("small", 4000), ("large", 100_000))
        }
    )
    model = scripted(ContextTooLarge(), "ok")
    response = (await run(generate(ASK), scripted_env(clients=model, config=config))).unwrap()
    assert [each.model for each in response.attempts] == ["middle", "large"]


async def test_a_pinned_model_is_the_only_one_asked() -> None:
    model = failing(AuthenticationFailed())
    request = LLMRequest(prompt="why?", model="two")
    error = (await run(generate(request), scripted_env(clients=model, config=TWO))).failure()
    assert [attempt.model for attempt in error.attempts] == ["two"]


async def test_an_unknown_model_is_refused_before_any_call() -> None:
    model = scripted("ok")
    request = LLMRequest(prompt="why?", model="three")
    error = (await run(generate(request), scripted_env(clients=model, config=TWO))).failure()
    assert (error.tag, model.calls) == ("InvalidRequest", [])
    assert "'three' is not configured; configured are one, two" in str(error)


async def test_all_wrong_models_are_told_at_once() -> None:
    broken = LLMConfig(models={"a": ModelConfig(provider="nobody"), "b": ModelConfig(provider="openai-chat")})
    error = (await run(generate(ASK), scripted_env(config=broken))).failure()
    assert isinstance(error, ConfigurationError)
    assert {line.split(".")[1] for line in error.message.splitlines()} == {"a", "b"}


async def test_explain_gives_the_order_that_generate_follows() -> None:
    model = failing(AuthenticationFailed())
    env = scripted_env(clients=model, config=models("a", "b", "c"))
    decision = (await run(explain(ASK), env)).unwrap()
    assert model.calls == []
    error = (await run(generate(ASK), env)).failure()
    assert [attempt.model for attempt in error.attempts] == [each.model for each in decision.candidates]


# --- bounded, complete


async def test_the_deadline_ends_the_call_and_keeps_the_attempt() -> None:
    env = scripted_env(NetworkError(), Delayed(60, "too late"), config=ONE)
    request = LLMRequest(prompt="why?", preferences=Preferences(timeout_ms=400))
    error = (await run(generate(request), evolve(env, draw=lambda: 0.0))).failure()
    assert error == RequestTimeout(timeout_ms=400, phase="total")
    assert [attempt.outcome for attempt in error.attempts] == ["NetworkError", "TimeoutError"]


async def test_one_attempt_has_its_own_time() -> None:
    slow = ModelConfig(provider="lm-studio", model="slow", timeout_ms=20)
    config = LLMConfig(models={"slow": slow, "fast": ModelConfig(provider="lm-studio", model="fast")})
    env = scripted_env(Delayed(60, "late"), Delayed(60, "late"), "in time", config=config)
    response = (await run(generate(ASK), env)).unwrap()
    assert [(each.model, each.outcome) for each in response.attempts] == [
        ("slow", "TimeoutError"),
        ("slow", "TimeoutError"),
        ("fast", "success"),
    ]


async def test_a_cancelled_caller_is_cancelled_and_the_attempt_booked() -> None:
    env = scripted_env(Delayed(60, "late"))
    with anyio.move_on_after(0.02) as scope:
        await run(generate(ASK), env)
    assert scope.cancelled_caught
    [row] = (await env.ledger.rows()).unwrap()._inner_value
    assert row.attempt.outcome == "cancelled"


async def test_a_defect_passes_through_untouched() -> None:
    def broken(_: LLMRequest) -> str:
        raise KeyError("bug")

    with pytest.raises(KeyError, match="bug"):
        await run(generate(ASK), scripted_env(broken))


# --- observed


async def test_the_cost_is_the_sum_of_all_attempts() -> None:
    price = Price(input="1000", output="2000")
    prices = PriceList({"one": price, "two": price})
    billed = MalformedResponse(usage=Usage(input_tokens=1000, output_tokens=0))
    said = evolve(answer("ok"), usage=Usage(input_tokens=1000, output_tokens=500))
    env = evolve(scripted_env(billed, said, config=NO_RETRY), prices=prices)
    response = (await run(generate(ASK), env)).unwrap()
    assert [each.cost.usd for each in response.attempts] == [Decimal(1), Decimal(2)]
    assert response.cost == Cost(Decimal(3))


async def test_an_attempt_that_may_have_been_billed_makes_the_cost_unknown() -> None:
    prices = PriceList({"one": Price(input=1, output=1), "two": Price(input=1, output=1)})
    env = evolve(scripted_env(RequestTimeout(), "ok", config=NO_RETRY), prices=prices)
    response = (await run(generate(ASK), env)).unwrap()
    assert (response.cost.known, response.attempts[1].cost.known) == (False, True)


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (NetworkError(phase="refused"), True),
        (NetworkError(phase="refused", usage=Usage()), True),
        (NetworkError(phase="reset"), False),
        (NetworkError(phase="reset", usage=Usage()), False),
    ],
)
async def test_an_attempt_costs_nothing_only_if_nobody_can_have_worked_on_it(error: LLMError, known: bool) -> None:
    prices = PriceList({"one": Price(input=1, output=1), "two": Price(input=1, output=1)})
    env = evolve(scripted_env(error, "ok", config=NO_RETRY), prices=prices)
    assert (await run(generate(ASK), env)).unwrap().attempts[0].cost.known is known


async def test_a_defect_is_booked_under_its_own_name() -> None:
    def broken(_: LLMRequest) -> str:
        raise KeyError("bug")

    env = scripted_env(broken)
    with pytest.raises(KeyError):
        await run(generate(ASK), env)
    [row] = (await env.ledger.rows()).unwrap()._inner_value
    assert row.attempt.outcome == "KeyError"


async def test_errors_of_earlier_attempts_are_kept_beside_the_one_that_ended_the_call() -> None:
    env = scripted_env(AuthenticationFailed(message="no"), InvalidRequest(message="prompt: no"), config=NO_RETRY)
    error = (await run(generate(ASK), env)).failure()
    assert (error.tag, error.earlier) == ("InvalidRequest", (AuthenticationFailed(model="one", message="no"),))


def test_a_model_that_is_loading_is_waited_for_when_nobody_else_is_left() -> None:
    loading = ModelUnavailable(reason="loading")
    env = scripted_env(*[loading] * 30, "ready", config=models("one", max_retries=0))
    response = run_in_virtual_time(run, generate(ASK), env).unwrap()
    assert (response.content, len(response.attempts)) == ("ready", 31)
    assert 100_000 < response.latency_ms < 150_000
    two = scripted_env(loading, "from two", config=NO_RETRY)
    assert run_in_virtual_time(run, generate(ASK), two).unwrap().model == "two"


def test_a_repaired_model_is_found_again() -> None:
    async def main() -> set[str]:
        replies = Delayed(0.1, AuthenticationFailed()), Delayed(0.1, "ok")
        env = scripted_env(*replies, config=models("a", "b", strategy="performance", max_retries=0))
        return {(await run(generate(ASK), env)).unwrap().model for _ in range(60)}

    assert run_in_virtual_time(main) == {"a", "b"}


async def test_every_attempt_is_in_the_ledger_with_its_call() -> None:
    env = scripted_env(NetworkError(phase="refused"), "ok", config=TWO)
    request = LLMRequest(prompt="why?", owner="alice", tags=("nightly",), task_type="triage")
    await run(generate(request), env)
    rows = (await env.ledger.rows()).unwrap()._inner_value
    assert [(row.call_id, row.owner, row.tags, row.task_type, row.attempt.outcome) for row in rows] == [
        ("id-1", "alice", ("nightly",), "triage", "NetworkError"),
        ("id-1", "alice", ("nightly",), "triage", "success"),
    ]


# --- the onion itself


async def test_a_user_can_leave_a_layer_out() -> None:
    model = failing(NetworkError())
    onion = layered(with_deadline, with_routing, with_recording, complete)
    await run(run_call(onion, ASK), scripted_env(clients=model, config=ONE))
    assert len(model.calls) == 1


async def test_many_calls_at_once_keep_their_trails_apart() -> None:
    env = scripted_env(lambda request: Delayed(0.001, str(request.prompt)))
    contents: dict[int, tuple[str, int]] = {}

    async def one(number: int) -> None:
        response = (await run(generate(LLMRequest(prompt=f"q{number}")), env)).unwrap()
        contents[number] = (response.content, len(response.attempts))

    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(one, number)
    assert contents == {number: (f"q{number}", 1) for number in range(100)}


@given(st.lists(st.sampled_from(["ok", "net", "rate", "auth", "bad"]), min_size=1, max_size=8), st.integers(1, 3))
def test_every_script_ends_in_one_value_and_a_full_trail(script: list[str], candidates: int) -> None:
    replies = {
        "ok": "fine",
        "net": NetworkError(),
        "rate": RateLimitExceeded(retry_after=0.0),
        "auth": AuthenticationFailed(),
        "bad": InvalidRequest(message="prompt: no"),
    }
    model = scripted(*(replies[name] for name in script))
    config = models(*(f"m{number}" for number in range(candidates)))
    env = evolve(scripted_env(clients=model, config=config), draw=lambda: 0.0)
    result = anyio.run(run, generate(ASK), env)
    attempts = result.unwrap().attempts if is_successful(result) else result.failure().attempts
    assert len(attempts) == len(model.calls) <= 3 * candidates
    assert [each.model for each in attempts] == [call.model for call in model.calls]
    assert is_successful(result) == (attempts[-1].outcome == "success")
    assert all(math.isfinite(each.latency_ms) for each in attempts)
