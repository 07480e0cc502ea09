"""Submissions to providers: what a journal holds of them, and how each is made once, found again and collected.

Before anything is submitted, the journal gets an intent with a fresh id, which the batch carries to its provider. After
a crash, the batch is looked for by that id, and its requests are submitted again only if it is not there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Final, Protocol, final

import anyio
import msgspec
from attrs import define, evolve, field
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.batches.journals import OpenJournal, save_answer
from llm_effects.clients.batch_client import UPLOAD, batch_jobs_of
from llm_effects.effects.call import AttemptContext, Call
from llm_effects.effects.effect import Answer, result_of
from llm_effects.effects.env import BatchJobs, LLMEnv
from llm_effects.limits.budgets import Account, Hold, accounts_of
from llm_effects.policies.budget import expected_cost, unknown_price
from llm_effects.policies.cache import request_key
from llm_effects.policies.complete import calibrated, with_plausible_usage
from llm_effects.policies.routing import routing_context
from llm_effects.providers.batch_files import NOT_RUN, batch_limits, line_of, not_run, split_lines
from llm_effects.providers.registry import ready_targets
from llm_effects.providers.target import Target
from llm_effects.routing.router import route
from llm_effects.values.conversations import JournalEntry
from llm_effects.values.errors import (
    ConfigurationError,
    InvalidRequest,
    LLMError,
    MalformedResponse,
    ModelUnavailable,
    RateLimitExceeded,
    StorageFailed,
    is_retryable,
    request_of,
    was_sent,
)
from llm_effects.values.records import BatchJob, BatchLine, LedgerRow
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import SUCCESS, Attempt, Cost, LLMResponse, Usage

SETTLING_S: Final = 60.0
"""How long after its intent a batch that the provider does not list counts as never submitted, in seconds."""

HOLD: Final = timedelta(days=2)
"""How long a batch reserves its cost in the budgets: a provider takes a day, and the results are collected later."""

QUEUE_FULL_S: Final = 600.0
"""The pause before requests are submitted again that did not fit into a provider's queue, in seconds."""

MOST_READS: Final = 3
"""How often results that lack a line are read before its request fails."""

_STORING: Final = "journal"


class Report(Protocol):
    """Receives the answer to a request, once: ``resumed`` from the journal, or ``changed`` since that was written."""

    def __call__(self, number: int, answer: Answer, *, resumed: bool, changed: bool) -> Awaitable[None]:
        """Receive the answer to the request with this number."""
        ...


# What a journal holds: the intent of each submission, and its outcome.


@final
class Share(msgspec.Struct, frozen=True):
    """What a submission reserves in some budgets, for the requests with these numbers."""

    hold: Hold
    numbers: tuple[int, ...]


@final
class Submission(msgspec.Struct, frozen=True):
    """The intent of a submission ``at`` a time: ``items`` are the numbers of its requests and their keys."""

    id: str
    model: str
    at: datetime
    items: tuple[tuple[int, str], ...]
    shares: tuple[Share, ...] = ()

    def custom_id(self, number: int) -> str:
        """Return the id of a request at the provider: at most 64 letters, digits and dashes."""
        return f"{self.id}-{number}"


@final
class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """The ``job`` that a submission became, or the reason why it is ``void``."""

    job: str = ""
    void: str = ""


@final
@define(eq=False)
class Group:
    """The requests of one submission. It is ``closed`` once it is void or collected; ``reads`` counts its readings."""

    key: str
    submission: Submission
    job_id: str = ""
    closed: bool = False
    collected: bool = False
    reads: int = 0


_END: Final = "/end"
_READ: Final = "/read"


def groups_of(notes: Iterable[JournalEntry]) -> Result[list[Group], LLMError]:
    """Return the submissions that a journal holds; one that is unreadable must not be submitted again."""
    groups: dict[str, Group] = {}
    try:
        for entry in notes:
            if entry.key.endswith(_END):
                group = groups[entry.key.removesuffix(_END)]
                group.closed = group.collected = True
            elif not entry.key.endswith(_READ):
                groups[entry.key] = _group_of(entry)
    except (msgspec.DecodeError, KeyError, UnicodeError):
        message = "it holds a batch that this version cannot read: use the version that submitted it"
        return Failure(StorageFailed(operation=_STORING, message=message))
    return Success(list(groups.values()))


