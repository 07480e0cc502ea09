"""Sums of attempts by group: calls, outcomes, tokens, exact costs, and times to three significant digits."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Context, Decimal
from functools import lru_cache
from itertools import accumulate, product
from math import ceil
from typing import Any, Final, Literal, NamedTuple, TypeAlias, final

from attrs import define, field, frozen

from llm_effects.values.display import shown
from llm_effects.values.records import LedgerRow
from llm_effects.values.responses import Cost, Usage

Dimension: TypeAlias = Literal["model", "provider", "task", "hour", "day", "owner", "tag", "left_machine"]
"""A dimension that a report can group by."""

Group: TypeAlias = tuple[str, ...]
"""The values of a group, one for each dimension of a report."""

Saving: TypeAlias = Callable[[str, Usage, Cost, datetime], Decimal]
"""What a provider's cache saved of a cost (USD), by model, usage, cost and time."""

TOKENS: Final = (
    "input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cache_write_1h_tokens",
)
"""The buckets of tokens, as usages, reports and databases name them."""

_EXACT: Final = Context(prec=1_000)


class UsageKey(NamedTuple):
    """The key by which attempts are grouped; ``hour`` is in UTC, such as ``2026-11-23T13``.

    To add a dimension, add a field here, its groups to ``GROUPS``, and its column to the tables of the ledger.
    """

    hour: str = ""
    model: str = ""
    provider: str = ""
    task: str = ""
    owner: str = ""
    left_machine: str = ""
    tags: tuple[str, ...] = ()


GROUPS: Final[Mapping[Dimension, tuple[str, Callable[[Any], tuple[str, ...]]]]] = {
    "model": ("model", lambda model: (model,)),
    "provider": ("provider", lambda provider: (provider,)),
    "task": ("task", lambda task: (task,)),
    "hour": ("hour", lambda hour: (f"{hour}:00Z",)),
    "day": ("hour", lambda hour: (hour[:10],)),
    "owner": ("owner", lambda owner: (owner,)),
    "tag": ("tags", lambda tags: tuple(dict.fromkeys(tags)) or ("",)),
    "left_machine": ("left_machine", lambda left: (left,)),
}
"""For each dimension, the field of a key and its groups."""


LEFT_MACHINE: Final[Mapping[bool | None, str]] = {None: "", False: "no", True: "yes"}
"""The groups of ``left_machine``."""


def key_of(row: LedgerRow) -> UsageKey:
    """Return what a row of the ledger is grouped by."""
    hour, attempt = row.at.astimezone(UTC).isoformat()[:13], row.attempt
    left = LEFT_MACHINE[row.left_machine]
    return UsageKey(hour, attempt.model, attempt.provider, str(row.task_type), row.owner or "", left, row.tags)


# Times, counted to three significant digits: the error is at most 0.5 %, and 0.0005 ms below 0.1 ms.


_LONGEST_MS: Final = 9.99e7
_MICROSECONDS: Final = 100  # codes of times below 0.1 ms
_PER_DECADE: Final = 900


def time_code(ms: float) -> int:
    """Return the number of a time among all times of three significant digits, in their order.

    >>> [time_value(time_code(ms)) for ms in (0, 0.0123, 1.2345, 100, 98765.4, 1e300)]
    [0.0, 0.012, 1.23, 100.0, 98800.0, 99900000.0]
    """
    if not ms >= 0.1:
        return max(0, round(ms * 1000)) if ms > 0 else 0
    digits = f"{min(ms, _LONGEST_MS):.2e}"  # such as 1.23e+02
    return _MICROSECONDS + (int(digits[5:]) + 1) * _PER_DECADE + int(digits[0] + digits[2:4]) - 100


def time_value(code: int) -> float:
    """Return the time of a number, in milliseconds."""
    if code < _MICROSECONDS:
        return code / 1000
    decade, digits = divmod(code - _MICROSECONDS, _PER_DECADE)
    return float(f"{digits + 100}e{decade - 3}")


_PENDING: Final = 16_384
_FEW: Final = 1_000  # sorting them is faster than counting them
_SHARES: Final = (50, 95, 99)


@final
@frozen
class Percentiles:
    """The latencies, in milliseconds, within which 50 %, 95 % and 99 % of the answers arrived.

    In reports they are exact to three significant digits.
    """

    __repr__ = shown

    p50: float
    p95: float
    p99: float


