"""Submissions to providers: what a journal holds of them, and how each is made once, found again and collected.

Before anything is submitted, the journal gets an intent with a fresh id, which the batch carries to its provider. After
a crash, the batch is looked for by that id, and its requests are submitted again only if it is not there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final, Protocol, final

import anyio
import msgspec
from anyio.lowlevel import checkpoint
from attrs import define, evolve, field
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.batches.journals import SAVING_S, OpenJournal
from llm_effects.clients.batch_client import UPLOAD, batch_jobs_of
from llm_effects.effects.call import AttemptContext, Call
from llm_effects.effects.effect import Answer, result_of
from llm_effects.effects.env import BatchJobs, LLMEnv
from llm_effects.limits.budgets import Account, Hold, accounts_of
from llm_effects.policies.budget import expected_cost, unknown_price
from llm_effects.policies.cache import request_key
from llm_effects.policies.redaction import Redacted, Redaction
from llm_effects.policies.routing import routing_context
from llm_effects.providers.batch_files import batch_limits, line_of, split_lines
from llm_effects.providers.registry import ready_targets
from llm_effects.providers.target import Target
from llm_effects.routing.router import route
from llm_effects.values.conversations import JournalEntry
from llm_effects.values.errors import (
    ConfigurationError,
    LLMError,
    StorageFailed,
    is_retryable,
    request_of,
    was_sent,
)
from llm_effects.values.records import BatchJob, BatchLine
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import Cost, LLMResponse

SETTLING_S: Final = 60.0
"""How long after its intent a batch that the provider does not list counts as never submitted, in seconds."""

HOLD: Final = timedelta(days=2)
"""How long a batch reserves its cost in the budgets: a provider takes a day, and the results are collected later."""

_STORING: Final = "journal"


class Report(Protocol):
    """Receives the answer to a request, once: ``resumed`` from the journal, or ``changed`` since that was written."""

    def __call__(self, number: int, answer: Answer, *, resumed: bool, changed: bool) -> Awaitable[None]:
        """Receive the answer to the request with this number."""
        ...


# What a journal holds: the intent of each submission, and its outcome.


@final
class Share(msgspec.Struct, frozen=True):
    """The amount that a submission reserves in some budgets, for the requests with these ``numbers``."""

    hold: Hold
    numbers: tuple[int, ...]


@final
class Submission(msgspec.Struct, frozen=True):
    """The intent of a submission ``at`` a time: ``items`` are the numbers of its requests and their keys.

    ``redaction`` is the digest of the key of its placeholders; it is empty where nothing was redacted.
    """

    id: str
    model: str
    at: datetime
    items: tuple[tuple[int, str], ...]
    shares: tuple[Share, ...] = ()
    redaction: str = ""

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


END: Final = "/end"
"""How the key of the note ends that a group was collected."""

READ: Final = "/read"
"""How the key of the note ends of when a group was first read, which dates its rows in the ledger."""


def groups_of(notes: Iterable[JournalEntry]) -> Result[list[Group], LLMError]:
    """Return the submissions that a journal holds; one that is unreadable must not be submitted again."""
    groups: dict[str, Group] = {}
    try:
        for entry in notes:
            if entry.key.endswith(END):
                group = groups[entry.key.removesuffix(END)]
                group.closed = group.collected = True
            elif not entry.key.endswith(READ):
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

    @property
    def submitted(self) -> set[int]:
        """The requests in a group that is not closed."""
        return {number for group in self.groups if not group.closed for number in self.numbers(group)}

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
    groups = groups_of(notes.unwrap()) if is_successful(notes) else Failure(notes.failure())
    if not is_successful(groups):
        return Failure(groups.failure())
    session = Session(env, jobs, journal, report, groups.unwrap())
    problem = await _read_requests(session, requests)
    return Success(session) if problem is None else Failure(problem)


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
    taken, encoded = session.submitted, dict[Target, list[BatchLine]]()
    for number in [number for number in session.open if number not in taken]:
        await checkpoint()
        placed = await _place(session, number)
        if is_successful(placed):
            target, line = placed.unwrap()
            encoded.setdefault(target, []).append(line)
        else:
            await session.finish(number, Failure(placed.failure()))
    return [
        (target, part)
        for target, lines in encoded.items()
        if (limits := batch_limits(target)) is not None
        for part in split_lines(lines, limits)
    ]


async def _place(session: Session, number: int) -> Result[tuple[Target, BatchLine], LLMError]:
    """Return the server of a request, and its line, which is redacted if the environment redacts."""
    request = session.requests[number]
    target = target_for(request, session.env)
    if not is_successful(target):
        return Failure(target.failure())
    sent = await as_sent(request, session.env)
    if not is_successful(sent):
        return Failure(sent.failure())
    return line_of(target.unwrap(), f"{number}", sent.unwrap().request).map(lambda line: (target.unwrap(), line))


async def as_sent(request: LLMRequest, env: LLMEnv) -> Result[Redacted, LLMError]:
    """Return a request as it is sent in a batch, and what restores its answer, in any process with the same key."""
    if env.redact is None:
        return Success(Redacted(request, lambda answer: answer))
    if not redaction_of(env) or not isinstance(env.redact, Redaction):
        return Failure(ConfigurationError(message=_NO_KEY))
    return await env.redact.redacted(request, env)


def redaction_of(env: LLMEnv) -> str:
    """Return the digest of the key of the environment's redaction; empty without a key that lasts."""
    return env.redact.digest if isinstance(env.redact, Redaction) else ""