def _group_of(entry: JournalEntry) -> Group:
    outcome = Outcome() if entry.result is None else msgspec.json.decode(entry.result, type=Outcome)
    submission = msgspec.json.decode(entry.intent, type=Submission)
    return Group(entry.key, submission, outcome.job, closed=bool(outcome.void))


# A session: an open journal, and what is left of the requests.


@final
@define(eq=False)
class Session:
    """The ``requests`` and their ``keys`` by number, those that are ``open``, and what went wrong (``problems``).

    ``costs`` are those of the answers in the journal. ``failure`` is that of the journal.
    """

    env: LLMEnv
    jobs: BatchJobs
    journal: OpenJournal
    report: Report
    groups: list[Group]
    requests: dict[int, LLMRequest] = field(factory=dict[int, LLMRequest])
    keys: dict[int, str] = field(factory=dict[int, str])
    open: dict[int, None] = field(factory=dict[int, None])
    changed: set[int] = field(factory=set[int])
    costs: dict[int, Cost] = field(factory=dict[int, Cost])
    problems: dict[int, LLMError] = field(factory=dict[int, LLMError])
    failure: LLMError | None = None

    def numbers(self, group: Group) -> tuple[int, ...]:
        """Return the requests of a group that are still the same."""
        return tuple(number for number, key in group.submission.items if self.keys.get(number) == key)

    @property
    def unsettled(self) -> list[Group]:
        """The groups of which it is unknown whether they were submitted."""
        return [group for group in self.groups if not group.closed and not group.job_id]

    @property
    def uncollected(self) -> list[Group]:
        """The groups that were submitted and not collected."""
        return [group for group in self.groups if not group.closed and group.job_id]

    async def finish(self, number: int, answer: Answer) -> None:
        """Report the result of an open request."""
        del self.open[number]
        await self.report(number, answer, resumed=False, changed=number in self.changed)

    def blame(self, group: Group, error: LLMError) -> LLMError:
        """Note what went wrong with a group, and return it."""
        self.problems.update(dict.fromkeys(self.numbers(group), error))
        return error


async def begin(
    journal: OpenJournal, requests: Sequence[str | LLMRequest], report: Report, env: LLMEnv
) -> Result[Session, LLMError]:
    """Read an open journal, and report the answers that it holds."""
    jobs = batch_jobs_of(env.clients)
    if jobs is None:
        return Failure(ConfigurationError(message="the clients of this environment have no batches"))
    notes = await journal.notes()
    session = notes.bind(groups_of).map(partial(Session, env, jobs, journal, report))
    problem = await _read_requests(session.unwrap(), requests) if is_successful(session) else None
    return session if problem is None else Failure(problem)


_KEY_LENGTH: Final = 24


async def _read_requests(session: Session, requests: Sequence[str | LLMRequest]) -> LLMError | None:
    for number, given in enumerate(requests):
        asked = request_of(given)
        if not is_successful(asked):
            await session.report(number, Failure(asked.failure()), resumed=False, changed=False)
            continue
        request = asked.unwrap()
        session.requests[number], session.keys[number] = request, request_key(request)[:_KEY_LENGTH]
        lookup = await session.journal.find(number, request)
        if not is_successful(lookup):
            return lookup.failure()
        await _keep(session, number, lookup.unwrap().answer, changed=lookup.unwrap().changed)
    return None


async def _keep(session: Session, number: int, answer: LLMResponse | None, *, changed: bool) -> None:
    if answer is None:
        session.open[number] = None
        session.changed.update((number,) if changed else ())
        return
    session.costs[number] = answer.cost
    await session.report(number, Success(answer), resumed=True, changed=False)


# Submitting.


