"""Checks of what a store of conversations may do beside storing them: find them, and erase them by owner and age.

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
from llm_effects.effects.lifecycle import APPROVALS_RUN, Chosen, Counts, ErasableConversations, SearchableConversations
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


async def conversations_are_found_by_metadata(store: Conversations) -> None:
    """Check that all of the metadata must be there, exactly, and that pages go on after an id."""
    if not isinstance(store, SearchableConversations):
        return
    chat, metadata = Chat(store), {"team": "a", "odd": 'it\'s "quoted" %ü'}
    for name, each in (("1", metadata), ("2", {"team": "a"}), ("3", metadata), ("4", {"team": "A"}), ("5", {})):
        await value_of(store.start(evolve(chat.initial, id=name, metadata=each)))
    found = await value_of(store.page_by_metadata(chat.owner, {"team": "a"}, 9))
    expect([each.id for each in found], ["1", "2", "3"], "the conversations of a team")
    for wanted in (metadata, {"odd": metadata["odd"]}):
        found = await value_of(store.page_by_metadata(chat.owner, wanted, 9))
        expect([each.id for each in found], ["1", "3"], "the conversations with all of it")
    found = await value_of(store.page_by_metadata(chat.owner, {"team": "a"}, 1, after="1"))
    expect([each.id for each in found], ["2"], "a page after an id")
    for nothing in ({"team": "a", "other": ""}, {"a": "team"}, {"team": ""}):
        expect(await value_of(store.page_by_metadata(chat.owner, nothing, 9)), (), "conversations without it")
    expect(await value_of(store.page_by_metadata(uuid4().hex, {"team": "a"}, 9)), (), "those of another owner")


async def messages_are_found_by_their_words(store: Conversations) -> None:
    """Check that every word must be there, in any order and case, whole, and of this owner; the newest comes first."""
    if not isinstance(store, SearchableConversations):
        return
    first = await Chat(store).start()
    second = await Chat(store, owner=first.owner).start()
    other = await Chat(store).start()
    turn = await first.add_turn("Why is p99 up at the checkout?", "A lock: disk_full, in /var/log.")
    await second.add_turn("Is the DISK full?", "Not any more. It's 90% full; 'twas \u00fcbervoll!")
    await other.add_turn("the disk of another owner is full", "yes")
    hits = await value_of(store.search(first.owner, "disk FULL", 9))
    texts = [hit.message.message.text for hit in hits]
    expect(texts, ["Is the DISK full?", "A lock: disk_full, in /var/log."], "what is found")
    expect([hit.conversation_id for hit in hits], [second.id, first.id], "their conversations")
    expect((hits[1].turn, hits[1].message), (1, turn.messages[1]), "the turn and the message")
    page = await value_of(store.search(first.owner, "disk full", 1))
    rest = await value_of(store.search(first.owner, "disk full", 9, after=page[0].cursor))
    expect((*page, *rest), hits, "the same in two pages")
    for words, count in (
        ("\u00fcbervoll", 1),
        ("full it s", 1),
        ("var log", 1),
        ("dis", 0),
        ("disk p99", 0),
        ("99", 0),
    ):
        expect(len(await value_of(store.search(first.owner, words, 9))), count, f"the hits of {words!r}")
    await value_of(store.delete(second.id, second.owner))
    expect(
        [hit.conversation_id for hit in await value_of(store.search(first.owner, "disk full", 9))], [first.id], "hits"
    )


async def a_search_without_a_word_is_refused(store: Conversations) -> None:
    """Check texts without letters and digits, cursors that are none, and syntax that a database may know."""
    if not isinstance(store, SearchableConversations):
        return
    chat = await Chat(store).start()
    await chat.add_turn("a NEAR b", "c OR d")
    for text in ("", " ", "\"*'", "?!"):
        await expect_failure(store.search(chat.owner, text, 9), "InvalidRequest")
    for after in ("", "x", "1-2", "1-2-3-4", "-1-2-3", "1-2-03", "9" * 30 + "-1-1"):
        await expect_failure(store.search(chat.owner, "a", 9, after=after), "InvalidRequest")
    for text in ('a AND "b', "a* | b & !c", "a NOT b:*", "words:a) OR (b", "'; DROP TABLE llm_messages; --"):
        expect(len(await value_of(store.search(chat.owner, text, 9))), 0, f"the hits of {text!r}")
    expect(len(await value_of(store.search(chat.owner, "near a", 9))), 1, "the hits of words that are syntax")
    expect(await value_of(store.search(chat.owner, "a", 0)), (), "no hits")


LIFECYCLE_CHECKS: Final[tuple[Check, ...]] = (
    an_owner_is_erased_alone,
    a_turn_under_way_does_not_bring_an_erased_conversation_back,
    conversations_age_by_their_newest_turn,
    journals_age_by_run,
    conversations_are_found_by_metadata,
    messages_are_found_by_their_words,
    a_search_without_a_word_is_refused,
)
