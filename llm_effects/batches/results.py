"""Results of batches: each is booked, stored and reported once, whatever the provider sends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final, final

import msgspec
from attrs import define, evolve, field
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.batches.journals import save_answer
from llm_effects.batches.submissions import (
    END,
    READ,
    Group,
    Session,
    Share,
    as_sent,
    call_of,
    redaction_of,
    refuse,
)
from llm_effects.effects.effect import Answer, result_of
from llm_effects.policies.complete import calibrated, with_plausible_usage
from llm_effects.policies.redaction import Redacted
from llm_effects.providers.batch_files import NOT_RUN, not_run
from llm_effects.providers.registry import is_proxied, models_here, ready_targets
from llm_effects.values.errors import (
    ConfigurationError,
    InvalidRequest,
    LLMError,
    MalformedResponse,
    ModelUnavailable,
    RateLimitExceeded,
    is_retryable,
)
from llm_effects.values.records import BatchJob, LedgerRow
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import SUCCESS, Attempt, Cost, Usage, staying_answer

QUEUE_FULL_S: Final = 600.0
"""The pause before requests are submitted again that did not fit into a provider's queue, in seconds."""

MOST_READS: Final = 3
"""How often results that lack a line are read before its request fails."""


async def collect(session: Session) -> LLMError | None:
    """Report the results of every batch that has ended; return the first error that may pass."""
    problems = [await _collect(session, group) for group in session.uncollected]
    return session.failure or next((each for each in problems if each is not None), None)


async def _collect(session: Session, group: Group) -> LLMError | None:
    asked = await result_of(session.jobs.status(group.submission.model, group.job_id))
    if not is_successful(asked):
        return await _give_up(session, group, asked.failure())
    job = asked.unwrap()
    if not job.ended:
        return None
    return await (_fail(session, group, job) if job.state == "failed" else _read_results(session, group, job))


async def _give_up(session: Session, group: Group, error: LLMError) -> LLMError | None:
    """Report an error that will not pass, such as a rejected key; the batch can be collected all the same later."""
    return session.blame(group, error) if is_retryable(error) else await refuse(session, group, error)


_QUEUE_FULL: Final = "token_limit_exceeded"
"""The code of a batch that OpenAI refused because too many tokens are enqueued."""


async def _fail(session: Session, group: Group, job: BatchJob) -> LLMError | None:
    """Report a batch that its provider refused as a whole: nothing of it ran."""
    problem = await _close(session, group, dict.fromkeys((number for number, _ in group.submission.items), Cost.ZERO))
    message = f"the provider refused the batch: {job.message or job.code or 'without a reason'}"
    if job.code == _QUEUE_FULL:
        full = RateLimitExceeded(model=job.model, message=message, code=job.code, retry_after=QUEUE_FULL_S)
        return problem or session.blame(group, full)
    return problem or await refuse(session, group, InvalidRequest(model=job.model, message=message, code=job.code))


async def _read_results(session: Session, group: Group, job: BatchJob) -> LLMError | None:
    sent = await _as_sent(session, group)
    if not is_successful(sent):
        return session.blame(group, sent.failure())
    now = msgspec.json.encode(session.env.now())
    noted = await session.journal.intend(f"{group.key}{READ}", now)
    if not is_successful(noted):
        session.failure = noted.failure()
        return session.failure
    reading = _Reading(session, group, msgspec.json.decode(noted.unwrap().intent, type=datetime), sent.unwrap())
    read = await result_of(session.jobs.results(job, reading.requests, reading.take))
    if session.failure is not None or not is_successful(read):
        return session.failure or await _give_up(session, group, _unread(read.failure()))
    missing = [number for number in session.numbers(group) if number not in reading.costs]
    if missing and job.state not in {"expired", "cancelled"}:
        return await _miss(session, group, [number for number in missing if number in session.open])
    for number in missing:
        reading.costs[number] = Cost.ZERO
        if number in session.open:
            await session.finish(number, Failure(not_run(ready_targets(session.env.config)[job.model], job.state)))
    return await _close(session, group, reading.costs)


async def _as_sent(session: Session, group: Group) -> Result[dict[int, Redacted], LLMError]:
    """Return the requests of a group as they were sent, by their numbers."""
    redacted, sent = group.submission.redaction, dict[int, Redacted]()
    if redacted and redacted != redaction_of(session.env):
        return Failure(ConfigurationError(model=group.submission.model, message=_OTHER_KEY))
    env = session.env if redacted else evolve(session.env, redact=None)
    for number in session.numbers(group):
        request = await as_sent(session.requests[number], env)
        if not is_successful(request):
            return Failure(request.failure())
        sent[number] = request.unwrap()
    return Success(sent)


_OTHER_KEY: Final = "redact: this batch was submitted with another key: collect it with the same Redaction(key=...)"


def _unread(error: LLMError) -> LLMError:
    """Return the error of results that could not be read; those of a batch that has ended may come a little later."""
    if error.status not in _NOT_READY:
        return error
    message = "the batch has ended, and its results are not there: collect them again later"
    return ModelUnavailable(model=error.model, message=message, reason="loading", status=error.status)


