"""The monad laws of ``Effect``, which make refactoring safe."""

from collections.abc import Callable

from hypothesis import given
from returns.primitives.asserts import assert_equal

from llm_effects.effects.effect import Effect, fail, rescue, succeed, then
from llm_effects.testing.scripted import scripted_env
from llm_effects.values.errors import LLMError
from tests.fixtures.effects import ERRORS, NUMBERS, Handler, Step, effects, functions, handlers, steps

EFFECTS = effects(NUMBERS)
ENV = scripted_env()


def assert_same(first: Effect[int], second: Effect[int]) -> None:
    """Assert that both effects have the same result in one environment."""
    assert_equal(first, second, deps=ENV)


@given(NUMBERS, steps())
def test_then_after_succeed_is_the_step(value: int, step: Step) -> None:
    assert_same(then(succeed(value), step), step(value))


@given(EFFECTS)
def test_then_succeed_changes_nothing(first: Effect[int]) -> None:
    assert_same(then(first, succeed), first)


@given(EFFECTS, steps(), steps())
def test_then_is_associative(first: Effect[int], step: Step, last: Step) -> None:
    assert_same(then(then(first, step), last), then(first, lambda value: then(step(value), last)))


@given(ERRORS, handlers())
def test_rescue_after_fail_is_the_handler(error: LLMError, handle: Handler) -> None:
    assert_same(rescue(fail(error), handle), handle(error))


@given(EFFECTS)
def test_rescue_fail_changes_nothing(first: Effect[int]) -> None:
    assert_same(rescue(first, fail), first)


@given(EFFECTS, handlers(), handlers())
def test_rescue_is_associative(first: Effect[int], handle: Handler, last: Handler) -> None:
    assert_same(rescue(rescue(first, handle), last), rescue(first, lambda error: rescue(handle(error), last)))


@given(ERRORS, steps())
def test_then_skips_an_error(error: LLMError, step: Step) -> None:
    assert_same(then(fail(error), step), fail(error))


@given(NUMBERS, handlers())
def test_rescue_skips_a_value(value: int, handle: Handler) -> None:
    assert_same(rescue(succeed(value), handle), succeed(value))


@given(EFFECTS, steps())
def test_then_is_bind(first: Effect[int], step: Step) -> None:
    assert_same(then(first, step), first.bind(step))


@given(EFFECTS, handlers())
def test_rescue_is_lash(first: Effect[int], handle: Handler) -> None:
    assert_same(rescue(first, handle), first.lash(handle))


@given(EFFECTS)
def test_map_of_identity_changes_nothing(first: Effect[int]) -> None:
    assert_same(first.map(lambda value: value), first)


@given(EFFECTS, functions(), functions())
def test_map_composes(first: Effect[int], inner: Callable[[int], int], outer: Callable[[int], int]) -> None:
    assert_same(first.map(inner).map(outer), first.map(lambda value: outer(inner(value))))


@given(EFFECTS, functions())
def test_map_is_then_succeed(first: Effect[int], function: Callable[[int], int]) -> None:
    assert_same(first.map(function), then(first, lambda value: succeed(function(value))))
