"""Breakers: the laws of the machine, and what a caller meets. Time is virtual."""

import anyio
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llm_effects import (
    AuthenticationFailed,
    InvalidRequest,
    LLMConfig,
    LLMError,
    LLMRequest,
    ModelConfig,
    ModelUnavailable,
    NetworkError,
    RateLimitExceeded,
    RequestFailed,
    RequestTimeout,
    explain,
    generate,
    run,
    scripted_env,
)
from llm_effects.config import RoutingConfig
from llm_effects.config.routing import BreakerConfig, RetryBudgetConfig
from llm_effects.effects.env import LLMEnv
from llm_effects.limits.circuit_breaker import (
    Breaker,
    BreakerPermit,
    Refusal,
    is_model_fault,
    record_outcome,
    request_permit,
)
from llm_effects.testing import Delayed, failing, run_in_virtual_time, scripted

ASK = LLMRequest(prompt="why?")
RULES = BreakerConfig(window_seconds=10, min_attempts=4, failure_rate=0.5, open_seconds=5)
DEAD = NetworkError(phase="reset")


# --- the machine

STEPS = st.lists(
    st.tuples(st.floats(0, 4, width=32), st.sampled_from(["ask", "fails", "works", "cancelled"]), st.booleans()),
    max_size=80,
)


@given(STEPS)
def test_the_machine_keeps_its_word(steps: list[tuple[float, str, bool]]) -> None:
    breaker, now = Breaker(), 0.0
    held: list[BreakerPermit] = []
    for wait, what, last in steps:
        now += wait
        before = breaker
        if what == "ask":
            breaker, answer = request_permit(breaker, now, lease=1000, force=last)
            if isinstance(answer, Refusal):
                assert before.open_until is not None
                assert answer.retry_after > 0
                continue
            held.append(answer)
            probes = [each for each in held if each.kind == "probe" and each.epoch == breaker.epoch]
            assert len(probes) <= 1  # one at a time
            assert (answer.kind == "counted") == (before.open_until is None)
            assert before.open_until is None or answer.kind == "forced" or now >= before.open_until
        elif held:
            passage = held.pop(0 if last else -1)
            failed = {"fails": True, "works": False, "cancelled": None}[what]
            breaker = record_outcome(breaker, RULES, passage, now, failed=failed)
            if passage.epoch != before.epoch:
                assert breaker == before  # of another time
            if passage.kind == "probe" and passage.epoch == before.epoch:
                assert (breaker.open_until is None) == (failed is False)
                assert failed is None or breaker.epoch > before.epoch
                if failed is None:
                    assert request_permit(breaker, now, lease=1)[1] == BreakerPermit(
                        "probe", breaker.epoch
                    )  # given back
        if before.open_until is None and breaker.open_until is not None:
            assert breaker.open_until == now + RULES.open_seconds


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_it_opens_at_the_rate_and_not_before(outcomes: list[bool]) -> None:
    breaker = Breaker()
    for count, failed in enumerate(outcomes, start=1):
        breaker = record_outcome(breaker, RULES, BreakerPermit(), 1.0, failed=failed)
        opens = count >= 4 and sum(outcomes[:count]) / count >= 0.5 and failed
        assert (breaker.open_until is not None) == opens
        if opens:
            return


def test_what_is_long_ago_does_not_count() -> None:
    breaker = Breaker()
    for now in (0.0, 1.0, 2.0, 14.0):
        breaker = record_outcome(breaker, RULES, BreakerPermit(), now, failed=True)
    assert breaker.open_until is None


@pytest.mark.parametrize(
    ("error", "blamed"),
    [
        (NetworkError(phase="refused"), True),
        (NetworkError(phase="local"), False),
        (RequestTimeout(phase="first_content"), True),
        (RequestTimeout(phase="queue"), False),
        (RequestTimeout(phase="sink"), False),
        (RequestTimeout(phase="total"), False),
        (ModelUnavailable(status=503), True),
        (ModelUnavailable(status=503, reason="loading"), False),
        (ModelUnavailable(status=404, reason="unknown_model"), False),
        (ModelUnavailable(reason="breaker_open"), False),
        (RateLimitExceeded(status=429), False),
        (AuthenticationFailed(status=401), False),
        (InvalidRequest(message="prompt: no", status=400), False),
    ],
    ids=str,
)
def test_only_the_models_own_faults_count(error: LLMError, blamed: bool) -> None:
    assert is_model_fault(error) is blamed


# --- a caller


def config(*names: str, **routing: object) -> LLMConfig:
    models = {name: ModelConfig(provider="lm-studio", model=name) for name in names}
    settings = {"max_retries": 0, "breaker": RULES, "fallback_order": names, **routing}
    return LLMConfig(models=models, routing=RoutingConfig(**settings))  # type: ignore[arg-type]


