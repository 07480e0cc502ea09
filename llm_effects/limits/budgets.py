"""Budgets as plain values: which of them a request falls under, for how long, and whether there is enough left.

Money is reserved before an attempt, by an estimate, and put right by what the attempt cost. Periods are those of UTC.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, final

from attrs import frozen

from llm_effects.config.services import BudgetConfig, Period
from llm_effects.values.errors import BudgetExceeded
from llm_effects.values.json import dump
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import Cost


@final
@frozen(kw_only=True)
class Account:
    """What a budget allows in one period, to all or to one owner, task or tag: so many US dollars until it ``ends``.

    ``key`` tells it from every other account.
    """

    budget: str
    key: str
    limit: Decimal
    ends: datetime


@final
@frozen(kw_only=True)
class Hold:
    """An amount of US dollars that is reserved ``at`` a time in each account, and free once it ``expires_at``."""

    id: str
    accounts: tuple[Account, ...]
    amount: Decimal
    at: datetime
    expires_at: datetime


def accounts_of(budgets: Iterable[BudgetConfig], request: LLMRequest, at: datetime) -> tuple[Account, ...]:
    """Give the account of every budget that a request falls under ``at`` a time.

    >>> budgets = (BudgetConfig(name="all", limit_usd=5), BudgetConfig(name="each", limit_usd=1, scope="owner:*"))
    >>> noon = datetime(2026, 11, 23, 12, tzinfo=UTC)
    >>> [account.key for account in accounts_of(budgets, LLMRequest(prompt="why?", owner="alice"), noon)]
    ['["all","day","2026-11-23T00","all"]', '["each","day","2026-11-23T00","owner:alice"]']
    >>> [account.budget for account in accounts_of(budgets, LLMRequest(prompt="why?"), noon)]
    ['all']
    """
    return tuple(_account(each, subject, at) for each in budgets for subject in _subjects(each.scope, request))


_OF_REQUEST: Final[Mapping[str, Callable[[LLMRequest], tuple[str | None, ...]]]] = {
    "owner": lambda request: (request.owner,),
    "task": lambda request: (str(request.task_type),),
    "tag": lambda request: tuple(sorted(set(request.tags))),
}
"""The names that a request has of each kind."""


_LONGEST: Final = 1024
"""Bytes of a key; Postgres takes some more."""


def _subjects(scope: str | None, request: LLMRequest) -> Iterator[str]:
    if scope is None:
        yield "all"
        return
    kind, _, wanted = scope.partition(":")
    for name in _OF_REQUEST[kind](request):
        if name is not None and wanted in {"*", name}:
            yield f"{kind}:{name}"


def _account(budget: BudgetConfig, subject: str, at: datetime) -> Account:
    begins, ends = period_of(budget.period, at)
    key = dump([budget.name, budget.period, f"{begins:%Y-%m-%dT%H}", subject])
    short = key if len(key) <= _LONGEST else hashlib.sha256(key).hexdigest().encode()
    return Account(budget=budget.name, key=short.decode(), limit=budget.limit_usd, ends=ends)


def period_of(period: Period, at: datetime) -> tuple[datetime, datetime]:
    """Give the beginning and the end of the hour, day or month of a time, in UTC.

    >>> [str(end) for end in period_of("month", datetime(2026, 12, 31, 23, 59, tzinfo=UTC))]
    ['2026-12-01 00:00:00+00:00', '2027-01-01 00:00:00+00:00']
    """
    hour = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    if period == "hour":
        return hour, hour + timedelta(hours=1)
    day = hour.replace(hour=0)
    if period == "day":
        return day, day + timedelta(days=1)
    first = day.replace(day=1)
    return first, (first + timedelta(days=31)).replace(day=1)


def refusal(account: Account, taken: Decimal, amount: Decimal) -> BudgetExceeded | None:
    """Refuse an amount that an account has not left, of which so much is spent and reserved.

    >>> account = Account(budget="day", key="k", limit=Decimal(1), ends=datetime(2026, 1, 2, tzinfo=UTC))
    >>> refusal(account, Decimal("0.75"), Decimal("0.25")) is None, refusal(account, Decimal(1), Decimal("0.01")).tag
    (True, 'BudgetExceeded')
    """
    if taken + amount <= account.limit:
        return None
    return BudgetExceeded(budget=account.budget, spent=Cost(taken), limit=Cost(account.limit), estimate=Cost(amount))
