"""Erasing stored data: all of an owner, or what is older than it may be kept; each ends with a receipt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Final, TypeAlias, final

from attrs import define, field
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config.services import RetentionConfig, StorageConfig
from llm_effects.effects.effect import Effect, effect, result_of
from llm_effects.effects.env import LLMEnv
from llm_effects.effects.lifecycle import (
    Chosen,
    Counts,
    ErasableCache,
    ErasableConversations,
    ErasableLedger,
    Kept,
    Receipt,
)
from llm_effects.values.errors import LLMError, checked, describe
from llm_effects.values.serialization import owner_prefix
from llm_effects.values.validation import check_id

_Erase: TypeAlias = Callable[[Chosen], FutureResult[Counts, LLMError]]

_IN_MEMORY: Final = "it is in the memory of each process, and other processes have their own"
_CANNOT: Final = "this store has no way to erase by owner or age"


def erase_owner(owner: str) -> Effect[Receipt]:
    """Erase everything of an owner: conversations, journals, approvals, ledger rows, budgets, cached answers, vectors.

    The receipt counts what was erased in each store, and says what was not and why; a store that fails costs nothing of
    the others. What calls of the owner that are still under way write later is erased by another run.

    >>> import anyio
    >>> from llm_effects import run, scripted_env, start_conversation, then
    >>> started = then(start_conversation("c", owner="alice"), lambda _: erase_owner("alice"))
    >>> anyio.run(run, started, scripted_env()).unwrap().erased["conversations"]
    1
    >>> anyio.run(run, erase_owner(" "), scripted_env()).failure().message
    'owner: must not be blank'
    """

    async def perform(env: LLMEnv) -> Result[Receipt, LLMError]:
        valid = checked(check_id, "owner", owner)
        if not is_successful(valid):
            return Failure(valid.failure())
        erasure, chosen = _Erasure(), Chosen(owners=(owner,))
        for kind in _KINDS:
            await erasure.erase(kind, env, chosen)
        await erasure.erase_cache(env, owner)
        return Success(erasure.receipt(env, owner))

    return effect(perform)


def apply_retention() -> Effect[Receipt]:
    """Erase what is older than ``storage.retention`` and ``storage.owner_retention`` keep it, in small transactions.

    Run it regularly, such as once a day: it may be interrupted, and run again at any time.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> anyio.run(run, apply_retention(), scripted_env()).unwrap().erased
    {}
    """

    async def perform(env: LLMEnv) -> Result[Receipt, LLMError]:
        erasure = _Erasure()
        for kind, chosen in _expired(env.config.storage, env):
            await erasure.erase(kind, env, chosen)
        return Success(erasure.receipt(env, None))

    return effect(perform)


_KINDS: Final = ("conversations", "journals", "ledger")


def _expired(config: StorageConfig, env: LLMEnv) -> Iterator[tuple[str, Chosen]]:
    """Yield what is to be erased of each kind: of all owners without a rule of their own, then of each other one."""
    spared = tuple(config.owner_retention)
    for kind in _KINDS:
        for owners, rule in ((None, config.retention), *(((each,), r) for each, r in config.owner_retention.items())):
            days = _days_of(rule, kind)
            if days is not None:
                before = env.now() - timedelta(days=days)
                yield kind, Chosen(owners=owners, spared=spared if owners is None else (), before=before)


def _days_of(rule: RetentionConfig, kind: str) -> float | None:
    days: float | None = getattr(rule, f"{kind}_days")
    return days


@final
@define(eq=False)
class _Erasure:
    """The counts of what was erased, and what was not."""

    erased: Counter[str] = field(factory=Counter[str])
    kept: list[Kept] = field(factory=list[Kept])

    def receipt(self, env: LLMEnv, owner: str | None) -> Receipt:
        return Receipt(at=env.now(), erased=dict(self.erased), kept=tuple(dict.fromkeys(self.kept)), owner=owner)

    async def erase(self, kind: str, env: LLMEnv, chosen: Chosen) -> None:
        """Erase data of one kind, batch by batch, until nothing is left or the store fails."""
        work = _eraser_of(kind, env)
        if work is None:
            self.kept.append(Kept(kind, _CANNOT))
            return
        while True:
            erased = await result_of(work(chosen))
            if not is_successful(erased):
                self.kept.append(Kept(kind, describe(erased.failure())))
                return
            self.erased.update(erased.unwrap())
            if not any(erased.unwrap().values()):
                return

    async def erase_cache(self, env: LLMEnv, owner: str) -> None:
        """Delete the cached answers and vectors of an owner, whose keys begin alike."""
        if not isinstance(env.cache, ErasableCache):
            self.kept.append(Kept("cache", f"{_CANNOT}: {_expiry(env)}"))
            return
        deleted = await result_of(env.cache.delete_all(owner_prefix(owner)))
        if not is_successful(deleted):
            self.kept.append(Kept("cache", f"{describe(deleted.failure())}: {_expiry(env)}"))
            return
        self.erased["cache_entries"] += deleted.unwrap()
        if not getattr(env.cache, "waits", True):  # it is in the memory of this process
            self.kept.append(Kept("cache", f"{_IN_MEMORY}: {_expiry(env)}"))


def _expiry(env: LLMEnv) -> str:
    ttl = env.config.cache.ttl_seconds
    if ttl is None:
        return "its entries do not expire: clear it"
    return f"what is left expires within {ttl + env.config.cache.stale_seconds:g} s"


def _eraser_of(kind: str, env: LLMEnv) -> _Erase | None:
    match kind:
        case "conversations" if isinstance(env.conversations, ErasableConversations):
            return env.conversations.erase_conversations
        case "journals" if isinstance(env.conversations, ErasableConversations):
            return env.conversations.erase_journals
        case "ledger" if isinstance(env.ledger, ErasableLedger):
            return env.ledger.erase_rows
        case _:
            return None