def test_a_dead_model_is_left_alone_found_again_and_told_by_explain() -> None:
    dead = [DEAD] * 4
    model = scripted(*(reply for error in dead for reply in (error, "from b")), "from b", "from a")

    async def main() -> tuple[list[str], list[str], list[bool]]:
        env = scripted_env(clients=model, config=config("a", "b"))
        for _ in range(5):
            await run(generate(ASK), env)
        asked = [call.model for call in model.calls]
        shown = (await run(explain(ASK), env)).unwrap().candidates
        await anyio.sleep(5)
        response = (await run(generate(ASK), env)).unwrap()
        return asked, [each.model for each in shown] + [response.model], [each.open for each in shown]

    asked, order, opened = run_in_virtual_time(main)
    assert asked == ["a", "b"] * 4 + ["b"]
    assert (order, opened) == (["b", "a", "a"], [False, True])


async def trip(env: LLMEnv, model: str, times: int = 4) -> None:
    for _ in range(times):
        await run(generate(LLMRequest(prompt="why?", model=model)), env)


def test_an_open_breaker_is_told_with_the_time_of_its_end_and_the_next_model_is_asked() -> None:
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
        message="it failed too often of late and is left alone for 3 s",
        reason="breaker_open",
        retry_after=3.0,
    )
    assert (error.retry_after, [each.model for each in error.attempts]) == (3.0, ["a"])


def test_when_every_breaker_is_open_the_last_candidate_is_asked_anyway() -> None:
    model = scripted(*[DEAD] * 8, "alive")

    async def main() -> tuple[str, list[str]]:
        env = scripted_env(clients=model, config=config("a", "b"))
        await trip(env, "a")
        await trip(env, "b")
        first = (await run(generate(ASK), env)).unwrap()
        return first.model, [(await run(generate(ASK), env)).unwrap().model for _ in range(2)]

    first, then = run_in_virtual_time(main)
    assert first in {"a", "b"}
    assert then == [first] * 2  # its success closed it


def test_an_only_model_is_never_removed_but_not_asked_again_in_the_same_call() -> None:
    model = scripted(*[DEAD] * 4, DEAD, "alive")

    async def main() -> tuple[LLMError, str]:
        env = evolve(scripted_env(clients=model, config=config("a", max_retries=3)), draw=lambda: 0.0)
        await run(generate(ASK), env)  # opens it
        error = (await run(generate(ASK), env)).failure()
        return error, (await run(generate(ASK), env)).unwrap().content

    error, content = run_in_virtual_time(main)
    assert (len(error.attempts), error.retry_after, content) == (1, 5.0, "alive")


@pytest.mark.parametrize(
    ("first", "asked"),
    [(AuthenticationFailed(status=401), ["a", "b"]), (RateLimitExceeded(quota=True), ["a", "b"]), (DEAD, ["a"])],
    ids=["no key", "no money", "a passing fault"],
)
def test_a_model_that_is_of_no_use_does_not_cost_the_last_usable_one(first: LLMError, asked: list[str]) -> None:
    model = scripted(*[DEAD] * 4, first, "alive")

    async def main() -> list[str]:
        env = scripted_env(clients=model, config=config("a", "b"))
        await trip(env, "b")
        await run(generate(ASK), env)
        return [call.model for call in model.calls[4:]]

    assert run_in_virtual_time(main) == asked


def test_one_probe_at_a_time_and_a_cancelled_one_is_given_back() -> None:
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


def test_a_breaker_can_be_switched_off() -> None:
    model = failing(DEAD)
    off = config("a", "b", breaker=BreakerConfig(enabled=False, min_attempts=1))

    async def main() -> None:
        env = scripted_env(clients=model, config=off)
        for _ in range(20):
            await run(generate(ASK), env)

    run_in_virtual_time(main)
    assert len(model.calls) == 40


# --- the retry budget


def test_retries_of_all_calls_have_one_budget_and_successes_fill_it() -> None:
    budget = RetryBudgetConfig(tokens=30, transient=14)
    routing = {"breaker": BreakerConfig(enabled=False), "retry_budget": budget, "max_retries": 5}
    model = scripted(*[DEAD] * 6, *["ok"] * 12, *[DEAD] * 10)

    async def main() -> list[int]:
        env = evolve(scripted_env(clients=model, config=config("a", **routing)), draw=lambda: 0.0)
        asked = []
        for _ in range(4 + 12 + 1):
            before = len(model.calls)
            await run(generate(ASK), env)
            asked.append(len(model.calls) - before)
        return asked

    # Two retries are paid for, then every first try goes out all the same, then twelve successes pay for one more.
    assert run_in_virtual_time(main) == [3, 1, 1, 1, *[1] * 12, 2]


def test_a_spent_budget_does_not_keep_the_next_model_from_being_asked() -> None:
    routing = {"retry_budget": RetryBudgetConfig(tokens=1), "max_retries": 3}
    model = scripted(DEAD, "from b")
    response = run_in_virtual_time(
        run, generate(ASK), scripted_env(clients=model, config=config("a", "b", **routing))
    ).unwrap()
    assert [(each.model, each.outcome) for each in response.attempts] == [("a", "NetworkError"), ("b", "success")]
