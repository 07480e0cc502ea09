"""What a store must give back: every value as it was, the newest of it, and the journal."""

from datetime import timedelta
from decimal import Decimal
from typing import Final

from attrs import evolve

from llm_effects.jsons import mended
from llm_effects.messages import Image, Message, Origin, Reasoning, Text, ToolCall, ToolResult
from llm_effects.responses import Cost, FinishReason, Usage
from llm_effects.services import Conversations
from llm_effects.testing.conformance import DAY, Check, Talk, asked, made, must, refused, said, same, texts
from llm_effects.turns import JournalEntry, Provenance, StoredMessage, Summary, TurnState


async def a_conversation_is_given_as_it_was_started(store: Conversations) -> None:
    """With every field; its counts begin at nothing, and an id is taken once."""
    talk = Talk(store)
    told = evolve(talk.new, system="Be kind.", metadata={"a": "ü", "": ""}, forked_from=("other", "m"), last_model="m")
    same(await made(store.load(talk.id, talk.owner)), None, "what was not started")
    same(await made(store.start(evolve(told, version=7, turns=7))), told, "what was started")
    await refused(store.start(talk.new), "ConversationConflict")
    history = await talk.read()
    same((history.conversation, history.turns, history.complete), (told, (), True), "what was started")


_PARTS: Final = (
    Text("why?"),
    Image(data=bytes(range(256)), media_type="image/png"),
    Image(url="https://host/picture.png"),
    Reasoning("hm", opaque='{"signature": "x"}', origin=Origin("anthropic", "m")),
    ToolCall("call", "find", '{"a": [1, null]}'),
    ToolResult("call", "found", is_error=True),
)

_PROVENANCE: Final = Provenance(
    model="gpt",
    provider="openai",
    served_model="gpt-x",
    usage=Usage(input_tokens=1, cache_read_tokens=2, output_tokens=3, estimated=True),
    cost=Cost(Decimal("0.000000123456789")),
    finish_reason=FinishReason.TOOL_CALLS,
)


async def a_message_is_given_as_it_was_stored(store: Conversations) -> None:
    """With every part, its time to the microsecond, and where it came from."""
    talk = await Talk(store).started()
    at = DAY + timedelta(microseconds=123_457)
    message = StoredMessage(
        id="m", message=Message("assistant", _PARTS), at=at, pinned=True, tokens=9, provenance=_PROVENANCE
    )
    turn = await talk.begun(asked("one"))
    ended = await made(store.finish_turn(talk.id, talk.owner, turn.id, TurnState.FINISHED, (message,)))
    history = await talk.read()
    same(history.turns, (ended,), "the turn")
    same(history.turns[0].messages, (*turn.messages, message), "its messages")
    same((history.conversation.last_model, history.conversation.updated_at), ("gpt", at), "what the end tells")