async def submit(session: Session) -> LLMError | None:
    """Submit what is open, once; return the first error that may pass. What cannot be submitted is reported."""
    problems = [await settle(session, group) for group in session.unsettled]
    for target, lines in await _plan(session):
        problems.append(await _submit(session, target, lines))
    return session.failure or next((each for each in problems if each is not None), None)


async def settle(session: Session, group: Group) -> LLMError | None:
    """Find out whether a submission that was cut off reached its provider; if not, its requests are open again."""
    submission = group.submission
    age_s = (session.env.now() - submission.at).total_seconds()
    await anyio.sleep(min(max(SETTLING_S - age_s, 0.0), SETTLING_S))
    found = await result_of(session.jobs.find(submission.model, submission.id, len(submission.items), submission.at))
    if not is_successful(found):
        return session.blame(group, found.failure())
    job = found.unwrap()
    return await (_void(session, group, "not found") if job is None else _conclude(session, group, job))


async def _plan(session: Session) -> list[tuple[Target, tuple[BatchLine, ...]]]:
    """Divide what is open, and in no batch yet, into batches; the id of a line is the number of its request."""
    taken = {number for group in session.groups if not group.closed for number in session.numbers(group)}
    encoded: dict[Target, list[BatchLine]] = {}
    for number in [number for number in session.open if number not in taken]:
        request = session.requests[number]
        target = target_for(request, session.env)
        line = target.bind(partial(line_of, custom_id=f"{number}", request=request))
        if is_successful(line):
            encoded.setdefault(target.unwrap(), []).append(line.unwrap())
        else:
            await session.finish(number, Failure(line.failure()))
    return [
        (target, part)
        for target, lines in encoded.items()
        if (limits := batch_limits(target)) is not None
        for part in split_lines(lines, limits)
    ]


def target_for(request: LLMRequest, env: LLMEnv) -> Result[Target, LLMError]:
    """Return the server that a request is sent to: the first of its candidates that takes batches.

    This is the one place that decides whether a request may leave in a batch: a candidate that routing leaves out, such
    as a remote one for content that stays on this machine, is never chosen.
    """
    decision = route(request, env.config, routing_context(request, env))
    if not is_successful(decision):
        return Failure(decision.failure())
    targets = ready_targets(env.config)
    for candidate in decision.unwrap().candidates:
        if batch_limits(targets[candidate.model]) is not None:
            return _affordable(request, targets[candidate.model], env)
    names = ", ".join(candidate.model for candidate in decision.unwrap().candidates) or "none"
    message = f"no model for this request takes batches (its candidates: {names}): configure one of openai or anthropic"
    return Failure(ConfigurationError(message=message))


def _affordable(request: LLMRequest, target: Target, env: LLMEnv) -> Result[Target, LLMError]:
    """Refuse a model whose price is unknown where a budget applies, as a call does."""
    accounts, cost = _expected(request, target.name, env, env.now())
    return Failure(unknown_price(target.name, accounts[0])) if accounts and cost.usd is None else Success(target)


def _expected(request: LLMRequest, model: str, env: LLMEnv, at: datetime) -> tuple[tuple[Account, ...], Cost]:
    """Return the budgets that a request is charged to, and what it will cost in a batch."""
    accounts = accounts_of(env.config.budgets, request, at)
    return accounts, expected_cost(_call(request, model), env, at, "batch") if accounts else Cost.ZERO


def _call(request: LLMRequest, model: str, name: str = "") -> Call:
    return Call(id=name, request=request, attempt=AttemptContext(model=model))


async def _submit(session: Session, target: Target, lines: tuple[BatchLine, ...]) -> LLMError | None:
    """Submit one batch, at most once: its intent comes first, its budgets second."""
    submission = _intent(session, target.name, tuple(int(line.custom_id) for line in lines))
    group = Group(f"batch/{len(session.groups)}", submission)
    noted = await session.journal.intend(group.key, msgspec.json.encode(submission))
    session.failure = session.failure or _note_problem(noted)
    if session.failure is not None:
        return session.failure
    session.groups.append(group)
    reserved = await _reserve(session, submission)
    if reserved is not None:
        return await _void(session, group, reserved.tag) or await _refuse(session, group, reserved)
    named = tuple(evolve(line, custom_id=submission.custom_id(int(line.custom_id))) for line in lines)
    sent = await result_of(session.jobs.submit(target.name, named, submission.id))
    if is_successful(sent):
        return await _conclude(session, group, sent.unwrap())
    return await _handle(session, group, target, lines, sent.failure())


