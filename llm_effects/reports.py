"""What was spent and how it went, from the ledger."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final, get_args

from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.effects import Effect, effect, result_of
from llm_effects.env import LLMEnv
from llm_effects.errors import InvalidRequest, LLMError
from llm_effects.records import LedgerRow
from llm_effects.usages import Dimension, UsageReport, UsageSums
from llm_effects.values import shown, suggestion

PAGE: Final = 1_000
"""How many rows are read at once."""


def usage_report(
    since: datetime | None = None,
    by: Dimension | Sequence[Dimension] = "model",
    *,
    until: datetime | None = None,
) -> Effect[UsageReport]:
    """Sum up the ledger from a time up to another: tokens, cost (USD), times (milliseconds), outcomes.

    ``by`` is what it is split by: ``model``, ``provider``, ``task``, ``day`` (of UTC), ``owner``, ``tag``, or several.
    Times without a zone, and an unknown ``by``, are an ``InvalidRequest``; a ledger that cannot be read is a
    ``StorageFailed``.

    >>> import anyio
    >>> from llm_effects import LLMRequest, generate, scripted_env, settle, then
    >>> asked = generate(LLMRequest(prompt="why?", owner="alice"))
    >>> report = anyio.run(settle, then(asked, lambda _: usage_report(by=("owner", "model"))), scripted_env()).unwrap()
    >>> [(row.group, row.requests, row.output_tokens, str(row.cost_usd)) for row in report.rows]
    [(('alice', 'scripted'), 1, 1, '0')]
    """
    dimensions = (by,) if isinstance(by, str) else tuple(by)

    async def run(env: LLMEnv) -> Result[UsageReport, LLMError]:
        wrong = _wrong(dimensions, since, until)
        return await _summed(env, dimensions, since, until) if wrong is None else Failure(wrong)

    return effect(run)


async def _summed(
    env: LLMEnv, by: tuple[Dimension, ...], since: datetime | None, until: datetime | None
) -> Result[UsageReport, LLMError]:
    sums, first = UsageSums(by), None
    while True:
        page = await result_of(env.ledger.rows(since, until, before=first, newest=PAGE))
        if not is_successful(page):
            return Failure(page.failure())
        rows: Sequence[LedgerRow] = page.unwrap()
        sums.add(rows)
        if len(rows) < PAGE:
            return Success(sums.report(since, until))
        first = rows[0]


def _wrong(by: tuple[str, ...], since: datetime | None, until: datetime | None) -> InvalidRequest | None:
    for name, time in (("since", since), ("until", until)):
        if time is not None and time.tzinfo is None:
            return InvalidRequest(message=f"{name}: must have a time zone, such as datetime.now(UTC)")
    for each in by:
        if each not in get_args(Dimension):
            return InvalidRequest(message=f"by: {shown(each)}: {suggestion(each, get_args(Dimension), 'there are')}")
    return None
