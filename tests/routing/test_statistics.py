"""Statistics of attempts: averages that decay, and the health that keeps them."""

from datetime import UTC, datetime, timedelta
from typing import final

import anyio
import pytest
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st
from returns.future import FutureResult
from returns.result import Failure, Result, Success
from returns.unsafe import unsafe_perform_io

from llm_effects import (
    Attempt,
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
    explain,
    generate,
    run,
    scripted_env,
    stream,
)
from llm_effects.config import RoutingConfig
from llm_effects.effects import Call
from llm_effects.effects.env import Health
from llm_effects.manager import warm_up
from llm_effects.routing.router import EXPLORATION_RATE
from llm_effects.routing.statistics import (
    HALF_LIFE_S,
    SHORTEST_STALL_S,
    UNRELIABLE,
    confidence_at,
    cooldown_after,
    expected_error_rate,
    learn,
    time_share,
)
from llm_effects.stores.health import KEPT, MemoryHealth
from llm_effects.testing import Chunks, answer
from llm_effects.testing.scripted import Delayed, scripted
from llm_effects.testing.virtual_time import run_in_virtual_time
from llm_effects.values import ModelHealth, Statistics

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
ASK = LLMRequest(prompt="why?")


def attempt(ms: float = 100.0, *, outcome: str = "success", first: float | None = None, model: str = "m") -> Attempt:
    return Attempt(model=model, provider="p", outcome=outcome, latency_ms=ms, first_content_ms=first)


def learned_from(*attempts: Attempt, every: float = 0.0) -> Statistics:
    statistics = Statistics()
    for number, each in enumerate(attempts):
        statistics = learn(statistics, each, NOON + timedelta(seconds=number * every), number)
    return statistics


attempts = st.builds(
    attempt, st.floats(0, 1e6), outcome=st.sampled_from(["success", "NetworkError", "cancelled", "ContentRefused"])
)


@given(st.lists(attempts, max_size=30), st.floats(0, 1e6))
def test_averages_stay_within_the_observed_range(seen: list[Attempt], every: float) -> None:
    statistics = learned_from(*seen, every=every)
    informative = [each for each in seen if each.outcome in {"success", "NetworkError"}]
    answers = [each.latency_ms for each in informative if each.succeeded]
    assert statistics.attempts == len(informative)
    assert 0 <= statistics.error_rate <= 1
    assert 0 <= statistics.confidence <= 1
    assert (statistics.latency_ms is None) == (not answers)
    if statistics.latency_ms is not None:
        assert min(answers) - 1e-6 <= statistics.latency_ms <= max(answers) + 1e-6


def test_cancelled_attempts_and_invalid_requests_do_not_change_statistics() -> None:
    assert learned_from(attempt(outcome="cancelled"), attempt(outcome="InvalidRequest")) == Statistics()


def test_a_stream_updates_the_first_content_but_not_the_latency() -> None:
    statistics = learned_from(attempt(60_000.0, first=300.0), attempt(900.0))
    assert (statistics.first_content_ms, statistics.latency_ms) == (300.0, 900.0)


def test_a_failure_updates_the_failure_time_but_not_the_latency() -> None:
    statistics = learned_from(attempt(900.0), attempt(20_000.0, outcome="TimeoutError"))
    assert (statistics.latency_ms, statistics.failure_ms) == (900.0, 20_000.0)
    assert 0.4 < statistics.error_rate < 0.7


def test_confidence_and_error_rate_decay_with_time() -> None:
    statistics = learned_from(*[attempt(outcome="NetworkError")] * 20)
    rates = [
        expected_error_rate(statistics.error_rate, confidence_at(statistics, NOON + timedelta(hours=hours)))
        for hours in (0, 1, 3, 12)
    ]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.9
    assert rates[-1] < 0.01
    assert confidence_at(statistics, NOON + timedelta(seconds=HALF_LIFE_S)) == pytest.approx(statistics.confidence / 2)


def test_after_a_long_pause_the_newest_attempt_outweighs_all_earlier_ones() -> None:
    statistics = learned_from(*[attempt(100.0)] * 50)
    soon, late = (learn(statistics, attempt(1000.0), NOON + timedelta(hours=hours)) for hours in (0, 12))
    assert soon.latency_ms is not None
    assert late.latency_ms is not None
    assert soon.latency_ms < 300
    assert late.latency_ms > 990