def _note_problem(noted: Result[JournalEntry, LLMError]) -> LLMError | None:
    if not is_successful(noted):
        return noted.failure()
    message = "another run submits with this journal: wait for it to end"
    return None if noted.unwrap().fresh else StorageFailed(operation=_STORING, message=message)


async def _handle(
    session: Session, group: Group, target: Target, lines: tuple[BatchLine, ...], error: LLMError
) -> LLMError | None:
    """Handle a failed submission. One that may have arrived stays as it is: the next look finds it."""
    if not _is_certain(error):
        return session.blame(group, error)
    problem = await _void(session, group, error.tag)
    if problem is None and error.status == _TOO_LARGE and len(lines) > 1:
        half = len(lines) // 2
        return await _submit(session, target, lines[:half]) or await _submit(session, target, lines[half:])
    if problem is not None or is_retryable(error):
        return problem or session.blame(group, error)
    return await _refuse(session, group, error)


_TOO_LARGE: Final = 413
_UNCERTAIN: Final = frozenset({408, 409})


def _is_certain(error: LLMError) -> bool:
    """Return whether nothing was submitted: the request never left, or the server rejected it."""
    rejected = 400 <= (error.status or 0) < 500 and error.status not in _UNCERTAIN
    return rejected or error.code == UPLOAD or not was_sent(error)


async def _refuse(session: Session, group: Group, error: LLMError) -> LLMError | None:
    for number in session.numbers(group):
        await session.finish(number, Failure(error))
    return None


def _intent(session: Session, model: str, numbers: tuple[int, ...]) -> Submission:
    env, at = session.env, session.env.now()
    name = hashlib.sha256(f"{env.new_id()} {session.keys[numbers[0]]}".encode()).hexdigest()[:_KEY_LENGTH]
    shares: dict[tuple[Account, ...], dict[int, Decimal]] = {}
    for number in numbers if env.config.budgets else ():
        accounts, cost = _expected(session.requests[number], model, env, at)
        if cost.usd:
            shares.setdefault(accounts, {})[number] = cost.usd
    return Submission(
        id=name,
        model=model,
        at=at,
        items=tuple((number, session.keys[number]) for number in numbers),
        shares=tuple(
            Share(
                Hold(
                    id=f"{name}-{at_account}",
                    accounts=accounts,
                    amount=sum(costs.values(), Decimal(0)),
                    at=at,
                    expires_at=at + HOLD,
                ),
                tuple(costs),
            )
            for at_account, (accounts, costs) in enumerate(shares.items())
        ),
    )


async def _reserve(session: Session, submission: Submission) -> LLMError | None:
    for share in submission.shares:
        reserved = await result_of(session.env.ledger.reserve(share.hold))
        if not is_successful(reserved):
            return evolve(reserved.failure(), model=submission.model)
    return None


async def _conclude(session: Session, group: Group, job: BatchJob) -> LLMError | None:
    """Note what a submission became."""
    group.job_id = job.id
    return await _note(session, group, Outcome(job=job.id))


async def _void(session: Session, group: Group, reason: str) -> LLMError | None:
    """Note that a submission came to nothing, and free what it reserved."""
    group.closed = True
    problem = await _note(session, group, Outcome(void=reason))
    for share in group.submission.shares:
        await session.env.ledger.commit(share.hold, Decimal(0))
    return problem


async def _note(session: Session, group: Group, outcome: Outcome) -> LLMError | None:
    with anyio.CancelScope(shield=True):
        noted = await session.journal.conclude(group.key, msgspec.json.encode(outcome))
    session.failure = session.failure or (None if is_successful(noted) else noted.failure())
    return session.failure


