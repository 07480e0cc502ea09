"""The laws of the combinators: which expressions are equivalent, on both event loops."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import reduce
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from returns.primitives.asserts import assert_equal
from returns.result import Failure, Result, Success

from llm_effects.effects.combinators import (
    fallback,
    gather,
    hedge,
    is_worth_repeating,
    moves_on,
    race,
    retry,
    timeout,
    using,
)
from llm_effects.effects.effect import Effect, fail, from_env, rescue, run, succeed, then
from llm_effects.effects.schedules import up_to
from llm_effects.testing.scripted import scripted_env
from llm_effects.testing.virtual_time import run_in_virtual_time
from llm_effects.values.errors import Fallback, InvalidRequest, LLMError, fallback_for, is_retryable
from tests.fixtures.effects import ERRORS, NUMBERS, Step, effects, in_turn, late, steps

EFFECTS = effects(NUMBERS) | st.just(fail(InvalidRequest(message="prompt: blank")))
WITH_FALLBACK = ERRORS.filter(lambda error: fallback_for(error) is Fallback.ANY)
NOT_RETRYABLE = ERRORS.filter(lambda error: not is_worth_repeating(error))
BACKENDS = st.sampled_from(["asyncio", "trio"])
ENV = scripted_env()


def law(*strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Check a law with few examples: each of them runs event loops."""
    return lambda test: settings(max_examples=40)(given(*strategies)(test))


def assert_same(first: Effect[Any], second: Effect[Any], backend: str) -> None:
    """Assert that both effects have the same result in one environment."""
    assert_equal(first, second, deps=ENV, backend=backend)


# --- fallback


@law(EFFECTS, BACKENDS)
def test_fallback_of_one_effect_is_that_effect(only: Effect[int], backend: str) -> None:
    assert_same(fallback(only), only, backend)


@law(WITH_FALLBACK, EFFECTS, BACKENDS)
def test_fallback_from_a_failure_is_the_alternative(error: LLMError, other: Effect[int], backend: str) -> None:
    assert_same(fallback(fail(error), other), other, backend)


@law(NUMBERS, EFFECTS, BACKENDS)
def test_a_value_needs_no_fallback(value: int, other: Effect[int], backend: str) -> None:
    assert_same(fallback(succeed(value), other), succeed(value), backend)


@law(EFFECTS, EFFECTS, EFFECTS, BACKENDS)
def test_fallback_is_associative(a: Effect[int], b: Effect[int], c: Effect[int], backend: str) -> None:
    assert_same(fallback(fallback(a, b), c), fallback(a, b, c), backend)
    assert_same(fallback(a, fallback(b, c)), fallback(a, b, c), backend)


@law(WITH_FALLBACK, WITH_FALLBACK, WITH_FALLBACK)
def test_fallback_keeps_all_errors_in_order(a: LLMError, b: LLMError, c: LLMError) -> None:
    grouped = (fallback(fallback(fail(a), fail(b)), fail(c)), fallback(fail(a), fallback(fail(b), fail(c))))
    for operation in grouped:
        assert run_in_virtual_time(run, operation, ENV).failure().earlier == (a, b)


@law(EFFECTS, EFFECTS, BACKENDS)
def test_fallback_is_a_rescue_of_some_errors(first: Effect[int], other: Effect[int], backend: str) -> None:
    def handle(error: LLMError) -> Effect[int]:
        return other if moves_on(error) else fail(error)

    assert_same(fallback(first, other), rescue(first, handle), backend)


# --- retry


@law(EFFECTS, BACKENDS)
def test_zero_retries_change_nothing(operation: Effect[int], backend: str) -> None:
    assert_same(retry(up_to(0), operation), operation, backend)


@law(st.integers(0, 5), EFFECTS, BACKENDS)
def test_retries_of_a_constant_effect_change_nothing(times: int, operation: Effect[int], backend: str) -> None:
    assert_same(retry(up_to(times), operation), operation, backend)


@law(NOT_RETRYABLE, EFFECTS, BACKENDS)
def test_a_lasting_error_is_not_retried(error: LLMError, later: Effect[int], backend: str) -> None:
    assert_same(retry(up_to(5), in_turn(fail(error), later)), fail(error), backend)


@law(st.lists(ERRORS.filter(is_retryable), min_size=1, max_size=4), st.integers(0, 5), NUMBERS)
def test_a_success_is_found_if_there_are_enough_retries(errors: list[LLMError], times: int, value: int) -> None:
    flaky = in_turn(*map(fail, errors), succeed(value))
    result = run_in_virtual_time(run, retry(up_to(times), flaky), ENV)
    assert result == (Success(value) if times >= len(errors) else Failure(errors[times]))