def test_a_clock_that_goes_back_does_not_raise_the_confidence() -> None:
    statistics = learned_from(*[attempt()] * 5)
    assert confidence_at(statistics, NOON - timedelta(hours=1)) == statistics.confidence


def test_quantiles_are_of_the_newest_answers_of_each_kind() -> None:
    health = MemoryHealth()
    for ms in range(1, 1001):
        health.observe(attempt(float(ms)), NOON)
        health.observe(attempt(5.0, outcome="NetworkError"), NOON)
    for ms in range(1, 21):
        health.observe(attempt(9_999.0, first=float(ms)), NOON)
    assert health.latency("m", 0.5, first_content=False) == 1000 - KEPT / 2
    assert health.latency("m", 0.95, first_content=True) == 19.0
    assert health.latency("m", 0.99, first_content=True) is None  # 20 samples do not have a 99th percentile
    assert health.latency("other", 0.5, first_content=True) is None


def two(strategy: str = "performance") -> LLMConfig:
    models = {name: ModelConfig(provider="lm-studio", model=name) for name in ("a", "b")}
    return LLMConfig(models=models, routing=RoutingConfig(strategy=strategy, max_retries=0))  # type: ignore[arg-type]


def test_health_warmed_from_the_ledger_equals_the_observed_one() -> None:
    async def main() -> tuple[Health, Health]:
        clients = scripted(Delayed(0.2, "ok"), Delayed(0.1, "ok"), Delayed(0.1, ModelUnavailable()), Delayed(0.3, "ok"))
        env = scripted_env(config=two(), clients=clients)
        for _ in range(20):
            await run(generate(ASK), env)
        again = evolve(env, health=MemoryHealth())
        await warm_up(again)
        return env.health, again.health

    seen, warmed = run_in_virtual_time(main)
    for name, statistics in seen.statistics().items():
        again = warmed.statistics()[name]
        assert (again.attempts, again.error_rate, again.latency_ms) == (
            statistics.attempts,
            statistics.error_rate,
            statistics.latency_ms,
        )
        assert warmed.latency(name, 0.5, first_content=False) == seen.latency(name, 0.5, first_content=False)


def test_the_first_content_of_a_stream_is_in_its_attempt_and_the_quantiles() -> None:
    async def nothing(_: object) -> None: ...

    async def main() -> tuple[Attempt, float | None]:
        env = scripted_env(Chunks(("be", "cause"), pause=0.25))
        for _ in range(2):
            response = (await run(stream(ASK, nothing), env)).unwrap()
        plain = (await run(generate(ASK), env)).unwrap()
        assert plain.attempts[0].first_content_ms is None
        return response.attempts[0], env.health.latency("scripted", 0.5, first_content=True)

    streamed, median = run_in_virtual_time(main)
    assert (streamed.first_content_ms, streamed.latency_ms) == (500.0, 750.0)
    assert median == 500.0


@final
@frozen
class Changing:
    """Two models: ``a`` answers in half the time of ``b``, but fails for the calls in ``broken``."""

    broken: range

    def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
        return FutureResult(self._complete(call))

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        raise NotImplementedError

    async def _complete(self, call: Call) -> Result[LLMResponse, LLMError]:
        await anyio.sleep(0.5 if call.model == "a" else 1.0)
        if call.model == "a" and int(call.id.removeprefix("id-")) in self.broken:
            return Failure(NetworkError(model="a", phase="reset"))
        return Success(answer("ok", model=call.model))


def changing_env(broken: range) -> LLMEnv:
    env = scripted_env(config=two(), clients=Changing(broken))
    return evolve(env, now=lambda: NOON + timedelta(seconds=anyio.current_time()))


@pytest.mark.parametrize("pause", [0.1, 60.0, 3600.0])
def test_a_recovered_model_is_found_again_within_a_bounded_number_of_calls(pause: float) -> None:
    """The faster model fails for 50 calls; the slower one always answers."""

    async def main() -> list[str]:
        env, answered = changing_env(range(50, 100)), list[str]()
        for _ in range(200):
            answered.append((await run(generate(ASK), env)).unwrap().model)
            await anyio.sleep(pause)
        return answered

    answered = run_in_virtual_time(main)
    assert answered[:49].count("a") >= 45
    assert "a" not in answered[50:99]
    assert answered[100:].index("a") <= 2 / EXPLORATION_RATE
    assert answered[-50:].count("a") >= 45


