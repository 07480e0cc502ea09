"""One request of a long run: from the journal or from a model, and counted."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias, final

import anyio
from attrs import evolve, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.batches.journals import OpenJournal
from llm_effects.effects import settle
from llm_effects.env import LLMEnv
from llm_effects.errors import LLMError, StorageFailed
from llm_effects.pipeline import generate
from llm_effects.requests import LLMRequest
from llm_effects.responses import Cost, LLMResponse

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
class Came:
    """What came of a request, and how: from the journal, or in place of another one's answer."""

    answer: Answer
    resumed: bool = False
    changed: bool = False


async def came_of(journal: OpenJournal, number: int, request: LLMRequest, env: LLMEnv) -> Result[Came, LLMError]:
    """Answer a request, or find its answer in the journal; gives what is wrong with the journal, if anything is."""
    found = await journal.recall(number, request)
    if not is_successful(found):
        return Failure(found.failure())
    noted = found.unwrap()
    if noted.answer is not None:
        return Success(Came(Success(noted.answer), resumed=True))
    asked = await settle(generate(request), env)
    answer = asked.map(_marked) if noted.changed else asked
    kept = await _kept(journal, number, request, answer)
    return kept.map(lambda _: Came(answer, changed=noted.changed))


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


def after(before: Progress, came: Came) -> Progress:
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
