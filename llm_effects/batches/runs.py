"""Many requests at once: their answers in order, or one by one as they come, in a run that may be killed and go on."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sized
from inspect import isawaitable
from itertools import repeat
from typing import Final, TypeAlias, final

import anyio
from attrs import evolve, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.batches.journals import Journal, OpenJournal, no_journal
from llm_effects.effects.combinators import places
from llm_effects.effects.effect import Effect, effect, run
from llm_effects.effects.env import LLMEnv
from llm_effects.effects.tasks import in_parallel
from llm_effects.pipeline import generate
from llm_effects.values.errors import InvalidRequest, LLMError, StorageFailed
from llm_effects.values.requests import CachePolicy, LLMRequest
from llm_effects.values.responses import Cost, LLMResponse
from llm_effects.values.validation import to_member

# One request of a long run: from the journal or from a model, and counted.


Answer: TypeAlias = Result[LLMResponse, LLMError]


@final
@frozen(kw_only=True)
class Progress:
    """How far a run has come: ``done`` requests, of which ``failed`` have an error for an answer.

    ``total`` is how many there are, where that is known. ``resumed`` were answered from the journal; ``changed`` were
    asked anew, since it has another request in their place. ``cost`` is what this start of the run has spent, on
    failures too.
    """

    done: int = 0
    failed: int = 0
    total: int | None = None
    resumed: int = 0
    changed: int = 0
    cost: Cost = Cost.ZERO


OnProgress: TypeAlias = Callable[[Progress], Awaitable[None] | None]
"""Told how far the run has come, after each request; it may be ``async``."""

KEEPING_S: Final = 30.0
"""How long an answer that was paid for may take to be noted, in seconds; no cancellation cuts that short."""


@final
@frozen
class ItemOutcome:
    """What came of a request, and how: from the journal, or in place of another one's answer."""

    answer: Answer
    resumed: bool = False
    changed: bool = False


async def outcome_of(
    journal: OpenJournal, number: int, request: LLMRequest, env: LLMEnv
) -> Result[ItemOutcome, LLMError]:
    """Answer a request, or find its answer in the journal; gives what is wrong with the journal, if anything is."""
    found = await journal.recall(number, request)
    if not is_successful(found):
        return Failure(found.failure())
    noted = found.unwrap()
    if noted.answer is not None:
        return Success(ItemOutcome(Success(noted.answer), resumed=True))
    asked = await run(generate(request), env)
    answer = asked.map(_marked) if noted.changed else asked
    kept = await _kept(journal, number, request, answer)
    return kept.map(lambda _: ItemOutcome(answer, changed=noted.changed))


def _marked(answer: LLMResponse) -> LLMResponse:
    return evolve(answer, warnings=(*answer.warnings, _CHANGED))


_CHANGED: Final = "the journal holds an answer to another request in this place: this one was asked anew"


async def _kept(journal: OpenJournal, number: int, request: LLMRequest, answer: Answer) -> Result[None, LLMError]:
    """Note an answer before anybody hears of it. A failure is not noted: whoever starts again wants it asked again."""
    if not is_successful(answer):
        return Success(None)
    with anyio.move_on_after(KEEPING_S, shield=True):
        return await journal.keep(number, request, answer.unwrap())
    return Failure(StorageFailed(operation="journal", message="it took too long to note an answer", transient=True))


def after(before: Progress, came: ItemOutcome) -> Progress:
    """Count a request that is done."""
    ended = came.answer
    spent = ended.unwrap().cost if is_successful(ended) else ended.failure().cost
    return evolve(
        before,
        done=before.done + 1,
        failed=before.failed + (not is_successful(ended)),
        resumed=before.resumed + came.resumed,
        changed=before.changed + came.changed,
        cost=before.cost if came.resumed else before.cost + spent,
    )


Take: TypeAlias = Callable[[int, Answer], Awaitable[None] | None]
"""Given the number of a request, from 0, and what came of it; it may be ``async``."""


