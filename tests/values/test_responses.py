"""Responses: usage and cost, in which unknown is never 0, attempts and tool calls."""

from decimal import Decimal
from functools import reduce
from operator import add

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.values.messages import Text, ToolCall
from llm_effects.values.responses import CANCELLED, SUCCESS, Attempt, Cost, LLMResponse, Usage, total_cost

AMOUNTS = st.decimals(min_value=0, max_value=10**6, places=9, allow_nan=False)
COSTS = st.builds(Cost, st.none() | AMOUNTS)
COUNTS = st.integers(min_value=0, max_value=10**9)
USAGES = st.builds(
    Usage,
    input_tokens=st.none() | COUNTS,
    cache_read_tokens=COUNTS,
    cache_write_tokens=COUNTS,
    output_tokens=st.none() | COUNTS,
)


@given(COSTS, COSTS, COSTS)
def test_costs_add_up_in_any_order(one: Cost, two: Cost, three: Cost) -> None:
    assert one + two == two + one
    assert (one + two) + three == one + (two + three)


@given(COSTS)
def test_zero_is_neutral_and_unknown_is_absorbing(cost: Cost) -> None:
    assert cost + Cost.ZERO == cost
    assert cost + Cost.UNKNOWN == Cost.UNKNOWN
    assert cost.known == (cost.usd is not None)


@given(st.lists(COSTS))
def test_a_total_cost_is_known_only_if_all_costs_are(costs: list[Cost]) -> None:
    assert total_cost(costs) == reduce(add, costs, Cost.ZERO)
    assert total_cost(costs).known == all(cost.known for cost in costs)


def test_unknown_is_not_zero() -> None:
    assert Cost.UNKNOWN != Cost.ZERO
    assert (str(Cost.UNKNOWN), str(Cost(Decimal("0.15")))) == ("unknown", "$0.15")


@given(USAGES)
def test_a_token_total_counts_each_bucket_once_and_is_unknown_if_one_is(usage: Usage) -> None:
    buckets = (usage.input_tokens, usage.cache_read_tokens, usage.cache_write_tokens, usage.output_tokens)
    known = [count for count in buckets if count is not None]
    assert usage.total_tokens == (sum(known) if len(known) == len(buckets) else None)
    assert (usage.prompt_tokens is None) == (usage.input_tokens is None)
    if usage.total_tokens is not None:
        assert usage.total_tokens == (usage.prompt_tokens or 0) + (usage.output_tokens or 0)


@given(USAGES, COUNTS)
def test_reasoning_tokens_are_part_of_the_output(usage: Usage, reasoning: int) -> None:
    assert attrs.evolve(usage, reasoning_tokens=reasoning).total_tokens == usage.total_tokens


@pytest.mark.parametrize(("outcome", "succeeded"), [(SUCCESS, True), (CANCELLED, False), ("NetworkError", False)])
def test_an_attempt_succeeded_only_with_the_outcome_success(outcome: str, succeeded: bool) -> None:
    attempt = Attempt(model="m", provider="p", outcome=outcome, latency_ms=1.0)
    assert attempt.succeeded is succeeded
    assert attempt.cost == Cost.UNKNOWN


def test_the_tool_calls_of_an_answer_are_in_order() -> None:
    calls = (ToolCall("1", "look"), ToolCall("2", "jump"))
    response = LLMResponse(content="so", parts=(calls[0], Text("so"), calls[1]), model="m", provider="p")
    assert response.tool_calls == calls
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        response.content = ""  # type: ignore[misc]
