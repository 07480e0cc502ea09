"""Checks that every store of conversations must pass.

Each check takes a store, which may already hold anything, and works for an owner of its own. A store that misbehaves
fails it with an ``AssertionError``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from typing import Final, TypeAlias
from uuid import uuid4

import anyio
from attrs import evolve
from returns.pipeline import is_successful

from llm_effects.effects.effect import result_of
from llm_effects.effects.env import Conversations
from llm_effects.testing.lifecycle_checks import LIFECYCLE_CHECKS
from llm_effects.testing.stored_chat import (
    DAY,
    Chat,
    ensure,
    expect,
    expect_failure,
    new_message,
    new_turn,
    texts,
    value_of,
)
from llm_effects.values.conversations import JournalEntry, Provenance, StoredMessage, Summary, Turn, TurnState
from llm_effects.values.json import repair_surrogates
from llm_effects.values.messages import Image, Message, Origin, Reasoning, Text, ToolCall, ToolResult
from llm_effects.values.responses import Cost, FinishReason, Usage

Check: TypeAlias = Callable[[Conversations], Awaitable[None]]
"""A check of one behaviour of a store."""

# Values: every field is loaded as it was stored, the newest turns first of all, and the journal.


async def a_conversation_is_loaded_as_it_was_started(store: Conversations) -> None:
    """Check every field of a new conversation: its counts start at zero, and its id can be used once."""
    chat = Chat(store)
    full = evolve(
        chat.initial, system="Be kind.", metadata={"a": "ü", "": ""}, forked_from=("other", "m"), last_model="m"
    )
    expect(await value_of(store.load(chat.id, chat.owner)), None, "a conversation that was not started")
    expect(await value_of(store.start(evolve(full, version=7, turns=7))), full, "the conversation")
    await expect_failure(store.start(chat.initial), "ConversationConflict")
    history = await chat.read()
    expect((history.conversation, history.turns, history.complete), (full, (), True), "the conversation")


_PARTS: Final = (
    Text("why?"),
    Image(data=bytes(range(256)), media_type="image/png"),
    Image(url="https://host/picture.png"),
    Reasoning("hm", opaque='{"signature": "x"}', origin=Origin("anthropic", "m")),
    ToolCall("call", "find", '{"a": [1, null]}'),
    ToolResult("call", "found", is_error=True, trusted=False),
)

_PROVENANCE: Final = Provenance(
    model="gpt",
    provider="openai",
    served_model="gpt-x",
    usage=Usage(input_tokens=1, cache_read_tokens=2, output_tokens=3, estimated=True),
    cost=Cost(Decimal("0.000000123456789")),
    finish_reason=FinishReason.TOOL_CALLS,
)


async def a_message_is_loaded_as_it_was_stored(store: Conversations) -> None:
    """Check every part of a message, its time to the microsecond, and its provenance."""
    chat = await Chat(store).start()
    at = DAY + timedelta(microseconds=123_457)
    message = StoredMessage(
        id="m", message=Message("assistant", _PARTS), at=at, pinned=True, tokens=9, provenance=_PROVENANCE
    )
    turn = await chat.begin(new_turn("one"))
    finished = await value_of(store.finish_turn(chat.id, chat.owner, turn.id, TurnState.FINISHED, (message,)))
    history = await chat.read()
    expect(history.turns, (finished,), "the turn")
    expect(history.turns[0].messages, (*turn.messages, message), "its messages")
    expect(
        (history.conversation.last_model, history.conversation.updated_at),
        ("gpt", at),
        "the conversation",
    )


_ODD_TEXTS: Final = (
    "\0",
    "a\0b",
    "\ud800",
    "\ud83d\ude00",
    "😀",
    "'; DROP TABLE messages; --",
    "%s {} :name ?",
    "e\u0301",
    "\r\n\t ",
)


async def any_text_is_stored(store: Conversations) -> None:
    """Check odd texts, character by character; a lone surrogate may be replaced."""
    chat = await Chat(store).start()
    stored = (*_ODD_TEXTS, "x" * 200_000)
    for text in stored:
        await chat.begin(new_turn(text))
    loaded = texts(await chat.read())
    ensure(
        all(each in {text, repair_surrogates(text)} for each, text in zip(loaded, stored, strict=True)),
        f"a text was changed: {loaded[:-1]}",
    )


async def the_newest_turns_are_loaded(store: Conversations) -> None:
    """Check that older turns with a pinned message are loaded too, whole and unchanged."""
    chat = await Chat(store).start()
    pinned = await chat.begin(evolve(new_turn("0"), messages=(new_message("remember", pinned=True), new_message("0"))))
    failed = await chat.begin(evolve(new_turn("1"), messages=(new_message("1", pinned=True),)))
    failed = await chat.finish(failed.id, state=TurnState.FAILED)
    for number in range(2, 5):
        await chat.begin(new_turn(str(number)))
    newest = await chat.read(2)
    expect((texts(newest), newest.complete, newest.pinned), (["3", "4"], False, (pinned, failed)), "the newest two")
    whole = await chat.read(5)
    expect((len(whole.turns), whole.complete, whole.pinned), (5, True, ()), "the newest five")
    expect(await chat.read(2**70), whole, "more turns than there are")
    none = await chat.read(0)
    expect((none.turns, none.complete, none.pinned), ((), False, (pinned, failed)), "no turns")


async def the_summary_that_reaches_furthest_is_loaded(store: Conversations) -> None:
    """Check that a summary covering fewer turns is ignored, and that none changes the version."""
    chat = await Chat(store).start()
    summaries = [Summary(upto=2, text="two"), Summary(upto=1, text="one"), Summary(upto=2, text="2", tokens=1)]
    for summary, expected in zip(summaries, (summaries[0], summaries[0], summaries[2]), strict=True):
        await value_of(store.summarise(chat.id, chat.owner, summary))
        expect((await chat.read()).summary, expected, "the summary")
    expect(await chat.version(), 0, "the version")
    await expect_failure(store.summarise("other", chat.owner, summaries[0]), "InvalidRequest")


async def a_copy_is_stored_whole_or_not_at_all(store: Conversations) -> None:
    """Check that a copy has its turns, numbered from 1, and its summary, and that one that fails stores nothing."""
    chat, copy = await Chat(store).start(), Chat(store)
    turns = (await chat.add_turn("one", "1"), await chat.add_turn("two", "2"))
    history = evolve(await chat.read(), conversation=copy.initial, turns=turns[1:], summary=Summary(upto=1, text="s"))
    twice = (turns[0], evolve(turns[1], messages=turns[0].messages))
    await expect_failure(store.start_copy(evolve(history, turns=twice)), "InvalidRequest")
    expect(await value_of(store.load(copy.id, copy.owner)), None, "a copy that failed")
    stored = await value_of(store.start_copy(history))
    expect((stored.version, stored.turns), (1, 1), "version and turns")
    loaded = await copy.read()
    expect((loaded.conversation, loaded.summary), (stored, history.summary), "the copy and its summary")
    expect(loaded.turns, (evolve(turns[1], number=1),), "its turns")
    await expect_failure(store.start_copy(history), "ConversationConflict")
    empty = Chat(store)
    stored = await value_of(store.start_copy(evolve(history, conversation=empty.initial, turns=(), summary=None)))
    expect((stored.version, (await empty.read()).turns), (0, ()), "a copy without turns")


async def a_deleted_conversation_is_gone(store: Conversations) -> None:
    """Check that all its contents are gone, and that its id may be used again."""
    chat = await Chat(store).start()
    turn = await chat.add_turn("one", "1")
    await value_of(store.summarise(chat.id, chat.owner, Summary(upto=1, text="one")))
    expect(await value_of(store.delete(chat.id, chat.owner)), True, "the first deletion")
    expect(await value_of(store.delete(chat.id, chat.owner)), False, "the second deletion")
    expect(await value_of(store.load(chat.id, chat.owner)), None, "the deleted conversation")
    history = await (await chat.start()).read()
    expect((history.turns, history.summary, history.conversation.version), ((), None, 0), "the new conversation")
    await value_of(store.append(chat.id, chat.owner, 0, (turn,)))


async def pages_are_ordered_by_id(store: Conversations) -> None:
    """Check the order by code point, independent of the locale of the store."""
    chat = Chat(store)
    ids = sorted(["B", "a", "ä", "z", "Z", "1", "10", "2", "_", "😀", "ﬀ"])
    for each in reversed(ids):
        await evolve(chat, id=each).start()
    page = await value_of(store.page(chat.owner, 100))
    expect([each.id for each in page], ids, "all")
    expect([each.id for each in await value_of(store.page(chat.owner, 3, after=ids[4]))], ids[5:8], "in the middle")
    expect(
        [each.id for each in await value_of(store.page(chat.owner, 3, after="C"))],
        ids[4:7],
        "after a missing id",
    )
    expect(await value_of(store.page(chat.owner, 0)), (), "none")
    expect(await value_of(store.page(chat.owner, 3, after=ids[-1])), (), "after the last")


async def a_journal_stores_each_step_once(store: Conversations) -> None:
    """Check that the first intent and the first result are kept, in order."""
    chat = Chat(store)
    fresh = await value_of(store.intend("run", chat.owner, "b", b"\0intent"))
    expect(fresh, JournalEntry(key="b", intent=b"\0intent", fresh=True), "an intent")
    again = await value_of(store.intend("run", chat.owner, "b", b"other"))
    expect(again, JournalEntry(key="b", intent=b"\0intent"), "the same intent again")
    await value_of(store.intend("run", chat.owner, "a", b""))
    for result in (b"\xffdone", b"other"):
        await value_of(store.conclude("run", chat.owner, "b", result))
    entries = (JournalEntry(key="b", intent=b"\0intent", result=b"\xffdone"), JournalEntry(key="a", intent=b""))
    expect(await value_of(store.journal("run", chat.owner)), entries, "the journal")
    expect(await value_of(store.intend("run", chat.owner, "b", b"")), entries[0], "an intent with its result")
    await expect_failure(store.conclude("run", chat.owner, "c", b""), "InvalidRequest")
    expect(await value_of(store.journal("other", chat.owner)), (), "another run")


RECORD_CHECKS: Final[tuple[Check, ...]] = (
    a_conversation_is_loaded_as_it_was_started,
    a_message_is_loaded_as_it_was_stored,
    any_text_is_stored,
    the_newest_turns_are_loaded,
    the_summary_that_reaches_furthest_is_loaded,
    a_copy_is_stored_whole_or_not_at_all,
    a_deleted_conversation_is_gone,
    pages_are_ordered_by_id,
    a_journal_stores_each_step_once,
)


# Isolation: owners, odd ids, and many writers at once.


async def another_owner_sees_nothing(store: Conversations) -> None:
    """Check every operation: the data of one owner does not exist for another, or for ``owner=None``."""
    mine = await Chat(store).start()
    turn = await mine.begin(new_turn("secret"))
    await value_of(store.intend(mine.id, mine.owner, "key", b"secret"))
    before = await mine.read()
    for chat in (mine.owned_by("other" + uuid4().hex), mine.owned_by(None)):
        expect(await value_of(store.load(chat.id, chat.owner)), None, "a conversation loaded by another owner")
        expect(await value_of(store.delete(chat.id, chat.owner)), False, "a deletion by another owner")
        expect(await value_of(store.journal(chat.id, chat.owner)), (), "the journal of another owner")
        await _expect_every_change_to_fail(chat, turn)
        ensure(
            mine.id not in {each.id for each in await value_of(store.page(chat.owner, 1000))},
            "another owner lists it",
        )
        ensure(
            (await value_of(store.intend(chat.id, chat.owner, uuid4().hex, b""))).fresh,
            "the run of another owner exists",
        )
    expect(await mine.read(), before, "the conversation of its owner")


async def _expect_every_change_to_fail(chat: Chat, turn: Turn) -> None:
    store, tag = chat.store, "InvalidRequest"
    await expect_failure(store.begin_turn(chat.id, chat.owner, 1, turn), tag)
    await expect_failure(store.finish_turn(chat.id, chat.owner, turn.id, TurnState.FINISHED, ()), tag)
    await expect_failure(store.append(chat.id, chat.owner, 1, (new_turn("mine"),)), tag)
    await expect_failure(store.summarise(chat.id, chat.owner, Summary(upto=1, text="mine")), tag)
    await expect_failure(store.conclude(chat.id, chat.owner, "key", b""), tag)


async def owners_may_use_the_same_ids(store: Conversations) -> None:
    """Check that each owner has a separate conversation."""
    shared = Chat(store)
    chats = [shared.owned_by(each) for each in ("a" + shared.id, "A" + shared.id, "\uff41" + shared.id)]
    for number, chat in enumerate(chats):
        await (await chat.start()).add_turn(f"question {number}", "answer")
    for number, chat in enumerate(chats):
        expect(texts(await chat.read()), [f"question {number}", "answer"], "the messages of one owner")
        expect(await value_of(store.delete(chat.id, chat.owner)), True, "the first deletion")


ODD_IDS: Final = (
    "../../etc/passwd",
    "'; DROP TABLE llm_messages; --",
    '" OR ""="',
    "%",
    "_",
    "*",
    "a",
    "A",
    "\u0430",  # the Cyrillic letter that looks like a
    "é",
    "e\u0301",
    "ﬀ",
    "a ",
    " a",
    "a\n",
    "\x01",
    "\u202e",
    "😀",
    ":name",
    "?",
    "$1",
    "{id}",
    "llm:*:[a-z]",
    "0",
    "00",
    "0.0",
    "null",
    "x" * 512,
)
"""Ids that a careless store confuses with each other, or with syntax."""


async def odd_ids_are_kept_apart(store: Conversations) -> None:
    """Check odd ids of conversations and turns: each names its own."""
    chat = Chat(store)
    for each in ODD_IDS:
        await evolve(chat, id=each).start()
        await evolve(chat, id=each).begin(new_turn(f"in {each}", turn_id=each))
    for each in ODD_IDS:
        history = await evolve(chat, id=each).read()
        expect(
            ([turn.id for turn in history.turns], texts(history)), ([each], [f"in {each}"]), f"the turns of {each!r}"
        )
    expect([each.id for each in await value_of(store.page(chat.owner, 100))], sorted(ODD_IDS), "all ids")


async def invalid_ids_are_refused(store: Conversations) -> None:
    """Check ids that are blank, too long, or not a text for every database."""
    chat = await Chat(store).start()
    for each in ("", " ", "a\0", "\ud800", "x" * 513, "ä" * 257):
        for future in (
            store.load(each, chat.owner),
            store.load(chat.id, each),
            store.delete(each, chat.owner),
            store.begin_turn(each, chat.owner, 0, new_turn("one")),
            store.finish_turn(chat.id, chat.owner, each, TurnState.FINISHED, ()),
            store.append(chat.id, each, 0, ()),
            store.summarise(each, chat.owner, Summary(upto=1, text="")),
            store.page(each, 1),
            store.page(chat.owner, 1, after=each),
            store.intend(each, chat.owner, "key", b""),
            store.conclude("run", chat.owner, each, b""),
            store.journal(each, chat.owner),
        ):
            await expect_failure(future, "InvalidRequest")


async def many_writers_lose_nothing(store: Conversations) -> None:
    """Check that each acknowledged turn is stored once, in the order of the numbers."""
    chat = await Chat(store).start()
    acknowledged: dict[int, str] = {}

    async def write(writer: int) -> None:
        for step in range(4):
            turn = await _begin_with_retries(chat, new_turn(f"{writer} {step}", writer=str(writer)))
            acknowledged[turn.number] = (await chat.finish(turn.id, "yes")).id

    async with anyio.create_task_group() as tasks:
        for writer in range(6):
            tasks.start_soon(write, writer)
    history = await chat.read()
    expect({turn.number: turn.id for turn in history.turns}, acknowledged, "the turns")
    expect([turn.number for turn in history.turns], list(range(1, 25)), "their numbers")
    expect(history.conversation.version, 48, "the version")
    expect(
        sorted(texts(history)),
        sorted([*(f"{w} {s}" for w in range(6) for s in range(4)), *["yes"] * 24]),
        "the messages",
    )


async def _begin_with_retries(chat: Chat, turn: Turn) -> Turn:
    while True:
        result = await result_of(chat.store.begin_turn(chat.id, chat.owner, await chat.version(), turn))
        if is_successful(result):
            return result.unwrap()
        expect(result.failure().tag, "ConversationConflict", "the failure")
        await anyio.lowlevel.checkpoint()


async def one_of_many_writers_begins_a_turn(store: Conversations) -> None:
    """Check that the other writers get the turn of the first."""
    chat = await Chat(store).start()
    turn = new_turn("one")
    writers: list[str] = []

    async def begin(writer: str) -> None:
        begun = await value_of(store.begin_turn(chat.id, chat.owner, 0, evolve(turn, writer=writer)))
        writers.append(begun.writer)

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(begin, str(number))
    expect((len(writers), len(set(writers))), (8, 1), f"the writers {writers}")
    expect((await chat.version(), texts(await chat.read())), (1, ["one"]), "version and messages")


async def one_of_many_writers_starts_a_conversation(store: Conversations) -> None:
    """Check that the other writers get a conflict, and that one of many intents is fresh."""
    chat = Chat(store)
    outcomes: list[str] = []

    async def start() -> None:
        result = await result_of(store.start(chat.initial))
        outcomes.append("started" if is_successful(result) else result.failure().tag)
        entry = await value_of(store.intend("run", chat.owner, "key", b""))
        outcomes.append("fresh" if entry.fresh else "stale")

    async with anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(start)
    expect(
        sorted(outcomes), sorted(["started", "fresh", *["ConversationConflict"] * 5, *["stale"] * 5]), "the outcomes"
    )


TENANCY_CHECKS: Final[tuple[Check, ...]] = (
    another_owner_sees_nothing,
    owners_may_use_the_same_ids,
    odd_ids_are_kept_apart,
    invalid_ids_are_refused,
    many_writers_lose_nothing,
    one_of_many_writers_begins_a_turn,
    one_of_many_writers_starts_a_conversation,
)


# Turns: begun once, finished once, in order.


async def turns_are_numbered_and_versions_grow(store: Conversations) -> None:
    """Check that each begin and each finish increments the version."""
    chat = await Chat(store).start()
    first = await chat.begin(new_turn("one"))
    expect((first.number, first.state, await chat.version()), (1, TurnState.PENDING, 1), "the turn that began")
    finished = await chat.finish(first.id, "1")
    expect((finished.number, finished.state, await chat.version()), (1, TurnState.FINISHED, 2), "the finished turn")
    expect((await chat.begin(new_turn("two"))).number, 2, "the number of the next turn")
    history = await chat.read()
    expect((history.conversation.version, history.conversation.turns), (3, 2), "version and turns")
    expect(texts(history), ["one", "1", "two"], "the messages")


async def a_stale_version_is_a_conflict(store: Conversations) -> None:
    """Check that a writer that has not seen the newest turn cannot begin one, and that nothing is stored."""
    chat = await Chat(store).start()
    await chat.begin(new_turn("one"))
    for version in (0, 2, -1):
        await expect_failure(store.begin_turn(chat.id, chat.owner, version, new_turn("two")), "ConversationConflict")
    expect(texts(await chat.read()), ["one"], "the messages")


async def a_turn_begins_once(store: Conversations) -> None:
    """Check that beginning a turn again returns it unchanged, for every writer."""
    chat = await Chat(store).start()
    turn = new_turn("one", writer="mine")
    begun = await chat.begin(turn)
    for again in (turn, evolve(turn, writer="other"), new_turn("else", turn_id=turn.id, writer="other", at=59)):
        expect(await value_of(store.begin_turn(chat.id, chat.owner, 0, again)), begun, "the turn, begun again")
    expect((await chat.version(), texts(await chat.read())), (1, ["one"]), "version and messages")


async def an_expired_lease_is_taken_over(store: Conversations) -> None:
    """Check that one other writer takes over the turn of a dead process, with its messages."""
    chat = await Chat(store).start()
    turn = await chat.begin(new_turn("one", writer="dead"))
    again = new_turn("one, again", turn_id=turn.id, writer="mine", at=60)
    await expect_failure(store.begin_turn(chat.id, chat.owner, 0, again), "ConversationConflict")
    taken = await value_of(store.begin_turn(chat.id, chat.owner, 1, again))
    expect((taken.writer, taken.lease_until, taken.messages), ("mine", again.lease_until, turn.messages), "the turn")
    late = new_turn("one", turn_id=turn.id, writer="late", at=61)
    expect((await value_of(store.begin_turn(chat.id, chat.owner, 1, late))).writer, "mine", "the writer")
    expect((await chat.version(), len((await chat.read()).turns)), (2, 1), "version and turns")


async def a_turn_without_an_answer_is_taken_over(store: Conversations) -> None:
    """Check that a failed or interrupted turn can begin again, unless it has part of an answer."""
    chat = await Chat(store).start()
    for state in (TurnState.FAILED, TurnState.INTERRUPTED):
        turn = await chat.begin(new_turn(state.value))
        await value_of(store.finish_turn(chat.id, chat.owner, turn.id, state, (), error="NetworkError"))
        expect((await chat.read(1)).turns[0].error, "NetworkError", "the error")
        again = await chat.begin(new_turn("again", turn_id=turn.id, writer="other"))
        expect((again.state, again.error, again.writer), (TurnState.PENDING, None, "other"), "the turn taken over")
        expect(again.messages, turn.messages, "its messages")
        await chat.finish(turn.id, "seen", TurnState.INTERRUPTED)
        seen = await chat.begin(new_turn("again", turn_id=turn.id, writer="third"))
        expect((seen.state, len(seen.messages)), (TurnState.INTERRUPTED, 2), "the turn that has an answer")


async def the_first_finish_is_kept(store: Conversations) -> None:
    """Check that finishing a turn again changes nothing."""
    chat = await Chat(store).start()
    turn = await chat.begin(new_turn("one"))
    finished = await chat.finish(turn.id, "1")
    version = await chat.version()
    for state in (TurnState.FINISHED, TurnState.FAILED, TurnState.INTERRUPTED):
        expect(await chat.finish(turn.id, "2", state), finished, "the turn, finished again")
    expect((await chat.version(), texts(await chat.read())), (version, ["one", "1"]), "version and messages")


async def a_finish_needs_no_version(store: Conversations) -> None:
    """Check that turns can finish in any order, and keep their places."""
    chat = await Chat(store).start()
    first, second = await chat.begin(new_turn("one")), await chat.begin(new_turn("two"))
    await chat.finish(second.id, "2")
    await chat.finish(first.id, "1")
    expect(texts(await chat.read()), ["one", "1", "two", "2"], "the messages")


async def a_failed_turn_keeps_its_question(store: Conversations) -> None:
    """Check that an answer that arrives late is still stored."""
    chat = await Chat(store).start()
    turn = await chat.begin(new_turn("one"))
    expect(
        (await chat.finish(turn.id, "half", TurnState.FAILED)).messages,
        turn.messages,
        "its messages",
    )
    version = await chat.version()
    await chat.finish(turn.id, "half", TurnState.FAILED)
    expect(await chat.version(), version, "the version after a second failure")
    await chat.finish(turn.id, "1")
    expect(texts(await chat.read()), ["one", "1"], "the messages")


async def a_missing_turn_cannot_be_finished(store: Conversations) -> None:
    """Check missing turns and conversations; a turn cannot be finished as pending either."""
    chat = await Chat(store).start()
    turn = await chat.begin(new_turn("one"))
    finished = TurnState.FINISHED
    await expect_failure(store.finish_turn(chat.id, chat.owner, "other", finished, ()), "InvalidRequest")
    await expect_failure(store.finish_turn("other", chat.owner, turn.id, finished, ()), "InvalidRequest")
    await expect_failure(store.finish_turn(chat.id, chat.owner, turn.id, TurnState.PENDING, ()), "InvalidRequest")
    await expect_failure(store.begin_turn("other", chat.owner, 0, new_turn("one")), "InvalidRequest")
    await expect_failure(store.append("other", chat.owner, 0, (new_turn("one"),)), "InvalidRequest")
    expect(await chat.version(), 1, "the version")


async def whole_turns_are_appended_together(store: Conversations) -> None:
    """Check that all or none are added, at one version, and that existing ones are unchanged."""
    chat = await Chat(store).start()
    turns = tuple(evolve(new_turn(text), state=TurnState.FINISHED) for text in "abc")
    await expect_failure(store.append(chat.id, chat.owner, 1, turns), "ConversationConflict")
    after = await value_of(store.append(chat.id, chat.owner, 0, turns[:2]))
    expect((after.version, after.turns), (1, 2), "version and turns")
    await expect_failure(store.append(chat.id, chat.owner, 0, turns), "ConversationConflict")
    expect(await value_of(store.append(chat.id, chat.owner, 0, turns[:2])), after, "the turns, appended again")
    expect((await value_of(store.append(chat.id, chat.owner, 1, (*turns, turns[2])))).turns, 3, "the number of turns")
    history = await chat.read()
    expect(texts(history), ["a", "b", "c"], "the messages")
    expect([turn.number for turn in history.turns], [1, 2, 3], "the numbers")
    ensure(all(turn.state is TurnState.FINISHED for turn in history.turns), "a state was lost")


async def a_message_is_stored_once(store: Conversations) -> None:
    """Check that an id is used once in a conversation: a second use stores nothing. Another conversation may use it."""
    chat, fork = await Chat(store).start(), await Chat(store).start()
    turn = evolve(new_turn("one"), messages=(new_message("one", name="m"),))
    await chat.begin(turn)
    twice = evolve(new_turn("two"), messages=(new_message("two", name="m"),))
    await expect_failure(store.begin_turn(chat.id, chat.owner, 1, twice), "InvalidRequest")
    await expect_failure(store.append(chat.id, chat.owner, 1, (new_turn("new"), twice)), "InvalidRequest")
    messages = (new_message("1", "assistant"), new_message("1", "assistant", name="m"))
    await expect_failure(
        store.finish_turn(chat.id, chat.owner, turn.id, TurnState.FINISHED, messages), "InvalidRequest"
    )
    expect((await chat.version(), texts(await chat.read())), (1, ["one"]), "version and messages")
    await value_of(store.append(fork.id, fork.owner, 0, (turn,)))


TURN_CHECKS: Final[tuple[Check, ...]] = (
    turns_are_numbered_and_versions_grow,
    a_stale_version_is_a_conflict,
    a_turn_begins_once,
    an_expired_lease_is_taken_over,
    a_turn_without_an_answer_is_taken_over,
    the_first_finish_is_kept,
    a_finish_needs_no_version,
    a_failed_turn_keeps_its_question,
    a_missing_turn_cannot_be_finished,
    whole_turns_are_appended_together,
    a_message_is_stored_once,
)


CONVERSATION_CHECKS: Final[tuple[Check, ...]] = (*TURN_CHECKS, *RECORD_CHECKS, *TENANCY_CHECKS, *LIFECYCLE_CHECKS)
"""The checks for a store of conversations: run each of them on your own, under asyncio and under trio.

>>> import anyio
>>> from llm_effects.stores.conversations.memory import MemoryConversations
>>> for check in CONVERSATION_CHECKS:
...     anyio.run(check, MemoryConversations())
"""