def generate_many(
    requests: Iterable[LLMRequest],
    concurrency: int = 8,
    *,
    cache: CachePolicy | str | None = None,
    journal: Journal = no_journal,
    progress: OnProgress | None = None,
) -> Effect[tuple[Answer, ...]]:
    """Answer requests, at most ``concurrency`` at once, and give their results in order; an error costs only its own.

    Requests are taken as places come free, so they may come from a generator, which can be run once only. ``cache``
    stands in for what each request says: with ``bypass`` equal requests give as many samples, instead of one answer
    many times. With a ``journal`` what was answered before is not asked again; one that fails ends the run, as a
    ``StorageFailed``.

    >>> import anyio
    >>> from llm_effects import ContentRefused, run, scripted_env
    >>> many = generate_many(LLMRequest(prompt=f"{number}?") for number in range(3))
    >>> env = scripted_env("one", ContentRefused(), "three")
    >>> [result.map(lambda answer: answer.content).value_or("?") for result in anyio.run(run, many, env).unwrap()]
    ['one', '?', 'three']
    >>> anyio.run(run, many, env).failure().tag
    'InvalidRequest'
    """
    batch = _batch(requests, concurrency, cache, journal, progress)

    async def perform(env: LLMEnv) -> Result[tuple[Answer, ...], LLMError]:
        results: dict[int, Answer] = {}
        done = await _run(batch, results.__setitem__, env)
        return done.map(lambda _: tuple(results[number] for number in range(len(results))))

    return effect(perform)


def generate_each(
    requests: Iterable[LLMRequest],
    take: Take,
    concurrency: int = 8,
    *,
    cache: CachePolicy | str | None = None,
    journal: Journal = no_journal,
    progress: OnProgress | None = None,
) -> Effect[Progress]:
    """Answer requests as ``generate_many`` does, each result given to ``take`` as it comes, and none kept.

    So a run may be longer than memory. Gives how it ended.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> each = generate_each([LLMRequest(prompt="why?")], lambda number, answer: print(number, answer.unwrap().content))
    >>> anyio.run(run, each, scripted_env("because")).unwrap().done
    0 because
    1
    """
    batch = _batch(requests, concurrency, cache, journal, progress)
    return effect(lambda env: _run(batch, take, env))


@final
@frozen
class _Batch:
    runs: Iterator[Iterable[LLMRequest]]
    workers: int
    policy: CachePolicy | None
    journal: Journal
    progress: OnProgress | None


def _batch(
    requests: Iterable[LLMRequest],
    concurrency: int,
    cache: CachePolicy | str | None,
    journal: Journal,
    progress: OnProgress | None,
) -> _Batch:
    runs = iter((requests,)) if isinstance(requests, Iterator) else repeat(requests)
    policy = None if cache is None else to_member("cache", CachePolicy, cache)
    return _Batch(runs, places("concurrency", concurrency), policy, journal, progress)


_ONCE: Final = InvalidRequest(message="requests: a generator can be gone through once only: give a list to run again")


async def _run(batch: _Batch, take: Take, env: LLMEnv) -> Result[Progress, LLMError]:
    async with batch.journal(env) as journal:
        if not is_successful(journal):
            return Failure(journal.failure())
        requests = next(batch.runs, None)
        return Failure(_ONCE) if requests is None else await _answered(batch, requests, journal.unwrap(), take, env)


async def _answered(
    batch: _Batch, requests: Iterable[LLMRequest], journal: OpenJournal, take: Take, env: LLMEnv
) -> Result[Progress, LLMError]:
    total = len(requests) if isinstance(requests, Sized) else None
    so_far, problems = Progress(total=total), list[LLMError]()

    async def one(number: int, request: LLMRequest) -> bool:
        nonlocal so_far
        asked = request if batch.policy is None else evolve(request, cache=batch.policy)
        came = await outcome_of(journal, number, asked, env)
        if not is_successful(came):
            problems.append(came.failure())
            return True
        so_far = now = after(so_far, came.unwrap())
        await _told(take(number, came.unwrap().answer))
        await _told(None if batch.progress is None else batch.progress(now))
        return False

    await in_parallel(requests, batch.workers if total is None else min(batch.workers, total), one)
    return Failure(problems[0]) if problems else Success(so_far)


async def _told(hook: Awaitable[None] | None) -> None:
    if isawaitable(hook):
        await hook
