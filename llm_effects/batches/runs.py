"""Many requests in one run: ``generate_many`` returns all answers in order, ``generate_each`` one by one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sized
from inspect import isawaitable
from itertools import repeat
from typing import Final, Literal, TypeAlias, final, get_args

import anyio
from attrs import define, evolve, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.batches.journals import Journal, OpenJournal, no_journal, save_answer
from llm_effects.config import LLMConfig
from llm_effects.effects.combinators import at_least_one
from llm_effects.effects.effect import Answer, Effect, effect, run
from llm_effects.effects.env import LLMEnv
from llm_effects.effects.tasks import in_parallel
from llm_effects.limits.quotas import quota_of
from llm_effects.pipeline import generate
from llm_effects.values.errors import (
    InvalidRequest,
    LLMError,
    RateLimitExceeded,
    RequestFailed,
    RequestTimeout,
    request_of,
)
from llm_effects.values.requests import CachePolicy, LLMRequest
from llm_effects.values.responses import Cost, LLMResponse
from llm_effects.values.validation import invalid, is_a, to_member


@final
@frozen(kw_only=True)
class Progress:
    """The progress of a run: ``done`` requests, of which ``failed`` ended in an error.

    ``total`` is the number of requests, where it is known. ``resumed`` counts answers from the journal; ``changed``
    counts requests that were sent because the journal holds another request in their place. ``cost`` is what this
    start of the run has spent, failures included.
    """

    done: int = 0
    failed: int = 0
    total: int | None = None
    resumed: int = 0
    changed: int = 0
    cost: Cost = Cost.ZERO


OnProgress: TypeAlias = Callable[[Progress], Awaitable[None] | None]
"""Called with the progress of the run after each request; it may be ``async``."""

Via: TypeAlias = Literal["calls", "provider"]
"""How requests are sent: one call each, or as batches of their providers, at half price and within a day."""

Take: TypeAlias = Callable[[int, Answer], Awaitable[None] | None]
"""Called with the number of a request, from 0, and its answer; it may be ``async``."""

MOST_WAITS: Final = 1_000
"""How often a request waits for limits of our own: each time as long as they ask, or through one whole deadline."""

MOST_WAITS_FOR_SERVER: Final = 10
"""How often a request is sent again after a server rejected it with a pause."""

LEAST_PAUSE_S: Final = 1.0
"""The shortest pause before a request asks its limits again, in seconds."""

LONGEST_PAUSE_S: Final = 600.0
"""The longest pause asked for by a server that a request waits for, in seconds."""

_EXHAUSTED: Final = InvalidRequest(message="requests: a generator can run once only: pass a list to run again")
_CHANGED: Final = "the journal holds an answer to another request in this place: this request was sent"


def generate_many(
    requests: Iterable[str | LLMRequest],
    concurrency: int = 8,
    *,
    cache: CachePolicy | str | None = None,
    journal: Journal = no_journal,
    progress: OnProgress | None = None,
    via: Via = "calls",
) -> Effect[tuple[Answer, ...]]:
    """Answer requests, at most ``concurrency`` at once, and return their results in order; an error affects only one.

    A request that the limits of all its models leave no room for waits as long as it takes, also past its deadline.
    Requests are read as workers become free, so a generator works too, but it can run only once. ``cache`` overrides
    the policy of each request: with ``bypass`` equal requests get independent samples instead of one shared answer.
    With a ``journal``, stored answers are not requested again; a journal that fails ends the run with a
    ``StorageFailed``.

    With ``via="provider"`` they are submitted as batches, at half price, and waited for: up to a day, through failed
    polls, and across restarts of the program if there is a ``journal``. See ``submit_batch``.

    >>> import anyio
    >>> from llm_effects import ContentRefused, run, scripted_env
    >>> many = generate_many(f"{number}?" for number in range(3))
    >>> env = scripted_env("one", ContentRefused(), "three")
    >>> [result.map(lambda answer: answer.content).value_or("?") for result in anyio.run(run, many, env).unwrap()]
    ['one', '?', 'three']
    >>> anyio.run(run, many, env).failure().tag
    'InvalidRequest'
    """
    batch = _batch(requests, concurrency, cache, journal, progress, via=via)

    async def collect(env: LLMEnv) -> Result[tuple[Answer, ...], LLMError]:
        answers: dict[int, Answer] = {}
        finished = await _run(batch, answers.__setitem__, env)
        return finished.map(lambda _: tuple(answers[number] for number in range(len(answers))))

    return effect(collect)


def generate_each(
    requests: Iterable[str | LLMRequest],
    take: Take,
    concurrency: int = 8,
    *,
    cache: CachePolicy | str | None = None,
    journal: Journal = no_journal,
    progress: OnProgress | None = None,
    via: Via = "calls",
) -> Effect[Progress]:
    """Answer requests as ``generate_many`` does, but pass each result to ``take`` as it arrives, and keep none.

    The run may therefore be larger than memory. Return its final progress.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> each = generate_each([LLMRequest(prompt="why?")], lambda number, answer: print(number, answer.unwrap().content))
    >>> anyio.run(run, each, scripted_env("because")).unwrap().done
    0 because
    1
    """
    batch = _batch(requests, concurrency, cache, journal, progress, via=via)
    return effect(lambda env: _run(batch, take, env))


@final
@frozen
class _Batch:
    """The arguments of a run; ``sources`` yields the requests once for each run of the effect."""

    sources: Iterator[Iterable[str | LLMRequest]]
    workers: int
    cache: CachePolicy | None
    journal: Journal
    on_progress: OnProgress | None
    via: Via


def _batch(
    requests: Iterable[str | LLMRequest],
    concurrency: int,
    cache: CachePolicy | str | None,
    journal: Journal,
    progress: OnProgress | None,
    *,
    via: Via,
) -> _Batch:
    if is_a(requests, str) or is_a(requests, LLMRequest):
        one = "text" if is_a(requests, str) else "request"
        invalid("requests", f"must be a list of texts or requests, not one {one}: use generate")
    sources = iter((requests,)) if isinstance(requests, Iterator) else repeat(requests)
    policy = None if cache is None else to_member("cache", CachePolicy, cache)
    if via not in get_args(Via):
        invalid("via", f"must be one of {', '.join(get_args(Via))}")
    return _Batch(sources, at_least_one("concurrency", concurrency), policy, journal, progress, via)


async def _run(batch: _Batch, take: Take, env: LLMEnv) -> Result[Progress, LLMError]:
    async with batch.journal(env) as journal:
        if not is_successful(journal):
            return Failure(journal.failure())
        requests = next(batch.sources, None)
        if requests is None:
            return Failure(_EXHAUSTED)
        tally = _Tally(Progress(total=len(requests) if isinstance(requests, Sized) else None), take, batch.on_progress)
        run_all = _run_by_provider if batch.via == "provider" else _run_all
        return await run_all(batch, requests, journal.unwrap(), tally, env)


async def _run_by_provider(
    batch: _Batch,  # noqa: ARG001 - as _run_all
    requests: Iterable[str | LLMRequest],
    journal: OpenJournal,
    tally: _Tally,
    env: LLMEnv,
) -> Result[Progress, LLMError]:
    from llm_effects.batches.provider_batches import answer_by_provider

    async def report(number: int, answer: Answer, *, resumed: bool, changed: bool) -> None:
        warned = answer.map(_with_changed_warning) if changed else answer
        await tally.add(number, _Item(warned, resumed=resumed, changed=changed))

    ended = await answer_by_provider(journal, requests, report, env)
    return ended.map(lambda _: tally.progress)


async def _run_all(
    batch: _Batch, requests: Iterable[str | LLMRequest], journal: OpenJournal, tally: _Tally, env: LLMEnv
) -> Result[Progress, LLMError]:
    total, errors = tally.progress.total, list[LLMError]()

    async def run_one(number: int, request: str | LLMRequest) -> bool:
        sent = request_of(request).map(lambda asked: asked if batch.cache is None else evolve(asked, cache=batch.cache))
        result = await _run_item(journal, number, sent, env)
        if not is_successful(result):
            errors.append(result.failure())
            return True
        await tally.add(number, result.unwrap())
        return False

    await in_parallel(requests, batch.workers if total is None else min(batch.workers, total), run_one)
    return Failure(errors[0]) if errors else Success(tally.progress)


@final
@define(eq=False)
class _Tally:
    """The ``progress`` of a run, and what receives its answers."""

    progress: Progress
    take: Take
    on_progress: OnProgress | None

    async def add(self, number: int, item: _Item) -> None:
        """Pass on an answer, then the progress with it."""
        self.progress = current = _advanced(self.progress, item)
        await _finish(self.take(number, item.answer))
        await _finish(None if self.on_progress is None else self.on_progress(current))


async def _finish(hook: Awaitable[None] | None) -> None:
    if isawaitable(hook):
        await hook


# One request of a run.


@final
@frozen
class _Item:
    """The answer to a request: ``resumed`` from the journal, or sent because the journal held another request."""

    answer: Answer
    resumed: bool = False
    changed: bool = False


async def _run_item(
    journal: OpenJournal, number: int, sent: Result[LLMRequest, LLMError], env: LLMEnv
) -> Result[_Item, LLMError]:
    """Find the answer in the journal, or generate and store it; only the journal can fail here."""
    if not is_successful(sent):
        return Success(_Item(Failure(sent.failure())))
    request = sent.unwrap()
    lookup = await journal.find(number, request)
    if not is_successful(lookup):
        return Failure(lookup.failure())
    stored = lookup.unwrap()
    if stored.answer is not None:
        return Success(_Item(Success(stored.answer), resumed=True))
    result = await _answer(request, env)
    answer = result.map(_with_changed_warning) if stored.changed else result
    saved = await save_answer(journal, number, request, answer)
    return saved.map(lambda _: _Item(answer, changed=stored.changed))


async def _answer(request: LLMRequest, env: LLMEnv) -> Answer:
    """Generate an answer, and wait outside of the call's deadline for limits that leave no room within it."""
    result = await run(generate(request), env)
    for waits in range(MOST_WAITS):
        pause = None if is_successful(result) else _pause_for_limits(result.failure(), waits, env.config)
        if pause is None:
            break
        await anyio.sleep(pause)
        result = await run(generate(request), env)
    return result


