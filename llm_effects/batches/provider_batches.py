"""Batches at a provider, at half price: ``submit_batch``, ``batch_status``, ``collect_batch`` and ``cancel_batch``.

The journal is the handle of a batch: it says what was submitted, and holds the answers once they are collected.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeVar, final

import anyio
from attrs import evolve, frozen
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.batches.journals import Journal, OpenJournal
from llm_effects.effects.effect import Answer, Effect, effect, result_of
from llm_effects.effects.env import LLMEnv
from llm_effects.values.display import shown
from llm_effects.values.errors import InvalidRequest, LLMError, ModelUnavailable, RateLimitExceeded, is_retryable
from llm_effects.values.records import BatchJob
from llm_effects.values.requests import LLMRequest
from llm_effects.values.validation import invalid, is_a

if TYPE_CHECKING:  # and imported when a batch is, which takes some milliseconds
    from llm_effects.batches.submissions import Report, Session

_Value = TypeVar("_Value")

FIRST_PAUSE_S: Final = 1.0
"""The first pause between two polls, in seconds; each is twice the last."""

LONGEST_PAUSE_S: Final = 60.0
"""The longest pause between two polls, in seconds, unless the provider asks for more."""

LONGEST_ASKED_S: Final = 600.0
"""The longest pause that a provider may ask for, in seconds."""

MOST_FAILURES: Final = 100
"""How many polls in a row may fail before a run ends; the next start of it goes on."""


@final
@frozen(kw_only=True)
class BatchStatus:
    """The state of a batch, as its providers report it: the ``jobs`` that are not collected yet.

    Requests of several models, or too many for one batch, make several jobs. ``collected`` counts those that were.
    ``unknown`` counts submissions that were cut off and not looked for yet: ``submit_batch`` does. ``refused`` are
    requests that were not submitted, by their number from 0.
    """

    __repr__ = shown

    jobs: tuple[BatchJob, ...] = ()
    collected: int = 0
    unknown: int = 0
    refused: tuple[tuple[int, LLMError], ...] = ()

    @property
    def ended(self) -> bool:
        """Whether every job has ended, so that its results can be collected."""
        return not self.unknown and all(job.ended for job in self.jobs)


def submit_batch(requests: Iterable[str | LLMRequest], journal: Journal) -> Effect[BatchStatus]:
    """Submit requests as batches of their providers, at half price, each once, however often this is called.

    What the journal holds an answer for, or a batch that is not collected yet, is not submitted. Requests that failed
    are, once they are collected. An error that may pass, such as ``RateLimitExceeded``, leaves the rest for the next
    call.

    >>> import anyio
    >>> from llm_effects import LLMConfig, ModelConfig, run, scripted_env
    >>> from llm_effects.batches import store_journal
    >>> gpt = ModelConfig(provider="openai", model="gpt-6-luna", api_key="sk-x")
    >>> env, journal = scripted_env("because", config=LLMConfig(models={"gpt": gpt})), store_journal("nightly")
    >>> submitted = [anyio.run(run, submit_batch(["why?"], journal), env).unwrap() for _ in range(2)]
    >>> [[(job.model, job.requests) for job in status.jobs] for status in submitted]
    [[('gpt', 1)], [('gpt', 1)]]
    >>> anyio.run(run, collect_batch(["why?"], journal), env).unwrap()[0].unwrap().content
    'because'
    """
    asked = _listed(requests)

    async def perform(env: LLMEnv) -> Result[BatchStatus, LLMError]:
        from llm_effects.batches.submissions import submit

        answers = dict[int, Answer]()

        async def work(session: Session) -> Result[BatchStatus, LLMError]:
            problem = await submit(session)
            status = Failure(problem) if problem is not None else await _status(session)
            return status.map(lambda known: evolve(known, refused=_errors_of(answers)))

        return await _in_session(asked, journal, _keeping(answers), env, work)

    return effect(perform)


def batch_status(journal: Journal) -> Effect[BatchStatus]:
    """Ask the providers for the state of a submitted batch; nothing is submitted, collected or paid for."""
    return effect(lambda env: _in_session((), journal, _keeping({}), env, _status))


def collect_batch(requests: Iterable[str | LLMRequest], journal: Journal) -> Effect[tuple[Answer, ...]]:
    """Return the results of a submitted batch in the order of its ``requests``, which must be the same.

    Each answer is stored in the journal before it is returned, booked in the ledger at half price, and settled with the
    budgets. A request whose batch has not ended is a ``ModelUnavailable``, one that was not submitted an
    ``InvalidRequest``: the others are returned all the same, and another call collects the rest. A request that its
    batch did not get to before it expired (``TimeoutError``) or was cancelled (``ModelUnavailable``) costs nothing, and
    the next ``submit_batch`` submits it again.
    """
    asked = _listed(requests)

    async def perform(env: LLMEnv) -> Result[tuple[Answer, ...], LLMError]:
        from llm_effects.batches.results import collect

        answers = dict[int, Answer]()

        async def work(session: Session) -> Result[tuple[Answer, ...], LLMError]:
            await collect(session)
            if session.failure is not None:
                return Failure(session.failure)
            waiting = session.submitted
            answers.update((number, Failure(_reason(session, number, waiting))) for number in session.open)
            return Success(tuple(answers[number] for number in range(len(asked))))

        return await _in_session(asked, journal, _keeping(answers), env, work)

    return effect(perform)


def cancel_batch(journal: Journal) -> Effect[BatchStatus]:
    """Cancel what has not begun of a submitted batch, and return its state; what has ended can be collected.

    A provider may take some minutes. What is under way goes on, and is paid for.
    """

    async def work(session: Session) -> Result[BatchStatus, LLMError]:
        from llm_effects.batches.submissions import settle

        for group in session.unsettled:
            problem = await settle(session, group)
            if problem is not None:
                return Failure(problem)
        return await _asked(session, session.jobs.cancel)

    return effect(lambda env: _in_session((), journal, _keeping({}), env, work))


def _listed(requests: Iterable[str | LLMRequest]) -> tuple[str | LLMRequest, ...]:
    if is_a(requests, str):
        invalid("requests", "must be a list of texts or requests, not one text: use generate")
    return tuple(requests)


def _keeping(answers: dict[int, Answer]) -> Report:
    async def keep(number: int, answer: Answer, *, resumed: bool, changed: bool) -> None:  # noqa: ARG001 - the protocol
        answers[number] = answer

    return keep


def _errors_of(answers: Mapping[int, Answer]) -> tuple[tuple[int, LLMError], ...]:
    return tuple((number, each.failure()) for number, each in sorted(answers.items()) if not is_successful(each))


async def _in_session(
    requests: Sequence[str | LLMRequest],
    journal: Journal,
    report: Report,
    env: LLMEnv,
    work: Callable[[Session], Awaitable[Result[_Value, LLMError]]],
) -> Result[_Value, LLMError]:
    from llm_effects.batches.submissions import begin

    async with journal(env) as opened:
        if not is_successful(opened):
            return Failure(opened.failure())
        session = await begin(opened.unwrap(), requests, report, env)
        return await work(session.unwrap()) if is_successful(session) else Failure(session.failure())


async def _status(session: Session) -> Result[BatchStatus, LLMError]:
    return await _asked(session, session.jobs.status)


async def _asked(
    session: Session, ask: Callable[[str, str], FutureResult[BatchJob, LLMError]]
) -> Result[BatchStatus, LLMError]:
    """Ask about each batch that is not collected."""
    jobs: list[BatchJob] = []
    for group in session.uncollected:
        job = await result_of(ask(group.submission.model, group.job_id))
        if not is_successful(job):
            return Failure(job.failure())
        jobs.append(job.unwrap())
    collected = sum(group.collected for group in session.groups)
    return Success(BatchStatus(jobs=tuple(jobs), collected=collected, unknown=len(session.unsettled)))


def _reason(session: Session, number: int, waiting: set[int]) -> LLMError:
    """Return why a request has no result yet."""
    if number in session.problems:
        return session.problems[number]
    if number not in waiting:
        return InvalidRequest(message="this request was not submitted: call submit_batch with it first")
    message = "the batch has not ended: collect it again later"
    return ModelUnavailable(message=message, code="batch_not_ended", retry_after=LONGEST_PAUSE_S)


# Submitted, waited for and collected in one go.


async def answer_by_provider(
    journal: OpenJournal, requests: Iterable[str | LLMRequest], report: Report, env: LLMEnv
) -> Result[None, LLMError]:
    """Submit requests, wait for their batches and report each result; only the journal and the providers can fail."""
    from llm_effects.batches.submissions import begin

    session = await begin(journal, tuple(requests), report, env)
    return await _wait(session.unwrap()) if is_successful(session) else Failure(session.failure())


async def _wait(session: Session) -> Result[None, LLMError]:
    from llm_effects.batches.results import collect
    from llm_effects.batches.submissions import submit

    pause, failures = FIRST_PAUSE_S, 0
    while True:
        problems = (await submit(session), await collect(session))
        if session.failure is not None or not session.open:
            return Success(None) if session.failure is None else Failure(session.failure)
        problem = next((each for each in problems if each is not None), None)
        queued = isinstance(problem, RateLimitExceeded) and bool(session.uncollected)
        failures = 0 if problem is None or queued else failures + 1
        if problem is not None and (failures > MOST_FAILURES or not is_retryable(problem)):
            return Failure(problem)
        asked = 0.0 if problem is None else problem.retry_after or 0.0
        await anyio.sleep(max(pause, min(asked, LONGEST_ASKED_S)))
        pause = min(2 * pause, LONGEST_PAUSE_S)