@law(st.integers(0, 3), st.integers(0, 3), WITH_FALLBACK.filter(is_retryable))
def test_retries_of_retries_multiply(outer: int, inner: int, error: LLMError) -> None:
    runs: list[int] = []
    failing = then(from_env(lambda _: runs.append(1)), lambda _: fail(error))
    run_in_virtual_time(run, retry(up_to(outer), retry(up_to(inner), failing)), ENV)
    assert len(runs) == (outer + 1) * (inner + 1)


# --- timeout


@law(EFFECTS, BACKENDS)
def test_an_infinite_timeout_changes_nothing(operation: Effect[int], backend: str) -> None:
    assert_same(timeout(math.inf, operation), operation, backend)


@law(EFFECTS, BACKENDS)
def test_an_effect_that_never_waits_never_times_out(operation: Effect[int], backend: str) -> None:
    assert_same(timeout(0, operation), operation, backend)


@law(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), NUMBERS)
def test_the_shorter_of_nested_timeouts_applies(outer: int, inner: int, takes: int, value: int) -> None:
    operation = late(takes + 0.5, Success(value))
    nested, shorter = timeout(outer, timeout(inner, operation)), timeout(min(outer, inner), operation)
    assert run_in_virtual_time(run, nested, ENV) == run_in_virtual_time(run, shorter, ENV)


# --- gather


@law(st.lists(NUMBERS, max_size=8), st.none() | st.integers(1, 9), BACKENDS)
def test_gather_of_values_is_a_tuple_of_them(values: list[int], limit: int | None, backend: str) -> None:
    assert_same(gather(map(succeed, values), limit), succeed(tuple(values)), backend)


@law(st.lists(EFFECTS, max_size=6), st.none() | st.integers(1, 7), BACKENDS)
def test_gather_equals_running_in_sequence(operations: list[Effect[int]], limit: int | None, backend: str) -> None:
    def join(done: Effect[tuple[int, ...]], following: Effect[int]) -> Effect[tuple[int, ...]]:
        return then(done, lambda values: following.map(lambda value: (*values, value)))

    nothing: Effect[tuple[int, ...]] = succeed(())
    assert_same(gather(operations, limit), reduce(join, operations, nothing), backend)


# --- race and hedge


@law(EFFECTS, BACKENDS)
def test_a_race_of_one_effect_is_that_effect(only: Effect[int], backend: str) -> None:
    assert_same(race(only), only, backend)


@law(NUMBERS, EFFECTS, BACKENDS)
def test_an_immediate_value_wins_the_race(value: int, other: Effect[int], backend: str) -> None:
    assert_same(race(succeed(value), other), succeed(value), backend)


RUNS = st.tuples(st.integers(0, 9), st.builds(Success, NUMBERS) | st.builds(Failure, ERRORS))


@law(st.lists(RUNS, min_size=2, max_size=5, unique_by=lambda run: run[0]))
def test_the_first_success_wins_the_race(runs: list[tuple[int, Result[int, LLMError]]]) -> None:
    result = run_in_virtual_time(run, race(*(late(*run) for run in runs)), ENV)
    won = [result for _, result in sorted(runs, key=lambda run: run[0]) if isinstance(result, Success)]
    assert result == won[0] if won else result.failure().tag == "RequestFailed"


@law(EFFECTS, BACKENDS)
def test_a_hedge_that_never_starts_changes_nothing(operation: Effect[int], backend: str) -> None:
    assert_same(hedge(operation, math.inf), operation, backend)


@law(RUNS, RUNS, st.integers(0, 9))
def test_a_hedge_returns_the_first_success_or_the_first_error(
    first: tuple[int, Result[int, LLMError]], second: tuple[int, Result[int, LLMError]], after: int
) -> None:
    result = run_in_virtual_time(run, hedge(in_turn(late(*first), late(*second)), after + 0.5), ENV)
    hedged_at = (second[0] + after + 0.5, second[1])
    started = [first, hedged_at] if first[0] > after else [first]
    won = [result for _, result in sorted(started, key=lambda run: run[0]) if isinstance(result, Success)]
    assert result == (won[0] if won else first[1])


# --- using


@law(NUMBERS, steps(), BACKENDS)
def test_using_without_a_release_is_then(value: int, use: Step, backend: str) -> None:
    assert_same(using(from_env(lambda _: nullcontext(value)), use), use(value), backend)


@law(ERRORS, steps(), BACKENDS)
def test_a_failed_acquisition_is_not_used(error: LLMError, use: Step, backend: str) -> None:
    assert_same(using(fail(error), use), fail(error), backend)