def _pause_for_limits(error: LLMError, waits: int, config: LLMConfig) -> float | None:
    """Return in how many seconds the limits may leave room, ``None`` if the call failed for another reason or cost."""
    if error.cost != Cost.ZERO or (error.attempts and waits >= MOST_WAITS_FOR_SERVER):
        return None
    errors = error.errors if isinstance(error, RequestFailed) else (error,)
    pauses = (max(each.retry_after or 0.0, LEAST_PAUSE_S) for each in errors if _is_limit(each, config))
    return min(pauses, default=None)


def _is_limit(error: LLMError, config: LLMConfig) -> bool:
    match error:
        case RateLimitExceeded():
            is_own = error.status is None and error.should_retry is False and _is_limited(error.model, config)
            return is_own or (not error.quota and 0 < (error.retry_after or 0.0) <= LONGEST_PAUSE_S)
        case RequestTimeout():  # the deadline passed in the queue, or in pauses that a server asked for
            rejected = error.model is not None and all(
                each.outcome == RateLimitExceeded.tag for each in error.attempts
            )  # a call that waited for the answer to another one names no model
            return error.phase == "queue" or (error.phase == "total" and rejected)
        case _:
            return False


def _is_limited(name: str | None, config: LLMConfig) -> bool:
    return name is not None and name in config.models and not quota_of(config.models[name]).unlimited


def _with_changed_warning(answer: LLMResponse) -> LLMResponse:
    return evolve(answer, warnings=(*answer.warnings, _CHANGED))


def _advanced(progress: Progress, item: _Item) -> Progress:
    succeeded = is_successful(item.answer)
    spent = item.answer.unwrap().cost if succeeded else item.answer.failure().cost
    return evolve(
        progress,
        done=progress.done + 1,
        failed=progress.failed + (not succeeded),
        resumed=progress.resumed + item.resumed,
        changed=progress.changed + item.changed,
        cost=progress.cost if item.resumed else progress.cost + spent,
    )
