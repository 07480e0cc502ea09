"""A journal where conversations are stored."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import final

from attrs import field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.batches.journals import Found, Journal, OpenJournal, found_in
from llm_effects.caching import request_key
from llm_effects.codecs import VERSION, Entry, dump_entry
from llm_effects.effects import result_of
from llm_effects.errors import LLMError
from llm_effects.requests import LLMRequest
from llm_effects.responses import LLMResponse
from llm_effects.services import Conversations
from llm_effects.turns import JournalEntry


def store_journal(run_id: str, *, owner: str | None = None) -> Journal:
    """Note answers where conversations are stored (``StorageConfig.url``), under the name of a run and its owner.

    Nothing locks a run there: two at once under one name both ask, and the first answers stay.

    >>> import anyio
    >>> from llm_effects import LLMRequest, generate_many, scripted_env, settle
    >>> env = scripted_env("paid for", "never asked")
    >>> many = generate_many([LLMRequest(prompt="why?")], journal=store_journal("nightly"))
    >>> [anyio.run(settle, many, env).unwrap()[0].unwrap().content for _ in range(2)]
    ['paid for', 'paid for']
    """
    return lambda env: _opened_run(_RunJournal(env.conversations, run_id, owner))


@asynccontextmanager
async def _opened_run(journal: OpenJournal) -> AsyncGenerator[Result[OpenJournal, LLMError]]:
    yield Success(journal)


@final
@frozen
class _RunJournal:
    """A step of the store's journal for each number, and one more for each other request in its place.

    The first result of a step stays, so answers that another version wrote, which cannot be read, have other steps.
    ``others`` are the numbers whose own step belongs to another request.
    """

    store: Conversations
    run_id: str
    owner: str | None
    others: set[int] = field(factory=set[int])

    async def recall(self, number: int, request: LLMRequest) -> Result[Found, LLMError]:
        key = request_key(request)
        step = await self._intend(f"{VERSION}/{number}", key)
        if not is_successful(step):
            return Failure(step.failure())
        if step.unwrap().intent == key.encode():
            return Success(found_in(step.unwrap().result))
        self.others.add(number)
        other = await self._intend(f"{VERSION}/{number}/{key}", key)
        return other.map(lambda step: Found(changed=True) if step.result is None else found_in(step.result))

    async def _intend(self, step: str, key: str) -> Result[JournalEntry, LLMError]:
        return await result_of(self.store.intend(self.run_id, self.owner, step, key.encode()))

    async def keep(self, number: int, request: LLMRequest, answer: LLMResponse) -> Result[None, LLMError]:
        own = f"{VERSION}/{number}"
        step = f"{own}/{request_key(request)}" if number in self.others else own
        return await result_of(self.store.conclude(self.run_id, self.owner, step, dump_entry(Entry(response=answer))))