@pytest.mark.parametrize(("timeout_ms", "error_rate"), [(50, 0.0), (900, 1.0)])
def test_a_short_deadline_of_the_caller_does_not_count_against_the_model(timeout_ms: int, error_rate: float) -> None:
    """The model needs half a second: only a longer wait tells something about it."""

    async def main() -> float:
        env = changing_env(range(0))
        await run(generate(evolve(ASK, model="a")), env)
        slow = evolve(env, clients=scripted(*[Delayed(60, "late")] * 20))
        for _ in range(20):
            await run(generate(evolve(ASK, model="a", preferences=Preferences(timeout_ms=timeout_ms))), slow)
        return env.health.statistics()["a"].error_rate

    assert run_in_virtual_time(main) == pytest.approx(error_rate, abs=0.02)


def test_exploration_never_exceeds_its_rate() -> None:
    async def main() -> int:
        env = changing_env(range(10**6))
        for _ in range(1000):
            await run(generate(ASK), env)
        rows = unsafe_perform_io((await env.ledger.rows()).unwrap())
        return sum(row.attempt.model == "a" for row in rows[100:])

    assert 1 <= run_in_virtual_time(main) <= EXPLORATION_RATE * 1000 + 1


def test_explain_and_generate_use_the_same_draw() -> None:
    async def main() -> list[tuple[str, str]]:
        env, pairs = changing_env(range(0)), list[tuple[str, str]]()
        for _ in range(100):
            decisions = [(await run(explain(ASK), env)).unwrap() for _ in range(3)]
            assert decisions[0] == decisions[1] == decisions[2]
            pairs.append((decisions[0].candidates[0].model, (await run(generate(ASK), env)).unwrap().model))
        return pairs

    pairs = run_in_virtual_time(main)
    assert all(explained == asked for explained, asked in pairs)
    assert {asked for _, asked in pairs[10:]} == {"a", "b"}


# Shares of the time.

known = st.none() | st.builds(Statistics, latency_ms=st.none() | st.floats(1, 1e6), error_rate=st.floats(0, 1))


@given(st.floats(0.001, 1e4), st.floats(0.01, 1), known, known)
def test_a_share_of_the_time_is_fair_and_within_what_is_left(
    left: float, share: float, candidate: Statistics | None, following: Statistics | None
) -> None:
    seconds = time_share(left, share, candidate, following, streamed=False)
    assert 0 <= seconds <= left
    if candidate is None or candidate.error_rate <= UNRELIABLE:
        assert seconds >= min(left * share, SHORTEST_STALL_S)


@pytest.mark.parametrize(
    ("own_ms", "following_ms", "errors", "expected"),
    [
        (None, None, 0.0, 5),  # nothing is known: half
        (None, 1000, 0.0, 5),
        (1000, 1000, 0.0, 5),  # half is enough
        (4000, 500, 0.0, 8),  # it usually needs more than half, and the next one little
        (9000, 1000, 0.0, 8),  # the next one keeps twice what it usually needs
        (4000, 6000, 0.0, 10),  # the next one could not answer in the other half
        (4000, 6000, 0.6, 2),  # this one fails mostly: half of what the next one leaves
        (None, 6000, 1.0, 2),
        (None, 1000, 1.0, 5),
        (None, 11_000, 1.0, 5),  # the next one could not answer in all of the time
    ],
)
def test_a_share_of_the_time_follows_what_models_usually_need(
    own_ms: float | None, following_ms: float | None, errors: float, expected: float
) -> None:
    own, following = Statistics(latency_ms=own_ms, error_rate=errors), Statistics(latency_ms=following_ms)
    assert time_share(10.0, 0.5, own, following, streamed=False) == expected


def test_our_own_limits_cool_no_model_down() -> None:
    assert cooldown_after(RateLimitExceeded(retry_after=40.0, should_retry=False)) == 0
    assert cooldown_after(RateLimitExceeded(retry_after=40.0, status=429)) == 40