def percentiles(times: Iterable[float]) -> Percentiles | None:
    """Return the percentiles by nearest rank, so that each is a measured time; ``None`` if there are no times.

    >>> percentiles(range(1, 101)), percentiles([])
    (Percentiles(p50=50, p95=95, p99=99), None)
    """
    ordered = sorted(times)
    return Percentiles(*(ordered[_rank(share, len(ordered)) - 1] for share in _SHARES)) if ordered else None


def _rank(share: int, count: int) -> int:
    return ceil(count * share / 100)


@final
@define
class Times:
    """Counted times of three significant digits, by their codes; few of them take two bytes each.

    >>> times = Times()
    >>> times.extend(map(time_code, range(1, 101)))
    >>> times.percentiles()
    Percentiles(p50=50.0, p95=95.0, p99=99.0)
    """

    _codes: array[int] = field(factory=lambda: array("H"))
    _counts: Counter[int] | None = None  # creating one takes longer than all else here, and few times need none

    def extend(self, codes: Iterable[int]) -> None:
        """Add times by their codes."""
        self._codes.extend(codes)
        if len(self._codes) > _PENDING:
            self._count(self._codes)
            self._codes = array("H")

    def _count(self, codes: Iterable[int] | Mapping[int, int]) -> None:
        self._counts = self._counts or Counter()
        self._counts.update(codes)

    def merge(self, other: Times) -> None:
        """Add other times."""
        self.extend(other._codes)
        if other._counts:
            self._count(other._counts)

    def percentiles(self) -> Percentiles | None:
        """Return the percentiles by nearest rank; ``None`` if there are no times."""
        if not self._counts and len(self._codes) <= _FEW:
            codes = percentiles(self._codes)
            return codes and Percentiles(*(time_value(int(code)) for code in (codes.p50, codes.p95, codes.p99)))
        counts = Counter(self._codes)
        counts.update(self._counts or {})
        ordered = sorted(counts)
        reached = list(accumulate(map(counts.__getitem__, ordered)))
        ranks = (bisect_left(reached, _rank(share, reached[-1])) for share in _SHARES)
        return Percentiles(*(time_value(ordered[rank]) for rank in ranks))


# Sums.


def exact_sum(first: Decimal, second: Decimal) -> Decimal:
    """Add without rounding.

    >>> exact_sum(Decimal(10**30), Decimal("1e-9"))
    Decimal('1000000000000000000000000000000.000000001')
    """
    return _EXACT.add(first, second) if second else first


def plain_decimal(value: Decimal) -> Decimal:
    """Return a number without trailing zeros and without an exponent.

    >>> plain_decimal(Decimal("1.500")), plain_decimal(Decimal("1E+2")), plain_decimal(Decimal("0.000"))
    (Decimal('1.5'), Decimal('100'), Decimal('0'))
    """
    shortest = value.normalize(_EXACT)
    return shortest.quantize(Decimal(1), context=_EXACT) if shortest == shortest.to_integral_value() else shortest


@final
@define
class GroupSums:
    """The sums of a group: ``tokens`` in the order of ``TOKENS``, and the counted times of successes."""

    requests: int = 0
    outcomes: Counter[str] = field(factory=Counter[str])
    tokens: list[int] = field(factory=lambda: [0] * len(TOKENS))
    cost_usd: Decimal = Decimal(0)
    unknown_costs: int = 0
    cache_saved_usd: Decimal = Decimal(0)
    latency_ms: Times = field(factory=Times)
    first_content_ms: Times = field(factory=Times)

    def add_cost(self, cost: Decimal | None, saved: Decimal | None) -> None:
        """Add the cost of an attempt, and what the provider's cache saved of it; ``None`` is unknown."""
        if cost is None:
            self.unknown_costs += 1
        else:
            self.cost_usd = exact_sum(self.cost_usd, cost)
        if saved is not None:
            self.cache_saved_usd = exact_sum(self.cache_saved_usd, saved)

    def add_times(self, latency_ms: float, first_content_ms: float | None) -> None:
        """Add the times of a success."""
        self.latency_ms.extend((time_code(latency_ms),))
        if first_content_ms is not None:
            self.first_content_ms.extend((time_code(first_content_ms),))

    def merge(self, other: GroupSums) -> None:
        """Add the sums of another group."""
        self.requests += other.requests
        for outcome, count in other.outcomes.items():
            self.outcomes[outcome] += count
        self.tokens = [ours + theirs for ours, theirs in zip(self.tokens, other.tokens, strict=True)]
        self.cost_usd = exact_sum(self.cost_usd, other.cost_usd)
        self.unknown_costs += other.unknown_costs
        self.cache_saved_usd = exact_sum(self.cache_saved_usd, other.cache_saved_usd)
        self.latency_ms.merge(other.latency_ms)
        self.first_content_ms.merge(other.first_content_ms)