_NO_KEY: Final = "redact: a batch may be collected by another process: give Redaction a key of your own"


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
    return accounts, expected_cost(call_of(request, model), env, at, "batch") if accounts else Cost.ZERO


def call_of(request: LLMRequest, model: str, name: str = "") -> Call:
    """Return the call that a request of a batch would be, for estimates and checks."""
    return Call(id=name, request=request, attempt=AttemptContext(model=model))


async def _submit(session: Session, target: Target, lines: tuple[BatchLine, ...]) -> LLMError | None:
    """Submit one batch, at most once: its intent comes first, its budgets second."""
    submission = await _intent(session, target.name, tuple(int(line.custom_id) for line in lines))
    group = Group(f"batch/{len(session.groups)}", submission)
    noted = await session.journal.intend(group.key, msgspec.json.encode(submission))
    session.failure = session.failure or _note_problem(noted)
    if session.failure is not None:
        return session.failure
    session.groups.append(group)
    reserved = await _reserve(session, submission)
    if reserved is not None:
        return await _void(session, group, reserved.tag) or await refuse(session, group, reserved)
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
    return await refuse(session, group, error)


_TOO_LARGE: Final = 413
_UNCERTAIN: Final = frozenset({408, 409})


def _is_certain(error: LLMError) -> bool:
    """Return whether nothing was submitted: the request never left, or the server rejected it."""
    rejected = 400 <= (error.status or 0) < 500 and error.status not in _UNCERTAIN
    return rejected or error.code == UPLOAD or not was_sent(error)


async def refuse(session: Session, group: Group, error: LLMError) -> LLMError | None:
    """Report the same error for every request of a group."""
    for number in session.numbers(group):
        if number in session.open:
            await session.finish(number, Failure(error))
    return None


async def _intent(session: Session, model: str, numbers: tuple[int, ...]) -> Submission:
    env, at = session.env, session.env.now()
    name = hashlib.sha256(f"{env.new_id()} {session.keys[numbers[0]]}".encode()).hexdigest()[:_KEY_LENGTH]
    shares: dict[tuple[Account, ...], dict[int, Decimal]] = {}
    for number in numbers if env.config.budgets else ():
        await checkpoint()
        accounts, cost = _expected(session.requests[number], model, env, at)
        if cost.usd:
            shares.setdefault(accounts, {})[number] = cost.usd
    return Submission(
        id=name,
        model=model,
        at=at,
        items=tuple((number, session.keys[number]) for number in numbers),
        redaction=redaction_of(env),
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
    """Note an outcome, whatever happens to the caller; return the failure of the journal."""
    problem: LLMError = StorageFailed(operation=_STORING, message="noting a batch took too long", transient=True)
    with anyio.move_on_after(SAVING_S, shield=True):
        noted = await session.journal.conclude(group.key, msgspec.json.encode(outcome))
        if is_successful(noted):
            return session.failure
        problem = noted.failure()
    session.failure = session.failure or problem
    return session.failure