_NOT_READY: Final = frozenset({404, 409, 425})


async def _miss(session: Session, group: Group, missing: Sequence[int]) -> LLMError | None:
    """Handle results without a line for some requests: they are read again, and never submitted again."""
    group.reads += 1
    message = f"the results of batch {group.job_id} have no line for this request, which may have been paid for"
    error = MalformedResponse(model=group.submission.model, message=message)
    if group.reads < MOST_READS:
        return session.blame(group, error)
    for number in missing:
        await session.finish(number, Failure(error))
    return None


@final
@define(eq=False)
class _Reading:
    """A reading of the results of a group, noted ``at`` a time, with the ``costs`` of those that came.

    ``sent`` are its requests as they were sent.
    """

    session: Session
    group: Group
    at: datetime
    sent: Mapping[int, Redacted]
    costs: dict[int, Cost] = field(factory=dict[int, Cost])

    @property
    def requests(self) -> dict[str, LLMRequest]:
        """The requests of the group, as they were sent, by their ids at the provider."""
        name = self.group.submission.custom_id
        return {name(number): sent.request for number, sent in self.sent.items()}

    async def take(self, custom_id: str, answer: Answer) -> None:
        """Book, store and report a result; a request that has one, in the journal or in this reading, is done."""
        session, number = self.session, int(custom_id.rpartition("-")[2])
        if session.failure is not None:
            return
        if number not in session.open:
            self.costs[number] = session.costs.get(number, Cost.ZERO)
            return
        booked, self.costs[number] = await self._book(number, custom_id, answer)
        session.costs[number] = self.costs[number]
        saved = await save_answer(session.journal, number, session.requests[number], booked)
        if not is_successful(saved):
            session.failure = saved.failure()
            return
        await session.finish(number, booked)

    async def _book(self, number: int, custom_id: str, answer: Answer) -> tuple[Answer, Cost]:
        """Price a result and record it in the ledger, unless its request was never sent to the model."""
        env, request, model = self.session.env, self.sent[number].request, self.group.submission.model
        if is_successful(answer):
            call = call_of(request, model, custom_id)
            checked = await calibrated(with_plausible_usage(answer.unwrap(), call, env), call, env)
            answer = Success(staying_answer(checked, request.stays))
        elif answer.failure().code in NOT_RUN:
            return answer, Cost.ZERO
        attempt = self._attempt(answer)
        left = model not in models_here(env.config, proxied=is_proxied(env.clients))
        env.ledger.record(evolve(_row(custom_id, request, attempt, self.at, answer), left_machine=left))
        return self.sent[number].restore(_booked(answer, request, attempt)), attempt.cost

    def _attempt(self, answer: Answer) -> Attempt:
        env, submission = self.session.env, self.group.submission
        usage = answer.unwrap().usage if is_successful(answer) else answer.failure().usage
        in_batch = evolve(usage or Usage(), service_tier="batch")
        unbilled = usage is None and not is_successful(answer) and not isinstance(answer.failure(), MalformedResponse)
        return Attempt(
            model=submission.model,
            provider=env.config.models[submission.model].provider,
            outcome=SUCCESS if is_successful(answer) else answer.failure().tag,
            latency_ms=(self.at - submission.at).total_seconds() * 1000,
            usage=in_batch,
            cost=Cost.ZERO if unbilled else env.prices.cost(submission.model, in_batch, self.at),
        )


def _row(custom_id: str, request: LLMRequest, attempt: Attempt, at: datetime, answer: Answer) -> LedgerRow:
    return LedgerRow(
        id=custom_id,
        at=at,
        call_id=custom_id,
        task_type=request.task_type,
        attempt=attempt,
        served_model=answer.unwrap().served_model if is_successful(answer) else None,
        owner=request.owner,
        tags=request.tags,
    )


def _booked(answer: Answer, request: LLMRequest, attempt: Attempt) -> Answer:
    if not is_successful(answer):
        return Failure(evolve(answer.failure(), attempts=(attempt,)))
    return Success(
        evolve(
            answer.unwrap(),
            task_type=request.task_type,
            usage=attempt.usage,
            cost=attempt.cost,
            latency_ms=attempt.latency_ms,
            attempts=(attempt,),
        )
    )


def _spent(share: Share, costs: dict[int, Cost]) -> Decimal:
    estimate = share.hold.amount / len(share.numbers)
    known = (costs.get(number, Cost.UNKNOWN).usd for number in share.numbers)
    return sum((estimate if usd is None else usd for usd in known), Decimal(0))


async def _close(session: Session, group: Group, costs: dict[int, Cost]) -> LLMError | None:
    """Settle a group with the budgets; a request whose cost is unknown is charged its share of the estimate."""
    for share in group.submission.shares:
        await session.env.ledger.commit(share.hold, _spent(share, costs))
    noted = await session.journal.intend(f"{group.key}{END}", b"{}")
    session.failure = session.failure or (None if is_successful(noted) else noted.failure())
    group.closed = group.collected = session.failure is None
    return session.failure
