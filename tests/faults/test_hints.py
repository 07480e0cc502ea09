"""Faults 35 to 52: hints of a server on when, and whether, to retry."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Final

import pytest

from llm_effects import CachePolicy, LLMRequest, RequestFailed, generate, open_env, run
from tests.fixtures.chaos import Chaos, good, problem, says
from tests.fixtures.faults import ASK, MODES, config_of, model, run_case

pytestmark = pytest.mark.anyio

SOON: Final = 0.05
HINTS: dict[str, tuple[str, ...]] = {
    "035_seconds": (f"retry-after: {SOON}",),
    "037_milliseconds_win": ("retry-after: 60", f"retry-after-ms: {SOON * 1000}"),
    "041_reset_of_requests": ("x-ratelimit-remaining-requests: 0", f"x-ratelimit-reset-requests: {SOON * 1000:g}ms"),
    "041_reset_of_tokens": ("x-ratelimit-remaining-tokens: 0", f"x-ratelimit-reset-tokens: {SOON}s"),
}


@pytest.mark.parametrize("headers", HINTS.values(), ids=HINTS)
async def test_a_hint_within_the_deadline_is_the_minimum_pause(chaos: Chaos, headers: tuple[str, ...]) -> None:
    outcome = await run_case(chaos, {"first": model(chaos, says(problem(429, "slow down", *headers)), good)})
    assert outcome.asked == {"first": 2}
    assert outcome.response.attempts[1].wait_ms >= SOON * 1000
    assert outcome.took >= SOON


async def test_036_041_a_date_is_relative_to_the_clock_of_the_server(chaos: Chaos) -> None:
    there = datetime(2031, 5, 1, 12, tzinfo=UTC)  # the clock of this server is years ahead
    soon = there + timedelta(seconds=1)
    headers = f"date: {format_datetime(there, usegmt=True)}", f"retry-after: {format_datetime(soon, usegmt=True)}"
    spent = "anthropic-ratelimit-tokens-remaining: 0", f"anthropic-ratelimit-tokens-reset: {soon.isoformat()}"
    for hint in (headers, (headers[0], *spent)):
        limited = model(chaos, says(problem(429, "slow down", *hint)))
        outcome = await run_case(chaos, {"first": limited}, max_retries=0)
        assert outcome.error.retry_after == 1.0


@pytest.mark.parametrize("mode", MODES)
async def test_035_a_hint_beyond_the_deadline_falls_back_at_once_and_cools_the_model_down(
    chaos: Chaos, mode: str
) -> None:
    limited, other = model(chaos, says(problem(429, "", "retry-after: 60"))), model(chaos, good)
    outcome = await run_case(chaos, {"first": limited, "second": other}, mode=mode)
    assert outcome.asked == {"first": 1, "second": 1}
    assert outcome.took < 1
    alone = await run_case(chaos, {"first": limited}, mode=mode)
    assert (alone.error.retry_after, alone.asked["first"]) == (60.0, 1)
    assert alone.took < 1


async def test_wire_12_13_a_cooled_down_model_is_asked_last(chaos: Chaos) -> None:
    limited = model(chaos, says(problem(429, "", "retry-after: 60")))
    models = {"first": limited, "second": model(chaos, good, says(problem(500)))}
    fresh = LLMRequest(prompt="why?", cache=CachePolicy.BYPASS, preferences=ASK.preferences)
    async with open_env(config_of(models, max_retries=0)) as env:
        assert (await run(generate(fresh), env)).unwrap().model == "second"
        error = (await run(generate(fresh), env)).failure()
    assert isinstance(error, RequestFailed)
    assert [each.model for each in error.errors] == ["second", "first"]  # the last usable candidate is never removed
    assert error.retry_after == pytest.approx(60, abs=5)


async def test_052_x_should_retry_is_obeyed_within_bounds(chaos: Chaos) -> None:
    for status, word, tries in ((500, "false", 1), (429, "false", 1), (400, "true", 2), (500, "maybe", 3)):
        outcome = await run_case(chaos, {"first": model(chaos, says(problem(status, "", f"x-should-retry: {word}")))})
        assert outcome.asked == {"first": tries}
