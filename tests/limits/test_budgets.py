"""Budgets as pure rules: scopes, accounts and periods."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_effects import LLMRequest, load_config
from llm_effects.config import BudgetConfig
from llm_effects.limits.budgets import accounts_of, period_of
from llm_effects.values import InvalidValue

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("scope", "charged", "subjects"),
    [
        (None, LLMRequest(prompt="?"), ["all"]),
        ("owner:alice", LLMRequest(prompt="?", owner="alice"), ["owner:alice"]),
        ("owner:alice", LLMRequest(prompt="?", owner="bob"), []),
        ("owner:alice", LLMRequest(prompt="?"), []),
        ("owner:*", LLMRequest(prompt="?", owner="bob"), ["owner:bob"]),
        ("owner:*", LLMRequest(prompt="?"), []),
        ("task:analysis", LLMRequest(prompt="?", task_type="analysis"), ["task:analysis"]),
        ("task:analysis", LLMRequest(prompt="?"), []),
        ("tag:nightly", LLMRequest(prompt="?", tags=("slow", "nightly", "nightly")), ["tag:nightly"]),
        ("tag:*", LLMRequest(prompt="?", tags=("b", "a", "a")), ["tag:a", "tag:b"]),
        ("owner:a:b", LLMRequest(prompt="?", owner="a:b"), ["owner:a:b"]),
    ],
)
def test_a_scope_selects_the_accounts_of_a_request(scope: str | None, charged: LLMRequest, subjects: list[str]) -> None:
    accounts = accounts_of((BudgetConfig(name="b", limit_usd=1, scope=scope),), charged, NOON)
    assert [account.key for account in accounts] == [f'["b","day","2026-11-23T00","{each}"]' for each in subjects]


@pytest.mark.parametrize("scope", ["alice", "owner:", "user:alice", "owner: "])
def test_an_invalid_scope_is_rejected(scope: str) -> None:
    with pytest.raises(InvalidValue, match=r"^scope: must be such as owner:alice"):
        BudgetConfig(name="b", limit_usd=1, scope=scope)


def test_budgets_are_loaded_from_a_configuration_and_have_unique_names() -> None:
    day = {"name": "day", "limit_usd": "0.10", "scope": "owner:*"}
    config = load_config({"models": {}, "budgets": [day]}, environ={}).unwrap()
    assert config.budgets == (BudgetConfig(name="day", limit_usd=Decimal("0.1"), scope="owner:*"),)
    twice = load_config({"models": {}, "budgets": [day, day]}, environ={}).failure()
    assert "budgets: names must be unique, but 'day' occurs more than once" in twice.message


@given(st.datetimes(timezones=st.timezones()), st.sampled_from(["hour", "day", "month"]))
def test_a_period_contains_its_times_and_the_next_starts_where_it_ends(at: datetime, period: str) -> None:
    begins, ends = period_of(period, at)  # type: ignore[arg-type]
    assert begins <= at < ends
    assert period_of(period, ends)[0] == ends  # type: ignore[arg-type]
    assert period_of(period, ends - timedelta(microseconds=1)) == (begins, ends)  # type: ignore[arg-type]


def test_a_very_long_name_has_a_short_key() -> None:
    names = ("t" * 5000, "t" * 5001)
    budget = BudgetConfig(name="b", limit_usd=1, scope="tag:*")
    keys = {accounts_of((budget,), LLMRequest(prompt="?", tags=(name,)), NOON)[0].key for name in names}
    assert len(keys) == 2
    assert max(map(len, keys)) < 200


def test_a_day_is_one_of_utc_whatever_the_zone_of_the_time() -> None:
    in_oslo = datetime(2026, 11, 24, 0, 30, tzinfo=timezone(timedelta(hours=1)))
    assert period_of("day", in_oslo)[0] == datetime(2026, 11, 23, tzinfo=UTC)
