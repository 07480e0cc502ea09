"""Checks of what a store of conversations may do beside storing them: erase by owner and age.

They pass for a store that lacks the methods.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias
from uuid import uuid4

from attrs import evolve
from returns.future import FutureResult

from llm_effects.effects.env import Conversations
from llm_effects.effects.lifecycle import APPROVALS_RUN, Chosen, Counts, ErasableConversations
from llm_effects.testing.stored_chat import DAY, Chat, ensure, expect, expect_failure, new_message, new_turn, value_of
from llm_effects.values.conversations import JournalEntry, Summary
from llm_effects.values.errors import LLMError

Check: TypeAlias = Callable[[Conversations], Awaitable[None]]


async def all_of(erase: Callable[[Chosen], FutureResult[Counts, LLMError]], chosen: Chosen) -> Counts:
    """Erase batch by batch until nothing is left, and return the sums."""
    erased = Counter[str]()
    while any((batch := await value_of(erase(chosen))).values()):
        erased.update(batch)
    return erased


async def an_owner_is_erased_alone(store: Conversations) -> None:
    """Check that conversations and journals of one owner are gone, and those of another and of ``None`` are not."""
    if not isinstance(store, ErasableConversations):
        return
    mine, other, unowned = await Chat(store).start(), await Chat(store).start(), await Chat(store, owner=None).start()
    for chat in (mine, other, unowned):
        await chat.add_turn("why?", "because")
        await value_of(store.intend(chat.id, chat.owner, "step", b"secret"))
        await value_of(store.intend(APPROVALS_RUN, chat.owner, uuid4().hex, b"secret"))
    await value_of(store.summarise(mine.id, mine.owner, Summary(upto=1, text="secret")))
    before = [await chat.read() for chat in (other, unowned)]
    chosen = Chosen(owners=(mine.owner,))
    erased = {**await all_of(store.erase_conversations, chosen), **await all_of(store.erase_journals, chosen)}
    expect(erased, {"conversations": 1, "messages": 2, "journal_entries": 1, "approvals": 1}, "the counts")
    expect(await value_of(store.load(mine.id, mine.owner)), None, "the conversation")
    expect(await value_of(store.page(mine.owner, 100)), (), "the owner's conversations")
    for run in (mine.id, APPROVALS_RUN):
        expect(await value_of(store.journal(run, mine.owner)), (), "the owner's journals")
    expect([await chat.read() for chat in (other, unowned)], before, "other conversations")
    for chat in (other, unowned):
        expect(len(await value_of(store.journal(chat.id, chat.owner))), 1, "another journal")
    history = await (await mine.start()).read()
    expect((history.turns, history.summary), ((), None), "the conversation, started again")


async def a_turn_under_way_does_not_bring_an_erased_conversation_back(store: Conversations) -> None:
    """Check that the end of a turn that began before fails."""
    if not isinstance(store, ErasableConversations):
        return
    chat = await Chat(store).start()
    turn = await chat.begin(new_turn("why?"))
    await all_of(store.erase_conversations, Chosen(owners=(chat.owner,)))
    answer = (new_message("because", "assistant"),)
    await expect_failure(store.finish_turn(chat.id, chat.owner, turn.id, turn.state.FINISHED, answer), "InvalidRequest")
    expect(await value_of(store.load(chat.id, chat.owner)), None, "the conversation")


async def conversations_age_by_their_newest_turn(store: Conversations) -> None:
    """Check that only what was last changed before a time is erased, whatever zone the time has, in batches."""
    if not isinstance(store, ErasableConversations):
        return
    owner, kept = uuid4().hex, Chat(store, owner=uuid4().hex)
    chats = [await Chat(store, owner=owner).start() for _ in range(250)]
    for chat in (chats[0], await kept.start()):
        await chat.begin(new_turn("later", at=60.0))
    zone = (DAY + timedelta(seconds=60)).astimezone(UTC)
    chosen = Chosen(owners=(owner,), before=zone)
    expect((await all_of(store.erase_conversations, chosen))["conversations"], 249, "how many are older")
    expect([each.id for each in await value_of(store.page(owner, 300))], [chats[0].id], "what is left")
    await all_of(store.erase_conversations, evolve(chosen, before=zone + timedelta(microseconds=1)))
    expect(await value_of(store.page(owner, 300)), (), "what is left of a later time")
    everyone = Chosen(spared=(str(kept.owner),), before=zone + timedelta(days=1))
    await all_of(store.erase_conversations, everyone)
    ensure(await value_of(store.load(kept.id, kept.owner)), "a conversation of a spared owner is gone")


async def journals_age_by_run(store: Conversations) -> None:
    """Check that a run is erased whole or not at all, and that approvals age one by one."""
    if not isinstance(store, ErasableConversations):
        return
    owner, now = uuid4().hex, datetime.now(UTC)
    for run, key in (("run", "a"), ("run", "b"), (APPROVALS_RUN, "c")):
        await value_of(store.intend(run, owner, key, b""))
    early, late = (Chosen(owners=(owner,), before=now + timedelta(days=days)) for days in (-1, 1))
    expect(sum((await all_of(store.erase_journals, early)).values()), 0, "how many are older than a day")
    entries = (JournalEntry(key="a", intent=b""), JournalEntry(key="b", intent=b""))
    expect(await value_of(store.journal("run", owner)), entries, "the run")
    expect(await all_of(store.erase_journals, late), {"journal_entries": 2, "approvals": 1}, "the counts")
    expect(await value_of(store.journal("run", owner)), (), "the run")


LIFECYCLE_CHECKS: Final[tuple[Check, ...]] = (
    an_owner_is_erased_alone,
    a_turn_under_way_does_not_bring_an_erased_conversation_back,
    conversations_age_by_their_newest_turn,
    journals_age_by_run,
)
