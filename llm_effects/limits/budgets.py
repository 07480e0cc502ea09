"""Budgets as plain values: which ones apply to a request, for which period, and whether enough is left.

Each attempt reserves an estimate of its cost first; its actual cost replaces the estimate afterwards. Periods are UTC.
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
from llm_effects.values.value import Value


@final
@frozen(kw_only=True, eq=False, repr=False)
class Account(Value):
    """One period of a budget, for everyone or for one owner, task or tag: at most ``limit`` US dollars until ``ends``.

    ``key`` is unique to it.
    """

    budget: str
    key: str
    limit: Decimal
    ends: datetime


@final
@frozen(kw_only=True, eq=False, repr=False)
class Hold(Value):
    """An amount of US dollars reserved in each account ``at`` a time, and released once it ``expires_at``."""

    id: str
    accounts: tuple[Account, ...]
    amount: Decimal
    at: datetime
    expires_at: datetime


def accounts_of(budgets: Iterable[BudgetConfig], request: LLMRequest, at: datetime) -> tuple[Account, ...]:
    """Return the accounts that a request is charged to ``at`` a time.

    >>> budgets = (BudgetConfig(name="all", limit_usd=5), BudgetConfig(name="each", limit_usd=1, scope="owner:*"))
    >>> noon = datetime(2026, 11, 23, 12, tzinfo=UTC)
    >>> [account.key for account in accounts_of(budgets, LLMRequest(prompt="why?", owner="alice"), noon)]
    ['["all","day","2026-11-23T00","all"]', '["each","day","2026-11-23T00","owner:alice"]']
    >>> [account.budget for account in accounts_of(budgets, LLMRequest(prompt="why?"), noon)]
    ['all']
    """
    return tuple(_account(each, subject, at) for each in budgets for subject in _subjects(each.scope, request))


_NAMES_BY_KIND: Final[Mapping[str, Callable[[LLMRequest], tuple[str | None, ...]]]] = {
    "owner": lambda request: (request.owner,),
    "task": lambda request: (str(request.task_type),),
    "tag": lambda request: tuple(sorted(set(request.tags))),
}

_MAX_KEY_BYTES: Final = 1024
"""Postgres accepts a little more."""


def _subjects(scope: str | None, request: LLMRequest) -> Iterator[str]:
    if scope is None:
        yield "all"
        return
    kind, _, pattern = scope.partition(":")
    for name in _NAMES_BY_KIND[kind](request):
        if name is not None and pattern in {"*", name}:
            yield f"{kind}:{name}"


def _account(budget: BudgetConfig, subject: str, at: datetime) -> Account:
    begins, ends = period_of(budget.period, at)
    period = (budget.period, period_start(begins))
    key = dump([budget.name, *period, subject])
    if len(key) > _MAX_KEY_BYTES:
        key = dump([_digest(key), *period, _digest(subject.encode())])
    return Account(budget=budget.name, key=key.decode(), limit=budget.limit_usd, ends=ends)


def _digest(text: bytes) -> str:
    return f"sha256:{hashlib.sha256(text).hexdigest()}"


def period_start(begins: datetime) -> str:
    """Format the start of a period as the keys of its accounts hold it, third: it sorts as text.

    >>> period_start(datetime(2026, 11, 23, tzinfo=UTC))
    '2026-11-23T00'
    """
    return f"{begins:%Y-%m-%dT%H}"


def account_endings(owner: str) -> tuple[str, str]:
    """Return how the keys of an owner's accounts end: with the owner, or a digest where that would be too long.

    >>> account_endings("alice")[0], account_endings("alice")[1][:15]
    (',"owner:alice"]', ',"sha256:d2db4d')
    """
    subject = f"owner:{owner}"
    return f",{dump(subject).decode()}]", f",{dump(_digest(subject.encode())).decode()}]"


def period_of(period: Period, at: datetime) -> tuple[datetime, datetime]:
    """Return the start and the end of the hour, day or month that holds a time, in UTC.

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


def check_budget(account: Account, spent: Decimal, amount: Decimal) -> BudgetExceeded | None:
    """Return an error if an account has too little left for an amount; ``spent`` includes what is reserved.

    >>> account = Account(budget="day", key="k", limit=Decimal(1), ends=datetime(2026, 1, 2, tzinfo=UTC))
    >>> check_budget(account, Decimal("0.75"), Decimal("0.25")) is None
    True
    >>> check_budget(account, Decimal(1), Decimal("0.01")).tag
    'BudgetExceeded'
    """
    if spent + amount <= account.limit:
        return None
    return BudgetExceeded(budget=account.budget, spent=Cost(spent), limit=Cost(account.limit), estimate=Cost(amount))