# Collecting.


async def collect(session: Session) -> LLMError | None:
    """Report the results of every batch that has ended; return the first error that may pass."""
    problems = [await _collect(session, group) for group in session.uncollected]
    return session.failure or next((each for each in problems if each is not None), None)


async def _collect(session: Session, group: Group) -> LLMError | None:
    asked = await result_of(session.jobs.status(group.submission.model, group.job_id))
    if not is_successful(asked):
        return session.blame(group, asked.failure())
    job = asked.unwrap()
    if not job.ended:
        return None
    return await (_fail(session, group, job) if job.state == "failed" else _read_results(session, group, job))


_QUEUE_FULL: Final = "token_limit_exceeded"
"""The code of a batch that OpenAI refused because too many tokens are enqueued."""


async def _fail(session: Session, group: Group, job: BatchJob) -> LLMError | None:
    """Report a batch that its provider refused as a whole: nothing of it ran."""
    problem = await _close(session, group, dict.fromkeys((number for number, _ in group.submission.items), Cost.ZERO))
    message = f"the provider refused the batch: {job.message or job.code or 'without a reason'}"
    if job.code == _QUEUE_FULL:
        full = RateLimitExceeded(model=job.model, message=message, code=job.code, retry_after=QUEUE_FULL_S)
        return problem or session.blame(group, full)
    return problem or await _refuse(session, group, InvalidRequest(model=job.model, message=message, code=job.code))


async def _read_results(session: Session, group: Group, job: BatchJob) -> LLMError | None:
    now = msgspec.json.encode(session.env.now())
    noted = await session.journal.intend(f"{group.key}{_READ}", now)
    if not is_successful(noted):
        session.failure = noted.failure()
        return session.failure
    reading = _Reading(session, group, msgspec.json.decode(noted.unwrap().intent, type=datetime))
    read = await result_of(session.jobs.results(job, reading.requests, reading.take))
    if session.failure is not None or not is_successful(read):
        return session.failure or session.blame(group, _unread(read.failure()))
    missing = [number for number in session.numbers(group) if number not in reading.costs]
    if missing and job.state not in {"expired", "cancelled"}:
        return await _miss(session, group, [number for number in missing if number in session.open])
    for number in missing:
        reading.costs[number] = Cost.ZERO
        if number in session.open:
            await session.finish(number, Failure(not_run(ready_targets(session.env.config)[job.model], job.state)))
    return await _close(session, group, reading.costs)


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
    """A reading of the results of a group, noted ``at`` a time, with the ``costs`` of those that came."""

    session: Session
    group: Group
    at: datetime
    costs: dict[int, Cost] = field(factory=dict[int, Cost])

    @property
    def requests(self) -> dict[str, LLMRequest]:
        """The requests of the group by their ids at the provider."""
        name = self.group.submission.custom_id
        return {name(number): self.session.requests[number] for number in self.session.numbers(self.group)}

    async def take(self, custom_id: str, answer: Answer) -> None:
        """Book, store and report a result: the first of a request counts, and one in the journal is booked already."""
        session, number = self.session, int(custom_id.rpartition("-")[2])
        if number in self.costs or session.failure is not None:
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
        env, request, model = self.session.env, self.session.requests[number], self.group.submission.model
        if is_successful(answer):
            call = _call(request, model, custom_id)
            answer = Success(await calibrated(with_plausible_usage(answer.unwrap(), call, env), call, env))
        elif answer.failure().code in NOT_RUN:
            return answer, Cost.ZERO
        attempt = self._attempt(answer)
        env.ledger.record(_row(custom_id, request, attempt, self.at, answer))
        return _booked(answer, request, attempt), attempt.cost

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
    noted = await session.journal.intend(f"{group.key}{_END}", b"{}")
    session.failure = session.failure or (None if is_successful(noted) else noted.failure())
    group.closed = group.collected = session.failure is None
    return session.failure