_ODD: Final = (
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


async def any_text_is_kept(store: Conversations) -> None:
    """Letter by letter; half a surrogate pair may be mended."""
    talk = await Talk(store).started()
    given = (*_ODD, "x" * 200_000)
    for text in given:
        await talk.begun(asked(text))
    kept = texts(await talk.read())
    must(
        all(each in {text, mended(text)} for each, text in zip(kept, given, strict=True)),
        f"a text was changed: {kept[:-1]}",
    )


async def the_newest_turns_are_given(store: Conversations) -> None:
    """With the older turns that have something pinned, whole and as they are."""
    talk = await Talk(store).started()
    pinned = await talk.begun(evolve(asked("0"), messages=(said("remember", pinned=True), said("0"))))
    failed = await talk.begun(evolve(asked("1"), messages=(said("1", pinned=True),)))
    failed = await talk.ended(failed.id, state=TurnState.FAILED)
    for number in range(2, 5):
        await talk.begun(asked(str(number)))
    newest = await talk.read(2)
    same((texts(newest), newest.complete, newest.pinned), (["3", "4"], False, (pinned, failed)), "the newest two")
    whole = await talk.read(5)
    same((len(whole.turns), whole.complete, whole.pinned), (5, True, ()), "the newest five")
    same(await talk.read(2**70), whole, "more than there are")
    none = await talk.read(0)
    same((none.turns, none.complete, none.pinned), ((), False, (pinned, failed)), "none")


async def the_summary_that_reaches_furthest_is_given(store: Conversations) -> None:
    """It is no new version."""
    talk = await Talk(store).started()
    summaries = [Summary(upto=2, text="two"), Summary(upto=1, text="one"), Summary(upto=2, text="2", tokens=1)]
    for summary, given in zip(summaries, (summaries[0], summaries[0], summaries[2]), strict=True):
        await made(store.summarise(talk.id, talk.owner, summary))
        same((await talk.read()).summary, given, "the summary")
    same(await talk.version(), 0, "the version")
    await refused(store.summarise("other", talk.owner, summaries[0]), "InvalidRequest")


async def a_conversation_that_is_dropped_is_gone(store: Conversations) -> None:
    """With all that it held; its id may be used again."""
    talk = await Talk(store).started()
    turn = await talk.turned("one", "1")
    await made(store.summarise(talk.id, talk.owner, Summary(upto=1, text="one")))
    same(await made(store.delete(talk.id, talk.owner)), True, "the first")
    same(await made(store.delete(talk.id, talk.owner)), False, "the second")
    same(await made(store.load(talk.id, talk.owner)), None, "what is gone")
    history = await (await talk.started()).read()
    same((history.turns, history.summary, history.conversation.version), ((), None, 0), "what starts anew")
    await made(store.append(talk.id, talk.owner, 0, (turn,)))


async def pages_follow_the_ids(store: Conversations) -> None:
    """In the order of their letters, whatever language the store speaks."""
    talk = Talk(store)
    ids = sorted(["B", "a", "ä", "z", "Z", "1", "10", "2", "_", "😀", "ﬀ"])
    for each in reversed(ids):
        await evolve(talk, id=each).started()
    found = await made(store.page(talk.owner, 100))
    same([each.id for each in found], ids, "all")
    same([each.id for each in await made(store.page(talk.owner, 3, after=ids[4]))], ids[5:8], "three in the middle")
    same([each.id for each in await made(store.page(talk.owner, 3, after="C"))], ids[4:7], "after what is not there")
    same(await made(store.page(talk.owner, 0)), (), "none")
    same(await made(store.page(talk.owner, 3, after=ids[-1])), (), "after the last")


async def a_journal_notes_once(store: Conversations) -> None:
    """The first intent and the first result stay, in order."""
    talk = Talk(store)
    fresh = await made(store.intend("run", talk.owner, "b", b"\0intent"))
    same(fresh, JournalEntry(key="b", intent=b"\0intent", fresh=True), "an intent")
    again = await made(store.intend("run", talk.owner, "b", b"other"))
    same(again, JournalEntry(key="b", intent=b"\0intent"), "the same again")
    await made(store.intend("run", talk.owner, "a", b""))
    for result in (b"\xffdone", b"other"):
        await made(store.conclude("run", talk.owner, "b", result))
    entries = (JournalEntry(key="b", intent=b"\0intent", result=b"\xffdone"), JournalEntry(key="a", intent=b""))
    same(await made(store.journal("run", talk.owner)), entries, "the journal")
    same(await made(store.intend("run", talk.owner, "b", b"")), entries[0], "an intent with its result")
    await refused(store.conclude("run", talk.owner, "c", b""), "InvalidRequest")
    same(await made(store.journal("other", talk.owner)), (), "another run")


RECORD_CHECKS: Final[tuple[Check, ...]] = (
    a_conversation_is_given_as_it_was_started,
    a_message_is_given_as_it_was_stored,
    any_text_is_kept,
    the_newest_turns_are_given,
    the_summary_that_reaches_furthest_is_given,
    a_conversation_that_is_dropped_is_gone,
    pages_follow_the_ids,
    a_journal_notes_once,
)