@lru_cache(10_000)
def _groups_of(by: Sequence[Dimension], key: UsageKey) -> tuple[Group, ...]:
    return tuple(product(*(of(getattr(key, name)) for name, of in (GROUPS[dimension] for dimension in by))))


@final
@define
class UsageSums:
    """The sums of all groups of a report, and their total.

    >>> sums = UsageSums(("model", "tag"))
    >>> sums.add(UsageKey(model="gpt", tags=("a", "b")), GroupSums(unknown_costs=1))
    >>> {group: each.unknown_costs for group, each in sums.groups.items()}, sums.total.unknown_costs
    ({('gpt', 'a'): 1, ('gpt', 'b'): 1}, 1)
    """

    by: tuple[Dimension, ...]
    groups: dict[Group, GroupSums] = field(factory=dict[Group, GroupSums], init=False)
    total: GroupSums = field(factory=GroupSums, init=False)

    def add(self, key: UsageKey, part: GroupSums) -> None:
        """Add what has the same key to each of its groups."""
        self.total.merge(part)
        for group in _groups_of(self.by, key):
            self._group(group).merge(part)

    def add_all(self, keys: Sequence[UsageKey], sums_of: Callable[[Sequence[int]], GroupSums]) -> None:
        """Add the sums of many keys to empty groups: ``sums_of`` returns the sums of some of them, by their places."""
        places: dict[Group, list[int]] = {}
        for place, key in enumerate(keys):
            for group in _groups_of(self.by, key):
                places.setdefault(group, []).append(place)
        self.groups.update((group, sums_of(some)) for group, some in places.items())
        self.total = sums_of(range(len(keys)))

    def count_calls(self, keys: Iterable[UsageKey], count: int = 1) -> None:
        """Count a call, or several that have the same keys, once in each group of its attempts."""
        self.total.requests += count
        for group in {group for key in keys for group in _groups_of(self.by, key)}:
            self._group(group).requests += count

    def _group(self, group: Group) -> GroupSums:
        if group not in self.groups:
            self.groups[group] = GroupSums()
        return self.groups[group]


@final
@define
class RowSums:
    """Sums of rows of a ledger, for several reports at once: add pages of rows, in any order.

    ``saving`` is asked for rows that do not say what a cache saved. The calls are kept until the end, to count each
    once in every group.
    """

    sums: Sequence[UsageSums]
    saving: Saving
    _calls: dict[str, set[UsageKey]] = field(factory=dict[str, set[UsageKey]], init=False)

    def add(self, rows: Iterable[LedgerRow]) -> None:
        """Add rows of the ledger."""
        for row in rows:
            key, part = key_of(row), row_sums(row, self.saving)
            self._calls.setdefault(row.call_id, set()).add(key)
            for each in self.sums:
                each.add(key, part)

    def counted(self) -> Sequence[UsageSums]:
        """Count the calls of all rows, and return the sums."""
        for keys in self._calls.values():
            for each in self.sums:
                each.count_calls(keys)
        self._calls.clear()
        return self.sums


def row_sums(row: LedgerRow, saving: Saving) -> GroupSums:
    """Return the sums of one row; its call is counted elsewhere."""
    attempt, usage = row.attempt, row.attempt.usage
    part = GroupSums(outcomes=Counter({attempt.outcome: 1}), tokens=[getattr(usage, name) or 0 for name in TOKENS])
    saved = row.cache_saved_usd
    part.add_cost(attempt.cost.usd, saving(attempt.model, usage, attempt.cost, row.at) if saved is None else saved)
    if attempt.succeeded and usage.service_tier != "batch":  # whose latency is that of a queue
        part.add_times(attempt.latency_ms, attempt.first_content_ms)
    return part
